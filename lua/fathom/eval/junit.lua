--- junit.lua - a report as JUnit XML, for whatever shows test results: one suite a scorer, one test a case.

local escape = require "fathom.eval.escape"
local stats = require "fathom.eval.stats"

local junit = {}

local MOST_TEXT = 4000

local function attribute(text) return escape.attribute(escape.short(text, MOST_TEXT)) end

-- What went wrong with a case: its first sample below the threshold.
local function failure(row, name, mean, threshold)
  for _, s in ipairs(row.samples) do
    local v = s.scores[name]
    if v and v < threshold then
      local detail = s.details[name]
      return ("scores %g, wanted %g%s"):format(mean, threshold, type(detail) == "string" and ": " .. detail or ""),
             ("%s\n\nanswer:\n%s\n\nreference: %s"):format(row.prompt or "", s.answer or "", tostring(row.reference or ""))
    end
  end
end

local function case_of(report, row, name)
  local values, err = {}, nil
  for _, s in ipairs(row.samples) do
    values[#values + 1] = s.scores[name] or (s.err and 0.0) or nil
    err = err or s.err or (not s.scores[name] and (s.details[name] or "it was not scored"))
  end
  local head = ('    <testcase classname="%s" name="%s"'):format(attribute(report.name .. "." .. name), attribute(row.id))
  if err then return ('%s><error message="%s"/></testcase>'):format(head, attribute(err)), "error" end
  local mean = stats.mean(values)
  if mean >= report.threshold then return head .. "/>", "fine" end
  local message, text = failure(row, name, mean, report.threshold)
  text = escape.html(escape.short(text, MOST_TEXT))
  return ('%s><failure message="%s">%s</failure></testcase>'):format(head, attribute(message), text), "failure"
end

--- The report as XML.
-- @return string
function junit.text(report)
  local suites, all = {}, { error = 0, failure = 0, fine = 0 }
  for _, name in ipairs(report.scorers) do
    local lines, n = {}, { error = 0, failure = 0, fine = 0 }
    for _, row in ipairs(report.rows) do
      local text, kind = case_of(report, row, name)
      lines[#lines + 1] = text
      n[kind], all[kind] = n[kind] + 1, all[kind] + 1
    end
    suites[#suites + 1] = ('  <testsuite name="%s" tests="%d" failures="%d" errors="%d">\n%s\n  </testsuite>'):format(
      attribute(report.name .. "." .. name), #report.rows, n.failure, n.error, table.concat(lines, "\n"))
  end
  return ('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="%s" tests="%d" failures="%d" errors="%d">\n%s\n</testsuites>\n')
    :format(attribute(report.name), #report.rows * #report.scorers, all.failure, all.error, table.concat(suites, "\n"))
end

return junit

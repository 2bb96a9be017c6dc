--- files.lua - a report as files: JSON, JUnit XML, one HTML page; and as a table for a terminal.

local fault = require "fathom.fault"
local json = require "fathom.json"

local files = {}

local rank = {}
for i, name in ipairs { "name", "note", "model", "seed", "repeats", "threshold", "cases", "scorers", "options", "totals",
                        "scores", "metrics", "against", "slices", "rows", "id", "rep", "prompt", "reference", "samples", "mean", "low",
                        "high", "n", "method" } do
  rank[name] = i
end

-- What every run of the same seeds gives: how long it took is not of it.
local function lasting(report)
  local copy = {}
  for k, v in pairs(report) do copy[k] = v end
  copy.seconds = nil
  return copy
end

local makers = {
  json = function(report) return json.encode(lasting(report), rank) .. "\n" end,
  xml = function(report) return require("fathom.eval.junit").text(report) end,
  html = function(report) return require("fathom.eval.page").text(report) end,
}

-- The file appears whole or not at all.
local function put(path, text)
  local beside = path .. ".new"
  local f, why = io.open(beside, "wb")
  local ok = f ~= nil
  if f then
    ok, why = f:write(text)
    local closed, reason = f:close()
    if ok and not closed then ok, why = nil, reason end
  end
  if ok then ok, why = os.rename(beside, path) end
  if ok then return true end
  os.remove(beside)
  return fault.give("io", ("the report %s cannot be written: %s"):format(path, why))
end

local function is_folder(path)
  if path:sub(-1) == "/" then return true end
  local f = io.open(path, "rb")
  if not f then return false end
  local _, _, code = f:read(1)
  f:close()
  return code == 21                                      -- EISDIR
end

-- path -> its beginning, and the endings that are written
local function places(path)
  if is_folder(path) then return path:gsub("/*$", "") .. "/report", { "json", "xml", "html" } end
  local base, kind = path:match "^(.*)%.(%l+)$"
  if kind == "xml" then return base, { "xml" } end
  if kind == "html" or kind == "json" then return base, { "json", "html" } end
  return path, { "json", "xml", "html" }
end

--- Writes a report.
-- @param report table
-- @param path string  ends in .html or .json: both are written, the page and its numbers; in .xml: JUnit; without such an ending all
--   three, each with its own; a folder: all three, as report.*
-- @return true, or nil, err
function files.write(report, path)
  local base, kinds = places(path)
  for _, kind in ipairs(kinds) do
    local ok, err = put(base .. "." .. kind, makers[kind](report))
    if not ok then return nil, err end
  end
  return true
end

-- ---- a terminal's table -------------------------------------------------------------------------------------------

--- A number as people read it: shares in percent, others with as many digits as say something.
function files.number(v, share)
  if v == nil then return "" end
  if share then return ("%.1f %%"):format(100 * v) end
  local digits = math.abs(v) >= 100 and 1 or math.abs(v) >= 10 and 2 or 3
  return (("%.*f"):gsub("%*", digits):format(v):gsub("(%.%d-)0+$", "%1"):gsub("%.$", ""))
end

local function line(name, e)
  local function n(v) return files.number(v, e.share) end
  local interval = e.low and ("%s to %s"):format(n(e.low), n(e.high)) or ""
  return ("  %-34s %9s   %-20s %6s"):format(name, n(e.mean), interval, e.n and tostring(e.n) or "")
end

local function curve(out, label, list)
  for _, e in ipairs(list or {}) do out[#out + 1] = line(("  %s@%d"):format(label, e.k), e) end
end

--- The report as text: scores, pass@k and maj@k, metrics, slices.
-- @return string
-- @usage io.write(require("fathom.eval.files").table(report))
function files.table(report)
  local out = { ("%s: %d cases, %d samples, %d errors%s"):format(report.name, report.cases, report.totals.samples, report.totals.errors,
                                                                 report.cancelled and ", cancelled" or ""),
                ("  %-34s %9s   %-20s %6s"):format("", "mean", "95 % interval", "n") }
  for _, e in ipairs(report.scores) do
    out[#out + 1] = line(e.name, e)
    curve(out, "pass", e.pass)
    curve(out, "maj", e.maj)
  end
  for _, m in ipairs(report.metrics) do
    out[#out + 1] = m.mean and line(m.name, m) or ("  %-34s %s"):format(m.name, m.err or "")
  end
  if report.against then
    out[#out + 1] = "against " .. tostring(report.against.name)
    for _, d in ipairs(report.against.scores) do
      out[#out + 1] = ("  %-34s %+9.3f   %-20s %6d   better %d, worse %d, p = %.3f"):format(d.name, d.mean, ("%+.3f to %+.3f"):format(d.low,
        d.high), d.n, d.wins, d.losses, d.p)
    end
  end
  for _, slice in ipairs(report.slices) do
    out[#out + 1] = "by " .. slice.field
    for _, group in ipairs(slice.groups) do
      for _, e in ipairs(group.scores) do
        out[#out + 1] = line(tostring(group.value) .. (#group.scores > 1 and ", " .. e.name or ""), e)
      end
    end
  end
  return table.concat(out, "\n") .. "\n"
end

return files

--- replay.lua - does the generations of a trace again and says where the first of them goes another way.
-- A span says which ids of its prompt were sampled in earlier turns; they get the same role again, so that on the same device,
-- build and instruction set a replay gives the same ids, whatever session, fork or batch the span came from.

local crew = require "fathom.crew"
local fault = require "fathom.fault"
local jsonl = require "fathom.jsonl"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local task = require "fathom.task"

local replay = {}
local is = options.is

local TEXT_IDS = 24                 -- ids around a divergence that its text shows
local TEXT_BYTES = 80

-- ---- what can be done again -------------------------------------------------------------------------------------

local function table_of(v) return type(v) == "table" and v or {} end

-- Why a span cannot be replayed; nil: it can.
local function obstacle(s, engine)
  if s.err then return "failed" end
  if not s.finish then return "unfinished" end
  local usage = table_of(s.usage)
  if engine and ((tonumber(usage.shifted) or 0) > 0 or usage.exact == false) then return "inexact" end
  if s.finish == "cancelled" and #table_of(s.ids) == 0 then return "cancelled" end
  if engine then
    if not (s.ids and table_of(s.prompt)[1]) then return "without ids" end
  elseif not s.messages then
    return "without messages"
  end
end

-- Raises for what fathom.trace did not write: somebody edited the file.
local function options_of(s)
  local o = {}
  for name, value in pairs(s.options or {}) do
    if sampling.known[name] then o[name] = value end
  end
  if o.logit_bias then o.logit_bias = sampling.bias_map(o.logit_bias) end
  for name, value in pairs(o) do
    local ok, want = sampling.known[name](value)
    if not ok then error(("option '%s' must be %s"):format(name, want), 0) end
  end
  if s.finish == "cancelled" then o.max_tokens = #s.ids end        -- as far as it came
  return o
end

-- A core session whose ids have the roles that they had.
local function session_like(engine, s)
  local ids, ranges, at = s.prompt, table_of(s.generated), 1
  for i, place in ipairs(ranges) do
    if math.type(place) ~= "integer" or place <= (ranges[i - 1] or 0) - (i + 1) % 2 or place > #ids or #ranges % 2 == 1 then
      return fault.give("format", "what was generated in its prompt is not told by places in it")
    end
  end
  local core, err = fault.guard(engine.core.session, engine.core)
  if not core then return nil, err end
  local function append(upto, generated)
    if upto < at then return true end
    local ok, why = fault.guard(core.append, core, table.move(ids, at, upto, 1, {}), generated)
    at = upto + 1
    return ok, why
  end
  for i = 1, #ranges, 2 do
    local ok, why = append(ranges[i] - 1, false)
    if ok then ok, why = append(ranges[i + 1], true) end
    if not ok then
      core:close()
      return nil, why
    end
  end
  return core
end

local function again_by_ids(engine, model, s)
  for _, id in ipairs(s.prompt) do
    if math.type(id) ~= "integer" or id < 0 or id >= engine.core:vocab_size() then
      return fault.give("format", ("the prompt holds id %s, outside the vocabulary of this model"):format(tostring(id)))
    end
  end
  local o = options_of(s)
  local core, err = session_like(engine, s)
  if not core then return nil, err end
  local slot = { engine = engine, core = core }
  engine:adopt()
  return task.new(slot, sampling.merge(o, engine.defaults), { model = model, sample = s.sample,
    prepare = function() return s.prompt end, finished = function()
      core:close()
      engine:release()
    end }):wait()
end

-- What a backend without ids is asked; it need not know every option.
local function again_by_text(backend, s)
  local o = options_of(s)
  o.mtp, o.priority, o.keep, o.template, o.overflow = nil, nil, nil, nil, nil
  return backend:generate(s.messages, o)
end

-- ---- where they part ----------------------------------------------------------------------------------------------

local function text_of(engine, ids, from, to)
  if not engine.core:has_tokenizer() then return nil end
  local ok, text = pcall(engine.core.decode, engine.core, table.move(ids, math.max(from, 1), math.min(to, #ids), 1, {}))
  return ok and text or nil                     -- an edited trace may hold any ids
end

local function parted_by_ids(engine, s, result)
  local want, got = {}, result.ids
  for i, id in ipairs(table_of(s.ids)) do want[i] = math.type(id) == "integer" and id or -1 end
  for i = 1, math.max(#want, #got) do
    if want[i] ~= got[i] then
      return { index = i, expected = want[i], got = got[i], before = text_of(engine, want, i - TEXT_IDS, i - 1),
               expected_text = text_of(engine, want, i, i + TEXT_IDS), got_text = text_of(engine, got, i, i + TEXT_IDS) }
    end
  end
end

local function parted_by_text(s, result)
  local want, got = tostring(s.text or ""), result.text or ""
  if want == got then return nil end
  local i = 1
  while want:byte(i) == got:byte(i) do i = i + 1 end
  while i > 1 and (want:byte(i) or 0) & 0xC0 == 0x80 do i = i - 1 end          -- not inside a character
  return { index = i, before = want:sub(math.max(i - TEXT_BYTES, 1), i - 1), expected_text = want:sub(i, i + TEXT_BYTES),
           got_text = got:sub(i, i + TEXT_BYTES) }
end

-- A text in quotes, on one line.
local function quoted(text) return (("%q"):format(text):gsub("\\\n", "\\n")) end

local function shown(id, text)
  if not id and (text or "") == "" then return "nothing" end
  return (id and id .. " " or "") .. (text and quoted(text) or "")
end

local function told(d)
  local span_id = tostring(d.span)
  if d.err then return ("span %s: it failed: %s"):format(span_id, d.err) end
  if not d.index then
    return ("span %s ends with \"%s\", recorded was \"%s\""):format(span_id, d.got_text, d.expected_text)
  end
  return ("span %s, %s %d: %s, recorded was %s%s"):format(span_id, (d.expected or d.got) and "token" or "byte", d.index,
         shown(d.got, d.got_text), shown(d.expected, d.expected_text),
         (d.before or "") ~= "" and ", behind " .. quoted(d.before) or "")
end

-- ---- the whole ------------------------------------------------------------------------------------------------------

-- A span that is damaged is one that failed: the others are done again all the same.
local function again(engine, backend, s)
  local ok, result, err = pcall(function()
    if engine then return again_by_ids(engine, backend, s) end
    return again_by_text(backend, s)
  end)
  if ok then return result, err end
  return nil, type(result) == "string" and result:gsub("^[^\n]-%.lua:%d+: ", "") or result
end

-- One span again: false when it is the same, else where it parts.
local function compare(engine, backend, s)
  local result, err = again(engine, backend, s)
  local d
  if not result then
    d = { err = tostring(err) }
  else
    if engine then d = parted_by_ids(engine, s, result) else d = parted_by_text(s, result) end
    if not d and s.finish ~= "cancelled" and result.finish ~= s.finish then
      d = { expected_text = s.finish, got_text = result.finish }
    end
  end
  if d then
    d.span = s.id
    d.message = told(d)
  end
  return d or false
end

local function generations(spans, engine, report)
  local list = {}
  for _, s in ipairs(spans) do
    if s.kind == "generate" then
      local why = obstacle(s, engine)
      if why then
        report.skipped[why] = (report.skipped[why] or 0) + 1
      else
        list[#list + 1] = s
        if engine and s.model and s.model ~= engine:digest() then report.other_model = s.model end
      end
    end
  end
  return list
end

local function judged(report, expect)
  report.exact = report.diverged == 0 and report.replayed > 0
  if expect ~= "exact" or report.exact then return report end
  local first = report.first
  local err = fault.new("format", first and first.message or "the trace holds no generation that could be done again",
    report.other_model and "the trace is of another model: " .. report.other_model or nil)
  return nil, err, report
end

local known = { model = is.table, expect = is.word("exact", "report"), width = is.count(1), progress = is.callable }

--- Does every generation of a trace again, many at once, and compares ids (texts on backends without ids).
-- @param where string|list  the file that fathom.trace wrote, or its spans
-- @param opts table         model (or any backend); expect: "report" (the default) gives the report in any case, "exact" gives
--                           nil, err, report where something differs; width (64): so many at once; progress(done, total)
-- @return report            { spans, replayed, same, diverged, exact, skipped = { reason = count }, other_model,
--                           first = { span, index, expected, got, before, expected_text, got_text, message } }; or nil, err
-- @usage assert(fathom.replay("run.jsonl", { model = model, expect = "exact" }))
function replay.run(where, opts)
  options.argument("fathom.replay", "where", where, is.one_of(is.path, is.table))
  local o = options.check("fathom.replay", opts, known)
  if not o.model then options.raise "fathom.replay: option 'model' is missing: the backend that does it again" end
  local spans, err = where, nil
  if type(where) == "string" then spans, err = jsonl.read(where, { torn = true }) end
  if not spans then return nil, err end
  for i, s in ipairs(spans) do
    if type(s) ~= "table" then options.raise(("fathom.replay: span %d is a %s, not a table"):format(i, type(s))) end
  end
  local mt = getmetatable(o.model)
  local engine = mt and (mt.__name == "fathom.model" or mt.__name == "fathom.session") and o.model.engine or nil
  local report = { spans = #spans, replayed = 0, same = 0, diverged = 0, skipped = {} }
  local list, jobs, n = generations(spans, engine, report), {}, 0
  for i, s in ipairs(list) do jobs[i] = function() return compare(engine, o.model, s) end end
  local results = crew.run(o.model, jobs, { width = o.width, on_done = o.progress and function()
    n = n + 1
    o.progress(n, #jobs)
  end or nil })
  for _, r in ipairs(results) do
    if r.value == nil then return nil, r.err end
    report.replayed = report.replayed + 1
    if r.value then
      report.diverged = report.diverged + 1
      report.first = report.first or r.value
    else
      report.same = report.same + 1
    end
  end
  return judged(report, o.expect)
end

return replay

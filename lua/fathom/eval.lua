--- eval.lua - cases x repeats x scorers, all in one batch: what came out, and what that may be worth.

local cases = require "fathom.eval.cases"
local crew = require "fathom.crew"
local fault = require "fathom.fault"
local json = require "fathom.json"
local log = require "fathom.eval.log"
local options = require "fathom.options"
local span = require "fathom.span"
local stats = require "fathom.eval.stats"
local summary = require "fathom.eval.summary"
local trace = require "fathom.trace"

local eval = {}
local is = options.is

-- ---- one sample -------------------------------------------------------------------------------------------------

-- What is asked when nobody says how: the case's messages, with the options of the evaluation.
local function ask(case, info)
  local messages = cases.messages(case)
  if not messages then return fault.give("format", ("case %s has no prompt, question or messages"):format(case.id)) end
  return info.backend:generate(messages, info.options)
end

-- What a run gave, as a sample: a result with its prompt and reference.
local function sample_of(case, value)
  local s = {}
  if type(value) == "table" then
    for k, v in pairs(value) do s[k] = v end
  else
    s.text, s.answer = tostring(value), tostring(value)
  end
  s.answer = s.answer or s.text
  s.prompt, s.case = cases.messages(case) or case.prompt, case
  if s.reference == nil then s.reference = cases.reference(case) end
  return s
end

local function to_number(v)
  if v == true then return 1.0 elseif v == false then return 0.0 end
  return type(v) == "number" and v == v and v + 0.0 or nil
end

-- Scores one sample; what goes wrong stays beside the score that is missing.
local function score(o, s, record)
  for _, name in ipairs(o.names) do
    local ok, value, detail = pcall(o.scorers[name], s)
    local number = ok and to_number(value) or nil
    record.scores[name] = number
    if not number then
      record.unscored = true
      detail = not ok and value or detail or "the scorer gave no number"
    end
    if detail ~= nil then record.details[name] = trace.plain(type(detail) == "table" and detail or tostring(detail)) end
  end
end

local function key_of(o, s)
  local ok, key = pcall(o.key, s)
  return ok and key ~= nil and tostring(key) or nil
end

local function record_of(o, case, rep, seed, value, err)
  local record = { id = case.id, rep = rep, seed = seed, scores = json.object {}, details = json.object {} }
  if value == nil then
    record.err = tostring(err)
    return record
  end
  local s = sample_of(case, value)
  local usage = type(s.usage) == "table" and s.usage or {}
  record.answer, record.text, record.finish = s.answer, s.text, s.finish
  record.prompt_tokens, record.tokens = usage.prompt, usage.completion
  record.extra = s.extra
  record.key = key_of(o, s)
  score(o, s, record)
  return trace.plain(record)
end

local function job(o, case, index, rep)
  return function()
    local seed = cases.seed(o.seed, index, rep)
    local info = { backend = o.backend, seed = seed, rep = rep, index = index, options = { seed = seed } }
    for k, v in pairs(o.options or {}) do info.options[k] = v end
    local s <close> = span.open("case", { eval = o.name, case = case.id, rep = rep, seed = seed })
    local ok, value, err = pcall(o.run, case, info)
    if not ok then value, err = nil, value end
    if type(value) == "table" and value.finish == "cancelled" and o.stopped then
      return fault.give("cancelled", "the evaluation was cancelled")
    end
    local record = record_of(o, case, rep, seed, value, err)
    s:set { scores = record.scores, err = record.err }
    return record
  end
end

-- ---- the whole ----------------------------------------------------------------------------------------------------

-- Whether a record of before has seen all scorers of today.
local function is_scored(o, record)
  for _, name in ipairs(o.names) do
    if record.scores[name] == nil and record.details[name] == nil then return false end
  end
  return true
end

-- All cases once, then all twice: what a prompt has in common with its repeats is read by then.
local function jobs_of(o, list, rows)
  local jobs, places = {}, {}
  for rep = 1, o.repeats do
    for index, case in ipairs(list) do
      local known = o.file and o.file:find(case.id, rep, cases.seed(o.seed, index, rep))
      if known and is_scored(o, known) then
        rows[index].samples[rep] = known
      else
        jobs[#jobs + 1] = job(o, case, index, rep)
        places[#places + 1] = { row = rows[index], rep = rep }
      end
    end
  end
  return jobs, places
end

local function new_rows(list)
  local rows = {}
  for i, case in ipairs(list) do
    local fields = {}
    for k, v in pairs(case) do
      if type(v) == "string" or type(v) == "number" or type(v) == "boolean" then fields[k] = v end
    end
    rows[i] = { id = case.id, prompt = trace.plain(cases.text(case)), reference = trace.plain(cases.reference(case)),
                fields = fields, samples = {} }
  end
  return rows
end

-- Rate and remaining time, counted over what this run did itself.
local function watcher(o, total, already)
  local begun, n, errors = require("fathom.core").now(), 0, 0
  return function(record)
    n = n + 1
    if record.err then errors = errors + 1 end
    if not o.progress then return end
    local seconds = (require("fathom.core").now() - begun) / 1000
    local rate = seconds > 0 and n / seconds or nil
    o.progress(already + n, total, { rate = rate, remaining = rate and (total - already - n) / rate, seconds = seconds, errors = errors })
  end
end

-- Samples that a cancelled evaluation never made leave no holes.
local function close_ranks(rows, repeats)
  local out = {}
  for _, row in ipairs(rows) do
    local samples = {}
    for rep = 1, repeats do samples[#samples + 1] = row.samples[rep] end
    row.samples = samples
    if samples[1] then out[#out + 1] = row end
  end
  return out
end

local function report_of(o, list, rows, cancelled)
  local kept = close_ranks(rows, o.repeats)
  local sums = summary.of(kept, { names = o.names, threshold = o.threshold, seed = o.seed, metrics = o.metrics,
                                  by = o.by or cases.fields(list) })
  for _, row in ipairs(kept) do row.fields = nil end
  return { name = trace.plain(o.name), seed = o.seed, repeats = o.repeats, threshold = o.threshold, cases = #kept, scorers = o.names,
           cancelled = cancelled, model = o.model_note, options = json.object(trace.plain(o.options or {})), note = trace.plain(o.note),
           scores = json.array(sums.scores), slices = json.array(sums.slices), metrics = json.array(sums.metrics),
           totals = sums.totals, rows = json.array(kept) }
end

local function work(o, list)
  local s <close> = span.open("eval", { name = o.name, cases = #list, repeats = o.repeats, seed = o.seed })
  local rows, begun = new_rows(list), require("fathom.core").now()
  local jobs, places = jobs_of(o, list, rows)
  local total = #list * o.repeats
  local watch = watcher(o, total, total - #jobs)
  crew.start(o.backend, jobs, { width = o.width, on_done = function(i, r)
    if o.stopped and not r.value then return end
    local place = places[i]
    local record = r.value or { id = place.row.id, rep = place.rep, scores = {}, details = {}, err = tostring(r.err) }
    place.row.samples[place.rep] = record
    if o.file then o.file:add(record) end
    watch(record)
  end }):wait()
  if o.file and o.file.err then return nil, o.file.err end
  local report = report_of(o, list, rows, o.stopped and true or nil)
  if o.against then report.against = { name = o.against.name, scores = json.array(eval.compare(o.against, report)) } end
  s:set { scores = trace.plain(report.scores), totals = report.totals }
  if o.report then
    local ok, err = require("fathom.eval.files").write(report, o.report)
    if not ok then return nil, err end
  end
  report.seconds = (require("fathom.core").now() - begun) / 1000
  return report
end

-- A report of before, from its JSON.
local function read_report(path)
  local f, why = io.open(path, "rb")
  if not f then return fault.give("io", "cannot be read: " .. why) end
  local text = f:read "a"
  f:close()
  local report = json.decode(text)
  if type(report) == "table" and type(report.rows) == "table" and type(report.scorers) == "table" then return report end
  return fault.give("format", path .. " is no report in JSON")
end

-- ---- options ------------------------------------------------------------------------------------------------------

local function is_scorers(v)
  local ok = type(v) == "function"
  if type(v) == "table" then
    ok = next(v) ~= nil
    for _, f in pairs(v) do ok = ok and (type(f) == "function" or type(f) == "table" and (getmetatable(f) or {}).__call ~= nil) end
  end
  return ok, "a function(sample), or a table of such functions by name"
end

local known = {
  name = is.string, note = is.string, cases = is.one_of(is.table, is.callable, is.path), most = is.count(1),
  run = is.one_of(is.callable, is.table), backend = is.table, options = is.table, scorers = is_scorers, metrics = is.table,
  key = is.callable, by = is.strings, repeats = is.count(1, 4096), seed = is.count(0), threshold = is.number, width = is.count(1),
  report = is.path, log = is.path, against = is.one_of(is.path, is.table), progress = is.callable, background = is.boolean,
}

local function scorers_of(given)
  if type(given) == "function" then return { score = given }, { "score" } end
  local out, names = {}, {}
  for name, f in pairs(given) do
    name = math.type(name) == "integer" and "score " .. name or trace.plain(tostring(name))       -- UTF-8, as in the report
    out[name], names[#names + 1] = f, name
  end
  table.sort(names)
  return out, names
end

-- Which model answered: as much as a backend tells.
local function note_of(backend)
  if not backend then return nil end
  if backend.engine and backend.engine.digest then
    return { digest = backend.engine:digest(), device = backend.engine.core:stats().device }
  end
  return { name = tostring(rawget(backend, "name") or backend) }
end

local function prepare(opts)
  local o = options.check("fathom.eval", opts, known)
  for _, name in ipairs { "cases", "scorers" } do
    if o[name] == nil then options.raise(("fathom.eval: option '%s' is missing"):format(name)) end
  end
  if type(o.run) == "table" then o.backend, o.run = o.run, nil end
  if not o.run and not o.backend then
    options.raise "fathom.eval: say who answers: run = a backend, or run = function(case, info)"
  end
  o.run, o.key = o.run or ask, o.key or require("fathom.reward").key
  o.scorers, o.names = scorers_of(o.scorers)
  o.name, o.repeats, o.seed = o.name or "evaluation", math.tointeger(o.repeats or 1), math.tointeger(o.seed or 1)
  o.threshold, o.width = o.threshold or 1, o.width
  o.model_note = note_of(o.backend)
  return o
end

-- Opens what the evaluation reads and writes.
-- @return the cases; or nil, err
local function open(o)
  local list, err = cases.read(o.cases, o.most)
  if not list then return nil, err end
  if type(o.against) == "string" then
    o.against, err = read_report(o.against)
    if not o.against then return nil, err end
  end
  if o.log then
    o.file, err = log.open(o.log)
    if not o.file then return nil, err end
  end
  return list
end

local function close_log(o)
  return setmetatable({}, { __close = function() if o.file then o.file:close() end end })
end

--- Asks every case several times, scores each reply, and sums up. All of it runs in one batch; the same seeds give the same report.
-- @param opts table
--   cases     a list, an iterator or a file of JSON lines; a case has a prompt, question or messages, may have an id and a reference
--             (or answer), and fields of its own
--   run       who answers: a backend, or function(case, info) -> result or text; info has backend, options (with the seed of this
--             sample), seed, rep, index
--   scorers   function(sample) -> number or boolean[, detail], or a table of such by name; a sample is the result with prompt,
--             reference and case; nil, why leaves the sample out
--   repeats   (1) samples of a case; seed (1), from which each sample has its own; options of the generations
--   key       function(sample) -> the answer that counts as the same in a vote; threshold (1): the score from which one is right
--   by        fields for slices (found where absent); metrics: name -> function(rows, seed) -> number or { mean =, low =, high = }
--   report    where it is written: PATH.html or PATH.json gives both, PATH.xml JUnit, PATH without an ending or a folder all three
--   log       a file of finished samples, from which a stopped evaluation goes on; against: an earlier report, or its JSON file
--   progress  function(done, total, { rate =, remaining =, seconds =, errors = }); width: so many at once; most: so many cases
--   background  give a task at once; it moves with the backend's steps. backend (for run functions), name, note
-- @return report { cases, repeats, scores = { { name, mean, low, high, n, pass, maj }, ... }, slices, metrics, totals, rows, seconds };
--   or nil, err; with background a task (done, result, wait(), cancel())
-- @usage local report = assert(fathom.eval { cases = "cases.jsonl", run = model, scorers = fathom.reward.accuracy, repeats = 4 })
function eval.run(opts)
  local o = prepare(opts)
  local list, err = open(o)
  if not list then return nil, err end
  local t = crew.task(o.backend, function()
    local closing <close> = close_log(o)
    local report, why = work(o, list)
    return report, why, closing
  end)
  local cancel = t.cancel
  t.cancel = function(self)
    o.stopped = true
    return cancel(self)
  end
  if o.background then return t end
  return t:wait()
end

--- Compares two reports over the cases that both have: differences of b from a, by scorer.
-- @return list of { name =, mean =, low =, high =, n =, wins =, losses =, ties =, p = }
-- @usage for _, d in ipairs(require("fathom.eval").compare(before, after)) do print(d.name, d.mean, d.low, d.high) end
function eval.compare(a, b)
  local out = {}
  for _, name in ipairs(a.scorers) do
    local x, y, xs, ys = summary.by_case(a.rows, name), summary.by_case(b.rows, name), {}, {}
    for _, row in ipairs(a.rows) do
      if x[row.id] and y[row.id] then xs[#xs + 1], ys[#ys + 1] = x[row.id], y[row.id] end
    end
    local d = stats.paired(xs, ys, a.seed)
    if d then
      d.name = name
      out[#out + 1] = d
    end
  end
  return out
end

return eval

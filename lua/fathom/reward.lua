--- reward.lua - rewards by rule and by judge: each is function(sample) -> number[, why], for voting, for filtering and for
-- reinforcement learning alike. A sample is a result with `prompt` and `reference`. Rewards with options are made by calling them with
-- these: fathom.reward.length { max = 512 }; those that need none take the sample at once.
-- @usage
--   local reward = fathom.reward.sum { { fathom.reward.accuracy, 1.0 }, { fathom.reward.format, 0.2 } }
--   local value, parts = reward(sample)

local answers = require "fathom.reward.answer"
local backend = require "fathom.backend"
local expression = require "fathom.reward.expression"
local fence = require "fathom.fence"
local language = require "fathom.reward.language"
local options = require "fathom.options"
local samples = require "fathom.reward.sample"
local span = require "fathom.span"
local tests = require "fathom.reward.tests"

local reward = {}
local is = options.is

-- A reward under its name: checks what it is called on, and tells a trace what it gave.
local function named(name, f)
  return function(sample)
    samples.check("fathom.reward." .. name, sample)
    local s <close> = span.open("reward", { name = name })
    local value, why = f(sample)
    s:set { value = value, why = why }
    return value, why
  end
end

-- A reward that is a factory as well: called on a sample it rewards by its defaults, called on options it makes another.
local function both(name, known, make)
  local plain
  return function(given)
    if samples.is(given) then
      plain = plain or named(name, make {})
      return plain(given)
    end
    return named(name, make(options.check("fathom.reward." .. name, given, known)))
  end
end

-- ---- accuracy -----------------------------------------------------------------------------------------------------------

local function is_puzzle(v) return type(v) == "table" and type(v.nums) == "table" and type(v.target) == "number" end

local function check_puzzle(text, puzzle)
  local found = answers.tagged(text, "answer")
  if not found then return 0.0, "there is no <answer>" end
  local ok, why = expression.makes(found, puzzle.nums, puzzle.target)
  return ok and 1.0 or 0.0, why
end

-- References that are one of several: a list of texts or numbers.
local function alternatives(reference)
  if type(reference) == "table" then return reference end
  return { reference }
end

local function check_answer(o, text, reference)
  local found = answers.marked(text)
  if not found and o.strict then return 0.0, "the answer is in no place of its own" end
  local why
  for _, alternative in ipairs(alternatives(reference)) do
    local right = tostring(math.tointeger(alternative) or alternative)
    right = answers.marked(right) or right
    local said = found or text
    if not found and answers.number(answers.normal(right)) then said = answers.last_number(text) or text end
    if answers.same(said, right) then return 1.0 end
    why = ("the answer is %s, not %s"):format(#said <= 40 and said or "another one", right)
  end
  return 0.0, why
end

--- 1 for a right answer, 0 for a wrong one. sample.reference is the right answer (a text, a number, a list of such: one of them),
-- a Countdown puzzle { nums =, target = }, or function(answer, sample) -> boolean or number. The reply's answer is what stands in its
-- last \boxed{}, <answer>, behind "####" or "the answer is"; else, unless strict, its last number or all of it.
-- Options: strict (false), reference (in place of the sample's).
-- @usage fathom.reward.accuracy { answer = "So \\boxed{\\frac{1}{2}}", reference = 0.5 }    --> 1.0
reward.accuracy = both("accuracy", { strict = is.boolean, reference = is.any }, function(o)
  return function(sample)
    local reference = o.reference
    if reference == nil then reference = sample.reference end
    if reference == nil then options.raise "fathom.reward.accuracy: the sample has no reference" end
    local _, text = samples.parts(sample)
    if type(reference) == "function" then
      local value, why = reference(text, sample)
      return type(value) == "number" and value or value and 1.0 or 0.0, why
    end
    if is_puzzle(reference) then return check_puzzle(text, reference) end
    return check_answer(o, text, reference)
  end
end)

--- Countdown: 1 for an expression in the last <answer> that uses each number once and has the target's value, exactly.
-- Options: partial (0): what a wrong expression in <answer> is worth.
reward.countdown = both("countdown", { partial = is.number }, function(o)
  return function(sample)
    local puzzle = is_puzzle(sample.reference) and sample.reference or sample.case
    if not is_puzzle(puzzle) then options.raise "fathom.reward.countdown: the sample's reference must be { nums =, target = }" end
    local _, text = samples.parts(sample)
    local value, why = check_puzzle(text, puzzle)
    if value == 0.0 and answers.tagged(text, "answer") then value = (o.partial or 0) + 0.0 end
    return value, why
  end
end)

--- Unit tests: the share of them that the reply's Lua program passes, in the fence. sample.reference (or tests =) is a list: texts
-- that assert, or { call = "name", args = {}, expected = value } and { call =, args =, error = true }.
-- Options: tests, all (false: true gives nothing for a part), limits (those of fathom.tools.lua, for each test).
-- @usage fathom.reward.tests { tests = { "assert(add(1, 2) == 3)" } }
reward.tests = both("tests", { tests = is.table, all = is.boolean, limits = is.table }, function(o)
  local limits = fence.limits("fathom.reward.tests: limits", o.limits)
  return function(sample)
    local list = o.tests or sample.reference
    if type(list) ~= "table" or #list == 0 then options.raise "fathom.reward.tests: there are no tests" end
    for i, test in ipairs(list) do options.argument("fathom.reward.tests", ("test %d"):format(i), test, tests.is) end
    local _, text = samples.parts(sample)
    local code = tests.code(text)
    if not code then return 0.0, "there is no program" end
    local passed, why = tests.run(code, list, limits)
    local first = next(why)
    local detail = first and ("test %d: %s"):format(first, why[first])
    if o.all then return passed == #list and 1.0 or 0.0, detail end
    return passed / #list, detail
  end
end)

-- ---- form ---------------------------------------------------------------------------------------------------------------

local function count(text, mark)
  local n, from = 0, 1
  while true do
    local _, stop = text:find(mark, from, true)
    if not stop then return n end
    n, from = n + 1, stop + 1
  end
end

-- Why a reply has not the form that is asked for; nil: it has.
local function fault_of_form(o, sample)
  local think, answer = samples.parts(sample)
  if sample.finish == "length" or sample.finish == "cancelled" then return "the reply was cut off" end
  if o.think ~= false then
    if think == "" then return "there are no thoughts" end
    if think:find("<think>", 1, true) or think:find("</think>", 1, true) then return "thoughts are opened or closed twice" end
  end
  if answer:find("<think>", 1, true) or answer:find("</think>", 1, true) then return "the answer has marks of thoughts" end
  if answer == "" then return "there is no answer" end
  for _, tag in ipairs(o.tags or {}) do
    local open, close = count(answer, "<" .. tag .. ">"), count(answer, "</" .. tag .. ">")
    if open ~= 1 or close ~= 1 or not answers.tagged(answer, tag) then return ("<%s> must be opened and closed once"):format(tag) end
  end
  if o.boxed and not answers.boxed(answer) then return "there is no \\boxed{}" end
  if o.pattern and not answer:find(o.pattern) then return "the answer does not fit the pattern" end
end

local function is_pattern(v) return type(v) == "string" and pcall(string.find, "", v), "a pattern of Lua" end

--- 1 for a reply of the right form, else 0: thoughts that are closed once, and an answer behind them.
-- Options: think (true; false: thoughts are not asked for), tags ({ "answer" }: each is opened and closed once in the answer), boxed,
-- pattern (of Lua, for the answer).
-- @usage fathom.reward.format { tags = { "answer" } }
reward.format = both("format", { think = is.boolean, tags = is.strings, boxed = is.boolean, pattern = is_pattern }, function(o)
  return function(sample)
    local why = fault_of_form(o, sample)
    return why and 0.0 or 1.0, why
  end
end)

local function is_language(v)
  local names = {}
  for name in pairs(language.scripts) do names[#names + 1] = name end
  table.sort(names)
  return language.scripts[v] ~= nil, "one of " .. table.concat(names, " ")
end

--- The share of words in the language that was asked for (R1's language consistency), by script: code, formulas and digits do not
-- count. Of the thoughts where there are any, else of the answer. Options: target ("en", "zh", ...; without it the script of the
-- prompt), of ("think", "answer" or "text").
reward.language = both("language", { target = is_language, of = is.word("think", "answer", "text") }, function(o)
  return function(sample)
    local think, answer = samples.parts(sample)
    local text = o.of == "answer" and answer or o.of == "text" and think .. "\n" .. answer or o.of == "think" and think
                 or (think ~= "" and think or answer)
    local target = o.target or language.main(samples.prompt(sample) or "") or "latin"
    return language.share(text, target) or 1.0
  end
end)

--- 1 for a short reply, falling to 0 at `max` tokens. Options: max (the sample's max_tokens, or 1,024), shape ("linear": 1 until
-- `buffer` tokens before max, then falling evenly; "cosine": falling smoothly from the start), buffer (a quarter of max), min (shorter
-- replies get 0).
-- @usage fathom.reward.length { max = 512, buffer = 128 }
reward.length = both("length", { max = is.count(1), min = is.count(0), buffer = is.count(1), shape = is.word("linear", "cosine") },
                     function(o)
  local max = o.max or 1024
  local buffer = math.min(o.buffer or math.max(1, max // 4), max)
  return function(sample)
    local n = samples.length(sample)
    local why = ("%d of %d tokens"):format(n, max)
    if n < (o.min or 0) or n >= max then return 0.0, why end
    if o.shape == "cosine" then return (1 + math.cos(math.pi * n / max)) / 2, why end
    return math.min(1.0, (max - n) / buffer), why
  end
end)

-- ---- judges and sums ------------------------------------------------------------------------------------------------------

local judge_known = { against = is.one_of(is.string, is.word "reference"), judge = is.table }

--- What a judge's votes say, from 0 to 1: the score on its scale, or, with against =, the share of votes that prefer the sample to
-- another answer ("reference": the sample's) in both orders.
-- @param j judge|backend   one of fathom.judge, or a backend to make one of
-- @param opts table|nil    against; and, for a backend, judge = options of fathom.judge
-- @return function(sample) -> number, result of the judge; nil, err where it could not judge
-- @usage fathom.reward.judge(fathom.judge(model, { votes = 4 }))
function reward.judge(j, opts)
  local o = options.check("fathom.reward.judge", opts, judge_known)
  if type(j) ~= "table" or type(j.score) ~= "function" or not j.options then
    backend.check("fathom.reward.judge", j)
    j = require("fathom.judge").new(j, o.judge)
  end
  local low, high = j.options.scale[1], j.options.scale[2]
  return named("judge", function(sample)
    local question = samples.prompt(sample)
    if not question then options.raise "fathom.reward.judge: the sample has no prompt" end
    local _, answer = samples.parts(sample)
    if not o.against then
      local r, err = j:score(question, answer)
      if not r then return nil, err end
      return r.score and (r.score - low) / (high - low) or 0.0, r
    end
    local other = o.against == "reference" and tostring(sample.reference) or o.against
    local r, err = j:compare(question, answer, other)
    if not r then return nil, err end
    local w = r.counts or {}
    local n = (w.a or 0) + (w.b or 0) + (w.tie or 0)
    return n > 0 and ((w.a or 0) + (w.tie or 0) / 2) / n or 0.0, r
  end)
end

local function is_part(v) return type(v) == "function" or (type(v) == "table" and type(v[1]) == "function"
                                 and (v[2] == nil or type(v[2]) == "number")) end

--- A weighted sum of rewards.
-- @param parts list   of { reward, weight } or rewards (weight 1); name = in a part names it in the detail
-- @return function(sample) -> number, list of { name =, value =, weight =, why = }
-- @usage fathom.reward.sum { { fathom.reward.accuracy, 1 }, { fathom.reward.length { max = 512 }, 0.1, name = "short" } }
function reward.sum(parts)
  options.argument("fathom.reward.sum", "parts", parts, is.table)
  for i, part in ipairs(parts) do
    if not is_part(part) then options.raise(("fathom.reward.sum: part %d must be a reward, or { reward, weight }"):format(i)) end
  end
  if #parts == 0 then options.raise "fathom.reward.sum: there are no parts" end
  return named("sum", function(sample)
    local sum, detail = 0.0, {}
    for i, part in ipairs(parts) do
      local f, weight = part, 1
      if type(part) == "table" then f, weight = part[1], part[2] or 1 end
      local value, why = f(sample)
      if not value then return nil, why end
      sum = sum + weight * value
      detail[i] = { name = type(part) == "table" and part.name or tostring(i), value = value, weight = weight, why = why }
    end
    return sum, detail
  end)
end

--- The answer of a sample in one spelling: what votes are counted by. nil where it gives none.
function reward.key(sample)
  local _, text = samples.parts(samples.check("fathom.reward.key", sample))
  return answers.key(text)
end

return reward

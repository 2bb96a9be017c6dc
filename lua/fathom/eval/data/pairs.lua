--- pairs.lua - judges beside people: pairs of answers that somebody has compared, and what a judge makes of them.
-- Measured: agreement with people, flip rate (how often the verdict changes with the order of the answers), length slope (how much
-- the share of verdicts for the first answer grows with each 100 characters that it is longer; people's own slope beside it).

local folder = require "fathom.eval.data.folder"
local options = require "fathom.options"
local stats = require "fathom.eval.stats"

local sets = {}
local is = options.is

-- ---- asking a judge ---------------------------------------------------------------------------------------------------

local judge_known = { rubric = is.any, votes = is.count(1), orders = is.any, on_tie = is.any, temperature = is.number, template = is.table,
                      max_tokens = is.count(1), voting = is.string, distribution = is.boolean, think = is.boolean }

local function judge_of(backend, o, mode, seed)
  local settings = { mode = mode, seed = seed }
  for k, v in pairs(o) do settings[k] = v end
  return require("fathom.judge").new(backend, settings)
end

local function characters(text) return utf8.len(text) or #text end

local function compare(o)
  return function(case, info)
    local r, err = judge_of(info.backend, o, "pair", info.seed):compare(case.question, case.a, case.b)
    if not r then return nil, err end
    local verdict = r.winner or "none"
    return { text = verdict, answer = verdict, usage = r.usage,
             extra = { verdict = verdict, flip_rate = r.flip_rate, agreement = r.agreement, people = case.people,
                       longer = characters(case.a) - characters(case.b) } }
  end
end

-- ---- measures -----------------------------------------------------------------------------------------------------------

local value_of = { a = 1, tie = 0.5, b = 0 }

-- One list over all samples that have an extra; f(extra) -> number or nil.
local function each(rows, f)
  local out = {}
  for _, row in ipairs(rows) do
    for _, s in ipairs(row.samples) do
      local v = s.extra and f(s.extra)
      if v ~= nil then out[#out + 1] = v end
    end
  end
  return out
end

local function slope(value)
  return function(rows, seed)
    local x, y = {}, {}
    for _, row in ipairs(rows) do
      for _, s in ipairs(row.samples) do
        local v = s.extra and value(s.extra)
        if v then x[#x + 1], y[#y + 1] = s.extra.longer / 100, v end
      end
    end
    local line = stats.line(x, y, seed)
    return line and { mean = line.slope, low = line.low, high = line.high, n = line.n, note = "for each 100 characters more" } or nil
  end
end

local metrics = {
  ["flip rate"] = function(rows, seed) return stats.estimate(each(rows, function(e) return e.flip_rate end), seed) end,
  ["agreement among votes"] = function(rows, seed) return stats.estimate(each(rows, function(e) return e.agreement end), seed) end,
  ["no verdict"] = function(rows, seed)
    return stats.estimate(each(rows, function(e) return e.verdict and (e.verdict == "none" and 1 or 0) end), seed)
  end,
  ["length slope"] = slope(function(e) return value_of[e.verdict] end),
  ["length slope of people"] = slope(function(e) return value_of[e.people] end),
}

local function with(more)
  local out = {}
  for k, v in pairs(metrics) do out[k] = v end
  for k, v in pairs(more or {}) do out[k] = v end
  return out
end

-- 1 where judge and people agree; a tie of the judge on a pair that people decided is half right.
local function agrees(s)
  local want, got = s.reference, s.extra.verdict
  if got == want then return 1, got end
  return got == "tie" and want ~= "tie" and 0.5 or 0, ("%s, people say %s"):format(got, want)
end

local function suite(name, cases, o, fields)
  local out = { name = name, cases = cases, run = compare(o), scorers = { agrees = agrees }, metrics = with(),
                key = function(s) return s.extra and s.extra.verdict end, by = { "subset" } }
  for k, v in pairs(fields or {}) do out[k] = v end
  return out
end

local function check(what, opts) return options.check(what, opts, judge_known) end

-- ---- LLMBar and MT-Bench ------------------------------------------------------------------------------------------------------

local function llmbar_cases(what, dir, subsets)
  local out = {}
  for _, subset in ipairs(subsets) do
    local rows, err = folder.rows(what, dir, "judge-llmbar", subset .. ".jsonl")
    if not rows then return nil, err end
    for i, row in ipairs(rows) do
      local people = row.label == 1 and "a" or "b"
      out[#out + 1] = { id = ("%s %d"):format(subset, i), subset = subset, question = row.input, a = row.output_1, b = row.output_2,
                        reference = people, people = people }
    end
  end
  return out
end

local llmbar_subsets = { "natural", "adversarial_neighbor", "adversarial_gptinst", "adversarial_gptout", "adversarial_manual" }

--- LLMBar: which answer follows the instruction; four of five subsets are made to mislead.
-- @param dir string
-- @param opts table|nil  those of fathom.judge: votes, rubric, temperature, orders ...
-- @return options for fathom.eval without backend; or nil, err
function sets.llmbar(dir, opts)
  local o = check("data.llmbar", opts)
  local cases, err = llmbar_cases("data.llmbar", dir, llmbar_subsets)
  if not cases then return nil, err end
  return suite("LLMBar", cases, o)
end

--- Pairs of answers to MT-Bench questions that people have compared (the part of them that LLMBar ships).
function sets.mtbench(dir, opts)
  local o = check("data.mtbench", opts)
  local cases, err = llmbar_cases("data.mtbench", dir, { "processed_mtbench" })
  if not cases then return nil, err end
  return suite("MT-Bench pairs", cases, o)
end

-- ---- PandaLM -------------------------------------------------------------------------------------------------------------------

local verdicts = { [0] = "tie", [1] = "a", [2] = "b" }

-- What most of three say; nil: each says something else.
local function most_of(list)
  local n = {}
  for _, v in ipairs(list) do
    n[v] = (n[v] or 0) + 1
    if n[v] >= 2 then return v end
  end
end

local function annotators(row) return { verdicts[row.annotator1], verdicts[row.annotator2], verdicts[row.annotator3] } end

local function people_agree(list)
  return ((list[1] == list[2] and 1 or 0) + (list[1] == list[3] and 1 or 0) + (list[2] == list[3] and 1 or 0)) / 3
end

--- PandaLM's test set: agreement with the majority of three annotators, with each of them, and theirs among each other. Pairs on which
-- all three differ have no majority and are left out.
function sets.pandalm(dir, opts)
  local o = check("data.pandalm", opts)
  local rows, err = folder.rows("data.pandalm", dir, "judge-pandalm", "testset.jsonl")
  if not rows then return nil, err end
  local cases, among = {}, {}
  for _, row in ipairs(rows) do
    local list = annotators(row)
    local majority = #list == 3 and most_of(list)
    if majority then
      local input = row.input ~= "" and "\n\n" .. row.input or ""
      cases[#cases + 1] = { id = tostring(row.idx), subset = row.cmp_key, question = row.instruction .. input, a = row.response1,
                            b = row.response2, reference = majority, people = majority, annotators = list }
      among[tostring(row.idx)] = people_agree(list)
    end
  end
  return suite("PandaLM test set", cases, o, {
    by = { "people" },
    scorers = { agrees = agrees, ["agrees with each"] = function(s)
      local n = 0
      for _, v in ipairs(s.case.annotators) do n = n + (v == s.extra.verdict and 1 or 0) end
      return n / #s.case.annotators
    end },
    metrics = with { ["agreement among people"] = function(list, seed)
      local values = {}
      for i, row in ipairs(list) do values[i] = among[row.id] end
      return stats.estimate(values, seed)
    end } })
end

-- ---- accuracy by category --------------------------------------------------------------------------------------------------------

local function score_both(o)
  return function(case, info)
    local judge = judge_of(info.backend, o, "score", info.seed)
    local scores, usage = {}, { prompt = 0, completion = 0 }
    for _, name in ipairs { "chosen", "rejected" } do
      local r, err = judge:score(case.question, case[name])
      if not r then return nil, err end
      scores[name] = r.score
      for k in pairs(usage) do usage[k] = usage[k] + (r.usage and r.usage[k] or 0) end
    end
    local text = ("%s against %s"):format(tostring(scores.chosen), tostring(scores.rejected))
    return { text = text, answer = text, usage = usage, extra = scores }
  end
end

-- The mean of the categories' means, each counting the same.
local function category_mean(rows)
  local groups, names, means = {}, {}, {}
  for _, row in ipairs(rows) do
    local name = row.id:match "^(%S+)"
    for _, s in ipairs(row.samples) do
      if not groups[name] then
        groups[name] = {}
        names[#names + 1] = name
      end
      table.insert(groups[name], s.scores.better or 0.0)
    end
  end
  for i, name in ipairs(names) do means[i] = stats.mean(groups[name]) end
  return { mean = stats.mean(means), share = true }
end

--- After RewardBench: each answer is scored alone, and the chosen one is to score higher; accuracy by category and their mean. The
-- categories are LLMBar's.
function sets.rewardbench(dir, opts)
  local o = check("data.rewardbench", opts)
  local cases, err = llmbar_cases("data.rewardbench", dir, llmbar_subsets)
  if not cases then return nil, err end
  for _, case in ipairs(cases) do
    case.chosen, case.rejected = case.a, case.b
    if case.reference == "b" then case.chosen, case.rejected = case.b, case.a end
    case.category, case.subset, case.reference = case.subset, nil, nil
  end
  return { name = "Accuracy by category", cases = cases, run = score_both(o), by = { "category" }, key = function() return nil end,
           metrics = { ["mean of categories"] = category_mean },
           scorers = { better = function(s)
             local e = s.extra
             if not (e.chosen and e.rejected) then return 0, "a score could not be read" end
             return e.chosen > e.rejected and 1 or e.chosen == e.rejected and 0.5 or 0, s.answer
           end } }
end

return sets

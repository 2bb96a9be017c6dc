--- data.lua - well-known test sets as evaluations: a folder of data in, the options of fathom.eval out.
-- Each function takes the folder (or one that holds it, as data/math-gsm8k in data) and gives { name =, cases =, scorers =, ... }:
-- add who answers (run, or backend where the set brings a run of its own) and call fathom.eval.
-- @usage
--   local suite = assert(require("fathom.eval.data").gsm8k("data"))
--   suite.backend, suite.most = model, 50
--   local report = assert(fathom.eval(suite))

local options = require "fathom.options"

local data = {}

-- name -> { module, what it asks }
local sets = {
  gsm8k = { "math", "grade-school word problems, the number counts" },
  svamp = { "math", "one-step word problems with distractors" },
  math500 = { "math", "contest problems, LaTeX answers" },
  mgsm_zh = { "math", "grade-school word problems in Chinese" },
  arithmetic = { "math", "integer arithmetic" },
  countdown = { "countdown", "an expression of given numbers that makes a target" },
  llmbar = { "pairs", "which of two answers follows the instruction; agreement with people, flip rate, length slope" },
  mtbench = { "pairs", "pairs of MT-Bench answers that people have compared" },
  pandalm = { "pairs", "pairs that three annotators have compared, ties included" },
  rewardbench = { "pairs", "chosen against rejected, each scored alone; accuracy by category" },
  bfcl = { "bfcl", "function calling: simple, multiple, parallel, parallel_multiple, irrelevance, live_simple" },
  hotpotqa = { "hotpotqa", "questions over several facts; exact match and F1, with a lookup tool where there are paragraphs" },
  textworld = { "textworld", "small text adventures for agents" },
  exercism = { "exercism", "programming tasks, solved in Lua and tested in the fence" },
}

--- Names of the sets, sorted, and what each asks.
-- @return list of { name =, text = }
function data.list()
  local out = {}
  for name, set in pairs(sets) do out[#out + 1] = { name = name, text = set[2] } end
  table.sort(out, function(a, b) return a.name < b.name end)
  return out
end

--- Whether there is a set of this name; the nearest name where there is none.
function data.find(name)
  if sets[name] then return true end
  local names = {}
  for other in pairs(sets) do names[#names + 1] = other end
  return false, (options.nearest(name, names))
end

return setmetatable(data, { __index = function(_, name)
  local set = sets[name]
  return set and require("fathom.eval.data." .. set[1])[name] or nil
end })

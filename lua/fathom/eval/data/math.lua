--- math.lua - sets of problems whose answer can be compared: GSM8K, SVAMP, MATH-500, MGSM in Chinese, arithmetic.

local folder = require "fathom.eval.data.folder"
local reward = require "fathom.reward"

local sets = {}

local ASK = "\n\nReason step by step, and put the final answer in \\boxed{}."
local ASK_ZH = "\n\n请一步一步推理，并把最终答案放在 \\boxed{} 里。"

-- rows -> the options of an evaluation; case_of(row, i) -> case
local function suite(what, name, dir, own, file, case_of, by)
  local rows, err = folder.rows(what, dir, own, file)
  if not rows then return nil, err end
  local cases = {}
  for i, row in ipairs(rows) do cases[i] = case_of(row, i) end
  return { name = name, cases = cases, scorers = { accuracy = reward.accuracy }, by = by or {} }
end

-- 18.0 is asked for as 18.
local function whole(v) return math.tointeger(v) or v end

--- Grade-school word problems (the test part).
-- @param dir string
-- @return options for fathom.eval; or nil, err
function sets.gsm8k(dir)
  return suite("data.gsm8k", "GSM8K", dir, "math-gsm8k", "test.jsonl", function(row, i)
    local _, steps = row.answer:gsub("<<", "")
    return { id = "gsm8k " .. i, prompt = row.question .. ASK, reference = row.answer:match "####%s*(%S+)", solution = row.answer,
             steps = steps < 6 and steps .. (steps == 1 and " step" or " steps") or "6 steps or more" }
  end, { "steps" })
end

--- One-step word problems with distractors.
function sets.svamp(dir)
  return suite("data.svamp", "SVAMP", dir, "math-svamp", "svamp.jsonl", function(row)
    local body = row.Body:find "[%.?!,]%s*$" and row.Body or row.Body .. "."
    return { id = row.ID, prompt = body .. " " .. row.Question .. ASK, reference = tostring(whole(row.Answer)), type = row.Type }
  end, { "type" })
end

--- Contest problems with LaTeX answers.
function sets.math500(dir)
  return suite("data.math500", "MATH-500", dir, "math-math500", "test.jsonl", function(row)
    return { id = row.unique_id, prompt = row.problem .. ASK, reference = row.answer, subject = row.subject, level = row.level,
             solution = row.solution }
  end, { "level", "subject" })
end

--- GSM8K problems in Chinese.
function sets.mgsm_zh(dir)
  return suite("data.mgsm_zh", "MGSM, Chinese", dir, "math-mgsm-zh", "mgsm_zh.jsonl", function(row)
    return { id = tostring(row.id), prompt = row.question .. ASK_ZH, reference = row.answer }
  end)
end

--- Integer arithmetic.
function sets.arithmetic(dir)
  return suite("data.arithmetic", "Arithmetic", dir, "gen-arithmetic", "test.jsonl", function(row, i)
    return { id = tostring(i), prompt = ("What is %s?"):format(row.question), reference = row.answer, digits = row.digits,
             operation = row.question:match "%s([^%s%d])%s" }
  end, { "digits", "operation" })
end

return sets

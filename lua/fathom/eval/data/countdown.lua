--- countdown.lua - an expression that uses each of some numbers once and makes a target; any such expression is right.

local folder = require "fathom.eval.data.folder"

local countdown = {}

-- A number, a bracket, or products of those, or sums of those: read by hand, so that nothing of what a model wrote is ever run.
local sum

local function factor(text, at, used)
  local digits, after = text:match("^%s*(%d+)()", at)
  if digits then
    used[#used + 1] = tonumber(digits)
    return tonumber(digits), after
  end
  local inside = text:match("^%s*%(()", at)
  if not inside then return nil end
  local value, stop = sum(text, inside, used)
  local closed = value and text:match("^%s*%)()", stop)
  if not closed then return nil end
  return value, closed
end

local function chain(next_level, signs, apply)
  return function(text, at, used)
    local value, stop = next_level(text, at, used)
    while value do
      local sign, after = text:match("^%s*([" .. signs .. "])()", stop)
      if not sign then return value, stop end
      local right
      right, stop = next_level(text, after, used)
      value = right and apply(sign, value, right)
    end
    return nil
  end
end

local product = chain(factor, "*/", function(sign, a, b)
  if sign == "*" then return a * b end
  return b ~= 0 and a / b or nil
end)
sum = chain(product, "+%-", function(sign, a, b) return sign == "+" and a + b or a - b end)

--- The value of an expression of whole numbers, + - * / and brackets.
-- @return number and the list of its numbers; or nil where it is no such expression
function countdown.value(text)
  if #text > 1000 or select(2, text:gsub("%(", "")) > 100 then return nil end
  text = text:gsub("×", "*"):gsub("÷", "/"):gsub("−", "-")
  local used = {}
  local value, stop = sum(text, 1, used)
  if not value or text:find("%S", stop) then return nil end
  return value, used
end

--- Scores an answer: 1 where the last <answer> makes the target with every number once.
-- @return 0 or 1, and what is wrong
function countdown.score(text, nums, target)
  local expression
  for inner in text:gmatch "<answer>(.-)</answer>" do expression = inner end
  if not expression then return 0, "there is no <answer>" end
  expression = expression:gsub("%s*=%s*%-?[%d%.]+%s*$", "")             -- "3 * 4 = 12" says the same
  local value, used = countdown.value(expression)
  if not value then return 0, "no expression" end
  local want = table.move(nums, 1, #nums, 1, {})
  table.sort(want)
  table.sort(used)
  if table.concat(want, " ") ~= table.concat(used, " ") then return 0, "its numbers are " .. table.concat(used, ", ") end
  if math.abs(value - target) > 1e-9 then return 0, ("it makes %g"):format(value) end
  return 1
end

--- Countdown puzzles, in the words that pocket was trained with.
-- @param dir string
-- @return options for fathom.eval; or nil, err
function countdown.countdown(dir)
  local rows, err = folder.rows("data.countdown", dir, "gen-countdown", "test.jsonl")
  if not rows then return nil, err end
  local cases = {}
  for i, row in ipairs(rows) do
    local prompt = ("Use the numbers %s once each with + - * / to make %d. Give the expression in <answer> tags."):format(
      table.concat(row.nums, ", "), row.target)
    cases[i] = { id = tostring(i), prompt = prompt, nums = row.nums, target = row.target, reference = row.solution,
                 numbers = #row.nums .. " numbers" }
  end
  return { name = "Countdown", cases = cases, by = { "numbers" },
           scorers = { right = function(s) return countdown.score(s.answer or "", s.case.nums, s.case.target) end },
           key = function(s) return (s.answer or ""):match ".*<answer>%s*(.-)%s*</answer>" end }
end

return countdown

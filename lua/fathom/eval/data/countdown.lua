--- countdown.lua - an expression that uses each of some numbers once and makes a target; any such expression is right.

local folder = require "fathom.eval.data.folder"
local reward = require "fathom.reward"

local countdown = {}

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
           scorers = { right = function(s) return reward.countdown { answer = s.answer, think = "", reference = s.case } end } }
end

return countdown

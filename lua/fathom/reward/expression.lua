--- reward/expression.lua - values of expressions that a model wrote: digits, + - * / and brackets, exactly, and nothing is run.

local rational = require "fathom.reward.rational"

local expression = {}

local MOST_BYTES, MOST_DEPTH = 4096, 100

local function fail(why) error({ expression = why }, 0) end

-- Tokens: { kind = "number", text = } or an operator's character.
local function tokens_of(text)
  local out, at = {}, 1
  text = text:gsub("×", "*"):gsub("÷", "/"):gsub("−", "-"):gsub("·", "*")
  while true do
    at = text:match("^%s*()", at)
    if at > #text then return out end
    local number = text:match("^%d+%.?%d*", at) or text:match("^%.%d+", at)
    local op = text:match("^[-+*/()]", at)
    if not number and not op then
      local char = text:match("^[%z\1-\127\194-\244][\128-\191]*", at) or "?"
      fail(("'%s' has no place in an expression"):format(char))
    end
    out[#out + 1] = number and { number = number } or op
    at = at + #(number or op)
  end
end

local sum

local function factor(s, depth)
  if depth > MOST_DEPTH then fail "brackets are nested too deep" end
  local t = s.tokens[s.at]
  s.at = s.at + 1
  if type(t) == "table" then
    s.numbers[#s.numbers + 1] = t.number
    return rational.parse(t.number) or fail(("the number %s is too large"):format(t.number))
  elseif t == "-" then
    return rational.sub({ 0, 1 }, factor(s, depth + 1))
  elseif t == "(" then
    local value = sum(s, depth + 1)
    if s.tokens[s.at] ~= ")" then fail "a bracket is not closed" end
    s.at = s.at + 1
    return value
  end
  fail(t and ("a number was expected before '%s'"):format(t) or "the expression is cut off")
end

local operators = { ["+"] = rational.add, ["-"] = rational.sub, ["*"] = rational.mul, ["/"] = rational.div }

local function chain(s, depth, next_level, first, second)
  local value = next_level(s, depth)
  while s.tokens[s.at] == first or s.tokens[s.at] == second do
    local op = s.tokens[s.at]
    s.at = s.at + 1
    local other = next_level(s, depth)
    if op == "/" and other[1] == 0 then fail "a division by zero" end
    value = operators[op](value, other) or fail "the numbers become too large"
  end
  return value
end

local function product(s, depth) return chain(s, depth, factor, "*", "/") end

function sum(s, depth) return chain(s, depth, product, "+", "-") end

--- Evaluates an expression.
-- @param text string
-- @return { n, d } in lowest terms and the list of its numbers as they are written; or nil and why, in a sentence
-- @usage expression.value "2 * (3 + 1/2)"    --> { 7, 1 }, { "2", "3", "1", "2" }
function expression.value(text)
  if #text > MOST_BYTES then return nil, "the expression is too long" end
  local ok, value, numbers = pcall(function()
    local s = { tokens = tokens_of(text), at = 1, numbers = {} }
    local v = sum(s, 0)
    if s.tokens[s.at] then fail "something follows the expression" end
    return v, s.numbers
  end)
  if ok then return value, numbers end
  if type(value) == "table" and value.expression then return nil, value.expression end
  error(value, 0)
end

--- Whether an expression makes a target out of some numbers, each used once.
-- @param text string
-- @param nums list      integers
-- @param target number
-- @return true, or false and why
function expression.makes(text, nums, target)
  local value, numbers = expression.value(text)
  if not value then return false, numbers end
  local want, used = {}, {}
  for i, n in ipairs(nums) do want[i] = tostring(math.tointeger(n) or n) end
  for i, n in ipairs(numbers) do used[i] = (n:gsub("^0+(%d)", "%1")) end
  table.sort(want)
  table.sort(used)
  if table.concat(want, " ") ~= table.concat(used, " ") then
    return false, "each number is to be used once, and no other"
  end
  local goal = rational.parse(tostring(math.tointeger(target) or target))
  if not goal or not rational.equal(value, goal) then
    return false, ("the value is %s, not %s"):format(rational.text(value), tostring(math.tointeger(target) or target))
  end
  return true
end

return expression

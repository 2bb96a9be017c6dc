--- tools/calculator.lua - exact arithmetic: an expression of whole numbers and decimal fractions with + - * / % ^ and brackets.
-- Numbers are fractions of whole numbers of any size, so nothing is rounded before the answer is written: a whole number as it is,
-- a fraction with at most 12 digits that count behind its point. The parser is its own; nothing is run as Lua.

local big = require "fathom.tools.big"
local options = require "fathom.options"

local calculator = {}

local MAX_LENGTH, MAX_DIGITS, MAX_DEPTH, PLACES = 1000, 1000, 100, 12
local ONE, TWO, TEN = big.read "1", big.read "2", big.read "10"

local function fail(...) error({ calculator = string.format(...) }, 0) end

-- ---- fractions: { over, under }, under positive, without common divisor --------------------------------------------

local function fraction(over, under)
  if big.is_zero(under) then fail "division by zero" end
  if big.size(over) > MAX_DIGITS or big.size(under) > MAX_DIGITS then fail("a number has more than %d digits", MAX_DIGITS) end
  if big.equal(under, ONE) then return { over, ONE } end
  if under.sign < 0 then over, under = big.negated(over), big.negated(under) end
  local common = big.common(over, under)
  return { (big.divide(over, common)), (big.divide(under, common)) }
end

local operations = {}

operations["+"] = function(a, b)
  return fraction(big.add(big.multiply(a[1], b[2]), big.multiply(b[1], a[2])), big.multiply(a[2], b[2]))
end

operations["-"] = function(a, b) return operations["+"](a, { big.negated(b[1]), b[2] }) end
operations["*"] = function(a, b) return fraction(big.multiply(a[1], b[1]), big.multiply(a[2], b[2])) end
operations["/"] = function(a, b) return fraction(big.multiply(a[1], b[2]), big.multiply(a[2], b[1])) end

-- Rounded down, as a whole number.
local function floor(a)
  local q, rest = big.divide(a[1], a[2])
  return { rest.sign < 0 and big.subtract(q, ONE) or q, ONE }
end

-- The sign is that of b, as in Lua.
operations["%"] = function(a, b)
  return operations["-"](a, operations["*"](b, floor(operations["/"](a, b))))
end

local function power(a, n)
  local out = { ONE, ONE }
  while n > 0 do
    if n % 2 == 1 then out = operations["*"](out, a) end
    n = n // 2
    if n > 0 then a = operations["*"](a, a) end
  end
  return out
end

operations["^"] = function(a, b)
  local n = big.equal(b[2], ONE) and #b[1] <= 1 and math.tointeger(tonumber(big.text(b[1])))
  if not n then fail "an exponent must be a whole number, and not that large" end
  if n < 0 then return power(operations["/"]({ ONE, ONE }, a), -n) end
  return power(a, n)
end

local function raised(n) return power({ TEN, ONE }, n)[1] end

-- ---- reading ------------------------------------------------------------------------------------------------------

local ranks = { ["+"] = 1, ["-"] = 1, ["*"] = 2, ["/"] = 2, ["%"] = 2, ["^"] = 4 }
local SIGN_RANK = 3                       -- -2 ^ 2 is -4

local function number(self)
  local whole, stop = self.text:match("^(%d+)()", self.at)
  whole, stop = whole or "", stop or self.at
  local part, after = self.text:match("^%.(%d+)()", stop)
  if whole == "" and not part then
    local c = self.text:sub(self.at, self.at)
    if c == "" then fail "the expression ends where a number should be" end
    fail("a number was expected at '%s'", self.text:sub(self.at, self.at + 11))
  end
  self.at = after or stop
  if self.text:find("^[%a_.]", self.at) then fail("'%s' is no number", self.text:match("^[%w_.]+", self.at)) end
  return fraction(big.read(whole .. (part or "")), raised(part and #part or 0))
end

local expression

local function skip(self) self.at = self.text:match("^%s*()", self.at) end

local function operand(self, depth)
  if depth > MAX_DEPTH then fail "the expression is nested too deeply" end
  skip(self)
  local c = self.text:sub(self.at, self.at)
  if c == "-" or c == "+" then
    self.at = self.at + 1
    local value = expression(self, SIGN_RANK, depth + 1)
    return c == "-" and { big.negated(value[1]), value[2] } or value
  end
  if c ~= "(" then return number(self) end
  self.at = self.at + 1
  local value = expression(self, 0, depth + 1)
  if self.text:sub(self.at, self.at) ~= ")" then fail "a bracket is not closed" end
  self.at = self.at + 1
  return value
end

-- Operators that bind more than `rank`; ^ goes from right to left.
function expression(self, rank, depth)
  local value = operand(self, depth)
  while true do
    skip(self)
    local c = self.text:sub(self.at, self.at)
    if not ranks[c] or ranks[c] <= rank then return value end
    self.at = self.at + 1
    value = operations[c](value, expression(self, c == "^" and ranks[c] - 1 or ranks[c], depth + 1))
  end
end

-- ---- writing --------------------------------------------------------------------------------------------------------

local function text_of(value)
  local over, under = value[1], value[2]
  if big.equal(under, ONE) then return big.text(over) end
  local places = PLACES + math.max(0, #big.text(under) - #big.text(big.with_sign(over, 1)))
  local q, rest = big.divide(big.multiply(big.with_sign(over, 1), raised(places)), under)
  if big.subtract(big.multiply(rest, TWO), under).sign > 0 then q = big.add(q, ONE) end
  local digits = big.text(q)
  digits = ("0"):rep(places + 1 - #digits) .. digits
  local part = digits:sub(-places):gsub("0+$", "")
  return (over.sign < 0 and "-" or "") .. digits:sub(1, -places - 1) .. (part ~= "" and "." .. part or "")
end

local signs = { ["×"] = "*", ["÷"] = "/", ["−"] = "-", ["·"] = "*", ["**"] = "^" }

--- The value of an expression.
-- @param text string  "(4821 * 37 - 5) / 2"; × ÷ − and ** are understood, too
-- @return string, or nil and a sentence
-- @usage print(calculator.value "2 ^ 100")   --> 1267650600228229401496703205376
function calculator.value(text)
  if #text > MAX_LENGTH then return nil, ("the expression is longer than %d characters"):format(MAX_LENGTH) end
  text = text:gsub("%*%*", signs):gsub("[\xC2-\xF4][\x80-\xBF]+", signs)
  local self = { text = text, at = 1 }
  local ok, value = pcall(function()
    local v = expression(self, 0, 0)
    if self.at <= #text then fail("'%s' is not understood", text:sub(self.at, self.at + 11)) end
    return text_of(v)
  end)
  if ok then return value end
  if type(value) == "table" and value.calculator then return nil, value.calculator end
  error(value, 0)
end

--- Makes the tool: args.expression.
-- @return tool  run(args) -> text, or nil and why
-- @usage fathom.agent(model, { tools = { calculator = fathom.tools.calculator() } })
function calculator.new()
  return { doc = "Evaluate an arithmetic expression.", args = { expression = "string" }, run = function(args)
    options.argument("fathom.tools.calculator", "args", args, options.is.table)
    options.argument("fathom.tools.calculator", "args.expression", args.expression, options.is.string)
    return calculator.value(args.expression)
  end }
end

return calculator

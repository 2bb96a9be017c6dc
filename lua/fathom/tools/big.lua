--- tools/big.lua - whole numbers of any size: { sign = 1 or -1, limbs of base 10^7, lowest first }; zero has no limbs.

local big = {}

local BASE, DIGITS = 10000000, 7

local function trim(n)
  while n[1] and n[#n] == 0 do n[#n] = nil end
  if not n[1] then n.sign = 1 end
  return n
end

--- From a text of digits.
function big.read(digits)
  local n = { sign = 1 }
  for stop = #digits, 1, -DIGITS do n[#n + 1] = math.tointeger(tonumber(digits:sub(math.max(1, stop - DIGITS + 1), stop), 10)) end
  return trim(n)
end

--- As text.
function big.text(n)
  if not n[1] then return "0" end
  local parts = { n.sign < 0 and "-" or "", ("%d"):format(n[#n]) }
  for i = #n - 1, 1, -1 do parts[#parts + 1] = ("%07d"):format(n[i]) end
  return table.concat(parts)
end

--- How many digits, at most.
function big.size(n) return #n * DIGITS end

function big.is_zero(n) return n[1] == nil end
function big.negated(n) return big.with_sign(n, -n.sign) end

--- A copy with another sign.
function big.with_sign(n, sign)
  local out = table.move(n, 1, #n, 1, {})
  out.sign = n[1] and sign or 1
  return out
end

-- -1, 0 or 1, signs apart.
local function compare_sizes(a, b)
  if #a ~= #b then return #a < #b and -1 or 1 end
  for i = #a, 1, -1 do
    if a[i] ~= b[i] then return a[i] < b[i] and -1 or 1 end
  end
  return 0
end

local function add_sizes(a, b, sign)
  local out, carry = { sign = sign }, 0
  for i = 1, math.max(#a, #b) do
    local sum = (a[i] or 0) + (b[i] or 0) + carry
    out[i], carry = sum % BASE, sum // BASE
  end
  if carry > 0 then out[#out + 1] = carry end
  return trim(out)
end

-- a - b, where a is not smaller.
local function subtract_sizes(a, b, sign)
  local out, borrow = { sign = sign }, 0
  for i = 1, #a do
    local rest = a[i] - (b[i] or 0) - borrow
    borrow = rest < 0 and 1 or 0
    out[i] = rest + borrow * BASE
  end
  return trim(out)
end

function big.add(a, b)
  if a.sign == b.sign then return add_sizes(a, b, a.sign) end
  if compare_sizes(a, b) >= 0 then return subtract_sizes(a, b, a.sign) end
  return subtract_sizes(b, a, b.sign)
end

function big.subtract(a, b) return big.add(a, big.negated(b)) end

function big.multiply(a, b)
  local out = { sign = a.sign * b.sign }
  for i = 1, #a + #b do out[i] = 0 end
  for i = 1, #a do
    local carry = 0
    for j = 1, #b do
      local sum = out[i + j - 1] + a[i] * b[j] + carry
      out[i + j - 1], carry = sum % BASE, sum // BASE
    end
    out[i + #b] = out[i + #b] + carry
  end
  return trim(out)
end

-- The highest limbs as a float, and how many stand below them.
local function leading(n)
  local top = #n
  return ((n[top] or 0) * (BASE + 0.0) + (n[top - 1] or 0)) * BASE + (n[top - 2] or 0), top - 3
end

-- How often b goes into rest (below BASE times): guessed from the highest limbs, which is right within one.
local function goes_into(rest, b)
  local r, r_below = leading(rest)
  local d, d_below = leading(b)
  local function times(n) return big.multiply(b, trim { sign = 1, n }) end
  local q = math.min(BASE - 1, math.floor(r / d * (BASE + 0.0) ^ (r_below - d_below)))
  while compare_sizes(times(q), rest) > 0 do q = q - 1 end
  while q < BASE - 1 and compare_sizes(times(q + 1), rest) <= 0 do q = q + 1 end
  return q
end

--- Quotient and remainder, both rounded towards zero: a = q * b + r, r has the sign of a.
function big.divide(a, b)
  local q, rest, positive = { sign = a.sign * b.sign }, { sign = 1 }, big.with_sign(b, 1)
  for i = #a, 1, -1 do
    table.insert(rest, 1, a[i])
    trim(rest)
    q[i] = compare_sizes(rest, positive) < 0 and 0 or goes_into(rest, positive)
    if q[i] > 0 then rest = subtract_sizes(rest, big.multiply(positive, { sign = 1, q[i] }), 1) end
  end
  return trim(q), big.with_sign(rest, a.sign)
end

function big.equal(a, b) return a.sign == b.sign and compare_sizes(a, b) == 0 end

--- The greatest common divisor, not negative.
function big.common(a, b)
  while b[1] do
    local _, rest = big.divide(a, b)
    a, b = b, rest
  end
  return big.with_sign(a, 1)
end

return big

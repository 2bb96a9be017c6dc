--- reward/rational.lua - exact fractions of 64-bit integers; what would not fit is nil, never rounded.

local rational = {}

local MOST = 2.0 ^ 62

local function gcd(a, b)
  while b ~= 0 do a, b = b, a % b end
  return a < 0 and -a or a
end

local function times(a, b)
  if math.abs(a + 0.0) * math.abs(b + 0.0) >= MOST then return nil end
  return a * b
end

--- n / d in lowest terms, the sign above.
-- @return { n, d }, or nil for a zero below or numbers that are too large
function rational.new(n, d)
  d = d or 1
  if not n or not d or d == 0 or math.abs(n + 0.0) >= MOST or math.abs(d + 0.0) >= MOST then return nil end
  if d < 0 then n, d = -n, -d end
  local g = gcd(n, d)
  return { n // g, d // g }
end

--- From a text like "12", "-3.25" or ".5".
function rational.parse(text)
  local sign, whole, part = text:match "^([+-]?)(%d*)%.?(%d*)$"
  if not sign or (whole == "" and part == "") or #whole + #part > 18 then return nil end
  local n = math.tointeger(tonumber(whole .. part))
  return rational.new(sign == "-" and -n or n, math.tointeger(10 ^ #part))
end

function rational.add(a, b)
  local x, y, d = times(a[1], b[2]), times(b[1], a[2]), times(a[2], b[2])
  if not (x and y and d) then return nil end
  return rational.new(x + y, d)
end

function rational.sub(a, b) return rational.add(a, { -b[1], b[2] }) end

function rational.mul(a, b) return rational.new(times(a[1], b[1]), times(a[2], b[2])) end

function rational.div(a, b)
  if b[1] == 0 then return nil end
  return rational.new(times(a[1], b[2]), times(a[2], b[1]))
end

function rational.equal(a, b) return a[1] == b[1] and a[2] == b[2] end

--- As text: "7", "-3/4".
function rational.text(a) return a[2] == 1 and tostring(a[1]) or ("%d/%d"):format(a[1], a[2]) end

return rational

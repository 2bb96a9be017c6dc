--- answer.lua - which answers are the same one: what a reply ends in, without the ways of writing it.

local answer = {}

-- The last balanced \boxed{...}.
local function boxed(text)
  local last
  for inner in text:gmatch "\\f?boxed%s*(%b{})" do last = inner:sub(2, -2) end
  return last
end

local function trim(text) return text:match "^%s*(.-)%s*$" end

--- What a reply gives as its answer: the last \boxed{}, <answer> or "#### N", else all of it.
-- @param text string
-- @return string, maybe empty
function answer.of(text)
  local found = boxed(text)
  if not found then
    for inner in text:gmatch "<answer>(.-)</answer>" do found = inner end
  end
  return trim(found or text:match ".*####%s*([^\n]+)" or text)
end

-- ---- ways of writing ------------------------------------------------------------------------------------------------

local function number_text(n)
  if n == math.floor(n) and math.abs(n) < 2 ^ 53 then return ("%d"):format(n) end
  return ("%.10g"):format(n)
end

-- A number with commas between thousands, a currency or a percent sign.
local function as_number(text)
  local bare = text:gsub("\\?[%$%%]", ""):gsub("%s", "")
  if bare:find "^[+-]?%d%d?%d?,%d%d%d" and not bare:find ",%d%d?%f[^%d]" then bare = bare:gsub(",", "") end
  local n = bare:find "^[+-]?%.?%d" and not bare:find "[xX]" and tonumber(bare) or nil
  return n and number_text(n)
end

-- LaTeX that looks the same: \dfrac12 is \frac{1}{2}, \left( is (.
local function latex(text)
  text = text:gsub("\\left%f[^%a]", ""):gsub("\\right%f[^%a]", ""):gsub("\\[!,;: ]", ""):gsub("\\[dt]frac", "\\frac")
  text = text:gsub("%^%s*{?\\circ}?", ""):gsub("\\degree", ""):gsub("\\%$", ""):gsub("\\%%", ""):gsub("\\mbox", "\\text")
  text = text:gsub("\\text%a*%s*(%b{})", function(inner) return trim(inner:sub(2, -2)) end)
  text = text:gsub("\\frac(%w)(%w)", "\\frac{%1}{%2}"):gsub("\\frac(%w){", "\\frac{%1}{"):gsub("\\sqrt(%w)", "\\sqrt{%1}")
  text = text:gsub("[%$%s]", ""):gsub("^%a%f[^%w]=", ""):gsub("%.$", "")
  text = text:gsub("^([+-]?%d+)/(%d+)$", "\\frac{%1}{%2}"):gsub("\\frac{%-(%w+)}", "-\\frac{%1}")
  text = text:gsub("%f[%d.]%.(%d)", "0.%1")
  return (text:gsub("\\cdot", "*"):gsub("\\times", "*"):gsub("\\le%f[^%a]", "\\leq"):gsub("\\ge%f[^%a]", "\\geq"))
end

--- A text that is the same for equal answers, for votes and comparisons.
-- @param text string  a reply, or an answer alone
-- @return string, or nil where there is nothing
function answer.key(text)
  local found = answer.of(text)
  if found == "" then return nil end
  local n = as_number(found)
  if n then return n end
  local plain = latex(found)
  return as_number(plain) or plain:lower()
end

--- Whether a reply gives the reference.
-- @return boolean
function answer.same(text, reference)
  local got, want = answer.key(text), answer.key(tostring(reference))
  if not got or not want then return false end
  local a, b = as_number(got), as_number(want)
  a, b = a and tonumber(a), b and tonumber(b)
  if a and b then return math.abs(a - b) <= 1e-6 * math.max(1, math.abs(b)) end
  return got == want
end

return answer

--- reward/answer.lua - which answer a reply gives, and whether two answers are the same.

local rational = require "fathom.reward.rational"

local answer = {}

local function trim(s) return s:match "^%s*(.-)%s*$" end

-- ---- finding it -----------------------------------------------------------------------------------------------------

-- What stands in braces from `at` on, braces inside them and escaped ones counted; nil where they are not closed.
local function braced(text, at)
  local depth, i = 0, at
  while i <= #text do
    local c = text:sub(i, i)
    if c == "\\" then i = i + 1
    elseif c == "{" then depth = depth + 1
    elseif c == "}" then
      depth = depth - 1
      if depth == 0 then return text:sub(at + 1, i - 1), i end
    end
    i = i + 1
  end
end

--- The content of the last \boxed{} (or \fbox{}) that is closed: the one that opens last. One pass, however many are open: a
-- model that repeats itself writes thousands.
function answer.boxed(text)
  local open, from, to, at = {}, nil, nil, 1
  while true do
    local i = text:find("[\\{}]", at)
    if not i then break end
    local c = text:byte(i)
    local name, stop = text:match("^\\(%a+)%s*(){", i)
    if name then
      open[#open + 1] = { box = name == "boxed" or name == "fbox", at = stop }
    elseif c == 0x7B then
      open[#open + 1] = { at = i }
    elseif c == 0x7D and #open > 0 then
      local brace = table.remove(open)
      if brace.box and (not from or brace.at > from) then from, to = brace.at, i end
    end
    at = name and stop + 1 or c == 0x5C and i + 2 or i + 1
  end
  return from and trim(text:sub(from + 1, to - 1))
end

--- The content of the last pair of tags.
-- @param tag string  "answer"
function answer.tagged(text, tag)
  local open, close = "<" .. tag .. ">", "</" .. tag .. ">"
  local found, from = nil, 1
  while true do
    local _, stop = text:find(open, from, true)
    local at = stop and text:find(close, stop + 1, true)
    if not at then break end
    found, from = text:sub(stop + 1, at - 1), stop + 1
  end
  return found and trim(found)
end

local function last_match(text, pattern)
  local found
  for m in text:gmatch(pattern) do found = m end
  return found
end

-- "The answer is 42.", "Answer: 42"
local function stated(text)
  local found
  for line in text:gmatch "[^\n]+" do
    local low = line:lower()
    local at = low:match ".*answer%s+is:?%s*()" or low:match ".*answer:%s*()"
    if at and line:sub(at):find "%S" then found = line:sub(at) end
  end
  if not found then return nil end
  return trim((trim(found):gsub("%*+", ""):gsub("%.$", "")))
end

--- The answer that a reply gives in a place of its own: the last \boxed{}, <answer>, "#### 42" or "the answer is 42".
-- @return string, or nil
function answer.marked(text)
  local found = answer.boxed(text) or answer.tagged(text, "answer")
  if found then return answer.boxed(found) or found end
  found = last_match(text, "####%s*([^\n]+)")
  return found and trim(found) or stated(text)
end

--- The last number of a text.
function answer.last_number(text)
  local found = last_match(" " .. text, "[^%w.](%-?[$]?%d[%d,]*%.?%d*%s*/?%s*%d*%%?)")
  return found and trim((found:gsub("[,./%s]+$", "")))
end

-- ---- one spelling for each answer -------------------------------------------------------------------------------------

local droppable = { "\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\$", "$", "\\displaystyle", "\\limits", "~", "^\\circ",
                    "^{\\circ}", "°", "\\degree" }

local function drop_words(s)
  for _, word in ipairs(droppable) do
    local from = 1
    while true do
      local start, stop = s:find(word, from, true)
      if not start then break end
      -- \right is no beginning of \rightarrow
      if word:find "%a$" and s:find("^%a", stop + 1) then
        from = stop + 1
      else
        s = s:sub(1, start - 1) .. s:sub(stop + 1)
        from = start
      end
    end
  end
  return s
end

local wrappers = { "\\text", "\\mathrm", "\\textbf", "\\mathbf", "\\mbox", "\\operatorname", "\\textit", "\\mathit", "\\emph" }

local function unwrap(s)
  for _, word in ipairs(wrappers) do
    while true do
      local start, stop = s:find(word .. "%s*{")
      if not start then break end
      local inner, last = braced(s, stop)
      if not inner then break end
      s = s:sub(1, start - 1) .. " " .. inner .. " " .. s:sub(last + 1)
    end
  end
  return s
end

-- \frac12, \frac{1}2, \sqrt3 and their like in full.
local function full_braces(s)
  s = s:gsub("\\[dtc]frac", "\\frac"):gsub("\\frac%s+", "\\frac"):gsub("\\sqrt%s+", "\\sqrt")
  s = s:gsub("\\frac(%d)(%d)", "\\frac{%1}{%2}"):gsub("\\frac(%d){", "\\frac{%1}{"):gsub("(\\frac%b{})%s*(%d)", "%1{%2}")
  return (s:gsub("\\sqrt(%w)", "\\sqrt{%1}"))
end

local function words(s)
  s = s:lower():gsub("^the%s+", ""):gsub("^an?%s+(%a%a)", "%1"):gsub("%s+", " ")
  return trim((s:gsub("[.!]+$", ""):gsub('^["\'“](.-)["\'”]$', "%1")))
end

--- One spelling for what means the same: LaTeX without its dress, words in lower case, no article, no closing full stop.
function answer.normal(text)
  local s = trim(text):gsub("^\\%((.*)\\%)$", "%1"):gsub("^\\%[(.*)\\%]$", "%1")
  s = unwrap(drop_words(full_braces(s))):gsub("\\%%", "%%"):gsub("\\[{}]", { ["\\{"] = "{", ["\\}"] = "}" })
  s = s:gsub("[£€¥]", ""):gsub("−", "-")
  s = s:gsub("^%s*%a%s*=%s*", ""):gsub("^%s*\\?%a+%s*\\in%s*", "")
  return words(s)
end

-- ---- numbers ------------------------------------------------------------------------------------------------------------

local function parse_plain(s)
  s = s:gsub("%s+", "")
  if s:find "^[+-]?%d%d?%d?,%d%d%d" and s:find "^[+-]?%d%d?%d?[%d,]*%.?%d*$" and not s:find ",%d%d?%D" and not s:find ",%d%d?$" then
    s = s:gsub(",", "")
  end
  local value = rational.parse(s)
  if value then return value end
  local sign, n, d = s:match "^([+-]?)(%d+)/(%d+)$"
  if not n then sign, n, d = s:match "^([+-]?)\\frac{([+-]?%d+)}{(%d+)}$" end
  if n and #n < 19 and #d < 19 then
    local r = rational.new(math.tointeger(tonumber(n)), math.tointeger(tonumber(d)))
    return r and sign == "-" and { -r[1], r[2] } or r
  end
  local mantissa, power = s:match "^([+-]?%d+%.?%d*)e([+-]?%d+)$"
  if not mantissa then mantissa, power = s:match "^([+-]?%d+%.?%d*)\\times10^{?([+-]?%d+)}?$" end
  local m, p = mantissa and rational.parse(mantissa), tonumber(power)
  if m and math.abs(p) <= 18 then
    local tens = { math.tointeger(10 ^ math.abs(p)), 1 }
    return (p < 0 and rational.div or rational.mul)(m, tens)
  end
end

-- "2 1/2"
local function parse_mixed(s)
  local sign, whole, rest = s:match "^([+-]?)(%d+)%s+(%d+/%d+)$"
  if not whole then sign, whole, rest = s:match "^([+-]?)(%d+)%s*(\\frac{%d+}{%d+})$" end
  local a, b = whole and rational.parse(whole), rest and parse_plain(rest)
  local sum = a and b and rational.add(a, b)
  return sum and sign == "-" and { -sum[1], sum[2] } or sum
end

-- "2^{10}"; nil where it does not fit.
local function parse_power(s)
  local base, power = s:match "^(%d+)%s*%^%s*{?([+-]?%d+)}?$"
  local b, p, value = base and rational.parse(base), tonumber(power), { 1, 1 }
  if not b or math.abs(p) > 62 then return nil end
  for _ = 1, math.abs(p) do value = value and rational.mul(value, b) end
  return value and p < 0 and rational.div({ 1, 1 }, value) or p >= 0 and value or nil
end

--- The number that a normal answer is, with what stands behind it.
-- @return { n, d }, unit ("" where there is none, "%" for percent); or nil
function answer.number(s)
  local value = parse_mixed(s) or parse_plain(s) or parse_power(s)
  if value then return value, "" end
  local head, unit = s:match "^(.-)%s*(%%)$"
  if not head then head, unit = s:match "^(.-[%d}])%s*([%a][%a%s/^%d]*)$" end
  if not head then return nil end
  value = parse_mixed(head) or parse_plain(head)
  if not value then return nil end
  unit = unit:gsub("%s+", ""):gsub("percent", "%%"):gsub("([^s])s$", "%1")
  return value, unit
end

local function same_number(a, b)
  local x, unit_x = answer.number(a)
  local y, unit_y = answer.number(b)
  if not (x and y) then return nil end
  if unit_x ~= "" and unit_y ~= "" and unit_x ~= unit_y then return false end
  if rational.equal(x, y) then return true end
  -- one of them may have written a share as a percentage
  local hundred = { 100, 1 }
  if unit_x == "%" and unit_y == "" then y = rational.mul(y, hundred) return y ~= nil and rational.equal(x, y) end
  if unit_y == "%" and unit_x == "" then x = rational.mul(x, hundred) return x ~= nil and rational.equal(x, y) end
  return false
end

-- ---- several values -------------------------------------------------------------------------------------------------------

-- The parts between commas outside brackets; nil where there is one only.
local function parts_of(s)
  local out, depth, from = {}, 0, 1
  for i = 1, #s do
    local c = s:sub(i, i)
    if c:find "[%(%[{]" then depth = depth + 1
    elseif c:find "[%)%]}]" then depth = depth - 1
    elseif c == "," and depth == 0 then
      out[#out + 1] = trim(s:sub(from, i - 1))
      from = i + 1
    end
  end
  if #out == 0 then return nil end
  out[#out + 1] = trim(s:sub(from))
  return out
end

local same

local function same_parts(a, b, ordered)
  if #a ~= #b then return false end
  local taken = {}
  for i, part in ipairs(a) do
    local found
    for j = ordered and i or 1, ordered and i or #b do
      if not taken[j] and same(part, b[j]) then found = j break end
    end
    if not found then return false end
    taken[found] = true
  end
  return true
end

function same(a, b)
  if a == b or a:gsub("%s+", "") == b:gsub("%s+", "") then return true end
  local number = same_number(a, b)
  if number ~= nil then return number end
  local open_a, inner_a, close_a = a:match "^([%(%[])(.*)([%)%]])$"
  local open_b, inner_b, close_b = b:match "^([%(%[])(.*)([%)%]])$"
  if open_a and open_a == open_b and close_a == close_b then
    local x, y = parts_of(inner_a), parts_of(inner_b)
    if x and y then return same_parts(x, y, true) end
    return same(trim(inner_a), trim(inner_b))
  end
  local x, y = parts_of(a), parts_of(b)
  return x ~= nil and y ~= nil and same_parts(x, y, false)
end

--- Whether two answers are the same: as numbers (exactly; with commas, fractions, percentages, units and LaTeX), as lists of such, or
-- as texts in one spelling.
-- @usage answer.same("\\frac{1}{2}", "0.5")    --> true
function answer.same(a, b) return same(answer.normal(a), answer.normal(b)) end

--- A text that is the same for answers that are the same: what votes are counted by.
-- @param text string  a whole reply
-- @return string, or nil where the reply gives no answer
function answer.key(text)
  local s = answer.normal(answer.marked(text) or text)
  if s == "" then return nil end
  local value, unit = answer.number(s)
  if value and (unit == "" or unit == "%") then return rational.text(value) .. unit end
  return (s:gsub("%s+", " "))
end

return answer

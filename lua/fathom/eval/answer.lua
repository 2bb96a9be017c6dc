--- answer.lua - which answers count as the same in a vote.

local answer = {}

-- The last balanced \boxed{...}.
local function boxed(text)
  local last
  for inner in text:gmatch "\\boxed(%b{})" do last = inner:sub(2, -2) end
  return last
end

local function number_of(text)
  local plain = text:gsub("[,%s$%%]", "")
  local n = tonumber(plain)
  if n and n == math.floor(n) and math.abs(n) < 2 ^ 53 then return ("%d"):format(n) end
  return n and ("%.10g"):format(n)
end

--- A text that is the same for equal answers: the last \boxed{}, <answer> or "#### N", else all of it, without white space
-- around; numbers as numbers.
-- @param text string
-- @return string, or nil where there is nothing
function answer.key(text)
  local found = boxed(text)
  if not found then
    for inner in text:gmatch "<answer>(.-)</answer>" do found = inner end
  end
  found = found or text:match "####%s*([^\n]+)" or text
  found = found:match "^%s*(.-)%s*$"
  if found == "" then return nil end
  return number_of(found) or found
end

return answer

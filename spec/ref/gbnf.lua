--- spec/ref/gbnf.lua - whether a grammar matches a text, by trying everything: sets of ends, in plain Lua.
-- A grammar is a table of rules by name; an expression is
--   "text" | { set = "abc" } | { seq = { e, ... } } | { alt = { e, ... } } | { rep = e, min, max } | { rule = "name" }
-- to_text writes the same grammar in GBNF.

local ref = {}

local function quote(s)
  return '"' .. s:gsub('["\\]', "\\%0"):gsub("\n", "\\n") .. '"'
end

local function write(e)
  if type(e) == "string" then return quote(e) end
  if e.set then return "[" .. e.set:gsub("[%]%[%^%-\\]", "\\%0") .. "]" end
  if e.rule then return e.rule end
  if e.rep then return "(" .. write(e.rep) .. "){" .. e.min .. "," .. (e.max or "") .. "}" end
  local parts = {}
  for i, part in ipairs(e.seq or e.alt) do parts[i] = write(part) end
  return "(" .. table.concat(parts, e.seq and " " or " | ") .. ")"
end

--- The grammar in GBNF.
function ref.to_text(rules)
  local lines = {}
  for name, e in pairs(rules) do lines[#lines + 1] = name .. " ::= " .. write(e) end
  table.sort(lines)
  return table.concat(lines, "\n") .. "\n"
end

-- Positions where a match of e that starts at one of `from` may end: a set.
local function ends(rules, e, s, from, seen)
  local out = {}
  if type(e) == "string" then
    for at in pairs(from) do
      if s:sub(at, at + #e - 1) == e then out[at + #e] = true end
    end
  elseif e.set then
    for at in pairs(from) do
      local c = s:sub(at, at)
      if c ~= "" and e.set:find(c, 1, true) then out[at + 1] = true end
    end
  elseif e.seq then
    out = from
    for _, part in ipairs(e.seq) do out = ends(rules, part, s, out, seen) end
  elseif e.alt then
    for _, part in ipairs(e.alt) do
      for at in pairs(ends(rules, part, s, from, seen)) do out[at] = true end
    end
  elseif e.rep then
    local now, n = from, 0
    while next(now) and n <= (e.max or math.huge) do
      if n >= e.min then
        for at in pairs(now) do out[at] = true end
      end
      if n > e.min + #s then break end
      now, n = ends(rules, e.rep, s, now, seen), n + 1
    end
  else
    for at in pairs(from) do
      local key = e.rule .. at
      if not seen[key] then seen[key] = ends(rules, rules[e.rule], s, { [at] = true }, seen) end
      for stop in pairs(seen[key]) do out[stop] = true end
    end
  end
  return out
end

--- Whether root matches the whole text.
function ref.matches(rules, s) return ends(rules, rules.root, s, { [1] = true }, {})[#s + 1] == true end

return ref

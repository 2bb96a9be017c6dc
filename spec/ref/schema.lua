--- spec/ref/schema.lua - a JSON reader and a JSON Schema validator in plain Lua, for checking what the engine lets out.
-- Shares no code with it: written from RFC 8259 and JSON Schema 2020-12. Only the keywords that the specs use.

local ref = {}

local NULL = {}
ref.null = NULL

-- ---- JSON --------------------------------------------------------------------------------------

local value

local function space(s, i) return (s:find("[^ \t\r\n]", i)) or #s + 1 end

local short = { ['"'] = 0x22, ["\\"] = 0x5C, ["/"] = 0x2F, b = 8, f = 12, n = 10, r = 13, t = 9 }

-- Strings are lists of code points here: their length is what minLength counts.
local function text(s, i)
  assert(s:byte(i) == 0x22, "no string")
  local points = {}
  i = i + 1
  while true do
    local b = assert(s:byte(i), "an open string")
    if b == 0x22 then return { kind = "string", points = points }, i + 1 end
    assert(b >= 0x20, "a control character")
    local point
    if b == 0x5C then
      local e = s:sub(i + 1, i + 1)
      if e == "u" then
        point = tonumber(assert(s:match("^%x%x%x%x", i + 2), "no four digits"), 16)
        assert(point < 0xD800 or point > 0xDFFF, "half a pair")
        i = i + 6
      else
        point = assert(short[e], "an unknown escape")
        i = i + 2
      end
    else
      point = utf8.codepoint(s, i)                 -- raises for what is no UTF-8, surrogates among it
      i = i + #utf8.char(point)
    end
    points[#points + 1] = point
  end
end

local function number(s, i)
  local whole = s:match("^%-?0", i) or s:match("^%-?[1-9]%d*", i)
  assert(whole, "no value")
  local rest = (s:match("^%.%d+", i + #whole) or "")
  rest = rest .. (s:match("^[eE][+-]?%d+", i + #whole + #rest) or "")
  return { kind = "number", number = tonumber(whole .. rest) + 0.0 }, i + #whole + #rest
end

local function array(s, i)
  local list = { kind = "array" }
  i = space(s, i + 1)
  if s:sub(i, i) == "]" then return list, i + 1 end
  while true do
    list[#list + 1], i = value(s, space(s, i))
    i = space(s, i)
    local c = s:sub(i, i)
    if c == "]" then return list, i + 1 end
    assert(c == ",", "no comma")
    i = i + 1
  end
end

local function plain(points)
  local parts = {}
  for k, p in ipairs(points) do parts[k] = utf8.char(p) end
  return table.concat(parts)
end

local function object(s, i)
  local fields = { kind = "object", fields = {} }
  i = space(s, i + 1)
  if s:sub(i, i) == "}" then return fields, i + 1 end
  while true do
    local key
    key, i = text(s, space(s, i))
    i = space(s, i)
    assert(s:sub(i, i) == ":", "no colon")
    fields.fields[plain(key.points)], i = value(s, space(s, i + 1))
    i = space(s, i)
    local c = s:sub(i, i)
    if c == "}" then return fields, i + 1 end
    assert(c == ",", "no comma")
    i = i + 1
  end
end

function value(s, i)
  local c = s:sub(i, i)
  if c == "{" then return object(s, i) end
  if c == "[" then return array(s, i) end
  if c == '"' then return text(s, i) end
  for word, v in pairs { ["true"] = true, ["false"] = false } do
    if s:sub(i, i + #word - 1) == word then return { kind = "boolean", boolean = v }, i + #word end
  end
  if s:sub(i, i + 3) == "null" then return { kind = "null" }, i + 4 end
  return number(s, i)
end

--- Reads a whole text; returns the value with its kinds, or nil and why.
function ref.read(s)
  local ok, v, after = pcall(value, s, space(s, 1))
  if not ok then return nil, v end
  if space(s, after) ~= #s + 1 then return nil, "something follows" end
  return v
end

-- ---- JSON Schema: schemas are Lua tables, ref.null stands for null --------------------------------

-- A Lua value as read would give it.
local function lift(v)
  if v == NULL then return { kind = "null" } end
  if type(v) == "boolean" then return { kind = "boolean", boolean = v } end
  if type(v) == "number" then return { kind = "number", number = v + 0.0 } end
  if type(v) == "string" then
    local points = {}
    for _, p in utf8.codes(v) do points[#points + 1] = p end
    return { kind = "string", points = points }
  end
  local out = { kind = "array" }
  for i, item in ipairs(v) do out[i] = lift(item) end
  return out
end

local function equal(a, b)
  if a.kind ~= b.kind then return false end
  if a.kind == "number" then return a.number == b.number end
  if a.kind == "boolean" then return a.boolean == b.boolean end
  if a.kind == "string" then return plain(a.points) == plain(b.points) end
  if a.kind ~= "array" then return a.kind == "null" end
  if #a ~= #b then return false end
  for i = 1, #a do
    if not equal(a[i], b[i]) then return false end
  end
  return true
end

local function is_type(v, name)
  if name == "integer" then return v.kind == "number" and v.number % 1 == 0 end
  return v.kind == name
end

local function any(list, test)
  for _, item in ipairs(list) do
    if test(item) then return true end
  end
  return false
end

local valid

local check = {}

function check.type(v, want)
  if type(want) == "string" then return is_type(v, want) end
  return any(want, function(name) return is_type(v, name) end)
end
function check.enum(v, list) return any(list, function(item) return equal(v, lift(item)) end) end
function check.const(v, one) return equal(v, lift(one)) end
function check.minimum(v, n) return v.kind ~= "number" or v.number >= n end
function check.maximum(v, n) return v.kind ~= "number" or v.number <= n end
function check.exclusiveMinimum(v, n) return v.kind ~= "number" or v.number > n end
function check.exclusiveMaximum(v, n) return v.kind ~= "number" or v.number < n end
function check.minLength(v, n) return v.kind ~= "string" or #v.points >= n end
function check.maxLength(v, n) return v.kind ~= "string" or #v.points <= n end
function check.minItems(v, n) return v.kind ~= "array" or #v >= n end
function check.maxItems(v, n) return v.kind ~= "array" or #v <= n end
function check.items(v, schema, whole, root)
  local from = whole.prefixItems and #whole.prefixItems or 0
  for i = from + 1, v.kind == "array" and #v or 0 do
    if not valid(v[i], schema, root) then return false end
  end
  return true
end
function check.prefixItems(v, list, _, root)
  for i, schema in ipairs(list) do
    if v.kind == "array" and v[i] and not valid(v[i], schema, root) then return false end
  end
  return true
end
function check.properties(v, schemas, _, root)
  for name, schema in pairs(schemas) do
    if v.kind == "object" and v.fields[name] and not valid(v.fields[name], schema, root) then return false end
  end
  return true
end
function check.required(v, names)
  return v.kind ~= "object" or not any(names, function(name) return not v.fields[name] end)
end
function check.additionalProperties(v, schema, whole, root)
  for name, item in pairs(v.kind == "object" and v.fields or {}) do
    local known = whole.properties and whole.properties[name] ~= nil
    if not known and not valid(item, schema, root) then return false end
  end
  return true
end
local function how_many(v, list, root)
  local n = 0
  for _, schema in ipairs(list) do n = n + (valid(v, schema, root) and 1 or 0) end
  return n
end
function check.anyOf(v, list, _, root) return how_many(v, list, root) >= 1 end
function check.oneOf(v, list, _, root) return how_many(v, list, root) == 1 end
function check.allOf(v, list, _, root) return how_many(v, list, root) == #list end
check["$ref"] = function(v, where, _, root)
  local at = root
  for part in where:gmatch "[^#/]+" do at = at[part] end
  return valid(v, at, root)
end
check["$defs"] = function() return true end

function valid(v, schema, root)
  if type(schema) == "boolean" then return schema end
  for key, want in pairs(schema) do
    if not assert(check[key], key)(v, want, schema, root) then return false end
  end
  return true
end

--- Whether a text is JSON and valid under a schema; if not, why.
function ref.valid(s, schema)
  local v, why = ref.read(s)
  if not v then return false, why end
  return valid(v, schema, schema), "it does not validate"
end

return ref

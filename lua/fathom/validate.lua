--- validate.lua - whether a value follows a JSON Schema: for replies and arguments that no mask has kept in shape.
-- Checked: type enum const properties required additionalProperties minProperties maxProperties items prefixItems minItems
-- maxItems uniqueItems minLength maxLength minimum maximum exclusiveMinimum exclusiveMaximum multipleOf anyOf oneOf allOf not
-- $ref (inside the schema). pattern and format are not: Lua has no such expressions, and a mask keeps to them by itself.

local json = require "fathom.json"

local validate = {}

local check

local function is_array(v)
  local mt = getmetatable(v)
  if mt and mt.__jsontype then return mt.__jsontype == "array" end
  return next(v) == nil or #v > 0
end

local function is_object(v)
  local mt = getmetatable(v)
  if mt and mt.__jsontype then return mt.__jsontype == "object" end
  return next(v) == nil or #v == 0
end

local function type_of(v)
  if v == nil or v == json.null then return "null" end
  local kind = type(v)
  if kind == "table" then return is_array(v) and next(v) ~= nil and "array" or is_object(v) and "object" or "array" end
  return kind
end

local function is_a(v, name)
  if name == "null" then return v == nil or v == json.null end
  if v == json.null then return false end
  if name == "integer" then return type(v) == "number" and math.tointeger(v) ~= nil end
  if name == "array" then return type(v) == "table" and is_array(v) end
  if name == "object" then return type(v) == "table" and is_object(v) end
  return type(v) == name
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do
    if not same(v, b[k]) then return false end
  end
  for k in pairs(b) do
    if a[k] == nil then return false end
  end
  return true
end

local function shown(v)
  local ok, text = pcall(json.encode, v)
  if not ok then return tostring(v) end
  return #text <= 40 and text or text:sub(1, 37) .. "..."
end

local function wrong(at, ...) return false, ("%s %s"):format(at, string.format(...)) end

-- ---- keywords of one kind of value ------------------------------------------------------------------------------

local function check_type(v, s, at)
  if s.type == nil then return true end
  local names = type(s.type) == "table" and s.type or { s.type }
  for _, name in ipairs(names) do
    if is_a(v, name) then return true end
  end
  return wrong(at, "must be of type %s, got %s", table.concat(names, " or "), type_of(v))
end

local function check_values(v, s, at)
  if s.const ~= nil and not same(v, s.const) then return wrong(at, "must be %s, got %s", shown(s.const), shown(v)) end
  if s.enum == nil then return true end
  for _, one in ipairs(s.enum) do
    if same(v, one) then return true end
  end
  return wrong(at, "must be one of %s, got %s", shown(s.enum), shown(v))
end

local function check_number(v, s, at)
  if s.minimum and v < s.minimum then return wrong(at, "must be %s or more, got %s", shown(s.minimum), shown(v)) end
  if s.maximum and v > s.maximum then return wrong(at, "must be %s or less, got %s", shown(s.maximum), shown(v)) end
  if type(s.exclusiveMinimum) == "number" and v <= s.exclusiveMinimum then
    return wrong(at, "must be more than %s, got %s", shown(s.exclusiveMinimum), shown(v))
  end
  if type(s.exclusiveMaximum) == "number" and v >= s.exclusiveMaximum then
    return wrong(at, "must be less than %s, got %s", shown(s.exclusiveMaximum), shown(v))
  end
  if s.multipleOf then
    local times = v / s.multipleOf
    if math.abs(times - math.floor(times + 0.5)) > 1e-9 * math.max(1, math.abs(times)) then
      return wrong(at, "must be a multiple of %s, got %s", shown(s.multipleOf), shown(v))
    end
  end
  return true
end

local function check_string(v, s, at)
  local n = utf8.len(v) or #v
  if s.minLength and n < s.minLength then return wrong(at, "must have %d characters or more, got %d", s.minLength, n) end
  if s.maxLength and n > s.maxLength then return wrong(at, "must have %d characters or less, got %d", s.maxLength, n) end
  return true
end

local function check_array(v, s, at, root)
  if s.minItems and #v < s.minItems then return wrong(at, "must have %d items or more, got %d", s.minItems, #v) end
  if s.maxItems and #v > s.maxItems then return wrong(at, "must have %d items or less, got %d", s.maxItems, #v) end
  local first = s.prefixItems or {}
  for i, item in ipairs(v) do
    local form = first[i]
    if form == nil then form = s.items end
    if form ~= nil then
      local ok, why = check(item, form, ("%s[%d]"):format(at, i), root)
      if not ok then return false, why end
    end
    for j = 1, s.uniqueItems and i - 1 or 0 do
      if same(v[j], item) then return wrong(at, "must have no item twice, got %s twice", shown(item)) end
    end
  end
  return true
end

local function check_object(v, s, at, root)
  local known, n = s.properties or {}, 0
  for _, name in ipairs(s.required or {}) do
    if v[name] == nil then return wrong(at, "lacks '%s'", name) end
  end
  for _, name in ipairs(json.keys(v)) do
    n = n + 1
    local form = known[name]
    if form == nil then form = s.additionalProperties end
    if form == false then return wrong(at, "must not have '%s'", name) end
    if form ~= nil then
      local ok, why = check(v[name], form, at .. "." .. name, root)
      if not ok then return false, why end
    end
  end
  if s.minProperties and n < s.minProperties then return wrong(at, "must have %d fields or more, got %d", s.minProperties, n) end
  if s.maxProperties and n > s.maxProperties then return wrong(at, "must have %d fields or less, got %d", s.maxProperties, n) end
  return true
end

local by_kind = { number = check_number, string = check_string }

local function check_parts(v, s, at, root)
  if v == json.null then return true end
  if type(v) ~= "table" then
    local checks_kind = by_kind[type(v)]
    if checks_kind then return checks_kind(v, s, at) end
    return true
  end
  if type_of(v) == "array" then return check_array(v, s, at, root) end
  return check_object(v, s, at, root)
end

-- ---- keywords that hold schemas ---------------------------------------------------------------------------------

local function count_matches(v, list, at, root)
  local n, first = 0, nil
  for _, form in ipairs(list) do
    local ok, why = check(v, form, at, root)
    if ok then n = n + 1 end
    first = first or why
  end
  return n, first
end

local function check_combined(v, s, at, root)
  for _, form in ipairs(s.allOf or {}) do
    local ok, why = check(v, form, at, root)
    if not ok then return false, why end
  end
  if s.anyOf then
    local n, why = count_matches(v, s.anyOf, at, root)
    if n == 0 then return false, why end
  end
  if s.oneOf then
    local n, why = count_matches(v, s.oneOf, at, root)
    if n == 0 then return false, why end
    if n > 1 then return wrong(at, "must follow one of several forms, and follows %d", n) end
  end
  if s["not"] ~= nil and check(v, s["not"], at, root) then return wrong(at, "must not be %s", shown(v)) end
  return true
end

-- "#/$defs/name" inside the whole schema.
local function resolve(root, ref)
  if ref == "#" then return root end
  local at = ref:sub(1, 2) == "#/" and root or nil
  for part in ref:sub(3):gmatch "[^/]+" do
    part = part:gsub("~1", "/"):gsub("~0", "~")
    at = type(at) == "table" and (at[part] or at[tonumber(part)]) or nil
  end
  return at
end

local checks = { check_type, check_values, check_parts, check_combined }

function check(v, s, at, root)
  if s == true then return true end
  if s == false then return wrong(at, "must not be there") end
  if s["$ref"] then
    local form = resolve(root, s["$ref"])
    if form == nil then return wrong(at, "refers to %s, which is not there", s["$ref"]) end
    return check(v, form, at, root)
  end
  for _, one in ipairs(checks) do
    local ok, why = one(v, s, at, root)
    if not ok then return false, why end
  end
  return true
end

--- Whether a value follows a schema.
-- @param value any       as json.decode gives it, or a plain table
-- @param schema table    JSON Schema, decoded (fathom.schema makes one)
-- @param name string|nil how the value is called in the sentence ("value")
-- @return true, or false and a sentence that says where it does not
-- @usage local ok, why = validate.check({ x = 1 }, fathom.schema { x = "integer" })
function validate.check(value, schema, name) return check(value, schema, name or "value", schema) end

return validate

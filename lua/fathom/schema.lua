--- schema.lua - what a reply should look like: words, builders and tables of fields, as JSON Schema.
--
-- A schema is a word ("string" "number" "integer" "boolean" "null"), what a builder made, a JSON Schema, or a table of
-- fields, each a schema again. Fields are all required and come in sorted order; nothing else may come.
-- A table is a JSON Schema when each of its keys is a keyword and one of them says something ("type" must name types).

local json = require "fathom.json"
local options = require "fathom.options"

local schema = {}

local words = { string = true, number = true, integer = true, boolean = true, null = true, object = true, array = true }

-- Keywords of JSON Schema; those that are true say something by themselves. What is not done is refused by the core, by name.
local keywords = {}
for word in ([[properties required additionalProperties enum const items prefixItems minItems maxItems minLength maxLength
  pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf anyOf oneOf allOf not $ref uniqueItems contains
  patternProperties propertyNames minProperties maxProperties]]):gmatch "%S+" do keywords[word] = true end
for word in ("$schema $id $comment $defs definitions title description default examples deprecated readOnly writeOnly")
  :gmatch "%S+" do keywords[word] = false end

local made = { __name = "fathom.schema", __jsontype = "object" }     -- metatable of what is JSON Schema already

local function mark(t) return setmetatable(t, made) end

local function names_types(v)
  if type(v) ~= "table" then return words[v] or false end
  for _, word in ipairs(v) do
    if not words[word] then return false end
  end
  return #v > 0
end

-- Whether a table without a mark is a JSON Schema.
local function is_json_schema(t)
  local says = next(t) == nil
  for key, value in pairs(t) do
    if key == "type" then
      if not names_types(value) then return false end
      says = true
    elseif keywords[key] == nil then
      return false
    end
    says = says or keywords[key]
  end
  return says
end

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do
    if type(key) ~= "string" then return nil end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

local optional_fields = setmetatable({}, { __mode = "k" })

local to_schema

-- A table with one keyword and a key whose value is no schema is meant as JSON Schema: the key is what is wrong.
local function refuse_keyword(t, name)
  local names = {}
  for word in pairs(keywords) do names[#names + 1] = word end
  local near, letters = options.nearest(name, names)
  for key, value in pairs(t) do
    if key == "type" and names_types(value) or key ~= "type" and keywords[key] ~= nil then
      options.raise(("schema: the keyword '%s' is not supported%s"):format(name,
        letters * 3 <= #name and (" (did you mean '%s'?)"):format(near) or ""))
    end
  end
end

-- within: the tables that this one stands in
local function object_of(fields, within)
  local keys = sorted_keys(fields)
  if not keys then options.raise "schema: the fields of an object have names" end
  if within[fields] then options.raise "schema: a table of fields contains itself" end
  within[fields] = true
  local properties, required = {}, {}
  for _, name in ipairs(keys) do
    local value = fields[name]
    if type(value) ~= "table" and type(value) ~= "boolean" and not words[value] then refuse_keyword(fields, name) end
    properties[name] = to_schema(value, within)
    if not optional_fields[value] then required[#required + 1] = name end
  end
  within[fields] = nil
  return mark { type = "object", properties = json.object(properties, keys), required = json.array(required),
                additionalProperties = false }
end

-- Anything that stands for a schema -> JSON Schema; raises at the caller's line.
function to_schema(what, within)
  if type(what) == "boolean" then return what end
  if words[what] then return mark { type = what } end
  if type(what) ~= "table" then
    options.raise(("schema: expected a word, a table of fields or a JSON Schema, got %s"):format(tostring(what)))
  end
  if getmetatable(what) == made or is_json_schema(what) then return what end
  return object_of(what, within or {})
end

--- Makes a JSON Schema of a table of fields; a JSON Schema stays as it is.
-- @param what table|string
-- @return table  a JSON Schema, for the option schema or inside another
-- @usage fathom.schema { title = "string", gold = fathom.int(1, 500) }
function schema.new(what)
  local s = to_schema(what)
  return type(s) == "table" and getmetatable(s) ~= made and setmetatable(s, getmetatable(s) or made) or s
end

--- Makes the schema of an object of its fields, also where they are called like keywords.
-- @param fields table  name -> what stands for a schema
function schema.fields(fields) return object_of(fields, {}) end

--- Checks an option; for options.check.
function schema.check(v)
  return type(v) == "table" or type(v) == "string", "a table of fields, a JSON Schema or a word like \"string\""
end

local lists = { required = true, enum = true, type = true, anyOf = true, oneOf = true, allOf = true, prefixItems = true,
                examples = true }
local data = { enum = true, const = true, default = true, examples = true }

-- A copy in which empty tables are objects or lists, as their place wants: Lua's {} does not tell.
local function dressed(t, key, depth)
  if type(t) ~= "table" or t == json.null or data[key] then return t end
  if depth > 100 then error("nested too deeply, or in a circle", 0) end
  local copy, named = {}, key == "properties" or key == "$defs" or key == "definitions"
  for k, v in pairs(t) do copy[k] = dressed(v, not named and k or nil, depth + 1) end
  local mt = getmetatable(t)
  if next(t) == nil and not (mt and mt.__jsontype) then mt = getmetatable(lists[key] and json.array {} or json.object {}) end
  return setmetatable(copy, mt)
end

--- The text that the core reads. A string that is no word is such a text already.
function schema.text(what)
  if type(what) == "string" and not words[what] then return what end
  local ok, text = pcall(function() return json.encode(dressed(to_schema(what), nil, 0)) end)
  if not ok then options.raise("schema: " .. tostring(text):gsub("^.*schema: ", "")) end
  return text
end

-- ---- builders -----------------------------------------------------------------------------------------------

local function bounds(what, lo, hi, check)
  if lo ~= nil then options.argument(what, "the lower bound", lo, check) end
  if hi ~= nil then options.argument(what, "the upper bound", hi, check) end
  if lo and hi and lo > hi then options.raise(("%s: nothing is between %s and %s"):format(what, lo, hi)) end
end

--- An integer from lo to hi, both included; either may be nil.
-- @usage fathom.int(1, 500)
function schema.int(lo, hi)
  bounds("fathom.int", lo, hi, options.is.integer)
  return mark { type = "integer", minimum = lo, maximum = hi }
end

--- A number from lo to hi, both included; either may be nil.
function schema.number(lo, hi)
  bounds("fathom.number", lo, hi, options.is.number)
  return mark { type = "number", minimum = lo, maximum = hi }
end

--- A string of at most max characters, and at least min.
-- @usage fathom.text(80)
function schema.string(max, min)
  bounds("fathom.text", min, max, options.is.count(0))
  return mark { type = "string", minLength = min, maxLength = max }
end

--- A list of at most max items, and at least min.
-- @usage fathom.list("string", 3)
function schema.list(item, max, min)
  bounds("fathom.list", min, max, options.is.count(0))
  return mark { type = "array", items = to_schema(item), minItems = min, maxItems = max }
end

--- One of some values.
-- @usage fathom.enum { "a", "b" }
function schema.enum(values)
  options.argument("fathom.enum", "values", values, options.is.table)
  if #values == 0 then options.raise "fathom.enum: at least one value is needed" end
  return mark { enum = json.array(table.move(values, 1, #values, 1, {})) }
end

--- A field that may be left out.
-- @usage fathom.schema { name = "string", age = fathom.optional "integer" }
function schema.optional(what)
  local inner = to_schema(what)
  local copy = {}
  for k, v in pairs(type(inner) == "table" and inner or {}) do copy[k] = v end
  optional_fields[mark(copy)] = true
  return copy
end

return schema

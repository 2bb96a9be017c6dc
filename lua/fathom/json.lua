--- json.lua - JSON to Lua and back: strict, limited in depth, and able to keep the order of keys.
-- A decoded object or array carries a metatable with __jsontype ("object" or "array") and, for objects,
-- __jsonorder (its keys in the file's order); encode follows both. Plain tables work as well.

local json = {}

--- The JSON null inside tables (a nil would leave a hole).
json.null = setmetatable({}, { __name = "json.null", __tostring = function() return "null" end })

local MAX_DEPTH = 200
local array_mt = { __jsontype = "array" }

-- ---- decoding -----------------------------------------------------------------------------------

local escapes = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }
local decode_value

local function fail(at, what) error({ at = at, what = what }, 0) end

local function skip(text, at) return text:match("^[ \t\r\n]*()", at) end

local function unicode(text, at)
  local hex = text:match("^%x%x%x%x", at)
  if not hex then fail(at, "\\u wants four hexadecimal digits") end
  return tonumber(hex, 16), at + 4
end

-- at: behind "\u"; joins a surrogate pair, a lone surrogate becomes U+FFFD
local function escaped_char(text, at)
  local code
  code, at = unicode(text, at)
  if code >= 0xD800 and code <= 0xDBFF and text:sub(at, at + 1) == "\\u" then
    local low, after = unicode(text, at + 2)
    if low >= 0xDC00 and low <= 0xDFFF then
      return utf8.char(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)), after
    end
  end
  if code >= 0xD800 and code <= 0xDFFF then code = 0xFFFD end
  return utf8.char(code), at
end

local function decode_string(text, at)
  local parts, start = {}, at + 1
  while true do
    local stop = text:find('[%c"\\]', start)
    if not stop then fail(at, "a string has no end") end
    local c = text:sub(stop, stop)
    parts[#parts + 1] = text:sub(start, stop - 1)
    if c == '"' then return table.concat(parts), stop + 1 end
    if c == "\127" then
      parts[#parts + 1], start = c, stop + 1
    elseif c ~= "\\" then
      fail(stop, "a control character inside a string")
    else
      local e = text:sub(stop + 1, stop + 1)
      if e == "u" then
        parts[#parts + 1], start = escaped_char(text, stop + 2)
      elseif escapes[e] then
        parts[#parts + 1], start = escapes[e], stop + 2
      else
        fail(stop, "an unknown escape in a string")
      end
    end
  end
end

local function decode_number(text, at)
  local digits = text:match("^%-?%d+", at)
  if not digits or digits:match("^%-?0%d") then fail(at, "a value was expected") end
  local rest = text:match("^%.%d+", at + #digits) or ""
  local power = text:match("^[eE][+-]?%d+", at + #digits + #rest) or ""
  local whole = digits .. rest .. power
  local value = (rest == "" and power == "") and math.tointeger(tonumber(whole)) or tonumber(whole) + 0.0
  return value, at + #whole
end

local function decode_array(text, at, depth)
  local list, n = setmetatable({}, array_mt), 0
  at = skip(text, at + 1)
  if text:sub(at, at) == "]" then return list, at + 1 end
  while true do
    n = n + 1
    list[n], at = decode_value(text, at, depth)
    at = skip(text, at)
    local c = text:sub(at, at)
    if c == "]" then return list, at + 1 end
    if c ~= "," then fail(at, "',' or ']' was expected") end
    at = skip(text, at + 1)
  end
end

local function decode_object(text, at, depth)
  local order, object = {}, {}
  setmetatable(object, { __jsontype = "object", __jsonorder = order })
  at = skip(text, at + 1)
  if text:sub(at, at) == "}" then return object, at + 1 end
  while true do
    if text:sub(at, at) ~= '"' then fail(at, "a key was expected") end
    local key, value
    key, at = decode_string(text, at)
    at = skip(text, at)
    if text:sub(at, at) ~= ":" then fail(at, "':' was expected") end
    value, at = decode_value(text, skip(text, at + 1), depth)
    if object[key] == nil then order[#order + 1] = key end
    object[key] = value
    at = skip(text, at)
    local c = text:sub(at, at)
    if c == "}" then return object, at + 1 end
    if c ~= "," then fail(at, "',' or '}' was expected") end
    at = skip(text, at + 1)
  end
end

local words = { ["true"] = true, ["false"] = false, null = json.null }

function decode_value(text, at, depth)
  if depth > MAX_DEPTH then fail(at, "nested too deeply") end
  local c = text:sub(at, at)
  if c == '"' then return decode_string(text, at) end
  if c == "{" then return decode_object(text, at, depth + 1) end
  if c == "[" then return decode_array(text, at, depth + 1) end
  local word = text:match("^%l+", at)
  if word and words[word] ~= nil then return words[word], at + #word end
  return decode_number(text, at)
end

--- Reads one JSON value that fills the text.
-- @param text string
-- @return value, or nil and a sentence that says where the text is wrong
-- @usage local config = json.decode(file:read "a")
function json.decode(text)
  local ok, value, at = pcall(decode_value, text, skip(text, 1), 0)
  if ok then
    at = skip(text, at)
    if at == #text + 1 then return value end
    value = { at = at, what = "something follows the value" }
  end
  if type(value) ~= "table" then error(value, 0) end
  return nil, ("JSON, byte %d: %s"):format(value.at, value.what)
end

-- ---- encoding -----------------------------------------------------------------------------------

local out_escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n",
                      ["\r"] = "\\r", ["\t"] = "\\t" }

local function encode_string(s)
  return '"' .. s:gsub('[\0-\31"\\]', function(c)
    return out_escapes[c] or ("\\u%04x"):format(c:byte())
  end) .. '"'
end

local function encode_number(n)
  if math.type(n) == "integer" then return ("%d"):format(n) end
  if n ~= n or n == math.huge or n == -math.huge then error("JSON has no number for " .. tostring(n), 0) end
  local s = ("%.17g"):format(n)
  local short = ("%.15g"):format(n)
  if tonumber(short) == n then s = short end
  return s:find("[.eE]") and s or s .. ".0"
end

local function is_array(value)
  local mt = getmetatable(value)
  local kind = mt and mt.__jsontype
  if kind then return kind == "array" end
  local n = 0
  for k in pairs(value) do
    if math.type(k) ~= "integer" then return false end
    n = n + 1
  end
  return n == #value
end

--- The keys of an object in the order in which encode writes them: the order of the file it came from,
-- then words with a rank, then the alphabet.
function json.keys(object, rank)
  rank = rank or {}
  local mt, place, keys = getmetatable(object), {}, {}
  for i, key in ipairs(mt and mt.__jsonorder or {}) do place[key] = i end
  for key in pairs(object) do
    if type(key) ~= "string" then error("a JSON object has string keys, got " .. type(key), 0) end
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b)
    local pa, pb = place[a] or math.huge, place[b] or math.huge
    if pa ~= pb then return pa < pb end
    local ra, rb = rank[a] or math.huge, rank[b] or math.huge
    if ra ~= rb then return ra < rb end
    return a < b
  end)
  return keys
end

local encode_value

local function all_integers(list)
  for i = 1, #list do
    if math.type(list[i]) ~= "integer" then return false end
  end
  return true
end

local function encode_table(value, rank, depth)
  if depth > MAX_DEPTH then error("nested too deeply for JSON, or in a circle", 0) end
  local parts = {}
  if is_array(value) then
    if all_integers(value) then return "[" .. table.concat(value, ", ") .. "]" end            -- ids: long and many
    for i = 1, #value do parts[i] = encode_value(value[i], rank, depth + 1) end
    return "[" .. table.concat(parts, ", ") .. "]"
  end
  for i, key in ipairs(json.keys(value, rank)) do
    parts[i] = encode_string(key) .. ": " .. encode_value(value[key], rank, depth + 1)
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function encode_value(value, rank, depth)
  local kind = type(value)
  if value == nil or value == json.null then return "null" end
  if kind == "string" then return encode_string(value) end
  if kind == "number" then return encode_number(value) end
  if kind == "boolean" then return tostring(value) end
  if kind == "table" then return encode_table(value, rank, depth) end
  error("JSON has no " .. kind, 0)
end

--- Writes a value as JSON, with ", " and ": " between its parts and text as it is (no \u for letters).
-- Raises for what JSON cannot hold. An empty plain table is an array.
-- @param value any
-- @param rank table|nil  key -> number: keys of unordered objects with a rank come first, in its order
-- @return string
function json.encode(value, rank) return encode_value(value, rank, 0) end

--- Marks a table as a JSON array, so that an empty one is written as [].
function json.array(list) return setmetatable(list, array_mt) end

--- Marks a table as a JSON object, so that an empty one is written as {}.
function json.object(t, order) return setmetatable(t, { __jsontype = "object", __jsonorder = order }) end

--- A deep copy of a value, metatables kept.
function json.copy(value)
  if type(value) ~= "table" or value == json.null then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = json.copy(v) end
  return setmetatable(out, getmetatable(value))
end

return json

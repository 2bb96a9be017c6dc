--- options.lua - wrong calls: raised at the caller's line, with the nearest neighbour of a misspelt option.

local options = {}

local here = debug.getinfo(1, "S").source:gsub("options%.lua$", "")

-- Level of the first function outside this library, seen from the function that calls this; 0, no place at all, in a coroutine of
-- the library's own: nobody called from there.
local function callers_level()
  local level = 2
  while true do
    local info = debug.getinfo(level, "S")
    if not info then return 0 end
    if info.source:sub(1, #here) ~= here then return level - 1 end
    level = level + 1
  end
end

--- Raises an error that points at the line outside the library which made the call.
-- @param message string
function options.raise(message) error(message, callers_level()) end

-- ---- neighbours -----------------------------------------------------------------------------------

local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      diagonal, row[j] = row[j], math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
    end
  end
  return row[#b]
end

--- The name in the list that is spelt most like the given one, and how many letters differ.
function options.nearest(name, names)
  local best, best_distance
  table.sort(names)
  for _, other in ipairs(names) do
    local d = distance(name:lower(), other:lower())
    if not best or d < best_distance then best, best_distance = other, d end
  end
  return best, best_distance
end

-- ---- types ------------------------------------------------------------------------------------------

-- What a value is called in messages: "-1", "a string", ...
local function called(value)
  local kind = type(value)
  if kind == "number" or kind == "nil" then return tostring(value) end
  if kind == "string" and #value <= 24 then return ("%q"):format(value) end
  return "a " .. kind
end

-- A float without fraction counts, when an integer can hold it.
local function is_integer(v) return math.type(v) == "integer" or (math.type(v) == "float" and math.tointeger(v) ~= nil) end

local function number_at_least(least)
  return function(v) return type(v) == "number" and v == v and v >= least and v < math.huge,
                            ("a number of %g or more"):format(least) end
end

local function integer_at_least(least, most)
  local want = most and ("an integer from %d to %d"):format(least, most) or ("an integer of %d or more"):format(least)
  return function(v) return is_integer(v) and v >= least and (not most or v <= most), want end
end

-- Files and folders: what C reads ends at a zero.
local function is_path(v)
  return type(v) == "string" and v ~= "" and not v:find "\0", type(v) == "string" and "a path" or "a string"
end

local function list_of(kind, word)
  return function(v)
    if type(v) ~= "table" then return false, "a list of " .. word end
    for _, item in ipairs(v) do
      if type(item) ~= kind then return false, "a list of " .. word end
    end
    return true
  end
end

--- Checks to build option tables from: each is a function(value) -> ok, what was expected.
options.is = {
  any = function() return true end,
  string = function(v) return type(v) == "string", "a string" end,
  path = is_path,
  no = function(v) return v == false, "false" end,
  boolean = function(v) return type(v) == "boolean", "true or false" end,
  callable = function(v) return type(v) == "function", "a function" end,
  table = function(v) return type(v) == "table", "a table" end,
  integer = function(v) return is_integer(v), "an integer" end,
  number = function(v) return type(v) == "number" and v == v, "a number" end,
  strings = list_of("string", "strings"),
  at_least = number_at_least,
  count = integer_at_least,
}

--- A check that passes when one of several does.
function options.is.one_of(...)
  local checks = { ... }
  return function(v)
    local wanted = {}
    for i, check in ipairs(checks) do
      local ok, want = check(v)
      if ok then return true end
      wanted[i] = want
    end
    return false, table.concat(wanted, " or ")
  end
end

--- A check for one of some words.
function options.is.word(...)
  local words = { ... }
  return function(v)
    for _, word in ipairs(words) do
      if v == word then return true end
    end
    return false, '"' .. table.concat(words, '", "') .. '"'
  end
end

-- ---- tables of options ---------------------------------------------------------------------------------

--- Checks a table of options against a table name -> check, and raises at the caller's line.
-- @param what string        who is called, for the message: "model:generate"
-- @param opts table|nil
-- @param known table        name -> check
-- @return table             a shallow copy of opts, never nil
-- @usage opts = options.check("fathom.load", opts, { ctx = is.count(1) })
function options.check(what, opts, known)
  if opts == nil then return {} end
  if type(opts) ~= "table" then
    options.raise(("%s: options are given in a table, got %s"):format(what, called(opts)))
  end
  local copy = {}
  for name, value in pairs(opts) do
    local check = known[name]
    if not check then
      local names = {}
      for other in pairs(known) do names[#names + 1] = other end
      local near = options.nearest(tostring(name), names)
      options.raise(("%s: unknown option '%s'%s"):format(what, tostring(name),
                    near and (" (did you mean '%s'?)"):format(near) or ""))
    end
    local ok, want = check(value)
    if not ok then options.raise(("%s: option '%s' must be %s, got %s"):format(what, name, want, called(value))) end
    copy[name] = value
  end
  return copy
end

--- Checks one argument and raises at the caller's line.
function options.argument(what, name, value, check)
  local ok, want = check(value)
  if not ok then options.raise(("%s: %s must be %s, got %s"):format(what, name, want, called(value))) end
end

--- Checks what a method was called on: a dot in place of the colon passes something else.
function options.self(what, value, mt)
  if getmetatable(value) ~= mt then
    options.raise(("a method of a %s is called on something else: write it with a colon"):format(what))
  end
end

--- Checks a list of token ids below `size` and raises at the caller's line.
function options.ids(what, ids, size)
  for i, id in ipairs(ids) do
    local n = type(id) == "number" and math.tointeger(id)
    if not n then options.raise(("%s: ids[%d] must be a token id, got %s"):format(what, i, type(id))) end
    if n < 0 or n >= size then
      options.raise(("%s: ids[%d] is %d, outside the vocabulary of %d"):format(what, i, n, size))
    end
  end
end

--- Turns a float without fraction into an integer; leaves the rest alone.
function options.to_integer(v) return math.tointeger(v) or v end

return options

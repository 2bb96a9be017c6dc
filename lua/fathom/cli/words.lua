--- cli/words.lua - reading the command line.

local options = require "fathom.options"
local wrong = require("fathom.cli.terminal").wrong

local words = {}

local readers = {
  string = function(v) return v end,
  number = function(v) return tonumber(v), "a number" end,
  integer = function(v) return math.tointeger(tonumber(v)), "an integer" end,
  devices = function(v)
    if not v:find "," then return v end
    local names = {}
    for name in v:gmatch "[^,]+" do names[#names + 1] = name end
    return names
  end,
  forms = function(v)
    local forms = {}
    if v == "auto" then return v end
    for word in v:gmatch "[^,]+" do
      local form, n = word:match "^([dept]p)=(%d+)$"
      if not form then return nil, "auto, or words like tp=2,dp=2" end
      forms[form] = math.tointeger(tonumber(n))
    end
    return forms
  end,
  drafts = function(v)
    if v == "on" or v == "true" then return true end
    if v == "off" or v == "false" then return false end
    if v == "auto" then return v end
    return math.tointeger(tonumber(v)), "a number, on, off or auto"
  end,
}

local function unknown_option(name, known)
  local names = {}
  for other in pairs(known) do names[#names + 1] = other end
  local near = options.nearest(name, names)
  wrong(("unknown option --%s%s"):format(name, near and (" (did you mean --%s?)"):format(near) or ""))
end

local function read_value(name, option, value)
  local kind = option[2]
  if kind == "list" then return value end
  local v, want = readers[kind](value)
  if v == nil then wrong(("option --%s must be %s, got '%s'"):format(name, want, value)) end
  return v
end

--- Words of the command line -> positional arguments, options by name.
-- @param command table  of cli/init.lua
function words.read(list, command)
  local known, positional, given, i = {}, {}, {}, 1
  for _, option in ipairs(command.options) do known[option[1]] = option end
  while i <= #list do
    local word = list[i]
    local name, value = word:match "^%-%-([%w-]+)=?(.*)$"
    if word == "--" then
      table.move(list, i + 1, #list, #positional + 1, positional)
      break
    elseif not name then
      positional[#positional + 1] = word
    else
      local option = known[name] or unknown_option(name, known)
      if option[2] == "flag" then
        if word:find("=", 1, true) then wrong(("option --%s takes no value"):format(name)) end
        given[name] = true
      else
        if not word:find("=", 1, true) then
          i = i + 1
          value = list[i] or wrong(("option --%s wants a value"):format(name))
        end
        value = read_value(name, option, value)
        if option[2] == "list" then
          given[name] = given[name] or {}
          table.insert(given[name], value)
        else
          given[name] = value
        end
      end
    end
    i = i + 1
  end
  return positional, given
end

--- Those of a list, by the library's names.
function words.pick(given, list)
  local out = {}
  for _, option in ipairs(list) do
    if option[2] ~= "flag" then out[option[1]:gsub("%-", "_")] = given[option[1]] end
  end
  return out
end

return words

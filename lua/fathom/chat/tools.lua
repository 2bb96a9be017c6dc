--- chat/tools.lua - tools and tool calls in the forms that templates want.
-- Tools come keyed by name ({ name = { doc =, args =, run = } }) or as the hub's list
-- ({ { type = "function", function = { name =, description =, parameters = } } }).

local json = require "fathom.json"
local options = require "fathom.options"

local tools = {}

-- The order in which the hub's files write these words; other keys are sorted.
local rank = {}
for i, word in ipairs { "type", "function", "name", "description", "parameters", "arguments", "properties", "items",
                        "required", "enum" } do
  rank[word] = i
end

-- One schema word ("string", {...}) as JSON Schema.
local function schema_of(arg)
  if type(arg) == "string" then return { type = arg } end
  return arg
end

local function parameters_of(args)
  if args == nil then args = {} end
  if args.type == "object" and type(args.properties) == "table" then return args end
  local properties, required = {}, {}
  for name, arg in pairs(args) do
    properties[name] = schema_of(arg)
    required[#required + 1] = name
  end
  table.sort(required)
  return { type = "object", properties = json.object(properties, required), required = json.array(required) }
end

--- Whether the tools are keyed by name (true) or the hub's list (false).
function tools.named(list) return #list == 0 and next(list) ~= nil end

--- Checks tools in either form; raises at the caller's line.
function tools.check(what, given)
  for key, tool in pairs(given) do
    local f = type(tool) == "table" and (tool["function"] or tool)
    local named = type(key) == "string"
    if type(f) ~= "table" or not named and type(f.name) ~= "string" then
      options.raise(("%s: tools[%s] must be a table%s"):format(what, tostring(key), named and "" or " with a name"))
    end
    local args = f.args or f.parameters
    if args ~= nil and type(args) ~= "table" then
      options.raise(("%s: the arguments of tools[%s] must be a table"):format(what, tostring(key)))
    end
  end
end

local function names(map)
  local out = {}
  for name in pairs(map) do out[#out + 1] = name end
  table.sort(out)
  return out
end

--- Tools as a list of { name =, description =, args = }, keyed ones in sorted order.
function tools.list(given)
  local out = {}
  if tools.named(given) then
    for i, name in ipairs(names(given)) do
      local tool = given[name]
      out[i] = { name = name, description = tool.doc or tool.description or "", args = tool.args or {} }
    end
    return out
  end
  for i, tool in ipairs(given) do
    local f = tool["function"] or tool
    out[i] = { name = f.name, description = f.description or "", args = f.parameters or {}, hub = tool }
  end
  return out
end

--- The JSON line of a tool in the hub's form, as templates with tojson write it.
function tools.hub_json(tool)
  local hub = tool.hub or { type = "function", ["function"] = { name = tool.name, description = tool.description,
                                                               parameters = parameters_of(tool.args) } }
  return json.encode(hub, rank)
end

-- The word for one argument; a choice is called by what it is chosen from.
local function word_of(arg)
  if type(arg) ~= "table" then return tostring(arg) end
  if type(arg.type) == "string" then return arg.type end
  local first = type(arg.enum) == "table" and arg.enum[1]
  return type(first) == "string" and "string" or math.type(first) == "integer" and "integer" or "object"
end

-- { city = "string" } from either form of arguments.
local function short_args(args)
  local short, order = {}, {}
  local properties = args.type == "object" and type(args.properties) == "table" and args.properties or args
  for _, name in ipairs(json.keys(properties)) do
    short[name] = word_of(properties[name])
    order[#order + 1] = name
  end
  return json.encode(json.object(short, order))
end

--- The section that tells a model of its tools in the system text, where its template has no place for them.
function tools.section(given)
  local parts = { "## Tools\nYou have access to the following tools:\n" }
  for _, tool in ipairs(tools.list(given)) do
    parts[#parts + 1] = ("\n### %s\nDescription: %s\nParameters: %s\n"):format(tool.name, tool.description,
                                                                             short_args(tool.args))
  end
  return table.concat(parts)
end

--- Name, type and arguments (as JSON text) of a call in a message.
-- A string is taken as it is; a table is written in its own order, else sorted.
function tools.call(call)
  local f = call["function"] or call
  local arguments = f.arguments
  if f.raw then arguments = f.raw end
  if arguments == nil then arguments = json.object {} end
  if type(arguments) ~= "string" then
    if type(arguments) == "table" and next(arguments) == nil then arguments = json.object {} end
    arguments = json.encode(arguments)
  end
  return f.name, call.type or "function", arguments
end

return tools

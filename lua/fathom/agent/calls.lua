--- agent/calls.lua - tools as an agent has them: what the model is told, what it called, what that came to.
-- Whatever goes wrong becomes the tool's output, "error: ...", so that the model can try again.

local fault = require "fathom.fault"
local json = require "fathom.json"
local options = require "fathom.options"
local schema = require "fathom.schema"
local span = require "fathom.span"
local validate = require "fathom.validate"

local calls = {}
local is = options.is

local tool_known = { name = is.string, doc = is.string, args = is.table, returns = schema.check, run = is.callable }

-- ---- what the model is told ---------------------------------------------------------------------------------

-- The schema of a tool's arguments: a table of fields, which keep the order of the JSON that they came from, or a JSON Schema.
local function form_of(args)
  args = args or {}
  if args.type == "object" or type(args.properties) == "table" then return schema.new(args) end
  local form, mt = schema.fields(args), getmetatable(args)
  if mt and mt.__jsonorder then form.properties = json.object(form.properties, mt.__jsonorder) end
  return form
end

-- The schema as a model is told it: that nothing else may come goes without saying.
local function told_form(form)
  local out = {}
  for k, v in pairs(form) do out[k] = v end
  if out.additionalProperties == false then out.additionalProperties = nil end
  return setmetatable(out, getmetatable(form))
end

local function checked(what, name, tool)
  local where = ("%s: tools.%s"):format(what, tostring(name))
  local t = options.check(where, tool, tool_known)
  if not t.run then options.raise(where .. ": option 'run' is missing") end
  local ok, form = pcall(form_of, t.args)
  if not ok then options.raise(("%s: args: %s"):format(where, (tostring(form):gsub("^[^\n]-%.lua:%d+: ", "")))) end
  return { name = name, doc = t.doc or "", form = form, returns = t.returns and schema.new(t.returns), run = t.run }
end

--- Checks the tools of an agent; raises at the caller's line.
-- @param what string
-- @param given table  name -> { doc =, args =, returns =, run = }, told to the model in sorted order; or a list of such
--   tables with name =, told in the list's order
-- @return { by_name =, names =, told = what a session's option tools takes }
function calls.tools(what, given)
  local set = { by_name = {}, names = {}, told = {} }
  local listed = #given > 0
  for key, tool in pairs(given) do
    if type(tool) ~= "table" then options.raise(("%s: tools.%s must be a table, got a %s"):format(what, key, type(tool))) end
    local name = listed and tool.name or key
    if type(name) ~= "string" then options.raise(("%s: tools[%s] has no name"):format(what, tostring(key))) end
    if set.by_name[name] then options.raise(("%s: two tools are called '%s'"):format(what, name)) end
    local t = checked(what, name, tool)
    set.by_name[name] = t
    set.names[#set.names + 1] = name
    if listed then
      set.told[key] = { type = "function", ["function"] = { name = name, description = t.doc, parameters = told_form(t.form) } }
    else
      set.told[name] = { doc = t.doc, args = told_form(t.form) }
    end
  end
  return set
end

-- ---- what it called -------------------------------------------------------------------------------------------

-- Integers that came as 3.0; defaults stay the tool's own business.
local function whole_numbers(arguments, form)
  for name, part in pairs(form.properties or {}) do
    if type(part) == "table" and part.type == "integer" and math.type(arguments[name]) == "float" then
      arguments[name] = math.tointeger(arguments[name])
    end
  end
  return arguments
end

-- The first argument, by name, that the tool does not have.
local function unknown_argument(tool, arguments)
  local names, given = {}, {}
  if tool.form.additionalProperties ~= false then return nil end
  for name in pairs(tool.form.properties or {}) do names[#names + 1] = name end
  for name in pairs(arguments) do given[#given + 1] = tostring(name) end
  table.sort(given)
  for _, name in ipairs(given) do
    if tool.form.properties[name] == nil then
      local near = options.nearest(name, names)
      return ("there is no argument '%s'%s"):format(name, near and (" (did you mean '%s'?)"):format(near) or "")
    end
  end
end

--- Checks a call against its tool.
-- @param set table   what calls.tools gave
-- @param call table  name, arguments (nil where they could not be read: then error says why)
-- @return tool, arguments; or nil and a sentence for the model
function calls.check(set, call)
  local tool = set.by_name[call.name]
  if not tool then
    local near = options.nearest(call.name, table.move(set.names, 1, #set.names, 1, {}))
    return nil, ("unknown tool '%s'%s"):format(call.name, near and (" (did you mean '%s'?)"):format(near) or ": there are no tools")
  end
  if type(call.arguments) ~= "table" then
    return nil, ("the arguments of %s could not be read: %s"):format(call.name, call.error or "they are no JSON object")
  end
  local why = unknown_argument(tool, call.arguments)
  local ok = not why
  if ok then ok, why = validate.check(call.arguments, tool.form, "arguments") end
  if not ok then return nil, ("%s: %s"):format(call.name, why) end
  return tool, whole_numbers(json.copy(call.arguments), tool.form)
end

-- ---- what it came to --------------------------------------------------------------------------------------------

-- At most so many bytes, cut between characters.
local function cut(text, most)
  if #text <= most then return text end
  local at = most
  while at > 0 and (text:byte(at + 1) or 0) & 0xC0 == 0x80 do at = at - 1 end
  return ("%s ... (%d bytes in all)"):format(text:sub(1, at), #text)
end

local function text_of(value)
  if type(value) == "string" then return value end
  if value == nil then return "done" end
  local ok, text = pcall(json.encode, value)
  if ok then return text end
  return nil, "the tool gave something that is no data: " .. tostring(text)
end

-- A sentence of an error, whatever it is: without the place in the program, which is no business of a model.
local function sentence(err)
  if type(err) == "string" then return (err:gsub("^[^\n]-%.lua:%d+: ", "")) end
  if type(err) == "table" and type(err.message) == "string" then return err.message end
  -- the address of a table would differ from run to run, and a replay with it
  local mt = getmetatable(err)
  if type(err) == "table" and not (mt and mt.__tostring) then return "it raised a table" end
  return tostring(err)
end

--- What a model reads for an error.
function calls.error_text(why) return "error: " .. (sentence(why):gsub("^error: ", "")) end

local function run_checked(tool, arguments, about, most)
  local ok, value, why = pcall(tool.run, arguments, about)
  if not ok then return calls.error_text(value), value end
  if value == nil and why ~= nil then return calls.error_text(why) end
  if tool.returns then
    local fits, how = validate.check(value, tool.returns, "its value")
    if not fits then return calls.error_text(("the tool %s failed: %s"):format(tool.name, how)) end
  end
  local text, no = text_of(value)
  return text and cut(text, most) or calls.error_text(no)
end

--- Runs a tool. It may yield; whatever it raises becomes its output.
-- @param tool table       what calls.check gave
-- @param arguments table
-- @param about table      second argument of run
-- @param most integer     bytes of output
-- @return text, and whether it is an error
function calls.run(tool, arguments, about, most)
  local s <close> = span.open("tool", { name = tool.name, args = arguments })
  local output = run_checked(tool, arguments, about, most)
  local failed = output:sub(1, 7) == "error: "
  s:close(failed and { result = output, err = output } or { result = output })
  return output, failed
end

--- An approval hook's answer.
-- @return true and arguments, or false and a reason
function calls.approval(tool, answer, more, arguments)
  if answer == true then return true, arguments end
  if type(answer) == "table" then
    local ok, why = validate.check(answer, tool.form, "arguments")
    if not ok then error(fault.new("format", ("approve gave other arguments for %s, and they are wrong: %s"):format(tool.name, why)), 0) end
    return true, answer
  end
  return false, type(more) == "string" and more or nil
end

return calls

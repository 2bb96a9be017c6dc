--- bfcl.lua - function calling after the Berkeley leaderboard: calls are compared as trees, each argument with the values that
-- are accepted for it.

local folder = require "fathom.eval.data.folder"
local json = require "fathom.json"
local options = require "fathom.options"

local bfcl = {}

local categories = { "simple", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple" }
local files = { simple = "simple_python" }

-- ---- tools ----------------------------------------------------------------------------------------------------------

local types = { dict = "object", float = "number", tuple = "array", list = "array", int = "integer", str = "string", bool = "boolean" }

-- A schema with JSON Schema's words; "any" says nothing.
local function schema_of(s)
  if type(s) ~= "table" then return s end
  local out = {}
  for k, v in pairs(s) do out[k] = v end
  if type(s.type) == "string" then out.type = types[s.type] or s.type ~= "any" and s.type or nil end
  if type(s.properties) == "table" then
    local mt = getmetatable(s.properties)
    out.properties = json.object({}, mt and mt.__jsonorder)
    for name, p in pairs(s.properties) do out.properties[name] = schema_of(p) end
  end
  if s.items then out.items = schema_of(s.items) end
  out.optional = nil
  return out
end

local function tools_of(row)
  local out = {}
  for i, f in ipairs(row["function"]) do
    out[i] = { type = "function", ["function"] = { name = f.name, description = f.description, parameters = schema_of(f.parameters) } }
  end
  return out
end

-- ---- comparing ------------------------------------------------------------------------------------------------------

-- Texts are the same apart from case, spaces and marks, as the leaderboard has it.
local function plain(text) return (text:lower():gsub("[ ,%./%-_%*%^]", ""):gsub("'", '"')) end

local same

local function is_list(v)
  local mt = getmetatable(v)
  return mt and mt.__jsontype == "array" or not (mt and mt.__jsontype) and #v > 0
end

local function same_list(value, want)
  if #value ~= #want then return false end
  for i = 1, #want do
    if not same(value[i], want[i]) then return false end
  end
  return true
end

-- Whether a value is among those accepted; "" in the list: the argument may be left out.
local function accepted(value, list)
  if type(list) ~= "table" or not is_list(list) then return same(value, list) end
  for _, want in ipairs(list) do
    if same(value, want) then return true end
  end
  return false
end

local function optional(list)
  if type(list) ~= "table" then return false end
  for _, want in ipairs(list) do
    if want == "" then return true end
  end
  return false
end

-- An object: in the answers every field holds a list of accepted values.
local function same_object(value, want)
  for name, list in pairs(want) do
    if value[name] == nil then
      if not optional(list) then return false end
    elseif not accepted(value[name], list) then
      return false
    end
  end
  for name in pairs(value) do
    if want[name] == nil then return false end
  end
  return true
end

function same(value, want)
  if type(value) == "string" and type(want) == "string" then return plain(value) == plain(want) end
  if type(value) ~= "table" or type(want) ~= "table" or value == json.null or want == json.null then return value == want end
  if is_list(value) ~= is_list(want) and (next(value) ~= nil or next(want) ~= nil) then return false end
  if is_list(want) then return same_list(value, want) end
  return same_object(value, want)
end

-- What is wrong with a call beside what is wanted, { [name] = { argument = { values } } }; nil: nothing.
local function fault_of(call, want)
  local name, arguments = next(want)
  if call.name ~= name then return ("%s was called, not %s"):format(tostring(call.name), name) end
  if type(call.arguments) ~= "table" then return "the arguments of " .. name .. " cannot be read" end
  for argument, value in pairs(call.arguments) do
    local list = arguments[argument]
    if list == nil then return ("%s has no argument %s"):format(name, tostring(argument)) end
    if not accepted(value, list) then
      return ("%s: %s is %s, accepted is %s"):format(name, argument, json.encode(value), json.encode(list))
    end
  end
  for _, argument in ipairs(json.keys(arguments)) do
    if call.arguments[argument] == nil and not optional(arguments[argument]) then
      return ("%s: argument %s is missing"):format(name, argument)
    end
  end
end

--- Compares calls with those that are wanted, in any order, each once.
-- @param calls list   { name =, arguments = }
-- @param wanted list  { [name] = { argument = { accepted values } } }; empty: nothing is to be called
-- @return 1 or 0, and what is wrong
function bfcl.match(calls, wanted)
  if #wanted == 0 then
    if #calls == 0 then return 1 end
    return 0, ("%s was called, where nothing fits"):format(tostring(calls[1].name))
  end
  if #calls ~= #wanted then return 0, ("%d calls, wanted are %d"):format(#calls, #wanted) end
  local taken = {}
  for _, want in ipairs(wanted) do
    local found, why
    for i, call in ipairs(calls) do
      if not taken[i] then
        local wrong = fault_of(call, want)
        if not wrong then
          found = i
          break
        end
        why = why or wrong
      end
    end
    if not found then return 0, why end
    taken[found] = true
  end
  return 1
end

-- ---- the set --------------------------------------------------------------------------------------------------------

local function add(out, rows, category)
  for _, row in ipairs(rows) do
    out[#out + 1] = { id = row.id, messages = row.question[1], tools = tools_of(row), category = category,
                      reference = row.ground_truth or json.array {} }
  end
end

local function run(case, info)
  local o = { tools = case.tools }
  for k, v in pairs(info.options) do o[k] = v end
  local result, err = info.backend:generate(case.messages, o)
  if not result then return nil, err end
  -- what is voted on is what would be called
  local calls = {}
  for i, call in ipairs(result.tool_calls) do calls[i] = ("%s(%s)"):format(call.name, call.raw or json.encode(call.arguments)) end
  table.sort(calls)
  local answer = #calls > 0 and table.concat(calls, "\n") or result.answer
  return { text = result.text, answer = answer, tool_calls = result.tool_calls, finish = result.finish, usage = result.usage }
end

--- Function calling.
-- @param dir string
-- @param opts table|nil  categories: a list of "simple", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple"
-- @return options for fathom.eval without backend; or nil, err
function bfcl.bfcl(dir, opts)
  local o = options.check("data.bfcl", opts, { categories = options.is.strings })
  local cases = {}
  for _, category in ipairs(o.categories or categories) do
    local rows, err = folder.rows("data.bfcl", dir, "agent-bfcl", (files[category] or category) .. ".jsonl")
    if not rows then return nil, err end
    add(cases, rows, category)
  end
  return { name = "Berkeley function calling", cases = cases, run = run, by = { "category" },
           key = function(s) return s.tool_calls and #s.tool_calls > 0 and s.answer or "(no call)" end,
           scorers = { calls = function(s) return bfcl.match(s.tool_calls or {}, s.reference) end } }
end

return bfcl

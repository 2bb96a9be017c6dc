--- serve/messages.lua - messages, tools and forms of a chat request, from OpenAI's shape to the library's.

local json = require "fathom.json"
local fields = require "fathom.serve.fields"
local wire = require "fathom.serve.wire"

local messages = {}
local check = fields.check

local function absent(v) return v == nil or v == json.null end

-- ---- messages -----------------------------------------------------------------------------------------------------

-- Text, or a list of parts that are text.
local function content_of(v, name)
  if type(v) == "string" then return v end
  if absent(v) then return nil end
  local parts = {}
  for i, part in ipairs(check.list(v, name)) do
    local at = ("%s[%d]"):format(name, i - 1)
    local kind = check.object(part, at).type
    if kind == "refusal" then
      parts[i] = check.string(part.refusal, at .. ".refusal")
    elseif kind == "text" then
      parts[i] = check.string(part.text, at .. ".text")
    else
      wire.refuse(400, ("%s.type must be \"text\": this model reads nothing else"):format(at), at .. ".type", "unsupported_content")
    end
  end
  return table.concat(parts)
end

local function call_of(v, name)
  local f = check.object(check.object(v, name)["function"], name .. ".function")
  local arguments = f.arguments
  if absent(arguments) then arguments = "{}" end
  return { id = v.id, type = "function", ["function"] = { name = check.string(f.name, name .. ".function.name"),
           arguments = check.string(arguments, name .. ".function.arguments") } }
end

local function calls_of(v, name)
  if absent(v) then return nil end
  local out = {}
  for i, c in ipairs(check.list(v, name)) do out[i] = call_of(c, ("%s[%d]"):format(name, i - 1)) end
  return out[1] and out or nil
end

local roles = { system = "system", developer = "system", user = "user", assistant = "assistant", tool = "tool" }
local known = { role = true, content = true, name = true, tool_calls = true, tool_call_id = true, reasoning_content = true,
                refusal = true, audio = true, annotations = true, function_call = true, reasoning = true }

local function message_of(v, name)
  for key in pairs(check.object(v, name)) do
    if not known[key] then wire.refuse(400, ("unknown field %s.%s"):format(name, key), name .. "." .. key, "unknown_parameter") end
  end
  local role = check.word(roles)(v.role, name .. ".role")
  for _, key in ipairs { "function_call", "audio" } do
    local at = name .. "." .. key
    if not absent(v[key]) then wire.refuse(400, at .. " is not supported", at, "unsupported_parameter") end
  end
  local m = { role = role, content = content_of(v.content, name .. ".content") }
  if role == "assistant" then
    m.tool_calls = calls_of(v.tool_calls, name .. ".tool_calls")
    local thoughts = absent(v.reasoning_content) and v.reasoning or v.reasoning_content
    if not absent(thoughts) then m.reasoning_content = check.string(thoughts, name .. ".reasoning_content") end
    if not m.content and not absent(v.refusal) then m.content = check.string(v.refusal, name .. ".refusal") end
  end
  if not m.content and not m.tool_calls then fields.wrong(name .. ".content", "a string or a list of parts", v.content) end
  return m
end

--- The list of messages.
function messages.read(v, name)
  local out = {}
  for i, m in ipairs(check.list(v, name)) do out[i] = message_of(m, ("%s[%d]"):format(name, i - 1)) end
  if #out == 0 then wire.refuse(400, name .. " must not be empty", name, "invalid_value") end
  return out
end

-- ---- tools ------------------------------------------------------------------------------------------------------

local function tool_of(v, name)
  check.word { ["function"] = true }(check.object(v, name).type, name .. ".type")
  local f = fields.read(check.object(v["function"], name .. ".function"),
                        { name = check.string, description = check.string, parameters = check.object, strict = check.boolean },
                        name .. ".function")
  if not f.name or not f.name:match "^[%w_.-]+$" or #f.name > 64 then
    fields.wrong(name .. ".function.name", "a name of letters, digits, _ and -", v["function"].name)
  end
  return { type = "function", ["function"] = { name = f.name, description = f.description or "", parameters = f.parameters } }
end

--- The list of tools, in the hub's form.
function messages.tools(v, name)
  local out, seen = {}, {}
  for i, tool in ipairs(check.list(v, name)) do
    local at = ("%s[%d]"):format(name, i - 1)
    out[i] = tool_of(tool, at)
    local said = out[i]["function"].name
    if seen[said] then wire.refuse(400, ("%s.function.name: there are two tools '%s'"):format(at, said), at .. ".function.name") end
    seen[said] = true
  end
  return out[1] and out or nil
end

--- tool_choice: "none", "auto", "required", or { name = } of the one tool.
function messages.tool_choice(v, name)
  if type(v) == "string" then
    check.word { none = true, auto = true, required = true }(v, name)
    return v
  end
  check.word { ["function"] = true }(check.object(v, name).type, name .. ".type")
  return { name = check.string(check.object(v["function"], name .. ".function").name, name .. ".function.name") }
end

-- ---- forms of the answer ------------------------------------------------------------------------------------------

--- response_format -> the text of a JSON Schema, or nil.
function messages.response_format(v, name)
  local kind = check.object(v, name).type
  check.word { text = true, json_object = true, json_schema = true }(kind, name .. ".type")
  if kind == "text" then return nil end
  if kind == "json_object" then return '{"type": "object"}' end
  local given = check.object(v.json_schema, name .. ".json_schema")
  return json.encode(check.object(given.schema, name .. ".json_schema.schema"))
end

return messages

--- request.lua - a prompt and the options of a generation as the JSON body that an OpenAI-compatible server takes.
--
--   as everywhere   max_tokens temperature top_p presence_penalty frequency_penalty seed n stop logit_bias logprobs tools schema
--   vLLM, SGLang    top_k min_p ignore_eos, repeat_penalty as repetition_penalty, stop_ids as stop_token_ids, think as
--                   chat_template_kwargs (thinking, enable_thinking)
--   no effect       mtp priority (they never change what is sampled), overflow = "error" (a server refuses by itself)
--   refused         grammar template keep overflow: no field means the same on two servers
-- What nobody chose is the server's choice, but for the length of a text that goes on (no chat): servers stop it after 16 tokens.
--
-- fields = { grammar = "guided_grammar", max_tokens = "max_completion_tokens" } names the fields of one server: an option that is
-- refused otherwise is sent then, and others go by another name. extra = { ... } sends fields besides, as they are.

local fault = require "fathom.fault"
local json = require "fathom.json"
local sampling = require "fathom.sampling"
local schema = require "fathom.schema"
local tools = require "fathom.chat.tools"

local request = {}

local plain = { "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "top_k", "min_p",
                "ignore_eos" }
local renamed = { repeat_penalty = "repetition_penalty", stop_ids = "stop_token_ids" }
local refused = { "grammar", "template", "keep" }

--- Checks fields = { [option] = name at the server }; for options.check.
function request.fields(v)
  local ok = type(v) == "table"
  for name, field in pairs(ok and v or {}) do
    ok = ok and sampling.known[name] and name ~= "overflow" and type(field) == "string"
  end
  return ok, "a table from options to names of the server's fields"
end

--- Why these options cannot be sent: an err; nil where they can.
function request.obstacle(o, fields)
  for _, name in ipairs(refused) do
    if o[name] ~= nil and not (fields and fields[name]) then
      return fault.new("unsupported", ("a remote backend takes no option '%s'"):format(name),
                       ("where the server has a field for it: fathom.remote{ fields = { %s = \"its name\" } }"):format(name))
    end
  end
  if o.overflow ~= nil and o.overflow ~= "error" then
    return fault.new("unsupported", "a remote backend takes no option 'overflow': it does not know the server's window")
  end
end

-- ---- messages -----------------------------------------------------------------------------------------------------

-- Thoughts go back to the server only in the loop of calls that they belong to: elsewhere servers refuse or drop them.
local function last_user(messages)
  for i = #messages, 1, -1 do
    if messages[i].role == "user" then return i end
  end
  return 0
end

local function calls_of(m, i, open)
  local out = json.array {}
  for j, call in ipairs(m.tool_calls) do
    local name, kind, arguments = tools.call(call)
    local id = call.id or ("call_%d_%d"):format(i, j)
    out[j] = { id = id, type = kind, ["function"] = { name = name, arguments = arguments } }
    open[#open + 1] = id
  end
  return out
end

--- Messages as servers take them: each call has an id, and each result of a tool names its call, in order.
function request.messages(messages)
  local out, open, at = json.array {}, {}, 1
  local from = last_user(messages)
  for i, m in ipairs(messages) do
    local wire = { role = m.role, content = m.content or "" }
    if m.role == "assistant" then
      if i > from and m.reasoning_content then wire.reasoning_content = m.reasoning_content end
      if m.tool_calls and m.tool_calls[1] then
        open, at = {}, 1
        wire.tool_calls = calls_of(m, i, open)
      end
    elseif m.role == "tool" then
      wire.tool_call_id = m.tool_call_id or open[at] or "call_0_0"
      at = at + 1
    end
    out[i] = wire
  end
  return out
end

-- ---- options ------------------------------------------------------------------------------------------------------

local function tools_of(given)
  local out = json.array {}
  for i, tool in ipairs(tools.list(given)) do out[i] = json.decode(tools.hub_json(tool)) end
  return out
end

local function format_of(form)
  local value = json.decode(schema.text(form))
  if next(value) == nil then return { type = "json_object" } end
  return { type = "json_schema", json_schema = { name = "reply", strict = true, schema = value } }
end

-- Ids are keys, and minus infinity is as far down as the field goes.
local function biases_of(map)
  local out = json.object {}
  for id, bias in pairs(map) do out[tostring(id)] = math.max(-100, math.min(100, bias)) end
  return out
end

local function put_options(body, o, fields)
  for _, name in ipairs(plain) do body[name] = o[name] end
  body.repetition_penalty = o.repeat_penalty
  if o.stop then body.stop = type(o.stop) == "string" and json.array { o.stop } or json.array(json.copy(o.stop)) end
  if o.stop_ids then body.stop_token_ids = json.array(json.copy(o.stop_ids)) end
  if o.logit_bias then body.logit_bias = biases_of(o.logit_bias) end
  for name, field in pairs(fields or {}) do
    local usual = renamed[name] or name
    local value = body[usual]
    if value == nil then value = o[name] end
    body[usual] = nil
    body[field] = value
  end
end

local function chat_body(body, prompt, o)
  body.messages = request.messages(prompt.messages)
  if o.tools and next(o.tools) then body.tools = tools_of(o.tools) end
  if o.schema then body.response_format = format_of(o.schema) end
  if o.think ~= nil then body.chat_template_kwargs = { thinking = o.think, enable_thinking = o.think } end
  if o.logprobs then
    body.logprobs = true
    if type(o.logprobs) == "number" and o.logprobs > 0 then body.top_logprobs = math.tointeger(o.logprobs) end
  end
end

local function text_body(body, prompt, o)
  body.prompt = prompt.text or json.array(json.copy(prompt.ids))
  if o.logprobs then body.logprobs = type(o.logprobs) == "number" and math.tointeger(o.logprobs) or 0 end
end

--- The body of a request.
-- @param prompt table  { messages = } or { text = or ids = }
-- @param o table       checked options with a seed
-- @param how table     model, stream, n, fields, extra
-- @return path, body (JSON text)
function request.body(prompt, o, how)
  local body = { model = how.model, stream = how.stream, n = how.n > 1 and how.n or nil }
  if how.stream then body.stream_options = { include_usage = true } end
  if not prompt.messages and not o.max_tokens then o = sampling.merge({ max_tokens = sampling.defaults().max_tokens }, o) end
  put_options(body, o, how.fields)
  local form = prompt.messages and chat_body or text_body
  form(body, prompt, o)
  for name, value in pairs(how.extra or {}) do body[name] = value end
  return prompt.messages and "/chat/completions" or "/completions", json.encode(body)
end

return request

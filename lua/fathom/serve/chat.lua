--- serve/chat.lua - POST /v1/chat/completions.

local json = require "fathom.json"
local fields = require "fathom.serve.fields"
local forced = require "fathom.serve.forced"
local generate = require "fathom.serve.generate"
local logprobs = require "fathom.serve.logprobs"
local messages = require "fathom.serve.messages"
local sampling = require "fathom.sampling"
local wire = require "fathom.serve.wire"

local chat = {}
local check = fields.check

local efforts = { none = "off", minimal = "on", low = "on", medium = "on", high = "on", xhigh = "on", max = "on" }

local known = sampling.merge({
  messages = messages.read, tools = messages.tools, tool_choice = messages.tool_choice, parallel_tool_calls = check.ignored,
  response_format = messages.response_format, logprobs = check.boolean, top_logprobs = check.integer(0, 20),
  think = check.boolean, reasoning_effort = check.word(efforts), template = check.string, verbosity = check.ignored,
  chat_template_kwargs = function(v, name)
    return fields.read(check.object(v, name), { enable_thinking = check.boolean, thinking = check.boolean }, name)
  end,
  modalities = function(v, name)
    for i, word in ipairs(check.list(v, name)) do check.word { text = true }(word, ("%s[%d]"):format(name, i - 1)) end
  end,
  functions = check.refused "use tools", function_call = check.refused "use tool_choice",
  audio = check.refused "this model has no voice", prediction = check.refused "drafts come from the model's own MTP layer",
  web_search_options = check.refused "nothing is searched",
}, fields.sampling)

-- ---- the request --------------------------------------------------------------------------------------------------

local function wants_thoughts(f)
  if f.think ~= nil then return f.think end
  local k = f.chat_template_kwargs or {}
  if k.enable_thinking ~= nil then return k.enable_thinking end
  if k.thinking ~= nil then return k.thinking end
  if f.reasoning_effort then return f.reasoning_effort == "on" end
end

local function read(server, body)
  local f = fields.read(body, known)
  fields.check_model(server, f.model)
  if not f.messages then wire.refuse(400, "messages are missing", "messages", "missing_required_parameter") end
  local o = fields.options(server, f)
  o.schema, o.think, o.template = f.response_format, wants_thoughts(f), f.template
  if f.tool_choice ~= "none" then o.tools = f.tools end
  if f.top_logprobs and not f.logprobs then wire.refuse(400, "top_logprobs goes with logprobs", "top_logprobs") end
  if f.logprobs then o.logprobs = f.top_logprobs or 0 end
  return f, o
end

-- ---- the answer -----------------------------------------------------------------------------------------------------

-- Marks of thoughts come as pieces of their own.
local function is_mark(text, info) return info.channel == "think" and text ~= "" and text:gsub("</?think>", "") == "" end

-- Sorts what a piece brings into its choice; returns the deltas it makes.
local function take(server, spec, text, info)
  local channel = info.channel == "think" and "reasoning_content" or info.channel == "answer" and not spec.name and "content" or nil
  if info.channel == "think" then spec.n_think = (spec.n_think or 0) + #info.ids end
  if not channel then return nil end
  spec.trim = spec.trim or { content = wire.trimmer(), reasoning_content = wire.trimmer() }
  if is_mark(text, info) then return nil end
  if info.logprobs then
    spec.told = spec.told or { content = json.array {}, reasoning_content = json.array {} }
    for _, e in ipairs(logprobs.chat(server, info.logprobs)) do table.insert(spec.told[channel], e) end
  end
  local said = spec.trim[channel](wire.clean(text))
  return said ~= "" and { [channel] = said } or nil
end

local function call_value(call, index)
  return { index = index, id = wire.id "call_", type = "function",
           ["function"] = { name = wire.clean(call.name), arguments = wire.clean(call.raw) } }
end

local function told(spec)
  local t = spec.told
  spec.told = nil
  if not t then return json.null end
  return { content = t.content, reasoning_content = t.reasoning_content, refusal = json.null }
end

local function choice_value(spec)
  local r = spec.result
  local m = { role = "assistant", content = wire.clean(r.answer), refusal = json.null,
              reasoning_content = r.think ~= "" and wire.clean(r.think) or nil }
  for i, call in ipairs(r.tool_calls) do
    m.tool_calls = m.tool_calls or {}
    m.tool_calls[i] = call_value(call)
  end
  if m.tool_calls and m.content == "" then m.content = json.null end
  return { index = spec.index, message = m, logprobs = told(spec), finish_reason = generate.finish(r) }
end

local order = { "id", "object", "created", "model", "system_fingerprint", "choices", "usage" }

local function frame(server, kind)
  local id, created = wire.id "chatcmpl-", os.time()
  return function(choices, usage)
    return json.object({ id = id, object = kind, created = created, model = server.name, system_fingerprint = server.fingerprint,
                         choices = json.array(choices), usage = usage }, order)
  end
end

local function count_thoughts(specs)
  local n = 0
  for _, spec in ipairs(specs) do n = n + (spec.n_think or 0) end
  return n
end

local function whole(call, specs)
  local value = frame(call.server, "chat.completion")
  generate.run(call, specs, function(spec, text, info) take(call.server, spec, text, info) end)
  local choices = {}
  for i, spec in ipairs(specs) do choices[i] = choice_value(spec) end
  call:json(value(choices, generate.usage(specs, #specs, count_thoughts(specs))))
end

-- Calls are told one by one, each when it is complete.
local function tell_calls(spec, calls, send)
  for i = (spec.n_calls or 0) + 1, #calls do
    local c = call_value(calls[i], i - 1)
    local arguments = c["function"].arguments
    c["function"].arguments = ""
    send(spec, { tool_calls = { c } })
    send(spec, { tool_calls = { { index = i - 1, ["function"] = { arguments = arguments } } } })
  end
  spec.n_calls = #calls
end

local function closes_call(spec, info)
  local marks = spec.task.reply and spec.task.reply.marks
  for _, id in ipairs(marks and info.channel == "tool" and info.ids or {}) do
    if id == marks.call_end or id == marks.json_close then return true end
  end
end

local function streamed(call, specs, with_usage)
  local server = call.server
  local value = frame(server, "chat.completion.chunk")
  local no_usage = with_usage and json.null or nil
  local function send(spec, delta, finish)
    if not spec.begun then
      spec.begun = true
      call:event(value({ { index = spec.index, delta = { role = "assistant", content = "" }, logprobs = json.null,
                           finish_reason = json.null } }, no_usage))
    end
    call:event(value({ { index = spec.index, delta = json.object(delta), logprobs = told(spec),
                         finish_reason = finish or json.null } }, no_usage))
  end
  generate.run(call, specs, function(spec, text, info)
    local delta = take(server, spec, text, info)
    if delta then send(spec, delta) end
    if closes_call(spec, info) then tell_calls(spec, spec.task.reply:tool_calls(), send) end
  end, function(spec)
    tell_calls(spec, spec.result.tool_calls, send)
    send(spec, {}, generate.finish(spec.result))
  end)
  if with_usage then call:event(value({}, generate.usage(specs, #specs, count_thoughts(specs)))) end
  call:done()
end

--- Answers a chat request.
function chat.handle(call)
  local f, o = read(call.server, call:json_body())
  local specs, names = generate.specs({ f.messages }, o, f.n), forced.names(f)
  for _, spec in ipairs(names and specs or {}) do spec.aim, spec.dress = forced.aim(f, names), forced.result end
  if f.stream then return streamed(call, specs, f.stream_options and f.stream_options.include_usage) end
  return whole(call, specs)
end

return chat

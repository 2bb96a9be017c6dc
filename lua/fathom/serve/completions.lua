--- serve/completions.lua - POST /v1/completions: texts and ids that are continued as they are.

local fields = require "fathom.serve.fields"
local generate = require "fathom.serve.generate"
local json = require "fathom.json"
local logprobs = require "fathom.serve.logprobs"
local sampling = require "fathom.sampling"
local wire = require "fathom.serve.wire"

local completions = {}
local check = fields.check

local USUAL_TOKENS = 16          -- OpenAI's

-- ---- the request --------------------------------------------------------------------------------------------------

--- Prompts in any of their four forms -> a list of texts and lists of ids. Embeddings take the same.
function completions.prompts(v, name)
  if type(v) == "string" then return { v } end
  local want = "a string, a list of strings or token ids"
  check.list(v, name, want)
  if #v == 0 then fields.wrong(name, want, v) end
  if type(v[1]) == "number" then return { fields.ids(v, name) } end
  local out = {}
  for i, one in ipairs(v) do
    local at = ("%s[%d]"):format(name, i - 1)
    if type(one) ~= type(v[1]) then fields.wrong(at, "of the same kind as the first one", one) end
    out[i] = type(one) == "string" and one or fields.ids(one, at)
  end
  return out
end

local known = sampling.merge({
  prompt = completions.prompts, logprobs = check.integer(0, 20), response_format = require("fathom.serve.messages").response_format,
  best_of = check.integer(1),
  echo = check.refused("the prompt is not said again", false), suffix = check.refused("nothing is filled in before an end", ""),
}, fields.sampling)

local function read(server, body)
  local f = fields.read(body, known)
  fields.check_model(server, f.model)
  if not f.prompt then wire.refuse(400, "prompt is missing", "prompt", "missing_required_parameter") end
  if f.best_of and f.best_of ~= (f.n or 1) then
    wire.refuse(400, "best_of is not supported unless it equals n: ask for n and choose", "best_of", "unsupported_parameter")
  end
  local o = fields.options(server, f, USUAL_TOKENS)
  o.schema, o.logprobs = f.response_format, f.logprobs
  local turns = {}
  for i, prompt in ipairs(f.prompt) do
    if type(prompt) == "table" then fields.check_ids(server, prompt, #f.prompt > 1 and ("prompt[%d]"):format(i - 1) or "prompt") end
    turns[i] = type(prompt) == "string" and generate.must(server.model.engine.text_ids, server.model.engine, prompt) or prompt
    if #turns[i] == 0 then wire.refuse(400, "a prompt is empty: at least one token is needed", "prompt", "invalid_value") end
  end
  if #turns * (f.n or 1) > server.limits.n then
    wire.refuse(400, ("%d choices are more than the %d of this server"):format(#turns * (f.n or 1), server.limits.n), "prompt")
  end
  return f, o, turns
end

-- ---- the answer -----------------------------------------------------------------------------------------------------

local function probabilities(call, spec, list)
  if not spec.options.logprobs then return json.null end
  local value
  value, spec.offset = logprobs.text(call.server, list or {}, spec.offset or 0)
  return value
end

local order = { "id", "object", "created", "model", "system_fingerprint", "choices", "usage" }

local function frame(server)
  local id, created = wire.id "cmpl-", os.time()
  return function(choices, usage)
    return json.object({ id = id, object = "text_completion", created = created, model = server.name,
                         system_fingerprint = server.fingerprint, choices = json.array(choices), usage = usage }, order)
  end
end

-- A completion knows no tools: what the model writes is text.
local function finish(result) return result.finish == "tool" and "stop" or generate.finish(result) end

local function whole(call, specs, per_prompt)
  local value, choices = frame(call.server), {}
  generate.run(call, specs, function(spec, text, info)
    spec.text = (spec.text or "") .. text
    spec.told = table.move(info.logprobs or {}, 1, #(info.logprobs or {}), #(spec.told or {}) + 1, spec.told or {})
  end)
  for i, spec in ipairs(specs) do
    choices[i] = { index = spec.index, text = wire.clean(spec.text or ""), logprobs = probabilities(call, spec, spec.told),
                   finish_reason = finish(spec.result) }
  end
  call:json(value(choices, generate.usage(specs, per_prompt)))
end

local function streamed(call, specs, per_prompt, with_usage)
  local value, no_usage = frame(call.server), with_usage and json.null or nil
  local function send(spec, text, list, why)
    call:event(value({ { index = spec.index, text = wire.clean(text), logprobs = probabilities(call, spec, list),
                         finish_reason = why or json.null } }, no_usage))
  end
  generate.run(call, specs, function(spec, text, info)
    if text ~= "" or info.logprobs then send(spec, text, info.logprobs) end
  end, function(spec) send(spec, "", nil, finish(spec.result)) end)
  if with_usage then call:event(value({}, generate.usage(specs, per_prompt))) end
  call:done()
end

--- Answers a completion request.
function completions.handle(call)
  local f, o, turns = read(call.server, call:json_body())
  local specs = generate.specs(turns, o, f.n)
  if f.stream then return streamed(call, specs, f.n or 1, f.stream_options and f.stream_options.include_usage) end
  return whole(call, specs, f.n or 1)
end

return completions

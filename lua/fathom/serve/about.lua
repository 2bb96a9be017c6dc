--- serve/about.lua - models, tokens, health and counters.

local json = require "fathom.json"
local fields = require "fathom.serve.fields"
local generate = require "fathom.serve.generate"
local messages = require "fathom.serve.messages"
local wire = require "fathom.serve.wire"

local about = {}
local check = fields.check

-- ---- models -------------------------------------------------------------------------------------------------------

-- defaults: the sampling of a request that says nothing; the page shows them
local function model_value(server)
  return { id = server.name, object = "model", created = server.created, owned_by = "fathom", max_model_len = server:context(),
           defaults = server.model.engine.defaults }
end

--- GET /v1/models
function about.models(call) call:json { object = "list", data = { model_value(call.server) } } end

--- GET /v1/models/NAME
function about.model(call)
  fields.check_model(call.server, call.path:match "^/v1/models/(.*)$")
  call:json(model_value(call.server))
end

-- ---- tokens -------------------------------------------------------------------------------------------------------

local tokenize_known = { model = check.string, prompt = check.string, content = check.string, text = check.string, messages = messages.read,
                         tools = messages.tools, think = check.boolean, add_special_tokens = check.boolean, special = check.boolean,
                         add_generation_prompt = check.boolean }

--- POST /tokenize: { prompt = } or { messages = } -> { tokens =, count =, max_model_len = }
function about.tokenize(call)
  local f, model = fields.read(call:json_body(), tokenize_known), call.server.model
  fields.check_model(call.server, f.model)
  local text, ids = f.prompt or f.content or f.text, nil
  if f.messages then
    ids = generate.must(model.render, model, f.messages, { tools = f.tools, think = f.think,
                                                           add_generation_prompt = f.add_generation_prompt })
  elseif not text then
    wire.refuse(400, "prompt or messages are missing", "prompt", "missing_required_parameter")
  elseif f.add_special_tokens then
    ids = generate.must(model.engine.text_ids, model.engine, text)
  else
    ids = generate.must(model.encode, model, text, { special = f.special })
  end
  call:json { tokens = json.array(ids), count = #ids, max_model_len = call.server:context() }
end

--- POST /detokenize: { tokens = } -> { prompt = }
function about.detokenize(call)
  local f, model = fields.read(call:json_body(), { model = check.string, tokens = fields.ids }), call.server.model
  fields.check_model(call.server, f.model)
  if not f.tokens then wire.refuse(400, "tokens are missing", "tokens", "missing_required_parameter") end
  fields.check_ids(call.server, f.tokens, "tokens")
  local text = wire.clean(generate.must(model.decode, model, f.tokens))
  call:json { prompt = text, content = text }
end

-- ---- how it goes --------------------------------------------------------------------------------------------------

--- GET /health
function about.health(call)
  local state = call.server.model.closed and "closed" or call.server.stopping and "stopping" or "ok"
  call:json({ status = state }, state == "ok" and 200 or 503)
end

--- GET /metrics
function about.metrics(call)
  local server = call.server
  local stats = not server.model.closed and server.model:stats() or nil
  call:reply(200, "text/plain; version=0.0.4; charset=utf-8", server.metrics:text(server.net:counts(), stats, server.n_running))
end

return about

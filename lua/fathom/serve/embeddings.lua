--- serve/embeddings.lua - POST /v1/embeddings: model:embed of texts or ids, one after another.

local completions = require "fathom.serve.completions"
local fields = require "fathom.serve.fields"
local generate = require "fathom.serve.generate"
local json = require "fathom.json"
local wire = require "fathom.serve.wire"

local embeddings = {}
local check = fields.check

local MOST = 2048          -- inputs of one request, as at OpenAI

local known = { model = check.string, input = completions.prompts, user = check.string,
                encoding_format = check.word { float = "float", base64 = "base64" },
                dimensions = check.refused "vectors have the model's hidden_size" }

local function vector(model, input, form)
  local tensor <close> = generate.must(model.embed, model, input)
  if form == "base64" then return wire.base64(tensor:bytes()) end
  return json.array(tensor:totable())
end

--- Answers with one vector for each input. A vector is the last token's final-normed state, as model:embed gives it: not scaled
-- to length 1. While one is computed the other requests wait.
function embeddings.handle(call)
  local f, model = fields.read(call:json_body(), known), call.server.model
  fields.check_model(call.server, f.model)
  if not f.input then wire.refuse(400, "input is missing", "input", "missing_required_parameter") end
  if #f.input > MOST then wire.refuse(400, ("input has more than %d parts"):format(MOST), "input", "invalid_value") end
  local data, n_tokens = json.array {}, 0
  for i, input in ipairs(f.input) do
    if i > 1 then call.pause() end
    if type(input) == "table" then fields.check_ids(call.server, input, #f.input > 1 and ("input[%d]"):format(i - 1) or "input") end
    local ids = type(input) == "string" and generate.must(model.engine.text_ids, model.engine, input) or input
    if #ids == 0 then wire.refuse(400, "an input is empty: at least one token is needed", "input", "invalid_value") end
    data[i] = { object = "embedding", index = i - 1, embedding = vector(model, ids, f.encoding_format) }
    n_tokens = n_tokens + #ids
  end
  call.server.metrics.prompt = call.server.metrics.prompt + n_tokens
  call:json { object = "list", data = data, model = call.server.name, usage = { prompt_tokens = n_tokens, total_tokens = n_tokens } }
end

return embeddings

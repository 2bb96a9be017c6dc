--- serve/logprobs.lua - log-probabilities in OpenAI's two shapes.

local json = require "fathom.json"
local wire = require "fathom.serve.wire"

local logprobs = {}

local LEAST = -9999.0        -- JSON has no minus infinity; OpenAI says this number

local function number(v) return v and v > LEAST and v or LEAST end

local function entry(server, id, logprob)
  local bytes = server:token_bytes(id)
  return { token = wire.clean(bytes), logprob = number(logprob), bytes = json.array { bytes:byte(1, -1) } }
end

--- Tokens of a chat: { { token =, logprob =, bytes =, top_logprobs = }, ... }. A token that ends the reply is left out.
-- @param list list  info.logprobs of a piece
function logprobs.chat(server, list)
  local out = {}
  for _, t in ipairs(list) do
    if not server:is_eos(t.id) then
      local e = entry(server, t.id, t.logprob)
      e.top_logprobs = json.array {}
      for i, top in ipairs(t.top or {}) do e.top_logprobs[i] = entry(server, top.id, top.logprob) end
      out[#out + 1] = e
    end
  end
  return out
end

--- Tokens of a completion: { tokens =, token_logprobs =, top_logprobs =, text_offset = }.
-- @param list list  info.logprobs; offset: characters before them
-- @return table, and the offset behind them
function logprobs.text(server, list, offset)
  local out = { tokens = json.array {}, token_logprobs = json.array {}, top_logprobs = json.array {}, text_offset = json.array {} }
  for _, t in ipairs(list) do
    if not server:is_eos(t.id) then
      local text, top, i = wire.clean(server:token_bytes(t.id)), {}, #out.tokens + 1
      for _, other in ipairs(t.top or {}) do top[wire.clean(server:token_bytes(other.id))] = number(other.logprob) end
      out.tokens[i], out.token_logprobs[i], out.top_logprobs[i], out.text_offset[i] = text, number(t.logprob), json.object(top), offset
      offset = offset + utf8.len(text)
    end
  end
  return out, offset
end

return logprobs

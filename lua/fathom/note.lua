--- note.lua - what the span of a generation says: the request in plain values, and what came of it.
-- Backends other than the engine open the same spans with the same fields, as far as they know them.

local json = require "fathom.json"
local sampling = require "fathom.sampling"
local schema = require "fathom.schema"
local span = require "fathom.span"

local note = {}

-- Options that decide what is sampled, and those that only say how; functions stay behind.
local names = { "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
                "seed", "n", "stop", "stop_ids", "logprobs", "grammar", "think", "template", "mtp", "ignore_eos", "priority", "keep" }

-- A tool as data: what runs it stays behind.
local function tools_of(tools)
  local out = {}
  for name, tool in pairs(tools) do
    tool = json.copy(tool)
    if type(tool) == "table" then tool.run = nil end
    out[name] = tool
  end
  return out
end

--- The options of a generation as plain values.
-- @param o table  as fathom.sampling knows them
-- @return table
function note.options(o)
  local out = {}
  for _, name in ipairs(names) do out[name] = o[name] end
  if o.schema then out.schema = json.decode(schema.text(o.schema)) end
  if o.tools then out.tools = tools_of(o.tools) end
  if o.logit_bias then out.logit_bias = sampling.bias_pairs(o.logit_bias) end
  if o.overflow == "shift" then out.overflow = o.overflow end
  return json.object(out)
end

--- What was asked for: the options without those that are as by default, and without a seed that nobody chose. Two requests of
-- the same messages and asked options mean the same on any backend.
-- @param o table             as fathom.sampling knows them
-- @param defaults table|nil  of the backend
-- @param drawn boolean       nobody chose the seed
function note.asked(o, defaults, drawn)
  local out = note.options(o)
  for name, value in pairs(defaults or {}) do
    if out[name] == value then out[name] = nil end
  end
  if drawn then out.seed = nil end
  return out
end

--- Messages without the ids that a session keeps beside them.
function note.messages(list)
  if not list then return nil end
  local out = {}
  for i, m in ipairs(list) do
    out[i] = {}
    for k, v in pairs(m) do
      if k ~= "reply" then out[i][k] = v end
    end
  end
  return json.array(out)
end

--- Opens the span of an engine's task.
function note.open(t)
  if not span.listening() then return nil end
  return span.leaf("generate", { backend = "engine", model = t.engine:digest(), sample = t.how.sample or 0,
                                 drawn = t.how.drawn or nil, options = note.options(t.options),
                                 asked = note.asked(t.options, t.engine.defaults, t.how.drawn) })
end

--- Says what goes in, once that is known: ids, which of them were sampled in earlier turns, messages.
function note.started(t, messages)
  if not t.span then return end
  t.span:set { prompt = json.array(table.move(t.prompt, 1, #t.prompt, 1, {})), messages = note.messages(messages),
               generated = json.array(t.slot.core:generated()) }
end

--- Closes the span with what came of it.
function note.over(t)
  if not t.span then return end
  local r = t.result
  if t.err then
    t.span:close { err = { code = t.err.code, message = t.err.message }, usage = t.usage }
  else
    t.span:close { ids = json.array(table.move(r.ids, 1, #r.ids, 1, {})), text = r.text, think = r.think, answer = r.answer,
                   tool_calls = r.tool_calls[1] and r.tool_calls or nil, finish = r.finish, usage = r.usage }
  end
end

return note

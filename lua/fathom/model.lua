--- model.lua - a loaded model: text and ids, straight computation, generation, sessions.

local chat = require "fathom.chat"
local fault = require "fathom.fault"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local session = require "fathom.session"
local task = require "fathom.task"
local window = require "fathom.window"

local model = {}
local methods = {}
local is = options.is

-- The engine of a model that is open; raises at the caller's line otherwise.
local function engine_of(self)
  options.self("model", self, model.mt)
  local engine = self.engine
  if self.closed then options.raise "attempt to use a closed model" end
  return engine
end

--- Wraps an engine; called by fathom.load.
function model.new(engine)
  return setmetatable({ engine = engine, config = engine.config, closed = false }, model.mt)
end

--- Frees the model when its last session is closed too. May be called twice.
function methods:close()
  options.self("model", self, model.mt)
  if self.closed then return end
  self.closed = true
  self.engine:close()
end

-- ---- text -------------------------------------------------------------------------------------------------

--- Text to ids, without BOS.
-- @param text string
-- @param opts table|nil  special (false): words of control tokens become those tokens
-- @return ids, or nil, err when there is no tokenizer
-- @usage local ids = model:encode "Hello"
function methods:encode(text, opts)
  local engine = engine_of(self)
  options.argument("model:encode", "text", text, is.string)
  local o = options.check("model:encode", opts, { special = is.boolean })
  local ok, err = engine:need_tokenizer()
  if not ok then return nil, err end
  return fault.guard(engine.core.encode, engine.core, text, o.special or false)
end

--- Ids to text: exact bytes.
-- @return string, or nil, err when there is no tokenizer
function methods:decode(ids)
  local engine = engine_of(self)
  options.argument("model:decode", "ids", ids, is.table)
  engine:check_ids("model:decode", ids)
  local ok, err = engine:need_tokenizer()
  if not ok then return nil, err end
  return fault.guard(engine.core.decode, engine.core, ids)
end

--- How many tokens a text or a list of messages has (messages with the generation prompt, as render gives it).
-- @return integer, or nil, err
function methods:count(what)
  engine_of(self)
  options.argument("model:count", "text", what, is.one_of(is.string, is.table))
  local ids, err
  if type(what) == "table" then ids, err = self:render(what) else ids, err = self:encode(what) end
  if not ids then return nil, err end
  return #ids
end

--- Messages to ids by the model's chat template.
-- @param messages table
-- @param opts table|nil  tools, think, template (a name, see fathom.templates), add_generation_prompt (true)
-- @return ids, or nil, err
-- @usage local ids = model:render { { role = "user", content = "Hi" } }
function methods:render(messages, opts)
  local engine = engine_of(self)
  chat.normal(messages)
  local o = options.check("model:render", opts, { tools = is.table, think = is.boolean, template = is.string,
                                                  add_generation_prompt = is.boolean })
  engine:check_options("model:render", o)
  return engine:render(messages, o)
end

-- ---- computation --------------------------------------------------------------------------------------------

local function ids_argument(self, what, ids)
  local engine = engine_of(self)
  options.argument(what, "ids", ids, is.table)
  engine:check_ids(what, ids)
  if #ids == 0 then return fault.give("format", what .. ": no ids were given") end
  return engine
end

--- Logits of every position, (n, vocab_size); last: only of the last one, (1, vocab_size); mtp: the MTP layer's,
-- (n - 1, vocab_size), row t predicting token t + 2.
-- @return tensor, or nil, err
function methods:logits(ids, opts)
  local o = options.check("model:logits", opts, { last = is.boolean, mtp = is.boolean })
  local engine, err = ids_argument(self, "model:logits", ids)
  if not engine then return nil, err end
  return fault.guard(engine.core.logits, engine.core, ids, o.last or false, o.mtp or false)
end

--- Hidden states, (num_hidden_layers + 1, n, hidden_size): embeddings, each layer's output, the last one final-normed.
-- @return tensor, or nil, err
function methods:hidden(ids)
  local engine, err = ids_argument(self, "model:hidden", ids)
  if not engine then return nil, err end
  return fault.guard(engine.core.hidden, engine.core, ids)
end

-- Ids of what follows a prompt: no BOS.
local function continuation_ids(self, continuation)
  if type(continuation) == "string" then return self:encode(continuation) end
  options.argument("model:score", "continuation", continuation, is.one_of(is.string, is.table))
  self.engine:check_ids("model:score", continuation)
  return continuation
end

--- Log-probability of a continuation. The two are encoded apart and joined; a string prompt gets BOS where
-- the tokenizer's config says so.
-- @param prompt string|table       string, ids or messages
-- @param continuation string|table string or ids
-- @return { logprob = sum, tokens = { { id =, logprob = }, ... } }, or nil, err
-- @usage print(model:score("2 + 2 =", " 4").logprob)
function methods:score(prompt, continuation)
  local engine = engine_of(self)
  local ids, err = engine:prompt_ids("model:score", prompt, {})
  if not ids then return nil, err end
  local more
  more, err = continuation_ids(self, continuation)
  if not more then return nil, err end
  if #ids == 0 then return fault.give("format", "model:score: the prompt is empty: at least one token is needed") end
  local out = { logprob = 0.0, tokens = {} }
  if #more == 0 then return out end
  local from = #ids
  table.move(more, 1, #more, from + 1, ids)
  local logprobs
  logprobs, err = fault.guard(engine.core.score, engine.core, ids, from)
  if not logprobs then return nil, err end
  for i, logprob in ipairs(logprobs) do
    out.tokens[i] = { id = ids[from + i], logprob = logprob }
    out.logprob = out.logprob + logprob
  end
  return out
end

--- A vector for a text: the last token's final-normed state.
-- @param text string|table  a string (BOS where the tokenizer's config says so) or ids
-- @return tensor (hidden_size), or nil, err
function methods:embed(text)
  local engine = engine_of(self)
  local ids, err = engine:prompt_ids("model:embed", text, {})
  if not ids then return nil, err end
  local hidden
  hidden, err = self:hidden(ids)
  if not hidden then return nil, err end
  local state = hidden:slice(#hidden, #ids)
  hidden:close()
  return state
end

-- ---- generation -----------------------------------------------------------------------------------------------

local function generation(self, what, prompt, opts, names)
  local engine = engine_of(self)
  local given = options.check(what, opts, names)
  local o = sampling.merge(given, { seed = sampling.draw_seed() }, engine.defaults)
  engine:check_options(what, o)
  local ids, err
  if engine.kind(what, prompt) == "messages" then
    ids, err = window.render(engine, prompt, o)
  elseif type(o.overflow) == "function" then
    options.raise(what .. ": an overflow function goes with messages; text and ids may be shifted")
  else
    ids, err = engine:prompt_ids(what, prompt, given)
  end
  if not ids then return nil, err end
  if #ids == 0 then return fault.give("format", what .. ": the prompt is empty: at least one token is needed") end
  local core
  core, err = fault.guard(engine.core.session, engine.core)
  if not core then return nil, err end
  engine:adopt()
  return { engine = engine, core = core, model = self, options = o, ids = ids, drawn = not given.seed,
           messages = engine.kind(what, prompt) == "messages" and prompt or nil, close = function(slot)
    if not slot.core then return end
    slot.core:close()
    slot.core = nil
    engine:release()
  end }
end

-- The task of a slot that is closed with it.
local function slot_task(slot)
  return task.new(slot, slot.options, { model = slot.model, prepare = function() return slot.ids, nil, slot.messages end,
                                        drawn = slot.drawn, finished = function() slot:close() end })
end

--- Generates one reply (or n of them). A string is continued as it is, behind BOS where the tokenizer's config says
-- so: to ask a chat model something give messages, or use a session. Ids are taken as they are. Inside a
-- coroutine this yields until the reply is there; elsewhere it works.
-- @param prompt string|table  text, ids, or messages (rendered by the chat template)
-- @param opts table|nil       max_tokens temperature top_k top_p min_p repeat_penalty presence_penalty
--   frequency_penalty logit_bias seed n stop logprobs schema grammar tools think template mtp ignore_eos; see sampling.lua
--   for defaults
-- @return result, or nil, err. With n > 1 it is the first of result.samples.
-- @usage local r = model:generate({ { role = "user", content = "Hi" } }, { temperature = 0 })
function methods:generate(prompt, opts)
  local slot, err = generation(self, "model:generate", prompt, opts, sampling.known)
  if not slot then return nil, err end
  if (slot.options.n or 1) == 1 then return slot_task(slot):wait() end
  local samples
  samples, err = session.fan_out(slot, slot.options, function() return slot.ids, nil, slot.messages end, slot.drawn)
  slot:close()
  if not samples then return nil, err end
  local first = sampling.merge({ samples = samples }, samples[1])
  return first
end

--- Generates in a loop of pieces; leaving the loop cancels.
-- @return iterator over piece, info (channel, ids, logprobs); raises err when it fails
-- @usage for piece in model:stream(messages) do io.write(piece) end
function methods:stream(prompt, opts)
  local slot, err = generation(self, "model:stream", prompt, opts, sampling.turn)
  return (slot and slot_task(slot) or task.failed({ engine = self.engine }, err)):pieces()
end

--- Starts a conversation.
-- @param opts table|nil  system, messages, seed, tools and any generation option as default for every turn
-- @return session, or nil, err
-- @usage local s = model:session { system = "Be brief." }
function methods:session(opts) return session.new(engine_of(self), self, opts) end

--- Reads a conversation that session:save wrote.
-- @return session, or nil, err
function methods:restore(path)
  local engine = engine_of(self)
  options.argument("model:restore", "path", path, is.path)
  return session.restore(engine, self, path)
end

--- Offers the model to another Lua state of this process, which takes it with fathom.adopt. One number, one adoption; each
-- state closes its own model. States that share a model are run by one thread at a time.
-- @return integer, or nil, err
function methods:share()
  local engine = engine_of(self)
  return fault.guard(engine.core.share, engine.core)
end

--- Advances everything that runs on this model.
-- @param opts table|nil  ms: at most so long, and at least one slice of work; without it one step
-- @return boolean whether work is left, or nil, err
-- @usage while model:step { ms = 2 } do draw_a_frame() end
function methods:step(opts)
  local engine = engine_of(self)
  local o = options.check("model:step", opts, { ms = is.at_least(0) })
  return engine:step(o.ms or 0)
end

--- Forgets all cached prefixes, and the cache of sessions that do nothing: they are computed again when needed.
function methods:drop_prefixes() engine_of(self).core:drop_prefixes() end

--- Counters: tokens, steps, pages of the cache, acceptance of drafts, overshoot of step, memory, ranks and their forms.
-- @param opts table|nil  experts (true: how many rows chose each expert so far)
-- @return table; its experts: for each layer (the MTP layer last) the counts from expert 0 on, empty where there are none or where
--   the device keeps them to itself
-- @usage local counts = model:stats({ experts = true }).experts[4]
function methods:stats(opts)
  local engine = engine_of(self)
  local o = options.check("model:stats", opts, { experts = is.boolean })
  local stats = engine.core:stats()
  if o.experts then
    stats.experts = {}
    local layers = self.config.num_hidden_layers + (engine.core:mtp() > 0 and 1 or 0)
    for l = 1, layers do stats.experts[l] = engine.core:load(l - 1) end
  end
  stats.tasks, stats.sessions = #engine.live, engine.children
  return stats
end

model.mt = {
  __name = "fathom.model",
  __index = methods,
  __close = methods.close,
  __gc = methods.close,
  __tostring = function(self)
    if self.closed then return "fathom model (closed)" end
    local core = self.engine.core
    return ("fathom model (%s, %d layers, hidden_size %d, ctx %d)"):format(tostring(self.config.model_type),
           self.config.num_hidden_layers or 0, self.config.hidden_size or 0, core:ctx())
  end,
}

return model

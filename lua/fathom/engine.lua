--- engine.lua - what a model, its sessions and its tasks share: the core model, its files, what runs on it.
-- A model that is closed lives on in its engine until the last session is closed.

local chat = require "fathom.chat"
local fault = require "fathom.fault"
local json = require "fathom.json"
local options = require "fathom.options"
local reply = require "fathom.reply"
local sampling = require "fathom.sampling"
local schema = require "fathom.schema"
local tools = require "fathom.chat.tools"
local watch = require "fathom.watch"

local engine = {}
engine.__index = engine

-- A JSON file of the checkpoint; nil where it is absent or no object (the weights do not depend on it).
local function read_json(dir, name)
  local text = require("fathom.core").read(dir .. "/" .. name)
  local value = text and json.decode(text)
  return type(value) == "table" and value or nil
end

local function token_text(entry)
  if type(entry) == "table" then entry = entry.content end
  return type(entry) == "string" and entry or nil
end

-- tokenizer_config.json may hold one template or a list of named ones.
local function template_text(entry)
  if type(entry) == "string" then return entry end
  for _, t in ipairs(type(entry) == "table" and entry or {}) do
    if type(t) == "table" and t.name == "default" then return t.template end
  end
end

--- Wraps a loaded core model.
-- @param core  core model; dir: its folder
function engine.new(core, dir)
  local self = setmetatable({ core = core, dir = dir, live = {}, children = 0, moves = 0 }, engine)
  local tokenizer = read_json(dir, "tokenizer_config.json") or {}
  self.config = core:config()
  self.defaults = sampling.defaults(read_json(dir, "generation_config.json"))
  self.bos_text = token_text(tokenizer.bos_token)
  self.add_bos = tokenizer.add_bos_token
  if self.add_bos == nil then self.add_bos = tostring(self.config.model_type):find "^deepseek" ~= nil end
  self.template, self.no_template = chat.choose(template_text(tokenizer.chat_template), self.config.model_type)
  self.eos = {}
  for _, id in ipairs(core:eos()) do self.eos[id] = true end
  if core:has_tokenizer() then
    self.marks = reply.marks(core)
  else
    self.marks = { tool_open = {}, tool_close = {}, sizes = {} }
  end
  self.tok = {
    encode = function(text) return core:encode(text, false) end,
    added = function(text) return core:added(text) end,
    decode = function(ids) return core:decode(ids) end,
  }
  return self
end

-- ---- life -----------------------------------------------------------------------------------------------

--- Counts a session in.
function engine:adopt() self.children = self.children + 1 end

--- Counts a session out; the core goes with the last one when the model was closed.
function engine:release()
  self.children = self.children - 1
  if self.children == 0 and self.closed then self.core:close() end
end

--- The model was closed.
function engine:close()
  if self.closed then return end
  self.closed = true
  if self.children == 0 then self.core:close() end
end

--- What tells the weights of this model from others: 16 hexadecimal digits.
function engine:digest()
  self.digest_text = self.digest_text or self.core:stats().digest
  return self.digest_text
end

-- ---- prompts ----------------------------------------------------------------------------------------------

--- Checks a list of token ids; raises at the caller's line.
function engine:check_ids(what, ids)
  options.ids(what, ids, self.core:vocab_size())
end

--- What a prompt is: "text", "ids" or "messages"; raises for anything else.
function engine.kind(what, prompt)
  if type(prompt) == "string" then return "text" end
  if type(prompt) ~= "table" then
    options.raise(("%s: a prompt is a string, a list of ids or a list of messages, got a %s"):format(what, type(prompt)))
  end
  if prompt.role then options.raise(what .. ": messages are a list: { { role =, content = }, ... }") end
  return type(prompt[1]) == "table" and "messages" or "ids"
end

function engine:need_tokenizer()
  if self.core:has_tokenizer() then return true end
  return fault.give("unsupported", "the checkpoint has no tokenizer.json: ids go in and ids come out",
                    "put the tokenizer.json of the model into " .. self.dir)
end

--- Ids of a text as it stands, behind BOS where the tokenizer's config asks for one.
function engine:text_ids(text)
  local ok, err = self:need_tokenizer()
  if not ok then return nil, err end
  local ids
  ids, err = fault.guard(self.core.encode, self.core, text, false)
  if not ids then return nil, err end
  local bos = self.add_bos and self.core:bos()
  if bos then table.insert(ids, 1, bos) end
  return ids
end

--- Checks options that only the model can judge; raises at the caller's line.
function engine:check_options(what, o)
  if o.template and not chat.named(o.template) then
    local near = options.nearest(o.template, chat.names())
    options.raise(("%s: unknown template '%s' (did you mean '%s'?)"):format(what, o.template, near))
  end
  if o.tools then tools.check(what, o.tools) end
  if o.schema and o.grammar then options.raise(what .. ": a reply follows either a schema or a grammar, not both") end
  if o.schema then schema.text(o.schema) end       -- raises for what is none
  local cuts = o.stop and "stop" or o.stop_ids and "stop_ids"
  if cuts and (o.schema or o.grammar) then
    options.raise(("%s: option '%s' would cut a document: it does not go with schema or grammar"):format(what, cuts))
  end
  local size = self.core:vocab_size()
  for id in pairs(o.logit_bias or {}) do
    if id < 0 or id >= size then
      options.raise(("%s: logit_bias names id %d, outside the vocabulary of %d"):format(what, id, size))
    end
  end
  if o.stop_ids then self:check_ids(what .. ": stop_ids", o.stop_ids) end
  if type(o.logprobs) == "number" and o.logprobs > size then
    options.raise(("%s: logprobs is %d, the vocabulary has %d"):format(what, o.logprobs, size))
  end
end

--- Messages to ids.
-- @param o table  template, think, tools, add_generation_prompt
function engine:render(messages, o)
  local ok, err = self:need_tokenizer()
  if not ok then return nil, err end
  local name = o.template and chat.named(o.template) or self.template
  if not name then return fault.give("unsupported", self.no_template, "name one with template=") end
  local ids
  ids, err = chat.render(messages, { template = name, think = o.think, tools = o.tools, bos = self.bos_text,
                                     add_generation_prompt = o.add_generation_prompt }, self.tok)
  if ids then return ids end
  if type(err) == "string" then err = fault.new("unsupported", err) end
  return nil, err
end

--- Any prompt to ids.
function engine:prompt_ids(what, prompt, o)
  local kind = engine.kind(what, prompt)
  if kind == "messages" then return self:render(prompt, o) end
  for _, name in ipairs { "think", "tools", "template" } do
    if o[name] ~= nil then
      options.raise(("%s: option '%s' goes with messages; text and ids are continued as they are"):format(what, name))
    end
  end
  if kind == "text" then return self:text_ids(prompt) end
  self:check_ids(what, prompt)
  return table.move(prompt, 1, #prompt, 1, {})
end

-- ---- work -------------------------------------------------------------------------------------------------

--- Takes a task among those that run; it starts when its session is free.
function engine:add(task)
  self.live[#self.live + 1] = task
  self:pump()
end

-- Whether a prompt is being made: an overflow function is what called.
function engine:starting()
  for _, task in ipairs(self.live) do
    if task.slot.starting then return true end
  end
  return false
end

--- Starts what can start and hands out what was sampled.
function engine:pump()
  for _, task in ipairs(table.move(self.live, 1, #self.live, 1, {})) do
    if not task.done and not task.core and not task.slot.current and not task.slot.starting then task:start() end
    if not task.done and task.core then task:drain() end
  end
end

--- Forgets a task that is over.
function engine:remove(task)
  for i, other in ipairs(self.live) do
    if other == task then
      table.remove(self.live, i)
      break
    end
  end
  self.moves = self.moves + 1
end

--- Lets f be called behind each step until it returns false: what a step brought may be what it waits for.
engine.watch = watch.add

--- Advances everything for at most ms milliseconds.
-- @return boolean whether work is left, or nil, err
function engine:step(ms)
  local before = self.moves
  local busy, err = fault.guard(self.core.step, self.core, ms)
  if busy == nil then
    for _, task in ipairs(table.move(self.live, 1, #self.live, 1, {})) do task:fail(err) end
    watch.look(self)
    return nil, err
  end
  self:pump()
  if not busy and #self.live > 0 and self.moves == before and not self:starting() then
    local stuck = fault.new("limit", "the engine is idle while a task waits")
    for _, task in ipairs(table.move(self.live, 1, #self.live, 1, {})) do task:fail(stuck) end
  end
  local watched = watch.look(self)
  return busy or #self.live > 0 or watched
end

return engine

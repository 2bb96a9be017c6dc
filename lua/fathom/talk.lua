--- talk.lua - a conversation with a backend that is no model: its messages are kept here, each turn sends them all.
-- The verbs are those of a session of a model (session.lua), and so are their contracts.

local chat = require "fathom.chat"
local fault = require "fathom.fault"
local job = require "fathom.job"
local json = require "fathom.json"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local schema = require "fathom.schema"
local tools = require "fathom.chat.tools"
local validate = require "fathom.validate"

local talk = {}
local methods = {}
local is = options.is
local copy = json.copy

-- ---- options ------------------------------------------------------------------------------------------------------

-- Options that exclude each other; raises at the caller's line.
local function check_options(what, o)
  if o.tools then tools.check(what, o.tools) end
  if o.schema and o.grammar then options.raise(what .. ": a reply follows either a schema or a grammar, not both") end
end

--- Checks the options of one call and lays them over the defaults.
function talk.options(what, given, names, ...)
  local o = sampling.merge(options.check(what, given, names), ...)
  local drawn = not o.seed
  o.seed = o.seed or sampling.draw_seed()
  check_options(what, o)
  return o, drawn
end

-- ---- life ---------------------------------------------------------------------------------------------------------

local function check_open(self)
  options.self("session", self, talk.mt)
  if self.closed then options.raise "attempt to use a closed session" end
end

--- Starts a conversation at a desk; called by a backend's session().
-- @param what string  who is called, for messages: "mock:session"
function talk.new(desk, what, opts)
  local o = options.check(what, opts, sampling.session)
  check_options(what, o)
  local list = {}
  if o.system then list[1] = { role = "system", content = o.system } end
  if o.messages and #o.messages > 0 then
    chat.normal(o.messages)
    for _, m in ipairs(o.messages) do list[#list + 1] = copy(m) end
  end
  o.system, o.messages = nil, nil
  local drawn = not o.seed
  o.seed = o.seed or sampling.draw_seed()
  return setmetatable({ engine = desk, model = desk.backend, list = list, defaults = o, drawn = drawn, exact = true }, talk.mt)
end

--- Ends the conversation; its running tasks are cancelled.
function methods:close()
  options.self("session", self, talk.mt)
  if self.closed then return end
  self.closed = true
  for _, t in ipairs(self.engine:jobs()) do
    if t.slot == self then t:cancel() end
  end
end

-- ---- turns --------------------------------------------------------------------------------------------------------

local function new_messages(what, turn)
  if type(turn) == "string" then return { { role = "user", content = turn } } end
  if type(turn) ~= "table" or math.type(turn[1]) == "integer" then
    options.raise(("%s: expected text, a message or a list of messages, got %s"):format(what,
                  type(turn) == "table" and "ids, which only a model takes" or type(turn)))
  end
  local list = turn.role and { turn } or turn
  chat.normal(list)
  return copy(list)
end

local function append(list, more)
  return table.move(more, 1, #more, #list + 1, table.move(list, 1, #list, 1, {}))
end

local function assistant_message(result)
  local calls
  for i, call in ipairs(result.tool_calls) do
    calls = calls or {}
    calls[i] = { id = call.id, type = "function", ["function"] = { name = call.name, arguments = call.raw } }
  end
  return { role = "assistant", content = result.answer, reasoning_content = result.think ~= "" and result.think or nil,
           tool_calls = calls }
end

-- A turn that brought nothing is taken back.
local function keep_turn(self, t, said)
  if not t.result or t.result.text == "" then return end
  self.list = append(append(self.list, said), { assistant_message(t.result) })
end

--- Says something and gets a task for the reply. Behind a task that still runs it waits its turn.
-- @param turn string|table  text, a message, or a list of messages (results of tools)
-- @param opts table|nil     options of this turn, over the session's own
-- @return task
-- @usage local task = session:ask "What is 17 + 25?"
function methods:ask(turn, opts)
  check_open(self)
  local given = options.check("session:ask", opts, sampling.turn)
  local o = talk.options("session:ask", given, sampling.turn, self:under(given))
  local said = new_messages("session:ask", turn)
  return job.new(self.engine, self, o, { drawn = self.drawn and not given.seed,
                                         prepare = function() return { messages = append(self.list, said) } end,
                                         finished = function(t) keep_turn(self, t, said) end })
end

--- The defaults that stay beneath a turn's options: its own form of reply takes the place of the session's.
function methods:under(given)
  local below = sampling.merge({}, self.defaults)
  if given.schema then below.grammar = nil end
  if given.grammar then below.schema = nil end
  return below
end

--- Says something and loops over the pieces of the reply; leaving the loop cancels it.
-- @return iterator over piece, info; raises when the task fails
-- @usage for piece, info in session:stream "Hello!" do io.write(piece) end
function methods:stream(turn, opts) return self:ask(turn, opts):pieces() end

--- Several replies to one prompt, asked for all at once.
-- @return list of results, or nil, err
function talk.fan_out(desk, o, prompt, drawn)
  local jobs, results, group = {}, {}, { n = o.n or 1 }
  for i = 1, group.n do
    jobs[i] = job.new(desk, {}, o, { sample = i - 1, group = group, drawn = drawn, prepare = function() return prompt end })
  end
  local function cancel_all()
    for _, t in ipairs(jobs) do t:cancel() end
  end
  -- a coroutine that is dropped while it waits here takes them all along
  local guard = setmetatable({}, { __gc = function(g) if not g.kept then cancel_all() end end })
  local err
  for i, t in ipairs(jobs) do
    results[i], err = t:wait()
    if err then break end
  end
  guard.kept = true
  if not err then return results end
  cancel_all()
  return nil, err
end

--- Several answers to one text. The session's messages stay as they are.
-- @param turn string|table  as for ask
-- @param opts table|nil     n and the options of the turn
-- @return list of results, or nil, err
-- @usage local votes = session:sample("Heads or tails?", { n = 5 })
function methods:sample(turn, opts)
  check_open(self)
  local given = options.check("session:sample", opts, sampling.known)
  local o = talk.options("session:sample", given, sampling.known, self:under(given))
  return talk.fan_out(self.engine, o, { messages = append(self.list, new_messages("session:sample", turn)) },
                      self.drawn and not given.seed)
end

-- The document of a finished reply.
local function document(result, form)
  if result.finish == "cancelled" then return fault.give("cancelled", "the reply was cancelled before it was complete") end
  if result.finish == "length" then return fault.give("limit", "the reply was cut before its document was complete", "raise max_tokens") end
  local text = result.answer:match "^```%a*\n(.*)\n```$" or result.answer
  local value, why = json.decode(text)
  if value == nil then return fault.give("format", "the reply is no JSON: " .. why) end
  local ok
  ok, why = validate.check(value, form)
  if not ok then return fault.give("format", "the reply does not follow the schema: " .. why) end
  return value
end

--- Says something and reads the reply as JSON, which is checked against the schema: nothing here masks a backend's tokens.
-- @param turn string|table  as for ask
-- @param opts table|nil     schema (any JSON without one) and the options of the turn
-- @return value, result; or nil, err: code "format" where the reply does not follow the schema, "limit" where it was cut
-- @usage local point = assert(session:json("Where is it?", { schema = { x = "integer", y = "integer" } }))
function methods:json(turn, opts)
  check_open(self)
  local given = options.check("session:json", opts, sampling.turn)
  if given.grammar then options.raise "session:json: replies follow a schema here, not a grammar" end
  given.schema = given.schema or self.defaults.schema or {}
  local form = assert(json.decode(schema.text(given.schema)))
  local result, err = self:ask(turn, given):wait()
  if not result then return nil, err end
  local value
  value, err = document(result, form)
  if value == nil then return nil, err end
  return value, result
end

--- A second conversation that goes on from here.
-- @return session
function methods:fork()
  check_open(self)
  return setmetatable({ engine = self.engine, model = self.model, list = copy(self.list), defaults = copy(self.defaults),
                        drawn = self.drawn, exact = self.exact }, talk.mt)
end

--- The conversation so far.
-- @return list of { role =, content =, reasoning_content =, tool_calls = }
function methods:messages()
  check_open(self)
  return copy(self.list)
end

--- Only a model's conversation has pages to keep.
-- @return nil, err
function methods:save()
  check_open(self)
  return fault.give("unsupported", "only the session of a model can be saved", "keep session:messages() and start anew with messages =")
end

-- ---- verbs of the backend itself -------------------------------------------------------------------------------

-- A prompt as backends take it: { messages =, text = or ids = }.
local function prompt_of(what, prompt)
  if type(prompt) == "string" then return { text = prompt } end
  if type(prompt) ~= "table" then
    options.raise(("%s: a prompt is a string, a list of ids or a list of messages, got a %s"):format(what, type(prompt)))
  end
  if math.type(prompt[1]) == "integer" then return { ids = prompt } end
  chat.normal(prompt)
  return { messages = copy(prompt) }
end

--- generate, stream and session for a backend whose desk is self.engine.
-- @param name string  for messages: "mock"
function talk.verbs(name)
  local verbs = {}

  --- Generates one reply, or n of them.
  -- @return result, or nil, err. With n > 1 it is the first of result.samples.
  function verbs:generate(prompt, opts)
    self:check_open()
    local o, drawn = talk.options(name .. ":generate", opts, sampling.known)
    local samples, err = talk.fan_out(self.engine, o, prompt_of(name .. ":generate", prompt), drawn)
    if not samples then return nil, err end
    if #samples == 1 then return samples[1] end
    return sampling.merge({ samples = samples }, samples[1])
  end

  --- Generates in a loop of pieces; leaving the loop cancels.
  function verbs:stream(prompt, opts)
    self:check_open()
    local o, drawn = talk.options(name .. ":stream", opts, sampling.turn)
    local p = prompt_of(name .. ":stream", prompt)
    return job.new(self.engine, {}, o, { drawn = drawn, prepare = function() return p end }):pieces()
  end

  --- Starts a conversation: system, messages, seed, tools and any generation option as default for every turn.
  function verbs:session(opts)
    self:check_open()
    return talk.new(self.engine, name .. ":session", opts)
  end

  --- Moves everything that runs here.
  -- @param opts table|nil  ms: wait at most so long for something to happen
  -- @return boolean whether work is left
  function verbs:step(opts)
    self:check_open()
    local o = options.check(name .. ":step", opts, { ms = is.at_least(0) })
    return self.engine:step(o.ms or 0)
  end

  return verbs
end

talk.mt = {
  __name = "fathom.talk",
  __index = methods,
  __close = methods.close,
  __gc = function(self) pcall(methods.close, self) end,
  __tostring = function(self)
    return self.closed and "fathom session (closed)" or ("fathom session (%d messages)"):format(#self.list)
  end,
}

return talk

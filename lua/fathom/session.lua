--- session.lua - a conversation: its messages, the core session that caches it, its tasks in order.

local chat = require "fathom.chat"
local choices = require "fathom.choices"
local fault = require "fathom.fault"
local json = require "fathom.json"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local task = require "fathom.task"
local window = require "fathom.window"

local session = {}
local methods = {}
local is = options.is
local copy = json.copy

-- ---- life -----------------------------------------------------------------------------------------------

local function new(engine, model, core, fields)
  engine:adopt()
  local self = setmetatable({ engine = engine, model = model, core = core, list = {}, defaults = {},
                              exact = core:exact() }, session.mt)
  for k, v in pairs(fields) do self[k] = v end
  return self
end

local function check_open(self)
  options.self("session", self, session.mt)
  if not self.core then options.raise "attempt to use a closed session" end
end

--- Makes a session; called by model:session.
function session.new(engine, model, opts)
  local o = options.check("model:session", opts, sampling.session)
  engine:check_options("model:session", o)
  local list = {}
  if o.system then list[1] = { role = "system", content = o.system } end
  if o.messages and #o.messages > 0 then
    chat.normal(o.messages)
    for _, m in ipairs(o.messages) do list[#list + 1] = copy(m) end
  end
  local core, err = fault.guard(engine.core.session, engine.core)
  if not core then return nil, err end
  o.system, o.messages = nil, nil
  local drawn = not o.seed
  o.seed = o.seed or sampling.draw_seed()
  return new(engine, model, core, { list = list, defaults = o, drawn = drawn })
end

--- Ends the session; its running tasks are cancelled.
function methods:close()
  options.self("session", self, session.mt)
  if not self.core then return end
  for _, t in ipairs(table.move(self.engine.live, 1, #self.engine.live, 1, {})) do
    if t.slot == self then t:cancel() end
  end
  self.core:close()
  self.core = nil
  self.engine:release()
end

-- ---- turns ------------------------------------------------------------------------------------------------

local function is_ids(turn) return type(turn) == "table" and math.type(turn[1]) == "integer" end

-- What somebody says: a string, a message, a list of messages (results of tools), or ids.
local function new_messages(what, turn)
  if type(turn) == "string" then return { { role = "user", content = turn } } end
  if type(turn) ~= "table" then
    options.raise(("%s: expected text, a message or a list of messages, got %s"):format(what, type(turn)))
  end
  local list = turn.role and { turn } or turn
  chat.normal(list)
  return copy(list)
end

local function append(list, more)
  return table.move(more, 1, #more, #list + 1, table.move(list, 1, #list, 1, {}))
end

-- Sampled ids without the stop token that closed them: the template brings its own.
local function said_ids(engine, t)
  local ids = table.move(t.result.ids, 1, #t.result.ids, 1, {})
  if not t.options.ignore_eos and engine.eos[ids[#ids]] then ids[#ids] = nil end
  return ids
end

local function assistant_message(engine, t)
  local r = t.result
  local calls
  for i, call in ipairs(r.tool_calls) do
    calls = calls or {}
    calls[i] = { type = "function", ["function"] = { name = call.name, arguments = call.raw } }
  end
  return { role = "assistant", content = r.answer, reasoning_content = r.think ~= "" and r.think or nil,
           tool_calls = calls, reply = { ids = said_ids(engine, t), opened = t.reply.opened } }
end

-- A turn that brought nothing (it failed, or was cancelled before the first token) is taken back.
local function keep_turn(self, t, list)
  self.exact = t.usage.exact
  if t.result and #t.result.ids > 0 then
    list[#list + 1] = assistant_message(self.engine, t)
    self.list = list
  end
end

local function turn_options(self, what, opts, names)
  local given = options.check(what, opts, names)
  local o = sampling.merge(given, self.defaults, self.engine.defaults)
  -- a turn's own form takes the place of the session's
  if given.schema then o.grammar = given.grammar end
  if given.grammar then o.schema = given.schema end
  self.engine:check_options(what, o)
  return o, self.drawn and not given.seed
end

local function ids_turn(self, ids)
  if self.list[1] then
    options.raise "session:ask: a session with messages takes no ids: the template would not know them"
  end
  self.engine:check_ids("session:ask", ids)
  return function() return append(self.core:ids(), ids) end
end

local function message_turn(self, turn, o)
  local said, list = new_messages("session:ask", turn), nil
  local function prepare()
    local ids, err
    ids, err, list = window.render(self.engine, append(self.list, said), o)
    return ids, err, list
  end
  return prepare, function(t) keep_turn(self, t, list) end
end

--- Says something and gets a task for the reply. Behind a task that still runs it waits its turn.
-- @param turn string|table  text, a message, a list of messages (results of tools), or a list of ids
-- @param opts table|nil     options of this turn, over the session's own
-- @return task; it has failed already where the turn cannot be rendered
-- @usage local task = session:ask "What is 17 + 25?"
function methods:ask(turn, opts)
  check_open(self)
  local o, drawn = turn_options(self, "session:ask", opts, sampling.turn)
  local prepare, finished
  if is_ids(turn) then prepare = ids_turn(self, turn) else prepare, finished = message_turn(self, turn, o) end
  return task.new(self, o, { model = self.model, prepare = prepare, drawn = drawn, finished = function(t)
    if t.reply and finished then finished(t) end
  end })
end

--- Says something and loops over the pieces of the reply; leaving the loop cancels it.
-- @return iterator over piece, info; raises when the task fails
-- @usage for piece, info in session:stream "Hello!" do io.write(piece) end
function methods:stream(turn, opts) return self:ask(turn, opts):pieces() end

--- Several answers to one text: the prompt is read once. The session's messages stay as they are.
-- @param turn string|table  as for ask
-- @param opts table|nil     n and the options of the turn
-- @return list of results, or nil, err
-- @usage local votes = session:sample("Heads or tails?", { n = 5 })
function methods:sample(turn, opts)
  check_open(self)
  local o, drawn = turn_options(self, "session:sample", opts, sampling.known)
  local said = new_messages("session:sample", turn)
  return session.fan_out(self, o, function() return window.render(self.engine, append(self.list, said), o) end, drawn)
end

-- A task in a fork of the slot, which goes with it.
local function branch(slot, o, sample, first)
  local core, err = fault.guard(slot.core.fork, slot.core)
  if not core then return nil, err end
  return task.new({ engine = slot.engine, core = core }, o, { model = slot.model, sample = sample, drawn = first.how.drawn,
                  prepare = function() return first.prompt, nil, first.messages end, finished = function() core:close() end })
end

--- Several replies to one prompt: read once in `slot`, then decoded in forks of it.
-- @return list of results, or nil, err
function session.fan_out(slot, o, prepare, drawn)
  local first = task.new(slot, sampling.merge({ max_tokens = 0 }, o), { model = slot.model, prepare = prepare, drawn = drawn })
  local read, err = first:wait()
  if not read then return nil, err end
  if read.finish == "cancelled" then return fault.give("cancelled", "the prompt was not read to its end") end
  local tasks, results = {}, {}
  for i = 1, o.n or 1 do
    tasks[i], err = branch(slot, o, i - 1, first)
    if err then break end
  end
  for i = 1, err and 0 or #tasks do
    results[i], err = tasks[i]:wait()
    if err then break end
  end
  for _, t in ipairs(tasks) do t:cancel() end
  if err then return nil, err end
  return results
end

-- A task that reads a prompt and says nothing: forks go on from there.
local function read(self, what, turn, given)
  local o = turn_options(self, what, sampling.merge({ max_tokens = 0 }, given), sampling.turn)
  local said = new_messages(what, turn)
  return task.new(self, o, { model = self.model, prepare = function()
    return window.render(self.engine, append(self.list, said), o)
  end })
end

--- How likely given replies are: see choices.lua.
function methods:score(turn, replies, opts)
  check_open(self)
  return choices.score(self, read, turn, replies, opts)
end

--- Says something and reads the reply as JSON. The masks keep it to the schema; the prompt does not mention that: to
-- say what is wanted helps the model.
-- @param turn string|table  as for ask
-- @param opts table|nil     schema (any JSON without one) and the options of the turn
-- @return value, result; or nil, err: code "limit" where not even the shortest document fits into max_tokens
-- @usage local point = assert(session:json("Where is it?", { schema = { x = "integer", y = "integer" } }))
function methods:json(turn, opts)
  check_open(self)
  local given = options.check("session:json", opts, sampling.turn)
  if given.grammar then options.raise "session:json: replies follow a schema here, not a grammar" end
  given.schema = given.schema or self.defaults.schema or {}
  local result, err = self:ask(turn, given):wait()
  if not result then return nil, err end
  if result.finish == "cancelled" then return fault.give("cancelled", "the reply was cancelled before it was complete") end
  if result.finish ~= "stop" then
    return fault.give("limit", ("no document fits: %d tokens were sampled"):format(#result.ids), "raise max_tokens or ctx")
  end
  return json.decode(result.answer), result
end

-- ---- copies and files -----------------------------------------------------------------------------------------

--- A second session that goes on from here; what both have said so far is cached once.
-- @return session, or nil, err
function methods:fork()
  check_open(self)
  local core, err = fault.guard(self.core.fork, self.core)
  if not core then return nil, err end
  return new(self.engine, self.model, core, { list = copy(self.list), defaults = copy(self.defaults),
                                              drawn = self.drawn })
end

--- The conversation so far, as messages that render would take.
-- @return list of { role =, content =, reasoning_content =, tool_calls = }
function methods:messages()
  check_open(self)
  local out = {}
  for i, m in ipairs(self.list) do
    out[i] = copy(m)
    out[i].reply = nil
  end
  return out
end

-- Tools as data: what runs them stays behind.
local function tools_note(tools)
  if not tools then return nil end
  local out = {}
  for k, tool in pairs(tools) do
    if type(tool) == "table" then
      tool = copy(tool)
      tool.run = nil
    end
    out[k] = tool
  end
  return out
end

local save_known = { pages = is.one_of(is.word("stored", "8bit"), is.no) }

--- Writes the conversation to a file: ids with their roles, messages, seed, defaults, and the cached pages, so that a
-- restored session goes on at once. The file appears whole or not at all.
-- @param path string
-- @param opts table|nil  pages: "stored" (the default: what follows is the same byte for byte), "8bit" (28 % of f32; less than
--   0.001 nats a token away in the mean, one in a thousand further than 0.01, on a GPU one in a hundred, and session.exact is false
--   after it is restored), false (small; computed again)
-- @return true, or nil, err; the old file is still there then
-- @usage assert(session:save("game.session", { pages = "8bit" }))
function methods:save(path, opts)
  check_open(self)
  options.argument("session:save", "path", path, is.path)
  local o = options.check("session:save", opts, save_known)
  local defaults = copy(self.defaults)
  defaults.tools = tools_note(defaults.tools)
  if defaults.logit_bias then defaults.logit_bias = sampling.bias_pairs(defaults.logit_bias) end
  if type(defaults.overflow) == "function" then defaults.overflow = nil end
  local note = json.encode { messages = json.array(copy(self.list)), defaults = json.object(defaults) }
  return fault.guard(self.core.save, self.core, path, note, o.pages == false and "none" or o.pages or "stored")
end

-- The note of a saved session as { messages =, defaults = }, or nil.
local function read_note(note)
  local value = json.decode(note or "")
  local ok = type(value) == "table" and type(value.messages) == "table" and type(value.defaults) == "table"
  for _, m in ipairs(ok and value.messages or {}) do ok = ok and type(m) == "table" end
  return ok and value or nil
end

--- The messages of a saved session, without a model: also where the file cannot be restored, being of another model or
-- version, damaged, or cut short.
-- @param path string
-- @return list of messages, and an err as well where their own bytes were changed; or nil, err
-- @usage local messages = assert(fathom.history "game.session")
function session.history(path)
  options.argument("fathom.history", "path", path, is.path)
  local note, sound = fault.guard(require("fathom.core").history, path)
  if not note then return nil, sound end
  local value = read_note(note)
  if not value then return fault.give("format", path .. " holds a session without its messages") end
  for _, m in ipairs(value.messages) do m.reply = nil end
  if sound then return value.messages end
  return value.messages, fault.new("format", path .. ": the history was changed after it was saved")
end

--- Reads a conversation back; called by model:restore.
function session.restore(engine, model, path)
  local core, note = fault.guard(engine.core.restore, engine.core, path)
  if not core then return nil, note end
  local value = read_note(note)
  if not value then
    core:close()
    return fault.give("format", path .. " holds a session without its messages")
  end
  local defaults, list = {}, {}
  for k, v in pairs(value.defaults) do defaults[k] = v end
  for i, m in ipairs(value.messages) do list[i] = copy(m) end
  if defaults.logit_bias then defaults.logit_bias = sampling.bias_map(defaults.logit_bias) end
  return new(engine, model, core, { list = list, defaults = defaults })
end

session.mt = {
  __name = "fathom.session",
  __index = methods,
  __close = methods.close,
  -- at the end of a program what hangs together is collected in any order
  __gc = function(self) pcall(methods.close, self) end,
  __tostring = function(self)
    if not self.core then return "fathom session (closed)" end
    return ("fathom session (%d messages, %d tokens)"):format(#self.list, self.core:len())
  end,
}

return session

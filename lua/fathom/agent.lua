--- agent.lua - a model that works with tools until it has an answer: think, call, observe, again.
-- Replies go through a session, so what was sampled is replayed by its very ids; tools are told and called in the family's own
-- markup. What goes wrong with a call is its output, "error: ...", and the model may try again. An agent that cannot go on hands
-- over to a person or a script, and takes up again from there.

local backend = require "fathom.backend"
local calls = require "fathom.agent.calls"
local chat = require "fathom.chat"
local crew = require "fathom.crew"
local fault = require "fathom.fault"
local json = require "fathom.json"
local loop = require "fathom.agent.loop"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local span = require "fathom.span"
local stuck = require "fathom.agent.stuck"
local validate = require "fathom.validate"

local agent = {}
local methods = {}
local is = options.is

local TURNS, RETRIES, OUTPUT_BYTES, MAX_TOKENS = 32, 3, 4000, 1024
local FORMAT = "fathom agent run 1"

-- Options of a generation that go to every turn.
local sampled = sampling.merge({}, sampling.known)
for _, name in ipairs { "n", "tools", "schema", "grammar", "ignore_eos", "logprobs" } do sampled[name] = nil end

local known = sampling.merge({
  tools = is.table, limits = is.table, approve = is.callable, on_event = is.callable, takeover = is.callable,
  stuck = is.one_of(is.boolean, is.table, is.callable), help = is.boolean, retries = is.count(0), output_bytes = is.count(16),
  system = is.string,
}, sampled)

local limits_known = { turns = is.count(1), tokens = is.count(1), seconds = is.at_least(0) }
local start_known = sampling.merge({ context = is.any }, sampled)

local HELP = { doc = "Ask a person for help when you cannot go on.", args = { question = "string" },
               run = function() return nil, "nobody is there" end }

-- ---- making one ---------------------------------------------------------------------------------------------------

local function with_help(tools)
  local out = {}
  for k, tool in pairs(tools) do out[k] = tool end
  if #tools > 0 then out[#out + 1] = sampling.merge({ name = "ask_for_help" }, HELP) else out.ask_for_help = HELP end
  return out
end

local function check_open(self)
  options.self("agent", self, agent.mt)
  if self.closed then options.raise "attempt to use a closed agent" end
end

--- Makes an agent. It holds no conversation: each start is a run of its own, many may go on at once.
-- @param b backend        a model, a session (runs begin where it stands), a remote or a mock
-- @param opts table|nil
--   tools     name -> { doc =, args = schema, returns = schema, run = function(args, about) }, told in sorted order, or a list of such
--             tables with name =. run returns a value (text as it is, other data as JSON), or nil and why; it may yield. about:
--             context (from start), step, by
--   limits    turns (32), tokens (of replies, in all), seconds
--   approve   function(call) before each call: true, or false and a reason, or other arguments; call has name, arguments, step
--   on_event  function(kind, data): "reply" "call" "output" "invalid" "refused" "takeover" "resume" "finish"
--   takeover  function(summary, state) -> what to do when the agent is stuck: a string (said to the agent; it is the answer where it
--             asked), { say =, calls = { { name =, arguments =, think = } } (made in its place), answer = }, true (go on), or nil: the run
--             pauses with finish "takeover" until agent:resume
--   stuck     when that is: { repeats = 3 (the same call with the same output), errors = 3 (in a row), idle = 6 (calls that bring
--             nothing new) }, each of them a number or false; or function(state) -> reason | nil. The rules hold where takeover
--             or stuck is given. Calls that make no sense more than `retries` (3) times in a row always count
--   help      true: the agent has a tool more, ask_for_help { question }
--   output_bytes (4000) of a tool's output reach the model; system, seed, temperature ... go to every turn
-- @return agent
-- @usage local a = fathom.agent(model, { tools = { calculator = fathom.tools.calculator() } })
--   print(assert(a:start("What is 4821 * 37?"):wait()).text)
function agent.new(b, opts)
  backend.check("fathom.agent", b)
  local o = options.check("fathom.agent", opts, known)
  local limits = options.check("fathom.agent: limits", o.limits, limits_known)
  limits.turns = limits.turns or TURNS
  local self = setmetatable({ backend = b, limits = limits, approve = o.approve, on_event = o.on_event, takeover = o.takeover,
    help = o.help or false, retries = o.retries or RETRIES, output_bytes = o.output_bytes or OUTPUT_BYTES,
    max_tokens = o.max_tokens or MAX_TOKENS, sampling = { system = o.system }, runs = setmetatable({}, { __mode = "k" }) }, agent.mt)
  self.stuck = stuck.rules("fathom.agent", o.stuck, o.takeover ~= nil)
  self.tools = calls.tools("fathom.agent", o.help and with_help(o.tools or {}) or o.tools or {})
  for name in pairs(sampled) do self.sampling[name] = o[name] end
  return self
end

-- ---- runs ---------------------------------------------------------------------------------------------------------

local function transcript(run)
  if run.transcript then return json.copy(run.transcript) end
  local list = run.session:messages()
  for _, m in ipairs(run.state.turn) do list[#list + 1] = json.copy(m) end
  return list
end

local function result_of(run)
  local s = run.state
  return { text = s.text, think = s.think, transcript = transcript(run), steps = s.steps, calls = json.copy(s.calls),
           takeovers = s.takeovers, takeover_rate = s.steps > 0 and s.takeovers / s.steps or 0.0, finish = s.finish, limit = s.limit,
           why = s.why, summary = s.finish == "takeover" and s.summary or nil, question = s.question, usage = json.copy(s.usage),
           seed = s.seed, seconds = s.seconds }
end

-- A run that may go on keeps its session.
local function go_on(run, sp)
  run.task.usage = run.state.usage
  local ok, err = loop.run(run)
  if not ok then
    sp:close { err = { code = err.code, message = err.message } }
    return nil, err
  end
  local result = result_of(run)
  if run.state.finish ~= "takeover" then
    run.transcript = json.copy(result.transcript)
    run.session:close()
  end
  if run.agent.on_event then run.agent.on_event("finish", result) end
  sp:close { finish = result.finish, steps = result.steps, takeovers = result.takeovers, usage = result.usage, text = result.text }
  return result
end

-- Sets a run going and remembers it by its task.
local function launch(self, run, open)
  local t = crew.task(self.backend, function(t)
    local sp <close> = span.open("agent", { goal = run.state.goal })
    run.task = t
    self.runs[t] = run
    if not run.session then
      local session, err = open()
      if not session then return nil, err end
      run.session = session
    end
    return go_on(run, sp)
  end)
  self.runs[t] = run
  return t
end

local function goal_messages(goal)
  if type(goal) == "string" then return { { role = "user", content = goal } }, goal end
  if type(goal) ~= "table" then
    options.raise("agent:start: the goal is text, a message or a list of messages, got a " .. type(goal))
  end
  local list = goal.role and { goal } or goal
  chat.normal(list)
  return json.copy(list), tostring(list[#list].content or "")
end

--- Starts a run.
-- @param goal string|table  text, a message, or a list of messages
-- @param opts table|nil     context (given to the tools), seed and other options of a generation for this run
-- @return task              like a session's: wait(), done, result, err, cancel(), pieces(). Its result: text, think,
--   transcript (messages), steps (replies), calls ({ name =, arguments =, output =, error =, step = }), takeovers, takeover_rate
--   (a step), usage, seed, finish: "stop", "limit" (then limit names it), "length", "cancelled", or "takeover" (then summary,
--   and question where it asked one)
-- @usage local result, err = a:start("Find and take the harp.", { seed = 1 }):wait()
function methods:start(goal, opts)
  check_open(self)
  local o = options.check("agent:start", opts, start_known)
  local messages, text = goal_messages(goal)
  local context = o.context
  o.context = nil
  o = sampling.merge(o, self.sampling)
  o.tools = next(self.tools.told) and self.tools.told or nil
  return launch(self, { agent = self, state = loop.begin(text, messages), context = context }, function()
    return backend.session(self.backend, o)
  end)
end

--- Takes up a run that was handed over (finish "takeover"), failed, or was restored.
-- @param t task             what start, resume or restore gave
-- @param action any         what a takeover function may return; nothing for a run that failed
-- @return task              of the rest of the run; its result is that of the whole
-- @usage local rest = a:resume(task, "The key is in the attic.")
function methods:resume(t, action)
  check_open(self)
  local run = self.runs[t]
  if not run then options.raise "agent:resume: this is no task of the agent" end
  if not t.done then options.raise "agent:resume: the run is not over" end
  if run.state.finish and run.state.finish ~= "takeover" and not t.err then
    options.raise(("agent:resume: the run is over: finish is '%s'"):format(run.state.finish))
  end
  local decided = stuck.action("agent:resume", action)
  if run.state.finish == "takeover" and not decided then options.raise "agent:resume: the run was handed over: say what is to be done" end
  self.runs[t] = nil
  return launch(self, { agent = self, state = run.state, session = run.session, context = run.context, action = decided,
                        transcript = run.transcript })
end

-- ---- files ----------------------------------------------------------------------------------------------------------

local function write(path, text)
  local part = path .. ".part"
  local file, why = io.open(part, "wb")
  if not file then return fault.give("io", why) end
  local ok
  ok, why = file:write(text)
  ok = file:close() and ok
  if ok then ok, why = os.rename(part, path) end
  if ok then return true end
  os.remove(part)
  return fault.give("io", tostring(why))
end

local count, messages = { type = "integer", minimum = 0 }, { type = "array", items = { type = "object", required = { "role" } } }
local done_calls = { type = "array", items = { type = "object", required = { "name", "output" },
                                                properties = { name = { type = "string" }, output = { type = "string" } } } }
local STATE = { type = "object", required = { "goal", "turn", "calls", "since", "steps", "invalid", "takeovers", "seconds", "usage" },
  properties = { goal = { type = "string" }, turn = messages, calls = done_calls, since = count, steps = count, invalid = count,
    takeovers = count, seconds = { type = "number" }, text = { type = "string" }, think = { type = "string" },
    question = { type = "string" }, acting = { type = "array", items = { type = "object", required = { "name" } } },
    usage = { type = "object", required = { "prompt", "cached", "completion" },
              properties = { prompt = count, cached = count, completion = count } } } }

-- Why the record of a file is none that save wrote (somebody edited it); nil: it is sound.
local function fault_of(record)
  local ok, why = validate.check(record.state, STATE, "state")
  if ok and record.messages then ok, why = validate.check(record.messages, messages, "messages") end
  if not ok then return why end
  local s = record.state
  if #s.turn == 0 and not s.acting and not s.finish then return "state has nothing to go on with" end
  for _, list in ipairs { s.turn, record.messages or {} } do
    ok, why = pcall(chat.normal, list)
    if not ok and list[1] then return (tostring(why):gsub("^[^\n]-%.lua:%d+: ", "")) end
  end
end

-- The record of a file, or nil.
local function read(path)
  local file, why = io.open(path, "rb")
  if not file then return fault.give("io", why) end
  local record = json.decode(file:read "a" or "")
  file:close()
  if type(record) ~= "table" or record.format ~= FORMAT or type(record.state) ~= "table" then
    return fault.give("format", path .. " holds no run of an agent")
  end
  why = fault_of(record)
  if why then return fault.give("format", ("the run in %s is damaged: %s"):format(path, why)) end
  return record
end

--- Writes a run to a file, at any time: what is under way is done again when it is taken up (a reply gives the same ids; a call
-- that was not over is made again). With a model, its session goes to a file beside it, path .. ".session" or, where that one
-- belongs to a run that was saved here before, path .. ".session2": a save that is killed leaves the earlier run whole.
-- @param t task       what start, resume or restore gave
-- @param path string
-- @return true, or nil, err
-- @usage assert(a:save(task, "game.run"))
function methods:save(t, path)
  options.self("agent", self, agent.mt)
  options.argument("agent:save", "path", path, is.path)
  local run = self.runs[t]
  if not run then options.raise "agent:save: this is no task of the agent" end
  local s = json.copy(run.state)
  local record = { format = FORMAT, state = json.object(s) }
  if not run.session then return fault.give("unsupported", "the run has no session: it failed before it began") end
  if run.state.finish and run.state.finish ~= "takeover" then
    record.messages = json.array(result_of(run).transcript)
  elseif backend.is_local(run.session) then
    local before = read(path)
    before = before and (before.session or ".session")
    record.session = before == ".session" and ".session2" or ".session"
    local ok, err = run.session:save(path .. record.session)
    if not ok then return nil, err end
    ok, err = write(path, json.encode(record))
    if ok and before and before ~= record.session then os.remove(path .. before) end
    return ok, err
  else
    record.messages = json.array(run.session:messages())
    record.seed = run.session.defaults.seed
  end
  return write(path, json.encode(record))
end

-- The session of a saved run.
local function reopen(self, record, path)
  local b = self.backend
  if not record.messages then
    if not backend.is_local(b) then return fault.give("unsupported", "the run in " .. path .. " was one of a model of its own process") end
    return (b.model or b):restore(path .. (record.session == ".session2" and ".session2" or ".session"))
  end
  local o = sampling.merge({ seed = record.seed }, self.sampling)
  o.system, o.tools = nil, next(self.tools.told) and self.tools.told or nil
  if record.messages[1] then o.messages = record.messages end
  return b:session(o)
end

--- Reads a run back. Tools, limits and hooks are those of this agent.
-- @param path string
-- @param opts table|nil  context
-- @return task           which goes on at once; a run that was handed over is done, with finish "takeover": resume it. Or nil, err
-- @usage local result = assert(assert(a:restore "game.run"):wait())
function methods:restore(path, opts)
  check_open(self)
  options.argument("agent:restore", "path", path, is.path)
  local o = options.check("agent:restore", opts, { context = is.any })
  local record, err = read(path)
  if not record then return nil, err end
  if record.state.finish and record.state.finish ~= "takeover" then return fault.give("format", "the run in " .. path .. " is over") end
  local session
  session, err = reopen(self, record, path)
  if not session then return nil, err end
  local state = {}
  for k, v in pairs(record.state) do state[k] = v end
  return launch(self, { agent = self, state = state, session = session, context = o.context })
end

--- Cancels its runs and lets go of those that were handed over. The backend stays as it is. May be called twice.
function methods:close()
  options.self("agent", self, agent.mt)
  self.closed = true
  local runs = {}
  for t, run in pairs(self.runs) do runs[t] = run end
  for t, run in pairs(runs) do
    t:cancel()
    if run.session then run.session:close() end
  end
end

agent.mt = {
  __close = methods.close,
  __name = "fathom.agent",
  __index = methods,
  __tostring = function(self)
    return ("fathom agent (%d tools, %d turns at most)"):format(#self.tools.names, self.limits.turns)
  end,
}

return agent

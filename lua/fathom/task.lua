--- task.lua - one generation under way: started when its session is free, drained as the engine goes on.

local fault = require "fathom.fault"
local note = require "fathom.note"
local options = require "fathom.options"
local reply = require "fathom.reply"
local sampling = require "fathom.sampling"

local task = {}

local methods = {}
task.methods = methods

task.mt = {
  __name = "fathom.task",
  __index = methods,
  __tostring = function(t)
    local state = not t.done and (t.core and "running" or "queued") or t.err and "failed" or t.result.finish
    return ("fathom task (%s, %d tokens)"):format(state, t.usage.completion)
  end,
}

-- Metatables of tasks: the engine's, and those of other backends (job.lua), which share waiting and pieces.
task.kinds = { [task.mt] = true }

local function check_self(self)
  if not task.kinds[getmetatable(self)] then options.self("task", self, task.mt) end
end

-- How long one turn of the engine is while somebody blocks for a result, in ms.
local SLICE_MS = 50

local function no_usage()
  return { prompt = 0, cached = 0, completion = 0, drafted = 0, accepted = 0, shifted = 0, exact = true,
           prefill_ms = 0.0, decode_ms = 0.0 }
end

--- Makes a task and gives it to the engine.
-- @param slot table   { engine =, core = core session, current = the task that runs, starting = the one whose prompt is made:
--                     that may call a user's function, which may come back here }
-- @param o table      checked options with defaults and seed
-- @param how table    prepare() -> ids, nil, messages | nil, err, called when the task starts; finished(task), called when
--                     it is over and before anybody sees that; sample: which of n samples; drawn: nobody chose the seed;
--                     unheard: nobody loops over its pieces or looks at usage before the end, so neither is made
-- @return task
function task.new(slot, o, how)
  if slot.starting then
    return task.failed(slot, fault.new("limit", "the overflow function of a session cannot ask that session itself"), how)
  end
  local t = setmetatable({ done = false, usage = no_usage(), slot = slot, engine = slot.engine, model = how.model,
                           options = o, how = how, queue = not how.unheard and {} or nil }, task.mt)
  t.span = note.open(t)
  slot.engine:add(t)
  return t
end

--- A task that failed before it began.
function task.failed(slot, err, how)
  local t = setmetatable({ done = true, usage = no_usage(), slot = slot, engine = slot.engine, err = err,
                           how = how or {}, queue = {} }, task.mt)
  return t
end

-- ---- driven by the engine -----------------------------------------------------------------------------------

-- Ends the task: tells its owner, then everybody.
local function over(self)
  if self.core then
    self.usage = self.core:usage()
    if self.result then self.result.usage = self.core:usage() end
    self.core:close()
    self.core = nil
  end
  if self.slot.current == self then self.slot.current = nil end
  self.engine:remove(self)
  if self.how.finished then self.how.finished(self) end
  self.done = true
  note.over(self)
  self.engine:pump()
end

local function finish(self, state)
  if self.reply then
    self.result = self.reply:result(state)
  else
    self.result = { text = "", think = "", answer = "", tool_calls = {}, ids = {}, finish = state, usage = no_usage() }
  end
  self.result.seed = options.to_integer(self.options.seed)
  over(self)
end

--- Ends the task with an error.
function methods:fail(err)
  if self.done then return end
  self.err = err
  over(self)
end

-- What a user's function raised, as an error of ours.
local function raised(value)
  local known = type(value) ~= "string" and type(value) ~= "nil" and pcall(function() assert(value.code and value.message) end)
  return known and value or fault.new("format", type(value) == "table" and "an error that is a table was raised" or tostring(value))
end

--- Called by the engine when the session is free.
function methods:start()
  self.slot.starting = self
  local ok, ids, err, messages = pcall(self.how.prepare)
  self.slot.starting = nil
  if self.done then return end                     -- its session was closed
  if not ok then ids, err = nil, raised(ids) end
  if not ids then return self:fail(err) end
  if #ids == 0 then
    return self:fail(fault.new("format", "the prompt is empty: at least one token is needed"))
  end
  local core
  local marks = self.engine.marks
  local opened = reply.opened(marks, ids)
  -- options that nobody checked fail the task here: raised, they would be raised from every step after
  local ready, wanted = pcall(sampling.core, self.options, self.how.sample, opened and marks.think_end or nil)
  if not ready then return self:fail(fault.new("format", wanted)) end
  ok, core, err = pcall(self.slot.core.task, self.slot.core, ids, wanted)
  if not ok then core, err = nil, fault.new("format", core) end
  if not core then return self:fail(err) end
  self.slot.current, self.core, self.prompt, self.messages = self, core, ids, messages
  note.started(self, messages)
  self.reply = reply.new(self.engine.core, marks, opened, self.options.logprobs)
  self.engine.moves = self.engine.moves + 1
end

--- Called by the engine after a step: takes what was sampled, notices the end.
function methods:drain()
  local took, core, r, queue = 0, self.core, self.reply, self.queue
  for id, text, last, logprob, filtered, top in core.next, core do
    took = took + 1
    r:take(queue, id, text, last, logprob, filtered, top)
  end
  self.engine.moves = self.engine.moves + took
  local state = core:state()
  if state == "running" then
    -- behind the first token it changes with tokens only: with hundreds of tasks the asking would be felt
    if queue and (took > 0 or self.usage.completion == 0) then self.usage = core:usage() end
  elseif state == "failed" then
    self:fail(core:error())
  else
    r:rest(queue)
    finish(self, state)
  end
end

-- ---- for users ----------------------------------------------------------------------------------------------

--- How a coroutine waits: it yields the handle { task =, model = } and looks again when somebody resumes it. fathom.loop puts
-- the way of an event loop here.
task.pause = coroutine.yield

--- Coroutines that a crew resumes (crew.lua): they yield to it, whatever loop goes on around.
task.crewed = setmetatable({}, { __mode = "k" })

--- Yields a handle to whoever drives this coroutine.
function task.yield(handle)
  if task.crewed[coroutine.running()] then return coroutine.yield(handle) end
  return task.pause(handle)
end

-- One turn of waiting: yields where that is possible, else works.
local function wait_a_little(self, ms)
  if coroutine.isyieldable() then
    task.yield { task = self, model = self.model }
  else
    self.engine:step(ms)
  end
end

--- Waits for the end. Inside a coroutine it yields { task =, model = } and looks again when resumed; elsewhere it works.
-- @return result, or nil, err when the task failed
-- @usage local result = assert(session:ask("Hi"):wait())
function methods:wait()
  check_self(self)
  while not self.done do wait_a_little(self, SLICE_MS) end
  if self.err then return nil, self.err end
  return self.result
end

--- Stops the task; what it has said stays in task.result, with finish "cancelled".
function methods:cancel()
  check_self(self)
  if self.done then return end
  if not self.core then return finish(self, "cancelled") end
  self.core:cancel()
  self:drain()
end

--- The pieces as they come; leaving the loop cancels the task. Raises task.err when the task fails.
-- @return iterator over text, info (channel, ids, logprobs)
-- @usage for piece, info in task:pieces() do io.write(piece) end
function methods:pieces()
  check_self(self)
  local function stop() self:cancel() end
  local guard = setmetatable({}, { __close = stop, __gc = stop })
  local at = 0
  local function next_piece()
    while guard do
      local piece = self.queue[at + 1]
      if piece then
        at = at + 1
        return piece.text, piece.info
      end
      if self.done and self.err then error(self.err, 0) end
      if self.done then return nil end
      wait_a_little(self, self.slice_ms or 0)
    end
  end
  return next_piece, nil, nil, guard
end

return task

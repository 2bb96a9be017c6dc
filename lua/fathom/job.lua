--- job.lua - one reply under way on a backend that is no model (a mock, a remote): a task with the face of the engine's.
-- The backend hands it pieces as they come, and then ends it; channels, texts and the result are put together here.

local fault = require "fathom.fault"
local json = require "fathom.json"
local note = require "fathom.note"
local options = require "fathom.options"
local span = require "fathom.span"
local task = require "fathom.task"

local job = {}
local methods = setmetatable({}, { __index = task.methods })

job.mt = {
  __name = "fathom.task",
  __index = methods,
  __tostring = function(t)
    local state = not t.done and (t.started and "running" or "queued") or t.err and "failed" or t.result.finish
    return ("fathom task (%s, %d tokens)"):format(state, t.usage.completion)
  end,
}
task.kinds[job.mt] = true

local function no_usage()
  return { prompt = 0, cached = 0, completion = 0, drafted = 0, accepted = 0, shifted = 0, exact = true,
           prefill_ms = 0.0, decode_ms = 0.0 }
end

-- The span of a job, with the fields that an engine's task has as far as they are known.
local function open_span(desk, o, how)
  if not span.listening() then return nil end
  return span.leaf("generate", { backend = desk.label, model = desk.backend.model, sample = how.sample or 0,
                                 drawn = how.drawn or nil, options = note.options(o) })
end

--- Makes a job and gives it to its desk.
-- @param desk table   what moves it, see desk.lua
-- @param slot table   { current = the job that runs }: one at a time in a slot
-- @param o table      checked options with defaults and seed
-- @param how table    prepare() -> prompt | nil, err, called when the job starts; finished(job), called when it is over and
--                     before anybody sees that; sample: which of n samples (from 0); group: shared by the samples of one call;
--                     drawn: nobody chose the seed
function job.new(desk, slot, o, how)
  local t = setmetatable({ done = false, usage = no_usage(), slot = slot, engine = desk, model = desk.backend, options = o,
                           how = how, queue = {}, slice_ms = desk.slice_ms, parts = {}, texts = { think = {}, answer = {} },
                           tool_calls = {} }, job.mt)
  t.span = open_span(desk, o, how)
  desk:add(t)
  return t
end

-- ---- driven by the backend ------------------------------------------------------------------------------------

local function over(self)
  if self.slot.current == self then self.slot.current = nil end
  self.engine:remove(self)
  if self.how.finished then self.how.finished(self) end
  self.done = true
  note.over(self)
  self.engine:pump(self.slot)
end

--- Called by the desk when the slot is free.
function methods:start()
  if self.engine.closed then return self:fail(fault.new("cancelled", "the backend was closed")) end
  local prompt, err = self.how.prepare()
  if not prompt then return self:fail(err) end
  self.slot.current, self.started, self.prompt = self, true, prompt
  if self.span then self.span:set { messages = note.messages(prompt.messages), text_prompt = prompt.text } end
  return self.engine:begin(self, prompt)
end

--- A piece of the reply.
-- @param channel string  "think", "answer" or "tool"
-- @param text string     whole characters
-- @param more table|nil  logprobs; mark: true where the text only opens or closes a block
function methods:say(channel, text, more)
  if text == "" then return end
  local info = { channel = channel, ids = {}, logprobs = more and more.logprobs }
  self.queue[#self.queue + 1] = { text = text, info = info }
  self.parts[#self.parts + 1] = text
  local list = self.texts[channel]
  if list and not (more and more.mark) then list[#list + 1] = text end
end

--- The text around the arguments of a tool call, in the form with <tool_call> marks.
function job.call_text(name) return ('<tool_call>\n{"name": %s, "arguments": '):format(json.encode(name)), "}\n</tool_call>" end

--- A tool call, whole.
-- @param call table  name, arguments (a table; nil where they are no JSON), raw, error, id
function methods:call(call)
  local open, close = job.call_text(call.name)
  self.tool_calls[#self.tool_calls + 1] = call
  self:say("tool", open .. call.raw .. close)
end

local function trim(s) return s:match "^%s*(.-)%s*$" end

--- Ends the job with a result.
-- @param finish string  "stop", "length", "cancelled"; "stop" becomes "tool" where the reply calls tools
function methods:finish(finish)
  if self.done then return end
  if finish == "stop" and #self.tool_calls > 0 then finish = "tool" end
  self.result = { text = table.concat(self.parts), think = trim(table.concat(self.texts.think)),
                  answer = trim(table.concat(self.texts.answer)), tool_calls = self.tool_calls, ids = {}, finish = finish,
                  seed = options.to_integer(self.seed or self.options.seed), usage = self.usage, logprobs = self.logprobs }
  over(self)
end

--- Ends the job with an error.
function methods:fail(err)
  if self.done then return end
  self.err = err
  over(self)
end

-- ---- for users --------------------------------------------------------------------------------------------------

--- Waits for the end, as every task does. A coroutine that is dropped while it waits here takes the job along.
-- @return result, or nil, err
function methods:wait()
  local function drop() self:cancel() end
  local guard = setmetatable({}, { __gc = function(g) if not g.kept then drop() end end })
  local result, err = task.methods.wait(self)
  guard.kept = true
  return result, err
end

--- Stops the job; what it has said stays in its result, with finish "cancelled".
function methods:cancel()
  if getmetatable(self) ~= job.mt then options.self("task", self, job.mt) end
  if self.done then return end
  if self.started then self.engine:drop(self) end
  self:finish "cancelled"
end

--- A job that failed before it began.
function job.failed(desk, err)
  return setmetatable({ done = true, usage = no_usage(), slot = {}, engine = desk, model = desk.backend, err = err, how = {},
                        queue = {} }, job.mt)
end

-- ---- tool calls ---------------------------------------------------------------------------------------------------

--- A call from its name and the text of its arguments; what is no JSON object keeps its text and says why.
-- @return { name =, arguments = table or nil, raw =, error =, id = }
function job.call_of(name, raw, id)
  local arguments, why = json.decode(raw == "" and "{}" or raw)
  if type(arguments) ~= "table" or arguments == json.null then
    return { name = name, raw = raw, id = id, error = why or "the arguments are no JSON object" }
  end
  return { name = name, raw = raw, id = id, arguments = arguments }
end

return job

--- crew.lua - functions that run at once over one backend: each in a coroutine of its own, all of their requests in one batch.
-- A job waits where it waits (task:wait(), task:pieces(), generate); whoever steps the backend moves them all.

local fault = require "fathom.fault"
local options = require "fathom.options"
local span = require "fathom.span"
local task = require "fathom.task"

local crew = {}
local methods = {}
local is = options.is

local DEFAULT_WIDTH = 64
local SLICE_MS = 50

-- ---- who steps the backend ------------------------------------------------------------------------------------

-- What moves a backend (an engine, or the desk of a remote or a mock); nil: it is only stepped.
local function engine_of(backend)
  local engine = backend.engine
  return type(engine) == "table" and engine.watch and engine or nil
end

-- What is to be stepped for a job that waits; seen: what is watched already.
local function notice(self, where)
  if not where or self.seen[where] or where == self then return end
  self.seen[where] = true
  self.drivers[#self.drivers + 1] = where
  local engine = engine_of(where)
  if engine then engine:watch(function() return self:pump() end) end
end

-- Moves all that jobs have waited for; they share the time.
local function step(self, ms)
  local n = math.max(#self.drivers, 1)
  for _, where in ipairs(self.drivers) do
    local engine = engine_of(where)
    if engine then engine:step(ms / n) else where:step { ms = ms / n } end
  end
end

-- A crew as an engine: what loops step, and what a crew around this one watches. Its own backends call the watchers' pumps.
local function engine_like(self)
  return { step = function(_, ms) step(self, ms) end, watch = function(_, f)
    self.watchers[#self.watchers + 1] = f
  end }
end

-- ---- jobs -------------------------------------------------------------------------------------------------------

-- Takes down what a job gave: its first value, or why there is none.
local function settle(self, job, ok, value, err)
  job.co, job.waits = nil, nil
  self.running = self.running - 1
  self.n_done = self.n_done + 1
  if not ok then
    self.slip = type(value) == "string" and value or self.slip
    value, err = nil, value
  end
  self.results[job.index] = { value = value, err = err }
  if self.on_done then self.on_done(job.index, self.results[job.index], self) end
end

-- Runs one job until it waits again or is over.
local function resume(self, job, ...)
  local r = table.pack(coroutine.resume(job.co, ...))
  if coroutine.status(job.co) == "dead" then
    task.crewed[job.co] = nil
    return settle(self, job, table.unpack(r, 1, r.n))
  end
  job.waits = type(r[2]) == "table" and r[2] or nil
  if job.waits then notice(self, job.waits.model) end
end

local function cancelled_error() return fault.new("cancelled", "the work was cancelled before it was over") end

-- The job's own request is cancelled and the job hears of it once; one that goes on waiting is closed.
local function cancel_job(self, job)
  for turn = 1, 3 do
    local waits = job.waits
    if not job.co then return end
    if waits and waits.task and waits.task.cancel then pcall(waits.task.cancel, waits.task) end
    if turn < 3 and coroutine.status(job.co) == "suspended" then resume(self, job) end
  end
  if coroutine.status(job.co) == "suspended" then
    task.crewed[job.co] = nil
    coroutine.close(job.co)
    settle(self, job, false, cancelled_error())
  end
end

local function start(self, index)
  local job = { index = index, co = coroutine.create(self.jobs[index]) }
  task.crewed[job.co] = true
  span.adopt(job.co)
  self.running = self.running + 1
  self.active[#self.active + 1] = job
  resume(self, job, self, index)
end

local function over(self)
  self.done = true
  if self.finished then self.finished(self) end
end

--- Lets every job look again and starts others in place of those that are over; who steps a backend need not call it.
-- @return boolean  whether there is more to do
function methods:pump()
  if self.done then return false end
  if self.pumping then return true end
  self.pumping = true
  for _, job in ipairs(table.move(self.active, 1, #self.active, 1, {})) do
    if job.co then (self.cancelled and cancel_job or resume)(self, job) end
  end
  local left = {}
  for _, job in ipairs(self.active) do
    if job.co then left[#left + 1] = job end
  end
  self.active = left
  while not self.cancelled and self.running < self.width and self.next <= #self.jobs do
    self.next = self.next + 1
    start(self, self.next - 1)
  end
  self.pumping = false
  if self.running == 0 and self.next > #self.jobs then over(self) end
  for _, f in ipairs(self.watchers) do f() end
  return not self.done
end

-- ---- for users ----------------------------------------------------------------------------------------------------

--- Stops all jobs: what they wait for is cancelled, each may still return something; those that did not begin never do.
function methods:cancel()
  options.self("crew", self, crew.mt)
  if self.done or self.cancelled then return end
  self.cancelled = true
  for index = self.next, #self.jobs do self.results[index] = { err = cancelled_error() } end
  self.next = #self.jobs + 1
  for _, job in ipairs(table.move(self.active, 1, #self.active, 1, {})) do cancel_job(self, job) end
  -- a job that cancels its own crew is still on the stack: its end ends the crew
  if self.running == 0 and not self.pumping then over(self) end
end

-- One turn of waiting, as tasks do it.
local function wait_a_little(self, ms)
  if coroutine.isyieldable() then
    task.yield { task = self, model = self.model }
  else
    step(self, ms)                             -- when that fails the tasks of the jobs say so
  end
end

--- Waits until all is over: yields inside a coroutine, works elsewhere. What the function of a task raised (a hook of the caller's
-- has a fault of its own) is raised from here.
-- @return result, or nil, err
function methods:wait()
  options.self("crew", self, crew.mt)
  while not self.done do
    wait_a_little(self, SLICE_MS)
    if not self.done then self:pump() end
  end
  if self.err and self.err == self.slip then error(self.err, 0) end
  if self.err then return nil, self.err end
  return self.result
end

--- Adds a piece for those who loop over pieces().
function methods:emit(text, info) self.queue[#self.queue + 1] = { text = text, info = info or {} } end

--- What the jobs emit, as it comes; leaving the loop cancels.
-- @return iterator over text, info; raises err when the work fails
function methods:pieces()
  options.self("crew", self, crew.mt)
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
      wait_a_little(self, self.slice_ms)
      self:pump()
    end
  end
  return next_piece, nil, nil, guard
end

crew.mt = {
  __name = "fathom.crew",
  __index = methods,
  __close = methods.cancel,
  __tostring = function(self)
    return ("fathom crew (%d of %d jobs done)"):format(self.n_done, #self.jobs)
  end,
}

local known = { width = is.count(1), on_done = is.callable }

local function new(backend, jobs, o, finished)
  local self = setmetatable({ jobs = jobs, width = o.width or DEFAULT_WIDTH, on_done = o.on_done, finished = finished,
                              results = {}, active = {}, queue = {}, seen = {}, drivers = {}, watchers = {}, running = 0, next = 1,
                              n_done = 0, done = false, cancelled = false, usage = { prompt = 0, cached = 0, completion = 0 } }, crew.mt)
  self.engine = engine_like(self)
  self.slice_ms = backend and backend.engine and backend.engine.slice_ms or 0
  self.model = backend and (type(backend.model) == "table" and backend.model or backend) or { engine = self.engine }
  if backend then notice(self, self.model) end
  self:pump()
  return self
end

--- Starts jobs in the background of a backend: they move when somebody steps it, or waits.
-- @param backend table|nil  model, session, remote or mock; nil: what the jobs turn out to wait for
-- @param jobs list       functions(crew, index); what one returns is its value, nil, err its error
-- @param opts table|nil  width (64): at most so many at once; on_done(index, { value =, err = }, crew)
-- @return crew           like a task: done, result (the list of { value =, err = }), wait(), cancel()
-- @usage local work = crew.start(model, { function() return model:generate("a") end })
function crew.start(backend, jobs, opts)
  options.argument("crew.start", "jobs", jobs, is.table)
  return new(backend, jobs, options.check("crew.start", opts, known), function(self) self.result = self.results end)
end

--- Runs jobs and waits for them all; works inside and outside a coroutine. An error of a job is in its result.
-- @return list of { value =, err = }, one for each job
-- @usage local results = crew.run(model, jobs, { width = 16 })
function crew.run(backend, jobs, opts) return crew.start(backend, jobs, opts):wait() end

--- One function as a task: for loops of requests (agents) that are to look like one.
-- @param backend table
-- @param f function(task)  may call task:emit(text, info), set task.usage and look at task.cancelled; returns the result,
--                          or nil, err. When it is cancelled the request it waits for ends with finish "cancelled", it is
--                          resumed once or twice, and closed (to-be-closed variables and all) if it goes on waiting.
-- @return task             done, result, err, usage, wait(), cancel(), pieces()
function crew.task(backend, f)
  options.argument("crew.task", "f", f, is.callable)
  return new(backend, { f }, {}, function(self) self.result, self.err = self.results[1].value, self.results[1].err end)
end

return crew

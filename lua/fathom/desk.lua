--- desk.lua - the jobs of a backend that is no model: those that wait for their slot and those that run.
-- A backend brings begin(desk, job, prompt), drop(desk, job) and advance(desk, ms); it looks like an engine to tasks.

local watch = require "fathom.watch"

local desk = {}
desk.__index = desk

--- @param backend table  what users hold; tasks name it as their model
-- @param how table      begin, drop, advance; label: its kind, for traces; slice_ms: how long one turn of a blocking loop
--                       over pieces may wait
function desk.new(backend, how)
  return setmetatable({ backend = backend, list = {}, n_live = 0, label = how.label, begin = how.begin,
                        drop = how.drop, advance = how.advance, slice_ms = how.slice_ms }, desk)
end

--- Takes a job in; it starts now, or when those before it in its slot are over.
function desk:add(job)
  local slot = job.slot
  self.list[#self.list + 1] = job
  self.n_live = self.n_live + 1
  slot.waiting = slot.waiting or {}
  table.insert(slot.waiting, job)
  self:pump(slot)
end

--- Starts the next job of a slot that is free.
function desk:pump(slot)
  while not slot.current and slot.waiting[1] do
    local job = table.remove(slot.waiting, 1)
    if not job.done then job:start() end
  end
end

--- The jobs at this moment, to loop over while some of them end.
function desk:jobs()
  local out = {}
  for _, job in ipairs(self.list) do
    if not job.gone then out[#out + 1] = job end
  end
  self.list = table.move(out, 1, #out, 1, {})
  return out
end

--- Forgets a job that is over.
function desk:remove(job)
  if job.gone then return end
  job.gone = true
  self.n_live = self.n_live - 1
end

--- Lets f be called behind each step until it returns false, as an engine does.
desk.watch = watch.add

--- Moves everything for at most ms.
-- @return boolean whether work is left
function desk:step(ms)
  if self.n_live > 0 then self:advance(ms) end
  local watched = watch.look(self)
  return self.n_live > 0 or watched
end

--- Cancels everything.
function desk:close()
  self.closed = true
  for _, job in ipairs(self:jobs()) do job:cancel() end
end

return desk

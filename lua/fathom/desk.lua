--- desk.lua - the jobs of a backend that is no model: those that wait for their slot and those that run.
-- A backend brings begin(desk, job, prompt), drop(desk, job) and advance(desk, ms); it looks like an engine to tasks.

local desk = {}
desk.__index = desk

--- @param backend table  what users hold; tasks name it as their model
-- @param how table      begin, drop, advance; label: its kind, for traces; slice_ms: how long one turn of a blocking loop
--                       over pieces may wait
function desk.new(backend, how)
  return setmetatable({ backend = backend, live = {}, watchers = {}, label = how.label, begin = how.begin,
                        drop = how.drop, advance = how.advance, slice_ms = how.slice_ms }, desk)
end

--- Takes a job in; it starts when its slot is free.
function desk:add(job)
  self.live[#self.live + 1] = job
  self:pump()
end

--- The jobs at this moment, to loop over while some of them end.
function desk:jobs() return table.move(self.live, 1, #self.live, 1, {}) end

--- Starts what can start.
function desk:pump()
  for _, job in ipairs(self:jobs()) do
    if not job.done and not job.started and not job.slot.current then job:start() end
  end
end

--- Forgets a job that is over.
function desk:remove(job)
  for i, other in ipairs(self.live) do
    if other == job then return table.remove(self.live, i) end
  end
end

--- Lets f be called behind each step until it returns false, as an engine does.
function desk:watch(f) self.watchers[#self.watchers + 1] = f end

-- Watchers may add others while they run.
local function look_around(self)
  local watchers = self.watchers
  self.watchers = {}
  for _, f in ipairs(watchers) do
    if f() then self.watchers[#self.watchers + 1] = f end
  end
end

--- Moves everything for at most ms.
-- @return boolean whether work is left
function desk:step(ms)
  self:pump()
  if self.live[1] then self:advance(ms) end
  if self.watchers[1] then look_around(self) end
  return self.live[1] ~= nil or self.watchers[1] ~= nil
end

--- Cancels everything.
function desk:close()
  self.closed = true
  for _, job in ipairs(self:jobs()) do job:cancel() end
end

return desk

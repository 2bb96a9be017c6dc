--- probe.lua - reads how likely given replies are: each in a fork of a cached sequence, its ids taken as if they had been sampled.
-- Probes run in the batch of everything else, in the passes of those who decode, so nobody waits for them.

local fault = require "fathom.fault"
local task = require "fathom.task"

local SLICE_MS = 50                   -- of a turn of the engine while somebody blocks

local probe = {}
local methods = {}
local mt = { __name = "fathom.probe", __index = methods }

local function over(self)
  if self.core then self.core:close() end
  self.slot.core:close()
  self.core, self.slot.current = nil, nil
  self.engine:remove(self)
  self.done = true
  self.finished(self)
end

--- Ends it with an error.
function methods:fail(err)
  if self.done then return end
  self.err = err
  over(self)
end

--- Called by the engine when it may begin.
function methods:start()
  local ok, core, err = pcall(self.slot.core.task, self.slot.core, self.prompt,
                              { forced = self.ids, logprobs = 0, priority = self.priority })
  if not ok then core, err = nil, fault.new("format", core) end
  if not core then return self:fail(err) end
  self.slot.current, self.core = self, core
  self.engine.moves = self.engine.moves + 1
end

--- Called by the engine after a step.
function methods:drain()
  for id, _, _, logprob in self.core.next, self.core do
    self.engine.moves = self.engine.moves + 1
    self.tokens[#self.tokens + 1] = { id = id, logprob = logprob }
    self.logprob = self.logprob + logprob
  end
  local state = self.core:state()
  if state == "failed" then return self:fail(self.core:error()) end
  if state ~= "running" then over(self) end
end

--- Stops it.
function methods:cancel() self:fail(fault.new("cancelled", "the reading was cancelled")) end

--- Starts reading one reply.
-- @param slot table      { engine =, core = core session }: what it is forked from
-- @param prompt list     ids that stand before the reply; those that the session holds already are not computed again
-- @param ids list        ids of the reply, one at least
-- @param how table       finished(probe), called once; priority
-- @return probe          done, err, logprob (the sum), tokens = { { id =, logprob = }, ... }; or nil, err
function probe.start_one(slot, prompt, ids, how)
  local core, err = fault.guard(slot.core.fork, slot.core)
  if not core then return nil, err end
  local self = setmetatable({ done = false, engine = slot.engine, slot = { engine = slot.engine, core = core }, prompt = prompt,
                              ids = ids, tokens = {}, logprob = 0.0, finished = how.finished,
                              priority = how.priority }, mt)
  slot.engine:add(self)
  return self
end

--- What was read, as plain tables, each with its share among them.
-- @param replies list  texts or ids, as they were given
function probe.shares(probes, replies)
  local most, sum, out = -math.huge, 0.0, {}
  for _, p in ipairs(probes) do most = math.max(most, p.logprob) end
  for _, p in ipairs(probes) do sum = sum + math.exp(p.logprob - most) end
  for i, p in ipairs(probes) do
    out[i] = { text = type(replies[i]) == "string" and replies[i] or nil, logprob = p.logprob, tokens = p.tokens,
               p = math.exp(p.logprob - most) / sum }
  end
  return out
end

local group = {}
group.__index = group

--- Waits until all are read: yields inside a coroutine, works elsewhere.
function group:wait()
  while not self.done do
    if coroutine.isyieldable() then task.yield { task = self, model = self.model } else self.engine:step(SLICE_MS) end
  end
  return self.probes, self.err
end

--- Stops those that still run.
function group:cancel()
  for _, p in ipairs(self.probes) do
    if not p.done then p:cancel() end
  end
end

--- Starts reading several replies to one prompt.
-- @param replies list of lists of ids, one at least
-- @param finished function(probes, err)|nil  called once, when all of them are read; err: the first that went wrong
-- @param priority integer|nil
-- @return group          done, probes, err, wait(), cancel()
function probe.start(slot, prompt, replies, finished, priority)
  local self = setmetatable({ done = false, probes = {}, engine = slot.engine, model = slot.model }, group)
  local left = #replies
  local function one_done(p)
    left = left - 1
    self.err = self.err or p.err
    if left > 0 then return end
    self.done = true
    if finished then finished(self.probes, self.err) end
  end
  for i, ids in ipairs(replies) do
    local p, err = probe.start_one(slot, prompt, ids, { finished = one_done, priority = priority })
    self.probes[i] = p or { done = true, err = err }
    if not p then one_done(self.probes[i]) end
  end
  return self
end

return probe

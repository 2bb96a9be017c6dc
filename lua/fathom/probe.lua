--- probe.lua - reads how likely given replies are: each in a fork of a cached sequence, its ids taken as if they had been sampled.
-- Probes run in the batch of everything else, in the passes of those who decode, so nobody waits for them.

local fault = require "fathom.fault"

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
  for token in self.core.next, self.core do
    self.engine.moves = self.engine.moves + 1
    self.tokens[#self.tokens + 1] = { id = token.id, logprob = token.logprob }
    self.logprob = self.logprob + token.logprob
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

--- Starts reading several replies to one prompt.
-- @param replies list of lists of ids
-- @param done function(probes, err)  called once, when all of them are read; err: the first that went wrong
-- @return list of probes, to cancel them
function probe.start(slot, prompt, replies, done, priority)
  local left, probes, first_err = #replies, {}, nil
  local function finished(p)
    left = left - 1
    first_err = first_err or (p and p.err)
    if left == 0 then done(probes, first_err) end
  end
  for i, ids in ipairs(replies) do
    local p, err = probe.start_one(slot, prompt, ids, { finished = finished, priority = priority })
    probes[i] = p or { done = true, err = err }
    if not p then finished(probes[i]) end
  end
  return probes
end

return probe

--- judge/ballot.lua - several votes on one question: forks of one cached prompt where the model is ours, requests elsewhere.
-- All votes are started at once and go on by themselves while the backend is stepped; so do those of other ballots.

local backend = require "fathom.backend"
local fault = require "fathom.fault"
local labels = require "fathom.judge.labels"
local reply = require "fathom.reply"
local sampling = require "fathom.sampling"
local task = require "fathom.task"
local window = require "fathom.window"
local wording = require "fathom.judge.wording"

local ballot = {}
ballot.__index = ballot

local SEED_MASK = (1 << 53) - 1

-- Votes on other questions draw other noise: FNV-1a of the question, over the judge's seed.
local function seed_of(seed, text)
  local h = 0xcbf29ce484222325
  for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
  return (seed + (h ~ h >> 32)) & SEED_MASK
end

-- ---- what came of a vote ------------------------------------------------------------------------------------------

local function settle(self, vote)
  vote.settled = true
  self.left = self.left - 1
  if self.left == 0 then
    self.done = true
    if self.talk then self.talk:close() end
  end
end

local function count(usage, more)
  for _, name in ipairs { "prompt", "cached", "completion" } do usage[name] = usage[name] + (more[name] or 0) end
end

-- Notes the reply of a vote; what cannot be read stays without a label.
local function note(self, vote, t)
  count(self.usage, t.usage)
  if t.err then
    vote.err = t.err
    return
  end
  vote.text, vote.tokens, vote.finish = t.result.text, t.usage.completion, t.result.finish
  local verdict = t.result.finish ~= "cancelled" and wording.read(self.o.template, self.verdicts, t.result.answer)
  if not verdict then return end
  vote.verdict, vote.label, vote.score = verdict, not verdict.score and verdict.label or nil, verdict.score
end

-- ---- votes of a model of this process -------------------------------------------------------------------------------

local function close_slot(slot)
  if slot.core then slot.core:close() end
  slot.core = nil
end

-- Reads how likely each verdict was behind what the vote had said before its own.
local function read_labels(self, vote, slot, t)
  local core = self.talk.engine.core
  local ids = table.move(t.prompt, 1, #t.prompt, 1, {})
  table.move(t.result.ids, 1, #t.result.ids, #ids + 1, ids)
  local cut, tails, err = labels.tails(core, ids, #t.prompt, vote.verdict, self.verdicts, self.talk.engine.eos)
  if not cut then
    vote.unread = err
    close_slot(slot)
    return settle(self, vote)
  end
  self.tasks[#self.tasks + 1] = labels.read(slot, table.move(ids, 1, cut, 1, {}), tails, function(logprobs, why, rows)
    close_slot(slot)
    self.usage.scored = self.usage.scored + rows
    if logprobs then labels.note(vote, self.verdicts, logprobs) else vote.unread = why end
    settle(self, vote)
  end, self.o.priority)
end

-- The log-probability of the verdict as it was sampled, where nothing is read behind it.
local function sampled_logprob(self, vote, t)
  local core, ids, n = self.talk.engine.core, t.result.ids, #t.prompt
  local all = table.move(ids, 1, #ids, n + 1, table.move(t.prompt, 1, n, 1, {}))
  local cut = labels.tails(core, all, n, vote.verdict, self.verdicts, self.talk.engine.eos)
  if not cut then return end
  vote.logprob = 0.0
  for i = cut - n + 1, #ids do vote.logprob = vote.logprob + t.result.logprobs[i].logprob end
end

local function vote_over(self, vote, slot, t)
  note(self, vote, t)
  if vote.verdict and self.o.distribution then return read_labels(self, vote, slot, t) end
  if vote.verdict then sampled_logprob(self, vote, t) end
  close_slot(slot)
  settle(self, vote)
end

local function fail_votes(self, err)
  for _, vote in ipairs(self.votes) do
    if not vote.settled then
      vote.err = err
      settle(self, vote)
    end
  end
end

local function start_vote(self, vote, first)
  local talk = self.talk
  local core, err = fault.guard(talk.core.fork, talk.core)
  if not core then
    vote.err = err
    return settle(self, vote)
  end
  local slot = { engine = talk.engine, core = core }
  self.tasks[#self.tasks + 1] = task.new(slot, self.options, {
    model = talk.model, sample = vote.sample, drawn = first.how.drawn, unheard = true,
    prepare = function() return first.prompt, nil, first.messages end,
    finished = function(t) vote_over(self, vote, slot, t) end })
end

-- Whether the reply has a place for words before the verdict: a model that thinks does that elsewhere.
local function is_free(self, ids)
  if self.o.mode == "principles" then return true end
  return self.o.critique and not reply.opened(self.talk.engine.marks, ids)
end

-- Tokens a vote may have: behind one that ends at the edge of the context the longest verdict and its ending are to find room.
local function room(self, ids)
  local core, longest, shortest = self.talk.engine.core, 0, math.huge
  for _, v in ipairs(self.verdicts) do
    local n = #(core:encode(v.text, false) or {})
    longest, shortest = math.max(longest, n), math.min(shortest, n)
  end
  return math.max(1, core:ctx() - #ids - (longest - shortest) - 1)
end

-- The prompt is read once, then decoding begins in forks of it.
local function start_here(self)
  local talk, o = self.talk, self.options
  local messages = talk:messages()
  messages[#messages + 1] = { role = "user", content = self.text }
  self.tasks[1] = task.new(talk, sampling.merge({ max_tokens = 0 }, o), {
    model = talk.model, drawn = self.o.drawn,
    prepare = function()
      local ids, err
      ids, err, messages = window.render(talk.engine, messages, o)
      return ids, err, messages
    end,
    finished = function(t)
      if t.err then return fail_votes(self, t.err) end
      if t.result.finish == "cancelled" then return fail_votes(self, fault.new("cancelled", "the vote was cancelled")) end
      count(self.usage, t.usage)
      if self.o.distribution then o.max_tokens = math.min(o.max_tokens, room(self, t.prompt)) end
      o.grammar = wording.grammar(self.verdicts, is_free(self, t.prompt))
      for _, vote in ipairs(self.votes) do start_vote(self, vote, t) end
    end })
end

-- ---- votes of somebody else's model ---------------------------------------------------------------------------------

local function start_there(self)
  self.replies = {}
  for i, vote in ipairs(self.votes) do
    local talk, err = self.talk:fork()
    if talk then
      local opts = { seed = (self.options.seed + vote.sample) & SEED_MASK }
      self.replies[i] = { talk = talk, task = talk:ask(self.text, opts), vote = vote }
      self.tasks[#self.tasks + 1] = self.replies[i].task
    else
      vote.err = err
      settle(self, vote)
    end
  end
end

-- Takes down what has come in the meantime.
local function look(self)
  for i, r in pairs(self.replies or {}) do
    if r.task.done then
      self.replies[i] = nil
      note(self, r.vote, r.task)
      r.talk:close()
      settle(self, r.vote)
    end
  end
end

-- ---- for the judge --------------------------------------------------------------------------------------------------

local function common_options(o)
  return { temperature = o.temperature, top_p = o.top_p, max_tokens = o.max_tokens, think = o.think, priority = o.priority }
end

--- Starts the votes on one question.
-- @param b backend
-- @param o table         the judge's options
-- @param text string     what is asked
-- @param verdicts list   those of wording
-- @param fields table    what every vote is to carry (order)
-- @return ballot         done, votes, usage; wait(), cancel()
function ballot.start(b, o, text, verdicts, fields)
  local self = setmetatable({ backend = b, o = o, text = text, verdicts = verdicts, votes = {}, tasks = {}, left = o.votes,
                              done = false, usage = { prompt = 0, cached = 0, completion = 0, scored = 0 } }, ballot)
  local seed = seed_of(o.seed, text)
  for i = 1, o.votes do self.votes[i] = sampling.merge({ seed = seed, sample = i - 1 }, fields or {}) end
  local opts = common_options(o)
  opts.system, opts.seed = o.system, seed
  local talk, err = backend.session(b, opts)
  if not talk then
    fail_votes(self, err)
    return self
  end
  self.talk = talk
  if backend.is_local(b) then
    self.options = sampling.merge(common_options(o), { seed = seed, logprobs = not o.distribution and 0 or nil },
                                  talk.defaults, talk.engine.defaults)
    start_here(self)
  else
    self.options = opts
    start_there(self)
  end
  return self
end

--- Waits until every vote is there: yields inside a coroutine, works elsewhere.
function ballot:wait()
  look(self)
  while not self.done do
    if coroutine.isyieldable() then
      task.yield { task = self, model = self.talk.model or self.backend }
    else
      backend.step(self.backend, 50)
    end
    look(self)
  end
  return self
end

--- Stops what still runs; votes that are not there yet stay without a label.
function ballot:cancel()
  for _, t in ipairs(table.move(self.tasks, 1, #self.tasks, 1, {})) do t:cancel() end
  look(self)
end

return ballot

--- select.lua - several samples of one prompt, and the one that is taken: best of n by a reward, or the answer that most of them give.

local backend = require "fathom.backend"
local crew = require "fathom.crew"
local options = require "fathom.options"
local reward = require "fathom.reward"
local sampling = require "fathom.sampling"
local span = require "fathom.span"

local select = {}
local is = options.is

local function is_prompt(v)
  return type(v) == "string" or (type(v) == "table" and type(v[1]) == "table"), "a text or a list of messages"
end

--- Splits options: those of the caller, checked, and those of the generation.
-- @param known table  name -> check
-- @return own, generation
function select.split(what, opts, known)
  local all = sampling.merge(known, sampling.known)
  local o = options.check(what, opts, all)
  local own, generation = {}, {}
  for name, value in pairs(o) do
    if known[name] then own[name] = value else generation[name] = value end
  end
  return own, generation
end

--- Samples a prompt n times behind one cached prefix.
-- @param prompt string|table  what a user says, or messages
-- @param reference any        goes into each sample
-- @return list of samples (results with prompt, reference and sample, from 0), or nil, err
function select.sample(b, prompt, reference, generation)
  local talk, err = backend.session(b)
  if not talk then return nil, err end
  local results
  results, err = talk:sample(prompt, generation)
  talk:close()
  if not results then return nil, err end
  local out = {}
  for i, r in ipairs(results) do
    out[i] = sampling.merge({ prompt = prompt, reference = reference, sample = i - 1 }, r)
  end
  return out
end

--- Rewards samples; those that ask a model do so at once.
-- @return list of numbers, list of details; or nil, err
function select.rewards(b, f, samples)
  local jobs, values, details = {}, {}, {}
  for i, s in ipairs(samples) do
    jobs[i] = function()
      local value, why = f(s)
      if value == nil and why ~= nil then return nil, why end
      if type(value) ~= "number" or value ~= value then error("a reward must be a number, got " .. tostring(value), 0) end
      details[i] = why
      return value
    end
  end
  for i, r in ipairs(crew.run(b, jobs)) do
    if type(r.err) == "string" then options.raise(r.err) end
    if r.err then return nil, r.err end
    values[i] = r.value
  end
  return values, details
end

local function usage_of(samples)
  local usage = { prompt = 0, cached = 0, completion = 0 }
  for _, s in ipairs(samples) do
    for name in pairs(usage) do usage[name] = usage[name] + (s.usage and s.usage[name] or 0) end
  end
  return usage
end

local function check(what, b, prompt)
  backend.check(what, b)
  options.argument(what, "prompt", prompt, is_prompt)
end

-- ---- best of n --------------------------------------------------------------------------------------------------------

--- Samples n replies and takes the one with the highest reward, the first of equals.
-- @param b backend
-- @param prompt string|table  what a user says, or messages
-- @param opts table   reward = function(sample) -> number; n (8); reference: goes into the samples; and options of the generation
-- @return the best result, with reward, index, rewards, details, samples and total (the usage of all); or nil, err
-- @usage local r = fathom.best_of(model, puzzle, { n = 8, reward = fathom.reward.accuracy, reference = { nums = nums, target = 34 } })
function select.best_of(b, prompt, opts)
  check("fathom.best_of", b, prompt)
  local own, generation = select.split("fathom.best_of", opts, { n = is.count(1, 4096), reward = is.callable, reference = is.any })
  if not own.reward then options.raise "fathom.best_of: option 'reward' is missing" end
  generation.n = own.n or 8
  local samples, err = select.sample(b, prompt, own.reference, generation)
  if not samples then return nil, err end
  local values, details = select.rewards(b, own.reward, samples)
  if not values then return nil, details end
  local best = 1
  for i, value in ipairs(values) do
    if value > values[best] then best = i end
  end
  return sampling.merge({ reward = values[best], index = best, rewards = values, details = details, samples = samples,
                          total = usage_of(samples) }, samples[best])
end

-- ---- self-consistency ---------------------------------------------------------------------------------------------------

local vote_known = { n = is.count(1, 4096), key = is.callable, weight = is.callable, reference = is.any,
                     on_tie = is.one_of(is.word("first", "random"), is.callable) }

-- What a sample's vote is counted by, as text: counts are keyed by it, and results are to survive JSON.
local function key_of(f, sample)
  local key = f(sample)
  if type(key) == "number" then return tostring(math.tointeger(key) or key) end
  if key ~= nil and type(key) ~= "string" then
    options.raise(("fathom.vote: option 'key' must give a text or nil, it gave a %s"):format(type(key)))
  end
  return key
end

-- Weight of each answer, in the order in which they came up.
local function weigh(keys, weights)
  local sums, order = {}, {}
  for i = 1, #weights do
    local key = keys[i]
    if key then
      if not sums[key] then order[#order + 1] = key end
      sums[key] = (sums[key] or 0) + weights[i]
    end
  end
  local best = {}
  for _, key in ipairs(order) do
    if not best[1] or sums[key] > sums[best[1]] then best = { key } elseif sums[key] == sums[best[1]] then best[#best + 1] = key end
  end
  return sums, best
end

local function break_tie(on_tie, best, seed)
  if #best < 2 or on_tie == nil or on_tie == "first" then return best[1] end
  if type(on_tie) == "function" then return on_tie(best) end
  return best[1 + ((seed or 0) * 0x9E3779B97F4A7C15 >> 33) % #best]
end

--- Samples n replies and takes the answer that most of them give (self-consistency). Answers are compared in one spelling: see
-- fathom.reward.key.
-- @param b backend
-- @param prompt string|table  what a user says, or messages
-- @param opts table|nil  n (8); key = function(sample) -> text, nil for no answer; weight = function(sample) -> number (a reward: votes
--   count by it); on_tie ("first": the answer that came up first, "random": by the seed, or function(answers)); reference; and options
--   of the generation
-- @return the first result with the answer that won, with winner (its key; nil where no reply gave an answer), counts (key -> weight),
--   agreement (its share of the weight), abstention (share of replies without an answer), index, samples and total; or nil, err
-- @usage print(fathom.vote(model, "What is 17 + 25?", { n = 8, temperature = 1 }).winner)
function select.vote(b, prompt, opts)
  check("fathom.vote", b, prompt)
  local own, generation = select.split("fathom.vote", opts, vote_known)
  generation.n = own.n or 8
  local samples, err = select.sample(b, prompt, own.reference, generation)
  if not samples then return nil, err end
  local s <close> = span.open("vote", { n = generation.n })
  local keys, weights, answered, all = {}, {}, 0, 0
  local given
  if own.weight then
    given, err = select.rewards(b, own.weight, samples)
    if not given then return nil, err end
  end
  for i, sample in ipairs(samples) do
    keys[i], weights[i] = key_of(own.key or reward.key, sample), given and given[i] or 1
    if keys[i] then answered, all = answered + 1, all + weights[i] end
  end
  local counts, best = weigh(keys, weights)
  local winner = break_tie(own.on_tie, best, samples[1].seed)
  local index = 1
  for i = #samples, 1, -1 do
    if winner and keys[i] == winner then index = i end
  end
  s:set { winner = winner, counts = counts }
  return sampling.merge({ winner = winner, counts = counts, agreement = winner and all > 0 and (counts[winner] or 0) / all or 0.0,
                          abstention = (#samples - answered) / #samples, index = index, samples = samples, keys = keys,
                          total = usage_of(samples) }, samples[index])
end

return select

--- judge/labels.lua - how likely each verdict was: probabilities of whole labels with their ending, from the logits.
-- "Score: 1" begins as "Score: 10" does: only with what ends the reply are the two different events.

local fault = require "fathom.fault"
local probe = require "fathom.probe"

local labels = {}

-- The ids behind which the reply's verdict stands: the shortest end of it that spells the whole verdict. Some of its first
-- token may stand before the verdict (a space, say): the lead.
-- @return index of the last id before the verdict, lead; or nil
local function find(core, ids, n_prompt, text)
  for from = #ids, n_prompt + 1, -1 do
    local tail = core:decode(table.move(ids, from, #ids, 1, {}))
    local at = tail:find(text, 1, true)
    if at then return from - 1, tail:sub(1, at - 1) end
  end
end

local function common(lists)
  local n = 0
  while true do
    local id = lists[1][n + 1]
    for _, list in ipairs(lists) do
      if not id or list[n + 1] ~= id then return n end
    end
    n = n + 1
  end
end

--- Where the verdicts part, and the ids of each from there on.
-- @param core core model
-- @param ids list        prompt and reply, its closing id included
-- @param n_prompt number how many of them are the prompt
-- @param verdict table   what the reply says; verdicts: what it could have said
-- @param eos table       set of ids that end a reply
-- @return how many ids stand before, list of lists of ids; or nil, nil, err
function labels.tails(core, ids, n_prompt, verdict, verdicts, eos)
  local ending = ids[#ids]
  local said = table.move(ids, 1, eos[ending] and #ids - 1 or #ids, 1, {})
  if not eos[ending] then ending = core:eos()[1] end
  local cut, lead = find(core, said, n_prompt, verdict.text)
  if not cut then return nil, nil, fault.new("format", "the verdict's tokens were not found in the reply") end
  local tails = {}
  for i, v in ipairs(verdicts) do
    local tail, err = core:encode(lead .. v.text, false)
    if not tail then return nil, nil, err end
    tail[#tail + 1] = ending
    tails[i] = tail
  end
  -- what all begin with was sampled already, when it was sampled in the same tokens
  local same, n = 0, common(tails)
  while same < n and said[cut + same + 1] == tails[1][same + 1] do same = same + 1 end
  for _, tail in ipairs(tails) do
    table.move(tail, same + 1, #tail + same, 1)
  end
  return cut + same, tails
end

--- Starts reading.
-- @param slot table      { engine =, core = the vote's own core session }
-- @param prefix list     ids that stand before; tails: those of labels.tails
-- @param done function(logprobs, err, rows)  logprobs: one for each tail; nil when something went wrong
-- @return what can be cancelled
function labels.read(slot, prefix, tails, done, priority)
  local rows = 0
  for _, tail in ipairs(tails) do rows = rows + #tail end
  return probe.start(slot, prefix, tails, function(probes, err)
    if err then return done(nil, err, rows) end
    local logprobs = {}
    for i, p in ipairs(probes) do logprobs[i] = p.logprob end
    done(logprobs, nil, rows)
  end, priority)
end

--- Writes what was read into a vote: logprob of its own label, the distribution over all of them, and the mass that they
-- have together (the rest went to replies that are no verdict).
function labels.note(vote, verdicts, logprobs)
  local mass, distribution = 0.0, {}
  for i, v in ipairs(verdicts) do
    local p = math.exp(logprobs[i])
    mass = mass + p
    distribution[v.label] = p
    if v == vote.verdict then vote.logprob = logprobs[i] end
  end
  for label, p in pairs(distribution) do distribution[label] = mass > 0 and p / mass or 1 / #verdicts end
  vote.distribution, vote.mass = distribution, mass
end

return labels

--- judge/tally.lua - from votes to a verdict: majority or expected, ties, agreement, flips, abstention.

local tally = {}

-- The label of a vote, as a key: "a", "b", "tie", or the score's digits.
local function key(vote) return vote.label or (vote.score and tostring(vote.score)) end

--- How often each label was given; and how many votes could be read.
function tally.count(votes)
  local counts, n = {}, 0
  for _, vote in ipairs(votes) do
    local k = key(vote)
    if k then
      counts[k] = (counts[k] or 0) + 1
      n = n + 1
    end
  end
  return counts, n
end

--- The mean of the votes' label distributions; a vote that was only counted is sure of its own label.
-- @return table label -> probability, or nil where no vote could be read
function tally.mean(votes, verdicts)
  local mean, n = {}, 0
  for _, v in ipairs(verdicts) do mean[v.label] = 0.0 end
  for _, vote in ipairs(votes) do
    local k = key(vote)
    if k then
      n = n + 1
      for label, p in pairs(vote.distribution or { [k] = 1.0 }) do mean[label] = mean[label] + p end
    end
  end
  if n == 0 then return nil end
  for label, p in pairs(mean) do mean[label] = p / n end
  return mean
end

--- The labels with the most weight: more than one in a tie.
-- @param weight table   label -> number; verdicts give the order
function tally.best(weight, verdicts)
  local most, best = 0, {}
  for _, v in ipairs(verdicts) do
    local w = weight[v.label] or 0
    if w > most then most, best = w, { v.label }
    elseif w == most and w > 0 then best[#best + 1] = v.label end
  end
  return best
end

--- The share of the readable votes that say the same as the verdict.
function tally.agreement(counts, n, label) return n > 0 and label and (counts[label] or 0) / n or 0.0 end

--- The share of votes that could not be read.
function tally.abstention(votes, n) return #votes > 0 and (#votes - n) / #votes or 0.0 end

--- The label that was given first among some.
function tally.first(votes, among)
  local is = {}
  for _, label in ipairs(among) do is[label] = true end
  for _, vote in ipairs(votes) do
    if is[key(vote)] then return key(vote) end
  end
  return among[1]
end

--- How often the verdict changed with the order of the answers: over the pairs of equal votes in both orders.
-- @return share, or nil where only one order was asked
function tally.flips(votes)
  local first, pairs_, flips = {}, 0, 0
  for _, vote in ipairs(votes) do
    if vote.order == "ab" then first[vote.sample] = vote end
  end
  for _, vote in ipairs(votes) do
    local other = vote.order == "ba" and first[vote.sample]
    if other and other.label and vote.label then
      pairs_ = pairs_ + 1
      if other.label ~= vote.label then flips = flips + 1 end
    end
  end
  return pairs_ > 0 and flips / pairs_ or nil
end

return tally

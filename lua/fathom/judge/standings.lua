--- judge/standings.lua - who stands where: from matches of all against all, or from scores.

local standings = {}

local function add_usage(results)
  local usage = { prompt = 0, cached = 0, completion = 0, scored = 0 }
  for _, r in ipairs(results) do
    for name in pairs(usage) do usage[name] = usage[name] + r.usage[name] end
  end
  return usage
end

local function mean(results, name)
  local sum, n = 0.0, 0
  for _, r in ipairs(results) do
    if r[name] then sum, n = sum + r[name], n + 1 end
  end
  return n > 0 and sum / n or nil
end

-- Indices by falling value; equals stay in the order of the answers.
local function by_value(values)
  local order = {}
  for i = 1, #values do order[i] = i end
  table.sort(order, function(i, j)
    if values[i] ~= values[j] then return values[i] > values[j] end
    return i < j
  end)
  return order
end

-- seen: whether any vote could be read; where none could, nobody has won.
local function ranked(results, values, seen)
  local order = by_value(values)
  return { winner = seen and order[1] or nil, order = order, scores = values, agreement = mean(results, "agreement") or 1.0,
           flip_rate = mean(results, "flip_rate") or 0.0, abstention = mean(results, "abstention") or 0.0,
           usage = add_usage(results) }
end

-- The share of a match that goes to its first answer: votes or probabilities, ties half each.
local function share(self, match)
  local w = self.options.voting == "expected" and match.distribution or match.counts
  local a, b, tie = w.a or 0, w.b or 0, w.tie or 0
  local all = a + b + tie
  return all > 0 and (a + tie / 2) / all or 0.5
end

--- From matches between all of n answers: { first =, second =, counts =, distribution = ... }.
function standings.of_matches(self, matches, n)
  local scores, seen = {}, n == 1
  for i = 1, n do scores[i] = n > 1 and 0.0 or 1.0 end
  for _, m in ipairs(matches) do
    local s = share(self, m)
    seen = seen or next(m.counts) ~= nil
    scores[m.first] = scores[m.first] + s / (n - 1)
    scores[m.second] = scores[m.second] + (1 - s) / (n - 1)
  end
  local r = ranked(matches, scores, seen)
  r.matches = matches
  return r
end

--- From one result of judge:score for each answer; one without a readable vote stands last.
function standings.of_scores(self, results)
  local values, low, seen = {}, self.options.scale[1], false
  for i, r in ipairs(results) do values[i], seen = r.score or low - 1, seen or r.score ~= nil end
  local out = ranked(results, values, seen)
  for i, r in ipairs(results) do out.scores[i] = r.score or false end
  out.results = results
  return out
end

--- A comparison by two results of judge:score.
function standings.of_two(first, second)
  local votes = table.move(first.votes, 1, #first.votes, 1, {})
  table.move(second.votes, 1, #second.votes, #votes + 1, votes)
  local results = { first, second }
  local r = { votes = votes, a_score = first.score, b_score = second.score, agreement = mean(results, "agreement"),
              flip_rate = 0.0, abstention = mean(results, "abstention"), usage = add_usage(results), seed = first.seed }
  if first.score and second.score then
    r.winner = first.score > second.score and "a" or first.score < second.score and "b" or "tie"
  end
  return r
end

return standings

--- stats.lua - shares, means and what they may be worth: intervals, pass@k, maj@k, differences.
-- Whatever draws does so from a seed of its own: the same numbers give the same intervals.

local stats = {}

local Z = 1.959963984540054             -- 95 %
local DRAWS, LEAST_DRAWS = 2000, 400     -- fewer for many cases: what they draw in all is bounded
local WORK = 400000
local SUBSETS = 256                     -- up to so many subsets are counted out; of more, so many are drawn

-- ---- numbers --------------------------------------------------------------------------------------------------

--- A generator of integers from 1 to n (SplitMix64), its own and the same everywhere.
function stats.random(seed)
  local state = seed or 1
  return function(n)
    state = state + 0x9E3779B97F4A7C15
    local z = state
    z = (z ~ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ~ (z >> 27)) * 0x94D049BB133111EB
    return math.floor(((z ~ (z >> 31)) >> 11) * 2.0 ^ -53 * n) + 1
  end
end

function stats.mean(list)
  if #list == 0 then return nil end
  local sum = 0.0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / #list
end

-- The share q of a sorted list.
local function quantile(sorted, q)
  local at = 1 + (#sorted - 1) * q
  local low = math.floor(at)
  local high = math.min(low + 1, #sorted)
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low)
end

-- ---- intervals ------------------------------------------------------------------------------------------------

--- Wilson's interval of a share (E. B. Wilson 1927), 95 %.
-- @param right number  how many of n
-- @return low, high
function stats.wilson(right, n)
  if n == 0 then return 0.0, 1.0 end
  local p, zz = right / n, Z * Z
  local middle = (p + zz / (2 * n)) / (1 + zz / n)
  local half = Z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
  return math.max(0.0, middle - half), math.min(1.0, middle + half)
end

--- Interval of a mean by drawing the list again and again (percentile bootstrap), 95 %.
-- @param list list      one number a case: repeats of a case are no cases of their own
-- @param seed integer
-- @return low, high
function stats.bootstrap(list, seed)
  local n = #list
  if n == 0 then return nil end
  local random, means = stats.random(seed), {}
  for i = 1, math.max(LEAST_DRAWS, math.min(DRAWS, WORK // n)) do
    local sum = 0.0
    for _ = 1, n do sum = sum + list[random(n)] end
    means[i] = sum / n
  end
  table.sort(means)
  return quantile(means, 0.025), quantile(means, 0.975)
end

--- Mean and interval of one number a case: Wilson's where each is 0 or 1, bootstrap otherwise.
-- @return { mean =, low =, high =, n =, method = "wilson" | "bootstrap", share = all lie from 0 to 1 }, or nil for an empty list
function stats.estimate(list, seed)
  local mean = stats.mean(list)
  if not mean then return nil end
  local counted, share = true, true
  for _, v in ipairs(list) do
    counted = counted and (v == 0 or v == 1)
    share = share and v >= 0 and v <= 1
  end
  local low, high
  if counted then low, high = stats.wilson(mean * #list, #list) else low, high = stats.bootstrap(list, seed) end
  return { mean = mean, low = low, high = high, n = #list, method = counted and "wilson" or "bootstrap", share = share }
end

-- ---- several samples of a case ----------------------------------------------------------------------------------

--- Chance that one of k samples is right when c of n are: 1 - C(n-c, k) / C(n, k), unbiased (Chen et al. 2021).
function stats.pass_at(n, c, k)
  if n - c < k then return 1.0 end
  local none = 1.0
  for i = n - c + 1, n do none = none * (1 - k / i) end
  return 1 - none
end

-- Calls f with every k of 1..n, or with SUBSETS of them drawn by the seed where there are more.
local function each_subset(n, k, seed, f)
  local total = 1.0
  for i = 1, k do total = total * (n - k + i) / i end
  local list = {}
  if total <= SUBSETS then
    local function choose(from, at)
      if at > k then return f(list) end
      for i = from, n - k + at do
        list[at] = i
        choose(i + 1, at + 1)
      end
    end
    return choose(1, 1)
  end
  local random, all = stats.random(seed), {}
  for i = 1, n do all[i] = i end
  for _ = 1, SUBSETS do
    for i = 1, k do
      local j = i + random(n - i + 1) - 1
      all[i], all[j] = all[j], all[i]
      list[i] = all[i]
    end
    f(list)
  end
end

-- What the majority of some samples scores; several answers in front share it.
local function majority(list, keys, scores)
  local order, votes, sums, most = {}, {}, {}, 0
  for _, i in ipairs(list) do
    local key = keys[i]
    if key then
      if not votes[key] then order[#order + 1] = key end             -- sums of floats want one order
      votes[key] = (votes[key] or 0) + 1
      sums[key] = (sums[key] or 0.0) + scores[i]
      most = math.max(most, votes[key])
    end
  end
  local sum, n = 0.0, 0
  for _, key in ipairs(order) do
    if votes[key] == most then sum, n = sum + sums[key] / most, n + 1 end
  end
  return n > 0 and sum / n or 0.0
end

--- Mean score of the answer that most of k samples give, over the ways to take k of them.
-- @param keys list    the answer of each sample as a text, false where there is none
-- @param scores list  its score
function stats.maj_at(keys, scores, k, seed)
  local sum, n = 0.0, 0
  each_subset(#scores, k, seed, function(list)
    sum, n = sum + majority(list, keys, scores), n + 1
  end)
  return sum / n
end

--- Sizes to tell pass@k and maj@k of: 1, 2, 4, ... and n.
function stats.sizes(n)
  local out, k = {}, 1
  while k < n do
    out[#out + 1] = k
    k = k * 2
  end
  out[#out + 1] = n
  return out
end

-- ---- two runs, and lines ------------------------------------------------------------------------------------------

-- Chance of so uneven a split of n fair coins, both sides.
local function sign_test(wins, losses)
  local n, k = wins + losses, math.min(wins, losses)
  if n == 0 then return 1.0 end
  local p, term = 0.0, 0.5 ^ n
  if term == 0 then                                    -- past some thousand coins: normal, with its correction
    local z = math.max(0, math.abs(wins - losses) - 1) / math.sqrt(n)
    return math.min(1.0, 2 * math.exp(-z * z / 2) / (z + math.sqrt(z * z + 8 / math.pi)) * math.sqrt(2 / math.pi))
  end
  for i = 0, k do
    p = p + term
    term = term * (n - i) / (i + 1)
  end
  return math.min(1.0, 2 * p)
end

--- Difference b - a over the same cases.
-- @return { mean =, low =, high =, n =, wins =, losses =, ties =, p = of the sign test }, or nil when there are no cases
function stats.paired(a, b, seed)
  local differences, wins, losses = {}, 0, 0
  for i = 1, #a do
    differences[i] = b[i] - a[i]
    if b[i] > a[i] then wins = wins + 1 elseif b[i] < a[i] then losses = losses + 1 end
  end
  if #a == 0 then return nil end
  local low, high = stats.bootstrap(differences, seed)
  return { mean = stats.mean(differences), low = low, high = high, n = #a, wins = wins, losses = losses,
           ties = #a - wins - losses, p = sign_test(wins, losses) }
end

--- Slope of the straight line through points, with an interval by drawing points again.
-- @return { slope =, intercept =, low =, high =, n = }, or nil where there is no line
function stats.line(x, y, seed)
  local function fit(pick)
    local n, sx, sy, sxx, sxy = #x, 0.0, 0.0, 0.0, 0.0
    for i = 1, n do
      local j = pick(i)
      sx, sy, sxx, sxy = sx + x[j], sy + y[j], sxx + x[j] * x[j], sxy + x[j] * y[j]
    end
    local d = n * sxx - sx * sx
    if d <= 1e-9 * n * sxx then return nil end            -- all in one place
    local slope = (n * sxy - sx * sy) / d
    return slope, (sy - slope * sx) / n
  end
  if #x < 2 then return nil end
  local slope, intercept = fit(function(i) return i end)
  if not slope then return nil end
  local random, slopes = stats.random(seed), {}
  for _ = 1, DRAWS // 4 do slopes[#slopes + 1] = fit(function() return random(#x) end) end
  if #slopes == 0 then return nil end
  table.sort(slopes)
  return { slope = slope, intercept = intercept, low = quantile(slopes, 0.025), high = quantile(slopes, 0.975), n = #x }
end

return stats

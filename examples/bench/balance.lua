-- balance.lua - how even the load of ranks is, from 8 to 320 of them: experts in their own order, placed by load (fathom.balance,
-- global and hierarchical), and with copies of the busiest.
--
--   lua5.4 examples/bench/balance.lua                    a Zipf load over V3's experts (256, in 8 groups), made up
--   lua5.4 examples/bench/balance.lua --zipf 0.6         a flatter one
--   lua5.4 examples/bench/balance.lua --load FILE        recorded: JSON, a list of layers, each a list of counts
--   lua5.4 examples/bench/balance.lua --model DIR        recorded now, from text that the model writes (default: pocket)
--
-- The placement is made from one half of the load and judged by the other one, as it is in service: yesterday's counts, today's tokens.
-- What is printed is the busiest rank over the mean, worst layer of all: a step takes as long as the busiest rank.
local balance = require "fathom.balance"
local json = require "fathom.json"

local EXPERTS, GROUPS, TOKENS, CHOICES, LAYERS = 256, 8, 32768, 8, 4

local function say(...) io.stdout:write(string.format(...), "\n") end

-- ---- loads: a list of layers, each { past = counts, now = counts } ------------------------------------------

-- Counts of so many draws from weights.
local function draw(weights, n, random)
  local sums, sum, counts = {}, 0.0, {}
  for i, w in ipairs(weights) do
    sum = sum + w
    sums[i], counts[i] = sum, 0
  end
  for _ = 1, n do
    local x, low, high = random() * sum, 1, #sums
    while low < high do
      local mid = (low + high) // 2
      if sums[mid] < x then low = mid + 1 else high = mid end
    end
    counts[low] = counts[low] + 1
  end
  return counts
end

local function zipf(exponent)
  local layers, random = {}, math.random
  math.randomseed(1)
  for l = 1, LAYERS do
    local weights = {}
    for i = 1, EXPERTS do weights[i] = 1 / i ^ exponent end
    for i = EXPERTS, 2, -1 do
      local j = random(i)
      weights[i], weights[j] = weights[j], weights[i]
    end
    layers[l] = { past = draw(weights, TOKENS * CHOICES, random), now = draw(weights, TOKENS * CHOICES, random) }
  end
  return layers, GROUPS
end

-- Counts of each MoE layer while a model reads and writes.
local function count(model, seeds)
  local before = model:stats({ experts = true }).experts
  for _, seed in ipairs(seeds) do
    assert(model:generate("Tell a story about number " .. seed, { max_tokens = 64, seed = seed, ignore_eos = true }))
  end
  local layers = {}
  for l, counts in ipairs(model:stats({ experts = true }).experts) do
    local now, sum = {}, 0
    for e, n in ipairs(counts) do
      now[e] = n - before[l][e]
      sum = sum + now[e]
    end
    if sum > 0 then layers[#layers + 1] = now end
  end
  return layers
end

local function recorded_from(dir)
  local fathom = require "fathom"
  local model <close> = assert(fathom.load(dir or fathom.pocket, { device = "cpu", ctx = 512 }))
  local past, now, layers = count(model, { 1, 2, 3, 4 }), count(model, { 5, 6, 7, 8 }), {}
  for l = 1, #past do layers[l] = { past = past[l], now = now[l] } end
  return layers, model.config.n_group or 1
end

local function recorded_in(path)
  local file = assert(io.open(path, "rb"))
  local layers = {}
  for l, counts in ipairs(assert(json.decode(file:read "a"))) do layers[l] = { past = counts, now = counts } end
  file:close()
  return layers, 1
end

-- ---- judging ------------------------------------------------------------------------------------------------

-- Loads of ranks under a placement, of other counts than those it was made from.
local function loads(placement, counts, ranks)
  local sums, each = {}, #placement.experts // ranks
  for r = 1, ranks do sums[r] = 0.0 end
  for slot, e in ipairs(placement.experts) do
    local r = (slot - 1) // each + 1
    sums[r] = sums[r] + counts[e + 1] / placement.copies[e + 1]
  end
  return sums
end

local function worst(layers, ranks, opts)
  local most = 0.0
  for _, layer in ipairs(layers) do
    local sums = opts and loads(balance.place(layer.past, opts), layer.now, ranks) or balance.plain(layer.now, ranks)
    most = math.max(most, balance.factor(sums))
  end
  return most
end

local function bar(factor) return ("#"):rep(math.min(40, math.floor((factor - 1) * 20 + 0.5))) end

-- Slots of all ranks together: every expert once, and `extra` more on each rank.
local function slots(experts, ranks, extra) return ((experts + ranks - 1) // ranks + extra) * ranks end

local function study(layers, groups)
  local experts = #layers[1].now
  say("%d layers of %d experts; the busiest rank over the mean, # = 0.05 above 1", #layers, experts)
  say("%5s  %-31s %6s  %6s", "ranks", "policy", "slots", "factor")
  for _, ranks in ipairs { 8, 16, 32, 64, 144, 320 } do
    local nodes = ranks % 8 == 0 and ranks // 8 or 1
    local rows = { { "own order, no copies" } }
    for _, extra in ipairs { 0, 1, 2 } do
      local n = slots(experts, ranks, extra)
      local copies = n - experts
      rows[#rows + 1] = { ("global, %d copies"):format(copies), { ranks = ranks, replicas = n } }
      if groups > 1 and groups % nodes == 0 and n % nodes == 0 then
        rows[#rows + 1] = { ("by groups on %d nodes, %d copies"):format(nodes, copies),
                            { ranks = ranks, replicas = n, groups = groups, nodes = nodes } }
      end
    end
    for _, row in ipairs(rows) do
      local factor = worst(layers, ranks, row[2])
      say("%5d  %-31s %6d  %6.2f  %s", ranks, row[1], row[2] and row[2].replicas or experts, factor, bar(factor))
    end
  end
end

local function main(words)
  local value = words[2]
  if words[1] == "--model" then study(recorded_from(value))
  elseif words[1] == "--load" then study(recorded_in(value))
  else study(zipf(words[1] == "--zipf" and tonumber(value) or 0.9)) end
end

main(arg)

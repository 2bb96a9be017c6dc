--- balance.lua - where experts and their copies go, so that every rank has as much to do as the others.
--
-- An expert that many tokens choose gets copies, and tokens are shared between them. Global: any expert on any rank. Hierarchical: the
-- groups of group-limited routing stay together on a node, so that a token's rows cross between nodes as rarely as routing meant
-- them to. Both are greedy, and the same in every process: of equals the lower number comes first.
-- Source: DeepSeek's EPLB; DeepSeek-V3 report, section 3.4.

local options = require "fathom.options"

local balance = {}
local is = options.is
local known = { replicas = is.count(1), groups = is.count(1), nodes = is.count(1), ranks = is.count(1) }

-- Items by weight into bins of equal count, the heaviest first, each into the lightest bin that has room. -> bin and place of each item
local function pack(weight, n_bins)
  local n, room, order, bin, place = #weight, #weight // n_bins, {}, {}, {}
  local sum, count = {}, {}
  for i = 1, n do order[i] = i end
  for b = 1, n_bins do sum[b], count[b] = 0, 0 end
  if room > 1 then
    table.sort(order, function(a, b) return weight[a] > weight[b] or (weight[a] == weight[b] and a < b) end)
  end
  for at, i in ipairs(order) do
    local best = room == 1 and at or nil          -- one each: they stay in order
    for b = 1, room > 1 and n_bins or 0 do
      if count[b] < room and (not best or sum[b] < sum[best]) then best = b end
    end
    bin[i], place[i] = best, count[best]
    sum[best], count[best] = sum[best] + weight[i], count[best] + 1
  end
  return bin, place
end

-- Copies go, one by one, to the expert with the largest load a copy. -> what each of n slots holds, how many copies each has
local function replicate(weight, n)
  local holds, copies = {}, {}
  for e = 1, #weight do holds[e], copies[e] = e, 1 end
  for slot = #weight + 1, n do
    local best = 1
    for e = 2, #weight do
      if weight[e] / copies[e] > weight[best] / copies[best] then best = e end
    end
    holds[slot], copies[best] = best, copies[best] + 1
  end
  return holds, copies
end

-- Experts in the order of the nodes that their groups are packed onto.
local function by_node(load, groups, nodes)
  local size, weight, order = #load // groups, {}, {}
  for g = 1, groups do
    weight[g] = 0
    for e = (g - 1) * size + 1, g * size do weight[g] = weight[g] + load[e] end
  end
  local node, place = pack(weight, nodes)
  for g = 1, groups do
    local at = ((node[g] - 1) * (groups // nodes) + place[g]) * size
    for i = 1, size do order[at + i] = (g - 1) * size + i end
  end
  return order
end

local function check(what, load, o)
  local function must(good, text) if not good then options.raise(what .. ": " .. text) end end
  must(#load > 0, "load is empty")
  must(o.replicas >= #load, ("replicas = %d hold less than all %d experts"):format(o.replicas, #load))
  must(o.replicas % o.ranks == 0, ("ranks = %d do not divide replicas = %d"):format(o.ranks, o.replicas))
  must(#load % o.groups == 0, ("groups = %d do not divide %d experts"):format(o.groups, #load))
  must(o.ranks % o.nodes == 0, ("nodes = %d do not divide ranks = %d"):format(o.nodes, o.ranks))
end

--- Places the experts of one layer.
-- @param load table  tokens that chose each expert, from expert 0 on
-- @param opts table  ranks; replicas: how many experts they hold in all (default: #load, rounded up to a multiple of ranks);
--   groups, nodes (default 1): when nodes divide groups, a group's experts stay on one node; else the policy is global
-- @return { experts = ids in the order of ranks (each holds replicas / ranks of them), copies = of each expert,
--   load = of each rank, tokens of an expert shared evenly among its copies }
-- @usage local p = balance.place(stats.experts[4], { ranks = 8, replicas = 72 })
function balance.place(load, opts)
  local o = options.check("balance.place", opts, known)
  o.ranks, o.groups, o.nodes = o.ranks or 1, o.groups or 1, o.nodes or 1
  o.replicas = o.replicas or (#load + o.ranks - 1) // o.ranks * o.ranks
  check("balance.place", load, o)
  local groups, nodes = o.groups, o.nodes
  if groups % nodes ~= 0 then groups, nodes = 1, 1 end
  local order, per_node, slots = by_node(load, groups, nodes), #load // nodes, o.replicas // nodes
  local out, each = { experts = {}, copies = {}, load = {} }, o.replicas // o.ranks
  for r = 1, o.ranks do out.load[r] = 0.0 end
  for node = 1, nodes do
    local weight, share = {}, {}
    for i = 1, per_node do weight[i] = load[order[(node - 1) * per_node + i]] end
    local holds, copies = replicate(weight, slots)
    for s = 1, slots do share[s] = weight[holds[s]] / copies[holds[s]] end
    local rank, place = pack(share, o.ranks // nodes)
    for s = 1, slots do
      local r, e = (node - 1) * (o.ranks // nodes) + rank[s], order[(node - 1) * per_node + holds[s]]
      out.experts[(r - 1) * each + place[s] + 1] = e - 1
      out.copies[e] = copies[holds[s]]
      out.load[r] = out.load[r] + share[s]
    end
  end
  return out
end

--- Loads of ranks that hold the experts in their own order, without copies: rank r of n those from #load * (r - 1) // n on.
-- @return table of n sums
function balance.plain(load, n)
  local sums = {}
  for r = 1, n do
    sums[r] = 0.0
    for e = #load * (r - 1) // n + 1, #load * r // n do sums[r] = sums[r] + load[e] end
  end
  return sums
end

--- How much more the busiest rank has to do than the mean: 1 is even.
function balance.factor(loads)
  local most, sum = 0.0, 0.0
  for _, l in ipairs(loads) do most, sum = math.max(most, l), sum + l end
  return sum > 0 and most * #loads / sum or 1.0
end

return balance

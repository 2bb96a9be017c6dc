--- balance_spec.lua - placing experts: the published example, and what every placement keeps to.
local balance = require "fathom.balance"

describe("placing experts", function()
  it("gives the published example's answer", function()
    local function place(load) return balance.place(load, { replicas = 16, groups = 4, nodes = 2, ranks = 8 }).experts end
    assert.same({ 5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1 }, place { 90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86 })
    assert.same({ 7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1 }, place { 20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27 })
  end)

  local function loads(n, seed)
    local list, x = {}, seed
    for i = 1, n do
      x = (x * 1103515245 + 12345) % 2147483648
      list[i] = x % 1000 * (i % 7 == 0 and 9 or 1)
    end
    return list
  end

  it("holds every expert, as often as it says, with all load on some rank", function()
    for seed = 1, 20 do
      local load, sum, total = loads(64, seed), 0, 0.0
      local o = { replicas = 64 + 8 * (seed % 4), ranks = 8, groups = seed % 2 == 0 and 8 or 1, nodes = seed % 2 == 0 and 2 or 1 }
      local p = balance.place(load, o)
      local met = {}
      assert.equal(o.replicas, #p.experts)
      for _, e in ipairs(p.experts) do met[e] = (met[e] or 0) + 1 end
      for e = 0, 63 do assert.equal(p.copies[e + 1], met[e]) end
      for _, l in ipairs(load) do sum = sum + l end
      for _, l in ipairs(p.load) do total = total + l end
      assert.is_true(math.abs(sum - total) < 1e-6 * sum)
    end
  end)

  it("keeps groups on one node when it is hierarchical", function()
    local p = balance.place(loads(64, 5), { replicas = 80, ranks = 8, groups = 8, nodes = 4 })
    local node_of = {}
    for slot, e in ipairs(p.experts) do
      local group, node = e // 8, (slot - 1) // 20
      assert.is_true(node_of[group] == nil or node_of[group] == node)
      node_of[group] = node
    end
  end)

  it("is more even than the experts' own order, and copies make it more so", function()
    local load = loads(256, 3)
    local plain = balance.factor(balance.plain(load, 32))
    local packed = balance.factor(balance.place(load, { ranks = 32 }).load)
    local copied = balance.factor(balance.place(load, { ranks = 32, replicas = 288 }).load)
    assert.is_true(plain > packed and packed >= copied and copied >= 1)
  end)

  it("refuses what does not fit", function()
    assert.has_error(function() balance.place({ 1, 2, 3 }, { replicas = 2 }) end)
    assert.has_error(function() balance.place({ 1, 2, 3, 4 }, { replicas = 6, ranks = 4 }) end)
    assert.has_error(function() balance.place({ 1, 2, 3 }, { groups = 2 }) end)
  end)
end)

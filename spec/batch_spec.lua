--- batch_spec.lua - many at once: the same ids in any company, common prefixes computed once, waiting and setting back, frame steps,
-- and what goes wrong in the middle.
local fathom = require "fathom"
local now = require("fathom.core").now

local STORY = "Tell me a story about a fox."
local RUBRIC = ("The rubric says: be fair, be brief, be kind, and say why. "):rep(12)
local PAGE_BYTES = 9 * 64 * 144 * 4      -- of pocket's f32 cache, MTP layer included
-- Under a sanitizer everything is some ten times slower: fewer prompts, fewer rows of the matrix, more patience.
local ASAN = os.getenv "FATHOM_ASAN"
local N = ASAN and 6 or 32
local PATIENCE = ASAN and 50 or 1

local function load(opts)
  opts.device = "cpu"
  return assert(fathom.load(fathom.pocket, opts))
end

-- Prompts of several lengths, every third behind the same rubric.
local function text(i) return (i % 3 == 0 and RUBRIC or "") .. ("Tell me a story about fox number %d."):format(i) end

local function options(i, more)
  local o = { temperature = 0.9, seed = i, max_tokens = 12, ignore_eos = true }
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

local function key(result) return table.concat(result.ids, " ") end

-- Asks everything at once; ms: in frame steps. Returns keys of the results and the tokens that came from the cache.
local function all_at_once(model, how)
  local sessions, tasks, keys, cached = {}, {}, {}, 0
  for i = 1, N do
    sessions[i] = assert(model:session())
    tasks[i] = sessions[i]:ask(text(i), options(i, how.options))
  end
  while how.ms and model:step { ms = how.ms } do end
  for i = 1, N do
    local r = assert(tasks[i]:wait())
    keys[i], cached = key(r), cached + r.usage.cached
  end
  for i = 1, N do sessions[i]:close() end
  return keys, cached
end

local function nothing_lost(model)
  local s = model:stats()
  assert.equal(s.prefix_pages, s.pages_used)
  model:drop_prefixes()
  assert.equal(0, model:stats().pages_used)
end

describe("the same seed gives the same ids", function()
  local want = {}

  setup(function()
    local model <close> = load { prefix_cache = false, seqs = 1, mtp = false }
    for i = 1, N do
      want[i] = key(assert(model:generate({ { role = "user", content = text(i) } }, options(i))))
    end
  end)

  local matrix = {
    { "among 31 others", { seqs = 32 }, again = true },
    { "among more than may run at once", { seqs = 3 } },
    { "in chunks of 16", { seqs = 32, chunk = 16, budget = 64 } },
    { "in chunks of 100, four at once", { seqs = 32, chunk = 100, budget = 400 } },
    { "in chunks of the whole", { seqs = 32, chunk = 2048, budget = 4096 } },
    { "with nothing kept of common prefixes", { seqs = 32, prefix_cache = false } },
    { "with little kept of common prefixes", { seqs = 32, prefix_cache = 4 * PAGE_BYTES }, again = true },
    { "without the MTP layer", { seqs = 32, mtp = false } },
    { "with drafts as they pay", { seqs = 32, mtp = "auto" }, again = true },
    { "with three drafts", { seqs = 32 }, { options = { mtp = 3 } } },
    { "with and without priority", { seqs = 4 }, { options = { priority = 3 } } },
    { "in frame steps", { seqs = 32 }, { ms = 2 } },
    { "on one thread, in frame steps, with two drafts", { seqs = 8, threads = 1 }, { ms = 1, options = { mtp = 2 } } },
  }

  for i, row in ipairs(matrix) do
    if not ASAN or i % 5 == 3 then it(row[1], function()
      local model <close> = load(row[2])
      local cold, cached = all_at_once(model, row[3] or {})
      assert.same(want, cold)
      if row[2].prefix_cache == false then assert.equal(0, cached)
      elseif not row[2].prefix_cache then assert.is_true(cached > 0) end
      if row.again then assert.same(want, (all_at_once(model, row[3] or {}))) end
      assert.equal(0, model:stats().set_back)
      nothing_lost(model)
    end) end
  end

  it("though it is set back to waiting because pages run out", function()
    for _, prefix_cache in ipairs { true, false } do
      local model <close> = load { seqs = 16, ctx = 320, cache_bytes = 9 * PAGE_BYTES, prefix_cache = prefix_cache }
      local o = { options = { mtp = 1, max_tokens = 60 } }
      local first = all_at_once(model, o)
      assert.is_true(model:stats().set_back > 0)
      local roomy <close> = load { seqs = 4, ctx = 320 }
      assert.same(all_at_once(roomy, o), first)
      nothing_lost(model)
    end
  end)

  it("forked in a crowd, and cut off in the middle of a crowd", function()
    local model <close> = load { seqs = 8 }
    local s <close> = assert(model:session { temperature = 0.9, seed = 5, max_tokens = 24 })
    assert(s:ask(RUBRIC):wait())
    local forks, tasks = {}, {}
    for i = 1, 8 do
      forks[i] = assert(s:fork())
      tasks[i] = forks[i]:ask(STORY, { seed = i % 2 })
    end
    for _ = 1, 5 do model:step {} end
    forks[3]:close()
    tasks[4]:cancel()
    local a, b = assert(tasks[1]:wait()), assert(tasks[2]:wait())
    for i = 5, 8 do assert.equal(key(i % 2 == 1 and a or b), key(assert(tasks[i]:wait()))) end
    assert.equal("cancelled", tasks[3].result.finish)
    assert.equal("cancelled", assert(tasks[4]:wait()).finish)
    for i = 1, 8 do forks[i]:close() end
  end)
end)

describe("a common prefix", function()
  local function cached(model, prompt)
    local s <close> = assert(model:session { max_tokens = 2, temperature = 0 })
    local t = s:ask(prompt)
    return assert(t:wait()).usage.cached, t.usage.prompt
  end

  it("is computed once for whoever comes later, to the last common token but one", function()
    local model <close> = load {}
    assert.equal(0, (cached(model, RUBRIC .. STORY)))
    local again, n = cached(model, RUBRIC .. STORY)
    assert.equal(n - 1, again)
    local other = cached(model, RUBRIC .. "Who are you?")
    assert.is_true(other > 64 and other < n)
  end)

  it("is computed once for those who come together", function()
    local model <close> = load { seqs = 16 }
    local before = model:stats().prompt_tokens
    local sessions, tasks = {}, {}
    for i = 1, 16 do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(RUBRIC .. i, { max_tokens = 2 })
    end
    local asked = 0
    for i = 1, 16 do asked = asked + assert(tasks[i]:wait()).usage.prompt end
    assert.is_true(model:stats().prompt_tokens - before < asked / 5)
    for i = 1, 16 do sessions[i]:close() end
  end)

  it("is not taken in the other role: what was sampled is a prompt when it is given as one", function()
    local model <close> = load {}
    local s <close> = assert(model:session { temperature = 0 })
    local ids = assert(model:render { { role = "user", content = STORY } })
    local first = assert(s:ask(ids, { max_tokens = 90, ignore_eos = true }):wait())
    local all = table.move(first.ids, 1, #first.ids, #ids + 1, table.move(ids, 1, #ids, 1, {}))
    local r = assert(model:generate(all, { max_tokens = 2 }))
    assert.is_true(r.usage.cached <= #ids)
  end)

  it("goes when the budget says so, the oldest first", function()
    local model <close> = load { prefix_cache = 4 * PAGE_BYTES }
    for i = 1, 6 do cached(model, i .. RUBRIC) end
    assert.is_true(model:stats().prefix_pages <= 4)
    assert.is_true(cached(model, 6 .. RUBRIC) > 64)
    assert.is_true(cached(model, 1 .. RUBRIC) < 64)
  end)

  it("keeps drafts as right as they are without it", function()
    local model <close> = load {}
    local sum = { { role = "user", content = "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears has she?" } }
    local fresh = assert(model:generate(sum, { temperature = 0 })).usage
    local kept = assert(model:generate(sum, { temperature = 0 })).usage
    assert.is_true(kept.cached > 0 and fresh.cached == 0)
    assert.is_true(kept.accepted / kept.drafted >= fresh.accepted / fresh.drafted - 0.02)
  end)
end)

describe("priority", function()
  it("lets the one that is ahead begin first, and finish first where rows are scarce", function()
    local model <close> = load { seqs = 1 }
    local order, sessions = {}, {}
    for i, priority in ipairs { 0, -1, 5 } do
      local s = assert(model:session())
      sessions[i] = s
      local t = s:ask("Hello!", { max_tokens = 4, priority = priority })
      t.how.finished = function() order[#order + 1] = priority end
    end
    while model:step {} do end                       -- pass by pass: two that end within one step are told in order of arrival
    assert.same({ 5, 0, -1 }, order)
    for _, s in ipairs(sessions) do s:close() end
    assert.has_error(function() model:generate("x", { priority = 9 }) end)
    assert.has_error(function() model:generate("x", { priority = 1.5 }) end)
  end)
end)

describe("a frame step", function()
  it("takes about as long as it may, and says how much longer it took", function()
    local model <close> = load { seqs = 4, threads = 1 }
    local s <close> = assert(model:session())
    local t = s:ask(RUBRIC:rep(ASAN and 1 or 4), { max_tokens = 30, ignore_eos = true })
    local long, n = 0, 0
    while model:step { ms = 2 } do
      n = n + 1
      local over = model:stats().overshoot_ms
      assert.is_true(over >= 0)
      if over > 20 * PATIENCE then long = long + 1 end
    end
    assert.is_true(t.done and n > 10)
    assert.is_true(long <= n // 10, ("%d of %d steps were 20 ms too long"):format(long, n))   -- the machine may be busy
  end)

  it("ends a cancelled prompt at once, and what was read stays", function()
    local model <close> = load { threads = 1 }
    local s <close> = assert(model:session())
    local t = s:ask(RUBRIC:rep(6), { max_tokens = 5 })
    while model:stats().prompt_tokens < 300 do model:step { ms = 2 } end
    local begin = now()
    t:cancel()
    assert.is_false(model:step { ms = 2 })
    assert.is_true(now() - begin < 20 * PATIENCE)
    assert.equal("cancelled", t.result.finish)
    local again = assert(s:ask(RUBRIC:rep(6), { max_tokens = 5 }):wait())
    assert.is_true(again.usage.cached >= 256)
  end)
end)

describe("in the middle", function()
  it("sessions and models may be closed in any order", function()
    local model = load { seqs = 4 }
    local sessions, tasks = {}, {}
    for i = 1, 6 do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(i % 2 == 0 and RUBRIC or "Hello!", { max_tokens = 40, ignore_eos = true, seed = i })
    end
    for i = 1, 6 do
      for _ = 1, 3 do model:step { ms = 1 } end
      if i == 3 then model:close() end
      if i >= 3 then assert.has_error(function() model:step {} end) end
      sessions[i]:close()
      assert.equal("cancelled", assert(tasks[i]:wait()).finish)
      if i >= 3 then
        for k = i + 1, 6 do sessions[k]:close() end
        break
      end
    end
    for i = 4, 6 do assert.equal("cancelled", assert(tasks[i]:wait()).finish) end
  end)

  it("straight computation neither disturbs nor is disturbed", function()
    local model <close> = load { seqs = 4, ctx = 320, cache_bytes = 7 * PAGE_BYTES }
    local ids = assert(model:encode(RUBRIC))
    local want <close> = assert(model:logits(ids, { last = true }))
    local alone = key(assert(model:generate("Once", options(1))))
    local sessions, tasks = {}, {}
    for i = 1, 4 do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(text(3 * i), options(i))
    end
    for i = 1, ASAN and 7 or 28 do
      for _ = 1, i % 7 do model:step { ms = 0 } end     -- also between a pass and what is lined up behind it
      local got <close> = assert(model:logits(ids, { last = true }))
      assert.equal(want:bytes(), got:bytes())
    end
    assert.equal(alone, key(assert(model:generate("Once", options(1)))))
    for i = 1, 4 do
      assert(tasks[i]:wait())
      sessions[i]:close()
    end
    nothing_lost(model)
  end)

  it("a cache too small for one sequence is refused with what one takes", function()
    local model, err = fathom.load(fathom.pocket, { device = "cpu", ctx = 512, cache_bytes = 3 * PAGE_BYTES })
    assert.is_nil(model)
    assert.matches("cache_bytes", err.message)
    assert.matches("%d+ bytes", err.hint)
    assert.has_error(function() fathom.load(fathom.pocket, { chunk = 0 }) end)
    assert.has_error(function() fathom.load(fathom.pocket, { prefix_cache = -1 }) end)
  end)
end)

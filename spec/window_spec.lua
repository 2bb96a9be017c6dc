--- window_spec.lua - what happens where a context ends: an error with counts, a window that moves, a function of the user's.
local fathom = require "fathom"
local helper = require "spec.helper"

local STORY = "Tell me a story about a fox."

local function fails(code, value, err)
  assert.is_nil(value)
  assert.equal(code, err.code)
  return err
end

describe("a context that is full", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket, { ctx = 256, seqs = 2, threads = 1 })) end)
  teardown(function() model:close() end)

  local function many(n) local ids = {} for i = 1, n do ids[i] = i * 37 % 2900 end return ids end

  it("is an error with both counts, or the end of an answer", function()
    local err = fails("overflow", model:generate(many(300)))
    assert.matches("300 tokens, the context holds 256", err.message)
    assert.matches("overflow = \"shift\"", err.hint)
    fails("overflow", model:generate(many(256)))
    local r = assert(model:generate(many(200), { max_tokens = 500, ignore_eos = true, overflow = "error" }))
    assert.same({ "length", 56, 0, true }, { r.finish, #r.ids, r.usage.shifted, r.usage.exact })
    local s <close> = assert(model:session { temperature = 0, max_tokens = 80 })
    local why
    for _ = 1, 5 do
      local _
      _, why = s:ask(STORY):wait()
      if why then break end
    end
    assert.equal("overflow", why.code)
    assert.is_string(assert(s:fork()):messages()[1].content)
  end)

  it("is restored when it is full to the last id, and goes on", function()
    local path = os.tmpname()
    local roomy <close> = assert(fathom.load(fathom.pocket, { ctx = 256, seqs = 4, threads = 1 }))
    local s <close> = assert(roomy:session { temperature = 0, ignore_eos = true, overflow = "shift" })
    assert.equal(56 + 1, #assert(s:ask(many(200), { max_tokens = 56 + 1 }):wait()).ids)
    assert(s:save(path))
    local r <close> = assert(roomy:restore(path))
    assert.same(assert(s:ask({ 5 }, { max_tokens = 20 }):wait()).ids, assert(r:ask({ 5 }, { max_tokens = 20 }):wait()).ids)
    os.remove(path)
  end)

  it("moves on for several windows, with drafts and without, and says so", function()
    local counts = {}
    for _, mtp in ipairs { false, true } do
      local r = assert(model:generate({ { role = "user", content = STORY } },
                       { overflow = "shift", max_tokens = 1500, ignore_eos = true, temperature = 0.8, seed = 4, mtp = mtp }))
      assert.equal(1500, #r.ids)
      assert.is_false(r.usage.exact)
      assert.is_true(r.usage.shifted >= 1500 - 256)
      counts[#counts + 1] = r.usage.accepted
      assert.equal(0, r.usage.shifted % 64)
    end
    assert.is_true(counts[1] == 0 and counts[2] > 300)
    assert.equal(0, model:stats().tasks)
  end)

  it("moves with a prompt that is too long from the start", function()
    local r = assert(model:generate(many(1000), { overflow = "shift", max_tokens = 20, ignore_eos = true, keep = 30 }))
    assert.equal(20, #r.ids)
    assert.equal(1000, r.usage.prompt)
    assert.is_true(r.usage.shifted >= 1000 - 256)
  end)

  it("keeps a conversation going: system and latest turns stay, rows of the window are not computed again", function()
    -- with pages for all three: a window that loses its pages is computed again, which is near but not the same
    local roomy <close> = assert(fathom.load(fathom.pocket, { ctx = 256, seqs = 4, threads = 1 }))
    -- as many drafts each time: the window moves when a step's rows find no room
    local s <close> = assert(roomy:session { system = "Be brief.", temperature = 0, max_tokens = 60, overflow = "shift", mtp = 1 })
    local shifted = 0
    for i = 1, 10 do
      local r = assert(s:ask(i < 10 and STORY or "What is 17 + 25?"):wait())
      shifted = shifted + r.usage.shifted
      if i > 3 then assert.is_true(r.usage.cached >= 64, i .. ": " .. r.usage.cached) end
    end
    assert.is_true(shifted >= 64 and not s.exact)
    assert.matches("42", s:messages()[21].content)
    local path = os.tmpname()
    assert(s:save(path))
    local r <close> = assert(roomy:restore(path))
    assert.is_false(r.exact)
    local x, y = assert(s:ask(STORY):wait()), assert(r:ask(STORY):wait())
    assert.same({ x.ids, x.usage.cached }, { y.ids, y.usage.cached })
    os.remove(path)
    local f <close> = assert(s:fork())
    assert.same(assert(s:ask("Hello!"):wait()).ids, assert(f:ask("Hello!"):wait()).ids)
  end)

  -- rows are turned from what they were at first: what was restored must still know them
  it("moves on behind a restore by the same bits", function()
    local path = os.tmpname()
    local function go_on(session, n)
      local r = assert(session:ask({ 5, 6, 7 }, { max_tokens = n, ignore_eos = true, logprobs = 1 }):wait())
      local said = { r.usage.cached, r.usage.shifted }
      for i, entry in ipairs(r.logprobs) do said[i + 2] = ("%d %a"):format(entry.id, entry.logprob) end
      session:close()
      return table.concat(said, ",")
    end
    for name, at in pairs { [fathom.pocket] = { ctx = 512, keep = 70 }, ["spec/golden/qwen2-tiny"] = { ctx = 256, keep = 60 } } do
      local roomy <close> = assert(fathom.load(name, { ctx = at.ctx, seqs = 4, threads = 1, prefix_cache = false }))
      local s <close> = assert(roomy:session { temperature = 0.8, seed = 3, overflow = "shift", keep = at.keep,
                                               mtp = name == fathom.pocket and 1 })
      local prompt = {}
      for i = 1, 100 do prompt[i] = i * 37 % 500 end
      assert.is_true(assert(s:ask(prompt, { max_tokens = at.ctx, ignore_eos = true }):wait()).usage.shifted > 0)
      assert(s:save(path))
      local r <close> = assert(roomy:restore(path))
      assert(r:save(path))                                 -- and from what was restored
      local again <close> = assert(roomy:restore(path))
      local want = go_on(s, at.ctx)
      assert.is_true(want == go_on(r, at.ctx), name)
      assert.is_true(want == go_on(again, at.ctx), name)
    end
    os.remove(path)
  end)

  it("leaves sessions beside it as they are", function()
    local alone = assert(model:generate({ { role = "user", content = STORY } }, { temperature = 0.8, seed = 2, max_tokens = 100 })).ids
    local s <close> = assert(model:session())
    local long = s:ask(STORY, { overflow = "shift", max_tokens = 600, ignore_eos = true })
    for _ = 1, 300 do model:step() end
    local r = assert(model:generate({ { role = "user", content = STORY } }, { temperature = 0.8, seed = 2, max_tokens = 100 }))
    assert.same(alone, r.ids)
    assert.is_true(r.usage.exact)
    assert.equal(600, #assert(long:wait()).ids)
  end)

  it("refuses what a window cannot keep", function()
    local err = fails("overflow", model:generate(many(200), { overflow = "shift", keep = 100, max_tokens = 100 }))
    assert.matches("100 tokens are to be kept while the window moves, at most 64 of a context of 256", err.message)
    local short <close> = assert(fathom.load(fathom.pocket, { ctx = 100, threads = 1 }))
    fails("overflow", short:generate(many(50), { overflow = "shift", max_tokens = 100 }))
    assert.has_error(function() model:generate("x", { overflow = "shft" }) end)
    assert.has_error(function() model:generate("x", { overflow = print }) end)
  end)

  it("asks a function for fewer messages, and goes on from what it gives", function()
    local asked = 0
    local s <close> = assert(model:session { system = "Be brief.", temperature = 0, max_tokens = 60, overflow = function(messages)
      asked = asked + 1
      return { messages[1], messages[#messages] }
    end })
    for _ = 1, 6 do
      local r = assert(s:ask(STORY):wait())
      assert.is_true(r.usage.exact)
    end
    assert.is_true(asked >= 1 and #s:messages() < 13)
    assert.equal("system", s:messages()[1].role)
    local path = os.tmpname()
    assert(s:save(path))
    os.remove(path)
    local bad <close> = assert(model:session { overflow = function() return {} end })
    assert.matches("gave no messages", fails("overflow", bad:ask(("fox "):rep(250)):wait()).message)
    local worse <close> = assert(model:session { overflow = function(m) return m end })
    assert.matches("left %d+ tokens, the context holds 256", fails("overflow", worse:ask(("fox "):rep(300)):wait()).message)
    local thrown <close> = assert(model:session { overflow = function() error "mine" end })
    assert.matches("mine", fails("format", thrown:ask(("fox "):rep(300)):wait()).message)
  end)

  it("bears a function that does what it should not", function()
    local long, closed = ("fox "):rep(300), nil
    closed = assert(model:session { overflow = function() closed:close() return { { role = "user", content = "hi" } } end })
    assert.equal("cancelled", assert(closed:ask(long):wait()).finish)
    local entered = 0
    local steps <close> = assert(model:session { temperature = 0, max_tokens = 4, overflow = function()
      entered = entered + 1
      model:step { ms = 1 }
      return { { role = "user", content = "hi" } }
    end })
    assert(steps:ask(long):wait())
    assert.equal(1, entered)
    local said
    local asks <close> = assert(model:session { temperature = 0, max_tokens = 4 })
    local r = assert(asks:ask(long, { overflow = function()
      said = select(2, asks:ask("x"):wait())
      return { { role = "user", content = "hi" } }
    end }):wait())
    assert.matches("cannot ask that session itself", said.message)
    assert.equal("hi", asks:messages()[1].content, r.text)
    local thrown <close> = assert(model:session { overflow = function() error { 1 } end })
    fails("format", thrown:ask(long):wait())
  end)

  it("works for each family", function()
    for _, name in ipairs { "v3-tiny", "v2-lite-tiny", "qwen2-tiny" } do
      local tiny <close> = assert(fathom.load("spec/golden/" .. name, { ctx = 192, threads = 1 }))
      local r = assert(tiny:generate({ 1, 2, 3, 4, 5, 6 }, { overflow = "shift", max_tokens = 700, ignore_eos = true, seed = 1 }))
      assert.equal(700, #r.ids)
      assert.is_true(r.usage.shifted >= 512)
    end
  end)
end)

it("YaRN carries a context past the model's first one", function()
  local config = helper.read "spec/golden/v3-tiny/config.json"
  assert.matches('"original_max_position_embeddings": 64', config)
  local model <close> = assert(fathom.load("spec/golden/v3-tiny", { ctx = 256, threads = 1 }))
  local r = assert(model:generate({ 1, 2, 3 }, { max_tokens = 240, ignore_eos = true, seed = 1 }))
  assert.same({ 240, true }, { #r.ids, r.usage.exact })
  fails("overflow", fathom.load("spec/golden/v3-tiny", { ctx = 257 }))
end)

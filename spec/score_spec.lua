--- score_spec.lua - how likely given replies are, read in the batch: ids that are taken as if they had been sampled.
local fathom = require "fathom"

local question = "What is 17 + 25?"

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("score_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

describe("session:score", function()
  local model
  setup(function() model = assert(fathom.load(fathom.pocket, { seqs = 4 })) end)
  teardown(function() model:close() end)

  local function near(a, b) assert.is_near(a, b, 1e-3 * (1 + math.abs(b) * 0.02)) end

  it("agrees with model:score, token by token", function()
    local talk <close> = model:session()
    local replies = { "17 + 25 = 42", "42", "It is a very long reply that takes more tokens than are verified in one pass, and goes on." }
    local got = assert(talk:score(question, replies, { ending = false }))
    local prompt = model:render { { role = "user", content = question } }
    local sum = 0
    for i, r in ipairs(got) do
      local want = model:score(prompt, replies[i])
      assert.equal(#want.tokens, #r.tokens)
      near(r.logprob, want.logprob)
      for k, token in ipairs(want.tokens) do
        assert.equal(token.id, r.tokens[k].id)
        near(r.tokens[k].logprob, token.logprob)
      end
      assert.equal(replies[i], r.text)
      sum = sum + r.p
    end
    assert.is_near(1, sum, 1e-9)
    assert.equal(0, #talk:messages())
    assert.equal(0, model:stats().tasks)
  end)

  it("gives what was sampled the very logprobs it was sampled with", function()
    local talk <close> = model:session { seed = 1, temperature = 1 }
    local r = assert(talk:fork():ask(question, { logprobs = 0 }):wait())
    local got = assert(talk:score(question, { r.ids }, { ending = false }))[1]
    for i, token in ipairs(got.tokens) do
      assert.equal(r.ids[i], token.id)
      assert.equal(r.logprobs[i].logprob, token.logprob)
    end
  end)

  it("ends replies unless it is told not to", function()
    local talk <close> = model:session()
    local ended = assert(talk:score("2 + 3", { "5" }, { think = false }))[1]
    assert.equal(2, #ended.tokens)
    local open = assert(talk:score("2 + 3", { "5" }, { think = false, ending = false }))[1]
    assert.equal(1, #open.tokens)
    assert.is_true(ended.logprob <= open.logprob)
    assert.is_near(open.logprob, ended.tokens[1].logprob, 1e-5)
  end)

  it("chooses: the right one of several answers is the likeliest", function()
    local talk <close> = model:session()
    local got = assert(talk:score("What is the capital of France?", { "Rome.", "Paris is the capital of France.", "I like it." },
                                  { think = false }))
    assert.is_true(got[2].logprob > got[3].logprob)
    assert.same({}, assert(talk:score(question, {})))
  end)

  it("is the same beside others, in a small cache, in small chunks, without prefixes and drafts", function()
    local replies = { "42", "17 + 25 = 42", "41", "17 + 25 = 41", "forty-two", "\\boxed{42}" }
    local want
    for _, load in ipairs { { seqs = 8 }, { seqs = 2, chunk = 16, prefix_cache = false },
                            { seqs = 3, ctx = 256, cache_bytes = 1500000, mtp = false } } do
      local m <close> = assert(fathom.load(fathom.pocket, load))
      local beside <close> = m:session { seed = 2, temperature = 1 }
      local story = beside:ask("Tell me a story about a fox.", { max_tokens = 120 })
      local talk <close> = m:session { messages = { { role = "user", content = "Hello!" }, { role = "assistant", content = "Hello!" } } }
      local got = assert(talk:score(question, replies))
      local logprobs = {}
      for i, r in ipairs(got) do logprobs[i] = r.logprob end
      want = want or logprobs
      assert.same(want, logprobs)
      assert.is_not_nil(story:wait())
    end
  end)

  it("does not count as drafts or replies, and leaves the session's place", function()
    local talk <close> = model:session { seed = 1, temperature = 0 }
    assert(talk:ask("2 + 3"):wait())
    local before = model:stats()
    assert(talk:score(question, { "a long enough reply", "another reply of some tokens" }))
    local after = model:stats()
    assert.equal(before.drafted, after.drafted)
    assert.equal(before.generated_tokens, after.generated_tokens)
    local r = assert(talk:ask(question):wait())
    assert.matches("42", r.answer)
    assert.is_true(r.usage.cached > 0)
  end)

  it("yields inside a coroutine, and can be left", function()
    local talk <close> = model:session()
    local turns, got = 0, nil
    local co = coroutine.create(function() got = assert(talk:score(question, { "42", "41" })) end)
    while coroutine.status(co) ~= "dead" do
      assert(coroutine.resume(co))
      turns = turns + 1
      model:step { ms = 1 }
    end
    assert.is_true(turns > 1)
    assert.equal(2, #got)
    local again = coroutine.create(function() return talk:score(question, { "42", "41" }) end)
    coroutine.resume(again)
    talk:close()
    for _ = 1, 2000 do if not model:step() then break end end
    assert.equal(0, model:stats().tasks)
  end)

  it("says what is wrong", function()
    local talk <close> = model:session()
    raises("replies%[2%] must be", function() talk:score("a", { "b", 3 }) end)
    raises("unknown option 'temperature'", function() talk:score("a", { "b" }, { temperature = 1 }) end)
    raises("outside the vocabulary", function() talk:score("a", { { 999999 } }) end)
    raises("is empty", function() talk:score("a", { "" }, { ending = false }) end)
    local small <close> = assert(fathom.load(fathom.pocket, { ctx = 64 }))
    local s <close> = small:session()
    local r, err = s:score(question, { ("word "):rep(80) })
    assert.is_nil(r)
    assert.equal("overflow", err.code)
  end)
end)

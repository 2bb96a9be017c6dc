--- golden_spec.lua - the five golden checkpoints against the reference library's numbers (see spec/golden/README.md).
local fathom = require "fathom"
local helper = require "spec.helper"

-- The reference computed in f32 like us, in another order: 1e-3 is some hundred times the noise of that.
local TOLERANCE = 1e-3

-- Largest difference between a tensor's bytes and a reference from flat index `at` on.
local function worst(tensor, reference, at)
  local bytes, big = tensor:bytes(), 0.0
  for i = 0, #bytes // 4 - 1 do
    local d = math.abs(string.unpack("<f", bytes, 4 * i + 1) - reference.get(at + i))
    if d ~= d then return d end                   -- a NaN is within no tolerance
    if d > big then big = d end
  end
  return big
end

local function ids_of(reference, row, n)
  local ids = {}
  for i = 1, n do ids[i] = math.tointeger(reference.get((row - 1) * n + i - 1)) end
  return ids
end

local function log_softmax(row)
  local max, sum = -math.huge, 0.0
  for _, v in ipairs(row) do max = math.max(max, v) end
  for _, v in ipairs(row) do sum = sum + math.exp(v - max) end
  local shift = max + math.log(sum)
  return function(id) return row[id + 1] - shift end
end

for _, name in ipairs { "v3-tiny", "v3-fp8", "v2-tiny", "v2-lite-tiny", "qwen2-tiny" } do
  describe("golden " .. name, function()
    local dir = "spec/golden/" .. name
    local golden, model, rows

    setup(function()
      golden = helper.safetensors(dir .. "/golden.safetensors")
      model = assert(fathom.load(dir, { ctx = 128 }))
      rows = { ids_of(golden.input_ids, 1, 48), ids_of(golden.input_ids, 2, 48) }
    end)
    teardown(function() model:close() end)

    it("gives the reference's logits", function()
      for r, ids in ipairs(rows) do
        local logits <close> = assert(model:logits(ids))
        assert.same({ 48, golden.logits.shape[3] }, logits:shape())
        assert.is_true(worst(logits, golden.logits, (r - 1) * 48 * golden.logits.shape[3]) <= TOLERANCE)
        local last <close> = assert(model:logits(ids, { last = true }))
        assert.same({ 1, golden.logits.shape[3] }, last:shape())
        assert.same(logits:row(48), last:row(1))
      end
    end)

    it("gives every hidden state", function()
      local shape = golden.hidden_states.shape
      for r, ids in ipairs(rows) do
        local hidden <close> = assert(model:hidden(ids))
        assert.same({ shape[1], 48, shape[4] }, hidden:shape())
        for layer = 1, shape[1] do
          local state <close> = hidden:slice(layer)
          local at = ((layer - 1) * 2 + r - 1) * 48 * shape[4]
          assert.is_true(worst(state, golden.hidden_states, at) <= TOLERANCE, "layer " .. layer - 1)
        end
      end
    end)

    it("generates the greedy ids, with drafts and without", function()
      local greedy = ids_of(golden.greedy, 1, 48)
      local prompt, want = table.move(greedy, 1, 16, 1, {}), table.move(greedy, 17, 48, 1, {})
      for _, mtp in ipairs { false, true } do
        local r = assert(model:generate(prompt, { temperature = 0, max_tokens = 32, ignore_eos = true, mtp = mtp }))
        assert.same(want, r.ids)
        assert.equal("length", r.finish)
        assert.equal("", r.text)
      end
    end)

    it("decodes one token at a time what a prompt pass computes", function()
      local prompt = table.move(rows[2], 1, 12, 1, {})
      local r = assert(model:generate(prompt, { temperature = 1, seed = 7, max_tokens = 36, logprobs = 3, mtp = false,
                                                ignore_eos = true, top_p = 1 }))
      local all = table.move(r.ids, 1, #r.ids, 13, table.move(prompt, 1, 12, 1, {}))
      local logits <close> = assert(model:logits(all))
      for i, entry in ipairs(r.logprobs) do
        local logprob = log_softmax(logits:row(11 + i))
        assert.is_true(math.abs(entry.logprob - logprob(entry.id)) <= TOLERANCE)
        assert.equal(3, #entry.top)
        for _, top in ipairs(entry.top) do assert.is_true(math.abs(top.logprob - logprob(top.id)) <= TOLERANCE) end
      end
    end)

    it("gives the MTP layer's logits, or says that there is none", function()
      if not golden.mtp_logits then
        local logits, err = model:logits(rows[1], { mtp = true })
        assert.is_nil(logits)
        assert.equal("unsupported", err.code)
        return
      end
      local vocab = golden.mtp_logits.shape[3]
      for r, ids in ipairs(rows) do
        local logits <close> = assert(model:logits(ids, { mtp = true }))
        assert.same({ 47, vocab }, logits:shape())
        assert.is_true(worst(logits, golden.mtp_logits, (r - 1) * 47 * vocab) <= TOLERANCE)
      end
    end)

    it("scores a continuation as its logits do", function()
      local ids = rows[1]
      local score = assert(model:score(table.move(ids, 1, 20, 1, {}), table.move(ids, 21, 30, 1, {})))
      local logits <close> = assert(model:logits(table.move(ids, 1, 30, 1, {})))
      local sum = 0.0
      for i, token in ipairs(score.tokens) do
        assert.equal(ids[20 + i], token.id)
        assert.is_true(math.abs(token.logprob - log_softmax(logits:row(19 + i))(token.id)) <= TOLERANCE)
        sum = sum + token.logprob
      end
      assert.equal(10, #score.tokens)
      assert.is_true(math.abs(sum - score.logprob) <= 1e-9)
    end)

    it("takes ids and gives ids, and says that text needs a tokenizer", function()
      local prompt, err = model:encode "text"
      assert.is_nil(prompt)
      assert.equal("unsupported", err.code)
      assert.is_nil((model:decode { 1 }))
      assert.is_nil((model:render { { role = "user", content = "x" } }))
      local r = assert(model:generate({ 1, 2, 3 }, { max_tokens = 4, ignore_eos = true }))
      assert.equal(4, #r.ids)
      assert.equal("", r.text)
      local session <close> = assert(model:session())
      assert.equal(2, #assert(session:ask({ 1, 2, 3 }, { max_tokens = 2, ignore_eos = true }):wait()).ids)
      assert.equal(2, #assert(session:ask({ 4 }, { max_tokens = 2, ignore_eos = true }):wait()).ids)
      local result, why = session:ask("text"):wait()
      assert.is_nil(result)
      assert.equal("unsupported", why.code)
    end)
  end)
end

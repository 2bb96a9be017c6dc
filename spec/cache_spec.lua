--- cache_spec.lua - what the attention cache may be kept in: bytes, accuracy, and that nobody's neighbours matter.
local fathom = require "fathom"
local helper = require "spec.helper"

local function load(dir, cache, more)
  local opts = { cache_dtype = cache, ctx = 256 }
  for k, v in pairs(more or {}) do opts[k] = v end
  return assert(fathom.load(dir, opts))
end

local function chat(text) return { { role = "user", content = text } } end

-- Relative L2 error of each row of `got` against the same row of `want`, sorted.
local function errors(want, got, n)
  local list = {}
  for i = 1, n do
    local a, b, d, w = want:row(i), got:row(i), 0.0, 0.0
    for j = 1, #a do d, w = d + (a[j] - b[j]) ^ 2, w + a[j] * a[j] end
    list[i] = math.sqrt(d / w)
  end
  table.sort(list)
  return list
end

local function compare(dir, ids)
  local a <close> = load(dir, "f32")
  local b <close> = load(dir, "fp8")
  local want <close> = assert(a:logits(ids))
  local got <close> = assert(b:logits(ids))
  return errors(want, got, #ids)
end

describe("cache_dtype", function()
  it("counts the bytes of a token: 656 of 512 + 64 in fp8, and tiles of any other size", function()
    local loaded <close> = load(fathom.pocket, "f32")
    local config = loaded.config
    local rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    local row = { f32 = 4 * (rank + rope), bf16 = 2 * (rank + rope),
                  fp8 = rank + 4 * ((rank + 127) // 128) + 2 * rope }
    local layers = config.num_hidden_layers + config.num_nextn_predict_layers
    for cache, size in pairs(row) do
      local plan = assert(fathom.plan(fathom.pocket, { cache_dtype = cache, ctx = 640, seqs = 2 }))
      assert.equal(2 * (10 + 1) * 64 * layers * size, plan.cache)
      local model <close> = load(fathom.pocket, cache, { ctx = 640, seqs = 2 })
      assert.equal(plan.cache, model:stats().cache_bytes)
    end
  end)

  -- e4m3 keeps four bits: a value is off by at most 2^-4 of itself, 2.6e-2 in the mean square, and attention hands a mean of
  -- such values on to a residual stream that carries much else: less than 2^-4 is left. With random weights a router's choice
  -- that flips makes an outlier of a row (with a bf16 cache too), so there the median says it.
  it("fp8 is within 2^-4 of f32 on every row of pocket, and on the median row of random weights", function()
    local tokenizer <close> = assert(fathom.tokenizer(fathom.pocket))
    local ids = tokenizer:encode "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears has she?"
    local off = compare(fathom.pocket, ids)
    assert.is_true(off[#off] <= 2 ^ -4, ("the worst row is off by %g"):format(off[#off]))
    for _, name in ipairs { "v3-tiny", "v3-fp8", "v2-tiny", "v2-lite-tiny" } do
      local golden, row = helper.safetensors("spec/golden/" .. name .. "/golden.safetensors"), {}
      for i = 1, 48 do row[i] = math.tointeger(golden.input_ids.get(i - 1)) end
      off = compare("spec/golden/" .. name, row)
      assert.is_true(off[24] <= 2 ^ -4, ("%s: the median row is off by %g"):format(name, off[24]))
      assert.is_true(off[24] > 1e-4, name .. " is not touched by it")
    end
  end)

  it("fp8 answers pocket's questions as f32 does", function()
    local exact <close> = load(fathom.pocket, "f32")
    local model <close> = load(fathom.pocket, "fp8")
    for _, q in ipairs { "What is 17 + 25?", "What is 9 * 4?", "Who are you?",
                         "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears has she?" } do
      local opts = { temperature = 0, max_tokens = 80 }
      assert.equal(assert(exact:generate(chat(q), opts)).answer, assert(model:generate(chat(q), opts)).answer)
    end
  end)

  for _, cache in ipairs { "bf16", "fp8" } do
    it(cache .. " gives a seed the same ids alone, in company, forked, with drafts and without", function()
      local model <close> = load(fathom.pocket, cache, { seqs = 6 })
      local prompts, alone = { "Tell me a story about a fox.", "What is 3 + 4?", "Who are you?" }, {}
      for i, p in ipairs(prompts) do
        alone[i] = assert(model:generate(chat(p), { temperature = 1, seed = i, max_tokens = 30, mtp = false })).ids
      end
      local tasks, sessions = {}, {}
      for i, p in ipairs(prompts) do
        sessions[i] = assert(model:session())
        tasks[i] = sessions[i]:ask(p, { temperature = 1, seed = i, max_tokens = 30 })
      end
      for i, t in ipairs(tasks) do assert.same(alone[i], assert(t:wait()).ids) end
      local fork <close> = sessions[1]:fork()
      local opts = { temperature = 1, seed = 9, max_tokens = 20 }
      local one = assert(sessions[1]:ask("And then?", opts):wait()).ids
      assert.same(one, assert(fork:ask("And then?", opts):wait()).ids)
      for _, s in ipairs(sessions) do s:close() end
    end)
  end

  it("fp8 is refused by name where there is no latent", function()
    for _, call in ipairs { fathom.load, fathom.plan } do
      local made, err = call("spec/golden/qwen2-tiny", { cache_dtype = "fp8" })
      assert.is_nil(made)
      assert.equal("unsupported", err.code)
      assert.matches("fp8.*qwen2", err.message)
    end
  end)
end)

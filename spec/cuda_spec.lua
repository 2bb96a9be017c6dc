--- cuda_spec.lua - the forward pass on a GPU: the goldens in f32 and in the device's own arithmetic, the same answer in any
-- company, and every byte given back. Pending where there is no GPU.
local fathom = require "fathom"
local helper = require "spec.helper"

local function has_gpu()
  for _, d in ipairs((fathom.devices())) do
    if d.name:find "^cuda" then return true end
  end
  return false
end

if not has_gpu() then
  describe("the CUDA device", function()
    pending("waits for a GPU")
  end)
  return
end

local function ids_of(reference, row, n)
  local ids = {}
  for i = 1, n do ids[i] = math.tointeger(reference.get((row - 1) * n + i - 1)) end
  return ids
end

-- Relative L2 error, and the reference's argmax, ours and its margin, of row `i` of logits.
local function compare(ours, reference, at)
  local d, w, best, second, id, own, own_id = 0.0, 0.0, -math.huge, -math.huge, 0, -math.huge, 0
  for j = 1, #ours do
    local r = reference.get(at + j - 1)
    d, w = d + (ours[j] - r) ^ 2, w + r * r
    if r > best then best, second, id = r, best, j elseif r > second then second = r end
    if ours[j] > own then own, own_id = ours[j], j end
  end
  return math.sqrt(d / w), id == own_id, best - second
end

local checkpoints = { "v3-tiny", "v3-fp8", "v2-tiny", "v2-lite-tiny", "qwen2-tiny" }

for _, name in ipairs(checkpoints) do
  describe("golden " .. name .. " on the GPU", function()
    local dir = "spec/golden/" .. name
    local golden = helper.safetensors(dir .. "/golden.safetensors")
    local v = golden.logits.shape[3]

    it("is within 2e-3 in f32, and generates the same ids", function()
      local model <close> = assert(fathom.load(dir, { device = "cuda", dtype = "f32", ctx = 128 }))
      for r = 1, 2 do
        local logits <close> = assert(model:logits(ids_of(golden.input_ids, r, 48)))
        for i = 1, 48 do
          local row = logits:row(i)
          for j = 1, v do
            local off = math.abs(row[j] - golden.logits.get(((r - 1) * 48 + i - 1) * v + j - 1))
            assert.is_true(off <= 2e-3, ("row %d of %d, column %d: off by %g"):format(i, r, j, off))
          end
        end
      end
      local greedy = ids_of(golden.greedy, 1, 48)
      local prompt, want = table.move(greedy, 1, 16, 1, {}), table.move(greedy, 17, 48, 1, {})
      for _, mtp in ipairs { false, true } do
        local got = assert(model:generate(prompt, { temperature = 0, max_tokens = 32, ignore_eos = true, mtp = mtp }))
        assert.same(want, got.ids)
      end
    end)

    -- A router's choice that flips changes a row by more than rounding does; those rows are at most 15 of a hundred.
    it("is within 3e-2 in bf16 on 85 of 100 rows, with the reference's argmax where its margin is 0.3", function()
      local model <close> = assert(fathom.load(dir, { device = "cuda", dtype = "bf16", ctx = 128 }))
      local good, wrong, worst = 0, 0, 0.0
      for r = 1, 2 do
        local logits <close> = assert(model:logits(ids_of(golden.input_ids, r, 48)))
        for i = 1, 48 do
          local off, same, margin = compare(logits:row(i), golden.logits, ((r - 1) * 48 + i - 1) * v)
          if off <= 3e-2 then
            good = good + 1
            worst = math.max(worst, off)
            if not same and margin > 0.3 then wrong = wrong + 1 end
          end
        end
      end
      print(("  %s: %d of 96 rows within 3e-2, the worst of them %.2g"):format(name, good, worst))
      assert.is_true(good >= 82, good .. " rows of 96")
      assert.equal(0, wrong)
    end)
  end)
end

describe("the GPU", function()
  local function chat(text) return { { role = "user", content = text } } end
  local prompts = { "What is 17 + 25?", "Tell me a story about a fox.", "Who are you?", "What is 9 * 4?",
                    "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears has she?" }

  it("says its name, and takes pocket to the right answer", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda" }))
    assert.equal("cuda", model:stats().device)
    local r = assert(model:generate(chat "What is 17 + 25?", { temperature = 0 }))
    assert.matches("42", r.answer)
    local cpu <close> = assert(fathom.load(fathom.pocket, { device = "cpu" }))
    local exact <close> = assert(fathom.load(fathom.pocket, { device = "cuda", dtype = "f32" }))
    for _, p in ipairs(prompts) do
      local opts = { temperature = 0.8, seed = 5, max_tokens = 60 }
      assert.same(assert(cpu:generate(chat(p), opts)).ids, assert(exact:generate(chat(p), opts)).ids)
    end
  end)

  it("gives the same ids alone, in company, with drafts and without, one seed each", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda", seqs = 8 }))
    local alone = {}
    for i, p in ipairs(prompts) do
      alone[i] = assert(model:generate(chat(p), { temperature = 1, seed = i, max_tokens = 50, mtp = i % 2 == 0 })).ids
    end
    local tasks, sessions = {}, {}
    for i, p in ipairs(prompts) do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(p, { temperature = 1, seed = i, max_tokens = 50 })
    end
    for i, t in ipairs(tasks) do assert.same(alone[i], assert(t:wait()).ids) end
    for _, s in ipairs(sessions) do s:close() end
  end)

  local function free()
    for _, d in ipairs((fathom.devices())) do
      if d.name == "cuda:0" then return d.free end
    end
  end

  it("gives every byte back", function()
    local function once()
      local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda" }))
      assert(model:generate(chat "What is 3 + 4?", { temperature = 0, max_tokens = 8 }))
    end
    once()
    local before = free()
    for _ = 1, 50 do once() end
    assert.is_true(before - free() <= 1 << 20, ("%d bytes lost"):format(before - free()))
  end)

  it("gives every byte back when loading is stopped", function()
    local function stop()
      local model, err = fathom.load(fathom.pocket, { device = "cuda", progress = function(done) return done < 4e6 end })
      assert.is_nil(model)
      assert.equal("cancelled", err.code)
    end
    stop()
    local before = free()
    for _ = 1, 10 do stop() end
    assert.is_true(before - free() <= 1 << 20, ("%d bytes lost"):format(before - free()))
  end)

  it("keeps the latent in fp8: pocket's answers, and a seed's ids in any company", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda", cache_dtype = "fp8", seqs = 8 }))
    assert.matches("42", assert(model:generate(chat "What is 17 + 25?", { temperature = 0 })).answer)
    local exact <close> = assert(fathom.load(fathom.pocket, { device = "cuda", dtype = "f32", cache_dtype = "fp8" }))
    local cpu <close> = assert(fathom.load(fathom.pocket, { device = "cpu", cache_dtype = "fp8" }))
    local tasks, sessions = {}, {}
    for i, p in ipairs(prompts) do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(p, { temperature = 1, seed = i, max_tokens = 40 })
    end
    for i, p in ipairs(prompts) do
      local opts = { temperature = 1, seed = i, max_tokens = 40, mtp = false }
      assert.same(assert(model:generate(chat(p), opts)).ids, assert(tasks[i]:wait()).ids)
      assert.same(assert(cpu:generate(chat(p), opts)).ids, assert(exact:generate(chat(p), opts)).ids)
      sessions[i]:close()
    end
  end)

  it("leaves experts to the host where that is asked for", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda", experts = "host" }))
    assert.is_true(model:stats().host_weight_bytes > 0)
    assert.matches("42", assert(model:generate(chat "What is 17 + 25?", { temperature = 0 })).answer)
    local exact <close> = assert(fathom.load(fathom.pocket, { device = "cuda", dtype = "f32", experts = "host" }))
    local cpu <close> = assert(fathom.load(fathom.pocket, { device = "cpu" }))
    for i, p in ipairs(prompts) do
      local opts = { temperature = 1, seed = i, max_tokens = 40 }
      assert.same(assert(cpu:generate(chat(p), opts)).ids, assert(exact:generate(chat(p), opts)).ids)
    end
  end)

  it("is shared by two models, and with another process", function()
    local one <close> = assert(fathom.load(fathom.pocket, { device = "cuda" }))
    local two <close> = assert(fathom.load("spec/golden/v3-tiny", { device = "cuda", ctx = 128 }))
    local ids = { 5, 6, 7, 8, 9 }
    local opts = { temperature = 0, max_tokens = 20, ignore_eos = true }
    local a, b = assert(one:generate(chat "Who are you?", opts)).ids, assert(two:generate(ids, opts)).ids
    local s <close> = one:session()
    local task = s:ask("Who are you?", opts)
    one:step { ms = 1 }
    assert.same(b, assert(two:generate(ids, opts)).ids)
    assert.same(a, assert(task:wait()).ids)
    local out = helper.script("A=1", [[local m = assert(require "fathom".load("spec/golden/v3-tiny", { device = "cuda", ctx = 128 }))
      print(table.concat(assert(m:generate({ 5, 6, 7, 8, 9 }, { temperature = 0, max_tokens = 20, ignore_eos = true })).ids, " "))]])
    assert.equal(table.concat(b, " ") .. "\n", out)
  end)

  it("names what made a NaN", function()
    local dir, remove = helper.folder()
    helper.copy("spec/golden/v3-tiny/config.json", dir .. "/config.json")
    local text = helper.read "spec/golden/v3-tiny/model.safetensors"
    helper.write(dir .. "/model.safetensors", helper.plant(text, "model.layers.2.mlp.shared_experts.up_proj.weight", 0, "\xc0\x7f"))
    local model <close> = assert(fathom.load(dir, { device = "cuda", debug = true, ctx = 64 }))
    local made, err = model:generate({ 5, 6, 7 }, { temperature = 0, max_tokens = 4 })
    remove()
    assert.is_nil(made)
    assert.matches("^layer 2, experts: row 0 is not a number", err.message)
  end)

  -- Two ways through the same products, both in bf16: what the goldens allow for rounding.
  it("is within rounding of itself with deterministic = false", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cuda" }))
    local loose <close> = assert(fathom.load(fathom.pocket, { device = "cuda", deterministic = false, seqs = 8 }))
    local ids = model:render(chat "What is 17 + 25?")
    local want, got = model:logits(ids):row(#ids), loose:logits(ids):row(#ids)
    local d, w = 0.0, 0.0
    for j = 1, #want do d, w = d + (want[j] - got[j]) ^ 2, w + want[j] ^ 2 end
    assert.is_true(math.sqrt(d / w) <= 3e-2, ("off by %g"):format(math.sqrt(d / w)))
    for _, p in ipairs { "What is 17 + 25?", "What is 9 * 4?" } do
      assert.equal(assert(model:generate(chat(p), { temperature = 0 })).answer,
                   assert(loose:generate(chat(p), { temperature = 0 })).answer)
    end
  end)

  it("counts who chose which expert, in prompts, in decoding, and when one row chooses on its way", function()
    local counts = {}
    for i, device in ipairs { "cpu", "cuda" } do
      local model <close> = assert(fathom.load("spec/golden/v3-tiny", { device = device, dtype = "f32", ctx = 128, mtp = false }))
      local ids = {}
      for j = 1, 40 do ids[j] = j * 37 % 500 end
      assert(model:generate(ids, { temperature = 0, max_tokens = 12, ignore_eos = true }))
      local others = {}
      for j = 1, 3 do others[j] = assert(model:session()):ask({ j, 5, 9 }, { temperature = 0, max_tokens = 12, ignore_eos = true }) end
      for _, t in ipairs(others) do assert(t:wait()) end
      counts[i] = model:stats({ experts = true }).experts
    end
    assert.same(counts[1], counts[2])
  end)

  it("refuses what cannot fit before it starts, and says what would", function()
    local model, err = fathom.load(fathom.pocket, { device = "cuda", seqs = 65536 })
    assert.is_nil(model)
    assert.equal("memory", err.code)
    assert.matches("needs .* GiB .* are free", err.message)
  end)
end)

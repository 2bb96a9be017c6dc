--- apart_spec.lua - a device whose memory is not the host's, without a GPU: spec/device/apart.c computes as the CPU does, but its
-- memory can be touched by operations and transfers only. Experts in host memory, two models on one device, devices that fail.
local fathom = require "fathom"
local helper = require "spec.helper"

local ids = { 5, 6, 7, 8, 9, 10, 11, 12, 13 }
local checkpoints = { "spec/golden/v3-tiny", "spec/golden/v3-fp8", "spec/golden/v2-lite-tiny", "spec/golden/qwen2-tiny",
                      fathom.pocket }

local function load(dir, more)
  local opts = { device = "apart", ctx = 128, seqs = 2 }
  for k, v in pairs(more or {}) do opts[k] = v end
  return fathom.load(dir, opts)
end

local function generate(model, more)
  local opts = { temperature = 0, max_tokens = 8, ignore_eos = true }
  for k, v in pairs(more or {}) do opts[k] = v end
  return model:generate(ids, opts)
end

local function free() return assert(fathom.plan("spec/golden/v3-tiny", { device = "apart" })).devices[1].free end

-- The same bits wherever experts are, as the arithmetic is the same.
local function same_as_cpu(dir, more)
  local cpu <close> = assert(fathom.load(dir, { device = "cpu", ctx = 128, seqs = 2 }))
  local apart <close> = assert(load(dir, more))
  assert.equal("apart", apart:stats().device)
  assert.equal(cpu:logits(ids):bytes(), apart:logits(ids):bytes())
  assert.equal(cpu:hidden(ids):bytes(), apart:hidden(ids):bytes())
  for _, o in ipairs { { mtp = false }, { mtp = true }, { temperature = 1, seed = 3, top_k = 5, logprobs = 2 } } do
    assert.same(assert(generate(cpu, o)).ids, assert(generate(apart, o)).ids)
  end
  return apart:stats()
end

describe("a device with a memory of its own", function()
  for _, dir in ipairs(checkpoints) do
    it("gives the cpu's bits, and nobody else touches its memory: " .. dir:match "[^/]+$", function() same_as_cpu(dir) end)
  end

  it("may be asked for speed in place of the same bits: one cpu's arithmetic has both", function()
    local stats = same_as_cpu(fathom.pocket, { deterministic = false })
    assert.is_true(stats.generated_tokens > 0)
  end)

  it("is planned and refused by its own memory", function()
    local plan = assert(fathom.plan(fathom.pocket, { device = "apart", ctx = 128 }))
    assert.equal("apart", plan.devices[1].name)
    assert.is_nil(plan.devices[2])
    local model, err = load(fathom.pocket, { ctx = 2048, seqs = 400 })
    assert.is_nil(model)
    assert.equal("memory", err.code)
    assert.matches("needs .* GiB on the apart", err.message)
  end)

  it("gives every byte back: closed, cancelled while loading, refused", function()
    local before = free()
    for i = 1, 3 do
      local model <close> = assert(load(fathom.pocket))
      assert(generate(model))
      local seen = 0
      local none, err = load(fathom.pocket, { progress = function() seen = seen + 1; return seen < i end })
      assert.is_nil(none)
      assert.equal("cancelled", err.code)
    end
    collectgarbage()
    assert.equal(before, free())
  end)

  it("is shared by two models, and by two Lua states one after the other", function()
    local one <close> = assert(load(fathom.pocket))
    local two <close> = assert(load "spec/golden/v3-tiny")
    local a, b = assert(generate(one)).ids, assert(generate(two)).ids
    local s <close> = one:session()
    local task = s:ask("What is 2 + 3?", { temperature = 0 })
    assert.same(b, assert(generate(two)).ids)
    assert.matches("5", assert(task:wait()).answer)
    assert.same(a, assert(generate(one)).ids)
    local script = [[local m = assert(require "fathom".load("spec/golden/v3-tiny", { device = "apart", ctx = 128 }))
      print(table.concat(assert(m:generate({ 5, 6, 7, 8, 9, 10, 11, 12, 13 }, { temperature = 0, max_tokens = 8,
        ignore_eos = true })).ids, " "))]]
    assert.equal(table.concat(b, " ") .. "\n", helper.script("A=1", script))
  end)

  it("takes the second of two models only where it fits", function()
    local out = helper.script("APART_MEMORY=" .. (230 << 20), [[
      local fathom = require "fathom"
      local one = assert(fathom.load(fathom.pocket, { device = "apart", ctx = 128 }))
      local two, err = fathom.load(fathom.pocket, { device = "apart", ctx = 128 })
      print(two, err.code)
      assert(one:generate("Who are you?", { max_tokens = 4 }))
      one:close()
      print(fathom.load(fathom.pocket, { device = "apart", ctx = 128 }))]])
    assert.matches("^nil\tmemory\nfathom model", out)
  end)

  -- The operation from which on nothing works: within loading, within a prompt, within decoding.
  it("that fails is nil, err wherever it happens, and everything is given back", function()
    local script = [[
      local fathom = require "fathom"
      local function free() return assert(fathom.plan(fathom.pocket, { device = "apart" })).devices[1].free end
      local before = free()
      local model, err = fathom.load(fathom.pocket, { device = "apart", ctx = 128, seqs = 2 })
      if model then
        local one, two = model:session(), model:session()
        local a, b = one:ask("What is 3 + 4?", { temperature = 0 }), two:ask("Who are you?", { temperature = 0 })
        local r, why = a:wait()
        local q, so = b:wait()
        print(r, why and why.code, q, so and so.code, select(2, model:logits { 5, 6 }).code)
        one:close() two:close() model:close()
      else
        print(model, err.code)
      end
      collectgarbage()
      print(before == free())]]
    for _, at in ipairs { 1, 2, 40, 150, 400, 900, 1200, 1800 } do
      local out = helper.script("APART_FAILS=" .. at, script)
      local words = out:match "^(.-)\ntrue\n$"
      assert.is_truthy(words, ("from operation %d on: %s"):format(at, out))
      assert.is_truthy(words == "nil\tdevice" or words:match "^nil\tdevice\tnil\tdevice\tdevice$", words)
    end
  end)

  it("names what made a NaN, in a step of decoding too", function()
    local dir, remove = helper.folder()
    helper.copy("spec/golden/v3-tiny/config.json", dir .. "/config.json")
    local text = helper.read "spec/golden/v3-tiny/model.safetensors"
    helper.write(dir .. "/model.safetensors", helper.plant(text, "model.layers.2.mlp.shared_experts.up_proj.weight", 0, "\xc0\x7f"))
    for experts, name in pairs { auto = "experts", host = "matmul of %(%d+, 64%)" } do
      local model <close> = assert(load(dir, { debug = true, experts = experts }))
      local made, err = generate(model)
      assert.is_nil(made)
      assert.matches("^layer 2, " .. name .. ": row 0 is not a number", err.message)
    end
    remove()
  end)
end)

describe("experts in host memory", function()
  for _, dir in ipairs(checkpoints) do
    it("change no bit: " .. dir:match "[^/]+$", function()
      local stats = same_as_cpu(dir, { experts = "host" })
      assert.equal(not dir:find "qwen2", stats.host_weight_bytes > 0)
    end)
  end

  it("are planned apart from the device's weights", function()
    local whole = assert(fathom.plan(fathom.pocket, { device = "apart" }))
    local plan = assert(fathom.plan(fathom.pocket, { device = "apart", experts = "host" }))
    assert.equal(whole.weights, plan.weights)
    assert.equal(whole.weights, plan.devices[1].weights + plan.devices[2].weights)
    assert.equal("cpu", plan.devices[2].name)
    assert.is_true(plan.devices[2].weights > 4e6 and plan.devices[1].weights > 4e6)
    assert.matches("on apart.*on cpu", plan:report())
  end)

  it("let a model run that the device cannot hold", function()
    local script = [[
      local fathom = require "fathom"
      print(select(2, fathom.load(fathom.pocket, { device = "apart", ctx = 128 })))
      local model = assert(fathom.load(fathom.pocket, { device = "apart", ctx = 128, experts = "host" }))
      print(model:generate({ { role = "user", content = "What is 17 + 25?" } }, { temperature = 0 }).answer)]]
    local out = helper.script("APART_MEMORY=" .. (160 << 20), script)
    assert.matches('needs .*%(memory%); .*experts = "host" leaves .* in host memory\n.*42', out)
  end)

  it("are where everything is on the cpu, and are nowhere else", function()
    local model <close> = assert(fathom.load(fathom.pocket, { device = "cpu", experts = "host", ctx = 128 }))
    assert.equal(0, model:stats().host_weight_bytes)
    assert.error_matches(function() fathom.load(fathom.pocket, { experts = "moon" }) end, "experts")
  end)
end)

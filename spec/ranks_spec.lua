--- ranks_spec.lua - several ranks, as threads on the CPU: every form gives what one rank gives.
local fathom = require "fathom"
local helper = require "spec.helper"

-- dp, pp and ep move work and change no sum. tp adds a row's parts in another order: in f32 some 1e-6 on these models.
local TOLERANCE = 1e-3

local goldens = { "v3-tiny", "v3-fp8", "v2-tiny", "v2-lite-tiny", "qwen2-tiny" }
local exact = {
  { dp = 2 }, { dp = 3 }, { dp = 5 }, { dp = 8 }, { pp = 2 }, { pp = 3 }, { dp = 2, ep = 1 }, { dp = 4, ep = 2 },
  { pp = 2, dp = 2 }, { pp = 2, dp = 3 }, { pp = 2, dp = 4, ep = 2 },
}
local near = {
  { tp = 2 }, { tp = 2, ep = 1 }, { tp = 4 }, { tp = 8 }, { tp = 4, ep = 2 }, { dp = 2, tp = 2 }, { dp = 2, tp = 2, ep = 1 },
  { dp = 4, tp = 2 }, { dp = 2, tp = 4, ep = 2 }, { pp = 2, tp = 2 }, { pp = 2, dp = 2, tp = 2 },
}

local function label(form)
  local words = {}
  for _, k in ipairs { "pp", "dp", "tp", "ep" } do if form[k] then words[#words + 1] = k .. " = " .. form[k] end end
  return table.concat(words, ", ")
end

local function load(name, form, opts)
  local o, n = { ctx = 128, seqs = 8, threads = 1 }, (form.pp or 1) * (form.dp or 1) * (form.tp or 1)
  for k, v in pairs(opts or {}) do o[k] = v end
  o.device, o.parallel = {}, form
  for i = 1, n do o.device[i] = "cpu" end
  return fathom.load("spec/golden/" .. name, o)
end

-- Ids of a prompt; each number gives another.
local function prompt(number, n)
  local ids = {}
  for i = 1, n do ids[i] = (i * (31 + 2 * number) + number * number) % 500 end
  return ids
end

local function bytes(tensor)
  local text = tensor:bytes()
  tensor:close()
  return text
end

local function worst(a, b)
  assert.equal(#a, #b)
  local big = 0.0
  for at = 1, #a, 4 do
    local d = math.abs(string.unpack("<f", a, at) - string.unpack("<f", b, at))
    if d ~= d then return d end
    if d > big then big = d end
  end
  return big
end

-- Everything that one model computes of given ids.
local function computed(model)
  local ids, out = prompt(1, 40), {}
  out.logits = bytes(assert(model:logits(ids)))
  out.hidden = bytes(assert(model:hidden(ids)))
  out.last = bytes(assert(model:logits(prompt(2, 7), { last = true })))
  if (model.config.num_nextn_predict_layers or 0) > 0 then out.mtp = bytes(assert(model:logits(ids, { mtp = true }))) end
  return out
end

-- Answers of sessions that come and go: some at once, one with two turns, a fork, one that is cut short, one cancelled.
local function answers(model)
  local out, tasks, sessions = {}, {}, {}
  for i = 1, 5 do
    sessions[i] = assert(model:session { temperature = 1, seed = i, ignore_eos = true })
    tasks[i] = sessions[i]:ask(prompt(i, 5 + 9 * i), { max_tokens = 6 + 4 * i, mtp = i % 2 == 0 })
    for _ = 1, i do model:step() end              -- they join while others run
  end
  tasks[3]:cancel()
  for i = 1, 5 do
    local r = assert(tasks[i]:wait())
    if i ~= 3 then out[#out + 1] = r.ids end
  end
  out[#out + 1] = assert(sessions[1]:ask({ 7, 8, 9 }, { max_tokens = 8 }):wait()).ids
  local fork <close> = assert(sessions[1]:fork())
  out[#out + 1] = assert(fork:ask({ 10, 11 }, { max_tokens = 8 }):wait()).ids
  for i = 1, 5 do sessions[i]:close() end
  local again <close> = assert(model:session { temperature = 1, seed = 2, ignore_eos = true })
  out[#out + 1] = assert(again:ask(prompt(5, 50), { max_tokens = 10 }):wait()).ids    -- a prefix that is cached
  return out
end

for _, name in ipairs(goldens) do
  describe("ranks of " .. name, function()
    local one, facts, ids

    setup(function()
      one = assert(load(name, {}))
      facts, ids = computed(one), answers(one)
    end)
    teardown(function() one:close() end)

    local function each(forms, check)
      local met = 0
      for _, form in ipairs(forms) do
        local model, err = load(name, form)
        if model then
          check(model, form)
          model:close()
          met = met + 1
        else                                      -- not every model can be split in every way; it says why
          assert.equal("unsupported", err.code)
          assert.is_truthy(err.message:find "does not divide" or err.message:find "the model has")
        end
      end
      return met
    end

    it("give the bits of one rank where sequences, layers or experts are dealt out", function()
      local met = each(exact, function(model, form)
        for what, text in pairs(computed(model)) do
          assert.is_true(text == facts[what], what .. " with " .. label(form))
        end
        assert.same(ids, answers(model), label(form))
      end)
      assert.is_true(met >= 6)
    end)

    it("come close to it where heads and columns are", function()
      local met = each(near, function(model, form)
        for what, text in pairs(computed(model)) do
          assert.is_true(worst(text, facts[what]) <= TOLERANCE, what .. " with " .. label(form))
        end
        local got = answers(model)
        assert.equal(#ids, #got)
        for i = 1, #ids do assert.equal(#ids[i], #got[i]) end
      end)
      assert.is_true(met >= 5)
    end)

    it("give the golden's greedy ids in every form", function()
      local golden = helper.safetensors("spec/golden/" .. name .. "/golden.safetensors")
      local all = {}
      for i = 1, 48 do all[i] = math.tointeger(golden.greedy.get(i - 1)) end
      local first, want = table.move(all, 1, 16, 1, {}), table.move(all, 17, 48, 1, {})
      for _, forms in ipairs { exact, near } do
        each(forms, function(model, form)
          local r = assert(model:generate(first, { temperature = 0, max_tokens = 32, ignore_eos = true }))
          assert.same(want, r.ids, label(form))
        end)
      end
    end)
  end)
end

describe("a team of ranks", function()
  it("tells how many there are and how they share the work", function()
    local model <close> = assert(load("v3-tiny", { pp = 2, dp = 2 }))
    local s = model:stats()
    assert.same({ 4, 2, 2, 1, 2 }, { s.ranks, s.pp, s.dp, s.tp, s.ep })
    local one <close> = assert(load("v3-tiny", {}))
    s = one:stats()
    assert.same({ 1, 1, 1, 1, 1 }, { s.ranks, s.pp, s.dp, s.tp, s.ep })
  end)

  it("counts each row's choices of experts once, whoever makes them", function()
    local counts
    for _, form in ipairs { {}, { dp = 2 }, { tp = 2 }, { pp = 2, dp = 2 }, { tp = 4, ep = 2 }, { tp = 2, ep = 1 } } do
      local model <close> = assert(load("v3-tiny", form))
      local ids = prompt(1, 40)
      assert(model:logits(ids)):close()
      local experts, sum = model:stats({ experts = true }).experts, 0
      assert.same({ 4, 0 }, { #experts, #experts[1] })    -- three layers and MTP's; the first is dense
      for _, n in ipairs(experts[2]) do sum = sum + n end
      assert.equal(40 * model.config.num_experts_per_tok, sum)
      counts = counts or experts
      assert.same(counts, experts, label(form))
    end
  end)

  it("is made of what is left open, too", function()
    local model <close> = assert(fathom.load("spec/golden/v3-tiny", { device = { "cpu", "cpu", "cpu", "cpu" }, parallel = { tp = 2 } }))
    local s = model:stats()
    assert.same({ 4, 1, 2, 2, 4 }, { s.ranks, s.pp, s.dp, s.tp, s.ep })
    local auto <close> = assert(fathom.load("spec/golden/qwen2-tiny", { device = { "cpu", "cpu" } }))
    s = auto:stats()
    assert.equal(2, s.ranks)
    assert.equal(2, s.pp * s.dp * s.tp)
  end)

  it("is refused with a reason where it does not fit", function()
    for _, case in ipairs { { { tp = 3 }, "num_attention_heads" }, { { pp = 4 }, "layers" }, { { dp = 4, ep = 3 }, "ep = 3" } } do
      local model, err = load("v3-tiny", case[1])
      assert.is_nil(model)
      assert.equal("unsupported", err.code)
      assert.matches(case[2], err.message)
    end
    local model, err = fathom.load("spec/golden/v3-tiny", { device = { "cpu", "cpu" }, parallel = { tp = 4 } })
    assert.is_nil(model)
    assert.equal("unsupported", err.code)
    assert.is_string(err.hint)
  end)

  it("keeps each sequence with one group, and all of the cache in use", function()
    local model <close> = assert(load("v3-tiny", { dp = 2 }, { ctx = 128, seqs = 4, prefix_cache = false }))
    local tasks, sessions = {}, {}
    for i = 1, 8 do
      sessions[i] = assert(model:session { seed = i, ignore_eos = true })
      tasks[i] = sessions[i]:ask(prompt(i, 70), { max_tokens = 50 })
    end
    for i = 1, 8 do assert.equal(50, #assert(tasks[i]:wait()).ids) end
    for i = 1, 8 do sessions[i]:close() end
    assert.equal(0, model:stats().pages_used)
  end)

  it("moves a window, saves a session in one form and restores it in another", function()
    local file = os.tmpname()
    local first, second = {}, {}
    for i, form in ipairs { {}, { pp = 2, dp = 2 }, { tp = 2 } } do
      local model <close> = assert(load("qwen2-tiny", form, { dtype = "f32" }))
      local s <close> = assert(model:session { seed = 3, ignore_eos = true, temperature = 0 })
      first[i] = assert(s:ask(prompt(3, 30), { max_tokens = 20 }):wait()).ids
      if i == 1 then assert(s:save(file)) end
      local r <close> = assert(model:restore(file))
      second[i] = assert(r:ask({ 5, 6 }, { max_tokens = 20, temperature = 0, ignore_eos = true }):wait()).ids
      local long <close> = assert(model:session { ignore_eos = true, temperature = 0, overflow = "shift" })
      assert.equal(200, #assert(long:ask(prompt(4, 60), { max_tokens = 200 }):wait()).ids)
    end
    os.remove(file)
    assert.same(first[1], first[2])
    assert.same(second[1], second[2])
    assert.same(first[1], first[3])
    assert.same(second[1], second[3])
  end)
end)

describe("a plan for several devices", function()
  it("says what each of them takes, which is what loading takes", function()
    for _, name in ipairs { "v3-tiny", "v3-fp8", "qwen2-tiny" } do
      for _, form in ipairs { { dp = 2 }, { pp = 2 }, { tp = 2 }, { tp = 2, dp = 2, ep = 1 }, { dp = 3 } } do
        local n, device = (form.dp or 1) * (form.pp or 1) * (form.tp or 1), {}
        for i = 1, n do device[i] = "cpu" end
        local plan = assert(fathom.plan("spec/golden/" .. name, { device = device, parallel = form, ctx = 128, seqs = 4 }))
        local model <close> = assert(load(name, form, { ctx = 128, seqs = 4 }))
        local weights, cache = 0, 0
        for _, d in ipairs(plan.devices) do weights, cache = weights + d.weights, cache + d.cache end
        assert.equal(n, #plan.devices)
        assert.equal(model:stats().weight_bytes, weights)
        assert.equal(plan.weights, weights)
        assert.equal(plan.cache, cache)
      end
    end
  end)

  it("keeps only its own part with each rank", function()
    local function first(form, n)
      local device = {}
      for i = 1, n do device[i] = "cpu" end
      return assert(fathom.plan("spec/golden/v3-tiny", { device = device, parallel = form, ctx = 128, seqs = 4 })).devices[1]
    end
    local one = first({}, 1)
    assert.is_true(first({ dp = 4 }, 4).cache <= one.cache / 4)
    assert.is_true(first({ dp = 4 }, 4).weights < one.weights / 2)
    assert.is_true(first({ pp = 3 }, 3).weights < one.weights / 2)
    assert.is_true(first({ pp = 3 }, 3).cache < one.cache / 2)
    assert.is_true(first({ tp = 4 }, 4).weights < one.weights / 2)
  end)

  it("can be made for cards that are not here, and prints what the forms are expected to cost", function()
    local card = { name = "H100", memory = 80 << 30 }
    local plan = assert(fathom.plan(fathom.pocket, { device = { card, card } }))
    assert.same({ "H100", "H100" }, { plan.devices[1].name, plan.devices[2].name })
    assert.equal(80 << 30, plan.devices[2].memory)
    assert.equal(3, #plan.forms)
    for i = 2, #plan.forms do
      local a, b = plan.forms[i - 1], plan.forms[i]
      assert.is_true(a.read_ms + a.link_ms <= b.read_ms + b.link_ms)
    end
    assert.matches("on H100.*pp 1 +dp 2 +tp 1 +ep 2.*reads.*talks", plan:report())
    assert.is_false(assert(fathom.plan(fathom.pocket, { device = { { memory = 1 << 20 }, { memory = 1 << 20 } } })).forms[1].fits)
    assert.equal(1, #assert(fathom.plan(fathom.pocket, { device = { name = "H100", memory = 80 << 30 } })).devices)
    local model, err = fathom.load(fathom.pocket, { device = { card, card } })
    assert.is_nil(model)
    assert.equal("unsupported", err.code)
    assert.has_error(function() fathom.plan(fathom.pocket, { device = { { name = "H100" } } }) end)
    assert.has_error(function() fathom.plan(fathom.pocket, { device = { 3 } }) end)
  end)
end)

describe("a rank that fails", function()
  local script = [[
    package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
    local fathom = require "fathom"
    local function now() local f = io.open "/proc/uptime"; local t = f:read "n"; f:close() return t end
    local model = assert(fathom.load("spec/golden/v3-tiny",
                                     { ctx = 128, threads = 1, device = { "cpu", "cpu", "cpu" }, parallel = { dp = 3 } }))
    local begin, words, worst = now(), {}, 0
    for i = 1, 3 do
      local t = now()
      local r, err = model:generate({ 1, 2, 3 }, { max_tokens = 8, ignore_eos = true })
      words[#words + 1] = r and "answer" or err.code
      worst = math.max(worst, now() - t)
    end
    local logits, err = model:logits { 1, 2 }
    words[#words + 1] = logits and "logits" or err.code
    if logits then logits:close() end
    begin = now()
    model:close()
    print(table.concat(words, " "), worst < 10 and now() - begin < 10 and "in time" or "late")
  ]]

  -- who is gone is noticed at once, who hangs after so many seconds
  local function run(fault, seconds)
    return (helper.script(("FATHOM_RANK_SECONDS=%d FATHOM_FAULT=%s"):format(seconds or 1, fault), script):gsub("%s+", " "))
  end

  it("ends the call, and the next one goes well", function()
    assert.equal("device answer answer logits in time ", run "fail:1:9")
    assert.equal("device answer answer logits in time ", run "fail:0:4")
  end)

  it("and is gone ends every call, and closing works", function()
    assert.equal("device device device device in time ", run("die:1:9", 60))
    assert.equal("device device device device in time ", run("hang:2:30", 1))
  end)
end)

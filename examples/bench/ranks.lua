-- One model on one device and on several, the same work: decoding alone and 64 together, a prompt, and whether they say the same.
-- usage: lua5.4 examples/bench/ranks.lua DIR [--devices cuda:0,cuda:1] [--form tp] [--many 64] [--alone] [--few]
--   --alone: on several only, and what a step reads of the weights and the cache; --few: small numbers, for a CPU
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local fathom = require "fathom"
local now = require("fathom.core").now

local dir, devices, form, n_many, alone, few = nil, "cuda:0,cuda:1", "tp", nil, false, false
do
  local i = 1
  while arg[i] do
    if arg[i] == "--devices" then devices, i = arg[i + 1], i + 1
    elseif arg[i] == "--form" then form, i = arg[i + 1], i + 1
    elseif arg[i] == "--many" then n_many, i = math.tointeger(tonumber(arg[i + 1])), i + 1
    elseif arg[i] == "--alone" then alone = true
    elseif arg[i] == "--few" then few = true
    else dir = arg[i] end
    i = i + 1
  end
end
assert(dir, "usage: ranks.lua DIR [--devices cuda:0,cuda:1] [--form tp]")
local list = {}
for name in devices:gmatch "[^,]+" do list[#list + 1] = name end
n_many = n_many or few and 4 or 64
local long, context, tokens = few and 40 or 4096, few and 20 or 1000, few and 8 or 96

local function ids_of(model, n, seed)
  local ids = {}
  for i = 1, n do ids[i] = (i * 7919 + seed * 104729) % model.config.vocab_size end
  return ids
end

-- Tokens a second of n sequences that decode side by side, from when all have begun.
local function decode(model, n, length)
  local sessions, tasks = {}, {}
  for i = 1, n do
    sessions[i] = assert(model:session())
    tasks[i] = sessions[i]:ask(ids_of(model, length, i), { max_tokens = tokens, temperature = 0, ignore_eos = true, mtp = false })
  end
  local function done()
    local sum = 0
    for _, t in ipairs(tasks) do
      if t.err then error(t.err) end
      if t.usage.completion == 0 then return nil, 0 end
      sum = sum + t.usage.completion
    end
    return true, sum
  end
  while not done() do model:step { ms = 20 } end
  local _, before = done()
  local begun = now()
  for _, t in ipairs(tasks) do assert(t:wait()) end
  local ms = now() - begun
  local _, after = done()
  local ids = tasks[1].result.ids
  for _, s in ipairs(sessions) do s:close() end
  return (after - before) / ms * 1e3, ids
end

local function prompt(model)
  local ids = ids_of(model, long, 5)
  local r
  for i = 1, 3 do
    ids[1] = i                                                  -- nothing of it is cached
    r = assert(model:generate(ids, { max_tokens = 1, temperature = 0, ignore_eos = true }))
  end
  return long / r.usage.prefill_ms * 1e3
end

local step_bytes

local function measure(device, parallel)
  local begun = now()
  local model <close> = assert(fathom.load(dir, { device = device, parallel = parallel, ctx = long + 64, seqs = n_many,
    mtp = false, prefix_cache = false, cache_bytes = few and nil or 12 << 30 }))
  local out = { load_s = (now() - begun) / 1e3 }
  decode(model, 1, context)
  out.one, out.ids = decode(model, 1, context)
  out.prompt = prompt(model)
  decode(model, n_many, context // 4)
  out.many = decode(model, n_many, context // 4)
  out.logits = assert(model:logits(ids_of(model, few and 12 or 64, 9))):totable()
  out.ranks = model:stats().ranks
  out.read = { step_bytes(model, 1, context), step_bytes(model, n_many, context // 4) }
  return out
end

-- Largest difference of logits over the largest logit.
local function apart(a, b)
  local most, top = 0, 0
  for i, row in ipairs(a) do
    for j, x in ipairs(row) do
      most, top = math.max(most, math.abs(x - b[i][j])), math.max(top, math.abs(x))
    end
  end
  return most / top
end

-- Bytes of weights and cache that a step of n sequences reads on all ranks together. An expert is read when one of the n chose it: how
-- likely that is, by how often it was chosen so far. The cache's rows are read by every rank where heads are split.
function step_bytes(model, n, length)
  local g, stats = model.config, model:stats { experts = true }
  local embeddings = g.vocab_size * g.hidden_size * 2 * (stats.ranks // stats.pp)
  local bytes = stats.weight_bytes - embeddings
  local expert = 3 * g.hidden_size * (g.moe_intermediate_size or 0) * (g.quantization_config and 1 or 2)
  for _, counts in ipairs(stats.experts) do
    local all = 0
    for _, c in ipairs(counts) do all = all + c end
    for _, c in ipairs(counts) do bytes = bytes - expert * (1 - c * g.num_experts_per_tok / math.max(all, 1)) ^ n end
  end
  return bytes + n * length * g.num_hidden_layers * (g.kv_lora_rank + g.qk_rope_head_dim) * 2 * stats.tp
end

local all = measure(list, { [form] = #list })
if alone then
  print(("%s: %d ranks by %s, loaded in %.1f s; a prompt of %d: %.0f tokens/s"):format(dir, all.ranks, form, all.load_s,
        long, all.prompt))
  for i, what in ipairs { { 1, all.one }, { n_many, all.many } } do
    local ms = what[1] / what[2] * 1e3
    print(("  decoding %3d: %7.2f ms a step, %8.1f tokens/s; reads %.2f GB, %.0f GB/s a rank"):format(what[1], ms, what[2],
          all.read[i] / 1e9, all.read[i] / ms / 1e6 / all.ranks))
  end
  return
end
local one = measure(list[1], nil)
print(("%s: %s, and %d ranks by %s"):format(dir, list[1], all.ranks, form))
local function line(what, a, b) print(("  %-34s %10.1f %10.1f tokens/s: %.2f times"):format(what, a, b, b / a)) end
line("decoding 1 sequence", one.one, all.one)
line(("decoding %d sequences"):format(n_many), one.many, all.many)
line(("a prompt of %d"):format(long), one.prompt, all.prompt)
local same = 0
while one.ids[same + 1] and one.ids[same + 1] == all.ids[same + 1] do same = same + 1 end
print(("  loaded in %.1f and %.1f s; logits differ by %.1e of the largest; the first %d of %d greedy ids are the same")
  :format(one.load_s, all.load_s, apart(one.logits, all.logits), same, #one.ids))

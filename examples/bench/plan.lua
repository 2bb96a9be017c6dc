-- plan.lua - what V3 is expected to do on 8 to 320 GPUs, from bytes, operations and link rates: a model, not a measurement.
--
--   lua5.4 examples/bench/plan.lua                 V3 on H800s of 80 GB, beside what DeepSeek published
--   lua5.4 examples/bench/plan.lua --memory 141    cards with more memory
--
-- Attention is data-parallel, experts are spread over all GPUs, weights in FP8, latents in BF16. A decoding step is summed layer by layer;
-- two micro-batches overlap, so that a layer takes as long as the longer one of computing and talking, or they do not, and it takes the
-- sum. The same formulas for one H100 and V2-Lite stand beside what kernels/NOTES.md measured: so far may they be trusted. Prompts count
-- products and attention alone, and come out too fast.

-- ---- one table of rates ---------------------------------------------------------------------------------------

local rate = {
  read = 3.0e12,          -- bytes/s: device-to-device copy, measured (H100, kernels/NOTES.md)
  expert_read = 1.7e12,   -- bytes/s: grouped FP8 with few rows an expert, measured
  fp8 = 0.9e15,           -- operations/s: grouped FP8 with many rows, measured
  mla = 0.32e15,          -- operations/s: absorbed MLA with 128 heads, absorbing and combining included, measured
  prompt = 0.45e15,       -- operations/s: attention of prompts, measured
  kernel = 4e-6,          -- s: what a small kernel costs beside its bytes, measured in steps of one row
  nvlink = 153e9,         -- bytes/s a GPU, all-to-all inside a node: published for DeepEP on H800
  fabric = 43e9,          -- bytes/s a GPU, all-to-all between nodes: published for DeepEP on H800, InfiniBand of 400 Gbit/s
  send = 20e-6,           -- s: one dispatch or combine of next to nothing; half of DeepEP's on 8 GPUs, not measured here
}

local v3 = { hidden = 7168, heads = 128, q_rank = 1536, rank = 512, nope = 128, rope = 64, v = 128, dense = 3, width = 18432, layers = 61,
             experts = 256, chosen = 8, shared = 1, expert = 2048, vocab = 129280, nodes_a_token = 4, weight = 1, kernels = 14 }
local lite = { hidden = 2048, heads = 16, q_rank = 0, rank = 512, nope = 128, rope = 64, v = 128, dense = 1, width = 10944, layers = 27,
               experts = 64, chosen = 6, shared = 2, expert = 1408, vocab = 102400, nodes_a_token = 1, weight = 1, kernels = 9 }

local function say(...) io.stdout:write(string.format(...), "\n") end

-- ---- sizes: parameters ------------------------------------------------------------------------------------------

local function attention(m)
  local q = m.heads * (m.nope + m.rope)
  return (m.q_rank > 0 and m.q_rank * (m.hidden + q) or m.hidden * q) + m.hidden * (m.rank + m.rope)
         + m.rank * m.heads * (m.nope + m.v) + m.heads * m.v * m.hidden
end

local function expert(m) return 3 * m.hidden * m.expert end
local function shared(m) return m.shared * expert(m) end
local function dense(m) return 3 * m.hidden * m.width end
local function latent(m) return 2 * (m.rank + m.rope) end                       -- bytes a token a layer

-- Experts that rows are expected to meet, out of n.
local function met(n, chosen, rows) return n * (1 - (1 - chosen / n) ^ rows) end

-- Slots for experts on a GPU: all of them once, rounded up, and one more each where there are several nodes.
local function slots(m, gpus) return math.ceil(m.experts / gpus) + (gpus > 8 and 1 or 0) end

local function weights(m, gpus)                                                 -- bytes a GPU
  local layer = attention(m) + shared(m) + slots(m, gpus) * expert(m)
  return ((m.layers - m.dense) * layer + m.dense * (attention(m) + dense(m))) * m.weight + 2 * m.vocab * m.hidden * 2
end

-- ---- time: seconds -----------------------------------------------------------------------------------------------

-- Dispatch in FP8 and combine in BF16 of so many rows a GPU.
local function talk(m, gpus, rows)
  if gpus == 1 then return 0 end
  local row = m.hidden * 3
  if gpus <= 8 then return rows * m.chosen * row * (gpus - 1) / gpus / rate.nvlink + 2 * rate.send end
  local nodes = gpus / 8
  local far = math.min(m.nodes_a_token, nodes) * (nodes - 1) / nodes            -- nodes a row crosses to
  return math.max(rows * far * row / rate.fabric, rows * m.chosen * row / rate.nvlink) + 2 * rate.send
end

local function product(parameters, rows, m)                                     -- read once, multiplied for every row
  return math.max(parameters * m.weight / rate.read, 2 * parameters * rows / rate.fp8)
end

-- Rows of a step on one GPU, ctx tokens each; imbalance: busiest GPU over the mean.
local function decode_layer(m, gpus, rows, ctx, imbalance)
  local mla = math.max(rows * ctx * latent(m) / rate.read, rows * ctx * m.heads * 2 * (2 * m.rank + m.rope) / rate.mla)
  local own = met(m.experts, m.chosen, rows * gpus) / gpus
  local routed = math.max(own * expert(m) * m.weight / rate.expert_read, 2 * rows * m.chosen * expert(m) / rate.fp8) * imbalance
  local compute = product(attention(m), rows, m) + mla + product(shared(m), rows, m) + routed + m.kernels * rate.kernel
  return compute, talk(m, gpus, rows)
end

local function decode_step(m, gpus, rows, ctx, imbalance, overlap)
  local compute, link = decode_layer(m, gpus, rows, ctx, imbalance)
  local layer = overlap and math.max(compute, link) or compute + link
  local first = product(attention(m) + dense(m), rows, m) + rows * ctx * latent(m) / rate.read + m.kernels * rate.kernel
  return (m.layers - m.dense) * layer + m.dense * first + m.vocab * m.hidden * 2 / rate.read
end

-- Parameters that a token of a prompt is multiplied with.
local function active(m)
  return (m.layers - m.dense) * (shared(m) + m.chosen * expert(m)) + m.dense * dense(m) + m.layers * attention(m)
end

-- Seconds for n tokens of prompts of `ctx` on each GPU.
local function prompt(m, gpus, n, ctx, imbalance, overlap)
  local scores = n * ctx / 2 * m.heads * 2 * (m.nope + m.rope + m.v) * m.layers / rate.prompt
  local compute = 2 * active(m) * n / rate.fp8 * imbalance + scores
  local link = (m.layers - m.dense) * talk(m, gpus, n)
  return overlap and math.max(compute, link) or compute + link
end

-- ---- the tables -----------------------------------------------------------------------------------------------------

-- Rows of a step that fit beside the weights, at most 256.
local function room(m, gpus, memory, ctx)
  local left = memory * 0.9 - weights(m, gpus) - 4e9
  return math.min(256, left // (ctx * latent(m) * m.layers))
end

local function predict(memory)
  local ctx, imbalance = 4096, 1.1
  say("V3, FP8, cards of %d GB, %d tokens cached a sequence, the busiest GPU at %.1f of the mean", memory // 1e9, ctx, imbalance)
  say("%5s %9s %6s  %10s %10s  %12s %12s", "GPUs", "weights", "rows", "step", "alone", "decode/node", "prompt/node")
  for _, gpus in ipairs { 8, 16, 32, 144, 320 } do
    local w, rows = weights(v3, gpus), room(v3, gpus, memory, ctx)
    local pn = 8 * 16384 / prompt(v3, gpus, 16384, ctx, imbalance, true)
    if rows < 1 then
      say("%5d %6.1f GB  does not fit", gpus, w / 1e9)
    else
      local both, alone = decode_step(v3, gpus, rows, ctx, imbalance, true), decode_step(v3, gpus, rows, ctx, imbalance, false)
      say("%5d %6.1f GB %6d  %7.1f ms %7.1f ms  %8.1fk t/s %8.1fk t/s", gpus, w / 1e9, rows, both * 1e3, alone * 1e3,
          8 * rows / both / 1e3, pn / 1e3)
    end
  end
  say("published by DeepSeek for H800 nodes: decode 14.8k, prompt 73.7k tokens/s a node (cached prefixes counted among the latter)")
end

local function check()
  say("\nV2-Lite, FP8, one H100, 1024 tokens cached: this model, and what is measured (kernels/NOTES.md)")
  for _, row in ipairs { { 1, 2.37 }, { 8, 6.00 }, { 64, 12.2 } } do
    local ms = decode_step(lite, 1, row[1], 1024, 1, false) * 1e3
    say("%5d rows  %7.2f ms  measured %6.2f ms  %+4.0f %%", row[1], ms, row[2], (ms / row[2] - 1) * 100)
  end
  local ms = prompt(lite, 1, 4096, 4096, 1, false) * 1e3
  say(" prompt 4096  %5.1f ms  measured %6.1f ms  %+4.0f %%", ms, 48.0, (ms / 48.0 - 1) * 100)
end

predict((tonumber(arg[1] == "--memory" and arg[2]) or 80) * 1e9)
check()

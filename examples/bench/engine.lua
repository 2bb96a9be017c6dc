-- Many at once, on pocket: throughput of 64 sessions, a judge's common prefix, drafts under load, frame steps, cancelling.
-- usage: lua5.4 examples/bench/engine.lua [batch] [judge] [drafts] [frames] [cancel] [--device cpu|cuda] [--threads N] [--model DIR]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local fathom = require "fathom"
local now = require("fathom.core").now

local parts, device, dir, threads = {}, "cpu", fathom.pocket, nil
do
  local i = 1
  while arg[i] do
    if arg[i] == "--device" then device, i = arg[i + 1], i + 1
    elseif arg[i] == "--model" then dir, i = arg[i + 1], i + 1
    elseif arg[i] == "--threads" then threads, i = math.tointeger(tonumber(arg[i + 1])), i + 1
    else parts[arg[i]], parts[1] = true, true end
    i = i + 1
  end
end

local function load(opts)
  opts.device, opts.threads = device, threads
  return assert(fathom.load(dir, opts))
end

local function ids_of(n, seed)
  local ids = { 0 }
  for i = 2, n do ids[i] = 100 + (i * 7919 + seed * 104729) % 2000 end
  return ids
end

-- Starts one task for each prompt, waits for all, closes their sessions. Returns milliseconds, tokens and results.
local function together(model, prompts, opts)
  local sessions, tasks, results, tokens = {}, {}, {}, 0
  local begin = now()
  for i, ids in ipairs(prompts) do
    sessions[i] = assert(model:session())
    opts.seed = i
    tasks[i] = sessions[i]:ask(ids, opts)
  end
  for i, t in ipairs(tasks) do
    results[i] = assert(t:wait())
    tokens = tokens + #results[i].ids
  end
  local ms = now() - begin
  for _, s in ipairs(sessions) do s:close() end
  return ms, tokens, results
end

local function verdict(value, wanted) return value >= wanted and "reached" or "not reached" end

-- ---- parts ------------------------------------------------------------------------------------------------

local bench = {}

function bench.batch()
  local model <close> = load { seqs = 64, ctx = 512, prefix_cache = false }
  local prompts = {}
  for i = 1, 64 do prompts[i] = ids_of(24, i) end
  local o = { max_tokens = 64, temperature = 0.8, ignore_eos = true, mtp = false }
  together(model, { prompts[1] }, o)
  local begin, n = now(), 0
  for i = 1, 64 do
    local _, tokens = together(model, { prompts[i] }, o)
    n = n + tokens
  end
  local alone = n / (now() - begin) * 1e3
  local ms, tokens = together(model, prompts, o)
  local batch, wanted = tokens / ms * 1e3, device == "cpu" and 2 or 6
  print(("64 sessions, without drafts: %.0f tokens/s one after another, %.0f together: %.1f times, %g asked: %s")
        :format(alone, batch, batch / alone, wanted, verdict(batch / alone, wanted)))
end

-- ms that f takes, the best of three: the first time meets sizes of passes that the model has not seen.
local function best_of_three(f)
  local best = math.huge
  for _ = 1, 3 do best = math.min(best, f()) end
  return best
end

function bench.judge()
  local rubric, o = ids_of(1000, 7), { max_tokens = 8, temperature = 1, ignore_eos = true }
  local prompts = {}
  for i = 1, 16 do
    prompts[i] = table.move(rubric, 1, #rubric, 1, {})
    for j = 1, 8 do prompts[i][#rubric + j] = 200 + i * 8 + j end
  end
  local apart
  do
    local model <close> = load { seqs = 16, prefix_cache = false }
    apart = best_of_three(function() return (together(model, prompts, o)) end)
  end
  local model <close> = load { seqs = 16 }
  local sampled = best_of_three(function()
    model:drop_prefixes()
    local begin = now()
    o.n = 16
    assert(model:generate(rubric, o))
    o.n = nil
    return now() - begin
  end)
  local shared = best_of_three(function()
    model:drop_prefixes()
    return (together(model, prompts, o))
  end)
  print(("16 votes over 1000 tokens: %.0f ms as 16 prompts, %.0f ms as n = 16: %.1f times, 5 asked: %s; %.0f ms as 16 asks that share"
         .. " the prefix: %.1f times: %s"):format(apart, sampled, apart / sampled, verdict(apart / sampled, 5), shared,
         apart / shared, verdict(apart / shared, 5)))
end

function bench.drafts()
  local model <close> = load { seqs = 64, ctx = 512, mtp = "auto" }
  local modes = { { "none", false }, { "1", 1 }, { "auto", "auto" } }
  print "tokens/s with drafts:     none        1     auto   drafts a token, right"
  for _, n in ipairs { 1, 2, 4, 8, 16, 32, 64 } do
    local prompts, best, share = {}, {}, ""
    for i = 1, n do
      prompts[i] = assert(model:render { { role = "user", content = ("Ella has %d pears. She buys 4 bags with 12 pears each."
                                           .. " How many pears has she?"):format(20 + i) } })
    end
    for round = 1, 4 do
      for _, mode in ipairs(modes) do                -- the first round warms up, and lets auto learn
        local o = { max_tokens = 64, temperature = 0.8, ignore_eos = true, mtp = mode[2] }
        local ms, tokens, results = together(model, prompts, o)
        if round > 1 then best[mode[1]] = math.max(best[mode[1]] or 0, tokens / ms * 1e3) end
        if mode[1] == "auto" then
          local drafted, accepted = 0, 0
          for _, r in ipairs(results) do
            drafted, accepted = drafted + r.usage.drafted, accepted + r.usage.accepted
          end
          share = ("%.2f, %.0f %%"):format(drafted / tokens, 100 * accepted / math.max(1, drafted))
        end
      end
    end
    print(("  batch of %2d          %8.0f %8.0f %8.0f   %s"):format(n, best.none, best["1"], best.auto, share))
  end
end

local function percentile(list, p)
  table.sort(list)
  return list[math.max(1, math.ceil(#list * p))]
end

-- Keeps 8 sessions busy: as one ends another begins, every third with a long prompt.
local function stir(model, running, started)
  for i = 1, 8 do
    local r = running[i]
    if not r or r.task.done then
      if r then r.session:close() end
      started = started + 1
      local s = assert(model:session())
      local long = started % 3 == 0
      running[i] = { session = s, task = s:ask(ids_of(long and 600 or 40, started), { max_tokens = 48, seed = started,
                                               temperature = 0.8, ignore_eos = true }) }
    end
  end
  return started
end

function bench.frames()
  local model <close> = load { seqs = 8, ctx = 1024, prefix_cache = false }
  local running, started, over, whole = {}, 0, {}, {}
  local wanted = device == "cpu" and 2 or 1
  for i = 1, 11000 do
    started = stir(model, running, started)
    local begin = now()
    assert(model:step { ms = 2 })
    if i > 1000 then                                 -- the first ones learn how long a row takes
      over[#over + 1] = model:stats().overshoot_ms
      whole[#whole + 1] = math.max(0, now() - begin - 2)
    end
  end
  local stats = model:stats()
  for _, r in ipairs(running) do r.session:close() end
  local p99 = percentile(over, 0.99)
  print(("10,000 steps of 2 ms, %d prompt and %d sampled tokens: overshoot median %.3f, 99 %% %.3f, worst %.2f ms (%g asked: %s);"
         .. " with the library's Lua %.3f, 99 %% %.3f ms"):format(stats.prompt_tokens, stats.generated_tokens, percentile(over, 0.5), p99,
         percentile(over, 1), wanted, verdict(-p99, -wanted), percentile(whole, 0.5), percentile(whole, 0.99)))
end

-- Worst time from cancelling to being cancelled and idle again, over `n` tries after `steps` steps of 2 ms.
local function cancel_time(model, ids, steps, n)
  local worst = 0
  for i = 1, n do
    local s <close> = assert(model:session())
    local t = s:ask(ids, { max_tokens = 400, seed = i, ignore_eos = true })
    for _ = 1, steps do model:step { ms = 2 } end
    assert(not t.done)
    local begin = now()
    t:cancel()
    while model:step { ms = 2 } do end
    worst = math.max(worst, now() - begin)
    assert(t.result.finish == "cancelled")
  end
  return worst
end

function bench.cancel()
  local load_ms, at
  local _, err = fathom.load(dir, { device = device, progress = function()
    at = now()
    return false
  end })
  load_ms = now() - at
  assert(err.code == "cancelled")
  local model <close> = load { ctx = 2048, prefix_cache = false }
  local prefill = cancel_time(model, ids_of(1500, 3), 5, 20)
  local decode = cancel_time(model, ids_of(8, 3), 30, 20)
  print(("cancelling, worst of 20: %.2f ms in a prompt, %.2f ms in decoding (5 asked: %s), %.2f ms in loading (50 asked: %s)")
        :format(prefill, decode, verdict(-math.max(prefill, decode), -5), load_ms, verdict(-load_ms, -50)))
end

print(("%s on the %s"):format(dir, device))
for _, name in ipairs { "batch", "judge", "drafts", "frames", "cancel" } do
  if not parts[1] or parts[name] then bench[name]() end
end

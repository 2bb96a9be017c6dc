--- cli/bench.lua - how fast a model is here.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"
local json = require "fathom.json"

local command = {
  usage = "bench [DIR]",
  text = "tokens a second, acceptance of drafts, time to first token, memory",
  options = models.join(models.load_options, { models.json_option }),
}

local function read_number(path, pattern)
  local f = io.open(path, "r")
  if not f then return nil end
  local text = f:read "a"
  f:close()
  return tonumber(text:match(pattern))
end

-- Seconds since this process began (from /proc; steps of 10 ms), or nil.
local function process_age()
  local up = read_number("/proc/uptime", "^(%S+)")
  local begun = read_number("/proc/self/stat", "^.*%)" .. (" %S+"):rep(19) .. " (%d+)")
  return up and begun and up - begun / 100
end

local questions = {
  "What is 17 + 25?", "Hello!", "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears does Ella have now?",
  "Use the numbers 36, 6, 9 once each with + - * / to make 39. Give the expression in <answer> tags.",
  "Use the numbers 26, 9, 85, 84 once each with + - * / to make 34. Give the expression in <answer> tags.",
  "Judge this answer.\n\nQuestion: What is 58 + 67?\n\nAnswer:\n58 + 67 = 135\n\\boxed{135}\n\n"
    .. 'Give a score from 1 to 10. End with "Score: N".',
}

-- Prompts a model can take: questions, or made-up ids where there is no tokenizer.
local function bench_prompts(model)
  local prompts = {}
  for i, q in ipairs(questions) do
    local ids = model:render { { role = "user", content = q } }
    if not ids then
      ids = {}
      for j = 1, 16 do ids[j] = (i * 7919 + j * 104729) % model.config.vocab_size end
    end
    prompts[i] = ids
  end
  return prompts
end

local function decode_run(model, prompts, mtp)
  local sum = { tokens = 0, ms = 0, drafted = 0, accepted = 0, first_ms = 0 }
  for _, ids in ipairs(prompts) do
    local r = terminal.must(model:generate(ids, { temperature = 0, max_tokens = 192, mtp = mtp }))
    local u = r.usage
    sum.tokens = sum.tokens + math.max(u.completion - 1, 0)     -- the first comes with the prompt
    sum.ms = sum.ms + u.decode_ms
    sum.first_ms = sum.first_ms + u.prefill_ms / #prompts
    sum.drafted, sum.accepted = sum.drafted + u.drafted, sum.accepted + u.accepted
  end
  return sum
end

local function prompt_speed(model)
  local n = math.min(512, (model.config.max_position_embeddings or 512) - 1)
  local ids = {}
  for i = 1, n do ids[i] = (i * 104729) % model.config.vocab_size end
  local r = terminal.must(model:generate(ids, { temperature = 0, max_tokens = 0 }))
  return n, n / r.usage.prefill_ms * 1000
end

local function measure(model)
  local prompts = bench_prompts(model)
  local out = {}
  terminal.must(model:generate(prompts[1], { temperature = 0, max_tokens = 1 }))
  out.start_to_first_token_s = process_age()
  decode_run(model, { prompts[1] })                             -- pages of the weights come in
  local with, without = decode_run(model, prompts), decode_run(model, prompts, false)
  local stats = model:stats()
  out.tokens = with.tokens
  out.mtp_tokens_per_s = with.drafted > 0 and with.tokens / with.ms * 1000 or nil
  out.tokens_per_s = without.tokens / without.ms * 1000
  out.acceptance = with.drafted > 0 and with.accepted / with.drafted or nil
  out.time_to_first_token_ms = with.first_ms
  out.prompt_tokens, out.prompt_tokens_per_s = prompt_speed(model)
  out.resident_bytes = (read_number("/proc/self/status", "VmRSS:%s*(%d+)") or 0) * 1024
  out.device, out.simd, out.threads = stats.device, stats.simd, stats.threads
  return out
end

function command.run(positional, given)
  if #positional > 1 then terminal.wrong "bench takes one DIR" end
  local model <close> = models.load(positional[1], given)
  local m = measure(model)
  if given.json then
    print(json.encode(m))
    return
  end
  local function line(name, format, value, note)
    if value then print(("  %-28s %12s  %s"):format(name, format:format(value), note or "")) end
  end
  print(("%s on %s, %s, %d threads"):format(tostring(model), m.device, m.simd, m.threads))
  line("tokens a second", "%.0f", m.tokens_per_s, ("%d greedy tokens, one sequence, decoding only"):format(m.tokens))
  line("  with MTP drafts", "%.0f", m.mtp_tokens_per_s, "the same tokens")
  line("drafts accepted", "%.1f %%", m.acceptance and m.acceptance * 100)
  line("prompt tokens a second", "%.0f", m.prompt_tokens_per_s, ("one prompt of %d"):format(m.prompt_tokens))
  line("time to first token", "%.1f ms", m.time_to_first_token_ms, "mean over the prompts")
  line("start to first token", "%.2f s", m.start_to_first_token_s, "from the start of this process, load included")
  line("resident memory", "%.1f MiB", m.resident_bytes / (1 << 20))
end

return command

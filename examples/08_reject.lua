--- 08_reject.lua - rejection sampling: several tries at many puzzles, and those that are right go into a file, each line with where it
-- came from. Stop it at any moment (Ctrl-C, kill -9, a power cut) and start it again: it goes on, and no line is lost or twice there.
-- Run from the repository's root after `make`: lua5.4 examples/08_reject.lua [FILE] [PUZZLES]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local jsonl = require "fathom.jsonl"

local path = arg[1] or os.tmpname() .. ".jsonl"
local prompts = assert(jsonl.read(here .. "pocket/heldout_countdown.jsonl", { most = tonumber(arg[2]) or 12 }))
for _, row in ipairs(prompts) do row.reference = { nums = row.nums, target = row.target } end

-- The library prints nothing: the bar is drawn here.
local function bar(state)
  local part = state.done / state.total
  local left = state.remaining and ("%.0f s left"):format(state.remaining) or ""
  io.stderr:write(("\r[%-30s] %d of %d, %d kept, %.1f puzzles/s, %s "):format(("#"):rep(math.floor(30 * part)), state.done, state.total,
    state.kept, state.rate, left))
end

local model <close> = assert(fathom.load(fathom.pocket, { seqs = 32, ctx = 512 }))
local summary = assert(fathom.reject { backend = model, prompts = prompts, path = path, n = 4, reward = fathom.reward.accuracy,
                                       temperature = 1, top_p = 1, seed = 1, width = 8, progress = bar })
io.stderr:write "\n"
print(("%d samples of %d puzzles in %.1f s, %d right; they are in %s"):format(summary.samples, summary.total, summary.seconds,
  summary.kept, path))
local rows = assert(jsonl.read(path))
for i = 1, math.min(3, #rows) do
  print(("  %s, sample %d, seed %d, weights %s: %s"):format(rows[i].id, rows[i].sample, rows[i].seed, rows[i].model.digest,
    rows[i].answer:match "<answer>(.-)</answer>"))
end

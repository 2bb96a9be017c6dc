--- 06_best_of.lua - best of n: eight tries at a Countdown puzzle, and a rule takes one that is right. What a rule can check, more samples
-- make better; the same rewards serve for filtering data and for reinforcement learning.
-- Run from the repository's root after `make`: lua5.4 examples/06_best_of.lua
-- The whole held-out set, beside a single try (some minutes): lua5.4 examples/06_best_of.lua 200
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local crew = require "fathom.crew"
local jsonl = require "fathom.jsonl"

local many = tonumber(arg[1]) or 8
local model <close> = assert(fathom.load(fathom.pocket, { seqs = 64, ctx = 512 }))
local rows = assert(jsonl.read(here .. "pocket/heldout_countdown.jsonl", { most = many }))

-- The rule: the last <answer> has the target's value, exactly, and uses each number once. A little more for a short reply.
local reward = fathom.reward.sum { { fathom.reward.accuracy, 1, name = "right" },
                                   { fathom.reward.length { max = 512 }, 0.1, name = "short" } }

local jobs = {}
for i, row in ipairs(rows) do
  jobs[i] = function()
    return fathom.best_of(model, row.messages, { n = 8, reward = reward, temperature = 0.6, top_p = 1, seed = i,
                                                 reference = { nums = row.nums, target = row.target } })
  end
end

local single, best = 0, 0
for i, job in ipairs(crew.run(model, jobs, { width = 8 })) do
  local r = assert(job.value, job.err)
  for _, detail in ipairs(r.details) do single = single + detail[1].value / 8 end
  best = best + r.details[r.index][1].value
  if many <= 20 then
    print(("%s = %d: %s (try %d of 8, reward %.2f)"):format(table.concat(rows[i].nums, ", "), rows[i].target,
      r.answer:match "<answer>(.-)</answer>" or "no answer", r.index, r.reward))
  end
end
print(("%d puzzles: one try %.1f %% right, best of 8 %.1f %%"):format(#rows, 100 * single / #rows, 100 * best / #rows))

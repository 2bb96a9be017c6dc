--- 07_vote.lua - self-consistency: several samples at temperature 1, and the answer that most of them give. Needs no rule and no judge.
-- Run from the repository's root after `make`: lua5.4 examples/07_vote.lua
-- The whole held-out set: lua5.4 examples/07_vote.lua 200
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local crew = require "fathom.crew"
local jsonl = require "fathom.jsonl"

local many = tonumber(arg[1]) or 8
local model <close> = assert(fathom.load(fathom.pocket, { seqs = 64, ctx = 512 }))
local rows = assert(jsonl.read(here .. "pocket/heldout_math.jsonl", { most = many }))

local jobs = {}
for i, row in ipairs(rows) do
  jobs[i] = function() return fathom.vote(model, row.messages, { n = 8, temperature = 1, top_p = 1, seed = i, reference = row.answer }) end
end

local single, voted = 0, 0
for i, job in ipairs(crew.run(model, jobs, { width = 8 })) do
  local r = assert(job.value, job.err)
  for _, sample in ipairs(r.samples) do single = single + fathom.reward.accuracy(sample) / 8 end
  voted = voted + fathom.reward.accuracy(r)
  if many <= 20 then
    print("> " .. rows[i].messages[1].content)
    print(("  %s, by %.0f %% of the votes"):format(r.winner, 100 * r.agreement))
  end
end
print(("%d sums: one sample %.1f %% right, the vote of 8 %.1f %%"):format(#rows, 100 * single / #rows, 100 * voted / #rows))

--- 13_eval.lua - an evaluation: sums, Countdown and small talk, four samples of each, with intervals, pass@k and maj@k,
-- as a table here and as one page to look at.
-- Run from the repository's root after `make`: lua5.4 examples/13_eval.lua [PAGE.html]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local files = require "fathom.eval.files"
local jsonl = require "fathom.jsonl"

local model <close> = assert(fathom.load(fathom.pocket, { seqs = 32 }))
local page = arg[1] or os.tmpname() .. ".html"

-- Held-out tasks of three families, beside the model. A case is any table with a prompt (here messages).
local cases = {}
for _, family in ipairs { "math", "countdown", "chat" } do
  table.move(assert(jsonl.read(("%s/heldout_%s.jsonl"):format(fathom.pocket, family), { most = 12 })), 1, 12, #cases + 1, cases)
end
for _, case in ipairs(cases) do case.numbers = case.nums and #case.nums .. " numbers" or nil end

-- Rewards: a sample is the result with its case; a score is a number, and what else is returned is shown beside it.
local right = { math = fathom.reward.accuracy, countdown = fathom.reward.countdown }
function right.chat(s)
  for words in (s.case.reference .. "|"):gmatch "([^|]*)|" do
    if s.answer:find(words, 1, true) then return 1 end
  end
  return 0
end

local shown = -1
local report = assert(fathom.eval {
  name = "Pocket on its held-out tasks", cases = cases, run = model, repeats = 4, seed = 7,
  options = { temperature = 1, max_tokens = 300 },
  scorers = { right = function(s) return right[s.case.family](s) end },
  by = { "family", "numbers" },
  report = page,
  progress = function(done, total, info)
    local percent = 100 * done // total // 10 * 10
    if percent == shown then return end
    shown = percent
    io.write(("%3d %% of %d samples, %.0f a second, %.0f s to go\n"):format(percent, total, info.rate or 0, info.remaining or 0))
  end,
})
io.write("\n", files.table(report))
print(("\n%.1f s; the page is %s"):format(report.seconds, page))

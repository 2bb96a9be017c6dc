-- More votes against better verdicts: pocket judges its 200 held-out items at temperature 1. Each item is voted on 32 times, once;
-- smaller numbers of votes are disjoint parts of these, and their figures means over the parts. Two ways of voting on the same votes:
-- by counting verdicts, and by the mean of the label distributions that were read from the logits.
-- usage: lua5.4 examples/bench/judge_votes.lua [--quick] [--votes N] [--seed N] [--keep FILE] [--markdown]
-- --keep writes every item's votes into a file, and a second run goes on from there.
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local fathom = require "fathom"
local crew = require "fathom.crew"
local json = require "fathom.json"

local opt = { votes = 32, seed = 1, items = 200 }
do
  local i = 1
  while arg[i] do
    local name = arg[i]:match "^%-%-(%a+)$"
    if name == "quick" then opt.votes, opt.items = 4, 4
    elseif name == "markdown" then opt.markdown = true
    else
      i = i + 1
      opt[name or error("what is " .. arg[i - 1] .. "?")] = tonumber(arg[i]) or arg[i]
    end
    i = i + 1
  end
end

local function jsonl(path)
  local rows = {}
  for line in assert(io.open(path)):lines() do rows[#rows + 1] = assert(json.decode(line)) end
  return rows
end

local rows = jsonl(here .. "../pocket/heldout_judge.jsonl")

-- The verdict of a result as the file writes it.
local function said(r)
  if r.verdict then return "Score: " .. r.verdict end
  return ({ a = "[[A]]", b = "[[B]]", tie = "[[C]]" })[r.winner]
end

-- ---- voting, all items at once --------------------------------------------------------------------------------------

-- What --keep kept of an earlier run that was stopped: item -> result.
local function kept()
  local out, file = {}, opt.keep and io.open(opt.keep)
  if not file then return out end
  for line in file:lines() do
    local r = json.decode(line)
    if r then out[r.item] = r end
  end
  file:close()
  return out
end

local function one(judge, i)
  local row = rows[i]
  local a, b = table.unpack(row.candidates)
  local r, err
  if b then r, err = judge:compare(row.question, a, b) else r, err = judge:score(row.question, a) end
  assert(r, err).item = i
  return r
end

local function vote()
  local model <close> = assert(fathom.load(fathom.pocket, { seqs = 128, ctx = 1024, mtp = false }))
  local judge = fathom.judge(model, { votes = opt.votes, seed = opt.seed, orders = "ab" })
  local results, jobs, done, began = kept(), {}, 0, os.time()
  local file = opt.keep and assert(io.open(opt.keep, "a"))
  for i = 1, opt.items do
    if not results[i] then
      jobs[#jobs + 1] = function()
        results[i] = one(judge, i)
        done = done + 1
        if file then file:write(json.encode(results[i]), "\n"):flush() end
        io.stderr:write(("\r%d of %d items, %d s "):format(done, #jobs, os.time() - began))
      end
    end
  end
  for _, r in ipairs(crew.run(model, jobs, { width = 6 })) do assert(not r.err, r.err) end
  io.stderr:write "\n"
  if file then file:close() end
  return results
end

local results = vote()

-- ---- figures ----------------------------------------------------------------------------------------------------------

-- Ties go to whom was named first: a tie of votes is no verdict "tie".
local mock = fathom.mock { replies = {} }
local count = fathom.judge(mock, { on_tie = "first", seed = 1 })
local read = fathom.judge(mock, { on_tie = "first", seed = 1, voting = "expected" })

local function parts(votes, n)
  local at = 1 - n
  return function()
    at = at + n
    if at + n - 1 <= #votes then return table.move(votes, at, at + n - 1, 1, {}) end
  end
end

local function figures(n)
  local f = { n = n, count = 0, read = 0, agreement = 0, sure = 0, parts = 0, prompt = 0, tokens = 0, scored = 0, lost = 0 }
  for i, r in ipairs(results) do
    f.prompt = f.prompt + (r.usage.prompt - r.usage.cached) / #results
    f.tokens = f.tokens + r.usage.completion / #r.votes * n / #results
    f.scored = f.scored + r.usage.scored / #r.votes * n / #results
    for part in parts(r.votes, n) do
      local c, e = count:decide(part), read:decide(part)
      f.parts = f.parts + 1
      f.count = f.count + (said(c) == rows[i].verdict and 1 or 0)
      f.read = f.read + (said(e) == rows[i].verdict and 1 or 0)
      f.agreement = f.agreement + c.agreement
      f.lost = f.lost + c.abstention
      local label = e.winner or tostring(e.verdict)
      f.sure = f.sure + (e.distribution and e.distribution[label] or 0)
    end
  end
  for _, name in ipairs { "count", "read", "agreement", "sure", "lost" } do f[name] = 100 * f[name] / f.parts end
  return f
end

local line = opt.markdown and "| %d | %.1f | %.1f | %.1f | %.1f | %.0f | %.0f |\n"
                           or "%5d %10.1f %10.1f %12.1f %12.1f %12.0f %12.0f\n"
if opt.markdown then
  io.write("| votes | counted, % right | read, % right | agreement, % | mean probability, % | tokens, counted | tokens, read |\n",
           "| --- | --- | --- | --- | --- | --- | --- |\n")
else
  io.write(("%d items, %d votes each, temperature 1, seed %d\n"):format(opt.items, opt.votes, opt.seed))
  io.write("votes    counted       read    agreement  probability       tokens  tokens read\n")
end
local n, lost = 1, 0
while n <= opt.votes do
  local f = figures(n)
  io.write(line:format(n, f.count, f.read, f.agreement, f.sure, f.prompt + f.tokens, f.prompt + f.tokens + f.scored))
  n, lost = n * 2, f.lost
end
io.write(("votes that could not be read: %.1f %%\n"):format(lost))

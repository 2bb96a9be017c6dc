-- What it is worth that a judge lives in the engine: pairs x 2 orders x 8 votes through the engine, all in one batch, beside one request
-- at a time over HTTP to a server of the same model on the same machine. Both ways read the same votes from pocket (temperature 1); the
-- engine reads the label distributions besides. Each way has the machine for itself while it is measured.
-- usage: lua5.4 examples/bench/judge_http.lua [--pairs 64] [--http 64] [--votes 8] [--seqs 64]
--   --http N: only the first N pairs go over HTTP, and the pace in tokens is compared
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local fathom = require "fathom"
local core = require "fathom.core"
local crew = require "fathom.crew"
local jsonl = require "fathom.jsonl"

local opt = { pairs = 64, votes = 8, seqs = 64 }
for i = 1, #arg do
  if arg[i] == "--serve" then
    -- the other process: serves until it is killed
    local model = assert(fathom.load(fathom.pocket, { seqs = 4 }))
    local server = assert(fathom.serve(model, { port = 0 }))
    io.write(io.open("/proc/self/stat"):read "n", " ", server.url, "\n"):flush()
    server:run()
    os.exit()
  end
  local name = arg[i]:match "^%-%-(%a+)$"
  if name then opt[name] = assert(tonumber(arg[i + 1]), "a number follows --" .. name) end
end
opt.http = opt.http or opt.pairs

local pairs_ = {}
for _, row in ipairs(assert(jsonl.read(here .. "../pocket/heldout_judge.jsonl"))) do
  if row.candidates[2] and #pairs_ < opt.pairs then pairs_[#pairs_ + 1] = row end
end

-- Judges the first n pairs; ms, votes and tokens it took, and how many winners were right.
local function measure(backend, n, width)
  local judge = fathom.judge(backend, { votes = opt.votes, seed = 1 })
  local jobs, began = {}, core.now()
  for i = 1, n do
    local row = pairs_[i]
    jobs[i] = function() return judge:compare(row.question, row.candidates[1], row.candidates[2]) end
  end
  local f = { votes = 0, tokens = 0, right = 0, lost = 0 }
  for i, job in ipairs(crew.run(backend, jobs, { width = width })) do
    local r = assert(job.value, job.err)
    f.votes, f.tokens, f.lost = f.votes + #r.votes, f.tokens + r.usage.completion, f.lost + r.abstention / n
    if ({ a = "[[A]]", b = "[[B]]", tie = "[[C]]" })[r.winner] == pairs_[i].verdict then f.right = f.right + 1 end
  end
  f.ms = core.now() - began
  return f
end

local function show(name, f, n)
  print(("%-34s %3d pairs, %5d votes, %6d tokens in %6.1f s: %6.2f votes/s, %5.0f tokens/s; %d right, %.1f %% unread"):format(name,
    n, f.votes, f.tokens, f.ms / 1000, 1000 * f.votes / f.ms, 1000 * f.tokens / f.ms, f.right, 100 * f.lost))
end

local function over_http()
  local pipe = assert(io.popen(("exec %s %s --serve"):format(arg[-1] or "lua5.4", arg[0])))
  local pid, url = pipe:read "l":match "^(%d+) (%S+)"
  local remote <close> = assert(fathom.remote { url = url, concurrency = 1 })
  measure(remote, 1, 1)                                       -- warm: connection, prompt, pages
  local f = measure(remote, opt.http, 1)
  os.execute("kill " .. pid)
  pipe:close()
  return f
end

local function through_engine()
  local model <close> = assert(fathom.load(fathom.pocket, { seqs = opt.seqs, ctx = 512, mtp = false }))
  measure(model, 1, 1)
  local f = measure(model, opt.pairs, math.max(1, opt.seqs // (2 * opt.votes)))
  f.device = model:stats().device
  return f
end

local http, engine = over_http(), through_engine()
show("one request at a time over HTTP", http, opt.http)
show("through the engine (" .. engine.device .. ")", engine, opt.pairs)
print(("the engine is %.1f times as fast by tokens%s"):format(engine.tokens / engine.ms * http.ms / http.tokens,
  opt.http == opt.pairs and (", %.1f times by votes"):format(engine.votes / engine.ms * http.ms / http.votes) or ""))

--- serve/judge.lua - POST /v1/judge: votes of the model on answers to a question.

local fields = require "fathom.serve.fields"
local generate = require "fathom.serve.generate"
local json = require "fathom.json"
local wire = require "fathom.serve.wire"

local judge = {}
local check = fields.check

local function answers(v, name)
  for i, a in ipairs(check.list(v, name)) do check.string(a, ("%s[%d]"):format(name, i - 1)) end
  if #v < 2 or #v > 16 then fields.wrong(name, "a list of 2 to 16 answers", v) end
  return table.move(v, 1, #v, 1, {})
end

local modes = { pair = "pair", score = "score", principles = "principles" }
local known = { model = check.string, question = check.string, answers = answers, votes = check.integer(1, 64), rubric = check.string,
                orders = check.word { balanced = "balanced", ab = "ab", ba = "ba" }, mode = check.word(modes), seed = check.integer(0),
                temperature = check.number(0, math.huge), max_tokens = check.integer(1) }
local passed_on = { "votes", "rubric", "orders", "mode", "seed", "temperature", "max_tokens" }

local function judge_of(call, f)
  local ok, module = pcall(require, "fathom.judge")
  if not ok then wire.refuse(501, "this build has no judge", nil, "not_implemented") end
  local o = {}
  for _, name in ipairs(passed_on) do o[name] = f[name] end
  o.mode = o.mode or "score"
  return generate.must(module.new, call.server.model, o)
end

-- For each answer its votes: { score =, text = }, without a score where it could not be read.
local function votes_of(result)
  if not result.results then return nil end
  local out = json.array {}
  for i, r in ipairs(result.results) do
    out[i] = json.array {}
    for k, vote in ipairs(r.votes) do out[i][k] = { score = vote.score, text = vote.text and wire.clean(vote.text) } end
  end
  return out
end

-- For each two answers how the votes went: { first =, second =, counts = { a =, b =, tie = }, winner =, agreement =, flip_rate = }.
local function matches_of(result)
  if not result.matches then return nil end
  local out = json.array {}
  for i, m in ipairs(result.matches) do
    out[i] = { first = m.first, second = m.second, counts = json.object(m.counts), winner = m.winner, agreement = m.agreement,
               flip_rate = m.flip_rate }
  end
  return out
end

--- Judges { question =, answers = { ... }, votes =, rubric =, mode =, orders = } as judge:rank does ("score" unless mode says
-- otherwise): { winner =, order = (both count answers from 1), scores =, votes = or (of pairs) matches =,
-- agreement =, flip_rate =, abstention = }.
function judge.handle(call)
  local f = fields.read(call:json_body(), known)
  fields.check_model(call.server, f.model)
  for _, name in ipairs { "question", "answers" } do
    if not f[name] then wire.refuse(400, name .. " is missing", name, "missing_required_parameter") end
  end
  local j = judge_of(call, f)
  local r = generate.must(j.rank, j, f.question, f.answers)
  call:json { object = "judgement", winner = r.winner, order = json.array(r.order or {}), scores = json.array(r.scores or {}),
              votes = votes_of(r), matches = matches_of(r), agreement = r.agreement, flip_rate = r.flip_rate, abstention = r.abstention,
              usage = r.usage }
end

return judge

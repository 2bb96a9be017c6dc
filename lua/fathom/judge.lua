--- judge.lua - a model as a judge: it is asked several times and votes (V3's reward for open questions).
-- @usage
--   local judge = fathom.judge(model, { votes = 8, seed = 1 })
--   local r = assert(judge:compare("What is 8 + 5?", "8 + 5 = 13\n\\boxed{13}", "8 + 5 = 14\n\\boxed{14}"))
--   print(r.winner, r.agreement, r.flip_rate)                  --> a  1.0  0.0

local backend = require "fathom.backend"
local ballot = require "fathom.judge.ballot"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local span = require "fathom.span"
local standings = require "fathom.judge.standings"
local tally = require "fathom.judge.tally"
local wording = require "fathom.judge.wording"

local judge = {}
local methods = {}
local is = options.is

local MAX_SCALE = 100

local function is_scale(v)
  local ok = type(v) == "table" and #v == 2 and is.integer(v[1]) and is.integer(v[2]) and v[1] < v[2] and v[2] - v[1] <= MAX_SCALE
  return ok, "two integers, low and high, at most 100 apart"
end

local known = {
  rubric = is.one_of(is.string, is.strings), scale = is_scale, votes = is.count(1, 4096), orders = is.word("balanced", "ab", "ba"),
  mode = is.word("score", "pair", "principles"), seed = is.integer, on_tie = is.one_of(is.word("tie", "first", "random"), is.callable),
  template = is.table, voting = is.word("majority", "expected"), distribution = is.boolean, critique = is.boolean,
  temperature = sampling.known.temperature, top_p = sampling.known.top_p, max_tokens = is.count(1), think = is.boolean,
  priority = sampling.known.priority,
}

local defaults = { votes = 8, scale = { 1, 10 }, orders = "balanced", on_tie = "tie", voting = "majority", distribution = true,
                   critique = true, temperature = 1.0, top_p = 1.0, max_tokens = 1024 }

-- ---- what is asked ------------------------------------------------------------------------------------------------

local function is_text(v) return type(v) == "string" or (type(v) == "table" and type(v.answer or v.text) == "string"),
                                 "a text or a result" end

local function is_question(v)
  return type(v) == "string" or (type(v) == "table" and type(wording.question(v)) == "string"),
         "a text or a list of messages with one of a user"
end

local function check_question(self, what, question)
  options.self("judge", self, judge.mt)
  if self.closed then options.raise "attempt to use a closed judge" end
  options.argument(what, "question", question, is_question)
  return wording.question(question)
end

local function ask_score(self, question, answer)
  local o = self.options
  local fields = { question = question, answer = wording.answer(answer), low = o.scale[1], high = o.scale[2] }
  local kind = o.mode == "principles" and "principles" or "score"
  return ballot.start(self.backend, o, wording.fill(o.template[kind], fields), self.scores)
end

-- One ballot for each order.
local function ask_pair(self, question, a, b)
  local o, out = self.options, {}
  a, b = wording.answer(a), wording.answer(b)
  for _, order in ipairs(o.orders == "balanced" and { "ab", "ba" } or { o.orders }) do
    local swapped = order == "ba"
    local text = wording.fill(o.template.pair, { question = question, a = swapped and b or a, b = swapped and a or b })
    out[#out + 1] = ballot.start(self.backend, o, text, wording.pair_verdicts(o.template, swapped), { order = order })
  end
  return out
end

-- ---- what came of it ------------------------------------------------------------------------------------------------

-- Waits for ballots; all their votes in one list, and what they used.
local function collect(ballots)
  local votes, usage, err = {}, { prompt = 0, cached = 0, completion = 0, scored = 0 }, nil
  for _, b in ipairs(ballots) do
    b:wait()
    for name, n in pairs(b.usage) do usage[name] = usage[name] + n end
    for _, vote in ipairs(b.votes) do
      votes[#votes + 1] = vote
      err = err or vote.err
      vote.settled, vote.verdict = nil, nil
    end
  end
  local failed = 0
  for _, vote in ipairs(votes) do failed = failed + (vote.err and 1 or 0) end
  if failed == #votes then return nil, err end
  return votes, usage
end

local function choose(self, r, best, tied)
  if #best < 2 then return best[1] end
  local on_tie = self.options.on_tie
  if type(on_tie) == "function" then return on_tie(r, best) end
  if on_tie == "random" then return best[1 + (r.votes[1].seed * 0x9E3779B97F4A7C15 >> 33) % #best] end
  if on_tie == "first" or not tied then return tally.first(r.votes, best) end
  return tied
end

-- Winner, agreement and so on of votes; tied: the label of a tie, nil where there is none.
local function decide(self, votes, usage, verdicts, tied)
  local counts, n = tally.count(votes)
  local r = { votes = votes, counts = counts, abstention = tally.abstention(votes, n), usage = usage, seed = self.options.seed,
              distribution = tally.mean(votes, verdicts) }
  local weight = self.options.voting == "expected" and r.distribution or counts
  local label = choose(self, r, tally.best(weight, verdicts), tied)
  r.agreement = tally.agreement(counts, n, label)
  return r, label, n
end

-- The mean of the scores that could be read, or of the distribution.
local function mean_score(self, r, n)
  local sum, mean = 0, 0.0
  for _, vote in ipairs(r.votes) do sum = sum + (vote.score or 0) end
  for _, v in ipairs(self.scores) do mean = mean + (r.distribution and r.distribution[v.label] or 0) * v.score end
  r.sum = sum
  if n == 0 then return nil end
  return self.options.voting == "expected" and mean or sum / n
end

local function decide_pair(self, votes, usage)
  local r, label = decide(self, votes, usage, wording.pair_verdicts(self.options.template), "tie")
  r.winner, r.flip_rate = label, tally.flips(votes)
  return r
end

local function decide_score(self, votes, usage)
  local r, label, n = decide(self, votes, usage, self.scores)
  r.score, r.verdict = mean_score(self, r, n), label and math.tointeger(tonumber(label))
  return r
end

local function outcome(self, decide_, ballots)
  local votes, usage = collect(ballots)
  if not votes then return nil, usage end
  return decide_(self, votes, usage)
end

-- Closes a span with the outcome, and hands it on.
local function told(s, r, err)
  s:close(r and { winner = r.winner, score = r.score, agreement = r.agreement, flip_rate = r.flip_rate, usage = r.usage,
                  votes = r.votes } or { err = err })
  return r, err
end

-- ---- for users ------------------------------------------------------------------------------------------------------

--- Scores one answer on the scale.
-- @param question string|table  a text, or messages whose last one of a user is the question
-- @param answer string|table    a text, or a result
-- @return { score = mean of the readable votes (nil: there is none), verdict = the score that most votes gave, sum, votes =
--   { { score =, text =, logprob =, distribution =, mass = }, ... }, agreement = share of the votes for the verdict,
--   abstention = share that could not be read, counts, distribution, usage, seed }, or nil, err
-- @usage print(judge:score("What is 58 + 67?", "\\boxed{125}").score)
function methods:score(question, answer)
  question = check_question(self, "judge:score", question)
  options.argument("judge:score", "answer", answer, is_text)
  local s = span.open("judge", { call = "score", question = question, seed = self.options.seed })
  return told(s, outcome(self, decide_score, { ask_score(self, question, answer) }))
end

--- Compares two answers: `votes` votes in each order.
-- @return { winner = "a", "b", "tie" or nil, votes = { { label = "a" | "b" | "tie", order = "ab" | "ba", text =, logprob = }, ... },
--   agreement, flip_rate = share of the votes that change with the order, abstention, counts, distribution, usage, seed },
--   or nil, err. In the modes "score" and "principles" both answers are scored and the means compared (a_score, b_score).
-- @usage local r = judge:compare("What is 8 + 5?", "\\boxed{13}", "\\boxed{14}")
function methods:compare(question, a, b)
  question = check_question(self, "judge:compare", question)
  options.argument("judge:compare", "the first answer", a, is_text)
  options.argument("judge:compare", "the second answer", b, is_text)
  local s = span.open("judge", { call = "compare", question = question, seed = self.options.seed })
  if self.pairwise then return told(s, outcome(self, decide_pair, ask_pair(self, question, a, b))) end
  local first, second = ask_score(self, question, a), ask_score(self, question, b)
  local r1, err1 = outcome(self, decide_score, { first })
  local r2, err2 = outcome(self, decide_score, { second })
  if not (r1 and r2) then return told(s, nil, err1 or err2) end
  return told(s, standings.of_two(r1, r2))
end

--- Ranks answers: each against each other in both orders, or by scores in the modes "score" and "principles".
-- @param answers list of texts or results
-- @return { winner = index (nil: no vote could be read), order = indices from best to worst, scores = for each answer the mean share
--   of the votes that it got (or its mean score), agreement, flip_rate, abstention, usage, matches or results }, or nil, err
-- @usage local r = judge:rank("What is 8 + 5?", { "14", "13", "I don't know" })
function methods:rank(question, answers)
  question = check_question(self, "judge:rank", question)
  options.argument("judge:rank", "answers", answers, is.table)
  if #answers == 0 then options.raise "judge:rank: there are no answers" end
  for i = 1, #answers do options.argument("judge:rank", ("answers[%d]"):format(i), answers[i], is_text) end
  local s = span.open("judge", { call = "rank", question = question, seed = self.options.seed })
  local open, results = {}, {}
  if not self.pairwise then
    for i, answer in ipairs(answers) do open[i] = ask_score(self, question, answer) end
    for i, b in ipairs(open) do
      local err
      results[i], err = outcome(self, decide_score, { b })
      if not results[i] then return told(s, nil, err) end
    end
    return told(s, standings.of_scores(self, results))
  end
  for i = 1, #answers do
    for j = i + 1, #answers do open[#open + 1] = { i, j, ask_pair(self, question, answers[i], answers[j]) } end
  end
  for k, match in ipairs(open) do
    local r, err = outcome(self, decide_pair, match[3])
    if not r then return told(s, nil, err) end
    r.first, r.second = match[1], match[2]
    results[k] = r
  end
  return told(s, standings.of_matches(self, results, #answers))
end

--- Decides again from votes that were kept: some of them, or with another way of voting.
-- @param votes list    of one result of score or compare
-- @return a result as score or compare would give it, without usage
-- @usage local single = judge:decide { r.votes[1] }
function methods:decide(votes)
  options.self("judge", self, judge.mt)
  options.argument("judge:decide", "votes", votes, is.table)
  local pair = self.pairwise
  for _, vote in ipairs(votes) do
    if vote.score or vote.label then pair = vote.label ~= nil end
  end
  return (pair and decide_pair or decide_score)(self, votes)
end

--- Judges are closed like everything else; the backend stays as it is. May be called twice.
function methods:close()
  options.self("judge", self, judge.mt)
  self.closed = true
end

judge.mt = {
  __close = methods.close,
  __name = "fathom.judge",
  __index = methods,
  __tostring = function(self) return ("fathom judge (%d votes, seed %d)"):format(self.options.votes, self.options.seed) end,
}

--- Makes a judge of a backend.
-- @param b table          model, session, remote or mock
-- @param opts table|nil   rubric (a text or a list of points; becomes the system text), scale ({ 1, 10 }), votes (8; in each
--   order), orders ("balanced": both; "ab", "ba"), mode ("pair": compare and rank ask for pairs; "score": they compare scores;
--   "principles": scores, before which the model writes the principles that it goes by), voting ("majority", or "expected":
--   by the mean of the label distributions), on_tie ("tie", "first": the vote that came first; "random": by the seed; or
--   function(result, labels)), seed (drawn and reported), template (see judge/wording.lua), temperature (1), top_p (1),
--   max_tokens (1024), think, priority, critique (true: a model that does not think writes before its verdict), distribution
--   (true: read how likely each label was, where the logits can be read)
-- @return judge           with score, compare and rank
-- @usage local judge = fathom.judge(model, { rubric = { "be brief", "be right" }, votes = 4 })
function judge.new(b, opts)
  backend.check("fathom.judge", b)
  local o = options.check("fathom.judge", opts, known)
  o.template = wording.new("fathom.judge", o.template)
  o = sampling.merge(o, { drawn = not o.seed, seed = sampling.draw_seed() }, defaults)
  o.seed, o.votes = math.tointeger(o.seed), math.tointeger(o.votes)
  o.scale = { math.tointeger(o.scale[1]), math.tointeger(o.scale[2]) }
  if o.rubric then o.system = wording.fill(o.template.rubric, { rubric = wording.rubric(o.rubric) }) end
  return setmetatable({ backend = b, options = o, pairwise = o.mode == nil or o.mode == "pair",
                        scores = wording.score_verdicts(o.template, o.scale[1], o.scale[2]) }, judge.mt)
end

return judge

--- select_spec.lua - several samples and one that is taken: best of n, self-consistency, rejection sampling that survives its process.
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("select_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

local function numbers(list) return fathom.mock { replies = list } end

describe("best_of", function()
  it("takes the sample with the highest reward, the first of equals", function()
    local function value(s) return tonumber(s.answer) end
    local r = assert(fathom.best_of(numbers { "3", "9", "7", "9" }, "How many?", { n = 4, reward = value }))
    assert.equal("9", r.answer)
    assert.equal(2, r.index)
    assert.equal(9, r.reward)
    assert.same({ 3, 9, 7, 9 }, r.rewards)
    assert.equal(4, #r.samples)
    assert.is_true(r.total.completion > 0)
    assert.is_string(json.encode(r))
  end)

  it("gives rewards the prompt and the reference", function()
    local seen
    assert(fathom.best_of(numbers { "x" }, "Q", { n = 1, reference = 5, reward = function(s) seen = s return 1 end }))
    assert.equal("Q", seen.prompt)
    assert.equal(5, seen.reference)
    assert.equal(0, seen.sample)
  end)

  it("asks a judge about all samples at once", function()
    local mock = fathom.mock { replies = function(messages)
      local n = messages[#messages].content:match "Answer:\n(%d)"
      return n and "Score: " .. n or tostring(4)
    end }
    local r = assert(fathom.best_of(mock, "Q", { n = 2, reward = fathom.reward.judge(mock, { judge = { votes = 2 } }) }))
    assert.is_near(1 / 3, r.reward, 1e-9)
  end)

  it("says what is wrong", function()
    raises("'reward' is missing", function() fathom.best_of(numbers {}, "Q", { n = 2 }) end)
    raises("a reward must be a number", function() fathom.best_of(numbers { "x" }, "Q", { n = 1, reward = function() return "y" end }) end)
    raises("prompt must be", function() fathom.best_of(numbers {}, 3, { reward = print }) end)
    raises("unknown option 'rewards'", function() fathom.best_of(numbers {}, "Q", { rewards = 1 }) end)
    local r, err = fathom.best_of(numbers { "x" }, "Q", { n = 2, reward = function() return 1 end })
    assert.is_nil(r)
    assert.equal("limit", err.code)
  end)
end)

describe("vote", function()
  it("takes the answer that most samples give, however they write it", function()
    local r = assert(fathom.vote(numbers { "\\boxed{1/2}", "\\boxed{2}", "so it is \\boxed{0.5}", "<answer>3</answer>" }, "Q", { n = 4 }))
    assert.equal("1/2", r.winner)
    assert.equal(1, r.index)
    assert.equal("\\boxed{1/2}", r.answer)
    assert.equal(0.5, r.agreement)
    assert.same({ ["1/2"] = 2, ["2"] = 1, ["3"] = 1 }, r.counts)
  end)

  it("breaks ties by who came first, by the seed, or as it is told", function()
    local replies = function(_, o) return tostring(o.sample % 2 + 1) end
    local mock = fathom.mock { replies = replies }
    assert.equal("1", assert(fathom.vote(mock, "Q", { n = 4 })).winner)
    assert.equal("2", assert(fathom.vote(mock, "Q", { n = 4, on_tie = function(best) return best[2] end })).winner)
    local seen = {}
    for seed = 1, 30 do
      local winner = assert(fathom.vote(mock, "Q", { n = 2, on_tie = "random", seed = seed })).winner
      assert.equal(winner, assert(fathom.vote(mock, "Q", { n = 2, on_tie = "random", seed = seed })).winner)
      seen[winner] = true
    end
    assert.same({ ["1"] = true, ["2"] = true }, seen)
  end)

  it("counts replies without an answer, and weighs the others when it is told to", function()
    local mock = numbers { "5", "", "6", "5" }
    local o = { n = 4, key = function(s) return s.answer ~= "" and s.answer or nil end,
                weight = function(s) return s.answer == "6" and 3 or 1 end }
    local r = assert(fathom.vote(mock, "Q", o))
    assert.equal("6", r.winner)
    assert.equal(0.25, r.abstention)
    assert.equal(3 / 5, r.agreement)
    local none = assert(fathom.vote(numbers { "", "" }, "Q", { n = 2 }))
    assert.is_nil(none.winner)
    assert.equal(1.0, none.abstention)
  end)

  it("keeps results that survive JSON, whatever a key is", function()
    local r = assert(fathom.vote(numbers { "3", "9", "9" }, "Q", { n = 3, key = function(s) return tonumber(s.answer) end }))
    assert.same({ "9", { ["3"] = 1, ["9"] = 2 } }, { r.winner, r.counts })
    assert.same(r.counts, json.decode(json.encode(r)).counts)
    raises("'key' must give a text or nil, it gave a table", function()
      fathom.vote(numbers { "3" }, "Q", { n = 1, key = function() return {} end })
    end)
  end)

  it("works on a model, in a conversation", function()
    local model <close> = assert(fathom.load(fathom.pocket, { seqs = 4 }))
    local talk <close> = model:session { seed = 1 }
    local r = assert(fathom.vote(talk, "What is 17 + 25?", { n = 3, temperature = 1, seed = 2 }))
    assert.equal("42", r.winner)
    assert.equal(r.samples[1].text, assert(fathom.vote(talk, "What is 17 + 25?", { n = 1, temperature = 1, seed = 2 })).text)
    assert.equal(0, #talk:messages())
  end)
end)

describe("reject", function()
  local dir, remove
  before_each(function() dir, remove = helper.folder() end)
  after_each(function() remove() end)

  -- Answers "4" or so, by the prompt and the sample; slow enough to be killed in the middle.
  local SCRIPT = [[
    local fathom = require "fathom"
    local path, kill_at = arg[1], tonumber(arg[2])
    local mock = fathom.mock { replies = function(messages, o)
      local n = tonumber(messages[1].content:match "%d+")
      return ("word "):rep((n * 7 + o.sample * 3) % 11) .. "\\boxed{" .. (n * 5 + o.sample) % 4 .. "}"
    end }
    local prompts = {}
    for i = 1, 40 do prompts[i] = { id = "p" .. i, question = "Number " .. i .. "?", answer = 2 } end
    local function progress(state)
      if kill_at and state.done - state.resumed == kill_at then
        local pid = io.open("/proc/self/stat"):read "n"
        os.execute("kill -9 " .. pid)
      end
    end
    local r = assert(fathom.reject { backend = mock, prompts = prompts, path = path, n = 3, width = 5, seed = 9,
                                     reward = fathom.reward.accuracy, progress = progress })
    io.write(r.done, " ", r.total, " ", r.kept, " ", r.resumed)
  ]]

  local function run(path, kill_at)
    helper.write(dir .. "/run.lua", SCRIPT)
    local pipe = io.popen(("%s %s/run.lua %s %s 2>/dev/null"):format(os.getenv "LUA" or "lua5.4", dir, path, kill_at or ""))
    local out = pipe:read "a"
    pipe:close()
    return out
  end

  it("keeps what the reward likes, with where it came from", function()
    local path = dir .. "/out.jsonl"
    assert.equal("40 40 30 0", run(path))
    local rows = helper.jsonl(path)
    assert.equal(30, #rows)
    local last = 0
    for _, row in ipairs(rows) do
      assert.equal(1.0, row.reward)
      assert.equal("\\boxed{2}", row.answer:match "\\boxed.*")
      assert.equal("Number " .. row.index .. "?", row.prompt[1].content)
      assert.equal("p" .. row.index, row.id)
      assert.is_true(math.type(row.seed) == "integer" and row.sample >= 0 and row.sample < 3)
      assert.equal("mock", row.model.name)
      assert.is_true(row.index * 3 + row.sample > last)
      last = row.index * 3 + row.sample
    end
    -- a second call finds nothing to do
    assert.equal("40 40 30 40", run(path))
    assert.equal(30, #helper.jsonl(path))
  end)

  it("comes out the same, byte for byte, however often it is killed", function()
    run(dir .. "/whole.jsonl")
    local whole, path = helper.read(dir .. "/whole.jsonl"), dir .. "/killed.jsonl"
    for _, kill_at in ipairs { 1, 7, 2, 12 } do assert.equal("", run(path, kill_at)) end
    assert.is_true(#helper.read(path) < #whole)
    assert.matches("^40 40 30 %d+$", run(path))
    assert.equal(whole, helper.read(path))
  end)

  it("cuts off torn lines, and makes again what the journal does not know", function()
    run(dir .. "/whole.jsonl")
    local whole, path = helper.read(dir .. "/whole.jsonl"), dir .. "/torn.jsonl"
    run(path, 20)
    local text, journal = helper.read(path), helper.read(path .. ".journal")
    helper.write(path, text .. '{"index": 21, "id": "p2')
    helper.write(path .. ".journal", journal:sub(1, -8))
    run(path)
    assert.equal(whole, helper.read(path))
    -- the lines of a prompt went out, the journal's line did not
    run(dir .. "/again.jsonl", 20)
    local notes = helper.read(dir .. "/again.jsonl.journal")
    helper.write(dir .. "/again.jsonl.journal", (notes:gsub("[^\n]+\n[^\n]+\n$", "")))
    run(dir .. "/again.jsonl")
    assert.equal(whole, helper.read(dir .. "/again.jsonl"))
  end)

  local function small(changes)
    local o = { backend = fathom.mock { replies = function() return "\\boxed{2}" end }, prompts = { "a", "b", "c" },
                path = dir .. "/s.jsonl", n = 2, reward = function() return 1 end }
    for k, v in pairs(changes or {}) do o[k] = v end
    return fathom.reject(o)
  end

  it("makes again what is no longer in the file, whatever the journal says", function()
    local path = dir .. "/lost.jsonl"
    run(path)
    local whole = helper.read(path)
    local function comes_back()
      assert.matches("^40 40 30 [123]?%d$", run(path))
      assert.equal(whole, helper.read(path))
      assert.equal("40 40 30 40", run(path))
    end
    os.remove(path)
    comes_back()
    helper.write(path, (whole:gsub("^[^\n]*\n[^\n]*\n", "%0", 1):gsub('\n{[^\n]*"index": 9,[^\n]*', "", 1)))
    assert.is_true(#helper.read(path) < #whole)
    comes_back()
    helper.write(path, "5\n" .. whole:gsub("^[^\n]*\n", "", 1))
    comes_back()
    helper.write(path .. ".journal", (helper.read(path .. ".journal"):gsub("\n[^\n]*\n", "\n7\n", 1)))
    comes_back()
    local r, err = fathom.reject { backend = numbers { "1" }, prompts = { "a" }, path = dir, reward = error }
    assert.is_nil(r)
    assert.equal("io", err.code)
  end)

  it("does not make again what was settled behind a slow prompt", function()
    local path, asked = dir .. "/slow.jsonl", {}
    local function go(out, stop_at)
      return assert(fathom.reject { path = out, n = 2, width = 4, seed = 3, reward = function() return 1 end,
        prompts = { "p1", "p2", "p3", "p4", "p5", "p6" }, progress = function(s) return s.done ~= stop_at end,
        backend = fathom.mock { replies = function(messages)
          local text = messages[1].content
          asked[text] = (asked[text] or 0) + 1
          return text == "p1" and ("word "):rep(50) or "reply to " .. text
        end } })
    end
    go(dir .. "/at_once.jsonl")
    asked = {}
    local r = go(path, 4)
    assert.same({ "cancelled", 4, 0 }, { r.finish, r.done, r.kept })
    assert.equal("", helper.read(path))
    helper.write(path .. ".journal", helper.read(path .. ".journal") .. '{"prompt": 6, "li')
    r = go(path)
    assert.same({ 6, 12, 4 }, { r.done, r.kept, r.resumed })
    assert.same({ 4, 2, 2, 2, 2 }, { asked.p1, asked.p2, asked.p3, asked.p4, asked.p5 })
    assert.equal(helper.read(dir .. "/at_once.jsonl"), helper.read(path))
    assert.equal(6, go(path).resumed)
  end)

  it("goes on with the same settings only, and not without its journal", function()
    assert.equal(6, assert(small()).kept)
    for _, changes in ipairs { { seed = 4 }, { n = 3 }, { prompts = { "a", "b", "d" } }, { temperature = 0.1 } } do
      local r, err = small(changes)
      assert.is_nil(r)
      assert.equal("format", err.code)
      assert.matches("other settings", err.message)
    end
    os.remove(dir .. "/s.jsonl.journal")
    local r, err = small()
    assert.is_nil(r)
    assert.matches("not the journal", err.message)
  end)

  it("keeps by threshold or function, and no more of a prompt than it is told", function()
    local function graded(s) return s.sample == 1 and 0.7 or 0.2 end
    assert.equal(3, assert(small { path = dir .. "/a", reward = graded, keep = 0.5 }).kept)
    assert.equal(6, assert(small { path = dir .. "/b", reward = graded, keep = function(_, value) return value < 1 end }).kept)
    assert.equal(3, assert(small { path = dir .. "/c", most = 1 }).kept)
    local sum = fathom.reward.sum { { graded, 2, name = "g" } }
    assert(small { path = dir .. "/d", reward = sum, keep = 0, prompts = { { prompt = "a", level = "easy" } }, fields = { "level" } })
    local row = helper.jsonl(dir .. "/d")[1]
    assert.same({ { name = "g", value = 0.2, weight = 2 } }, row.rewards)
    assert.equal("easy", row.level)
  end)

  it("tells its progress, stops when it is told to, and goes on from there", function()
    local states = {}
    local r = assert(small { width = 1, progress = function(state) states[#states + 1] = state return #states < 2 end })
    assert.equal("cancelled", r.finish)
    assert.equal(2, r.done)
    assert.equal(3, states[1].total)
    assert.is_true(states[1].rate >= 0 and states[1].seconds >= 0)
    r = assert(small { width = 1 })
    assert.equal("stop", r.finish)
    assert.equal(2, r.resumed)
    assert.equal(6, #helper.jsonl(dir .. "/s.jsonl"))
  end)

  it("ends with what went wrong, and goes on from there", function()
    local broken = true
    local backend = fathom.mock { replies = function(messages)
      return messages[1].content == "b" and broken and { text = "", err = "network" } or "x"
    end }
    local r, err = small { backend = backend, width = 1 }
    assert.is_nil(r)
    assert.equal("network", err.code)
    broken = false
    assert.equal(1, assert(small { backend = backend }).resumed)
    assert.equal(6, #helper.jsonl(dir .. "/s.jsonl"))
    r, err = small { path = dir .. "/no/such/folder.jsonl" }
    assert.is_nil(r)
    assert.equal("io", err.code)
  end)

  it("runs on pocket, and knows its weights", function()
    local model <close> = assert(fathom.load(fathom.pocket, { seqs = 4 }))
    local r = assert(small { backend = model, prompts = { { prompt = "What is 8 + 5?", answer = 13 } }, reward = fathom.reward.accuracy })
    assert.equal(2, r.kept)
    local row = helper.jsonl(dir .. "/s.jsonl")[1]
    assert.equal(model:stats().digest, row.model.digest)
    assert.equal("pocket", row.model.name)
    local again = assert(model:session():sample("What is 8 + 5?", { n = 2, seed = row.seed }))
    assert.equal(row.text, again[row.sample + 1].text)
  end)

  it("takes an iterator of texts, too", function()
    local n = 0
    local r = assert(fathom.reject { backend = numbers { "1", "2" }, path = dir .. "/iterator.jsonl", n = 1,
                                     reward = function() return 1 end, prompts = function()
      n = n + 1
      return n < 3 and "Number " .. n or nil
    end })
    assert.equal(2, r.kept)
  end)

  it("says what is wrong with a call", function()
    raises("option 'path' is missing", function() fathom.reject { backend = fathom.mock { replies = {} }, prompts = { "a" } } end)
    raises("takes one table: fathom.reject { backend", function() fathom.reject(fathom.mock { replies = {} }, { "a" }, {}) end)
    raises("unknown option 'promts' %(did you mean 'prompts'%?%)", function() fathom.reject { promts = 1 } end)
    local r, err = small { prompts = { { reference = 1 } } }
    assert.is_nil(r)
    assert.matches("prompt 1 has neither", err.message)
    local function call(opts)
      for name, value in pairs { backend = numbers { "1" }, prompts = { "a" }, path = dir .. "/call.jsonl", n = 1 } do
        if opts[name] == nil then opts[name] = value end
      end
      return function() fathom.reject(opts) end
    end
    raises("a reward must be a number, got nil", call { reward = function() end })
    raises("prompt 1 must be a text or a table, got a number", call { reward = error, prompts = { 5 } })
    -- what a caller's function raises has one place, its own, behind the call's
    raises("^[^:]*:%d+: [^:]*select_spec.lua:%d+: a slip$", call { reward = function() error "a slip" end })
  end)
end)

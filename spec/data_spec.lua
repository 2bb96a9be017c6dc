--- data_spec.lua - test sets as evaluations: what their loaders make of a few rows, and that scorers know right from wrong.
local bfcl = require "fathom.eval.data.bfcl"
local data = require "fathom.eval.data"
local exercism = require "fathom.eval.data.exercism"
local fathom = require "fathom"
local helper = require "spec.helper"
local hotpotqa = require "fathom.eval.data.hotpotqa"
local json = require "fathom.json"
local world = require "fathom.eval.data.world"

local DIR = "spec/data/eval"

-- Runs a set on a scripted backend.
local function evaluate(suite, reply)
  suite.backend = type(reply) == "function" and fathom.mock { replies = reply } or reply
  return assert(fathom.eval(suite))
end

local function score(report, name)
  for _, e in ipairs(report.scores) do
    if e.name == name then return e.mean end
  end
end

local function measure(report, name)
  for _, m in ipairs(report.metrics) do
    if m.name == name then return m end
  end
end

describe("sets of problems", function()
  for _, name in ipairs { "gsm8k", "svamp", "math500", "arithmetic" } do
    it("score references 1 and other answers 0: " .. name, function()
      local suite = assert(data[name](DIR))
      local list = suite.cases
      assert.is_true(#list >= 3)
      local right = evaluate(assert(data[name](DIR)), function(messages)
        for _, case in ipairs(list) do
          if case.prompt == messages[1].content then return case.solution or "\\boxed{" .. case.reference .. "}" end
        end
      end)
      assert.equal(1.0, score(right, "accuracy"))
      assert.equal(0.0, score(evaluate(assert(data[name](DIR)), function() return "\\boxed{123456}" end), "accuracy"))
    end)
  end

  it("find their folder, or say what is missing", function()
    assert.equal(3, #assert(data.gsm8k(DIR .. "/math-gsm8k")).cases)
    local none, err = data.gsm8k "no/such/folder"
    assert.is_nil(none)
    assert.matches("no test.jsonl", err.message)
    assert.is_true(#data.list() >= 14)
    assert.same({ false, "gsm8k" }, { data.find "gsm8" })
    assert.is_nil(data.nonsense)
    assert.has_error(function() data.gsm8k(3) end)
  end)

  it("read Chinese problems", function()
    local dir, remove = helper.folder()
    helper.write(dir .. "/mgsm_zh.jsonl", '{"id": "0", "question": "二加三等于多少？", "answer": "5"}\n')
    local report = evaluate(assert(data.mgsm_zh(dir)), function() return "答案是 \\boxed{5}" end)
    remove()
    assert.equal(1.0, score(report, "accuracy"))
  end)
end)

describe("Countdown", function()
  it("scores its own solutions 1, and others 0", function()
    local suite = assert(data.countdown(DIR))
    for _, case in ipairs(suite.cases) do
      assert.equal(1, (suite.scorers.right { answer = "<answer>" .. case.reference .. "</answer>", case = case }))
      assert.equal(0, (suite.scorers.right { answer = "<answer>" .. case.target .. "</answer>", case = case }))
      assert.equal(0, (suite.scorers.right { answer = case.reference, case = case }))
    end
  end)
end)

describe("judges beside people", function()
  -- A judge that likes the longer answer, in pocket's wording.
  local function longer(messages)
    local a, b = messages[#messages].content:match "Answer A:\n(.-)\n\nAnswer B:\n(.*)\n\nEnd with"
    return #a > #b and "[[A]]" or "[[B]]"
  end

  it("are measured by agreement, flips and the slope of length", function()
    local report = evaluate(assert(data.llmbar(DIR, { votes = 1 })), longer)
    assert.equal(6, report.cases)
    local want = 0
    for _, case in ipairs(data.llmbar(DIR).cases) do
      want = want + ((#case.a > #case.b) == (case.reference == "a") and 1 or 0)
    end
    assert.equal(want / 6, score(report, "agrees"))
    assert.equal(0.0, measure(report, "flip rate").mean)
    assert.is_true(measure(report, "length slope").mean > 0)
    assert.is_number(measure(report, "length slope of people").mean)
    assert.equal("subset", report.slices[1].field)
    assert.equal(5, #report.slices[1].groups)
  end)

  it("that always take the first answer flip every time, and tie", function()
    local report = evaluate(assert(data.mtbench(DIR, { votes = 2 })), function() return "[[A]]" end)
    assert.equal(1.0, measure(report, "flip rate").mean)
    assert.equal(0.5, score(report, "agrees"))
    report = evaluate(assert(data.mtbench(DIR, { votes = 1 })), function() return "who knows" end)
    assert.equal(0.0, score(report, "agrees"))
    assert.equal(1.0, measure(report, "no verdict").mean)
  end)

  it("are compared with three annotators: the majority, each of them, and them among each other", function()
    local suite = assert(data.pandalm(DIR, { votes = 1 }))
    assert.equal(3, #suite.cases)                    -- of four rows one has no majority
    local by_people = {}
    for _, case in ipairs(suite.cases) do by_people[case.question] = case end
    local report = evaluate(suite, function(messages)
      local text = messages[#messages].content
      local question, a = text:match "Question: (.-)\n\nAnswer A:\n(.-)\n\nAnswer B:"
      local case = by_people[question]
      if case.reference == "tie" then return "[[C]]" end
      return (case.reference == "a") == (a == case.a) and "[[A]]" or "[[B]]"
    end)
    assert.equal(1.0, score(report, "agrees"))
    local each = score(report, "agrees with each")
    assert.is_true(each < 1 and each > 0.6)
    assert.is_true(measure(report, "agreement among people").mean < 1)
  end)

  it("score alone what was chosen and what was rejected, by category", function()
    local cases = data.rewardbench(DIR).cases
    local report = evaluate(assert(data.rewardbench(DIR, { votes = 1 })), function(messages)
      local text = messages[#messages].content
      for _, case in ipairs(cases) do
        if text:find(case.question, 1, true) and text:find("\n" .. case.chosen .. "\n", 1, true) then return "Score: 8" end
      end
      return "Score: 3"
    end)
    assert.equal(1.0, score(report, "better"))
    assert.equal(1.0, measure(report, "mean of categories").mean)
    report = evaluate(assert(data.rewardbench(DIR, { votes = 1 })), function() return "Score: 5" end)
    assert.equal(0.5, score(report, "better"))
  end)
end)

describe("function calling", function()
  -- A call that takes the first accepted value everywhere.
  local value
  local function first(list)
    for _, v in ipairs(list) do
      if v ~= "" then return value(v) end
    end
  end
  function value(v)
    if type(v) ~= "table" then return v end
    local out, kind = {}, getmetatable(v).__jsontype
    for k, item in pairs(v) do
      if kind == "array" then out[k] = value(item) else out[k] = first(item) end
    end
    return setmetatable(out, { __jsontype = kind })
  end
  local function right_calls(case)
    local calls = {}
    for i, want in ipairs(case.reference) do
      local name, arguments = next(want)
      calls[i] = { name = name, arguments = json.object {} }
      for argument, list in pairs(arguments) do calls[i].arguments[argument] = first(list) end
    end
    return calls
  end

  it("takes what the rows accept, in any order", function()
    local cases, by_text = data.bfcl(DIR).cases, {}
    for _, case in ipairs(cases) do by_text[case.messages[1].content] = case end
    local report = evaluate(assert(data.bfcl(DIR)), function(messages)
      local calls = right_calls(by_text[messages[1].content])
      if #calls == 0 then return "Nothing fits." end
      table.insert(calls, 1, table.remove(calls))
      return { tool_calls = calls }
    end)
    assert.equal(1.0, score(report, "calls"))
    assert.equal(6, #report.slices[1].groups)
    report = evaluate(assert(data.bfcl(DIR, { categories = { "irrelevance", "simple" } })), function()
      return { tool_calls = { { name = "nonsense", arguments = {} } } }
    end)
    assert.equal(0.0, score(report, "calls"))
  end)

  it("gives the tools in the words of JSON Schema", function()
    local case = data.bfcl(DIR).cases[1]
    local f = case.tools[1]["function"]
    assert.equal("object", f.parameters.type)
    assert.is_truthy(f.name and f.parameters.properties)
    local model <close> = assert(fathom.load(fathom.pocket))
    assert.is_truthy(model:render(case.messages, { tools = case.tools }))
  end)

  it("compares values as the leaderboard does", function()
    local function match(arguments, accepted)
      return bfcl.match({ { name = "f", arguments = arguments } }, { { f = accepted } }) == 1
    end
    assert.is_true(match({ x = "New-York, NY" }, { x = { "new york ny" } }))
    assert.is_true(match({ x = 5.0 }, { x = { 5 } }))
    assert.is_false(match({ x = "5" }, { x = { 5 } }))
    assert.is_true(match({}, { x = { "a", "" } }))
    assert.is_false(match({}, { x = { "a" } }))
    assert.is_false(match({ x = "a", y = 1 }, { x = { "a" } }))
    assert.is_true(match({ x = { 1, 2 } }, { x = { { 1, 2 } } }))
    assert.is_false(match({ x = { 2, 1 } }, { x = { { 1, 2 } } }))
    assert.is_true(match({ x = { a = 1 } }, { x = { { a = { 1, 2 }, b = { "" } } } }))
    assert.is_false(match({ x = true }, { x = { 1 } }))
    local wanted = { { f = { x = { 1 } } }, { f = { x = { 1, 2 } } } }
    assert.equal(0, (bfcl.match({ { name = "f", arguments = { x = 1 } } }, wanted)))
    assert.equal(0, (bfcl.match({ { name = "f", raw = "{", error = "broken" }, { name = "f", arguments = { x = 1 } } }, wanted)))
    assert.equal(1, (bfcl.match({ { name = "f", arguments = { x = 2 } }, { name = "f", arguments = { x = 1 } } }, wanted)))
  end)
end)

describe("HotpotQA", function()
  it("scores exact matches and F1 as its script does", function()
    assert.is_true(hotpotqa.exact("The Chief of Protocol.", "chief of protocol"))
    assert.is_false(hotpotqa.exact("Chief", "Chief of Protocol"))
    local f1 = hotpotqa.f1("Chief of staff", "Chief of Protocol")
    assert.is_true(math.abs(f1 - 2 / 3) < 1e-9)
    assert.equal(0.0, hotpotqa.f1("yes it is", "yes"))
    assert.equal(1.0, hotpotqa.f1("Yes.", "yes"))
    assert.equal(0.0, hotpotqa.f1("", "yes"))
  end)

  it("asks closed-book, or an agent that looks up the paragraphs of a row", function()
    local dir, remove = helper.folder()
    helper.write(dir .. "/dev_a.jsonl", '{"question": "Q1?", "answer": "yes", "type": "comparison"}\n'
      .. '{"question": "Who wrote the book that the play is of?", "answer": "Ann Bo", "type": "bridge", '
      .. '"context": [["The Play", ["It is of The Book. ", "It is short."]], ["The Book", ["Ann Bo wrote it."]]]}\n')
    local asked = 0
    local report = evaluate(assert(data.hotpotqa(dir)), function(messages)
      asked = asked + 1
      local last = messages[#messages]
      if messages[1].content:find("Q1", 1, true) then return "I think <answer>Yes</answer>" end
      if last.role == "user" then return { tool_calls = { { name = "lookup", arguments = { title = "the play" } } } } end
      if last.content:find "It is of The Book" then return { tool_calls = { { name = "lookup", arguments = { title = "Book" } } } } end
      if last.content:find "Similar: The Book" then return { tool_calls = { { name = "search", arguments = { words = "wrote" } } } } end
      return "<answer>" .. last.content:match "%(The Book%) (%u%l+ %u%l+)" .. "</answer>"
    end)
    remove()
    assert.equal(5, asked)
    assert.same({ 1.0, 1.0 }, { score(report, "exact match"), score(report, "f1") })
  end)
end)

-- A bedroom, a shut door east, a kitchen with a stove; in the bedroom a locked chest with milk, its key on the bed.
local function small_game()
  local function fact(text)
    local name, arguments = text:match "^%s*(%S+)", {}
    for id in text:gmatch "%f[%w_]%a_?%d*%f[^%w_]" do
      if id ~= name then arguments[#arguments + 1] = { name = id, type = id:match "^%a" } end
    end
    return { name = name, arguments = arguments }
  end
  local facts, infos = {}, {}
  for text in ([[at P r_0; at c_0 r_0; at s_0 r_0; at s_1 r_1; locked c_0; match k_0 c_0; on k_0 s_0; in f_0 c_0; edible f_0; closed d_0;
                 link r_0 d_0 r_1; link r_1 d_0 r_0; east_of r_1 r_0; west_of r_0 r_1]]):gmatch "[^;]+" do
    facts[#facts + 1] = fact(text)
  end
  local names = { r_0 = "bedroom", r_1 = "kitchen", c_0 = "chest", s_0 = "bed", s_1 = "stove", k_0 = "old key", f_0 = "milk", d_0 = "door" }
  for id, name in pairs(names) do infos[#infos + 1] = { id, { name = name, type = id:match "^%a" } } end
  local function quest(reward, won, lost)
    local function events(text) return text and { { condition = { preconditions = { fact(text) } } } } or {} end
    return { reward = reward, win_events = events(won), fail_events = events(lost) }
  end
  return { world = facts, infos = infos, objective = "Put the milk on the stove.",
           quests = { quest(1, "in k_0 I"), quest(1, "on f_0 s_1"), quest(0, nil, "eaten f_0") } }
end

local walk = { "take old key from bed", "unlock chest with old key", "open chest", "take milk from chest", "open door", "go east",
               "put milk on stove" }

describe("TextWorld", function()
  it("plays a game by its facts", function()
    local game = world.new(small_game())
    assert.matches("bedroom.*chest %(locked%).*east %(closed door%)", game:look())
    assert.same({ "The way is shut.", false }, { game:act "go east" })
    assert.same({ "You can't open that.", false }, { game:act "open chest" })
    assert.same({ "You have no such key.", false }, { game:act "unlock chest with old key" })
    assert.same({ "You can't take that.", false }, { game:act "take bed" })
    assert.same({ "I don't know how to do that.", false }, { game:act "dance" })
    for i, command in ipairs(walk) do
      local text, fine = game:act(command)
      assert.is_true(fine, command .. ": " .. text)
      assert.equal(i == #walk, game.won)
    end
    assert.same({ 2, 2 }, { game.score, game.max_score })
    assert.same({ "The game is over.", false }, { game:act "look" })
  end)

  it("is lost where a quest says so", function()
    local game = world.new(small_game())
    for i = 1, 4 do game:act(walk[i]) end
    assert.matches("You lose", (game:act "eat milk"))
    assert.is_true(game.lost and not game.won)
  end)

  it("is played by an agent, and what it earned is its score", function()
    local dir, remove = helper.folder()
    helper.write(dir .. "/tw-another_game.json", json.encode(small_game()))
    local function player(n)
      local step = 0
      return function()
        step = step + 1
        if step > n then return "I am done." end
        return { tool_calls = { { name = "act", arguments = { action = walk[step] } } } }
      end
    end
    local report = evaluate(assert(data.textworld(dir)), player(7))
    assert.same({ 1.0, 1.0 }, { score(report, "reward"), score(report, "won") })
    report = evaluate(assert(data.textworld(dir)), player(3))
    assert.same({ 0.5, 0.0 }, { score(report, "reward"), score(report, "won") })
    remove()
    local none, err = data.textworld "no/such/folder"
    assert.is_nil(none)
    assert.equal("io", err.code)
  end)
end)

describe("Exercism", function()
  local solutions = { ["collatz-conjecture"] = [[Like this:
```lua
local M = {}
function M.steps(input)
  local n, count = input.number, 0
  if n < 1 then return nil, "Only positive integers are allowed" end
  while n ~= 1 do
    if n % 2 == 0 then n = n // 2 else n = 3 * n + 1 end
    count = count + 1
  end
  return count
end
return M
```]], darts = [[
local M = {}
function M.score(input)
  print "thinking"
  local d = math.sqrt(input.x ^ 2 + input.y ^ 2)
  return d <= 1 and 10 or d <= 5 and 5 or d <= 10 and 1 or 0
end
return M]] }

  it("runs programs against the tests of a task", function()
    local suite = assert(data.exercism(DIR))
    assert.equal(2, #suite.cases)
    for _, case in ipairs(suite.cases) do
      local share, why = exercism.grade(exercism.code(solutions[case.id]), case.tests)
      assert.equal(1.0, share, why)
    end
    local report = evaluate(suite, function(messages)
      return messages[1].content:find("steps", 1,
          true) and solutions["collatz-conjecture"] or "return { score = function() return 10 end }"
    end)
    assert.equal(0.5, score(report, "solved"))
    assert.is_true(score(report, "tests") > 0.5 and score(report, "tests") < 1)
  end)

  it("gives nothing for programs that loop, break, look for the answers or do not exist", function()
    local case = data.exercism(DIR).cases[1]
    for _, code in ipairs { "while true do end", "return {}", "no Lua", "return { steps = function(i) return i.expected end }",
                            "return { steps = function(i) error 'x' end }", "os.exit()", "" } do
      local share = exercism.grade(code, case.tests, { instructions = 100000 })
      assert.equal(code:find "error" and 2 / #case.tests or 0, share, code)             -- two tests ask for an error
    end
  end)
end)

--- reward_spec.lua - rewards by rule: answers that are the same, expressions, programs, form, language, length, sums.
local answer = require "fathom.reward.answer"
local expression = require "fathom.reward.expression"
local fathom = require "fathom"
local helper = require "spec.helper"

local reward = fathom.reward

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("reward_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

local function accuracy(text, reference) return (reward.accuracy { text = text, answer = text, reference = reference }) end

describe("answers", function()
  it("are found in the last place of their own", function()
    assert.equal("\\frac{1}{2}", answer.marked "\\boxed{1} no: \\boxed{\\frac{1}{2}}.")
    assert.equal("a_{\\text{x}}", answer.boxed "so \\boxed { a_{\\text{x}} } it is")
    assert.equal("1", answer.boxed "\\boxed{1} and \\boxed{2")
    assert.equal("2", answer.boxed "\\boxed{1 \\boxed{2} 3}")
    assert.equal("\\{1", answer.boxed "\\boxed{\\{1} }")
    -- a model that repeats itself: one pass, not one for each that is open
    local begun = os.clock()
    assert.equal("8", answer.boxed("\\boxed{8} " .. ("\\boxed{"):rep(20000)))
    assert.is_true(os.clock() - begun < 1)
    assert.equal("7", answer.marked "<answer>6</answer> <answer>7</answer>")
    assert.equal("72", answer.marked "48 + 24 = 72\n#### 72")
    assert.equal("42", answer.marked "The answer is **42**.")
    assert.is_nil(answer.marked "I do not know")
    assert.equal("-1,250.5", answer.last_number "from 3 to -1,250.5.")
  end)

  it("are the same when they mean the same", function()
    for _, pair in ipairs {
      { "1,234", "1234" }, { "\\frac{1}{2}", "0.5" }, { "\\dfrac12", "1/2" }, { "50\\%", "0.5" }, { "50%", "50" }, { "$5.00", "5" },
      { "5\\text{ cm}", "5 cm" }, { "5 apples", "5" }, { "(1,2)", "(1, 2)" }, { "1,2", "2, 1" }, { "2 1/2", "2.5" }, { "x = 3", "3" },
      { "Yes.", "yes" }, { "the cat", "Cat" }, { "1e3", "1000" }, { "3\\times10^{2}", "300" },
      { "10^{3}", "1000" }, { "2^-2", "0.25" }, { "\\sqrt{3}", "\\sqrt3" },
      { "-\\frac{3}{4}", "-0.75" }, { "90^\\circ", "90" }, { "\\text{Monday}", "monday" }, { "1000000", "1,000,000" }, { "+7", "7" },
      { "\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\frac{\\pi}{2})" }, { "\\(12\\)", "12" }, { "\\$1{,}000", "1{,}000" } } do
      assert.is_true(answer.same(pair[1], pair[2]), pair[1] .. " and " .. pair[2])
      assert.is_true(answer.same(pair[2], pair[1]), pair[2] .. " and " .. pair[1])
    end
    for _, pair in ipairs { { "12", "13" }, { "10", "1" }, { "0.333", "1/3" }, { "(1,2)", "(2,1)" }, { "5 cm", "5 m" }, { "12,34", "1234" },
                            { "[1,2)", "[1,2]" }, { "1,2", "1,2,3" }, { "yes", "no" }, { "1,1,2", "1,2,2" }, { "", "0" } } do
      assert.is_false(answer.same(pair[1], pair[2]), pair[1] .. " and " .. pair[2])
    end
  end)

  it("have one key where they are the same", function()
    assert.equal("57", answer.key "72 - 15 = 57\n\\boxed{57}")
    assert.equal(answer.key "\\boxed{0.5}", answer.key "<answer>\\frac12</answer>")
    assert.equal("i don't know", answer.key " I don't know. ")
    assert.is_nil(answer.key "  ")
  end)

  it("survive anything", function()
    for _, text in ipairs { "\\boxed{" .. ("{"):rep(2000), ("\\frac"):rep(500), "\\text{", ("("):rep(300) .. ",", "9" .. ("9"):rep(400),
                            "\255\254", "\\boxed{}", ("1,"):rep(500) } do
      assert.is_boolean(answer.same(text, "1"))
      answer.key(text)
    end
  end)
end)

describe("expressions", function()
  it("have exact values, and nothing is run", function()
    assert.same({ 7, 1 }, (expression.value "2 * (3 + 1/2)"))
    assert.same({ 1, 1 }, (expression.value "1/3 + 1/3 + 1/3"))
    assert.same({ -2, 1 }, (expression.value "-(1 + 1)"))
    assert.same({ 12, 1 }, (expression.value "3 × 8 ÷ 2"))
    for text, why in pairs { ["os.exit()"] = "'o' has no place", ["1/0"] = "division by zero", [""] = "cut off", ["2 3"] = "follows",
                             ["(1"] = "not closed", ["2^3"] = "'%^' has no place", ["1//2"] = "expected before '/'", ["1 = 1"] = "'='" } do
      local value, reason = expression.value(text)
      assert.is_nil(value)
      assert.matches(why, reason)
    end
    assert.is_nil((expression.value(("("):rep(3000) .. "1")))
    assert.is_nil((expression.value(("99999999*"):rep(20) .. "1")))
  end)

  it("solve a puzzle with each number once", function()
    assert.is_true(expression.makes("26 + 9 - (85 - 84)", { 26, 9, 85, 84 }, 34))
    assert.is_true(expression.makes("5 / (1 - 4/5) - 1", { 5, 1, 4, 5, 1 }, 24))
    assert.is_false((expression.makes("26 + 9 - 1", { 26, 9, 85, 84 }, 34)))
    assert.is_false((expression.makes("26 + 9 - (85 - 84)", { 26, 9, 85, 84 }, 35)))
    assert.is_false((expression.makes("34", { 26, 9, 85, 84 }, 34)))
  end)
end)

describe("rewards", function()
  it("for accuracy compare with the reference, whatever form it has", function()
    assert.equal(1.0, accuracy("17 + 25 = 42 \\boxed{42}", 42))
    assert.equal(1.0, accuracy("The result is 178,377.", "178377"))
    assert.equal(0.0, accuracy("\\boxed{41}", 42))
    assert.equal(1.0, accuracy("\\boxed{41}", { 40, 41 }))
    assert.equal(1.0, accuracy("#### 18", "She makes 18.\n#### 18"))
    assert.equal(0.0, accuracy("no number", 42))
    assert.equal(1.0, accuracy("so <answer>(3 + 4) * 5</answer>", { nums = { 3, 4, 5 }, target = 35 }))
    assert.equal(0.0, accuracy("so <answer>3 + 4 * 5</answer>", { nums = { 3, 4, 5 }, target = 35 }))
    assert.equal(0.5, accuracy("x", function(text) return text == "x" and 0.5 end))
    assert.equal(0.0, (reward.accuracy { strict = true } { text = "It is 42", reference = 42 }))
    -- thoughts are no answer
    assert.equal(0.0, (reward.accuracy { text = "\\boxed{42}</think>I give up", reference = 42 }))
    local value, why = reward.accuracy { answer = "\\boxed{41}", think = "", reference = 42 }
    assert.equal(0.0, value)
    assert.equal("the answer is 41, not 42", why)
  end)

  it("for pocket's own solutions are 1", function()
    for _, row in ipairs(helper.jsonl "examples/pocket/heldout_math.jsonl") do assert.equal(1.0, accuracy(row.solution, row.answer)) end
    for _, row in ipairs(helper.jsonl "examples/pocket/heldout_countdown.jsonl") do
      assert.equal(1.0, accuracy("<answer>" .. row.example .. "</answer>", { nums = row.nums, target = row.target }))
    end
  end)

  it("for Countdown may pay a little for the form", function()
    local puzzle = { nums = { 3, 4 }, target = 7 }
    local f = reward.countdown { partial = 0.1 }
    assert.equal(1.0, (f { text = "<answer>3 + 4</answer>", reference = puzzle }))
    assert.equal(0.1, (f { text = "<answer>3 * 4</answer>", reference = puzzle }))
    assert.equal(0.0, (f { text = "3 + 4", reference = puzzle }))
  end)

  it("for programs are the share of tests that pass in the fence", function()
    local good = "Here:\n```lua\nfunction add(a, b) return a + b end\n```\nDone."
    local f = reward.tests { tests = { "assert(add(1, 2) == 3)", { call = "add", args = { 2, 2 }, expected = 4 },
                                       { call = "add", args = { 1, {} }, error = true } } }
    assert.equal(1.0, (f { text = good }))
    local half, why = f { text = "```lua\nlocal M = {}\nfunction M.add(a, b) return 3 end\nadd = M.add\nreturn M\n```" }
    assert.is_near(1 / 3, half, 1e-9)
    assert.matches("^test %d: ", why)
    assert.equal(0.0, (f { text = "no program" }))
    assert.equal(0.0, (f { text = "```lua\nfunction add(\n```" }))
    assert.equal(0.0, (f { text = "```lua\nfunction other() end\n```" }))       -- its absence is no error that a test asks for
    assert.equal(0.0, (reward.tests { all = true } { text = good, reference = { "assert(add(1, 2) == 4)", "assert(true)" } }))
    local list = { { call = "f", args = { { 1, { a = "x" } } }, expected = { { 1, { a = "x" } }, 0.3 } } }
    assert.equal(1.0, (reward.tests { text = "```\nfunction f(t) print('hi') return { t, 0.1 + 0.2 } end\n```", reference = list }))
  end)

  it("for programs know a module that ends in the line of another statement", function()
    local tests = { { call = "add", args = { 1, 2 }, expected = 3 }, "assert((M or _G).add(1, 1) == 2)" }
    for _, code in ipairs { "local M = {} function M.add(a, b) return a + b end return M",
                            "function add(a, b) local c = a + b return c end",
                            "local M = {}\nfunction M.add(a, b) return a + b end; return M;" } do
      assert.equal(1.0, (reward.tests { tests = tests } { text = "```lua\n" .. code .. "\n```" }))
    end
  end)

  it("for programs cannot be had by a program that is its own judge", function()
    local list = { "assert(f() == 1)", { call = "f", expected = 1 } }
    for _, code in ipairs { "assert = function() end error = assert function f() return 2 end", "os.exit()", "return 1",
                            "function f() while true do end end", "print('h1') error = nil pcall = nil", "do return 'x' end",
                            "f = setmetatable({}, { __call = function() return 2 end, __eq = function() return true end })",
                            "function f() return setmetatable({}, { __eq = function() return true end }) end" } do
      local got = reward.tests { tests = list, limits = { instructions = 100000 } } { text = "```lua\n" .. code .. "\n```" }
      assert.equal(0.0, got, code)
    end
    for _, meta in ipairs { "__eq = function() return true end", "__index = function() return 7 end" } do
      local code = "```lua\nfunction f() return setmetatable({}, { " .. meta .. " }) end\n```"
      assert.equal(0.0, (reward.tests { text = code, reference = { { call = "f", expected = { 7 } } } }))
    end
  end)

  it("for form look at thoughts and answer", function()
    assert.equal(1.0, (reward.format { text = "a</think>b", think = "a", answer = "b", finish = "stop" }))
    assert.equal(1.0, (reward.format { text = "<think>a</think>b" }))
    assert.equal(0.0, (reward.format { text = "b" }))
    assert.equal(1.0, (reward.format { think = false } { text = "b" }))
    assert.equal(0.0, (reward.format { text = "a</think>b", finish = "length" }))
    assert.equal(0.0, (reward.format { text = "a</think>" }))
    local f = reward.format { tags = { "answer" } }
    assert.equal(1.0, (f { text = "a</think><answer>1</answer>" }))
    assert.equal(0.0, (f { text = "a</think><answer>1</answer><answer>2</answer>" }))
    assert.equal(0.0, (f { text = "a</think></answer>1<answer>" }))
    assert.equal(0.0, (reward.format { boxed = true } { text = "a</think>1" }))
    assert.equal(1.0, (reward.format { pattern = "^%d+$" } { text = "a</think>1" }))
  end)

  it("for language are the share of words in the script that was asked for", function()
    assert.equal(1.0, (reward.language { prompt = "How many?", text = "We add `代码` and $x 加$ the two.", reference = 1 }))
    assert.equal(0.5, (reward.language { prompt = "How many?", text = "two plus 两 个", reference = 1 }))
    assert.equal(0.75, (reward.language { target = "zh" } { text = "一加二 two" }))
    assert.equal(1.0, (reward.language { target = "ja" } { text = "これは日本" }))
    assert.equal(1.0, (reward.language { prompt = "x", text = "12 + 3" }))
    assert.is_near(0.0, (reward.language { target = "ru", of = "answer" } { text = "да</think>no" }), 1e-9)
    assert.is_number((reward.language { text = "\255\254 bad bytes" }))
    raises("target' must be one of", function() reward.language { target = "klingon" } end)
  end)

  it("for length fall to 0 at the most", function()
    local f = reward.length { max = 100, buffer = 50 }
    local function at(n, g) return ((g or f) { text = "x", usage = { completion = n } }) end
    assert.equal(1.0, at(50))
    assert.equal(0.5, at(75))
    assert.equal(0.0, at(100))
    local cosine = reward.length { max = 100, shape = "cosine" }
    assert.is_near(0.5, at(50, cosine), 1e-9)
    assert.is_true(at(10, cosine) > at(20, cosine))
    assert.equal(0.0, at(3, reward.length { max = 100, min = 5 }))
    assert.equal(1.0, (reward.length { text = "a few words" }))
  end)

  it("by votes of a judge lie between 0 and 1", function()
    local mock = fathom.mock { replies = { "Score: 10", "Score: 1", "[[A]]", "[[B]]" } }
    local f = reward.judge(fathom.judge(mock, { votes = 2, seed = 1 }))
    assert.equal(0.5, (f { prompt = "Q", text = "A" }))
    local g = reward.judge(mock, { against = "reference", judge = { votes = 1 } })
    assert.equal(1.0, (g { prompt = { { role = "user", content = "Q" } }, text = "x", reference = "y" }))
    assert.matches("Answer B:\ny", mock.calls[3].messages[1].content)
    raises("no prompt", function() f { text = "x" } end)
    raises("expected a backend", function() reward.judge {} end)
  end)

  it("are summed with weights", function()
    local f = reward.sum { { reward.accuracy, 1, name = "right" }, { reward.format, 0.2 }, function() return 0.5 end }
    local value, parts = f { text = "t</think>\\boxed{3}", reference = 3 }
    assert.is_near(1.7, value, 1e-9)
    assert.equal("right", parts[1].name)
    assert.equal(0.2, parts[2].weight)
    raises("part 1 must be", function() reward.sum { 3 } end)
    raises("no parts", function() reward.sum {} end)
  end)

  it("say what is wrong with a call", function()
    raises("expected a sample", function() reward.length { max = 3 } {} end)
    raises("unknown option 'maxx' %(did you mean 'max'%?%)", function() reward.length { maxx = 3 } end)
    raises("no reference", function() reward.accuracy { text = "x" } end)
    raises("there are no tests", function() reward.tests { text = "x" } end)
    raises("'pattern' must be a pattern of Lua", function() reward.format { pattern = "%" } end)
    raises("test 1 must be a text or", function() reward.tests { tests = { 5 } } { text = "```lua\nx = 1\n```" } end)
  end)
end)

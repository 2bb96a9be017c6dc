--- pin_spec.lua - pipelines that are held to a recorded trace, offline.
local fathom = require "fathom"
local helper = require "spec.helper"
local pin = require "fathom.pin"

local function ask(text) return { { role = "user", content = text } } end

-- Two questions, the second in a session with turns, samples and a schema.
local function pipeline(seen)
  return function(backend)
    local sum = assert(backend:generate(ask(seen.first or "What is 17 + 25?"), { temperature = seen.temperature or 0 }))
    local talk <close> = assert(backend:session { temperature = 0.7, think = false })
    local hello = assert(talk:ask("Hello!"):wait())
    local who = assert(talk:ask("Who are you?"):wait())
    local votes = assert(talk:sample("Is 7 a prime number?", { n = 3, seed = 5 }))
    if not seen.less then assert(talk:ask("What is the capital of France?"):wait()) end
    seen.texts = { sum.answer, hello.answer, who.answer, votes[1].answer, votes[3].answer }
  end
end

describe("a pin", function()
  local path, now
  setup(function()
    path = os.tmpname()
    os.remove(path)
    now = {}
    pin.test(path, pipeline(now))()
  end)
  teardown(function() os.remove(path) end)

  it("is recorded when it is not there, without what changes from one recording to the next", function()
    local lines = helper.jsonl(path)
    assert.equal(7, #lines)
    assert.matches("42", lines[1].answer)
    assert.is_nil(lines[1].at or lines[1].ms or lines[1].asked.seed or lines[1].usage.decode_ms)
    assert.same({ 5, 0, 1, 2 }, { lines[4].asked.seed, lines[4].sample, lines[5].sample, lines[6].sample })
  end)

  it("answers the same requests without a model", function()
    local offline = {}
    pin.test(path, pipeline(offline), { backend = function() error "no model is needed" end })()
    assert.same(now.texts, offline.texts)
  end)

  local function fails(why, seen)
    local ok, err = pcall(pin.test(path, pipeline(seen)))
    assert.is_false(ok)
    assert.matches(why, tostring(err))
  end

  it("fails at the first request that differs, and shows where", function()
    fails('request 1 is not in .*messages%[1%]%.content.*recorded: "What is 17 %+ 25%?".*now: +"What is 17 %+ 26%?"',
          { first = "What is 17 + 26?" })
    fails("options%.temperature\n +recorded: 0\n +now: +1", { temperature = 1 })
  end)

  it("fails when fewer requests are made", function() fails("1 of the requests .* were not made", { less = true }) end)

  it("fails though the pipeline hides its errors", function()
    local ok, err = pcall(pin.test(path, function(backend) pcall(backend.generate, backend, ask "Something else") end))
    assert.is_false(ok)
    assert.matches("Something else", err)
  end)

  it("shows the line of a long prompt that differs", function()
    local long = os.tmpname()
    local function test(word) return pin.test(long, function(backend) backend:generate(ask("one\ntwo\n" .. word .. "\nfour")) end) end
    os.remove(long)
    test("three")()
    local ok, err = pcall(test "drei")
    os.remove(long)
    assert.is_false(ok)
    assert.matches('line 3\n +recorded: "three"\n +now: +"drei"', err)
  end)

  it("takes the trace of a model's run as well: the same requests, the same replies, whatever the order", function()
    local model <close> = assert(fathom.load(fathom.pocket, { seqs = 4 }))
    local spans, first = {}, {}
    local listener = fathom.trace(function(s) spans[#spans + 1] = s end)
    pipeline(first)(model)
    listener:close()
    local offline, state = pin.backend(spans)
    local again = {}
    pipeline(again)(offline)
    assert.same(first.texts, again.texts)
    assert.equal(0, state:rest())
    assert.is_nil(state.err)
  end)

  it("takes the trace of another kind of backend", function()
    local spans = {}
    local listener = fathom.trace(function(s) spans[#spans + 1] = s end)
    local backend <close> = fathom.mock { replies = { "one", "<think>easy</think>two" } }
    local function run(b)
      local r = assert(b:generate(ask "a", { logit_bias = { [3] = 1.5 } }))
      local t = assert(b:generate(ask "b", { seed = 9, schema = { x = "integer" } }))
      return { r.answer, t.think, t.answer }
    end
    local texts = run(backend)
    listener:close()
    local offline, state = pin.backend(spans)
    assert.same(texts, run(offline))
    assert.equal(0, state:rest())
  end)

  it("holds a judge and an agent, votes and tools and all", function()
    local file = os.tmpname()
    os.remove(file)
    local function run(seen, seed)
      return function(backend)
        local judge = fathom.judge(backend, { votes = 3, seed = seed })
        local r = assert(judge:compare("What is 8 + 5?", "\\boxed{13}", "\\boxed{14}"))
        local agent = fathom.agent(backend, { seed = 1, temperature = 0, tools = { calculator = {
          doc = "Evaluate an arithmetic expression.", args = { expression = "string" }, run = function() return "178377" end } } })
        local done = assert(agent:start("What is 4821 * 37?"):wait())
        seen.winner, seen.agreement, seen.text = r.winner, r.agreement, done.text
      end
    end
    local a, b = {}, {}
    pin.test(file, run(a, 4))()
    pin.test(file, run(b, 4), { backend = function() error "no model is needed" end })()
    assert.same(a, b)
    assert.matches("178377", a.text)
    local ok, err = pcall(pin.test(file, run(b, 5)))
    os.remove(file)
    assert.is_false(ok)
    assert.matches("options.seed.*a judge or an agent that is given a seed", err)
  end)

  it("replays tool calls and failures", function()
    local tools = { calculator = { doc = "Evaluate an arithmetic expression.", args = { expression = "string" } } }
    local file = os.tmpname()
    os.remove(file)
    local function run(seen)
      return function(backend)
        local talk <close> = assert(backend:session { tools = tools, temperature = 0 })
        local r = assert(talk:ask("What is 4821 * 37?"):wait())
        seen.call = r.tool_calls[1]
        seen.answer = assert(talk:ask({ role = "tool", content = "178377" }):wait()).answer
        local _, err = backend:generate(ask(("x "):rep(3000)))
        seen.err = err and err.code
      end
    end
    local a, b = {}, {}
    pin.test(file, run(a))()
    pin.test(file, run(b), { backend = function() error "no model is needed" end })()
    os.remove(file)
    assert.equal("4821 * 37", a.call.arguments.expression)
    assert.same(a.call.arguments, b.call.arguments)
    assert.same({ a.answer, "overflow" }, { b.answer, b.err })
  end)

  it("says what is wrong with its file", function()
    local broken = os.tmpname()
    helper.write(broken, "nonsense\n{}\n")
    local none, err = pin.backend(broken)
    assert.is_nil(none)
    assert.matches("line 1", err.message)
    helper.write(broken, '{"kind": "generate", "messages": ["x"], "asked": 5, "options": 5}\n')
    assert.equal(1, select(2, assert(pin.backend(broken))):rest())
    helper.write(broken, '{"kind": "generate", "messages": [{"role": "user", "content": "a"}], "asked": {}, "err": "gone"}\n')
    none, err = assert(pin.backend(broken)):generate "a"
    assert.is_nil(none)
    assert.equal("gone", err.message)
    os.remove(broken)
    assert.has_error(function() pin.test(3, print) end)
    assert.has_error(function() pin.test("x", "y") end)
  end)
end)

-- Agents: what they make of a model's calls, of limits, of being stuck. A scripted backend says what a model would.
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"

local function call(name, arguments) return { tool_calls = { { name = name, arguments = arguments } } } end

-- An agent over replies, and what its tool add was asked.
local function adder(replies, opts)
  local asked = {}
  local o = { tools = { add = { doc = "Adds.", args = { a = "integer", b = "integer" }, run = function(args)
    asked[#asked + 1] = args
    return args.a + args.b
  end } } }
  for k, v in pairs(opts or {}) do o[k] = v end
  local mock = fathom.mock { replies = replies }
  return fathom.agent(mock, o), asked, mock
end

local function run(agent, goal, opts) return assert(agent:start(goal or "Add 2 and 3.", opts):wait()) end

-- The outputs that the model was given, in order.
local function outputs(result)
  local list = {}
  for _, m in ipairs(result.transcript) do
    if m.role == "tool" then list[#list + 1] = m.content end
  end
  return list
end

describe("an agent", function()
  it("calls tools and answers", function()
    local agent, asked = adder { call("add", { a = 2, b = 3 }), "<think>easy</think>It is 5." }
    local r = run(agent)
    assert.are.equal("It is 5.", r.text)
    assert.are.equal("easy", r.think)
    assert.are.equal("stop", r.finish)
    assert.are.equal(2, r.steps)
    assert.are.equal(0, r.takeovers)
    assert.are.same({ { a = 2, b = 3 } }, asked)
    assert.are.same({ { name = "add", arguments = { a = 2, b = 3 }, output = "5", step = 1 } }, r.calls)
    assert.are.same({ "user", "assistant", "tool", "assistant" }, { r.transcript[1].role, r.transcript[2].role, r.transcript[3].role,
                                                                     r.transcript[4].role })
    assert.is_true(r.usage.completion > 0)
  end)

  it("takes no file that somebody edited for a run", function()
    local folder, remove = helper.folder()
    local path, agent = folder .. "/run", (adder { "ok" })
    local sound = { goal = "x", turn = { { role = "user", content = "x" } }, calls = {}, since = 0, steps = 0, invalid = 0,
                    takeovers = 0, seconds = 0.5, usage = { prompt = 0, cached = 0, completion = 0 } }
    local function restore(changes, messages)
      local state = json.decode(json.encode(sound))
      for name, value in pairs(changes) do state[name] = value end
      helper.write(path, json.encode { format = "fathom agent run 1", state = json.object(state), messages = messages })
      return agent:restore(path)
    end
    assert.are.equal("ok", assert(assert(restore({}, json.array {})):wait()).text)
    for name, value in pairs { goal = 5, turn = { { role = "usr", content = "x" } }, calls = { "x" }, usage = 5, steps = "a",
                              since = -1 } do
      local t, err = restore({ [name] = value }, json.array {})
      assert.is_nil(t)
      assert.are.equal("format", err.code)
    end
    local t, err = restore({}, 7)
    assert.is_nil(t)
    assert.matches("damaged: messages", err.message)
    t, err = restore({ turn = json.array {} }, json.array {})
    assert.is_nil(t)
    assert.matches("nothing to go on with", err.message)
    t, err = restore {}
    assert.is_nil(t)
    assert.are.equal("unsupported", err.code)
    remove()
  end)

  it("gives results that survive JSON", function()
    local agent = adder { call("add", { a = 2, b = 3 }), "5" }
    local r = run(agent)
    assert.are.same(json.decode(json.encode(r)), r)
  end)

  it("is closed like everything else: what runs is cancelled", function()
    local mock = fathom.mock { replies = { "a b c d" } }
    local t, kept
    do
      local agent <close> = fathom.agent(mock)
      kept, t = agent, agent:start "Go."
      mock:step {}
      assert.is_false(t.done)
    end
    assert.are.equal("cancelled", assert(t:wait()).finish)
    kept:close()
    assert.has_error(function() kept:start "Go." end, "attempt to use a closed agent")
  end)

  it("raises what a hook of the caller's raises, from wait", function()
    local same = call("add", { a = 1, b = 1 })
    for _, hooks in ipairs { { approve = function() error "a slip" end }, { on_event = function() error "a slip" end },
                             { takeover = function() error "a slip" end }, { stuck = function() error "a slip" end } } do
      local t = adder({ same, same, same, "ok" }, hooks):start "Go."
      local ok, err = pcall(t.wait, t)
      assert.is_false(ok)
      assert.matches("^[^:]*agent_spec.lua:%d+: a slip$", err)
      assert.is_true(t.done)
    end
    local ok, err = pcall(run, (adder({ same, same, same }, { takeover = function() return { sya = "x" } end })))
    assert.is_false(ok)
    assert.are.equal("fathom.agent: takeover: unknown option 'sya' (did you mean 'say'?)", err)
  end)

  it("answers without tools, too", function()
    assert.are.equal("Hello.", run(fathom.agent(fathom.mock { replies = { "Hello." } }), "Hi").text)
  end)

  it("takes messages as a goal", function()
    local agent, _, mock = adder { "ok" }
    run(agent, { { role = "system", content = "Be brief." }, { role = "user", content = "Go." } })
    assert.are.same({ "system", "user" }, { mock.calls[1].messages[1].role, mock.calls[1].messages[2].role })
  end)

  it("makes several calls of one reply, and their outputs come in order", function()
    local both = { { name = "add", arguments = { a = 1, b = 1 } }, { name = "add", arguments = { a = 2, b = 2 } } }
    local agent = adder { { tool_calls = both }, "done" }
    assert.are.same({ "2", "4" }, outputs(run(agent)))
  end)

  it("lets calls of one reply that wait do so together", function()
    local order = {}
    local function slow(name, turns)
      return { doc = "", run = function()
        for i = 1, turns do order[#order + 1] = name .. i; coroutine.yield() end
        return name
      end }
    end
    local agent = fathom.agent(fathom.mock { replies = { { tool_calls = { { name = "x" }, { name = "y" } } }, "done" } },
                               { tools = { x = slow("x", 3), y = slow("y", 2) } })
    assert.are.same({ "x", "y" }, outputs(run(agent)))
    assert.are.equal("x1 y1 x2 y2 x3", table.concat(order, " "))
  end)

  it("runs beside others on one backend", function()
    local mock = fathom.mock { replies = function(messages)
      local last = messages[#messages]
      return last.role == "tool" and "got " .. last.content or call("wait", { name = messages[1].content })
    end }
    local order = {}
    local agent = fathom.agent(mock, { tools = { wait = { args = { name = "string" }, run = function(args)
      for _ = 1, 3 do order[#order + 1] = args.name; coroutine.yield() end
      return args.name
    end } } })
    local a, b = agent:start "a", agent:start "b"
    while mock:step { ms = 1 } do end
    assert.is_true(a.done and b.done)
    assert.are.equal("got a", a.result.text)
    assert.are.equal("got b", b.result.text)
    local turns = table.concat(order, " ")
    assert.is_true(turns == "a b a b a b" or turns == "b a b a b a", turns)
  end)

  it("lets others go on while a fenced program works", function()
    local mock = fathom.mock { replies = function(messages)
      local last = messages[#messages]
      if last.role == "tool" then return last.content end
      return call("lua", { code = "local n = 0 for i = 1, " .. messages[1].content .. " do n = n + 1 end return n" })
    end }
    local agent = fathom.agent(mock, { tools = { lua = fathom.tools.lua { instructions = 1 << 40, seconds = 20 } } })
    local long, short = agent:start "3000000", agent:start "10"
    while not short.done do mock:step {} end
    assert.is_false(long.done)
    assert.are.equal("10", short.result.text)
    assert.are.equal("3000000", assert(long:wait()).text)
  end)

  it("streams the pieces of all its replies", function()
    local agent, parts = adder { call("add", { a = 2, b = 3 }), "It is 5." }, {}
    for text, info in agent:start("go"):pieces() do
      if info.channel == "answer" then parts[#parts + 1] = text end
    end
    assert.are.equal("It is 5.", table.concat(parts))
  end)

  it("tells what happens", function()
    local seen = {}
    local agent = adder({ call("add", { a = 2, b = 3 }), call("sub", {}), "5" }, { on_event = function(kind, data)
      seen[#seen + 1] = kind
      assert.are.equal("table", type(data))
    end })
    run(agent)
    assert.are.equal("reply call output reply invalid reply finish", table.concat(seen, " "))
  end)
end)

describe("a call that is wrong", function()
  local cases = {
    { "of a tool that is not there", call("ad", { a = 1, b = 1 }), "error: unknown tool 'ad' (did you mean 'add'?)" },
    { "that lacks an argument", call("add", { a = 1 }), "error: add: arguments lacks 'b'" },
    { "with an argument too many", call("add", { a = 1, b = 1, bb = 2 }),
      "error: add: there is no argument 'bb' (did you mean 'b'?)" },
    { "with an argument of the wrong type", call("add", { a = 1, b = "x" }),
      "error: add: arguments.b must be of type integer, got string" },
    { "whose arguments are no JSON", call("add", "{a: 1}"),
      "error: the arguments of add could not be read: JSON, byte 2: a key was expected" },
    { "whose arguments are no object", call("add", "5"),
      "error: the arguments of add could not be read: the arguments are no JSON object" },
  }
  for _, case in ipairs(cases) do
    it(case[1] .. " is told so, and the model may try again", function()
      local agent, asked = adder { case[2], call("add", { a = 2, b = 3 }), "5" }
      local r = run(agent)
      assert.are.same({ case[3], "5" }, outputs(r))
      assert.are.equal(1, #asked)
      assert.is_true(r.calls[1].error)
      assert.are.equal("stop", r.finish)
    end)
  end

  it("too often in a row ends in a takeover", function()
    local agent = adder({ call("no"), call("no"), call("no"), call("no"), call("no") }, { retries = 2 })
    local r = run(agent)
    assert.are.equal("takeover", r.finish)
    assert.are.equal(3, r.steps)
    assert.matches("made no sense", r.why)
  end)

  it("takes whole floats for integers", function()
    local agent, asked = adder { call("add", '{"a": 2.0, "b": 3}'), "5" }
    run(agent)
    assert.are.equal("integer", math.type(asked[1].a))
  end)
end)

describe("a tool", function()
  local function output(f, more)
    local tool = { run = f }
    for k, v in pairs(more or {}) do tool[k] = v end
    local agent = fathom.agent(fathom.mock { replies = { call "t", "ok" } }, { tools = { t = tool } })
    return outputs(run(agent))[1]
  end

  it("that raises is an observation", function()
    assert.are.equal("error: boom", output(function() error "boom" end))
    assert.are.equal("error: no disk", output(function() error({ message = "no disk" }) end))
    assert.matches("^error: attempt to index a nil value", output(function() local t = nil; return t.x end))
  end)

  it("that gives nil and why is an observation", function()
    assert.are.equal("error: timeout", output(function() return nil, "timeout" end))
    assert.are.equal("error: timeout", output(function() return nil, "error: timeout" end))
  end)

  it("gives text as it is and other data as JSON", function()
    assert.are.equal("a b", output(function() return "a b" end))
    assert.are.equal("7", output(function() return 7 end))
    assert.are.equal('{"x": [1, 2]}', output(function() return { x = { 1, 2 } } end))
    assert.are.equal("false", output(function() return false end))
    assert.are.equal("done", output(function() end))
    assert.matches("^error: the tool gave something that is no data", output(function() return print end))
  end)

  it("is held to what it promises to return", function()
    assert.are.equal("3", output(function() return 3 end, { returns = "integer" }))
    assert.are.equal("error: the tool t failed: its value must be of type integer, got string",
                     output(function() return "x" end, { returns = "integer" }))
  end)

  it("has its output cut between characters", function()
    local agent = fathom.agent(fathom.mock { replies = { call "t", "ok" } },
                               { output_bytes = 16, tools = { t = { run = function() return ("ä"):rep(20) end } } })
    local text = outputs(run(agent))[1]
    assert.matches("40 bytes in all", text)
    assert.truthy(utf8.len(text))
  end)

  it("hears of the run's context", function()
    local agent = fathom.agent(fathom.mock { replies = { call "t", "ok" } },
                               { tools = { t = { run = function(_, about) return about.context.name .. about.step end } } })
    assert.are.same({ "x1" }, outputs(run(agent, "go", { context = { name = "x" } })))
  end)

  it("that is described wrongly is refused when the agent is made", function()
    local function wrong(tools, what)
      local ok, err = pcall(fathom.agent, fathom.mock { replies = {} }, { tools = tools })
      assert.is_false(ok)
      assert.matches(what, err)
    end
    wrong({ t = { doc = "" } }, "option 'run' is missing")
    wrong({ t = { doc = "", arg = {}, run = print } }, "did you mean 'args'")
    wrong({ t = { args = { x = "strin" }, run = print } }, "args: schema: expected a word")
    wrong({ { run = print } }, "has no name")
    assert.has_error(function() fathom.agent(5) end)
    assert.has_error(function() fathom.agent(fathom.mock { replies = {} }, { limits = { turn = 1 } }) end)
    assert.has_error(function() fathom.agent(fathom.mock { replies = {} }, { tool = {} }) end)
  end)
end)

describe("approval", function()
  local function approved(approve)
    local agent, asked = adder({ call("add", { a = 2, b = 3 }), "ok" }, { approve = approve })
    return outputs(run(agent))[1], asked
  end

  it("lets calls through, or not, with a reason", function()
    assert.are.equal("5", (approved(function() return true end)))
    local text, asked = approved(function(c) return c.name ~= "add", "no sums today" end)
    assert.are.equal("error: not allowed: no sums today", text)
    assert.are.equal(0, #asked)
    assert.are.equal("error: not allowed", (approved(function() end)))
  end)

  it("may change the arguments", function()
    local text, asked = approved(function(c) return { a = c.arguments.a * 10, b = c.arguments.b } end)
    assert.are.equal("23", text)
    assert.are.equal(20, asked[1].a)
  end)

  it("that changes them into wrong ones fails the run", function()
    local agent = adder({ call("add", { a = 2, b = 3 }), "ok" }, { approve = function() return { a = "x" } end })
    local r, err = agent:start("go"):wait()
    assert.is_nil(r)
    assert.matches("approve gave other arguments", tostring(err))
  end)
end)

describe("limits", function()
  local function endless(limits, more)
    local o = { limits = limits }
    for k, v in pairs(more or {}) do o[k] = v end
    local n = 0
    return adder(function() n = n + 1 return call("add", { a = n, b = 1 }) end, o)
  end

  it("end a run by turns", function()
    local r = run((endless { turns = 4 }))
    assert.are.equal("limit", r.finish)
    assert.are.equal("turns", r.limit)
    assert.are.equal(4, r.steps)
    assert.matches("no more than 4 turns", r.why)
    assert.are.equal(32, run((endless {})).steps)
  end)

  it("end a run by tokens", function()
    local r = run((endless { tokens = 5 }))
    assert.are.equal("tokens", r.limit)
    assert.are.equal(5, r.usage.completion)
  end)

  it("end a run by seconds, also while a reply is under way", function()
    local r = run((endless { seconds = 0 }))
    assert.are.equal("seconds", r.limit)
    assert.are.equal(0, r.steps)
    local agent = fathom.agent(fathom.mock { replies = { ("word "):rep(1 << 16) } }, { limits = { seconds = 0.02 } })
    assert.are.equal("seconds", run(agent).limit)
  end)

  it("end a call that waits too long", function()
    local closed = false
    local agent = fathom.agent(fathom.mock { replies = { call "wait", "never asked" } }, { limits = { seconds = 0.02 }, tools = {
      wait = { run = function()
        local guard <close> = setmetatable({}, { __close = function() closed = true end })
        while guard do coroutine.yield() end
      end } } })
    local r = run(agent)
    assert.are.equal("seconds", r.limit)
    assert.are.same({ "error: the time of the run is over" }, outputs(r))
    assert.is_true(closed)
  end)

  it("leave a run that is cancelled with what it had", function()
    local agent = fathom.agent(fathom.mock { replies = { ("word "):rep(1000) } })
    local t = agent:start "go"
    t:cancel()
    assert.is_true(t.done)
    assert.are.equal("cancelled", t.result.finish)
    assert.are.same({ { role = "user", content = "go" } }, t.result.transcript)
  end)
end)

describe("takeover", function()
  local same = call("add", { a = 1, b = 1 })

  it("is called for when the same call is made again and again", function()
    local summary, state
    local agent = adder({ same, same, same, "ok" }, { takeover = function(text, s) summary, state = text, s return "Stop that." end })
    local r = run(agent)
    assert.are.equal("stop", r.finish)
    assert.are.equal(1, r.takeovers)
    assert.are.equal(1 / 4, r.takeover_rate)
    assert.matches("Stuck: the same call was made 3 times: add", summary)
    assert.matches("Goal: Add 2 and 3", summary)
    assert.are.equal(3, #state.calls)
    assert.are.equal("Stop that.", r.transcript[#r.transcript - 1].content)
  end)

  it("is called for after errors in a row, and by calls that bring nothing new", function()
    local reason
    local function takeover(_, state) reason = state.reason return { answer = "enough" } end
    local n = 0
    local agent = adder(function() n = n + 1 return call("add", { a = n, b = "x" }) end, { takeover = takeover })
    assert.are.equal("enough", run(agent).text)
    assert.matches("3 calls in a row failed", reason)
    n = 0
    agent = adder(function() n = n + 1 return call("add", { a = n % 2, b = 1 }) end, { takeover = takeover, stuck = { idle = 4 } })
    assert.are.equal(6, run(agent).steps)
    assert.matches("the last 4 calls brought nothing new", reason)
  end)

  it("is not called for by rules that are off", function()
    local agent = adder({ same, same, same, same, same, "ok" }, { stuck = { repeats = false, idle = false }, takeover = error })
    assert.are.equal(0, run(agent).takeovers)
    assert.are.equal(0, run((adder { same, same, same, same, same, "ok" })).takeovers)
  end)

  it("may follow a rule of the caller's, which sees answers, too", function()
    local agent = adder({ "I am stuck.", "42" }, { takeover = function() return "Try again." end,
                                                   stuck = function(state) return state.text:find "stuck" and "it says so" end })
    local r = run(agent)
    assert.are.equal("42", r.text)
    assert.are.equal(1, r.takeovers)
  end)

  it("lets somebody act in the agent's place", function()
    local agent, asked = adder({ same, same, same, "ok" }, { takeover = function()
      return { calls = { { name = "add", arguments = { a = 20, b = 1 }, think = "Like this." } }, say = "Go on." }
    end })
    local r = run(agent)
    assert.are.equal(20, asked[4].a)
    assert.are.equal("takeover", r.calls[4].by)
    local n = #r.transcript
    assert.are.equal("Like this.", r.transcript[n - 3].reasoning_content)
    assert.are.equal("21", r.transcript[n - 2].content)
    assert.are.equal("Go on.", r.transcript[n - 1].content)
  end)

  it("answers an agent that asks for help by the output of its call", function()
    local agent, _, mock = adder({ call("ask_for_help", { question = "Which numbers?" }), "ok" },
                                 { help = true, takeover = function(summary, state)
                                   assert.matches("It asks: Which numbers?", summary, 1, true)
                                   return state.question:upper()
                                 end })
    local r = run(agent)
    assert.are.same({ "WHICH NUMBERS?" }, outputs(r))
    assert.are.equal(1, r.takeovers)
    assert.truthy(mock.calls[1].options.tools.ask_for_help)
  end)

  it("pauses a run where nobody is there, and takes it up with an answer", function()
    local agent = adder({ call("ask_for_help", { question = "Which?" }), call("add", { a = 2, b = 2 }), "four" }, { help = true })
    local t = agent:start "go"
    local r = assert(t:wait())
    assert.are.equal("takeover", r.finish)
    assert.are.equal("Which?", r.question)
    assert.matches("It asks: Which?", r.summary, 1, true)
    local rest = assert(agent:resume(t, "2 and 2"):wait())
    assert.are.equal("four", rest.text)
    assert.are.same({ "2 and 2", "4" }, outputs(rest))
    assert.are.equal(3, rest.steps)
    assert.are.equal(1, rest.takeovers)
    assert.has_error(function() agent:resume(t, "again") end)
  end)

  it("takes up a run that failed", function()
    local agent = adder { call("add", { a = 1, b = 1 }), { err = "network" }, "two" }
    local t = agent:start "go"
    local r, err = t:wait()
    assert.is_nil(r)
    assert.are.equal("network", err.code)
    assert.are.equal("two", assert(agent:resume(t):wait()).text)
  end)

  it("takes up a run that a hook ended, whatever the hook heard of", function()
    local heard = {}
    local function once(kind)
      heard[kind] = (heard[kind] or 0) + 1
      if heard[kind] == 1 then error("the hook of " .. kind, 0) end
    end
    local agent, asked = adder({ call("sub", { a = 2 }), call("add", { a = 1, b = 1 }), "two" }, { on_event = once })
    local t, ended = agent:start "go", {}
    while true do
      local ok, r = pcall(t.wait, t)
      if ok then
        assert.are.equal("two", r.text)
        assert.are.equal("stop", r.finish)
        local roles = {}
        for i, m in ipairs(r.transcript) do roles[i] = m.role end
        assert.are.equal("user assistant tool assistant tool assistant", table.concat(roles, " "))
        break
      end
      ended[#ended + 1] = r
      t = agent:resume(t)
    end
    assert.are.same({ "the hook of reply", "the hook of invalid", "the hook of call", "the hook of output", "the hook of finish" }, ended)
    assert.are.equal(1, #asked)                                  -- no call is made twice
  end)

  it("may wait for a person", function()
    local answer
    local agent, _, mock = adder({ same, same, same, "ok" }, { takeover = function()
      while not answer do coroutine.yield() end
      return answer
    end })
    local t = agent:start "go"
    for _ = 1, 20 do mock:step {} end
    assert.is_false(t.done)
    answer = "Here."
    assert.are.equal("ok", assert(t:wait()).text)
  end)
end)

describe("a run in a file", function()
  it("is taken up where it was", function()
    local folder, remove = helper.folder()
    local path = folder .. "/run"
    local tools = { add = { args = { a = "integer", b = "integer" }, run = function(args) return args.a + args.b end } }
    local first = fathom.agent(fathom.mock { replies = { call("add", { a = 1, b = 1 }), ("word "):rep(100) } }, { tools = tools })
    local t = first:start "go"
    for _ = 1, 10 do first.backend:step {} end
    assert.is_false(t.done)
    assert(first:save(t, path))
    t:cancel()
    local mock = fathom.mock { replies = { "two" } }
    local second = fathom.agent(mock, { tools = tools })
    local r = assert(assert(second:restore(path)):wait())
    assert.are.equal("two", r.text)
    assert.are.same({ "2" }, outputs(r))
    assert.are.equal(2, r.steps)
    assert.are.same({ "user", "assistant", "tool" }, { mock.calls[1].messages[1].role, mock.calls[1].messages[2].role,
                                                       mock.calls[1].messages[3].role })
    remove()
  end)

  it("does not make calls again that were over", function()
    local folder, remove = helper.folder()
    local path, made, free = folder .. "/run", {}, false
    local tools = { quick = { run = function() made[#made + 1] = "quick" return "q" end },
                    slow = { run = function()
                      made[#made + 1] = "slow"
                      while not free do coroutine.yield() end
                      return "s"
                    end } }
    local replies = { { tool_calls = { { name = "quick" }, { name = "slow" } } }, "done" }
    local first = fathom.agent(fathom.mock { replies = replies }, { tools = tools })
    local t = first:start "go"
    for _ = 1, 10 do first.backend:step {} end
    assert(first:save(t, path))
    t:cancel()
    free = true
    local second = fathom.agent(fathom.mock { replies = { "done" } }, { tools = tools })
    local r = assert(assert(second:restore(path)):wait())
    assert.are.same({ "quick", "slow", "slow" }, made)
    assert.are.same({ "q", "s" }, outputs(r))
    assert.are.equal("done", r.text)
    remove()
  end)

  it("that was handed over waits for somebody", function()
    local folder, remove = helper.folder()
    local path = folder .. "/run"
    local first = adder({ call("ask_for_help", { question = "?" }) }, { help = true })
    local t = first:start "go"
    t:wait()
    assert(first:save(t, path))
    local second = adder({ "ok" }, { help = true })
    local again = assert(second:restore(path))
    assert.are.equal("takeover", assert(again:wait()).finish)
    local r = assert(second:resume(again, "yes"):wait())
    assert.are.same({ "yes" }, outputs(r))
    remove()
  end)

  it("is refused where there is none, or another file", function()
    local agent = adder {}
    local t, err = agent:restore "/nowhere/run"
    assert.is_nil(t)
    assert.are.equal("io", err.code)
    local folder, remove = helper.folder()
    helper.write(folder .. "/x", "{}")
    t, err = agent:restore(folder .. "/x")
    assert.is_nil(t)
    assert.are.equal("format", err.code)
    t, err = agent:save(assert(agent:start "go"), folder .. "/none/run")
    assert.is_nil(t)
    assert.are.equal("io", err.code)
    remove()
  end)
end)

describe("an agent on pocket", function()
  local model
  setup(function() model = assert(fathom.load(fathom.pocket, { ctx = 1024, seqs = 4 })) end)
  teardown(function() model:close() end)

  local function calculator(fail)
    local n = 0
    return { doc = "Evaluate an arithmetic expression.", args = { expression = "string" }, run = function(args)
      n = n + 1
      if fail and n == 1 then return nil, "timeout" end
      return (require("fathom.fence").run(args.expression))
    end }
  end

  it("is told of its tools as a session is, and replays what it sampled by its ids", function()
    local tools = { calculator = calculator() }
    local agent = fathom.agent(model, { tools = tools, temperature = 0, seed = 1 })
    local r = run(agent, "What is 4821 * 37?")
    assert.matches("178377", r.text)
    local session = assert(model:session { tools = { calculator = { doc = tools.calculator.doc, args = tools.calculator.args } },
                                           temperature = 0, seed = 1 })
    local first = assert(session:ask("What is 4821 * 37?"):wait())
    local second = assert(session:ask({ role = "tool", content = "178377" }):wait())
    assert.are.equal(second.answer, r.text)
    assert.are.equal(first.usage.completion + second.usage.completion, r.usage.completion)
    assert.are.equal(first.usage.prompt + second.usage.prompt, r.usage.prompt)
    session:close()
  end)

  it("tells a choice by what is chosen from", function()
    local tools = require "fathom.chat.tools"
    assert.matches('Parameters: {"colour": "string", "n": "integer"}', tools.section { pick = { doc = "", args = {
      colour = fathom.enum { "red", "blue" }, n = fathom.enum { 1, 2 } } } }, 1, true)
  end)

  it("tries again when a tool fails", function()
    local r = run(fathom.agent(model, { tools = { calculator = calculator(true) }, temperature = 0 }), "What is 4821 * 37?")
    assert.are.same({ "error: timeout", "178377" }, outputs(r))
    assert.matches("178377", r.text)
  end)

  it("keeps the run that was saved before, whole, where a later save does not come to its end", function()
    local folder, remove = helper.folder()
    local path = folder .. "/run"
    local function agent() return fathom.agent(model, { tools = { calculator = calculator() }, temperature = 1, seed = 3 }) end
    local a = agent()
    local t = a:start "Use the calculator for 4635 * 517, then subtract 73."
    repeat model:step {} until t.usage.completion > 0
    assert(a:save(t, path))
    assert(os.execute("mkdir " .. path .. ".part"))              -- the record can not be written, its session can
    local want = assert(t:wait())
    assert.is_nil((a:save(t, path)))
    local paused = fathom.agent(model, { tools = { calculator = calculator() }, temperature = 1, stuck = function() return "here" end })
    local other = paused:start "Use the calculator for 12 * 12."
    assert.are.equal("takeover", assert(other:wait()).finish)
    assert.is_nil((paused:save(other, path)))
    assert.are.same(want.transcript, assert(assert(agent():restore(path)):wait()).transcript)
    assert(os.execute("rmdir " .. path .. ".part"))
    for _ = 1, 3 do
      assert(paused:save(other, path))
      assert.are.equal("takeover", assert(assert(agent():restore(path)):wait()).finish)
    end
    local pipe = io.popen("ls " .. folder .. " | wc -l")
    assert.are.equal(2, pipe:read "n")
    pipe:close()
    paused:close()
    remove()
  end)

  it("gives the same run when it is saved in the midst of a reply and taken up", function()
    local folder, remove = helper.folder()
    local path = folder .. "/run"
    local function agent() return fathom.agent(model, { tools = { calculator = calculator() }, temperature = 1, seed = 3 }) end
    local goal = "Use the calculator for 4635 * 517, then subtract 73."
    local want = run(agent(), goal)
    local a = agent()
    local t = a:start(goal)
    repeat model:step {} until t.usage.completion > 0
    for _ = 1, 5 do model:step {} end
    assert.is_false(t.done)
    assert(a:save(t, path))
    t:cancel()
    local r = assert(assert(agent():restore(path)):wait())
    assert.are.equal(want.text, r.text)
    assert.are.same(want.calls, r.calls)
    assert.are.same(want.transcript, r.transcript)
    remove()
  end)

  it("begins where a session stands", function()
    local talk <close> = assert(model:session { system = "Facts:\nage of Rimu: 41", temperature = 0 })
    local r = run(fathom.agent(talk), "What is the age of Rimu?")
    assert.matches("41", r.text)
    assert.are.equal(1, #talk:messages())
  end)
end)

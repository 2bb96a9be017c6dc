--- mock_spec.lua - the scripted backend, and what every backend shares: conversations, tasks, checked documents.
local backend = require "fathom.backend"
local fathom = require "fathom"
local json = require "fathom.json"
local validate = require "fathom.validate"

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("mock_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

local function fails(code, pattern, value, err)
  assert.is_nil(value)
  assert.equal(code, err.code)
  assert.matches(pattern, err.message)
end

local function ask(text) return { { role = "user", content = text } } end

describe("a mock", function()
  it("gives its replies in order, in the shape of a model's results", function()
    local m = fathom.mock { replies = { "<think>\neasy\n</think>\n42", { think = "hm", answer = "no", finish = "length",
                                        usage = { prompt = 7 } } } }
    local r = assert(m:generate(ask "6 * 7?", { seed = 5 }))
    assert.same({ "<think>\neasy\n</think>\n42", "easy", "42", "stop", 5 }, { r.text, r.think, r.answer, r.finish, r.seed })
    assert.same({}, r.ids)
    assert.same({}, r.tool_calls)
    assert.is_true(r.usage.completion > 0 and r.usage.prompt == 3 and r.usage.cached == 0)
    local second = assert(m:generate "continue")
    assert.same({ "<think>hm</think>no", "length", 7 }, { second.text, second.finish, second.usage.prompt })
    assert.is_string(json.encode { r, second })
  end)

  it("says how many replies were asked for when they run out", function()
    local m = fathom.mock { replies = { "one" } }
    assert(m:generate "a")
    assert.equal(0, m:left())
    fails("limit", "has 1 replies and was asked 2 times", m:generate "b")
  end)

  it("calls tools", function()
    local m = fathom.mock { replies = { { tool_calls = { { name = "add", arguments = { a = 1, b = 2 } }, { name = "now" } } },
                                        { tool_calls = { { name = "add", arguments = "{broken" } } } } }
    local s = m:session {}
    local r = assert(s:ask("1 + 2?"):wait())
    assert.equal("tool", r.finish)
    assert.same({ "add", "now" }, { r.tool_calls[1].name, r.tool_calls[2].name })
    assert.same({ a = 1, b = 2 }, r.tool_calls[1].arguments)
    assert.equal("{}", r.tool_calls[2].raw)
    assert.equal('{"a": 1, "b": 2}', s:messages()[2].tool_calls[1]["function"].arguments)
    local broken = assert(s:ask({ role = "tool", content = "3" }):wait()).tool_calls[1]
    assert.is_nil(broken.arguments)
    assert.equal("{broken", broken.raw)
    assert.matches("JSON", broken.error)
  end)

  it("streams in small pieces with channels that add up to the text", function()
    local m = fathom.mock { replies = { "<think>one two</think>three  four é\n" } }
    local parts, channels = {}, {}
    for piece, info in m:stream(ask "x") do
      parts[#parts + 1], channels[#channels + 1] = piece, info.channel
    end
    assert.equal("<think>one two</think>three  four é\n", table.concat(parts))
    assert.same({ "think", "think", "think", "think", "answer", "answer", "answer", "answer" }, channels)
  end)

  it("answers by a function that sees messages and options", function()
    local m = fathom.mock { replies = function(messages, o)
      return ("%s/%d/%d/%s"):format(messages[#messages].content, o.seed, o.sample, o.temperature)
    end }
    local s = m:session { seed = 3, temperature = 0.5 }
    local results = assert(s:sample("x", { n = 3 }))
    assert.same({ "x/3/0/0.5", "x/3/1/0.5", "x/3/2/0.5" }, { results[1].answer, results[2].answer, results[3].answer })
    assert.same({}, s:messages())
    local many = assert(m:generate("y", { n = 2, seed = 1, temperature = 1 }))
    assert.same({ "y/1/0/1", 2 }, { many.answer, #many.samples })
    assert.equal(5, #m.calls)
    assert.same({ 3, 2, "x" }, { m.calls[3].options.seed, m.calls[3].sample, m.calls[3].messages[1].content })
  end)

  it("fails as it is told to, behind what it has said", function()
    local m = fathom.mock { replies = { { answer = "half", err = "network" },
                                        { err = { code = "limit", message = "too many", hint = "wait" } },
                                        function() error "script" end, function() return nil end } }
    local task = m:session({}):ask "x"
    fails("network", "script", task:wait())
    assert.equal("half", task.queue[1].text)
    fails("limit", "too many", m:generate "x")
    assert.has_error(function() m:generate "x" end)
    fails("format", "gave nothing for call 4", m:generate "x")
    assert.is_false(m:step {})
  end)

  it("keeps a conversation, and forks share the script", function()
    local m = fathom.mock { replies = { "a", "<think>t</think>b", "c" } }
    local s = m:session { system = "S" }
    assert(s:ask("1"):wait())
    local fork = s:fork()
    assert.equal("b", fork:ask("2"):wait().answer)
    assert.equal("c", s:ask("3"):wait().answer)
    assert.same({ "system", "user", "assistant", "user", "assistant" }, (function()
      local roles = {}
      for i, message in ipairs(fork:messages()) do roles[i] = message.role end
      return roles
    end)())
    assert.equal("t", fork:messages()[5].reasoning_content)
    assert.same({ "S", "1", "a", "3" }, { m.calls[3].messages[1].content, m.calls[3].messages[2].content,
                                          m.calls[3].messages[3].content, m.calls[3].messages[4].content })
  end)

  it("lets a turn wait for the one before it", function()
    local m = fathom.mock { replies = { "a b c", "d" } }
    local s = m:session {}
    local first, second = s:ask "1", s:ask "2"
    assert.equal(1, #m.calls)
    assert.equal("d", second:wait().answer)
    assert.is_true(first.done)
    assert.equal("a b c", m.calls[2].messages[2].content)
  end)

  it("moves by steps, and is cancelled between them", function()
    local m = fathom.mock { replies = { "one two three", "x" } }
    local task = m:session({}):ask "go"
    assert.is_true(m:step { ms = 1 })
    assert.is_false(task.done)
    task:cancel()
    assert.same({ "cancelled", "one" }, { task.result.finish, task.result.text })
    assert.is_false(m:step {})
    local pieces, _, _, guard = m:stream(ask "x")
    assert.equal("x", pieces())
    getmetatable(guard).__close()
    m:close()
    m:close()
    assert.matches("closed", tostring(m))
    raises("closed mock", function() m:session {} end)
  end)

  it("yields in a coroutine until somebody steps", function()
    local m = fathom.mock { replies = { "one two" } }
    local co, r = coroutine.create(function() return assert(m:generate(ask "x")) end), nil
    local turns = 0
    repeat
      local ok, handle = coroutine.resume(co)
      assert.is_true(ok, handle)
      if coroutine.status(co) == "dead" then r = handle else assert.equal(m, handle.model) end
      m:step { ms = 2 }
      turns = turns + 1
    until r
    assert.equal("one two", r.answer)
    assert.is_true(turns > 2)
  end)

  it("gives documents that are checked", function()
    local point = fathom.schema { x = fathom.int(0, 9), tag = fathom.enum { "a", "b" } }
    local m = fathom.mock { replies = { '{"x": 3, "tag": "a"}', '```json\n{"x": 3, "tag": "b"}\n```', '{"x": 30, "tag": "a"}',
                                        "what?", { answer = '{"x', finish = "length" }, "[1]" } }
    local s = m:session {}
    local value, result = s:json("where?", { schema = point })
    assert.equal(3, value.x)
    assert.equal("stop", result.finish)
    assert.equal("b", s:json("where?", { schema = point }).tag)
    fails("format", "value.x must be 9 or less, got 30", s:json("where?", { schema = point }))
    fails("format", "no JSON", s:json("where?", { schema = point }))
    fails("limit", "cut", s:json("where?", { schema = point }))
    assert.same({ 1 }, table.move(assert(s:json "anything"), 1, 1, 1, {}))
  end)

  it("refuses wrong calls at their line", function()
    local m = fathom.mock { replies = { "a" } }
    raises("did you mean 'replies'", function() fathom.mock { reply = {} } end)
    raises("'replies' is missing", function() fathom.mock {} end)
    raises("replies%[2%].*did you mean 'answer'", function() fathom.mock { replies = { "a", { answr = "x" } } } end)
    raises("tool_calls%[1%]", function() fathom.mock { replies = { { tool_calls = { "x" } } } } end)
    raises("did you mean 'temperature'", function() m:generate("x", { temperatur = 1 }) end)
    raises("session:ask: expected text", function() m:session({}):ask(5) end)
    raises("only a model takes", function() m:session({}):ask { 1, 2 } end)
    raises("a prompt is a string", function() m:generate(5) end)
    raises("either a schema or a grammar", function() m:session { schema = "string", grammar = "x" } end)
    assert.equal(0, #m.calls)
  end)
end)

describe("backends", function()
  it("move the jobs of a crew, inside and outside a coroutine", function()
    local crew = require "fathom.crew"
    local m = fathom.mock { replies = function(messages) return messages[#messages].content .. " done" end }
    local s = m:session {}
    local function job(_, index) return s:fork():ask("job " .. index):wait().answer end
    local function answers()
      local list = assert(crew.run(s, { job, job, job }, { width = 2 }))
      return { list[1].value, list[2].value, list[3].value }
    end
    assert.same({ "job 1 done", "job 2 done", "job 3 done" }, answers())
    local co, turns = coroutine.wrap(answers), 0
    local got
    repeat
      got = co()
      turns = turns + 1
      m:step { ms = 1 }
    until got[1] == "job 1 done"
    assert.is_true(turns > 2)
  end)

  it("leave their generations in a trace", function()
    local span = require "fathom.span"
    local seen = {}
    local function listen(record) seen[#seen + 1] = record end
    span.listen(listen)
    local m = fathom.mock { replies = { "<think>t</think>a", { err = "network" } } }
    m:generate(ask "x", { seed = 3 })
    m:session({}):ask("y"):wait()
    span.unlisten(listen)
    assert.same({ "generate", "mock", "a", 3 }, { seen[1].kind, seen[1].backend, seen[1].answer, seen[1].options.seed })
    assert.same({ "network", "y", true }, { seen[2].err.code, seen[2].messages[1].content, seen[2].drawn })
    assert.is_string(json.encode(seen))
  end)

  it("are told from what is none", function()
    local m = fathom.mock { replies = {} }
    backend.check("x", m)
    backend.check("x", m:session {})
    raises("fathom.judge: expected a backend .*, got a number", function() backend.check("fathom.judge", 5) end)
    raises("got nothing", function() backend.check("fathom.judge", nil) end)
    raises("got a table", function() backend.check("fathom.judge", {}) end)
    assert.is_false(backend.is_local(m))
    assert.is_false(backend.is_local(m:session {}))
  end)

  it("give fresh conversations; a session gives a fork with options over its own", function()
    local m = fathom.mock { replies = function(messages, o) return #messages .. ":" .. tostring(o.temperature) end }
    assert.equal("1:0.5", backend.session(m, { temperature = 0.5 }):ask("x"):wait().answer)
    local s = m:session { system = "S", temperature = 1, seed = 4 }
    s:ask("y"):wait()
    local fork = backend.session(s, { temperature = 0, system = "T" })
    assert.equal("4:0", fork:ask("x"):wait().answer)
    assert.same({ "T", 4 }, { fork:messages()[1].content, m.calls[3].options.seed })
    assert.equal("S", s:messages()[1].content)
    raises("did you mean", function() backend.session(s, { temperatur = 0 }) end)
    local task = s:ask "z"
    while backend.step(s, 1) do assert.is_false(task.done) end
    assert.is_true(task.done)
  end)

  it("are local where a model of this process computes", function()
    local model <close> = assert(fathom.load(fathom.pocket, { ctx = 256 }))
    local s <close> = model:session { system = "You are kind." }
    assert.is_true(backend.is_local(model) and backend.is_local(s))
    local fork <close> = assert(backend.session(s, { system = "You are a judge.", max_tokens = 3, temperature = 0 }))
    assert.equal("You are a judge.", fork:messages()[1].content)
    local task = fork:ask "What is 1 + 1?"
    while not task.done do backend.step(fork, 5) end
    assert.equal(3, #task.result.ids)
  end)
end)

describe("a value and its schema", function()
  local function ok(value, form) assert.is_true(validate.check(value, form)) end
  local function bad(pattern, value, form)
    local fine, why = validate.check(value, form)
    assert.is_false(fine)
    assert.matches(pattern, why)
  end

  it("agree on types, values and bounds", function()
    ok(3.0, { type = "integer" })
    bad("must be of type integer, got number", 3.5, { type = "integer" })
    bad("string or null, got boolean", true, { type = { "string", "null" } })
    ok(json.null, { type = { "string", "null" } })
    bad('must be one of %["a"', "c", { enum = { "a", "b" } })
    bad("must be 5", 6, { const = 5 })
    bad("more than 1", 1, { exclusiveMinimum = 1 })
    bad("multiple of 0.5", 1.2, { multipleOf = 0.5 })
    bad("3 characters or less, got 4", "äöüß", { maxLength = 3 })
  end)

  it("agree on what is inside", function()
    local form = fathom.schema { name = "string", tags = fathom.list("string", 2), size = fathom.optional "integer" }
    ok({ name = "a", tags = {} }, form)
    bad("value lacks 'name'", { tags = {} }, form)
    bad("value.tags%[2%] must be of type string", { name = "a", tags = { "x", 1 } }, form)
    bad("must have 2 items or less", { name = "a", tags = { "x", "y", "z" } }, form)
    bad("must not have 'more'", { name = "a", tags = {}, more = 1 }, form)
    bad("no item twice", { { a = 1 }, { a = 1 } }, { uniqueItems = true })
    ok({ 1, "x" }, { prefixItems = { { type = "integer" }, { type = "string" } }, items = false })
    bad("%[3%] must not be there", { 1, "x", 2 }, { prefixItems = { true, true }, items = false })
  end)

  it("agree on combined and recursive forms", function()
    local tree = { ["$ref"] = "#/$defs/node", ["$defs"] = { node = { type = "object", required = { "v" },
                   properties = { v = { type = "integer" }, next = { ["$ref"] = "#/$defs/node" } } } } }
    ok({ v = 1, next = { v = 2 } }, tree)
    bad("value.next lacks 'v'", { v = 1, next = { x = 2 } }, tree)
    ok(1, { anyOf = { { type = "string" }, { type = "integer" } } })
    bad("follows 2", 1, { oneOf = { { type = "number" }, { type = "integer" } } })
    bad("must not be", 1, { ["not"] = { type = "integer" } })
    bad("which is not there", 1, { ["$ref"] = "#/$defs/none" })
  end)
end)

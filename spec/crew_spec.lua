--- crew_spec.lua - functions that run at once over one backend, and the spans of what they do.
local crew = require "fathom.crew"
local fathom = require "fathom"
local span = require "fathom.span"

local function ask(text) return { { role = "user", content = text } } end

describe("a crew", function()
  local model
  setup(function() model = assert(fathom.load(fathom.pocket, { seqs = 8 })) end)
  teardown(function() model:close() end)

  local function sums(n)
    local jobs = {}
    for i = 1, n do
      jobs[i] = function()
        local r = assert(model:generate(ask(("What is %d + %d?"):format(10 + i, 20 + i)), { temperature = 0 }))
        return r.answer:match "boxed{(%d+)}"
      end
    end
    return jobs
  end

  it("runs its jobs in one batch and gives what each returned", function()
    local before = model:stats().steps
    local results = crew.run(model, sums(6))
    local together = model:stats().steps - before
    for i, r in ipairs(results) do assert.equal(tostring(30 + 2 * i), r.value) end
    before = model:stats().steps
    crew.run(model, sums(6), { width = 1 })
    assert.is_true(together * 3 < model:stats().steps - before)
  end)

  it("keeps an error with its job", function()
    local results = crew.run(model, { function() error("a slip", 0) end, function() return nil, "no" end, function() return 3 end })
    assert.equal("a slip", results[1].err)
    assert.equal("no", results[2].err)
    assert.same({ value = 3 }, results[3])
    assert.same({}, crew.run(model, {}))
  end)

  it("moves between frames, by the model's steps alone", function()
    local told = {}
    local work = crew.start(model, sums(3), { width = 2, on_done = function(i) told[#told + 1] = i end })
    local frames = 0
    while model:step { ms = 2 } do frames = frames + 1 end
    assert.is_true(work.done and frames > 1)
    assert.equal("32", work.result[1].value)
    assert.equal(3, #told)
    assert.is_false(model:step { ms = 2 })
  end)

  it("waits inside a coroutine by yielding, and within another crew", function()
    local co = coroutine.wrap(function() return crew.run(model, sums(2)) end)
    local first = co()
    assert.equal(model, first.model)
    local results
    repeat
      model:step { ms = 5 }
      results = co()
    until results[1]
    assert.equal("34", results[2].value)
    local nested = crew.run(model, { function() return crew.run(model, sums(2))[2].value end })
    assert.equal("34", nested[1].value)
  end)

  it("needs no backend: it steps what its jobs turn out to wait for, several at once", function()
    local mock <close> = fathom.mock { replies = { "one two three", "four" } }
    local function all()
      return crew.run(nil, {
        function() return model:generate(ask "What is 1 + 1?", { temperature = 0 }).answer end,
        function() return mock:generate("x").answer end,
        function() return crew.run(nil, { function() return mock:generate("y").answer end })[1].value end,
      })
    end
    local results = all()
    assert.matches("2", results[1].value)
    assert.same({ "one two three", "four" }, { results[2].value, results[3].value })
    local work = crew.start(nil, sums(2))
    while model:step { ms = 2 } do end
    assert.is_true(work.done)
  end)

  it("is cancelled: running requests end, the rest never begins, blocks are left", function()
    local closed, began = 0, 0
    local jobs = {}
    for i = 1, 5 do
      jobs[i] = function()
        began = began + 1
        local guard <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
        local r = model:generate(ask "Tell me a story about a fox.", { max_tokens = 400, ignore_eos = true })
        return guard and r.finish
      end
    end
    local work = crew.start(model, jobs, { width = 2 })
    for _ = 1, 5 do model:step {} end
    work:cancel()
    assert.is_true(work.done)
    assert.same({ 2, 2 }, { began, closed })
    assert.equal("cancelled", work.result[1].value)
    assert.equal("cancelled", work.result[5].err.code)
    assert.equal(0, model:stats().tasks)
  end)

  it("makes a task of a function, which may be closed while it waits", function()
    local t = crew.task(model, function(t)
      t:emit("one", { channel = "answer" })
      local r = model:generate(ask "What is 17 + 25?", { temperature = 0 })
      t:emit("two")
      return { text = r.answer }
    end)
    local seen = {}
    for piece in t:pieces() do seen[#seen + 1] = piece end
    assert.same({ "one", "two" }, seen)
    assert.matches("42", t.result.text)

    local stubborn = crew.task(model, function()
      while true do model:generate(ask "Hello!") end
    end)
    model:step {}
    stubborn:cancel()
    local result, err = stubborn:wait()
    assert.is_nil(result)
    assert.equal("cancelled", err.code)
    assert.equal(0, model:stats().tasks)
    assert.is_false(model:step {})
  end)

  it("goes on inside an event loop's way of waiting", function()
    local task = require "fathom.task"
    local before = task.pause
    task.pause = function() error "the loop is asked, not the crew" end
    local results = crew.run(model, sums(2))
    task.pause = before
    assert.equal("32", results[1].value)
  end)
end)

describe("spans", function()
  local model, seen, listener
  setup(function() model = assert(fathom.load(fathom.pocket, { seqs = 4 })) end)
  teardown(function() model:close() end)
  before_each(function()
    seen = {}
    listener = function(s) seen[#seen + 1] = s end
    span.listen(listener)
  end)
  after_each(function() span.unlisten(listener) end)

  local function of_kind(kind)
    local out = {}
    for _, s in ipairs(seen) do out[#out + 1] = s.kind == kind and s or nil end
    return out
  end

  it("are silent when nobody listens", function()
    span.unlisten(listener)
    local s = span.open("tool", { name = "x" })
    s:close()
    assert.is_false(s.id)
    assert.same({}, seen)
  end)

  it("nest by coroutine, and jobs of a crew start below what was open", function()
    do
      local outer <close> = span.open("eval", { name = "outer" })
      crew.run(model, {
        function()
          local inner <close> = span.open "judge"
          model:generate(ask "What is 1 + 1?", { temperature = 0 })
          return inner
        end,
        function() model:generate(ask "What is 2 + 2?", { temperature = 0 }) end })
      assert.is_truthy(outer)
    end
    local eval, judge, generate = of_kind "eval"[1], of_kind "judge"[1], of_kind "generate"
    assert.equal(eval.id, judge.parent)
    local parents = { [generate[1].parent] = true, [generate[2].parent] = true }
    assert.is_true(parents[eval.id] and parents[judge.id])
    span.open("tool"):close()
    assert.is_nil(of_kind "tool"[1].parent)
  end)

  it("of a generation say what went in and what came out", function()
    local r = assert(model:generate(ask "What is 17 + 25?", { seed = 5, temperature = 0.7, max_tokens = 30 }))
    local s = of_kind "generate"[1]
    assert.same(r.ids, s.ids)
    assert.same(assert(model:render(ask "What is 17 + 25?")), s.prompt)
    assert.same("What is 17 + 25?", s.messages[1].content)
    assert.equal(5, s.options.seed)
    assert.equal(0.7, s.options.temperature)
    assert.equal(r.finish, s.finish)
    assert.matches("^%x+$", s.model)
    assert.is_true(s.ms > 0 and s.usage.completion == #r.ids)
    assert.is_string(require("fathom.json").encode(s))
  end)

  it("of a later turn say which ids of the prompt were sampled", function()
    local talk <close> = assert(model:session { temperature = 0, think = false })
    talk:ask("Hello!"):wait()
    talk:ask("Who are you?"):wait()
    local second = of_kind "generate"[2]
    local from, to = second.generated[1], second.generated[2]
    assert.is_true(from > 1 and to > from and to < #second.prompt)
    assert.same({}, of_kind "generate"[1].generated)
  end)

  it("of a failed or cancelled one say so", function()
    local talk <close> = assert(model:session {})
    local t = talk:ask("Hello!")
    t:cancel()
    assert.equal("cancelled", of_kind "generate"[1].finish)
    talk:ask(("x "):rep(5000)):wait()
    assert.equal("overflow", of_kind "generate"[2].err.code)
  end)

  it("are closed by an error too", function()
    pcall(function()
      local s <close> = span.open "tool"
      error("broken", 0)
      return s
    end)
    assert.equal("broken", of_kind "tool"[1].err)
  end)
end)

--- trace_spec.lua - files of spans, and doing again what they hold.
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"
local span = require "fathom.span"

local function ask(text) return { { role = "user", content = text } } end

local function traced(f)
  local path = os.tmpname()
  local t = assert(fathom.trace(path))
  f(t)
  assert(t:close())
  return path, helper.jsonl(path)
end

describe("a trace", function()
  it("writes one object a line, as spans end", function()
    local path, lines = traced(function(t)
      local outer = span.open("agent", { goal = "x" })
      span.open("tool", { name = "dice", result = "4" }):close()
      outer:close { turns = 1 }
      assert.equal(2, t.spans)
      assert.matches("2 spans", tostring(t))
    end)
    os.remove(path)
    assert.same({ "tool", "agent" }, { lines[1].kind, lines[2].kind })
    assert.equal(lines[2].id, lines[1].parent)
    assert.equal(1, lines[2].turns)
    assert.is_number(lines[2].ms)
    assert.is_true(math.abs(lines[2].at - os.time()) < 100)
  end)

  it("goes to a function as well, ends when it is closed, and several may listen", function()
    local seen, again = {}, {}
    local a = fathom.trace(function(s) seen[#seen + 1] = s end)
    local b = fathom.trace(function(s) again[#again + 1] = s end)
    span.open("tool"):close()
    a:close()
    a:close()
    span.open("tool"):close()
    b:close()
    span.open("tool"):close()
    assert.same({ 1, 2 }, { #seen, #again })
  end)

  it("appends where that is asked for", function()
    local path = os.tmpname()
    for i = 1, 3 do
      local t <close> = assert(fathom.trace(path, { append = i > 1 }))
      span.open("tool"):close()
      assert.is_truthy(t)
    end
    assert.equal(3, #helper.jsonl(path))
    os.remove(path)
  end)

  it("holds no secrets", function()
    span.secret "sk-very-private"
    local path = traced(function()
      span.open("generate", { url = "http://x/?key=sk-very-private", api_key = "other", headers = { Authorization = "Bearer z" },
                              args = { key = "age of Rimu" } }):close()
    end)
    local text = helper.read(path)
    os.remove(path)
    assert.is_nil(text:find("very-private", 1, true) or text:find("other", 1, true) or text:find("Bearer", 1, true))
    assert.is_truthy(text:find("age of Rimu", 1, true))
  end)

  it("holds schemas as the JSON they are: what is written is the same in every process", function()
    local path, lines = traced(function()
      span.open("generate", { args = fathom.schema { city = "string", days = fathom.int(1, 7) } }):close()
    end)
    os.remove(path)
    assert.equal("object", lines[1].args.type)
    assert.same({ type = "integer", minimum = 1, maximum = 7 }, lines[1].args.properties.days)
  end)

  it("says in words what JSON cannot hold", function()
    local loop = {}
    loop.loop = loop
    local path, lines = traced(function()
      span.open("tool", { a = 0 / 0, b = math.huge, c = print, d = "half \xE2\x82", e = loop, f = fathom.enum { "a" }, g = {} }):close()
    end)
    os.remove(path)
    assert.matches("nan", lines[1].a)
    assert.equal("inf", lines[1].b)
    assert.is_nil(lines[1].c)
    assert.equal("half \u{FFFD}\u{FFFD}", lines[1].d)
    assert.same({}, lines[1].g)
  end)

  it("never breaks what it watches: a full disk or a function that raises is kept", function()
    local t = assert(fathom.trace "/dev/full")
    span.open("tool"):close()
    span.open("tool"):close()
    assert.equal("io", t.err.code)
    assert.equal(2, t.lost)
    local ok, err = t:close()
    assert.is_nil(ok)
    assert.equal(t.err, err)
    local f = fathom.trace(function() error("broken", 0) end)
    span.open("tool"):close()
    assert.equal("broken", f.err)
    f:close()
    local none, why = fathom.trace "/no/such/folder/x.jsonl"
    assert.is_nil(none)
    assert.equal("io", why.code)
    assert.has_error(function() fathom.trace(3) end)
  end)
end)

describe("a replay", function()
  local model
  setup(function() model = assert(fathom.load(fathom.pocket, { seqs = 8, ctx = 1024 })) end)
  teardown(function() model:close() end)

  -- A bit of everything: turns, forks, samples, schemas, stops, a cancelled one, a failed one.
  local function work()
    assert(model:generate(ask "What is 17 + 25?", { temperature = 0.8 }))
    assert(model:generate("What is", { temperature = 1, max_tokens = 12, logit_bias = { [100] = -math.huge, [7] = 1.5 } }))
    local talk <close> = assert(model:session { temperature = 0.9, think = false })
    assert(talk:ask("Hello!"):wait())
    assert(talk:ask("Who are you?"):wait())
    local fork <close> = assert(talk:fork())
    local a, b = talk:ask "What is the capital of France?", fork:ask("Tell me a story about a fox.", { max_tokens = 60 })
    assert(a:wait() and b:wait())
    assert(#talk:sample("Is 7 a prime number?", { n = 3, temperature = 1 }) == 3)
    assert(talk:json("Hello!", { schema = { name = fathom.text(8), n = fathom.int(1, 5) }, seed = 3 }))
    talk:ask("What is 3 + 4?", { stop = "7", think = true }):wait()
    local long = talk:ask("Tell me a story about a fox.", { ignore_eos = true, max_tokens = 200 })
    for _ = 1, 12 do model:step {} end
    long:cancel()
    talk:ask(("x "):rep(3000)):wait()
  end

  it("gives the same ids, from another order, batch and process of the same model", function()
    local path, lines = traced(work)
    local report = assert(fathom.replay(path, { model = model, expect = "exact" }))
    assert.same({ failed = 1 }, report.skipped)
    assert.equal(#lines - 1, report.replayed)
    assert.is_true(report.exact and report.same == report.replayed and report.replayed >= 11)
    assert.is_string(json.encode(report))
    model:drop_prefixes()
    local done
    local other <close> = assert(fathom.load(fathom.pocket, { seqs = 3, ctx = 1024, threads = 1 }))
    assert(fathom.replay(path, { model = other, expect = "exact", width = 3, progress = function(n) done = n end }))
    assert.equal(report.replayed, done)
    os.remove(path)
  end)

  it("says where the first one goes another way", function()
    local path, lines = traced(function()
      assert(model:generate(ask "What is 17 + 25?", { temperature = 0 }))
      assert(model:generate(ask "What is 11 + 11?", { temperature = 0 }))
    end)
    os.remove(path)
    local plus = assert(model:encode "9")[1]
    local was = lines[1].ids[5]
    lines[1].ids[5] = plus
    local report = assert(fathom.replay(lines, { model = model }))
    assert.same({ 2, 1, 1, false }, { report.replayed, report.same, report.diverged, report.exact })
    local first = report.first
    assert.same({ lines[1].id, 5, plus, was }, { first.span, first.index, first.expected, first.got })
    assert.equal(assert(model:decode { table.unpack(lines[1].ids, 1, 4) }), first.before)
    assert.matches("token 5: .*recorded was", first.message)
    local none, err, same = fathom.replay(lines, { model = model, expect = "exact" })
    assert.is_nil(none)
    assert.matches("token 5", err.message)
    assert.equal(1, same.diverged)
  end)

  it("notices a reply that is longer, and another finish", function()
    local path, lines = traced(function() assert(model:generate(ask "What is 17 + 25?", { temperature = 0, max_tokens = 8 })) end)
    os.remove(path)
    lines[1].options.max_tokens = 9
    assert.equal(9, assert(fathom.replay(lines, { model = model })).first.index)
    lines[1].options.max_tokens, lines[1].finish = 8, "stop"
    assert.matches('ends with "length"', assert(fathom.replay(lines, { model = model })).first.message)
  end)

  it("says when it is another model's trace, and refuses nonsense", function()
    local path, lines = traced(function() assert(model:generate(ask "Hello!", { temperature = 0, max_tokens = 4 })) end)
    lines[1].model = "0123"
    assert.equal("0123", assert(fathom.replay(lines, { model = model })).other_model)
    lines[1].prompt[1] = 1 << 40
    assert.matches("outside the vocabulary", assert(fathom.replay(lines, { model = model })).first.message)
    lines[1].prompt = nil
    assert.same({ ["without ids"] = 1 }, assert(fathom.replay(lines, { model = model })).skipped)
    local none, err = fathom.replay({}, { model = model, expect = "exact" })
    assert.is_nil(none)
    assert.matches("no generation", err.message)
    helper.write(path, helper.read(path) .. '{"kind": "gener')
    assert.equal(1, assert(fathom.replay(path, { model = model })).replayed)
    helper.write(path, "{}\nnonsense\n{}\n")
    none, err = fathom.replay(path, { model = model })
    assert.is_nil(none)
    assert.matches("line 2", err.message)
    os.remove(path)
    assert.has_error(function() fathom.replay({}, {}) end)
    assert.has_error(function() fathom.replay({}, { model = model, expect = "same" }) end)
  end)

  it("of a file that somebody edited says what is wrong with which span; the others and the model are as good as before", function()
    local path, lines = traced(function()
      assert(model:generate(ask "Hello!", { temperature = 0, max_tokens = 4 }))
      assert(model:generate(ask "Hello!", { temperature = 0, max_tokens = 5 }))
    end)
    os.remove(path)
    local whole = json.encode(lines[1])
    for what, edit in pairs { ["option 'temperature' must be a number"] = function(s) s.options.temperature = "x" end,
                              ["option 'stop' must be"] = function(s) s.options.stop = 5 end,
                              ["it failed"] = function(s) s.options = 5 end,
                              ["generated"] = function(s) s.generated = { 5 } end,
                              ["sample"] = function(s) s.sample = "a" end,
                              ["recorded was"] = function(s) s.ids = { "a" } end } do
      lines[1] = json.decode(whole)
      edit(lines[1])
      local report = assert(fathom.replay(lines, { model = model }))
      assert.same({ 2, 1 }, { report.replayed, report.same })
      assert.matches(what, report.first.message)
    end
    lines[1] = json.decode(whole)
    lines[1].usage = 5
    assert.is_true(assert(fathom.replay(lines, { model = model })).exact)
    local none, err = fathom.replay("spec", { model = model })
    assert.is_nil(none)
    assert.equal("io", err.code)
    assert.has_error(function() fathom.replay({ 5 }, { model = model }) end, "fathom.replay: span 1 is a number, not a table")
  end)

  it("goes to any backend: by the texts, where there are no ids", function()
    local function mock() return fathom.mock { replies = { "The first reply.", "The sec\u{F6}nd one." } } end
    local path, lines = traced(function()
      local backend <close> = mock()
      backend:generate(ask "a", { temperature = 0 })
      backend:generate(ask "b")
    end)
    os.remove(path)
    assert.equal("The first reply.", lines[1].text)
    lines[1].usage.exact = false                     -- as remotes say: they promise no ids, and are compared by texts anyway
    assert.is_true(assert(fathom.replay(lines, { model = mock(), expect = "exact", width = 1 })).exact)
    local other <close> = fathom.mock { replies = { "The first reply.", "The sec\u{F4}nd one." } }
    local first = assert(fathom.replay(lines, { model = other, width = 1 })).first
    assert.same({ 8, "The sec" }, { first.index, first.before })
    assert.matches("byte 8", first.message)
    local silent <close> = fathom.mock { replies = {} }
    assert.matches("it failed", assert(fathom.replay(lines, { model = silent })).first.message)
  end)

  it("of a judge's or an agent's trace does their generations again", function()
    local path, lines = traced(function()
      local judge = fathom.judge(model, { votes = 2, seed = 4 })
      assert(judge:compare("What is 8 + 5?", "\\boxed{13}", "\\boxed{14}"))
      local agent = fathom.agent(model, { seed = 1, tools = { calculator = {
        doc = "Evaluate an arithmetic expression.", args = { expression = "string" }, run = function() return "178377" end } } })
      assert(agent:start("What is 4821 * 37?"):wait())
    end)
    os.remove(path)
    local kinds = {}
    for _, s in ipairs(lines) do kinds[s.kind] = (kinds[s.kind] or 0) + 1 end
    assert.is_true(kinds.judge == 1 and kinds.agent == 1 and kinds.tool >= 1 and kinds.generate >= 6)
    local report = assert(fathom.replay(lines, { model = model, expect = "exact" }))
    assert.is_true(report.replayed >= 6)
  end)
end)

--- api_spec.lua - what users type: options, errors, generation, sessions, tasks, determinism.
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"
local reply = require "fathom.reply"

local function ask(text) return { { role = "user", content = text } } end

local puzzle = ask "Use the numbers 26, 9, 85, 84 once each with + - * / to make 34. Give the expression in <answer> tags."

local function fails(code, value, err)
  assert.is_nil(value)
  assert.equal(code, err.code)
  assert.is_string(err.message)
  assert.is_truthy(tostring(err):find(err.message, 1, true))
end

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("api_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

local function slurp(...)
  local pieces = {}
  for piece in ... do pieces[#pieces + 1] = piece end
  return table.concat(pieces)
end

describe("the module", function()
  it("sets no globals and prints nothing", function()
    local program = [[local before = {} for k in pairs(_G) do before[k] = true end
      local fathom = require "fathom" local _ = fathom.pocket
      for k in pairs(_G) do assert(before[k], k) end]]
    local path = os.tmpname()
    helper.write(path, program)
    local pipe = assert(io.popen((os.getenv "LUA" or "lua5.4") .. " " .. path .. " 2>&1"))
    assert.equal("", (pipe:read "a":gsub("==%d+==.-\n", "")))
    assert.is_true((pipe:close()))
    os.remove(path)
  end)

  it("has every name that it promises, and nil for others", function()
    for name in ([[devices plan load tokenizer schema int list enum judge agent remote eval trace replay serve mock
                   best_of vote reject history adopt]]):gmatch "%S+" do
      assert.is_function(fathom[name], name)
    end
    for name in ("accuracy format language length judge"):gmatch "%S+" do assert.is_function(fathom.reward[name], name) end
    assert.is_function(fathom.tools.lua)
    assert.is_function(fathom.pin.test)
    assert.is_function(fathom.balance.place)
    assert.is_nil(fathom.no_such_name)
  end)

  it("names its devices", function()
    local devices, reason = fathom.devices()
    assert.equal("cpu", devices[1].name)
    assert.is_true(#devices > 1 or type(reason) == "string")
  end)

  it("opens a tokenizer without its model", function()
    local tok <close> = assert(fathom.tokenizer(fathom.pocket))
    local ids = tok:encode "What is <｜User｜>?"
    assert.equal("What is <｜User｜>?", tok:decode(ids))
    assert.equal(#ids, tok:count "What is <｜User｜>?")
    assert.is_true(#tok:encode("<｜User｜>", { special = true }) == 1 and #tok:encode "<｜User｜>" > 1)
    fails("io", fathom.tokenizer "no/such/folder")
    tok:close()
    raises("closed tokenizer", function() tok:encode "x" end)
  end)
end)

describe("loading", function()
  it("plans from the headers, and the report is for people", function()
    local plan = assert(fathom.plan(fathom.pocket, { ctx = 512, seqs = 2 }))
    assert.equal(512, plan.ctx)
    assert.equal(2, plan.seqs)
    assert.is_true(plan.max_ctx >= 512)
    assert.is_true(plan.weights > 16e6 and plan.weights < 40e6 and plan.cache > 0 and plan.scratch > 0)
    local sum = plan.devices[1]
    assert.equal(plan.weights + plan.cache + plan.scratch, sum.weights + sum.cache + sum.scratch)
    assert.matches("weights.*MiB", plan:report())
    assert.is_string(json.encode(plan))
    fails("io", fathom.plan "no/such/folder")
  end)

  it("tells its progress and can be stopped", function()
    local last_done, last_total = -1, nil
    assert(fathom.load(fathom.pocket, { progress = function(done, total)
      assert.is_true(done >= last_done)
      last_done, last_total = done, total
      return true
    end })):close()
    assert.equal(last_total, last_done)
    fails("cancelled", fathom.load(fathom.pocket, { progress = function() return false end }))
    local ok, err = pcall(fathom.load, fathom.pocket, { progress = function() error "my own" end })
    assert.is_false(ok)
    assert.matches("my own", err)
  end)

  it("says what it cannot do", function()
    fails("io", fathom.load "no/such/folder")
    fails("device", fathom.load(fathom.pocket, { device = "cuda:99" }))
    fails("device", fathom.load(fathom.pocket, { device = "abacus" }))
    fails("unsupported", fathom.load(fathom.pocket, { device = { { name = "card", memory = 1 << 40 } } }))
    fails("unsupported", fathom.load(fathom.pocket, { parallel = { tp = 2 } }))
    fails("unsupported", fathom.load(fathom.pocket, { dtype = "fp8" }))
    local model <close> = assert(fathom.load(fathom.pocket, { device = { "cpu" }, dtype = "f32", parallel = "auto" }))
    assert.matches("fathom model", tostring(model))
  end)

  it("raises for wrong options at the caller's line, with the nearest neighbour", function()
    raises("unknown option 'thread' %(did you mean 'threads'%?%)", function() fathom.load(fathom.pocket, { thread = 2 }) end)
    raises("option 'ctx' must be an integer of 1 or more, got 0", function() fathom.load(fathom.pocket, { ctx = 0 }) end)
    raises("option 'dtype'", function() fathom.load(fathom.pocket, { dtype = "f64" }) end)
    raises("dir must be a string", function() fathom.load() end)
    raises("options are given in a table", function() fathom.plan(fathom.pocket, "cpu") end)
  end)
end)

describe("a model", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket)) end)
  teardown(function() model:close() end)

  it("encodes without BOS and without control tokens, unless asked", function()
    local text = "2 + 2 <｜User｜> </think> café"
    local ids = assert(model:encode(text))
    assert.equal(text, model:decode(ids))
    assert.is_true(#assert(model:encode(text, { special = true })) < #ids)
    assert.equal(#ids, model:count(text))
    assert.same({}, model:encode "")
    assert.equal("", model:decode {})
  end)

  it("puts tensors into Lua's hands", function()
    local ids = model:encode "What is 17 + 25?"
    local logits <close> = assert(model:logits(ids))
    assert.same({ #ids, model.config.vocab_size }, logits:shape())
    assert.equal(#ids, #logits)
    assert.equal(logits:get(2, 5), logits:row(2)[5])
    assert.equal(logits:totable()[3][7], logits:get(3, 7))
    assert.equal(4 * #ids * model.config.vocab_size, #logits:bytes())
    local vector <close> = assert(model:embed "Hello")
    assert.same({ model.config.hidden_size }, vector:shape())
    logits:close()
    assert.has_error(function() logits:row(1) end)
  end)

  it("embeds the last token's final-normed state", function()
    local ids = assert(model:encode "Hello")
    local a <close> = assert(model:embed(ids))
    local hidden <close> = assert(model:hidden(ids))
    local b <close> = hidden:slice(model.config.num_hidden_layers + 1, #ids)
    assert.equal(a:bytes(), b:bytes())
  end)

  it("scores strings and ids alike", function()
    local ids = { 0, table.unpack(assert(model:encode "2 + 2 =")) }
    local a = assert(model:score("2 + 2 =", " 4"))
    local b = assert(model:score(ids, assert(model:encode " 4")))
    assert.same(a, b)
    assert.is_true(a.logprob < 0 and #a.tokens == #model:encode " 4")
    assert.same({ logprob = 0.0, tokens = {} }, model:score("x", ""))
  end)

  it("gives nil, err for bad input", function()
    local long = {}
    for i = 1, 2100 do long[i] = 5 end
    fails("format", model:logits {})
    fails("format", model:hidden {})
    fails("format", model:generate {})
    fails("format", model:score({}, { 1 }))
    fails("overflow", model:logits(long))
    fails("overflow", model:generate(long))
    fails("overflow", model:generate(ask(("word "):rep(4000))))
    fails("unsupported", model:generate("x", { schema = { ["not"] = {}, type = "string" } }))
    fails("format", model:generate("x", { grammar = "root ::= x" }))
    fails("io", model:restore "no/such/file")
    local s <close> = assert(model:session())
    fails("format", s:ask("x", { grammar = "y" }):wait())
    fails("format", s:json("x", { schema = { ["$ref"] = "#" } }))
    local task = s:ask(("word "):rep(4000))
    fails("overflow", task:wait())
    assert.equal("overflow", task.err.code)
    assert.is_true(task.done)
    assert.same({}, s:messages())
    local ok, err = pcall(slurp, s:stream(("word "):rep(4000)))
    assert.is_false(ok)
    assert.equal("overflow", err.code)
  end)

  it("raises for wrong calls at the caller's line", function()
    raises("did you mean 'temperature'", function() model:generate("x", { temprature = 1 }) end)
    raises("'temperature' must be a number of 0 or more, got %-1", function() model:generate("x", { temperature = -1 }) end)
    raises("'top_p'", function() model:generate("x", { top_p = 0 }) end)
    raises("'stop'", function() model:generate("x", { stop = { "" } }) end)
    raises("'seed'", function() model:generate("x", { seed = 1.5 }) end)
    raises("outside the vocabulary", function() model:generate { 999999 } end)
    raises("outside the vocabulary", function() model:generate("x", { logit_bias = { [999999] = 1 } }) end)
    raises("token id", function() model:logits { 1, "2" } end)
    raises("goes with messages", function() model:generate("x", { think = false }) end)
    raises("a prompt is", function() model:generate(5) end)
    raises("did you mean 'deepseek%-v3'", function() model:render(ask "x", { template = "deepsek-v3" }) end)
    raises("messages%[1%]%.role", function() model:render { { role = "boss", content = "x" } } end)
    raises("text must be a string", function() model:encode(nil) end)
    raises("unknown option 'n'", function() model:stream("x", { n = 2 }) end)
    raises("unknown option 'milliseconds'", function() model:step { milliseconds = 2 } end)
    local s <close> = assert(model:session())
    raises("did you mean 'max_tokens'", function() s:ask("x", { max_token = 2 }) end)
    raises("session:ask", function() s:ask(7) end)
    raises("unknown option 'sistem'", function() model:session { sistem = "x" } end)
  end)

  it("reports a result that survives JSON", function()
    local r = assert(model:generate(ask "What is 17 + 25?", { logprobs = 2 }))
    assert.equal("stop", r.finish)
    assert.equal(1, r.ids[#r.ids])
    assert.equal(#r.ids, r.usage.completion)
    assert.equal(#r.ids, #r.logprobs)
    assert.equal(2, #r.logprobs[1].top)
    assert.is_true(r.logprobs[1].logprob <= 0)
    assert.equal("17 + 25 = 42\n\\boxed{42}", r.answer)
    assert.is_true(r.text:find("</think>", 1, true) ~= nil and r.think:find("think", 1, true) == nil)
    assert.is_true(math.type(r.seed) == "integer" and math.type(r.usage.prompt) == "integer")
    assert.same(r, json.decode(json.encode(r)))
    assert.same({}, r.tool_calls)
  end)

  it("draws a seed and reports it, and repeats with it", function()
    local a = assert(model:generate(puzzle, { temperature = 1, max_tokens = 40 }))
    local b = assert(model:generate(puzzle, { temperature = 1, max_tokens = 40 }))
    assert.is_true(a.seed ~= b.seed)
    assert.same(a.ids, assert(model:generate(puzzle, { temperature = 1, max_tokens = 40, seed = a.seed })).ids)
  end)

  it("stops at strings, lengths and where the context ends", function()
    local r = assert(model:generate(ask "What is 17 + 25?", { temperature = 0, stop = "= 4" }))
    assert.equal("stop", r.finish)
    assert.equal("17 + 25 ", r.text)
    r = assert(model:generate(ask "What is 17 + 25?", { temperature = 0, max_tokens = 3 }))
    assert.equal("length", r.finish)
    assert.equal(3, #r.ids)
    r = assert(model:generate(ask "What is 17 + 25?", { max_tokens = 0 }))
    assert.same({}, r.ids)
    assert.equal("length", r.finish)
    local small <close> = assert(fathom.load(fathom.pocket, { ctx = 32 }))
    r = assert(small:generate(ask "What is 17 + 25?", { temperature = 0, ignore_eos = true }))
    assert.equal("length", r.finish)
    assert.equal(32, r.usage.prompt + #r.ids)
  end)

  it("gives n samples for one reading of the prompt", function()
    local r = assert(model:generate(puzzle, { n = 5, seed = 3, temperature = 1, max_tokens = 60 }))
    assert.equal(5, #r.samples)
    assert.same(r.ids, r.samples[1].ids)
    assert.same(r.ids, assert(model:generate(puzzle, { seed = 3, temperature = 1, max_tokens = 60 })).ids)
    assert.is_true(table.concat(r.samples[1].ids, " ") ~= table.concat(r.samples[2].ids, " "))
    assert.is_string(json.encode(r))
  end)

  it("streams pieces that make up the text, with channels and ids", function()
    local r = assert(model:generate(ask "What is 17 + 25?", { temperature = 0, logprobs = true }))
    local texts, ids, logprobs, channels = {}, {}, {}, {}
    for piece, info in model:stream(ask "What is 17 + 25?", { temperature = 0, logprobs = true }) do
      texts[#texts + 1] = piece
      table.move(info.ids, 1, #info.ids, #ids + 1, ids)
      table.move(info.logprobs, 1, #info.logprobs, #logprobs + 1, logprobs)
      if channels[#channels] ~= info.channel then channels[#channels + 1] = info.channel end
    end
    assert.equal(r.text, table.concat(texts))
    assert.same(r.ids, ids)
    assert.same(r.logprobs, logprobs)
    assert.same({ "think", "answer" }, channels)
  end)

  it("cancels when a loop is left", function()
    local before = model:stats().tasks
    local n = 0
    for _ in model:stream(puzzle, { temperature = 0 }) do
      n = n + 1
      if n == 3 then break end
    end
    assert.equal(3, n)
    assert.equal(before, model:stats().tasks)
    assert.is_false(model:step())
  end)

  it("has counters", function()
    local stats = model:stats()
    assert.is_true(stats.generated_tokens > 0 and stats.pages > 0 and stats.weight_bytes > 0)
    assert.is_string(json.encode(stats))
  end)

  it("lives on in its sessions when it is closed", function()
    local other = assert(fathom.load(fathom.pocket, { ctx = 256 }))
    local s = assert(other:session { temperature = 0 })
    other:close()
    other:close()
    assert.equal("fathom model (closed)", tostring(other))
    raises("attempt to use a closed model", function() other:encode "x" end)
    assert.is_string(assert(s:ask("Hello!"):wait()).answer)
    s:close()
    s:close()
    assert.equal("fathom session (closed)", tostring(s))
    raises("attempt to use a closed session", function() s:ask "x" end)
  end)
end)

describe("a session", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket)) end)
  teardown(function() model:close() end)

  it("keeps messages in order and caches what it said", function()
    local s <close> = assert(model:session { system = "Facts:\nage of Rimu: 41", temperature = 0 })
    local r = assert(s:ask("Hello!"):wait())
    local t = s:ask "What is 17 + 25?"
    assert.matches("fathom task", tostring(t))
    assert(t:wait())
    local m = s:messages()
    assert.same({ "system", "user", "assistant", "user", "assistant" },
                { m[1].role, m[2].role, m[3].role, m[4].role, m[5].role })
    assert.equal(r.answer, m[3].content)
    assert.equal(r.think, m[3].reasoning_content)
    assert.is_true(t.usage.cached > 0)
    assert.same(m, json.decode(json.encode(m)))
    m[1].content = "changed"
    assert.equal("Facts:\nage of Rimu: 41", s:messages()[1].content)
  end)

  it("renders its messages to the ids that it sampled, while a turn goes on", function()
    local tools = { calculator = { doc = "Evaluate an arithmetic expression.", args = { expression = "string" } } }
    local s <close> = assert(model:session { tools = tools, temperature = 0 })
    local r = assert(s:ask("What is 4821 * 37?"):wait())
    assert.equal("tool", r.finish)
    assert.equal("calculator", r.tool_calls[1].name)
    assert.same({ expression = "4821 * 37" }, r.tool_calls[1].arguments)
    assert.equal('{"expression": "4821 * 37"}', r.tool_calls[1].raw)
    local again = s:ask { role = "tool", content = "178377" }
    assert.matches("178377", assert(again:wait()).answer)
    assert.is_true(again.usage.cached >= r.usage.prompt + r.usage.completion - 8)
    local m = s:messages()
    assert.equal("function", m[2].tool_calls[1].type)
    assert.equal("calculator", m[2].tool_calls[1]["function"].name)
    -- rendered from the plain messages alone, the prompt is the same
    assert.equal(again.usage.prompt, #assert(model:render({ m[1], m[2], m[3] }, { tools = tools })))
  end)

  it("asks in order, though nobody waits", function()
    local s <close> = assert(model:session { temperature = 0 })
    local a, b = s:ask "Hello!", s:ask "Who are you?"
    assert.is_false(a.done)
    while model:step { ms = 20 } do assert.is_true(a.done or not b.done) end
    assert.is_true(a.done and b.done)
    local m = s:messages()
    assert.equal("Hello!", m[1].content)
    assert.equal("Who are you?", m[3].content)
    assert.equal(b.result.answer, m[4].content)
  end)

  it("keeps a reply that was cut short, and takes back a turn that said nothing", function()
    local s <close> = assert(model:session { temperature = 0 })
    local n = 0
    for _ in s:stream "Tell me a story about a fox." do
      n = n + 1
      if n == 4 then break end
    end
    assert.equal(2, #s:messages())
    local t = s:ask "Hello!"
    t:cancel()
    assert.equal("cancelled", t.result.finish)
    assert.equal("cancelled", assert(t:wait()).finish)
    assert.equal(2, #s:messages())
    assert.is_string(assert(s:ask("Hello!"):wait()).answer)
  end)

  it("forks", function()
    local s <close> = assert(model:session { temperature = 0.8, seed = 9 })
    assert(s:ask("Hello!"):wait())
    local f <close> = assert(s:fork())
    local a, b = s:ask "Tell me a story about a fox.", f:ask "Tell me a story about a fox."
    assert.same(assert(a:wait()).ids, assert(b:wait()).ids)
    assert(f:ask("Who are you?"):wait())
    assert.equal(4, #s:messages())
    assert.equal(6, #f:messages())
  end)

  it("is saved and restored with everything it had", function()
    local path = os.tmpname()
    local s <close> = assert(model:session { temperature = 0.8, seed = 9, system = "Be brief.", logit_bias = { [5] = -1.5 },
                                             tools = { f = { doc = "d", args = { a = "string" }, run = print } } })
    assert(s:ask("Hello!"):wait())
    assert.is_true(assert(s:save(path)))
    local r <close> = assert(model:restore(path))
    assert.same(s:messages(), r:messages())
    local a, b = assert(s:ask("Tell me a story about a fox."):wait()), assert(r:ask("Tell me a story about a fox."):wait())
    assert.same(a.ids, b.ids)
    assert.equal(a.seed, b.seed)
    helper.write(path, helper.read(path):gsub("Hello", "Jello"))
    fails("format", model:restore(path))
    os.remove(path)
    fails("io", s:save "no/such/folder/file")
  end)

  it("gives samples up when it is closed while their prompt is read", function()
    local s = assert(model:session())
    local co = coroutine.create(function() return s:sample("Hello", { n = 4 }) end)
    assert(coroutine.resume(co))
    s:close()
    local ok, got, err = coroutine.resume(co)
    assert.same({ true, nil, "cancelled" }, { ok, got, err and err.code })
  end)

  it("samples many answers and stays as it was", function()
    local s <close> = assert(model:session { temperature = 1, seed = 4 })
    assert(s:ask("Hello!"):wait())
    local votes = assert(s:sample(puzzle[1].content, { n = 6, max_tokens = 80 }))
    assert.equal(6, #votes)
    assert.equal(2, #s:messages())
    for i = 2, 6 do assert.is_true(votes[i].usage.cached > 0) end
    assert.same(votes[1].ids, assert(s:ask(puzzle[1].content, { max_tokens = 80 }):wait()).ids)
  end)

  it("gives a direct answer when thoughts are not wanted", function()
    local s <close> = assert(model:session { temperature = 0, think = false })
    local r = assert(s:ask("What is the capital of France?"):wait())
    assert.equal("", r.think)
    assert.matches("Paris", r.answer)
  end)
end)

describe("a task", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket)) end)
  teardown(function() model:close() end)

  it("yields a handle inside coroutines and is moved by step alone", function()
    local s <close> = assert(model:session { temperature = 0 })
    local result
    local co = coroutine.create(function() result = assert(s:ask("What is 17 + 25?"):wait()) end)
    local _, handle = coroutine.resume(co)
    assert.is_table(handle)
    assert.is_false(handle.task.done)
    assert.equal(model, handle.model)
    for _ = 1, 5 do assert(coroutine.resume(co)) end
    assert.equal(0, handle.task.usage.completion)
    while model:step { ms = 2 } do assert(coroutine.resume(co)) end
    if coroutine.status(co) ~= "dead" then assert(coroutine.resume(co)) end
    assert.equal("dead", coroutine.status(co))
    assert.matches("42", result.answer)
  end)

  it("lets many coroutines loop side by side, each with the ids it has alone", function()
    local texts = { "What is 17 + 25?", "Hello!", "Tell me a story about a fox." }
    local alone, got, running = {}, {}, {}
    for i, text in ipairs(texts) do
      alone[i] = assert(model:generate(ask(text), { temperature = 0.8, seed = i })).text
      running[i] = coroutine.create(function()
        local parts = {}
        for piece in model:stream(ask(text), { temperature = 0.8, seed = i }) do parts[#parts + 1] = piece end
        got[i] = table.concat(parts)
      end)
    end
    repeat
      local left = 0
      for _, co in ipairs(running) do
        if coroutine.status(co) ~= "dead" then
          assert(coroutine.resume(co))
          left = left + 1
        end
      end
      model:step { ms = 2 }
    until left == 0
    assert.same(alone, got)
  end)
end)

describe("the same seed", function()
  local model
  local o = { temperature = 0.8, seed = 11, max_tokens = 120 }
  local want

  local function with(changes)
    local out = {}
    for k, v in pairs(o) do out[k] = v end
    for k, v in pairs(changes) do out[k] = v end
    return out
  end

  setup(function()
    model = assert(fathom.load(fathom.pocket))
    want = assert(model:generate(puzzle, o)).ids
  end)
  teardown(function() model:close() end)

  it("gives the same ids with and without drafts", function()
    for _, mtp in ipairs { false, true, 1, 3, "auto" } do
      assert.same(want, assert(model:generate(puzzle, with { mtp = mtp })).ids)
    end
  end)

  it("gives the same ids for any number of threads, and when drafts were not loaded", function()
    for _, opts in ipairs { { threads = 1 }, { threads = 3 }, { mtp = false }, { seqs = 1 } } do
      local other <close> = assert(fathom.load(fathom.pocket, opts))
      assert.same(want, assert(other:generate(puzzle, o)).ids)
    end
  end)

  it("gives the same ids in a batch", function()
    local sessions, tasks = {}, {}
    for i = 1, 4 do
      sessions[i] = assert(model:session())
      tasks[i] = sessions[i]:ask(puzzle[1].content, with { seed = 9 + i, mtp = i ~= 2 })
    end
    assert.same(want, assert(tasks[2]:wait()).ids)
    for _, s in ipairs(sessions) do s:close() end
  end)

  it("gives the same ids for any split of the prompt", function()
    local ids = assert(model:render(puzzle))
    for _, at in ipairs { 1, 7, #ids - 1 } do
      local s <close> = assert(model:session())
      assert(s:ask(table.move(ids, 1, at, 1, {}), { max_tokens = 0 }):wait())
      local t = s:ask(table.move(ids, at + 1, #ids, 1, {}), o)
      assert.same(want, assert(t:wait()).ids)
    end
  end)
end)

describe("a plan", function()
  it("counts what loading takes, no more", function()
    for _, mtp in ipairs { true, false } do
      local plan = assert(fathom.plan(fathom.pocket, { mtp = mtp }))
      local model <close> = assert(fathom.load(fathom.pocket, { mtp = mtp }))
      assert.equal(plan.weights, model:stats().weight_bytes)
    end
  end)
end)

describe("calls that cannot be right", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket)) end)
  teardown(function() model:close() end)

  it("leave the model as it was, whatever number was given", function()
    for name, value in pairs { n = 1e300, seed = 1e300, max_tokens = 1e300, mtp = 1e300, temperature = 1e300,
                               repeat_penalty = 1e300, logit_bias = { [5] = 0 / 0 }, stop_ids = { "x" } } do
      raises("option '" .. name .. "' must be", function() model:generate("x", { [name] = value }) end)
    end
    for _, o in ipairs { { top_k = 1 << 40 }, { max_tokens = math.maxinteger, stop_ids = { 5 } }, { seed = -1 } } do
      o.temperature, o.ignore_eos = 0, false
      assert(model:generate(ask "What is 3 + 4?", o))
    end
    assert.equal(0, model:stats().tasks)
  end)

  it("keep integers integers and end at stop_ids", function()
    local free = assert(model:generate(ask "What is 17 + 25?", { temperature = 0, seed = 5.0 }))
    assert.equal("integer", math.type(free.seed))
    local r = assert(model:generate(ask "What is 17 + 25?", { temperature = 0, stop_ids = { free.ids[4] } }))
    assert.equal("stop", r.finish)
    assert.same(table.move(free.ids, 1, 4, 1, {}), r.ids)
    raises("stop_ids: ids%[1%] is 999999, outside", function() model:generate("x", { stop_ids = { 999999 } }) end)
  end)

  it("fail when every id is banned", function()
    local all = {}
    for id = 0, model.config.vocab_size - 1 do all[id] = -math.huge end
    for _, temperature in ipairs { 0, 1 } do
      fails("limit", model:generate("x", { temperature = temperature, logit_bias = all }))
    end
  end)

  it("name the colon where a dot was written", function()
    raises("with a colon", function() model.generate("x") end)
    raises("with a colon", function() model.logits({}, { 1 }) end)
    raises("with a colon", function() model.step { ms = 2 } end)
  end)

  it("name the list where one message was given", function()
    raises("messages are a list", function() model:generate { role = "user", content = "x" } end)
  end)

  it("raise in the loop what keeps a stream from starting", function()
    local ok, err = pcall(slurp, model:stream({}))
    assert.is_false(ok)
    assert.equal("format", err.code)
  end)

  it("are refused at loading: unknown parts of parallel, more ctx than the model has, half a path", function()
    raises("unknown option 'epp' %(did you mean 'ep'%?%)", function() fathom.plan(fathom.pocket, { parallel = { epp = 2 } }) end)
    raises("option 'threads' must be an integer from 1 to 1024", function() fathom.load(fathom.pocket, { threads = 1 << 20 }) end)
    fails("overflow", fathom.load(fathom.pocket, { ctx = 100000 }))
    raises("dir must be a path", function() fathom.plan(fathom.pocket .. "\0zz") end)
    fails("device", fathom.load(fathom.pocket, { device = "cudafoo" }))
  end)
end)

describe("reading a reply", function()
  -- A made-up model: ids 1.. stand for bytes, 300 and 301 for the marks of thoughts.
  local m = {
    has_tokenizer = function() return true end,
    added = function(_, name) return ({ ["<think>"] = 300, ["</think>"] = 301 })[name] end,
    decode = function(_, ids)
      local out = {}
      for i, id in ipairs(ids) do out[i] = id == 300 and "<think>" or id == 301 and "</think>" or string.char(id) end
      return table.concat(out)
    end,
  }

  it("sorts bytes that come later than their ids into the right channel", function()
    local r = reply.new(m, reply.marks(m), true)
    local out = {}
    local function take(id, text, last)
      local pieces = {}
      r:take(pieces, id, text, last or false)
      for _, p in ipairs(pieces) do out[#out + 1] = p.info.channel .. ":" .. p.text end
    end
    take(97, "")
    take(98, "")                     -- "ab" is held back: it may become a stop string
    take(301, "")
    take(99, "ab</think>c")
    take(100, "d", true)
    assert.same({ "think:ab", "think:</think>", "answer:c", "answer:d" }, out)
    local result = r:result "stop"
    assert.equal("ab", result.think)
    assert.equal("cd", result.answer)
    assert.equal("ab</think>cd", result.text)
    assert.same({ 97, 98, 301, 99, 100 }, result.ids)
  end)

  it("knows from the prompt's ids whether thoughts are open", function()
    local marks = reply.marks(m)
    assert.is_true(reply.opened(marks, { 5, 300, 6 }))
    assert.is_false(reply.opened(marks, { 5, 300, 6, 301 }))
    assert.is_false(reply.opened(marks, { 5, 6 }))
  end)
end)

describe("json", function()
  it("reads and writes strictly, keeping the order of keys", function()
    local text = '{"b": [1, 2.5, true, null, "\\n\\"é"], "a": {}, "c": []}'
    assert.equal(text, json.encode(assert(json.decode(text))))
    assert.equal("𝄞", json.decode '"\\ud834\\udd1e"')
    assert.equal("integer", math.type(json.decode "12"))
    assert.equal("float", math.type(json.decode "12.0"))
    for _, bad in ipairs { "", "[1,]", "{\"a\" 1}", "01", "nul", "[1] 2", '"\1"', '"\\x"', ("["):rep(1000), "{1: 2}", "'a'" } do
      local value, why = json.decode(bad)
      assert.is_nil(value)
      assert.is_string(why)
    end
    assert.has_error(function() json.encode(0 / 0) end)
    assert.has_error(function() json.encode(print) end)
  end)
end)

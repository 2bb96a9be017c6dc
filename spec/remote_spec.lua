--- remote_spec.lua - a server as a backend, against a scripted server in a process of its own (scripted_server.lua).
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"
local request = require "fathom.remote.request"
local sse = require "fathom.remote.sse"

local has_net, net = pcall(require, "fathom.net")
local has_luv = pcall(require, "luv")
local KEY = "sk-very-secret-0123456789"

-- ---- the server -----------------------------------------------------------------------------------------------------

local server, base

local function get(path)
  local client = net.client()
  local transfer <close> = assert(client:request { url = base .. path, total_ms = 5000 })
  local body = ""
  repeat
    local n = client:step(50)
    body = body .. transfer:take()
  until n == 0
  client:close()
  return body
end

local function seen(name)
  local all, list = assert(json.decode(get "/seen")), {}
  for _, r in ipairs(all.requests) do
    if r.path:match "^/([%w_]+)" == name then list[#list + 1] = r end
  end
  return list, all
end

local function connect(name, o)
  o = o or {}
  o.url, o.key, o.model, o.patience = base .. "/" .. name, KEY, "m", o.patience or 0.001
  o.timeout = o.timeout or { idle = 5, total = 20 }
  return assert(fathom.remote(o))
end

local hi = { { role = "user", content = "hi" } }

local function ask(name, o, how)
  local r <close> = connect(name, how)
  return r:generate(hi, o)
end

local function fails(code, pattern, value, err)
  assert.is_nil(value)
  assert.equal(code, err.code)
  assert.matches(pattern, tostring(err))
  assert.is_nil(json.encode(err):find(KEY, 1, true))
end

local function raises(pattern, f)
  local ok, err = pcall(f)
  assert.is_false(ok)
  assert.matches("remote_spec.lua:%d+: ", err)
  assert.matches(pattern, err)
end

-- ---- without a server -------------------------------------------------------------------------------------------------

describe("server-sent events", function()
  local text = "\xEF\xBB\xBFdata: one\n\n: note\r\nevent: x\r\ndata:two\r\ndata: three\r\n\r\n\rdata\r\rid: 5\n\ndata:  é\n\n"

  it("are read the same however the bytes are cut", function()
    for size = 1, #text do
      local reader, got = sse.new(), {}
      for at = 1, #text, size do
        for _, data in ipairs(reader:feed(text:sub(at, at + size - 1))) do got[#got + 1] = data end
      end
      assert.same({ "one", "two\nthree", "", " é" }, got)
      assert.is_nil(reader:rest())
    end
  end)

  it("without their blank line are told at the end", function()
    local reader = sse.new()
    assert.same({}, reader:feed "data: a\ndata: b")
    assert.equal("a\nb", reader:rest())
  end)

  it("are bounded", function()
    local reader = sse.new()
    for _ = 1, 16 do assert.same({}, reader:feed(("x"):rep(1 << 20))) end
    assert.matches("larger than", select(2, reader:feed "x"))
  end)
end)

describe("the body of a request", function()
  local function body(prompt, o, how)
    local path, text = request.body(prompt, o, how or { model = "m", stream = true, n = 1 })
    return assert(json.decode(text)), path
  end

  it("names options as servers do", function()
    local b, path = body({ messages = hi }, { temperature = 0, max_tokens = 5, top_k = 3, repeat_penalty = 1.1, stop = "x",
      stop_ids = { 7 }, logit_bias = { [5] = -math.huge, [6] = 2 }, think = false, logprobs = 3, seed = 9, mtp = true, priority = 2,
      schema = { x = "integer" }, tools = { add = { doc = "adds", args = { a = "integer" } } } },
      { model = "m", stream = true, n = 2, extra = { guided_regex = "a+" } })
    assert.equal("/chat/completions", path)
    assert.same({ "m", true, 2, 0, 5, 3, 1.1, 9, 3, "a+" }, { b.model, b.stream, b.n, b.temperature, b.max_tokens, b.top_k,
                b.repetition_penalty, b.seed, b.top_logprobs, b.guided_regex })
    assert.same({ "x", 7, -100, 2, false, false }, { b.stop[1], b.stop_token_ids[1], b.logit_bias["5"], b.logit_bias["6"],
                b.chat_template_kwargs.thinking, b.chat_template_kwargs.enable_thinking })
    assert.same({ "json_schema", "integer", false }, { b.response_format.type,
                b.response_format.json_schema.schema.properties.x.type, b.response_format.json_schema.schema.additionalProperties })
    assert.same({ "function", "add", "adds", "integer" }, { b.tools[1].type, b.tools[1]["function"].name,
                b.tools[1]["function"].description, b.tools[1]["function"].parameters.properties.a.type })
    assert.is_nil(b.mtp or b.priority)
    b = body({ messages = hi }, { max_tokens = 5, grammar = "g", repeat_penalty = 2 }, { model = "m", n = 1,
             fields = { max_tokens = "max_completion_tokens", grammar = "ebnf", repeat_penalty = "rp", min_p = "mp" } })
    assert.same({ 5, "g", 2 }, { b.max_completion_tokens, b.ebnf, b.rp })
    assert.is_nil(b.max_tokens or b.repetition_penalty or b.mp)
    assert.equal("json_object", body({ messages = hi }, { schema = {} }).response_format.type)
  end)

  it("pairs calls with their results, and leaves old thoughts out", function()
    local list = { { role = "user", content = "1 + 2?" }, { role = "assistant", content = "3", reasoning_content = "old" },
      { role = "user", content = "both" }, { role = "assistant", content = "", reasoning_content = "now",
        tool_calls = { { id = "k", ["function"] = { name = "a", arguments = "{}" } }, { name = "b", arguments = { x = 1 } } } },
      { role = "tool", content = "A" }, { role = "tool", content = "B" } }
    local out = request.messages(list)
    assert.is_nil(out[2].reasoning_content)
    assert.equal("now", out[4].reasoning_content)
    assert.same({ "k", "call_4_2", "k", "call_4_2" }, { out[4].tool_calls[1].id, out[4].tool_calls[2].id, out[5].tool_call_id,
                                                        out[6].tool_call_id })
    assert.equal('{"x": 1}', out[4].tool_calls[2]["function"].arguments)
  end)

  it("continues texts and ids", function()
    local b, path = body({ text = "Once" }, { logprobs = true })
    assert.same({ "/completions", "Once", 0 }, { path, b.prompt, b.logprobs })
    assert.same({ 1, 2 }, table.move(body({ ids = { 1, 2 } }, {}).prompt, 1, 2, 1, {}))
    -- as long as a model's of this process: left to a server it would be 16
    assert.equal(1024, b.max_tokens)
    assert.equal(5, body({ text = "Once" }, { max_tokens = 5 }).max_tokens)
    assert.is_nil(body({ messages = { { role = "user", content = "Hi" } } }, {}).max_tokens)
  end)
end)

describe("whatever a server sends", function()
  local answer = require "fathom.remote.answer"
  local desk = require "fathom.desk"
  local job = require "fathom.job"

  local good = { choices = { { index = 0, delta = { content = "a", reasoning_content = "b", tool_calls = { { index = 0, id = "c",
    ["function"] = { name = "f", arguments = "{}" } } } }, logprobs = { content = { { token = "a", logprob = -1, top_logprobs =
    { { token = "a", logprob = -1 } } } }, tokens = { "a" }, token_logprobs = { -1 }, top_logprobs = { { a = -1 } } },
    finish_reason = "stop" }, { index = 1, text = "t", message = { content = "x" } } }, usage = { prompt_tokens = 1,
    completion_tokens = 2, prompt_tokens_details = { cached_tokens = 1 } }, error = json.null }

  -- A small generator of its own: the same numbers each time, whoever else draws some.
  local state = 1
  local function draw(n)
    state = (state * 1103515245 + 12345) & 0x7fffffff
    return (state >> 8) % n + 1
  end
  local junk = { 0, -1, 1e300, 5, "", "text", true, false, json.null, json.array {}, json.object {}, json.array { json.null, 3 } }

  -- A copy in which some values are others.
  local function spoilt(value)
    if draw(12) == 1 then return junk[draw(#junk)] end
    if type(value) ~= "table" or value == json.null then return value end
    local out = {}
    for _, key in ipairs(value[1] and { 1, 2 } or json.keys(value)) do out[key] = spoilt(value[key]) end
    return setmetatable(out, getmetatable(value))
  end

  it("ends in a result or in an error", function()
    local d = desk.new({}, { begin = function() end, drop = function() end })
    local ends = { result = 0, err = 0 }
    for _ = 1, 1000 do
      local t = job.new(d, {}, { seed = 1, logprobs = 1 }, { prepare = function() return {} end })
      local a = answer.new({ [0] = t }, { cost = function() end, inline = draw(2) == 1 })
      for _ = 1, draw(4) do
        local ok, err = a:take(json.encode(spoilt(good)))
        if not ok then
          t:fail(err)
          break
        end
      end
      local _, missing = a:finish()
      assert.is_true(t.done or missing[1] == 0)
      if t.done then
        local kind = t.err and "err" or "result"
        ends[kind] = ends[kind] + 1
        assert.is_string(json.encode(t.result or t.err))
      end
    end
    assert.is_true(ends.result > 100 and ends.err > 20)
  end)
end)

describe("without the network library", function()
  it("the core loads, and fathom.remote says what is missing", function()
    local folder, remove = helper.folder()
    assert(os.execute(("ln -s \"$PWD/%s/fathom.so\" %s/fathom.so"):format(helper.build, folder)))
    local out = helper.script(("LUA_CPATH='%s/?.so'"):format(folder), [[
      local fathom = require "fathom"
      assert(fathom.load(fathom.pocket)):close()
      local r, err = fathom.remote { url = "http://127.0.0.1" }
      print(r, err.code, err.message, err.hint) ]])
    remove()
    assert.matches("nil%s+unsupported%s+this build has no network library.*make deps%-net", out)
  end)
end)

if not (has_net and net.client and has_luv) then
  describe("a remote", function()
    pending "needs libcurl's headers at building, and luv for the scripted server"
  end)
  return
end

-- ---- with one -----------------------------------------------------------------------------------------------------------

describe("a remote", function()
  setup(function()
    server = assert(io.popen((os.getenv "LUA" or "lua5.4") .. " spec/scripted_server.lua"))
    base = "http://127.0.0.1:" .. assert(server:read "l")
    assert.matches(":%d+$", base)
  end)
  teardown(function()
    get "/quit"
    server:close()
  end)

  it("answers in the shape of a model's results", function()
    local r <close> = connect("plain", { price = { input = 1, cached = 0.1, output = 2 } })
    local a = assert(r:generate(hi, { seed = 7, temperature = 0 }))
    assert.same({ "17 + 25 = 42", "It is 42.", "stop", 7 }, { a.think, a.answer, a.finish, a.seed })
    assert.equal("<think>17 + 25 = 42</think>It is 42.", a.text)
    assert.same({}, a.ids)
    assert.same({ 100, 60, 20, 5, false }, { a.usage.prompt, a.usage.cached, a.usage.completion, a.usage.reasoning, a.usage.exact })
    assert.is_true(math.abs(a.usage.cost - (40 * 1 + 60 * 0.1 + 20 * 2) / 1e6) < 1e-12)
    assert.is_string(json.encode(a))
    local s = r:stats()
    assert.same({ 1, 0, 100, a.usage.cost }, { s.requests, s.retries, s.prompt, s.cost })
    local sent = seen("plain")[1]
    assert.same({ "POST", "Bearer " .. KEY, "application/json", "m", 0, 7, "hi" }, { sent.method, sent.headers.authorization,
                sent.headers["content-type"], sent.body.model, sent.body.temperature, sent.body.seed, sent.body.messages[1].content })
  end)

  it("reads a stream cut into single bytes, with any end of line", function()
    assert.equal("Grüße, 世界 🐟", assert(ask "bytes").answer)
  end)

  it("streams pieces with channels that add up to the text", function()
    local r <close> = connect "plain"
    local parts, channels = {}, {}
    for piece, info in r:stream(hi) do parts[#parts + 1], channels[info.channel] = piece, (channels[info.channel] or 0) + 1 end
    assert.equal("<think>17 + 25 = 42</think>It is 42.", table.concat(parts))
    assert.same({ think = 4, answer = 2 }, channels)
  end)

  it("takes a whole reply where the server streams none, and thoughts in `reasoning`", function()
    local a = assert(ask("whole", {}, { stream = false }))
    assert.same({ "easy", "42", 3, 1, 2 }, { a.think, a.answer, a.usage.prompt, a.usage.cached, a.usage.completion })
    assert.is_false(seen("whole")[1].body.stream)
  end)

  it("joins the parts of tool calls and keeps their text", function()
    local r <close> = connect "tools"
    local s = r:session {}
    local a = assert(s:ask("1 + 2?"):wait())
    assert.equal("tool", a.finish)
    assert.same({ name = "add", raw = '{"a": 1, "b": 2}', id = "call_a" }, { name = a.tool_calls[1].name, raw = a.tool_calls[1].raw,
                                                                             id = a.tool_calls[1].id })
    assert.equal(2, a.tool_calls[1].arguments.b)
    assert.same({}, setmetatable(a.tool_calls[2].arguments, nil))
    assert.matches("JSON", a.tool_calls[3].error)
    assert.equal("call_b", s:messages()[2].tool_calls[2].id)
    s:ask({ { role = "tool", content = "3" }, { role = "tool", content = "noon" }, { role = "tool", content = "?" } }):wait()
    assert.equal("call_b", seen("tools")[2].body.messages[4].tool_call_id)
  end)

  it("asks for n samples at once, and again where the server gives fewer", function()
    local r <close> = connect "samples"
    local list = assert(r:session({}):sample("x", { n = 3, seed = 4 }))
    assert.same({ "sample 0", "sample 1", "sample 2" }, { list[1].answer, list[2].answer, list[3].answer })
    assert.equal(1, r:stats().requests)
    assert.same({ 100, 60, 100, 100 }, { list[1].usage.prompt, list[1].usage.cached, list[2].usage.prompt, list[2].usage.cached })
    local one <close> = connect "only_one"
    local a = assert(one:generate(hi, { n = 3, seed = 4 }))
    assert.same({ "seed 4", "seed 5", "seed 6" }, { a.samples[1].answer, a.samples[2].answer, a.samples[3].answer })
    assert.same({ 4, 5, 6 }, { a.samples[1].seed, a.samples[2].seed, a.samples[3].seed })
    assert.equal(3, one:stats().requests)
    assert.equal("seed 5", assert(ask("only_one", { n = 2, seed = 4 }, { split_n = true })).samples[2].answer)
    assert.is_nil(seen("only_one")[4].body.n)
  end)

  it("keeps a conversation on this side; forks go their own way", function()
    local r <close> = connect "echo"
    local s = r:session { system = "S" }
    s:ask("one"):wait()
    local fork = s:fork()
    assert.equal("two", fork:ask("two"):wait().answer)
    s:ask("three"):wait()
    local list = seen "echo"
    assert.equal(4, #list[2].body.messages)
    assert.same({ "S", "one", "one", "three" }, { list[3].body.messages[1].content, list[3].body.messages[2].content,
                                                  list[3].body.messages[3].content, list[3].body.messages[4].content })
  end)

  it("gives logprobs, documents and continued texts", function()
    local a = assert(ask("logprobs", { logprobs = 2 }))
    assert.same({ token = "Hi", logprob = -0.25, top = { { token = "Hi", logprob = -0.25 }, { token = "Ho", logprob = -2 } } },
                a.logprobs[1])
    local r <close> = connect "point"
    assert.equal(3, (assert(r:session({}):json("where?", { schema = { x = "integer" } }))).x)
    fails("format", "value.x must be of type string", r:session({}):json("where?", { schema = { x = "string" } }))
    local cut <close> = connect "cut"
    fails("limit", "cut before its document", cut:session({}):json("where?", { schema = { x = "integer" } }))
    local text <close> = connect "text"
    local t = assert(text:generate("hello", { logprobs = 2 }))
    assert.same({ " world", "length", " there" }, { t.text, t.finish, t.logprobs[1].top[2].token })
  end)

  it("finds thoughts inside the text where it is told to", function()
    local a = assert(ask("inline", {}, { inline_think = true }))
    assert.same({ "hm <b>", "42", " <think>hm <b> </think>42" }, { a.think, a.answer, a.text })
    assert.equal("<think>hm <b> </think>42", assert(ask "inline").answer)
  end)

  -- ---- failures ---------------------------------------------------------------------------------------------------------

  it("tries again when the server is busy, fails, or goes away", function()
    local r <close> = connect("flaky", { retries = 4 })
    assert.equal("at last", assert(r:generate(hi)).answer)
    assert.same({ 5, 4 }, { r:stats().requests, r:stats().retries })
    assert.equal("back", assert(ask "date").answer)
  end)

  it("gives up in time, with what the server said", function()
    local r <close> = connect("busy", { retries = 2 })
    fails("limit", "answered 429: too many.*concurrency", r:generate(hi))
    assert.equal(3, #seen "busy")
    fails("limit", "503: down.*come back in 999 s", ask "much_later")
    assert.equal(1, #seen "much_later")
    fails("limit", "come back in %d+ s", ask "never")
    local nobody <close> = assert(fathom.remote { url = "http://127.0.0.1:1", retries = 1, patience = 0.001 })
    fails("network", "connect", nobody:generate(hi))
    assert.equal(2, nobody:stats().requests)
  end)

  it("never tries again after a piece was handed out", function()
    local r <close> = connect "half"
    local parts = {}
    local ok, err = pcall(function()
      for piece in r:stream(hi) do parts[#parts + 1] = piece end
    end)
    assert.is_false(ok)
    assert.equal("network", err.code)
    assert.same({ "half a " }, parts)
    assert.equal(1, #seen "half")
  end)

  it("says what is wrong with bad servers", function()
    fails("format", "no JSON object: JSON, byte 2", ask "no_json")
    fails("network", "broke off: out of memory", ask "error_inside")
    fails("format", "no JSON object", ask "no_object")
    fails("format", "text/html.*OpenAI%-compatible", ask "page")
    fails("limit", "head of the reply", ask "long_head")
    fails("limit", "head of the reply", ask "many_heads")
    fails("network", "HTTP/0.9", ask("nothing", {}, { retries = 0 }))
    fails("limit", "larger than 50000 bytes", ask("huge", {}, { max_bytes = 50000 }))
    fails("format", "an event is larger", ask "endless_line")
    fails("limit", "content filter", ask "filtered")
    fails("overflow", "maximum context length", ask "too_long")
    fails("network", "302: it has moved to http://127.0.0.1:1/.*not followed", ask "moved")
    fails("network", "404: no such case", ask "unknown_case")
    fails("network", "ended before the reply", ask("no_choice", {}, { retries = 0 }))
    assert.equal("done", assert(ask "open_end").answer)
    assert.equal("all said", assert(ask "no_reason").answer)
  end)

  it("waits neither for silence nor without end", function()
    local began = net.now()
    fails("network", "silent for 100 ms", ask("silent", {}, { timeout = { idle = 0.1 }, retries = 0 }))
    fails("network", "timed out", ask("breath", {}, { timeout = 0.2, retries = 0 }))
    assert.is_true(net.now() - began < 2000)
  end)

  it("keeps the key to itself", function()
    local r <close> = connect("refused", { headers = { ["X-Other"] = "another-secret" } })
    fails("network", "401: wrong key: Bearer %*%*%*.*fathom.remote{ key", r:generate(hi))
    assert.is_nil(tostring(r):find(KEY, 1, true))
    local function look(t, done)
      for k, v in pairs(t) do
        assert.is_false(type(v) == "string" and (v:find(KEY, 1, true) or v:find("another-secret", 1, true)) ~= nil, tostring(k))
        if type(v) == "table" and not done[v] then
          done[v] = true
          look(v, done)
        end
      end
    end
    local task = r:session({}):ask "x"
    r:step { ms = 1 }
    look(r, {})
    look(task, {})
  end)

  -- ---- many at once, steps, cancelling --------------------------------------------------------------------------------

  it("moves many requests at once, and no more than it may", function()
    local r <close> = connect "shy"
    local began, tasks = net.now(), {}
    for i = 1, 20 do tasks[i] = r:session({}):ask "x" end
    for _, t in ipairs(tasks) do assert.equal("here", assert(t:wait()).answer) end
    assert.is_true(net.now() - began < 1000)                       -- one after another: 2,000
    local _, all = seen "shy"
    assert.is_true(all.most_open >= 20)
    local narrow <close> = connect("shy", { concurrency = 2 })
    for i = 1, 6 do tasks[i] = narrow:session({}):ask "x" end
    began = net.now()
    narrow:step { ms = 5 }
    assert.equal(6, narrow:stats().running)
    for i = 1, 6 do assert(tasks[i]:wait()) end
    assert.is_true(net.now() - began >= 290)
  end)

  it("never holds the thread longer than it may", function()
    local r <close> = connect "slow"
    local task, took = r:session({}):ask "x", {}
    local began = net.now()
    while net.now() - began < 200 do
      local before = net.now()
      assert.is_true(r:step { ms = 5 })
      took[#took + 1] = net.now() - before
    end
    table.sort(took)
    assert.is_true(took[#took // 2 + 1] < 10)                      -- half of the turns: others use this machine too
    assert.is_true(#task.queue > 3)
    task:cancel()
    assert.is_false(r:step { ms = 5 })
  end)

  local function ends(name)
    local began = net.now()
    repeat
      local list = seen(name)
      if list[#list].ended then return list[#list].ended end
    until net.now() - began > 2000
    return "not"
  end

  it("drops the connection when a task is cancelled, a loop is left or the remote is closed", function()
    local r <close> = connect "slow"
    local task = r:session({}):ask "x"
    while #task.queue < 2 and not task.done do r:step { ms = 20 } end
    task:cancel()
    assert.equal("cancelled", task.result.finish)
    assert.matches("^1 2 ", task.result.text)
    assert.equal("dropped", ends "slow")
    local pieces, _, _, guard = r:stream(hi)
    pieces()
    getmetatable(guard).__close()
    assert.equal("dropped", ends "slow")
    local other = connect "slow"
    local running = other:session({}):ask "x"
    while #running.queue < 1 and not running.done do other:step { ms = 20 } end
    other:close()
    other:close()
    assert.equal("cancelled", running.result.finish)
    assert.equal("dropped", ends "slow")
    raises("closed remote", function() other:generate(hi) end)
  end)

  it("lets go of what a dropped coroutine waited for", function()
    local r <close> = connect "slow"
    local before = #seen "slow"
    do
      local co = coroutine.create(function() return r:generate(hi, { n = 3 }) end)
      coroutine.resume(co)
      for _ = 1, 5 do
        r:step { ms = 20 }
        coroutine.resume(co)
      end
    end
    assert.equal(before + 1, #seen "slow")
    collectgarbage()
    collectgarbage()
    assert.is_false(r:step { ms = 0 })
    assert.equal("dropped", ends "slow")
  end)

  it("yields in coroutines, beside others", function()
    local r <close> = connect "shy"
    local done = 0
    local list = {}
    for i = 1, 3 do
      list[i] = coroutine.create(function()
        assert.equal("here", assert(r:generate(hi)).answer)
        done = done + 1
      end)
    end
    while done < 3 do
      for _, co in ipairs(list) do
        if coroutine.status(co) == "suspended" then assert(coroutine.resume(co)) end
      end
      r:step { ms = 10 }
    end
  end)

  it("goes where url says, whatever proxies the environment names", function()
    local out = helper.script(("http_proxy=http://127.0.0.1:1 ALL_PROXY=http://127.0.0.1:1 LUA_CPATH='%s/?.so;;'"):format(helper.build), ([[
      local r = assert(require("fathom").remote { url = "%s/plain", retries = 0 })
      print(assert(r:generate { { role = "user", content = "hi" } }).answer) ]]):format(base))
    assert.matches("It is 42", out)
    local proxied <close> = connect("plain", { proxy = "http://127.0.0.1:1", retries = 0 })
    fails("network", "connect", proxied:generate(hi))
  end)

  it("waits inside an event loop, beside its other work", function()
    local out = helper.script(("LUA_CPATH='%s/?.so;;'"):format(helper.build), ([[
      local uv, r = require "luv", assert(require("fathom").remote { url = "%s/shy" })
      require("fathom.loop").luv()
      local ticks, done, clock = 0, 0, uv.new_timer()
      clock:start(5, 5, function() ticks = ticks + 1 if done == 2 then clock:close() end end)
      for _ = 1, 2 do
        coroutine.wrap(function()
          print(assert(r:generate { { role = "user", content = "hi" } }).answer)
          done = done + 1
        end)()
      end
      uv.run()
      print(ticks > 3 and "the clock had its turn") ]]):format(base))
    assert.matches("here\nhere\nthe clock had its turn", out)
  end)

  it("checks certificates, unless it is told whom to trust", function()
    if not os.execute "command -v openssl >/dev/null" then return pending "no openssl here" end
    local folder, remove = helper.folder()
    assert(os.execute(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost " ..
      "-addext subjectAltName=IP:127.0.0.1 -keyout %s/key.pem -out %s/cert.pem 2>/dev/null"):format(folder, folder)))
    -- a listener told to use port 0 says which one it got
    local tls = assert(io.popen(("echo $$; exec openssl s_server -accept 127.0.0.1:0 -www -key %s/key.pem -cert %s/cert.pem 2>&1")
                                :format(folder, folder)))
    local pid, said = tls:read "l", tls:read "l"
    while not said:find "^ACCEPT" do said = assert(tls:read "l") end
    local url = "https://127.0.0.1:" .. said:match ":(%d+)$"
    local stranger <close> = assert(fathom.remote { url = url, retries = 0, timeout = 5 })
    fails("network", "certificate", stranger:generate(hi))
    local friend <close> = assert(fathom.remote { url = url, retries = 0, timeout = 5, ca = folder .. "/cert.pem" })
    local value, err = friend:generate(hi)
    os.execute("kill " .. pid)
    tls:close()
    remove()
    assert.is_nil(value)
    assert.is_nil(err.message:find "certificate", err.message)     -- it came through, and found no model there
  end)

  it("frees its handles in any order", function()
    for order = 1, 3 do
      local client = net.client()
      local transfer = assert(client:request { url = base .. "/slow/x", body = "{}" })
      client:step(20)
      if order == 1 then transfer:close() end
      client:close()
      if order == 2 then assert.same({ "failed", "cancelled" }, table.move({ transfer:state() }, 1, 2, 1, {})) end
      transfer:close()
      client:close()
      assert.has_error(function() transfer:take() end, "attempt to use a closed transfer")
      assert.has_error(function() client:step(1) end, "attempt to use a closed client")
    end
    do
      local client = net.client()
      client:request { url = base .. "/slow/x", body = "{}" }
      client:step(20)
    end
    collectgarbage()
  end)

  it("refuses wrong calls at their line, and options that a server would not understand by name", function()
    raises("did you mean 'url'", function() fathom.remote { urll = "x" } end)
    raises("'url' is missing", function() fathom.remote {} end)
    raises("url must be http", function() fathom.remote { url = "ftp://x" } end)
    raises("no user or password", function() fathom.remote { url = "http://me:pw@host" } end)
    raises("control characters", function() fathom.remote { url = "http://x", key = "a\nb" } end)
    raises("headers are", function() fathom.remote { url = "http://x", headers = { ["A\r\nB"] = "x" } } end)
    raises("did you mean 'output'", function() fathom.remote { url = "http://x", price = { outputs = 1 } } end)
    raises("did you mean 'idle'", function() fathom.remote { url = "http://x", timeout = { idel = 1 } } end)
    local r <close> = connect "plain"
    raises("did you mean 'temperature'", function() r:generate(hi, { temperatur = 1 }) end)
    raises("from options to names", function() fathom.remote { url = "http://x", fields = { overflow = "x" } } end)
    fails("unsupported", "no option 'grammar'.*fields", r:generate(hi, { grammar = "root ::= x" }))
    fails("unsupported", "'overflow'", r:generate(hi, { overflow = "shift" }))
    assert(r:generate(hi, { mtp = false, priority = 1, overflow = "error" }))
  end)
end)

describe("the example of a remote", function()
  it("talks to our own server in another process", function()
    if os.getenv "FATHOM_ASAN" then return pending "a sanitizer makes the server slow" end
    if not net.server then return pending "no libmicrohttpd here" end
    local out = helper.script(("LUA_CPATH='%s/?.so;;'"):format(helper.build), "arg = { [0] = 'examples/12_remote.lua' } dofile(arg[0])")
    assert.matches("answer: 17 %+ 25 = 42", out)
    assert.matches("x = %d+, y = %d+", out)
    assert.matches("20 %+ 30 = 50", out)
    assert.matches("13 requests", out)
  end)
end)

-- The server under clients that come, wait, leave and do not listen; its limits, its key, its end.
local fathom = require "fathom"
local helper = require "spec.helper"
local http = require "spec.http"
local json = require "fathom.json"
local socket = require "socket"

local has_server = pcall(function() return assert(require("fathom.net").server) end)
if not has_server then
  describe("the server's flow", function() it("is built", function() pending "no libmicrohttpd here" end) end)
  return
end

local function user(text) return { { role = "user", content = text } } end

-- A reply that goes on for long.
local function endless(more)
  local body = { messages = user "Tell me a story about a fox.", stream = true, ignore_eos = true, max_tokens = 1500 }
  for k, v in pairs(more or {}) do body[k] = v end
  return http.request("POST", "/v1/chat/completions", body)
end

describe("the server", function()
  local model, server

  local function start(opts)
    if server then server:close() end
    server = assert(fathom.serve(model, opts))
    return server
  end

  lazy_setup(function() model = assert(fathom.load(fathom.pocket, { device = "cpu", seqs = 2 })) end)
  after_each(function()
    if server then server:close() end
    server = nil
    assert.equal(0, model:stats().sessions)
  end)
  lazy_teardown(function() model:close() end)

  local function idle() return #server.jobs == 0 and model:stats().tasks == 0 end

  describe("when a client goes away", function()
    it("stops writing at once", function()
      start()
      local c = http.open(server)
      c:send(endless())
      http.until_true(server, function() return not c:pull() and c:so_far():find("content", 1, true) end)
      c:close()
      for _ = 1, 3 do server:step { ms = 5 } end
      assert.is_true(idle())
      assert.equal(1, server:stats().requests["/v1/chat/completions 499"])
      assert.equal(1, server:stats().dropped)
    end)

    it("forgets what waits for its turn, and what is still being read", function()
      start()
      local running, waiting = {}, {}
      for i = 1, 2 do
        running[i] = http.open(server)
        running[i]:send(endless())
      end
      http.until_true(server, function() return server:stats().generating == 2 end)
      for i = 1, 3 do
        waiting[i] = http.open(server)
        waiting[i]:send(endless { stream = i > 1, messages = user(("word "):rep(300)) })
      end
      http.until_true(server, function() return server:stats().waiting == 3 end)
      for i = 1, 3 do waiting[i]:close() end
      running[1]:close()
      for _ = 1, 3 do server:step { ms = 5 } end
      assert.equal(1, model:stats().tasks)
      assert.equal(1, #server.jobs)
      running[2]:close()
      http.until_true(server, idle)
      assert.equal(5, server:stats().requests["/v1/chat/completions 499"])
    end)

    it("does not mind one that never asked", function()
      start()
      local c = http.open(server)
      c:send "GET /hea"
      server:step { ms = 5 }
      c:close()
      http.until_true(server, function() return server:stats().connections == 0 end)
    end)
  end)

  describe("beside a client that does not listen", function()
    it("holds back what it would send, serves others, and drops it in the end", function()
      start { limits = { buffer = 16384, stall_ms = 1500 } }
      local deaf = http.open(server)
      deaf.socket:setoption("recv-buffer-size", 4096)
      deaf:send(endless { logprobs = true, top_logprobs = 20 })
      local most = 0
      http.until_true(server, function()
        local job = server.jobs[1]
        most = math.max(most, job and job.call.exchange:pending() or 0)
        return most > 16384
      end)
      local r = http.ask(server, "POST", "/v1/chat/completions", { messages = user "Hello!", max_tokens = 5 })
      assert.equal(200, r.status)
      http.until_true(server, idle)
      assert.equal(1, server:stats().stalled)
      assert.is_true(most < 16384 + 8192, most)
      deaf:close()
    end)
  end)

  describe("with limits", function()
    local function ask(body) return http.ask(server, "POST", "/v1/chat/completions", body) end

    it("refuses more requests than it takes, and says when to come again", function()
      start { limits = { requests = 2 } }
      local held = {}
      for i = 1, 2 do
        held[i] = http.open(server)
        held[i]:send(endless())
      end
      http.until_true(server, function() return server:stats().running == 2 end)
      local r = ask { messages = user "Hello!" }
      assert.same({ 503, "overloaded", "1" }, { r.status, r.json.error.code, r.headers["retry-after"] })
      assert.equal(200, http.ask(server, "GET", "/health").status)
      for i = 1, 2 do held[i]:close() end
      http.until_true(server, idle)
      assert.equal(200, ask({ messages = user "Hello!", max_tokens = 2 }).status)
    end)

    it("counts what one client asks at once and in a minute", function()
      start { limits = { per_client = 1 } }
      local held = http.open(server)
      held:send(endless())
      http.until_true(server, function() return server:stats().running == 1 end)
      local r = ask { messages = user "Hello!" }
      assert.same({ 429, "rate_limit_error", "rate_limit_exceeded" }, { r.status, r.json.error.type, r.json.error.code })
      held:close()

      start { limits = { per_minute = 2 } }
      for _ = 1, 2 do assert.equal(200, http.ask(server, "POST", "/tokenize", { prompt = "a" }).status) end
      r = http.ask(server, "POST", "/tokenize", { prompt = "a" })
      assert.equal(429, r.status)
      assert.is_true(tonumber(r.headers["retry-after"]) > 5)
    end)

    it("bounds tokens, choices and bodies", function()
      start { limits = { max_tokens = 4, n = 2, body = 2000 } }
      assert.equal("max_tokens", ask({ messages = user "Hi", max_tokens = 5 }).json.error.param)
      assert.equal("n", ask({ messages = user "Hi", n = 3 }).json.error.param)
      assert.equal(4, ask({ messages = user "Tell me a story about a fox." }).json.usage.completion_tokens)
      for _, more in ipairs { {}, { Expect = "100-continue" } } do
        local r = http.ask(server, "POST", "/tokenize", { prompt = ("x"):rep(3000) }, more)
        assert.same({ 413, "body_too_large" }, { r.status, r.json.error.code })
      end
      local c = http.open(server)
      c:send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        .. ("3e8\r\n" .. ("x"):rep(1000) .. "\r\n"):rep(3) .. "0\r\n\r\n")
      assert.equal(413, c:answer().status)
      c:close()
    end)

    it("bounds the choices of all requests together", function()
      start { limits = { choices = 3 } }
      local held = http.open(server)
      held:send(endless())
      http.until_true(server, function() return server:stats().generating == 1 end)
      assert.equal(200, ask({ messages = user "Hello!", max_tokens = 2, n = 2 }).status)
      assert.equal(503, ask({ messages = user "Hello!", max_tokens = 2, n = 3 }).status)
      held:close()
      http.until_true(server, idle)
    end)

    it("reads a large body while others have their turns", function()
      start()
      local c, big = http.open(server), '{"messages": [' .. ("[],"):rep(100000) .. "1]}"
      c:send(http.request("POST", "/v1/chat/completions", big))
      http.until_true(server, function() return server:stats().running == 1 end)
      assert.equal(200, http.ask(server, "GET", "/health").status)
      assert.equal(1, server:stats().running)
      assert.equal("messages[0]", c:answer().json.error.param)
      c:close()
    end)

    it("turns connections away when it has too many", function()
      start { limits = { connections = 3 } }
      local open = {}
      for i = 1, 3 do
        open[i] = http.open(server)
        open[i]:send(http.request("GET", "/health"))
        assert.equal(200, open[i]:answer().status)
      end
      local r = http.ask(server, "GET", "/health")
      assert.same({ 503, "too_many_connections" }, { r.status, r.json.error.code })
      for i = 1, 3 do open[i]:close() end
      http.until_true(server, function() return server:stats().connections == 0 end)
      assert.equal(200, http.ask(server, "GET", "/health").status)
    end)
  end)

  describe("with slow clients", function()
    it("is not kept busy by a crowd that says nothing, nor by one that only stays", function()
      start { limits = { connections = 4 } }
      local crowd = {}
      for i = 1, 4 do
        crowd[i] = http.open(server)
        if i > 2 then
          crowd[i]:send(http.request("GET", "/health"))
          assert.equal(200, crowd[i]:answer().status)
        end
        server:step { ms = 5 }
      end
      assert.equal(503, http.ask(server, "GET", "/health").status)
      socket.sleep(0.6)
      server:step()
      for _ = 1, 4 do assert.equal(200, http.ask(server, "GET", "/health").status) end
      for i = 1, 4 do crowd[i]:close() end
    end)

    it("waits for heads and bodies so long and no longer", function()
      start { limits = { head_ms = 150, body_ms = 200, idle_ms = 400 } }
      for _, part in ipairs { "", "POST /tokeni", "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n",
                              "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{" } do
        local c, before = http.open(server), socket.gettime()
        c:send(part)
        local r = c:answer()
        assert.same({ 408, "request_timeout" }, { r.status, r.json.error.code })
        assert.is_true(socket.gettime() - before < 5)
        c:close()
      end
      assert.equal(4, server:stats().slow)
    end)

    it("takes what trickles in, a byte at a time", function()
      start()
      local c = http.open(server)
      for byte in http.request("POST", "/tokenize", { prompt = "Hello" }):gmatch "." do
        c:send(byte)
        server:step()
      end
      assert.equal(1, c:answer().json.count)
      c:close()
    end)

    it("closes connections that only stay open", function()
      start { limits = { idle_ms = 150 } }
      local c = http.open(server)
      c:send(http.request("GET", "/health"))
      assert.equal(200, c:answer().status)
      http.until_true(server, function() return c:pull() end)
      c:close()
    end)

    it("answers several requests of one connection, in order", function()
      start()
      local c = http.open(server)
      c:send(http.request("GET", "/health") .. http.request("POST", "/tokenize", { prompt = "Hello" }) .. http.request("GET", "/nothing"))
      assert.equal("ok", c:answer().json.status)
      assert.equal(1, c:answer().json.count)
      assert.equal(404, c:answer().status)
      c:close()
    end)
  end)

  describe("with a key", function()
    it("answers those who know it; the page and its health are open", function()
      start { key = "a-secret" }
      local function status(path, headers) return http.ask(server, "GET", path, nil, headers).status end
      for _, given in ipairs { "Bearer wrong", "Bearer a-secre", "Bearer a-secret!", "a-secret", "Bearer", "Basic a-secret" } do
        assert.equal(401, status("/v1/models", { Authorization = given }))
      end
      local r = http.ask(server, "POST", "/v1/chat/completions", { messages = user "Hi" })
      assert.same({ 401, "authentication_error", "missing_api_key", "Bearer" },
                  { r.status, r.json.error.type, r.json.error.code, r.headers["www-authenticate"] })
      assert.equal(401, status "/metrics")
      assert.equal(401, status "/nowhere")
      assert.equal(200, status("/v1/models", { Authorization = "Bearer a-secret" }))
      assert.equal(200, status("/v1/models", { ["X-Api-Key"] = "a-secret" }))
      assert.equal(200, status "/health")
      assert.equal(200, status "/")
    end)

    it("keeps pages of other sites out", function()
      start()
      local function status(headers) return http.ask(server, "GET", "/v1/models", nil, headers).status end
      local here = "127.0.0.1"
      assert.equal(200, status { Origin = "http://" .. here })
      assert.equal(403, status { Origin = "http://evil.example" })
      assert.equal(403, status { Origin = "null" })
      local c = http.open(server)
      c:send "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n"
      assert.equal("wrong_host", c:answer().json.error.code)
      c:close()
    end)
  end)

  describe("at its end", function()
    it("lets those finish who have begun, and takes no more", function()
      start()
      local c, kept = http.open(server), http.open(server)
      kept:send(http.request("GET", "/health"))
      assert.equal(200, kept:answer().status)
      c:send(http.request("POST", "/v1/chat/completions", { messages = user "What is 17 + 25?", temperature = 0, stream = true }))
      http.until_true(server, function() return server:stats().running == 1 end)
      server:stop()
      assert.matches("stopping", tostring(server))
      kept:send(http.request("POST", "/tokenize", { prompt = "a" }))
      local r = kept:answer()
      assert.same({ 503, "stopping", "close" }, { r.status, r.json.error.code, r.headers.connection:lower() })
      assert.is_nil((socket.connect("127.0.0.1", server.port)))
      local going = true
      while going do going = server:step { ms = 20 } end
      server:step()
      c:pull()
      local _, done = http.events(c:so_far())
      assert.is_true(done)
      c:close()
      kept:close()
    end)

    it("ends the others when their time is over", function()
      start()
      local c = http.open(server)
      c:send(endless())
      http.until_true(server, function() return c:pull() or c:so_far():find("content", 1, true) end)
      server:stop { drain_ms = 60 }
      local n = 0
      while server:step { ms = 20 } do n = n + 1 end
      assert.is_true(n < 20)
      assert.is_false(server:step())
      c:pull()
      assert.matches('"code": "stopping"', c:so_far())
      c:close()
    end)

    it("is closed twice without harm, and says what a closed one is asked", function()
      start()
      local c = http.open(server)
      c:send(endless())
      http.until_true(server, function() return server:stats().running == 1 end)
      server:close()
      server:close()
      assert.equal("fathom server (closed)", tostring(server))
      assert.has_error(function() server:step() end, "attempt to use a closed server")
      c:close()
    end)
  end)

  describe("started wrongly", function()
    it("raises for a wrong call", function()
      for pattern, f in pairs {
        ["unknown option 'prot' %(did you mean 'port'%?%)"] = function() fathom.serve(model, { prot = 1 }) end,
        ["unknown option 'request' %(did you mean 'requests'%?%)"] = function() fathom.serve(model, { limits = { request = 1 } }) end,
        ["model must be a model"] = function() fathom.serve({}, {}) end,
        ["must be an integer from 0 to 65535"] = function() fathom.serve(model, { port = 70000 }) end,
        ["the key is empty"] = function() fathom.serve(model, { key = "" }) end,
      } do
        local ok, err = pcall(f)
        assert.is_false(ok)
        assert.matches(pattern, err)
        assert.matches("serve_flow_spec", err)
      end
    end)

    it("says why it cannot listen", function()
      start()
      local other, err = fathom.serve(model, { port = server.port })
      assert.is_nil(other)
      assert.equal("network", err.code)
      assert.matches("in use", err.message)
      other, err = fathom.serve(model, { host = "no.such.host.invalid" })
      assert.is_nil(other)
      assert.equal("network", err.code)
    end)
  end)

  it("moves in a frame: a step takes about as long as it may", function()
    start()
    local c = http.open(server)
    c:send(endless())
    http.until_true(server, function() return server:stats().generating == 1 end)
    local times = {}
    for i = 1, 40 do
      local before = os.clock()
      server:step { ms = 2 }
      times[i] = os.clock() - before
    end
    table.sort(times)
    assert.is_true(times[20] < 0.02, times[20])
    c:close()
  end)

  it("says that its model is closed", function()
    local own = assert(fathom.load(fathom.pocket, { device = "cpu" }))
    local s <close> = assert(fathom.serve(own))
    own:close()
    assert.equal(503, http.ask(s, "GET", "/health").status)
    assert.equal("model_closed", http.ask(s, "POST", "/v1/chat/completions", { messages = user "Hi" }).json.error.code)
    assert.equal(200, http.ask(s, "GET", "/metrics").status)
  end)

  it("shows the traces of one folder and nothing besides", function()
    local dir, remove = helper.folder()
    helper.write(dir .. "/one.jsonl", '{"id": 1}\n')
    helper.write(dir .. "/odd name #2.jsonl", ("x"):rep(300000))
    helper.write(dir .. "/secret.txt", "no")
    os.execute(("ln -s /etc/passwd '%s/link.jsonl'"):format(dir))
    start { traces = dir }
    local names = {}
    for _, t in ipairs(http.ask(server, "GET", "/traces").json.traces) do names[t.name] = t.bytes end
    assert.same({ ["one.jsonl"] = 10, ["odd name #2.jsonl"] = 300000 }, names)
    assert.equal('{"id": 1}\n', http.ask(server, "GET", "/traces/one.jsonl").body)
    assert.equal(300000, #http.ask(server, "GET", "/traces/odd%20name%20%232.jsonl").body)
    for _, path in ipairs { "secret.txt", "link.jsonl", "..%2fone.jsonl", "../etc/passwd", "none.jsonl", "one.jsonl%00", "." } do
      local r = http.ask(server, "GET", "/traces/" .. path)
      assert.is_true(r.status == 404 or r.status == 400, path)
    end
    start()
    assert.equal("no_traces", http.ask(server, "GET", "/traces").json.error.code)
    remove()
  end)

  it("counts what it does, for Prometheus", function()
    start()
    http.ask(server, "POST", "/v1/chat/completions", { messages = user "Hello!", temperature = 0 })
    http.ask(server, "GET", "/nowhere")
    local text = http.ask(server, "GET", "/metrics").body
    for line in text:gmatch "[^\n]+" do
      assert(line:match "^# [HT][EY][LP][PE] fathom_[%w_]+ " or line:match '^fathom_[%w_]+ [%d.e+-]+$'
        or line:match '^fathom_[%w_]+{[%w_]+="[^"]*"[^}]*} %d+$', line)
    end
    assert.matches('fathom_requests_total{route="/v1/chat/completions",status="200"} 1\n', text)
    assert.matches('fathom_requests_total{route="unknown",status="404"} 1\n', text)
    assert.matches("fathom_completion_tokens_total 17\n", text)
    assert.matches("fathom_time_to_first_token_seconds_count 1\n", text)
    assert.is_nil(json.decode(text))
  end)
end)

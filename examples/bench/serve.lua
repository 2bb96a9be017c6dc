-- The server under load, on this machine's loopback: how it stands 200 clients that stream for two minutes, and 10,000 requests
-- that are wrong. Runs "fathom serve" on pocket in a process of its own.
-- usage: lua5.4 examples/bench/serve.lua [SECONDS (120)] [CLIENTS (200)] [MALFORMED (10000)]
-- Needs: wrk (it is the load), LuaSocket (a few clients of our own tell the time between two events: wrk cannot).
package.path = "./?.lua;" .. package.path
local json = require "fathom.json"
local malformed = require "spec.malformed"
local socket = require "socket"

local SECONDS, CLIENTS, MALFORMED = tonumber(arg[1] or 120), tonumber(arg[2] or 200), tonumber(arg[3] or 10000)
local WATCHERS, VANDALS = 8, 32       -- clients of our own: beside wrk's; that send what is wrong
local BODY = 65536                    -- the server's limit while malformed requests come
local LUA = os.getenv "LUA" or "lua5.4"

-- ---- the server -----------------------------------------------------------------------------------------------------

local function serve(options)
  local pipe = assert(io.popen(("echo $$; exec %s lua/bin/fathom serve --device cpu --port 0 --quiet %s 2>&1"):format(LUA, options)))
  local pid, line = pipe:read "l", pipe:read "l"
  local port = line and line:match ":(%d+) serves"
  assert(port, "no server: " .. tostring(line))
  return { pid = pid, port = port, stop = function()
    os.execute("kill -TERM " .. pid)
    pipe:close()
  end }
end

local function resident(pid)
  local f = assert(io.open("/proc/" .. pid .. "/status"))
  local text = f:read "a"
  f:close()
  return tonumber(text:match "VmRSS:%s*(%d+)") / 1024
end

local function connect(server)
  local c = assert(socket.connect("127.0.0.1", server.port))
  c:settimeout(30)
  return c
end

-- Waits, in a coroutine that gather drives, for what ends an answer; gives all of it.
local function read_answer(c)
  local got = ""
  while true do
    local all, why, part = c:receive(65536)
    got = got .. (all or part or "")
    local head, body = got:match "^(.-\r\n\r\n)(.*)$"
    local size = head and tonumber(head:lower():match "content%-length: (%d+)")
    if why == "closed" or size and #body >= size then
      return head and { status = tonumber(head:match "^HTTP/1%.1 (%d+)"), json = json.decode(body) }
    end
    coroutine.yield(c)
  end
end

local function send(c, bytes)
  local at = 1
  while at <= #bytes do
    local sent, why, part = c:send(bytes, at)
    at = (sent or part or at - 1) + 1
    if why == "closed" then return end
    if at <= #bytes then coroutine.yield(c, true) end
  end
end

-- Drives coroutines, each of which yields the socket that it waits for, and true where it wants to write.
local function gather(jobs, now_and_then)
  local running = {}
  local function step(r)
    local ok, c, writes = coroutine.resume(r.co)
    assert(ok, c)
    r.socket, r.writes = c, writes
  end
  for i, f in ipairs(jobs) do
    running[i] = { co = coroutine.create(f) }
    step(running[i])
  end
  while #running > 0 do
    local reads, writes = {}, {}
    for _, r in ipairs(running) do table.insert(r.writes and writes or reads, r.socket) end
    local can_read, can_write = socket.select(reads, writes, 0.5)
    for i = #running, 1, -1 do
      local r = running[i]
      if can_read[r.socket] or can_write[r.socket] then step(r) end
      if not r.socket then table.remove(running, i) end
    end
    if now_and_then then now_and_then() end
  end
end

local function get(server, path)
  local c = connect(server)
  c:send(("GET %s HTTP/1.0\r\n\r\n"):format(path))
  local text = c:receive "*a"
  c:close()
  return text
end

-- ---- 200 clients ----------------------------------------------------------------------------------------------------

local wrk_script = [[
local n = 0
function request()
  n = n + 1
  local body = '{"messages": [{"role": "user", "content": "What is %d + %d?"}], "stream": true, "max_tokens": 64}'
  return wrk.format("POST", "/v1/chat/completions", { ["Content-Type"] = "application/json" }, body:format(n % 89 + 10, n % 7 + 3))
end
function response(status, headers, body)
  local whole = body:find("data: [DONE]", 1, true) and not body:find('"error"', 1, true)
  if status ~= 200 or not whole then print("WRONG " .. status .. " " .. body:sub(1, 200)) end
end
]]

local function start_wrk(server)
  local script, out = os.tmpname(), os.tmpname()
  local f = assert(io.open(script, "w"))
  f:write(wrk_script)
  f:close()
  os.execute(("wrk -t1 -c%d -d%ds --timeout 120s -s %s http://127.0.0.1:%s >%s 2>&1 &"):format(CLIENTS, SECONDS, script, server.port, out))
  return function()
    local g = assert(io.open(out))
    local text = g:read "a"
    g:close()
    os.remove(script)
    os.remove(out)
    return text
  end
end

-- A client of our own: asks again and again, and notes the times between pieces, and before the first one.
local function watcher(server, ends, notes)
  local body = '{"messages": [{"role": "user", "content": "What is 17 + 25?"}], "stream": true, "max_tokens": 64}'
  local text = ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body)
  return function()
    while socket.gettime() < ends do
      local c = connect(server)
      c:settimeout(0)
      send(c, text)
      local asked, last, got = socket.gettime(), nil, ""
      repeat
        coroutine.yield(c)
        local all, why, part = c:receive(65536)
        local now, new = socket.gettime(), all or part or ""
        if new:find("data: ", 1, true) then
          if last then notes.gap = math.max(notes.gap, now - last) else notes.waits[#notes.waits + 1] = now - asked end
          last = now
        end
        got = got .. new
      until why == "closed" or got:find("data: [DONE]", 1, true)
      if not got:find("data: [DONE]", 1, true) then notes.broken = notes.broken + 1 end
      c:close()
    end
  end
end

local function watch(server, seconds)
  local notes, jobs, ends, sampled = { gap = 0, waits = {}, broken = 0, memory = {} }, {}, socket.gettime() + seconds, 0
  for i = 1, WATCHERS do jobs[i] = watcher(server, ends, notes) end
  gather(jobs, function()
    if socket.gettime() - sampled < 1 then return end
    sampled = socket.gettime()
    notes.memory[#notes.memory + 1] = resident(server.pid)
  end)
  table.sort(notes.waits)
  return notes
end

local function load_test()
  local server = serve(("--seqs %d --ctx 512"):format(CLIENTS + WATCHERS))
  local wrk = start_wrk(server)
  local notes = watch(server, SECONDS)
  socket.sleep(3)
  local said, m = wrk(), notes.memory
  local function number(pattern) return said:match(pattern) or "0" end
  print(("%d clients of wrk and %d of our own, %d s of streams"):format(CLIENTS, WATCHERS, SECONDS))
  print(("  requests answered               %s (%s a second)"):format(number "(%d+) requests in", number "Requests/sec:%s*([%d.]+)"))
  local errors = said:match "Socket errors: ([^\n]*)" or "none"
  print(("  wrong answers, socket errors    %d, %s"):format(select(2, said:gsub("WRONG", "")), errors))
  print(("  our own that broke off          %d"):format(notes.broken))
  print(("  longest time between two pieces %.2f s"):format(notes.gap))
  local w = notes.waits
  print(("  first piece, median and longest %.2f, %.2f s"):format(w[#w // 2 + 1] or 0, w[#w] or 0))
  print(("  memory at 1/4, 1/2, 3/4, end    %.0f, %.0f, %.0f, %.0f MiB"):format(m[#m // 4 + 1], m[#m // 2 + 1], m[#m * 3 // 4 + 1], m[#m]))
  print("  tokens                          " .. (get(server, "/metrics"):match "fathom_completion_tokens_total (%d+)" or "?"))
  print(said:match "WRONG[^\n]*" or "")
  server.stop()
end

-- ---- 10,000 malformed requests ------------------------------------------------------------------------------------------

-- A server in this process would share its pace with the clients: a script of its own, for limits that the command does not offer.
local function serve_strictly()
  local name = os.tmpname()
  local f = assert(io.open(name, "w"))
  f:write(([[
    local fathom, net = require "fathom", require "fathom.net"
    net.catch()
    local server = assert(fathom.serve(assert(fathom.load(fathom.pocket, { device = "cpu" })),
      { limits = { body = %d, head_ms = 300, body_ms = 300 } }))
    io.stdout:write(server.url, " serves\n")
    io.stdout:flush()
    server:run(function() if net.caught() then server:stop { drain_ms = 0 } end end)
  ]]):format(BODY))
  f:close()
  local pipe = assert(io.popen(("echo $$; exec %s %s 2>&1"):format(LUA, name)))
  local pid, line = pipe:read "l", pipe:read "l"
  os.remove(name)
  return { pid = pid, port = assert(line:match ":(%d+) serves", line), stop = function()
    os.execute("kill -TERM " .. pid)
    pipe:close()
  end }
end

local function ask(server, bytes)
  local c = connect(server)
  c:settimeout(0)
  send(c, bytes)
  local r = read_answer(c)
  c:close()
  return r
end

local good = 'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19\r\n\r\n{"prompt": "Hello"}'

-- One client: as many malformed requests as are left, a good one behind each.
local function vandal(server, draw, notes)
  return function()
    while notes.left > 0 do
      notes.left = notes.left - 1
      local name, bytes = draw()
      local r = ask(server, bytes)
      local fault = malformed.fault(r)
      if fault then
        notes.faults = notes.faults + 1
        notes.of[name .. ": " .. fault] = (notes.of[name .. ": " .. fault] or 0) + 1
      end
      if r then notes.statuses[r.status] = (notes.statuses[r.status] or 0) + 1 end
      r = ask(server, good)
      if not r or r.status ~= 200 then notes.ill = notes.ill + 1 end
    end
  end
end

local function malformed_test()
  local server = serve_strictly()
  local notes = { left = MALFORMED, faults = 0, ill = 0, of = {}, statuses = {} }
  local draw, early, began, jobs = malformed.new(1, { body = BODY, slow = 10 }), nil, socket.gettime(), {}
  for i = 1, VANDALS do jobs[i] = vandal(server, draw, notes) end
  gather(jobs, function()
    if not early and notes.left < MALFORMED * 0.9 then early = resident(server.pid) end
  end)
  print(("%d malformed requests of %d clients, a good one behind each, %.0f s"):format(MALFORMED, VANDALS, socket.gettime() - began))
  print(("  without 4xx and an error in shape  %d"):format(notes.faults))
  print(("  good requests that failed          %d"):format(notes.ill))
  print(("  memory after a tenth, and at last  %.1f, %.1f MiB"):format(early, resident(server.pid)))
  local list = {}
  for status, n in pairs(notes.statuses) do list[#list + 1] = ("%d x %d"):format(n, status) end
  table.sort(list)
  print("  answers                            " .. table.concat(list, ", "))
  for what, n in pairs(notes.of) do print("  " .. n .. " " .. what) end
  server.stop()
end

if MALFORMED > 0 then malformed_test() end
if SECONDS > 0 then load_test() end

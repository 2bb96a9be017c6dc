--- A server that does what its cases say, well or badly, for remote_spec.lua; prints its port, ends when nobody asks for a minute.
-- A request for /NAME/chat/completions runs the case NAME; /seen gives all requests so far as JSON, /quit ends it.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local json = require "fathom.json"
local uv = require "luv"

uv.new_signal():start("sigpipe", function() end)         -- clients here go away as they like

local seen, counts, open_now, most_open = {}, {}, 0, 0
local last = uv.now()

-- ---- ways to answer -----------------------------------------------------------------------------------------------

local conn = {}
conn.__index = conn

function conn:send(bytes) if not self.sock:is_closing() then self.sock:write(bytes) end end
function conn:close() if not self.sock:is_closing() then self.sock:close() end end

function conn:later(ms, f)
  local timer = uv.new_timer()
  timer:start(ms, 0, function()
    timer:close()
    f()
  end)
end

function conn:head(status, kind, more)
  self:send(("HTTP/1.1 %d X\r\nContent-Type: %s\r\n%sConnection: close\r\n\r\n"):format(status, kind, more or ""))
end

function conn:reply(status, body, more, kind)
  self:head(status, kind or "application/json", ("Content-Length: %d\r\n%s"):format(#body, more or ""))
  self:send(body)
  self:close()
end

-- Pieces of bytes, some ms apart.
function conn:drip(parts, ms, at)
  at = at or 1
  if not parts[at] then return self:close() end
  self:send(parts[at])
  self:later(ms, function() self:drip(parts, ms, at + 1) end)
end

local function data(value) return "data: " .. (type(value) == "string" and value or json.encode(value)) .. "\n\n" end

local function delta(d, finish, index)
  return { choices = { { index = index or 0, delta = json.object(d), finish_reason = finish } } }
end

local usage = { choices = json.array {}, usage = { prompt_tokens = 100, completion_tokens = 20,
                prompt_tokens_details = { cached_tokens = 60 }, completion_tokens_details = { reasoning_tokens = 5 } } }

local function stream(c, chunks)
  c:head(200, "text/event-stream; charset=utf-8")
  for _, chunk in ipairs(chunks) do c:send(data(chunk)) end
  c:send "data: [DONE]\n\n"
  c:close()
end

local function say(c, text) stream(c, { delta { content = text }, delta({}, "stop"), usage }) end

-- ---- the cases ------------------------------------------------------------------------------------------------------

local cases = {}

function cases.plain(c)
  stream(c, { delta { role = "assistant", content = "" }, delta { reasoning_content = "17 + 25" }, delta { reasoning_content = " = 42" },
              delta { content = "It is " }, delta { content = "42." }, delta({}, "stop"), usage })
end

function cases.bytes(c)
  local text = "\xEF\xBB\xBF: hello\r\n\r\nevent: message\rid: 1\rdata: " .. json.encode(delta { content = "Grüße, 世界 " }) .. "\r\r"
    .. "data:{\"choices\": [{\"index\": 0,\r\ndata: \"delta\": {\"content\": \"🐟\"}}]}\r\n\r\n:\n" .. data(delta({}, "stop"))
    .. "data: " .. json.encode(usage) .. "\n\ndata: [DONE]"
  c:head(200, "text/event-stream")
  local parts = {}
  for i = 1, #text do parts[i] = text:sub(i, i) end
  c.sock:nodelay(true)
  c:drip(parts, 0)
end

function cases.whole(c)
  c:reply(200, json.encode { choices = { { index = 0, finish_reason = "stop", message = { role = "assistant", content = "42",
    reasoning = "easy", tool_calls = json.null } } }, usage = { prompt_tokens = 3, completion_tokens = 2, prompt_cache_hit_tokens = 1 } })
end

function cases.tools(c)
  local function part(i, id, name, arguments)
    return delta { tool_calls = { { index = i, id = id, type = id and "function",
                                    ["function"] = { name = name, arguments = arguments } } } }
  end
  stream(c, { delta { content = "Let me see." }, part(0, "call_a", "add", ""), part(0, nil, nil, '{"a": 1,'), part(0, nil, nil, ' "b": 2}'),
              part(1, "call_b", "now", ""), part(2, "call_c", "bad", "{"), delta({}, "tool_calls"), usage })
end

function cases.samples(c, r)
  local n, chunks = r.body.n or 1, {}
  for turn = 1, 2 do
    for i = 0, n - 1 do chunks[#chunks + 1] = delta({ content = turn == 1 and "sample " or tostring(i) }, nil, i) end
  end
  for i = 0, n - 1 do chunks[#chunks + 1] = delta({}, "stop", i) end
  chunks[#chunks + 1] = usage
  stream(c, chunks)
end

function cases.only_one(c, r) say(c, "seed " .. r.body.seed) end

function cases.flaky(c, r, nth)
  if nth == 1 then return c:reply(503, '{"error": {"message": "loading"}}') end
  if nth == 2 then return c:reply(429, '{"error": "slow"}', "Retry-After: 0\r\n") end
  if nth == 3 then return c:close() end
  if nth == 4 then
    c:head(200, "text/event-stream")
    return c:close()
  end
  say(c, "at last")
end

function cases.busy(c) c:reply(429, '{"error": {"message": "too many"}}', "retry-after-ms: 1\r\n") end
function cases.much_later(c) c:reply(503, "down", "Retry-After: 999\r\n", "text/plain") end
function cases.never(c) c:reply(503, "down", "Retry-After: 1e999\r\n", "text/plain") end
function cases.date(c, r, nth)
  if nth > 2 then return say(c, "back") end
  if nth == 2 then return c:reply(503, "down", "Retry-After: Sun, 06 Nov 99999999999999999 08:49:37 GMT\r\n", "text/plain") end
  c:reply(503, "down", "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "text/plain")
end

function cases.half(c)
  c:head(200, "text/event-stream")
  c:send(data(delta { content = "half a " }))
  c:later(30, function() c:close() end)
end

function cases.no_json(c) stream(c, { delta { content = "a" }, "{broken" }) end
function cases.error_inside(c) stream(c, { delta { content = "a" }, { error = { message = "out of memory" } } }) end
function cases.no_object(c) c:reply(200, "[1, 2") end
function cases.page(c) c:reply(200, "<html>hello</html>", nil, "text/html") end
function cases.long_head(c) c:head(200, "text/event-stream", ("X-%s: y\r\n"):format(("a"):rep(90000))) end
function cases.many_heads(c) c:head(200, "text/event-stream", ("X-Y: zzzzzzzzzzzzzzzzzzzzzzzzz\r\n"):rep(4000)) end
function cases.nothing(c) c:send "I speak no HTTP\r\n\r\n" c:close() end

function cases.huge(c)
  c:head(200, "text/event-stream")
  local parts = {}
  for i = 1, 400 do parts[i] = data(delta { content = ("x"):rep(1000) }) end
  c:drip(parts, 0)
end

function cases.endless_line(c)
  c:head(200, "text/event-stream")
  local parts = {}
  for i = 1, 400 do parts[i] = ("y"):rep(50000) end
  c:drip(parts, 0)
end

function cases.silent() end

function cases.breath(c)
  c:head(200, "text/event-stream")
  local parts = {}
  for i = 1, 200 do parts[i] = ": still here\n\n" end
  c:drip(parts, 10)
end

function cases.slow(c)
  c:head(200, "text/event-stream")
  local parts = {}
  for i = 1, 500 do parts[i] = data(delta { content = i .. " " }) end
  c:drip(parts, 10)
end

function cases.shy(c)
  c:later(100, function() say(c, "here") end)
end

function cases.open_end(c)
  c:head(200, "text/event-stream")
  c:send(data(delta { content = "done" }) .. data(delta({}, "stop")) .. "data: [DONE]\n\n")
end

function cases.no_reason(c) stream(c, { delta { content = "all said" }, usage }) end
function cases.no_choice(c) stream(c, { usage }) end

function cases.refused(c, r) c:reply(401, json.encode { error = { message = "wrong key: " .. r.headers.authorization } }) end
function cases.too_long(c)
  c:reply(400, json.encode { error = { message = "This model's maximum context length is 4096 tokens" } })
end
function cases.moved(c) c:reply(302, "", "Location: http://127.0.0.1:1/\r\n") end
function cases.filtered(c) stream(c, { delta({ content = "a" }, "content_filter") }) end
function cases.cut(c) stream(c, { delta({ content = '{"x": ' }, "length") }) end
function cases.inline(c)
  stream(c, { delta { content = " <thi" }, delta { content = "nk>hm <b> </th" }, delta { content = "ink>4" }, delta { content = "2" },
              delta({}, "stop") })
end
function cases.echo(c, r) say(c, r.body.messages and r.body.messages[#r.body.messages].content or r.body.prompt) end
function cases.point(c) say(c, '{"x": 3}') end

function cases.text(c, r)
  stream(c, { { choices = { { index = 0, text = " world", logprobs = { tokens = { " world" }, token_logprobs = { -0.5 },
              top_logprobs = { { [" world"] = -0.5, [" there"] = -1.5 } } } } } },
              { choices = { { index = 0, text = "", finish_reason = "length" } } }, usage })
end

function cases.logprobs(c)
  local one = { token = "Hi", logprob = -0.25, top_logprobs = { { token = "Hi", logprob = -0.25 }, { token = "Ho", logprob = -2 } } }
  stream(c, { { choices = { { index = 0, delta = { content = "Hi" }, logprobs = { content = { one } } } } }, delta({}, "stop"), usage })
end

-- ---- HTTP -----------------------------------------------------------------------------------------------------------

local function answer(c, r)
  local name = r.path:match "^/([%w_]+)"
  if name == "seen" then
    return c:reply(200, json.encode { requests = json.array(seen), most_open = most_open })
  elseif name == "quit" then
    c:reply(200, "{}")
    return c:later(10, function() os.exit(0) end)
  end
  counts[name] = (counts[name] or 0) + 1
  seen[#seen + 1] = r
  r.nth = counts[name]
  local case = cases[name]
  if not case then return c:reply(404, '{"error": {"message": "no such case"}}') end
  case(c, r, counts[name])
end

local function parse(text)
  local head, rest = text:match "^(.-\r\n)\r\n(.*)$"
  if not head then return nil end
  local r = { headers = {} }
  r.method, r.path = head:match "^(%S+) (%S+)"
  for name, value in head:gmatch "\n([^:\r\n]+): ?([^\r\n]*)" do r.headers[name:lower()] = value end
  if #rest < tonumber(r.headers["content-length"] or 0) then return nil end
  r.body = json.decode(rest) or json.object {}
  return r
end

local function accept(server)
  local sock = uv.new_tcp()
  server:accept(sock)
  local c, text, r = setmetatable({ sock = sock }, conn), "", nil
  last = uv.now()
  open_now = open_now + 1
  most_open = math.max(most_open, open_now)
  local function gone(why)
    if r then r.ended = why end
    if not c.gone then open_now = open_now - 1 end
    c.gone = true
    c:close()
  end
  local close = c.close
  function c:close()
    if not self.gone then open_now = open_now - 1 end
    self.gone = true
    if r and not r.ended then r.ended = "served" end
    if sock:is_closing() then return end
    sock:shutdown(function() close(self) end)
  end
  sock:read_start(function(err, bytes)
    if err or not bytes then return gone "dropped" end
    text = text .. bytes
    if r then return end
    r = parse(text)
    if r then answer(c, r) end
  end)
end

local server = uv.new_tcp()
server:bind("127.0.0.1", 0)
server:listen(128, function() accept(server) end)
io.write(server:getsockname().port, "\n")
io.flush()
local watch = uv.new_timer()
watch:start(1000, 1000, function() if uv.now() - last > 60000 then os.exit(0) end end)
uv.run()

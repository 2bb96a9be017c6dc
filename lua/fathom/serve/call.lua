--- serve/call.lua - one request as its handler sees it: read the body, answer whole or in events, wait.
-- A handler runs in a coroutine that is closed when the client goes away: what it holds in to-be-closed variables is let go.

local json = require "fathom.json"
local wire = require "fathom.serve.wire"

local PACED, INSTRUCTIONS = 64 << 10, 100000

local call = {}
local methods = {}
local mt = { __name = "fathom.serve.call", __index = methods }

--- Makes one; server: the server, exchange and info: what the network library gave.
function call.new(server, exchange, info)
  return setmetatable({ server = server, exchange = exchange, method = info.method, path = info.path, query = info.query,
                        headers = info.headers, text = info.body, address = info.address, begun_ms = server.net_now() }, mt)
end

-- ---- reading ----------------------------------------------------------------------------------------------------

-- A large text is decoded bit by bit, while others have their turns.
local function decode(self, text)
  if #text < PACED then return json.decode(text) end
  local co = coroutine.create(json.decode)
  self.server.lib.pace(co, INSTRUCTIONS)
  local r = table.pack(coroutine.resume(co, text))
  while coroutine.status(co) ~= "dead" do
    self.pause()
    r = table.pack(coroutine.resume(co))
  end
  if not r[1] then error(r[2], 0) end
  return r[2], r[3]
end

--- The body as a JSON object; raises a refusal.
function methods:json_body()
  local text = self.text
  if text == "" then wire.refuse(400, "the body is empty: a JSON object is expected") end
  if not utf8.len(text) then wire.refuse(400, "the body is not UTF-8", nil, "invalid_utf8") end
  self.text = nil
  local value, why = decode(self, text)
  if value == nil then wire.refuse(400, "the body is not valid JSON: " .. why, nil, "invalid_json") end
  local kind = type(value) == "table" and getmetatable(value) and getmetatable(value).__jsontype
  if kind ~= "object" then wire.refuse(400, "the body must be a JSON object") end
  return value
end

-- ---- waiting ----------------------------------------------------------------------------------------------------

--- Lets the others have their turn.
-- @param ready function|nil  says whether there is anything to go on with: until then it is not resumed
function methods.pause(ready) coroutine.yield(ready) end

-- ---- answering ----------------------------------------------------------------------------------------------------

local function header_list(kind, more)
  local list = { "Content-Type", kind }
  for name, value in pairs(more or {}) do table.move({ name, value }, 1, 2, #list + 1, list) end
  return list
end

-- The network library says nil, code, message for what fails; an answer nobody can send ends the request.
local function must(value, _, message)
  if value == nil then error(message, 0) end
  return value
end

--- Answers with bytes.
-- @param headers table|nil  name = value
function methods:reply(status, kind, body, headers)
  self.status = status
  must(self.exchange:reply(status, header_list(kind, headers), body))
end

--- Answers with a value as JSON.
function methods:json(value, status, headers) self:reply(status or 200, "application/json", json.encode(value), headers) end

--- Answers with a refusal; in the middle of events it is the last one.
function methods:refuse(r)
  if self.streaming then
    self.failed = true
    self.exchange:write(wire.event(wire.error_value(r)))
    return self.exchange:finish()
  end
  if self.status then return self.exchange:drop() end
  local headers = { Connection = r.close and "close" or nil, ["Retry-After"] = r.retry_after and tostring(r.retry_after) or nil,
                    ["WWW-Authenticate"] = r.status == 401 and "Bearer" or nil, Allow = r.allow }
  self:json(wire.error_value(r), r.status, headers)
end

--- Begins an answer that is written bit by bit.
function methods:begin(kind, headers)
  self.streaming, self.status = true, 200
  must(self.exchange:begin(200, header_list(kind, headers)))
end

--- Writes some of it; waits while the client does not take what was written before.
function methods:write(bytes)
  local pending = must(self.exchange:write(bytes))
  while pending > self.server.limits.buffer do
    self.pause()
    pending = self.exchange:pending()
  end
end

--- Sends an event; the first one begins the answer.
function methods:event(value)
  if not self.streaming then
    self:begin("text/event-stream", { ["Cache-Control"] = "no-cache", ["X-Accel-Buffering"] = "no" })
  end
  self:write(type(value) == "string" and value or wire.event(value))
end

--- Ends an answer of events.
function methods:done()
  self:event(wire.last_event)
  self.exchange:finish()
end

return call

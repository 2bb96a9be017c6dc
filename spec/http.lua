--- spec/http.lua - a client for specs of the server, in the same process: it moves the server while it waits.
local json = require "fathom.json"
local socket = require "socket"

local http = {}
local methods = {}
local mt = { __index = methods }

local PATIENCE = 30          -- seconds, for machines that are busy

--- Opens a connection.
function http.open(server)
  local s = assert(socket.tcp())
  s:settimeout(5)
  assert(s:connect("127.0.0.1", server.port))
  s:settimeout(0)
  return setmetatable({ server = server, socket = s, got = "" }, mt)
end

--- Moves the server until f() is true; fails when that takes too long.
function http.until_true(server, f)
  local ends = socket.gettime() + PATIENCE
  while not f() do
    assert(socket.gettime() < ends, "the server takes too long")
    server:step { ms = 2 }
  end
end

--- Sends bytes, moving the server where it must take some first.
function methods:send(bytes)
  local at = 1
  http.until_true(self.server, function()
    local sent, why, part = self.socket:send(bytes, at)
    at = (sent or part or at - 1) + 1
    return at > #bytes or why == "closed"
  end)
end

--- Takes what has come; true when the server has closed.
function methods:pull()
  local all, why, part = self.socket:receive(65536)
  self.got = self.got .. (all or part or "")
  if why == "closed" then self.closed = true end
  return self.closed
end

local function unchunk(text)
  local parts, at = {}, 1
  while true do
    local size, from = text:match("^(%x+)\r\n()", at)
    if not size then return table.concat(parts), nil end
    size = tonumber(size, 16)
    if size == 0 then return table.concat(parts), from + 2 end
    if #text < from + size + 1 then return table.concat(parts), nil end
    parts[#parts + 1] = text:sub(from, from + size - 1)
    at = from + size + 2
  end
end

-- An answer once it is complete: { status =, headers =, body =, json = }.
local function parse(text, closed)
  local head, at = text:match "^(HTTP/1%.1 .-\r\n)\r\n()"
  if not head then return nil end
  local r = { status = tonumber(head:match "^HTTP/1%.1 (%d+)"), headers = {} }
  if r.status < 200 then return parse(text:sub(at), closed) end
  for name, value in head:gmatch "\n([%w-]+): ([^\r]*)" do r.headers[name:lower()] = value end
  local body = text:sub(at)
  if (r.headers["transfer-encoding"] or ""):lower() == "chunked" then
    local whole, after = unchunk(body)
    if not after and not closed then return nil end
    r.body, r.rest, r.cut = whole, after and body:sub(after) or "", not after
  else
    local size = tonumber(r.headers["content-length"] or 0)
    if #body < size then return nil end
    r.body, r.rest = body:sub(1, size), body:sub(size + 1)
  end
  if (r.headers["content-type"] or ""):find "json" then r.json = json.decode(r.body) end
  return r
end

--- What a stream has brought so far.
function methods:so_far() return (unchunk(self.got:match "\r\n\r\n(.*)$" or "")) end

--- Waits for the next answer.
function methods:answer()
  local r
  http.until_true(self.server, function()
    self:pull()
    r = parse(self.got, self.closed)
    return r or self.closed
  end)
  if r then self.got = r.rest end
  return r
end

function methods:close() self.socket:close() end

--- The text of a request. A table becomes JSON.
function http.request(method, path, body, headers)
  if type(body) == "table" then body = json.encode(body) end
  local lines = { ("%s %s HTTP/1.1"):format(method, path), "Host: 127.0.0.1" }
  for name, value in pairs(headers or {}) do lines[#lines + 1] = name .. ": " .. value end
  if body then lines[#lines + 1] = "Content-Length: " .. #body end
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. (body or "")
end

--- Asks and waits for the answer, over a connection of its own.
function http.ask(server, method, path, body, headers)
  local c = http.open(server)
  c:send(http.request(method, path, body, headers))
  local r = c:answer()
  c:close()
  return r
end

--- Events of a stream: decoded values, and whether the last one was [DONE].
function http.events(text)
  local out, done = {}, false
  for data in text:gmatch "data: ([^\n]*)\n\n" do
    if data == "[DONE]" then done = true else out[#out + 1] = assert(json.decode(data)) end
  end
  return out, done
end

return http

--- serve/init.lua - a model as a server that anybody's client can talk to. It moves when it is stepped: in a loop of its own
-- (server:run), or a few milliseconds a frame (server:step); no thread is started, no signal caught, nothing printed.

local call = require "fathom.serve.call"
local fault = require "fathom.fault"
local limits = require "fathom.serve.limits"
local metrics = require "fathom.serve.metrics"
local options = require "fathom.options"
local routes = require "fathom.serve.routes"
local span = require "fathom.span"
local task = require "fathom.task"
local wire = require "fathom.serve.wire"

local serve = {}
local methods = {}
local is = options.is
local mt

-- Milliseconds: steps shorter than this are frames of somebody else's; passes longer than this are cut; a server without work
-- sleeps so long at most.
local FRAME_MS, LONG_MS, NAP_MS = 50, 250, 100
local DRAIN_MS = 10000

-- ---- what handlers ask ----------------------------------------------------------------------------------------------

--- Tokens a sequence may have.
function methods:context() return self.model.engine.core:ctx() end

--- The bytes of one token.
function methods:token_bytes(id)
  local bytes = self.bytes_of[id]
  if not bytes then
    bytes = self.model:decode { id } or ""
    self.bytes_of[id] = bytes
  end
  return bytes
end

function methods:is_eos(id) return self.model.engine.eos[id] or false end

-- ---- requests ---------------------------------------------------------------------------------------------------------

-- What a handler raised, as a refusal; what is nobody's doing is the server's fault, and its text is for the log.
local function refusal_of(self, e)
  if wire.is_refusal(e) then return e end
  if type(e) ~= "string" and type(e) ~= "nil" and e.code and e.message then e = wire.of_fault(e) else
    self.last_failure = tostring(e)
    e = wire.refusal(500, "the server failed to answer this request", nil, "internal_error")
  end
  if e.status >= 500 then self.metrics.failures = self.metrics.failures + 1 end
  return e
end

-- A request is over: answered, refused or left.
local function finish(self, job)
  local c = job.call
  if job.leave then job.leave() end
  task.crewed[job.co] = nil
  c.exchange:close()                                     -- what was said is still sent; buffers do not wait for the collector
  self.metrics:answered(job.route, c.status or "gone", (self.net_now() - c.begun_ms) / 1000)
  if self.log then
    self.log { method = c.method, path = c.path, status = c.status, address = c.address, ms = self.net_now() - c.begun_ms,
               failed = c.failed }
  end
end

local function advance(self, job)
  local c = job.call
  if c.exchange:gone() then
    if coroutine.status(job.co) == "suspended" then coroutine.close(job.co) end
    c.status = 499                                     -- nginx's word for a client that went away
    return finish(self, job)
  end
  if job.ready and not job.ready() then return true end
  local ok, e = coroutine.resume(job.co, c)
  job.ready = ok and type(e) == "function" and e or nil
  if not ok then
    coroutine.close(job.co)
    c:refuse(refusal_of(self, e))
  end
  if coroutine.status(job.co) ~= "dead" then return true end
  if not c.status then c:refuse(refusal_of(self, "the handler gave no answer")) end
  finish(self, job)
end

local function stopping_refusal()
  local r = wire.refusal(503, "the server is stopping", nil, "stopping")
  r.retry_after, r.close = 1, true
  return r
end

local function begin(self, exchange, info)
  local c = call.new(self, exchange, info)
  local route, entry, refusal = routes.find(c)
  local job = { call = c, route = route }
  job.co = coroutine.create(function()
    routes.check(self, c)
    if refusal then error(refusal, 0) end
    if self.stopping and entry.limited then error(stopping_refusal(), 0) end
    if self.model.closed and entry.limited then wire.refuse(503, "the model is closed", nil, "model_closed") end
    if entry.limited then job.leave = limits.enter(self, c.address) end
    return entry.handler(c)
  end)
  task.crewed[job.co] = true
  if advance(self, job) then self.jobs[#self.jobs + 1] = job end
end

local function take_requests(self)
  while true do
    local exchange, info = self.net:take()
    if not exchange then return end
    begin(self, exchange, info)
  end
end

local function advance_all(self)
  local jobs = self.jobs
  self.jobs = {}
  for _, job in ipairs(jobs) do
    if advance(self, job) then self.jobs[#self.jobs + 1] = job end
  end
end

-- ---- moving -----------------------------------------------------------------------------------------------------------

local function check_open(self)
  options.self("server", self, mt)
  if not self.net then options.raise "attempt to use a closed server" end
end

-- How long the engine may work: 0 is one whole pass. In a frame no longer than the frame; else whole passes, which take all that
-- run along (a pass that must fit into some milliseconds has room for few); unless passes are so long that clients would feel it.
local function patience(self, left)
  if self.in_frame then return left end
  return self.pass_ms < LONG_MS and 0 or LONG_MS
end

-- What fails in the engine fails its tasks, and they say so.
local function step_model(self, left)
  local engine = self.model.engine
  if engine.closed and engine.children == 0 then return false end
  local ms, before = patience(self, left), self.net_now()
  local busy = engine:step(ms)
  -- passes that were cut short say little about whole ones: now and then one is tried again
  self.pass_ms = ms == 0 and 0.7 * self.pass_ms + 0.3 * (self.net_now() - before) or 0.98 * self.pass_ms
  return busy
end

-- One turn: clients, then the model, then clients again. Returns whether the model has more to do.
local function turn(self, wait_ms, left)
  self.net:step(wait_ms)
  take_requests(self)
  advance_all(self)
  local busy = step_model(self, left)
  if self.jobs[1] then
    advance_all(self)
    self.net:step(0)
  end
  limits.sweep(self)
  return busy
end

local function over(self)
  if not self.stopping or self.stopped then return self.stopped end
  if not self.jobs[1] or self.net_now() >= self.deadline then
    self.stopped = true
    for _, job in ipairs(self.jobs) do
      coroutine.close(job.co)
      job.call:refuse(stopping_refusal())
      finish(self, job)
    end
    self.jobs = {}
    self.net:step(0)
  end
  return self.stopped
end

--- Serves clients and advances the model.
-- @param opts table|nil  ms: for so long (it sleeps while there is nothing to do); without it one short turn. Below 50 ms it is a
--   frame, which the model does not outlast either; else the model goes on in whole passes, as many requests at once as there are
-- @return boolean        false once the server has stopped
-- @usage while server:step { ms = 2 } do draw_a_frame() end
function methods:step(opts)
  check_open(self)
  local o = options.check("server:step", opts, { ms = is.at_least(0) })
  local ends = self.net_now() + (o.ms or 0)
  self.in_frame = (o.ms or 0) < FRAME_MS
  local busy = self.busy
  repeat
    local left = math.max(0, ends - self.net_now())
    local idle = not busy and not self.jobs[1]
    busy = turn(self, idle and math.min(left, NAP_MS) or 0, left)
    if over(self) then return false end
    if not busy and self.jobs[1] and left > 0 then self.net:step(math.min(left, 1)) end
  until self.net_now() >= ends
  self.busy = busy
  return true
end

--- Serves until somebody calls server:stop, from a handler of the log or of a signal.
-- @param each function|nil  called between turns
function methods:run(each)
  check_open(self)
  while self:step { ms = NAP_MS } do
    if each then each() end
  end
end

--- Begins to stop: no new connections and requests, and those that run have time to end. Goes on in step or run, which say
-- when it is over.
-- @param opts table|nil  drain_ms: how long (10,000)
function methods:stop(opts)
  check_open(self)
  local o = options.check("server:stop", opts, { drain_ms = is.at_least(0) })
  self.stopping = true
  self.deadline = math.min(self.deadline or math.huge, self.net_now() + (o.drain_ms or DRAIN_MS))
  self.net:quiet()
end

--- Ends the server at once: connections are dropped and their work is cancelled. The model stays. May be called twice.
function methods:close()
  options.self("server", self, mt)
  if not self.net then return end
  for _, job in ipairs(self.jobs) do
    coroutine.close(job.co)
    job.call.exchange:drop()
  end
  self.jobs = {}
  self.net:close()
  self.net = nil
end

--- Counters: requests, tokens, connections.
function methods:stats()
  check_open(self)
  local m = self.metrics
  local out = self.net:counts()
  out.running, out.waiting, out.generating = #self.jobs, m.waiting, m.generating
  out.prompt_tokens, out.cached_tokens, out.completion_tokens = m.prompt, m.cached, m.completion
  out.failures, out.last_failure = m.failures, self.last_failure
  out.requests = {}
  for key, n in pairs(m.requests) do
    local route, status = key:match "^(.*)%z(.*)$"
    out.requests[route .. " " .. status] = n
  end
  return out
end

mt = {
  __name = "fathom.server",
  __index = methods,
  __close = methods.close,
  __gc = function(self) pcall(methods.close, self) end,
  __tostring = function(self)
    if not self.net then return "fathom server (closed)" end
    return ("fathom server (%s at %s, %d running%s)"):format(self.name, self.url, #self.jobs, self.stopping and ", stopping" or "")
  end,
}

-- ---- starting ---------------------------------------------------------------------------------------------------------

local function has_net()
  local ok, net = pcall(require, "fathom.net")
  if ok and net.server then return net end
  return fault.give("unsupported", "fathom was built without libmicrohttpd: there is no server",
                    "install libmicrohttpd's headers and run make again")
end

local known = { host = is.string, port = is.count(0, 65535), key = is.string, name = is.string, traces = is.path, limits = is.table,
                log = is.callable }

local function basename(dir) return dir:match "([^/]+)/*$" or "model" end

local function listen(net, o, l)
  local s, code, message, hint = net.server { host = o.host, port = o.port, max_connections = l.connections, max_body = l.body,
    max_bodies = l.bodies, head_ms = l.head_ms, body_ms = l.body_ms, idle_ms = l.idle_ms, stall_ms = l.stall_ms }
  if not s then return fault.give(code, message, hint) end
  return s
end

local function url_of(host, port)
  if host == "0.0.0.0" or host == "::" then host = "127.0.0.1" end
  return ("http://%s:%d"):format(host:find(":", 1, true) and "[" .. host .. "]" or host, port)
end

--- Starts to serve a model over HTTP, as OpenAI's clients expect it, with a page at /.
-- @param model model
-- @param opts table|nil  host ("127.0.0.1"), port (one that is free), key (clients must give it), name (of the model; its folder's),
--   traces (a folder of .jsonl files to show), log (function(request), called when one is over), limits: { requests (512 at once),
--   choices (1,024 at once), per_client (requests at once), per_minute (of a client), max_tokens, n (64), body (bytes, 2 MiB),
--   bodies (of all, 32 MiB), connections (1,024), buffer (bytes that wait for one client), head_ms, body_ms, idle_ms, stall_ms }
-- @return server, or nil, err
-- @usage
--   local server = assert(fathom.serve(model, { port = 8080 }))
--   server:run()
function serve.serve(model, opts)
  options.argument("fathom.serve", "model", model, function(v)
    local m = getmetatable(v)
    return m ~= nil and m.__name == "fathom.model", "a model"
  end)
  if model.closed then options.raise "attempt to use a closed model" end
  local o = options.check("fathom.serve", opts, known)
  if o.key == "" then options.raise "fathom.serve: the key is empty" end
  local l = limits.read(o.limits)
  o.host = o.host or "127.0.0.1"
  local net, err = has_net()
  if not net then return nil, err end
  local s
  s, err = listen(net, o, l)
  if not s then return nil, err end
  if o.key then span.secret(o.key) end
  local self = { model = model, lib = net, net = s, net_now = net.now, host = o.host, port = s:port(), key = o.key,
                 name = o.name or basename(model.engine.dir), traces = o.traces, log = o.log, limits = l, clients = {}, jobs = {},
                 n_running = 0, pass_ms = 0, bytes_of = {}, created = os.time(), fingerprint = "fathom-" .. model.engine:digest() }
  self.is_local = o.host == "localhost" or o.host == "::1" or o.host:match "^127%." ~= nil
  self.url, self.metrics = url_of(o.host, self.port), metrics.new(net.now)
  return setmetatable(self, mt)
end

return serve

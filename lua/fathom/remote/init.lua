--- remote - an OpenAI-compatible server (vLLM, SGLang, DeepSeek's own, fathom serve) as a backend: the verbs of a model.
--
-- Every request goes out as a stream and is moved by step; replies become tasks, pieces and results of the usual shape. ids
-- are empty, for a server tells texts; usage.exact is false, for no server promises equal ids. Certificates are checked;
-- redirections are not followed and proxies of the environment not used, so that the key goes where the url says.

local call = require "fathom.remote.call"
local desk = require "fathom.desk"
local fault = require "fathom.fault"
local options = require "fathom.options"
local request = require "fathom.remote.request"
local sampling = require "fathom.sampling"
local span = require "fathom.span"
local talk = require "fathom.talk"

local remote = {}
local methods = talk.verbs "remote"
local is = options.is

-- What must not be seen by who looks at a remote: its headers, with the key.
local private = setmetatable({}, { __mode = "k" })

local known = {
  url = is.string, key = is.string, model = is.string, price = is.table, timeout = is.one_of(is.at_least(0.001), is.table),
  retries = is.count(0, 100), headers = is.table, concurrency = is.count(1), stream = is.boolean, extra = is.table, fields = request.fields,
  inline_think = is.boolean, split_n = is.boolean, max_bytes = is.count(1), proxy = is.string, ca = is.path,
  patience = is.at_least(0),
}
local price_known = { input = is.at_least(0), cached = is.at_least(0), output = is.at_least(0) }
local timeout_known = { connect = is.at_least(0.001), idle = is.at_least(0.001), total = is.at_least(0.001) }

-- ---- options ------------------------------------------------------------------------------------------------------

local function base_of(url)
  local scheme, host, path = url:match "^(https?)://([^/%s?#]+)(/?[^%s?#]*)$"
  if not scheme then options.raise("fathom.remote: url must be http://host[:port][/path] or https://..., got " .. ("%q"):format(url)) end
  if host:find "@" then options.raise "fathom.remote: no user or password in url: key = and headers = are for that" end
  path = path:gsub("/+$", ""):gsub("/chat/completions$", "")
  return scheme .. "://" .. host .. (path == "" and "/v1" or path), host
end

local function header_lines(o)
  local lines = { "Content-Type: application/json", "Accept: text/event-stream, application/json" }
  if o.key then
    if o.key:find "[%c]" then options.raise "fathom.remote: key holds control characters (the end of a line?)" end
    lines[#lines + 1] = "Authorization: Bearer " .. o.key
  end
  for name, value in pairs(o.headers or {}) do
    if type(name) ~= "string" or name:find "[^%w%-_]" or type(value) ~= "string" or value:find "[%c]" then
      options.raise "fathom.remote: headers are { [\"Name\"] = \"value\" }, without control characters"
    end
    lines[#lines + 1] = name .. ": " .. value
  end
  return lines
end

local function ms(seconds) return seconds and math.max(1, math.floor(seconds * 1000)) end

local function cost_of(price)
  if not price then return function() return nil end end
  local p = options.check("fathom.remote: price", price, price_known)
  local input, output = p.input or 0, p.output or 0
  return function(prompt, cached, completion)
    return ((prompt - cached) * input + cached * (p.cached or input) + completion * output) / 1e6
  end
end

-- Texts of servers without what nobody should see: some repeat the key that they refuse.
local function hider(o)
  local hidden = {}
  if o.key and #o.key > 0 then hidden[1] = o.key end
  for _, value in pairs(o.headers or {}) do
    if #value >= 8 then hidden[#hidden + 1] = value end
  end
  return function(text)
    for _, secret in ipairs(hidden) do
      local from, to = text:find(secret, 1, true)
      while from do
        text = text:sub(1, from - 1) .. "***" .. text:sub(to + 1)
        from, to = text:find(secret, from + 3, true)
      end
    end
    return text
  end
end

-- ---- the desk -----------------------------------------------------------------------------------------------------

local function counter(self)
  local s, cost = self.counters, private[self].cost
  return function(usage)
    if not usage then return end
    s.prompt, s.cached, s.completion = s.prompt + usage.prompt, s.cached + usage.cached, s.completion + usage.completion
    s.cost = s.cost + (cost(usage.prompt, usage.cached, usage.completion) or 0)
  end
end

local function send(self, jobs, prompt, o, n)
  local p = private[self]
  local path, body = request.body(prompt, o, { model = self.model, stream = self.streams, n = n,
                                                fields = self.fields, extra = self.extra })
  local wait = self.timeout
  local wire = { url = self.url .. path, body = body, headers = p.headers, connect_ms = ms(wait.connect), idle_ms = ms(wait.idle),
                 total_ms = ms(wait.total), max_size = self.max_bytes, proxy = p.proxy, ca_file = self.ca }
  local c = call.new { open = function() return self.client:request(wire) end, jobs = jobs, retries = self.retries,
    patience = self.patience, stats = self.counters, hide = p.hide, host = self.host, count = counter(self),
    answer = { inline = self.inline_think, cost = p.cost },
    split = n > 1 and function(old, missing)
      for _, index in ipairs(missing) do
        local job = old.jobs[index]
        old.jobs[index], job.seed = nil, o.seed + index
        job.call = send(self, { [0] = job }, prompt, sampling.merge({ seed = o.seed + index }, o), 1)
      end
    end }
  self.calls[#self.calls + 1] = c
  return c
end

-- Samples of one call share it: it goes out with the next step.
local function begin(d, t, prompt)
  local self, group, sample = d.backend, t.how.group, t.how.sample or 0
  local err = request.obstacle(t.options, self.fields)
  if err then return t:fail(err) end
  local shared = group and group.n > 1 and not self.split_n
  if shared and group.call and group.call.state == "queued" then
    group.call.jobs[sample], t.call = t, group.call
    return
  end
  local o = t.options
  if not shared and sample > 0 then
    t.seed = o.seed + sample
    o = sampling.merge({ seed = t.seed }, o)
  end
  local ok, c = pcall(send, self, { [shared and sample or 0] = t }, prompt, o, shared and group.n or 1)
  if not ok then return t:fail(fault.new("format", "the request cannot be written as JSON: " .. tostring(c))) end
  t.call = c
  if shared then group.call = c end
end

-- A call whose jobs are all over lets its connection go.
local function drop(_, t)
  for index, other in pairs(t.call and t.call.jobs or {}) do
    if other == t then t.call.jobs[index] = nil end
  end
  if t.call and not next(t.call.jobs) then t.call:drop() end
end

-- Moves calls in their order, as many at once as may be; forgets those that are over. Returns when the next wants to go on.
local function move_calls(self)
  local left, running, soon = {}, 0, math.huge
  for _, c in ipairs(table.move(self.calls, 1, #self.calls, 1, {})) do
    if c.state ~= "queued" or running < self.concurrency then c:move() end
    if c.state ~= "over" then running = running + 1 end
    soon = math.min(soon, c:waits() or math.huge)
  end
  for _, c in ipairs(self.calls) do
    if c.state ~= "over" then left[#left + 1] = c end
  end
  self.calls = left
  return soon
end

local function advance(d, wait)
  local self = d.backend
  local soon = move_calls(self)
  if d.n_live == 0 then return end
  local _, code, message = self.client:step(math.min(wait, soon))
  if code then
    for _, t in ipairs(d:jobs()) do t:fail(fault.new(code, message)) end
  end
  move_calls(self)
end

-- ---- for users ----------------------------------------------------------------------------------------------------

local function check(opts)
  local o = options.check("fathom.remote", opts, known)
  if not o.url then options.raise "fathom.remote: option 'url' is missing" end
  if type(o.timeout) == "number" then o.timeout = { total = o.timeout } end
  o.timeout = options.check("fathom.remote: timeout", o.timeout, timeout_known)
  return o
end

--- A server as a backend. Nothing is sent before the first request.
-- @param opts table
--   url          "https://api.deepseek.com", "http://127.0.0.1:8000/v1"; an address without a path gets /v1
--   key, model   the bearer key (it stays out of messages, traces and tostring), the model's name there
--   price        { input =, cached =, output = } of a million tokens: results have usage.cost, stats() the sum
--   timeout      seconds for a whole request, or { connect = 10, idle = 300, total = none }
--   retries      3; concurrency: 64 requests at once, more wait here
--   headers      { [name] = value } besides; extra: fields of the request's JSON besides; fields: { [option] = the server's name }
--   stream       true; false asks for whole replies. split_n: samples as requests of their own in place of one with n
--   inline_think the server leaves thoughts in the text, before </think>
--   max_bytes    64 MiB a reply; proxy, ca: a proxy's address, a file of certificates to trust; patience: 1, a factor for
--                the waits between tries
-- @return remote, or nil, err where this build has no network library
-- @usage local r = fathom.remote { url = "https://api.deepseek.com", key = os.getenv "KEY", model = "deepseek-chat" }
function remote.new(opts)
  local o = check(opts)
  local url, host = base_of(o.url)
  local lines = header_lines(o)
  local hidden = { headers = lines, hide = hider(o), proxy = o.proxy, cost = cost_of(o.price) }
  local there, net = pcall(require, "fathom.net")
  if not there or not net.client then
    return fault.give("unsupported", "this build has no network library for remote backends",
                      "install libcurl's headers (make deps-net) and build again")
  end
  local client, code, message = net.client()
  if not client then return fault.give(code, message) end
  if o.key then span.secret(o.key) end
  local self = setmetatable({ url = url, host = host, model = o.model, client = client, calls = {}, closed = false,
    timeout = o.timeout, retries = o.retries or 3, concurrency = o.concurrency or 64, streams = o.stream ~= false, extra = o.extra,
    fields = o.fields,
    inline_think = o.inline_think, split_n = o.split_n, max_bytes = o.max_bytes, ca = o.ca, patience = o.patience or 1,
    counters = { requests = 0, retries = 0, failures = 0, prompt = 0, cached = 0, completion = 0, cost = 0.0 } }, remote.mt)
  private[self] = hidden
  self.engine = desk.new(self, { label = "remote", begin = begin, drop = drop, advance = advance, slice_ms = 50 })
  return self
end

function methods:check_open()
  options.self("remote", self, remote.mt)
  if self.closed then options.raise "attempt to use a closed remote" end
end

--- Counters so far: requests, retries, failures, tokens (prompt, cached, completion), cost, and what is under way.
function methods:stats()
  options.self("remote", self, remote.mt)
  return sampling.merge({ running = #self.calls }, self.counters)
end

--- Cancels what runs and drops its connections. May be called twice.
function methods:close()
  options.self("remote", self, remote.mt)
  if self.closed then return end
  self.closed = true
  self.engine:close()
  self.client:close()
end

remote.mt = {
  __name = "fathom.remote",
  __index = methods,
  __close = methods.close,
  __gc = function(self) pcall(methods.close, self) end,
  __tostring = function(self)
    if self.closed then return "fathom remote (closed)" end
    return ("fathom remote (%s%s, %d requests)"):format(self.url, self.model and ", " .. self.model or "", self.counters.requests)
  end,
}

return remote

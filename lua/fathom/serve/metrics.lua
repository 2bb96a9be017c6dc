--- serve/metrics.lua - counters of a server, and their text for Prometheus.

local metrics = {}
local methods = {}
local mt = { __name = "fathom.serve.metrics", __index = methods }

local FIRST = { 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30 }
local EACH = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1 }
local WHOLE = { 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300 }

local function histogram(bounds)
  local h = { bounds = bounds, counts = {}, sum = 0.0, n = 0 }
  for i = 1, #bounds do h.counts[i] = 0 end
  return h
end

local function observe(h, seconds, times)
  times = times or 1
  h.sum, h.n = h.sum + seconds * times, h.n + times
  for i, bound in ipairs(h.bounds) do
    if seconds <= bound then
      h.counts[i] = h.counts[i] + times
      return
    end
  end
end

--- now: function, milliseconds of a clock that only goes forward.
function metrics.new(now)
  return setmetatable({ now = now, requests = {}, waiting = 0, generating = 0, prompt = 0, cached = 0, completion = 0, drafted = 0,
                        accepted = 0, failures = 0, first = histogram(FIRST), each = histogram(EACH), whole = histogram(WHOLE) }, mt)
end

--- Counts an answer.
function methods:answered(route, status, seconds)
  local key = route .. "\0" .. status
  self.requests[key] = (self.requests[key] or 0) + 1
  observe(self.whole, seconds)
end

local choice = {}
local choice_mt = { __index = choice, __close = function(c)
  local m, name = c.metrics, c.last and "generating" or "waiting"
  m[name] = m[name] - 1
  if not c.used then m.completion = m.completion + c.n end      -- it was left in the middle
end }

--- Follows one choice from its request to its last token; to be closed.
function methods:choice(call)
  self.waiting = self.waiting + 1
  return setmetatable({ metrics = self, begun = call.begun_ms, n = 0 }, choice_mt)
end

--- It is complete, and used so much.
function choice:usage(u)
  local m = self.metrics
  self.used = true
  m.prompt, m.cached, m.completion = m.prompt + u.prompt, m.cached + u.cached, m.completion + u.completion
  m.drafted, m.accepted = m.drafted + u.drafted, m.accepted + u.accepted
end

--- n tokens have come.
function choice:tokens(n)
  if n == 0 then return end
  self.n = self.n + n
  local m, now = self.metrics, self.metrics.now()
  if self.last then
    observe(m.each, (now - self.last) / 1000 / n, n)
  else
    m.waiting, m.generating = m.waiting - 1, m.generating + 1
    observe(m.first, (now - self.begun) / 1000)
  end
  self.last = now
end

-- ---- the text -----------------------------------------------------------------------------------------------------

local function labelled(out, name, labels, value) out[#out + 1] = ("%s{%s} %d"):format(name, labels, value) end

local function head(out, name, kind, help)
  out[#out + 1] = ("# HELP %s %s"):format(name, help)
  out[#out + 1] = ("# TYPE %s %s"):format(name, kind)
end

local function plain(out, name, kind, help, value)
  head(out, name, kind, help)
  out[#out + 1] = ("%s %.17g"):format(name, value)
end

local function put_histogram(out, name, help, h)
  head(out, name, "histogram", help)
  local below = 0
  for i, bound in ipairs(h.bounds) do
    below = below + h.counts[i]
    labelled(out, name .. "_bucket", ('le="%g"'):format(bound), below)
  end
  labelled(out, name .. "_bucket", 'le="+Inf"', h.n)
  out[#out + 1] = ("%s_sum %.6f"):format(name, h.sum)
  out[#out + 1] = ("%s_count %d"):format(name, h.n)
end

local function put_requests(out, requests)
  head(out, "fathom_requests_total", "counter", "Answers by route and status.")
  local keys = {}
  for key in pairs(requests) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local route, status = key:match "^(.*)%z(.*)$"
    labelled(out, "fathom_requests_total", ('route="%s",status="%s"'):format(route, status), requests[key])
  end
end

--- Everything in Prometheus' text format.
-- @param net table    counts of the network library; model: model:stats(), or nil when it is closed
function methods:text(net, model, running)
  local out = {}
  local function counter(name, help, value) plain(out, "fathom_" .. name, "counter", help, value) end
  local function gauge(name, help, value) plain(out, "fathom_" .. name, "gauge", help, value) end
  put_requests(out, self.requests)
  counter("prompt_tokens_total", "Tokens of prompts.", self.prompt)
  counter("cached_tokens_total", "Tokens of prompts that were in the cache.", self.cached)
  counter("completion_tokens_total", "Tokens that were sampled.", self.completion)
  counter("drafted_tokens_total", "Tokens that were drafted.", self.drafted)
  counter("accepted_tokens_total", "Drafts that were right.", self.accepted)
  counter("failures_total", "Requests that failed by a fault of the server.", self.failures)
  gauge("requests_running", "Requests that have no answer yet.", running)
  gauge("choices_waiting", "Choices that wait for their first token.", self.waiting)
  gauge("choices_generating", "Choices that are being written.", self.generating)
  put_histogram(out, "fathom_time_to_first_token_seconds", "From the request to its first token.", self.first)
  put_histogram(out, "fathom_time_per_token_seconds", "From one token to the next.", self.each)
  put_histogram(out, "fathom_request_seconds", "From the request to the end of its answer.", self.whole)
  gauge("connections", "Open connections.", net.connections)
  counter("connections_total", "Connections that came.", net.accepted)
  for _, why in ipairs { "malformed", "too_large", "slow", "busy", "dropped", "stalled" } do
    counter("refused_" .. why .. "_total", "Clients that were " .. why .. ".", net[why])
  end
  counter("received_bytes_total", "Bytes of bodies that came.", net.bytes_in)
  counter("sent_bytes_total", "Bytes of answers.", net.bytes_out)
  if model then
    gauge("cache_pages", "Pages of the cache.", model.pages)
    gauge("cache_pages_used", "Pages of the cache in use.", model.pages_used)
    gauge("cache_prefix_pages", "Pages that keep prefixes nobody uses now.", model.prefix_pages)
    counter("model_steps_total", "Steps of the engine.", model.steps)
  end
  return table.concat(out, "\n") .. "\n"
end

return metrics

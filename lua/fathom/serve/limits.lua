--- serve/limits.lua - how much clients may ask for: together, each, and a minute.

local options = require "fathom.options"
local wire = require "fathom.serve.wire"

local limits = {}
local is = options.is

--- Names and checks of fathom.serve's option limits.
limits.known = {
  requests = is.count(1, 65536), choices = is.count(1, 65536), per_client = is.count(1), per_minute = is.count(1),
  max_tokens = is.count(1), n = is.count(1, 65536),
  body = is.count(1024), bodies = is.count(1024), connections = is.count(1, 100000), buffer = is.count(1024),
  head_ms = is.count(1), body_ms = is.count(1), idle_ms = is.count(1), stall_ms = is.count(1),
}

local MINUTE_MS = 60000
local defaults = { requests = 512, choices = 1024, n = 64, body = 2 << 20, bodies = 32 << 20, connections = 1024,
                   buffer = 256 << 10, head_ms = 10000, body_ms = 30000, idle_ms = 60000, stall_ms = 30000 }

--- Checks limits and fills in defaults.
function limits.read(given)
  local out = options.check("fathom.serve: limits", given, limits.known)
  for name, value in pairs(defaults) do out[name] = out[name] or value end
  return out
end

-- ---- clients ----------------------------------------------------------------------------------------------------

local function too_many(status, message, seconds)
  local r = wire.refusal(status, message, nil, status == 429 and "rate_limit_exceeded" or "overloaded")
  r.retry_after = math.max(1, math.ceil(seconds))
  error(r, 0)
end

-- What a client may still ask in this minute fills up again evenly.
local function take_token(client, per_minute, now)
  client.tokens = math.min(per_minute, client.tokens + (now - client.seen) * per_minute / MINUTE_MS)
  client.seen = now
  if client.tokens < 1 then
    too_many(429, ("more than %d requests a minute"):format(per_minute), (1 - client.tokens) * 60 / per_minute)
  end
  client.tokens = client.tokens - 1
end

--- Counts a request in; raises a refusal (429 for what one client asks, 503 for what all do).
-- @return function that counts it out again
function limits.enter(server, address)
  local l, clients, now = server.limits, server.clients, server.net_now()
  local client = clients[address] or { running = 0, tokens = l.per_minute or 0, seen = now }
  clients[address] = client
  if server.n_running >= l.requests then too_many(503, ("more than %d requests at once"):format(l.requests), 1) end
  if l.per_client and client.running >= l.per_client then
    too_many(429, ("more than %d requests of one client at once"):format(l.per_client), 1)
  end
  if l.per_minute then take_token(client, l.per_minute, now) end
  client.seen = now
  server.n_running, client.running = server.n_running + 1, client.running + 1
  return function() server.n_running, client.running = server.n_running - 1, client.running - 1 end
end

--- Refuses n more choices where those of all requests together would be too many.
function limits.more_choices(server, n)
  local m = server.metrics
  if m.waiting + m.generating + n > server.limits.choices then
    too_many(503, ("more than %d choices at once"):format(server.limits.choices), 1)
  end
end

--- Forgets clients that have not asked for a while.
function limits.sweep(server)
  local now = server.net_now()
  if now - (server.swept or 0) < MINUTE_MS then return end
  server.swept = now
  for address, client in pairs(server.clients) do
    if client.running == 0 and now - client.seen > MINUTE_MS then server.clients[address] = nil end
  end
end

return limits

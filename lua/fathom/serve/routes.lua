--- serve/routes.lua - which handler a request goes to, and who may ask.

local page = require "fathom.serve.page"
local wire = require "fathom.serve.wire"

local routes = {}

-- path -> method -> { module, counts against limits }; modules are loaded when they are first wanted
local table_of = {
  ["/v1/chat/completions"] = { POST = { "chat", true } },
  ["/v1/completions"] = { POST = { "completions", true } },
  ["/v1/embeddings"] = { POST = { "embeddings", true } },
  ["/v1/judge"] = { POST = { "judge", true } },
  ["/v1/models"] = { GET = { "about", false, "models" } },
  ["/tokenize"] = { POST = { "about", true, "tokenize" } },
  ["/detokenize"] = { POST = { "about", true, "detokenize" } },
  ["/health"] = { GET = { "about", false, "health" } },
  ["/metrics"] = { GET = { "about", false, "metrics" } },
  ["/traces"] = { GET = { "traces", false, "list" } },
}
local open = { ["/health"] = true }                    -- without a key; and the page, which asks for it

local function page_handler(call)
  local body, kind = page.file(call.path)
  call:reply(200, kind, body, page.headers)
end

local page_paths = {}
for _, path in ipairs(page.paths()) do page_paths[path] = { GET = { handler = page_handler } } end

local function family(path)
  if table_of[path] then return path, table_of[path] end
  if page_paths[path] then return "page", page_paths[path] end
  if path:match "^/v1/models/." then return "/v1/models/NAME", { GET = { "about", false, "model" } } end
  if path:match "^/traces/." then return "/traces/NAME", { GET = { "traces", false, "read" } } end
  return "unknown"
end

--- The route of a call.
-- @return name for counters; entry { handler =, limited = } or nil and a refusal
function routes.find(call)
  local name, methods = family(call.path)
  if not methods then return name, nil, wire.refusal(404, ("there is nothing at %s"):format(call.path), nil, "unknown_url") end
  local entry = methods[call.method == "HEAD" and "GET" or call.method]
  if not entry then
    local r = wire.refusal(405, ("%s does not take %s"):format(name, call.method), nil, "method_not_allowed")
    r.allow = next(methods)
    return name, nil, r
  end
  if entry.handler then return name, entry end
  local module = require("fathom.serve." .. entry[1])
  return name, { handler = module[entry[3] or "handle"], limited = entry[2] }
end

-- ---- who may ask ------------------------------------------------------------------------------------------------

local function is_loopback(host) return host == "127.0.0.1" or host == "::1" or host == "localhost" end

-- A page of another site must not use this server through a browser: neither by its own address (Origin) nor by a name that
-- was made to point here (Host).
local function check_origin(server, call)
  local host, origin = call.headers.host, call.headers.origin
  local name = host and (host:match "^%[(.-)%]" or host:match "^([^:]+)")
  if server.is_local and name and not is_loopback(name) then
    wire.refuse(403, ("this server is reached as %s, not as %s"):format(server.host, name), nil, "wrong_host")
  end
  if origin and origin:match "^%w+://(.*)$" ~= host then
    wire.refuse(403, ("pages of %s may not use this server"):format(origin), nil, "wrong_origin")
  end
end

--- Raises a refusal where the caller may not ask.
function routes.check(server, call)
  check_origin(server, call)
  if not server.key or open[call.path] or page_paths[call.path] then return end
  local given = call.headers.authorization and call.headers.authorization:match "^[Bb]earer%s+(.-)%s*$" or call.headers["x-api-key"]
  if not given then wire.refuse(401, "a key is wanted: Authorization: Bearer KEY", nil, "missing_api_key") end
  if not server.lib.same(given, server.key) then wire.refuse(401, "the key is not right", nil, "invalid_api_key") end
end

return routes

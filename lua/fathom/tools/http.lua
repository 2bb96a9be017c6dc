--- tools/http.lua - HTTP for agents, by a list of what may be asked: scheme, host and port of every address, those of redirects too,
-- must be on it; connections to addresses that are not of the public network are refused unless private = true, whatever a name stands for.

local fault = require "fathom.fault"
local options = require "fathom.options"
local task = require "fathom.task"

local http = {}
local is = options.is

local known = { allow = is.strings, methods = is.strings, private = is.boolean, max_size = is.count(1), max_body = is.count(0),
                seconds = is.at_least(0), redirects = is.count(0), headers = is.strings, ca_file = is.path }
local PORTS = { http = 80, https = 443 }
local MAX_URL = 2000

-- ---- addresses ------------------------------------------------------------------------------------------------------

-- host and port of "name", "name:port", "[v6]:port"; nil for anything doubtful.
local function authority(text, scheme)
  local host, port = text:match "^(%[[%x:.]+%])(.*)$"
  if not host then host, port = text:match "^([%w.-]+)(.*)$" end
  if not host or #host > 255 or host:find("..", 1, true) or host:sub(1, 1) == "." then return nil end
  if port == "" then return host:lower(), PORTS[scheme] end
  local number = math.tointeger(tonumber(port:match "^:(%d+)$"))
  if not number or number < 1 or number > 65535 then return nil end
  return host:lower(), number
end

--- Takes an address apart, strictly: what two readers could read differently is refused.
-- @return { scheme =, host =, port =, path = }, or nil and a sentence
function http.parse(url)
  if #url > MAX_URL then return nil, ("an address has at most %d bytes"):format(MAX_URL) end
  if url:find "[%c%s\\\127-\255]" then return nil, "an address holds no spaces, backslashes or characters beyond ASCII" end
  local scheme, rest = url:match "^(%a+)://(.*)$"
  scheme = scheme and scheme:lower()
  if not PORTS[scheme] then return nil, "an address begins with http:// or https://" end
  local who, path = rest:match "^([^/?#]*)([^#]*)"
  if who:find "@" then return nil, "an address holds no user name" end
  local host, port = authority(who, scheme)
  if not host then return nil, ("'%s' is no host"):format(who) end
  if path:sub(1, 1) ~= "/" then path = "/" .. path end
  return { scheme = scheme, host = host, port = port, path = path }
end

local function text_of(a) return ("%s://%s:%d%s"):format(a.scheme, a.host, a.port, a.path) end

-- "host", "*.host", "host:port", "scheme://host[:port]"; https unless it says something else.
local function rule_of(entry)
  local scheme, who = entry:match "^(%a+)://([^/]+)/?$"
  scheme = scheme and scheme:lower() or not entry:find("://", 1, true) and "https"
  who = who or entry
  local any = who:sub(1, 2) == "*."
  local host, port = authority(any and who:sub(3) or who, scheme)
  if not PORTS[scheme] or not host then
    options.raise(("fathom.tools.http: allow: '%s' is no host: write %s"):format(entry,
                  '"host", "*.host", "host:port" or "scheme://host:port"'))
  end
  return { scheme = scheme, host = host, port = port, any = any }
end

local function fits(rule, a)
  if rule.scheme ~= a.scheme or rule.port ~= a.port then return false end
  if not rule.any then return rule.host == a.host end
  return #a.host > #rule.host + 1 and a.host:sub(-#rule.host - 1) == "." .. rule.host
end

--- Whether an address may be asked.
-- @return the address taken apart, or nil and a sentence
local function allowed(self, url)
  local a, why = http.parse(url)
  if not a then return nil, why end
  for _, rule in ipairs(self.rules) do
    if fits(rule, a) then return a end
  end
  return nil, ("%s://%s:%d is not on the list of what may be asked"):format(a.scheme, a.host, a.port)
end

-- ---- one request ------------------------------------------------------------------------------------------------------

-- Waits for a transfer, as tasks do: yields a handle that can be stepped and cancelled where that is possible.
local function wait(self, transfer)
  local cancelled = false
  local handle = { task = { engine = { step = function(_, ms) return self.client:step(ms) end },
                            cancel = function() cancelled = true end } }
  while transfer:state() == "running" and not cancelled do
    local yields = coroutine.isyieldable()
    self.client:step(yields and 1 or 50)
    if yields then task.yield(handle) end
  end
  if cancelled then return "failed", "cancelled", "the request was cancelled" end
  return transfer:state()
end

-- Where a reply leads, as an address: absolute, of this host, or beside this path.
local function target(a, location)
  if location:find "^%a+://" then return location end
  if location:sub(1, 2) == "//" then return a.scheme .. ":" .. location end
  local base = ("%s://%s:%d"):format(a.scheme, a.host, a.port)
  if location:sub(1, 1) == "/" then return base .. location end
  return base .. a.path:match "^[^?]*/" .. location
end

local REDIRECTS = { [301] = true, [302] = true, [303] = true, [307] = true, [308] = true }

-- Headers go to the host that was asked for, not to one that it names.
local function same_host(a, b) return a.scheme == b.scheme and a.host == b.host and a.port == b.port end

local function ask(self, a, method, body, headers, deadline)
  local net = require "fathom.net"
  local left = deadline - net.now()
  if left <= 0 then return nil, ("it took more than %g seconds"):format(self.seconds) end
  local transfer, _, why = self.client:request { url = text_of(a), method = method, body = body, headers = headers,
    total_ms = math.max(1, left), max_size = self.max_size, public_only = not self.private, ca_file = self.ca_file }
  if not transfer then return nil, why end
  local open <close> = transfer
  local state, _, said = wait(self, open)
  if state ~= "done" then return nil, said end
  return { status = open:status() or 0, location = open:header "location", type = open:header "content-type", body = open:take() }
end

local function printable(body, kind)
  if utf8.len(body) and not body:find "[%z\1-\8\14-\31]" then return body end
  return ("(%d bytes of %s)"):format(#body, kind or "data")
end

local function fetch(self, args)
  options.argument("fathom.tools.http", "args", args, is.table)
  options.argument("fathom.tools.http", "args.url", args.url, is.string)
  local method, body = (args.method or "GET"):upper(), args.body
  if not self.methods[method] then return nil, ("the method %s is not allowed"):format(method) end
  if body and #body > self.max_body then return nil, ("a body has at most %d bytes"):format(self.max_body) end
  if body and (method == "GET" or method == "HEAD") then return nil, method .. " takes no body" end
  local deadline = require("fathom.net").now() + self.seconds * 1000
  local url, first = args.url, nil
  for _ = 0, self.redirects do
    local a, why = allowed(self, url)
    if not a then return nil, why end
    first = first or a
    local reply
    reply, why = ask(self, a, method, body, same_host(first, a) and self.headers or nil, deadline)
    if not reply then return nil, why end
    if not (REDIRECTS[reply.status] and reply.location) then
      local text = printable(reply.body, reply.type)
      if reply.status >= 200 and reply.status < 300 then return text end
      return nil, ("the server answered %d: %s"):format(reply.status, text:sub(1, 200))
    end
    url = target(a, reply.location)
    if reply.status < 307 and method ~= "HEAD" then method, body = "GET", nil end
  end
  return nil, ("there were more than %d redirects"):format(self.redirects)
end

--- Makes the tool: args.url, args.method ("GET"), args.body. The output is the reply's body where its status is 2xx.
-- @param opts table  allow: list of "host" (https), "*.host" (what is below it), "host:port", "http://host:port";
--   methods ({ "GET", "HEAD" }); private (false): true lets addresses of local networks be asked; max_size of a reply (256 KiB),
--   max_body of a request (64 KiB), seconds for all of a call (20), redirects (3), headers (lines sent along,
--   not to another host that a redirect names), ca_file
-- @return tool, or nil, err where this build has no network library
-- @usage assert(fathom.tools.http { allow = { "*.wikipedia.org" } })
function http.new(opts)
  local o = options.check("fathom.tools.http", opts, known)
  if not o.allow or not o.allow[1] then options.raise "fathom.tools.http: option 'allow' is missing: a list of hosts" end
  local rules, methods = {}, {}
  for i, entry in ipairs(o.allow) do rules[i] = rule_of(entry) end
  for _, method in ipairs(o.methods or { "GET", "HEAD" }) do methods[method:upper()] = true end
  local there, net = pcall(require, "fathom.net")
  if not there or not net.client then
    return fault.give("unsupported", "this build has no network library", "install libcurl's headers (make deps-net) and build again")
  end
  local client, code, message = net.client()
  if not client then return fault.give(code, message) end
  local self = { client = client, rules = rules, methods = methods, private = o.private or false, max_size = o.max_size or 256 << 10,
                 max_body = o.max_body or 64 << 10, seconds = o.seconds or 20, redirects = o.redirects or 3, headers = o.headers,
                 ca_file = o.ca_file }
  local optional = require("fathom.schema").optional
  return { doc = "Ask a web server.", args = { url = "string", method = optional "string", body = optional "string" },
           run = function(args) return fetch(self, args) end }
end

return http

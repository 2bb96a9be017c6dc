--- serve/wire.lua - what goes over the wire: errors in OpenAI's shape, text that JSON can hold, events.

local json = require "fathom.json"

local wire = {}

local refusal_mt = { __name = "fathom.refusal", __tostring = function(self) return self.message end }

-- ---- errors ---------------------------------------------------------------------------------------------------

local types = { [401] = "authentication_error", [403] = "permission_error", [404] = "not_found_error", [429] = "rate_limit_error" }

--- An answer that says no, to be raised by a handler.
-- @param status integer     4xx or 5xx
-- @param message string     a sentence
-- @param param string|nil   the field that is wrong: "messages[0].role"
-- @param code string|nil    a word for programs
-- @return refusal
function wire.refusal(status, message, param, code)
  return setmetatable({ status = status, message = message, param = param, code = code,
                        type = types[status] or status >= 500 and "server_error" or "invalid_request_error" }, refusal_mt)
end

--- Raises a refusal.
-- @usage wire.refuse(400, "n must be at least 1", "n")
function wire.refuse(...) error(wire.refusal(...), 0) end

function wire.is_refusal(e) return getmetatable(e) == refusal_mt end

-- Facts of the world that are the request's own fault.
local of_request = { format = 400, unsupported = 400, overflow = 400, invalid = 400 }
local of_server = { memory = 503, limit = 503, cancelled = 503 }
local codes = { overflow = "context_length_exceeded", memory = "overloaded", limit = "overloaded", cancelled = "cancelled" }

--- An error object of the library as a refusal.
function wire.of_fault(err)
  local status = of_request[err.code] or of_server[err.code] or 500
  local message = err.hint and ("%s; %s"):format(err.message, err.hint) or err.message
  return wire.refusal(status, message, nil, codes[err.code] or err.code)
end

--- The body of a refusal.
function wire.error_value(r)
  return { error = json.object({ message = wire.clean(r.message), type = r.type, param = r.param and wire.clean(r.param) or json.null,
                                 code = r.code or json.null }, { "message", "type", "param", "code" }) }
end

-- ---- text -----------------------------------------------------------------------------------------------------

--- Text in which everything that is no UTF-8 has become U+FFFD.
function wire.clean(text)
  if utf8.len(text) then return text end
  local parts, at = {}, 1
  while at <= #text do
    local n, bad = utf8.len(text, at)
    if n then
      parts[#parts + 1] = text:sub(at)
      break
    end
    parts[#parts + 1] = text:sub(at, bad - 1) .. "\u{FFFD}"
    at = bad + 1
  end
  return table.concat(parts)
end

--- Takes text piece by piece and gives it without the spaces around the whole.
-- @return function(piece) -> what can be told now, maybe ""
function wire.trimmer()
  local begun, held = false, ""
  return function(piece)
    local text = held .. piece
    if not begun then text = text:match "^%s*(.*)$" end
    begun = begun or text ~= ""
    local said
    said, held = text:match "^(.-)(%s*)$"
    return said
  end
end

local alphabet = {}
for c in ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"):gmatch "." do alphabet[#alphabet + 1] = c end

--- Bytes in base64.
function wire.base64(bytes)
  local out = {}
  for at = 1, #bytes, 3 do
    local a, b, c = bytes:byte(at, at + 2)
    local n = a << 16 | (b or 0) << 8 | (c or 0)
    out[#out + 1] = alphabet[(n >> 18) + 1] .. alphabet[(n >> 12 & 63) + 1]
      .. (b and alphabet[(n >> 6 & 63) + 1] or "=") .. (c and alphabet[(n & 63) + 1] or "=")
  end
  return table.concat(out)
end

--- A fresh name: "chatcmpl-" and 24 hexadecimal digits.
function wire.id(prefix)
  local f = io.open("/dev/urandom", "rb")
  local bytes = f and f:read(12) or nil
  if f then f:close() end
  if not bytes or #bytes < 12 then bytes = string.pack("<dI4", os.clock(), math.random(0, 0x7fffffff)) end
  return prefix .. bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end)
end

--- One server-sent event.
function wire.event(value) return "data: " .. json.encode(value) .. "\n\n" end

wire.last_event = "data: [DONE]\n\n"

return wire

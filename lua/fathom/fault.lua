--- fault.lua - facts of the world as error objects: { code =, message =, hint = }, tostring reads as a sentence.

local options = require "fathom.options"

local fault = {}

--- Makes an error object.
-- @param code string     "io", "format", "unsupported", "memory", "device", "overflow", "cancelled", "network", "limit"
-- @param message string  one sentence without its full stop
-- @param hint string|nil what to try
function fault.new(code, message, hint)
  return require("fathom.core").error(code, message, hint)
end

--- fault.new in the shape that functions return: nil, err.
function fault.give(code, message, hint) return nil, fault.new(code, message, hint) end

--- Calls into the core: what it calls a wrong call is raised at our caller's line, the rest is returned.
-- @usage return fault.guard(core.encode, core, text, false)
function fault.guard(f, ...)
  local r = table.pack(pcall(f, ...))
  if not r[1] then
    if type(r[2]) ~= "string" then error(r[2], 0) end
    options.raise((r[2]:gsub("^[^\n]-%.lua:%d+: ", "")))
  end
  local err = r[3]
  if r[2] == nil and err ~= nil and type(err) ~= "string" and err.code == "invalid" then options.raise(err.message) end
  return table.unpack(r, 2, r.n)
end

return fault

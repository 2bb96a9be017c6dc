--- jsonl.lua - files with one JSON object a line.

local fault = require "fathom.fault"
local json = require "fathom.json"

local jsonl = {}

--- Reads a file of JSON lines; empty lines are passed over.
-- @param path string
-- @param opts table|nil  torn: a last line without its end (its writer was killed) is left out; most: read so many
-- @return list of objects, or nil, err: which line is wrong and why
function jsonl.read(path, opts)
  opts = opts or {}
  local f, why = io.open(path, "rb")
  if not f then return fault.give("io", "cannot be read: " .. why) end
  -- opening a folder works; only reading from it does not
  local readable, reason_not = f:read(0)
  if not readable and reason_not then
    f:close()
    return fault.give("io", ("cannot be read: %s: %s"):format(path, reason_not))
  end
  local out, n = {}, 0
  for line in f:lines "L" do
    n = n + 1
    if opts.most and #out >= opts.most then break end
    if line:find "%S" then
      local value, reason = json.decode(line)
      if type(value) == "table" then
        out[#out + 1] = value
      elseif not (opts.torn and line:sub(-1) ~= "\n") then
        f:close()
        return fault.give("format", ("%s, line %d: %s"):format(path, n, reason or "no object"))
      end
    end
  end
  f:close()
  return out
end

return jsonl

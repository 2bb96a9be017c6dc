--- sse.lua - server-sent events, read as they arrive: any cut of the bytes, any end of line, comments, several data lines.

local sse = {}
sse.__index = sse

-- One event. A server that sends more without an end is broken.
local MAX_EVENT = 16 << 20

function sse.new() return setmetatable({ parts = {}, size = 0, data = {}, first = true }, sse) end

-- One whole line; returns the data of an event that it ends.
local function take_line(self, line)
  if self.first then
    self.first = false
    line = line:gsub("^\xEF\xBB\xBF", "")
  end
  if line == "" then
    if not self.data[1] then return nil end
    local data = table.concat(self.data, "\n")
    self.data, self.size = {}, 0
    return data
  end
  local name, value = line:match "^([^:]*):? ?(.*)$"
  if name == "data" then self.data[#self.data + 1] = value end
end

--- Takes bytes.
-- @param bytes string
-- @return list of the data of events that are complete, or nil and a sentence
-- @usage for _, data in ipairs(assert(reader:feed(bytes))) do ... end
function sse:feed(bytes)
  local out, at = {}, 1
  if self.after_cr and bytes ~= "" then                  -- the second half of a CRLF that was cut
    if bytes:byte(1) == 10 then at = 2 end
    self.after_cr = false
  end
  while true do
    local stop = bytes:find("[\r\n]", at)
    self.parts[#self.parts + 1] = bytes:sub(at, (stop or 0) - 1)
    self.size = self.size + (stop or #bytes + 1) - at
    if self.size > MAX_EVENT then return nil, ("an event is larger than %d bytes"):format(MAX_EVENT) end
    if not stop then return out end
    out[#out + 1] = take_line(self, table.concat(self.parts))
    self.parts, at = {}, stop + 1
    if not self.data[1] then self.size = 0 end
    if bytes:byte(stop) == 13 then
      if at > #bytes then self.after_cr = true elseif bytes:byte(at) == 10 then at = at + 1 end
    end
  end
end

--- What stands there when the bytes end without the blank line that closes an event; nil: nothing.
function sse:rest()
  local line = table.concat(self.parts)
  self.parts = {}
  if line ~= "" then take_line(self, line) end
  return take_line(self, "")
end

return sse

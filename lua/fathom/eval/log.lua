--- log.lua - a file of finished samples, from which a stopped evaluation goes on: one JSON object a line, each written at once.

local fault = require "fathom.fault"
local json = require "fathom.json"
local jsonl = require "fathom.jsonl"

local log = {}
log.__index = log

local function key_of(id, rep, seed) return ("%s\0%s\0%s"):format(id, rep, seed) end

-- Whether the last line of a file lacks its end.
local function is_torn(path)
  local f = io.open(path, "rb")
  if not f then return false end
  local torn = f:seek "end" > 0 and f:seek("end", -1) and f:read(1) ~= "\n"
  f:close()
  return torn
end

-- Behind half a line nothing could be read: whole ones are written beside and put in its place.
local function mend(path, lines)
  local beside = path .. ".new"
  local f, why = io.open(beside, "wb")
  if not f then return fault.give("io", "the log cannot be written: " .. why) end
  local parts = {}
  for i, line in ipairs(lines) do parts[i] = json.encode(line) .. "\n" end
  local ok
  ok, why = f:write(table.concat(parts))
  f:close()
  if ok then ok, why = os.rename(beside, path) end
  if not ok then return fault.give("io", "the log cannot be written: " .. why) end
  return true
end

--- Opens a log, reading what it holds.
-- @return log, or nil, err
function log.open(path)
  local self, ok = setmetatable({ path = path, done = {} }, log), true
  local f = io.open(path, "rb")
  if f then
    f:close()
    local lines, err = jsonl.read(path, { torn = true })
    if not lines then return nil, err end
    for _, r in ipairs(lines) do
      if r.id and r.seed and not r.err then self.done[key_of(r.id, r.rep, r.seed)] = r end
    end
    if is_torn(path) then ok, err = mend(path, lines) end
    if not ok then return nil, err end
  end
  local why
  self.file, why = io.open(path, "ab")
  if not self.file then return fault.give("io", "the log cannot be written: " .. why) end
  self.file:setvbuf "no"
  return self
end

--- The record of a sample that is done already, or nil. One that failed is tried again.
function log:find(id, rep, seed) return self.done[key_of(id, rep, seed)] end

--- Adds a record; what goes wrong is kept in log.err.
function log:add(record)
  local ok, why = self.file:write(json.encode(record) .. "\n")
  if not ok then self.err = self.err or fault.new("io", "the log cannot be written: " .. why) end
end

function log:close()
  if self.file then self.file:close() end
  self.file = nil
end

return log

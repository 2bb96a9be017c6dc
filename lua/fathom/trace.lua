--- trace.lua - writes every span to a file of JSON lines, or gives it to a function; reads such files back.
-- A trace never breaks what it watches: what goes wrong with it (a full disk, a function that raises) is kept in trace.err.

local fault = require "fathom.fault"
local json = require "fathom.json"
local jsonl = require "fathom.jsonl"
local options = require "fathom.options"
local span = require "fathom.span"

local trace = {}
local methods = {}
local is = options.is

-- Names that hold secrets wherever they stand. "key" is none of them: tools have arguments of that name.
local secret_names = { authorization = true, api_key = true, apikey = true, password = true, secret = true,
                       ["proxy-authorization"] = true, ["x-api-key"] = true, access_token = true }
local HIDDEN = "(secret)"
local MAX_DEPTH = 64

-- The order of a line's first keys; the rest follows the alphabet.
local rank = { id = 1, parent = 2, kind = 3, at = 4, begun_ms = 5, ms = 6 }

-- ---- plain values -----------------------------------------------------------------------------------------------

local function replace_plain(text, what, by)
  local from = text:find(what, 1, true)
  while from do
    text = text:sub(1, from - 1) .. by .. text:sub(from + #what)
    from = text:find(what, from + #by, true)
  end
  return text
end

-- A JSON file is UTF-8: other bytes (a reply cut inside a character) become U+FFFD.
local function clean_text(text, hidden)
  for value in pairs(hidden) do text = replace_plain(text, value, HIDDEN) end
  local _, bad = utf8.len(text)
  while bad do
    text = text:sub(1, bad - 1) .. "\u{FFFD}" .. text:sub(bad + 1)
    _, bad = utf8.len(text, bad)
  end
  return text
end

local plain

local function plain_table(value, hidden, depth)
  if depth > MAX_DEPTH then return "(too deep)" end
  local out, mt = {}, getmetatable(value)
  local kind = mt and mt.__jsontype
  if kind == "array" or (not kind and #value > 0) then
    for i = 1, #value do
      local v = value[i]
      out[i] = math.type(v) == "integer" and v or plain(v, hidden, depth + 1)
    end
    return json.array(out)
  end
  for k, v in pairs(value) do
    local name = tostring(k)
    if secret_names[name:lower()] then v = HIDDEN end
    out[clean_text(name, hidden)] = plain(v, hidden, depth + 1)
  end
  if not kind and next(out) == nil then return json.array(out) end
  return json.object(out, mt and mt.__jsonorder)
end

-- What JSON cannot hold is told in words.
function plain(value, hidden, depth)
  local kind = type(value)
  if value == nil or value == json.null or kind == "boolean" then return value end
  if kind == "string" then return clean_text(value, hidden) end
  if kind == "number" then
    if value ~= value or value == math.huge or value == -math.huge then return tostring(value) end
    return value
  end
  -- an object of a library is told by its name; a schema, and what else says how JSON writes it, is data
  local mt = kind == "table" and getmetatable(value) or {}
  if kind == "table" and (not mt.__name or mt.__jsontype) then return plain_table(value, hidden, depth) end
  if kind == "function" or kind == "thread" then return nil end
  return clean_text(tostring(value), hidden)
end

--- A copy of a value that JSON can hold, without secrets.
-- @param value any
-- @return any
function trace.plain(value) return plain(value, span.secrets(), 0) end

-- ---- writing ------------------------------------------------------------------------------------------------------

local function keep_error(self, err)
  self.err = self.err or err
  self.lost = self.lost + 1
end

local function write_line(self, record)
  if self.err then
    self.lost = self.lost + 1                     -- behind half a line nothing can be read
    return
  end
  -- unbuffered and opened for appending: one write a line, so that two processes may share a file
  local ok, why = self.file:write(json.encode(record, rank) .. "\n")
  if ok then
    self.spans = self.spans + 1
  else
    keep_error(self, fault.new("io", ("%s cannot be written: %s"):format(self.path, why)))
  end
end

local function tell(self, record)
  local ok, err = pcall(self.f, record)
  if ok then self.spans = self.spans + 1 else keep_error(self, err) end
end

local function listener(self)
  return function(record)
    local ok, err = pcall(function()
      local copy = trace.plain(record)
      if self.f then tell(self, copy) else write_line(self, copy) end
    end)
    if not ok then keep_error(self, err) end
  end
end

--- Stops listening. What is under way is not written. May be called twice.
-- @return true, or nil, err: what went wrong while it was written
function methods:close()
  options.self("trace", self, trace.mt)
  if self.listener then
    span.unlisten(self.listener)
    self.listener = nil
    if self.file then self.file:close() end
  end
  if self.err then return nil, self.err end
  return true
end

trace.mt = {
  __name = "fathom.trace",
  __index = methods,
  __close = methods.close,
  __gc = methods.close,
  __tostring = function(self)
    return ("fathom trace (%s, %d spans%s%s)"):format(self.path or "function", self.spans, self.listener and "" or ", closed",
                                                       self.err and ", " .. self.lost .. " lost" or "")
  end,
}

-- Files that are to be read as lines of whole writes.
local function open_file(path, append)
  if not append then
    local f, why = io.open(path, "wb")
    if not f then return nil, why end
    f:close()
  end
  local f, why = io.open(path, "ab")
  if f then f:setvbuf "no" end
  return f, why
end

--- Writes every span from now on: generations with ids, seeds, options, times and usage, judges, tools, agents.
-- @param where string|function  a file (one JSON object a line, in the order in which spans end), or f(span)
-- @param opts table|nil         append (false): go on behind what the file holds
-- @return trace                 with close(), spans (how many), err and lost (what could not be written); or nil, err
-- @usage local t <close> = assert(fathom.trace "run.jsonl")
function trace.open(where, opts)
  options.argument("fathom.trace", "where", where, is.one_of(is.path, is.callable))
  local o = options.check("fathom.trace", opts, { append = is.boolean })
  local self = { spans = 0, lost = 0 }
  if type(where) == "function" then
    self.f = where
  else
    local why
    self.path = where
    self.file, why = open_file(where, o.append)
    if not self.file then return fault.give("io", "a trace cannot be written: " .. why) end
  end
  self.listener = listener(self)
  span.listen(self.listener)
  return setmetatable(self, trace.mt)
end

-- ---- reading ------------------------------------------------------------------------------------------------------

--- Reads the spans of a file. A last line without its end (a process that was killed) is left out.
-- @param path string
-- @return list of spans in the order in which they ended, or nil, err
function trace.read(path)
  options.argument("trace.read", "path", path, is.path)
  return jsonl.read(path, { torn = true })
end

return trace

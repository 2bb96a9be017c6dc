--- span.lua - what happens, as spans: opened, closed, and told to whoever listens. Without listeners it costs a comparison.
-- A span that is opened in a coroutine is the parent of what is opened there until it is closed. A coroutine of its own
-- starts below what was open where it was made when span.adopt says so (crew.lua does).
-- @usage
--   local s = span.open("tool", { name = name, args = args })
--   local value, err = run(args)
--   s:close { result = value, err = err }

local span = {}
local methods = {}
local mt = { __name = "fathom.span", __index = methods }

local listeners = {}
local tops = setmetatable({}, { __mode = "k" })                     -- coroutine -> the span that is open in it
local last_id = 0
local secrets = {}

local function nothing() end
local silent = setmetatable({ id = false, close = nothing, set = nothing }, { __close = nothing })

-- Milliseconds of a clock that only goes forward.
local function now() return require("fathom.core").now() end

--- Whether anybody listens: ask before collecting what is dear.
function span.listening() return listeners[1] ~= nil end

-- Spans are closed in any order: what is closed is no parent any more.
local function top_of(co)
  local top = tops[co]
  while top and top.closed do top = top.parent_span end
  tops[co] = top
  return top
end

local function new(kind, fields, parent)
  last_id = last_id + 1
  return setmetatable({ id = last_id, kind = kind, fields = fields or {}, parent_span = parent,
                        begun = now(), at = os.time() }, mt)
end

--- Opens a span which is the parent of what follows in this coroutine until it is closed.
-- @param kind string        "generate", "judge", "reward", "tool", "agent", "eval" or a word of your own
-- @param fields table|nil   what is known now; plain values that JSON can hold
-- @return span              with close(fields) and set(fields); it may stand in a to-be-closed variable
function span.open(kind, fields)
  if not listeners[1] then return silent end
  local co = coroutine.running()
  local s = new(kind, fields, top_of(co))
  tops[co] = s
  return s
end

--- Opens a span without making it a parent: for what runs beside others (a generation under way).
function span.leaf(kind, fields)
  if not listeners[1] then return silent end
  return new(kind, fields, top_of(coroutine.running()))
end

--- Adds fields to a span that is open.
function methods:set(fields)
  for k, v in pairs(fields or {}) do self.fields[k] = v end
end

--- Closes a span and tells the listeners. A second time does nothing.
-- @param fields table|nil  what is known at the end
function methods:close(fields)
  if self.closed then return end
  self.closed = true
  self:set(fields)
  local record = { id = self.id, parent = self.parent_span and self.parent_span.id or nil, kind = self.kind, at = self.at,
                   ms = now() - self.begun, begun_ms = self.begun }
  for k, v in pairs(self.fields) do record[k] = v end
  for _, listener in ipairs(table.move(listeners, 1, #listeners, 1, {})) do listener(record) end
end

-- A block that an error leaves says so.
mt.__close = function(self, err) self:close(err ~= nil and { err = tostring(err) } or nil) end

--- Lets a coroutine start below what is open in this one.
-- @param co thread
function span.adopt(co)
  if listeners[1] then tops[co] = top_of(coroutine.running()) end
end

--- Adds a listener.
-- @param f function(record)  gets each span when it is closed
function span.listen(f) listeners[#listeners + 1] = f end

--- Removes a listener.
function span.unlisten(f)
  for i, other in ipairs(listeners) do
    if other == f then
      table.remove(listeners, i)
      return
    end
  end
end

--- A value that no trace may hold: a key of a server.
-- @param value string
function span.secret(value)
  if type(value) == "string" and #value >= 4 then secrets[value] = true end
end

--- The secrets so far, as a set.
function span.secrets() return secrets end

return span

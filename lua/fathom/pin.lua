--- pin.lua - holds a pipeline of prompts to a recorded trace, offline: the same requests get the recorded replies, and the first
-- request that differs fails with what differs. For busted, or any other way to run tests.
-- @usage
--   local pin = require "fathom.pin"
--   it("asks for a quest and judges it", pin.test("spec/pins/quest.jsonl", function(backend)
--     local quest = assert(backend:generate({ { role = "user", content = "Make up a quest." } }, { temperature = 0 }))
--     assert.matches("sword", quest.answer)
--   end))
--   -- recorded when the file is not there, or when the variable FATHOM_PIN is "record"; commit the file

local fault = require "fathom.fault"
local json = require "fathom.json"
local jsonl = require "fathom.jsonl"
local note = require "fathom.note"
local options = require "fathom.options"
local trace = require "fathom.trace"

local pin = {}
local is = options.is

local MOST_SHOWN = 6

-- ---- requests ---------------------------------------------------------------------------------------------------------

-- What a request says, in a form that is the same for the same request: ids of calls are the server's, not the pipeline's.
local function request_of(messages, asked, sample)
  local list = {}
  for i, m in ipairs(type(messages) == "table" and messages or {}) do
    list[i] = type(m) == "table" and json.copy(m) or { content = m }
    list[i].reply = nil
    for _, call in ipairs(type(list[i].tool_calls) == "table" and list[i].tool_calls or {}) do call.id = nil end
    list[i].tool_call_id = nil
  end
  return { messages = list, options = asked or {}, sample = sample or 0 }
end

local function flatten(value, path, out)
  if type(value) == "table" and value ~= json.null then
    local empty = true
    for k, v in pairs(value) do
      empty = false
      flatten(v, type(k) == "number" and ("%s[%d]"):format(path, k) or (path == "" and k or path .. "." .. tostring(k)), out)
    end
    if empty then out[path] = {} end
  else
    out[path] = math.type(value) == "float" and math.tointeger(value) or value
  end
  return out
end

local function same_value(a, b) return a == b or type(a) == "table" and type(b) == "table" end

local function same(a, b)
  for k, v in pairs(a) do
    if not same_value(v, b[k]) then return false end
  end
  for k in pairs(b) do
    if a[k] == nil then return false end
  end
  return true
end

-- The first line of two texts that is not the same.
local function first_line(a, b)
  local n, x, y = 0, (a .. "\n"):gmatch "(.-)\n", (b .. "\n"):gmatch "(.-)\n"
  while true do
    n = n + 1
    local p, q = x(), y()
    if p ~= q then return n, p, q end
    if not p then return n, "", "" end
  end
end

local function quoted(v)
  if v == nil then return "nothing" end
  if type(v) == "table" then return "{}" end
  return type(v) == "string" and ("%q"):format(v):gsub("\\\n", "\\n") or tostring(v)
end

-- What differs between two flat requests, as lines.
local function differences(recorded, now)
  local keys, out = {}, {}
  for k in pairs(recorded) do keys[#keys + 1] = k end
  for k in pairs(now) do
    if recorded[k] == nil then keys[#keys + 1] = k end
  end
  table.sort(keys)
  for _, k in ipairs(keys) do
    local a, b = recorded[k], now[k]
    if not same_value(a, b) and #out < MOST_SHOWN * 3 then
      local where = k
      if type(a) == "string" and type(b) == "string" and (a .. b):find "\n" then
        local n
        n, a, b = first_line(a, b)
        where = ("%s, line %d"):format(k, n)
      end
      out[#out + 1] = "  " .. where
      out[#out + 1] = "    recorded: " .. quoted(a)
      out[#out + 1] = "    now:      " .. quoted(b)
    end
  end
  if #out == 3 and out[1] == "  options.seed" then
    out[4] = "  (was it drawn? a judge or an agent that is given a seed asks the same each time)"
  end
  return out
end

-- ---- replies ------------------------------------------------------------------------------------------------------------

-- What a scripted backend says for a recorded generation.
local function reply_of(s)
  local reply = { finish = s.finish ~= "tool" and s.finish or nil, usage = s.usage, tool_calls = s.tool_calls }
  if s.err then
    local err = type(s.err) == "table" and s.err or { message = tostring(s.err) }
    reply.err = { code = err.code or "format", message = err.message or "the recorded request failed" }
  elseif s.tool_calls and s.tool_calls[1] then
    reply.think, reply.answer = s.think ~= "" and s.think or nil, s.answer ~= "" and s.answer or nil
  else
    reply.text = s.text
  end
  return reply
end

-- The recorded request that is meant: the first of the same that is not taken yet.
local function find(self, flat)
  for _, entry in ipairs(self.entries) do
    if not entry.taken and same(entry.flat, flat) then return entry end
  end
end

-- The first that nobody has asked for, for comparison.
local function next_open(self)
  for _, entry in ipairs(self.entries) do
    if not entry.taken then return entry end
  end
end

local function mismatch(self, flat)
  local entry = next_open(self)
  local head = ("request %d is not in %s"):format(self.n, self.path)
  if not entry then
    return ("%s: only %d were recorded\n  it asks %s"):format(head, #self.entries, quoted(flat["messages[1].content"]))
  end
  return ("%s; compared with the recorded request %d:\n%s"):format(head, entry.index, table.concat(differences(entry.flat, flat), "\n"))
end

local function answer(self, messages, opts)
  self.n = self.n + 1
  local asked = note.asked(opts, nil, opts.drawn)
  local flat = flatten(trace.plain(request_of(messages, asked, opts.sample)), "", {})
  local entry = find(self, flat)
  if not entry then
    self.err = self.err or mismatch(self, flat)
    error(self.err, 0)
  end
  entry.taken = true
  return reply_of(entry.span)
end

-- Spans are written as they end; requests of the same kind are told apart by the order in which they began.
local function in_order(entries)
  for i, entry in ipairs(entries) do entry.index = i end
  table.sort(entries, function(a, b)
    if a.at ~= b.at then return a.at < b.at end
    return a.index < b.index
  end)
  for i, entry in ipairs(entries) do entry.index = i end
end

--- A backend that answers from a trace, offline: each request gets the reply that was recorded for the same messages and options;
-- several of the same get theirs in the recorded order. Other requests fail.
-- @param where string|list  the file of a trace, or its spans
-- @return backend (a mock), and state: state.err says what differed first, state:rest() how many recorded requests were not made;
--   or nil, err
-- @usage local offline = assert(require("fathom.pin").backend "run.jsonl")
function pin.backend(where)
  options.argument("pin.backend", "where", where, is.one_of(is.path, is.table))
  local spans, err = where, nil
  if type(where) == "string" then spans, err = jsonl.read(where, { torn = true }) end
  if not spans then return nil, err end
  local self = { path = type(where) == "string" and where or "the trace", entries = {}, n = 0 }
  for _, s in ipairs(spans) do
    -- what only reads a prompt for samples (max_tokens 0) is no request of the pipeline's
    local said = type(s.options) == "table" and s.options or {}
    if s.kind == "generate" and s.messages and said.max_tokens ~= 0 then
      local asked = json.copy(type(s.asked) == "table" and s.asked or said)
      if s.drawn then asked.seed = nil end
      local flat = flatten(trace.plain(request_of(s.messages, asked, s.sample)), "", {})
      self.entries[#self.entries + 1] = { span = s, flat = flat, at = math.type(s.id) == "integer" and s.id or #self.entries }
    end
  end
  in_order(self.entries)
  function self.rest()
    local n = 0
    for _, entry in ipairs(self.entries) do n = n + (entry.taken and 0 or 1) end
    return n
  end
  return require("fathom.mock").new { replies = function(messages, opts) return answer(self, messages, opts) end }, self
end

-- ---- recording ------------------------------------------------------------------------------------------------------------

-- The span fields that a pin keeps: nothing that changes from one recording to the next.
local kept = { "kind", "messages", "asked", "sample", "text", "think", "answer", "tool_calls", "finish", "usage", "err" }
local rank = {}
for i, name in ipairs(kept) do rank[name] = i end
local steady = { "prompt", "completion" }

local function line_of(s)
  local out = json.object {}
  for _, name in ipairs(kept) do out[name] = s[name] end
  if s.usage then
    out.usage = {}
    for _, name in ipairs(steady) do out.usage[name] = s.usage[name] end
  end
  return json.encode(out, rank)
end

-- A scripted backend that asks the model behind it, so that a pipeline meets the same kind of backend in both ways.
local function recorder(model)
  local n = 0
  return require("fathom.mock").new { replies = function(messages, opts)
    n = n + 1
    local o = {}
    for name, value in pairs(opts) do o[name] = value end
    o.n, o.sample, o.drawn = nil, nil, nil
    o.seed = (opts.seed + 7919 * (opts.sample or 0)) & ((1 << 53) - 1)
    local result, err = model:generate(messages, o)
    if not result then return { err = { code = err.code, message = err.message } } end
    return reply_of(result)
  end }
end

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

local function record(path, pipeline, o)
  local model = o.backend and o.backend() or assert(require("fathom").load(require("fathom").pocket))
  local backend, lines = recorder(model), {}
  local listener = trace.open(function(s)
    if s.kind == "generate" and s.backend == "mock" then
      s.asked = json.copy(s.options or {})
      if s.drawn then s.asked.seed = nil end
      lines[#lines + 1] = { at = s.id, index = #lines, text = line_of(s) .. "\n" }
    end
  end)
  local ok, err = xpcall(pipeline, debug.traceback, backend)
  listener:close()
  backend:close()
  if not o.backend then model:close() end
  if not ok then error(err, 0) end
  local f, why = io.open(path, "wb")
  if not f then error(fault.new("io", "the pin cannot be written: " .. why), 0) end
  in_order(lines)
  for _, line in ipairs(lines) do f:write(line.text) end
  f:close()
end

local function replay(path, pipeline)
  local backend, state = pin.backend(path)
  if not backend then error(state, 0) end
  local ok, err = xpcall(pipeline, function(e) return type(e) == "string" and debug.traceback(e) or e end, backend)
  backend:close()
  if state.err then error(state.err, 0) end
  if not ok then error(err, 0) end
  if state:rest() > 0 then
    error(("%d of the requests recorded in %s were not made; the first asks %s"):format(state:rest(), path,
      quoted(next_open(state).flat["messages[1].content"])), 0)
  end
end

--- A test of a pipeline: runs it against the recorded replies, and fails where it asks for something else, or for less.
-- @param path string         the recorded trace; it is recorded when it is not there, or when FATHOM_PIN=record
-- @param pipeline function   f(backend): all that it generates goes through this backend
-- @param opts table|nil      backend: function() -> the model that answers while recording (pocket)
-- @return function for `it`
-- @usage it("greets", pin.test("spec/pins/greet.jsonl", function(backend) ... end))
function pin.test(path, pipeline, opts)
  options.argument("pin.test", "path", path, is.path)
  options.argument("pin.test", "pipeline", pipeline, is.callable)
  local o = options.check("pin.test", opts, { backend = is.callable })
  return function()
    if os.getenv "FATHOM_PIN" == "record" or not exists(path) then return record(path, pipeline, o) end
    return replay(path, pipeline)
  end
end

return pin

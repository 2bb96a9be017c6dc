--- reply.lua - sorts sampled tokens into channels while they come, and reads the whole when they have.
-- Channels change at ids, never at letters: what a model merely quotes stays where it is.

local json = require "fathom.json"

local reply = {}
reply.__index = reply

local TOOL_OPEN = { "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<tool_call>" }
local TOOL_CLOSE = { "<｜tool▁calls▁end｜>", "</tool_call>" }

local function set_of(m, names)
  local set = {}
  for _, name in ipairs(names) do
    local id = m:added(name)
    if id then set[id] = true end
  end
  return set
end

--- The control ids of a model that matter in replies.
-- @param m core model  added(text) -> id, decode(ids) -> text
-- @return table          sizes: how many bytes an id stands for, as far as somebody wanted to know
function reply.marks(m)
  return { think = m:added "<think>", think_end = m:added "</think>", tool_open = set_of(m, TOOL_OPEN),
           tool_close = set_of(m, TOOL_CLOSE), call = m:added "<｜tool▁call▁begin｜>",
           call_end = m:added "<｜tool▁call▁end｜>", sep = m:added "<｜tool▁sep｜>", json_open = m:added "<tool_call>",
           json_close = m:added "</tool_call>", sizes = {} }
end

--- Whether a prompt ends inside a block of thoughts.
function reply.opened(marks, ids)
  if not marks.think_end then return false end
  for i = #ids, 1, -1 do
    if ids[i] == marks.think_end then return false end
    if ids[i] == marks.think then return true end
  end
  return false
end

--- Starts reading a reply.
-- @param m core model; marks from reply.marks; opened: the prompt ended inside a block of thoughts;
-- logprobs: they are wanted
function reply.new(m, marks, opened, logprobs)
  return setmetatable({ m = m, marks = marks, sizes = marks.sizes, tokens_only = not m:has_tokenizer(), opened = opened,
                        channel = opened and "think" or "answer", ids = {}, told = 0, texts = { think = {}, answer = {}, tool = {} },
                        parts = {}, n_bytes = 0, released = 0, spans = {}, logprobs = logprobs and {} }, reply)
end

-- Channel of one id, whether it is a mark of thoughts, and the channel after it. A mark belongs to the block that
-- it opens or closes.
local function place(self, id)
  local marks, channel = self.marks, self.channel
  if channel == "tool" then
    return "tool", false, marks.tool_close[id] and "answer" or "tool"
  elseif id == marks.think_end then
    return "think", true, "answer"
  elseif id == marks.think then
    return "think", true, "think"
  elseif marks.tool_open[id] then
    return "tool", false, "tool"
  end
  return channel, false, channel
end

local function size_of(self, id)
  local size = self.sizes[id]
  if not size then
    size = self.tokens_only and 0 or #self.m:decode { id }
    self.sizes[id] = size
  end
  return size
end

-- Bytes are released later than their ids (a half character, the start of a stop string), so each id's
-- channel is kept beside the bytes it stands for: a queue of spans, neighbours of one kind joined.
local function note(self, id)
  local channel, mark
  channel, mark, self.channel = place(self, id)
  self.n_bytes = self.n_bytes + size_of(self, id)
  local last = self.spans[#self.spans]
  if last and last.channel == channel and last.mark == mark then
    last.stop = self.n_bytes
  else
    self.spans[#self.spans + 1] = { channel = channel, mark = mark, stop = self.n_bytes }
  end
  self.ids[#self.ids + 1] = id
end

-- Makes a piece of a text and the ids that were not told yet; queue nil: nobody wants it.
local function tell(self, queue, text, span)
  if queue then
    local from, to = self.told + 1, #self.ids
    queue[#queue + 1] = { text = text, info = { channel = span.channel, ids = table.move(self.ids, from, to, 1, {}),
                                                logprobs = self.logprobs and table.move(self.logprobs, from, to, 1, {}) } }
  end
  self.told = #self.ids
  if text == "" then return end
  self.parts[#self.parts + 1] = text
  local list = self.texts[span.channel]
  if not span.mark then list[#list + 1] = text end
end

--- Takes one sampled token, as the core's task:next gives it.
-- @param queue list|nil  gets the pieces that became final with it: { text =, info = { channel =, ids =, logprobs = } }
function reply:take(queue, id, text, last, logprob, filtered, top)
  note(self, id)
  if self.logprobs then self.logprobs[#self.ids] = { id = id, logprob = logprob, filtered = filtered, top = top } end
  local spans = self.spans
  while text ~= "" do
    while #spans > 1 and spans[1].stop <= self.released do table.remove(spans, 1) end
    local room = #spans > 1 and spans[1].stop - self.released or #text
    local part = text:sub(1, room)
    tell(self, queue, part, spans[1])
    self.released = self.released + #part
    text = text:sub(room + 1)
  end
  -- an id whose bytes are still held back is told with them, or at the end; without a tokenizer at once
  if self.told < #self.ids and (last or self.tokens_only) then tell(self, queue, "", spans[#spans]) end
end

--- What is still to be told when a reply ended without a last token (it was cancelled).
function reply:rest(queue)
  if self.told < #self.ids then tell(self, queue, "", self.spans[#self.spans]) end
end

-- ---- tool calls -------------------------------------------------------------------------------------------

local function slice(ids, from, to) return table.move(ids, from, to, 1, {}) end

local function index_of(ids, id, from, to)
  for i = from, to do
    if ids[i] == id then return i end
  end
end

local function with_arguments(name, raw)
  local arguments, why = json.decode(raw)
  if type(arguments) ~= "table" then
    return { name = name, raw = raw, error = why or "the arguments are no JSON object" }
  end
  return { name = name, raw = raw, arguments = arguments }
end

-- TYPE<sep>NAME\n```json\nARGS\n``` (V3, R1, pocket), or NAME<sep>ARGS (V3.1)
local function fenced_call(self, ids)
  local sep = index_of(ids, self.marks.sep, 1, #ids)
  if not sep then return nil end
  local before = self.m:decode(slice(ids, 1, sep - 1))
  local after = self.m:decode(slice(ids, sep + 1, #ids))
  local name, raw = after:match("^%s*(.-)%s*\n```%a*\n(.-)\n?```%s*$")
  if name then return with_arguments(name, raw) end
  return with_arguments(before:match("^%s*(.-)%s*$"), after:match("^%s*(.-)%s*$"))
end

-- {"name": ..., "arguments": {...}} (Qwen)
local function json_call(self, ids)
  local raw = self.m:decode(ids):match("^%s*(.-)%s*$")
  local value = json.decode(raw)
  if type(value) ~= "table" or type(value.name) ~= "string" then
    return { name = "", raw = raw, error = "the call is no JSON object with a name" }
  end
  if type(value.arguments) ~= "table" then
    return { name = value.name, raw = json.encode(value.arguments), error = "the arguments are no JSON object" }
  end
  return { name = value.name, raw = json.encode(value.arguments), arguments = value.arguments }
end

-- Every block from `open` to `close`, or to the next open or the end where the close is missing.
local function each_call(self, open, close, read, out)
  if not open then return end
  local ids, at = self.ids, 1
  while true do
    local start = index_of(ids, open, at, #ids)
    if not start then return end
    local next_open = index_of(ids, open, start + 1, #ids) or #ids + 1
    local stop = close and index_of(ids, close, start + 1, next_open - 1)
    local call = read(self, slice(ids, start + 1, (stop or next_open) - 1))
    if call and (stop or call.arguments) then out[#out + 1] = call end
    at = (stop or next_open - 1) + 1
  end
end

--- The tool calls of the reply so far: { { name =, arguments = table or nil, raw =, error = }, ... }.
function reply:tool_calls()
  local out = {}
  if not self.tokens_only then
    each_call(self, self.marks.call, self.marks.call_end, fenced_call, out)
    each_call(self, self.marks.json_open, self.marks.json_close, json_call, out)
  end
  return out
end

-- ---- the whole --------------------------------------------------------------------------------------------

local function trim(s) return s:match("^%s*(.-)%s*$") end

--- Fills the text fields of a result.
-- @param finish string  "stop", "length" or "cancelled"; becomes "tool" where the reply calls tools
function reply:result(finish)
  local calls = self:tool_calls()
  return { text = table.concat(self.parts), think = trim(table.concat(self.texts.think)), answer = trim(table.concat(self.texts.answer)),
           tool_calls = calls, ids = slice(self.ids, 1, #self.ids), logprobs = self.logprobs,
           finish = finish == "stop" and #calls > 0 and "tool" or finish }
end

return reply

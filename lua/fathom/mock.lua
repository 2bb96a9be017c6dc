--- mock.lua - a scripted backend: pipelines are tried without weights, and always the same way.
--
-- Replies are taken in order, each when its task starts: one after another for the turns of a session, in the order of the
-- samples for sample and n. All sessions and forks of a mock take from the same list. A reply is
--   "text"                with or without <think>thoughts</think> before the answer
--   { think =, answer = or text =, tool_calls = { { name =, arguments = }, ... }, finish =, usage =, err = }
--                         err (a code such as "network", { code =, message =, hint = } or an error object) comes behind
--                         what the reply says, as when a connection breaks
--   function(messages, opts)  which returns one of these; opts has seed, drawn (nobody chose it), sample (from 0), n and the others
-- A step hands out one piece (a word) of each reply under way. usage counts words.

local desk = require "fathom.desk"
local fault = require "fathom.fault"
local job = require "fathom.job"
local json = require "fathom.json"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local talk = require "fathom.talk"

local mock = {}
local methods = talk.verbs "mock"
local is = options.is

-- ---- one reply ------------------------------------------------------------------------------------------------------

-- Words with the space before them; UTF-8 stays whole, for only ASCII splits.
local function words(text)
  local out = {}
  for word in text:gmatch "%s*[^%s]+" do out[#out + 1] = word end
  local rest = text:match "%S(%s+)$" or text:match "^%s+$"
  if rest then out[#out + 1] = rest end
  return out
end

local function add(script, channel, text, mark)
  for _, word in ipairs(mark and { text } or words(text)) do
    script[#script + 1] = { channel = channel, text = word, more = mark and { mark = true } or nil }
  end
end

-- "<think>a</think>b", "a</think>b" (the template opened the block), or plain text.
local function add_text(script, text)
  local before, open, rest = text:match "^(%s*)(<think>)(.*)$"
  local think, close, answer = (rest or text):match "^(.-)(</think>)(.*)$"
  if open then add(script, "think", before .. open, true) end
  if close then
    add(script, "think", think)
    add(script, "think", close, true)
    add(script, "answer", answer)
  else
    add(script, open and "think" or "answer", rest or text)
  end
end

local reply_known = { think = is.string, answer = is.string, text = is.string, tool_calls = is.table, finish = is.string,
                      usage = is.table, err = is.one_of(is.string, is.table), logprobs = is.table }

local function call_of(call)
  local arguments = call.arguments == nil and json.object {} or call.arguments
  if type(arguments) == "table" and next(arguments) == nil then arguments = json.object {} end
  local raw = type(arguments) == "string" and arguments or json.encode(arguments)
  return job.call_of(call.name, call.raw or raw, call.id)
end

local function error_of(err)
  if type(err) == "table" and err.code then
    return getmetatable(err) and err or fault.new(err.code, err.message or "the script says so", err.hint)
  end
  return fault.new(err, "the script says so")
end

-- A reply as a list of pieces, and what comes behind them.
local function script_of(what, reply)
  if type(reply) == "string" then reply = { text = reply } end
  if type(reply) ~= "table" then
    options.raise(("%s: a reply is a string, a table or a function, got %s"):format(what, type(reply)))
  end
  local r = options.check(what, reply, reply_known)
  local script = { at = 0, finish = r.finish or "stop", err = r.err and error_of(r.err), usage = r.usage, logprobs = r.logprobs,
                   calls = {} }
  if r.think then
    add(script, "think", "<think>", true)
    add(script, "think", r.think)
    add(script, "think", "</think>", true)
  end
  if r.text then add_text(script, r.text) end
  if r.answer then add(script, "answer", r.answer) end
  for i, call in ipairs(r.tool_calls or {}) do
    if type(call) ~= "table" or type(call.name) ~= "string" then
      options.raise(("%s: tool_calls[%d] must be { name =, arguments = }"):format(what, i))
    end
    script[#script + 1] = { call = call_of(call) }
  end
  return script
end

-- ---- the desk ---------------------------------------------------------------------------------------------------------

local function count_words(messages)
  local n = 0
  for _, m in ipairs(messages) do n = n + #words(m.content or "") end
  return n
end

-- What the next reply is; nil, err when there is none.
local function take(self, messages, opts)
  self.asked = self.asked + 1
  local reply = self.replies
  if type(reply) == "table" then reply = reply[self.asked] end
  if type(reply) == "function" then
    reply = reply(messages, opts)
    if reply == nil then return fault.give("format", ("the mock's function gave nothing for call %d"):format(self.asked)) end
  end
  if reply ~= nil then return reply end
  return fault.give("limit", ("the mock has %d replies and was asked %d times"):format(#self.replies, self.asked),
                    "give it more replies, or a function")
end

local function begin_checked(self, t, prompt)
  local messages = prompt.messages or { { role = "user", content = prompt.text or "" } }
  local opts = sampling.merge({ sample = t.how.sample or 0, drawn = t.how.drawn or nil }, t.options)
  self.calls[#self.calls + 1] = { messages = json.copy(messages), prompt = prompt.text, ids = prompt.ids, options = opts,
                                  sample = opts.sample }
  local reply, err = take(self, json.copy(messages), opts)
  if reply == nil then return t:fail(err) end
  self.calls[#self.calls].reply = type(reply) == "table" and json.copy(reply) or reply
  t.script = script_of(("mock: replies[%d]"):format(self.asked), reply)
  t.usage.prompt = count_words(messages)
end

-- What a scripted function raises is raised from the call that started the task; the task has failed then.
local function begin(d, t, prompt)
  local ok, err = pcall(begin_checked, d.backend, t, prompt)
  if ok then return end
  t:fail(fault.new("format", "the mock's script raised an error: " .. tostring(err)))
  error(err, 0)
end

local function finish(t)
  local script = t.script
  for k, v in pairs(script.usage or {}) do t.usage[k] = v end
  t.logprobs = script.logprobs
  if script.err then return t:fail(script.err) end
  t:finish(script.finish)
end

local function advance(d)
  for _, t in ipairs(d:jobs()) do
    local script = t.script
    if script and not t.done then
      script.at = script.at + 1
      local piece = script[script.at]
      if piece then t.usage.completion = t.usage.completion + 1 end
      if piece and piece.call then t:call(piece.call) elseif piece then t:say(piece.channel, piece.text, piece.more) end
      if script.at >= #script then finish(t) end
    end
  end
end

-- ---- for users --------------------------------------------------------------------------------------------------------

--- Makes a scripted backend, with the verbs of a model that other backends have too: session, generate, stream, step.
-- @param opts table  replies: a list, see above, or one function(messages, opts) that answers everything
-- @return mock; mock.calls lists what was asked: { messages =, prompt =, options =, sample =, reply = }, and mock.asked counts
-- @usage local m = fathom.mock { replies = { "<think>easy</think>42", { tool_calls = { { name = "add", arguments = { a = 1 } } } } } }
function mock.new(opts)
  local o = options.check("fathom.mock", opts, { replies = is.one_of(is.table, is.callable) })
  if o.replies == nil then options.raise "fathom.mock: option 'replies' is missing" end
  local list = o.replies
  if type(list) == "table" then
    list = table.move(list, 1, #list, 1, {})
    for i, reply in ipairs(list) do
      if type(reply) ~= "function" then script_of(("fathom.mock: replies[%d]"):format(i), reply) end
    end
  end
  local self = setmetatable({ replies = list, calls = {}, asked = 0, closed = false }, mock.mt)
  self.engine = desk.new(self, { label = "mock", begin = begin, drop = function() end, advance = advance })
  return self
end

function methods:check_open()
  options.self("mock", self, mock.mt)
  if self.closed then options.raise "attempt to use a closed mock" end
end

--- How many replies are left; nil where a function answers.
function methods:left() return type(self.replies) == "table" and math.max(0, #self.replies - self.asked) or nil end

--- Cancels what runs. May be called twice.
function methods:close()
  options.self("mock", self, mock.mt)
  if self.closed then return end
  self.closed = true
  self.engine:close()
end

mock.mt = {
  __name = "fathom.mock",
  __index = methods,
  __close = methods.close,
  __tostring = function(self)
    if self.closed then return "fathom mock (closed)" end
    local list = type(self.replies) == "table"
    return ("fathom mock (asked %d times, %s)"):format(self.asked, list and #self.replies .. " replies" or "a function")
  end,
}

return mock

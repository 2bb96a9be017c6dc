--- answer.lua - what a server says, put together: chunks of a stream or one whole reply, for one job or for n samples.

local fault = require "fathom.fault"
local job = require "fathom.job"
local json = require "fathom.json"

local answer = {}
answer.__index = answer

--- @param jobs table    index of a choice (from 0) -> job
-- @param how table      inline: thoughts stand before </think> in the text; cost(prompt, cached, completion) -> number or nil
function answer.new(jobs, how)
  return setmetatable({ jobs = jobs, how = how, choices = {}, n_pieces = 0 }, answer)
end

local function is_null(v) return v == nil or v == json.null end
local function text_of(v) return type(v) == "string" and v or "" end
local function list_of(v) return type(v) == "table" and v ~= json.null and v or {} end

local function choice_of(self, index)
  local c = self.choices[index]
  if not c then
    c = { job = self.jobs[index], calls = {}, order = {}, inside = self.how.inline and "think" or nil, held = "", bytes = 0 }
    self.choices[index] = c
  end
  return c
end

-- ---- text ---------------------------------------------------------------------------------------------------------

local function say(self, c, channel, text, more)
  if text == "" then return end
  self.n_pieces = self.n_pieces + 1
  c.bytes = c.bytes + #text
  if c.job and not c.job.done then c.job:say(channel, text, more) end
end

local function mark(self, c, text) say(self, c, "think", text, { mark = true }) end

-- Thoughts in a field of their own get the marks around them that a model's text has.
local function say_thought(self, c, text, logprobs)
  if text == "" then return end
  if not c.thinking then
    c.thinking = true
    mark(self, c, "<think>")
  end
  say(self, c, "think", text, { logprobs = logprobs })
end

local function end_thought(self, c)
  if not c.thinking then return end
  c.thinking = false
  mark(self, c, "</think>")
end

-- How many bytes at the end of text may begin `word`.
local function tail_of(text, word)
  for n = math.min(#text, #word - 1), 1, -1 do
    if text:sub(-n) == word:sub(1, n) then return n end
  end
  return 0
end

-- Text whose thoughts end at </think>: what may be the start of the mark is held back.
local function say_inline(self, c, text)
  text = c.held .. text
  c.held = ""
  if not c.begun then
    local open = text:match "^%s*<think>"
    if not open and ("<think>"):find(text:match "^%s*(.*)$", 1, true) == 1 then
      c.held = text
      return
    end
    c.begun = true
    if open then
      mark(self, c, open)
      text = text:sub(#open + 1)
    end
  end
  local from, to = text:find("</think>", 1, true)
  if from then
    say(self, c, "think", text:sub(1, from - 1))
    mark(self, c, "</think>")
    c.inside = nil
    return say(self, c, "answer", text:sub(to + 1))
  end
  local n = tail_of(text, "</think>")
  say(self, c, "think", text:sub(1, #text - n))
  c.held = text:sub(#text - n + 1)
end

local function say_answer(self, c, text, logprobs)
  if text == "" then return end
  if c.inside then return say_inline(self, c, text) end
  end_thought(self, c)
  say(self, c, "answer", text, { logprobs = logprobs })
end

-- ---- tool calls ---------------------------------------------------------------------------------------------------

local function close_call(self, c)
  local call = c.calls[c.open]
  if not call then return end
  local _, close = job.call_text(call.name)
  say(self, c, "tool", (call.said == "" and "{}" or "") .. close)
  c.open = nil
end

-- Arguments come in parts; name and id with the first of them, mostly.
local function take_call(self, c, part, place)
  local index = math.type(part.index) == "integer" and part.index or place
  local call = c.calls[index]
  if not call then
    close_call(self, c)
    call = { name = "", raw = {}, said = "" }
    c.calls[index], c.order[#c.order + 1], c.open = call, index, index
  end
  if not is_null(part.id) then call.id = text_of(part.id) end
  local f = list_of(part["function"])
  call.name = call.name .. text_of(f.name)
  local arguments = f.arguments
  if type(arguments) == "table" and arguments ~= json.null then arguments = json.encode(arguments) end
  arguments = text_of(arguments)
  if call.name == "" or is_null(f.name) and arguments == "" then return end
  if not call.told then
    end_thought(self, c)
    call.told = true
    say(self, c, "tool", (job.call_text(call.name)))
  end
  call.raw[#call.raw + 1] = arguments
  if c.open == index then
    say(self, c, "tool", arguments)
    call.said = call.said .. arguments
  end
end

-- ---- logprobs -----------------------------------------------------------------------------------------------------

local function number(v) return type(v) == "number" and v or nil end

local function chat_logprobs(content)
  local out = {}
  for i, entry in ipairs(content) do
    local top
    entry = list_of(entry)
    for k, other in ipairs(list_of(entry.top_logprobs)) do
      top, other = top or {}, list_of(other)
      top[k] = { token = text_of(other.token), logprob = number(other.logprob) }
    end
    out[i] = { token = text_of(entry.token), logprob = number(entry.logprob), top = top }
  end
  return out
end

local function text_logprobs(l)
  local out = {}
  for i, token in ipairs(list_of(l.tokens)) do
    local top
    for other, logprob in pairs(list_of(list_of(l.top_logprobs)[i])) do
      top = top or {}
      top[#top + 1] = { token = other, logprob = number(logprob) }
    end
    if top then table.sort(top, function(a, b) return (a.logprob or -math.huge) > (b.logprob or -math.huge) end) end
    out[i] = { token = text_of(token), logprob = number(list_of(l.token_logprobs)[i]), top = top }
  end
  return out
end

local function take_logprobs(c, l)
  if is_null(l) or type(l) ~= "table" then return nil end
  local list = l.tokens and text_logprobs(l) or chat_logprobs(list_of(l.content))
  if not list[1] then return nil end
  c.logprobs = c.logprobs or {}
  table.move(list, 1, #list, #c.logprobs + 1, c.logprobs)
  return list
end

-- ---- chunks and whole replies -------------------------------------------------------------------------------------

local function take_usage(self, u)
  if is_null(u) or type(u) ~= "table" then return end
  local cached = number(list_of(u.prompt_tokens_details).cached_tokens) or number(u.prompt_cache_hit_tokens) or 0
  self.usage = { prompt = number(u.prompt_tokens) or 0, cached = cached, completion = number(u.completion_tokens) or 0,
                 reasoning = number(list_of(u.completion_tokens_details).reasoning_tokens) }
end

local function take_choice(self, choice, place)
  if type(choice) ~= "table" then return end
  local c = choice_of(self, math.type(choice.index) == "integer" and choice.index or place - 1)
  local said = choice.delta or choice.message
  local logprobs = take_logprobs(c, choice.logprobs)
  if type(said) == "table" and said ~= json.null then
    local thought = text_of(said.reasoning_content)
    say_thought(self, c, thought ~= "" and thought or text_of(said.reasoning), logprobs)
    say_answer(self, c, text_of(said.content), logprobs)
    for i, part in ipairs(list_of(said.tool_calls)) do
      if type(part) == "table" then take_call(self, c, part, i - 1) end
    end
  elseif type(choice.text) == "string" then
    say_answer(self, c, choice.text, logprobs)
  end
  if not is_null(choice.finish_reason) then c.finish = choice.finish_reason end
end

--- The sentence of a server's error object.
function answer.error_text(value)
  local e = type(value) == "table" and value ~= json.null and value.error or nil
  if type(e) == "string" then return e end
  if type(e) == "table" and type(e.message) == "string" then return e.message, type(e.code) == "string" and e.code or nil end
  if type(value) == "table" and type(value.message) == "string" then return value.message end
  if type(value) == "table" and type(value.detail) == "string" then return value.detail end
end

--- Takes one chunk of a stream, or a whole reply.
-- @param text string  JSON
-- @return true, or nil, err
function answer:take(text)
  local value, why = json.decode(text)
  if type(value) ~= "table" or value == json.null then
    return fault.give("format", "the server sent no JSON object: " .. (why or text:sub(1, 40)))
  end
  if not is_null(value.error) then
    return fault.give("network", "the server broke off: " .. (answer.error_text(value) or "it gives no reason"))
  end
  take_usage(self, value.usage)
  for place, choice in ipairs(list_of(value.choices)) do take_choice(self, choice, place) end
  return true
end

-- ---- the end ------------------------------------------------------------------------------------------------------

local bad_ends = {
  content_filter = { "limit", "the server's content filter stopped the reply" },
  insufficient_system_resource = { "network", "the server ran out of resources in the middle of the reply" },
  error = { "network", "the server failed in the middle of the reply" },
  abort = { "network", "the server gave the reply up" },
}
local ends = { stop = "stop", length = "length", tool_calls = "stop", function_call = "stop" }

--- Whether there is a choice, and all that were begun have an end: a reason of their own, or the end of everything.
function answer:complete(all_said)
  for _, c in pairs(self.choices) do
    if not c.finish and not all_said then return false end
  end
  return next(self.choices) ~= nil
end

--- Whether nothing was handed to anybody yet: then the request may be made again.
function answer:untouched() return self.n_pieces == 0 end

-- Tokens of all samples are told in one sum: each sample gets its share by length, the first what the prompt cost.
local function share_usage(self, c, index, bytes)
  local u, usage = self.usage or { prompt = 0, cached = 0, completion = 0 }, c.job.usage
  local completion = bytes > 0 and u.completion * c.bytes // bytes or 0
  self.left = (self.left or u.completion) - completion
  usage.prompt, usage.cached, usage.completion = u.prompt, index == 0 and u.cached or u.prompt, completion
  usage.reasoning = self.n_jobs == 1 and u.reasoning or nil
  usage.exact = false
  if self.n_jobs == 1 then usage.completion = u.completion end
  usage.cost = self.how.cost(index == 0 and u.prompt or 0, index == 0 and u.cached or 0, usage.completion)
end

local function close(self, c)
  if c.held ~= "" then
    local held = c.held
    c.held = ""
    say(self, c, "think", held)
  end
  end_thought(self, c)
  close_call(self, c)
end

local function finish_job(c)
  for _, index in ipairs(c.order) do
    local call = c.calls[index]
    c.job.tool_calls[#c.job.tool_calls + 1] = job.call_of(call.name, table.concat(call.raw), call.id)
  end
  c.job.logprobs = c.job.options.logprobs and (c.logprobs or {}) or nil
  local bad = bad_ends[c.finish]
  if bad then return c.job:fail(fault.new(bad[1], bad[2])) end
  c.job:finish(ends[c.finish] or "stop")
end

--- Ends the jobs whose choices are there.
-- @return the usage of all of them, and the indices of jobs that got no choice (a server that takes no n)
function answer:finish()
  local bytes, missing = 0, {}
  self.n_jobs = 0
  for index in pairs(self.jobs) do
    self.n_jobs = self.n_jobs + 1
    local c = self.choices[index]
    if c then
      close(self, c)
      bytes = bytes + c.bytes
    else
      missing[#missing + 1] = index
    end
  end
  table.sort(missing)
  for index, c in pairs(self.choices) do
    if c.job and not c.job.done then
      share_usage(self, c, index, bytes)
      finish_job(c)
    end
  end
  return self.usage, missing
end

return answer

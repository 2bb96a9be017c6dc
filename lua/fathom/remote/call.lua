--- call.lua - one request to a server, again and again while that makes sense, until its jobs are over.
--
-- It is made again after status 408, 409, 429 and 5xx, after connections that fail and replies that break off, as long as no
-- piece was handed out; later each time (twice as long, by chance half of it), or when Retry-After says.

local answer = require "fathom.remote.answer"
local fault = require "fathom.fault"
local json = require "fathom.json"
local sampling = require "fathom.sampling"
local sse = require "fathom.remote.sse"

local call = {}
call.__index = call

local FIRST_WAIT_MS, LONGEST_WAIT_MS = 500, 30000
local LONGEST_ASKED_MS = 120000                  -- a server that says to come back later than this is not waited for
local MOST_MS = 1e12
local again = { [408] = true, [409] = true, [429] = true }

--- @param how table  open() -> transfer | nil, code, message; jobs (index -> job); answer's how; retries, patience; stats and
--                    count(usage), which sum up; hide(text) -> text without secrets; host; split(call, missing), where a server
--                    may give fewer samples than it was asked for
function call.new(how)
  return setmetatable({ how = how, jobs = how.jobs, tries = 0, state = "queued" }, call)
end

local function now() return require("fathom.net").now() end

-- ---- the end of one try -------------------------------------------------------------------------------------------

--- Ends all jobs with an error.
function call:fail(err)
  self:drop()
  self.how.stats.failures = self.how.stats.failures + 1
  for _, job in pairs(self.jobs) do job:fail(err) end
end

--- Lets the connection go.
function call:drop()
  if self.transfer then self.transfer:close() end
  self.transfer, self.body, self.state = nil, nil, "over"
end

local function error_of(self, code, message, hint)
  return fault.new(code, self.how.hide(message), hint and self.how.hide(hint))
end

local function random() return (sampling.draw_seed() & 1023) / 1024 end

-- How long the server asks to wait, in ms; nil: it does not say. A date counts from the server's own clock.
local function asked_wait(transfer)
  local ms = tonumber(transfer:header "retry-after-ms")
  if ms then return math.min(math.max(0, ms), MOST_MS) end
  local text = transfer:header "retry-after"
  if not text then return nil end
  if tonumber(text) then return math.min(math.max(0, tonumber(text) * 1000), MOST_MS) end
  local function seconds(date)
    local d, month, y, h, m, s = (date or ""):match "(%d%d?) (%a+) (%d%d%d%d) (%d%d):(%d%d):(%d%d)"
    local at = d and ("JanFebMarAprMayJunJulAugSepOctNovDec"):find(month, 1, true)
    return at and os.time { day = tonumber(d), month = (at + 2) // 3, year = tonumber(y), hour = tonumber(h), min = tonumber(m),
                            sec = tonumber(s) }
  end
  local at, from = seconds(text), seconds(transfer:header "date") or os.time(os.date("!*t"))
  return at and math.min(math.max(0, (at - from) * 1000), MOST_MS)
end

-- Makes the request again, later, or gives it up.
local function retry(self, err, asked)
  local how = self.how
  local touched = self.answer and not self.answer:untouched()
  if touched or self.tries > how.retries then return self:fail(err) end
  if asked and asked > LONGEST_ASKED_MS then
    return self:fail(fault.new("limit", err.message, ("the server says to come back in %.0f s"):format(asked / 1000)))
  end
  local wait = math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * how.patience * 2 ^ (self.tries - 1))
  self:drop()
  self.at = now() + (asked or wait * (0.5 + 0.5 * random()))
  self.state = "waiting"
  how.stats.retries = how.stats.retries + 1
end

local hints = {
  [401] = "the server wants another key: fathom.remote{ key = ... }", [403] = "the key may not do this",
  [404] = "look at url and model: the path or the model is not there", [413] = "the request is too large for this server",
  [429] = "slow down: fathom.remote{ concurrency = ... }, or wait",
}

-- A reply that is no answer: a status other than 200.
local function refused(self, status)
  local text = self.how.hide(table.concat(self.body))
  local message, server_code = answer.error_text((json.decode(text)))
  local moved = status >= 300 and status < 400 and self.transfer:header "location"
  local asked = asked_wait(self.transfer)
  if moved then message = "it has moved to " .. moved end
  message = message or text:match "^%s*([^<%c][^\r\n]*)" or "no reason is given"
  local code = status == 429 and "limit" or "network"
  if server_code == "context_length_exceeded" or message:find("maximum context length", 1, true) then code = "overflow" end
  local err = error_of(self, code, ("%s answered %d: %s"):format(self.how.host, status, message:sub(1, 400)),
                       hints[status] or moved and "give that address as url: redirections are not followed, the key stays here" or nil)
  if again[status] or status >= 500 then return retry(self, err, asked) end
  self:fail(err)
end

local function broke_off(self, why, code)
  local err = error_of(self, code or "network", ("%s: %s"):format(self.how.host, why))
  if code and code ~= "network" then return self:fail(err) end
  retry(self, err)
end

local function finish(self)
  local usage, missing = self.answer:finish()
  self:drop()
  self.how.count(usage)
  if not missing[1] then return end
  if self.how.split and next(self.answer.choices) then return self.how.split(self, missing) end
  for _, index in ipairs(missing) do
    self.jobs[index]:fail(error_of(self, "format", self.how.host .. " sent no choice " .. index))
  end
end

-- ---- while it runs ------------------------------------------------------------------------------------------------

local function start(self)
  self.tries = self.tries + 1
  self.how.stats.requests = self.how.stats.requests + 1
  self.begun, self.body, self.reader, self.kind = now(), {}, nil, nil
  self.answer = answer.new(self.jobs, self.how.answer)
  local transfer, code, message = self.how.open()
  if not transfer then return self:fail(error_of(self, code, message)) end
  self.transfer, self.state = transfer, "running"
end

local function take_events(self, list)
  for _, data in ipairs(list) do
    if data == "[DONE]" then
      self.ended = true
      return true
    end
    local ok, err = self.answer:take(data)
    if not ok then
      if err.code == "network" then retry(self, error_of(self, "network", ("%s: %s"):format(self.how.host, err.message)))
      else self:fail(error_of(self, err.code, ("%s: %s"):format(self.how.host, err.message))) end
      return false
    end
  end
  return true
end

local function note_times(self)
  local untouched = self.answer:untouched()
  for _, job in pairs(self.jobs) do
    if not job.done and untouched then job.usage.prefill_ms = now() - self.begun
    elseif not job.done then job.usage.decode_ms = now() - self.begun - job.usage.prefill_ms end
  end
end

-- Takes what has arrived; false when the call is over or begins again.
local function take(self, status)
  local bytes = self.transfer:take()
  if bytes == "" then return true end
  if not self.kind then
    local kind = (self.transfer:header "content-type" or ""):lower()
    self.kind = status ~= 200 and "refusal" or kind:find("text/event-stream", 1, true) and "stream" or kind:find("json", 1, true)
                and "whole" or "other"
    self.reader = self.kind == "stream" and sse.new() or nil
  end
  if self.kind ~= "stream" then
    self.body[#self.body + 1] = bytes
    return true
  end
  local list, why = self.reader:feed(bytes)
  if not list then
    self:fail(error_of(self, "format", ("%s: %s"):format(self.how.host, why)))
    return false
  end
  note_times(self)
  return take_events(self, list)
end

local function whole(self)
  local ok, err = self.answer:take(table.concat(self.body))
  if not ok then return self:fail(error_of(self, err.code, ("%s: %s"):format(self.how.host, err.message))) end
  note_times(self)
  finish(self)
end

-- The connection is at its end, or the server has said that nothing follows.
local function ended(self, status)
  if self.kind == "stream" and not self.ended then
    local data = self.reader:rest()
    if data and not take_events(self, { data }) then return end
  end
  if status ~= 200 then return refused(self, status) end
  if self.kind == "whole" then return whole(self) end
  if self.kind == "stream" then
    if self.answer:complete(self.ended) then return finish(self) end
    return broke_off(self, "the stream ended before the reply was complete")
  end
  if self.kind == "other" then
    local kind = self.transfer:header "content-type" or "no content type"
    return self:fail(error_of(self, "format", ("%s answered with %s, not with JSON or events"):format(self.how.host, kind:sub(1, 80)),
                              "is this the address of an OpenAI-compatible server?"))
  end
  broke_off(self, "the server closed the connection without an answer")
end

--- Looks what has happened. Call it after each step of the client.
function call:move()
  if self.state == "queued" or self.state == "waiting" and now() >= self.at then start(self) end
  if self.state ~= "running" or not self.transfer:news() then return end
  local state, code, message = self.transfer:state()
  local status = self.transfer:status()
  if status and not take(self, status) then return end
  if state == "failed" then
    if status and status ~= 200 and self.kind and code ~= "limit" then return refused(self, status) end
    if self.kind == "stream" and code == "network" and self.answer:complete(self.ended) then return finish(self) end
    return broke_off(self, message, code)
  end
  if state == "done" or self.ended then ended(self, status or 0) end
end

--- How long until it wants to be looked at, in ms; nil: until something arrives.
function call:waits() return self.state == "waiting" and math.max(0, self.at - now()) or nil end

return call

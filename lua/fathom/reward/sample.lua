--- reward/sample.lua - what rewards look at: a result with its prompt and a reference.

local options = require "fathom.options"

local sample = {}

--- Whether a value is a sample; options of a factory are not.
function sample.is(v)
  return type(v) == "table" and (type(v.text) == "string" or type(v.answer) == "string" or v.ids ~= nil)
end

--- Raises at the caller's line for what is no sample.
function sample.check(what, v)
  if not sample.is(v) then options.raise(what .. ": expected a sample (a result with prompt and reference)") end
  return v
end

local function trim(s) return s:match "^%s*(.-)%s*$" end

--- Thoughts and answer of a sample; a text that was not taken apart yet is, at its last "</think>".
-- @return think ("" where there are none), answer
function sample.parts(s)
  if s.answer and s.think then return s.think, s.answer end
  local text = s.text or s.answer or ""
  local think, rest = text:match "^(.*)</think>(.*)$"
  if not think then return s.think or "", trim(s.answer or text) end
  return trim((think:gsub("^%s*<think>", ""))), trim(rest)
end

--- The text of what was asked: the last thing that a user said.
-- @return string, or nil
function sample.prompt(s)
  local prompt = s.prompt or s.messages
  if type(prompt) == "string" then return prompt end
  for i = type(prompt) == "table" and #prompt or 0, 1, -1 do
    local m = prompt[i]
    if type(m) == "table" and m.role == "user" then return m.content end
  end
end

--- How long a reply was: its tokens, or its words where nobody counted.
function sample.length(s)
  if type(s.usage) == "table" and s.usage.completion then return s.usage.completion end
  if s.ids then return #s.ids end
  local n = 0
  for _ in (s.text or s.answer or ""):gmatch "%S+" do n = n + 1 end
  return n
end

return sample

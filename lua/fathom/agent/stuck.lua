--- agent/stuck.lua - when an agent cannot go on: rules that notice, a summary for who takes over, what that one may do.

local json = require "fathom.json"
local options = require "fathom.options"

local stuck = {}
local is = options.is

local DEFAULTS = { repeats = 3, errors = 3, idle = 6 }
local known = { repeats = is.one_of(is.count(2), is.no), errors = is.one_of(is.count(1), is.no), idle = is.one_of(is.count(2), is.no) }
local SHOWN = 6

--- Checks the option stuck.
-- @param o any  nil, true, false, a table of repeats, errors, idle (numbers, or false: not this rule), or a function(state)
-- @return table of rules, or a function, or false
function stuck.rules(what, o, takes_over)
  if o == nil then o = takes_over end
  if type(o) ~= "table" then return o == true and DEFAULTS or o or false end
  local rules = options.check(what .. ": stuck", o, known)
  for name, value in pairs(DEFAULTS) do
    if rules[name] == nil then rules[name] = value end
  end
  return rules
end

-- How many calls at the end of the list satisfy a condition.
local function tail(list, from, fits)
  local n = 0
  for i = #list, from + 1, -1 do
    if not fits(list[i], i) then break end
    n = n + 1
  end
  return n
end

local function signature(call) return call.name .. " " .. json.encode(call.arguments or call.raw or "") end

-- How many calls at the end brought nothing that had not been seen.
local function idle_calls(list, from)
  local seen, n = {}, 0
  for i = from + 1, #list do
    local key = signature(list[i]) .. "\n" .. list[i].output
    n = seen[key] and n + 1 or 0
    seen[key] = true
  end
  return n
end

--- Whether the rules say that a run is stuck.
-- @param rules table|function|false
-- @param state table  calls (what was called, with outputs), since (how many of them came before the last takeover)
-- @return a sentence, or nil
function stuck.reason(rules, state)
  if not rules then return nil end
  if type(rules) == "function" then
    local said = rules(state)
    return said == true and "a rule says so" or said or nil
  end
  local list, from = state.calls, state.since
  local last = list[#list]
  if #list <= from then return nil end
  local errors = tail(list, from, function(c) return c.error end)
  if rules.errors and errors >= rules.errors then return ("%d calls in a row failed"):format(errors) end
  local again = tail(list, from, function(c) return signature(c) == signature(last) and c.output == last.output end)
  if rules.repeats and again >= rules.repeats then return ("the same call was made %d times: %s"):format(again, signature(last)) end
  if rules.idle and idle_calls(list, from) >= rules.idle then
    return ("the last %d calls brought nothing new"):format(idle_calls(list, from))
  end
end

local function line(call)
  return ("  %s -> %s"):format(signature(call), (call.output or ""):gsub("\n", " "))
end

--- What a person should know, in some lines.
-- @param state table  reason, goal, steps, tokens, calls, question
function stuck.summary(state)
  local out = { "Goal: " .. state.goal:gsub("\n.*", " ..."), "Stuck: " .. state.reason,
                ("After %d steps, %d calls, %d tokens."):format(state.steps, #state.calls, state.usage.completion) }
  if state.question then out[#out + 1] = "It asks: " .. state.question end
  if #state.calls > 0 then out[#out + 1] = "Last calls:" end
  for i = math.max(1, #state.calls - SHOWN + 1), #state.calls do out[#out + 1] = line(state.calls[i]) end
  return table.concat(out, "\n")
end

local action_known = { say = is.string, calls = is.table, answer = is.string, think = is.string }

--- Checks what a person or script decided.
-- @param action any  nil or false (nobody can help now), true (go on), a string (say it), or a table: say (a message for the agent),
--   calls (a list of { name =, arguments =, think = } made in its place), answer (the run ends with it)
-- @return table, or nil where nobody helps
function stuck.action(what, action)
  if action == nil or action == false then return nil end
  if action == true then return {} end
  if type(action) == "string" then return { say = action } end
  local a = options.check(what, action, action_known)
  for i, call in ipairs(a.calls or {}) do
    if type(call) ~= "table" or type(call.name) ~= "string" then
      options.raise(("%s: calls[%d] must be { name =, arguments = }"):format(what, i))
    end
  end
  return a
end

return stuck

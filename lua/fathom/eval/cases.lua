--- cases.lua - what an evaluation asks: cases from a list, an iterator or a file, and the seed of each sample.

local fault = require "fathom.fault"
local jsonl = require "fathom.jsonl"
local options = require "fathom.options"
local trace = require "fathom.trace"

local cases = {}

local function collect(source, most)
  local out = {}
  for case in source do
    if most and #out >= most then break end
    out[#out + 1] = case
  end
  return out
end

-- A copy with an id; two cases of one id would be counted as one.
local function named(list)
  local out, seen = {}, {}
  for i, case in ipairs(list) do
    if type(case) ~= "table" then options.raise(("fathom.eval: case %d is a %s, not a table"):format(i, type(case))) end
    local copy = {}
    for k, v in pairs(case) do copy[k] = v end
    copy.id = trace.plain(tostring(case.id == nil and i or case.id))          -- UTF-8, as it is written
    if seen[copy.id] then return fault.give("format", ("two cases have the id %s"):format(copy.id)) end
    seen[copy.id] = true
    out[i] = copy
  end
  return out
end

--- Reads the cases.
-- @param source table|function|string  a list, an iterator, or a file of JSON lines
-- @param most integer|nil              take no more than so many, from the front
-- @return list of cases, each with an id as text; or nil, err
function cases.read(source, most)
  local list, err = source, nil
  if type(source) == "string" then
    list, err = jsonl.read(source, { most = most })
  elseif type(source) == "function" then
    list = collect(source, most)
  elseif most and #source > most then
    list = table.move(source, 1, most, 1, {})
  end
  if not list then return nil, err end
  if #list == 0 then return fault.give("format", "there are no cases") end
  return named(list)
end

--- What a case asks, as messages.
-- @return list of messages, or nil
function cases.messages(case)
  local prompt = case.messages or case.prompt or case.question
  if type(prompt) == "string" then return { { role = "user", content = prompt } } end
  return type(prompt) == "table" and prompt or nil
end

--- The text of what a case asks, for people.
function cases.text(case)
  local prompt = case.prompt or case.question or case.messages
  if type(prompt) == "string" then return prompt end
  local parts = {}
  for _, m in ipairs(type(prompt) == "table" and prompt or {}) do
    local content = type(m) == "table" and m.content or m
    parts[#parts + 1] = (#prompt > 1 and m.role and m.role .. ": " or "") .. tostring(content)
  end
  return table.concat(parts, "\n\n")
end

--- What the right answer is, where a case says so.
function cases.reference(case)
  if case.reference ~= nil then return case.reference end
  return case.answer
end

--- The seed of one sample: one of its own for each case and repeat, whatever runs beside.
function cases.seed(seed, index, rep) return (seed * 1000003 + index * 8191 + rep) & ((1 << 53) - 1) end

-- Fields that say what a case is, not what kind it is of.
local own = { id = true, prompt = true, question = true, messages = true, reference = true, answer = true }
local MOST_VALUES = 16

--- Fields that cut the cases into groups: words or small numbers, of which there are few, each with several cases.
-- @return sorted list of names
function cases.fields(list)
  local values, counts = {}, {}
  for _, case in ipairs(list) do
    for name, v in pairs(case) do
      local kind = type(v)
      if not own[name] and (kind == "string" or kind == "boolean" or math.type(v) == "integer") then
        values[name] = values[name] or {}
        if not values[name][v] then counts[name] = (counts[name] or 0) + 1 end
        values[name][v] = true
      end
    end
  end
  local out = {}
  for name, n in pairs(counts) do
    if n > 1 and n <= MOST_VALUES and n * 2 <= #list then out[#out + 1] = name end
  end
  table.sort(out)
  return out
end

return cases

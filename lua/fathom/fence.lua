--- fence.lua - runs Lua code that nobody vouches for (a model wrote it) in a Lua state of its own.
-- The state has its own memory with a quota, a quota of instructions and of time, no way to files, processes or modules, and nothing
-- of the host. Once a quota is used up the whole state is dropped from outside: no pcall, coroutine or metamethod inside can go on.
-- Inside there are the basic functions, coroutine, math, string, table, utf8, os.time, os.clock, os.date and os.difftime;
-- load takes text only; math.random starts the same every time; setmetatable refuses __gc.

local options = require "fathom.options"
local task = require "fathom.task"

local fence = {}
local is = options.is

-- What suits a tool. (The libraries alone take 47 KB.)
local DEFAULTS = { instructions = 10000000, bytes = 16 << 20, seconds = 1.0 }
local LONGEST = 86400 * 365

-- What a coroutine that rests between slices waits for: nothing that needs a step.
local resting = { engine = { step = function() return true end }, cancel = function() end }

local known = { instructions = is.count(1), bytes = is.count(1), seconds = is.at_least(0), input = is.any }

-- Runs inside, before the program: print gathers lines, the result makes one text of them and of the values. It keeps what it
-- needs in locals, so that the program cannot lead it astray; tables are read raw.
local PRELUDE = [==[
local type, tostring, rawget, rawlen, next, select = type, tostring, rawget, rawlen, next, select
local floor, mtype, concat, sub, format = math.floor, math.type, table.concat, string.sub, string.format
local find, gsub, rep, error, pack = string.find, string.gsub, string.rep, error, table.pack
math.randomseed(0)

local lines, n_lines = {}, 0
function print(...)
  local parts = pack(...)
  for i = 1, parts.n do parts[i] = tostring(parts[i]) end
  n_lines = n_lines + 1
  lines[n_lines] = concat(parts, "\t", 1, parts.n)
end

-- Merge sort: every comparison is an instruction that counts.
local function sorted(list, n, less)
  local from, to, width = list, {}, 1
  while width < n do
    for start = 1, n, 2 * width do
      local a, b, out = start, start + width, start
      local a_end, b_end = b <= n and b or n + 1, start + 2 * width
      if b_end > n + 1 then b_end = n + 1 end
      while a < a_end and b < b_end do
        if less(from[b], from[a]) then to[out], b = from[b], b + 1 else to[out], a = from[a], a + 1 end
        out = out + 1
      end
      while a < a_end do to[out], a, out = from[a], a + 1, out + 1 end
      while b < b_end do to[out], b, out = from[b], b + 1, out + 1 end
    end
    from, to, width = to, from, 2 * width
  end
  return from
end

local function by_less(a, b) return a < b end
function table.sort(list, less)
  if type(list) ~= "table" then error("bad argument #1 to 'sort' (table expected, got " .. type(list) .. ")", 2) end
  if less ~= nil and type(less) ~= "function" then
    error("bad argument #2 to 'sort' (function expected, got " .. type(less) .. ")", 2)
  end
  local n, copy = #list, {}
  for i = 1, n do copy[i] = list[i] end
  copy = sorted(copy, n, less or by_less)
  for i = 1, n do list[i] = copy[i] end
end

local ranks = { boolean = 1, number = 2, string = 3 }
local function key_less(a, b)
  local ra, rb = ranks[type(a)] or 4, ranks[type(b)] or 4
  if ra ~= rb then return ra < rb end
  if ra == 1 then return not a and b end
  return ra < 4 and a < b
end

local words = {}
for _, word in next, { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in", "local", "nil",
  "not", "or", "repeat", "return", "then", "true", "until", "while" } do words[word] = true end

local show
local function shown_table(t, depth, open)
  if open[t] then return "{...}" end
  if depth > 50 then error("the value is nested too deeply", 0) end
  open[t] = true
  local parts, n, keys = {}, rawlen(t), {}
  while n > 0 and rawget(t, n) == nil do n = n - 1 end
  local listed = 0
  for i = 1, n do
    local v = rawget(t, i)
    if v == nil then break end
    listed = i
    parts[i] = show(v, depth + 1, open)
  end
  for k in next, t do
    if not (mtype(k) == "integer" and k >= 1 and k <= listed) then keys[#keys + 1] = k end
  end
  keys = sorted(keys, #keys, key_less)
  for i = 1, #keys do
    local k = keys[i]
    local name = type(k) == "string" and not words[k] and find(k, "^[%a_][%w_]*$") and k or "[" .. show(k, depth + 1, open) .. "]"
    parts[#parts + 1] = name .. " = " .. show(rawget(t, k), depth + 1, open)
  end
  open[t] = nil
  return "{" .. concat(parts, ", ") .. "}"
end

function show(v, depth, open)
  local kind = type(v)
  if kind == "string" then return (gsub(format("%q", v), "\\\n", "\\n")) end
  if kind == "table" then return shown_table(v, depth, open) end
  if kind == "function" or kind == "thread" then return kind end
  return tostring(v)
end

return function(...)
  local values = pack(...)
  for i = 1, values.n do
    local v = values[i]
    values[i] = type(v) == "string" and v or show(v, 0, {})
  end
  if values.n > 0 then
    n_lines = n_lines + 1
    lines[n_lines] = concat(values, "\t", 1, values.n)
  end
  return concat(lines, "\n", 1, n_lines)
end
]==]

local function sentence(why, text, o)
  if why == "instructions" then return ("the program was stopped after %d instructions"):format(o.instructions) end
  if why == "seconds" then return ("the program was stopped after %g seconds"):format(o.seconds) end
  if why == "bytes" then return ("the program needs more than %d bytes"):format(o.bytes) end
  return text
end

--- Checks limits; raises at the caller's line.
-- @param what string       who is called
-- @param limits table|nil  instructions, bytes, seconds
-- @return table with all three
function fence.limits(what, limits)
  local o = options.check(what, limits, { instructions = known.instructions, bytes = known.bytes, seconds = known.seconds })
  for name, value in pairs(DEFAULTS) do o[name] = o[name] or value end
  return o
end

-- How long a program works before others have their turn, where it can wait.
local SLICE_MS = 2

-- Runs to the end, in slices where the caller can yield.
local function finish(handle, seconds)
  local now = require("fathom.core").now
  local left = math.min(seconds, LONGEST) * 1000
  while true do
    local yields, begun = coroutine.isyieldable(), now()
    local why, text = handle:step(yields and SLICE_MS or math.huge, left)
    if why then return why, text end
    left = math.max(0, left - (now() - begun))
    if yields then task.yield { task = resting } end
  end
end

--- Runs a program. What it prints and the values that it returns become one text: printed lines first, tables as Lua would write
-- them, with sorted keys. A program that is an expression gives its value. Inside a coroutine it works in slices of 2 ms and yields
-- between them, so that whatever else runs goes on.
-- @param code string      Lua 5.4, at most 256 KiB
-- @param opts table|nil   instructions (10 million), bytes (16 MiB), seconds (1; those that it works), and input: plain data (numbers,
--   strings, booleans, tables of them) that the program finds as the global `input` and as its `...`
-- @return text; or nil, why (a sentence), kind: "instructions" "bytes" "seconds" (a quota is used up) "syntax" "error"
-- @usage local text, why = fence.run("return input.a + 1", { input = { a = 41 } })   --> "42"
function fence.run(code, opts)
  options.argument("fence.run", "code", code, is.string)
  local o = options.check("fence.run", opts, known)
  for name, value in pairs(DEFAULTS) do o[name] = o[name] or value end
  local handle <close> = require("fathom.core").fence(code, PRELUDE, math.tointeger(o.instructions), math.tointeger(o.bytes), o.input)
  local why, text = finish(handle, o.seconds)
  if why == "fine" then return text end
  if why == "input" then options.raise("fence.run: " .. tostring(text)) end
  return nil, sentence(why, text, o), why
end

return fence

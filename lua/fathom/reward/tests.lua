--- reward/tests.lua - unit tests of Lua code that a model wrote, in the fence (fathom/fence.lua).
-- The code cannot reach what judges it: names of the harness are drawn anew each time, and are locals.

local fence = require "fathom.fence"
local sampling = require "fathom.sampling"

local tests = {}

--- The program of a reply: its last fenced block of Lua, else its last fenced block, else nil.
function tests.code(text)
  local lua, any
  for kind, body in text:gmatch "```([%w_+-]*)[^\n]*\n(.-)\n?```" do
    any = body
    if kind == "lua" or kind == "Lua" then lua = body end
  end
  return lua or any
end

-- A plain value as Lua would read it.
local function literal(v, depth)
  if depth > 60 then error("a test's value is nested too deep", 0) end
  local kind = type(v)
  if kind == "string" then return ("%q"):format(v) end
  if v ~= v or v == math.huge or v == -math.huge then return v ~= v and "(0/0)" or v > 0 and "math.huge" or "-math.huge" end
  if kind == "number" then return math.type(v) == "integer" and tostring(v) or ("%.17g"):format(v) end
  if kind ~= "table" then return tostring(kind == "boolean" and v or nil) end
  local parts = {}
  for i, item in ipairs(v) do parts[i] = literal(item, depth + 1) end
  for k, item in pairs(v) do
    if not (math.type(k) == "integer" and k >= 1 and k <= #v) then
      parts[#parts + 1] = ("[%s] = %s"):format(literal(k, depth + 1), literal(item, depth + 1))
    end
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

-- NAME stands for the names drawn. `same` compares tables by what is in them, numbers within a millionth of a millionth.
local HEAD = [[
local NAME_assert, NAME_error, NAME_pcall, NAME_next, NAME_type, NAME_abs = assert, error, pcall, next, type, math.abs
local NAME_rawget, NAME_rawequal = rawget, rawequal
local function NAME_same(a, b, depth)
  if NAME_rawequal(a, b) then return true end
  local kind = NAME_type(a)
  if kind ~= NAME_type(b) or depth > 60 then return false end
  if kind == "number" then return NAME_abs(a - b) <= 1e-12 * (NAME_abs(a) + NAME_abs(b)) end
  if kind ~= "table" then return false end
  for k, v in NAME_next, a do if not NAME_same(v, NAME_rawget(b, k), depth + 1) then return false end end
  for k in NAME_next, b do if NAME_rawget(a, k) == nil then return false end end
  return true
end
local print = function() end
]]

-- Whether a program returns something at its end: in a line of its own, or a name behind others ("... end return M").
local function returns_module(code)
  if ("\n" .. code):match "\n%s*return%s[^\n]*%s*$" then return true end
  local name = code:match "[%s;]return%s+([%a_][%w_]*)%s*;?%s*$"
  return name ~= nil and name ~= "end"
end

-- What a module returns at its end becomes the local M, so that tests may use either that or globals.
local function joined(code, test, name)
  local body = returns_module(code) and "local M = (function()\n" .. code .. "\nend)()" or code
  return HEAD:gsub("NAME", name) .. body .. "\n" .. test:gsub("NAME", name) .. ("\nreturn '%s'"):format(name)
end

-- A test as Lua: a text that asserts, or { call = "name", args = { ... }, expected = value, error = true }.
local function test_text(test, reply_module)
  if type(test) == "string" then return "do local assert, error, pcall = NAME_assert, NAME_error, NAME_pcall\n" .. test .. "\nend" end
  local f = reply_module and ("(M.%s or %s)"):format(test.call, test.call) or test.call
  local args = {}
  for i = 1, test.n or #(test.args or {}) do args[i] = literal(test.args[i], 0) end
  local call = table.concat(args, ", ")
  if test.error then          -- a function that is not there is no error that was asked for
    return ("NAME_assert(NAME_type(%s) == 'function' and not NAME_pcall(%s%s))"):format(f, f, call ~= "" and ", " .. call or "")
  end
  return ("NAME_assert(NAME_same(%s(%s), %s, 0), 'another value came')"):format(f, call, literal(test.expected, 0))
end

--- Whether a value is a test; what it was to be.
function tests.is(v)
  return type(v) == "string" or type(v) == "table" and type(v.call) == "string" and (v.args == nil or type(v.args) == "table"),
         "a text or { call =, args =, expected = }"
end

--- Runs tests, each in a fence of its own.
-- @param code string   the program
-- @param list list     tests: texts that assert, or { call =, args =, expected = | error = true }
-- @param limits table  those of the fence, for each test
-- @return how many passed, list of why others did not (by index)
function tests.run(code, list, limits)
  local passed, why = 0, {}
  local returns_table = returns_module(code)
  for i, test in ipairs(list) do
    local name = ("h%x"):format(sampling.draw_seed())
    local text, reason = fence.run(joined(code, test_text(test, returns_table and type(test) == "table"), name), limits)
    if text == name then passed = passed + 1 else why[i] = reason or "the program ended by itself" end
  end
  return passed, why
end

return tests

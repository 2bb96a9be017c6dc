--- exercism.lua - programming tasks of Exercism as unit tests. The tasks are told without any language: here they are solved in
-- Lua, and tested in the fence. A test sees its own input only, never what is expected.

local fence = require "fathom.fence"
local folder = require "fathom.eval.data.folder"
local json = require "fathom.json"
local options = require "fathom.options"
local tests_of_lua = require "fathom.reward.tests"

local exercism = {}

-- ---- values -----------------------------------------------------------------------------------------------------------

-- Plain data as the fence takes it; nil, false where Lua has no such value (a null inside a list, an integer past 64 bits).
local function plain(v, inside)
  if v == json.null then return nil, not inside end
  if math.type(v) == "float" and math.abs(v) >= 2 ^ 53 then return nil, false end
  if type(v) ~= "table" then return v, true end
  local out, mt = {}, getmetatable(v)
  local list = mt and mt.__jsontype == "array"
  for k, item in pairs(v) do
    local value, fine = plain(item, list)
    if not fine then return nil, false end
    out[k] = value
  end
  return out, true
end

-- A value as the fence writes it: 2.0 is 2.
local function canonical(text)
  return (text:gsub("(%d)%.0+%f[^%d]", "%1"))
end

-- ---- tests --------------------------------------------------------------------------------------------------------------

-- The text that a right answer gives, or "error" where one is expected.
local function expected_text(expected)
  if type(expected) == "table" and type(expected.error) == "string" then return "error" end
  local value, fine = plain(expected)
  if not fine then return nil end
  local text = fence.run("return input", { input = { value } })
  return text and canonical((text:gsub("^{", ""):gsub("}$", "")))
end

local function test_of(case)
  local input, fine = plain(case.input)
  local want = expected_text(case.expected)
  if not fine or type(input) ~= "table" or not want or type(case.property) ~= "string" then return nil end
  local name = case.property:gsub("[^%w_]", "_")
  return { name = name, description = case.description, input = input, want = want, shown = json.encode(case.expected) }
end

local HARNESS = [[
local program = ...
local function load_program()
%s
end
local loaded, answer = pcall(load_program)
if not loaded then return { missing = true } end
local f = type(answer) == "table" and answer[%q] or type(answer) == "function" and answer or _ENV[%q]
if type(f) ~= "function" then return { missing = true } end
local value, why = f(input)
return { value }, why ~= nil and value == nil
]]

--- The program of a reply: its last fenced block, or all of it.
-- @return string
function exercism.code(text) return tests_of_lua.code(text) or text end

-- Why a test fails; nil: it passes.
local function fails(code, test, limits)
  local program = HARNESS:format(code, test.name, test.name)
  local text, why, kind = fence.run(program, { input = test.input, instructions = limits.instructions, bytes = limits.bytes,
                                         seconds = limits.seconds })
  if not text then
    if test.want == "error" and kind == "error" then return nil end        -- raised by the function itself: its program loads
    return why
  end
  text = text:match "([^\n]*)$" or text                        -- what it prints stands before
  if text:find("missing = true", 1, true) then return "there is no function " .. test.name end
  local value, refused = text:match "^{(.*)}\t(%l+)$"
  if test.want == "error" then
    if refused == "true" then return nil end
    return "an error was expected, it gave " .. tostring(value)
  end
  if value and canonical(value) == test.want then return nil end
  return ("it gave %s, expected is %s"):format(tostring(value), test.shown)
end

--- Share of the tests that a program passes.
-- @param code string
-- @param tests list
-- @return number from 0 to 1, and what the first failing test says
function exercism.grade(code, tests, limits)
  local passed, first = 0, nil
  for _, test in ipairs(tests) do
    local why = fails(code, test, limits or {})
    if not why then passed = passed + 1 else first = first or ("%s: %s"):format(test.description, why) end
  end
  return #tests > 0 and passed / #tests or 0, first and ("%d of %d tests; %s"):format(passed, #tests, first) or nil
end

-- ---- the set --------------------------------------------------------------------------------------------------------------

local ASK = [[Solve this task in Lua 5.4.

%s
Give one fenced block of Lua that returns a table with the function%s %s. Each takes one table with the named arguments (%s).
Where the task asks for an error, return nil and a message.]]

local function sorted(set)
  local out = {}
  for name in pairs(set) do out[#out + 1] = name end
  table.sort(out)
  return out
end

local function case_of(row, most)
  local tests, functions, arguments, newest = {}, {}, {}, {}
  local function asked(c) return tostring(c.property) .. json.encode(c.input) end
  for i, c in ipairs(row.cases) do newest[asked(c)] = i end               -- a case may take the place of an older one
  for i, c in ipairs(row.cases) do
    local test = #tests < most and newest[asked(c)] == i and test_of(c) or nil
    if test then
      tests[#tests + 1] = test
      functions[test.name] = true
      for name in pairs(test.input) do arguments[tostring(name)] = true end
    end
  end
  if #tests == 0 then return nil end
  local names = sorted(functions)
  return { id = row.exercise, tests = tests, n_tests = #tests,
           prompt = ASK:format(row.description, #names > 1 and "s" or "", table.concat(names, ", "),
                               table.concat(sorted(arguments), ", ")) }
end

--- Programming tasks, solved in Lua.
-- @param dir string
-- @param opts table|nil  tests (40): at most so many of a task; instructions, bytes, seconds: quotas of one test
-- @return options for fathom.eval; or nil, err
function exercism.exercism(dir, opts)
  local is = options.is
  local o = options.check("data.exercism", opts, { tests = is.count(1), instructions = is.count(1), bytes = is.count(1),
                                                   seconds = is.at_least(0) })
  local rows, err = folder.rows("data.exercism", dir, "code-exercism", "tasks.jsonl")
  if not rows then return nil, err end
  local cases = {}
  for _, row in ipairs(rows) do cases[#cases + 1] = case_of(row, o.tests or 40) end
  local limits = { instructions = o.instructions, bytes = o.bytes, seconds = o.seconds }
  local function graded(s) return exercism.grade(exercism.code(s.answer or ""), s.case.tests, limits) end
  return { name = "Exercism in Lua", cases = cases, key = function(s) return exercism.code(s.answer or "") end, by = json.array {},
           scorers = { solved = function(s)
             local share, why = graded(s)
             return share == 1, why
           end, tests = function(s) return (graded(s)) end } }
end

return exercism

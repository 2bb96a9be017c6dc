-- Agents on pocket's held-out problems: 200 tool dialogues (through fathom.agent, tools built from the files, outputs given in order)
-- and 200 text adventures, alone and with a script that takes over. Beside MODEL.md's figures.
-- usage: lua5.4 examples/bench/agent.lua [tools] [adventure] [--limit N] [--temperature T] [--seed S] [--width N] [--json]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../?.lua;" .. here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local fathom = require "fathom"
local crew = require "fathom.crew"
local json = require "fathom.json"
local game = require "adventure.game"

local function jsonl(path)
  local rows = {}
  for line in assert(io.open(path)):lines() do rows[#rows + 1] = assert(json.decode(line)) end
  return rows
end

local function occurs(alternatives, text)
  for word in (alternatives .. "|"):gmatch "([^|]*)|" do
    if text:find(word, 1, true) then return true end
  end
  return false
end

-- The system text without its section of tools, and the tools that stand there: { name =, doc =, args = }, in order.
local function tools_of(system)
  local head, section = system:match "^(.-)\n*## Tools\n(.*)$"
  local tools = {}
  for name, doc, args in (section or ""):gmatch "### ([^\n]+)\nDescription: ([^\n]*)\nParameters: ([^\n]*)\n" do
    tools[#tools + 1] = { name = name, doc = doc, args = assert(json.decode(args)) }
  end
  if #tools == 0 then return system, tools end
  return head, tools
end

local function same(call, want)
  if not want or call.name ~= want.name or type(call.arguments) ~= "table" then return false end
  for k, v in pairs(want.arguments) do if call.arguments[k] ~= v then return false end end
  for k in pairs(call.arguments) do if want.arguments[k] == nil then return false end end
  return true
end

-- Valid blocks are those that were read and fit their tool.
local function count(tally, result)
  for _, call in ipairs(result.calls) do
    if not call.by then
      tally.calls = tally.calls + 1
      if not (call.error and call.output:find "^error: the tool call could not be read"
              or call.output:find "^error: the arguments of" or call.output:find "^error: unknown tool") then
        tally.valid = tally.valid + 1
      end
    end
  end
  tally.steps, tally.tokens = tally.steps + result.steps, tally.tokens + result.usage.completion
  tally.takeovers = tally.takeovers + result.takeovers
  tally.taken = tally.taken + (result.takeovers > 0 and 1 or 0)
  tally.finish[result.finish] = (tally.finish[result.finish] or 0) + 1
end

local families = {}

--- Right when exactly the expected calls were made and the answer has what it should.
function families.tools(model, row, o, tally)
  local head, tools = tools_of(row.messages[1].content)
  local made, right = 0, true
  for _, tool in ipairs(tools) do
    tool.run = function(args)
      made = made + 1
      local want = row.calls[made]
      right = right and same({ name = tool.name, arguments = args }, want)
      return want and want.output or "error: not found"
    end
  end
  local goal = table.move(row.messages, 2, #row.messages, 1, {})
  local agent = fathom.agent(model, { tools = tools, system = head ~= "" and head or nil, limits = { turns = #row.calls + 4 },
                                      temperature = o.temperature, seed = o.seed, max_tokens = 600 })
  local result = assert(agent:start(goal):wait())
  count(tally, result)
  return right and made == #row.calls and occurs(row.expect, result.text)
end

local function play(model, row, o, tally, takeover)
  local g = game.new(row.world)
  local head = tools_of(row.messages[1].content)
  local agent = fathom.agent(model, { tools = game.tool(g), system = head, limits = { turns = 33 }, temperature = o.temperature,
    seed = o.seed, max_tokens = 600, takeover = takeover and function() return takeover(g) end or nil })
  local result = assert(agent:start(row.messages[2].content):wait())
  count(tally, result)
  if g.won then tally.moves = tally.moves + g.moves end
  return g.won == true
end

function families.adventure(model, row, o, tally) return play(model, row, o, tally) end

--- The same, but rules notice when it runs in circles: then a script that knows the map makes the next three moves.
families["adventure+takeover"] = function(model, row, o, tally)
  return play(model, row, o, tally, function(g)
    local calls = {}
    for i, action in ipairs(game.solve(g) or {}) do
      if i <= 3 then calls[i] = { name = "act", arguments = { action = action } } end
    end
    return { calls = calls }
  end)
end

local function measure(model, name, o)
  local file = name:match "^%a+"
  local rows, jobs = jsonl(fathom.pocket .. "/heldout_" .. file .. ".jsonl"), {}
  local tally = { solved = 0, calls = 0, valid = 0, steps = 0, tokens = 0, takeovers = 0, taken = 0, moves = 0, finish = json.object {} }
  local n = math.min(o.limit, #rows)
  for i = 1, n do
    jobs[i] = function()
      if families[name](model, rows[i], o, tally) then tally.solved = tally.solved + 1 end
      return true
    end
  end
  local begin = os.time()
  for i, r in ipairs(crew.run(model, jobs, { width = o.width })) do
    if r.err then error(("problem %d: %s"):format(i, tostring(r.err)), 0) end
  end
  return { family = name, temperature = o.temperature, problems = n, success = 100 * tally.solved / n,
           valid_blocks = 100 * tally.valid / math.max(1, tally.calls), calls = tally.calls, steps = tally.steps, tokens = tally.tokens,
           moves = tally.moves / math.max(1, tally.solved), takeovers = tally.takeovers, runs_taken_over = 100 * tally.taken / n,
           takeover_rate = tally.takeovers / math.max(1, tally.steps), finish = tally.finish, seconds = os.time() - begin }
end

local published = { ["tools 0"] = 98.5, ["tools 0.6"] = 98.0, ["adventure 0"] = 97.5, ["adventure 0.6"] = 99.5 }

local o, chosen, as_json, temperatures, i = { limit = 1 << 30, seed = 1, width = 32 }, {}, false, { 0, 0.6 }, 1
local function number()
  i = i + 1
  return (assert(tonumber(arg[i]), "a number is missing"))
end
while arg[i] do
  if arg[i] == "--limit" then o.limit = math.tointeger(number())
  elseif arg[i] == "--seed" then o.seed = math.tointeger(number())
  elseif arg[i] == "--width" then o.width = math.tointeger(number())
  elseif arg[i] == "--temperature" then temperatures = { number() }
  elseif arg[i] == "--json" then as_json = true
  else chosen[#chosen + 1] = arg[i] end
  i = i + 1
end
if #chosen == 0 then chosen = { "tools", "adventure", "adventure+takeover" } end
local model <close> = assert(fathom.load(fathom.pocket, { seqs = o.width }))
for _, name in ipairs(chosen) do
  for _, temperature in ipairs(temperatures) do
    o.temperature = temperature
    local r = measure(model, name, o)
    if as_json then print(json.encode(r)) else
      local told = published[("%s %g"):format(name, temperature)]
      print(("%-20s temperature %-4g %d problems: %5.1f %% solved%s, %.2f %% of %d call blocks valid, %.1f steps a problem%s"):format(
        name, temperature, r.problems, r.success, told and (" (published %.1f)"):format(told) or "", r.valid_blocks, r.calls,
        r.steps / r.problems, r.moves > 0 and (", %.2f moves a win"):format(r.moves) or ""))
      print(("  finish %s; %.1f %% of the runs were taken over, %d takeovers, %.4f a step; %d tokens, %d s"):format(
        json.encode(r.finish), r.runs_taken_over, r.takeovers, r.takeover_rate, r.tokens, r.seconds))
    end
  end
end

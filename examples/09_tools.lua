--- 09_tools.lua - an agent with tools: calls in the model's own markup, errors that it works around, calls that need leave.
-- Run from the repository's root after `make`: lua5.4 examples/09_tools.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"

local model <close> = assert(fathom.load(fathom.pocket))

-- A tool is a description, the types of its arguments, and a function. The calculator comes along; this one is out of order at first.
local calculator = fathom.tools.calculator()
local works, broken = calculator.run, 1
function calculator.run(args)
  broken = broken - 1
  if broken >= 0 then return nil, "timeout" end
  return works(args)
end

math.randomseed(7)
local book = { ["height of Zuke"] = "583", ["age of Boni"] = "24", ["age of Rake"] = "41" }
local tools = {
  calculator = calculator,
  lookup = { doc = "Look up a key in the dictionary.", args = { key = "string" }, returns = "string", run = function(args)
    return book[args.key] or "error: not found"
  end },
  roll_dice = { doc = "Roll dice.", args = { sides = fathom.int(2, 100), count = fathom.int(1, 10) }, run = function(args)
    local rolled = {}
    for i = 1, args.count do rolled[i] = math.random(args.sides) end
    return table.concat(rolled, ", ")
  end },
}

-- Nobody rolls more than three dice here: a call may be let through, refused with a reason, or changed.
local function approve(call)
  if call.name ~= "roll_dice" or call.arguments.count <= 3 then return true end
  return { sides = call.arguments.sides, count = 3 }
end

-- What happens on the way, as it happens.
local function show(kind, data)
  if kind == "call" then
    local parts = {}
    for name, value in pairs(data.arguments) do parts[#parts + 1] = ("%s = %s"):format(name, value) end
    table.sort(parts)
    print(("  calls  %s { %s }"):format(data.name, table.concat(parts, ", ")))
  elseif kind == "output" then
    print("  reads  " .. data.output)
  end
end

local agent = fathom.agent(model, { tools = tools, temperature = 0, on_event = show, approve = approve,
                                    limits = { turns = 8, seconds = 30 } })

for _, goal in ipairs { "A shop sells 13 oranges at 28 coins each. How many coins is that?", "Which is older, Boni or Rake?",
                        "Look up the height of Zuke and multiply it by 26.", "Tell me the queen of Bala.", "Throw 5 dice.",
                        "What is the capital of Turkey?" } do
  print("> " .. goal)
  local result = assert(agent:start(goal):wait())
  print(("%s   (%s after %d replies, %d calls, %d tokens)\n"):format(result.text, result.finish, result.steps, #result.calls,
        result.usage.completion))
end

-- Many at once: runs are tasks, and the engine batches them.
local quiet, before = fathom.agent(model, { tools = tools, temperature = 0 }), model:stats()
local goals, runs = { "3747 - 2349 = ?", "Compute 4037 + 5651 with the calculator.", "Tell me the age of Boni." }, {}
for i, goal in ipairs(goals) do runs[i] = quiet:start(goal) end
for i, run in ipairs(runs) do print(("> %s\n%s"):format(goals[i], assert(run:wait()).text)) end
local after = model:stats()
print(("(together: %d tokens in %d steps of the engine)"):format(after.generated_tokens - before.generated_tokens,
      after.steps - before.steps))

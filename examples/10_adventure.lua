--- 10_adventure.lua - a text adventure: an agent plays, a rule notices when it runs in circles, a script takes over for a few moves and
-- hands back. Run from the repository's root after `make`: lua5.4 examples/10_adventure.lua [number of a game ...]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "?.lua;" .. here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local json = require "fathom.json"
local game = require "adventure.game"

local games = {}
for i = 1, #arg do games[i] = math.tointeger(tonumber(arg[i])) end
if #games == 0 then games = { 3, 9, 171 } end                -- 9 and 171 are among the five of 200 that pocket loses alone
local model <close> = assert(fathom.load(fathom.pocket))

local worlds = {}
for line in io.lines(fathom.pocket .. "/heldout_adventure.jsonl") do worlds[#worlds + 1] = assert(json.decode(line)) end

-- The one who takes over knows the map: the next three moves of the shortest way. (It could as well be a person at a prompt: the
-- function may wait as long as it likes, and a run without one pauses until agent:resume.)
local function helper_of(g)
  return function(summary)
    print("  -- somebody takes over --\n    " .. summary:gsub("\n", "\n    "))
    local moves = game.solve(g)
    local calls = {}
    for i = 1, math.min(3, #moves) do calls[i] = { name = "act", arguments = { action = moves[i] } } end
    return { calls = calls }
  end
end

local won, steps, takeovers = 0, 0, 0
for _, n in ipairs(games) do
  local row = assert(worlds[n], "there is no such game")
  local g = game.new(row.world)
  local goal = row.messages[#row.messages].content
  print(("game %d: %s"):format(n, goal))
  local agent = fathom.agent(model, { tools = game.tool(g), temperature = 0, limits = { turns = 33 }, takeover = helper_of(g),
    system = "You play a text adventure. Use the tool act for every move. Actions: go DIRECTION, take ITEM, unlock DIRECTION.",
    on_event = function(kind, data)
      if kind == "call" then io.write(data.by and "  script: " or "  ", data.arguments.action) end
      if kind == "output" then print(" -> " .. data.output) end
      if kind == "resume" then print "  -- and hands back --" end
    end })
  local result = assert(agent:start(goal):wait())
  print(("  %s   (%s; %d moves, an expert needs %d; %d takeovers)\n"):format(result.text, g.won and "won" or "lost", g.moves,
        row.expert_steps, result.takeovers))
  won, steps, takeovers = won + (g.won and 1 or 0), steps + result.steps, takeovers + result.takeovers
end
print(("%d of %d games won; %d takeovers in %d steps of the agent"):format(won, #games, takeovers, steps))

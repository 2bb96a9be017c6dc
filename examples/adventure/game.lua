--- game.lua - the text adventure that pocket knows (MODEL.md): worlds of rooms, exits, locks and items; their views; the shortest way.
-- A world, as in heldout_adventure.jsonl: { start =, exits = { room = { direction = room } },
-- locks = { { room, direction, room, colour } }, items = { room = { item } }, goal = item }.

local game = {}

local ORDER = { "north", "east", "south", "west" }

--- A new game in a world.
function game.new(world)
  local items = {}
  for room, list in pairs(world.items) do items[room] = table.move(list, 1, #list, 1, {}) end
  return { world = world, room = world.start, seen = { [world.start] = true }, items = items, carry = {}, open = {}, moves = 0 }
end

-- The colour of a lock that shuts this way, from either side.
local function locked(g, room, direction)
  local to = g.world.exits[room][direction]
  for _, lock in ipairs(g.world.locks) do
    local here = lock[1] == room and lock[2] == direction or lock[3] == room and to == lock[1]
    if here and not g.open[lock[4]] then return lock[4] end
  end
end

local function list(items) return #items > 0 and table.concat(items, ", ") or "nothing" end

--- What the player sees.
function game.view(g)
  local exits = {}
  for _, direction in ipairs(ORDER) do
    local to = g.world.exits[g.room][direction]
    local colour = to and locked(g, g.room, direction)
    if colour then exits[#exits + 1] = ("%s (locked, %s)"):format(direction, colour)
    elseif to then exits[#exits + 1] = ("%s (%s)"):format(direction, g.seen[to] and to or "new") end
  end
  return ("%s. Exits: %s. You see: %s. You carry: %s."):format(g.room, table.concat(exits, ", "), list(g.items[g.room] or {}),
    list(g.carry))
end

local verbs = {}

function verbs.go(g, direction)
  local to = g.world.exits[g.room][direction]
  if not to then return "There is no way. " end
  if locked(g, g.room, direction) then return "The door is locked. " end
  g.room = to
  g.seen[to] = true
  return ""
end

function verbs.take(g, item)
  for i, name in ipairs(g.items[g.room] or {}) do
    if name == item then
      table.remove(g.items[g.room], i)
      g.carry[#g.carry + 1] = item
      g.won = item == g.world.goal
      return "Taken. "
    end
  end
  return "It is not here. "
end

local function carries(carry, item)
  for _, name in ipairs(carry) do
    if name == item then return true end
  end
  return false
end

function verbs.unlock(g, direction)
  local colour = g.world.exits[g.room][direction] and locked(g, g.room, direction)
  if not colour then return "There is no lock. " end
  if not carries(g.carry, colour .. " key") then return "You have no key for it. " end
  g.open[colour] = true
  return "Unlocked. "
end

--- One move.
-- @param action string  "go west", "take harp", "unlock north"
-- @return string        what the game answers
function game.act(g, action)
  local verb, what = tostring(action or ""):match "^(%a+) (.+)$"
  local prefix = verbs[verb] and verbs[verb](g, what) or "You cannot do that. "
  g.moves = g.moves + 1
  if g.won then return ("You have the %s. You win!"):format(g.world.goal) end
  return prefix .. game.view(g)
end

--- The tool by which an agent plays.
function game.tool(g)
  return { act = { doc = "Do one action in the game.", args = { action = "string" },
                   run = function(args) return game.act(g, args.action) end } }
end

-- ---- the shortest way ---------------------------------------------------------------------------------------------

-- A copy that can be played on.
local function branch(g)
  local copy = game.new(g.world)
  copy.room, copy.open, copy.carry = g.room, {}, table.move(g.carry, 1, #g.carry, 1, {})
  for colour in pairs(g.open) do copy.open[colour] = true end
  for room in pairs(g.seen) do copy.seen[room] = true end
  for room, items in pairs(g.items) do copy.items[room] = table.move(items, 1, #items, 1, {}) end
  return copy
end

local function key_of(g)
  local carry, open = table.move(g.carry, 1, #g.carry, 1, {}), {}
  for colour in pairs(g.open) do open[#open + 1] = colour end
  table.sort(carry)
  table.sort(open)
  return g.room .. "|" .. table.concat(carry, ",") .. "|" .. table.concat(open, ",")
end

local function choices(g)
  local out = {}
  for _, item in ipairs(g.items[g.room] or {}) do out[#out + 1] = "take " .. item end
  for _, direction in ipairs(ORDER) do
    if g.world.exits[g.room][direction] then
      local colour = locked(g, g.room, direction)
      if not colour then out[#out + 1] = "go " .. direction
      elseif carries(g.carry, colour .. " key") then out[#out + 1] = "unlock " .. direction end
    end
  end
  return out
end

--- The fewest actions that win from here, for somebody who knows the whole world.
-- @return list of actions, or nil where none do
function game.solve(g)
  local queue, known, at = { { game = branch(g), actions = {} } }, { [key_of(g)] = true }, 1
  while queue[at] do
    local here = queue[at]
    at = at + 1
    for _, action in ipairs(choices(here.game)) do
      local there = branch(here.game)
      game.act(there, action)
      local actions = table.move(here.actions, 1, #here.actions, 1, {})
      actions[#actions + 1] = action
      if there.won then return actions end
      if not known[key_of(there)] then
        known[key_of(there)] = true
        queue[#queue + 1] = { game = there, actions = actions }
      end
    end
  end
end

return game

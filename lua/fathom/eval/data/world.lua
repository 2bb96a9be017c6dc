--- world.lua - plays a TextWorld game from its facts: the rules of houses with containers, doors, keys, supporters and food.
-- A fact is a name with arguments (at, in, on, open, closed, locked, link, free, north_of ...); an action takes facts away and adds
-- others, and a quest is won once the facts of its condition hold. The rules are those of the games' own KB.

local world = {}
world.__index = world

local PLAYER, INVENTORY = "P", "I"
local directions = { "north", "south", "east", "west" }

local function key_of(name, ...) return name .. "(" .. table.concat({ ... }, ",") .. ")" end

local function fact_key(fact)
  local ids = {}
  for i, a in ipairs(fact.arguments) do ids[i] = a.name end
  return key_of(fact.name, table.unpack(ids))
end

-- ---- facts ------------------------------------------------------------------------------------------------------------

function world:has(...) return self.facts[key_of(...)] ~= nil end

local function put(self, name, ...) self.facts[key_of(name, ...)] = { name = name, ... } end
local function drop(self, ...) self.facts[key_of(...)] = nil end

-- Things for which a fact with one open place holds, in the order of their names.
local function all(self, name, where, place)
  local out = {}
  for _, f in pairs(self.facts) do
    if f.name == name and f[where] == place then out[#out + 1] = f[3 - where] end
  end
  table.sort(out, function(a, b) return (self.names[a] or a) < (self.names[b] or b) end)
  return out
end

local function room(self) return all(self, "at", 1, PLAYER)[1] end

-- The door that leads from a room, and where to.
local function door_between(self, from, to)
  for _, f in pairs(self.facts) do
    if f.name == "link" and f[1] == from and f[3] == to then return f[2] end
  end
end

local function neighbour(self, from, direction)
  -- north_of(a, b): a lies north of b
  for _, f in pairs(self.facts) do
    if f.name == direction .. "_of" and f[2] == from then return f[1] end
  end
end

-- ---- what is in reach -----------------------------------------------------------------------------------------------------

-- id -> where it is: { "at" | "in" | "on", id of the place }
local function in_reach(self)
  local here, out = room(self), {}
  local function add(name, place)
    for _, id in ipairs(all(self, name, 2, place)) do
      if id ~= PLAYER then
        out[id] = { name, place }
        if self.types[id] == "c" and self:has("open", id) then add("in", id) end
        if self.types[id] == "s" then add("on", id) end
      end
    end
  end
  add("at", here)
  add("in", INVENTORY)
  for _, f in pairs(self.facts) do
    if f.name == "link" and f[1] == here then out[f[2]] = { "link", here } end
  end
  return out
end

-- The thing of a name in reach.
local function find(self, name)
  if not name or name == "" then return nil end
  name = name:gsub("^the ", "")
  local reach, best = in_reach(self), nil
  for id in pairs(reach) do
    if self.names[id] and self.names[id]:lower() == name and (not best or id < best) then best = id end
  end
  return best, best and reach[best]
end

-- ---- telling ----------------------------------------------------------------------------------------------------------------

local function listed(self, ids)
  local out = {}
  for i, id in ipairs(ids) do out[i] = self.names[id] or id end
  return #out > 0 and table.concat(out, ", ") or "nothing"
end

local function state_of(self, id)
  for _, s in ipairs { "open", "closed", "locked" } do
    if self:has(s, id) then return s end
  end
end

local function told(self, id)
  local kind, text = self.types[id], self.names[id]
  if kind == "c" then
    local s = state_of(self, id)
    return text .. (s == "open" and (" (open, in it: %s)"):format(listed(self, all(self, "in", 2, id))) or s and " (" .. s .. ")" or "")
  elseif kind == "s" then
    local on = all(self, "on", 2, id)
    return text .. (#on > 0 and (" (on it: %s)"):format(listed(self, on)) or "")
  end
  return text
end

--- What the player sees.
-- @return string
function world:look()
  local here, things, exits = room(self), {}, {}
  for _, id in ipairs(all(self, "at", 2, here)) do
    if id ~= PLAYER then things[#things + 1] = told(self, id) end
  end
  for _, direction in ipairs(directions) do
    local to = neighbour(self, here, direction)
    if to then
      local door = door_between(self, here, to)
      exits[#exits + 1] = direction .. (door and (" (%s %s)"):format(state_of(self, door), self.names[door]) or "")
    end
  end
  return ("You are in the %s. You see: %s. Exits: %s. You carry: %s."):format(self.names[here],
         #things > 0 and table.concat(things, ", ") or "nothing", table.concat(exits, ", "), listed(self, all(self, "in", 2, INVENTORY)))
end

-- ---- acting -------------------------------------------------------------------------------------------------------------------

local acts = {}

local function set_state(self, id, from, to)
  drop(self, from, id)
  put(self, to, id)
end

local function openable(self, id) return id and (self.types[id] == "c" or self.types[id] == "d") end

-- An open door is a free way, both ways.
local function pass(self, door, change)
  local ways = {}
  for _, f in pairs(self.facts) do
    if f.name == "link" and f[2] == door then ways[#ways + 1] = f end
  end
  for _, f in ipairs(ways) do change(self, "free", f[1], f[3]) end
end

function acts.open(self, name)
  local id = find(self, name)
  if not openable(self, id) or not self:has("closed", id) then return nil, "You can't open that." end
  set_state(self, id, "closed", "open")
  if self.types[id] == "d" then pass(self, id, put) end
  local inside = self.types[id] == "c" and " In it: " .. listed(self, all(self, "in", 2, id)) .. "." or ""
  return ("You open the %s."):format(self.names[id]) .. inside
end

function acts.close(self, name)
  local id = find(self, name)
  if not openable(self, id) or not self:has("open", id) then return nil, "You can't close that." end
  set_state(self, id, "open", "closed")
  if self.types[id] == "d" then pass(self, id, drop) end
  return ("You close the %s."):format(self.names[id])
end

local function with_key(self, name, key_name, from, to, verb)
  local id, key = find(self, name), find(self, key_name)
  if not openable(self, id) or not self:has(from, id) then return nil, ("You can't %s that."):format(verb) end
  if not key or not self:has("in", key, INVENTORY) then return nil, "You have no such key." end
  if not self:has("match", key, id) then return nil, "The key does not fit." end
  set_state(self, id, from, to)
  return ("You %s the %s."):format(verb, self.names[id])
end

function acts.unlock(self, name, key) return with_key(self, name, key, "locked", "closed", "unlock") end
function acts.lock(self, name, key) return with_key(self, name, key, "closed", "locked", "lock") end

local portable = { o = true, k = true, f = true }

function acts.take(self, name)
  local id, where = find(self, name)
  if not id or not portable[self.types[id]] then return nil, "You can't take that." end
  if where[2] == INVENTORY then return nil, "You have it already." end
  drop(self, where[1], id, where[2])
  put(self, "in", id, INVENTORY)
  return ("You take the %s."):format(self.names[id])
end

local function held(self, name)
  local id = find(self, name)
  return id and self:has("in", id, INVENTORY) and id or nil
end

local function lay(self, name, relation, place, text)
  local id = held(self, name)
  if not id then return nil, "You don't have that." end
  drop(self, "in", id, INVENTORY)
  put(self, relation, id, place)
  return text:format(self.names[id], self.names[place])
end

function acts.drop(self, name) return lay(self, name, "at", room(self), "You drop the %s.") end

function acts.put(self, name, on)
  local place = find(self, on)
  if not place or self.types[place] ~= "s" then return nil, "You can't put it there." end
  return lay(self, name, "on", place, "You put the %s on the %s.")
end

function acts.insert(self, name, into)
  local place = find(self, into)
  if not place or self.types[place] ~= "c" or not self:has("open", place) then return nil, "You can't put it in there." end
  return lay(self, name, "in", place, "You put the %s into the %s.")
end

function acts.eat(self, name)
  local id = held(self, name)
  if not id or not self:has("edible", id) then return nil, "You can't eat that." end
  drop(self, "in", id, INVENTORY)
  put(self, "eaten", id)
  return ("You eat the %s."):format(self.names[id])
end

function acts.go(self, direction)
  local here = room(self)
  local to = neighbour(self, here, direction)
  if not to then return nil, "There is no way." end
  if not (self:has("free", here, to) and self:has("free", to, here)) then return nil, "The way is shut." end
  drop(self, "at", PLAYER, here)
  put(self, "at", PLAYER, to)
  return self:look()
end

function acts.look(self) return self:look() end
function acts.inventory(self) return "You carry: " .. listed(self, all(self, "in", 2, INVENTORY)) .. "." end

function acts.examine(self, name)
  local id = find(self, name)
  if not id then return nil, "You can't see that." end
  return "It is the " .. told(self, id) .. "."
end

-- What is said, as a verb and its things.
local forms = {
  { "^unlock (.+) with (.+)$", "unlock" }, { "^lock (.+) with (.+)$", "lock" }, { "^take (.+) from .+$", "take" },
  { "^take (.+)$", "take" }, { "^put (.+) on (.+)$", "put" }, { "^insert (.+) into (.+)$", "insert" }, { "^put (.+) in (.+)$", "insert" },
  { "^go (%l+)$", "go" }, { "^(north)$", "go" }, { "^(south)$", "go" }, { "^(east)$", "go" }, { "^(west)$", "go" },
  { "^open (.+)$", "open" }, { "^close (.+)$", "close" }, { "^drop (.+)$", "drop" }, { "^eat (.+)$", "eat" },
  { "^examine (.+)$", "examine" }, { "^look$", "look" }, { "^inventory$", "inventory" },
}

local function holds(self, condition)
  for _, fact in ipairs(condition.preconditions) do
    if not self.facts[fact_key(fact)] then return false end
  end
  return true
end

local function check_quests(self)
  for _, quest in ipairs(self.quests) do
    if not quest.done then
      for _, e in ipairs(quest.fail) do self.lost = self.lost or holds(self, e.condition) end
      for _, e in ipairs(quest.win) do quest.done = quest.done or holds(self, e.condition) end
      if quest.done then self.score = self.score + quest.reward end
    end
  end
  self.won = self.score >= self.max_score
end

--- Does what is said.
-- @param command string  "open chest drawer", "take old key from chest drawer", "go east" ...
-- @return what is seen, and whether it could be done
function world:act(command)
  if self.won or self.lost then return "The game is over.", false end
  command = command:lower():gsub("%s+", " "):match "^%s*(.-)%s*$"
  for _, form in ipairs(forms) do
    local a, b = command:match(form[1])
    if a then
      local text, why = acts[form[2]](self, a, b)
      self.moves = self.moves + 1
      check_quests(self)
      if self.won then text = text .. " You win!" elseif self.lost then text = (text or "") .. " You lose." end
      return text or why, text ~= nil
    end
  end
  return "I don't know how to do that.", false
end

-- ---- making one ------------------------------------------------------------------------------------------------------------------

--- Starts a game.
-- @param game table  the JSON of a TextWorld game: world, infos, quests, objective, metadata
-- @return world
function world.new(game)
  local self = setmetatable({ facts = {}, names = {}, types = {}, quests = {}, score = 0, max_score = 0, moves = 0, won = false,
                              lost = false, objective = game.objective }, world)
  for _, fact in ipairs(game.world) do
    local ids = {}
    for i, a in ipairs(fact.arguments) do
      ids[i] = a.name
      self.types[a.name] = a.type
    end
    put(self, fact.name, table.unpack(ids))
  end
  for _, info in ipairs(game.infos) do
    if type(info[2].name) == "string" then self.names[info[1]] = info[2].name end
  end
  for _, quest in ipairs(game.quests) do
    local reward = tonumber(quest.reward) or 0
    self.quests[#self.quests + 1] = { reward = reward, win = quest.win_events or {}, fail = quest.fail_events or {} }
    self.max_score = self.max_score + reward
  end
  return self
end

return world

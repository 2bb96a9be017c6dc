--- textworld.lua - text adventures for agents: games of TextWorld, played from their facts, see world.lua.

local fault = require "fathom.fault"
local json = require "fathom.json"
local options = require "fathom.options"
local world = require "fathom.eval.data.world"

local textworld = {}

local names = { "tw-another_game", "tw-rewardsDense_goalBrief", "tw-rewardsDense_goalDetailed", "tw-rewardsSparse_goalBrief",
                "tw-rewardsSparse_goalDetailed", "tw-rewardsSparse_goalNone" }

local function read_game(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local text = f:read "a"
  f:close()
  local game, why = json.decode(text)
  if type(game) ~= "table" or not (game.world and game.infos and game.quests) then
    return fault.give("format", ("%s is no TextWorld game%s"):format(path, why and ": " .. why or ""))
  end
  return game
end

local DOC = "Do something in the game: go north, open X, close X, unlock X with Y, take X from Y, put X on Y, insert X into Y, eat X, "
  .. "examine X, look, inventory."

local function run(case, info)
  local game = world.new(case.game)
  local agent = require("fathom.agent").new(info.backend, {
    tools = { act = { doc = DOC, args = { action = "string" }, run = function(args)
      local seen = game:act(tostring(args.action))
      return seen
    end } },
    limits = { turns = case.turns }, seed = info.seed, temperature = info.options.temperature, max_tokens = info.options.max_tokens })
  local result, err = agent:start(case.prompt):wait()
  if not result then return nil, err end
  return { text = result.text, answer = result.text, finish = result.finish, usage = result.usage, transcript = result.transcript,
           extra = { score = game.score, max_score = game.max_score, won = game.won, moves = game.moves, takeovers = result.takeovers } }
end

local function case_of(name, game, turns)
  local objective = type(game.objective) == "string" and game.objective or ""
  local goal = objective ~= "" and objective or "Find out what there is to do here, and do it."
  local feedback = name:match "rewards(%u%l+)" or "Dense"
  return { id = name, game = game, prompt = goal .. "\n\n" .. world.new(game):look(), rewards = feedback, turns = turns,
           goal = name:match "goal(%u%l+)" or "Detailed" }
end

--- Text adventures: share of the reward that was earned, and whether the game was won.
-- @param dir string
-- @param opts table|nil  turns (60): of the agent, a game
-- @return options for fathom.eval without backend; or nil, err
function textworld.textworld(dir, opts)
  local o = options.check("data.textworld", opts, { turns = options.is.count(1) })
  options.argument("data.textworld", "dir", dir, options.is.path)
  local cases = {}
  for _, name in ipairs(names) do
    local game, err = read_game(("%s/agent-textworld/%s.json"):format(dir, name))
    if not game and not err then game, err = read_game(("%s/%s.json"):format(dir, name)) end
    if err then return nil, err end
    if game then cases[#cases + 1] = case_of(name, game, o.turns or 60) end
  end
  if #cases == 0 then return fault.give("io", "data.textworld: there are no games in " .. dir, "name the folder that holds the data") end
  return { name = "TextWorld", cases = cases, run = run, by = { "rewards", "goal" }, key = function() return nil end,
           scorers = { reward = function(s)
             return s.extra.max_score > 0 and s.extra.score / s.extra.max_score or 0, ("%d moves"):format(s.extra.moves)
           end, won = function(s) return s.extra.won end } }
end

return textworld

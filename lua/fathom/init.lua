--- fathom - an embeddable engine for the DeepSeek family.
-- @usage
--   local fathom = require "fathom"
--   local model = assert(fathom.load(fathom.pocket))
--   for piece in model:session{}:stream "What is 17 + 25?" do io.write(piece) end

local load = require "fathom.load"
local chat = require "fathom.chat"
local schema = require "fathom.schema"
local session = require "fathom.session"
local tokenizer = require "fathom.tokenizer"

local fathom = { devices = load.devices, plan = load.plan, load = load.load, processes = load.processes,
                 adopt = load.adopt, tokenizer = tokenizer.open,
                 templates = chat.names, history = session.history,
                 schema = schema.new, int = schema.int, number = schema.number, text = schema.string, list = schema.list,
                 enum = schema.enum, optional = schema.optional }

-- ---- things that are looked up when somebody asks for them --------------------------------------------------

local here = debug.getinfo(1, "S").source:match("^@(.*)init%.lua$") or "./"

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

-- Beside the library, in a checkout, or where LuaRocks puts a rock's folders.
local function find_pocket()
  local rocks = here .. "../../../../lib/luarocks/rocks-" .. _VERSION:match "%d+%.%d+" .. "/fathom/"
  for _, dir in ipairs { here .. "pocket", here .. "../../examples/pocket", rocks .. "scm-1/examples/pocket",
                         rocks .. require("fathom.core").version .. "-1/examples/pocket" } do
    if exists(dir .. "/config.json") then return dir end
  end
end

local lazy = {
  pocket = find_pocket,                                             -- path of the model that comes with fathom
  version = function() return require("fathom.core").version end,
  agent = function() return require("fathom.agent").new end,
  tools = function() return require "fathom.tools" end,
  judge = function() return require("fathom.judge").new end,
  reward = function() return require "fathom.reward" end,
  best_of = function() return require("fathom.select").best_of end,
  vote = function() return require("fathom.select").vote end,
  reject = function() return require("fathom.reject").run end,
  trace = function() return require("fathom.trace").open end,
  replay = function() return require("fathom.replay").run end,
  eval = function() return require("fathom.eval").run end,
  pin = function() return require "fathom.pin" end,
  mock = function() return require("fathom.mock").new end,
  serve = function() return require("fathom.serve").serve end,
  remote = function() return require("fathom.remote").new end,
  balance = function() return require "fathom.balance" end,
}

return setmetatable(fathom, { __index = function(t, key)
  if not lazy[key] then return nil end
  local value = lazy[key]()
  rawset(t, key, value)
  return value
end })

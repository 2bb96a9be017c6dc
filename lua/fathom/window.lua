--- window.lua - conversations that outgrow the context: what `overflow` asks for before the engine sees the ids.
--
--   "error"   the default: a prompt that is too long is an error with both counts; an answer ends with "length"
--   "shift"   the oldest tokens behind the first `keep` are dropped and the window moves on (usage.shifted, usage.exact)
--   function  gets the messages when they leave too little room, and returns fewer or shorter ones

local chat = require "fathom.chat"
local fault = require "fathom.fault"
local json = require "fathom.json"

local window = {}

-- How many leading tokens the system messages make, as they stand in ids; nil: there are none.
local function system_tokens(engine, messages, ids, o)
  local head = {}
  while messages[#head + 1] and messages[#head + 1].role == "system" do head[#head + 1] = messages[#head + 1] end
  if not head[1] then return nil end
  local alone = engine:render(head, { template = o.template, think = o.think, tools = o.tools, add_generation_prompt = false })
  local n = 0
  while alone and alone[n + 1] and alone[n + 1] == ids[n + 1] do n = n + 1 end
  return n
end

-- Room that an answer should find: what it may take, and no more than a quarter of the context.
local function room(engine, o) return math.min(o.max_tokens or math.huge, engine.core:ctx() // 4) end

local function shorten(engine, messages, o)
  local fewer = o.overflow(json.copy(messages))
  if type(fewer) ~= "table" or #fewer == 0 then return fault.give("overflow", "the overflow function gave no messages") end
  chat.normal(fewer)
  local ids, err = engine:render(fewer, o)
  if not ids then return nil, err end
  local ctx = engine.core:ctx()
  if #ids >= ctx then
    return fault.give("overflow", ("the overflow function left %d tokens, the context holds %d"):format(#ids, ctx))
  end
  return ids, nil, fewer
end

--- Renders messages that may be too many. Sets o.keep where the window may move and nobody said how much is to stay.
-- @return ids, nil, the messages they are of; or nil, err
function window.render(engine, messages, o)
  local ids, err = engine:render(messages, o)
  if not ids then return nil, err end
  if o.overflow == "shift" then
    o.keep = o.keep or system_tokens(engine, messages, ids, o)
  elseif type(o.overflow) == "function" and #ids + room(engine, o) > engine.core:ctx() then
    return shorten(engine, messages, o)
  end
  return ids, nil, messages
end

return window

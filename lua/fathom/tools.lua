--- tools.lua - tools that ship: each function makes one for fathom.agent's option tools.
--   fathom.tools.lua(limits)       a fenced Lua program                     fathom.tools.files(opts)   files under one root
--   fathom.tools.calculator()      exact arithmetic                         fathom.tools.http(opts)    HTTP, by a list of hosts

local fence = require "fathom.fence"
local options = require "fathom.options"

local tools = {}
local is = options.is

--- A tool that runs a Lua program in the fence (fence.lua says what is in there): args.code; its value comes as text, printed lines
-- before it.
-- @param limits table|nil  instructions (10 million), bytes (16 MiB), seconds (1)
-- @return tool             run(args) -> text, or nil and why
-- @usage local a = fathom.agent(model, { tools = { lua = fathom.tools.lua { seconds = 0.5 } } })
function tools.lua(limits)
  local o = fence.limits("fathom.tools.lua", limits)
  return { doc = "Run a Lua 5.4 program and get what it prints and returns.", args = { code = "string" },
           run = function(args)
             options.argument("fathom.tools.lua", "args", args, is.table)
             options.argument("fathom.tools.lua", "args.code", args.code, is.string)
             return fence.run(args.code, o)
           end }
end

local made = { calculator = "fathom.tools.calculator", files = "fathom.tools.files", http = "fathom.tools.http" }

return setmetatable(tools, { __index = function(t, key)
  if not made[key] then return nil end
  local make = require(made[key]).new
  rawset(t, key, make)
  return make
end })

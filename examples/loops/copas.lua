--- copas.lua - two answers and a clock side by side in the event loop of copas (lua-copas).
-- Run from the repository's root after `make`: lua5.4 examples/loops/copas.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
-- Debian keeps it beside an older Lua; it is plain Lua and runs with this one
package.path = package.path .. ";/usr/share/lua/5.2/?.lua"
local there, found = pcall(require, "copas")
if not there then
  print "skipped: there is no copas for this Lua"
  os.exit(true)
end
local fathom = require "fathom"
require("fathom.loop").copas()

local go = found.addthread

local model <close> = assert(fathom.load(fathom.pocket))
local left, ticks = 2, 0

local function ask(name, text)
  go(function()
    local s <close> = assert(model:session { temperature = 0 })
    local parts = {}
    for piece, info in s:stream(text) do
      if info.channel == "answer" then parts[#parts + 1] = piece end
    end
    print(name .. ": " .. table.concat(parts):gsub("\n", " "))
    left = left - 1
  end)
end

ask("first", "What is 17 + 25?")
ask("second", "What is the capital of France?")
while left > 0 do                          -- what copas.loop does, with a clock
  found.step(0)
  ticks = ticks + 1
end
print(("both are done; the clock had its turn %s"):format(ticks > 1 and "meanwhile" or "too late"))

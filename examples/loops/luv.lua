--- luv.lua - two answers and a clock side by side in the event loop of libuv (lua-luv).
-- Run from the repository's root after `make`: lua5.4 examples/loops/luv.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"

local there, found = pcall(require, "luv")
if not there then
  print "skipped: there is no luv for this Lua"
  os.exit(true)
end
local fathom = require "fathom"
require("fathom.loop").luv()

local function go(f) assert(coroutine.resume(coroutine.create(f))) end
local function every(ms, f)
  local timer = found.new_timer()
  timer:start(ms, ms, function() if not f() then timer:close() end end)
end
local function run() found.run() end

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
every(5, function()
  ticks = ticks + 1
  return left > 0
end)
run()
print(("both are done; the clock had its turn %s"):format(ticks > 1 and "meanwhile" or "too late"))

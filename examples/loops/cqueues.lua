--- cqueues.lua - two answers and a clock side by side in the event loop of cqueues (lua-cqueues).
-- Run from the repository's root after `make`: lua5.4 examples/loops/cqueues.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"

local there, found = pcall(require, "cqueues")
if not there then
  print "skipped: there is no cqueues for this Lua"
  os.exit(true)
end
local fathom = require "fathom"
require("fathom.loop").cqueues()

local controller = found.new()
local function go(f) controller:wrap(f) end
local function every(ms, f)
  go(function()
    repeat found.sleep(ms / 1000) until not f()
  end)
end
local function run() assert(controller:loop()) end

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

--- loop.lua - waiting inside somebody else's event loop. After one of these calls, task:wait(), task:pieces(), the streams and
-- model:generate inside a coroutine of that loop move the model for some milliseconds, let the loop's other work have its turn,
-- and go on. Outside coroutines they block as ever; nothing runs while nobody waits.
-- @usage require("fathom.loop").copas()
local options = require "fathom.options"
local task = require "fathom.task"

local loop = {}

local STEP_MS = 2

-- Checks ms and installs pause(handle, ms) as the way to wait.
local function install(what, ms, pause)
  if ms ~= nil then options.argument(what, "ms", ms, options.is.at_least(0.1)) end
  task.pause = function(handle) return pause(handle, ms or STEP_MS) end
end

-- A closed model lives on in its engine until its tasks are over.
local function step(handle, ms) handle.task.engine:step(ms) end

--- Coroutines of plain Lua over libuv: one that waits is resumed by a timer of its own.
-- @param ms number|nil  how long the model works before others have their turn (2)
function loop.luv(ms)
  local uv = require "luv"
  install("loop.luv", ms, function(handle, slice)
    local co, timer = coroutine.running(), uv.new_timer()
    timer:start(1, 0, function()      -- 0 would come at once again, before any other timer
      timer:close()
      step(handle, slice)
      assert(coroutine.resume(co))
    end)
    coroutine.yield(handle)
  end)
end

-- One round of copas before 2.0, which knows no sleep: until a socket that always is can be written to.
local function old_round(copas)
  local udp, looked = require("socket").udp(), false
  assert(udp:setsockname("127.0.0.1", 0))          -- only now there is a socket
  local ready = { getfd = function() return udp:getfd() end, close = function() udp:close() end }
  function ready:sendto()                          -- luacheck: no self
    if looked then return 1 end
    looked = true
    return nil, "timeout"
  end
  copas.sendto(ready, "", "", 0)
  udp:close()
end

--- Threads of copas.
function loop.copas(ms)
  local copas = require "copas"
  install("loop.copas", ms, function(handle, slice)
    step(handle, slice)
    if copas.sleep then copas.sleep(0) else old_round(copas) end
  end)
end

--- Coroutines of a cqueues controller.
function loop.cqueues(ms)
  local cqueues = require "cqueues"
  install("loop.cqueues", ms, function(handle, slice)
    step(handle, slice)
    cqueues.sleep(0)
  end)
end

--- Back to yielding the handle { task =, model = }.
function loop.none() task.pause = coroutine.yield end

return loop

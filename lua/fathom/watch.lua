--- watch.lua - functions that are called behind each step of an owner until they return false. They may add others while they run.

local watch = {}

--- Adds f to the owner's watchers.
function watch.add(owner, f)
  owner.watchers = owner.watchers or {}
  owner.watchers[#owner.watchers + 1] = f
end

--- Calls all of them.
-- @return boolean whether any are left
function watch.look(owner)
  local watchers = owner.watchers
  if not watchers then return false end
  owner.watchers = nil
  for _, f in ipairs(watchers) do
    if f() then watch.add(owner, f) end
  end
  return owner.watchers ~= nil
end

return watch

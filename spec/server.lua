--- Our own server in a process of its own, for specs: `local server <close> = require "spec.server".start()`.
local helper = require "spec.helper"

local server = {}
local mt = { __index = {} }

function mt.__index:close()
  if not self.pipe then return end
  os.execute("kill " .. self.pid)
  self.pipe:close()
  self.pipe = nil
end
mt.__close, mt.__gc = mt.__index.close, mt.__index.close

--- @param options string|nil  of `fathom serve`, for a shell
-- @return server             url, pid, close()
function server.start(options)
  local command = ("echo $$; export LUA_CPATH='%s/?.so;;'; exec %s lua/bin/fathom serve --port 0 --device cpu --quiet %s 2>&1")
                  :format(helper.build, os.getenv "LUA" or "lua5.4", options or "")
  local self = setmetatable({ pipe = assert(io.popen(command)) }, mt)
  self.pid = assert(math.tointeger(tonumber(self.pipe:read "l")))
  local said = self.pipe:read "l" or "nothing"
  self.url = said:match "http://%S+" or error("the server says: " .. said)
  return self
end

return server

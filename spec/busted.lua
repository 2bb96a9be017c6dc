-- Starts busted under this very Lua, with our output handler. Under a sanitizer only what puts C to the test: the rest is Lua, or
-- runs other programs, and would take an hour.
local roots = { "spec" }
if os.getenv "FATHOM_ASAN" then
  roots = {}
  for name in ("apart api batch cache checkpoint debug fence golden grammar remote serve_bad serve_flow store tokenizer window")
    :gmatch "[%w_]+" do
    local path = "spec/" .. name .. "_spec.lua"
    local file = io.open(path)
    if file then
      file:close()
      roots[#roots + 1] = path
    end
  end
end
arg = { [0] = "busted", "--output=spec.output", "--pattern=_spec", table.unpack(roots) }
package.path = "./?.lua;" .. package.path
require "busted.runner" { standalone = false }

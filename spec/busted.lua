-- Starts busted under this very Lua, with our output handler.
arg = { [0] = "busted", "--output=spec.output", "--pattern=_spec", "spec" }
package.path = "./?.lua;" .. package.path
require "busted.runner" { standalone = false }

--- The real server with pocket, for the page's test. usage: lua5.4 spec/page/server.lua FOLDER
-- Prints its address; traces go to the folder; ends when nobody holds its input any more.
local fathom = require "fathom"

local folder = arg[1]
-- one thread: the browser wants the other cores, and waiting for each other costs more than two would gain
local model <close> = assert(fathom.load(fathom.pocket, { device = "cpu", seqs = 16, threads = 1 }))
local trace <close> = assert(fathom.trace(folder .. "/page.jsonl"))   -- luacheck: ignore 211
local server <close> = assert(fathom.serve(model, { name = "pocket", traces = folder }))
print(server.url)
io.stdout:flush()
server:run()

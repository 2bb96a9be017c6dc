--- 12_remote.lua - a server as a backend: the same script talks to our own, to vLLM, SGLang or DeepSeek's API.
-- Without arguments it starts `fathom serve` on a free port, in a process of its own, and ends it when it is through.
-- Run from the repository's root after `make`:
--   lua5.4 examples/12_remote.lua
--   KEY=sk-... lua5.4 examples/12_remote.lua https://api.deepseek.com deepseek-chat
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"

local url, model = arg[1], arg[2]

-- ---- a server in the background -------------------------------------------------------------------------------

-- The shell tells its process id, becomes the server, and the server tells its address.
local function start_server()
  local pipe = assert(io.popen("echo $$; exec lua5.4 '" .. here .. "../lua/bin/fathom' serve --port 0 --quiet 2>&1"))
  local pid, said = pipe:read "l", pipe:read "l"
  local address = said and said:match "http://%S+"
  if not address then error("no server: " .. tostring(said), 0) end
  return address, function()
    os.execute("kill " .. pid)
    pipe:close()
  end
end

local stop = function() end
if not url then
  url, stop = start_server()
  print(("fathom serve has started at %s"):format(url))
end
local _ <close> = setmetatable({}, { __close = function() stop() end })

-- ---- the same verbs as those of a model -----------------------------------------------------------------------

local remote <close> = assert(fathom.remote { url = url, model = model, key = os.getenv "KEY",
                                              price = { input = 0.28, cached = 0.028, output = 0.42 } })   -- dollars a million tokens
local talk <close> = remote:session { temperature = 0 }

io.write "\nWhat is 17 + 25?"
local channel
for piece, info in talk:stream "What is 17 + 25?" do
  if info.channel ~= channel then io.write("\n  ", info.channel, ": ") end
  channel = info.channel
  io.write((piece:gsub("</?think>", ""):gsub("\n", " ")))
  io.flush()
end

io.write "\n\nWhat is 30 + 12?  Asked three times, in one request:\n"
for i, vote in ipairs(assert(talk:sample("What is 30 + 12?", { n = 3, temperature = 1, seed = 5 }))) do
  print(("  %d  %s"):format(i, vote.answer:gsub("\n", " | ")))
end

io.write "\nA document that follows a schema:\n"
local point, result = assert(remote:session { temperature = 0 }:json("Make up a point.",
                             { schema = { x = fathom.int(0, 99), y = fathom.int(0, 99) }, max_tokens = 64 }))
print(("  x = %d, y = %d   (%d tokens)"):format(point.x, point.y, result.usage.completion))

io.write "\nTen questions at once, while this thread counts the turns that it had in between:\n"
local tasks, turns = {}, 0
for i = 1, 10 do tasks[i] = remote:session { temperature = 0 }:ask(("What is %d + %d?"):format(10 + i, 20 + i)) end
while remote:step { ms = 2 } do turns = turns + 1 end
for i, task in ipairs(tasks) do io.write(i == 1 and "  " or ", ", task.result.answer:match "^[^\n]*") end
print(("\n  %d turns of at most 2 ms"):format(turns))

local stats = remote:stats()
print(("\n%d requests, %d tokens of prompts (%d cached), %d of answers; at DeepSeek's prices %.6f dollars"):format(
      stats.requests, stats.prompt, stats.cached, stats.completion, stats.cost))

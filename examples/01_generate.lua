--- 01_generate.lua - load the model that comes with fathom, ask it something, watch the answer come.
-- Run from the repository's root after `make`: lua5.4 examples/01_generate.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"

local plan = assert(fathom.plan(fathom.pocket))
print(plan:report())

local model <close> = assert(fathom.load(fathom.pocket))
print("\nloaded " .. tostring(model))

local question = "Ella has 24 pears. She buys 4 bags with 12 pears each. She gives 15 to Tom. How many pears does Ella have now?"
local messages = { { role = "user", content = question } }

print("\n> " .. question .. "\n")
for piece, info in model:stream(messages, { temperature = 0 }) do
  if info.channel == "answer" then io.write(piece) else io.write((piece:gsub("\n", "\n  "))) end
end
print "\n"

-- The same as one result, with its numbers.
local result = assert(model:generate(messages, { temperature = 0 }))
local usage = result.usage
print(("think:  %s"):format((result.think:gsub("\n", "; "))))
print(("answer: %s"):format((result.answer:gsub("\n", "; "))))
print(("finish: %s, %d tokens after a prompt of %d"):format(result.finish, usage.completion, usage.prompt))
print(("speed:  %.0f tokens a second; %d of %d drafts of the MTP layer accepted"):format(
  usage.completion / usage.decode_ms * 1000, usage.accepted, usage.drafted))

--- 02_chat.lua - a conversation: turns, a tool, a fork, a saved session.
-- Run from the repository's root after `make`: lua5.4 examples/02_chat.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"

local model <close> = assert(fathom.load(fathom.pocket))

local function answer(task) return assert(task:wait()).answer end

-- Turns share one cached sequence: only what is new is computed.
local chat <close> = assert(model:session { seed = 1, temperature = 0 })
for _, text in ipairs { "Hello!", "What is the capital of France?", "Who are you?" } do
  local task = chat:ask(text)
  print("> " .. text)
  print(answer(task))
  print(("  (%d tokens of prompt, %d of them cached)"):format(task.usage.prompt, task.usage.cached))
end

-- A fork goes on from here; the first session does not notice.
local branch <close> = assert(chat:fork())
print("\nfork> Is 7 a prime number?\n" .. answer(branch:ask "Is 7 a prime number?"))
print(("messages: %d in the fork, %d in the first"):format(#branch:messages(), #chat:messages()))

-- A tool: the model calls, we answer, it goes on.
local tools = { calculator = { doc = "Evaluate an arithmetic expression.", args = { expression = "string" } } }
local helped <close> = assert(model:session { tools = tools, seed = 1, temperature = 0 })
print "\n> What is 4821 * 37?"
local result = assert(helped:ask("What is 4821 * 37?"):wait())
for _, call in ipairs(result.tool_calls) do
  local value = assert(load("return " .. call.arguments.expression, "expression", "t", {}))()
  print(("  the model calls %s(%s), we say %s"):format(call.name, call.raw, value))
  print(answer(helped:ask { role = "tool", content = tostring(value) }))
end

-- A session is a small file: it is computed again when it is needed.
local path = os.tmpname()
assert(helped:save(path))
local restored <close> = assert(model:restore(path))
os.remove(path)
print(("\nrestored %d messages\n> Who are you?\n%s"):format(#restored:messages(), answer(restored:ask "Who are you?")))

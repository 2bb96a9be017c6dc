-- Load the model that comes with the project and let it answer, twice: at once, and piece by piece.
local fathom = require "fathom"

local model <close> = assert(fathom.load(fathom.pocket))
print(model)

local question = { { role = "user", content = "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears does Ella have now?" } }
local result = assert(model:generate(question, { temperature = 0 }))
print("thinks:  " .. result.think:gsub("\n", "\n         "))
print("answers: " .. result.answer:gsub("\n", "\n         "))
print(("%d tokens, %d of %d drafts right, %.0f tokens/s"):format(result.usage.completion, result.usage.accepted,
  result.usage.drafted, result.usage.completion / result.usage.decode_ms * 1000))

io.write "\nstreamed: "
for piece, info in model:stream({ { role = "user", content = "Tell me a story about a fox." } }, { seed = 7 }) do
  if info.channel == "answer" then io.write(piece); io.flush() end
end
print()

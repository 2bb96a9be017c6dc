--- 04_schema.lua - structured output: replies that follow a schema or a grammar, whatever the model would rather say.
-- Run from the repository's root after `make`: lua5.4 examples/04_schema.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local json = require "fathom.json"

local model <close> = assert(fathom.load(fathom.pocket))

-- A grammar in llama.cpp's notation. The model thinks as it likes; behind its thoughts nothing else can be sampled.
local chat <close> = assert(model:session { seed = 1, temperature = 0 })
local question = "Ella has 24 pears. She buys 4 bags with 12 pears each. She gives 15 to Tom. How many pears does Ella have now?"
local steps = [[
  root   ::= (step "\n"){1,4} "\\boxed{" number "}"
  step   ::= number " " [-+*/] " " number " = " number
  number ::= [0-9]{1,4}]]
local result = assert(chat:ask(question, { grammar = steps }):wait())
print("> " .. question)
print("  it thinks:  " .. result.think:gsub("\n", "; "))
print("  it answers: " .. result.answer:gsub("\n", "; "))

-- Tables of fields, words, bounds and choices; fields come in sorted order. Pocket is far too small to fill this in with
-- sense, but what it says has the form that was asked for.
local quest = fathom.schema { title = fathom.text(30), gold = fathom.int(1, 500), tags = fathom.list(fathom.text(12), 3),
                              kind = fathom.enum { "rescue", "treasure", "riddle" } }
for seed = 1, 3 do
  local made = assert(chat:fork():json("Find and take the sword.", { schema = quest, seed = seed, temperature = 1 }))
  print("quest " .. seed .. ": " .. json.encode(made))
end

-- A verdict out of three.
local verdict = 'root ::= "[[A]]" | "[[B]]" | "[[C]]"'
local judged = assert(model:generate({ { role = "user", content = [=[
Which answer is better?

Question: What is 8 + 5?

Answer A:
8 + 5 = 13
\boxed{13}

Answer B:
8 + 5 = 14
\boxed{14}

End with [[A]], [[B]] or [[C]] for a tie.]=] } }, { grammar = verdict, temperature = 0 }))
print("verdict: " .. judged.answer)

-- Little room: the document is steered to its shortest close. No room at all: nil and why.
local short = assert(model:session { seed = 5 })
local told = assert(short:json("Hello!", { schema = { story = "string", done = "boolean" }, max_tokens = 40 }))
print("in 40 tokens: " .. json.encode(told))
local _, err = short:json("Hello!", { schema = quest, max_tokens = 8 })
print("in 8 tokens: " .. err.code .. ", " .. err.message)
short:close()

-- What is not understood is refused by name, before anything is sampled.
_, err = chat:json("Hello!", { schema = { type = "object", properties = { at = { type = "string", format = "date" } } } })
print("refused: " .. err.message)

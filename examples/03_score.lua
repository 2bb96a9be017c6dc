--- 03_score.lua - what a model holds likely: scores of answers, many samples of one question, vectors of texts.
-- Run from the repository's root after `make`: lua5.4 examples/03_score.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"

local model <close> = assert(fathom.load(fathom.pocket))

-- How likely is each answer to a question, without its thoughts?
local prompt = assert(model:render({ { role = "user", content = "What is the capital of France?" } }, { think = false }))
print "What is the capital of France?"
for _, city in ipairs { "Paris", "Rome", "Oslo" } do
  local score = assert(model:score(prompt, ("The capital of France is %s."):format(city)))
  print(("  %-6s log-probability %8.3f over %d tokens"):format(city, score.logprob, #score.tokens))
end

-- Eight samples of one puzzle: the prompt is read once.
local puzzle = "Use the numbers 36, 6, 9 once each with + - * / to make 39. Give the expression in <answer> tags."
local session <close> = assert(model:session { seed = 3, temperature = 1 })
print("\n" .. puzzle)
local right = 0
for i, sample in ipairs(assert(session:sample(puzzle, { n = 8 }))) do
  local expression = sample.answer:match "<answer>(.-)</answer>" or ""
  local f = expression:find "^[%d%s%+%-%*/%(%)]+$" and load("return " .. expression, "expression", "t", {})
  local ok = f and f() == 39
  right = right + (ok and 1 or 0)
  print(("  sample %d: %-20s %s, %d tokens of prompt cached"):format(i, expression, ok and "right" or "wrong", sample.usage.cached))
end
print(("%d of 8 are right"):format(right))

-- The last token's state as a vector: like texts lie close.
local function vector(text)
  local tensor <close> = assert(model:embed(text))
  return tensor:totable()
end
local function cosine(a, b)
  local ab, aa, bb = 0, 0, 0
  for i = 1, #a do ab, aa, bb = ab + a[i] * b[i], aa + a[i] ^ 2, bb + b[i] ^ 2 end
  return ab / math.sqrt(aa * bb)
end
local base = vector "What is 17 + 25?"
print "\nlikeness to 'What is 17 + 25?'"
for _, text in ipairs { "What is 18 + 26?", "What is 9 * 4?", "Tell me a story about a fox." } do
  print(("  %.3f  %s"):format(cosine(base, vector(text)), text))
end

--- grammar.lua - what structured output costs at a vocabulary of 129,280: compiling, and the mask of every token.
-- Documents are cut into DeepSeek-V3's tokens; before each of them the mask is made, and the token must be in it.
-- Times are of this process alone (os.clock). Run by `make bench`; alone: lua5.4 examples/bench/grammar.lua
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../../lua/?.lua;" .. here .. "../../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../../build/?.so"
local core = require "fathom.core"
local fathom = require "fathom"
local json = require "fathom.json"

local dir = (os.getenv "FATHOM_BUILD" or "build") .. "/data/tokenizers/deepseek-v3"

local function words(n, seed)
  local list = { "the", "castle", "of", "Ångström", "was", "never", "quite", "as", "quiet", "\"again\"", "日本語", "and\tso", "on," }
  local out = {}
  for i = 1, n do out[i] = list[(i * 7 + seed * 3 + i // 5) % #list + 1] end
  return table.concat(out, " ")
end

local function lines(n)
  local out = {}
  for i = 1, n do out[i] = { title = words(4, i), gold = i * 13 % 500 + 1, tags = { words(1, i), words(2, i) }, kind = "quest" } end
  return out
end

local item = fathom.schema { title = "string", gold = fathom.int(1, 500), tags = fathom.list(fathom.text(40), 3),
                             kind = fathom.enum { "quest", "rumour", "shop" } }
local tree = { type = "object", required = { "name" }, properties = { name = { type = "string" },
               children = { type = "array", items = { ["$ref"] = "#" } } }, additionalProperties = false }
local countries = {}
for i = 1, 1000 do countries[i] = ("country %d of %s"):format(i, words(2, i)) end

local jobs = {
  { "a record", { schema = item }, lines(1)[1] },
  { "a list of 40 records", { schema = { type = "array", items = item } }, lines(40) },
  { "strings of at most 10 to 300", { schema = fathom.schema { a = fathom.text(10), b = fathom.text(60, 20), c = fathom.text(300, 100) } },
    { a = words(1, 2), b = words(8, 3), c = words(40, 4) } },
  { "numbers", { schema = fathom.list { x = fathom.number(-1.5, 99.25), y = "number", n = fathom.int(-40, 12345) } },
    (function() local t = {} for i = 1, 40 do t[i] = { x = i * 2.25, y = -i / 8, n = i * 301 } end return t end)() },
  { "a tree", { schema = tree },
    { name = "root", children = { { name = words(3, 1), children = { { name = "leaf" } } }, { name = words(2, 2) } } } },
  { "any JSON", { schema = {} }, lines(10) },
  { "one of 1,000 words", { schema = fathom.enum(countries) }, countries[977] },
  { "a verdict (GBNF)", { grammar = 'root ::= "Score: " ([1-9] | "10") | "[[" [ABC] "]]"' }, nil, "Score: 7" },
  { "prose and code (GBNF)", { grammar = [[
      root ::= (sentence "\n")+ "```\n" code "```"
      sentence ::= word (" " word)* [.!?]
      word ::= [A-Za-z,']+ | [0-9]+
      code ::= ([^`\n]* "\n")*]] },
    nil, ("The old castle was quiet, and nobody had seen it for 40 years.\n"):rep(8) .. "```\n" ..
         ("for i = 1, n do print(i, t[i]) end  -- done\n"):rep(6) .. "```" },
}

local function percentile(list, p)
  table.sort(list)
  return list[math.max(1, math.ceil(#list * p))]
end

local function mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / #list
end

local tok = assert(core.tokenizer(dir))
local begin = os.clock()
assert(core.guide(tok, { grammar = 'root ::= "a"' })):close()
print(("vocabulary of %d: its trie is made in %.0f ms, once"):format(tok:size(), (os.clock() - begin) * 1e3))
print "                                tokens   compile    mask: mean   99th     most    move: mean"

local all, moves, slowest = {}, {}, 0

local function run(name, o, text)
  local options = { ends = { 1 }, grammar = o.grammar, schema = o.schema and require("fathom.schema").text(o.schema) }
  local start = os.clock()
  local guide = assert(core.guide(tok, options))
  local compiled = (os.clock() - start) * 1e3
  local times, taken = {}, {}
  for _, id in ipairs(tok:encode(text, false)) do
    start = os.clock()
    guide:allowed()
    times[#times + 1] = (os.clock() - start) * 1e6
    assert(guide:allowed(id), name .. ": " .. tok:decode { id })
    start = os.clock()
    assert(guide:take(id))
    taken[#taken + 1] = (os.clock() - start) * 1e6
  end
  assert(guide:complete(), name)
  guide:close()
  table.move(times, 1, #times, #all + 1, all)
  table.move(taken, 1, #taken, #moves + 1, moves)
  slowest = math.max(slowest, compiled)
  print(("%-30s  %6d  %6.2f ms   %7.1f us  %7.1f  %7.1f  %7.2f us"):format(name, #times, compiled, mean(times),
        percentile(times, 0.99), times[#times], mean(taken)))
end

for _, job in ipairs(jobs) do run(job[1], job[2], job[4] or json.encode(job[3])) end
print(("%-30s  %6d  %6.2f ms   %7.1f us  %7.1f  %7.1f  %7.2f us"):format("all, each grammar met anew", #all, slowest, mean(all),
      percentile(all, 0.99), all[#all], mean(moves)))

-- Pocket's held-out problems, greedy: accuracy of each family and acceptance of MTP drafts, beside MODEL.md's figures
-- (measured there with another engine). usage: lua5.4 examples/bench/pocket_tasks.lua [family ...] [--limit N] [--json]
package.path = (arg[0]:match "^(.*/)" or "./") .. "../?.lua;" .. package.path
local fathom = require "fathom"
local game = require "adventure.game"
local json = require "fathom.json"

-- MODEL.md, "Held-out figures", greedy, 200 problems; acceptance from the table below it; how far off is still the same
local published = {
  { "math", 100, 100, 2 }, { "countdown", 54.5, 97.6, 5 }, { "judge", 94.5, 99.9, 2 },
  { "tools", 98.5, 99.95, 2 }, { "adventure", 97.5, 99.8, 2 }, { "chat", 99.5, 99.4, 2 },
}

local function jsonl(path)
  local rows = {}
  for line in assert(io.open(path)):lines() do rows[#rows + 1] = assert(json.decode(line)) end
  return rows
end

local function last(text, pattern)
  local found
  for m in text:gmatch(pattern) do found = m end
  return found
end

local function occurs(alternatives, text)
  for word in (alternatives .. "|"):gmatch "([^|]*)|" do
    if text:find(word, 1, true) then return true end
  end
  return false
end

--- An expression of numbers, + - * / and brackets; nil for anything else, and for other numbers than `nums`, once each.
local function countdown_value(expr, nums)
  if not expr or expr:find "[^%d%s%+%-%*/%(%)]" or expr:find "//" then return nil end
  local want, used = table.move(nums, 1, #nums, 1, {}), {}
  for n in expr:gmatch "%d+" do used[#used + 1] = tonumber(n) end
  table.sort(want)
  table.sort(used)
  if #used ~= #want then return nil end
  for i = 1, #want do if used[i] ~= want[i] then return nil end end
  local chunk = load("return " .. expr, "expression", "t", {})
  local fine, value = pcall(chunk or error)
  return fine and value or nil
end

local function same_call(call, want)
  if call.name ~= want.name then return false end
  for k, v in pairs(want.arguments) do if call.arguments[k] ~= v then return false end end
  for k in pairs(call.arguments) do if want.arguments[k] == nil then return false end end
  return true
end

-- ---- families: each says whether a problem was solved ----------------------------------------------------

local families = {}

local function one_reply(talk, row, tally)
  return tally(assert(talk:ask(row.messages):wait()))
end

function families.math(talk, row, tally)
  return last(one_reply(talk, row, tally).text, "\\boxed{([^}]*)}") == row.answer
end

function families.countdown(talk, row, tally)
  local expr = last(one_reply(talk, row, tally).text, "<answer>(.-)</answer>")
  local value = countdown_value(expr, row.nums)
  return value ~= nil and math.abs(value - row.target) < 1e-9
end

function families.judge(talk, row, tally)
  local answer = one_reply(talk, row, tally).answer
  local score, letter = last(answer, "Score: (%d+)"), last(answer, "%[%[([ABC])%]%]")
  return row.verdict == (score and "Score: " .. score or letter and "[[" .. letter .. "]]")
end

function families.chat(talk, row, tally)
  return occurs(row.reference, one_reply(talk, row, tally).answer)
end

--- Runs tool calls until the model answers without one; answer(call, i) gives a tool's output.
local function tool_loop(talk, messages, limit, tally, answer)
  local calls, result = 0, nil
  for _ = 1, limit do
    result = tally(assert(talk:ask(messages):wait()))
    if #(result.tool_calls or {}) == 0 then break end
    messages = {}
    for _, call in ipairs(result.tool_calls) do
      calls = calls + 1
      messages[#messages + 1] = { role = "tool", content = answer(call, calls) }
    end
  end
  return result, calls
end

function families.tools(talk, row, tally)
  local right = true
  local result, calls = tool_loop(talk, row.messages, #row.calls + 3, tally, function(call, i)
    local want = row.calls[i]
    right = right and want ~= nil and same_call(call, want)
    return want and want.output or "error: not found"
  end)
  return right and calls == #row.calls and occurs(row.expect, result.answer)
end

function families.adventure(talk, row, tally)
  local g = game.new(row.world)
  tool_loop(talk, row.messages, 33, tally, function(call) return game.act(g, call.arguments and call.arguments.action) end)
  return g.won == true
end

-- ---- running ------------------------------------------------------------------------------------------------

local function run(model, name, limit)
  local rows, solved, drafted, accepted, tokens = jsonl(fathom.pocket .. "/heldout_" .. name .. ".jsonl"), 0, 0, 0, 0
  local begin, n = os.time(), math.min(limit, 1 << 30)
  n = math.min(n, #rows)
  local function tally(result)
    drafted, accepted = drafted + result.usage.drafted, accepted + result.usage.accepted
    tokens = tokens + result.usage.completion
    return result
  end
  for i = 1, n do
    local talk <close> = assert(model:session { temperature = 0, max_tokens = 600 })
    if families[name](talk, rows[i], tally) then solved = solved + 1 end
  end
  return { family = name, problems = n, accuracy = 100 * solved / n, acceptance = 100 * accepted / math.max(drafted, 1),
    tokens = tokens, seconds = os.time() - begin }
end

local function options()
  local limit, chosen, as_json, i = math.huge, {}, false, 1
  while arg[i] do
    if arg[i] == "--limit" then i = i + 1; limit = assert(tonumber(arg[i]), "--limit wants a number")
    elseif arg[i] == "--json" then as_json = true
    else chosen[arg[i]] = true; chosen[1] = true end
    i = i + 1
  end
  return limit ~= math.huge and math.tointeger(limit) or 1 << 30, chosen, as_json
end

local limit, chosen, as_json = options()
local model <close> = assert(fathom.load(fathom.pocket))
if not as_json then
  print(model)
  print "family      problems   accuracy (published)   drafts right (published)   tokens"
end
local all_fine = true
for _, p in ipairs(published) do
  if not chosen[1] or chosen[p[1]] then
    local r = run(model, p[1], limit)
    local fine = math.abs(r.accuracy - p[2]) <= p[4] and math.abs(r.acceptance - p[3]) <= 2
    all_fine = all_fine and fine
    if as_json then print(json.encode(r))
    else
      print(("%-12s %7d   %7.1f %% (%5.1f %%)    %8.2f %% (%6.2f %%)   %12d   %s"):format(r.family, r.problems, r.accuracy, p[2],
        r.acceptance, p[3], r.tokens, fine and "" or "apart"))
    end
  end
end
os.exit(all_fine or limit < 200)

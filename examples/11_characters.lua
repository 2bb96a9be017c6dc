--- 11_characters.lua - three characters of a game on one model, inside frames of 16 ms: each is an agent with tools of its own, and all
-- of them move for some milliseconds a frame. Run from the repository's root after `make`: lua5.4 examples/11_characters.lua [seconds]
local here = arg[0]:match "^(.*/)" or "./"
package.path = here .. "../lua/?.lua;" .. here .. "../lua/?/init.lua;" .. package.path
package.cpath = package.cpath .. ";" .. here .. "../build/?.so"
local fathom = require "fathom"
local now = require("fathom.core").now                       -- milliseconds of a clock that only goes forward

local FRAME_MS, MODEL_MS, GAME_MS = 16, 6, 4
local seconds = tonumber(arg[1]) or 8

-- One thread: a game has others to do.
local model <close> = assert(fathom.load(fathom.pocket, { threads = 1, ctx = 1024, seqs = 4 }))

-- The guard knows the time, the merchant counts, the bard only talks.
local hour = 8
local characters = {
  { name = "guard", tools = { get_time = { doc = "Current time in a city.", args = { city = "string" },
      run = function() return ("%02d:%02d"):format(hour // 1 % 24, hour * 60 // 1 % 60) end } },
    lines = { "What time is it in Oslo?", "Hello!", "Current time in Toronto?" } },
  { name = "merchant", tools = { calculator = fathom.tools.calculator() },
    lines = { "A shop sells 13 oranges at 28 coins each. How many coins is that?", "3747 - 2349 = ?", "Can you help me?" } },
  { name = "bard", lines = { "Tell me a story about a fox.", "Who are you?", "What does person mean?" } },
}
for _, c in ipairs(characters) do
  c.agent = fathom.agent(model, { tools = c.tools, temperature = 0.6, seed = 1, limits = { turns = 6 } })
  c.at, c.rest = 0, 0
end

-- What stands for the rest of the game: work on the processor.
local function draw(ms)
  local ends, x = now() + ms, 0
  while now() < ends do x = x + math.sin(x) end
end

-- A character that is silent says its next line; one that has an answer tells it.
local function play(c, frame)
  if c.task and c.task.done then
    local text = c.task.result and c.task.result.text or tostring(c.task.err)
    print(("%6.2f s  %-8s %s"):format(frame * FRAME_MS / 1000, c.name, #text > 100 and text:sub(1, 97) .. "..." or text))
    c.task, c.rest = nil, frame + 20
  elseif not c.task and frame >= c.rest then
    c.at = c.at % #c.lines + 1
    c.task = c.agent:start(c.lines[c.at])
  end
end

local frames, steps, work, late = {}, {}, {}, 0
for frame = 1, math.floor(seconds * 1000 / FRAME_MS) do
  local begun = now()
  hour = hour + 0.001
  draw(GAME_MS)
  for _, c in ipairs(characters) do play(c, frame) end
  local before, worked = now(), os.clock()
  model:step { ms = MODEL_MS }
  steps[frame], work[frame] = now() - before, (os.clock() - worked) * 1000
  frames[frame] = now() - begun
  if frames[frame] > FRAME_MS then late = late + 1 end
  while now() - begun < FRAME_MS do end                       -- until the screen wants the next one
end

local function percentiles(list)
  table.sort(list)
  local function at(share) return list[math.max(1, math.ceil(#list * share))] end
  return ("%5.2f  %5.2f  %5.2f  %5.2f  %5.2f"):format(at(0.5), at(0.9), at(0.99), at(0.999), list[#list])
end

local stats = model:stats()
print(("\n%d frames of %d ms: %d ms of game, the model may have %d ms; %d tokens said, %.0f a second"):format(#frames, FRAME_MS, GAME_MS,
      MODEL_MS, stats.generated_tokens, stats.generated_tokens / seconds))
print "ms                       50 %   90 %   99 %  99.9 %    all"
print("the model's part        " .. percentiles(steps))
print("  of that, processor    " .. percentiles(work))      -- less on a machine that has others to serve
print("whole frames            " .. percentiles(frames))
print(("frames that came late: %d (%.2f %%)"):format(late, 100 * late / #frames))

--- soak.lua - many sessions at random for SOAK_SECONDS (600): they join, are cancelled, fork, are saved and restored, ask for plain
-- text and for JSON, in a cache that is too small for them. Every second conversation that ends is held again alone, in another
-- model, and must have said the same. Memory must stay flat within 1 % in the second half (a slow machine needs the first for the heap
-- to meet its worst moment: twelve conversations, each with a document), the GPU's too, and no page may be lost. What a GPU has left is
-- everybody's: with SOAK_SHARED=1, where others use it meanwhile, it is told and not judged.
-- usage: make soak, or lua5.4 spec/soak.lua
local fathom = require "fathom"
local now = require("fathom.core").now

local seconds = tonumber(os.getenv "SOAK_SECONDS") or 600
local device = os.getenv "FATHOM_DEVICE" or "cpu"
local seed = math.tointeger(tonumber(os.getenv "SOAK_SEED")) or os.time()
math.randomseed(seed)

-- Bytes of the GPU that are in use, by whomever; 0 where the models are in host memory.
local function device_used()
  if device == "cpu" then return 0 end
  local name = device:find ":" and device or "cuda:0"
  for _, d in ipairs((fathom.devices())) do
    if d.name == name then return d.total - d.free end
  end
  return 0
end

local used_before = device_used()
local PAGE_BYTES = assert(fathom.plan(fathom.pocket, { device = device, seqs = 1, ctx = 64 })).cache // 2    -- one to spare
local model = assert(fathom.load(fathom.pocket, { device = device, seqs = 6, ctx = 384, cache_bytes = 9 * PAGE_BYTES }))
local judge = assert(fathom.load(fathom.pocket, { device = device, seqs = 1, ctx = 384, prefix_cache = false }))
local systems = { false, "Be brief.", ("The rules of the house: be kind, be short, be right. "):rep(8) }
local texts = { "What is 17 + 25?", "Tell me a story about a fox.", "Who are you?", "What is the capital of France?",
                "Ella has 24 pears. She buys 4 bags with 12 pears each. How many pears does Ella have now?" }
local schema = { answer = "integer", sure = "boolean" }
local path = os.tmpname()

local counts = { asked = 0, cancelled = 0, forked = 0, restored = 0, checked = 0, failed = 0 }
local talks = {}

local function pick(list) return list[math.random(#list)] end

-- ---- what may happen ------------------------------------------------------------------------------------

local function begin_talk()
  local system = pick(systems) or nil
  talks[#talks + 1] = { session = assert(model:session { system = system }), system = system, turns = {}, sound = true }
end

local function ask(talk)
  local o = { seed = math.random(1 << 30), temperature = math.random() * 1.2, max_tokens = math.random(200),
              mtp = pick { true, false, 3, "auto" }, priority = math.random(-2, 2), logprobs = pick { false, 2 } or nil,
              schema = math.random(4) == 1 and schema or nil, ignore_eos = math.random(3) == 1 }
  talk.turn = { text = pick(texts), options = o }
  talk.task = talk.session:ask(talk.turn.text, o)
  counts.asked = counts.asked + 1
end

local function copy_talk(talk, session)
  return { session = session, system = talk.system, turns = table.move(talk.turns, 1, #talk.turns, 1, {}), sound = talk.sound }
end

local function fork(talk)
  talks[#talks + 1] = copy_talk(talk, assert(talk.session:fork()))
  counts.forked = counts.forked + 1
end

local function save_and_restore(talk)
  assert(talk.session:save(path, { pages = pick { "stored", false } }))
  talks[#talks + 1] = copy_talk(talk, assert(model:restore(path)))
  counts.restored = counts.restored + 1
end

-- ---- what must hold -----------------------------------------------------------------------------------------

local function check_alone(talk)
  local s <close> = assert(judge:session { system = talk.system })
  for i, turn in ipairs(talk.turns) do
    local o = {}
    for k, v in pairs(turn.options) do o[k] = v end
    o.mtp = false
    local r = assert(s:ask(turn.text, o):wait())
    assert(table.concat(r.ids, " ") == turn.ids, ("turn %d of a conversation differs alone (seed %d)"):format(i, seed))
  end
  counts.checked = counts.checked + 1
end

-- Takes a finished turn down. A conversation that was cut has no second time; one that is full ends.
local function settle(talk)
  local task = talk.task
  talk.task = nil
  if task.err then
    assert(task.err.code == "overflow" or task.err.code == "limit", tostring(task.err))
    counts.failed = counts.failed + 1
    talk.over = true
    return
  end
  talk.turn.ids = table.concat(task.result.ids, " ")
  if task.result.finish == "cancelled" then talk.sound = false
  else talk.turns[#talk.turns + 1] = talk.turn end
end

local function close(i)
  local talk = table.remove(talks, i)
  talk.session:close()
  if talk.sound and math.random(2) == 1 then check_alone(talk) end
end

local function step()
  for i = #talks, 1, -1 do
    local talk = talks[i]
    if talk.task and talk.task.done then settle(talk) end
    if talk.over then close(i) end
  end
  model:step { ms = pick { 2, 20, 40 } }
  if #talks < 8 then begin_talk() end
  if #talks == 0 then return end
  local i = math.random(#talks)
  local talk = talks[i]
  if talk.task then
    if math.random(1000) == 1 then
      talk.task:cancel()
      counts.cancelled = counts.cancelled + 1
    end
    if math.random(3000) == 1 then                     -- closed in mid-step
      talk.sound = false
      close(i)
    end
    return
  end
  local what = #talk.turns > 3 and 3 or math.random(10)
  if what == 1 and #talks < 12 then fork(talk)
  elseif what == 2 and #talks < 12 then save_and_restore(talk)
  elseif what == 3 then close(i)
  else ask(talk) end
end

-- ---- the run --------------------------------------------------------------------------------------------------

local function host_used()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmRSS:%s+(%d+)"
    if kb then return tonumber(kb) << 10 end
  end
end

-- Bytes now, at half time, and the most since.
local memory = { host = { read = host_used, spare = 0 },
                 device = { read = function() return device_used() - used_before end, spare = 2 << 20 } }   -- a driver's block

local function look(settled)
  collectgarbage()
  collectgarbage()
  for _, m in pairs(memory) do
    m.now = m.read()
    if settled then
      m.settled = m.settled or m.now
      m.most = math.max(m.most or 0, m.now)
    end
  end
end

local function is_flat(m) return not m.settled or m.most <= m.settled * 1.01 + m.spare end

-- The widest passes there can be, so that scratch is as large as it gets.
for _, m in ipairs { model, judge } do
  local ids = {}
  for i = 1, 384 do ids[i] = 100 + i % 500 end
  assert(m:logits(ids)):close()
  assert(m:generate(table.move(ids, 1, 376, 1, {}), { max_tokens = 8, schema = schema }))
end

local begun, told = now(), 0
while now() - begun < seconds * 1e3 do
  step()
  local part = (now() - begun) / (seconds * 1e3)
  if part * 20 >= told + 1 then
    told = told + 1
    look(part > 0.5)
    local s = model:stats()
    print(("%3.0f %%: %d asked, %d cancelled, %d forked, %d restored, %d checked alone, %d set back, %d of %d pages, %d KiB, device %d KiB")
          :format(100 * part, counts.asked, counts.cancelled, counts.forked, counts.restored, counts.checked, s.set_back,
          s.pages_used, s.pages, memory.host.now >> 10, memory.device.now >> 10))
    io.flush()
  end
end
for i = #talks, 1, -1 do
  talks[i].sound = talks[i].sound and not talks[i].task
  close(i)
end
while model:step { ms = 2 } do end
local s = model:stats()
assert(s.pages_used == s.prefix_pages, ("%d pages used, the prefix tree holds %d"):format(s.pages_used, s.prefix_pages))
model:drop_prefixes()
assert(model:stats().pages_used == 0, "pages were lost")
os.remove(path)
local function grown(m) return m.settled and (m.most - m.settled) // 1024 or 0 end
print(("soak of %d s, seed %d: %d asked, %d checked alone, %d set back, memory grew by %d KiB, the device's by %d KiB"):format(seconds,
      seed, counts.asked, counts.checked, s.set_back, grown(memory.host), grown(memory.device)))
assert(counts.checked > 0 and s.set_back > 0, "too little happened")
assert(is_flat(memory.host), "memory is not flat")
assert(is_flat(memory.device) or os.getenv "SOAK_SHARED", "the device's memory is not flat")

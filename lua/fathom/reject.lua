--- reject.lua - rejection sampling into a file of JSON lines: several samples of many prompts, and those kept that a reward likes.
--
-- What is in the file stays there whatever happens to the process. Lines come in the order of the prompts and samples, written when
-- all before them are settled; beside them a journal (PATH.journal) says which prompts are done, and keeps the lines of those that
-- are ahead of a slow one. A run that was killed is taken up
-- by the same call: lines that are there are not made again, a torn last line is cut off, and since seeds follow from the place
-- the file comes out byte for byte as if nothing had been. The journal counts lines: a prompt whose lines are not all there (somebody
-- deleted or edited the file, the system lost its end) is made again, with those behind it.

local backend = require "fathom.backend"
local cases = require "fathom.eval.cases"
local crew = require "fathom.crew"
local fault = require "fathom.fault"
local json = require "fathom.json"
local options = require "fathom.options"
local sampling = require "fathom.sampling"
local select = require "fathom.select"

local reject = {}
local is = options.is

local known = {
  backend = is.table, prompts = is.one_of(is.table, is.callable, is.path), path = is.path, reward = is.callable, n = is.count(1, 4096),
  keep = is.one_of(is.number, is.callable), most = is.count(1), width = is.count(1), seed = is.count(0), progress = is.callable,
  fields = is.strings,
}

local function now_ms() return require("fathom.core").now() end

-- ---- what a run is ------------------------------------------------------------------------------------------------------

-- Which model: a digest of the weights where they are ours, else what the backend says of itself.
local function model_of(b)
  if backend.is_local(b) then
    return { digest = b.engine:digest(), name = b.engine.dir:match "([^/]+)/*$" }
  end
  return { name = type(b.name) == "string" and b.name or tostring(b):match "^fathom (%a+)" or "backend" }
end

-- FNV-1a of all that is asked: a file that was begun with other prompts is not gone on with.
local function digest_of(list)
  local h = 0xcbf29ce484222325
  for _, case in ipairs(list) do
    local text = case.id .. "\n" .. json.encode(cases.messages(case)) .. "\n"
    for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
  end
  return ("%016x"):format(h)
end

-- Options as data, for the first line of the journal: a run is taken up with the same ones only.
local function settings_of(o, generation, list)
  local plain = {}
  for name, value in pairs(generation) do
    if type(value) ~= "function" then plain[name] = value end
  end
  return { fathom = "reject", model = model_of(o.backend), seed = o.seed, n = o.n, prompts = #list, digest = digest_of(list),
           options = json.object(plain), keep = type(o.keep) == "number" and o.keep or nil, most = o.most }
end

-- ---- the files ------------------------------------------------------------------------------------------------------------

-- The whole lines of a file, and whether a torn one follows; nil: there is no such file.
local function whole_lines(path)
  local file = io.open(path, "rb")
  local text = file and file:read "a"                               -- nothing can be read from a folder
  if file then file:close() end
  if not text then return nil end
  local lines = {}
  for line in text:gmatch "[^\n]*\n" do lines[#lines + 1] = line end
  return lines, text ~= "" and text:sub(-1) ~= "\n"
end

local function write_whole(path, lines)
  local file, why = io.open(path .. ".part", "wb")
  if not file then return fault.give("io", "cannot be written: " .. why) end
  for _, line in ipairs(lines) do file:write(line) end
  local ok
  ok, why = file:close()
  if ok then ok, why = os.rename(path .. ".part", path) end
  if not ok then return fault.give("io", "cannot be written: " .. tostring(why)) end
  return true
end

local function append_to(path)
  local file, why = io.open(path, "ab")
  if not file then return fault.give("io", "cannot be written: " .. why) end
  return file
end

-- Opens a file for more lines, without what was torn.
local function reopen(path, lines, torn)
  if torn then
    local ok, err = write_whole(path, lines)
    if not ok then return nil, err end
  end
  return append_to(path)
end

-- Lines of a list that are objects, up to the first that is none.
local function objects(lines, from)
  local out = {}
  for i = from, #lines do
    local value = json.decode(lines[i])
    if type(value) ~= "table" then break end
    out[#out + 1] = value
  end
  return out
end

local function is_early(note) return math.type(note.prompt) == "integer" and type(note.lines) == "table" and is.strings(note.lines) end

-- Whether a note is that of the next prompt, and all of its lines are there, behind the first n.
local function follows(note, done, found, n)
  if note.prompt ~= done + 1 or math.type(note.kept) ~= "integer" or note.kept < 0 then return false end
  for k = n + 1, n + note.kept do
    if not found[k] or found[k].index ~= note.prompt then return false end
  end
  return true
end

-- How many prompts are settled: noted in the journal, with all of their lines in the file; these lines; those of prompts that
-- are settled behind one that is not (index -> lines); and the notes that say all this.
local function settled(notes, lines)
  local found, n, done, ahead, noted, lost = objects(lines, 1), 0, 0, {}, { notes[1] }, false
  for i, note in ipairs(objects(notes, 2)) do
    local early = is_early(note)
    lost = lost or not early and not follows(note, done, found, n)
    if early then ahead[note.prompt] = note.lines elseif not lost then done, n = note.prompt, n + note.kept end
    if early or not lost then noted[#noted + 1] = notes[i + 1] end
  end
  return done, table.move(lines, 1, n, 1, {}), ahead, noted
end

-- What an earlier run left: { done = prompts that are settled, kept = lines }, after its torn ends are cut off.
local function look_back(self)
  local lines, torn = whole_lines(self.path)
  local notes, torn_note = whole_lines(self.journal_path)
  local head = notes and notes[1] and json.decode(notes[1])
  if lines and #lines > 0 and not head then
    return fault.give("format", self.path .. " is there, but not the journal beside it: it is not known how it was made",
                      "move it away, or give another path")
  end
  if head and json.encode(head) ~= json.encode(json.decode(json.encode(self.settings))) then
    return fault.give("format", self.path .. " was begun with other settings (" .. notes[1]:sub(1, 200):gsub("%s+$", "") .. ")",
                      "give the same model, prompts, seed and options, or another path")
  end
  local done, whole, ahead, noted = settled(head and notes or {}, lines or {})
  local cut = torn or #whole < #(lines or {})
  local err
  self.file, err = reopen(self.path, whole, cut)
  if not self.file then return nil, err end
  local fresh = not head
  self.journal, err = reopen(self.journal_path, noted, torn_note or #noted < #(notes or {}))
  if not self.journal then return nil, err end
  if fresh then self.journal:write(json.encode(self.settings), "\n"):flush() end
  self.done, self.kept, self.resumed = done, #whole, done
  for index, texts in pairs(ahead) do
    if index > done and index <= #self.list then
      self.ready[index], self.resumed = { lines = texts, tokens = 0, noted = true }, self.resumed + 1
    end
  end
  return true
end

-- ---- one prompt -------------------------------------------------------------------------------------------------------------

local function keeps(o, sample, value)
  if type(o.keep) == "function" then return o.keep(sample, value) end
  return value >= (o.keep or 1)
end

-- What is kept of a sample: nothing in it depends on the machine's pace.
local function line_of(self, index, case, sample, value, detail)
  local usage = sample.usage or {}
  local line = { index = index, id = case.id, sample = sample.sample, seed = sample.seed, prompt = sample.prompt, text = sample.text,
                 think = sample.think, answer = sample.answer, finish = sample.finish, reward = value, reference = sample.reference,
                 tokens = { prompt = usage.prompt, completion = usage.completion }, model = self.settings.model,
                 options = self.settings.options }
  if type(detail) == "string" then line.why = detail end
  if type(detail) == "table" and detail[1] then
    line.rewards = {}
    for i, part in ipairs(detail) do line.rewards[i] = { name = part.name, value = part.value, weight = part.weight } end
  end
  for _, name in ipairs(self.o.fields or {}) do
    if line[name] == nil then line[name] = case[name] end
  end
  return json.encode(line) .. "\n"
end

-- Samples and rewards one prompt; gives its lines.
local function settle(self, index, case)
  local o = self.o
  local prompt = cases.messages(case)
  local generation = sampling.merge({ n = o.n, seed = cases.seed(o.seed, index, 0) }, self.generation)
  local samples, err = select.sample(o.backend, prompt, cases.reference(case), generation)
  if not samples then return nil, err end
  for _, s in ipairs(samples) do s.case = case end
  local values, details = select.rewards(o.backend, o.reward, samples)
  if not values then return nil, details end
  local lines, tokens = {}, 0
  for i, s in ipairs(samples) do
    tokens = tokens + (s.usage and s.usage.completion or 0)
    if #lines < (o.most or math.huge) and keeps(o, s, values[i]) then
      lines[#lines + 1] = line_of(self, index, case, s, values[i], details[i])
    end
  end
  return { lines = lines, tokens = tokens }
end

-- ---- all of them ------------------------------------------------------------------------------------------------------------

local function state_of(self)
  local seconds = (now_ms() - self.began) / 1000
  local fresh = self.settled - self.resumed
  local rate = seconds > 0 and fresh / seconds or 0.0
  return { done = self.settled, total = #self.list, kept = self.kept, resumed = self.resumed, samples = self.settled * self.o.n,
           tokens = self.tokens, seconds = seconds, rate = rate, remaining = rate > 0 and (#self.list - self.settled) / rate or nil }
end

-- Writes what is settled and has nothing unsettled before it. A prompt's lines go out before the journal says that it is done.
local function write_ready(self)
  while self.ready[self.done + 1] do
    local made = self.ready[self.done + 1]
    self.ready[self.done + 1] = nil
    self.done = self.done + 1
    self.kept = self.kept + #made.lines
    local ok, why = self.file:write(table.concat(made.lines))
    if ok then ok, why = self.file:flush() end
    if ok then ok, why = self.journal:write(json.encode { prompt = self.done, kept = #made.lines }, "\n") end
    if ok then ok, why = self.journal:flush() end
    if not ok then return fault.give("io", ("%s cannot be written: %s"):format(self.path, tostring(why))) end
  end
  return true
end

-- What is settled before its turn goes to the journal: one slow prompt is no reason to lose those behind it.
local function write_ahead(self, index)
  local made = self.ready[index]
  if not made or made.noted then return true end
  local ok, why = self.journal:write(json.encode { prompt = index, lines = json.array(made.lines) }, "\n")
  if ok then ok, why = self.journal:flush() end
  if not ok then return fault.give("io", ("%s cannot be written: %s"):format(self.journal_path, tostring(why))) end
  made.noted = true
  return true
end

-- Called as each prompt is over. One that failed ends the run: the next one goes on from there.
local function on_done(self, index, r, work)
  if r.value then
    self.tokens = self.tokens + r.value.tokens
    self.ready[index] = r.value
    r.value = true
  else
    self.failed[#self.failed + 1] = { index = index, err = r.err }
  end
  self.settled = self.settled + (r.value and 1 or 0)
  local ok, err = write_ready(self)
  if ok then ok, err = write_ahead(self, index) end
  if not ok then self.err = self.err or err end
  local go_on = self.err == nil and not self.failed[1]
  if self.o.progress and self.o.progress(state_of(self)) == false then
    go_on, self.stopped = false, true
  end
  if not go_on then work:cancel() end
end

local function run(self)
  local jobs, places = {}, {}
  for i = self.done + 1, #self.list do
    if not self.ready[i] then
      places[#places + 1] = i
      jobs[#places] = function() return settle(self, i, self.list[i]) end
    end
  end
  self.settled, self.began = self.resumed, now_ms()
  local ok, err = write_ready(self)                  -- a kill between the two files may have left them in front
  if not ok then self.err, jobs = err, {} end
  crew.run(self.o.backend, jobs, { width = self.o.width, on_done = function(k, r, work)
    if not work.cancelled then on_done(self, places[k], r, work) end
  end })
  self.file:close()
  self.journal:close()
  if self.err then return nil, self.err end
  local state = state_of(self)
  state.path, state.finish, state.remaining = self.path, self.stopped and "cancelled" or "stop", nil
  local failure = self.failed[1]
  if failure and type(failure.err) == "string" then options.raise(failure.err) end
  if failure then return nil, failure.err end
  return state
end

-- Prompts of a list or an iterator as cases.
local function as_cases(given)
  if type(given) == "string" then return given end
  local out = {}
  local function add(p)
    if type(p) ~= "string" and type(p) ~= "table" then
      options.raise(("fathom.reject: prompt %d must be a text or a table, got a %s"):format(#out + 1, type(p)))
    end
    out[#out + 1] = (type(p) == "string" or p[1] ~= nil) and { prompt = p } or p
  end
  if type(given) == "function" then
    for p in given do add(p) end
  else
    for _, p in ipairs(given) do add(p) end
  end
  return out
end

--- Samples prompts and keeps what a reward likes, as JSON lines with where each came from. May be stopped or killed at any moment
-- and called again.
-- @param opts table  backend; prompts (a list or an iterator of texts, messages or { prompt | messages | question =, reference |
--   answer =, id =, ... }, or a file of JSON lines); path; reward = function(sample) -> number; n (8) samples a prompt; keep (1: the
--   least reward, or function(sample, reward)); most: keep no more of a prompt; width (8): prompts at once; seed (0); fields: of the
--   prompts, to be copied into the lines; progress = function(state), where state has done, total, kept, resumed, rate (prompts a second),
--   remaining (seconds), tokens, and which stops the work by returning false; and options of the generation
-- @return { done, total, kept, resumed, samples, tokens, seconds, rate, path, finish = "stop" or "cancelled" }, or nil, err
--   (what was settled before stays in the file, and the same call goes on from there)
-- @usage fathom.reject { backend = model, prompts = "questions.jsonl", path = "good.jsonl", n = 8, reward = fathom.reward.accuracy }
function reject.run(opts)
  if type(opts) == "table" and getmetatable(opts) then
    options.raise "fathom.reject takes one table: fathom.reject { backend = model, prompts =, path =, reward = }"
  end
  local own, generation = select.split("fathom.reject", opts, known)
  for _, name in ipairs { "backend", "prompts", "path", "reward" } do
    if own[name] == nil then options.raise(("fathom.reject: option '%s' is missing"):format(name)) end
  end
  backend.check("fathom.reject", own.backend)
  own.n, own.seed, own.width = math.tointeger(own.n or 8), math.tointeger(own.seed or 0), own.width or 8
  local list, err = cases.read(as_cases(own.prompts))
  if not list then return nil, err end
  for i, case in ipairs(list) do
    if not cases.messages(case) then return fault.give("format", ("prompt %d has neither prompt, messages nor question"):format(i)) end
  end
  local self = { o = own, generation = generation, list = list, path = own.path, journal_path = own.path .. ".journal", ready = {},
                 failed = {}, tokens = 0, settings = settings_of(own, generation, list) }
  local ok
  ok, err = look_back(self)
  if not ok then return nil, err end
  return run(self)
end

return reject

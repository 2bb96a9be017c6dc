--- load.lua - from a folder to a model: options of loading, the plan of what it will cost, the loading itself.

local engine = require "fathom.engine"
local fault = require "fathom.fault"
local model = require "fathom.model"
local options = require "fathom.options"
local sampling = require "fathom.sampling"

local load = {}
local is = options.is

local known = {
  device = is.one_of(is.string, is.table), parallel = is.one_of(is.word "auto", is.table),
  dtype = is.word("auto", "f32", "bf16", "fp8"), cache_dtype = is.word("auto", "bf16", "fp8", "f32"),
  experts = is.word("auto", "host"),
  ctx = is.count(1), seqs = is.count(1, 65536), threads = is.count(1, 1024), verify = is.boolean, debug = is.boolean,
  deterministic = is.boolean, cpus = is.string,
  mtp = is.one_of(is.boolean, is.count(0), is.word "auto"), progress = is.callable,
  chunk = is.count(1), budget = is.count(1), cache_bytes = is.count(1), prefix_cache = is.one_of(is.boolean, is.count(0)),
}

local parallel_known = { tp = is.count(1, 320), dp = is.count(1, 320), pp = is.count(1, 320), ep = is.count(1, 320) }

local plan_known = sampling.merge({}, known)
plan_known.progress, plan_known.verify, plan_known.debug = nil, nil, nil

-- ---- devices ---------------------------------------------------------------------------------------------

local card_known = { name = is.string, memory = is.count(1) }

-- One device as the core takes it, or nil, err: its name, or name and bytes of a card that is only described.
local function name_of(what, device)
  if type(device) == "table" then
    local card = options.check(what .. ": device", device, card_known)
    if not card.memory then options.raise(what .. ": a device that is only described needs a name and its memory in bytes") end
    return ("%s=%d"):format((card.name or "card"):gsub("[,=]", " "), math.tointeger(card.memory))
  end
  if device:find "^%l+$" or device:find "^%l+:%d+$" then return device end   -- its library says more
  return fault.give("device", ("no device is called '%s'"):format(device), 'device is "auto", "cpu", "cuda" or "cuda:0"')
end

-- Names with commas between, as the core takes them, or nil, err.
local function device_of(what, device)
  if device == nil then return "auto" end
  if type(device) ~= "table" then return name_of(what, device) end
  if #device == 0 and next(device) == nil then options.raise(what .. ": option 'device' is an empty list") end
  local names = {}
  for i, one in ipairs(device) do
    if type(one) ~= "string" and type(one) ~= "table" then
      options.raise(("%s: device[%d] must be a name or a table, got %s"):format(what, i, type(one)))
    end
    local name, err = name_of(what, one)
    if not name then return nil, err end
    names[i] = name
  end
  if #names == 0 then return name_of(what, device) end
  return table.concat(names, ",")
end

-- Bytes that common prefixes may keep; -1: whatever is free.
local function prefix_bytes(value)
  if value == nil or value == true then return -1 end
  return value == false and 0 or math.tointeger(value)
end

local function core_options(what, o)
  local device, err = device_of(what, o.device)
  if not device then return nil, err end
  local forms = type(o.parallel) == "table" and options.check(what .. ": parallel", o.parallel, parallel_known) or {}
  return { device = device, tp = math.tointeger(forms.tp), dp = math.tointeger(forms.dp), pp = math.tointeger(forms.pp),
           ep = math.tointeger(forms.ep), dtype = o.dtype, cache_dtype = o.cache_dtype, experts = o.experts, ctx = math.tointeger(o.ctx),
           seqs = math.tointeger(o.seqs), threads = math.tointeger(o.threads), cpus = o.cpus, verify = o.verify, debug = o.debug,
           deterministic = o.deterministic ~= false, mtp = sampling.drafts(o.mtp),
           chunk = math.tointeger(o.chunk), budget = math.tointeger(o.budget),
           cache_bytes = math.tointeger(o.cache_bytes), prefix_bytes = prefix_bytes(o.prefix_cache) }
end

--- The devices of this machine.
-- @return list of { name =, ... }, and why there is no CUDA device
function load.devices() return require("fathom.core").devices() end

--- Which of several processes that work together this one is: by FATHOM_RANK, FATHOM_WORLD and FATHOM_ADDR ("host:port"), or what srun,
-- mpirun or torchrun have set. All run the same script; `fathom.load` makes a rank of each, unless `device` is a list.
-- @return rank (from 0), how many there are; 0, 1 alone; or nil, err where what is set makes no sense
function load.processes() return fault.guard(require("fathom.core").seat) end

-- ---- plan ------------------------------------------------------------------------------------------------

local function bytes(n)
  if n >= 1 << 30 then return ("%.2f GiB"):format(n / (1 << 30)) end
  if n >= 1 << 20 then return ("%.1f MiB"):format(n / (1 << 20)) end
  return ("%.1f KiB"):format(n / 1024)
end

local function count(n)
  if n >= 1e9 then return ("%.2f billion"):format(n / 1e9) end
  if n >= 1e6 then return ("%.2f million"):format(n / 1e6) end
  return ("%d"):format(n)
end

local plan_methods = {}

--- The plan as a table for people to read.
-- @return string of several lines
function plan_methods:report()
  local lines = {}
  local function line(name, value) lines[#lines + 1] = ("  %-12s %16s"):format(name, value) end
  lines[1] = self.dir
  line("parameters", count(self.parameters))
  for _, d in ipairs(self.devices) do
    lines[#lines + 1] = ("on %s"):format(d.name)
    line("weights", bytes(d.weights))
    line("cache", bytes(d.cache))
    line("scratch", bytes(d.scratch))
    line("in all", bytes(d.weights + d.cache + d.scratch))
    line("there is", bytes(d.memory))
  end
  for i, f in ipairs(self.forms) do
    if i == 1 then lines[#lines + 1] = "ways to share the work, and an estimate of a step of all sequences" end
    lines[#lines + 1] = ("  pp %-2d dp %-2d tp %-2d ep %-3d  weights %10s a device  reads %8.2f ms  talks %7.2f ms%s"):format(
      f.pp, f.dp, f.tp, f.ep, bytes(f.weights), f.read_ms, f.link_ms, f.fits and "" or "  does not fit")
  end
  lines[#lines + 1] = ("%d sequences of %d tokens; the largest ctx that fits with these is %d")
                      :format(self.seqs, self.ctx, self.max_ctx)
  return table.concat(lines, "\n")
end

local plan_mt = { __index = plan_methods, __name = "fathom.plan",
                  __tostring = function(p) return ("fathom plan (%s)"):format(p.dir) end }

--- What a checkpoint will take in memory. Reads headers only.
-- @param dir string
-- @param opts table|nil  device parallel dtype cache_dtype experts ctx seqs threads mtp
--   a device may be { name =, memory = bytes }, a card that is not here
-- @return plan { parameters, weights, cache, scratch (bytes), devices, ctx, seqs, max_ctx, memory, forms }, or nil, err
--   forms: the ways for several devices to share the work, the cheapest first: { pp, dp, tp, ep, weights (bytes of the device
--   that holds most), read_ms, link_ms (of a step), fits }
-- @usage print(assert(fathom.plan(dir, { seqs = 8 })):report())
function load.plan(dir, opts)
  options.argument("fathom.plan", "dir", dir, is.path)
  local o = options.check("fathom.plan", opts, plan_known)
  local core_opts, err = core_options("fathom.plan", o)
  if not core_opts then return nil, err end
  local core = require "fathom.core"
  local plan
  plan, err = fault.guard(core.plan, dir, core_opts)
  if not plan then return nil, err end
  plan.dir = dir
  if plan.host_weights > 0 then
    plan.devices[2] = { name = "cpu", weights = plan.host_weights, cache = 0, scratch = 0, memory = plan.host_memory,
                        free = plan.host_free }
  end
  plan.host_weights, plan.host_memory, plan.host_free = nil, nil, nil
  return setmetatable(plan, plan_mt)
end

-- ---- load ------------------------------------------------------------------------------------------------

-- Steps to the end; false, err when something or somebody stopped it.
local function run(loader, progress)
  repeat
    local done, total = fault.guard(loader.step, loader)
    if not done then return false, total end
    if progress and progress(done, total) == false then
      return false, fault.new("cancelled", "loading was stopped by its progress function")
    end
  until done >= total
  return true
end

--- Loads a model.
-- @param dir string      a folder with config.json, safetensors and (mostly) tokenizer.json
-- @param opts table|nil  device dtype cache_dtype experts ("host": routed experts stay in host memory and are
--   computed there, the rest on the device) ctx seqs threads mtp verify parallel deterministic;
--   cpus (where its threads may run, "0-3,8"; the thread that calls is yours to place);
--   debug (the first operation that makes a NaN fails by name; slow); progress(done_bytes, total_bytes), which returns
--   false to stop; prefix_cache (true, false, or bytes that common
--   prefixes may keep), cache_bytes (of the whole cache; default seqs * ctx tokens), chunk and budget (tokens of a pass of
--   prompts: of one of them, of all)
-- @return model, or nil, err
-- @usage local model = assert(fathom.load(fathom.pocket))
function load.load(dir, opts)
  options.argument("fathom.load", "dir", dir, is.path)
  local o = options.check("fathom.load", opts, known)
  local core_opts, err = core_options("fathom.load", o)
  if not core_opts then return nil, err end
  local core = require "fathom.core"
  local opened
  opened, err = fault.guard(core.loader, dir, core_opts)
  if not opened then return nil, err end
  local loader <close> = opened
  local ok
  ok, err = run(loader, o.progress)
  if not ok then return nil, err end
  local loaded
  loaded, err = fault.guard(loader.finish, loader)
  if not loaded then return nil, err end
  local seeds = loaded:seeds()
  if seeds then sampling.follow(seeds) end
  return model.new(engine.new(loaded, dir))
end

--- Takes over a model that another Lua state of this process offers with model:share(): the same weights and cache, loaded
-- once. States that share a model are run by one thread at a time, closing and collecting garbage included.
-- @param number integer  what model:share() gave; good for one adoption
-- @return model, or nil, err
-- @usage local model = assert(fathom.adopt(number))
function load.adopt(number)
  options.argument("fathom.adopt", "number", number, is.integer)
  local core, err = fault.guard(require("fathom.core").adopt, math.tointeger(number))
  if not core then return nil, err end
  return model.new(engine.new(core, core:dir(), core:seqs()))
end

return load

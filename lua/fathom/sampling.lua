--- sampling.lua - the options of a generation: their names, checks and defaults.
--
-- Defaults: temperature and top_p (and top_k) are those of generation_config.json where it says do_sample, else 0.6
-- and 0.95. max_tokens is 1,024 or what the context has left. The seed is drawn. MTP drafts are used where
-- the checkpoint has them; they never change what is sampled.

local json = require "fathom.json"
local options = require "fathom.options"
local schema = require "fathom.schema"

local sampling = {}
local is = options.is

local MAX_TOKENS = 1024
local MAX_DRAFTS = 7   -- the engine verifies no more rows together
local MAX_PRIORITY = 8
local MOST = (1 << 31) - 1   -- counts above this are as good as none
local MTP_AS_LOADED, MTP_AUTO = -1, -2   -- the core's words

local function share(v) return type(v) == "number" and v > 0 and v <= 1, "a number above 0 and up to 1" end
local function part(v) return type(v) == "number" and v >= 0 and v <= 1, "a number from 0 to 1" end

-- The sampler counts in single precision: what is finite and above zero there.
local function single(v) return type(v) == "number" and string.unpack("f", string.pack("f", v)) or 0 / 0 end
local function finite(v) return math.abs(single(v)) < math.huge, "a finite number" end
local function above_zero(v) return single(v) > 0 and single(v) < math.huge, "a number above 0" end
local function not_negative(v) return single(v) >= 0 and single(v) < math.huge, "a number of 0 or more" end

local function stops(v)
  local ok = type(v) == "string" and v ~= ""
  if type(v) == "table" then
    ok = true
    for _, s in ipairs(v) do ok = ok and type(s) == "string" and s ~= "" end
  end
  return ok, "a string or a list of strings, none of them empty"
end

local function biases(v)
  local ok = type(v) == "table"
  for id, bias in pairs(ok and v or {}) do
    ok = ok and math.type(id) == "integer" and single(bias) < math.huge
  end
  return ok, "a table from token ids to numbers (minus infinity bans an id)"
end

local function ids(v)
  local ok = type(v) == "table"
  for _, id in ipairs(ok and v or {}) do ok = ok and is.integer(id) end
  return ok, "a list of token ids"
end

local function logprobs(v)
  return type(v) == "boolean" or is.count(0)(v), "true, false or how many alternatives to give"
end

local function priority(v)
  return is.integer(v) and v >= -MAX_PRIORITY and v <= MAX_PRIORITY, ("an integer from -%d to %d"):format(MAX_PRIORITY, MAX_PRIORITY)
end

--- Lays options over defaults over more defaults.
function sampling.merge(...)
  local out = {}
  for i = select("#", ...), 1, -1 do
    for k, v in pairs((select(i, ...))) do out[k] = v end
  end
  return out
end

--- What goes to the sampler, name -> check.
sampling.known = {
  max_tokens = is.count(0), temperature = not_negative, top_k = is.count(0), top_p = share, min_p = part,
  repeat_penalty = above_zero, presence_penalty = finite, frequency_penalty = finite, logit_bias = biases,
  seed = is.integer, n = is.count(1, 65536), stop = stops, stop_ids = ids, logprobs = logprobs, schema = schema.check,
  grammar = is.string,
  tools = is.table, think = is.boolean, ignore_eos = is.boolean, template = is.string,
  mtp = is.one_of(is.boolean, is.count(0), is.word "auto"), priority = priority,
  overflow = is.one_of(is.word("error", "shift"), is.callable), keep = is.count(0),
}

--- What one turn or stream takes: all but n.
sampling.turn = sampling.merge({}, sampling.known)
sampling.turn.n = nil

--- What a conversation takes: its beginning, and defaults for every turn.
sampling.session = sampling.merge({ system = is.string, messages = is.table }, sampling.turn)

--- Defaults of a model, from its generation_config.json.
function sampling.defaults(generation_config)
  local g = generation_config or {}
  local samples = g.do_sample == true
  return { max_tokens = MAX_TOKENS, temperature = samples and tonumber(g.temperature) or 0.6,
           top_p = samples and tonumber(g.top_p) or 0.95, top_k = samples and math.tointeger(tonumber(g.top_k)) or nil }
end

local base, drawn = nil, 0

--- From now on seeds that are drawn follow from this number: processes that share it draw the same ones.
-- @param seeds integer
function sampling.follow(seeds) base, drawn = seeds, 0 end

--- A fresh seed, 53 bits so that it survives any JSON reader.
function sampling.draw_seed()
  if base then
    drawn = drawn + 1
    return (base + drawn * 0x9E3779B97F4A7C15) >> 11
  end
  local f = io.open("/dev/urandom", "rb")
  local bytes = f and f:read(8)
  if f then f:close() end
  if bytes and #bytes == 8 then return string.unpack("<I8", bytes) >> 11 end
  local address = tonumber(tostring({}):match("0x(%x+)") or "0", 16)
  return (os.time() * 1000003 + math.floor(os.clock() * 1e6) * 7919 + address) & ((1 << 53) - 1)
end

--- logit_bias as pairs that JSON can hold, by id; and back.
function sampling.bias_pairs(map)
  local out = {}
  for id, bias in pairs(map) do out[#out + 1] = { id, bias == -math.huge and "-inf" or bias } end
  table.sort(out, function(a, b) return a[1] < b[1] end)
  return json.array(out)
end

function sampling.bias_map(list)
  local map = {}
  for _, pair in ipairs(list) do map[pair[1]] = pair[2] == "-inf" and -math.huge or pair[2] end
  return map
end

--- true, false, "auto" or a number as the core says it.
function sampling.drafts(mtp)
  if mtp == nil or mtp == true then return MTP_AS_LOADED end
  if mtp == "auto" then return MTP_AUTO end
  if mtp == false then return 0 end
  return math.min(math.tointeger(mtp), MAX_DRAFTS)
end

--- The core's options for one sample.
-- @param o table       checked options with defaults
-- @param sample number which of n samples
-- @param after number  the id behind which a document begins; nil: at once
function sampling.core(o, sample, after)
  local top = o.logprobs
  if top == true then top = 0 end
  local stop = o.stop
  if type(stop) == "string" then stop = { stop } end
  return {
    max_tokens = math.min(math.tointeger(o.max_tokens), MOST), temperature = o.temperature + 0.0,
    top_k = o.top_k and math.min(math.tointeger(o.top_k), MOST),
    top_p = o.top_p, min_p = o.min_p, repeat_penalty = o.repeat_penalty, presence_penalty = o.presence_penalty,
    frequency_penalty = o.frequency_penalty, logit_bias = o.logit_bias, seed = math.tointeger(o.seed),
    sample = sample or 0, stop = stop, stop_ids = o.stop_ids, logprobs = top and math.tointeger(top) or nil,
    mtp = sampling.drafts(o.mtp), priority = o.priority and math.tointeger(o.priority), ignore_eos = o.ignore_eos or false,
    grammar = o.grammar, schema = o.schema and schema.text(o.schema), grammar_after = after,
    shift = o.overflow == "shift", keep = o.keep and math.min(math.tointeger(o.keep), MOST),
  }
end

return sampling

--- serve/fields.lua - the fields of a request's body: checked one by one, and turned into options of the library.
-- A check is function(value, name) -> what it means; it raises a refusal that names the field.

local json = require "fathom.json"
local options = require "fathom.options"
local wire = require "fathom.serve.wire"

local fields = {}
local check = {}
fields.check = check

-- ---- checks -----------------------------------------------------------------------------------------------------

local function wrong(name, want, value)
  local got = type(value) == "table" and (getmetatable(value) or {}).__jsontype or type(value)
  if type(value) == "number" or type(value) == "boolean" or value == json.null then got = tostring(value) end
  if type(value) == "string" and #value <= 40 then got = json.encode(value) end
  if value == nil then got = "nothing" end
  wire.refuse(400, ("%s must be %s, got %s"):format(name, want, got), name, "invalid_value")
end
fields.wrong = wrong

function check.any(v) return v end

function check.string(v, name)
  if type(v) ~= "string" then wrong(name, "a string", v) end
  return v
end

function check.boolean(v, name)
  if type(v) ~= "boolean" then wrong(name, "true or false", v) end
  return v
end

function check.object(v, name)
  if type(v) ~= "table" or v == json.null or (getmetatable(v) or {}).__jsontype ~= "object" then wrong(name, "an object", v) end
  return v
end

function check.list(v, name, want)
  if type(v) ~= "table" or v == json.null or (getmetatable(v) or {}).__jsontype ~= "array" then wrong(name, want or "a list", v) end
  return v
end

--- A number from least to most; beyond: least itself is not allowed.
function check.number(least, most, beyond)
  local want = ("a number from %g to %g"):format(least, most)
  if most == math.huge then want = ("a number of %g or more"):format(least) end
  if beyond then want = ("a number above %g"):format(least) .. (most < math.huge and (" and up to %g"):format(most) or "") end
  return function(v, name)
    if type(v) ~= "number" or v ~= v or v < least or v > most or v == math.huge or beyond and v == least then wrong(name, want, v) end
    return v
  end
end

function check.integer(least, most)
  local want = most and ("an integer from %d to %d"):format(least, most) or ("an integer of %d or more"):format(least)
  return function(v, name)
    local n = type(v) == "number" and math.tointeger(v)
    if not n or n < least or most and n > most then wrong(name, want, v) end
    return n
  end
end

--- One of some words; those that map to a string are known and not done, and the string says why.
function check.word(words)
  return function(v, name)
    if type(v) ~= "string" or words[v] == nil then
      local names = {}
      for word in pairs(words) do names[#names + 1] = '"' .. word .. '"' end
      table.sort(names)
      wrong(name, table.concat(names, " or "), v)
    end
    return words[v]
  end
end

--- What is known and not supported: null and the values listed here are fine.
function check.refused(why, ...)
  local fine = { ... }
  return function(v, name)
    for _, other in ipairs(fine) do
      if v == other then return nil end
    end
    wire.refuse(400, ("%s is not supported: %s"):format(name, why), name, "unsupported_parameter")
  end
end

--- What changes nothing here.
function check.ignored() return nil end

-- ---- bodies -----------------------------------------------------------------------------------------------------

--- Reads the fields of a body; null is the same as not there.
-- @param body table   a decoded JSON object
-- @param known table  name -> check
-- @param within string|nil  name of the object that body is, for messages
-- @return table of what the checks gave
function fields.read(body, known, within)
  local out = {}
  for name, value in pairs(body) do
    local full = within and within .. "." .. name or name
    local f = known[name]
    if not f then
      local names = {}
      for other in pairs(known) do names[#names + 1] = other end
      local near = options.nearest(name, names)
      wire.refuse(400, ("unknown field %s%s"):format(full, near and (" (did you mean %s?)"):format(near) or ""), full, "unknown_parameter")
    end
    if value ~= json.null then out[name] = f(value, full) end
  end
  return out
end

-- ---- fields of sampling -----------------------------------------------------------------------------------------

local function stops(v, name)
  if type(v) == "string" then v = { v } else check.list(v, name, "a string or a list of strings") end
  if #v > 16 then wrong(name, "at most 16 strings", v) end
  for i, s in ipairs(v) do
    if type(s) ~= "string" or s == "" then wrong(("%s[%d]"):format(name, i - 1), "a string that is not empty", s) end
  end
  return #v > 0 and table.move(v, 1, #v, 1, {}) or nil
end

local function biases(v, name)
  local out = {}
  for key, bias in pairs(check.object(v, name)) do
    local id = math.tointeger(tonumber(key))
    if not id or id < 0 then wrong(name, "an object of token ids and numbers", v) end
    out[id] = check.number(-100, 100)(bias, name .. "." .. key)
  end
  return next(out) and out or nil
end

local function ids(v, name)
  for i, id in ipairs(check.list(v, name)) do check.integer(0)(id, ("%s[%d]"):format(name, i - 1)) end
  return table.move(v, 1, #v, 1, {})
end
fields.ids = ids

--- Refuses token ids that the model does not have.
-- @param name string  of the field that they stand in
function fields.check_ids(server, list, name)
  local size = server.model.engine.core:vocab_size()
  for i, id in ipairs(list) do
    if id >= size then wrong(("%s[%d]"):format(name, i - 1), ("a token id below %d"):format(size), id) end
  end
end

local penalty = check.number(-2, 2)

--- Fields that chats and completions share. The library's own names are taken as well as OpenAI's.
fields.sampling = {
  model = check.string, stream = check.boolean, n = check.integer(1), seed = check.integer(math.mininteger, math.maxinteger),
  max_tokens = check.integer(0), max_completion_tokens = check.integer(0),
  temperature = check.number(0, math.huge), top_p = check.number(0, 1, true), top_k = check.integer(0), min_p = check.number(0, 1),
  presence_penalty = penalty, frequency_penalty = penalty, repeat_penalty = check.number(0, math.huge, true),
  repetition_penalty = check.number(0, math.huge, true), logit_bias = biases, stop = stops, stop_ids = ids, stop_token_ids = ids,
  ignore_eos = check.boolean, grammar = check.string, priority = check.integer(-8, 8), mtp = check.boolean,
  stream_options = function(v, name)
    return fields.read(check.object(v, name), { include_usage = check.boolean, include_obfuscation = check.ignored }, name)
  end,
  user = check.string, metadata = check.ignored, store = check.refused("nothing is kept", false), service_tier = check.ignored,
  safety_identifier = check.ignored, prompt_cache_key = check.ignored, prompt_cache_retention = check.ignored,
}

local same_names = { "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
                     "logit_bias", "stop", "stop_ids", "ignore_eos", "grammar", "priority", "mtp", "seed" }

--- Options of a generation from fields that were read.
-- @param usual integer|nil  max_tokens where the request says nothing
function fields.options(server, f, usual)
  local o = {}
  for _, name in ipairs(same_names) do o[name] = f[name] end
  o.repeat_penalty = o.repeat_penalty or f.repetition_penalty
  o.stop_ids = o.stop_ids or f.stop_token_ids
  local most, size = server.limits.max_tokens, server.model.engine.core:vocab_size()
  for id in pairs(o.logit_bias or {}) do
    if id >= size then wrong("logit_bias", ("token ids below %d"):format(size), id) end
  end
  o.max_tokens = f.max_completion_tokens or f.max_tokens or usual
  if most and (o.max_tokens or math.huge) > most then
    if o.max_tokens then wire.refuse(400, ("max_tokens is %d, this server gives %d at most"):format(o.max_tokens, most), "max_tokens") end
    o.max_tokens = most
  end
  if (f.n or 1) > server.limits.n then
    wire.refuse(400, ("n is %d, this server gives %d at most"):format(f.n, server.limits.n), "n")
  end
  if f.stream_options and not f.stream then
    wire.refuse(400, "stream_options goes with stream", "stream_options")
  end
  return o
end

--- The model that is asked for must be the one there is.
function fields.check_model(server, name)
  if name == nil or name == server.name then return end
  wire.refuse(404, ("the model '%s' does not exist; this server has '%s'"):format(name, server.name), "model", "model_not_found")
end

return fields

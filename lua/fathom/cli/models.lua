--- cli/models.lua - what commands have in common: options, the library, a model.

local terminal = require "fathom.cli.terminal"
local words = require "fathom.cli.words"

local models = {}

-- option -> { library's name, kind, argument's name, text }
models.load_options = {
  { "ctx", "integer", "N", "tokens a sequence" },
  { "seqs", "integer", "N", "sequences at once" },
  { "threads", "integer", "N", "worker threads (one per core)" },
  { "device", "devices", "NAME", "auto, cpu, cuda:1; several with commas between: one rank each" },
  { "parallel", "forms", "FORMS", "how several devices share the work: auto, or tp=2,dp=2 (tp, dp, pp, ep)" },
  { "dtype", "string", "NAME", "arithmetic: auto, f32, bf16, fp8" },
  { "cache-dtype", "string", "NAME", "auto, f32, bf16, fp8" },
  { "experts", "string", "WHERE", "auto, or host: computed there when the device is too small" },
  { "mtp", "drafts", "N", "drafts a step: a number, on, off or auto" },
}
models.sampling_options = {
  { "temperature", "number", "T", "0 is greedy" },
  { "top-p", "number", "P", "keep the likeliest tokens that sum to P" },
  { "top-k", "integer", "K", "keep the K likeliest" },
  { "min-p", "number", "P", "drop what is less likely than P times the best" },
  { "repeat-penalty", "number", "R", "1 is none" },
  { "max-tokens", "integer", "N", "at most N tokens in a reply" },
  { "seed", "integer", "N", "drawn and reported when absent" },
  { "stop", "list", "TEXT", "end at TEXT; may be given several times" },
  { "template", "string", "NAME", "chat template, if not the model's own" },
  { "no-think", "flag", nil, "ask for an answer without thoughts" },
}
models.system_option = { "system", "string", "TEXT", "system message" }
models.json_option = { "json", "flag", nil, "print JSON" }

--- Lists one behind the other.
function models.join(...)
  local out = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #out + 1, out) end
  return out
end

--- The library; the end of the process where it was not built.
function models.library()
  local ok, fathom = pcall(require, "fathom")
  if ok then ok, fathom = pcall(function() return require "fathom.core" and fathom end) end
  if not ok then terminal.failed("the C module is not built: run make\n" .. tostring(fathom)) end
  return fathom
end

--- The model that comes along.
function models.default_dir(fathom)
  return fathom.pocket or terminal.failed "no DIR was given, and the model that comes with fathom was not found"
end

--- The model of a folder, or the one that comes along, with the options that were given.
function models.load(dir, given)
  local fathom = models.library()
  local o = words.pick(given, models.load_options)
  o.progress = terminal.progress()
  return terminal.must(fathom.load(dir or models.default_dir(fathom), o))
end

--- Options of a generation.
function models.sampling(given)
  local o = words.pick(given, models.sampling_options)
  if given["no-think"] then o.think = false end
  return o
end

return models

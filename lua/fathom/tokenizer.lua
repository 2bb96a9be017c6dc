--- tokenizer.lua - a tokenizer without its model.

local fault = require "fathom.fault"
local options = require "fathom.options"

local tokenizer = {}
local methods = {}
local is = options.is

local mt

local function core_of(self)
  options.self("tokenizer", self, mt)
  if not self.core then options.raise "attempt to use a closed tokenizer" end
  return self.core
end

--- Text to ids, without BOS.
-- @param text string
-- @param opts table|nil  special (false): words of control tokens become those tokens
-- @return ids
function methods:encode(text, opts)
  local core = core_of(self)
  options.argument("tokenizer:encode", "text", text, is.string)
  local o = options.check("tokenizer:encode", opts, { special = is.boolean })
  return fault.guard(core.encode, core, text, o.special or false)
end

--- Ids to text: exact bytes.
function methods:decode(ids)
  local core = core_of(self)
  options.argument("tokenizer:decode", "ids", ids, is.table)
  options.ids("tokenizer:decode", ids, core:size())
  return fault.guard(core.decode, core, ids)
end

--- How many tokens a text has.
function methods:count(text)
  local ids, err = self:encode(text)
  if not ids then return nil, err end
  return #ids
end

--- One more than the largest id.
function methods:size()
  local core = core_of(self)
  return core:size()
end

--- Id of a control or added token by its exact text, or nil.
function methods:added(text)
  local core = core_of(self)
  options.argument("tokenizer:added", "text", text, is.string)
  return core:added(text)
end

--- Frees it. May be called twice.
function methods:close()
  if self.core then self.core:close() end
  self.core = nil
end

mt = {
  __name = "fathom.tokenizer", __index = methods, __close = methods.close, __gc = methods.close,
  __tostring = function(self)
    return self.core and ("fathom tokenizer (%d tokens)"):format(self.core:size()) or "fathom tokenizer (closed)"
  end,
}

--- Opens a tokenizer.json, or the folder that holds one.
-- @return tokenizer, or nil, err
function tokenizer.open(path)
  options.argument("fathom.tokenizer", "path", path, is.path)
  local core, err = fault.guard(require("fathom.core").tokenizer, path)
  if not core then return nil, err end
  return setmetatable({ core = core }, mt)
end

return tokenizer

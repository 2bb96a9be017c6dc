--- choices.lua - multiple choice: how likely given replies to a turn are (session:score).

local fault = require "fathom.fault"
local options = require "fathom.options"
local probe = require "fathom.probe"
local sampling = require "fathom.sampling"

local choices = {}
local is = options.is

local known = { ending = is.boolean, think = is.boolean, template = is.string, tools = is.table,
                priority = sampling.known.priority }

-- Ids of the replies to be scored, with the id that ends a reply.
local function reply_ids(self, replies, ending)
  local out = {}
  for i, reply in ipairs(replies) do
    local ids
    if type(reply) == "string" then
      local err
      ids, err = fault.guard(self.engine.core.encode, self.engine.core, reply, false)
      if not ids then return nil, err end
    elseif type(reply) == "table" then
      self.engine:check_ids("session:score", reply)
      ids = table.move(reply, 1, #reply, 1, {})
    else
      options.raise(("session:score: replies[%d] must be a text or a list of ids"):format(i))
    end
    if ending then ids[#ids + 1] = self.engine.core:eos()[1] end
    if #ids == 0 then options.raise(("session:score: replies[%d] is empty"):format(i)) end
    out[i] = ids
  end
  return out
end

--- How likely given replies are: multiple choice by the model's own probabilities. The prompt is read once; the replies are
-- read side by side, in the batch of whatever else runs. The session's messages stay as they are.
-- @param self session      read(self, what, turn, options) -> a task that only reads
-- @param turn string|table  as for ask
-- @param replies list       texts (control words in them stay plain text) or lists of ids
-- @param opts table|nil     ending (true): with the token that ends a reply, so that "1" is another event than the beginning of "10";
--   think (false for a model whose template opens thoughts: the replies stand where its own would), template, tools, priority
-- @return { { text =, logprob = sum, p = share among the replies, tokens = { { id =, logprob = }, ... } }, ... }, or nil, err
-- @usage local r = session:score("Is 7 a prime number?", { "Yes.", "No." }, { think = false })
function choices.score(self, read, turn, replies, opts)
  local o = options.check("session:score", opts, known)
  local ending = o.ending ~= false
  o.ending = nil
  options.argument("session:score", "replies", replies, is.table)
  local lists, err = reply_ids(self, replies, ending)
  if not lists then return nil, err end
  if #lists == 0 then return {} end
  local first = read(self, "session:score", turn, o)
  local result
  result, err = first:wait()
  if not result then return nil, err end
  if result.finish == "cancelled" then return fault.give("cancelled", "the prompt was not read to its end") end
  local probes
  probes, err = probe.start(self, first.prompt, lists, nil, o.priority):wait()
  if err then return nil, err end
  return probe.shares(probes, replies)
end

return choices

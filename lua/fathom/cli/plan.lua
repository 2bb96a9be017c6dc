--- cli/plan.lua - what a model will take.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"
local words = require "fathom.cli.words"
local json = require "fathom.json"

local command = {
  usage = "plan [DIR]",
  text = "what a model will take in memory; reads headers only",
  options = models.join(models.load_options, { models.json_option }),
}

function command.run(positional, given)
  if #positional > 1 then terminal.wrong "plan takes one DIR" end
  local fathom = models.library()
  local plan = terminal.must(fathom.plan(positional[1] or models.default_dir(fathom), words.pick(given, models.load_options)))
  if given.json then print(json.encode(plan)) else print(plan:report()) end
end

return command

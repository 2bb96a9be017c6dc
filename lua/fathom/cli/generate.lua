--- cli/generate.lua - one reply to one prompt.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"
local json = require "fathom.json"

local command = {
  usage = "generate [DIR] PROMPT",
  text = "answer one prompt (from stdin when it is absent)",
  options = models.join(models.load_options, models.sampling_options, {
    models.system_option,
    { "raw", "flag", nil, "continue the text as it is, without a chat template" },
    models.json_option,
  }),
}

local function is_checkpoint(dir)
  local f = io.open(dir .. "/config.json", "rb")
  if f then f:close() end
  return f ~= nil
end

-- DIR PROMPT, PROMPT, DIR (prompt from stdin) or nothing
local function dir_and_prompt(positional)
  if #positional > 2 then terminal.wrong "generate takes a DIR and a PROMPT; put quotes around the prompt" end
  local dir, prompt = positional[1], positional[2]
  if #positional == 1 and not is_checkpoint(dir) then dir, prompt = nil, dir end
  if not prompt then prompt = io.read "a" end
  return dir, prompt
end

function command.run(positional, given)
  local dir, text = dir_and_prompt(positional)
  local o = models.sampling(given)
  local prompt = text
  if given.raw then
    if given.system or o.think ~= nil or o.template then terminal.wrong "--raw goes without --system, --no-think and --template" end
  else
    prompt = { { role = "user", content = text } }
    if given.system then table.insert(prompt, 1, { role = "system", content = given.system }) end
  end
  local model <close> = models.load(dir, given)
  if given.json then
    print(json.encode(terminal.must(model:generate(prompt, o))))
    return
  end
  local paint, unpaint = terminal.painter(terminal.is_one(1))
  local next_piece, _, _, guard = model:stream(prompt, o)
  terminal.must(next_piece, _)
  local stream <close> = guard
  for piece, info in next_piece do paint(piece, info.channel) end
  unpaint()
  print()
  return stream
end

return command

--- cli/chat.lua - a conversation.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"
local json = require "fathom.json"

local command = {
  usage = "chat [DIR]",
  text = "talk with a model; /reset starts anew, /quit ends",
  options = models.join(models.load_options, models.sampling_options, { models.system_option, models.json_option }),
}

function command.run(positional, given)
  if #positional > 1 then terminal.wrong "chat takes one DIR" end
  local model <close> = models.load(positional[1], given)
  local o = models.sampling(given)
  o.system = given.system
  local talking = terminal.is_one(0) and terminal.is_one(1)
  local paint, unpaint = terminal.painter(talking)
  local session = terminal.must(model:session(o))
  if talking then print(tostring(model) .. "; /reset starts anew, /quit ends") end
  while true do
    if talking then io.write "> " io.flush() end
    local line = io.read "l"
    if not line or line == "/quit" then break end
    if line == "/reset" then
      session:close()
      session = terminal.must(model:session(o))
    elseif line:match "%S" then
      local task = session:ask(line)
      if talking then
        for piece, info in task:pieces() do paint(piece, info.channel) end
        unpaint()
        print()
      else
        local result = terminal.must(task:wait())
        print(given.json and json.encode(result) or result.answer)
        io.flush()
      end
    end
  end
  session:close()
end

return command

--- cli/init.lua - the command: which ones there are, and which one is meant. Each stands in a file of its own as
-- { usage, text, options = { { name, kind, argument's name, text }, ... }, run = function(positional, given) }.

local models = require "fathom.cli.models"
local options = require "fathom.options"
local terminal = require "fathom.cli.terminal"
local words = require "fathom.cli.words"

local cli = {}

local order = { "chat", "generate", "serve", "eval", "plan", "bench", "help" }
local later = { train = true, convert = true }
local commands = { help = { usage = "help [COMMAND]", text = "this list, or the options of a command", options = {} } }
for _, name in ipairs(order) do commands[name] = commands[name] or require("fathom.cli." .. name) end

function commands.help.run(positional)
  local name = positional[1]
  local command = name and (commands[name] or terminal.wrong(("there is no command '%s'"):format(name)))
  if command then
    print("usage: fathom " .. command.usage .. (#command.options > 0 and " [options]" or ""))
    print(command.text .. (command.usage:find("DIR", 1, true) and "; without DIR the model that comes with fathom" or ""))
    for _, option in ipairs(command.options) do
      print(("  %-22s %s"):format("--" .. option[1] .. (option[3] and " " .. option[3] or ""), option[4]))
    end
    return
  end
  print "usage: fathom COMMAND [DIR] [options]"
  for _, other in ipairs(order) do print(("  %-24s %s"):format(commands[other].usage, commands[other].text)) end
  print "'fathom help COMMAND' lists options"
end

-- Where srun, mpirun or torchrun has started several of us, all do the work and the first one speaks.
local function share(name)
  local rank, world = models.library().processes()
  if not rank then terminal.failed(world) end
  if world == 1 or name == "plan" or name == "help" then return end
  if name ~= "generate" and name ~= "bench" then
    terminal.wrong(("'%s' works in one process, and %d were started"):format(name, world))
  end
  if rank == 0 then return end
  print = function() end                                        -- luacheck: ignore 121
  io.output "/dev/null"
end

--- Does what the words say.
-- @param list list  the command's name, then its arguments
function cli.main(list)
  local name = list[1]
  if not name then
    io.stderr:write "usage: fathom chat|generate|serve|eval|plan|bench|help [DIR] [options]\n"
    os.exit(2, true)
  end
  if name == "--help" or name == "-h" then name = "help" end
  if name == "--version" then
    print("fathom " .. models.library().version)
    return
  end
  if later[name] then terminal.wrong(("'%s' is not yet in this version"):format(name)) end
  local command = commands[name]
  if not command then
    local near = options.nearest(name, { table.unpack(order) })
    terminal.wrong(("there is no command '%s' (did you mean '%s'?)"):format(name, near))
  end
  local rest = table.move(list, 2, #list, 1, {})
  for _, word in ipairs(rest) do
    if word == "--help" then return commands.help.run { name } end
    if word == "--" then break end
  end
  local given = table.pack(words.read(rest, command))
  share(name)
  command.run(table.unpack(given, 1, given.n))
end

return cli

--- cli/terminal.lua - what the command prints, and how it ends.

local terminal = {}

--- Whether a file descriptor is one.
function terminal.is_one(fd) return (os.execute("test -t " .. fd)) == true end

--- The call was wrong: says why and ends the process with 2.
function terminal.wrong(message)
  io.stderr:write("fathom: ", message, "\n", "try 'fathom help'\n")
  os.exit(2, true)
end

--- The work failed: says why and ends the process with 1.
function terminal.failed(err)
  io.stderr:write("fathom: ", tostring(err), "\n")
  os.exit(1, true)
end

--- The value, or the end of the process.
function terminal.must(value, err)
  if value == nil then terminal.failed(err) end
  return value
end

--- Prints thoughts dimmed, where somebody looks, and the rest plain.
-- @return function(text, channel), and another that ends it
function terminal.painter(talking)
  local colours, dimmed = talking and not os.getenv "NO_COLOR", false
  return function(text, channel)
    local dim = colours and channel == "think"
    if dim ~= dimmed then io.write(dim and "\27[2m" or "\27[0m") end
    dimmed = dim
    io.write(text)
    io.flush()
  end, function()
    if dimmed then io.write "\27[0m" end
    dimmed = false
  end
end

--- A line on stderr while a load takes long.
-- @return function for load's option progress
function terminal.progress()
  local shown, begun, seen = nil, os.clock(), nil
  return function(done, total)
    if not shown and os.clock() - begun < 0.3 then return true end
    if seen == nil then seen = terminal.is_one(2) end
    local percent = math.floor(100 * done / math.max(total, 1))
    if seen and percent ~= shown then io.stderr:write(("\rloading %3d %%"):format(percent)) end
    if seen and done >= total then io.stderr:write "\r             \r" end
    shown = percent
    return true
  end
end

return terminal

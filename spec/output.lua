--- Output handler for busted: a line a file, failures with their message, counts to the file FATHOM_COUNTS.
return function(options)
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  local passed, failed, skipped = 0, 0, 0
  local began = {}
  io.stdout:setvbuf "line"

  function handler.fileStart(file)
    began[file.name] = os.clock()
    return nil, true
  end

  function handler.fileEnd(file)
    io.write(("%-40s %6.1f s\n"):format(file.name, os.clock() - (began[file.name] or os.clock())))
    return nil, true
  end

  function handler.testEnd(element, parent, status)
    if status == "success" then passed = passed + 1
    elseif status == "pending" then
      skipped = skipped + 1
      io.write("skipped: ", handler.getFullName(element), "\n")
    end
    return nil, true
  end

  local function problem(element, parent, message, trace)
    failed = failed + 1
    io.write("FAILED: ", element and handler.getFullName(element) or "?", "\n  ",
      tostring(type(message) == "string" and message or require "pl.pretty".write(message)), "\n",
      trace and trace.traceback or "", "\n")
    return nil, true
  end

  function handler.suiteEnd()
    local name = os.getenv "FATHOM_COUNTS"
    local file = name and assert(io.open(name, "w"))
    if file then
      file:write(passed, " ", failed, " ", skipped, "\n")
      file:close()
    end
    return nil, true
  end

  busted.subscribe({ "file", "start" }, handler.fileStart)
  busted.subscribe({ "file", "end" }, handler.fileEnd)
  busted.subscribe({ "test", "end" }, handler.testEnd)
  busted.subscribe({ "failure" }, problem)
  busted.subscribe({ "error" }, problem)
  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  return handler
end

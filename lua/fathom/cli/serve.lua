--- cli/serve.lua - a server.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"

local command = {
  usage = "serve [DIR]",
  text = "a server that OpenAI's clients can talk to, with a page to chat with",
  options = models.join(models.load_options, {
    { "host", "string", "ADDRESS", "127.0.0.1, reached from this machine only" },
    { "port", "integer", "N", "8080" },
    { "key", "string", "KEY", "clients must give it (or the variable FATHOM_KEY)" },
    { "name", "string", "NAME", "of the model; that of its folder" },
    { "traces", "string", "FOLDER", "of .jsonl files that the page may show" },
    { "drain", "number", "SECONDS", "at the end requests have so long to finish (10)" },
    { "quiet", "flag", nil, "no line for each request" },
  }),
}

local function log_line(r)
  io.stderr:write(("%s %-4s %s %s %.0f ms %s\n"):format(os.date "%H:%M:%S", r.method, r.path:gsub("%c", "?"), r.status, r.ms, r.address))
end

function command.run(positional, given)
  if #positional > 1 then terminal.wrong "serve takes one DIR" end
  if given.port and (given.port < 0 or given.port > 65535) then terminal.wrong "option --port must be from 0 to 65535" end
  local model <close> = models.load(positional[1], given)
  local server <close> = terminal.must(models.library().serve(model, { host = given.host, port = given.port or 8080, name = given.name,
    key = given.key or os.getenv "FATHOM_KEY", traces = given.traces, log = not given.quiet and log_line or nil }))
  if not server.is_local and not server.key then
    io.stderr:write "fathom: whoever reaches this machine can use the server: --key or FATHOM_KEY asks for a key\n"
  end
  local net = require "fathom.net"
  net.catch()
  print(("%s serves %s (Ctrl-C ends)"):format(server.url, server.name))
  io.stdout:flush()
  server:run(function()
    if not net.caught() then return end
    if server.stopping then server:close() os.exit(1, true) end            -- asked twice
    io.stderr:write "stopping\n"
    server:stop { drain_ms = (given.drain or 10) * 1000 }
  end)
end

return command

--- serve/traces.lua - the traces of one folder, to be read by the page.

local json = require "fathom.json"
local wire = require "fathom.serve.wire"

local traces = {}

local CHUNK = 64 << 10

local function listing(server)
  if not server.traces then wire.refuse(404, "this server shows no traces: start it with traces = a folder", nil, "no_traces") end
  local files, why = server.lib.files(server.traces)
  if not files then wire.refuse(404, "the folder of traces cannot be read: " .. why, nil, "no_traces") end
  local out = json.array {}
  for _, file in ipairs(files) do
    if file.name:match "^[^.].*%.jsonl$" and utf8.len(file.name) then
      out[#out + 1] = { name = file.name, bytes = file.size, modified = file.modified }
    end
  end
  table.sort(out, function(a, b)
    if a.modified ~= b.modified then return a.modified > b.modified end
    return a.name < b.name
  end)
  return out
end

--- GET /traces -> { traces = { { name =, bytes =, modified = }, ... } }, the newest first.
function traces.list(call) call:json { traces = listing(call.server) } end

--- GET /traces/NAME -> the file. Only what the listing names can be read, so no path leads out of the folder.
function traces.read(call)
  local name = call.path:match "^/traces/(.*)$"
  for _, file in ipairs(listing(call.server)) do
    local f <close> = file.name == name and io.open(call.server.traces .. "/" .. name, "rb") or nil
    if f then
      call:begin("application/jsonl; charset=utf-8", { ["X-Content-Type-Options"] = "nosniff", ["Cache-Control"] = "no-cache" })
      for chunk in function() return f:read(CHUNK) end do call:write(chunk) end
      return call.exchange:finish()
    end
  end
  wire.refuse(404, ("there is no trace '%s'"):format(name), nil, "unknown_trace")
end

return traces

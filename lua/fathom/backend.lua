--- backend.lua - what a judge, an agent or a recipe may ask of whatever it is given: a model, a session, a remote, a mock.
--
--   a backend   session(opts), generate(prompt, opts), stream(prompt, opts), step{ ms = }, close()
--   a session   ask, stream, sample, json, fork, messages, close: a backend too, whose conversations start where it stands

local chat = require "fathom.chat"
local json = require "fathom.json"
local options = require "fathom.options"
local sampling = require "fathom.sampling"

local backend = {}

local function has(b, ...)
  for _, verb in ipairs { ... } do
    local ok, f = pcall(function() return b[verb] end)
    if not ok or type(f) ~= "function" then return false end
  end
  return true
end

local function is_session(b) return has(b, "ask", "fork", "sample", "messages") end

--- Raises at the caller's line for what is no backend.
-- @param what string  who was given it: "fathom.judge"
-- @param b any
-- @usage backend.check("fathom.judge", b)
function backend.check(what, b)
  local kind = type(b)
  if (kind == "table" or kind == "userdata") and (is_session(b) or has(b, "session", "generate", "step")) then return end
  options.raise(("%s: expected a backend (a model, a session, a remote or a mock), got %s"):format(what,
                kind == "nil" and "nothing" or "a " .. kind))
end

-- A fork of a session with options laid over its own: a system text takes the place of its system message, messages follow.
local function fork_with(session, o)
  local fork, err = session:fork()
  if not fork then return nil, err end
  if o.system then
    if fork.list[1] and fork.list[1].role == "system" then table.remove(fork.list, 1) end
    table.insert(fork.list, 1, { role = "system", content = o.system })
  end
  if o.messages and #o.messages > 0 then
    chat.normal(o.messages)
    for _, m in ipairs(json.copy(o.messages)) do fork.list[#fork.list + 1] = m end
  end
  o.system, o.messages = nil, nil
  if o.schema then fork.defaults.grammar = nil end
  if o.grammar then fork.defaults.schema = nil end
  fork.defaults = sampling.merge(o, fork.defaults)
  return fork
end

--- A fresh conversation: of a model, a remote or a mock its own, of a session a fork with the options as defaults.
-- @param b backend
-- @param opts table|nil  those of model:session
-- @return session (close it when it has done its work), or nil, err
-- @usage local talk <close> = assert(backend.session(b, { system = "Be brief.", temperature = 0 }))
function backend.session(b, opts)
  backend.check("backend.session", b)
  if not is_session(b) then return b:session(opts) end
  return fork_with(b, options.check("backend.session", opts, sampling.session))
end

--- Whether logits can be read here: a model of this process, or a session of one.
function backend.is_local(b)
  local mt = getmetatable(b)
  return mt ~= nil and (mt == require("fathom.model").mt or mt == require("fathom.session").mt)
end

--- Moves everything that runs on a backend for at most ms.
-- @return boolean whether work is left, or nil, err
-- @usage while backend.step(b, 10) do end
function backend.step(b, ms)
  if is_session(b) then return b.engine:step(ms or 0) end
  return b:step { ms = ms }
end

return backend

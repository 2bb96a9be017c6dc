--- serve/generate.lua - the choices of one request: so many tasks of the engine at once, told piece by piece as they come.

local limits = require "fathom.serve.limits"
local sampling = require "fathom.sampling"
local task = require "fathom.task"
local wire = require "fathom.serve.wire"

local generate = {}

local CROWD = 32             -- choices at once, beyond which passes are full without drafts: pocket gives a third more tokens then

-- What the library raises for a wrong call is the request's fault here; the position is ours.
local function without_position(message) return (tostring(message):gsub("^[^\n]-%.lua:%d+: ", "")) end

--- Calls f; a wrong call becomes a refusal, and so does nil, err.
function generate.must(f, ...)
  local r = table.pack(pcall(f, ...))
  if not r[1] then
    if type(r[2]) ~= "string" then error(r[2], 0) end
    wire.refuse(400, without_position(r[2]), nil, "invalid_value")
  end
  if r[2] == nil and r[3] ~= nil then error(r[3], 0) end
  return table.unpack(r, 2, r.n)
end

-- Runs one choice; its task and its session end with it, however it ends.
local function run_choice(call, spec, sink, over)
  local server, metrics = call.server, call.server.metrics
  local counted <close> = metrics:choice(call)
  -- drafts shorten what one stream takes and lengthen what a full pass takes; they never change what is said
  if spec.options.mtp == nil and metrics.waiting + metrics.generating > CROWD then spec.options.mtp = false end
  if spec.aim then spec.aim(call, spec) end
  local session <close> = generate.must(server.model.session, server.model)
  local t = generate.must(session.ask, session, spec.turn, spec.options)
  spec.task = t
  for text, info in t:pieces() do
    counted:tokens(#info.ids)
    sink(spec, text, info)
  end
  spec.result = spec.dress and spec.dress(call, spec, t.result) or t.result
  counted:usage(t.result.usage)
  if over then over(spec) end
end

-- Whether it is worth resuming a choice: what it waits for has moved, or nobody knows what that is.
local function has_news(r)
  local t = r.waits_for
  return not t or t.done or not t.queue or #t.queue ~= r.seen
end

local function resume(r)
  local ok, handle = coroutine.resume(r.co)
  if not ok then error(handle, 0) end
  r.waits_for = type(handle) == "table" and handle.task or nil
  r.seen = r.waits_for and r.waits_for.queue and #r.waits_for.queue
end

local function resume_all(running)
  local left = 0
  for _, r in ipairs(running) do
    if coroutine.status(r.co) == "suspended" then
      if has_news(r) then resume(r) end
      if coroutine.status(r.co) ~= "dead" then left = left + 1 end
    end
  end
  return left
end

-- Closes what still runs when the request ends early: its client has gone, or another choice failed.
local function guard_of(running)
  return setmetatable({}, { __close = function()
    for _, r in ipairs(running) do coroutine.close(r.co) end
  end })
end

--- Runs all choices of a request in one batch.
-- @param specs list     { turn =, options = } each; gets task and result. aim(call, spec) may prepare one, dress its result
-- @param sink function  (spec, text, info) for each piece; may wait
-- @param over function|nil  (spec) when a choice is complete; may wait
function generate.run(call, specs, sink, over)
  limits.more_choices(call.server, #specs)
  local running = {}
  local guard <close> = guard_of(running)             -- luacheck: ignore 211
  for i, spec in ipairs(specs) do
    local co = coroutine.create(function() return run_choice(call, spec, sink, over) end)
    task.crewed[co] = true
    running[i] = { co = co }
  end
  local function any_news()
    for _, r in ipairs(running) do
      if coroutine.status(r.co) ~= "dead" and has_news(r) then return true end
    end
  end
  while resume_all(running) > 0 do call.pause(any_news) end
end

--- Choices that differ in their seeds only: the first one has the seed of the request, the others those that follow.
-- @return list of specs, seed
function generate.specs(turns, o, n)
  local specs, seed = {}, o.seed or sampling.draw_seed() >> 1
  for _, turn in ipairs(turns) do
    for i = 1, n or 1 do
      local own = sampling.merge({ seed = seed + (i - 1) }, o)
      own.seed = seed + (i - 1)
      specs[#specs + 1] = { turn = turn, options = own, index = #specs }
    end
  end
  return specs, seed
end

local finishes = { stop = "stop", length = "length", tool = "tool_calls" }

--- A finish in OpenAI's words; one that was cancelled from inside is an error.
function generate.finish(result)
  local word = finishes[result.finish]
  if not word then wire.refuse(503, "the request was cancelled", nil, "cancelled") end
  return word
end

--- What it cost, of all choices: prompts that several share count once.
function generate.usage(specs, per_prompt, n_think)
  local prompt, cached, completion, accepted, drafted = 0, 0, 0, 0, 0
  for i, spec in ipairs(specs) do
    local u = spec.result and spec.result.usage or spec.task.usage
    if (i - 1) % per_prompt == 0 then prompt, cached = prompt + u.prompt, cached + u.cached end
    completion, accepted, drafted = completion + u.completion, accepted + u.accepted, drafted + u.drafted
  end
  return { prompt_tokens = prompt, completion_tokens = completion, total_tokens = prompt + completion,
           prompt_tokens_details = { cached_tokens = cached },
           completion_tokens_details = { reasoning_tokens = n_think or 0, accepted_prediction_tokens = accepted,
                                         rejected_prediction_tokens = drafted - accepted } }
end

return generate

--- agent/loop.lua - one run of an agent: ask, act on the calls, look whether it is stuck or a limit is reached, and again.
-- All that a run is stands in run.state, plain data that can be saved between any two waits:
--   turn     messages that the model has not read yet          calls     what was called, with outputs
--   acting   calls of the last reply, with outputs where they are over: those without are run (again, in a run taken up)
--   since    how many of the calls came before the last takeover         invalid   calls in a row that made no sense

local backend = require "fathom.backend"
local calls = require "fathom.agent.calls"
local json = require "fathom.json"
local span = require "fathom.span"
local stuck = require "fathom.agent.stuck"
local task = require "fathom.task"

local loop = {}

local HELP = "ask_for_help"
local CALL_MARKS = { "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<tool_call>" }

local function now() return require("fathom.core").now() end

local function tell(run, kind, data)
  if run.agent.on_event then run.agent.on_event(kind, data) end
end

local function end_run(run, finish, why)
  run.state.finish, run.state.why = finish, why
end

-- ---- limits -----------------------------------------------------------------------------------------------------

local function seconds_of(run) return run.state.seconds + (now() - run.begun) / 1000 end

local function too_long(run)
  local most = run.agent.limits.seconds
  return most and seconds_of(run) >= most
end

-- The limit that is reached, or nil.
local function reached(run)
  local limits, s = run.agent.limits, run.state
  if limits.turns and s.steps >= limits.turns then return "turns" end
  if limits.tokens and s.usage.completion >= limits.tokens then return "tokens" end
  if too_long(run) then return "seconds" end
end

local function end_by_limit(run, name)
  run.state.limit = name
  end_run(run, "limit", ("the run was to have no more than %g %s"):format(run.agent.limits[name], name))
end

-- ---- a reply ------------------------------------------------------------------------------------------------------

-- Pieces of the reply become pieces of the run's task.
local function pass_on(run, t, at)
  for i = at + 1, #t.queue do run.task:emit(t.queue[i].text, t.queue[i].info) end
  return #t.queue
end

-- Waits for a reply, at most until the run's time is over.
local function wait(run, t)
  local at = 0
  while not t.done do
    task.yield { task = t, model = t.model }
    at = pass_on(run, t, at)
    if not t.done and too_long(run) then t:cancel() end
  end
  pass_on(run, t, at)
  if t.err then return nil, t.err end
  return t.result
end

local function ask(run)
  local s, limits, o = run.state, run.agent.limits, {}
  if limits.tokens then o.max_tokens = math.min(run.agent.max_tokens, limits.tokens - s.usage.completion) end
  local result, err = wait(run, run.session:ask(s.turn, o))
  if not result then return nil, err end
  s.usage.prompt, s.usage.cached = s.usage.prompt + result.usage.prompt, s.usage.cached + result.usage.cached
  s.usage.completion = s.usage.completion + result.usage.completion
  s.seed = result.seed
  return result
end

-- Whether a reply began a call that could not be read at all. (Marks that a model quotes stand in its answer.)
local function broken_call(result)
  for _, mark in ipairs(CALL_MARKS) do
    if result.text:find(mark, 1, true) and not result.answer:find(mark, 1, true) then return true end
  end
  return false
end

local function observe(run, text)
  run.state.turn = { { role = run.tool_role, content = text } }
end

-- A call block that makes no sense is told so, as often as calls may make no sense in a row.
local function not_understood(run, result)
  local s = run.state
  s.invalid = s.invalid + 1
  local why = result.finish == "length" and "it was cut off: there was no room for it" or "it has no name and arguments in JSON"
  local text = calls.error_text("the tool call could not be read: " .. why)
  s.calls[#s.calls + 1] = { name = "", raw = result.text, output = text, error = true, step = s.steps }
  observe(run, text)
  return text
end

-- A reply that brought nothing leaves the session where it was: the turn is still to be read.
local function read_turn(result) return result.text ~= "" or (result.ids and #result.ids > 0) end

-- The state as it is behind a reply; what was told the model of a call that makes no sense, or nil.
local function note_reply(run, result)
  local s = run.state
  s.steps, s.text, s.think = s.steps + 1, result.answer, result.think
  if read_turn(result) then s.turn = {} end
  if result.finish == "cancelled" then
    if too_long(run) then end_by_limit(run, "seconds") else end_run(run, "cancelled", "the run was cancelled") end
  elseif #result.tool_calls > 0 then
    s.acting = {}
    for i, call in ipairs(result.tool_calls) do
      s.acting[i] = { name = call.name, arguments = call.arguments, raw = call.raw, why = call.error, id = call.id, step = s.steps }
    end
  elseif broken_call(result) then
    return not_understood(run, result)
  elseif result.finish == "length" and not reached(run) then
    end_run(run, "length", "the reply was cut off by max_tokens")
  elseif result.finish ~= "length" then
    s.answered = true
  end
end

-- Hooks hear of it when the state is good to go on with: one that raises ends the task, not the run.
local function take_reply(run, result)
  local told = note_reply(run, result)
  tell(run, "reply", { step = run.state.steps, text = result.text, think = result.think, answer = result.answer,
                       tool_calls = result.tool_calls, usage = result.usage, finish = result.finish })
  if told then tell(run, "invalid", { text = result.text, output = told }) end
end

-- ---- calls ------------------------------------------------------------------------------------------------------------

-- Whether the call may be made; then its arguments, else what the model reads.
local function approved(run, tool, arguments, item)
  local approve = run.agent.approve
  if not approve or item.by then return true, arguments end
  local answer, more = approve { name = item.name, arguments = json.copy(arguments), step = item.step }
  local ok, given = calls.approval(tool, answer, more, arguments)
  if ok then return true, given end
  tell(run, "refused", { name = item.name, arguments = arguments, reason = given })
  return false, calls.error_text("not allowed" .. (given and ": " .. given or ""))
end

local function settle(item, output, failed)
  item.output, item.error = output, failed or nil
end

-- One call: checked, approved, run; its output is settled in the item.
local function perform(run, item)
  local agent = run.agent
  if agent.help and item.name == HELP then
    run.state.question = type(item.arguments) == "table" and tostring(item.arguments.question or "") or ""
    return
  end
  local tool, arguments = calls.check(agent.tools, { name = item.name, arguments = item.arguments, error = item.why })
  if not tool then
    item.invalid = true
    settle(item, calls.error_text(arguments), true)
    return tell(run, "invalid", { name = item.name, raw = item.raw, output = item.output })
  end
  local ok, given = approved(run, tool, arguments, item)
  if not ok then return settle(item, given, true) end
  item.arguments = given
  tell(run, "call", { name = item.name, arguments = given, step = item.step, by = item.by })
  local begun = now()
  settle(item, calls.run(tool, given, { context = run.context, step = item.step, task = run.task, by = item.by }, agent.output_bytes))
  tell(run, "output", { name = item.name, output = item.output, error = item.error or false, ms = now() - begun })
end

-- Ends what still waits, from outside.
local function close_all(threads)
  for _, co in ipairs(threads) do
    if coroutine.status(co) == "suspended" then coroutine.close(co) end
  end
end

-- Resumes every call that waits; what one of them waits for, or nil when all are over.
local function resume_all(threads)
  local handle
  for _, co in ipairs(threads) do
    if coroutine.status(co) == "suspended" then
      local ok, waits = coroutine.resume(co)
      if not ok then error(waits, 0) end
      if coroutine.status(co) == "suspended" then handle = waits or {} end
    end
  end
  return handle
end

-- The calls of a reply, each in a coroutine, so that those which wait do it together, and no longer than the run may.
local function perform_all(run, items)
  local threads = {}
  local _ <close> = setmetatable({}, { __close = function() close_all(threads) end })
  for i, item in ipairs(items) do
    threads[i] = coroutine.create(function() perform(run, item) end)
    task.crewed[threads[i]] = true
    span.adopt(threads[i])
  end
  local handle = resume_all(threads)
  while handle do
    if too_long(run) then
      for i, item in ipairs(items) do
        if coroutine.status(threads[i]) == "suspended" then settle(item, calls.error_text "the time of the run is over", true) end
      end
      return
    end
    task.yield(handle)
    handle = resume_all(threads)
  end
end

-- What the model reads of calls that are over.
local function outputs(items)
  local list = {}
  for i, item in ipairs(items) do
    list[i] = { role = "tool", content = item.output, tool_call_id = item.id, name = item.id and item.name or nil }
  end
  return list
end

local function note_calls(run, items)
  local s = run.state
  for _, item in ipairs(items) do
    s.invalid = item.invalid and s.invalid + 1 or 0
    s.calls[#s.calls + 1] = { name = item.name, arguments = item.arguments, raw = item.arguments == nil and item.raw or nil,
                              output = item.output, error = item.error, step = item.step, by = item.by }
  end
end

local function act(run)
  local s, open = run.state, {}
  for _, item in ipairs(s.acting) do
    if item.output == nil then open[#open + 1] = item end
  end
  if #open > 0 then perform_all(run, open) end
  if s.question then return end                                     -- the answer becomes the output
  note_calls(run, s.acting)
  s.turn, s.acting = outputs(s.acting), nil
end

-- ---- takeover -----------------------------------------------------------------------------------------------------------

-- What somebody else did, as if the model had: an assistant message with the call, and its output.
local function act_for(run, list)
  local s = run.state
  for _, call in ipairs(list) do
    local item = { name = call.name, arguments = call.arguments or json.object {}, step = s.steps, by = "takeover",
                   id = run.tool_role == "user" and ("takeover_%d"):format(#s.calls + 1) or nil }
    perform(run, item)
    note_calls(run, { item })
    s.turn[#s.turn + 1] = { role = "assistant", content = "", reasoning_content = call.think, tool_calls = {
      { id = item.id, type = "function", ["function"] = { name = item.name, arguments = json.encode(item.arguments) } } } }
    s.turn[#s.turn + 1] = outputs({ item })[1]
  end
end

-- The agent's own question is answered by the output of its call.
local function answer_question(run, text)
  local s = run.state
  for _, item in ipairs(s.acting) do
    if item.output == nil then settle(item, text or "Nobody answers. Go on as you can.") end
  end
  note_calls(run, s.acting)
  s.turn, s.acting, s.question = outputs(s.acting), nil, nil
end

--- Lets a run go on from a takeover with what was decided.
-- @param action table  what stuck.action gave
function loop.apply(run, action)
  local s = run.state
  local asked = s.question ~= nil
  s.finish, s.why, s.reason, s.answered = nil, nil, nil, nil
  if asked then answer_question(run, action.say) end
  if action.calls then act_for(run, action.calls) end
  if action.say and not asked then s.turn[#s.turn + 1] = { role = "user", content = action.say } end
  s.since, s.invalid = #s.calls, 0
  tell(run, "resume", { action = action })
  if action.answer then
    s.text = action.answer
    return end_run(run, "stop")
  end
  if #s.turn == 0 then s.turn = { { role = "user", content = "Go on." } } end
end

local function reason_of(run)
  local s, agent = run.state, run.agent
  if s.question then return "it asks for help" end
  if s.invalid > agent.retries then return ("%d calls in a row made no sense"):format(s.invalid) end
  return stuck.reason(agent.stuck, s)
end

local function hand_over(run, reason)
  local s, agent = run.state, run.agent
  s.reason, s.takeovers = reason, s.takeovers + 1
  s.summary = stuck.summary(s)
  tell(run, "takeover", { reason = reason, summary = s.summary, question = s.question })
  local action = agent.takeover and stuck.action("fathom.agent: takeover", agent.takeover(s.summary, json.copy(s)))
  if not action then return end_run(run, "takeover", reason) end
  loop.apply(run, action)
end

-- ---- the whole -----------------------------------------------------------------------------------------------------------

-- One round; what it leaves in run.state.finish ends the run.
local function round(run)
  local s = run.state
  if s.acting then act(run) elseif not s.answered then
    local limit = reached(run)
    if limit then return end_by_limit(run, limit) end
    local result, err = ask(run)
    if not result then return err end
    take_reply(run, result)
    if s.acting and not s.finish then act(run) end
  end
  if s.finish then return end
  local reason = reason_of(run)
  if reason then return hand_over(run, reason) end
  if s.answered then end_run(run, "stop") end
end

--- The state in which a run begins.
function loop.begin(goal, messages)
  return { goal = goal, turn = messages, calls = {}, since = 0, steps = 0, invalid = 0, takeovers = 0, seconds = 0.0, text = "", think = "",
           usage = { prompt = 0, cached = 0, completion = 0 } }
end

--- Goes on with a run until it is over or handed over.
-- @param run table  agent, session, state, context, task, action (what a takeover came to: it is done first)
-- @return true, or nil, err where the backend failed; the state is good for another try then
function loop.run(run)
  run.begun = now()
  run.tool_role = backend.is_local(run.session) and "tool" or "user"
  local err
  if run.action then loop.apply(run, run.action) end
  while not err and not run.state.finish do err = round(run) end
  run.state.seconds = seconds_of(run)
  if err then return nil, err end
  return true
end

return loop

--- serve/forced.lua - a call that a request demands (tool_choice): the prompt ends where the call's arguments begin, and
-- what follows keeps to their schema. Which of several tools is asked first, by a grammar of their names.

local generate = require "fathom.serve.generate"
local json = require "fathom.json"
local reply = require "fathom.reply"
local sampling = require "fathom.sampling"
local schema = require "fathom.schema"
local validate = require "fathom.validate"
local wire = require "fathom.serve.wire"

local forced = {}

-- Ids of the messages with a call behind them.
local function with_call(model, f, name, arguments)
  local list = table.move(f.messages, 1, #f.messages, 1, {})
  list[#list + 1] = { role = "assistant", tool_calls = { { type = "function", ["function"] = { name = name, arguments = arguments } } } }
  return generate.must(model.render, model, list, { tools = f.tools, think = false, template = f.template, add_generation_prompt = false })
end

-- What two renderings have in common: everything before the place in which they differ, whatever the template.
local function common(a, b)
  local n = 0
  while a[n + 1] and a[n + 1] == b[n + 1] do n = n + 1 end
  return table.move(a, 1, n, 1, {})
end

local function grammar_of(names)
  local out = {}
  for i, name in ipairs(names) do out[i] = json.encode(name) end
  return "root ::= " .. table.concat(out, " | ")
end

-- Ids behind which a call is complete, as stop_ids.
local function closers(marks)
  local id = marks.call_end or marks.json_close
  if not id then wire.refuse(400, "this model knows no tool calls", "tool_choice", "unsupported_value") end
  return { id }
end

local function choose(call, spec, f, names)
  if #names == 1 then return names[1] end
  local model = call.server.model
  local ids = common(with_call(model, f, "a", "{}"), with_call(model, f, "0", "{}"))
  local session <close> = generate.must(model.session, model)
  local o = sampling.merge({ grammar = grammar_of(names), max_tokens = 64 }, spec.options)
  o.logprobs = nil
  local result, err = generate.must(session.ask, session, ids, o):wait()
  if not result then error(err, 0) end
  for _, name in ipairs(names) do
    if result.answer == name then return name end
  end
  wire.refuse(503, "no tool was chosen", "tool_choice")
end

local function parameters(f, name)
  for _, tool in ipairs(f.tools) do
    local t = tool["function"]
    if t.name == name then return t.parameters and next(t.parameters) and t.parameters or { type = "object" } end
  end
end

--- The names a request wants one of to be called; nil where it leaves that to the model.
function forced.names(f)
  local choice = f.tool_choice
  if choice == nil or choice == "auto" or choice == "none" then return nil end
  local names = {}
  for i, tool in ipairs(f.tools or {}) do
    names[i] = tool["function"].name
    if choice.name == names[i] then return { names[i] } end
  end
  if choice.name then wire.refuse(400, ("tool_choice: there is no tool '%s'"):format(choice.name), "tool_choice", "invalid_value") end
  if #names == 0 then wire.refuse(400, "tool_choice wants tools", "tool_choice", "invalid_value") end
  if f.response_format then wire.refuse(400, "tool_choice and response_format both say what must follow", "tool_choice") end
  return names
end

--- What a choice does before it is asked: decides for a tool and turns its prompt into ids that end where arguments begin.
-- @return function(call, spec)
function forced.aim(f, names)
  return function(call, spec)
    local model, name = call.server.model, choose(call, spec, f, names)
    spec.turn = common(with_call(model, f, name, "{"), with_call(model, f, name, "["))
    spec.name, spec.parameters = name, parameters(f, name)
    local o = sampling.merge({ stop_ids = closers(model.engine.marks) }, spec.options)
    o.tools, o.think, o.template, o.logprobs = nil, nil, nil, nil
    spec.options = o
  end
end

-- The call that the prompt began and the reply went on with, read as if the model had said all of it.
local function read_call(engine, turn, ids)
  local r = reply.new(engine.core, engine.marks, false)
  r.ids = table.move(ids, 1, #ids, #turn + 1, table.move(turn, 1, #turn, 1, {}))
  local calls = r:tool_calls()
  return calls[#calls]
end

-- The arguments again, kept to their schema.
local function masked(call, spec)
  local o = sampling.merge({ schema = schema.text(spec.parameters) }, spec.options)
  o.stop_ids, o.stop = nil, nil
  local session <close> = generate.must(call.server.model.session, call.server.model)
  local result, err = generate.must(session.ask, session, spec.turn, o):wait()
  if not result then error(err, 0) end
  return { name = spec.name, raw = result.answer }, result
end

--- The result of such a choice, as if the model had made the call by itself. It writes as it likes first, since it closes its
-- calls better so than behind a mask; what does not follow the schema is asked for again with one.
function forced.result(call, spec, result)
  local said = read_call(call.server.model.engine, spec.turn, result.ids)
  if not said or said.name ~= spec.name or not said.arguments or not validate.check(said.arguments, spec.parameters) then
    said, result = masked(call, spec)
  end
  return sampling.merge({ answer = "", think = "", tool_calls = { said },
                          finish = result.finish == "stop" and "tool" or result.finish }, result)
end

return forced

--- backend_spec.lua - a pipeline written for one backend runs on the others unchanged: a model, a session, a mock that was told the
-- model's answers, and a server in another process.
local backend = require "fathom.backend"
local fathom = require "fathom"
local json = require "fathom.json"

local has_net, net = pcall(require, "fathom.net")
local served = has_net and net.client and net.server

local tools = { calculator = { doc = "Evaluate an arithmetic expression.", args = { expression = "string" } } }
local form = { x = fathom.int(0, 9), y = fathom.int(0, 9) }

-- What the pipeline asks of whatever it is given; what came of it, in plain values.
local function pipeline(b)
  backend.check("pipeline", b)
  local out = {}
  local talk <close> = assert(backend.session(b, { temperature = 0, max_tokens = 80 }))
  local fork <close> = assert(talk:fork())
  local first = assert(talk:ask("What is 17 + 25?"):wait())
  out.think, out.answer, out.finish = first.think, first.answer, first.finish
  local channels = {}
  for piece, info in fork:stream "What is 17 + 25?" do channels[info.channel] = (channels[info.channel] or "") .. piece end
  out.channels = { think = channels.think:find(first.think, 1, true) ~= nil, answer = channels.answer:find(first.answer, 1, true) ~= nil }
  assert(fork:ask("Thanks!"):wait())
  out.turns = #fork:messages()
  local fresh <close> = assert(backend.session(b, { temperature = 1, seed = 5, max_tokens = 80 }))
  out.votes = {}
  for i, vote in ipairs(assert(fresh:sample("What is 30 + 12?", { n = 3 }))) do out.votes[i] = vote.answer end
  local called = assert(fresh:ask("What is 4821 * 37?", { tools = tools, temperature = 0 }):wait())
  out.called = { called.finish, called.tool_calls[1].name, called.tool_calls[1].arguments.expression }
  local result = assert(fresh:ask({ role = "tool", content = "178377" }, { tools = tools, temperature = 0 }):wait())
  out.after_tool = result.answer:find("178377", 1, true) ~= nil
  local short <close> = assert(backend.session(b, { temperature = 0, max_tokens = 60 }))
  local point = assert(short:json("Make up a point.", { schema = form }))
  out.point = math.type(point.x) == "integer" and point.x >= 0 and point.y <= 9
  local task = short:ask "What is 1 + 1?"
  backend.step(b, 1)
  task:cancel()
  out.cancelled = task.result.finish
  assert(json.encode { first, called })
  return out
end

-- The answers that the pipeline's requests get, in the order in which their tasks start.
local function script(said)
  local hello = { think = said.think, answer = said.answer }
  local replies = { hello, hello, "You are welcome." }
  for _, vote in ipairs(said.votes) do replies[#replies + 1] = "<think>hm</think>" .. vote end
  replies[#replies + 1] = { tool_calls = { { name = said.called[2], arguments = { expression = said.called[3] } } } }
  replies[#replies + 1] = "It is 178377."
  replies[#replies + 1] = '{"x": 1, "y": 2}'
  replies[#replies + 1] = "never heard"
  return replies
end

describe("one pipeline", function()
  local model, said

  lazy_setup(function()
    model = assert(fathom.load(fathom.pocket, { ctx = 1024 }))
    said = pipeline(model)
  end)
  lazy_teardown(function() model:close() end)

  it("runs on a model", function()
    assert.equal("17 + 25 = 42\n\\boxed{42}", said.answer)
    assert.same({ "tool", "calculator", "4821 * 37" }, said.called)
    assert.same({ think = true, answer = true }, said.channels)
    assert.same({ 4, true, true, "cancelled", "stop" }, { said.turns, said.after_tool, said.point, said.cancelled, said.finish })
    assert.equal(3, #said.votes)
  end)

  it("runs on a session, from where that stands", function()
    local session <close> = model:session {}
    assert.same(said, pipeline(session))
  end)

  it("runs on a mock", function()
    local mock <close> = fathom.mock { replies = script(said) }
    assert.same(said, pipeline(mock))
    assert.equal(0, mock:left())
  end)

  it("runs in coroutines, two at once", function()
    local function job() return pipeline(model) end
    local results = assert(require("fathom.crew").run(model, { job, job }))
    assert.same({ { value = said }, { value = said } }, results)
  end)

  it("runs on a server in another process, with the same answers to the same seeds", function()
    if not served then return pending "no network library here" end
    local server <close> = require "spec.server".start()
    local remote <close> = assert(fathom.remote { url = server.url, model = "pocket" })
    assert.same(said, pipeline(remote))
    local talk <close> = remote:session {}
    assert.same(said.votes, pipeline(talk).votes)
    assert.is_true(remote:stats().completion > 100)
  end)
end)

-- The server: what OpenAI's clients find there, answered by pocket.
local fathom = require "fathom"
local http = require "spec.http"
local json = require "fathom.json"

local has_server = pcall(function() return assert(require("fathom.net").server) end)

local function user(text) return { { role = "user", content = text } } end

local tools = { { type = "function", ["function"] = { name = "calculator", description = "Evaluate an arithmetic expression.",
                  parameters = { type = "object", properties = { expression = { type = "string" } } } } } }

if not has_server then
  describe("the server", function() it("is built", function() pending "no libmicrohttpd here" end) end)
  return
end

describe("the server", function()
  local model, server

  lazy_setup(function()
    model = assert(fathom.load(fathom.pocket, { device = "cpu" }))
    server = assert(fathom.serve(model))
  end)
  lazy_teardown(function()
    server:close()
    model:close()
  end)

  local function chat(body, headers) return http.ask(server, "POST", "/v1/chat/completions", body, headers) end

  it("says who it is", function()
    assert.matches("^fathom server %(pocket at http://127.0.0.1:%d+", tostring(server))
    assert.same({ status = "ok" }, http.ask(server, "GET", "/health").json)
    local list = http.ask(server, "GET", "/v1/models").json
    assert.equal("list", list.object)
    assert.equal("pocket", list.data[1].id)
    assert.equal("pocket", http.ask(server, "GET", "/v1/models/pocket").json.id)
    assert.equal(404, http.ask(server, "GET", "/v1/models/other").status)
  end)

  it("answers a chat, thoughts apart, with the usage", function()
    local r = chat { model = "pocket", messages = user "What is 17 + 25?", temperature = 0 }
    assert.equal(200, r.status)
    assert.equal("chat.completion", r.json.object)
    local choice = r.json.choices[1]
    assert.same({ 0, "stop", "assistant" }, { choice.index, choice.finish_reason, choice.message.role })
    assert.equal("17 + 25 = 42\n\\boxed{42}", choice.message.content)
    assert.equal("17 + 25 = 42", choice.message.reasoning_content)
    local u = r.json.usage
    assert.same({ 15, 30, 45 }, { u.prompt_tokens, u.completion_tokens, u.total_tokens })
  end)

  it("streams the same in deltas: the role first, then text, the finish, the usage, [DONE]", function()
    local r = chat { messages = user "What is 17 + 25?", temperature = 0, stream = true, stream_options = { include_usage = true } }
    assert.equal("text/event-stream", r.headers["content-type"])
    local events, done = http.events(r.body)
    assert.is_true(done)
    assert.same({ role = "assistant", content = "" }, events[1].choices[1].delta)
    local content, thoughts = {}, {}
    for _, e in ipairs(events) do
      assert.equal("chat.completion.chunk", e.object)
      assert.equal(events[1].id, e.id)
      local delta = e.choices[1] and e.choices[1].delta or {}
      content[#content + 1], thoughts[#thoughts + 1] = delta.content, delta.reasoning_content
    end
    assert.equal("17 + 25 = 42\n\\boxed{42}", table.concat(content))
    assert.equal("17 + 25 = 42", table.concat(thoughts))
    assert.equal("stop", events[#events - 1].choices[1].finish_reason)
    assert.equal(0, #events[#events].choices)
    assert.equal(45, events[#events].usage.total_tokens)
    assert.equal(json.null, events[2].usage)
  end)

  it("calls tools, streams calls, and takes the results", function()
    local messages = user "What is 4821 * 37?"
    local r = chat { messages = messages, tools = tools, temperature = 0 }
    local choice = r.json.choices[1]
    assert.equal("tool_calls", choice.finish_reason)
    assert.equal(json.null, choice.message.content)
    local call = choice.message.tool_calls[1]
    assert.same({ "function", "calculator", '{"expression": "4821 * 37"}' },
                { call.type, call["function"].name, call["function"].arguments })

    local events = http.events(chat({ messages = messages, tools = tools, temperature = 0, stream = true }).body)
    local name, arguments
    for _, e in ipairs(events) do
      for _, c in ipairs(e.choices[1].delta.tool_calls or {}) do
        assert.equal(0, c.index)
        name = (name or "") .. (c["function"].name or "")
        arguments = (arguments or "") .. c["function"].arguments
      end
    end
    assert.same({ "calculator", '{"expression": "4821 * 37"}' }, { name, arguments })

    messages[2] = choice.message
    messages[3] = { role = "tool", tool_call_id = call.id, content = "178377" }
    r = chat { messages = messages, tools = tools, temperature = 0 }
    assert.matches("178377", r.json.choices[1].message.content)
  end)
end)

describe("the official client of OpenAI", function()
  local node = require "spec.node"
  local report, why

  lazy_setup(function()
    local ok
    ok, why = node.has "openai"
    if not ok then return end
    local lua = os.getenv "LUA" or "lua5.4"
    local command = "echo $$; FATHOM_KEY=secret-key exec %s lua/bin/fathom serve --device cpu --port 0 --quiet 2>&1"
    local pipe = assert(io.popen(command:format(lua)))
    local pid = pipe:read "l"
    local url = (pipe:read "l" or ""):match "^(http://%S+)"
    report = "\n" .. (url and select(2, node.run("spec/openai/test.mjs", { FATHOM_URL = url, FATHOM_KEY = "secret-key" })) or "no server")
    os.execute("kill -TERM " .. pid)
    pipe:close()
  end)

  for _, sentence in ipairs {
    "answers a chat with thoughts and usage", "gives several choices, each again by its seed",
    "streams, and the pieces make the whole", "feeds the client's own stream helper", "runs tools to the end",
    "takes a turn with a tool's result", "forces the call of a tool", "keeps to a JSON schema", "answers with a JSON object",
    "tells log-probabilities", "continues texts", "embeds texts, as numbers and as bytes", "lists its models",
    "refuses in the client's own classes of errors",
    "hears back at once where there is nothing to compute", "stops when the client turns away",
  } do
    it(sentence, function()
      if why then pending(why) return end
      assert(report:find("\nok - " .. sentence, 1, true), report)
    end)
  end
end)

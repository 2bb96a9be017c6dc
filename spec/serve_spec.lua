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

  local function content(more)
    local body = { messages = user "What is 17 + 25?", temperature = 0 }
    for k, v in pairs(more) do body[k] = v end
    local choice = chat(body).json.choices[1]
    return choice.message.content, choice
  end

  it("takes what clients say in other words", function()
    local plain = content {}
    assert.equal(plain, (content { messages = { { role = "user", content = { { type = "text", text = "What is " },
                                                                            { type = "text", text = "17 + 25?" } } } } }))
    local system, developer = {}, {}
    for role, list in pairs { system = system, developer = developer } do
      list[1], list[2] = { role = role, content = "Facts:\nage of Rimu: 41" }, user("How old is Rimu?")[1]
    end
    assert.equal((content { messages = system }), (content { messages = developer }))
    assert.equal(plain, (content { max_completion_tokens = 100, user = "me", metadata = { a = "b" }, tools = json.array {},
                                   logit_bias = json.object {}, stop = json.null, seed = 5, service_tier = "auto" }))
  end)

  it("thinks or not, as it is asked", function()
    for _, more in ipairs { { think = false }, { reasoning_effort = "none" }, { chat_template_kwargs = { enable_thinking = false } } } do
      more.messages = user "Hello!"
      local _, choice = content(more)
      assert.is_nil(choice.message.reasoning_content)
    end
    local _, choice = content { messages = user "Hello!", reasoning_effort = "high" }
    assert.is_true(#choice.message.reasoning_content > 0)
  end)

  it("stops where it is told, and says why it ended", function()
    local text, choice = content { stop = { "boxed", "nothing" } }
    assert.same({ "17 + 25 = 42\n\\", "stop" }, { text, choice.finish_reason })
    text, choice = content { max_tokens = 3 }
    assert.same({ "", "length", "17 +" }, { text, choice.finish_reason, choice.message.reasoning_content })
  end)

  it("says the same for the same seed, and what a bias allows", function()
    local function story(seed)
      return (content { messages = user "Tell me a story about a fox.", temperature = 1, seed = seed, max_tokens = 30 })
    end
    assert.equal(story(3), story(3))
    local id = model:encode(" =")[1]
    assert.is_nil((content { logit_bias = { [tostring(id)] = -100 }, max_tokens = 40 }):find(" =", 1, true))
  end)

  it("streams several choices side by side, each whole", function()
    local body = { messages = user "Tell me a story about a fox.", temperature = 1, seed = 11, n = 3, max_tokens = 24 }
    local apart = chat(body).json.choices
    body.stream = true
    local events, texts, roles, ends = http.events(chat(body).body), { "", "", "" }, {}, {}
    for _, e in ipairs(events) do
      local c = e.choices[1]
      local i = c.index + 1
      if c.delta.role then roles[i] = (roles[i] or 0) + 1 end
      assert.is_nil(ends[i])
      texts[i] = texts[i] .. (c.delta.content or "")
      if c.finish_reason ~= json.null then ends[i] = c.finish_reason end
    end
    for i = 1, 3 do
      assert.same({ apart[i].message.content, apart[i].finish_reason, 1 }, { texts[i], ends[i], roles[i] })
    end
  end)

  it("streams the log-probabilities that it gives in one piece", function()
    local body = { messages = user "What is 17 + 25?", temperature = 0, logprobs = true, top_logprobs = 3 }
    local whole = chat(body).json.choices[1].logprobs
    body.stream = true
    local content_list, thoughts = {}, {}
    for _, e in ipairs(http.events(chat(body).body)) do
      local l = e.choices[1].logprobs
      if l ~= json.null then
        for _, t in ipairs(l.content) do content_list[#content_list + 1] = t.token end
        for _, t in ipairs(l.reasoning_content) do thoughts[#thoughts + 1] = t.token end
      end
    end
    local function tokens(list)
      local out = {}
      for i, t in ipairs(list) do out[i] = t.token end
      return out
    end
    assert.same(tokens(whole.content), content_list)
    assert.same(tokens(whole.reasoning_content), thoughts)
    assert.equal(3, #whole.content[1].top_logprobs)
  end)

  it("embeds what model:embed embeds", function()
    local r = http.ask(server, "POST", "/v1/embeddings", { input = { "Hello", "you" } })
    local tensor <close> = model:embed "you"
    for i, v in ipairs(tensor:totable()) do assert.is_true(math.abs(v - r.json.data[2].embedding[i]) < 1e-6) end
    local ids = http.ask(server, "POST", "/tokenize", { prompt = "you", add_special_tokens = true }).json.tokens
    local again = http.ask(server, "POST", "/v1/embeddings", { input = ids }).json.data[1].embedding
    for i, v in ipairs(r.json.data[2].embedding) do assert.equal(v, again[i]) end
  end)

  it("counts and reads tokens", function()
    local r = http.ask(server, "POST", "/tokenize", { prompt = "What is 17 + 25?" }).json
    assert.same(model:encode "What is 17 + 25?", setmetatable(r.tokens, nil))
    assert.equal(#r.tokens, r.count)
    assert.equal("What is 17 + 25?", http.ask(server, "POST", "/detokenize", { tokens = r.tokens }).json.prompt)
    local messages = user "Hello!"
    assert.equal(model:count(messages), http.ask(server, "POST", "/tokenize", { messages = messages }).json.count)
  end)

  it("lets the model judge", function()
    local r = http.ask(server, "POST", "/v1/judge", { question = "What is 8 + 5?", votes = 1, seed = 1,
                       answers = { "8 + 5 = 13\n\\boxed{13}", "8 + 5 = 14\n\\boxed{14}" } })
    assert.equal(200, r.status, r.body)
    assert.equal(1, r.json.winner)
    assert.same({ 1, 2 }, setmetatable(r.json.order, nil))
    assert.equal(2, #r.json.scores)
  end)
end)

describe("the official client of OpenAI", function()
  local node = require "spec.node"
  local report, why, ended

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
    ended = pipe:close()
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

  it("leaves a command that ends well when it is told to", function()
    if why then pending(why) return end
    assert.is_true(ended)
  end)
end)

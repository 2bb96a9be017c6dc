-- The server given what is wrong: each such request gets 4xx and an error in OpenAI's shape, and the next good one its answer.
local fathom = require "fathom"
local http = require "spec.http"
local json = require "fathom.json"
local malformed = require "spec.malformed"

local has_server = pcall(function() return assert(require("fathom.net").server) end)
if not has_server then
  describe("the server, given what is wrong", function() it("is built", function() pending "no libmicrohttpd here" end) end)
  return
end

local N = os.getenv "FATHOM_ASAN" and 150 or 400

describe("the server, given what is wrong", function()
  local model, server

  lazy_setup(function()
    model = assert(fathom.load(fathom.pocket, { device = "cpu" }))
    server = assert(fathom.serve(model, { limits = { body = 32768, head_ms = 120, body_ms = 120, max_tokens = 64 } }))
  end)
  lazy_teardown(function()
    server:close()
    model:close()
  end)

  local function is_well()
    local r = http.ask(server, "POST", "/tokenize", { prompt = "Hello" })
    return r and r.status == 200 and r.json.count == 1
  end

  it(("answers %d requests drawn by a seed, and is well after each"):format(N), function()
    local draw, seen = malformed.new(2024, { body = 32768, slow = 12 }), {}
    for i = 1, N do
      local name, bytes = draw()
      local c = http.open(server)
      c:send(bytes)
      local fault = malformed.fault(c:answer())
      c:close()
      assert(not fault, ("%d, %s: %s\n%s"):format(i, name, fault, bytes:sub(1, 300)))
      seen[name] = true
      if i % 20 == 0 then assert.is_true(is_well(), name) end
    end
    local n = 0
    for _ in pairs(seen) do n = n + 1 end
    assert.is_true(n > 12, n)
    assert.equal(0, #server.jobs)
    assert.equal(0, server:stats().failures, server:stats().last_failure)
    assert.equal(0, model:stats().sessions)
    assert.is_true(is_well())
  end)

  -- path, body, param, a word of the message
  local cases = {
    { "chat/completions", { messages = json.array {} }, "messages", "must not be empty" },
    { "chat/completions", { model = "pocket" }, "messages", "missing" },
    { "chat/completions", { messages = { { role = "king", content = "x" } } }, "messages[0].role", "king", },
    { "chat/completions", { messages = { { role = "user" } } }, "messages[0].content", "string" },
    { "chat/completions", { messages = { { role = "user", content = { { type = "image_url", image_url = { url = "x" } } } } } },
      "messages[0].content[0].type", "reads nothing else" },
    { "chat/completions", { temperature = -1 }, "temperature", "0 or more" },
    { "chat/completions", { top_p = 0 }, "top_p", "above 0" },
    { "chat/completions", { n = 0 }, "n", "1 or more" },
    { "chat/completions", { n = 1000 }, "n", "at most" },
    { "chat/completions", { max_tokens = 100 }, "max_tokens", "64 at most" },
    { "chat/completions", { stop = { "a", 1 } }, "stop[1]", "string" },
    { "chat/completions", { stop = "" }, "stop[0]", "not empty" },
    { "chat/completions", { logit_bias = { x = 1 } }, "logit_bias", "token ids" },
    { "chat/completions", { logit_bias = { ["99999"] = 1 } }, "logit_bias", "token ids below 2944" },
    { "chat/completions", { logit_bias = { ["5"] = 101 } }, "logit_bias.5", "100" },
    { "chat/completions", { top_logprobs = 3 }, "top_logprobs", "logprobs" },
    { "chat/completions", { logprobs = true, top_logprobs = 21 }, "top_logprobs", "20" },
    { "chat/completions", { stream_options = { include_usage = true } }, "stream_options", "stream" },
    { "chat/completions", { functions = json.array {} }, "functions", "use tools" },
    { "chat/completions", { audio = { voice = "x" } }, "audio", "voice" },
    { "chat/completions", { store = true }, "store", "nothing is kept" },
    { "chat/completions", { tools = { { type = "function", ["function"] = { name = "a b" } } } }, "tools[0].function.name", "letters" },
    { "chat/completions", { tools = { { type = "retrieval" } } }, "tools[0].type", "function" },
    { "chat/completions", { tool_choice = "required" }, "tool_choice", "wants tools" },
    { "chat/completions", { tool_choice = { type = "function", ["function"] = { name = "x" } } }, "tool_choice", "no tool 'x'" },
    { "chat/completions", { response_format = { type = "xml" } }, "response_format.type", "json_object" },
    { "chat/completions", { response_format = { type = "json_schema", json_schema = { name = "x" } } },
      "response_format.json_schema.schema", "object" },
    { "chat/completions", { response_format = { type = "json_schema", json_schema = { schema = { type = "string", ["not"] = {} } } } },
      json.null, "not" },
    { "chat/completions", { grammar = "root ::= (" }, json.null, "" },
    { "chat/completions", { template = "deepsek" }, json.null, "did you mean" },
    { "chat/completions", { reasoning_effort = "huge" }, "reasoning_effort", "low" },
    { "completions", { prompt = json.array {} }, "prompt", "string" },
    { "completions", { prompt = "" , suffix = "x" }, "suffix", "not supported" },
    { "completions", { prompt = "a", echo = true }, "echo", "not supported" },
    { "completions", { prompt = "a", best_of = 2 }, "best_of", "n" },
    { "completions", { prompt = { 5, 999999 } }, "prompt[1]", "a token id below 2944, got 999999" },
    { "completions", { prompt = { { 5 }, { 999999 } } }, "prompt[1][0]", "a token id below" },
    { "completions", { prompt = 5 }, "prompt", "a string, a list of strings or token ids" },
    { "embeddings", { input = { 999999 } }, "input[0]", "a token id below" },
    { "../detokenize", { tokens = { 999999 } }, "tokens[0]", "a token id below" },
    { "completions", { prompt = { "a", { 1 } } }, "prompt[1]", "same kind" },
    { "embeddings", { input = json.array {} }, "input", "string" },
    { "embeddings", { input = "a", dimensions = 3 }, "dimensions", "hidden_size" },
    { "embeddings", { input = "a", encoding_format = "hex" }, "encoding_format", "base64" },
    { "embeddings", { input = ("word "):rep(4000) }, json.null, "" },
    { "judge", { question = "x", answers = { "one" } }, "answers", "2 to 16" },
  }
  for _, case in ipairs(cases) do
    local path, body, param, word = table.unpack(case)
    it(("names what is wrong with %s of %s"):format(json.encode(body):sub(1, 60), path), function()
      if path == "chat/completions" and not body.messages and not body.model then
        body.messages = { { role = "user", content = "Hello!" } }
      end
      local r = http.ask(server, "POST", path:find "^%.%." and path:sub(3) or "/v1/" .. path, body)
      assert.equal(400, r.status, r.body)
      assert.equal(param, r.json.error.param, r.body)
      assert(r.json.error.message:find(word, 1, true), r.body)
    end)
  end

  it("says it before a stream begins, with its status", function()
    local long = { { role = "user", content = ("word "):rep(3000) } }
    local r = http.ask(server, "POST", "/v1/chat/completions", { messages = long, stream = true })
    assert.same({ 400, "context_length_exceeded" }, { r.status, r.json.error.code })
  end)
end)

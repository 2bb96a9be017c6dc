--- command_spec.lua - the command: what it prints and how it ends.
local fathom = require "fathom"
local json = require "fathom.json"

-- Runs the command; returns what it printed on both channels and its exit status.
local function run(words, input)
  local out, err = os.tmpname(), os.tmpname()
  local lua = os.getenv "LUA" or "lua5.4"
  local feed = input and ("printf '%s' | "):format(input) or ""
  local quiet = input and "" or " </dev/null"
  local _, _, status = os.execute(("%s%s lua/bin/fathom %s >%s 2>%s%s"):format(feed, lua, words, out, err, quiet))
  local function take(path)
    local f = assert(io.open(path, "rb"))
    local text = f:read "a"
    f:close()
    os.remove(path)
    return text
  end
  return take(out), take(err), status
end

describe("the command", function()
  it("explains itself", function()
    local out, _, status = run "help"
    assert.equal(0, status)
    for _, name in ipairs { "chat", "generate", "eval", "plan", "bench" } do assert.matches(name, out) end
    out, _, status = run "help generate"
    assert.equal(0, status)
    assert.matches("%-%-temperature", out)
    out, _, status = run "--version"
    assert.equal(0, status)
    assert.matches("fathom %d", out)
  end)

  it("generates with the model that comes along", function()
    local out, err, status = run "generate 'What is 17 + 25?' --temperature 0"
    assert.equal(0, status, err)
    assert.matches("boxed{42}\n$", out)
    assert.is_nil(out:find "\27")
  end)

  it("prints a result as JSON", function()
    local out, err, status = run "generate --json --seed 3 --max-tokens=8 'Hello!'"
    assert.equal(0, status, err)
    local r = assert(json.decode(out))
    assert.equal(3, r.seed)
    assert.is_true(#r.ids <= 8)
  end)

  it("takes a folder, a prompt from stdin, and raw text", function()
    local out, _, status = run("generate " .. fathom.pocket .. " --temperature 0 --no-think", "What is the capital of France?")
    assert.equal(0, status)
    assert.matches("Paris", out)
    out, _, status = run "generate --raw --temperature 0 --max-tokens 5 'Once upon a time'"
    assert.equal(0, status)
    assert.is_true(#out > 0)
  end)

  it("evaluates on a test set or a file of cases, and compares with a report of before", function()
    local out, err, status = run "eval"
    assert.equal(0, status, err)
    for _, name in ipairs { "gsm8k", "bfcl", "pandalm" } do assert.matches(name, out) end
    local report = os.tmpname()
    local words = ("eval arithmetic --data spec/data/eval --temperature 0 --cases 2 --max-tokens 40 --report %s.json"):format(report)
    out, err, status = run(words)
    assert.equal(0, status, err)
    assert.matches("Arithmetic: 2 cases, 2 samples, 0 errors", out)
    out, err, status = run(words .. " --against " .. report .. ".json --json")
    assert.equal(0, status, err)
    local d = assert(json.decode(out)).against.scores[1]
    assert.same({ 0, 0, 2 }, { d.wins, d.losses, d.ties })
    local cases = io.open(report, "wb")
    cases:write '{"question": "What is 17 + 25?", "answer": 42}\n'
    cases:close()
    os.rename(report, report .. ".jsonl")
    out, err, status = run("eval " .. report .. ".jsonl --temperature 0")
    assert.equal(0, status, err)
    assert.matches("accuracy +100.0 %%", out)
    os.remove(report .. ".jsonl")
    os.remove(report .. ".json")
    os.remove(report .. ".html")
    for call, why in pairs { ["eval gsm8x --data x"] = "did you mean 'gsm8k'", ["eval gsm8k"] = "wants %-%-data",
                             ["eval gsm8k a b --data x"] = "one DIR" } do
      out, err, status = run(call)
      assert.equal("", out)
      assert.equal(2, status)
      assert.matches(why, err)
    end
    out, err, status = run "eval gsm8k --data /no/such/folder"
    assert.equal("", out)
    assert.equal(1, status)
    assert.matches("no test.jsonl", err)
  end)

  it("chats from a pipe", function()
    local out, err, status = run("chat --temperature 0", "What is 17 + 25?\\n/reset\\nWhat is the capital of France?\\n/quit\\n")
    assert.equal(0, status, err)
    assert.matches("42", out)
    assert.matches("Paris", out)
  end)

  it("plans", function()
    local out, _, status = run "plan --ctx 512"
    assert.equal(0, status)
    assert.matches("sequences of 512 tokens", out)
    out, _, status = run "plan --json"
    assert.equal(0, status)
    assert.is_true(assert(json.decode(out)).weights > 0)
  end)

  it("measures, with the first token less than a second after its start", function()
    local out, err, status = run "bench --json"
    assert.equal(0, status, err)
    local m = assert(json.decode(out))
    assert.is_true(m.tokens_per_s > 0 and m.mtp_tokens_per_s > 0 and m.acceptance > 0.9 and m.resident_bytes > 0)
    -- the promise is for a plain build; sanitizers are several times slower
    if not os.getenv "FATHOM_ASAN" then assert.is_true(m.start_to_first_token_s < 1) end
  end)

  it("ends with 1 when the work failed", function()
    local _, err, status = run "plan no/such/folder"
    assert.equal(1, status)
    assert.matches("^fathom: .*config.json", err)
    _, err, status = run "generate --device cuda x"
    assert.equal(1, status)
    assert.matches("cuda", err)
    assert.is_nil(err:find "traceback")
  end)

  it("ends with 2 when the call was wrong", function()
    for words, pattern in pairs {
      [""] = "usage", ["genrate x"] = "did you mean 'generate'",
      ["train"] = "not yet", ["convert"] = "not yet",
      ["generate x --tempreature 1"] = "did you mean %-%-temperature", ["generate x --temperature hot"] = "must be a number",
      ["generate x --temperature -1"] = "must be a number of 0 or more", ["generate x --seed"] = "wants a value",
      ["generate a b c"] = "quotes", ["help nothing"] = "no command", ["plan a b"] = "one DIR",
      ["serve a b"] = "one DIR", ["serve --port 70000"] = "from 0 to 65535",
    } do
      local out, err, status = run(words)
      assert.equal(2, status, words)
      assert.matches(pattern, err)
      assert.equal("", out)
    end
  end)
end)

-- The tools that ship: what they do, and what they refuse. (The fence has fence_spec.lua.)
local fathom = require "fathom"
local helper = require "spec.helper"

describe("the Lua tool", function()
  it("gives a program's value as text, or nil and why", function()
    local tool = fathom.tools.lua { seconds = 1, instructions = 100000 }
    assert.are.equal("42", tool.run { code = "return 6 * 7" })
    local text, why = tool.run { code = "while true do end" }
    assert.is_nil(text)
    assert.are.equal("the program was stopped after 100000 instructions", why)
    assert.are.equal("string", tool.args.code)
    assert.has_error(function() fathom.tools.lua { second = 1 } end)
  end)
end)

describe("tools called by hand", function()
  it("raise at the caller's line for what are no arguments of theirs", function()
    local files = assert(fathom.tools.files { root = "spec", write = true })
    for _, wrong in ipairs { function() files.run { action = "read" } end, function() files.run() end,
                             function() files.run { action = "write", path = "x", content = 5 } end,
                             function() fathom.tools.lua().run() end, function() fathom.tools.calculator().run() end } do
      local ok, err = pcall(wrong)
      assert.is_false(ok)
      assert.matches("tools_spec.lua:%d+: fathom.tools.*must be", err)
    end
  end)
end)

describe("the calculator", function()
  local value = require("fathom.tools.calculator").value
  local cases = {
    { "4821 * 37", "178377" }, { "2 ^ 100", "1267650600228229401496703205376" }, { "10 / 4", "2.5" }, { "1 / 3", "0.333333333333" },
    { "2 / 3 * 3", "2" }, { "0.1 + 0.2", "0.3" }, { "-7 % 3", "2" }, { "7 % -3", "-2" }, { "-2 ^ 2", "-4" }, { "2 ^ 3 ^ 2", "512" },
    { "2 ^ -2", "0.25" }, { "(1 + 2) * -(3 - 5)", "6" }, { "6383 - 7652", "-1269" }, { "3 × 4 ÷ 6 − 1", "1" }, { "10 ** 3", "1000" },
    { "-5 / 3", "-1.666666666667" }, { "1 / 7000000", "0.000000142857142857" }, { ".5", "0.5" }, { "--3", "3" },
    { "9007199254740993 + 9223372036854775807", "9232379236109516800" },
  }
  it("is exact", function()
    for _, case in ipairs(cases) do assert.are.equal(case[2], (value(case[1])), case[1]) end
  end)

  it("agrees with Lua on whole numbers", function()
    math.randomseed(3)
    for _ = 1, 2000 do
      local a, b, op = math.random(-1000000, 1000000), math.random(-100000, 100000), ({ "+", "-", "*", "%" })[math.random(4)]
      if b == 0 then b = 1 end
      local text = ("%d %s (%d)"):format(a, op, b)
      assert.are.equal(tostring(load("return " .. text)()), (value(text)), text)
    end
  end)

  it("divides numbers of any size", function()
    local big = require "fathom.tools.big"
    math.randomseed(4)
    local function digits(n)
      local out = {}
      for i = 1, n do out[i] = math.random(0, 9) end
      return big.read(table.concat(out))
    end
    for _ = 1, 200 do
      local a, b = digits(math.random(60)), big.add(digits(math.random(40)), big.read "1")
      local q, rest = big.divide(a, b)
      assert.is_true(big.equal(big.add(big.multiply(q, b), rest), a))
      assert.are.equal(1, big.subtract(b, rest).sign)
    end
  end)

  it("says what it does not understand", function()
    local wrong = { ["1 / 0"] = "division by zero", ["1 +"] = "ends where a number", ["(1"] = "not closed", ["abc"] = "expected at 'abc'",
                    ["1 2"] = "'2' is not understood", ["2 ^ 0.5"] = "whole number", ["9 ^ 9 ^ 9"] = "exponent", ["1e5"] = "no number",
                    ["2 ^ 99999"] = "more than 1000 digits", [("("):rep(500)] = "nested", [("1+"):rep(600)] = "longer than",
                    ["os.exit()"] = "expected at", [""] = "ends where", ["1)"] = "not understood", ["\0"] = "expected" }
    for text, what in pairs(wrong) do
      local v, why = value(text)
      assert.is_nil(v, text)
      assert.matches(what, why)
    end
    assert.are.same({ nil, "division by zero" }, { fathom.tools.calculator().run { expression = "1/0" } })
  end)
end)

describe("the file tool", function()
  local folder, remove, tool, outside
  before_each(function()
    folder, remove = helper.folder()
    outside = folder .. "/outside"

         assert(os.execute(("cd '%s' && mkdir -p root/a/b outside && echo hi > root/x && echo no > outside/secret"
                       .. " && ln -s ../outside root/link && ln -s ../outside/secret root/file && ln -s /etc root/etc"
                       .. " && mkfifo root/pipe"):format(folder)))
    tool = assert(fathom.tools.files { root = folder .. "/root", write = true, max_size = 1000, max_total = 2000 })
  end)
  after_each(function() remove() end)

  local function act(action, path, content) return tool.run { action = action, path = path, content = content } end

  it("lists, reads and writes", function()
    assert.are.equal("a/\nx (3 bytes)", act("list", ""))
    assert.are.equal("hi\n", act("read", "./x"))
    assert.are.equal("3 bytes written", act("write", "a/b/c/d.txt", "new"))
    assert.are.equal("new", act("read", "a//b/./c/d.txt"))
    assert.are.equal("d.txt (3 bytes)", act("list", "a/b/c"))
    assert.are.equal("4 bytes written", act("write", "x", "over"))
    assert.are.equal("over", act("read", "x"))
  end)

  local escapes = {
    "..", "../outside/secret", "a/../../outside/secret", "/etc/passwd", "//etc/passwd", "link/secret", "file", "etc/passwd",
    "a/b/../../../outside/secret", "./../outside/secret", "link", "link/../x", "pipe", "a", "x/y", "x\0y", "x\0/../../outside/secret",
    ("a/"):rep(600) .. "x", ("x"):rep(300), "nope",
  }
  it("reads nothing else", function()
    for _, path in ipairs(escapes) do
      local text, why = act("read", path)
      assert.is_nil(text, path)
      assert.are.equal("string", type(why))
    end
    for _, path in ipairs { "..", "link", "etc", "/", "x", "pipe", "a/.." } do assert.is_nil((act("list", path)), path) end
  end)

  it("writes nowhere else", function()
    for _, path in ipairs { "..", "../new", "link/new", "file", "/tmp/new", "pipe", "a", "", ".", "x/y", "etc/new",
                            "a/../../outside/new" } do
      assert.is_nil((act("write", path, "gotcha")), path)
    end
    assert.are.equal("no\n", helper.read(outside .. "/secret"))
    assert.is_nil(io.open(outside .. "/new"))
  end)

  it("keeps to its sizes", function()
    helper.write(folder .. "/root/big", ("x"):rep(1001))
    assert.matches("at most 1000 are read", select(2, act("read", "big")))
    assert.matches("at most 1000 bytes here", select(2, act("write", "y", ("x"):rep(1001))))
    assert(act("write", "y", ("x"):rep(1000)))
    assert(act("write", "y", ("x"):rep(1000)))
    assert.matches("no more than 2000 bytes are written in all", select(2, act("write", "y", "x")))
    local few = assert(fathom.tools.files { root = folder .. "/root", max_entries = 1 })
    assert.matches("\n... and more$", few.run { action = "list", path = "" })
  end)

  it("only reads unless it is told otherwise", function()
    local reader = assert(fathom.tools.files { root = folder .. "/root" })
    assert.is_nil((reader.run { action = "write", path = "y", content = "" }))
    assert.is_nil(reader.args.content)
    local none, err = fathom.tools.files { root = folder .. "/nowhere" }
    assert.is_nil(none)
    assert.are.equal("io", err.code)
    assert.has_error(function() fathom.tools.files {} end)
  end)
end)

describe("the HTTP tool", function()
  local there, net = pcall(require, "fathom.net")
  if not (there and net.client and net.server) then return pending "this build has no network library" end
  local server, port, answers, seen, held

  before_each(function()
    server = assert(net.server { host = "127.0.0.1", port = 0 })
    port, answers, seen, held = server:port(), {}, {}, {}
  end)
  after_each(function() server:close() end)

  -- Runs a call in a coroutine and answers what it asks from `answers`: path -> { status, body, headers }.
  local function run(tool, args)
    local co = coroutine.create(tool.run)
    for _ = 1, 5000 do
      local r = table.pack(coroutine.resume(co, args))
      assert(r[1], r[2])
      if coroutine.status(co) == "dead" then return r[2], r[3] end
      server:step(1)
      local x, what = server:take()
      if x then
        seen[#seen + 1] = what
        held[#held + 1] = x
        local a = answers[what.path] or { 404, "nothing" }
        if a[1] then x:reply(a[1], a[3] or {}, a[2]) end
      end
    end
    error "the call does not end"
  end

  local function tool(o)
    local all = { allow = { ("http://127.0.0.1:%d"):format(port) }, private = true, seconds = 5 }
    for k, v in pairs(o or {}) do all[k] = v end
    return assert(fathom.tools.http(all))
  end

  local function url(path) return ("http://127.0.0.1:%d%s"):format(port, path) end

  it("gives the body of a good reply, and the status of another", function()
    answers["/x"] = { 200, "hello" }
    assert.are.equal("hello", run(tool(), { url = url "/x" }))
    local text, why = run(tool(), { url = url "/y" })
    assert.is_nil(text)
    assert.are.equal("the server answered 404: nothing", why)
  end)

  it("asks nothing that is not on the list", function()
    local t = tool()
    local others = { "http://example.org/", "ftp://127.0.0.1/", "file:///etc/passwd", "//127.0.0.1/", "", "http://", "http://[::1]:80/",
                     "http://127.0.0.1:99999/" }
    for _, form in ipairs { "https://127.0.0.1:%d/", "http://localhost:%d/", "http://user@127.0.0.1:%d/",
                            "http://127.0.0.1:%d@example.org/", "http://example.org#@127.0.0.1:%d/",
                     "http://127.0.0.1:%d\\@example.org/", "http://127.0.0.1:%d /",
                            "http://127.0.0.1:%d\r\nX: y/", "http://2130706433:%d/", "http://127.1:%d/", "http://127.0.0.1:%d/ä",
                            "http://127.0.0.1.:%d/", "http://127.0.0.1:0%d@/" } do
      others[#others + 1] = form:format(port)
    end
    others[#others + 1] = ("http://127.0.0.1:%d/"):format(port + 1)
    for _, address in ipairs(others) do
      local text, why = run(t, { url = address })
      assert.is_nil(text, address)
      assert.are.equal("string", type(why))
    end
    assert.are.equal(0, #seen)
  end)

  it("knows names below a host, and ports", function()
    local http = require "fathom.tools.http"
    assert.are.same({ scheme = "https", host = "a.example.org", port = 443, path = "/" }, http.parse "HTTPS://A.example.org")
    assert.are.same({ scheme = "http", host = "[::1]", port = 8080, path = "/?q" }, http.parse "http://[::1]:8080?q#frag")
    local t = tool { allow = { "*.example.org" } }
    for _, address in ipairs { "https://example.org/", "https://badexample.org/", "http://a.example.org/", "https://a.example.org:444/",
                               "https://example.org.evil.net/" } do
      assert.matches("not on the list", select(2, run(t, { url = address })))
    end
  end)

  it("does not connect to addresses that are not public, whatever their name", function()
    answers["/x"] = { 200, "secret" }
    local t = tool { private = false, allow = { ("http://127.0.0.1:%d"):format(port), ("http://localhost:%d"):format(port) } }
    for _, host in ipairs { "127.0.0.1", "localhost" } do
      local text, why = run(t, { url = ("http://%s:%d/x"):format(host, port) })
      assert.is_nil(text)
      assert.matches("not one of the public network", why)
    end
    assert.are.equal(0, #seen)
  end)

  it("follows redirects only where it may go, and not for ever", function()
    answers["/a"] = { 302, "", { "Location", "/b" } }
    answers["/b"] = { 301, "", { "Location", "c" } }
    answers["/c"] = { 200, "there" }
    answers["/out"] = { 302, "", { "Location", "http://169.254.169.254/latest/meta-data" } }
    answers["/file"] = { 302, "", { "Location", "file:///etc/passwd" } }
    answers["/loop"] = { 302, "", { "Location", "/loop" } }
    assert.are.equal("there", run(tool(), { url = url "/a" }))
    assert.matches("not on the list", select(2, run(tool(), { url = url "/out" })))
    assert.is_nil((run(tool(), { url = url "/file" })))
    assert.matches("more than 3 redirects", select(2, run(tool(), { url = url "/loop" })))
  end)

  it("sends its headers to the host that was asked, not to one that this one names", function()
    answers["/here"] = { 302, "", { "Location", "/there" } }
    answers["/there"] = { 302, "", { "Location", ("http://localhost:%d/other"):format(port) } }
    answers["/other"] = { 200, "ok" }
    local t = tool { allow = { ("http://127.0.0.1:%d"):format(port), ("http://localhost:%d"):format(port) },
                     headers = { "Authorization: Bearer secret", "X-Mine: 1" } }
    assert.are.equal("ok", run(t, { url = url "/here" }))
    local got = {}
    for i, request in ipairs(seen) do got[i] = request.path .. " " .. tostring(request.headers["x-mine"]) end
    assert.are.same({ "/here 1", "/there 1", "/other nil" }, got)
    assert.is_nil(seen[3].headers.authorization)
  end)

  it("keeps to its sizes and its time", function()
    answers["/big"] = { 200, ("x"):rep(3000) }
    answers["/never"] = {}
    assert.matches("larger than 2000 bytes", select(2, run(tool { max_size = 2000 }, { url = url "/big" })))
    assert.is_nil((run(tool { seconds = 0.2 }, { url = url "/never" })))
  end)

  it("uses the methods it is given", function()
    answers["/x"] = { 200, "ok" }
    assert.matches("the method POST is not allowed", select(2, run(tool(), { url = url "/x", method = "post", body = "b" })))
    assert.are.equal("ok", run(tool { methods = { "POST" } }, { url = url "/x", method = "POST", body = "b" }))
    assert.are.equal("b", seen[1].body)
    assert.matches("takes no body", select(2, run(tool(), { url = url "/x", body = "b" })))
  end)

  it("shows no bytes that are no text", function()
    answers["/x"] = { 200, "\255\0\1", { "Content-Type", "image/png" } }
    assert.are.equal("(3 bytes of image/png)", run(tool(), { url = url "/x" }))
  end)

  it("is refused without a list of hosts", function()
    assert.has_error(function() fathom.tools.http {} end)
    assert.has_error(function() fathom.tools.http { allow = {} } end)
    assert.has_error(function() fathom.tools.http { allow = { "http://a/b" } } end)
    assert.has_error(function() fathom.tools.http { allow = { "ftp://a" } } end)
  end)
end)

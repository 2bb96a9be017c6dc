-- Code that nobody vouches for: what it may do, and what it cannot do however it tries.
local fence = require "fathom.fence"

local LIMITS = { instructions = 2000000, bytes = 4 << 20, seconds = 2 }

local function run(code, more)
  local o = {}
  for k, v in pairs(LIMITS) do o[k] = v end
  for k, v in pairs(more or {}) do o[k] = v end
  return fence.run(code, o)
end

describe("a fenced program", function()
  it("gives its values as text", function()
    assert.are.equal("2", run "1 + 1")
    assert.are.equal("2", run "return 1 + 1")
    assert.are.equal("5.0", run "10 / 2")
    assert.are.equal("1\ttwo\tnil\tfalse", run "return 1, 'two', nil, false")
    assert.are.equal("", run "local a = 1")
  end)

  it("gives tables as Lua would write them, always in the same order", function()
    local code = "return { 3, 'x', { a = 1 }, z = 1, a = 2, [10] = 'ten', ['a b'] = true, ['end'] = 0, f = print }"
    local want = [[{3, "x", {a = 1}, [10] = "ten", a = 2, ["a b"] = true, ["end"] = 0, f = function, z = 1}]]
    for _ = 1, 20 do assert.are.equal(want, run(code)) end
    assert.are.equal("{a = {...}}", run "local t = {} t.a = t return t")
    assert.are.equal([[{"line\nline"}]], run [[return { "line\nline" }]])
  end)

  it("gives what it prints in front of its values", function()
    assert.are.equal("a\t1\nb\n42", run "print('a', 1) print('b') return 42")
    assert.are.equal("table\tfunction", run "print({}, print)")
  end)

  it("gets plain data from outside, as a copy", function()
    local input = { list = { 1, 2, 3 }, name = "x", deep = { { true } } }
    assert.are.equal("6", run("local s = 0 for _, v in ipairs(input.list) do s = s + v end input.list[1] = 99 return s",
                              { input = input }))
    assert.are.equal(1, input.list[1])
    assert.are.equal("x", run("return (...).name", { input = input }))
    assert.are.equal("nil", run "return input")
  end)

  it("refuses input that is no data", function()
    assert.has_error(function() run("1", { input = { f = print } }) end)
    local circle = {}
    circle.me = circle
    assert.has_error(function() run("1", { input = circle }) end)
  end)

  it("says what is wrong with it", function()
    local text, why, kind = run "local x = = 1"
    assert.is_nil(text)
    assert.matches("^code:1: unexpected symbol near '='", why)
    assert.are.equal("syntax", kind)
    text, why, kind = run "local t = nil\nreturn t.x"
    assert.is_nil(text)
    assert.matches("^code:2: attempt to index a nil value", why)
    assert.are.equal("error", kind)
    assert.are.equal("the error is a table", select(2, run "error {}"))
    assert.are.equal("7", select(2, run "error(7)"))
  end)

  it("draws the same numbers every time", function()
    local code = "return math.random(1000), math.random(1000), math.random()"
    assert.are.equal(run(code), run(code))
  end)

  it("is told by wrong limits at the caller's line", function()
    local function said(...) return select(2, pcall(fence.run, ...)) end
    assert.matches("did you mean 'instructions'", said("1", { instruction = 5 }))
    assert.matches("code must be a string, got 5", said(5))
    assert.matches("'bytes' must be an integer of 1 or more", said("1", { bytes = 0 }))
    local _, where = pcall(function() return (fence.run("1", { seconds = -1 })) end)
    assert.matches("fence_spec.lua:%d+: fence.run: option 'seconds' must be", where)
  end)
end)

-- Each: what it tries, the program, and what must come of it: { text = pattern } or { over = kind } or { why = pattern }.
local attempts = {
  -- time
  { "a loop without end", "while true do end", over = "instructions" },
  { "a loop behind pcall", "while true do pcall(function() while true do end end) end", over = "instructions" },
  { "a loop behind xpcall, and another in its handler",
    "xpcall(function() while true do end end, function() while true do end end)", over = "instructions" },
  { "a handler that fails again and again", "local function h() error() end xpcall(error, h) while true do xpcall(h, h) end",
    over = "instructions" },
  { "a loop in a coroutine", "coroutine.wrap(function() while true do end end)()", over = "instructions" },
  { "a coroutine that is resumed again when it fails",
    "while true do local c = coroutine.create(function() while true do end end) coroutine.resume(c) end", over = "instructions" },
  { "many short coroutines",
    "local w, f = coroutine.wrap, function() local n = 0 for i = 1, 30 do n = n + i end end while true do w(f)() end",
    over = "instructions" },
  { "coroutines inside coroutines", "local function f() coroutine.wrap(f)() while true do end end f()", over = "instructions|error" },
  { "a loop in __close", "do local x <close> = setmetatable({}, { __close = function() while true do end end }) end",
    over = "instructions" },
  { "a loop in __close behind an error",
    "pcall(function() local x <close> = setmetatable({}, { __close = function() while true do end end }) error 'now' end)",
    over = "instructions" },
  { "a loop in __close of a coroutine that was stopped", [[
    local c = coroutine.wrap(function()
      local x <close> = setmetatable({}, { __close = function() while true do end end })
      while true do end
    end)
    while true do pcall(c) end]], over = "instructions" },
  { "coroutine.close that runs a loop", [[
    local c = coroutine.create(function()
      local x <close> = setmetatable({}, { __close = function() while true do end end })
      coroutine.yield()
    end)
    coroutine.resume(c)
    pcall(coroutine.close, c)]], over = "instructions" },
  { "a finalizer", "setmetatable({}, { __gc = function() while true do end end })", why = "no finalizers in here" },
  { "a finalizer that comes later", [[
    local mt = {}
    for i = 1, 100 do setmetatable({}, mt) end
    mt.__gc = function() while true do end end
    for i = 1, 10000 do local t = {} end
    return 'alive']], text = "^alive$" },
  { "a finalizer found by __index", [[
    local mt = setmetatable({}, { __index = function() return function() while true do end end end })
    for i = 1, 100 do setmetatable({}, mt) end
    for i = 1, 10000 do local t = {} end
    return 'alive']], text = "^alive$" },
  { "a loop in a metamethod", "return setmetatable({}, { __add = function() while true do end end }) + 1", over = "instructions" },
  { "a loop in __index", "return setmetatable({}, { __index = function() while true do end end }).x", over = "instructions" },
  { "__index in a circle", "local a, b = {}, {} setmetatable(a, {__index = b}) setmetatable(b, {__index = a}) return a.x", why = "loop" },
  { "a loop in __tostring", "print(setmetatable({}, { __tostring = function() while true do end end }))", over = "instructions" },
  { "a loop in __pairs",
    "for _ in pairs(setmetatable({}, { __pairs = function() while true do end end })) do end", over = "instructions" },
  { "a loop of goto", "::a:: goto a", over = "instructions" },
  { "recursion without end", "local function f() return 1 + f() end return f()", over = "error|bytes|instructions" },
  { "tail calls without end", "local function f() return f() end return f()", over = "instructions" },
  { "pcall without end", "local function f() return pcall(f) end return f()", over = "error|bytes|instructions|fine" },
  { "string.rep of nothing, for ever", "return (''):rep(1 << 62)", over = "instructions" },
  { "string.rep of much", "return #('x'):rep(1 << 30)", over = "bytes" },
  { "string.rep with a gap", "return #(''):rep(1 << 30, 'x')", over = "bytes" },
  { "string.rep again and again", "while true do local s = ('x'):rep(1000000) end", over = "instructions" },
  { "a pattern that tries everything", "return (('a'):rep(40)):find(('a?'):rep(40) .. ('a'):rep(40) .. 'b')", over = "instructions" },
  { "a pattern with many stars", "return (('a'):rep(2000)):match('.-.-.-.-.-.-.-b')", over = "instructions" },
  { "the same in gsub", "return (('a'):rep(2000)):gsub('.-.-.-.-.-.-b', '')", over = "instructions" },
  { "the same in gmatch", "for _ in (('a'):rep(2000)):gmatch('.-.-.-.-.-.-b') do end", over = "instructions" },
  { "the same behind pcall", "while true do pcall(string.find, ('a'):rep(2000), '.-.-.-.-.-.-b') end", over = "instructions" },
  { "a plain search of quadratic cost",
    "local a = ('a'):rep(200000) for i = 1, 9 do a:find(a:sub(1, 100000) .. 'b', 1, true) end return 'done'",
    text = "^done$" },
  { "%b over a long text, from every place", "return (('('):rep(100000)):find('%b()')", over = "instructions" },
  { "table.move over nothing", "table.move({}, 1, 1 << 62, 2)", over = "instructions" },
  { "table.move with wrap-around", "table.move({}, -1 << 63, 1 << 62, 2)", why = "too many" , over = "instructions|error" },
  { "table.concat over a made-up list",
    "table.concat(setmetatable({}, { __index = rawlen }), '', 1, 1 << 62)", over = "instructions|bytes" },
  { "table.insert into a length that is made up", "table.insert(setmetatable({}, { __len = function() return 1 << 62 end }), 1, 0)",
    why = "__len" },
  { "table.remove with a length that changes", [[
    local n = 0
    table.remove(setmetatable({}, { __len = function() n = n + 1 return n == 1 and 0 or 1 << 62 end }), 1)]], why = "__len" },
  { "table.insert with a border far away", "local t, i = {}, 1 for _ = 1, 62 do t[i] = 1 i = i * 2 end table.insert(t, 1, 0) return #t",
    over = "instructions|fine" },
  { "table.sort with an order that makes no sense",
    "local t = {} for i = 1, 999 do t[i] = i end table.sort(t, function() return true end) return #t",
    text = "^999$" },
  { "table.sort with a loop", "table.sort({ 3, 2, 1 }, function() while true do end end)", over = "instructions" },
  { "table.sort by a C function over a made-up length",
    "table.sort(setmetatable({}, { __len = function() return 1 << 31 end }), math.type)",
    over = "instructions|bytes" },
  { "table.sort of long strings", [[
    local t = {} for i = 1, 2000 do t[i] = ('x'):rep(1000) .. i end
    for i = 1, 1000 do table.sort(t) end]], over = "instructions|seconds|bytes" },
  { "table.unpack of too many", "return table.unpack({}, 1, 1e8)", over = "error|instructions" },
  { "table.unpack of many, again and again", "while true do pcall(table.unpack, {}, 1, 200000) end", over = "instructions" },
  { "next over a table that was emptied", [[
    local t = {} for i = 1, 50000 do t[i] = i end
    for k in next, t do t[k] = nil end
    for i = 1, 1e9 do next(t) end]], over = "instructions|seconds" },
  { "text.len of a long text",
    "local s = ('x'):rep(1000000) while true do utf8.len(s) s:upper() s:reverse() end", over = "instructions" },
  { "string.format of much", "while true do local s = ('%99d'):rep(1000):format(table.unpack({}, 1, 0)) end", over = "error" },
  { "loading for ever", "while true do load('return ' .. ('1+'):rep(1000) .. '1') end", over = "instructions" },
  { "a chunk that comes in pieces without end", "return load(function() return 'x = 1 ' end)", why = "longer than" },
  { "waiting by the clock", "local t = os.time() + 3600 repeat until os.time() > t", over = "instructions" },
  -- memory
  { "a table that grows", "local t = {} while true do t[#t + 1] = {} end", over = "bytes" },
  { "a table that grows behind pcall", "local t = {} while true do pcall(function() while true do t[#t + 1] = {} end end) end",
    over = "bytes" },
  { "a string that doubles", "local s = 'x' while true do s = s .. s end", over = "bytes" },
  { "a string that doubles behind pcall", "local s = 'x' while true do pcall(function() s = s .. s end) end", over = "bytes" },
  { "coroutines that are kept", "local t = {} while true do t[#t + 1] = coroutine.create(print) end", over = "bytes" },
  { "closures that are kept", "local t = {} while true do t[#t + 1] = function() return t end end", over = "bytes" },
  { "printing without end", "while true do print(('x'):rep(1000)) end", over = "bytes" },
  { "table.concat of much", "local t = {} for i = 1, 1000 do t[i] = ('x'):rep(3000) end return #table.concat(t)", over = "bytes" },
  { "gsub that grows", "local s = ('x'):rep(1000) while true do s = s:gsub('x', 'xx') end", over = "bytes|instructions" },
  { "string.pack of padding", "return string.pack('c' .. (1 << 30), '')", over = "bytes" },
  { "memory in __close after memory ran out", [[
    local t = {}
    local x <close> = setmetatable({}, { __close = function() while true do t[#t + 1] = {} end end })
    while true do t[#t + 1] = {} end]], over = "bytes" },
  { "a string as large as the quota, let go again", "for i = 1, 9 do local s = ('x'):rep(1 << 20) end return 'fine'", text = "^fine$" },
  -- what is not there
  { "files", "return io, os.remove, os.rename, os.tmpname, dofile, loadfile", text = "^nil\tnil\tnil\tnil\tnil\tnil$" },
  { "processes", "return os.execute, os.exit, os.getenv, os.setlocale", text = "^nil\tnil\tnil\tnil$" },
  { "modules", "return require, package, module", text = "^nil\tnil\tnil$" },
  { "debug", "return debug, collectgarbage, warn, string.dump", text = "^nil\tnil\tnil\tnil$" },
  { "bytecode as text", "return (load('\\27Lua\\x54\\0', 'x', 'b'))", text = "^nil$" },
  { "bytecode with mode b", "return load('return 1', 'x', 'b') ~= nil", text = "^true$" },
  { "bytecode from a function", "return string.dump", text = "^nil$" },
  { "bytecode in pieces", "local n = 0 return (load(function() n = n + 1 return ({ '\\27Lua', 'x' })[n] end))", text = "^nil$" },
  { "the metatable of strings", "getmetatable('').__index = nil", why = "index" },
  { "the metatable of strings, by name", "return getmetatable('')", text = "^string$" },
  { "changing functions of string",
    "string.format = function() return 'evil' end return ('%d'):format(1), { 'a' }", text = '^evil\t{"a"}$' },
  { "changing functions that the result needs", [[
    tostring, type, table.concat, pairs, next, rawget, string.find = nil
    return { a = { 1, 2 } }]], text = "^{a = {1, 2}}$" },
  { "a metatable that lies to the result", [[
    return setmetatable({ 1 }, { __index = function() while true do end end, __pairs = error, __len = error, __name = 'x' })]],
    text = "^{1}$" },
  { "addresses", "return tostring({}), tostring(print), ('%s'):format({}), tostring(coroutine.create(print))",
    text = "^table\tfunction\ttable\tthread$" },
  { "addresses by %p", "return ('%p'):format({})", why = "%%p" },
  { "addresses by %p behind flags", "return ('%-20p'):format({})", why = "%%p" },
  { "addresses by %p behind a percent", "return ('%%%p'):format({})", why = "%%p" },
  { "globals through _G", "return _G.io, _G._G == _G, _ENV == _G", text = "^nil\ttrue\ttrue$" },
  { "globals of the host", "return fathom, arg, describe", text = "^nil\tnil\tnil$" },
  { "globals of a loaded chunk", "return load('return io, require')()", text = "^nil\tnil$" },
  { "the environment of a loaded chunk", "return load('return x', 'c', 't', { x = 5 })()", text = "^5$" },
  { "yielding out of the program", "coroutine.yield(1)", why = "outside a coroutine" },
  { "the main thread", "return coroutine.isyieldable(), (select(2, coroutine.running()))", text = "^false\ttrue$" },
  { "closing the main thread", "return pcall(coroutine.close, (coroutine.running()))", text = "^false" },
  { "parsing what is nested deeply", "return (load(('('):rep(50000) .. ('1)'):rep(50000)))", text = "^nil$" },
  { "a pattern that is nested deeply", "return pcall(string.find, ('a'):rep(500), ('(a'):rep(300))", text = "^false" },
  { "a pattern of many optional parts", "return pcall(string.find, ('a'):rep(500), ('a?'):rep(500))", text = "^false\t.*too complex" },
  { "a pattern that is cut short", "return pcall(string.find, 'a', '[a'), pcall(string.find, 'a', '%'), pcall(string.gsub, 'a', '(', '')",
    text = "^false" },
  { "a very long date", "return pcall(os.date, ('%c'):rep(100000))", over = "fine|bytes|instructions" },
}

describe("an attempt to escape:", function()
  for _, a in ipairs(attempts) do
    it(a[1], function()
      local begun = os.clock()
      local text, why, kind = run(a[2])
      assert.is_true(os.clock() - begun < 4, "it took too long")
      kind = kind or "fine"
      if a.over then assert.truthy(("|" .. a.over .. "|"):find("|" .. kind .. "|", 1, true), kind .. ": " .. tostring(why or text)) end
      if a.why and kind == "error" then assert.matches(a.why, why)
      elseif a.why and not a.over then error("it was " .. kind) end
      if a.text then assert.matches(a.text, text or why) end
    end)
  end

  it("all of them again leave the host as it was", function()
    local names, strings = {}, {}
    for k in pairs(_G) do names[k] = true end
    for k, v in pairs(string) do strings[k] = v end
    for i = 1, #attempts, 3 do run(attempts[i][2]) end
    for k in pairs(_G) do assert.is_true(names[k], k) end
    for k, v in pairs(string) do assert.are.equal(strings[k], v) end
    assert.are.equal(string, getmetatable("").__index)
    local hooked = debug.gethook()
    assert.is_nil(hooked)
    assert.are.equal("ok", run "return 'ok'")
  end)

  it("seconds end what instructions would not", function()
    local begun = os.time()
    local _, why, kind = run("while true do end", { instructions = 1 << 60, seconds = 0.1 })
    assert.are.equal("seconds", kind)
    assert.matches("after 0.1 seconds", why)
    assert.is_true(os.time() - begun <= 2)
  end)

  it("memory may run out at any point", function()
    local programs = {
      "local t = {} for i = 1, 2000 do t[i] = { i, tostring(i) } end table.sort(t, function(a, b) return a[2] < b[2] end) return #t",
      "local c = {} for i = 1, 300 do c[i] = coroutine.create(coroutine.yield) coroutine.resume(c[i], {}) end return #c",
      "local ok, e = pcall(function() local t = {} while true do t[#t + 1] = {} end end) return ok, e",
      "for w in ('a b c '):rep(3000):gmatch '%a' do print(w) end",
    }
    local kinds = {}
    for _, code in ipairs(programs) do
      for bytes = 1, 400000, 9973 do
        local _, _, kind = fence.run(code, { bytes = bytes, instructions = 300000, input = { { 1, 2 }, ("x"):rep(500) } })
        kinds[kind or "fine"] = true
      end
    end
    assert.are.same({ bytes = true, fine = true }, kinds)
  end)

  it("memory is given back", function()
    if os.getenv "FATHOM_ASAN" then return pending "the sanitizer keeps what was freed for a while" end
    collectgarbage()
    local function resident()
      local file = assert(io.open "/proc/self/statm")
      local pages = tonumber(file:read("a"):match "%d+ (%d+)")
      file:close()
      return pages * 4096
    end
    local hungry = "local t = {} while true do t[#t + 1] = ('x'):rep(10000) end"
    run(hungry, { bytes = 32 << 20 })
    local before = resident()
    for _ = 1, 10 do run(hungry, { bytes = 32 << 20 }) end
    assert.is_true(resident() - before < 40 << 20)
  end)

  it("works in slices inside a coroutine, and lets others go on", function()
    local turns = 0
    local co = coroutine.create(function()
      return run("local n = 0 for i = 1, 3000000 do n = n + i end return n", { instructions = 1 << 40 })
    end)
    local ok, text
    repeat
      ok, text = coroutine.resume(co)
      turns = turns + 1
    until coroutine.status(co) == "dead"
    assert.is_true(ok)
    assert.are.equal("4500001500000", text)
    assert.is_true(turns > 3)
  end)

  it("keeps its quotas in slices", function()
    for _, code in ipairs { "while true do end", "pcall(function() while true do end end) while true do end",
                            "while true do coroutine.wrap(function() for i = 1, 1e6 do end end)() end",
                            "('x'):rep(10):gsub('x', function() while true do end end)" } do
      local co = coroutine.create(function() return run(code, { instructions = 1 << 40, seconds = 0.1 }) end)
      local r
      repeat r = table.pack(coroutine.resume(co)) until coroutine.status(co) == "dead"
      assert.is_nil(r[2])
      assert.are.equal("seconds", r[4])
    end
  end)

  it("gives the same in the thinnest slices as at once", function()
    local programs = {
      "local t = {} for i = 1, 300 do t[#t + 1] = (i * 7919) % 101 end table.sort(t) return table.concat(t, ' ')",
      "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end return fib(15)",
      "local function f(n, ...) if n == 0 then return ... end return f(n - 1, n, ...) end return select('#', f(100)), (f(100))",
      "local s = {} for w in ('the quick brown fox '):rep(50):gmatch '%a+' do s[w] = (s[w] or 0) + 1 end return s",
      "local n = 0 for i = 1, 200 do local ok, e = pcall(function() if i % 3 == 0 then error({ i }) end return i end)"
        .. " n = n + (ok and e or e[1] * 2) end return n",
      "local c = coroutine.wrap(function() for i = 1, 200 do coroutine.yield(i) end return 'end' end)"
        .. " local n = 0 for i = 1, 200 do n = n + c() end return n, c()",
      "local mt = { __index = function(_, k) return k * 2 end, __add = function(a, b) return a.v + b.v end,"
        .. " __lt = function() return true end } local a, n = setmetatable({ v = 1 }, mt), 0"
        .. " for i = 1, 200 do n = n + a[i] + (a + a) + (a < a and 1 or 0) end return n",
      "local n, i = 0, 0 ::top:: i = i + 1 if i % 2 == 0 then goto skip end n = n + i ::skip:: if i < 500 then goto top end return n",
      "return (('x'):rep(300):gsub('x', function() local n = 0 for i = 1, 10 do n = n + i end return n end))",
      "do local x <close> = setmetatable({}, { __close = function() for i = 1, 300 do last = i end end }) end return last",
      "local fs = {} for i = 1, 50 do fs[i] = function() i = i + 1 return i end end local n = 0"
        .. " for r = 1, 5 do for _, f in ipairs(fs) do n = n + f() end end return n",
      "for i = 1, 100 do print(i, ('%5.2f'):format(i / 3)) end local a, b, c = (function(...) return ... end)(1, 2, 3) return a, b, c",
      "local t = setmetatable({}, { __pairs = function() return function(_, k) k = (k or 0) + 1 if k < 99 then return k, k end end end })"
        .. " local n = 0 for _, v in pairs(t) do n = n + v end return n",
      "local n = 0 for i = 1, 300 do local x, y, z = table.unpack({ i, i + 1, i + 2 }) n = n + x * y - z end error('n is ' .. n)",
      "xpcall(function() local x = nil; return x.y end, function(m) for i = 1, 200 do last = i end return m end) return last",
    }
    local core = require "fathom.core"
    local prelude = "print = function() end return function(...) local t = table.pack(...) for i = 1, t.n do"
      .. " t[i] = type(t[i]) == 'table' and t[i].the or tostring(t[i]) end return table.concat(t, ' ', 1, t.n) end"
    local in_all = 0
    for _, code in ipairs(programs) do
      local function result(slice)
        local handle <close> = core.fence(code, prelude, 1 << 40, 16 << 20, nil)
        local slices, why, text = 1, handle:step(slice, 1e9)
        while not why do
          why, text = handle:step(slice, 1e9)
          slices = slices + 1
        end
        return why .. ": " .. tostring(text), slices
      end
      local whole, one = result(math.huge)
      local cut, many = result(0)
      assert.are.equal(whole, cut, code)
      assert.are.equal(1, one)
      in_all = in_all + many
    end
    assert.is_true(in_all > 500)
  end)

  it("may be dropped in the midst", function()
    for _ = 1, 50 do
      local co = coroutine.create(function() return run("while true do local t = {} end", { instructions = 1 << 40 }) end)
      coroutine.resume(co)
      coroutine.close(co)
    end
  end)
end)

describe("the patterns of the fence", function()
  local pieces = { "a", "b", "%a", "%d", ".", "[ab]", "[^a]", "[a-c]", "%w", "(", ")", "()", "%b()", "%f[%w]", "%1", "*", "+", "-", "?",
                   "$", "^", "%s", "[%a_]", "%%", "]", "[]]", "[^%d]", "\0", "[\0-a]", "%U" }
  local letters = { "a", "b", "c", "1", "(", ")", " ", "_", "%", "]", "\0", "A" }

  local function made(random, list, most)
    local out = {}
    for i = 1, random(0, most) do out[i] = list[random(#list)] end
    return table.concat(out)
  end

  -- The host's own functions are the reference; both sides as text.
  local CODE = [[
    local out = {}
    for i, case in ipairs(input) do
      local s, p, r, at = case[1], case[2], case[3], case[4]
      local function note(...)
        local parts = table.pack(...)
        if not parts[1] then parts = { 'error', n = 1 } end
        for j = 1, parts.n do parts[j] = tostring(parts[j]) end
        out[#out + 1] = table.concat(parts, ' ', 1, parts.n)
      end
      note(pcall(string.find, s, p, at))
      note(pcall(string.match, s, p, at))
      note(pcall(string.gsub, s, p, r))
      note(pcall(string.gsub, s, p, { a = 'X', ab = 1 }, 2))
      note(pcall(string.gsub, s, p, function(x) return x and '<' .. x .. '>' end))
      note(pcall(function()
        local n = {}
        for x, y in string.gmatch(s, p) do n[#n + 1] = tostring(x) .. '/' .. tostring(y) end
        return table.concat(n, ',')
      end))
    end
    return table.concat(out, '\n')]]

  it("mean what the host's mean", function()
    math.randomseed(7)
    local cases = {}
    for i = 1, 3000 do
      cases[i] = { made(math.random, letters, 12), made(math.random, pieces, 6), ({ "x", "%0%0", "[%1]", "%%" })[math.random(4)],
                   math.random(-3, 4) }
    end
    local want = assert(load("local input = ... " .. CODE))(cases)
    local got = assert(fence.run(CODE, { input = cases, instructions = 1 << 40, bytes = 256 << 20, seconds = 60 }))
    local at = 0
    local other = got:gmatch "[^\n]*"
    for line in want:gmatch "[^\n]*" do
      local theirs = other()
      if line ~= theirs then
        local case = cases[at // 6 + 1]
        assert.are.equal(line, theirs, ("%q in %q, %q, %d"):format(case[2], case[1], case[3], case[4]))
      end
      at = at + 1
    end
  end)
end)

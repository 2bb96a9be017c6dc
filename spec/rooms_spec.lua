-- Who may include whom: a room uses rooms above it only.

local may = {
  base = {}, op = { "base" }, cpu = { "base", "op/backend.h", "op/comm.h" }, io = { "base" },
  model = { "base", "op", "io" }, run = { "base", "op", "io", "model" }, train = { "base", "op", "io", "model" },
  net = { "base" }, bind = { "base", "op", "cpu", "io", "model", "run", "train" },
}
-- kernels are a device's own room, beside csrc: base's status, the table and the collectives, and nobody reaches into them
may.kernels = { "base/status.h", "op/backend.h", "op/comm.h" }
-- libraries, and the files that alone know them. net is a module of its own, opened on first use, so it brings its binding along
local knows_lua = { "^csrc/bind/", "^csrc/net/net%.[ch]$", "^csrc/net/lua_%w+%.c$" }
local libraries = {
  ["lua.h"] = knows_lua, ["lauxlib.h"] = knows_lua, ["lualib.h"] = knows_lua,
  ["curl/curl.h"] = "^csrc/net/client%.c$", ["microhttpd.h"] = "^csrc/net/[es][erx][a-z]*%.[ch]$",
  ["pcre2.h"] = "^csrc/io/tokenizer%.c$", ["utf8proc.h"] = "^csrc/io/tokenizer%.c$",
  ["immintrin.h"] = "^csrc/cpu/", ["pthread.h"] = { "^csrc/base/pool%.c$", "^csrc/base/hub%.c$" },
}

local function files(pattern)
  local list = {}
  local pipe = assert(io.popen("ls " .. pattern))
  for name in pipe:lines() do list[#list + 1] = name end
  pipe:close()
  return list
end

local function matches_one(name, patterns)
  for _, pattern in ipairs(type(patterns) == "table" and patterns or { patterns }) do
    if name:match(pattern) then return true end
  end
  return false
end

local function allowed(room, header)
  if header == "fathom.h" or header:match("^" .. room .. "/") then return true end
  if room == "kernels" and (header:match "^[%w_]+%.cuh$" or header:match "^sm90/") then return true end
  for _, other in ipairs(may[room]) do
    if header == other or header:match("^" .. other .. "/") then return true end
  end
  return false
end

--- What is wrong with the includes of one file, as a list of sentences.
local function faults(name, text)
  local room, found = name:match "^csrc/(%w+)/" or name:match "^kernels/" and "kernels", {}
  for mark, header in text:gmatch '#include ([<"])([^>"]+)[>"]' do
    if mark == '"' and not allowed(room, header) then
      found[#found + 1] = ("%s reaches into %s"):format(name, header)
    end
    if mark == "<" and libraries[header] and not matches_one(name, libraries[header]) then
      found[#found + 1] = ("%s knows %s"):format(name, header)
    end
  end
  return found
end

describe("the house", function()
  local all = files "csrc/*/*.c csrc/*/*.h kernels/*.cu kernels/*.cuh kernels/sm90/*.cu kernels/sm90/*.cuh"

  it("has rooms that reach only where they may", function()
    local found = {}
    for _, name in ipairs(all) do
      local file = assert(io.open(name))
      for _, f in ipairs(faults(name, file:read "a")) do found[#found + 1] = f end
      file:close()
    end
    assert.are.same({}, found)
    assert.is_true(#all > 40)
  end)

  it("notices a room that reaches where it may not", function()
    assert.are.equal(1, #faults("csrc/base/x.c", '#include "op/op.h"\n'))
    assert.are.equal(1, #faults("csrc/model/x.c", '#include <lua.h>\n'))
    assert.are.equal(2, #faults("csrc/net/client.c", '#include "io/bpe.h"\n#include <lua.h>\n'))
    assert.are.equal(0, #faults("csrc/net/lua_client.c", '#include "base/mem.h"\n#include <lua.h>\n'))
    assert.are.equal(0, #faults("csrc/run/x.c", '#include "model/kv.h"\n#include <stdio.h>\n'))
  end)

  it("neither prints nor ends the program", function()
    local found = {}
    for _, name in ipairs(all) do
      for line in io.lines(name) do
        local call = line:match "^%s*([%w_]+)%s*%(" or ""
        if call == "printf" or call == "exit" or call == "abort" or call == "perror" or call == "puts" then
          found[#found + 1] = name .. ": " .. line
        end
      end
    end
    assert.are.same({}, found)
  end)

  local build = os.getenv "FATHOM_BUILD" or "build"

  local function exports(path)
    local pipe, names = assert(io.popen("nm -D --defined-only " .. path)), {}
    for line in pipe:lines() do names[#names + 1] = line:match "%s%a%s([%w_]+)" end
    pipe:close()
    return names
  end

  it("exports one name from each module", function()
    assert.are.same({ "luaopen_fathom_core" }, exports(build .. "/fathom.so"))
    if not package.searchpath("fathom.net", package.cpath) then return pending "no network library here" end
    assert.are.same({ "luaopen_fathom_net" }, exports(build .. "/fathom/net.so"))
  end)

  it("links no network library into the core", function()
    local pipe = assert(io.popen("ldd " .. build .. "/fathom.so"))
    local needs = pipe:read "a"
    pipe:close()
    assert.is_nil(needs:find "curl" or needs:find "microhttpd")
  end)
end)

--- host_spec.lua - what a host may count on: threads that sleep, threads where they were asked to be, examples that run.
local fathom = require "fathom"
local helper = require "spec.helper"

local function lines(command)
  local pipe = assert(io.popen(command))
  local list = {}
  for line in pipe:lines() do list[#list + 1] = line end
  return list, pipe:close()
end

-- This process's threads, as the kernel numbers them.
local function threads()
  local pid = helper.read("/proc/self/stat"):match "^%d+"
  return (lines("ls /proc/" .. pid .. "/task")), pid
end

-- Clock ticks that the process's threads but the first have run.
local function ticks()
  local list, pid = threads()
  local sum = 0
  for _, id in ipairs(list) do
    if id ~= pid then
      -- fields 14 and 15; the name in front may hold anything up to its bracket
      local stat = helper.read(("/proc/%s/task/%s/stat"):format(pid, id))
      local user, system = stat:match("%)" .. (" %S+"):rep(11) .. " (%d+) (%d+)")
      sum = sum + user + system
    end
  end
  return sum
end

describe("threads", function()
  it("are as many as were asked for, none for one, and gone with the model", function()
    local before = #threads()
    for _, n in ipairs { 1, 3 } do
      local model <close> = assert(fathom.load(fathom.pocket, { threads = n, ctx = 64 }))
      assert.same({ before + n - 1, n }, { #threads(), model:stats().threads })
    end
    assert.equal(before, #threads())
  end)

  it("sleep outside calls", function()
    local model <close> = assert(fathom.load(fathom.pocket, { threads = 3, ctx = 128 }))
    assert(model:generate("Once", { max_tokens = 40 }))
    local busy = ticks()
    assert.is_true(os.execute "sleep 0.5")
    assert.is_true(ticks() - busy <= 1)            -- spinning threads would have run for a hundred ticks
  end)

  it("run on the CPUs they were given, and lists that are none raise", function()
    local model <close> = assert(fathom.load(fathom.pocket, { threads = 2, cpus = "0", ctx = 64 }))
    local list, pid = threads()
    local pinned = 0
    assert.equal(2, model:stats().threads)
    for _, id in ipairs(list) do
      local allowed = helper.read(("/proc/%s/task/%s/status"):format(pid, id)):match "Cpus_allowed_list:%s*(%S+)"
      if id ~= pid and allowed == "0" then pinned = pinned + 1 end
    end
    assert.equal(1, pinned)
    local away, refused = fathom.load(fathom.pocket, { cpus = "999", ctx = 64 })
    assert.is_nil(away)
    assert.matches("may not run there", refused.message)
    local alone <close> = assert(fathom.load(fathom.pocket, { cpus = "0", ctx = 64 }))
    assert.equal(1, alone:stats().threads)
    for _, bad in ipairs { "", "x", "0-", "3-1", "0,,1", "0;1", "-1", "99999" } do
      assert.has_error(function() fathom.load(fathom.pocket, { cpus = bad }) end)
    end
    local none, err = fathom.load(fathom.pocket, { cpus = "1023", threads = 2 })
    assert.is_nil(none)
    assert.equal("limit", err.code)
  end)
end)

describe("the C hosts", function()
  local build = helper.build

  it("generate an answer", function()
    local out, fine = lines(build .. "/generate 2>/dev/null")
    assert.is_true(fine)
    assert.matches("42", table.concat(out, "\n"))
  end)

  it("run a game's frames with three characters and print the histogram", function()
    local out, fine = lines(build .. "/frames examples/pocket cpu 2")
    local text, frames = table.concat(out, "\n"), 0
    assert.is_true(fine)
    for count in text:gmatch "up to +[%d.]+ ms +(%d+)" do frames = frames + math.tointeger(count) end
    frames = frames + math.tointeger(text:match "a frame missed +(%d+)")
    assert.equal(121, frames)
    assert.is_true(math.tointeger(text:match "(%d+) tokens in") > 0)
    assert.is_nil((select(2, lines(build .. "/frames no/such/folder 2>/dev/null"))))
  end)
end)

--- loop_spec.lua - waiting inside other people's event loops: each example runs, where its loop is installed.
local helper = require "spec.helper"

local function run(name)
  local lua = os.getenv "LUA" or "lua5.4"
  local pipe = assert(io.popen(("LUA_CPATH='%s/?.so;;' %s examples/loops/%s.lua 2>&1"):format(helper.build, lua, name)))
  local out = pipe:read "a"
  return out, pipe:close()
end

for _, name in ipairs { "luv", "copas", "cqueues" } do
  describe("in the loop of " .. name, function()
    it("answers come while a clock goes on", function()
      local out, fine = run(name)
      assert.is_true(fine, out)
      if out:find "^skipped" then
        pending(out)
        return
      end
      assert.matches("first: [^\n]*42", out)
      assert.matches("second: [^\n]*Paris", out)
      assert.matches("the clock had its turn meanwhile", out)
    end)
  end)
end

describe("a loop's way of waiting", function()
  it("is taken back, and checks its slice", function()
    local loop, task = require "fathom.loop", require "fathom.task"
    local there = pcall(require, "luv")
    if there then
      loop.luv(5)
      assert.is_true(task.pause ~= coroutine.yield)
      assert.has_error(function() loop.luv(0) end)
      assert.has_error(function() loop.luv "x" end)
    end
    loop.none()
    assert.equal(coroutine.yield, task.pause)
  end)
end)

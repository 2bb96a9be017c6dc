-- processes_spec.lua - ranks as processes: what srun, mpirun and torchrun start, on the CPU of this machine.
local now = require("fathom.core").now

local NAMES = {
  fathom = { "FATHOM_RANK", "FATHOM_WORLD", "FATHOM_ADDR=127.0.0.1:%d" },
  torchrun = { "RANK", "WORLD_SIZE", "MASTER_ADDR=localhost MASTER_PORT=%d" },
  srun = { "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LAUNCH_NODE_IPADDR=127.0.0.1:%d" },
  mpirun = { "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "MASTER_ADDR=127.0.0.1 MASTER_PORT=%d" },
}

local port = 21000 + (os.time() * 37 + math.floor(os.clock() * 1e6)) % 30000

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

-- Runs a shell command n times side by side; what each of them said, and how long all took.
local function side_by_side(n, command, by, seconds)
  local name, lines, out = NAMES[by or "fathom"], {}, {}
  port = port + 2
  for i = 0, n - 1 do
    out[i + 1] = os.tmpname()
    lines[#lines + 1] = ("%s=%d %s=%d %s %s > %s 2>&1 &"):format(name[1], i, name[2], n, name[3]:format(port), command:gsub("%%r", i),
      out[i + 1])
  end
  local begun = now()
  os.execute(("export FATHOM_DEVICE=cpu FATHOM_RANK_SECONDS=%d; %s wait"):format(seconds or 20, table.concat(lines, " ")))
  local ms = now() - begun
  for i, path in ipairs(out) do
    out[i] = read(path)
    os.remove(path)
  end
  return out, ms
end

local function script(text)
  local path = os.tmpname()
  local f <close> = assert(io.open(path, "w"))
  assert(f:write(text))
  return path
end

-- Everything that a script may see, as text: all processes see the same, and what one alone sees.
local WORK = [[
  local fathom = require "fathom"
  local name, form = arg[1], load("return " .. arg[2])()
  local model <close> = assert(fathom.load("spec/golden/" .. name, { ctx = 128, seqs = 8, threads = 1, parallel = form }))
  local ids = {}
  for i = 1, 40 do ids[i] = (i * 33 + 1) % 500 end
  local function digest(tensor)
    local h = 0
    for c in tensor:bytes():gmatch "." do h = (h * 31 + c:byte()) & 0xffffffffff end
    tensor:close()
    return h
  end
  if not (form or {}).tp then print(digest(model:logits(ids)), digest(model:hidden(ids))) end
  local sessions, tasks = {}, {}
  for i = 1, 5 do
    sessions[i] = model:session { temperature = 1, ignore_eos = true, seed = i }
    tasks[i] = sessions[i]:ask(table.move(ids, 1, 5 + 5 * i, 1, {}), { max_tokens = 10 + i })
    model:step { ms = 1 }
  end
  tasks[2]:cancel()
  for i = 1, 5 do if i ~= 2 then print(table.concat(assert(tasks[i]:wait()).ids, " ")) end end
  local fork <close> = sessions[1]:fork()
  print(table.concat(assert(fork:ask({ 10, 11 }, { max_tokens = 8 }):wait()).ids, " "))
  if model:stats().processes > 1 then print(assert(model:generate(ids, { max_tokens = 4, mtp = "auto" })).seed) end
]]

describe("processes", function()
  local work
  setup(function() work = script(WORK) end)
  teardown(function() os.remove(work) end)

  local function alone(name)
    local pipe <close> = assert(io.popen(("FATHOM_DEVICE=cpu lua5.4 %s %s nil"):format(work, name)))
    return pipe:read "a"
  end

  it("give what one gives, and draw the same seeds", function()
    local forms = { ["v3-tiny"] = { "{dp=2}", "{pp=2,dp=2}", "{tp=2,dp=2}", "{pp=2,tp=2}" }, ["qwen2-tiny"] = { "{tp=2}", "{pp=2,dp=2}" },
                    ["v3-fp8"] = { "{dp=3}", "{tp=4,ep=2}" } }
    for name, list in pairs(forms) do
      local one = alone(name)
      for _, form in ipairs(list) do
        local n = 1
        for digit in form:gsub("ep=%d", ""):gmatch "%d" do n = n * tonumber(digit) end
        local out = side_by_side(n, ("lua5.4 %s %s '%s'"):format(work, name, form))
        local want = form:find "tp" and one:gsub("^[^\n]*\n", "") or one
        local text, seed = out[1]:match "^(.*\n)(%d+)\n$"
        assert.equal(want, text, form)
        assert.is_truthy(seed)
        for i = 2, n do assert.equal(out[1], out[i], form) end
      end
    end
  end)

  it("are known by what torchrun, srun and mpirun set", function()
    local path = script [[
      local fathom = require "fathom"
      local rank, world = fathom.processes()
      local model <close> = assert(fathom.load("spec/golden/v2-tiny", { ctx = 128, threads = 1, parallel = { dp = 2 } }))
      local s = model:stats()
      print(rank, world, s.process, s.processes, s.ranks, s.dp)
    ]]
    for by in pairs(NAMES) do
      local out = side_by_side(2, "lua5.4 " .. path, by)
      assert.equal("0\t2\t0\t2\t2\t2\n", out[1], by)
      assert.equal("1\t2\t1\t2\t2\t2\n", out[2], by)
    end
    os.remove(path)
  end)

  it("leave a list of devices to each of them", function()
    local path = script [[
      local model <close> = assert(require "fathom".load("spec/golden/v2-tiny", { ctx = 128, threads = 1, device = { "cpu", "cpu" } }))
      local s = model:stats()
      print(s.process, s.processes, s.ranks)
    ]]
    assert.same({ "0\t1\t2\n", "0\t1\t2\n" }, (side_by_side(2, "lua5.4 " .. path)))
    os.remove(path)
  end)

  it("let the command speak once", function()
    local out = side_by_side(2, "lua5.4 lua/bin/fathom generate 'What is 17 + 25?' --temperature 0 --parallel tp=2")
    assert.matches("42", out[1])
    assert.equal("", out[2])
    out = side_by_side(2, "lua5.4 lua/bin/fathom chat < /dev/null")
    for i = 1, 2 do assert.matches("one process", out[i]) end
  end)

  -- what process 1 does in the middle of a generation, and what process 0 is told, within so many seconds
  local function trouble(what, seconds)
    local path = script(([[
      local fathom = require "fathom"
      local model = assert(fathom.load("spec/golden/v3-tiny", { ctx = 128, threads = 1, parallel = { tp = 2 } }))
      local s = model:session { temperature = 0, ignore_eos = true }
      local task = s:ask({ 1, 2, 3 }, { max_tokens = 90 })
      for _ = 1, 10 do model:step() end
      if %%r == 1 then %s end
      local r, err = task:wait()
      print(r and "answer" or err.code, r and "" or err.message)
      r, err = model:generate({ 1, 2 }, { max_tokens = 2 })
      print(r and "answer" or err.code)
      model:close()
    ]]):format(what))
    local text = read(path)
    local f = assert(io.open(path, "w"))
    f:write((text:gsub("%%r", "tonumber(arg[1])")))
    f:close()
    local out, ms = side_by_side(2, ("lua5.4 %s %%r"):format(path), "fathom", seconds)
    os.remove(path)
    return out[1], ms
  end

  it("notice at once when one of them is gone", function()
    local said, ms = trouble("os.exit(0)", 60)
    assert.matches("^device\tprocess 1 is gone\ndevice\n$", said)
    assert.is_true(ms < 15000)
    assert.matches("^device\tprocess 1 is gone\n", (trouble("s:close() model:close() os.execute 'sleep 2'", 60)))
    assert.matches("^device\tprocess 1 is gone\n", (trouble("os.execute 'kill -9 $PPID'", 60)))
  end)

  it("wait for one that hangs no longer than the limit", function()
    local said, ms = trouble("os.execute 'sleep 4'", 1)
    assert.matches("^device\tprocess 1 did not answer in 1 s\ndevice\n$", said)
    assert.is_true(ms < 15000)
  end)

  it("notice when they do not do the same", function()
    local said = trouble("task:cancel() task = s:ask({ 5, 6, 7, 8, 9, 10, 11, 12 }, { max_tokens = 90 })", 60)
    assert.matches("^device\tprocess 1 sends %d+ bytes.*same script", said)
  end)

  it("say so when the others do not come, or came with other options", function()
    local path = script [[
      local ctx = 64 + 64 * tonumber(arg[1])
      local model, err = require "fathom".load("spec/golden/v2-tiny", { ctx = ctx, threads = 1, parallel = { dp = 2 } })
      print(err.code, err.message)
    ]]
    local out = side_by_side(2, ("lua5.4 %s %%r"):format(path))
    for i = 1, 2 do assert.matches("processes %d and %d have different sizes", out[i]) end
    out = side_by_side(1, "env FATHOM_WORLD=3 lua5.4 " .. path .. " 0", "fathom", 1)
    assert.matches("^device\t1 of 3 processes came to 127.0.0.1 port %d+ in 1 s", out[1])
    for _, case in ipairs { { "FATHOM_WORLD=2", "FATHOM_RANK is not set" }, { "FATHOM_WORLD=2 FATHOM_RANK=2", "is 2 of" },
                            { "FATHOM_WORLD=x", "expected a number" },
                            { "FATHOM_WORLD=2 FATHOM_RANK=0 FATHOM_ADDR=here:0", "host:port" } } do
      local pipe <close> = assert(io.popen(("env %s lua5.4 %s 0"):format(case[1], path)))
      assert.matches(case[2], pipe:read "a")
    end
    os.remove(path)
  end)
end)

--- Runs the C tests named in arg and then the specs; prints one line "N passed, N failed, N skipped" at the end.
-- Specs run on the cpu unless they name a device.
-- A C test prints "ok - ..." or "not ok - ..." lines; a program that ends badly counts as a failure of its own.
local asan = os.getenv "FATHOM_ASAN"
local passed, failed, skipped = 0, 0, 0

local function run_c(program)
  print("== " .. program)
  local pipe = assert(io.popen(program .. " 2>&1"))
  local bad = 0
  for line in pipe:lines() do
    if line:match "^ok %- " then passed = passed + 1
    elseif line:match "^skip %- " then skipped = skipped + 1
    elseif line:match "^not ok %- " then bad = bad + 1 end
    if not line:match "^ok %- " or line:match "%d ms" then print(line) end
  end
  local fine = pipe:close()
  if not fine and bad == 0 then bad = 1; print("not ok - " .. program .. " ended badly") end
  failed = failed + bad
end

for _, program in ipairs(arg) do run_c(program) end

local counts = os.tmpname()
local env = "FATHOM_DEVICE=cpu FATHOM_COUNTS=" .. counts
if asan then
  local pipe = assert(io.popen("gcc -print-file-name=libasan.so"))
  env = env .. " LD_PRELOAD=" .. pipe:read "l" .. " ASAN_OPTIONS=detect_leaks=0"
  pipe:close()
end
local lua = os.getenv "LUA" or "lua5.4"
local fine = os.execute(env .. " " .. lua .. " spec/busted.lua")
local p, f, s = 0, 0, 0
local file = io.open(counts)
if file then
  p, f, s = file:read("n", "n", "n")
  file:close()
end
os.remove(counts)
if not p then p, f, s = 0, 1, 0 end
if not fine and f == 0 then f = 1; print "the specs ended badly" end
passed, failed, skipped = passed + p, failed + f, skipped + s
print(("%d passed, %d failed, %d skipped"):format(passed, failed, skipped))
os.exit(failed == 0 and passed > 0)

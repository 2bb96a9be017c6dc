--- spec/node.lua - runs specs written for node: packages by lock file into build/node, and the reason when that can't be.

local node = {}

local build = os.getenv "FATHOM_BUILD" or "build"
node.dir = build .. "/node"

local function run(command)
  local pipe = assert(io.popen(command .. " 2>&1"))
  local text = pipe:read "a"
  local fine = pipe:close()
  return fine, text
end

local function there(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

--- Installs what spec/node/package-lock.json pins, once (npm checks the hashes).
-- @param name string  the package that is wanted
-- @return true, or nil and why it can't be had here
-- @usage local ok, why = node.has "playwright-core"
function node.has(name)
  if not run "node --version" or not run "npm --version" then return nil, "no node with npm here" end
  local lock = "spec/node/package-lock.json"
  local function installed()
    return there(node.dir .. "/node_modules/" .. name .. "/package.json")
       and run(("cmp -s %s %s/package-lock.json"):format(lock, node.dir))
  end
  if installed() then return true end
  local _, said = run(("mkdir -p %s && cp spec/node/package.json %s %s/ && cd %s && npm ci --ignore-scripts --no-audit --no-fund")
    :format(node.dir, lock, node.dir, node.dir))
  if installed() then return true end
  return nil, "npm can't fetch " .. name .. " here: " .. (said:match "npm ERR! ([^\n]+)" or said:match "npm error ([^\n]+)" or "?")
end

--- The first of these programs that is on the path.
function node.program(...)
  for _, name in ipairs { ... } do
    local fine, text = run("command -v " .. name)
    if fine then return (text:gsub("%s+$", "")) end
  end
end

--- Runs a script with the packages of build/node: FATHOM_NODE names the folder to require from. No sanitizer goes along.
-- @param script string
-- @param env table|nil  more variables
-- @param ... string     arguments
-- @return boolean whether it ended well, and what it printed
function node.run(script, env, ...)
  local words = { "env -u LD_PRELOAD FATHOM_NODE=$PWD/" .. node.dir }
  for name, value in pairs(env or {}) do words[#words + 1] = ("%s='%s'"):format(name, value) end
  words[#words + 1] = "node " .. script
  for _, word in ipairs { ... } do words[#words + 1] = ("'%s'"):format(word) end
  return run(table.concat(words, " "))
end

return node

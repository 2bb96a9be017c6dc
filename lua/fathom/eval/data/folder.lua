--- folder.lua - finds and reads the files of a test set.

local fault = require "fathom.fault"
local jsonl = require "fathom.jsonl"
local options = require "fathom.options"

local folder = {}

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

--- The path of a file in a folder, or in the folder of the set's own name in it.
-- @param what string  who asks: "data.gsm8k"
-- @param dir string
-- @param own string   "math-gsm8k"
-- @param file string  "test.jsonl"
-- @return path, or nil, err
function folder.path(what, dir, own, file)
  options.argument(what, "dir", dir, options.is.path)
  for _, path in ipairs { ("%s/%s/%s"):format(dir, own, file), ("%s/%s"):format(dir, file) } do
    if exists(path) then return path end
  end
  return fault.give("io", ("%s: there is no %s in %s, nor in %s/%s"):format(what, file, dir, dir, own),
                    "name the folder that holds the data")
end

--- Rows of a file of JSON lines.
-- @return list, or nil, err
function folder.rows(what, dir, own, file)
  local path, err = folder.path(what, dir, own, file)
  if not path then return nil, err end
  return jsonl.read(path)
end

return folder

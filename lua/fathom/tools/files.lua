--- tools/files.lua - files under one folder, and nothing else: no "..", no absolute paths, no links, no pipes or devices.
-- The core walks a path part by part from the folder's own descriptor, so a path cannot be turned elsewhere meanwhile either.

local fault = require "fathom.fault"
local options = require "fathom.options"

local files = {}
local is = options.is

local known = { root = is.path, write = is.boolean, max_size = is.count(1), max_entries = is.count(1), max_total = is.count(0) }
local MAX_SIZE, MAX_ENTRIES, MAX_TOTAL = 64 << 10, 200, 4 << 20

local function listing(entries, more)
  table.sort(entries, function(a, b) return a.name < b.name end)
  local lines = {}
  for i, e in ipairs(entries) do lines[i] = e.size and ("%s (%d bytes)"):format(e.name, e.size) or e.name .. "/" end
  if more then lines[#lines + 1] = "... and more" end
  return #lines > 0 and table.concat(lines, "\n") or "the folder is empty"
end

local actions = {}

function actions.list(self, path)
  local entries, more = self.root:list(path, self.max_entries)
  if not entries then return nil, more.message end
  return listing(entries, more)
end

function actions.read(self, path)
  local text, err = self.root:read(path, self.max_size)
  if not text then return nil, err.message end
  return text
end

function actions.write(self, path, content)
  if not self.write then return nil, "files may not be written here" end
  if content == nil then return nil, "to write a file takes its content" end
  if #content > self.max_size then return nil, ("a file has at most %d bytes here, this has %d"):format(self.max_size, #content) end
  if self.written + #content > self.max_total then return nil, ("no more than %d bytes are written in all"):format(self.max_total) end
  local ok, err = self.root:write(path, content)
  if not ok then return nil, err.message end
  self.written = self.written + #content
  return ("%d bytes written"):format(#content)
end

local text_or_nothing = is.one_of(is.string, function(v) return v == nil, "nil" end)

local function act(self, args)
  options.argument("fathom.tools.files", "args", args, is.table)
  options.argument("fathom.tools.files", "args.path", args.path, is.string)
  options.argument("fathom.tools.files", "args.content", args.content, text_or_nothing)
  local action = actions[args.action]
  if not action then return nil, "action is read, write or list" end
  if args.path:find "\0" then return nil, "a path holds no zero byte" end
  return action(self, args.path, args.content)
end

--- Makes the tool: args.action ("list", "read", "write"), args.path, args.content.
-- @param opts table  root (a folder); write (false); max_size of a file (64 KiB), max_entries of a listing (200), max_total bytes
--   written in all (4 MiB)
-- @return tool, or nil, err where the folder cannot be opened
-- @usage fathom.agent(model, { tools = { files = assert(fathom.tools.files { root = "notes", write = true }) } })
function files.new(opts)
  local o = options.check("fathom.tools.files", opts, known)
  if not o.root then options.raise "fathom.tools.files: option 'root' is missing" end
  local root, err = fault.guard(require("fathom.core").root, o.root)
  if not root then return nil, err end
  local self = { root = root, write = o.write or false, max_size = math.tointeger(o.max_size or MAX_SIZE), written = 0,
                 max_entries = math.tointeger(o.max_entries or MAX_ENTRIES), max_total = o.max_total or MAX_TOTAL }
  local words = self.write and { "list", "read", "write" } or { "list", "read" }
  local optional = require("fathom.schema").optional
  return { doc = self.write and "List, read and write files." or "List and read files.",
           args = { action = { type = "string", enum = words }, path = "string", content = self.write and optional "string" or nil },
           run = function(args) return act(self, args) end }
end

return files

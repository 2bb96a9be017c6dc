--- What the specs share: files, checkpoints read by plain Lua, made-up checkpoints.
local json = require "fathom.json"

local helper = {}

helper.build = os.getenv "FATHOM_BUILD" or "build"

function helper.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

function helper.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

--- Rows of a JSON-lines file.
function helper.jsonl(path)
  local rows = {}
  for line in helper.read(path):gmatch "[^\n]+" do rows[#rows + 1] = assert(json.decode(line)) end
  return rows
end

--- A fresh folder, removed by the returned function.
function helper.folder()
  local name = os.tmpname()
  os.remove(name)
  assert(os.execute("mkdir -p '" .. name .. "'"))
  return name, function() os.execute("rm -rf '" .. name .. "'") end
end

function helper.copy(from, to)
  helper.write(to, helper.read(from))
end

--- What a script prints in a process of its own, with variables like "A=1 B=2" around it.
function helper.script(env, text)
  local name = os.tmpname()
  helper.write(name, text)
  local pipe = assert(io.popen(("env %s %s %s 2>&1"):format(env, os.getenv "LUA" or "lua5.4", name)))
  local out = pipe:read "a"
  pipe:close()
  os.remove(name)
  return out
end

--- A safetensors file: name -> { shape=, dtype=, get(i) } over F32 and I32 (0-based flat index).
function helper.safetensors(path)
  local text = helper.read(path)
  local size = string.unpack("<I8", text)
  local header = assert(json.decode(text:sub(9, 8 + size)))
  local tensors = {}
  for name, t in pairs(header) do
    if name ~= "__metadata__" then
      local at, format = 9 + size + t.data_offsets[1], t.dtype == "I32" and "<i4" or "<f"
      tensors[name] = { shape = t.shape, dtype = t.dtype,
        get = function(i) return (string.unpack(format, text, at + 4 * i)) end }
    end
  end
  return tensors
end

--- The text of a safetensors file with the bytes of one tensor from its element `first` (0-based) on replaced.
function helper.plant(text, name, first, bytes)
  local size = string.unpack("<I8", text)
  local t = assert(json.decode(text:sub(9, 8 + size)))[name] or error("no tensor " .. name)
  local at = 8 + size + t.data_offsets[1] + first * #bytes
  return text:sub(1, at) .. bytes .. text:sub(at + #bytes + 1)
end

--- Text of a safetensors file from a list of { name, dtype, shape, bytes }.
function helper.pack_safetensors(list)
  local parts, at, data = {}, 0, {}
  for _, t in ipairs(list) do
    parts[#parts + 1] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(
      t[1], t[2], table.concat(t[3], ","), at, at + #t[4])
    at = at + #t[4]
    data[#data + 1] = t[4]
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  header = header .. (" "):rep(-#header % 8)
  return string.pack("<I8", #header) .. header .. table.concat(data)
end

return helper

-- Checkpoints that are cut short, lie, overlap or lack something: nil, err with a reason, never more.
local fathom = require "fathom"
local helper = require "spec.helper"

local function f32(...) return string.pack("<" .. ("f"):rep(select("#", ...)), ...) end

--- A folder with config.json of a golden checkpoint and the given model.safetensors; its load's err.
local function load_err(bytes, config)
  local dir, remove = helper.folder()
  helper.write(dir .. "/config.json", config or helper.read "spec/golden/v3-tiny/config.json")
  if bytes then helper.write(dir .. "/model.safetensors", bytes) end
  local model, err = fathom.load(dir)
  remove()
  assert.is_nil(model)
  return err
end

local function refused(bytes, code, word)
  local err = load_err(bytes)
  assert.are.equal(code, err.code)
  assert.is_truthy(err.message:find(word, 1, true), err.message)
end

local function with_header(header, data) return string.pack("<I8", #header) .. header .. (data or "") end

describe("a safetensors file", function()
  it("that is missing is an io error", function()
    assert.are.equal("io", load_err(nil).code)
  end)

  it("that is empty, tiny or no file of its kind is refused", function()
    refused("", "format", "0 bytes")
    refused("abc", "format", "3 bytes")
    refused(with_header "hello", "format", "JSON")
    refused(with_header "[]", "format", "no object")
    refused(with_header "{}" , "format", "no tensor")
  end)

  it("whose header is longer than the file is refused", function()
    refused(string.pack("<I8", 1 << 40) .. "{}", "format", "header")
    refused(string.pack("<I8", -1) .. "{}", "format", "header")
    refused(string.pack("<I8", 50) .. "{}", "format", "header")
  end)

  it("that lies about sizes and places is refused", function()
    local function one(text, data) refused(with_header('{"a":' .. text .. "}", data or f32(1, 2)), "format", "a") end
    one '{"dtype":"F32","shape":[2],"data_offsets":[0,4]}'
    one '{"dtype":"F32","shape":[2],"data_offsets":[0,8000]}'
    one '{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'
    one '{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}'
    one '{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'
    one '{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}'
    one '{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}'
    one '{"dtype":"F32","shape":"2","data_offsets":[0,8]}'
    one '{"dtype":"F32","shape":[2],"data_offsets":[0]}'
    one '{"dtype":"F32","data_offsets":[0,8]}'
    one '7'
    one('{"dtype":"F32","shape":[1],"data_offsets":[4,8]}')
    one('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}')
    refused(with_header '{"a":{"dtype":"F99","shape":[],"data_offsets":[0,0]}}', "unsupported", "F99")
    refused(with_header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
      f32(1, 2)), "format", "inside another")
    refused(with_header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
      f32(1, 2)), "format", "two tensors")
    refused(with_header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}  ',
      "12345"), "format", "odd place")
  end)

  it("that is cut short anywhere is refused", function()
    local whole = helper.read "spec/golden/v2-tiny/model.safetensors"
    local config = helper.read "spec/golden/v2-tiny/config.json"
    for _, part in ipairs { 7, 8, 100, 5000, #whole // 2, #whole - 1 } do
      assert.are.equal("format", load_err(whole:sub(1, part), config).code)
    end
  end)
end)

describe("a checkpoint", function()
  local header, data, config

  setup(function()
    local whole = helper.read "spec/golden/v3-fp8/model.safetensors"
    local size = string.unpack("<I8", whole)
    header, data = whole:sub(9, 8 + size), whole:sub(9 + size)
    config = helper.read "spec/golden/v3-fp8/config.json"
  end)

  local function changed(h, d)
    h = h .. (" "):rep(-#h % 8)
    return load_err(with_header(h, d or data), config)
  end

  it("without one of its tensors is refused by name", function()
    local err = changed((header:gsub("model%.norm%.weight", "model.nrom.weight")))
    assert.are.equal("format", err.code)
    assert.is_truthy(err.message:find("model.norm.weight", 1, true))
  end)

  it("without a scale is refused, not read raw", function()
    local err = changed((header:gsub("q_a_proj%.weight_scale_inv", "q_a_proj.weight_scale_inb", 1)))
    assert.is_truthy(err.message:find("q_a_proj.weight_scale_inv", 1, true), err.message)
  end)

  it("with another shape is refused with both", function()
    local err = load_err(with_header(header, data), (config:gsub('"moe_intermediate_size": 128', '"moe_intermediate_size": 256')))
    assert.are.equal("format", err.code)
    assert.is_truthy(err.message:find "shape %(128, 256%), expected %(256, 256%)", err.message)
  end)

  it("with a NaN scale is refused; with a NaN weight only when every weight is looked at", function()
    local scale = header:match '"[^"]*weight_scale_inv":(%b{})'
    local at = tonumber(scale:match '"data_offsets":%s*%[(%d+)')
    local nan = string.pack("<I4", 0x7fc00000)
    local err = changed(header, data:sub(1, at) .. nan .. data:sub(at + 5))
    assert.are.equal("format", err.code)
    assert.is_truthy(err.message:find("NaN", 1, true))

    local weight = header:match '"[^"]*q_a_proj%.weight":(%b{})'
    at = tonumber(weight:match '"data_offsets":%s*%[(%d+)')
    local dir, remove = helper.folder()
    helper.write(dir .. "/config.json", config)
    helper.write(dir .. "/model.safetensors", with_header(header, data:sub(1, at) .. "\x7f" .. data:sub(at + 2)))
    local model = assert(fathom.load(dir))
    model:close()
    local none, why = fathom.load(dir, { verify = true })
    remove()
    assert.is_nil(none)
    assert.is_truthy(why.message:find("NaN", 1, true))
  end)

  it("loads from shards with an index, and is refused when the index lies", function()
    local dir, remove = helper.folder()
    local list, tensors = {}, helper.read "spec/golden/qwen2-tiny/model.safetensors"
    local size = string.unpack("<I8", tensors)
    for name, dtype, shape, a, b in tensors:sub(9, 8 + size):gmatch
      '"([%w%._]+)":{"dtype":"(%w+)","shape":%[([%d,]+)%],"data_offsets":%[(%d+),(%d+)%]}' do
      list[#list + 1] = { name, dtype, { shape }, tensors:sub(9 + size + a, 8 + size + b) }
    end
    local half, map, shards = #list // 2, {}, { {}, {} }
    for i, t in ipairs(list) do
      local shard = i <= half and 1 or 2
      table.insert(shards[shard], t)
      map[#map + 1] = ('"%s":"model-%05d-of-000002.safetensors"'):format(t[1], shard)
    end
    helper.copy("spec/golden/qwen2-tiny/config.json", dir .. "/config.json")
    for i = 1, 2 do
      helper.write(("%s/model-%05d-of-000002.safetensors"):format(dir, i), helper.pack_safetensors(shards[i]))
    end
    local index = '{"metadata":{},"weight_map":{' .. table.concat(map, ",") .. "}}"
    helper.write(dir .. "/model.safetensors.index.json", index)
    local whole, parts = assert(fathom.load "spec/golden/qwen2-tiny"), assert(fathom.load(dir))
    assert.are.equal(whole:logits({ 1, 2, 3 }):bytes(), parts:logits({ 1, 2, 3 }):bytes())
    whole:close()
    parts:close()

    local function lies(text, code, word)
      helper.write(dir .. "/model.safetensors.index.json", text)
      local model, err = fathom.load(dir)
      assert.is_nil(model)
      assert.are.equal(code, err.code)
      assert.is_truthy(err.message:find(word, 1, true), err.message)
    end
    lies((index:gsub("00002%-of", "00003-of")), "io", "model-00003")
    lies((index:gsub("model%-00001", "../model-00001", 1)), "format", "no file name")
    lies((index:gsub("model.norm.weight", "model.norn.weight")), "format", "model.norn.weight")
    lies("{}", "format", "weight_map")
    remove()
  end)

  it("whose config is cut short, cyclic in depth or of another family is refused", function()
    assert.are.equal("format", load_err("x", '{"model_type"').code)
    assert.are.equal("format", load_err("x", ('{"a":'):rep(500) .. "1" .. ("}"):rep(500)).code)
    assert.are.equal("unsupported", load_err("x", '{"model_type":"gpt2"}').code)
    assert.are.equal("format", load_err("x", "").code)
  end)
end)

describe("packed experts", function()
  -- the tensors of one golden checkpoint, rewritten in the layout of newer writers
  it("give the same bits as one tensor an expert", function()
    local text = helper.read "spec/golden/v3-tiny/model.safetensors"
    local size = string.unpack("<I8", text)
    local byname, order = {}, {}
    for name, dtype, shape, a, b in text:sub(9, 8 + size):gmatch
      '"([%w%._]+)":{"dtype":"(%w+)","shape":%[([%d,]+)%],"data_offsets":%[(%d+),(%d+)%]}' do
      byname[name] = { name, dtype, { shape }, text:sub(9 + size + a, 8 + size + b) }
      order[#order + 1] = name
    end
    local list, layers = {}, {}
    for _, name in ipairs(order) do
      local layer = name:match "^(model%.layers%.%d+%.mlp%.experts)%.%d+%."
      if layer then layers[layer] = true else list[#list + 1] = byname[name] end
    end
    for layer in pairs(layers) do
      local both, down, n = {}, {}, 0
      while byname[("%s.%d.gate_proj.weight"):format(layer, n)] do
        both[#both + 1] = byname[("%s.%d.gate_proj.weight"):format(layer, n)][4]
        both[#both + 1] = byname[("%s.%d.up_proj.weight"):format(layer, n)][4]
        down[#down + 1] = byname[("%s.%d.down_proj.weight"):format(layer, n)][4]
        n = n + 1
      end
      list[#list + 1] = { layer .. ".gate_up_proj", "BF16", { n, 96, 64 }, table.concat(both) }
      list[#list + 1] = { layer .. ".down_proj", "BF16", { n, 64, 48 }, table.concat(down) }
    end
    local dir, remove = helper.folder()
    helper.copy("spec/golden/v3-tiny/config.json", dir .. "/config.json")
    helper.write(dir .. "/model.safetensors", helper.pack_safetensors(list))
    local one, packed = assert(fathom.load "spec/golden/v3-tiny"), assert(fathom.load(dir))
    assert.are.equal(one:logits({ 5, 6, 7, 8 }):bytes(), packed:logits({ 5, 6, 7, 8 }):bytes())
    one:close()
    packed:close()
    remove()
  end)
end)

--- debug_spec.lua - debug mode names the first operation that made a NaN or an infinity, and the layer it belongs to.
local fathom = require "fathom"
local helper = require "spec.helper"

local NAN, INF = "\xc0\x7f", "\x80\x7f"        -- bf16, little end first
local ids = { 5, 6, 7, 8, 9, 10, 11 }

-- A copy of golden `name` with `bytes` as element `first` of a tensor; what fn(dir) returns.
local function planted(name, tensor, first, bytes, fn)
  local dir, remove = helper.folder()
  helper.copy("spec/golden/" .. name .. "/config.json", dir .. "/config.json")
  local text = helper.read("spec/golden/" .. name .. "/model.safetensors")
  helper.write(dir .. "/model.safetensors", helper.plant(text, tensor, first, bytes))
  local result = table.pack(pcall(fn, dir))
  remove()
  if not result[1] then error(result[2], 0) end
  return table.unpack(result, 2, result.n)
end

-- What computing with the planted checkpoint in debug mode says.
local function said(name, tensor, first, bytes, use)
  return planted(name, tensor, first, bytes, function(dir)
    local model <close> = assert(fathom.load(dir, { debug = true, ctx = 64 }))
    local made, err = use(model)
    assert.is_nil(made)
    assert.equal("format", err.code)
    assert.matches("verify = true", err.hint)
    return err.message
  end)
end

local function logits(model) return model:logits(ids) end
local function generate(model) return model:generate(ids, { temperature = 0, max_tokens = 4, ignore_eos = true }) end
local function mtp_logits(model) return model:logits(ids, { mtp = true }) end

describe("debug mode", function()
  local p = "model.layers."
  local cases = {
    { "v2-tiny", "model.embed_tokens.weight", 7 * 64, NAN, logits, "^the input, embed: row 2 is not a number" },
    { "v3-tiny", p .. "1.self_attn.o_proj.weight", 0, NAN, logits, "^layer 1, matmul of %(64, %d+%): row 0 is not a number" },
    { "v3-tiny", p .. "2.self_attn.kv_a_proj_with_mqa.weight", 0, INF, logits, "^layer 2, matmul of %(%d+, 64%): row 0 is infinite" },
    { "v3-tiny", p .. "1.self_attn.kv_b_proj.weight", 0, NAN, logits, "^layer 1, mla_prompt: row 0 is not a number" },
    { "v3-tiny", p .. "2.mlp.shared_experts.down_proj.weight", 0, NAN, generate, "^layer 2, experts: row 0 is not a number" },
    { "v3-tiny", "lm_head.weight", 0, NAN, logits, "^the head, matmul of %(%d+, 64%): row 0 is not a number" },
    { "v3-tiny", p .. "3.eh_proj.weight", 0, NAN, mtp_logits, "^the MTP module's input, matmul of %(64, 128%)" },
    { "qwen2-tiny", p .. "0.self_attn.v_proj.weight", 0, NAN, logits, "^layer 0, matmul of" },
  }
  for _, c in ipairs(cases) do
    it(("says where: %s of %s"):format(c[2], c[1]), function()
      assert.matches(c[6], said(c[1], c[2], c[3], c[4], c[5]))
    end)
  end

  it("says nothing where nothing is wrong, and changes no bit", function()
    local plain <close> = assert(fathom.load("spec/golden/v3-tiny", { ctx = 64 }))
    local debug <close> = assert(fathom.load("spec/golden/v3-tiny", { ctx = 64, debug = true }))
    assert.equal(plain:logits(ids):bytes(), debug:logits(ids):bytes())
    assert.same(generate(plain).ids, generate(debug).ids)
  end)

  it("is off otherwise, and $FATHOM_DEBUG turns it on", function()
    planted("v3-tiny", p .. "1.self_attn.o_proj.weight", 0, NAN, function(dir)
      local model <close> = assert(fathom.load(dir, { ctx = 64 }))
      assert.is_truthy(logits(model))
      local script = ("local m = require 'fathom'.load('%s', { ctx = 64 }) print(select(2, m:logits { 5, 6, 7 }))"):format(dir)
      assert.matches("layer 1, matmul", helper.script("FATHOM_DEBUG=nan", script))
    end)
  end)
end)

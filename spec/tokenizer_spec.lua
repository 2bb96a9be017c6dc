local core = require "fathom.core"
local json = require "fathom.json"
local helper = require "spec.helper"

local function same(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do if a[i] ~= b[i] then return false end end
  return true
end

describe("the tokenizer", function()
  for _, name in ipairs { "deepseek-v3", "qwen3" } do
    describe("of " .. name, function()
      local tok
      setup(function() tok = assert(core.tokenizer(helper.build .. "/data/tokenizers/" .. name)) end)
      teardown(function() tok:close() end)

      for _, file in ipairs { "vectors", "more_vectors" } do
        it("gives the reference library's ids on every text of " .. file, function()
          local wrong = {}
          for _, row in ipairs(helper.jsonl(("spec/data/tokenizers/%s/%s.jsonl"):format(name, file))) do
            if not same(tok:encode(row.text, true), row.ids) then wrong[#wrong + 1] = row.text end
          end
          assert.are.same({}, wrong)
        end)

        it("gives the text of " .. file .. " back byte for byte, but for NFC", function()
          local changed = 0
          for _, row in ipairs(helper.jsonl(("spec/data/tokenizers/%s/%s.jsonl"):format(name, file))) do
            local back = tok:decode(row.ids)
            if back ~= row.text then
              changed = changed + 1
              assert.are.same(row.ids, tok:encode(back, true))
            end
          end
          assert.is_true(changed == 0 or name == "qwen3")
        end)
      end

      it("encodes a megabyte in well under a second", function()
        local text = helper.read("spec/data/tokenizers/" .. name .. "/vectors.jsonl")
        text = text:rep(1000000 // #text + 1):sub(1, 1000000)
        local begin = os.clock()
        local ids = tok:encode(text, false)
        local seconds = os.clock() - begin
        io.write(("  %s: 1 MB of mixed text in %.2f s, %d ids\n"):format(name, seconds, #ids))
        assert.is_true(seconds < (os.getenv "FATHOM_ASAN" and 20 or 1))
      end)

      it("encodes one word of 200,000 letters within two seconds", function()
        local letters = {}
        for i = 1, 200000 do letters[i] = string.char(97 + (i * i * 7 + i // 3) % 26) end
        local begin = os.clock()
        local ids = tok:encode(table.concat(letters), false)
        local seconds = os.clock() - begin
        io.write(("  %s: a word of 200,000 letters in %.2f s\n"):format(name, seconds))
        assert.is_true(seconds < (os.getenv "FATHOM_ASAN" and 20 or 2))
        assert.are.equal(table.concat(letters), tok:decode(ids))
      end)

      it("never makes a control token of text", function()
        local file = assert(json.decode(helper.read(helper.build .. "/data/tokenizers/" .. name .. "/tokenizer.json")))
        local added = {}
        for _, t in ipairs(file.added_tokens) do added[t.id] = t.content end
        for id, word in pairs(added) do
          assert.are.equal(id, tok:added(word))
          assert.are.same({ id }, tok:encode(word, true))
          local ids = tok:encode("x" .. word .. "y", false)
          for _, i in ipairs(ids) do assert.is_nil(added[i]) end
          assert.are.equal("x" .. word .. "y", tok:decode(ids))
        end
      end)

      it("keeps bytes that are no UTF-8", function()
        for _, text in ipairs { "\xff", "a\xc3", "\xe4\xb8", "ok \xf0\x9f\x98 \x80 end", "\xed\xa0\x80", "\0\0a" } do
          assert.are.equal(text, tok:decode(tok:encode(text, false)))
          assert.are.equal(text, tok:decode(tok:encode(text, true)))
        end
      end)
    end)
  end

  describe("file that is wrong", function()
    local base
    setup(function() base = helper.read "examples/pocket/tokenizer.json" end)

    local function refused(text, code, word)
      local dir, remove = helper.folder()
      helper.write(dir .. "/tokenizer.json", text)
      local tok, err = core.tokenizer(dir)
      remove()
      assert.is_nil(tok)
      assert.are.equal(code, err.code)
      assert.is_truthy(err.message:find(word, 1, true), err.message)
    end

    it("is refused with a reason", function()
      refused("", "format", "JSON")
      refused("[1, 2", "format", "JSON")
      refused("{}", "format", "model")
      refused(("["):rep(100000), "format", "deeper")
      refused(base:sub(1, 5000), "format", "JSON")
      refused(base:gsub('"type": "BPE"', '"type": "Unigram"'), "unsupported", "Unigram")
      refused(base:gsub('"Ġ": %d+,', "", 1), "format", "byte 0x20")
      refused(base:gsub('"id": 0,', '"id": -7,', 1), "format", "out of range")
      refused(base:gsub('"id": 0,', '"id": 1e300,', 1), "format", "out of range")
      refused(base:gsub('"Isolated"', '"Contiguous"', 1), "unsupported", "Contiguous")
    end)

    it("that is missing is an io error", function()
      local tok, err = core.tokenizer "no/such/folder"
      assert.is_nil(tok)
      assert.are.equal("io", err.code)
    end)
  end)
end)

--- pocket_spec.lua - the model that comes with the project, against golden.json beside it.
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"

describe("pocket", function()
  local model, golden

  setup(function()
    model = assert(fathom.load(fathom.pocket))
    golden = assert(json.decode(helper.read(fathom.pocket .. "/golden.json")))
  end)
  teardown(function() model:close() end)

  it("is found beside the library", function()
    assert.is_string(fathom.pocket)
    assert.equal("deepseek_v3", model.config.model_type)
  end)

  it("renders every prompt to the recorded ids", function()
    assert.equal(5, #golden)
    for _, row in ipairs(golden) do
      local ids = assert(model:render(row.messages))
      assert.same(row.prompt_ids, ids)
      assert.equal(row.prompt, model:decode(ids))
      assert.equal(#ids, model:count(row.messages))
    end
  end)

  it("replies greedily with the recorded ids, with drafts and without", function()
    for _, row in ipairs(golden) do
      for _, mtp in ipairs { true, false } do
        local r = assert(model:generate(row.messages, { temperature = 0, max_tokens = #row.greedy_ids, mtp = mtp }))
        assert.same(row.greedy_ids, r.ids)
        local text = model:decode(row.greedy_ids):gsub("<｜end▁of▁sentence｜>$", "")
        assert.equal(text, r.text)
      end
    end
  end)

  it("gives the first step's best logits within 0.05", function()
    for _, row in ipairs(golden) do
      local logits <close> = assert(model:logits(row.prompt_ids, { last = true }))
      for _, top in ipairs(row.first_step_top5) do
        assert.is_true(math.abs(logits:get(1, top[1] + 1) - top[2]) <= 0.05)
      end
    end
  end)

  it("drafts what the reference's MTP module drafts", function()
    for _, row in ipairs(golden) do
      local ids = table.move(row.prompt_ids, 1, #row.prompt_ids, 1, {})
      table.move(row.greedy_ids, 1, #row.greedy_ids, #ids + 1, ids)
      local logits <close> = assert(model:logits(ids, { mtp = true }))
      for i, want in ipairs(row.mtp_draft_ids) do
        local best, best_v = nil, -math.huge
        for j, v in ipairs(logits:row(#row.prompt_ids + i - 1)) do
          if v > best_v then best, best_v = j - 1, v end
        end
        assert.equal(want, best)
      end
    end
  end)

  it("accepts nearly every draft", function()
    local drafted, accepted = 0, 0
    for _, row in ipairs(golden) do
      local u = assert(model:generate(row.messages, { temperature = 0, max_tokens = 200 })).usage
      drafted, accepted = drafted + u.drafted, accepted + u.accepted
    end
    assert.is_true(drafted > 0 and accepted / drafted > 0.9)
  end)

  it("gets the first sums of its test file right", function()
    local right = 0
    local rows = helper.jsonl(fathom.pocket .. "/heldout_math.jsonl")
    for i = 1, 10 do
      local r = assert(model:generate(rows[i].messages, { temperature = 0, max_tokens = 400 }))
      local answer
      for box in r.answer:gmatch "\\boxed(%b{})" do answer = box:sub(2, -2) end
      if answer == rows[i].answer then right = right + 1 end
    end
    assert.equal(10, right)
  end)
end)

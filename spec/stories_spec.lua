--- stories_spec.lua - a real trained model of 260 thousand parameters, against references in double precision.
local fathom = require "fathom"
local helper = require "spec.helper"

describe("stories260k", function()
  local model, rows

  setup(function()
    model = assert(fathom.load("spec/data/stories260k"))
    rows = helper.jsonl "spec/data/stories260k/greedy.jsonl"
  end)
  teardown(function() model:close() end)

  it("has four recorded prompts", function() assert.equal(4, #rows) end)

  it("continues every prompt with the recorded ids", function()
    for _, row in ipairs(rows) do
      local r = assert(model:generate(row.prompt_ids, { temperature = 0, max_tokens = #row.greedy_ids, ignore_eos = true }))
      assert.same(row.greedy_ids, r.ids)
    end
  end)

  it("gives the recorded logits behind every prompt", function()
    for _, row in ipairs(rows) do
      local logits <close> = assert(model:logits(row.prompt_ids, { last = true }))
      for i, v in ipairs(logits:row(1)) do assert.is_true(math.abs(v - row.logits_after_prompt[i]) <= 1e-3) end
    end
  end)

  it("has the recorded mean negative log-likelihood on every prompt", function()
    for _, row in ipairs(rows) do
      local ids = row.prompt_ids
      if #ids > 1 then
        local score = assert(model:score({ ids[1] }, table.move(ids, 2, #ids, 1, {})))
        assert.is_true(math.abs(-score.logprob / (#ids - 1) - row.prompt_mean_nll) <= 1e-4)
      end
    end
  end)
end)

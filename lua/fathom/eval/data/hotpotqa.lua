--- hotpotqa.lua - questions whose answer takes several facts: exact match and F1 after HotpotQA's own script. Rows with paragraphs
-- (`context`: { { title, { sentence, ... } }, ... }) are given to an agent that looks them up; rows without are asked closed-book.

local folder = require "fathom.eval.data.folder"
local options = require "fathom.options"

local hotpotqa = {}

-- ---- scoring ----------------------------------------------------------------------------------------------------------

-- Lower case, no marks, no articles, single spaces.
local function normal(text)
  text = text:lower():gsub("%p", "")
  local words = {}
  for word in text:gmatch "%S+" do
    if word ~= "a" and word ~= "an" and word ~= "the" then words[#words + 1] = word end
  end
  return words
end

--- Exact match of two answers.
function hotpotqa.exact(got, want) return table.concat(normal(got), " ") == table.concat(normal(want), " ") end

--- F1 of the words of two answers; yes, no and noanswer are right or wrong as a whole.
function hotpotqa.f1(got, want)
  local a, b = normal(got), normal(want)
  for _, word in ipairs { "yes", "no", "noanswer" } do
    if (a[1] == word and not a[2]) ~= (b[1] == word and not b[2]) then return 0.0 end
  end
  local left, same = {}, 0
  for _, word in ipairs(b) do left[word] = (left[word] or 0) + 1 end
  for _, word in ipairs(a) do
    if (left[word] or 0) > 0 then
      left[word] = left[word] - 1
      same = same + 1
    end
  end
  if same == 0 then return 0.0 end
  local precision, recall = same / #a, same / #b
  return 2 * precision * recall / (precision + recall)
end

-- The short answer in a reply.
local function short(text)
  local found
  for inner in text:gmatch "<answer>(.-)</answer>" do found = inner end
  found = found or text:match ".*\\boxed(%b{})"
  if found and found:sub(1, 1) == "{" then found = found:sub(2, -2) end
  return (found or text):match "^%s*(.-)%s*$"
end

-- ---- looking up ---------------------------------------------------------------------------------------------------------

-- The paragraph of a title, else those whose titles hold a word of it.
local function lookup(paragraphs, title)
  local wanted, near = tostring(title):lower(), {}
  for _, p in ipairs(paragraphs) do
    if p.title:lower() == wanted then return p.title .. ": " .. p.text end
  end
  for _, p in ipairs(paragraphs) do
    for word in wanted:gmatch "%w%w%w+" do
      if p.title:lower():find(word, 1, true) then
        near[#near + 1] = p.title
        break
      end
    end
  end
  return nil, #near > 0 and "not found. Similar: " .. table.concat(near, "; ") or "not found"
end

-- Sentences that hold a word.
local function search(paragraphs, words)
  local out = {}
  for _, p in ipairs(paragraphs) do
    for _, sentence in ipairs(p.sentences) do
      if #out < 5 and sentence:lower():find(tostring(words):lower(), 1, true) then
        out[#out + 1] = ("(%s) %s"):format(p.title, sentence:match "^%s*(.-)%s*$")
      end
    end
  end
  if #out == 0 then return nil, "not found" end
  return table.concat(out, "\n")
end

local function tools_of(paragraphs)
  return {
    lookup = { doc = "Read the paragraph with this title.", args = { title = "string" },
               run = function(args) return lookup(paragraphs, args.title) end },
    search = { doc = "Find sentences that contain these words.", args = { words = "string" },
               run = function(args) return search(paragraphs, args.words) end },
  }
end

local function run(case, info)
  if not case.paragraphs then return info.backend:generate({ { role = "user", content = case.prompt } }, info.options) end
  local agent = require("fathom.agent").new(info.backend, { tools = tools_of(case.paragraphs), limits = { turns = 12 }, seed = info.seed,
    temperature = info.options.temperature, max_tokens = info.options.max_tokens })
  local result, err = agent:start(case.prompt):wait()
  if not result then return nil, err end
  return { text = result.text, answer = result.text, finish = result.finish, usage = result.usage, transcript = result.transcript,
           extra = { steps = result.steps } }
end

-- ---- the set --------------------------------------------------------------------------------------------------------------

local function paragraphs_of(context)
  if type(context) ~= "table" or #context == 0 then return nil end
  local out = {}
  for i, p in ipairs(context) do out[i] = { title = p[1], sentences = p[2], text = table.concat(p[2]) } end
  return out
end

local function case_of(row, i)
  local paragraphs, titles = paragraphs_of(row.context), {}
  for j, p in ipairs(paragraphs or {}) do titles[j] = p.title end
  local prompt = row.question .. "\n\nGive a short answer in <answer> tags."
  if paragraphs then prompt = prompt .. "\nParagraphs to look up: " .. table.concat(titles, "; ") .. "." end
  return { id = tostring(row._id or i), prompt = prompt, reference = row.answer, type = row.type, paragraphs = paragraphs }
end

--- Multi-hop questions.
-- @param dir string
-- @param opts table|nil  file ("dev_a.jsonl"): rows of question, answer, type and, where there are paragraphs, context
-- @return options for fathom.eval without backend; or nil, err
function hotpotqa.hotpotqa(dir, opts)
  local o = options.check("data.hotpotqa", opts, { file = options.is.path })
  local rows, err = folder.rows("data.hotpotqa", dir, "agent-hotpotqa", o.file or "dev_a.jsonl")
  if not rows then return nil, err end
  local cases = {}
  for i, row in ipairs(rows) do cases[i] = case_of(row, i) end
  return { name = "HotpotQA", cases = cases, run = run, by = { "type" },
           key = function(s) return table.concat(normal(short(s.answer or "")), " ") end,
           scorers = { ["exact match"] = function(s) return hotpotqa.exact(short(s.answer or ""), s.reference) end,
                       f1 = function(s) return hotpotqa.f1(short(s.answer or ""), s.reference) end } }
end

return hotpotqa

--- judge/wording.lua - how a judge asks, what verdicts there are, and how they are read from texts.
-- The words are those that pocket was trained on (examples/pocket/MODEL.md); a template changes them.

local options = require "fathom.options"

local wording = {}
local is = options.is

local function wording_of(v) return type(v) == "string" or type(v) == "function", "a string or a function" end

--- The default template. Strings have their fields in braces; a function gets them in a table and returns the text.
wording.default = {
  rubric = "Judge by this rubric:\n{rubric}",
  score = 'Judge this answer.\n\nQuestion: {question}\n\nAnswer:\n{answer}\n\n'
    .. 'Give a score from {low} to {high}. End with "Score: N".',
  pair = "Which answer is better?\n\nQuestion: {question}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    .. "End with [[A]], [[B]] or [[C]] for a tie.",
  principles = "Judge this answer.\n\nQuestion: {question}\n\nAnswer:\n{answer}\n\n"
    .. "First write the principles by which answers to this question are to be judged, with their weights. "
    .. 'Then weigh the answer by them. Give a score from {low} to {high}. End with "Score: N".',
  verdict = "Score: {n}",
  labels = { a = "[[A]]", b = "[[B]]", tie = "[[C]]" },
}

local known = { rubric = wording_of, score = wording_of, pair = wording_of, principles = wording_of, verdict = is.string,
                labels = is.table }

--- Checks a template and lays it over the default.
function wording.new(what, template)
  local t = options.check(what .. ": template", template, known)
  for name, value in pairs(wording.default) do
    if t[name] == nil then t[name] = value end
  end
  for _, name in ipairs { "a", "b", "tie" } do
    if type(t.labels[name]) ~= "string" or t.labels[name] == "" then
      options.raise(("%s: template: labels must have the texts a, b and tie"):format(what))
    end
  end
  if not t.verdict:find("{n}", 1, true) then options.raise(what .. ": template: verdict must have {n} where the number stands") end
  return t
end

--- Fills in the fields of one text, in one go: what a field holds is never taken for a field.
function wording.fill(form, fields)
  if type(form) == "function" then return form(fields) end
  return (form:gsub("{(%w+)}", function(name) return fields[name] ~= nil and tostring(fields[name]) or nil end))
end

--- The text of a rubric: a string, or a list of points.
function wording.rubric(rubric)
  if type(rubric) == "string" then return rubric end
  local lines = {}
  for i, point in ipairs(rubric) do lines[i] = "- " .. point end
  return table.concat(lines, "\n")
end

--- What is judged of an answer: a text without the thoughts before it, or a result's own answer.
function wording.answer(answer)
  if type(answer) == "table" then return answer.answer or answer.text end
  return answer:match "^%s*<think>.*</think>%s*(.*)$" or answer
end

--- What is asked: a text, or the last thing that a user said in a list of messages.
function wording.question(question)
  if type(question) == "string" then return question end
  for i = #question, 1, -1 do
    if question[i].role == "user" then return question[i].content end
  end
end

-- ---- verdicts ---------------------------------------------------------------------------------------------------

--- The verdicts of a pair: a list of { label = "a" | "b" | "tie", text = }, as they are called in this order of the answers.
-- @param swapped boolean  the second answer is shown as A
function wording.pair_verdicts(t, swapped)
  return { { label = swapped and "b" or "a", text = t.labels.a }, { label = swapped and "a" or "b", text = t.labels.b },
           { label = "tie", text = t.labels.tie } }
end

--- The verdicts of a scale: a list of { label = "7", score = 7, text = "Score: 7" }.
function wording.score_verdicts(t, low, high)
  local out = {}
  for n = low, high do out[#out + 1] = { label = tostring(n), score = n, text = wording.fill(t.verdict, { n = n }) } end
  return out
end

local function literal(text)
  return '"' .. text:gsub('[\\"\n\r\t]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }) .. '"'
end

--- A grammar of which every text ends with a verdict.
-- @param free boolean  other text may stand before it; else nothing but the line breaks that follow thoughts
function wording.grammar(verdicts, free)
  local texts = {}
  for i, v in ipairs(verdicts) do texts[i] = literal(v.text) end
  local before = free and "[^\\x00]*" or '"\\n"{0,2}'
  return ("root ::= %s ( %s )"):format(before, table.concat(texts, " | "))
end

-- Where a text has a verdict last: a number that goes on ("Score: 10" is no "Score: 1", nor is "Score: 1.5") is none.
local function last_at(text, verdict)
  local found, from = nil, 1
  while true do
    local start, stop = text:find(verdict, from, true)
    if not start then return found end
    local goes_on = verdict:find "%d$" and (text:find("^%d", stop + 1) or text:find("^[.,]%d", stop + 1))
    if not goes_on then found = start end
    from = start + 1
  end
end

-- What verdicts of a scale look like, for numbers out of range and such: these make a vote unreadable, too.
local function last_form(t, text)
  local head = t.verdict:match "^(.-){n}"
  local found, from = nil, 1
  while head and head ~= "" do
    local start, stop = text:find(head, from, true)
    if not start then break end
    if text:find("^%-?%d", stop + 1) then found = start end
    from = start + 1
  end
  return found
end

--- Reads the last verdict of a text, strictly.
-- @return verdict  one of the list, or nil where the last thing that looks like a verdict is none
-- @usage wording.read(t, verdicts, "Score: 3\nNo. Score: 7")     --> the verdict 7
function wording.read(t, verdicts, text)
  local best, best_at
  for _, v in ipairs(verdicts) do
    local at = last_at(text, v.text)
    if at and (not best_at or at > best_at or (at == best_at and #v.text > #best.text)) then best, best_at = v, at end
  end
  if best and best.score then
    local form = last_form(t, text)
    if form and form > best_at then return nil end
  end
  return best
end

return wording

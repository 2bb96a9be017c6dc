--- chat/init.lua - chat templates of the families, rendered by hand straight to ids.
-- Which one: by marks in tokenizer_config.json's chat_template, else by the model's family.

local build = require "fathom.chat.build"
local deepseek = require "fathom.chat.deepseek"
local options = require "fathom.options"
local qwen = require "fathom.chat.qwen"
local tools = require "fathom.chat.tools"
local json = require "fathom.json"

local chat = {}

-- own_tools: the template itself has a place for tools. Elsewhere tools keyed by name become a section of the
-- system text; a list in the hub's form is what the template would get, and these make nothing of it.
local templates = {
  ["deepseek-v2"] = { run = deepseek.v2 },
  ["deepseek-v3"] = { run = deepseek.v3 { opening = "", newline = true } },
  ["deepseek-r1"] = { run = deepseek.v3 { opening = "<think>\n", drop_thoughts = true } },
  ["deepseek-r1-first"] = { run = deepseek.v3 { opening = "", drop_thoughts = true, newline = true } },
  ["deepseek-r1-distill-qwen"] = { run = deepseek.v3 { opening = "<think>\n", drop_thoughts = true, newline = true,
                                                       only_last_system = true } },
  ["deepseek-v3.1"] = { run = deepseek.v31 },
  ["pocket"] = { run = deepseek.pocket, section_for_lists = true },
  ["qwen2"] = { run = qwen.qwen2, own_tools = true },
  ["qwen3"] = { run = qwen.qwen3, own_tools = true },
  ["moonlight"] = { run = qwen.moonlight },
}

local aliases = { ["deepseek-r1-distill"] = "deepseek-r1-distill-qwen", ["qwen2.5"] = "qwen2",
                  ["qwen2.5-instruct"] = "qwen2", ["deepseek_v2"] = "deepseek-v2", ["deepseek_v3"] = "deepseek-v3" }

--- The names of the templates, sorted.
function chat.names()
  local names = {}
  for name in pairs(templates) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- Marks of a published template, in the order in which they tell families apart.
local function by_marks(text)
  local function has(mark) return text:find(mark, 1, true) ~= nil end
  if has "<|im_middle|>" then return "moonlight" end
  if has "<|im_start|>" then return (has "enable_thinking" or has "reasoning_content") and "qwen3" or "qwen2" end
  if has "<｜User｜>" then
    if has "reasoning_content" then return "pocket" end
    if has "is_last_user" or has "thinking" then return "deepseek-v3.1" end
    local opens = has "<｜Assistant｜><think>"
    if not has "</think>" and not opens then return "deepseek-v3" end
    if not (has "is_first_sp" or has "system_prompt +") then return "deepseek-r1-distill-qwen" end
    return opens and "deepseek-r1" or "deepseek-r1-first"
  end
  if has "User: " and has "Assistant:" then return "deepseek-v2" end
end

--- Chooses a template.
-- @param chat_template string|nil  the template of tokenizer_config.json
-- @param model_type string|nil     config.json's
-- @return string, or nil and a sentence
function chat.choose(chat_template, model_type)
  if chat_template then
    local name = by_marks(chat_template)
    if name then return name end
  end
  local family = { deepseek_v2 = "deepseek-v2", deepseek_v3 = "deepseek-v3", qwen2 = "qwen2", qwen3 = "qwen3" }
  if family[model_type] then return family[model_type] end
  return nil, "no chat template is known for " .. tostring(model_type)
end

--- Resolves what template= may be: a name, or a template's own text.
function chat.named(name)
  name = aliases[name] or name
  if templates[name] then return name end
  return name:find("{%", 1, true) and by_marks(name) or nil
end

-- ---- messages -----------------------------------------------------------------------------------------

local roles = { system = true, user = true, assistant = true, tool = true }

local function is_null(v) return v == nil or v == json.null or type(v) == "userdata" end

local function check(i, m)
  local function wrong(what, ...) options.raise(("messages[%d]" .. what):format(i, ...)) end
  if type(m) ~= "table" then wrong(" must be a table with role and content, got a %s", type(m)) end
  if not roles[m.role] then
    wrong('.role must be "system", "user", "assistant" or "tool", got %s', tostring(m.role))
  end
  local calls = not is_null(m.tool_calls) and m.tool_calls or nil
  if calls and type(calls) ~= "table" then wrong(".tool_calls must be a list, got a %s", type(calls)) end
  if calls and #calls == 0 then calls = nil end
  for j, call in ipairs(calls or {}) do
    if type(call) ~= "table" or type((call["function"] or call).name) ~= "string" then
      wrong(".tool_calls[%d] must be a table with a name", j)
    end
  end
  local content = m.content
  if is_null(content) then content = nil end
  if type(content) ~= "string" and not (content == nil and (calls or m.reply)) then
    wrong(".content must be a string, got %s", content == nil and "nil" or "a " .. type(content))
  end
  local reasoning = m.reasoning_content
  if is_null(reasoning) then reasoning = nil end
  if reasoning ~= nil and type(reasoning) ~= "string" then wrong(".reasoning_content must be a string") end
  return { role = m.role, content = content, reasoning = reasoning, calls = m.role == "assistant" and calls or nil,
           reply = m.role == "assistant" and m.reply or nil }
end

--- Checks a list of messages (raises at the caller's line) and brings it to one form.
function chat.normal(messages)
  if type(messages) ~= "table" then options.raise("messages must be a list of tables, got a " .. type(messages)) end
  local out = {}
  for i, m in ipairs(messages) do out[i] = check(i, m) end
  if #out == 0 then options.raise("messages must not be empty") end
  return out
end

--- Renders messages to ids.
-- @param messages table  { { role =, content =, reasoning_content =, tool_calls = }, ... }
-- @param o table         template (a name), think, tools, add_generation_prompt (true unless false), bos
-- @param tok table       encode(text) -> ids | nil, err; added(text) -> id | nil; decode(ids) -> text
-- @return ids, or nil, err where err is a sentence or what tok.encode gave
function chat.render(messages, o, tok)
  local template = templates[o.template]
  local list = chat.normal(messages)
  local given = o.tools and next(o.tools) ~= nil and o.tools or nil
  local b = build.new(tok)
  local ok, err = pcall(template.run, b, list, {
    think = o.think, tools = given, bos = o.bos or "<｜begin▁of▁sentence｜>",
    tools_section = given and not template.own_tools and (template.section_for_lists or tools.named(given)),
    add_generation_prompt = o.add_generation_prompt ~= false,
  })
  local ids
  if ok and not err then ok, ids = pcall(b.finish, b) end
  if ok and ids then return ids end
  err = err or ids
  if type(err) == "table" and err.build_failed then err = err.build_failed end
  if not ok and type(err) == "string" then error(err, 0) end
  return nil, err
end

return chat

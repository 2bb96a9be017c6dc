--- chat/qwen.lua - ChatML as Qwen2 and Qwen3 speak it, and Moonlight's cousin of it.

local tools = require "fathom.chat.tools"

local qwen = {}

local QWEN2_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
local TOOLS_HEAD = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
  .. "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
local TOOLS_TAIL = "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
  .. "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
  .. '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'

-- The system block: of the first message, of the default, with the tools.
local function system_block(b, messages, o, default)
  local first = messages[1] and messages[1].role == "system" and messages[1].content
  local text = first or default
  if not text and not o.tools then return end
  b:literal("<|im_start|>system\n"):text(text or "")
  if o.tools then
    b:literal((text and "\n\n" or "") .. TOOLS_HEAD)
    for _, tool in ipairs(tools.list(o.tools)) do b:literal("\n"):text(tools.hub_json(tool)) end
    b:literal(TOOLS_TAIL)
  end
  b:literal("<|im_end|>\n")
end

-- (Arguments that are JSON text already are not quoted a second time.)
local function call(b, c)
  local name, _, arguments = tools.call(c)
  b:literal('<tool_call>\n{"name": "'):text(name):literal('", "arguments": '):text(arguments)
  b:literal("}\n</tool_call>")
end

-- Results in a row share one block of the user.
local function result(b, messages, i)
  local before, after = messages[i - 1], messages[i + 1]
  if not (before and before.role == "tool") then b:literal("<|im_start|>user") end
  b:literal("\n<tool_response>\n"):text(messages[i].content):literal("\n</tool_response>")
  if not (after and after.role == "tool") then b:literal("<|im_end|>\n") end
end

local function plain(b, m)
  b:literal("<|im_start|>" .. m.role .. "\n"):text(m.content):literal("<|im_end|>\n")
end

--- Qwen2 and Qwen2.5.
function qwen.qwen2(b, messages, o)
  system_block(b, messages, o, QWEN2_SYSTEM)
  for i, m in ipairs(messages) do
    if m.role == "tool" then
      result(b, messages, i)
    elseif m.role == "assistant" then
      b:literal("<|im_start|>assistant")
      if m.reply then
        b:literal("\n"):reply(m.reply, "keep")
      elseif m.calls then
        if m.content and m.content ~= "" then b:literal("\n"):text(m.content) end
        for _, c in ipairs(m.calls) do call(b:literal("\n"), c) end
      else
        b:literal("\n"):text(m.content)
      end
      b:literal("<|im_end|>\n")
    elseif m.role == "user" or i > 1 then
      plain(b, m)
    end
  end
  if o.add_generation_prompt then b:literal("<|im_start|>assistant\n") end
end

-- Index of the last message of the user that is a question and no tool response in disguise.
local function last_query(messages)
  for i = #messages, 1, -1 do
    local m = messages[i]
    if m.role == "user" and not (m.content:find("^<tool_response>") and m.content:find("</tool_response>$")) then
      return i
    end
  end
  return #messages
end

-- Thoughts and answer of a message, from its fields or from tags inside its content.
local function split_thoughts(m)
  if m.reasoning then return m.reasoning, m.content end
  local head = m.content:match("^(.-)</think>")
  if not head then return "", m.content end
  local thoughts = head:gsub("\n+$", "")
  thoughts = thoughts:match("^.*<think>(.*)$") or thoughts
  return thoughts:gsub("^\n+", ""), (m.content:match("^.*</think>(.*)$"):gsub("^\n+", ""))
end

local function qwen3_assistant(b, m, keep, last)
  b:literal("<|im_start|>assistant\n")
  if not b:reply(m.reply, keep and "keep" or "strip") then
    local thoughts, content = split_thoughts(m)
    if keep and (last or thoughts ~= "") then
      thoughts = thoughts:gsub("^\n+", ""):gsub("\n+$", "")
      b:literal("<think>\n"):text(thoughts):literal("\n</think>\n\n")
      b:text((content:gsub("^\n+", "")))
    else
      b:text(content)
    end
    for i, c in ipairs(m.calls or {}) do
      if i > 1 or content ~= "" then b:literal("\n") end
      call(b, c)
    end
  end
  b:literal("<|im_end|>\n")
end

--- Qwen3: thoughts of earlier turns are dropped.
function qwen.qwen3(b, messages, o)
  system_block(b, messages, o)
  local query = last_query(messages)
  for i, m in ipairs(messages) do
    if m.role == "tool" then
      result(b, messages, i)
    elseif m.role == "assistant" then
      if not m.content then return "the qwen3 template needs the content of an assistant message, which is null" end
      qwen3_assistant(b, m, i > query, i == #messages)
    elseif m.role == "user" or i > 1 then
      plain(b, m)
    end
  end
  if o.add_generation_prompt then
    b:literal("<|im_start|>assistant\n")
    if o.think == false then b:literal("<think>\n\n</think>\n\n") end
  end
end

--- Moonlight: names of roles between tokens of their own.
function qwen.moonlight(b, messages, o)
  local first = messages[1]
  local function turn(role, text) b:literal("<|im_" .. role .. "|>" .. role .. "<|im_middle|>"):text(text) end
  if not (first and first.role == "system") then
    turn("system", "You are a helpful assistant")
    b:literal("<|im_end|>")
  end
  for _, m in ipairs(messages) do
    if m.role == "tool" or m.calls then return "the moonlight template has no place for tool calls" end
    turn(m.role, "")
    if not b:reply(m.reply, "keep") then b:text(m.content) end
    b:literal("<|im_end|>")
  end
  if o.add_generation_prompt then turn("assistant", "") end
end

return qwen

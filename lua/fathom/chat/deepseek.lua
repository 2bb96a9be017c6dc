--- chat/deepseek.lua - templates of the DeepSeek family: V2, V3, R1, the R1 distillates, V3.1, and pocket.
-- A template is a function(b, messages, o): it appends to the builder b. o: think, tools, add_generation_prompt, bos.
-- Where a published template has a fault, this gives what the model was trained on; each such place says so.

local tools = require "fathom.chat.tools"

local deepseek = {}

local CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
local CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
local OUTPUTS, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
local OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
local USER, ASSISTANT, SEP, EOS = "<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>", "<｜end▁of▁sentence｜>"

-- System texts joined (or the last one), and the tools that the template has no place for.
local function system_text(messages, o, only_last)
  local texts = {}
  for _, m in ipairs(messages) do
    if m.role == "system" then texts[only_last and 1 or #texts + 1] = m.content end
  end
  if o.tools_section then texts[#texts + 1] = tools.section(o.tools) end
  return table.concat(texts, "\n\n")
end

-- Content behind the last "</think>"; R1's templates keep its leading newlines.
local function after_thoughts(content)
  return content:match("^.*</think>(.*)$") or content
end

local function is_tool(m) return m and m.role == "tool" end

-- type<sep>name, then a fence: the calls of V3 and R1, one block
-- (The first V3 template closes the block only behind a second call, and then behind every further one.)
local function fenced_calls(b, calls)
  b:literal(CALLS)
  for i, call in ipairs(calls) do
    local name, kind, arguments = tools.call(call)
    if i > 1 then b:literal("\n") end
    b:literal(CALL):text(kind):literal(SEP):text(name):literal("\n```json\n"):text(arguments)
    b:literal("\n```" .. CALL_END)
  end
  b:literal(CALLS_END)
end

-- A run of tool messages as one block, opened by the first and closed by the last.
-- (V3's template opens only the first block of a conversation.)
local function output(b, messages, i, newline)
  if not is_tool(messages[i - 1]) then b:literal(OUTPUTS)
  elseif newline then b:literal("\n") end
  b:literal(OUTPUT):text(messages[i].content):literal(OUTPUT_END)
  if not is_tool(messages[i + 1]) then b:literal(OUTPUTS_END) end
end

--- V3 and R1. how: only_last_system, drop_thoughts, opening (what the generation prompt adds), newline (between outputs).
function deepseek.v3(how)
  return function(b, messages, o)
    b:literal(o.bos):text(system_text(messages, o, how.only_last_system))
    for i, m in ipairs(messages) do
      if m.role == "user" then
        b:literal(USER):text(m.content)
      elseif m.role == "tool" then
        output(b, messages, i, how.newline)
      elseif m.role == "assistant" then
        -- after outputs the model goes on by itself (the template for calls says <｜Assistant｜> again)
        if not is_tool(messages[i - 1]) then b:literal(ASSISTANT) end
        if not b:reply(m.reply, how.drop_thoughts and "drop" or "keep") then
          local content = m.content or ""
          b:text(how.drop_thoughts and after_thoughts(content) or content)
          -- (the templates drop the calls of a message whose content is "" rather than null)
          if m.calls then fenced_calls(b, m.calls) end
        end
        b:literal(EOS)
      end
    end
    if o.add_generation_prompt and not is_tool(messages[#messages]) then b:literal(ASSISTANT .. how.opening) end
  end
end

--- V3.1: both modes in one model; calls are name<sep>json.
function deepseek.v31(b, messages, o)
  b:literal(o.bos):text(system_text(messages, o))
  local last_user = false
  for i, m in ipairs(messages) do
    if m.role == "user" then
      b:literal(USER):text(m.content)
      last_user = true
    elseif m.role == "tool" then
      b:literal(OUTPUT):text(m.content):literal(OUTPUT_END)
      last_user = false
    elseif m.role == "assistant" then
      if last_user then b:literal(ASSISTANT .. "<think></think>") end
      last_user = false
      if not b:reply(m.reply, "drop") then
        local content = m.content or ""
        b:text(m.calls and content or is_tool(messages[i - 1]) and content or content:match("</think>(.*)$") or content)
        for j, call in ipairs(m.calls or {}) do
          -- (arguments that are JSON text already are not quoted a second time)
          local name, _, arguments = tools.call(call)
          b:literal((j == 1 and CALLS or "") .. CALL):text(name):literal(SEP):text(arguments):literal(CALL_END)
        end
        if m.calls then b:literal(CALLS_END) end
      end
      b:literal(EOS)
    end
  end
  if o.add_generation_prompt and last_user then
    b:literal(ASSISTANT .. (o.think and "<think>" or "<think></think>"))
  end
end

--- V2: plain words for the roles.
function deepseek.v2(b, messages, o)
  b:literal(o.bos)
  if o.tools_section then b:text(tools.section(o.tools)):literal("\n\n") end
  for _, m in ipairs(messages) do
    if m.role == "system" then
      b:text(m.content):literal("\n\n")
    elseif m.role == "user" then
      b:literal("User: "):text(m.content):literal("\n\n")
    elseif m.role == "assistant" then
      if m.calls then return "the deepseek-v2 template has no place for tool calls" end
      b:literal("Assistant:")
      if not b:reply(m.reply, "keep") then b:literal(" "):text(m.content) end
      b:literal(EOS)
    else
      return "the deepseek-v2 template has no place for tool messages"
    end
  end
  if o.add_generation_prompt then b:literal("Assistant:") end
end

local OPEN = "<think>\n"

local function pocket_content(b, m, going_on)
  local content = m.content or ""
  if m.reasoning and going_on then
    b:literal(OPEN):text(m.reasoning):literal("\n</think>\n\n")
  elseif content:find("</think>", 1, true) then
    content = after_thoughts(content):gsub("^\n+", "")
  end
  b:text(content)
end

--- Pocket: R1's, but thoughts stay while the same user turn goes on.
function deepseek.pocket(b, messages, o)
  local last_user = 0
  for i, m in ipairs(messages) do
    if m.role == "user" then last_user = i end
  end
  b:literal(o.bos):text(system_text(messages, o))
  for i, m in ipairs(messages) do
    if m.role == "user" then
      b:literal(USER):text(m.content)
    elseif m.role == "tool" then
      output(b, messages, i, true)
    elseif m.role == "assistant" then
      if not is_tool(messages[i - 1]) then b:literal(ASSISTANT) end
      local going_on = i > last_user
      if going_on and m.reply and m.reply.opened then b:literal(OPEN) end
      if not b:reply(m.reply, going_on and "keep" or "strip") then
        pocket_content(b, m, going_on)
        if m.calls then fenced_calls(b, m.calls) end
      end
      b:literal(EOS)
    end
  end
  if o.add_generation_prompt and not is_tool(messages[#messages]) then
    b:literal(ASSISTANT .. (o.think == false and "" or OPEN))
  end
end

return deepseek

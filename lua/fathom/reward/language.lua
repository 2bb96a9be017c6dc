--- reward/language.lua - in which script the words of a text are (R1's language consistency).

local language = {}

-- Scripts by ranges of code points; what has none (digits, signs, emoji) is no word.
local ranges = {
  { 0x41, 0x5A, "latin" }, { 0x61, 0x7A, "latin" }, { 0xC0, 0x24F, "latin" }, { 0x1E00, 0x1EFF, "latin" },
  { 0x370, 0x3FF, "greek" }, { 0x400, 0x52F, "cyrillic" }, { 0x590, 0x5FF, "hebrew" }, { 0x600, 0x6FF, "arabic" },
  { 0x750, 0x77F, "arabic" }, { 0x900, 0x97F, "devanagari" }, { 0xE00, 0xE7F, "thai" }, { 0x1100, 0x11FF, "hangul" },
  { 0x3040, 0x30FF, "kana" }, { 0x3400, 0x4DBF, "han" }, { 0x4E00, 0x9FFF, "han" }, { 0xAC00, 0xD7AF, "hangul" },
  { 0xF900, 0xFAFF, "han" }, { 0x20000, 0x3FFFF, "han" },
}

-- A character of these is a word of its own.
local each = { han = true, kana = true, thai = true }

--- The scripts that a language is written in.
language.scripts = {
  en = "latin", de = "latin", fr = "latin", es = "latin", it = "latin", pt = "latin", nl = "latin", pl = "latin", tr = "latin",
  vi = "latin", id = "latin", latin = "latin", ru = "cyrillic", uk = "cyrillic", bg = "cyrillic", cyrillic = "cyrillic",
  el = "greek", greek = "greek", zh = "han", han = "han", ja = { kana = true, han = true }, ko = "hangul", hangul = "hangul",
  ar = "arabic", fa = "arabic", arabic = "arabic", he = "hebrew", hi = "devanagari", th = "thai", kana = "kana",
}

local function script_of(code)
  for _, r in ipairs(ranges) do
    if code >= r[1] and code <= r[2] then return r[3] end
  end
end

-- Formulas and code are in no language.
local function prose(text)
  return (text:gsub("```.-```", " "):gsub("`[^`\n]*`", " "):gsub("%$%$.-%$%$", " "):gsub("%$[^$\n]*%$", " "):gsub("\\%a+", " ")
              :gsub("<[^<>\n]*>", " "))
end

--- Counts the words of a text by script.
-- @return table script -> count, and how many words there are in all
function language.words(text)
  local counts, n, last = {}, 0, nil
  text = prose(text)
  if not utf8.len(text) then text = text:gsub("[\128-\255]+", " ") end
  for _, code in utf8.codes(text) do
    local script = script_of(code)
    if script and (script ~= last or each[script]) then
      counts[script] = (counts[script] or 0) + 1
      n = n + 1
    end
    last = script
  end
  return counts, n
end

--- The share of a text's words that are in a language's script; nil where there are no words.
-- @param name string  "en", "zh", ... or a script
function language.share(text, name)
  local want = language.scripts[name]
  local counts, n = language.words(text)
  if n == 0 then return nil end
  if type(want) == "string" then return (counts[want] or 0) / n end
  local sum = 0
  for script in pairs(want) do sum = sum + (counts[script] or 0) end
  return sum / n
end

--- The script that most words of a text are in, or nil.
function language.main(text)
  local best, most = nil, 0
  for script, n in pairs((language.words(text))) do
    if n > most or (n == most and script < best) then best, most = script, n end
  end
  return best
end

return language

--- escape.lua - text that somebody else wrote, as it may stand in HTML and XML. What a model says is never markup.

local escape = {}

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- Bytes that are no UTF-8, and characters that neither HTML nor XML 1.0 has, become U+FFFD.
local function clean(text)
  text = tostring(text)
  local _, bad = utf8.len(text)
  while bad do
    text = text:sub(1, bad - 1) .. "\u{FFFD}" .. text:sub(bad + 1)
    _, bad = utf8.len(text, bad)
  end
  return (text:gsub("\r\n?", "\n"):gsub("[\0-\8\11\12\14-\31\127]", "\u{FFFD}"):gsub("\u{FFFE}", "\u{FFFD}"):gsub("\u{FFFF}", "\u{FFFD}"))
end

--- For the text of an element, or for an attribute in double quotes.
function escape.html(text) return (clean(text):gsub("[&<>\"']", entities)) end

--- For an attribute in XML, where lines are kept.
function escape.attribute(text) return (escape.html(text):gsub("\n", "&#10;"):gsub("\t", "&#9;")) end

--- At most so many bytes, cut between characters.
function escape.short(text, most)
  text = tostring(text)
  if #text <= most then return text end
  local at = most
  while at > 0 and (text:byte(at + 1) or 0) & 0xC0 == 0x80 do at = at - 1 end
  return text:sub(1, at) .. " ..."
end

return escape

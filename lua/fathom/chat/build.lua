--- chat/build.lua - turns pieces of a rendered prompt into ids.
-- Only literals of a template may become control tokens; what users, tools and models said is encoded as
-- plain text. Text that the reference would encode in one go (no control token between) is joined first.

local build = {}
build.__index = build

--- Starts a prompt.
-- @param tok table  encode(text) -> ids | nil, err; added(text) -> id | nil; decode(ids) -> text
function build.new(tok) return setmetatable({ tok = tok, out = {}, pending = {} }, build) end

local function flush(self)
  if #self.pending == 0 then return end
  local text = table.concat(self.pending)
  self.pending = {}
  if text == "" then return end
  local ids, err = self.tok.encode(text)
  if not ids then error({ build_failed = err }, 0) end
  table.move(ids, 1, #ids, #self.out + 1, self.out)
end

--- Appends text of somebody: never a control token.
function build:text(text)
  self.pending[#self.pending + 1] = text
  return self
end

--- Appends ids as they are.
function build:ids(ids)
  flush(self)
  table.move(ids, 1, #ids, #self.out + 1, self.out)
  return self
end

--- Appends words of the template: those in angle brackets that the tokenizer has become control tokens.
function build:literal(text)
  local at = 1
  while at <= #text do
    local start, stop = text:find("<[^<>\n]*>", at)
    if not start then break end
    local id = self.tok.added(text:sub(start, stop))
    if id then
      self:text(text:sub(at, start - 1))
      flush(self)
      self.out[#self.out + 1] = id
    else
      self:text(text:sub(at, stop))
    end
    at = stop + 1
  end
  return self:text(text:sub(at))
end

local function last_index(ids, id)
  for i = #ids, 1, -1 do
    if ids[i] == id then return i end
  end
end

--- Appends a reply by the very ids that were sampled, so that their cache stays good.
-- @param reply table|nil  { ids =, opened = whether the prompt ended inside a think block }
-- @param thoughts string  "keep", "drop" (what follows the last </think> stays as it is) or "strip" (and its
--                         leading newlines go)
-- @return boolean  false: nothing was appended, take the message's content
function build:reply(reply, thoughts)
  if not reply then return false end
  local ids = reply.ids
  local close = self.tok.added("</think>")
  if thoughts == "keep" then
    self:ids(ids)
    return true
  end
  if not close then return false end
  local cut = last_index(ids, close) or (reply.opened and #ids or 0)
  local from = cut + 1
  while thoughts == "strip" and cut > 0 and from <= #ids do
    local text = self.tok.decode { ids[from] }
    local rest = text:gsub("^\n+", "")
    if rest == text then break end
    self:text(rest)
    from = from + 1
    if rest ~= "" then break end
  end
  self:ids(table.move(ids, from, #ids, 1, {}))
  return true
end

--- The ids of everything appended.
function build:finish()
  flush(self)
  return self.out
end

return build

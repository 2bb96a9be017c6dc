--- chat/build.lua - turns pieces of a rendered prompt into ids.
-- Only literals of a template may become control tokens; what users, tools and models said is encoded as
-- plain text. Text that the reference would encode in one go (no control token between) is joined first.

local build = {}
build.__index = build

--- Starts a prompt.
-- @param tok table  encode(text) -> ids | nil, err; added(text) -> id | nil
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

--- The ids of everything appended.
function build:finish()
  flush(self)
  return self.out
end

return build

--- grammar_spec.lua - structured output: whatever is sampled parses and validates, whatever is valid can be sampled.
local core = require "fathom.core"
local fathom = require "fathom"
local helper = require "spec.helper"
local json = require "fathom.json"
local ref_gbnf = require "spec.ref.gbnf"
local ref_schema = require "spec.ref.schema"

-- ---- chance, the same in every run ---------------------------------------------------------------

local function chance(seed)
  local state = seed * 2654435761 + 88172645463325252
  local function rnd(n)                            -- 1 .. n
    state = state ~ (state << 13)
    state = state ~ (state >> 7)
    state = state ~ (state << 17)
    return (state >> 1) % n + 1
  end
  local function pick(list) return list[rnd(#list)] end
  return rnd, pick
end

-- ---- random schemas --------------------------------------------------------------------------------

local names = { "a", "id", "name", "Straße", "x y", "quo\"te", "", "n1", "n10", "日本" }

local function object(t, order) return json.object(t, order) end

local kinds = {}

function kinds.string(rnd)
  local s = { type = "string" }
  if rnd(2) == 1 then s.minLength = rnd(6) - 1 end
  if rnd(2) == 1 then s.maxLength = (s.minLength or 0) + rnd(30) - 1 end
  return s
end

function kinds.integer(rnd)
  local s = { type = "integer" }
  local lo = rnd(3000) - 1500
  if rnd(2) == 1 then s[rnd(2) == 1 and "minimum" or "exclusiveMinimum"] = lo end
  if rnd(2) == 1 then s[rnd(2) == 1 and "maximum" or "exclusiveMaximum"] = lo + 1 + rnd(2000) end
  return s
end

function kinds.number(rnd)
  local s = { type = "number" }
  local function round(x) return tonumber(("%.4f"):format(x)) end
  local lo = round((rnd(4000) - 2000) / (10 ^ rnd(4)))
  if rnd(2) == 1 then s[rnd(2) == 1 and "minimum" or "exclusiveMinimum"] = lo end
  if rnd(2) == 1 then s[rnd(2) == 1 and "maximum" or "exclusiveMaximum"] = round(lo + rnd(500) / 100) end
  return s
end

function kinds.word(_, pick) return { type = pick { "boolean", "null", "string", "integer" } } end
function kinds.types(_, pick) return { type = json.array { pick { "string", "array" }, "null" } } end
function kinds.anything(rnd) return rnd(4) == 1 and object {} or { type = "boolean" } end

function kinds.enum(_, pick)
  return { enum = json.array { pick(names), 7, "caf\u{e9}", true, json.array { 1, "b" }, pick { 0.5, -3, 1e20 } } }
end

function kinds.const(_, pick) return { const = pick { "one\n\"two\"", 12, false, "日本語" } } end

local schema_of

function kinds.array(rnd, pick, depth)
  local s = { type = "array" }
  if rnd(3) == 1 then
    s.prefixItems = json.array { schema_of(rnd, pick, depth + 1), schema_of(rnd, pick, depth + 1) }
  end
  if rnd(3) > 1 then s.items = schema_of(rnd, pick, depth + 1) end
  if rnd(3) == 1 then s.minItems = rnd(4) - 1 end
  if rnd(2) == 1 then s.maxItems = (s.minItems or 0) + rnd(4) - 1 end
  if s.maxItems == 0 then s.maxItems = nil end
  return s
end

function kinds.object(rnd, pick, depth)
  local properties, required = object {}, json.array {}
  for _ = 1, rnd(4) do
    local name = pick(names)
    if not properties[name] then
      properties[name] = schema_of(rnd, pick, depth + 1)
      if rnd(2) == 1 then required[#required + 1] = name end
    end
  end
  local s = { type = "object", properties = properties, required = required }
  local other = rnd(4)
  if other == 1 then s.additionalProperties = false end
  if other == 2 then s.additionalProperties = schema_of(rnd, pick, depth + 1) end
  return s
end

function kinds.anyOf(rnd, pick, depth)
  return { anyOf = json.array { schema_of(rnd, pick, depth + 1), schema_of(rnd, pick, depth + 1) } }
end

function kinds.oneOf(rnd, pick, depth)
  return { oneOf = json.array { kinds.integer(rnd), kinds.string(rnd), kinds.array(rnd, pick, depth + 1) } }
end

function kinds.allOf(rnd, pick, depth)
  return { type = "object", allOf = json.array {
    { properties = object { left = schema_of(rnd, pick, depth + 1) }, required = json.array { "left" } },
    { properties = object { right = schema_of(rnd, pick, depth + 1) } } } }
end

kinds["$ref"] = function() return { ["$ref"] = "#/$defs/tree" } end

local flat = { "string", "integer", "number", "word", "types", "enum", "const" }
local deep = { "string", "integer", "number", "word", "types", "enum", "const", "anything", "array", "array", "object", "object",
               "object", "anyOf", "oneOf", "allOf", "$ref" }

function schema_of(rnd, pick, depth) return kinds[pick(depth > 3 and flat or deep)](rnd, pick, depth) end

local function random_schema(seed)
  local rnd, pick = chance(seed)
  local s = schema_of(rnd, pick, 0)
  s["$defs"] = object { tree = { type = "object", required = json.array { "v" }, properties = object {
    v = kinds.integer(rnd), kids = { type = "array", items = { ["$ref"] = "#/$defs/tree" }, maxItems = 3 } } } }
  return s
end

-- What the validator takes for null.
local function for_ref(v)
  if v == json.null then return ref_schema.null end
  return v
end

-- ---- without a model -----------------------------------------------------------------------------------

local END = 1          -- pocket's end of sentence

describe("a guide over a vocabulary", function()
  local tok

  setup(function() tok = assert(core.tokenizer(fathom.pocket)) end)
  teardown(function() tok:close() end)

  -- Draws until the end or until nothing is left; the text, and whether it is complete.
  local function draw(o, seed, left)
    o.ends = { END }
    local guide = assert(core.guide(tok, o))
    local ids = {}
    while left > 0 and not guide:over() do
      local id = assert(guide:draw(seed, #ids, left))
      if id == END then break end
      ids[#ids + 1] = id
      left = left - 1
    end
    local complete = guide:complete()
    guide:close()
    return tok:decode(ids), complete, #ids
  end

  it("lets out nothing but valid documents, for thousands of random schemas", function()
    local n, cut, shortest = 2000, 0, 0
    for seed = 1, n do
      local schema = random_schema(seed)
      local text = json.encode(schema)
      local room = 10 + seed % 150
      local doc, complete = draw({ schema = text }, seed, room)
      if complete then
        local ok, why = ref_schema.valid(doc, for_ref(schema))
        if not ok then error(("schema %d: %s\n%s\n%s"):format(seed, why, text, doc)) end
      else
        cut = cut + 1
        -- only where the shortest document does not fit: with room for it, it comes
        local again, whole, used = draw({ schema = text }, seed, 2000)
        assert(whole, again)
        assert(used > room or room < 60, text)
      end
      if #doc < 3 then shortest = shortest + 1 end
    end
    assert.is_true(cut < n / 10, cut)
    assert.is_true(shortest < n / 4, shortest)
  end)

  it("lets every valid document in that has the form it writes", function()
    local function takes(schema, docs)
      for _, doc in ipairs(docs) do
        local guide = assert(core.guide(tok, { schema = json.encode(schema), ends = { END } }))
        for _, id in ipairs(tok:encode(doc, false)) do
          assert(guide:allowed(id), doc)
          assert(guide:take(id))
        end
        assert(guide:complete(), doc)
        guide:close()
      end
    end
    takes({ type = "number" }, { "0", "-0.125", "3.5", "-12e-7", "0.5E+10", "123456789012345", "1.000000000000001" })
    takes({ type = "number", minimum = -1.5, maximum = 99.25 }, { "-1.5", "-1.25", "-0.0001", "0", "7", "99.25", "99.250", "99.2" })
    takes({ type = "number", exclusiveMinimum = 0 }, { "0.01", "1", "900000000000000" })
    takes({ type = "integer" }, { "0", "-7", "999999999999999" })
    takes({ type = "integer", minimum = -40, maximum = 12345 }, { "-40", "-39", "-9", "0", "10", "12345", "9999", "12299" })
    takes({ type = "string" }, { '""', '"a b"', '"\\u00e9\\n\\"x\\\\"', '"\u{1F600}\u{e9}"', '"\\u0001\\uD7FF\\uFFFF"' })
    takes(json.object {}, { "null", '[1, [true,{}]]', '{"a":{"b": "c"},"":0}' })
    takes({ type = "object", properties = json.object({ b = { type = "null" }, a = { type = "null" } }, { "b", "a" }),
            additionalProperties = { type = "integer" } },
          { "{}", '{"b":null}', '{"a": null}', '{"b": null, "a": null, "c": 1,"ab": 2}', '{"bb": 5, "": 1}' })
    takes({ type = "array", prefixItems = json.array { { const = 1 }, { const = 2 } }, items = { const = 3 } },
          { "[]", "[1]", "[1, 2]", "[1,2,3,3]" })
  end)

  it("spells given numbers so that they read back as what they are", function()
    local big = { 9007199254740993, 1 << 62, -(1 << 62) - 1, 0.1 + 0.2, 1e20, 5e-324, 123456789012345678 }
    for i, want in ipairs(big) do
      local doc = draw({ schema = json.encode { const = { ['1, "2e5'] = 3, x = { want, 7 } } } }, 1, 60)
      assert.equal(want, assert(json.decode(doc), doc).x[1])
      doc = draw({ schema = json.encode { enum = json.array(big) } }, i, 60)
      local found
      for _, v in ipairs(big) do found = found or v == json.decode(doc) end
      assert(found, doc)
    end
    assert.equal("9007199254740993", (draw({ schema = '{"const":9007199254740993}' }, 1, 60)))
    assert.equal("[7,0.5,1e+20]", (draw({ schema = '{"const":[7.0, 0.50,1e20]}' }, 1, 60)))
  end)

  it("steers a document to its shortest close", function()
    local o = { schema = '{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer"}},"required":["a","b"]}' }
    local least
    for room = 1, 40 do
      local doc, complete, used = draw(o, 7, room)
      if complete then
        least = least or room
        assert.is_true(ref_schema.valid(doc, { type = "object", required = { "a", "b" } }))
        assert.is_true(used <= room)
      end
      assert.equal(least ~= nil, complete)         -- once there is room, there always is
    end
    assert.is_true(least < 14, least)
  end)

  it("closes what could nest for ever", function()
    local doc, complete = draw({ schema = '{"$ref":"#/$defs/l","$defs":{"l":{"type":"array","items":{"$ref":"#/$defs/l"}}}}' }, 3, 4000)
    assert.is_true(complete)
    local depth, most = 0, 0
    for c in doc:gmatch "[%[%]]" do
      depth = depth + (c == "[" and 1 or -1)
      most = math.max(most, depth)
    end
    assert.is_true(most < 190, most)
  end)

  -- ---- GBNF ----

  local function random_expression(rnd, pick, depth)
    local kind = depth > 3 and rnd(2) or rnd(6)
    local function inner() return random_expression(rnd, pick, depth + 1) end
    if kind == 1 then return pick { "a", "ab", "the ", "is \"", "é", "\n", "b]" } end
    if kind == 2 then return { set = pick { "abc", "x-z]", "0123456789", "\"^ " } } end
    if kind == 3 then return { seq = { inner(), inner() } } end
    if kind == 4 then return { alt = { inner(), inner(), "the" } } end
    if kind == 5 then
      local min = rnd(3) - 1
      return { rep = inner(), min = min, max = rnd(2) == 1 and min + rnd(25) or nil }
    end
    return { seq = { "(", { rule = pick { "root", "other" } }, ")" } }
  end

  local function random_grammar(seed)
    local rnd, pick = chance(seed)
    return { root = { alt = { random_expression(rnd, pick, 0), "a" } }, other = { alt = { random_expression(rnd, pick, 1), "bc" } } }
  end

  it("lets out nothing but what a grammar matches", function()
    for seed = 1, 300 do
      local rules = random_grammar(seed)
      local text = ref_gbnf.to_text(rules)
      local doc, complete = draw({ grammar = text }, seed, 40)
      assert(complete and ref_gbnf.matches(rules, doc), text .. doc)
    end
  end)

  -- A text of the grammar, by chance.
  local function spell(rules, e, rnd, pick, fuel)
    if type(e) == "string" then return e end
    if e.set then return e.set:sub(1, rnd(#e.set)):sub(-1) end
    if e.rule then return spell(rules, fuel > 0 and rules[e.rule] or rules[e.rule].alt[#rules[e.rule].alt], rnd, pick, fuel - 1) end
    local parts = {}
    if e.seq then
      for i, part in ipairs(e.seq) do parts[i] = spell(rules, part, rnd, pick, fuel - 1) end
    elseif e.alt then
      return spell(rules, fuel > 0 and pick(e.alt) or e.alt[#e.alt], rnd, pick, fuel - 1)
    else
      local n = e.min + (fuel > 0 and rnd(math.min(4, (e.max or 4) - e.min + 1)) - 1 or 0)
      for i = 1, n do parts[i] = spell(rules, e.rep, rnd, pick, fuel - 1) end
    end
    return table.concat(parts)
  end

  it("lets out everything that a grammar matches, however it is cut into tokens", function()
    local tried = 0
    for seed = 1, 400 do
      local rules = random_grammar(seed)
      local rnd, pick = chance(seed + 7)
      local text = spell(rules, rules.root, rnd, pick, 8)
      if #text < 200 then
        local guide = assert(core.guide(tok, { grammar = ref_gbnf.to_text(rules), ends = { END } }))
        for _, id in ipairs(tok:encode(text, false)) do
          assert(guide:allowed(id), ref_gbnf.to_text(rules) .. "\n" .. text)
          assert(guide:take(id))
        end
        assert.is_true(guide:complete())
        assert.is_true(guide:allowed(END))
        guide:close()
        tried = tried + 1
      end
    end
    assert.is_true(tried > 250, tried)
  end)

  it("allows exactly the tokens after which a text can still be completed", function()
    -- rules whose prefixes are easily told: every token of the vocabulary is looked at
    local o = { grammar = 'root ::= "ab" [0-9]{2,4} ("," | "é") "end"', ends = { END } }
    local function prefix(s)
      if ("ab"):sub(1, #s) == s then return true end
      local digits, rest = s:match "^ab(%d*)(.*)$"
      if not digits or #digits > 4 then return false end
      if rest == "" then return true end
      if #digits < 2 then return false end
      return (",end"):sub(1, #rest) == rest or ("éend"):sub(1, #rest) == rest
    end
    for _, begun in ipairs { "", "a", "ab", "ab1", "ab12", "ab1234", "ab12\xc3", "ab123,", "ab123,en", "ab12,end" } do
      local guide = assert(core.guide(tok, o))
      for _, id in ipairs(tok:encode(begun, false)) do assert(guide:take(id)) end
      for id = 2, tok:size() - 1 do
        local bytes = tok:decode { id }
        local want = bytes ~= "" and not bytes:find("｜", 1, true) and prefix(begun .. bytes)
        assert(guide:allowed(id) == want, ("%q then %q"):format(begun, bytes))
      end
      assert.equal(begun == "ab12,end", guide:allowed(END))
      guide:close()
    end
  end)

  it("counts what a string has and may have, near and far from its bounds", function()
    for _, pair in ipairs { { 0, 3 }, { 3, 3 }, { 17, 20 }, { 16, 16 }, { 0, 40 }, { 30, 31 }, { 100, 140 } } do
      local schema = { type = "string", minLength = pair[1], maxLength = pair[2] }
      for seed = 1, 12 do
        local doc, complete = draw({ schema = json.encode(schema) }, seed, 400)
        assert.is_true(complete)
        assert(ref_schema.valid(doc, schema), doc)
      end
    end
  end)

  -- ---- what is refused ----

  local function refused(code, word, o)
    local guide, err = core.guide(tok, o)
    assert.is_nil(guide)
    assert.equal(code, err.code)
    assert(err.message:find(word, 1, true), err.message)
  end

  it("refuses malformed grammars with line and column", function()
    local function bad(text, word) refused("format", word, { grammar = text }) end
    bad("", "root")
    bad("start ::= \"a\"", "root")
    bad("root ::= \"a", "line 1, column 10")
    bad("root ::= \"a\"\nb ::= [a-", "line 2, column 7")
    bad("root ::= a", "line 1, column 10")
    bad("root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1")
    bad("root := \"a\"", "'::='")
    bad("root ::= (\"a\"", "a group has no end")
    bad("root ::= \"a\")", "')' without '('")
    bad("root ::= *", "unexpected")
    bad("root ::= \"a\"{3,1}", "at least")
    bad("root ::= \"a\"{99999999999}", "two thousand million")
    bad("root ::= \"a\"{,}", "number")
    bad("root ::= \"\\q\"", "escape")
    bad("root ::= \"\\ud800\"", "no character")
    bad("root ::= [z-a]", "backwards")
    bad("root ::= \"\xff\"", "UTF-8")
    bad("root ::= " .. ("("):rep(500) .. "\"a\"" .. (")"):rep(500), "nested")
    bad("root ::= \"a\" root", "no text ever completes root")
    bad("root ::= \"a\" b\nb ::= c\nc ::= b", "matches nothing")
    bad("root ::= [] | b\nb ::= \"x\" b", "matches nothing")
    refused("unsupported", "left recursion", { grammar = "root ::= root \"a\" | \"b\"" })
    refused("unsupported", "b comes back", { grammar = "root ::= b\nb ::= \"x\"* c\nc ::= b \"y\" | \"z\"" })
  end)

  it("reads what the notation allows", function()
    local text = "# a comment\nroot ::= (\n  \"a\" |  # another\n  [^b-z\\n] ) tail?\n  | \"q\"\n"
      .. "tail ::= .{2} \"\\x41\\u00e9\\\"\" [a\\-]+\n"
    for _, good in ipairs { "a", "q", "A", "é", "axyAé\"a-a" } do
      local guide = assert(core.guide(tok, { grammar = text }))
      for _, id in ipairs(tok:encode(good, false)) do assert(guide:take(id)) end
      assert.is_true(guide:complete())
      guide:close()
    end
    for _, wrong in ipairs { "c", "\n", "axyA", "aa" } do
      local guide = assert(core.guide(tok, { grammar = text }))
      local fine = true
      for _, id in ipairs(tok:encode(wrong, false)) do fine = fine and pcall(guide.take, guide, id) end
      assert.is_false(fine and guide:complete())
      guide:close()
    end
  end)

  it("refuses keywords by name and path, and schemas that match nothing", function()
    local function bad(text, code, word) refused(code, word, { schema = text }) end
    bad('{"type":"object","properties":{"a":{"not":{}}}}', "unsupported", "$.properties.a: the keyword 'not'")
    for _, key in ipairs { "pattern", "format", "multipleOf", "uniqueItems", "patternProperties", "propertyNames", "minProperties",
                           "if", "contains", "$dynamicRef", "unknown" } do
      bad(('{"items":{"%s":1}}'):format(key), "unsupported", ("$.items: the keyword '%s'"):format(key))
    end
    bad('{"enum":["a"],"minLength":2}', "unsupported", "'minLength'")
    bad('{"$ref":"http://x/y"}', "unsupported", "http://x/y")
    bad('{"$ref":"#/$defs/none"}', "format", "leads nowhere")
    bad('{"$ref":"#"}', "format", "circle")
    bad('{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}', "format", "circle")
    bad('{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}', "format", "matches nothing")
    bad('{"type":"array","items":{"$ref":"#"},"minItems":1}', "format", "matches nothing")
    bad('{"anyOf":[{"type":"null"},{"$ref":"#"}]}', "unsupported", "left recursion")
    bad("false", "format", "matches nothing")
    bad('{"enum":[]}', "format", "matches nothing")
    bad('{"type":"string","minLength":3,"maxLength":2}', "format", "$: minLength 3 is more than maxLength 2")
    bad('{"properties":{"a":{"minItems":5,"maxItems":2}}}', "format", "$.properties.a: minItems 5 is more than maxItems 2")
    bad('{"type":"integer","minimum":3,"maximum":2}', "format", "bounds")
    bad('{"type":"integer","minimum":2.2,"maximum":2.8}', "format", "matches nothing")
    bad('{"type":"number","minimum":1e300}', "unsupported", "15 digits")
    bad('{"type":"widget"}', "format", "type")
    bad('{"type":"string","minLength":-1}', "format", "minLength")
    bad('{"oneOf":[{"type":"number"},{"type":"integer"}]}', "unsupported", "choice 0 of oneOf")
    bad('{"allOf":[{"type":"string"},{"type":"integer"}]}', "format", "no type")
    bad('{"required":["a"],"additionalProperties":false}', "format", "'a' is required")
    bad('{"enum":[1e400]}', "unsupported", "1e400")
    bad('{"const":"a\\u0000b"}', "unsupported", "zero byte")
    bad("7", "format", "a schema is an object")
    bad("[]", "format", "a schema is an object")
    bad("", "format", "no JSON")
    bad("{", "format", "no JSON")
    bad(("["):rep(100), "format", "nested")
    bad('{"title":"\xff"}', "format", "UTF-8")
  end)

  it("refuses what can be read in too many ways, soon", function()
    local function doubling(n)                     -- 2^n stacks behind the first byte
      local lines = { "root ::= r1" }
      for i = 1, n do lines[#lines + 1] = ("r%d ::= r%d r%d"):format(i, i + 1, i + 1) end
      lines[#lines + 1] = ("r%d ::= \"a\" | \"\""):format(n + 1)
      return table.concat(lines, "\n")
    end
    local whole
    local function try(text)
      local begun, guide, err = os.clock(), core.guide(tok, { grammar = text, ends = { END } })
      whole = guide ~= nil
      for i = 1, guide and 40 or 0 do
        local id
        id, err = guide:draw(3, i, 100)
        if not id or id == END then whole = id ~= nil break end
      end
      if not whole then
        assert.equal("limit", err.code)
        assert.is_truthy(err.message:find("too ambiguous", 1, true), err.message)
      end
      assert.is_true(os.clock() - begun < 2)       -- 40 ids of at most 0.1 s each, and sanitizers
      if guide then guide:close() end
      return whole
    end
    assert.is_true(try(doubling(6)))
    for _, n in ipairs { 10, 12, 16, 25 } do try(doubling(n)) end
    assert.is_false(try(doubling(30)))
    try 'root ::= x{50} "c"\nx ::= "a" x? "a"? | "a" "b"? x{0,3}'
    try 'root ::= (("a" | "aa" | "b"){1,1000}){1,1000}'
    -- a choice of many is not ambiguous
    local many = json.array {}
    for i = 1, 1000 do
      many[i] = { type = "object", required = json.array { "t", "v" }, properties =
        json.object({ t = { const = "kind " .. i }, v = { type = "integer", minimum = i, maximum = i } }, { "t", "v" }) }
    end
    local doc, complete = draw({ schema = json.encode { anyOf = many } }, 1, 60)
    assert.is_true(complete)
    local value = json.decode(doc)
    assert.equal("kind " .. value.v, value.t)
  end)

  it("takes grammars apart that are huge on paper", function()
    local function chain(n, rule, last)
      local lines = { "root ::= r1" }
      for i = 1, n do lines[#lines + 1] = rule:gsub("THIS", "r" .. i):gsub("NEXT", "r" .. i + 1) end
      lines[#lines + 1] = ("r%d ::= %s"):format(n + 1, last)
      return table.concat(lines, "\n")
    end
    local begun = os.clock()
    local long <close> = assert(core.guide(tok, { grammar = chain(20000, 'THIS ::= "a" NEXT', '"z"'), ends = { END } }))
    for i = 1, 60 do assert(long:draw(1, i, 60)) end
    assert.is_true(os.clock() - begun < 1)
    refused("unsupported", "too long", { grammar = chain(70, "THIS ::= NEXT NEXT", '"a"') })
    refused("format", "matches nothing", { grammar = chain(70, "THIS ::= NEXT NEXT", '"a" r1') })
    local doc, complete = draw({ grammar = 'root ::= "a"{1,1000000000} ("b"{5}){2,100000}' }, 1, 60)
    assert.is_true(complete)
    assert.matches("^a+b+$", doc)
    local words = {}
    for i = 1, 5000 do words[i] = ("word%d"):format(i) end
    local enum = { enum = json.array(words) }
    doc, complete = draw({ schema = json.encode(enum) }, 1, 30)
    assert.is_true(complete and ref_schema.valid(doc, enum))
  end)
end)

-- ---- with models -------------------------------------------------------------------------------------------

-- A tokenizer for the 512 ids of the golden checkpoints: all bytes, and words of JSON in one piece.
local function tiny_tokenizer()
  local pieces, vocab, merges, next_id = {}, {}, {}, 2
  local shown = 0
  local function letter(b)
    if (b >= 33 and b <= 126) or (b >= 161 and b <= 172) or b >= 174 then return utf8.char(b) end
    shown = shown + 1
    return utf8.char(255 + shown)
  end
  for b = 0, 255 do
    pieces[b] = letter(b)
    vocab[pieces[b]] = next_id
    next_id = next_id + 1
  end
  local function add(word)
    local whole = pieces[word:byte(1)]
    for i = 2, #word do
      local more = pieces[word:byte(i)]
      if not vocab[whole .. more] and next_id < 510 then
        vocab[whole .. more] = next_id
        merges[#merges + 1] = whole .. " " .. more
        next_id = next_id + 1
      end
      whole = whole .. more
    end
  end
  for _, word in ipairs { '":', '", ', '"}', '{"', ' "', "true", "false", "null", '["', "], ", "123", "é日", "\n\n", " the", '\\"',
                          "name", "}}", "],", "00", "-1", "e+", "\\u00" } do
    add(word)
  end
  return json.encode { added_tokens = json.array {
                         { id = 0, content = "<s>", special = true }, { id = 1, content = "</s>", special = true },
                         { id = 510, content = "<think>", special = true }, { id = 511, content = "</think>", special = true } },
                       pre_tokenizer = { type = "ByteLevel", add_prefix_space = false, use_regex = false },
                       decoder = { type = "ByteLevel" },
                       model = { type = "BPE", vocab = object(vocab), merges = json.array(merges) } }
end

describe("a model of random weights", function()
  local model, dir, remove

  setup(function()
    dir, remove = helper.folder()
    helper.copy("spec/golden/v3-tiny/config.json", dir .. "/config.json")
    helper.copy("spec/golden/v3-tiny/model.safetensors", dir .. "/model.safetensors")
    helper.write(dir .. "/tokenizer.json", tiny_tokenizer())
    model = assert(fathom.load(dir, { seqs = 8, threads = 1 }))
  end)
  teardown(function()
    model:close()
    remove()
  end)

  it("says nothing but valid documents, with drafts and without, alone and in batches", function()
    local whole, n, drafted = 0, 160, 0
    for seed = 1, n do
      local schema = random_schema(seed + 5000)
      local o = { schema = schema, seed = seed, max_tokens = 60 + seed % 90, temperature = seed % 3 == 0 and 0 or 1, top_p = 1 }
      local r = assert(model:generate({ 0, 5, 9 }, o))
      o.mtp = false
      local plain = assert(model:generate({ 0, 5, 9 }, o))
      assert.same(plain.ids, r.ids)
      if seed % 4 == 0 then                        -- with probabilities the host draws, not the device
        o.logprobs = 0
        assert.same(plain.ids, assert(model:generate({ 0, 5, 9 }, o)).ids)
        o.logprobs = nil
      end
      drafted = drafted + r.usage.accepted
      if r.finish == "stop" then
        whole = whole + 1
        local ok, why = ref_schema.valid(r.answer, schema)
        if not ok then error(why .. "\n" .. json.encode(schema) .. "\n" .. r.answer) end
      end
      if seed % 8 == 0 then
        o.mtp, o.n = nil, 6
        local many = assert(model:generate({ 0, 5, 9 }, o)).samples
        assert.same(r.ids, many[1].ids)
        for _, s in ipairs(many) do
          if s.finish == "stop" then assert(ref_schema.valid(s.answer, schema), s.answer) end
        end
      end
    end
    assert.is_true(whole > n * 0.9, whole)
    assert.is_true(drafted > 100, drafted)         -- literals are drafted right whatever the weights
  end)

  it("thinks first, and still has room for the document", function()
    for seed = 1, 30 do
      local r = assert(model:generate({ 0, 510, 9 }, { schema = { a = "boolean", b = fathom.int(1, 500) }, seed = seed,
                                                       temperature = 1, top_p = 1, max_tokens = 20 + seed, ignore_eos = true }))
      assert.equal("stop", r.finish)
      local value = assert(json.decode(r.answer), r.answer)
      assert.equal("boolean", type(value.a))
      assert.is_true(value.b >= 1 and value.b <= 500)
      assert.is_true(#r.ids <= 20 + seed)
    end
  end)

  it("keeps to the grammar under any penalty, bias and filter", function()
    local bias = {}
    for id = 2, 257 do bias[id] = -math.huge end
    for i, o in ipairs { { repeat_penalty = 1.8 }, { frequency_penalty = 2, presence_penalty = -1 }, { top_k = 1 }, { min_p = 1 },
                         { temperature = 50 }, { logit_bias = bias }, { logprobs = 3 } } do
      o.schema, o.seed, o.max_tokens = { list = fathom.list("integer", 4, 2), ok = "boolean" }, i, 60
      if o.logit_bias then
        o.logit_bias = {}
        for id = 2, 257 do o.logit_bias[id] = -1e30 end
      end
      local r = assert(model:generate({ 0, 5, 9 }, o))
      assert.equal("stop", r.finish)
      assert.is_true(#assert(json.decode(r.answer)).list >= 2)
    end
  end)

  it("cuts what cannot fit and says so", function()
    local r = assert(model:generate({ 0, 5 }, { schema = { a = fathom.text(nil, 50) }, max_tokens = 8 }))
    assert.equal("length", r.finish)
    assert.equal(8, #r.ids)
  end)

  it("follows grammars as well", function()
    local r = assert(model:generate({ 0, 5 }, { grammar = 'root ::= "[[A]]" | "[[B]]" | "[[C]]"', temperature = 0 }))
    assert.matches("^%[%[[ABC]%]%]$", r.text)
    assert.equal("stop", r.finish)
  end)
end)

describe("sessions with schemas", function()
  local model

  setup(function() model = assert(fathom.load(fathom.pocket)) end)
  teardown(function() model:close() end)

  it("give values", function()
    local s <close> = assert(model:session { seed = 3 })
    local value, result = s:json("What is 17 + 25?", { schema = { answer = "integer", sure = fathom.enum { "yes", "no" } } })
    assert.equal("integer", math.type(value.answer))
    assert.is_true(value.sure == "yes" or value.sure == "no")
    assert.equal("stop", result.finish)
    assert.is_true(result.think ~= "")
    assert.equal(2, #s:messages())
    local again = assert(s:json "And 2 + 2?")     -- any JSON
    assert.is_not_nil(again)
  end)

  it("say the same whether the device draws or the host's sampler, whatever the filters", function()
    for seed, o in ipairs { {}, { top_p = 0.7, temperature = 1.5 }, { top_k = 3, top_p = 1, temperature = 2 }, { top_k = 9, top_p = 0.8 },
                            { min_p = 0.2, top_p = 1, temperature = 1.7 }, { top_k = 40, top_p = 0.9, min_p = 0.01, temperature = 1.2 } } do
      local s <close> = assert(model:session { seed = seed, max_tokens = 120, ignore_eos = true })
      local drawn = assert(s:fork():ask("Tell me a story about a fox.", o):wait())
      o.logprobs = 0
      assert.same(drawn.ids, assert(s:ask("Tell me a story about a fox.", o):wait()).ids)
    end
  end)

  it("say the same whether the device draws or the host's sampler", function()
    for seed = 1, 6 do
      local s <close> = assert(model:session { seed = seed })
      local o = { schema = { answer = "integer", sure = "boolean" }, temperature = 1, max_tokens = 200 }
      local drawn = assert(s:fork():ask("What is 17 + 25?", o):wait())
      o.logprobs = 0
      assert.same(drawn.ids, assert(s:ask("What is 17 + 25?", o):wait()).ids)
    end
  end)

  it("never say what logit_bias bans, and tell when nothing else is allowed", function()
    local digits, even, quotes, all = {}, {}, {}, {}
    for id = 0, model.config.vocab_size - 1 do
      local text = model:decode { id }
      all[id] = -math.huge
      if text:find "%d" then digits[id] = -math.huge end
      if text:find "[02468]" then even[id] = -math.huge end
      if #text > 1 and text:find '["}]' then quotes[id] = -math.huge end
    end
    local function ask(schema, bias, o)
      local s <close> = assert(model:session { seed = 3, temperature = 1.5 })
      o = o or { think = false, max_tokens = 50 }
      o.schema, o.logit_bias = schema, bias
      local r, err = s:ask("Make something up.", o):wait()
      for _, id in ipairs(r and r.ids or {}) do assert.is_nil(bias[id]) end
      return r, err
    end
    for _, case in ipairs { { "integer", digits }, { "integer", all }, { { a = "string" }, all },
                            { "integer", all, { max_tokens = 50 } } } do
      local r, err = ask(case[1], case[2], case[3])
      assert.is_nil(r)
      assert.equal("limit", err.code)
      assert.is_truthy(err.message:find("no id is left to draw", 1, true), err.message)
    end
    assert.matches("^%-?[13579]+$", assert(ask("integer", even)).answer)
    -- a close is spelt without them, too
    local r = assert(ask({ a = "string", b = "string" }, quotes, { think = false, max_tokens = 20 }))
    assert.equal("stop", r.finish)
    assert.is_string(assert(json.decode(r.answer), r.answer).b)
  end)

  it("tell when no document fits", function()
    local s <close> = assert(model:session { seed = 3 })
    local value, err = s:json("Hi", { schema = fathom.list(fathom.text(nil, 30), nil, 20), max_tokens = 30 })
    assert.is_nil(value)
    assert.equal("limit", err.code)
    assert.is_truthy(err.hint:find "max_tokens")
  end)

  it("refuse what does not go together, at the caller's line", function()
    local s <close> = assert(model:session())
    local function raises(word, f)
      local ok, err = pcall(f)
      assert.is_false(ok)
      assert.matches("grammar_spec.lua:%d+: ", err)
      assert.is_truthy(err:find(word, 1, true), err)
    end
    raises("either", function() s:ask("x", { schema = {}, grammar = "root ::= \"a\"" }) end)
    raises("stop", function() s:ask("x", { schema = {}, stop = "}" }) end)
    raises("stop_ids", function() s:ask("x", { grammar = "root ::= \"a\"", stop_ids = { 5 } }) end)
    raises("schema", function() s:ask("x", { schema = 7 }) end)
    raises("grammar", function() s:ask("x", { grammar = {} }) end)
    raises("grammar", function() s:json("x", { grammar = "root ::= \"a\"" }) end)
    raises("between", function() fathom.int(5, 1) end)
    raises("values", function() fathom.enum "a" end)
    raises("schema", function() fathom.schema { a = "strin" } end)
    raises("names", function() fathom.schema { "string" } end)
    local circle = {}
    circle.properties = { circle = circle }
    raises("circle", function() s:json("x", { schema = circle }) end)
    local fields = { a = "integer" }
    fields.b = { c = fields }
    raises("contains itself", function() s:json("x", { schema = fields }) end)
    raises("contains itself", function() fathom.schema(fields) end)
    raises("the keyword 'foo' is not supported", function() s:json("x", { schema = { type = "string", foo = 1 } }) end)
    raises("'minLenght' is not supported (did you mean 'minLength'?)",
           function() s:json("x", { schema = { a = { type = "string", minLenght = 3 } } }) end)
    raises("'patern' is not supported (did you mean 'pattern'?)", function() fathom.schema { type = "string", patern = "a+" } end)
    assert.has_no.errors(function() fathom.schema { a = { b = "integer" }, type = "string", title = "string" } end)
    local shared = { x = "number" }
    assert.has_no.errors(function() fathom.schema { from = shared, to = shared } end)
  end)

  it("are made of words, builders, tables and JSON Schema alike", function()
    local built = fathom.schema { title = "string", gold = fathom.int(1, 500), tags = fathom.list("string", 3),
                                  kind = fathom.enum { "a", "b" }, at = { x = "number", y = "number" } }
    assert.same({ "at", "gold", "kind", "tags", "title" }, { table.unpack(built.required) })
    assert.is_false(built.additionalProperties)
    assert.same({ "x", "y" }, { table.unpack(built.properties.at.required) })
    assert.equal(500, built.properties.gold.maximum)
    assert.equal(3, built.properties.tags.maxItems)
    local given = { type = "object", properties = { b = { type = "string" } } }
    assert.equal(given, fathom.schema(given))
    local some = fathom.schema { a = "string", b = fathom.optional "integer" }
    assert.same({ "a" }, { table.unpack(some.required) })
    -- a field that is called like a keyword
    local odd = fathom.schema { type = fathom.enum { "x" }, items = "integer" }
    assert.equal("object", odd.type)
    assert.is_truthy(odd.properties.type)
  end)
end)

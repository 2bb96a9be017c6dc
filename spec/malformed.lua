--- spec/malformed.lua - requests that are wrong in many ways, drawn by a seed: for the spec, and by the thousand for
-- examples/bench/serve.lua.
local json = require "fathom.json"

local malformed = {}

-- A generator of its own, so that nobody else's draws matter.
local function dice(seed)
  local state = seed * 2654435761 + 12345
  return function(n)
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % n + 1
  end
end

local function pick(roll, list) return list[roll(#list)] end

local function http(path, body, headers)
  return ("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s")
    :format(path, headers or "", #body, body)
end

local paths = { "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize" }
local good = {
  ["/v1/chat/completions"] = '{"model": "pocket", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "top_p": 0.5}',
  ["/v1/completions"] = '{"model": "pocket", "prompt": "Hello", "max_tokens": 4, "stop": ["a", "b"], "seed": 7}',
  ["/v1/embeddings"] = '{"model": "pocket", "input": ["Hello", "you"], "encoding_format": "float"}',
  ["/tokenize"] = '{"model": "pocket", "prompt": "Hello"}', ["/detokenize"] = '{"model": "pocket", "tokens": [1, 2, 3]}',
}

-- Values of every type, for a place that wants another.
local odd = { "{}", "[]", "[[]]", "[{}]", '"text"', "-1", "1.5", "1e300", "true", "false", "[null]", '{"a": 1}', "[1.5]", '[""]',
              "-9999999999999" }

-- A field and the values that are right for it, by Lua pattern: those are not wrong.
local typed = {
  { "messages" }, { "model" }, { "n", "^[%d]+$" }, { "temperature", "^[%d.e]+$" }, { "top_p", "^1%.0$" },
  { "tools", "^%[%]$" }, { "stream", "^%l+$" }, { "stop", '^"text"$|^%[%]$' }, { "seed", "^-?%d+$" }, { "logit_bias", "^{}$" },
  { "response_format" }, { "logprobs", "^%l+$" }, { "top_logprobs" }, { "stream_options" }, { "max_tokens" }, { "tool_choice" },
  { "presence_penalty", "^%-?1%.?5?$" }, { "think", "^%l+$" }, { "reasoning_effort" }, { "stop_ids", "^%[%]$" },
}

local function fits(entry, value)
  for pattern in (entry[2] or ""):gmatch "[^|]+" do
    if value:match(pattern) then return true end
  end
end

local kinds = {}

function kinds.cut_json(roll)
  local path = pick(roll, paths)
  return http(path, good[path]:sub(1, roll(#good[path] - 1) - 1))
end

function kinds.spoilt_json(roll)
  local path = pick(roll, paths)
  local text
  repeat
    local at = roll(#good[path])
    local stranger = pick(roll, { "{", "}", "[", "]", ":", ",", '"', "\\", "\1", "nul", "\n", "'" })
    text = good[path]:sub(1, at) .. stranger .. good[path]:sub(at + 1)
  until json.decode(text) == nil
  return http(path, text)
end

function kinds.no_utf8(roll)
  local path = pick(roll, paths)
  local bad = pick(roll, { "\xff", "\xc3", "\xed\xa0\x80", "\xf8\x88\x80\x80\x80", "\xc0\xaf", "\x80", "\xf4\x90\x80\x80" })
  return http(path, (good[path]:gsub("Hello", "Hel" .. bad .. "lo"):gsub("%[1, 2", bad .. "[1, 2")))
end

function kinds.wrong_type(roll)
  local entry, value
  repeat entry, value = pick(roll, typed), pick(roll, odd) until not fits(entry, value)
  local body = '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2'
  if entry[1] == "messages" or entry[1] == "max_tokens" then body = '{"model": "pocket"' end
  return http("/v1/chat/completions", ('%s, "%s": %s}'):format(body, entry[1], value))
end

function kinds.wrong_message(roll)
  local message = pick(roll, { '{"role": %s, "content": "Hi"}', '{"role": "user", "content": %s}', "%s",
                               '{"role": "assistant", "tool_calls": [%s]}', '{"role": "user", "content": [%s]}' })
  local value
  repeat value = pick(roll, odd) until not (message:find "content\": %%s" and (value == '"text"' or value == "[]"))
  return http("/v1/chat/completions", ('{"messages": [%s]}'):format(message:format(value)))
end

function kinds.no_object(roll) return http(pick(roll, paths), pick(roll, { "", "[]", "null", "7", '"text"', "true", " ", "[{}]" })) end

function kinds.unknown_field(roll)
  local path = pick(roll, paths)
  return http(path, good[path]:gsub("^{", ('{"%s": 1, '):format(pick(roll, { "promt", "temprature", "x", "__proto__", "", "é" }))))
end

function kinds.nested(roll)
  local depth = 150 + roll(20000)
  local open, close = table.unpack(pick(roll, { { "[", "]" }, { '{"a":', "}" } }))
  return http(pick(roll, paths), ('{"messages": %s1%s}'):format(open:rep(depth), close:rep(depth)))
end

function kinds.huge(roll, o)
  local size = o.body + roll(o.body)
  return http(pick(roll, paths), '{"prompt": "' .. ("x"):rep(size) .. '"}')
end

function kinds.far_too_huge(roll)
  return ("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{"):format(pick(roll, paths), 10 ^ (9 + roll(5)))
end

function kinds.long_prompt(roll)
  return http("/v1/chat/completions", ('{"messages": [{"role": "user", "content": "%s"}]}'):format(("word "):rep(3000 + roll(500))))
end

function kinds.wrong_method(roll)
  local method = pick(roll, { "GET", "PUT", "DELETE", "BREW", "OPTIONS" })
  return ("%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n"):format(method, pick(roll, paths))
end

function kinds.wrong_path(roll)
  local path = pick(roll, { "v1", "v2/models", "..%2f..%2fetc", "%00", "a%ffb", "traces/x", "v1/models/x" })
  return ("GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"):format(path)
end

function kinds.bad_http(roll)
  return pick(roll, {
    "GARBAGE\r\n\r\n", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", "GET nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", "\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\nHost: localhost\n\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", "GET / HTTP/1.1\r\nHost localhost\r\n\r\n", "\22\3\1\2\0\1\0\1\252\3\3",
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nX: \1\r\n\r\n",
    "GET /" .. ("a"):rep(5000 + roll(3000)) .. " HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\nX: " .. ("y"):rep(17000) .. "\r\n\r\n", "\0\0\0\0", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
  })
end

function kinds.wrong_host(roll)
  return ("GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n"):format(pick(roll, { "evil.example", "1.2.3.4:80", "localhost.evil.example" }))
end

function kinds.slow_head(roll) return ("GET /health HTTP/1.1\r\nHost: localhost\r\n"):sub(1, roll(38)), true end

function kinds.slow_body(roll) return http("/tokenize", good["/tokenize"]):sub(1, -1 - roll(20)), true end

local names = {}
for name in pairs(kinds) do names[#names + 1] = name end
table.sort(names)

--- A source of malformed requests.
-- @param seed integer
-- @param o table  body: the server's limit of a body; slow: which share are slow clients, 1 in so many
-- @return function() -> what it is called, the bytes of the request, whether it is slow: an end that never comes
function malformed.new(seed, o)
  local roll = dice(seed)
  return function()
    local name
    repeat name = pick(roll, names) until not name:find "^slow" or roll(o.slow) == 1
    local bytes, slow = kinds[name](roll, o)
    return name, bytes, slow
  end
end

--- What is wrong with an answer to such a request, or nil.
-- @param r table|nil  { status =, json = }
function malformed.fault(r)
  if not r then return "there is no answer" end
  local known = { [501] = true, [505] = true }
  if not (r.status >= 400 and r.status < 500 or known[r.status]) then return "the status is " .. r.status end
  local e = type(r.json) == "table" and r.json.error
  if type(e) ~= "table" then return "the body has no error" end
  if type(e.message) ~= "string" or e.message == "" then return "the error has no message" end
  if not utf8.len(e.message) then return "the message is no text" end
  if type(e.type) ~= "string" or e.param == nil or e.code == nil then return "the error lacks its type, param or code" end
end

return malformed

--- serve/page - the files of the page at /, as the server gives them out.
-- They lie beside this file and are sent as they are: no build step, nothing from elsewhere.

local page = {}

local here = debug.getinfo(1, "S").source:match "^@(.*)init%.lua$" or "./"

local js, css, html, svg = "text/javascript", "text/css", "text/html", "image/svg+xml"

-- path -> { file, content type }; what is not listed does not exist, so no path can lead out of the folder
local files = {
  ["/"] = { "index.html", html }, ["/page.css"] = { "page.css", css }, ["/icon.svg"] = { "icon.svg", svg },
}
for _, name in ipairs { "page", "api", "dom", "reply", "settings", "chat", "compare", "traces" } do
  files["/" .. name .. ".js"] = { name .. ".js", js }
end

--- Headers that go with every file: nothing is loaded from another host, no frame shows the page, and a browser asks again.
page.headers = {
  ["Content-Security-Policy"] = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
  ["X-Content-Type-Options"] = "nosniff",
  ["Referrer-Policy"] = "no-referrer",
  ["Cache-Control"] = "no-cache",
}

--- A file of the page.
-- @param path string  of the request, without its query: "/", "/page.js"
-- @return string body and string content type; nil where the page has no such file
-- @usage local body, kind = page.file "/page.css"
function page.file(path)
  local entry = files[path]
  local f = entry and io.open(here .. entry[1], "rb")
  if not f then return nil end
  local body = f:read "a"
  f:close()
  return body, entry[2] .. (entry[2] == svg and "" or "; charset=utf-8")
end

--- The paths there are, sorted.
-- @return list of strings
function page.paths()
  local out = {}
  for path in pairs(files) do out[#out + 1] = path end
  table.sort(out)
  return out
end

return page

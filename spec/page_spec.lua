--- page_spec.lua - the page in a headless Chromium: beside a server that misbehaves, and beside the real one.
-- Screenshots stay in build/page.
local node = require "spec.node"
local page = require "fathom.serve.page"
local build = os.getenv "FATHOM_BUILD" or "build"

-- What the browser's tests must report, each in a line of its own (spec/page/odd.mjs).
local sentences = {
  "text of a model stays text, wherever it is shown",
  "lists, fences, bold and boxes are drawn",
  "a reply that breaks off says so where it broke, and can be asked for again",
  "a refusal is shown in the server's own words",
  "Enter sends, Shift+Enter starts a line, Esc stops and closes the connection",
  "the last message can be edited, and a reply asked for again with a seed of its own",
  "several tool calls are answered by hand, with the thoughts that led to them",
  "settings are sent as they are set, and a broken list of tools is told at once",
  "a trace opens as a tree over time and is searched by kind and words",
  "a key is asked for, used, and kept for this tab only",
  "no view scrolls sideways, is pale or has a nameless control: narrow and wide, by day and by night",
  "nothing is asked of another host, and no script fails",
}

describe("the files of the page", function()
  it("are those that it names, with their types", function()
    for _, path in ipairs(page.paths()) do
      local body, kind = page.file(path)
      assert.is_true(#body > 0, path)
      assert.matches(path == "/" and "^text/html" or path:match "%.(%w+)$" == "css" and "^text/css"
        or path:match "%.(%w+)$" == "svg" and "^image/svg" or "^text/javascript", kind)
    end
  end)

  it("are no way into the folder", function()
    for _, path in ipairs { "/init.lua", "/../init.lua", "/page.js/", "/page.css\0", "", "//" } do
      assert.is_nil((page.file(path)))
    end
  end)

  it("never make elements of text, and name no other host", function()
    for _, path in ipairs(page.paths()) do
      local body = page.file(path)
      for _, word in ipairs { "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=\"", "onclick" } do
        assert.is_nil(body:find(word, 1, true), path .. " has " .. word)
      end
      for host in body:gmatch "https?://([%w.]+)" do assert.equal("www.w3.org", host, path) end
    end
  end)
end)

describe("the page", function()
  local report, why

  lazy_setup(function()
    local browser = node.program("chromium", "chromium-browser", "google-chrome")
    if not browser then why = "no Chromium here" return end
    local ok
    ok, why = node.has "playwright-core"
    if not ok then return end
    report = select(2, node.run("spec/page/test.mjs", { FATHOM_BROWSER = browser }, build .. "/page"))
  end)

  for _, sentence in ipairs(sentences) do
    it(sentence, function()
      if why then pending(why) return end
      local from = report:find("ok - " .. sentence, 1, true)
      assert(from, "not reported:\n" .. report)
      local line = report:match("[^\n]*", (report:sub(1, from):match ".*\n()" or 1))
      assert(line:match "^ok", report)
    end)
  end
end)

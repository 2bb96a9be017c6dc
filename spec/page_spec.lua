--- page_spec.lua - the page in a headless Chromium: beside a server that misbehaves, and beside the real one.
-- Screenshots stay in build/page.
local node = require "spec.node"
local page = require "fathom.serve.page"
local build = os.getenv "FATHOM_BUILD" or "build"

-- What the browser's tests must report, each in a line of its own (spec/page/odd.mjs and real.mjs).
local odd = {
  "text of a model stays text, wherever it is shown",
  "lists, fences, bold and boxes are drawn",
  "a reply that breaks off says so where it broke, and can be asked for again",
  "a refusal is shown in the server's own words",
  "Enter sends, Shift+Enter starts a line, Esc stops and closes the connection",
  "the last message can be edited, and a reply asked for again with a seed of its own",
  "several tool calls are answered by hand, with the thoughts that led to them",
  "settings are sent as they are set, and a broken list of tools is told at once",
  "answers stand side by side with seeds of their own, and the judge's votes beside them",
  "a trace opens as a tree over time and is searched by kind and words",
  "a key is asked for, used, and kept for this tab only",
  "no view scrolls sideways, is pale or has a nameless control: narrow and wide, by day and by night",
  "a server that has gone is said to be gone",
  "nothing is asked of another host, and no script fails",
}
local real = {
  "the model's thoughts and its answer come in their channels, with what they took",
  "the same seed says the same again, another one need not",
  "a tool is called, answered by hand, and the answer is used",
  "Esc ends a long reply on the server, too",
  "several answers are judged by the model, and the votes are shown",
  "what happened can be read as a trace",
  "the real server's page asks nothing of another host, and its console stays empty",
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

-- The reason why no browser can be started here, or nil and its path.
local function hindrance()
  if os.getenv "FATHOM_ASAN" then return "no C of ours in a browser: not under a sanitizer" end
  local browser = node.program("chromium", "chromium-browser", "google-chrome")
  if not browser then return "no Chromium here" end
  local ok, why = node.has "playwright-core"
  if not ok then return why end
  return nil, browser
end

describe("the page", function()
  local report, why, no_server

  -- one run of one browser; what it reports is looked up below
  lazy_setup(function()
    local browser
    why, browser = hindrance()
    if why then return end
    local has_net, net = pcall(require, "fathom.net")
    no_server = not (has_net and net.server) and "built without libmicrohttpd" or nil
    report = "\n" .. select(2, node.run("spec/page/test.mjs", { FATHOM_BROWSER = browser }, build .. "/page", "odd",
                                        not no_server and "real" or nil))
  end)

  local function behaves(sentences, hinders)
    for _, sentence in ipairs(sentences) do
      it(sentence, function()
        local reason = why or hinders()
        if reason then pending(reason) return end
        assert(report:find("\nok - " .. sentence, 1, true), report)
      end)
    end
  end

  describe("beside a server that misbehaves", function() behaves(odd, function() end) end)
  describe("beside the real server", function() behaves(real, function() return no_server end) end)
end)

--- eval_spec.lua - evaluations: cases, samples, scores, what they may be worth, and the reports.
local eval = require "fathom.eval"
local fathom = require "fathom"
local files = require "fathom.eval.files"
local helper = require "spec.helper"
local json = require "fathom.json"
local stats = require "fathom.eval.stats"

local function near(want, got, by) assert.is_true(math.abs(want - got) <= (by or 1e-9), ("%s is not %s"):format(got, want)) end

-- A backend that answers the sum in a prompt, wrongly where the seed says so.
local function adder()
  return fathom.mock { replies = function(messages, opts)
    local a, b = messages[#messages].content:match "(%d+) %+ (%d+)"
    return ("\\boxed{%d}"):format(a + b + ((opts.seed * 2654435761 >> 16) % 3 == 0 and 1 or 0))
  end }
end

local function sums(n)
  local list = {}
  for i = 1, n do
    list[i] = { id = "sum " .. i, question = ("What is %d + %d?"):format(i, 2 * i), answer = tostring(3 * i),
                size = i > n / 2 and "large" or "small" }
  end
  return list
end

local function right(s) return s.answer:match "boxed{(%d+)}" == s.reference, s.answer end

describe("the statistics", function()
  it("give Wilson's interval", function()
    local low, high = stats.wilson(8, 10)
    near(0.4901625, low, 1e-6)
    near(0.9433178, high, 1e-6)
    low, high = stats.wilson(0, 20)
    near(0, low)
    near(0.1611252, high, 1e-6)
    assert.same({ 0.0, 1.0 }, { stats.wilson(0, 0) })
  end)

  it("give pass@k without bias", function()
    near(0.3, stats.pass_at(10, 3, 1))
    near(1 - (7 * 6) / (10 * 9), stats.pass_at(10, 3, 2))
    near(1 - 1 / 120, stats.pass_at(10, 7, 3))
    assert.equal(1.0, stats.pass_at(10, 8, 3))
    assert.equal(0.0, stats.pass_at(5, 0, 5))
  end)

  it("give maj@k over all ways to take k, ties shared, answers that are none left out", function()
    local keys, scores = { "a", "a", "b" }, { 1.0, 1.0, 0.0 }
    near(2 / 3, stats.maj_at(keys, scores, 1, 1))
    near((1 + 0.5 + 0.5) / 3, stats.maj_at(keys, scores, 2, 1))
    near(1, stats.maj_at(keys, scores, 3, 1))
    near(1, stats.maj_at({ false, "a", false }, { 0.0, 1.0, 0.0 }, 3, 1))
    near(0, stats.maj_at({ false, false }, { 0.0, 0.0 }, 2, 1))
    local many, values = {}, {}
    for i = 1, 32 do many[i], values[i] = i % 3 == 0 and "b" or "a", i % 3 == 0 and 0.0 or 1.0 end
    local drawn = stats.maj_at(many, values, 7, 5)
    assert.equal(drawn, stats.maj_at(many, values, 7, 5))
    assert.is_true(drawn > 0.8 and drawn < 1)
  end)

  it("draw the same intervals from the same seed, and about the right ones", function()
    local list, random = {}, stats.random(3)
    for i = 1, 400 do list[i] = random(1000) / 1000 end
    local low, high = stats.bootstrap(list, 1)
    assert.same({ low, high }, { stats.bootstrap(list, 1) })
    assert.not_same({ low, high }, { stats.bootstrap(list, 2) })
    local mean = stats.mean(list)
    near(1.96 * math.sqrt(1 / 12 / 400), (high - low) / 2, 0.006)
    assert.is_true(low < mean and mean < high)
    assert.equal("wilson", stats.estimate({ 0, 1, 1 }, 1).method)
    assert.equal("bootstrap", stats.estimate({ 0, 0.5, 1 }, 1).method)
    assert.is_nil(stats.estimate({}, 1))
  end)

  it("compare pairs: difference, its interval, wins and losses", function()
    local a, b = {}, {}
    for i = 1, 40 do a[i], b[i] = i % 4 == 0 and 1 or 0, i % 2 == 0 and 1 or 0 end
    local d = stats.paired(a, b, 1)
    near(0.25, d.mean)
    assert.same({ 10, 0, 30 }, { d.wins, d.losses, d.ties })
    near(2 / 1024, d.p)
    assert.is_true(d.low > 0.1 and d.high < 0.4)
    near(1, stats.paired({ 1, 0 }, { 0, 1 }, 1).p)
    local many = { {}, {} }
    for i = 1, 3000 do many[1][i], many[2][i] = 0, i <= 1600 and 1 or -1 end
    assert.is_true(stats.paired(many[1], many[2], 1).p < 0.001)
  end)

  it("fit lines", function()
    local line = stats.line({ 1, 2, 3, 4 }, { 1, 3, 5, 7 }, 1)
    near(2, line.slope)
    near(-1, line.intercept)
    assert.is_nil(stats.line({ 2, 2, 2 }, { 1, 2, 3 }, 1))
    assert.is_nil(stats.line({}, {}, 1))
  end)
end)

describe("an evaluation", function()
  it("asks every case, scores every sample and sums up", function()
    local report = assert(fathom.eval { name = "sums", cases = sums(20), run = adder(), scorers = { right = right, length = function(s)
      return #s.answer
    end }, repeats = 3, seed = 5 })
    assert.same({ 20, 3, 60 }, { report.cases, report.repeats, report.totals.samples })
    assert.same({ "length", "right" }, report.scorers)
    local e = report.scores[2]
    assert.is_true(e.mean > 0.4 and e.mean < 0.9 and e.low < e.mean and e.mean < e.high)
    assert.same({ 1, 2, 3 }, { e.pass[1].k, e.pass[2].k, e.pass[3].k })
    near(e.mean, e.pass[1].mean)
    near(e.mean, e.maj[1].mean)
    assert.is_true(e.pass[3].mean > e.mean)
    assert.is_nil(report.scores[1].pass)
    assert.equal("size", report.slices[1].field)
    assert.same({ "large", "small" }, { report.slices[1].groups[1].value, report.slices[1].groups[2].value })
    assert.equal("What is 1 + 2?", report.rows[1].prompt)
    assert.is_nil(report.note)
    assert.matches("boxed", report.rows[1].samples[1].details.right)
    assert.is_string(json.encode(report))
    assert.matches("pass@3", files.table(report))
  end)

  it("gives the same report for the same seeds, whatever ran beside", function()
    local function once(width, seed)
      local report = assert(fathom.eval { cases = sums(8), run = adder(), scorers = right, repeats = 2, seed = seed, width = width })
      report.seconds = nil
      return json.encode(report)
    end
    assert.equal(once(1, 3), once(16, 3))
    assert.not_equal(once(1, 3), once(1, 4))
  end)

  it("takes cases from an iterator and from a file", function()
    local i = 0
    local report = assert(fathom.eval { cases = function()
      i = i + 1
      return { prompt = i .. " + 1", answer = tostring(i + 1) }
    end, most = 4, run = adder(), scorers = right })
    assert.equal(4, report.cases)
    assert.equal("4", report.rows[4].id)
    local path = os.tmpname()
    helper.write(path, '{"id": 7, "messages": [{"role": "user", "content": "3 + 4"}], "reference": "7"}\n\n')
    report = assert(fathom.eval { cases = path, run = adder(), scorers = right })
    assert.same({ 1, "7" }, { report.cases, report.rows[1].id })
    helper.write(path, "{}\nx\n")
    local none, err = fathom.eval { cases = path, run = adder(), scorers = right }
    os.remove(path)
    assert.is_nil(none)
    assert.matches("line 2", err.message)
  end)

  it("runs a function of the user's, which may give text, and says which seed and repeat it is", function()
    local seen = {}
    local report = assert(fathom.eval { cases = sums(2), repeats = 2, scorers = right, run = function(case, info)
      seen[#seen + 1] = info.seed
      assert.is_true(info.rep == 1 or info.rep == 2)
      return "\\boxed{" .. case.answer .. "}"
    end })
    assert.equal(1.0, report.scores[1].mean)
    table.sort(seen)
    assert.equal(4, #seen)
    for i = 2, 4 do assert.is_true(seen[i] > seen[i - 1]) end
  end)

  it("counts what fails as wrong, and leaves out what a scorer cannot judge", function()
    local report = assert(fathom.eval { cases = sums(4), scorers = { right = right, odd = function(s)
      if s.case.id == "sum 2" then error("a slip", 0) end
      return nil, "cannot say"
    end }, run = function(case)
      if case.id == "sum 1" then return nil, "no connection" end
      if case.id == "sum 3" then error("broken", 0) end
      return "\\boxed{" .. case.answer .. "}"
    end })
    assert.same({ 2, 2 }, { report.totals.errors, report.totals.unscored })
    assert.same({ "no connection", "broken" }, { report.rows[1].samples[1].err, report.rows[3].samples[1].err })
    assert.equal("right", report.scores[2].name)
    near(0.5, report.scores[2].mean)
    near(0, report.scores[1].mean)
    assert.equal("a slip", report.rows[2].samples[1].details.odd)
    assert.equal("cannot say", report.rows[4].samples[1].details.odd)
  end)

  it("tells its progress, with rate and remaining time", function()
    local told = {}
    assert(fathom.eval { cases = sums(5), run = adder(), scorers = right, progress = function(done, total, info)
      told[#told + 1] = { done, total, info.rate ~= nil and info.remaining >= 0 }
    end })
    assert.same({ 5, 5, true }, told[5])
    assert.equal(5, #told)
  end)

  it("moves between frames and is cancelled with what it has", function()
    local backend = adder()
    local task = fathom.eval { cases = sums(30), run = backend, scorers = right, width = 4, background = true }
    assert.is_false(task.done)
    for _ = 1, 3 do backend:step {} end
    task:cancel()
    assert.is_true(task.done)
    local report = assert(task:wait())
    assert.is_true(report.cancelled and report.cases > 0 and report.cases < 30)
    task = fathom.eval { cases = sums(3), run = backend, scorers = right, background = true }
    while backend:step {} do end
    assert.equal(3, task.result.cases)
  end)

  it("goes on from a log: what is done is not asked again, and half a line of a killed process is mended", function()
    local log, asked = os.tmpname(), 0
    local function run()
      return assert(fathom.eval { cases = sums(12), scorers = right, log = log, run = function(case)
        asked = asked + 1
        return "\\boxed{" .. case.answer .. "}"
      end })
    end
    local first = fathom.eval { cases = sums(6), scorers = right, log = log, run = function(case)
      asked = asked + 1
      if asked == 5 then return nil, "lost" end
      return "\\boxed{" .. case.answer .. "}"
    end }
    assert.equal(1, first.totals.errors)
    local text = helper.read(log)
    helper.write(log, text .. '{"id": "sum 9", "re')
    asked = 100
    local whole = run()
    assert.equal(107, asked)                     -- six new cases and the one that failed
    assert.equal(12, whole.cases)
    assert.same({ 0, 1.0 }, { whole.totals.errors, whole.scores[1].mean })
    run()
    assert.equal(107, asked)
    local more = assert(fathom.eval { cases = sums(12), log = log, run = function(case) return case.answer end, scorers = {
      score = right, length = function(s) return #s.answer end } })
    assert.equal(12, more.scores[1].n)               -- a new scorer asks again
    os.remove(log)
  end)

  it("runs on a model as well, all at once", function()
    local model <close> = assert(fathom.load(fathom.pocket, { seqs = 8 }))
    local cases = helper.jsonl(fathom.pocket .. "/heldout_math.jsonl")
    local report = assert(fathom.eval { cases = cases, most = 8, run = model, options = { temperature = 0 }, scorers = right })
    assert.same({ 8, 1.0 }, { report.cases, report.scores[1].mean })
    assert.matches("^%x+$", report.model.digest)
    assert.is_true(report.totals.tokens > 100)
  end)

  it("compares two runs over the cases that both have", function()
    local a = assert(fathom.eval { cases = sums(20), scorers = right, run = function(case)
      return tonumber(case.answer) % 2 == 0 and "\\boxed{" .. case.answer .. "}" or "no"
    end })
    local b = assert(fathom.eval { cases = sums(25), scorers = right, run = function(case) return "\\boxed{" .. case.answer .. "}" end })
    local d = eval.compare(a, b)[1]
    assert.same({ "score", 20, 10, 0 }, { d.name, d.n, d.wins, d.losses })
    assert.is_true(d.low > 0 and d.p < 0.01)
    local path = os.tmpname()
    helper.write(path, json.encode(a))
    local c = assert(fathom.eval { cases = sums(25), scorers = right, against = path, run = function(case)
      return "\\boxed{" .. case.answer .. "}"
    end })
    os.remove(path)
    assert.same(d, c.against.scores[1])
    assert.matches("better 10, worse 0", files.table(c))
    assert.matches("better 10, worse 0, same 10", require("fathom.eval.page").text(c))
    local none, err = fathom.eval { cases = sums(1), scorers = right, run = adder(), against = "/no/such.json" }
    assert.is_nil(none)
    assert.equal("io", err.code)
  end)

  it("computes measures of the whole", function()
    local report = assert(fathom.eval { cases = sums(4), scorers = right, run = adder(), metrics = {
      cases = function(rows) return #rows end, share = function() return { mean = 0.5, low = 0.2, high = 0.8, n = 4 } end,
      broken = function() error("a slip", 0) end, none = function() return nil end } })
    assert.same({ "broken", "cases", "share" }, { report.metrics[1].name, report.metrics[2].name, report.metrics[3].name })
    assert.equal("a slip", report.metrics[1].err)
    assert.equal(4, report.metrics[2].mean)
  end)

  it("takes what JSON cannot hold in a case", function()
    local report = assert(fathom.eval { name = "\xFF", cases = { { id = "\xFE", prompt = "\xFF", reference = print, f = print } },
      scorers = function() return 1 end, run = function()
        return { text = "\xE2\x82", answer = "\xE2", extra = { f = print, n = 0 / 0 } }
      end })
    assert.is_truthy(utf8.len(json.encode(report)))
    assert.is_truthy(utf8.len(require("fathom.eval.page").text(report)))
  end)

  it("raises for wrong calls", function()
    assert.error_matches(function() fathom.eval { run = adder(), scorers = right } end, "'cases' is missing")
    assert.error_matches(function() fathom.eval { cases = {}, run = adder() } end, "'scorers' is missing")
    assert.error_matches(function() fathom.eval { cases = {}, scorers = right } end, "who answers")
    assert.error_matches(function() fathom.eval { cases = {}, scorers = right, run = adder(), repeat_ = 3 } end, "did you mean 'repeats'")
    assert.error_matches(function() fathom.eval { cases = { 1 }, scorers = right, run = adder() } end, "case 1 is a number")
    assert.error_matches(function() fathom.eval { cases = {}, scorers = {}, run = adder() } end, "scorers")
    local none, err = fathom.eval { cases = {}, scorers = right, run = adder() }
    assert.is_nil(none)
    assert.matches("no cases", err.message)
    none, err = fathom.eval { cases = { { id = 1 }, { id = "1" } }, scorers = right, run = adder() }
    assert.is_nil(none)
    assert.matches("two cases have the id 1", err.message)
  end)
end)

describe("a report", function()
  local hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' \0\8 \u{202E}abc \xFF &amp;"
  local report
  setup(function()
    local cases = { { id = hostile, prompt = hostile, reference = hostile, [hostile] = "a" }, { id = "b", prompt = "b", reference = "b" } }
    report = assert(fathom.eval { name = hostile, note = hostile, cases = cases, repeats = 2, scorers = {
      [hostile] = function() return 0, hostile end, length = function(s) return #s.answer end }, by = { "kind" },
      run = function(case) return case.id == "b" and "b" or hostile end })
  end)

  it("is a page on which nothing that a model says is markup, and which loads nothing", function()
    local html = require("fathom.eval.page").text(report)
    assert.is_truthy(utf8.len(html))
    local bare = html:gsub('"[^"]*"', '""')                  -- tags without what stands in their attributes
    assert.is_nil(html:find("<script", 1, true) or html:find("<img", 1, true) or html:find "[\0\8]")
    assert.is_nil(bare:find "<[^>]* on%w+=" or bare:find "<[^>]* src=")
    assert.is_truthy(html:find("&lt;script&gt;alert(1)", 1, true))
    assert.is_truthy(html:find("default-src 'none'", 1, true))
    assert.is_nil(html:find "https?://" or html:find "url%(" or html:find "@import")
    for tag in html:gmatch "<([%a]+)" do
      assert.is_truthy((" html head meta title style body main header p h h1 h2 h3 h4 ul li section div span b i small svg path "
        .. "rect figure figcaption details summary pre a footer br "):find(" " .. tag .. " ", 1, true), tag)
    end
    local opened, closed = select(2, html:gsub("<div", "")), select(2, html:gsub("</div>", ""))
    assert.equal(opened, closed)
  end)

  it("is JUnit XML of cases and scorers", function()
    local xml = require("fathom.eval.junit").text(report)
    assert.is_truthy(utf8.len(xml))
    assert.is_nil(xml:find("<script", 1, true) or xml:find "[\0\8]")
    assert.matches('^<%?xml version="1.0"', xml)
    assert.equal(4, select(2, xml:gsub("<testcase ", "")))
    assert.matches('tests="4" failures="2" errors="0"', xml)
    local depth = 0
    for slash, rest in xml:gmatch "<(/?)[%a]([^>]*)>" do
      depth = depth + (slash == "/" and -1 or rest:sub(-1) == "/" and 0 or 1)
      assert.is_true(depth >= 0)
    end
    assert.equal(0, depth)
  end)

  it("is written whole or not at all, by the ending of its name", function()
    local dir, remove = helper.folder()
    assert(files.write(report, dir .. "/all"))
    local value = assert(json.decode(helper.read(dir .. "/all.json")))
    assert.equal(2, value.cases)
    assert.is_nil(value.seconds)
    assert.matches('"options": {}', helper.read(dir .. "/all.json"), 1, true)
    assert.matches("<testsuites", helper.read(dir .. "/all.xml"))
    assert.matches("<!doctype html>", helper.read(dir .. "/all.html"))
    assert(files.write(report, dir .. "/one.html"))
    assert.equal(helper.read(dir .. "/all.html"), helper.read(dir .. "/one.html"))
    assert.equal(helper.read(dir .. "/all.json"), helper.read(dir .. "/one.json"))
    assert.is_nil(io.open(dir .. "/one.xml"))
    assert(files.write(report, dir .. "/two.xml"))
    assert.is_nil(io.open(dir .. "/two.json"))
    assert(files.write(report, dir))
    assert.equal(helper.read(dir .. "/all.html"), helper.read(dir .. "/report.html"))
    remove()
    local ok, err = files.write(report, "/no/such/folder/x.json")
    assert.is_nil(ok)
    assert.equal("io", err.code)
    ok, err = fathom.eval { cases = sums(1), run = adder(), scorers = right, report = "/no/such/folder/x.html" }
    assert.is_nil(ok)
    assert.equal("io", err.code)
  end)
end)

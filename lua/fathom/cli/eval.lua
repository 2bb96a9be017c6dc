--- cli/eval.lua - a model on a test set.

local models = require "fathom.cli.models"
local terminal = require "fathom.cli.terminal"
local json = require "fathom.json"

local command = {
  usage = "eval SET [DIR]",
  text = "a model on a test set ('fathom eval' lists them), or on a .jsonl file of question and answer",
  options = models.join(models.load_options, models.sampling_options, {
    { "data", "string", "FOLDER", "that holds the test sets; needed" },
    { "cases", "integer", "N", "the first N only" },
    { "repeats", "integer", "N", "samples of each case (1); from 2 on there are pass@k and maj@k" },
    { "votes", "integer", "N", "of a judge, in each order (sets of pairs)" },
    { "category", "list", "NAME", "only this part (function calling); may be given several times" },
    { "report", "string", "PATH", "PATH.html or .json gives both, .xml JUnit, without an ending all three" },
    { "log", "string", "PATH", "finished samples; called again, the evaluation goes on from there" },
    { "against", "string", "PATH", "a .json report of before: differences by case" },
    { "trace", "string", "PATH", "every call as a span" },
    { "url", "string", "URL", "of a server in place of a model here" },
    { "model", "string", "NAME", "which of the server's" },
    models.json_option,
  }),
}

local function list_sets()
  print "usage: fathom eval SET [DIR] --data FOLDER [options]"
  for _, set in ipairs(require("fathom.eval.data").list()) do print(("  %-12s %s"):format(set.name, set.text)) end
end

-- A file of cases of one's own: replies are compared with `answer` or `reference`.
local function own_cases(path)
  return { name = path:match "([^/]*)%.jsonl$", cases = path, scorers = { accuracy = require("fathom.reward").accuracy } }
end

local function suite_of(name, given)
  if name:match "%.jsonl$" then return own_cases(name) end
  local data = require "fathom.eval.data"
  local found, near = data.find(name)
  if not found then terminal.wrong(("there is no test set '%s' (did you mean '%s'?)"):format(name, near)) end
  if not given.data then terminal.wrong "eval wants --data FOLDER, which holds the test sets" end
  local o = {}
  o.votes, o.categories = given.votes, given.category
  return terminal.must(data[name](given.data, next(o) and o or nil))
end

-- A line on stderr, where somebody looks.
local function eval_progress()
  if not terminal.is_one(2) then return nil end
  return function(done, total, info)
    local rest = info.remaining or 0
    local failures = info.errors > 0 and (", %d failed"):format(info.errors) or ""
    io.stderr:write(("\r%d of %d samples, %.1f a second, %d:%02d to go%s\27[K"):format(done, total, info.rate or 0, rest // 60,
      rest % 60 // 1, failures))
    if done == total then io.stderr:write "\r\27[K" end
  end
end

function command.run(positional, given)
  local name = positional[1]
  if not name then return list_sets() end
  if #positional > 2 then terminal.wrong "eval takes a SET and one DIR" end
  local suite = suite_of(name, given)
  local fathom = models.library()
  if given.url and positional[2] then terminal.wrong "eval takes a DIR or --url, not both" end
  local backend <close> = given.url and terminal.must(fathom.remote { url = given.url, model = given.model, key = os.getenv "FATHOM_KEY" })
    or models.load(positional[2], given)
  suite.backend, suite.options = backend, models.sampling(given)
  suite.seed, suite.options.seed = given.seed, nil
  suite.most, suite.repeats, suite.report, suite.log = given.cases, given.repeats, given.report, given.log
  suite.against = given.against
  suite.progress = eval_progress()
  local trace <close> = given.trace and terminal.must(fathom.trace(given.trace)) or nil
  local report = terminal.must(fathom.eval(suite))
  if given.json then
    print(json.encode(report))
  else
    io.write(require("fathom.eval.files").table(report))
    print(("%.1f s"):format(report.seconds))
  end
  return trace
end

return command

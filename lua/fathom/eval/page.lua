--- page.lua - a report as one HTML page that needs nothing else: no script, no other file, no network.

local escape = require "fathom.eval.escape"
local files = require "fathom.eval.files"
local plot = require "fathom.eval.plot"
local stats = require "fathom.eval.stats"
local style = require "fathom.eval.style"

local page = {}

local h = escape.html
local MOST_NAME = 160                                    -- bytes of what stands on a line of its own
local MOST_LISTED, MOST_TEXT, MOST_CELLS, MOST_SAMPLES = 60, 3000, 3000, 8

-- A name, which may be a model's words as well.
local function called(text) return h(escape.short(tostring(text), MOST_NAME)) end

local function add(out, ...)
  for _, part in ipairs { ... } do out[#out + 1] = part end
end

local function shown(v, e) return h(files.number(v, e.share)) end

local function interval_text(e)
  if not e.low then return "" end
  return ("%s to %s"):format(shown(e.low, e), shown(e.high, e))
end

-- ---- axes and rows of intervals -------------------------------------------------------------------------------------

-- One axis for several estimates: 0 to 1 for shares, else what they need.
local function axis_of(list)
  local share, low, high = true, math.huge, -math.huge
  for _, e in ipairs(list) do
    share = share and e.share
    low, high = math.min(low, e.low or e.mean), math.max(high, e.high or e.mean)
  end
  if share then return { from = 0, to = 1, ticks = { 0, 0.25, 0.5, 0.75, 1 }, share = true } end
  local ticks, from, to = plot.ticks(math.min(low, 0), math.max(high, 0), 4)
  return { ticks = ticks, from = from, to = to }
end

local function tick_labels(axis)
  local out = {}
  for _, t in ipairs(axis.ticks) do
    local text = axis.share and ("%d %%"):format(math.floor(100 * t + 0.5)) or files.number(t)
    out[#out + 1] = ('<i style="left:%.2f%%">%s</i>'):format((t - axis.from) / (axis.to - axis.from) * 100, h(text))
  end
  return '<div class="row axis"><span></span><div class="ticks">' .. table.concat(out) .. "</div><span></span></div>"
end

-- list: { label =, e =, note = }
local function interval_rows(out, list)
  local estimates = {}
  for i, item in ipairs(list) do estimates[i] = item.e end
  local axis = axis_of(estimates)
  add(out, '<div class="rows">')
  for _, item in ipairs(list) do
    add(out, '<div class="row"><span class="label">', called(item.label), item.note and " <small>" .. h(item.note) .. "</small>" or "",
        "</span>", plot.interval(item.e, axis), '<span class="value"><b>', shown(item.e.mean, item.e), "</b> <small>",
        interval_text(item.e), "</small></span></div>")
  end
  add(out, tick_labels(axis), "</div>")
end

-- ---- parts of the page ------------------------------------------------------------------------------------------------

local function facts(report)
  local each = report.repeats > 1 and ("%d samples each"):format(report.repeats) or "one sample each"
  local list = { ("%d cases"):format(report.cases), each }
  local model = report.model or {}
  if model.name then list[#list + 1] = model.name end
  if model.digest then list[#list + 1] = "model " .. model.digest .. (model.device and " on " .. model.device or "") end
  list[#list + 1] = "seed " .. report.seed
  local t = report.totals
  if t.tokens > 0 then list[#list + 1] = ("%d tokens"):format(t.tokens) end
  if t.errors > 0 then list[#list + 1] = ("%d failed"):format(t.errors) end
  if t.cut > 0 then list[#list + 1] = ("%d cut at max_tokens"):format(t.cut) end
  if report.cancelled then list[#list + 1] = "cancelled before it was complete" end
  for i, text in ipairs(list) do list[i] = "<li>" .. h(text) .. "</li>" end
  return '<ul class="facts">' .. table.concat(list) .. "</ul>"
end

local function head(out, report)
  add(out, '<header><p class="brand">fathom eval</p><h1>', called(report.name), "</h1>", facts(report))
  if report.note then add(out, "<p class=\"note\">", h(escape.short(report.note, MOST_TEXT)), "</p>") end
  add(out, "</header>")
end

-- The axis of pass@k and maj@k: from below the lowest interval up to 1.
local function curve_axis(e)
  local low = 1
  for _, list in ipairs { e.pass, e.maj } do
    for _, p in ipairs(list) do low = math.min(low, p.low or p.mean) end
  end
  local ticks, from = plot.ticks(math.min(low, 0.95), 1, 4)
  if ticks[#ticks] > 1 then ticks[#ticks] = nil end
  return { ticks = ticks, from = from, to = 1 }
end

local function curve(out, e)
  local axis = curve_axis(e)
  local drawing, labels = plot.curves({ { class = "pass", points = e.pass }, { class = "maj", points = e.maj } }, axis)
  add(out, '<figure><figcaption><span class="key pass">pass@k</span><span class="key maj">maj@k</span></figcaption>',
      '<div class="frame"><div class="ys">')
  for _, t in ipairs(axis.ticks) do
    add(out, ('<i style="bottom:%.1f%%">%d %%</i>'):format((t - axis.from) / (axis.to - axis.from) * 100, math.floor(100 * t + 0.5)))
  end
  add(out, "</div>", drawing, '<div class="xs">')
  for _, l in ipairs(labels) do add(out, ('<i style="left:%.1f%%">%d</i>'):format(l.x * 100, l.k)) end
  add(out, "</div></div></figure>")
end

local function tiles(out, report)
  add(out, '<section class="tiles">')
  for _, e in ipairs(report.scores) do
    local best, vote = e.pass and e.pass[#e.pass], e.maj and e.maj[#e.maj]
    add(out, ('<div class="tile%s"><div><h2>%s</h2><p class="big">%s</p><p class="small">%s</p>'):format(best and " wide" or "",
      called(e.name), shown(e.mean, e), interval_text(e)))
    if best then
      add(out, ('<p class="small">pass@%d %s<br>maj@%d %s</p>'):format(best.k, shown(best.mean, best), vote.k, shown(vote.mean, vote)),
          '<p class="small about">pass@k: at least one of k samples is right. maj@k: the answer that most of k give is.</p>')
    end
    add(out, "</div>")
    if best then curve(out, e) end
    add(out, "</div>")
  end
  add(out, "</section>")
end

local function metrics(out, report)
  local list = {}
  for _, m in ipairs(report.metrics) do
    if m.mean then list[#list + 1] = { label = m.name, e = m, note = m.note } end
  end
  if #list == 0 then return end
  add(out, "<section><h2>Measures</h2>")
  local shares, others = {}, {}
  for _, item in ipairs(list) do table.insert(item.e.share and shares or others, item) end
  if #shares > 0 then interval_rows(out, shares) end
  for _, item in ipairs(others) do interval_rows(out, { item }) end
  add(out, "</section>")
end

local function against(out, report)
  if not report.against then return end
  add(out, "<section><h2>Against ", called(report.against.name or "another run"), "</h2>")
  for _, d in ipairs(report.against.scores) do
    interval_rows(out, { { label = d.name, e = d, note = ("better %d, worse %d, same %d"):format(d.wins, d.losses, d.ties) } })
  end
  add(out, '<p class="small">Differences of the same cases; 0 is no change.</p></section>')
end

local function slices(out, report)
  for _, slice in ipairs(report.slices) do
    add(out, "<section><h2>By ", called(slice.field), "</h2>")
    for _, name in ipairs(report.scorers) do
      local list = {}
      for _, group in ipairs(slice.groups) do
        for _, e in ipairs(group.scores) do
          if e.name == name then
            list[#list + 1] = { label = tostring(group.value), e = e, note = group.cases .. (group.cases == 1 and " case" or " cases") }
          end
        end
      end
      if #report.scorers > 1 then add(out, "<h3>", called(name), "</h3>") end
      interval_rows(out, list)
    end
    add(out, "</section>")
  end
end

local function mean_of(row, name)
  local values = {}
  for _, s in ipairs(row.samples) do
    values[#values + 1] = s.scores[name] or (s.err and 0.0) or nil
  end
  return stats.mean(values)
end

local function histograms(out, report)
  for _, e in ipairs(report.scores) do
    if not e.share then
      local values = {}
      for _, row in ipairs(report.rows) do
        for _, s in ipairs(row.samples) do values[#values + 1] = s.scores[e.name] end
      end
      local low, high = math.huge, -math.huge
      for _, v in ipairs(values) do low, high = math.min(low, v), math.max(high, v) end
      local ticks, from, to = plot.ticks(low, high, 5)
      add(out, "<section><h2>", called(e.name), ', every sample</h2><div class="rows one">', '<div class="row"><span></span>',
          plot.histogram(values, { from = from, to = to }, 40), "<span></span></div>",
          tick_labels { ticks = ticks, from = from, to = to }, "</div></section>")
    end
  end
end

-- One cell a case, by its mean score; cells of listed cases lead to them.
local function cells(out, report, listed)
  for _, e in ipairs(report.scores) do
    if e.share and #report.rows <= MOST_CELLS then
      add(out, "<section><h2>Every case: ", called(e.name), '</h2><div class="cells">')
      for i, row in ipairs(report.rows) do
        local mean = mean_of(row, e.name)
        local level = mean and math.floor(mean * 10 + 0.5) or "x"
        local title = ("%s: %s"):format(row.id, mean and files.number(mean, true) or "not scored")
        add(out, listed[i] and ('<a class="c c%s" href="#case-%d" title="%s"></a>'):format(level, i, called(title))
          or ('<span class="c c%s" title="%s"></span>'):format(level, called(title)))
      end
      add(out, '</div><p class="small">A square is a case, from none of its samples right ',
          '<span class="c c0"></span><span class="c c3"></span><span class="c c5"></span><span class="c c7"></span>',
          '<span class="c c10"></span>',
          " to all.</p></section>")
    end
  end
end

-- ---- the cases that went wrong ------------------------------------------------------------------------------------------

local function failures_of(report)
  local list, listed = {}, {}
  for i, row in ipairs(report.rows) do
    local worst
    for _, e in ipairs(report.scores) do
      if e.share then
        local mean = mean_of(row, e.name) or 0
        if mean < report.threshold then worst = math.min(worst or 1, mean) end
      end
    end
    if worst then list[#list + 1] = { index = i, row = row, worst = worst } end
  end
  table.sort(list, function(a, b)
    if a.worst ~= b.worst then return a.worst < b.worst end
    return a.index < b.index
  end)
  for i = 1, math.min(#list, MOST_LISTED) do listed[list[i].index] = true end
  return list, listed
end

local function block(out, label, text)
  if text == nil or text == "" then return end
  if type(text) == "table" then text = require("fathom.json").encode(text) end
  add(out, '<h4>', h(label), "</h4><pre>", h(escape.short(text, MOST_TEXT)), "</pre>")
end

-- A detail that fits beside its score, else nil.
local function aside(detail)
  return type(detail) == "string" and #detail <= 100 and not detail:find "\n" and detail or nil
end

local function sample(out, report, s)
  add(out, '<div class="sample"><p class="chips">')
  for _, name in ipairs(report.scorers) do
    local v, detail = s.scores[name], aside(s.details[name])
    add(out, ('<span class="chip %s">%s %s</span>'):format(not v and "none" or v >= report.threshold and "good" or "bad", called(name),
      v and h(files.number(v)) or "&ndash;"), detail and detail ~= "" and "<small>" .. h(detail) .. "</small>" or "")
  end
  add(out, s.finish and s.finish ~= "stop" and ('<span class="chip none">%s</span>'):format(h(s.finish)) or "", "</p>")
  local answer = s.answer ~= "" and s.answer or nil
  block(out, answer and "answer" or "text", answer or s.text)
  block(out, "failed", s.err)
  for _, name in ipairs(report.scorers) do
    if not aside(s.details[name]) then block(out, name, s.details[name]) end
  end
  add(out, "</div>")
end

local function failures(out, report, list)
  if #list == 0 then return end
  add(out, ("<section><h2>Cases below the mark <small>%d of %d</small></h2>"):format(#list, #report.rows))
  for i = 1, math.min(#list, MOST_LISTED) do
    local row, index = list[i].row, list[i].index
    local first = escape.short((row.prompt or ""):gsub("%s+", " "), 120)
    add(out, ('<details id="case-%d"><summary><span class="c c%d"></span><b>%s</b> <span class="first">%s</span></summary>'):format(
      index, math.floor(list[i].worst * 10 + 0.5), called(row.id), h(first)))
    block(out, "prompt", row.prompt)
    block(out, "reference", row.reference)
    for j = 1, math.min(#row.samples, MOST_SAMPLES) do sample(out, report, row.samples[j]) end
    if #row.samples > MOST_SAMPLES then add(out, ('<p class="small">and %d samples more</p>'):format(#row.samples - MOST_SAMPLES)) end
    add(out, "</details>")
  end
  if #list > MOST_LISTED then
    add(out, ('<p class="small">%d more are in the JSON report.</p>'):format(#list - MOST_LISTED))
  end
  add(out, "</section>")
end

local FOOT = "Intervals are 95 %: Wilson's for shares of single samples, else by drawing the cases again (a case's repeats stay together). "
  .. "A sample that failed scores 0; one that its scorer could not judge is left out."

--- The report as a page.
-- @param report table  as fathom.eval gives it
-- @return string
function page.text(report)
  local out = { '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
    '<meta name="color-scheme" content="light dark"><title>', called(report.name), " - fathom eval</title><style>", style,
    "</style></head><body><main>" }
  local list, listed = failures_of(report)
  head(out, report)
  tiles(out, report)
  metrics(out, report)
  against(out, report)
  slices(out, report)
  histograms(out, report)
  cells(out, report, listed)
  failures(out, report, list)
  add(out, "<footer><p>", h(FOOT), "</p></footer></main></body></html>\n")
  return table.concat(out)
end

return page

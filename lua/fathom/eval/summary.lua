--- summary.lua - from the samples of all cases to numbers: means with intervals, pass@k, maj@k, the same for each slice.

local stats = require "fathom.eval.stats"

local summary = {}

-- Mean score of one case over its repeats; a sample that failed scores 0, one that its scorer could not judge is left out.
local function case_scores(row, name)
  local out = {}
  for _, s in ipairs(row.samples) do
    local v = s.scores[name]
    if v == nil and s.err then v = 0.0 end
    if v ~= nil then out[#out + 1] = v end
  end
  return out
end

local function means_of(rows, name)
  local out = {}
  for _, row in ipairs(rows) do
    local mean = stats.mean(case_scores(row, name))
    if mean then out[#out + 1] = mean end
  end
  return out
end

-- The smallest number of samples that any case has.
local function samples_each(rows)
  local n = math.huge
  for _, row in ipairs(rows) do n = math.min(n, #row.samples) end
  return n == math.huge and 0 or n
end

-- pass@k and maj@k over cases: { { k =, mean =, low =, high = }, ... }
local function curves(rows, name, threshold, seed)
  local n, pass, maj = samples_each(rows), {}, {}
  if n < 2 then return nil end
  for _, k in ipairs(stats.sizes(n)) do
    local passed, voted = {}, {}
    for i, row in ipairs(rows) do
      local scores, keys, right = {}, {}, 0
      for j, s in ipairs(row.samples) do
        scores[j], keys[j] = s.scores[name] or 0.0, s.key or false
        if scores[j] >= threshold then right = right + 1 end
      end
      passed[i] = stats.pass_at(#scores, right, k)
      voted[i] = stats.maj_at(keys, scores, k, seed + i)
    end
    pass[#pass + 1], maj[#maj + 1] = stats.estimate(passed, seed), stats.estimate(voted, seed)
    pass[#pass].k, maj[#maj].k = k, k
    pass[#pass].name, maj[#maj].name = "pass@" .. k, "maj@" .. k
  end
  return pass, maj
end

local function score_of(rows, name, o)
  local out = stats.estimate(means_of(rows, name), o.seed)
  if not out then return nil end
  out.name = name
  -- lengths and the like have no pass@k
  if out.share then out.pass, out.maj = curves(rows, name, o.threshold, o.seed) end
  return out
end

local function slice_of(rows, field, o)
  local groups, order = {}, {}
  for _, row in ipairs(rows) do
    local value = row.fields[field]
    if value ~= nil then
      if not groups[value] then
        groups[value] = {}
        order[#order + 1] = value
      end
      table.insert(groups[value], row)
    end
  end
  table.sort(order, function(a, b)
    if type(a) == type(b) and type(a) ~= "boolean" then return a < b end
    return tostring(a) < tostring(b)
  end)
  local out = {}
  for i, value in ipairs(order) do
    local scores = {}
    for _, name in ipairs(o.names) do
      local e = stats.estimate(means_of(groups[value], name), o.seed)
      if e then
        e.name = name
        scores[#scores + 1] = e
      end
    end
    out[i] = { value = value, cases = #groups[value], scores = scores }
  end
  return { field = field, groups = out }
end

local function totals(rows)
  local t = { samples = 0, errors = 0, unscored = 0, prompt_tokens = 0, tokens = 0, cut = 0 }
  for _, row in ipairs(rows) do
    for _, s in ipairs(row.samples) do
      t.samples = t.samples + 1
      if s.err then t.errors = t.errors + 1 elseif s.unscored then t.unscored = t.unscored + 1 end
      if s.finish == "length" then t.cut = t.cut + 1 end
      t.prompt_tokens, t.tokens = t.prompt_tokens + (s.prompt_tokens or 0), t.tokens + (s.tokens or 0)
    end
  end
  return t
end

local function metrics_of(rows, metrics, seed)
  local out, names = {}, {}
  for name in pairs(metrics or {}) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local ok, value = pcall(metrics[name], rows, seed)
    if not ok then
      out[#out + 1] = { name = name, err = tostring(value) }
    elseif value ~= nil then
      local m = type(value) == "table" and value or { mean = value }
      m.name = name
      out[#out + 1] = m
    end
  end
  return out
end

--- Sums up what was sampled.
-- @param rows list   { id =, fields =, samples = { { scores = { name = number }, key =, err = }, ... } }
-- @param o table     names of scorers, threshold, seed, by (fields for slices), metrics (name -> function(rows, seed))
-- @return table      scores, slices, metrics and totals, as in the report
function summary.of(rows, o)
  local scores, slices = {}, {}
  for _, name in ipairs(o.names) do scores[#scores + 1] = score_of(rows, name, o) end
  for _, field in ipairs(o.by) do slices[#slices + 1] = slice_of(rows, field, o) end
  return { scores = scores, slices = slices, metrics = metrics_of(rows, o.metrics, o.seed), totals = totals(rows) }
end

--- Mean score of each case, by id: what two runs are compared by.
function summary.by_case(rows, name)
  local out = {}
  for _, row in ipairs(rows) do out[row.id] = stats.mean(case_scores(row, name)) end
  return out
end

return summary

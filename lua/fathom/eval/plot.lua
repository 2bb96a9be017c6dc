--- plot.lua - small drawings for the report's page, as SVG that takes the width there is.
-- Lines keep their width when a drawing is stretched, and a dot is a line of no length with round ends: so that text, which
-- would be stretched, stands in HTML beside or above the drawing.

local plot = {}

local W, H = 1000, 100

local function n(v) return (("%.1f"):format(v):gsub("%.0$", "")) end

local function svg(class, height, parts)
  return ('<svg class="%s" viewBox="0 0 %d %d" preserveAspectRatio="none" aria-hidden="true">%s</svg>'):format(class, W, height,
                                                                                                    table.concat(parts))
end

local function line(class, x1, y1, x2, y2)
  return ('<path class="%s" d="M%s %sL%s %s"/>'):format(class, n(x1), n(y1), n(x2), n(y2))
end

--- Round numbers from low to high, about `count` of them.
-- @return list, and the ends of the axis
function plot.ticks(low, high, count)
  if high <= low then high = low + 1 end
  local raw = (high - low) / count
  local power = 10 ^ math.floor(math.log(raw, 10))
  local step = power * 10
  for _, m in ipairs { 1, 2, 5 } do
    if m * power >= raw * 0.999 then
      step = m * power
      break
    end
  end
  local from, to, out = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step, {}
  for i = 0, math.floor((to - from) / step + 0.5) do out[#out + 1] = from + i * step end
  return out, from, to
end

--- One mean with its interval on an axis.
-- @param e table      mean, low, high
-- @param axis table   from, to, ticks
function plot.interval(e, axis)
  local function x(v) return (v - axis.from) / (axis.to - axis.from) * W end
  local parts = {}
  for _, t in ipairs(axis.ticks) do parts[#parts + 1] = line("grid", x(t), 0, x(t), H) end
  if e.low then parts[#parts + 1] = line("range", x(e.low), H / 2, x(e.high), H / 2) end
  parts[#parts + 1] = line("dot", x(e.mean), H / 2, x(e.mean), H / 2)
  return svg("interval", H, parts)
end

--- Lines over k with a band for the interval; k is spread as its logarithm.
-- @param series list  { class =, points = { { k =, mean =, low =, high = }, ... } }
-- @param axis table   from, to, ticks (of the values)
-- @return svg, list of { k =, x = share of the width }
function plot.curves(series, axis)
  local height = 400
  local last = series[1].points[#series[1].points].k
  local function x(k) return (0.02 + 0.96 * (last > 1 and math.log(k) / math.log(last) or 0.5)) * W end
  local function y(v) return (1 - (v - axis.from) / (axis.to - axis.from)) * height end
  local parts, labels = {}, {}
  for _, t in ipairs(axis.ticks) do parts[#parts + 1] = line("grid", 0, y(t), W, y(t)) end
  for _, s in ipairs(series) do
    local up, down, path = {}, {}, {}
    for i, p in ipairs(s.points) do
      up[i] = n(x(p.k)) .. " " .. n(y(p.high or p.mean))
      table.insert(down, 1, n(x(p.k)) .. " " .. n(y(p.low or p.mean)))
      path[i] = n(x(p.k)) .. " " .. n(y(p.mean))
    end
    parts[#parts + 1] = ('<path class="band %s" d="M%sL%sZ"/>'):format(s.class, table.concat(up, "L"), table.concat(down, "L"))
    parts[#parts + 1] = ('<path class="curve %s" d="M%s"/>'):format(s.class, table.concat(path, "L"))
    for _, p in ipairs(s.points) do
      parts[#parts + 1] = line("dot " .. s.class, x(p.k), y(p.mean), x(p.k), y(p.mean))
    end
  end
  for i, p in ipairs(series[1].points) do labels[i] = { k = p.k, x = x(p.k) / W } end
  return svg("curves", height, parts), labels
end

--- Bars of a histogram.
-- @param values list  numbers
-- @param axis table   from, to
function plot.histogram(values, axis, bins)
  local counts, most, parts = {}, 1, {}
  for i = 1, bins do counts[i] = 0 end
  for _, v in ipairs(values) do
    local i = math.max(1, math.min(bins, math.floor((v - axis.from) / (axis.to - axis.from) * bins) + 1))
    counts[i] = counts[i] + 1
    most = math.max(most, counts[i])
  end
  for i, count in ipairs(counts) do
    local h = count / most * H
    if count > 0 then
      parts[#parts + 1] = ('<rect class="bar" x="%s" y="%s" width="%s" height="%s"/>'):format(n((i - 0.92) / bins * W), n(H - h),
                                                                                         n(0.84 / bins * W), n(h))
    end
  end
  return svg("histogram", H, parts)
end

return plot

// Which values of a scan are black and white: the rule of scans/intensity.py. No DOM.

const SAMPLE = 2 ** 21 // values that are looked at
const RAISED = 0.02 // of the range: a background above this is taken off
const LEVELS = 16 // different values that are left when padding is taken away, at least

/** The values [black, white] of a scan or slice (Float32Array) that become 0 and 1. */
export function intensityRange(data) {
  const step = Math.max(1, Math.floor(data.length / SAMPLE))
  let sample = new Float32Array(Math.ceil(data.length / step)), n = 0
  for (let i = 0; i < data.length; i += step) if (Number.isFinite(data[i])) sample[n++] = data[i]
  sample = withoutPadding(sample.subarray(0, n).sort())
  if (!sample.length) return [0, 1]
  const [floor, top] = [percentile(sample, 0.1), percentile(sample, 99.95)]
  const background = search(sample, floor + 0.1 * (top - floor), true) / sample.length
  const raised = floor > RAISED * top && background > 0.1
  const black = floor < 0 || raised ? floor : 0
  const low = sample[0], high = sample[sample.length - 1]
  let sum = 0, count = 0
  for (const value of data) {
    if (value >= low && value <= high) {
      sum += Math.min(Math.max(value, black), top)
      count++
    }
  }
  const mean = sum / count, bright = new Float32Array(count)
  n = 0
  for (const value of data) if (value > mean && value >= low && value <= high) bright[n++] = value
  const white = n ? percentile(bright.subarray(0, n).sort(), 99.8) : black
  return [black, white > black ? white : black + 1]
}

/** Sorted values without those at either end that lie far from all the rest, see the Python. */
function withoutPadding(values) {
  while (values.length) {
    const low = values[0], high = values[values.length - 1]
    const above = search(values, low, true), below = search(values, high, false)
    const rest = values.subarray(above, below)
    if (rest.length < 2 || different(rest) < LEVELS) return values
    const most = percentile(rest, 99.95) - percentile(rest, 0.05)
    if (low < 0 && rest[0] - low > 0.25 * most) values = values.subarray(above)
    else if (high - rest[rest.length - 1] > 0.5 * most) values = values.subarray(0, below)
    else return values
  }
  return values
}

/** How many different values there are among about 4096 of these. */
function different(values) {
  const step = Math.max(1, Math.floor(values.length / 4096)), found = new Set()
  for (let i = 0; i < values.length; i += step) found.add(values[i])
  return found.size
}

/** Where a value belongs in sorted ones: before its equals, or behind them (`right`). */
function search(sorted, value, right) {
  let [low, high] = [0, sorted.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (sorted[middle] < value || (right && sorted[middle] === value)) low = middle + 1
    else high = middle
  }
  return low
}

/** The percentile of sorted values, linear in between. */
export function percentile(sorted, percent) {
  const place = (percent / 100) * (sorted.length - 1), i = Math.floor(place), part = place - i
  const a = sorted[i], b = sorted[Math.min(i + 1, sorted.length - 1)]
  return part >= 0.5 ? b - (b - a) * (1 - part) : a + (b - a) * part
}

/** Values (Float32Array) with black as 0 and white as 1: {inside: cut off there, beyond: what was cut off, or null}. */
export function normalised(values, [black, white]) {
  const low = Math.fround(black), range = Math.fround(white - black)
  const inside = new Float32Array(values.length), beyond = new Float32Array(values.length)
  let any = false
  for (let i = 0; i < values.length; i++) {
    const value = Math.fround(Math.fround(values[i] - low) / range)
    inside[i] = Math.min(1, Math.max(0, value))
    if (value !== inside[i]) {
      beyond[i] = value - inside[i]
      any = true
    }
  }
  return { inside, beyond: any ? beyond : null }
}

// Which values of a scan are black and white: the rule of scans/intensity.py. No DOM.

const SAMPLE = 2 ** 21 // values that are looked at
const RAISED = 0.02 // of the range: a background above this is taken off
const FAR = 0.1 // of white: below black by more, or above white by ten times that, nothing is a scan's
const MOST = 3.4028234663852886e38 // of what float32 holds
const LEVELS = 16 // different values that are left when padding is taken away, at least

/** The values [black, white] of a scan or slice (Float32Array) that become 0 and 1. */
export function intensityRange(data) {
  const step = Math.max(1, Math.floor(data.length / SAMPLE))
  let sample = new Float32Array(Math.ceil(data.length / step)), n = 0
  for (let i = 0; i < data.length; i += step) if (Number.isFinite(data[i])) sample[n++] = data[i]
  const whole = sample.subarray(0, n).sort()
  sample = withoutPadding(whole)
  if (!sample.length) return [0, 1]
  const [floor, top] = [percentile(sample, 0.1), percentile(sample, 99.95)]
  const background = search(sample, floor + 0.1 * (top - floor), true) / sample.length
  const raised = floor > RAISED * top && background > 0.1
  const black = floor < 0 || raised ? floor : 0
  // Not of the sample: a scan of one more slice, or turned round, has the same white.
  const low = sample[0] > whole[0] ? sample[0] : -MOST
  const high = sample.at(-1) < whole.at(-1) ? sample.at(-1) : MOST
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
function percentile(sorted, percent) {
  const place = (percent / 100) * (sorted.length - 1), i = Math.floor(place), part = place - i
  const a = sorted[i], b = sorted[Math.min(i + 1, sorted.length - 1)]
  return part >= 0.5 ? b - (b - a) * (1 - part) : a + (b - a) * part
}

/** Slices (Float32Array, h x w each) with black as 0 and white as 1: {inside: cut off there, beyond: what was cut off,
 * or null}. Single pixels far beyond are shown as their neighbours are. */
export function normalised(values, [black, white], h, w) {
  const low = Math.fround(black), range = Math.fround(white - black), far = []
  const inside = new Float32Array(values.length), beyond = new Float32Array(values.length)
  const isFar = i => beyond[i] < -FAR || beyond[i] > 10 * FAR
  let any = false
  for (let i = 0; i < values.length; i++) {
    const value = Math.fround(Math.fround(values[i] - low) / range)
    inside[i] = Math.min(1, Math.max(0, value))
    if (value !== inside[i]) {
      beyond[i] = value - inside[i]
      any = true
      if (isFar(i)) far.push(i)
    }
  }
  for (const i of far) {
    const row = Math.floor(i / w) % h, column = i % w
    let [sum, count] = [0, 0]
    for (let y = Math.max(0, row - 1); y <= Math.min(h - 1, row + 1); y++) {
      for (let x = Math.max(0, column - 1); x <= Math.min(w - 1, column + 1); x++) {
        const k = i + (y - row) * w + x - column
        if (!isFar(k)) [sum, count] = [sum + inside[k], count + 1]
      }
    }
    if (count > 4) {
      beyond[i] += inside[i]
      inside[i] = sum / count
      beyond[i] -= inside[i]
    }
  }
  return { inside, beyond: any ? beyond : null }
}

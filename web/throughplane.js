// Through the slices of a scan, and onto a grid of any size (inference/through_plane.py). No DOM.
import { fill, PLANES, toStored } from './scan.js'

/** Both ways to see the slices of a plane from the side, their distance down the rows. */
export function viewsAcross(plane) {
  const thick = PLANES.indexOf(plane), others = [0, 1, 2].filter(axis => axis !== thick)
  return [others, [...others].reverse()].map(([a, b]) => [PLANES[a], thick < b])
}

/** `factor` slices made of each of this plane: a Scan, the mean of what both views give. */
export async function throughPlane(upscaler, scan, plane, factor) {
  const views = viewsAcross(plane), scale = [factor, 1], data = scan.intensities(), levels = scan.blackAndWhite(data)
  const dims = scan.factors(views[0], scale).map((f, i) => f * scan.dims[i]), total = new Float32Array(dims.reduce((a, b) => a * b))
  const errors = upscaler.weights.calibration ? new Uint8Array(total.length) : null
  let found
  for (const view of views) {
    const target = scan.layout(view, dims)
    found = await upscaler.describe(scan, data, view, scale, levels)
    await upscaler.parts(scan, data, view, scale, found, levels, true, (s, values, expected) => {
      fill(total, target, s, values, true)
      if (errors) fill(errors, target, s, expected, true)
    })
  }
  const stored = toStored(total, scan.kind === Float32Array ? total : new scan.kind(total.length), scan)
  return Object.assign(scan.resampled(dims, stored, upscaler.about(found, scale, scan, data, [plane, false], levels)), { errors })
}

/** A scan on a grid of these dims, the outer edges where they were: cubic, antialiased where voxels become larger,
 * nothing beyond what was there. */
export function resample(scan, dims) {
  let values = scan.intensities(), [low, high] = [Infinity, -Infinity]
  for (const value of values) {
    if (value < low) low = value
    if (value > high) high = value
  }
  const now = [...scan.dims]
  for (const axis of [0, 1, 2]) {
    values = along(values, now, axis, resamplingMatrix(now[axis], dims[axis]))
    now[axis] = dims[axis]
  }
  for (let i = 0; i < values.length; i++) values[i] = Math.min(high, Math.max(low, values[i]))
  return scan.resampled(dims, toStored(values, new scan.kind(values.length), scan), scan.about)
}

/** Values (dims: x fastest) with one axis resampled by the rows of a matrix. */
function along(values, dims, axis, rows) {
  const step = dims.slice(0, axis).reduce((a, b) => a * b, 1), blocks = dims.slice(axis + 1).reduce((a, b) => a * b, 1)
  const out = new Float32Array(step * rows.length * blocks)
  for (let block = 0; block < blocks; block++) {
    rows.forEach(({ first, weights }, i) => {
      const from = (block * dims[axis] + first) * step, to = (block * rows.length + i) * step
      for (let k = 0; k < step; k++) {
        let sum = 0
        for (let t = 0; t < weights.length; t++) sum += weights[t] * values[from + t * step + k]
        out[to + k] = sum
      }
    })
  }
  return out
}

/** The rows {first, weights} of antialiased cubic interpolation (a = -0.5) of `size` values to `new` ones. */
function resamplingMatrix(size, count) {
  const step = size / count, wide = Math.max(step, 1)
  const cubic = x => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
  return Array.from({ length: count }, (_, i) => {
    const centre = step * (i + 0.5), first = Math.max(0, Math.trunc(centre - 2 * wide + 0.5))
    const last = Math.min(size, Math.trunc(centre + 2 * wide + 0.5))
    const raw = Array.from({ length: last - first }, (_, j) => cubic(Math.abs(first + j - centre + 0.5) / wide))
    const sum = raw.reduce((a, b) => a + b, 0)
    return { first, weights: raw.map(x => x / sum) }
  })
}

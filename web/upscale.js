// The way in: a scan and its plan in, the scan at a higher resolution out (inference/upscaler.py). No DOM.
import { middleSlices, outsideTrainingRange, scaleName, wordsOf } from './description.js'
import { normalised } from './intensity.js'
import { cut, fill, rint } from './scan.js'
import { resample, throughPlane } from './throughplane.js'

const PART_PIXELS = 2 ** 15 // LR pixels at a time: fewer are slow
const MOST = 512 // pixels along an edge that an estimate looks at

/** What a run ends in that the user has stopped. */
export class Stopped extends Error {}

/** Enlarges scans. pool: workers that run the network (net.js). weights: the JSON that export.py writes. */
export class Upscaler {
  constructor(pool, weights) { Object.assign(this, { pool, weights, job: {} }) }

  /** The scan enlarged as planned: a Scan with `about`, and `errors` where the network has them. job: {stopped} is
   * looked at, job.progress(share) called. */
  async follow(plan, scan, job) {
    const voxels = scan.dims.reduce((a, b) => a * b), steps = []
    Object.assign(job, { done: 0, total: voxels * ((plan.scale > 1) + (plan.through > 1) * 2 * plan.scale ** 2) })
    this.job = job
    if (plan.scale > 1) steps.push(x => this.inPlane(x, plan.plane, plan.scale))
    if (plan.through > 1) steps.push(x => throughPlane(this, x, plan.plane, plan.through))
    let now = scan, about = { Plan: plan.words }
    for (const step of steps) {
      const before = now
      now = await step(before)
      about = { ...now.about, ...about }
      if (before.errors) add(now.errors, enlargedErrors(before.errors, before.dims, now.dims))
    }
    if (plan.voxelSize) {
      const before = now
      now = resample(before, before.dims.map((n, i) => Math.max(1, rint(n * before.ownSizes[i] / plan.voxelSize))))
      if (before.errors) now.errors = enlargedErrors(before.errors, before.dims, now.dims)
    }
    return Object.assign(now, { about })
  }

  /** The slices of a plane enlarged: a Scan. */
  async inPlane(scan, plane, factor) {
    const view = [plane, false], scale = [factor, factor], data = scan.intensities(), levels = scan.blackAndWhite(data)
    const dims = scan.factors(view, scale).map((f, i) => f * scan.dims[i]), size = dims.reduce((a, b) => a * b)
    const stored = new scan.kind(size), target = scan.layout(view, dims)
    const errors = this.weights.calibration ? new Uint8Array(size) : null
    const found = await this.describe(scan, data, view, scale, levels)
    await this.parts(scan, data, view, scale, found, levels, false, (s, values, expected) => {
      fill(stored, target, s, values)
      if (errors) fill(errors, target, s, expected)
    })
    return Object.assign(scan.resampled(dims, stored, this.about(found, scale, scan, data, view, levels)), { errors })
  }

  /** How the slices of a view of a scan were made: what is found of its middle, on average. */
  async describe(scan, data, view, scale, levels) {
    const { found: size } = this.weights.entries, mean = new Float32Array(size)
    if (!this.weights.describe) return mean
    const whole = scan.layout(view), { rows, columns } = whole, layout = { ...whole }
    if (!scan.isPicture) {
      for (const [name, line] of Object.entries({ rows, columns })) {
        const first = Math.max(0, (line.n >> 1) - MOST / 2)
        layout[name] = { ...line, n: Math.min(line.n, (line.n >> 1) + MOST / 2) - first }
        layout.start += first * line.step
      }
    }
    const [h, w] = [layout.rows.n, layout.columns.n], chosen = middleSlices(layout.slices.n)
    const all = await this.pool.map(chosen, async s => {
      if (this.job.stopped) throw new Stopped()
      return (await this.pool.ask({ what: 'describe', file: this.weights.describe[scaleName(scale)], slice: cut(data, layout, s, new Float32Array(h * w)), h, w, levels })).found
    })
    return mean.map((_, i) => all.reduce((sum, found) => sum + found[i], 0) / all.length)
  }

  /** Enlarge the slices of a view of a scan part by part; each slice goes to put(s, values, errors or undefined). */
  async parts(scan, data, view, scale, found, levels, floats, put) {
    const layout = scan.layout(view), [h, w, count] = [layout.rows.n, layout.columns.n, layout.slices.n]
    const distance = this.weights.neighbours ? scan.distance(view) : null, reach = distance === null ? 0 : this.weights.neighbours
    const name = scaleName(scale), { files, calibration } = this.weights
    const fixed = { what: 'enlarge', file: files[name], scale, count, h, w, levels, found, distance, units: scan.units, floats, calibration: calibration?.[name] }
    await this.pool.map(splitStack(count, reach, h * w), async ([place, n]) => {
      if (this.job.stopped) throw new Stopped()
      const from = Math.max(0, place - reach), to = Math.min(count, place + n + reach)
      const slices = new Float32Array((to - from) * h * w)
      for (let s = from; s < to; s++) cut(data, layout, s, slices.subarray((s - from) * h * w, (s - from + 1) * h * w))
      const { values, errors } = await this.pool.ask({ ...fixed, slices, first: place - from, n, place }, [slices.buffer])
      const size = values.length / n, of = (array, i) => array?.subarray(i * size, (i + 1) * size)
      for (let i = 0; i < n; i++) put(place + i, of(values, i), of(errors, i))
      this.job.done += n * h * w
      this.job.progress(this.job.done / this.job.total)
    })
  }

  /** What was found of the degradation, in words, and what is unusual about the slices of a scan. */
  about(found, scale, scan, data, view, levels) {
    const estimated = Boolean(this.weights.describe), layout = scan.layout(view), [h, w] = [layout.rows.n, layout.columns.n]
    const chosen = middleSlices(layout.slices.n), sample = new Float32Array(chosen.length * h * w)
    chosen.forEach((s, i) => cut(data, layout, s, sample.subarray(i * h * w, (i + 1) * h * w)))
    return {
      Scale: scale,
      DegradationFrom: estimated ? 'estimated' : 'nobody',
      Degradation: estimated ? wordsOf(found, scale, this.weights) : 'unknown',
      Unusual: outsideTrainingRange(normalised(sample, levels, h, w).inside, h, w, found, this.weights),
    }
  }
}

/** [first slice, number] of what is computed together: those at either end have other neighbours than the rest. */
function splitStack(count, reach, pixels) {
  const most = Math.max(1, Math.min(8, Math.floor(PART_PIXELS / pixels))), parts = []
  for (let s = 0; s < count;) {
    const inner = s >= reach && s < count - reach, n = inner ? Math.min(most, count - reach - s) : reach ? 1 : Math.min(most, count - s)
    parts.push([s, n])
    s += n
  }
  return parts
}

/** An error map (bytes) on a grid of other dims, from the nearest voxels: it is only looked at. */
function enlargedErrors(bytes, [x, y, z], [X, Y, Z]) {
  const out = new Uint8Array(X * Y * Z), columns = Int32Array.from({ length: X }, (_, i) => (i + 0.5) * x / X)
  for (let k = 0, o = 0; k < Z; k++) {
    for (let j = 0; j < Y; j++) {
      const row = (Math.floor((k + 0.5) * z / Z) * y + Math.floor((j + 0.5) * y / Y)) * x
      for (let i = 0; i < X; i++) out[o++] = bytes[row + columns[i]]
    }
  }
  return out
}

function add(bytes, more) {
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.min(255, bytes[i] + more[i])
}

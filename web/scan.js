// A picture or a scan: what its file stores, where it lies in space, and its slices (scans/scan.py). No DOM.
import { intensityRange } from './intensity.js'
import { resampledHeader } from './nifti.js'

export const PLANES = ['sagittal', 'coronal', 'axial'] // across the first, second and third axis of RAS

/** What is wrong with a file, in one line that says the way out. */
export class DataError extends Error {}

/**
 * name: of the file. stored: typed array, x fastest, dims: its three sizes (a picture: width, height, 1).
 * Intensities are stored * slope + inter. affine: 3 rows of 4, from voxels to mm in RAS; null: a picture.
 * header: the 348 bytes of NIfTI as DataView. levels: [black, white] where the file says so.
 * range: the same as found, once it was looked for. about: what is worth recording. warnings: lines for the user, of
 * this and of all that is made of it.
 */
export class Scan {
  constructor(parts) {
    Object.assign(this, { slope: 1, inter: 0, affine: null, header: null, levels: null, range: null, about: {}, warnings: [] }, parts)
  }

  get isPicture() { return !this.affine }

  /** For each own axis [the RAS axis it is nearest to, whether it runs backwards], as nibabel's io_orientation. */
  get orientation() { return this.isPicture ? null : orientation(this.affine) }

  /** For each of its axes the RAS axis it is nearest to: 0 right, 1 front, 2 up. */
  get axes() { return this.orientation.map(([axis]) => axis) }

  /** The voxel sizes in mm along its own axes. */
  get ownSizes() {
    return [0, 1, 2].map(j => Math.sqrt(this.affine.reduce((sum, row) => sum + row[j] * row[j], 0)))
  }

  /** The voxel sizes in mm along the axes nearest to right, front and up. */
  get sizes() {
    const { axes, ownSizes } = this
    return [0, 1, 2].map(axis => ownSizes[axes.indexOf(axis)])
  }

  /** All values in the scan's units, Float32Array; NaN and infinity become black, which is said. */
  intensities() {
    const data = new Float32Array(this.stored)
    this.scaled(data)
    let bad = 0
    for (let i = 0; i < data.length; i++) if (!Number.isFinite(data[i])) bad++
    if (bad) {
      const [black] = intensityRange(data)
      for (let i = 0; i < data.length; i++) if (!Number.isFinite(data[i])) data[i] = black
      const words = `${this.name}: ${bad} NaN or infinite values were set to black`
      if (!this.warnings.includes(words)) this.warnings.push(words)
    }
    return data
  }

  /** Stored values (Float32Array) to the scan's units, in place, in the steps of float32 that NumPy takes. */
  scaled(data) {
    const slope = Math.fround(this.slope), inter = Math.fround(this.inter)
    if (slope !== 1 || inter !== 0) for (let i = 0; i < data.length; i++) data[i] = Math.fround(data[i] * slope) + inter
    return data
  }

  /** [black, white]: the values of `intensities` that are 0 and 1 for a network. */
  blackAndWhite(data) { return this.levels ?? (this.range ??= intensityRange(data)) }

  /** What `toStored` needs to know, for a worker. */
  get units() { return { slope: this.slope, inter: this.inter, kind: this.kind.name } }

  /** The type of an enlarged scan's voxels: integers stay what they are, all else is float32. */
  get kind() { return this.stored.constructor === Float64Array ? Float32Array : this.stored.constructor }

  /** How the slices of a view [plane, rows and columns change places] lie in an array of these dims: where they
   * start, and number and step of slices, rows and columns. Upright: rows from the top or the front. */
  layout([plane, turned], dims = this.dims) {
    if (this.isPicture) {
      return { start: 0, slices: { n: 1, step: 0 }, rows: { n: dims[1], step: dims[0] }, columns: { n: dims[0], step: 1 } }
    }
    const across = PLANES.indexOf(plane), [a, b] = [0, 1, 2].filter(axis => axis !== across)
    const { orientation } = this, stride = [1, dims[0], dims[0] * dims[1]]
    let start = 0
    const along = (axis, reversed) => {
      const own = orientation.findIndex(([ras]) => ras === axis), n = dims[own], back = orientation[own][1] !== reversed
      if (back) start += (n - 1) * stride[own]
      return { n, step: back ? -stride[own] : stride[own], own }
    }
    const slices = along(across, false), columns = along(a, false), rows = along(b, true)
    return turned ? { start, slices, rows: columns, columns: rows } : { start, slices, rows, columns }
  }

  /** The axes (0 right, 1 front, 2 up) that lie down a slice of a view and across it. */
  rowAndColumn([plane, turned]) {
    const inside = [2, 1, 0].filter(axis => PLANES[axis] !== plane)
    return turned ? inside.reverse() : inside
  }

  /** The height of a pixel of a view divided by its width. */
  aspect(view) {
    if (this.isPicture) return 1
    const [rows, columns] = this.rowAndColumn(view)
    return this.sizes[rows] / this.sizes[columns]
  }

  /** How far the slices of a view are apart, in widths of their pixels; null: a picture. */
  distance(view) {
    return this.isPicture ? null : this.sizes[PLANES.indexOf(view[0])] / this.sizes[this.rowAndColumn(view)[1]]
  }

  /** The factor along each own axis of enlarging the slices of a view by scale [rows, columns]. */
  factors(view, scale) {
    if (this.isPicture) return [scale[1], scale[0], 1]
    const [rows, columns] = this.rowAndColumn(view)
    return this.axes.map(axis => axis === rows ? scale[0] : axis === columns ? scale[1] : 1)
  }

  /** The scan with other voxels, the outer edges of the grid where they were. */
  resampled(dims, stored, about = {}) {
    const changed = { ...this, dims, stored, about, range: null }
    if (!this.isPicture) {
      const factors = dims.map((n, i) => n / this.dims[i])
      Object.assign(changed, resampledHeader(this.header, this.affine, dims, stored, factors))
    }
    return new Scan(changed)
  }
}

/** See Scan.orientation. */
function orientation(affine) {
  const column = j => affine.map(row => row[j]), size = v => Math.sqrt(v.reduce((sum, x) => sum + x * x, 0)) || 1
  let turn = [0, 1, 2].map(column).map(v => v.map(x => x / size(v))) // columns
  const cross = ([a, b, c], [x, y, z]) => [b * z - c * y, c * x - a * z, a * y - b * x]
  for (let i = 0; i < 30; i++) { // the nearest rotation (Newton's iteration), for affines with shears
    const other = [cross(turn[1], turn[2]), cross(turn[2], turn[0]), cross(turn[0], turn[1])]
    const volume = turn[0].reduce((sum, x, k) => sum + x * other[0][k], 0)
    turn = turn.map((v, j) => v.map((x, k) => (x + other[j][k] / volume) / 2))
  }
  const found = [], taken = [], strength = turn.map(v => Math.max(...v.map(x => x * x)))
  for (const own of [0, 1, 2].sort((a, b) => strength[b] - strength[a])) {
    const free = turn[own].map((x, axis) => taken.includes(axis) ? -1 : Math.abs(x))
    const axis = free.indexOf(Math.max(...free))
    taken.push(axis)
    found[own] = [axis, turn[own][axis] < 0]
  }
  return found
}

/** Slice s of an array with this layout, copied into `out` (dense, of any type). */
export function cut(array, { start, slices, rows, columns }, s, out) {
  for (let r = 0, i = 0; r < rows.n; r++) {
    let at = start + s * slices.step + r * rows.step
    for (let c = 0; c < columns.n; c++, at += columns.step) out[i++] = array[at]
  }
  return out
}

/** A dense slice into place s of an array with this layout; half: half of it is added. */
export function fill(array, { start, slices, rows, columns }, s, values, half = false) {
  for (let r = 0, i = 0; r < rows.n; r++) {
    let at = start + s * slices.step + r * rows.step
    if (half) for (let c = 0; c < columns.n; c++, at += columns.step) array[at] += values[i++] / 2
    else for (let c = 0; c < columns.n; c++, at += columns.step) array[at] = values[i++]
  }
}

const LIMITS = {
  Uint8Array: [0, 255], Int8Array: [-128, 127], Uint16Array: [0, 65535], Int16Array: [-32768, 32767],
  Uint32Array: [0, 4294967295], Int32Array: [-2147483648, 2147483647],
}

/** The nearest whole number, halves to the even one, as NumPy rounds (below 2^51). */
export const rint = x => (x + 6755399441055744) - 6755399441055744

/** Values (Float32Array) in the scan's units as it stores them, in `out`: unscaled, rounded, cut off at the ends of
 * the type. out may be the values themselves. */
export function toStored(values, out, { slope = 1, inter = 0 }) {
  const limits = LIMITS[out.constructor.name], [by, less] = [Math.fround(slope), Math.fround(inter)]
  const plain = by === 1 && less === 0
  for (let i = 0; i < values.length; i++) {
    const value = plain ? values[i] : Math.fround(Math.fround(values[i] - less) / by)
    out[i] = limits ? Math.min(limits[1], Math.max(limits[0], rint(value))) : value
  }
  return out
}

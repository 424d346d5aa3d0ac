// A worker that runs the network, with one thread: one message in, one out. engine.js has several of them.
import * as ort from './vendor/ort.wasm.bundle.min.mjs'
import { withNeighbours } from './description.js'
import { expectedError } from './errormap.js'
import { normalised } from './intensity.js'
import { toStored } from './scan.js'

const TILE = 360 // LR pixels along an edge: longer ones are cut into tiles
const sessions = {}
let files = {}, weights = null

/** A network, made when it is first asked for. */
const session = file => sessions[file] ??= ort.InferenceSession.create(files[file], {
  executionProviders: ['wasm'], // what all files have in common lies in one:
  externalData: weights.shared ? [{ path: weights.shared, data: files[weights.shared] }] : [],
})

const tensor = (values, ...sizes) => new ort.Tensor('float32', values, sizes)

const work = {
  /** wasm: ONNX Runtime's, files: {name: ONNX}, as bytes that were fetched once for all workers. */
  async load(given) {
    ort.env.wasm.numThreads = 1 // several workers share the slices instead: needs no special headers
    ort.env.wasm.wasmBinary = given.wasm
    ;({ files, weights } = given)
    await session(Object.values(weights.files)[0])
    return {}
  },

  /** What is found of a slice of h x w raw values. */
  async describe({ file, slice, h, w, levels }) {
    const lr = tensor(normalised(slice, levels, h, w).inside, 1, 1, h, w)
    return { found: (await (await session(file)).run({ lr })).found.data }
  },

  /**
   * n slices enlarged. slices: raw values of these and of the neighbours that are there, h x w each; first: the
   * place of the first of the n among them, place: in the scan, which has count. found, distance: see withNeighbours.
   * units: see Scan.units; floats: results are left as they are, in the scan's units.
   */
  async enlarge({ file, scale, slices, first, n, place, count, h, w, levels, found, distance, units, floats, calibration }) {
    const { inside, beyond } = normalised(slices, levels, h, w), size = h * w, reach = weights.neighbours
    const lr = new Float32Array(n * (2 * reach + 1) * size)
    for (let i = 0, channel = 0; i < n; i++) {
      for (let k = -reach; k <= reach; k++, channel++) {
        if ((k && distance === null) || place + i + k < 0 || place + i + k >= count) continue // black
        lr.set(inside.subarray((first + i + k) * size, (first + i + k + 1) * size), channel * size)
      }
    }
    // Those of one message all have the same neighbours, see splitStack.
    const present = [-2, -1, 1, 2].map(k => Number(Math.abs(k) <= reach && place + k >= 0 && place + k < count))
    const description = withNeighbours(found, present, distance, weights)
    const { sr, errors } = await tiled(await session(file), lr, [n, 2 * reach + 1, h, w], description, scale)
    const missing = beyond && interpolated(beyond.subarray(first * size, (first + n) * size), n, h, w, scale)
    const black = Math.fround(levels[0]), white = Math.fround(levels[1] - levels[0])
    for (let i = 0; i < sr.length; i++) {
      let value = Math.max(sr[i], 0)
      if (missing) value = Math.fround(value + missing[i])
      sr[i] = Math.fround(value * white) + black
    }
    const values = floats ? sr : toStored(sr, new globalThis[units.kind](sr.length), units)
    return { values, errors: errors && expectedError(errors, calibration, found[weights.entries.noise]) }
  },
}

/** What a network gives, {sr, errors or undefined}, tile by tile where slices are large, see inference/tiling.py. */
async function tiled(network, lr, [n, c, h, w], description, [rows, columns]) {
  const given = tensor(description, 1, description.length)
  if (h <= TILE && w <= TILE) {
    const { sr, errors } = await network.run({ lr: tensor(lr, n, c, h, w), description: given })
    return { sr: sr.data, errors: errors?.data }
  }
  const margin = weights.receptive_radius + weights.receptive_radius % 2, all = {}
  for (let top = 0; top < h; top += TILE) {
    for (let left = 0; left < w; left += TILE) {
      const [y, x] = [Math.max(0, top - margin), Math.max(0, left - margin)]
      const [bottom, right] = [Math.min(h, top + TILE), Math.min(w, left + TILE)]
      const [high, wide] = [Math.min(h, bottom + margin) - y, Math.min(w, right + margin) - x]
      const part = new Float32Array(n * c * high * wide)
      copy(lr, [h, w, y, x], part, [high, wide, 0, 0], n * c, high, wide)
      const found = await network.run({ lr: tensor(part, n, c, high, wide), description: given })
      for (const [name, { data }] of Object.entries(found)) {
        all[name] ??= new Float32Array(n * h * rows * w * columns)
        const from = [high * rows, wide * columns, (top - y) * rows, (left - x) * columns]
        copy(data, from, all[name], [h * rows, w * columns, top * rows, left * columns], n, (bottom - top) * rows, (right - left) * columns)
      }
    }
  }
  return all
}

/** Copy `high` x `wide` values of n slices; each side as [height, width of its slices, first row, first column]. */
function copy(from, [h, w, y, x], to, [H, W, Y, X], n, high, wide) {
  for (let i = 0; i < n; i++) {
    for (let r = 0; r < high; r++) {
      const at = (i * h + y + r) * w + x
      to.set(from.subarray(at, at + wide), (i * H + Y + r) * W + X)
    }
  }
}

/** n slices (Float32Array) enlarged linearly. */
function interpolated(slices, n, h, w, [rows, columns]) {
  const out = new Float32Array(n * h * rows * w * columns)
  const taps = (size, factor) => Array.from({ length: size * factor }, (_, i) => {
    const place = (i + 0.5) / factor - 0.5, low = Math.floor(place)
    return [Math.max(0, low), Math.min(size - 1, low + 1), place - low]
  })
  const [down, across] = [taps(h, rows), taps(w, columns)]
  for (let i = 0, o = 0; i < n; i++) {
    for (const [above, below, dy] of down) {
      const [a, b] = [(i * h + above) * w, (i * h + below) * w]
      for (const [left, right, dx] of across) {
        out[o++] = (1 - dy) * ((1 - dx) * slices[a + left] + dx * slices[a + right])
          + dy * ((1 - dx) * slices[b + left] + dx * slices[b + right])
      }
    }
  }
  return out
}

onmessage = async ({ data }) => {
  try {
    const result = await work[data.what](data)
    postMessage(result, Object.values(result).flatMap(x => x ? [x.buffer] : []))
  } catch (error) {
    postMessage({ error: String(error.message ?? error) })
  }
}

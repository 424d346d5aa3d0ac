// What the page draws: a slice of the result, and the same place of the input. No DOM.
import { ERROR_STEP } from './errormap.js'
import { cut } from './scan.js'

const FULL = 0.1 // of white: expected errors from here on have the full colour

/** Slice s of a plane as {before, after} and `tall`, the height of both divided by their width. smooth: between slices
 * of the input is interpolated; errors: the expected errors in colour over the result. */
export function viewOf({ scan, result, levels }, { plane, s, smooth, errors }) {
  const view = [plane, false], layout = result.layout(view), { rows, columns } = layout
  const own = scan.layout(view).slices.n, place = (s + 0.5) * own / layout.slices.n - 0.5
  const low = smooth ? Math.floor(place) : Math.round(place), part = smooth ? place - low : 0
  const [a, b] = [low, low + 1].map(k => sliceOf(scan, view, Math.min(own - 1, Math.max(0, k))))
  for (let i = 0; i < a.values.length; i++) a.values[i] += part * (b.values[i] - a.values[i])
  const before = painted(a, levels), after = painted(sliceOf(result, view, s), levels)
  if (errors && result.errors) colour(after.pixels, cut(result.errors, layout, s, new Uint8Array(rows.n * columns.n)))
  return { before, after, tall: rows.n * result.aspect(view) / columns.n }
}

/** Slice s of a view of a scan, in its units: {values, h, w}. */
function sliceOf(scan, view, s) {
  const layout = scan.layout(view), [h, w] = [layout.rows.n, layout.columns.n]
  return { values: scan.scaled(cut(scan.stored, layout, s, new Float32Array(h * w))), h, w }
}

/** A slice as grey RGBA between [black, white]: {pixels, h, w}. */
function painted({ values, h, w }, [black, white]) {
  const pixels = new Uint32Array(h * w), by = 255 / (white - black)
  for (let i = 0; i < pixels.length; i++) {
    const grey = Math.min(255, Math.max(0, (values[i] - black) * by + 0.5)) | 0
    pixels[i] = 0xff000000 | grey << 16 | grey << 8 | grey
  }
  return { pixels: new Uint8ClampedArray(pixels.buffer), h, w }
}

/** Expected errors (bytes of ERROR_STEP) over RGBA, in orange. */
function colour(pixels, errors) {
  for (let i = 0, j = 0; i < errors.length; i++, j += 4) {
    const share = 0.85 * Math.min(1, errors[i] * ERROR_STEP / FULL)
    pixels[j] += share * (255 - pixels[j])
    pixels[j + 1] += share * (130 - pixels[j + 1])
    pixels[j + 2] -= share * pixels[j + 2]
  }
}

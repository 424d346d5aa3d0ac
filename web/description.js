// How slices were made, as numbers and in words (degradation.py, inference/upscaler.py). No DOM.
// What is fixed comes from the JSON that export.py writes beside the network: `weights`.
import { g } from './plan.js'
import { rint } from './scan.js'

/** [4, 4] as `4`, [4, 1] as `4x1`. */
export const scaleName = ([rows, columns]) => rows === columns ? `${rows}` : `${rows}x${columns}`

/** What was found (Float32Array) with what is known of the neighbours of a slice: present, four times 0 or 1, and the
 * distance of slices in widths of their pixels, or null: they have nothing to do with one another. */
export function withNeighbours(found, present, distance, { entries }) {
  const full = new Float32Array(entries.all)
  full.set(found)
  if (distance === null) return full
  full.set(present, entries.found)
  full[entries.found + 4] = Math.log2(Math.max(distance, 0.05)) / 3
  return full
}

/** What a description (Float32Array) says: `blurred by 1.4 pixels, noise 2 %, no compression`. */
export function wordsOf(found, scale, { candidates, entries }) {
  const { words: names, described } = candidates[scaleName(scale)]
  const apart = described.map(line => line.split(' ').reduce((sum, x, i) => sum + (x - found[i]) ** 2, 0))
  const words = [names[apart.indexOf(Math.min(...apart))]]
  const noise = 0.1 * (10 ** (2 * Math.max(0, found[entries.noise])) - 1) // in per cent
  words.push(noise >= 0.3 ? `noise ${Number(noise.toPrecision(1))} %` : 'hardly any noise')
  const quality = 100 - 50 * found[entries.jpeg]
  words.push(quality < 92 ? `compressed like JPEG ${quality.toFixed()}` : 'no compression')
  if (found[entries.denoised] > 0.5) words.push('denoised')
  return words.join(', ')
}

/** Which of the slices of a scan speak for all of them: up to eight of its middle, evenly spaced. */
export function middleSlices(count, most = 8) {
  const shares = Array.from({ length: most }, (_, i) => i === most - 1 ? 0.7 : i * ((0.7 - 0.3) / (most - 1)) + 0.3) // as numpy.linspace
  return [...new Set(shares.map(share => rint(share * (count - 1))))]
}

/** What sets slices (Float32Array of h x w each, 0 to 1) apart from all training slices; '' for nothing. */
export function outsideTrainingRange(lr, h, w, found, { entries }) {
  const signs = [], levels = new Set()
  for (const value of lr) levels.add(rint(Math.fround(value * 255)))
  if (Math.min(h, w) < 24) signs.push(`only ${g(w)}x${g(h)} pixels`)
  if (levels.size < 24) signs.push(`only ${levels.size} grey levels`)
  if (found[entries.noise] > Math.log10(1 + 140) / 2) signs.push('noise beyond 14 %')
  return signs.join(', ')
}

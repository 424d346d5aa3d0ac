// Expected errors: what the error head of a network says, made right by its calibration (inference/error_map.py). No DOM.

const STEPS = 4096 // of the table of factors
const [QUIET, LOUD] = [0.005, 0.02].map(noise => Math.log10(1 + noise / 0.001) / 2) // as descriptions have it
export const ERROR_STEP = 1 / 1024 // of white: a step of an error map in bytes

/** The calibrated expected absolute errors, as bytes of ERROR_STEP, of what the head says (Float32Array).
 * calibration: {edges (logarithms), factors, noisy}; noise: the description's entry. */
export function expectedError(expected, { edges, factors, noisy }, noise) {
  const share = Math.min(1, Math.max(0, (noise - QUIET) / (LOUD - QUIET)))
  const mixed = factors.map((factor, i) => factor + share * (noisy[i] - factor))
  const first = edges[0], width = Math.max(edges[edges.length - 1] - first, 1e-6), table = new Float32Array(STEPS)
  for (let i = 0, k = 0; i < STEPS; i++) {
    const place = first + width * i / (STEPS - 1)
    while (k < edges.length - 2 && place > edges[k + 1]) k++
    const part = Math.min(1, Math.max(0, (place - edges[k]) / (edges[k + 1] - edges[k])))
    table[i] = mixed[k] + part * (mixed[k + 1] - mixed[k])
  }
  const out = new Uint8Array(expected.length)
  for (let i = 0; i < out.length; i++) {
    const place = Math.round((Math.log(expected[i]) - first) * (STEPS - 1) / width)
    const error = expected[i] * table[Math.min(STEPS - 1, Math.max(0, place))]
    out[i] = Math.min(255, Math.round(error / ERROR_STEP))
  }
  return out
}

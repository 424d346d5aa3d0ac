// Where a result comes from: the JSON beside each (inference/sidecar.py). No DOM.
import { g } from './plan.js'

/** The record of a result, as predict.py writes it: file, the scan and the result, and the call that does the same. */
export async function recordOf({ file, scan, result, wish, command, name, weights }) {
  const options = { scale: wish.scale, through_plane: wish.throughPlane, voxel_size: wish.voxelSize }
  const about = {
    Description: `Super-resolution of a brain MRI ${scan.isPicture ? 'picture' : 'volume'}: ${result.about.Plan}`,
    Sources: [file.name],
    SourceSHA256: await digestOf(file),
    Series: '',
    WeightsSHA256: weights.sha256,
    Options: options,
    GeneratedBy: [{ Name: weights.program, Version: weights.version, Description: 'its page in a browser' }],
    Command: command,
    Weights: weights.weights,
    WeightsTrainedOn: weights.trained_on,
    ...Object.fromEntries(Object.entries(result.about).filter(([, value]) => value)),
    ProjectedOntoInput: false,
  }
  if (!scan.isPicture) {
    const sizes = [scan, result].map(x => x.ownSizes)
    ;[about.VoxelSizeBefore, about.VoxelSizeAfter] = sizes.map(x => x.map(size => Number(size.toFixed(6))))
    const [before, after] = sizes.map(x => `${x.map(size => g(size, 3)).join(' x ')} mm`)
    about.Resolution = `voxels of ${after} made from ${before}`
    const stripped = isStripped(scan)
    if (stripped !== null) about.SkullStripped = stripped
  }
  return { ...about, Warnings: result.warnings, Results: [name] }
}

/** The SHA-256 of a file's bytes; undefined where a browser has none (pages without https). */
async function digestOf(file) {
  const digest = await globalThis.crypto.subtle?.digest('SHA-256', await file.arrayBuffer())
  return digest && [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, '0')).join('')
}

/** Whether all but the brain is zero: most of a scan is, and the rest would fill no head. null: of some slices
 * nobody can tell. */
function isStripped({ stored, dims, ownSizes }) {
  const extent = dims.map((n, i) => n * ownSizes[i])
  if (Math.min(...extent) < 100) return null
  let zeros = 0
  for (let i = 0; i < stored.length; i++) zeros += stored[i] === 0
  const empty = zeros / stored.length
  return empty > 0.5 && (1 - empty) * extent.reduce((a, b) => a * b) / 1e6 < 2
}

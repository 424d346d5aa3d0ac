// The worker behind the page: files to results, so that the page itself never waits.
import { viewOf } from './compare.js'
import { CALL, isLabels, kindOf, plainName } from './files.js'
import { readVolume, writeVolume } from './nifti.js'
import { choicesOf, commandOf, labelOf, planOf } from './plan.js'
import { readPicture, writePicture } from './png.js'
import { DataError, PLANES } from './scan.js'
import { recordOf } from './sidecar.js'
import { viewsAcross } from './throughplane.js'
import { Stopped, Upscaler } from './upscale.js'
import { answerOf, Pool, workerOf } from './workers.js'

let upscaler, largest // bytes that a scan, its result and what lies between may take
let job = {}, shown = null // shown: {scan, result, levels} of the page's picture

/** Workers with all that they will need. wasm, files: bytes; weights: the JSON beside them. */
async function start({ wasm, files, weights, workers, memory }) {
  const all = Array.from({ length: workers }, () => workerOf(new URL('./net.js', import.meta.url)))
  await Promise.all(all.map(worker => answerOf(worker, { what: 'load', wasm, files, weights })))
  upscaler = new Upscaler(new Pool(all), weights)
  largest = memory
}

/** Bytes that it takes to enlarge voxels of so many bytes, at the worst moment: one of them a voxel for the errors. */
function memoryOf(dims, bytes, { scale, through, voxelSize }) {
  const voxels = dims.reduce((a, b) => a * b), first = voxels * scale ** 2, all = first * through
  const mean = through > 1 ? 4 * first + (bytes === 4 ? 5 : 5 + bytes) * all : 0
  return voxels * (bytes + 4) + first * (bytes + 1) * (scale > 1) + mean + (voxelSize ? 12 * all : 0)
}

/** Refuse what is too large for the page. */
function checkMemory(dims, bytes, plan = { scale: 1, through: 1 }) {
  const needed = memoryOf(dims, bytes, plan), GB = x => (x / 1e9).toFixed(1)
  if (needed <= largest) return
  throw new DataError(`is too large for this page: ${dims.join(' x ')} voxels take ${GB(needed)} GB of memory, here ${GB(largest)} GB can be used; call`)
}

/** A file to its result: messages tell the page how far it is. wish: see planOf. */
async function enlarge(file, wish) {
  const kind = await kindOf(file), check = (dims, bytes) => checkMemory(dims, bytes)
  const scan = kind === 'picture' ? await readPicture(file) : await readVolume(file, check)
  if (isLabels(scan)) throw new DataError('looks like a mask or a segmentation: labels have no finer detail that could be found; all the same, call')
  const { weights } = upscaler
  postMessage({ choices: choicesOf(scan, weights.scales) })
  const plan = planOf(scan, weights.scales, wish)
  checkMemory(scan.dims, scan.stored.BYTES_PER_ELEMENT, plan)
  postMessage({ plan: plan.words.replace(/^x(\d)/, 'pictures do not say how large their pixels are: these become $1 times as fine') })
  if (shown?.result.stored.byteLength > 2 ** 27) shown = null // two large ones are too many
  const begun = performance.now(), result = await upscaler.follow(plan, scan, job)
  if (plan.words.includes('a guess') && !scan.isPicture) result.warnings.push(`${file.name}: finer than anything measured, a guess`)
  const { Unusual: unusual } = result.about
  if (unusual) result.warnings.push(`${file.name}: unlike all images that the network learned from (${unusual}); check it`)
  shown = { scan, result, levels: scan.levels ?? scan.range ?? scan.blackAndWhite(scan.intensities()) }
  const name = `${plainName(file.name)}_${labelOf(plan)}`, full = name + (scan.isPicture ? '.png' : '.nii.gz')
  postMessage({ done: { ...summary(scan, result, plan), name: full, seconds: (performance.now() - begun) / 1000 } })
  const packed = share => { if (job.stopped) throw new Stopped(); postMessage({ packed: share }) }
  const blob = await (scan.isPicture ? writePicture(result) : writeVolume(result, packed))
  const record = await recordOf({ file, scan, result, wish, command: commandOf(file.name, wish), name: full, weights })
  const json = new Blob([`${JSON.stringify(record, null, 2)}\n`], { type: 'application/json' })
  postMessage({ saved: { blob, name: full, json, jsonName: `${name}.json` } })
}

/** What the page says and draws of a result. planes: {name: number of slices}; plane: where most can be seen. */
function summary(scan, result, plan) {
  const planes = scan.isPicture ? ['axial'] : [...PLANES].reverse()
  const plane = plan.through > 1 ? viewsAcross(plan.plane)[0][0] : plan.plane
  return {
    found: result.about.DegradationFrom === 'estimated' ? result.about.Degradation : '', warnings: result.warnings, plane,
    planes: Object.fromEntries(planes.map(name => [name, result.layout([name, false]).slices.n])),
    errors: Boolean(result.errors), picture: scan.isPicture,
  }
}

/** What went wrong, for the page: one line, with the call of predict.py where that is the way out. */
function wordsOf(error, file, wish) {
  if (error instanceof DataError) return error.message.replace(CALL, ` python ${commandOf(file.name, wish)}`)
  if (error instanceof RangeError || /memory|allocat/i.test(error.message)) {
    return `is too large for the memory that this browser has left; python ${commandOf(file.name, wish)}`
  }
  return `cannot be done (${error.message || error})`
}

onmessage = async ({ data: { begin, file, wish = {}, stop, view } }) => {
  if (stop) job.stopped = true
  if (view && shown) {
    const drawn = viewOf(shown, view)
    postMessage({ view: drawn }, [drawn.before.pixels.buffer, drawn.after.pixels.buffer])
  }
  if (begin) await start(begin).then(() => postMessage({ ready: true }), error => postMessage({ failed: error.message }))
  if (file) {
    let last = 0
    job = { progress: share => { if (performance.now() > last + 100) { last = performance.now(); postMessage({ progress: share }) } } }
    await enlarge(file, wish).catch(error => {
      postMessage(error instanceof Stopped ? { stopped: true } : { error: wordsOf(error, file, wish) })
    })
  }
}

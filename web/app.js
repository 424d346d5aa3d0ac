// The page: takes files, shows how far they are, saves. The work is done behind it, in engine.js.
import { Viewer } from './viewer.js'
import { workerOf } from './workers.js'

const $ = id => document.getElementById(id)
const MB = bytes => bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`
const touch = matchMedia('(pointer: coarse)').matches, phone = touch && Math.min(screen.width, screen.height) < 600
const memory = phone ? 3e8 : touch || navigator.deviceMemory < 4 ? 6e8 : 1.2e9 // bytes, see memoryOf in engine.js
const cores = Math.min(phone ? 2 : 4, navigator.hardwareConcurrency || 2) // each takes 0.15 GB
const workers = Number(new URLSearchParams(location.search).get('workers')) || cores

let engine, example, ready = false, broken = false
let queue = [], job = null, busy = false // jobs: {file, wish}; job: the one under way, or done last
let last = null, begun = 0 // last: what its links save, or what is said of it

// --- loading --------------------------------------------------------------------------------------

/** The bytes of a file of this site. loaded(n): n more bytes came. */
async function bytesOf(url, loaded) {
  const answer = await fetch(new URL(url, import.meta.url))
  if (!answer.ok) throw new Error(`${url} is missing${url.includes('/vendor/') ? '; call npm ci --prefix web first' : ''}`)
  const counted = new TransformStream({ transform(part, control) { loaded(part.length); control.enqueue(part) } })
  return new Response(answer.body.pipeThrough(counted)).arrayBuffer()
}

/** All that will ever be needed comes now. Then the page forbids itself any connection, and so do the workers, which
 * are made after that. */
async function start() {
  let sum = 0
  const loaded = n => { sum += n; if (!queue.length) say(`Loading, once: ${MB(sum)} …`) }
  const weights = JSON.parse(new TextDecoder().decode(await bytesOf('./weights/brain.json', loaded)))
  const names = [...new Set([...Object.values(weights.describe ?? {}), ...Object.values(weights.files), weights.shared])].filter(Boolean)
  const urls = ['./vendor/ort-wasm-simd-threaded.wasm', './vendor/thick.nii.gz', ...names.map(name => `./weights/${name}`)]
  const [wasm, thick, ...models] = await Promise.all(urls.map(url => bytesOf(url, loaded)))
  example = new File([thick], 'thick.nii.gz')
  const rule = document.createElement('meta')
  Object.assign(rule, { httpEquiv: 'Content-Security-Policy', content: "connect-src 'none'" })
  document.head.append(rule)
  engine = workerOf(new URL('./engine.js', import.meta.url))
  engine.onerror = event => fail(event.message)
  engine.onmessage = ({ data }) => { for (const [what, value] of Object.entries(data)) told[what](value) }
  const files = Object.fromEntries(names.map((name, i) => [name, models[i]]))
  engine.postMessage({ begin: { wasm, files, weights, workers, memory } }, [wasm, ...models])
}

const say = words => { if (!broken) $('status').textContent = words }
const fail = words => {
  say(`This page cannot work here: ${words || 'the browser is too old'}.`)
  broken = true // nothing that comes later takes the place of this
}

// --- what the engine tells ------------------------------------------------------------------------

const told = {
  failed: fail,
  ready() {
    ready = true
    tellQueue()
    next()
  },
  choices: showChoices,
  plan(words) { $('plan').textContent = `${capital(words)}.`; $('left').textContent = 'Looking at it …' },
  progress(share) {
    $('progress').value = share
    if (job.stopping) return
    const left = (performance.now() - begun) / 1000 * (1 / share - 1)
    $('left').textContent = share > 0.02 ? `About ${left < 90 ? `${Math.ceil(left)} s` : `${Math.round(left / 60)} min`} left` : ''
  },
  done({ seconds, found, warnings, ...summary }) {
    outcome(`Done in ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s.${found ? ` Found: ${found}.` : ''}`)
    $('warnings').replaceChildren(...warnings.map(words => Object.assign(document.createElement('li'), { textContent: words })))
    $('warnings').hidden = !warnings.length
    $('result').hidden = false
    for (const id of ['save-result', 'save-record']) $(id).classList.add('waiting')
    viewer.open(summary)
  },
  packed(share) { $('save-result').textContent = `Preparing the file, ${Math.round(100 * share)} % …` },
  saved(files) {
    last = files
    link($('save-result'), files.blob, files.name, `Save ${files.name} (${MB(files.blob.size)})`)
    link($('save-record'), files.json, files.jsonName, 'Save how it was made (.json)')
    finish()
  },
  view(picture) { viewer.draw(picture) },
  error(words) {
    const said = `${capital(words.replace(/^(?=(is|has|holds|looks|says|cannot) )/, 'it '))}.`
    outcome(said, true)
    last = { name: job.file.name, said }
    $('choice').open = !$('choice').hidden
    finish()
  },
  stopped() { outcome('Stopped.'); finish() },
}

const capital = words => words[0].toUpperCase() + words.slice(1)

/** Say how a file ended. */
function outcome(words, bad = false) {
  $('running').hidden = true
  $('outcome').textContent = words
  $('outcome').className = bad ? 'error' : ''
}

/** Make a link save a blob. */
function link(anchor, blob, name, words) {
  Object.assign(anchor, { href: URL.createObjectURL(blob), download: name, textContent: words })
  anchor.classList.remove('waiting')
}

/** What can be asked for instead: {scales, throughPlane} (factors), voxelSize: whether one can be. */
function showChoices({ scales, throughPlane, voxelSize }) {
  const options = [['{}', 'automatic'], ...scales.map(n => [`{"scale":${n}}`, `pixels ${n} times as fine`]),
    ...throughPlane.map(n => [`{"throughPlane":${n}}`, `${n} thin slices of each`]),
    ...voxelSize ? [['size', 'equal voxels, all around']] : []]
  $('wish').replaceChildren(...options.map(([value, words]) => new Option(words, value)))
  $('wish').value = job.wish.voxelSize ? 'size' : JSON.stringify(job.wish)
  $('wish').oninput()
  $('choice').hidden = false
}

// --- one file after the other ---------------------------------------------------------------------

/** Put files behind those that wait. */
function take(files) {
  queue.push(...[...files].map(file => ({ file, wish: {} })))
  if (busy || !ready) tellQueue()
  next()
}

/** Take what was dropped; of a folder nothing can be read here. */
function drop({ files, items }) {
  const isFolder = i => items[i]?.webkitGetAsEntry?.()?.isDirectory
  const [folders, rest] = [true, false].map(wanted => [...files].filter((_, i) => Boolean(isFolder(i)) === wanted))
  for (const { name } of folders) keep({ name, said: 'It is a folder: drop the files in it. DICOM must become NIfTI first, by dcm2niix or MRIcroGL (free); predict.py takes the folder as it is.' })
  take(rest)
}

/** Begin the next one, if none is under way. */
function next() {
  if (!ready || busy || !queue.length) return
  job = queue.shift()
  busy = true
  begun = performance.now()
  if (last) keep(last)
  last = null
  $('name').textContent = job.file.name
  $('plan').textContent = $('outcome').textContent = $('outcome').className = ''
  $('left').textContent = 'Reading …'
  $('progress').removeAttribute('value')
  $('choice').open = false
  for (const id of ['result', 'warnings', 'choice']) $(id).hidden = true
  for (const id of ['work', 'running']) $(id).hidden = false
  $('drop').classList.add('used')
  $('work').scrollIntoView({ block: 'nearest' })
  engine.postMessage(job)
  tellQueue()
}

/** The one under way has ended. */
function finish() {
  busy = false
  tellQueue()
  next()
}

const refused = { said: '', count: 0, row: null } // what was said of the last file, if it came to nothing

/** Keep the files of a result whose picture makes room for another, or why there is none; once for many alike. */
function keep({ name, said, blob, json, jsonName }) {
  if (said && said === refused.said) {
    refused.row.textContent = `${name} and ${refused.count++} more: ${said}`
    return
  }
  const row = document.createElement('li'), [result, record] = [document.createElement('a'), document.createElement('a')]
  Object.assign(refused, { said, count: 1, row })
  if (said) row.append(`${name}: ${said}`)
  else {
    link(result, blob, name, name)
    link(record, json, jsonName, 'how it was made')
    row.append(result, ', ', record)
  }
  $('results').prepend(row)
  $('earlier').hidden = false
}

/** Say what waits. */
function tellQueue() {
  const waiting = queue.length > 1 ? `${queue.length} files wait. ` : queue.length ? '1 file waits. ' : ''
  say(waiting + (!ready ? 'Loading …' : queue.length ? '' : 'Ready. It now works without the internet.'))
}

$('wish').oninput = () => { $('size-label').hidden = $('wish').value !== 'size' }
$('again').onclick = () => {
  const wish = $('wish').value === 'size' ? { voxelSize: Number($('size').value) } : JSON.parse($('wish').value)
  queue.unshift({ file: job.file, wish })
  if (busy) engine.postMessage({ stop: true })
  else next()
}
$('stop').onclick = () => {
  queue = []
  job.stopping = true
  $('left').textContent = 'Stopping …'
  engine.postMessage({ stop: true })
}
$('file').onchange = ({ target }) => { take(target.files); target.value = '' }
$('example').onclick = () => example && take([example])
for (const [kind, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  document.addEventListener(kind, event => {
    event.preventDefault()
    $('drop').classList.toggle('over', over)
    if (kind === 'drop') drop(event.dataTransfer)
  })
}
window.addEventListener('beforeunload', event => { if (busy) event.preventDefault() })
if (touch) $('hint').textContent = 'Drag over the picture for the line; the sliders are for other slices, too.'
if (phone) $('device').textContent = ' A phone can do pictures, and scans whose result has up to about 30 million voxels; keep the page open meanwhile.'
const viewer = new Viewer(view => engine.postMessage({ view }))
start().catch(error => fail(error.message))

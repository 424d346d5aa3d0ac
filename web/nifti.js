// NIfTI-1 files (.nii, .nii.gz) to scans and back, header for header what nibabel makes of them. No DOM.
import { DataError, Scan } from './scan.js'

const TYPES = {
  2: Uint8Array, 256: Int8Array, 512: Uint16Array, 4: Int16Array, 768: Uint32Array, 8: Int32Array,
  16: Float32Array, 64: Float64Array,
}
const UNREAD = { 32: 'complex numbers', 1792: 'complex numbers', 128: 'colours', 2304: 'colours', 1024: 'integers of 64 bits', 1280: 'integers of 64 bits' }
const SROWS = [280, 296, 312], OFFSETS = [268, 272, 276] // bytes of the header
const isLittle = header => { const n = header.getInt16(40, true); return n >= 0 && n <= 7 }

/** A stream of bytes, read piece by piece into arrays of known sizes. */
class Reader {
  constructor(stream) { Object.assign(this, { reader: stream.getReader(), left: new Uint8Array() }) }
  /** Fill an array of bytes; gives how many there were. */
  async into(bytes) {
    let at = 0
    while (at < bytes.length) {
      if (!this.left.length) {
        const { done, value } = await this.reader.read()
        if (done) break
        this.left = value
      }
      const part = this.left.subarray(0, bytes.length - at)
      bytes.set(part, at)
      at += part.length
      this.left = this.left.subarray(part.length)
    }
    return at
  }
}

/** The first bytes of a file (Blob), unpacked if it is gzipped; as many as there are. */
export async function firstBytes(file, count = 352) {
  const bytes = new Uint8Array(count)
  return bytes.subarray(0, await new Reader(await unpacked(file)).into(bytes).catch(() => 0))
}

/** A file (Blob) as a stream, through gzip if it is gzipped. */
async function unpacked(file) {
  const [a, b] = new Uint8Array(await file.slice(0, 2).arrayBuffer())
  return a === 0x1f && b === 0x8b ? file.stream().pipeThrough(new DecompressionStream('gzip')) : file.stream()
}

/** Read a NIfTI file (File). fits(dims, bytes a voxel): asked before memory is taken, throws if not. */
export async function readVolume(file, fits) {
  const reader = new Reader(await unpacked(file)), bytes = new Uint8Array(348)
  const damaged = () => { throw new DataError('is damaged, or cut short') }
  if (await reader.into(bytes).catch(damaged) < 348) damaged()
  const header = new DataView(bytes.buffer), little = isLittle(header)
  const i16 = at => header.getInt16(at, little), f32 = at => header.getFloat32(at, little)
  const type = i16(70), Kind = TYPES[type]
  if (!Kind) throw new DataError(`holds ${UNREAD[type] ?? `values of type ${type}`}; this page reads plain grey values${[1024, 1280].includes(type) ? '; call' : ''}`)
  const dims = shapeOf(Array.from({ length: i16(40) }, (_, i) => i16(42 + 2 * i)))
  let [slope, inter] = [f32(112), f32(116)]
  if (!Number.isFinite(slope) || slope === 0) [slope, inter] = [1, 0]
  if (!Number.isFinite(inter)) throw new DataError('has a slope, but no intercept; its values mean nothing')
  checked(header, little)
  let affine = bestAffine(header, little, dims)
  if (!isUsable(affine) && header.getInt16(254, little) && header.getInt16(252, little)) {
    header.setInt16(254, 0, little)
    affine = bestAffine(header, little, dims)
  }
  if (!isUsable(affine)) throw new DataError('has no usable position and voxel size; to take 1 mm for it call')
  const unit = { 1: 1000, 3: 0.001 }[header.getUint8(123) & 7] ?? 1 // metres, micrometres
  affine = affine.map(row => row.map(x => x * unit))
  fits(dims, Kind.BYTES_PER_ELEMENT)
  const stored = new Kind(dims[0] * dims[1] * dims[2])
  const start = Math.max(352, f32(108) || 0)
  await reader.into(new Uint8Array(start - 348)).catch(damaged)
  if (await reader.into(new Uint8Array(stored.buffer)).catch(damaged) < stored.byteLength) damaged()
  reader.reader.cancel()
  if (!little) swapBytes(stored)
  return new Scan({ name: file.name, stored, dims, slope, inter, affine, header })
}

/** Three sizes of what a header says; DataError for several volumes and nonsense. */
function shapeOf(dims) {
  while (dims.length > 3 && dims[dims.length - 1] === 1) dims.pop()
  if (dims.length < 2 || dims.some(n => n < 1)) throw new DataError(`has shape ${dims.join(' x ')}, which makes no sense`)
  if (dims.length > 3) throw new DataError(`holds ${dims.slice(3).reduce((a, b) => a * b)} volumes; this page takes a scan of one; for all call`)
  while (dims.length < 3) dims.push(1)
  return dims
}

/** Mend a header as nibabel does when it reads one. */
function checked(header, little) {
  const f32 = at => header.getFloat32(at, little)
  header.setInt32(0, 348, little)
  if (Math.abs(f32(76)) !== 1) header.setFloat32(76, 1, little)
  for (const at of [80, 84, 88]) header.setFloat32(at, Math.abs(f32(at)) || 1, little)
  for (const at of [252, 254]) { // codes of qform and sform
    const code = header.getInt16(at, little)
    if (code < 0 || code > 5) header.setInt16(at, 0, little)
  }
}

/** Whether an affine says where the voxels are and which way each axis runs. */
function isUsable([a, b, c]) {
  const volume = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
  return [...a, ...b, ...c].every(x => Math.abs(x) < 1e9) && Math.abs(volume) > 1e-9
}

function swapBytes(array) {
  const n = array.BYTES_PER_ELEMENT, bytes = new Uint8Array(array.buffer)
  for (let i = 0; n > 1 && i < bytes.length; i += n) {
    for (let a = i, b = i + n - 1; a < b; a++, b--) {
      const byte = bytes[a]
      bytes[a] = bytes[b]
      bytes[b] = byte
    }
  }
}

/** The qform of a header, 3 rows of 4; null if its numbers are no rotation. */
function qform(header, little) {
  const f32 = at => header.getFloat32(at, little), [x, y, z] = [256, 260, 264].map(f32)
  let rest = 1 - (x * x + y * y + z * z)
  if (Math.abs(rest) < 3 * 2 ** -23) rest = 0
  if (rest < 0) return null
  const w = Math.sqrt(rest), s = 2 / (w * w + x * x + y * y + z * z), [X, Y, Z] = [x * s, y * s, z * s]
  const turn = [
    [1 - (y * Y + z * Z), x * Y - w * Z, x * Z + w * Y],
    [x * Y + w * Z, 1 - (x * X + z * Z), y * Z - w * X],
    [x * Z - w * Y, y * Z + w * X, 1 - (x * X + y * Y)],
  ]
  const size = [f32(80), f32(84), f32(88) * f32(76)]
  return turn.map((row, i) => [...row.map((value, j) => value * size[j]), f32(OFFSETS[i])])
}

const sform = (header, little) => SROWS.map(row => [0, 4, 8, 12].map(i => header.getFloat32(row + i, little)))

/** From voxels to mm: the sform, else the qform, else what the voxel sizes alone say. */
function bestAffine(header, little, dims) {
  if (header.getInt16(254, little)) return sform(header, little)
  if (header.getInt16(252, little)) {
    const found = qform(header, little)
    if (!found) throw new DataError('says nonsense about its position (qform)')
    return found
  }
  const [x, y, z] = [80, 84, 88].map(at => header.getFloat32(at, little))
  return [[-x, 0, 0, x * (dims[0] - 1) / 2], [0, y, 0, -y * (dims[1] - 1) / 2], [0, 0, z, -z * (dims[2] - 1) / 2]]
}

/** {header, affine} of voxels that are these factors finer along the scan's own axes, the outer edges where they were. */
export function resampledHeader(before, affine, dims, stored, factors) {
  const header = new DataView(before.buffer.slice(0)), little = isLittle(before)
  const f32 = (at, value) => header.setFloat32(at, value, little), i16 = (at, value) => header.setInt16(at, value, little)
  // Voxel j is centred on old voxel (j + 0.5) / factor - 0.5.
  const moved = matrix => matrix.map(row => [
    ...factors.map((factor, j) => row[j] / factor),
    factors.reduce((sum, factor, j) => sum + row[j] * (1 / factor - 1) / 2, 0) + row[3],
  ])
  const turned = before.getInt16(252, little) ? qform(before, little) : null
  if (turned) moved(turned).forEach((row, r) => f32(OFFSETS[r], row[3]))
  else i16(252, 0)
  if (before.getInt16(254, little)) moved(sform(before, little)).forEach((row, r) => row.forEach((x, j) => f32(SROWS[r] + 4 * j, x)))
  ;[3, ...dims, 1, 1, 1, 1].forEach((n, i) => i16(40 + 2 * i, n))
  factors.forEach((factor, i) => f32(80 + 4 * i, before.getFloat32(80 + 4 * i, little) / factor))
  for (let at = 92; at < 108; at += 4) f32(at, 1)
  i16(70, Number(Object.keys(TYPES).find(type => TYPES[type] === stored.constructor)))
  i16(72, 8 * stored.BYTES_PER_ELEMENT)
  const across = (header.getUint8(39) >> 4) & 3
  if (across && factors[across - 1] !== 1) { // the timing of slices no longer holds
    i16(74, 0)
    i16(120, 0)
    header.setUint8(122, 0)
    f32(132, 0)
  }
  return { header, affine: moved(affine) }
}

/** A scan as a .nii.gz file (Blob); `packed(share)` is called on the way and may throw to stop it. */
export async function writeVolume({ header, stored, slope, inter }, packed = () => {}) {
  const head = new Uint8Array(352), view = new DataView(head.buffer), little = isLittle(header)
  head.set(new Uint8Array(header.buffer))
  view.setFloat32(108, 352, little)
  view.setFloat32(112, slope, little)
  view.setFloat32(116, inter, little)
  head.set([0x6e, 0x2b, 0x31, 0], 344) // n+1
  const bytes = new Uint8Array(stored.buffer), step = 2 ** 20
  let at = -1
  const file = new ReadableStream({ // in pieces: a copy of the whole would take its memory again
    pull(control) {
      if (at < 0) control.enqueue(head)
      else {
        const part = bytes.slice(at, at + step)
        if (!little) swapBytes(new stored.constructor(part.buffer))
        control.enqueue(part)
        packed(at / bytes.length)
      }
      at = at < 0 ? 0 : at + step
      if (at >= bytes.length) control.close()
    },
  })
  return new Response(file.pipeThrough(new CompressionStream('gzip'))).blob()
}

// Pictures: PNG and JPEG to grey values as scans/pictures.py has them, and a grey PNG of 8 or 16 bits. No DOM.
import { DataError, Scan } from './scan.js'

const MAX_PIXELS = 2 ** 21 // about 1450 x 1450: more is for predict.py
const COLOURED = 0.05 // share of coloured pixels beyond which a picture is no MRI slice

/** Read a picture (File). Of 8 bits 0 is black and 255 white; of 16 bits the values say it. */
export async function readPicture(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), warnings = []
  const found = await decodePng(bytes) ?? await decodeByBrowser(file)
  const { values, channels, width, height } = found, Kind = values.constructor
  const top = Kind === Uint16Array ? 65535 : 255, stored = new Kind(width * height)
  let coloured = 0, spread = 0
  for (let i = 0, j = 0; i < stored.length; i++, j += channels) {
    let grey = values[j]
    if (channels > 2) {
      const [r, g, b] = [values[j], values[j + 1], values[j + 2]]
      spread = Math.max(r, g, b) - Math.min(r, g, b)
      coloured += spread > Math.floor(top / 20) // JPEG makes greys differ by a little
      grey = Math.floor((19595 * r + 38470 * g + 7471 * b + 32768) / 65536)
    }
    stored[i] = channels % 2 ? grey : Math.floor(grey * values[j + channels - 1] / top) // on black
  }
  if (coloured > COLOURED * stored.length) throw new DataError('is a colour picture, not an MRI slice; if it is one, save it as grey first')
  if (coloured) warnings.push(`${file.name}: is a colour picture; its luminance is used`)
  return new Scan({ name: file.name, stored, dims: [width, height, 1], levels: top === 255 ? [0, 255] : null, warnings })
}

/** {values, channels, width, height} of a PNG of 8 or 16 bits; null for other kinds, which the browser knows. */
async function decodePng(bytes) {
  if (bytes[0] !== 0x89) return null
  const view = new DataView(bytes.buffer), parts = [], names = new Set()
  for (let at = 8; at + 12 <= bytes.length;) {
    const size = view.getUint32(at), name = String.fromCharCode(...bytes.subarray(at + 4, at + 8))
    names.add(name)
    if (name === 'IDAT') parts.push(bytes.subarray(at + 8, at + 8 + size))
    at += 12 + size
  }
  const [width, height] = [view.getUint32(16), view.getUint32(20)], [depth, colour] = [bytes[24], bytes[25]]
  const channels = { 0: 1, 2: 3, 4: 2, 6: 4 }[colour], plain = channels && !bytes[28] && !names.has('tRNS') && !names.has('eXIf')
  if (depth < 8 || !plain) {
    if (depth === 16) throw new DataError('is a PNG of 16 bits of a rare kind; save it as plain grey, or call')
    return null
  }
  checkPixels(width, height)
  const step = channels * depth / 8, row = width * step
  const raw = await throughStream(parts, new DecompressionStream('deflate'))
    .catch(() => { throw new DataError('is damaged, or cut short') })
  if (raw.length < height * (row + 1)) throw new DataError('is damaged, or cut short')
  const lines = new Uint8Array(height * row)
  for (let y = 0; y < height; y++) unfilter(raw, y * (row + 1), lines, y * row, row, step)
  if (depth === 8) return { values: lines, channels, width, height }
  const values = new Uint16Array(lines.length / 2)
  for (let i = 0; i < values.length; i++) values[i] = lines[2 * i] << 8 | lines[2 * i + 1]
  return { values, channels, width, height }
}

/** One line of a PNG, whose filter's number comes first (PNG specification, section 9), into place. */
function unfilter(raw, from, out, to, row, step) {
  const filter = raw[from]
  for (let i = 0; i < row; i++) {
    const left = i < step ? 0 : out[to + i - step], above = to ? out[to + i - row] : 0
    const corner = i < step || !to ? 0 : out[to + i - row - step]
    let guess = [0, left, above, (left + above) >> 1][filter]
    if (filter === 4) {
      const p = left + above - corner, [a, b, c] = [Math.abs(p - left), Math.abs(p - above), Math.abs(p - corner)]
      guess = a <= b && a <= c ? left : b <= c ? above : corner
    }
    out[to + i] = raw[from + 1 + i] + guess
  }
}

/** The same of what the browser can decode: JPEG, and PNG of few colours. */
async function decodeByBrowser(file) {
  const image = await createImageBitmap(file, { colorSpaceConversion: 'none' })
    .catch(() => { throw new DataError('is damaged, or no picture that can be read') })
  const { width, height } = image
  checkPixels(width, height)
  const context = new OffscreenCanvas(width, height).getContext('2d', { alpha: false, willReadFrequently: true })
  context.drawImage(image, 0, 0) // transparent pixels on black
  const { data } = context.getImageData(0, 0, width, height), values = new Uint8Array(3 * width * height)
  for (let i = 0, j = 0; i < values.length; j++) if (j % 4 < 3) values[i++] = data[j]
  return { values, channels: 3, width, height }
}

function checkPixels(width, height) {
  if (width * height > MAX_PIXELS) throw new DataError(`is ${width} x ${height} pixels, too large for this page; call`)
}

/** All bytes that a stream makes of these parts. */
async function throughStream(parts, stream) {
  return new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(stream)).arrayBuffer())
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1
  return n
})

function chunk(name, data) {
  const out = new Uint8Array(12 + data.length), view = new DataView(out.buffer)
  view.setUint32(0, data.length)
  out.set([...name].map(c => c.charCodeAt(0)), 4)
  out.set(data, 8)
  let crc = -1
  for (const byte of out.subarray(4, 8 + data.length)) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8)
  view.setUint32(8 + data.length, ~crc)
  return out
}

/** Grey values (Uint8Array or Uint16Array) as a PNG file (Blob); a canvas would write colours of 8 bits. */
export async function writePicture({ stored, dims: [width, height] }) {
  const bytes = stored.BYTES_PER_ELEMENT, rows = new Uint8Array(height * (1 + width * bytes))
  for (let y = 0, i = 0, o = 0; y < height; y++) {
    o++ // filter 0
    for (let x = 0; x < width; x++, i++) {
      if (bytes === 2) rows[o++] = stored[i] >> 8
      rows[o++] = stored[i] & 255
    }
  }
  const head = new Uint8Array(13), view = new DataView(head.buffer)
  view.setUint32(0, width)
  view.setUint32(4, height)
  head[8] = 8 * bytes
  const packed = await throughStream([rows], new CompressionStream('deflate'))
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk('IHDR', head), chunk('IDAT', packed), chunk('IEND', new Uint8Array())]
  return new Blob(parts, { type: 'image/png' })
}

// What a file is, by its first bytes, and what to do about those that cannot be read here (scans/formats.py). No DOM.
import { firstBytes } from './nifti.js'
import { DataError } from './scan.js'

const DICOM = 'is DICOM; make NIfTI of its folder first, with dcm2niix or MRIcroGL (free), or give the whole folder to predict.py'
const ADVICE = [ // how files begin
  ['PK\x03\x04', 'is a zip archive; unpack it first'],
  ['\x1f\x8b', 'is packed by gzip, but not a scan; unpack it first'],
  ['%PDF', 'is a PDF document; save the picture in it as PNG first'],
  ['RIFF', 'is a WebP picture or a film; save it as PNG first'],
  ['II*\0', 'is a TIFF; save it as PNG first, or call'],
  ['MM\0*', 'is a TIFF; save it as PNG first, or call'],
  ['BM', 'is a BMP; save it as PNG first, or call'],
  ['NRRD', 'is an NRRD volume; make NIfTI of it first (3D Slicer)'],
  ['\0\0\0\x01', 'is a FreeSurfer volume; make NIfTI of it first (mri_convert), or call'],
]
export const CALL = / call$/ // how advice ends that the command of predict.py follows

/** `picture` or `volume`; DataError with advice for all else. */
export async function kindOf(file) {
  const head = String.fromCharCode(...await firstBytes(file))
  if (head.startsWith('DICM', 128)) throw new DataError(DICOM)
  if (head.startsWith('n+1', 344)) return 'volume'
  if (head.startsWith('ni1', 344) || /\.(hdr|img)(\.gz)?$/i.test(file.name)) throw new DataError('is one of two files (hdr, img); save both as one .nii, or call')
  if (head.startsWith('n+2', 4)) throw new DataError('is NIfTI-2, which this page does not read; call')
  if (head.startsWith('\x89PNG') || head.startsWith('\xff\xd8\xff')) return 'picture'
  if (!head) throw new DataError(file.size ? 'cannot be read; drop files, not folders' : 'is empty')
  if (/\.(dcm|ima|dicom)$/i.test(file.name)) throw new DataError(DICOM)
  const known = ADVICE.find(([start]) => head.startsWith(start))
  throw new DataError(known ? known[1] : 'is nothing that this page reads: NIfTI (.nii, .nii.gz), PNG or JPEG')
}

/** The file's name without the ending of a picture or a scan. */
export const plainName = name => name.replace(/\.(nii\.gz|nii|png|jpe?g)$/i, '')

/** Whether a scan holds labels, such as a mask or an atlas: by its header or by its values, see scans/anatomy.py. */
export function isLabels({ header, dims: [x, y, z], isPicture, stored }) {
  if (isPicture) return false
  if ([true, false].some(little => [1002, 1003].includes(header.getInt16(68, little)))) return true
  if (stored.length < 2 ** 14 || Math.min(x, y, z) < 3) return false
  const background = stored[0], size = x * y, values = new Set()
  const looked = every => Array.from({ length: Math.ceil(z / every) }, (_, i) => stored.subarray(i * every * size, (i * every + 1) * size))
  let slices = looked(Math.max(1, z >> 3))
  if (slices.every(slice => slice.every(value => value === background))) slices = looked(1)
  for (const slice of slices) {
    for (const value of slice) {
      if (!Number.isInteger(value)) return false
      if (value !== background) values.add(value)
    }
  }
  const rank = new Map([...values].sort((a, b) => a - b).map((value, i) => [value, i]))
  let [pairs, same, jumps] = [0, 0, 0]
  for (const slice of slices) {
    for (const step of [1, x]) {
      for (let i = step; i < size; i++) {
        const [a, b] = [slice[i - step], slice[i]]
        if (a === background || b === background || (step === 1 && i % x === 0)) continue
        pairs++
        same += a === b
        jumps += Math.abs(rank.get(a) - rank.get(b)) / values.size
      }
    }
  }
  if (!values.size || same < 0.6 * pairs) return false
  return same >= 0.8 * pairs || values.size <= 6 || jumps > 0.28 * (pairs - same)
}

// What a file is, by its first bytes, and what to do about those that cannot be read here (scans/files.py). No DOM.
import { firstBytes } from './nifti.js'
import { DataError } from './scan.js'

const DICOM = 'is DICOM; make NIfTI of its folder first, with dcm2niix or MRIcroGL (free), or call'
const PACKED = 'unpack it first'
const ADVICE = [ // how files begin
  ['PK\x03\x04', `is a zip archive; ${PACKED}`],
  ['Rar!', `is a rar archive; ${PACKED}`],
  ['7z\xbc\xaf', `is a 7z archive; ${PACKED}`],
  ['\x1f\x8b', `is packed by gzip, but not a scan; ${PACKED}`],
  ['BZh', `is packed by bzip2; ${PACKED}`],
  ['\xfd7zXZ', `is packed by xz; ${PACKED}`],
  ['%PDF', 'is a PDF document; save the picture in it as PNG first'],
  ['RIFF', 'is a WebP picture or a film; save it as PNG first'],
  ['GIF8', 'is a GIF; save it as PNG first'],
  ['II*\0', 'is a TIFF; save it as PNG first, or call'],
  ['MM\0*', 'is a TIFF; save it as PNG first, or call'],
  ['BM', 'is a BMP; save it as PNG first, or call'],
  ['NRRD', 'is an NRRD volume; make NIfTI of it first (3D Slicer)'],
  ['ObjectType', 'is a MetaImage volume; make NIfTI of it first (3D Slicer)'],
  ['\x89HDF', 'is an HDF5 or MINC file; make NIfTI of it first (mnc2nii)'],
  ['CDF', 'is a MINC volume; make NIfTI of it first (mnc2nii)'],
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

/** Whether a scan holds labels (a mask, a segmentation): whole numbers in large even patches, or so its header says. */
export function isLabels({ header, dims, isPicture, stored }) {
  if (isPicture) return false
  if ([true, false].some(little => header.getInt16(68, little) === 1002)) return true
  const counts = new Map(), step = Math.max(1, Math.floor(stored.length / 4096))
  for (let i = 0; i < stored.length; i += step) {
    if (!Number.isInteger(stored[i])) return false
    counts.set(stored[i], (counts.get(stored[i]) ?? 0) + 1)
  }
  const [background] = [...counts].reduce((most, next) => next[1] > most[1] ? next : most)
  const every = dims[0] * Math.ceil(stored.length / dims[0] / 4096) // rows that are looked at
  let [same, pairs] = [0, 0]
  for (let row = 0; row < stored.length; row += every) {
    for (let i = row; i < row + dims[0] - 1; i++) {
      if (stored[i] === background || stored[i + 1] === background) continue
      pairs++
      same += stored[i] === stored[i + 1]
    }
  }
  return pairs > 100 && same > 0.75 * pairs
}

// What the voxels of a scan become: which factors in the plane and through it, and why (inference/plan.py). No DOM.
import { DataError, PLANES, rint } from './scan.js'

const FINE = 0.75 // mm: by themselves pixels become no finer than this
const FINEST = 0.5 // mm: about the finest truth that results were compared with
const THICK = 1.02 // slices count as n times as thick as their pixels from n / 1.02 on

/**
 * The plan of a scan with a network for these scales: {plane, scale, through, voxelSize, words}; 1, 1, 0: as it is.
 * wish: {scale}, {throughPlane} or {voxelSize} (mm) if asked for; {}: what the voxels are tells. Throws DataError.
 */
export function planOf(scan, scales, wish = {}) {
  const { scales: inside, throughPlane: across } = choicesOf(scan, scales)
  if (scan.isPicture) return planOfPicture(scan, inside, wish)
  const plane = planeOf(scan), [distance, pixel] = thickness(scan, plane)
  const smaller = thickness(scan, plane, true)[1], square = pixel < 1.02 * smaller ? '' : `${g(smaller, 3)} x `
  const voxels = `slices ${g(distance, 3)} mm apart, pixels of ${square}${g(pixel, 3)} mm`
  const plan = (scale, through, words, voxelSize = 0) => ({ plane, scale, through, voxelSize, words: `${voxels}: ${words}` })
  if (wish.voxelSize) return planOfSize(scan, [distance, pixel], inside, across, wish.voxelSize, plan)
  if (wish.scale) {
    const fine = pixel / wish.scale
    return plan(wish.scale, 1, `pixels become ${g(fine, 3)} mm, as asked${guess(fine)}`)
  }
  if (wish.throughPlane) {
    const factor = Math.max(...across.filter(n => n <= wish.throughPlane))
    return plan(1, factor, `${factor} slices of each, ${g(distance / factor, 3)} mm apart`)
  }
  const factor = Math.max(1, ...inside.filter(s => pixel / s >= FINE && smaller / s >= FINEST)), fine = pixel / factor
  const single = scan.layout([plane, false]).slices.n === 1 // nothing is known of how thick it is
  const through = Math.max(1, ...across.filter(n => n <= THICK * distance / fine && !single))
  if (factor === 1 && through === 1) {
    const coarse = (pixel / 2 >= FINE && smaller / 2 >= FINEST) || THICK * distance >= 2 * pixel
    throw new DataError(`${voxels}: ${nothingDone(inside, across, pixel, coarse)}`)
  }
  const done = []
  if (factor > 1) done.push(`pixels become ${g(fine, 3)} mm`)
  if (through > 1) done.push(`${through} slices of each, ${g(distance / through, 3)} mm apart`)
  return plan(factor, through, done.join('; '))
}

/** Why a scan stays as it is. coarse: other weights would make something of it. */
function nothingDone(inside, across, pixel, coarse) {
  const least = Math.min(...inside)
  if (!coarse) return `nothing to gain: pixels below ${2 * FINE} mm are fine enough, and slices that are not twice as thick as their pixels (×${least} would make ${g(pixel / least, 2)} mm of them)`
  return `these weights make pixels ${listed(inside)} times as fine, and ${listed(across)} slices of each, which is too much for it (×${least} does it all the same)`
}

/** Numbers in words: `2, 3 or 4`. */
const listed = numbers => numbers.length > 1 ? `${numbers.slice(0, -1).join(', ')} or ${numbers.at(-1)}` : String(numbers[0])

/** A picture is enlarged by 4, or by what is asked. */
function planOfPicture(scan, inside, wish) {
  const scale = wish.scale ?? (inside.includes(4) ? 4 : Math.max(...inside))
  const large = Math.min(scan.dims[0], scan.dims[1]) >= 230 && !wish.scale
  const words = `x${scale}${large ? `; if its pixels are about 1 mm already, x${scale} is a guess` : ''}`
  return { plane: 'axial', scale, through: 1, voxelSize: 0, words }
}

/** The smallest factors that make voxels of this size or finer; the rest is resampled. */
function planOfSize(scan, [distance, pixel], inside, across, size, plan) {
  if (!(size >= FINEST && size <= 10)) throw new DataError(`voxels of ${FINEST} to 10 mm can be made`)
  const factor = [1, ...inside].find(s => pixel / s <= size * 1.02) ?? Math.max(1, ...inside)
  const through = [1, ...across].find(n => distance / n <= size * 1.02) ?? Math.max(1, ...across)
  const done = [`resampled to ${g(size)} mm`]
  if (through > 1) done.unshift(`x${through} through it`)
  if (factor > 1) done.unshift(`x${factor} in the plane`)
  let words = done.join(', ')
  if (Math.max(pixel / factor, distance / through) > 1.3 * size) words += '; finer than the network can make, the rest is interpolated'
  const long = scan.dims.slice(0, 3).map((n, i) => n * scan.ownSizes[i]), made = long.map(mm => mm / Math.max(1, rint(mm / size)))
  if (made.some(mm => Math.abs(mm - size) > 0.001 * size)) words += `; as the outer edges stay, voxels become ${made.map(mm => g(mm, 4)).join(' x ')} mm`
  return plan(factor, through, words + guess(factor > 1 ? pixel / factor : 9), size)
}

/** A warning, if pixels are finer than anything measured. */
const guess = pixel => pixel < FINEST ? '; finer than anything measured, a guess' : ''

/** What can be asked for of a scan: {scales, throughPlane} as factors, and whether voxelSize can. */
export function choicesOf({ isPicture }, scales) {
  const inside = scales.filter(([r, c]) => r === c), across = isPicture ? [] : scales.filter(([, c]) => c === 1)
  const [factors, throughPlane] = [inside, across].map(some => some.map(([r]) => r).sort())
  return { scales: factors, throughPlane, voxelSize: !isPicture }
}

/** How the name of a result ends, but for its type. */
export function labelOf({ scale, through, voxelSize }) {
  if (voxelSize) return `${g(voxelSize)}mm`
  return [scale > 1 && `x${scale}`, through > 1 && `through-x${through}`].filter(Boolean).join('_')
}

/** The call of predict.py that does the same. */
export function commandOf(name, wish = {}) {
  const flag = { scale: '--scale', throughPlane: '--through-plane', voxelSize: '--voxel-size' }
  const options = Object.entries(wish).map(([key, value]) => ` ${flag[key]} ${value}`)
  return `predict.py ${/^[\w@%+=:,./-]+$/.test(name) ? name : `'${name.replaceAll("'", `'"'"'`)}'`}${options.join('')}`
}

/** The plane of a scan's slices: the two finest directions if the third is much coarser, else the axial one. */
function planeOf(scan) {
  const { axes, sizes } = scan, single = axes.filter((_, i) => scan.dims[i] === 1)
  if (single.length === 1) return PLANES[single[0]]
  const coarse = sizes.indexOf(Math.max(...sizes))
  return sizes[coarse] > 1.25 * [...sizes].sort((a, b) => a - b)[1] ? PLANES[coarse] : 'axial'
}

/** [distance of the slices of a plane, larger (or smaller) size of their pixels] in mm. */
function thickness(scan, plane, smaller = false) {
  const across = PLANES.indexOf(plane), { sizes } = scan, pixels = sizes.filter((_, axis) => axis !== across)
  return [sizes[across], smaller ? Math.min(...pixels) : Math.max(...pixels)]
}

/** A number with so many digits that count, as Python writes it: halves to the even digit, no zeros behind. */
export function g(x, digits = 6) {
  const up = x.toExponential(digits - 1), down = (x * (1 - 2 ** -52)).toExponential(digits - 1)
  const exact = x.toExponential(80).split('e')[0].replace('.', ''), half = /^50*$/.test(exact.slice(digits))
  return String(Number(half && Number(up.split('e')[0].at(-1)) % 2 ? down : up))
}

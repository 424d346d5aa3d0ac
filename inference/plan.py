"""What the voxels of a scan become: which factors in the plane and through it, and why."""

from dataclasses import dataclass

import numpy as np

from scans import PLANES, Scan
from utils import DataError, UsageError

FINE = 0.75  # mm: by themselves pixels become no finer than this
FINEST = 0.5  # mm: about the finest truth that results were compared with
THICK = 1.02  # slices count as n times as thick as their pixels from n / 1.02 on


class FineAlready(DataError):
    """A scan is left as it is, as there is nothing to gain: no failure where others are done."""


@dataclass
class Plan:
    """How a scan is enlarged: the plane of its slices, the factor of their pixels, so many slices
    made of each, and the voxel size in mm that is made of the result, all around; 0: as it is.
    words: what was decided and why, in one line."""

    plane: str
    scale: int = 1
    through: int = 1
    voxel_size: float = 0.0
    words: str = ""

    @property
    def label(self) -> str:
        """How the name of a result ends, but for its type."""
        if self.voxel_size:
            return f"{self.voxel_size:g}mm"
        factors = {"x": self.scale, "through-x": self.through}
        return "_".join(f"{word}{n}" for word, n in factors.items() if n > 1)


def plan_of(scan: Scan, scales, *, scale=None, through_plane=None, voxel_size=None, plane="auto"):
    """The Plan of a scan, with a network for these scales. Raises DataError where nothing is to be
    gained, UsageError for what is not to be had.

    scale, through_plane (0: until voxels are nearly cubes), voxel_size (mm): what is asked for;
    nothing: what the voxels are tells. plane: of its slices; auto: that across the thick direction,
    else the axial one.
    """
    inside = sorted(s[0] for s in scales if s[0] == s[1])
    across = sorted(s[0] for s in scales if s[1] == 1)
    if scan.is_picture:
        return plan_of_picture(scan, inside, scale, through_plane, voxel_size, plane)
    plane = plane_of(scan, plane)
    distance, pixel, smaller = thickness(scan, plane)
    square = f"{pixel:.3g}" if pixel < 1.02 * smaller else f"{smaller:.3g} x {pixel:.3g}"
    voxels = f"slices {distance:.3g} mm apart, pixels of {square} mm"
    if voxel_size is not None:
        return plan_of_size(scan, plane, inside, across, voxel_size, voxels)
    if scale is not None:
        if not inside:
            raise UsageError("--scale: these weights make slices of thick ones; pixels need others")
        if scale not in inside:
            raise UsageError(f"--scale {scale}: these weights enlarge by {listed(inside)}")
        words = f"{voxels}: pixels become {pixel / scale:.3g} mm, as asked"
        return Plan(plane, scale, 1, 0.0, words + guess(pixel / scale))
    if through_plane is not None:
        factor = through_factor(scan, distance / pixel, through_plane, across, voxels)
        words = f"{voxels}: {factor} slices of each, {distance / factor:.3g} mm apart"
        if through_plane > factor:
            words += f" (no weights for {through_plane})"
        return Plan(plane, 1, factor, 0.0, words)
    factor = max([1, *(s for s in inside if pixel / s >= FINE and smaller / s >= FINEST)])
    fine = pixel / factor
    single = scan.stored.shape[scan.axes.index(PLANES.index(plane))] == 1
    through = max([1, *(n for n in across if n <= THICK * distance / fine and not single)])
    if factor == through == 1:
        coarse = (pixel / 2 >= FINE and smaller / 2 >= FINEST) or THICK * distance >= 2 * pixel
        words = nothing_done(inside, across, pixel, coarse)
        if single and 2 * pixel <= distance:
            words += "; slices are made thinner of whole scans: of DICOM name the folder"
        raise FineAlready(f"{scan.path}: {voxels}: {words}")
    done = [f"pixels become {fine:.3g} mm"] * (factor > 1)
    done += [f"{through} slices of each, {distance / through:.3g} mm apart"] * (through > 1)
    return Plan(plane, factor, through, 0.0, f"{voxels}: {'; '.join(done)}")


def nothing_done(inside: list[int], across: list[int], pixel: float, coarse: bool) -> str:
    """Why a scan stays as it is. coarse: other weights would make something of it."""
    if coarse:
        known = [f"pixels {listed(inside)} times as fine"] if inside else []
        known += [f"{listed(across)} slices of each"] if across else []
        words = f"these weights make {', and '.join(known)}, which is too much for it"
        end = "does it all the same"
    else:
        words = (f"nothing to gain: pixels below {2 * FINE:g} mm are fine enough, and slices that "
                 "are not twice as thick as their pixels")  # fmt: skip
        end = f"would make {pixel / min(inside, default=1):.2g} mm of them"
    return words + (f" (--scale {inside[0]} {end})" if inside else "")


def plan_of_picture(scan, inside, scale, through_plane, voxel_size, plane) -> Plan:
    """A picture is enlarged by 4, or by what is asked."""
    for flag, value in (("--through-plane", through_plane), ("--voxel-size", voxel_size)):
        if value is not None:
            raise DataError(
                f"{scan.path}: is a picture; {flag} is for scans, which have voxel sizes"
            )
    if not inside:
        raise UsageError("these weights make slices of thick ones; pictures need others")
    wanted = scale or (4 if 4 in inside else max(inside))
    if wanted not in inside:
        raise UsageError(f"--scale {wanted}: these weights enlarge by {listed(inside)}")
    words, least = f"x{wanted}", min(scan.stored.shape)
    if least >= 230 and scale is None:
        words += f"; if its pixels are about 1 mm already, x{wanted} is a guess"
    return Plan("axial", wanted, words=words)


def plan_of_size(scan, plane, inside, across, size: float, voxels: str) -> Plan:
    """The smallest factors that make voxels of this size or finer; the rest is resampled."""
    if not FINEST <= size <= 10:
        raise UsageError(f"--voxel-size takes {FINEST:g} to 10 mm")
    distance, pixel, _ = thickness(scan, plane)
    factor = next((s for s in [1, *inside] if pixel / s <= size * 1.02), max([1, *inside]))
    through = next((n for n in [1, *across] if distance / n <= size * 1.02), max([1, *across]))
    done = [f"x{factor} in the plane"] * (factor > 1) + [f"x{through} through it"] * (through > 1)
    done.append(f"resampled to {size:g} mm")
    words = f"{voxels}: {', '.join(done)}"
    if max(pixel / factor, distance / through) > 1.3 * size:
        words += "; finer than the network can make, the rest is interpolated"
    long = np.array(scan.stored.shape[:3]) * np.array(scan.sizes)[scan.axes]
    made = long / np.maximum(1, np.rint(long / size))
    if (abs(made - size) > 0.001 * size).any():
        made = " x ".join(f"{mm:.4g}" for mm in made)
        words += f"; as the outer edges stay, voxels become {made} mm"
    return Plan(plane, factor, through, size, words + guess(pixel / factor if factor > 1 else 9))


def guess(pixel: float) -> str:
    """A warning, if pixels are finer than anything measured."""
    return "; finer than anything measured, a guess" if pixel < FINEST else ""


def through_factor(scan, ratio: float, wanted: int, across: list[int], voxels: str) -> int:
    """So many slices of each. ratio: how many pixels a slice is thick. wanted: 0: nearly cubes."""
    if not across:
        raise UsageError("--through-plane: these weights were not made for it")
    limit = wanted or THICK * ratio  # voxels never finer than the pixels
    fitting = [n for n in across if n <= limit]
    if not fitting:
        words = f"these weights make {listed(across)} of each"
        if not wanted:
            words = "slices hardly thicker than that need no --through-plane"
        raise DataError(f"{scan.path}: {voxels}: {words}")
    return max(fitting)


def listed(numbers) -> str:
    """Numbers in words: `2, 3 or 4`."""
    words = list(map(str, numbers))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def plane_of(scan: Scan, wanted: str) -> str:
    """The plane of a scan's slices: the one that is asked for, else the two finest directions if
    the third is much coarser, else the axial one."""
    if wanted != "auto":
        return wanted
    axes, sizes = scan.axes, scan.sizes
    single = [axes[i] for i, n in enumerate(scan.stored.shape[:3]) if n == 1]
    if len(single) == 1:
        return PLANES[single[0]]
    coarse = int(np.argmax(sizes))
    return PLANES[coarse] if sizes[coarse] > 1.25 * sorted(sizes)[1] else "axial"


def thickness(scan: Scan, plane: str) -> tuple[float, float, float]:
    """In mm: how far the slices of this plane are apart, the larger and the smaller side of their
    pixels."""
    sizes = scan.sizes
    return sizes.pop(PLANES.index(plane)), max(sizes), min(sizes)

"""A picture or a scan as stacks of slices: one way to read, to cut, to fill and to write both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import modules
from evaluation.figures import MARKS, View, picture_figure, volume_figure
from inference import tiling
from scans import pictures, volumes
from scans.dicom import read_scan
from utils import DataError

THICK = 1.75  # slices this many times as far apart as their pixels count as thick


def read_image(job, force: bool = False):
    """The picture or scan of a job. Raises DataError for what cannot be read."""
    if job.kind == "picture":
        return PictureImage(job.source, pictures.read_picture(job.source, force))
    volume = read_scan(job.source, job.files, series=job.series, kind=job.kind, force=force)
    return ScanImage(job.source, volume)


class PictureImage:
    """A picture: a stack of one slice."""

    times, sizes = 1, None

    def __init__(self, path: Path, picture: pictures.Picture):
        self.path, self.picture = path, picture
        self.dtype = np.dtype(picture.dtype)
        self.dtype = self.dtype if self.dtype.kind in "iu" else np.dtype(np.float32)
        self.bytes = picture.pixels.size * self.dtype.itemsize

    def intensities(self, t: int = 0) -> np.ndarray:
        return self.picture.pixels

    def span(self, data) -> tuple[float, float]:
        """The values that become 0 and 1."""
        return 0.0, 1.0

    def clamped(self, data, low, high) -> tuple[float, float]:
        """The values, in [0, 1], beyond which a file could not say more."""
        return 0.0, 1.0

    def cut(self, array: np.ndarray, way) -> np.ndarray:
        """The slices (S, H, W) of an array like this image, or an enlarged one, as a view."""
        return array[None]

    def aspect(self, way) -> float:
        """The height of a pixel divided by its width."""
        return 1.0

    def output_like(self, way, scale) -> np.ndarray:
        """An array of zeros for the result."""
        h, w = self.picture.pixels.shape
        return np.zeros((h * scale[0], w * scale[1]), self.dtype)

    def to_stored(self, values: np.ndarray, dtype) -> np.ndarray:
        """Intensities as the result holds them: in the file's units, rounded, of its type."""
        return pictures.to_stored(self.picture, values)

    def from_stored(self, values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32) - np.float32(self.picture.low)
        return values / np.float32(self.picture.high - self.picture.low)

    def write(self, job, label: str, out: np.ndarray, way, scale) -> Path:
        return pictures.write_picture(job.file(label, ""), out)

    def acquired(self, ways):
        """The way to cut this image into its own slices."""
        return ways[0]

    # --- expected errors: 16 bits where the result is a PNG, else in the picture's units ---

    def error_step(self) -> float:
        """What a value of 1 in the error map stands for, in the picture's units."""
        white = float(self.picture.high - self.picture.low)
        return white / 65535 if self.dtype in (np.uint8, np.uint16) else 1.0

    def errors_like(self, out: np.ndarray) -> np.ndarray:
        """An array of zeros for the expected errors of a result."""
        small = self.dtype in (np.uint8, np.uint16)
        return np.zeros(out.shape, np.uint16 if small else np.float32)

    def error_to_stored(self, values: np.ndarray, span, dtype) -> np.ndarray:
        """Expected errors, white being 1, as the error map holds them."""
        white = self.picture.high - self.picture.low
        return pictures.fit_type(values * np.float32(white / self.error_step()), dtype)

    def error_from_stored(self, values: np.ndarray, span) -> np.ndarray:
        white = self.picture.high - self.picture.low
        return values * np.float32(self.error_step() / white)

    def write_errors(self, job, label: str, errors: np.ndarray, way, scale) -> Path:
        words = f"expected absolute error = value x {self.error_step():.9g} (picture's grey levels)"
        return pictures.write_picture(job.file(label, ""), errors, words)


class ScanImage:
    """A scan, cut along a way: (plane, turned), turned where rows and columns change places."""

    def __init__(self, path: Path, volume: volumes.Volume):
        self.path, self.volume = path, volume
        shape = volume.stored.shape
        self.times = shape[3] if len(shape) == 4 else 1
        self.sizes, self.bytes = volume.sizes, volume.stored.nbytes
        self.intensities = volume.intensities

    def span(self, data) -> tuple[float, float]:
        """The values that become 0 and 1, of the whole volume, so that neighbours match."""
        return volumes.intensity_range(data)

    def clamped(self, data, low, high) -> tuple[float, float]:
        """The values, where 0 and 1 are `span`, beyond which a file could not say more.

        A scan is never cut off at its 99.8th percentile: only at 0 and at the ends of its type.
        """
        volume, kind, ends = self.volume, self.volume.stored.dtype, [-np.inf, np.inf]
        if data.min() == 0:
            ends[0] = (0 - low) / (high - low)
        if kind.kind in "iu" and volume.stored.max() == np.iinfo(kind).max:
            ends[1] = (np.iinfo(kind).max * volume.slope + volume.inter - low) / (high - low)
        return tuple(ends)

    def cut(self, array: np.ndarray, way) -> np.ndarray:
        """The slices (S, H, W) of an array like this image, or an enlarged one, as a view."""
        plane, turned = way
        slices = self.volume.slices(array, plane)
        return slices.swapaxes(1, 2) if turned else slices

    def factors(self, way, scale) -> list[int]:
        """The factor along each of the volume's own axes."""
        rows, columns = self.row_and_column(way)
        factor = {rows: scale[0], columns: scale[1]}
        return [factor.get(axis, 1) for axis in self.volume.axes]

    def row_and_column(self, way) -> tuple[int, int]:
        """The axes (0 right, 1 front, 2 up) that lie down a slice and across it."""
        inside = [axis for axis in (2, 1, 0) if volumes.PLANES[axis] != way[0]]
        return tuple(inside[::-1] if way[1] else inside)

    def aspect(self, way) -> float:
        """The height of a pixel divided by its width."""
        rows, columns = self.row_and_column(way)
        return self.sizes[rows] / self.sizes[columns]

    def output_like(self, way, scale) -> np.ndarray:
        """An array of zeros for the result."""
        return volumes.output_like(self.volume, self.factors(way, scale))

    def to_stored(self, values: np.ndarray, dtype) -> np.ndarray:
        """Intensities as the result holds them: in the file's units, rounded, of its type."""
        return self.volume.to_stored(values, dtype)

    def from_stored(self, values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        return values * np.float32(self.volume.slope) + np.float32(self.volume.inter)

    def write(self, job, label: str, out: np.ndarray, way, scale) -> Path:
        path = job.file(label, ".nii.gz")
        return volumes.write_volume(path, self.volume, out, self.factors(way, scale))

    def acquired(self, ways):
        """The way to cut this scan into its own slices."""
        planes = [plane for plane in volumes.PLANES if plane not in dict(ways)]
        return ways[0] if len(ways) == 1 else (planes[0], False)

    # --- expected errors: float32 in the scan's units ---

    def error_step(self) -> float:
        """What a value of 1 in the error map stands for, in the scan's units."""
        return 1.0

    def errors_like(self, out: np.ndarray) -> np.ndarray:
        """An array of zeros for the expected errors of a result."""
        return np.zeros(out.shape, np.float32, order="F")

    def error_to_stored(self, values: np.ndarray, span, dtype) -> np.ndarray:
        """Expected errors, white being 1, as the error map holds them."""
        return values * np.float32(span[1] - span[0])

    def error_from_stored(self, values: np.ndarray, span) -> np.ndarray:
        return values / np.float32(span[1] - span[0])

    def write_errors(self, job, label: str, errors: np.ndarray, way, scale) -> Path:
        header = self.volume.header.copy()
        header["cal_min"], header["cal_max"] = 0, 0  # how bright to show the scan, not its errors
        header["descrip"] = "expected absolute error"
        volume = replace(self.volume, header=header, slope=1.0, inter=0.0)
        path = job.file(label, ".nii.gz")
        return volumes.write_volume(path, volume, errors, self.factors(way, scale))

    # --- which way to cut ---

    def plane(self, wanted: str) -> tuple[str, str]:
        """The plane to upscale in, and a remark if it is not the axial one by default."""
        if wanted != "auto":
            return wanted, ""
        axes = self.volume.axes
        single = [axes[i] for i, n in enumerate(self.volume.stored.shape[:3]) if n == 1]
        if len(single) == 1:
            return volumes.PLANES[single[0]], ""
        coarse = int(np.argmax(self.sizes))
        if coarse != 2 and self.sizes[coarse] > 1.25 * sorted(self.sizes)[1]:
            plane = volumes.PLANES[coarse]
            return plane, f"voxels of {self.words()}, upscaled in the finer plane, {plane} (--axis)"
        return "axial", ""

    def words(self, factors=(1, 1, 1)) -> str:
        """The voxel sizes in the volume's own order, divided by factors in that order."""
        sizes = np.array(self.sizes)[self.volume.axes] / factors
        return " x ".join(f"{size:.3g}" for size in sizes) + " mm"

    def thickness(self, plane: str) -> tuple[float, float]:
        """The distance of the slices of this plane, and the larger size of their pixels, in mm."""
        across = volumes.PLANES.index(plane)
        return self.sizes[across], max(s for i, s in enumerate(self.sizes) if i != across)

    def ways_through(self, plane: str) -> list[tuple[str, bool]]:
        """Both ways to see the slices of this plane from the side, their distance down the rows."""
        thick = volumes.PLANES.index(plane)
        others = [axis for axis in range(3) if axis != thick]
        return [(volumes.PLANES[a], thick < b) for a, b in (others, others[::-1])]


def through_factor(image, plane: str, wanted: int, shipped: list[int]) -> tuple[int, str]:
    """The factor through the plane and a remark. wanted: 0 makes voxels nearly cubes.

    shipped: the factors that there are weights for. Raises DataError where nothing is to be gained.
    """
    if image.sizes is None:
        raise DataError(f"{image.path}: is a picture; --through-plane is for scans of thick slices")
    distance, pixel = image.thickness(plane)
    if not shipped:
        raise DataError("--through-plane: there are no weights for it (weights/through-x2.pt ...)")
    about = f"slices {distance:.3g} mm apart, pixels of {pixel:.3g} mm"
    limit = wanted or 1.02 * distance / pixel  # voxels never finer than the pixels
    fitting = [n for n in shipped if n <= limit]
    if not fitting:
        words = f"there are no weights for --through-plane {wanted}, nor for less"
        if not wanted:
            words = "slices hardly thicker than that need no --through-plane"
        raise DataError(f"{image.path}: {about}: {words}")
    factor = max(fitting)
    about += f", enlarged by {factor} to {distance / factor:.3g} mm"
    return factor, about + f" (no weights for {wanted})" * (wanted > factor)


# --- what a figure shows --------------------------------------------------------------------------


def figure_views(image, scale, ways, out, data, span, errors=None) -> list[View]:
    """Slices before, interpolated and after: three of one way, or one of each of two.

    data: the intensities of the first volume, span those that are 0 and 1, out: the result, errors:
    its error map.
    """
    low, height = np.float32(span[0]), np.float32(span[1] - span[0])
    interpolate, views = modules.Interpolation(scale), []
    for way in ways:
        before, after = image.cut(data, way), image.cut(out, way)
        for i in figure_slices(before > low + 0.05 * height, 3 if len(ways) == 1 else 1):
            # Of a very large slice its middle.
            window = [slice(max(0, n // 2 - 192), n // 2 + 192) for n in before.shape[1:]]
            place = [slice(s * w.start, s * w.stop) for s, w in zip(scale, window)]
            lr = np.ascontiguousarray((before[i][tuple(window)] - low) / height)
            cubic = tiling.upscale(interpolate, torch.from_numpy(lr)[None, None])[0, 0].numpy()
            sr = (image.from_stored(after[i][tuple(place)]) - low) / height
            name, marks = (f"{way[0]} {i}", MARKS[way[0]]) if way else ("", "")
            marks = marks[2:] + marks[:2] if way and way[1] else marks
            view = View(name, lr, cubic, sr, image.aspect(way), marks)
            if errors is not None:
                part = image.cut(errors, way)[i][tuple(place)]
                view.expected = image.error_from_stored(part, span)
            views.append(view)
    return views


def figure_slices(foreground: np.ndarray, count: int) -> list[int]:
    """Up to three slices (S, H, W) to show, at a quarter, half and three quarters of the head."""
    filled = np.flatnonzero(foreground.mean(axis=(1, 2)) >= 0.02)
    filled = filled if filled.size else np.arange(len(foreground))
    shares = (0.25, 0.5, 0.75) if count == 3 else (0.5,)
    return sorted({int(filled[int(share * (filled.size - 1))]) for share in shares})


def draw(path: Path, image, scale, ways, out, data, span, errors=None) -> None:
    """Write the figure of an image before and after."""
    views = figure_views(image, scale, ways, out, data, span, errors)
    first, title = views[0], image.path.name
    if image.sizes:
        title += f": {image.words()} to {image.words(image.factors(ways[0], scale))}"
    elif first.before.shape != data.shape:
        title += ", the middle of it"
    if image.sizes is None or len(image.cut(data, ways[0])) == 1:  # a single slice
        picture_figure(
            path, first.before, first.cubic, first.after, expected=first.expected, title=title,
            aspect=first.aspect,
        )  # fmt: skip
    else:
        through = {"names": ("before", "cubic", "after")} if len(ways) == 2 else {}
        volume_figure(path, views, title=title, **through)

"""A picture or a scan: what its file stores, where it lies in space, and its slices."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from scans.intensity import intensity_range
from utils import warn

PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of RAS
View = tuple[str, bool]  # a plane, and whether rows and columns of its slices change places


@dataclass
class Scan:
    """A picture or a scan as it is stored, in its own axes.

    stored: a picture (H, W), a scan (X, Y, Z) or (X, Y, Z, T), in the file's type; the intensities
    are `stored * slope + inter`. affine: (4, 4), from voxel indices to mm in RAS; None: a picture,
    which has no place in space. header: nibabel's NIfTI header with all this, of a scan. levels:
    the values that are black and white, where the file says so. about: what is worth recording.
    """

    path: Path
    stored: np.ndarray
    slope: float = 1.0
    inter: float = 0.0
    affine: np.ndarray | None = None
    header: object = None
    levels: tuple[float, float] | None = None
    about: dict = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        return self.affine is None

    @property
    def times(self) -> int:
        """The number of volumes."""
        return self.stored.shape[3] if self.stored.ndim == 4 else 1

    @property
    def axes(self) -> list[int]:
        """For each of its axes the RAS axis it is nearest to: 0 right, 1 front, 2 up."""
        import nibabel as nib

        return nib.io_orientation(self.affine)[:, 0].astype(int).tolist()

    @property
    def sizes(self) -> list[float]:
        """The voxel sizes in mm along the axes nearest to right, front and up."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return [float(sizes[self.axes.index(axis)]) for axis in range(3)]

    # --- values ---

    def intensities(self, t: int = 0) -> np.ndarray:
        """The values of volume t in the scan's units, float32. NaN and infinity become black, which
        is said."""
        data = self.stored if self.stored.ndim < 4 else self.stored[..., t]
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
        if (self.slope, self.inter) != (1, 0):
            data = data * np.float32(self.slope) + np.float32(self.inter)
        bad = ~np.isfinite(data)
        if bad.any():
            warn(f"{self.path}: {int(bad.sum())} NaN or infinite values were set to black")
            data[bad] = np.float32(intensity_range(data)[0])
        return data

    def black_and_white(self, data: np.ndarray) -> tuple[float, float]:
        """The values of `intensities` that are 0 and 1 for a network: one pair for all slices, so
        that neighbours match."""
        return self.levels or intensity_range(data)

    def to_stored(self, values: np.ndarray, dtype) -> np.ndarray:
        """Values in the scan's units as it stores them: unscaled, rounded, cut off at the ends of
        the type."""
        if (self.slope, self.inter) != (1, 0):
            values = (values - np.float32(self.inter)) / np.float32(self.slope)
        return fit_type(values, dtype)

    # --- slices ---

    def slices(self, array: np.ndarray, view: View = ("axial", False)) -> np.ndarray:
        """The slices (S, H, W) of an array in this scan's axes (its own, or an enlarged one), as a
        view: what is written into it lands in the array. Upright: rows from the top or the front.
        """
        if self.is_picture:
            return array[None]
        plane, turned = view
        slices = slices_along(to_ras(array, self.affine), plane)
        return slices.swapaxes(1, 2) if turned else slices

    def row_and_column(self, view: View) -> tuple[int, int]:
        """The axes (0 right, 1 front, 2 up) that lie down a slice and across it."""
        inside = [axis for axis in (2, 1, 0) if PLANES[axis] != view[0]]
        return tuple(inside[::-1] if view[1] else inside)

    def aspect(self, view: View) -> float:
        """The height of a pixel divided by its width."""
        if self.is_picture:
            return 1.0
        rows, columns = self.row_and_column(view)
        return self.sizes[rows] / self.sizes[columns]

    def distance(self, view: View) -> float | None:
        """How far the slices of a view are apart, in widths of their pixels; None: a picture."""
        if self.is_picture:
            return None
        across = PLANES.index(view[0])
        return self.sizes[across] / self.sizes[self.row_and_column(view)[1]]

    # --- enlarged ---

    def factors(self, view: View, scale) -> list[int]:
        """The factor along each of the scan's own axes of enlarging the slices of a view."""
        if self.is_picture:
            return list(scale)
        rows, columns = self.row_and_column(view)
        factor = {rows: scale[0], columns: scale[1]}
        return [factor.get(axis, 1) for axis in self.axes]

    def empty_like(self, shape, dtype=None) -> np.ndarray:
        """Zeros for an enlarged scan: of its own type if that is an integer one, else float32."""
        dtype = dtype or (self.stored.dtype if self.stored.dtype.kind in "iu" else np.float32)
        return np.zeros((*shape, *self.stored.shape[len(shape) :]), dtype, order="F")

    def resampled(self, out: np.ndarray, about=None) -> "Scan":
        """The scan with other voxels, the outer edges of the grid where they were.

        out: (X', Y', Z') or (X', Y', Z', T), of whatever type.
        """
        if self.is_picture:
            return replace(self, stored=out, about=about or {})
        factors = np.array(out.shape[:3]) / self.stored.shape[:3]
        header, affine = resampled_header(self.header, self.affine, out, factors)
        return replace(self, stored=out, affine=affine, header=header, about=about or {})


def resampled_header(header, affine: np.ndarray, out: np.ndarray, factors):
    """Header and affine of voxels that are these factors finer, the outer edges where they were.

    sform and qform keep their codes, the header its units and description.
    """
    import nibabel as nib

    header = header.copy()
    header.extensions = type(header.extensions)()  # they speak of the old grid
    # Voxel j is centred on old voxel (j + 0.5) / factor - 0.5, the rule of align_corners=False.
    step = np.diag([*(1 / f for f in factors), 1.0])
    step[:3, 3] = [(1 / f - 1) / 2 for f in factors]
    try:
        qform = header.get_qform(coded=True)[0]
    except nib.spatialimages.HeaderDataError:
        qform, header["qform_code"] = None, 0
    sform, code = header.get_sform(coded=True)
    if max(out.shape) > 2**15 - 1:
        header = nib.Nifti2Header.from_header(header)
    header.set_data_shape(out.shape)
    header.set_data_dtype(out.dtype.newbyteorder(header.endianness))
    header["pixdim"][1:4] /= np.array(factors, float)  # the qform's turn stays as it is
    if qform is not None:
        for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), (qform @ step)[:3, 3]):
            header[name] = value
    if sform is not None:
        header.set_sform(sform @ step, int(code))
    across = header.get_dim_info()[2]
    if across is not None and factors[across] != 1:  # the timing of slices no longer holds
        for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
            header[name] = 0
    return header, affine @ step


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume as a view whose axes run to the right, to the front and up."""
    import nibabel as nib

    return nib.orientations.apply_orientation(volume, nib.io_orientation(affine))


def slices_along(ras: np.ndarray, plane: str) -> np.ndarray:
    """The slices of a RAS volume as a view (S, H, W): rows from the top or the front."""
    return np.moveaxis(ras, PLANES.index(plane), 0).swapaxes(1, 2)[:, ::-1]


def fit_type(values: np.ndarray, dtype) -> np.ndarray:
    """Float values as this type: integers are rounded, and cut off at the ends of their range."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu":
        return values.astype(dtype, copy=False)
    values = values.astype(np.float64 if dtype.itemsize > 2 else np.float32)
    np.rint(values, out=values)
    limits = np.iinfo(dtype)
    most = float(limits.max)
    most = np.nextafter(most, 0) if most > limits.max else most  # 2^63 is one too many
    return np.clip(values, limits.min, most, out=values).astype(dtype)

"""Reading: a picture or a scan of any format becomes an array, with what writing it back needs.

Pictures through Pillow, NIfTI, FreeSurfer and Analyze through nibabel, DICOM through pydicom.
A file is recognised by its content. What cannot be read is a DataError that names it.
"""

import gzip
import os
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import DataError, as_data_error, warn

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img")
DICOM = (".dcm", ".dicom", ".ima")
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of RAS
MAX_PIXELS = 2**25  # a picture or slice beyond this is refused before its pixels are read

# A damaged file is refused or read; what the readers have to say besides is of no use.
warnings.filterwarnings("ignore", module="PIL|nibabel|pydicom")


def natural(text) -> list:
    """Sort key that puts slice 9 before slice 10."""
    return [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", str(text))]


def suffix(path) -> str:
    """The file's ending in lower case, with both parts of `.nii.gz`."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem(path) -> str:
    """The file's name without its ending, without both parts of `.nii.gz`."""
    return Path(path).name[: -len(suffix(path)) or None]


# --- pictures -------------------------------------------------------------------------------------


@dataclass
class Picture:
    """A grey picture, float32 (H, W); `low` and `high` are the file's values of 0 and 1."""

    pixels: np.ndarray
    low: float
    high: float
    dtype: (
        str  # 'uint8', 'uint16' or 'float32': how the file stored it, and how results are written
    )


def read_picture(path) -> Picture:
    """Read a png, jpeg, tiff or bmp as grey, scaled to [0, 1].

    8-bit values are divided by 255. 16-bit and float files are scaled by their own range, as their
    largest value says little about brightness. Colour is converted with a warning, transparent
    pixels are black. Raises DataError for what cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    with as_data_error(path):
        try:
            image = Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP", "GIF"))
        except (UnidentifiedImageError, Image.DecompressionBombError):
            raise DataError(
                f"{path}: not a picture that can be read (png, jpeg, tiff), or far too large"
            ) from None
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels is too large")
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{path}: holds {image.n_frames} frames; save one slice a file")
            image.load()
            single = image.mode[0] in "IF"  # one channel of 16 or more bits
            values = np.asarray(image) if single else grey_values(image, path)
            pixels = values.astype(np.float32)
    if values.dtype == np.uint8:
        pixels /= 255
        return Picture(pixels, 0.0, 255.0, "uint8")
    if not np.isfinite(pixels).all():
        raise DataError(f"{path}: has NaN or infinite pixels; replace them first")
    low, high = min(float(pixels.min()), 0.0), float(pixels.max())
    high = high if high > low else low + 1
    dtype = "float32" if image.mode == "F" or low < 0 or high > 65535 else "uint16"
    pixels -= low
    pixels /= high - low
    return Picture(pixels, low, high, dtype)


def grey_values(image, path) -> np.ndarray:
    """The uint8 grey values of an 8-bit picture of any Pillow mode."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    if image.mode in ("L", "LA", "1", "La"):
        values = np.asarray(image.convert("L") if image.mode == "1" else image.getchannel(0))
    else:
        r, g, b = (np.asarray(channel) for channel in image.convert("RGB").split())
        spread = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)
        if spread.max(initial=0) > 12:  # JPEG makes greys differ by a little
            warn(f"{path}: is a colour picture; its luminance is used")
        values = np.asarray(image.convert("L"))
    if alpha is not None:
        values = (values.astype(np.uint16) * alpha // 255).astype(np.uint8)
    return values


def kind_of(path) -> str:
    """`picture`, `volume` or `dicom`, by a file's first bytes; by its name where they say nothing.

    '' for anything else. A `.nii` that is gzipped, a DICOM file without ending or a PNG called .dcm
    are what they are.
    """
    head = first_bytes(path)
    if head[128:132] == b"DICM":
        return "dicom"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "volume"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")):
        return "picture"
    kinds = {"picture": PICTURES, "volume": (*VOLUMES, ".hdr"), "dicom": DICOM}
    return next((kind for kind, endings in kinds.items() if suffix(path) in endings), "")


def first_bytes(path) -> bytes:
    """The first bytes of a file, unpacked if it is gzipped; none if it cannot be read."""
    try:
        if os.path.isfile(path):
            with unpacked(path) as file:
                return file.read(352)
    except (OSError, EOFError, zlib.error):  # whoever reads all of it says what is wrong
        pass
    return b""


def unpacked(path):
    """Open a file for reading, through gzip if it is gzipped."""
    file = open(path, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path)
    file.seek(0)
    return file


@dataclass
class Volume:
    """A scan as it is stored, in its own axes.

    stored: (X, Y, Z) or (X, Y, Z, T); the intensities are `stored * slope + inter`.
    affine: (4, 4), from voxel indices to mm in RAS. header: nibabel's NIfTI header with all this.
    """

    path: Path
    stored: np.ndarray
    slope: float
    inter: float
    affine: np.ndarray
    header: object

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

    def intensities(self, t: int = 0) -> np.ndarray:
        """Volume t in the scan's units, float32 (X, Y, Z). NaN and infinity become 0, and said."""
        data = self.stored if self.stored.ndim == 3 else self.stored[..., t]
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
        if (self.slope, self.inter) != (1, 0):
            data = data * np.float32(self.slope) + np.float32(self.inter)
        bad = ~np.isfinite(data)
        if bad.any():
            warn(f"{self.path}: {int(bad.sum())} NaN or infinite voxels were set to 0")
            data[bad] = 0
        return data


def read_volume(path, files=()) -> Volume:
    """Read a NIfTI, FreeSurfer (mgz), Analyze or DICOM scan.

    files: the files of a DICOM series; without them `path` is one file. Raises DataError for what
    cannot be read, has more than four dimensions, complex numbers or colours.
    """
    path = Path(path)
    if files or kind_of(path) == "dicom":
        from dicom import read_dicom

        return read_dicom(path, files or (path,))
    import nibabel as nib

    nib.imageglobals.logger.setLevel("CRITICAL")  # what cannot be read is said once, by us
    with as_data_error(path), unpacked(path) as stream:
        size = path.stat().st_size * (1032 if isinstance(stream, gzip.GzipFile) else 1)
        if suffix(path) in (".img", ".hdr"):  # two files, found by their names
            image = nib.load(path)
            size = path.with_suffix(".img").stat().st_size
        else:
            head = first_bytes(path)
            kinds = ((344, b"n+1", nib.Nifti1Image), (4, b"n+2", nib.Nifti2Image))
            kinds += ((0, b"\0\0\0\1", nib.MGHImage),)
            kind = next((k for at, magic, k in kinds if head[at:].startswith(magic)), None)
            if not kind:
                raise DataError(f"{path}: not a volume that can be read (nii, mgz, img, dcm)")
            image = kind.from_file_map(kind.make_file_map({"image": stream}))
        shape, dtype, proxy = image.shape, image.get_data_dtype(), image.dataobj
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise DataError(f"{path}: has shape {image.shape}; 3-D and 4-D volumes can be read")
        if dtype.kind not in "iuf":
            raise DataError(f"{path}: holds {dtype} values; only plain grey values can be read")
        if np.prod(shape, dtype=float) * dtype.itemsize > size:  # deflate packs 1032:1 at best
            raise DataError(f"{path}: is cut short, or its header is wrong (it says {shape})")
        stored = np.asarray(proxy.get_unscaled()).reshape(shape + (1,) * (3 - len(shape)))
        affine, header = image.affine, image.header
        if not isinstance(image, nib.Nifti1Pair):
            header = nifti_header(affine, 1 if isinstance(image, nib.MGHImage) else 2)
        if not is_usable(affine):
            warn(f"{path}: has no usable position and voxel size; 1 mm is assumed")
            affine, header = np.eye(4), nifti_header(np.eye(4), 0)
        return Volume(path, stored, float(proxy.slope), float(proxy.inter), affine, header)


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine says where the voxels are and which way each axis runs."""
    import nibabel as nib

    good = np.abs(affine).max() < 1e9 and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return bool(good) and not np.isnan(nib.io_orientation(affine)).any()


def nifti_header(affine: np.ndarray, code: int):
    """A NIfTI header with this affine, in mm. code: 1 scanner, 2 aligned, 0 unknown."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code)
    header.set_sform(affine, code)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):  # sheared: only the sform can say so
        header["qform_code"] = 0
    return header


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume as a view whose axes run to the right, to the front and up."""
    import nibabel as nib

    return nib.orientations.apply_orientation(volume, nib.io_orientation(affine))


def slices_of(ras: np.ndarray, plane: str) -> np.ndarray:
    """The slices of a RAS volume as a view (S, H, W): rows from the top or the front."""
    return np.moveaxis(ras, PLANES.index(plane), 0).swapaxes(1, 2)[:, ::-1]


def intensity_range(volume: np.ndarray) -> tuple[float, float]:
    """The values of a scan that become 0 and 1: one robust range for the whole volume.

    1 is the 99.8th percentile of the foreground, 0 is zero, or the 0.1st percentile where a scan
    has negative values.
    """
    sample = volume[tuple(slice(None, None, max(1, s // 128)) for s in volume.shape)]
    low = min(0.0, float(np.percentile(sample, 0.1)))
    foreground = sample[sample > low + 0.05 * (np.percentile(sample, 99.9) - low)]
    high = float(np.percentile(foreground, 99.8)) if foreground.size else low
    return low, high if high > low else low + 1.0


def volume_slices(path, axis="axial", count=0, files=(), levels=255) -> list:
    """The usable slices of a scan as [(index, (H, W))], upright, cut to the head's box.

    axis: `axial`, `coronal`, `sagittal` or `all`. A slice is usable where at least a tenth of the
    box is foreground. count: only that many, centred in the head, one scan's share as in ADNI's
    20; 0: all. files: of a DICOM series. levels: 255 gives uint8, 65535 uint16.
    """
    volume = read_volume(path, files)
    if volume.stored.ndim == 4:
        warn(f"{path}: the first of its {volume.stored.shape[3]} volumes is used")
    data = to_ras(volume.intensities(), volume.affine)
    low, high = intensity_range(data)
    foreground = data > low + 0.05 * (high - low)
    box = []
    for other in ((1, 2), (0, 2), (0, 1)):
        filled = np.flatnonzero(foreground.any(axis=other))
        if not filled.size:
            return []
        box.append(slice(max(0, filled[0] - 8), filled[-1] + 9))
    data, foreground = data[tuple(box)], foreground[tuple(box)]
    data = np.clip((data - low) / (high - low) * levels + 0.5, 0, levels)
    data = data.astype(np.uint8 if levels == 255 else np.uint16)
    found = []
    for plane in PLANES if axis == "all" else (axis,):
        slices = slices_of(data, plane)
        usable = np.flatnonzero(slices_of(foreground, plane).mean(axis=(1, 2)) >= 0.1)
        if count and usable.size > count:
            start = (usable.size - count) // 2
            usable = usable[start : start + count]
        found += [(int(i) + box[PLANES.index(plane)].start, slices[i]) for i in usable]
    return found

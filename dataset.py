"""From files on disk to slices, subject-wise splits and LR/HR batches.

Reads pictures (png, jpeg, tiff, bmp) and volumes, knows whose slice it is, splits by subject,
keeps all slices in one uint8 file and degrades them: the same functions for training,
evaluation and figures.

    python dataset.py SCANS SLICES     turn volumes or DICOM series into a folder of slices
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import time
import warnings
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils import (
    DataError,
    Parser,
    UsageError,
    atomic_write,
    one_line,
    reading,
    reason,
    run_main,
    say,
    whole,
)

SCALE = 4
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img")
DICOM = (".dcm", ".dicom", ".ima")
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of RAS
DEGRADATIONS = ("bicubic", "bilinear", "bilinear-plain", "kspace")
MIXED = (0.4, 0.2, 0.2, 0.2)  # share of each of them in training with --degradation mixed
MAX_PIXELS = 2**25  # a picture or slice beyond this is refused before its pixels are read

# A damaged file is refused or read; what the readers have to say besides is of no use.
warnings.filterwarnings("ignore", module="PIL|nibabel|pydicom")

# --- degradation: HR slice -> LR slice ------------------------------------------------------------


@lru_cache(maxsize=256)
def axis_matrix(name: str, size: int, device: str = "cpu") -> torch.Tensor:
    """The degradation along one axis as a matrix, float32 (k, size / 4, size).

    Every degradation here is linear and separable, so LR = A_h HR A_w^T. k is 1; for `kspace` it is
    2, the real and the imaginary part of the cropped Fourier transform. Row i is centred on HR
    coordinate 4 i + 1.5, the sample grid of `align_corners=False`.
    """
    small = size // SCALE
    if name == "kspace":
        # Centre crop of the spectrum, with the linear phase that moves sample i to 4 i + 1.5.
        k = torch.arange(-(small // 2), small - small // 2, dtype=torch.float64)
        shift = 4 * torch.arange(small)[:, None] + 1.5 - torch.arange(size)
        angle = 2 * torch.pi / size * shift.double()
        matrix = torch.polar(torch.ones(1, dtype=torch.float64), angle[..., None] * k).sum(-1)
        matrix = torch.view_as_real(matrix / size).permute(2, 0, 1)
    else:
        # PyTorch's own resampling of the unit vectors: the definition, not an approximation of it.
        mode, antialias = name.split("-")[0], name != "bilinear-plain"
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        matrix = F.interpolate(unit, (small, size), mode=mode, antialias=antialias)[0]
    return matrix.float().contiguous().to(device)


def apply_axes(hr: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """LR = down HR across^T with `axis_matrix`es or windows of them; not clamped, not rounded."""
    h, w = down.shape[-2], across.shape[-2]
    lr = down.flatten(-3, -2) @ hr @ across.flatten(-3, -2).mT
    if lr.shape[-1] == w:
        return lr
    real = lr[..., :h, :w] - lr[..., h:, w:]
    imaginary = lr[..., :h, w:] + lr[..., h:, :w]
    return torch.hypot(real, imaginary)


def quantise(lr: torch.Tensor) -> torch.Tensor:
    """Clamp to [0, 1] and round to 8 bits: the LR picture as a file would hold it."""
    return lr.clamp(0, 1).mul_(255).round_().div_(255)


def degrade(hr: torch.Tensor, name: str, rounded: bool = True) -> torch.Tensor:
    """The LR slices of HR slices: (N, 1, H, W) in [0, 1] -> (N, 1, H / 4, W / 4), 8-bit levels.

    name: `bicubic` and `bilinear` (antialiased), `bilinear-plain` (not antialiased), `kspace` (the
    magnitude of the central sixteenth of the 2-D Fourier transform). H and W are multiples of 4
    (`crop_to_scale`). rounded: False leaves out clamping and rounding.
    """
    if hr.shape[-2] % SCALE or hr.shape[-1] % SCALE:
        raise ValueError(f"{tuple(hr.shape)}: height and width must be multiples of {SCALE}")
    down, across = (axis_matrix(name, size, str(hr.device)) for size in hr.shape[-2:])
    lr = apply_axes(hr, down, across)
    return quantise(lr) if rounded else lr


@lru_cache(maxsize=64)
def inverse_matrix(name: str, size: int, device: str = "cpu") -> torch.Tensor:
    """The pseudo-inverse (size, size / 4) of `axis_matrix`; of its real part for `kspace`."""
    return torch.linalg.pinv(axis_matrix(name, size)[0].double()).float().to(device)


def make_consistent(sr: torch.Tensor, lr: torch.Tensor, name: str) -> torch.Tensor:
    """SR slices, moved by what is needed to give back the measured LR when they are degraded again.

    sr (N, 1, 4 H, 4 W), lr (N, 1, H, W). With D the degradation and D+ its pseudo-inverse, this is
    SR + D+ (LR - D SR), the orthogonal projection: what D loses stays the network's, what it keeps
    is the scan's. A difference that the LR's rounding to 8 bits and clamping to [0, 1] explain
    counts as none. For `kspace` it replaces the centre of k-space by the measured one (but for the
    single Nyquist frequency, of which a magnitude picture holds too little). It helps if the
    degradation really is the named one.
    """
    (h, w), device = sr.shape[-2:], str(sr.device)
    again = axis_matrix(name, h, device)[0] @ sr @ axis_matrix(name, w, device)[0].T
    # A magnitude picture has lost the sign: the network's is the best guess.
    missing = (lr.copysign(again) if name == "kspace" else lr) - again
    missing = F.softshrink(missing, 0.5 / 255)
    if name != "kspace":
        missing = missing.where(lr > 0, missing.clamp(max=0)).where(lr < 1, missing.clamp(min=0))
    return sr + inverse_matrix(name, h, device) @ missing @ inverse_matrix(name, w, device).T


def crop_to_scale(hr):
    """Cut the last rows and columns so that both sizes are multiples of 4."""
    return hr[..., : hr.shape[-2] // SCALE * SCALE, : hr.shape[-1] // SCALE * SCALE]


# --- reading pictures and volumes -----------------------------------------------------------------


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
    with reading(path):
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
            say(f"{path}: is a colour picture; its luminance is used")
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
            say(f"{self.path}: {int(bad.sum())} NaN or infinite voxels were set to 0")
            data[bad] = 0
        return data


def read_volume(path, files=()) -> Volume:
    """Read a NIfTI, FreeSurfer (mgz), Analyze or DICOM scan.

    files: the files of a DICOM series; without them `path` is one file. Raises DataError for what
    cannot be read, has more than four dimensions, complex numbers or colours.
    """
    path = Path(path)
    if files or kind_of(path) == "dicom":
        return read_dicom(path, files or (path,))
    import nibabel as nib

    nib.imageglobals.logger.setLevel("CRITICAL")  # what cannot be read is said once, by us
    with reading(path), unpacked(path) as stream:
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
            say(f"{path}: has no usable position and voxel size; 1 mm is assumed")
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


def quiet_pydicom():
    """pydicom, without its remarks about how well files keep to the standard."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def dicom_series(files) -> list[tuple[str, str, str, tuple]]:
    """The series among the DICOM files of a folder: [(number, description, patient, files)].

    Pictures of one series that differ in size or direction (a localizer) count as several. Files
    without a picture (reports, DICOMDIR) are left out; one that cannot be read stands for itself.
    """
    pydicom = quiet_pydicom()
    tags = "SeriesInstanceUID SeriesNumber SeriesDescription PatientID Modality SOPClassUID Rows "
    tags = (tags + "Columns ImageOrientationPatient").split()
    groups = {}
    for file in files:
        try:
            with unpacked(file) as stream:
                ds = pydicom.dcmread(
                    stream, stop_before_pixels=True, force=True, specific_tags=tags
                )
            if "Rows" not in ds and ("SOPClassUID" in ds or ds.file_meta):
                continue
            direction = [round(float(x), 2) + 0.0 for x in ds.get("ImageOrientationPatient") or ()]
            key = (str(ds.SeriesInstanceUID), int(ds.Rows), int(ds.Columns), *direction)
            about = " ".join(str(ds.get(tag) or "") for tag in ("Modality", "SeriesDescription"))
            patient = str(ds.get("PatientID") or "")
            if re.fullmatch(r"\W*(anon\w*|unknown|none|patient|0*)\W*", patient, flags=re.I):
                patient = ""
            about = (str(ds.get("SeriesNumber") or ""), about.strip(), patient)
        except Exception:  # reading all of it says what is wrong
            key, about = (str(file),), ("", "cannot be read", "")
        groups.setdefault(key, (about, []))[1].append(file)
    found, seen = [], Counter()
    for (number, about, patient), members in groups.values():
        number = re.sub(r"\W", "", number) or "0"
        seen[number] += 1
        number += f"-{seen[number]}" if seen[number] > 1 else ""
        found.append((number, f"{about}, {len(members)} file(s)", patient, tuple(members)))
    return sorted(found, key=lambda series: natural(series[0]))


@dataclass
class Frame:
    """One slice of a DICOM series: position, direction of rows and columns, spacing in mm (LPS)."""

    pixels: np.ndarray
    position: np.ndarray | None
    direction: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    slope: float
    inter: float
    number: int


def dicom_frames(ds, file) -> list[Frame]:
    """The slices of a DICOM file: one, or many in a multi-frame file."""
    from pydicom.pixels import get_decoder

    count = int(ds.get("NumberOfFrames") or 1)
    if "Rows" not in ds or not any(k in ds for k in ("PixelData", "FloatPixelData")):
        raise DataError(f"{file}: holds no picture")
    if int(ds.get("SamplesPerPixel") or 1) != 1 or "MONOCHROME" not in ds.PhotometricInterpretation:
        raise DataError(f"{file}: is a colour picture, not a scan")
    voxels = int(ds.Rows) * int(ds.Columns) * count
    if voxels > max(MAX_PIXELS, 100 * os.path.getsize(file)):  # many frames may be many pixels
        raise DataError(f"{file}: {count} frames of {ds.Rows}x{ds.Columns} pixels is too large")
    if "MOSAIC" in (ds.get("ImageType") or ()):
        raise DataError(f"{file}: is a Siemens mosaic; convert it to NIfTI first (dcm2niix)")
    try:
        pixels = ds.pixel_array.reshape(count, int(ds.Rows), int(ds.Columns))
    except RuntimeError as error:  # no decoder that can do it
        syntax = ds.file_meta.TransferSyntaxUID
        plugins = "; or ".join(
            " ".join(p.split()) for p in get_decoder(syntax).missing_dependencies
        )
        raise DataError(
            f"{file}: cannot be unpacked ({syntax.name}); install a plug-in: {plugins}"
        ) from error

    def value(i, name):
        """An attribute of frame i: its own, one that all frames share, or the file's."""
        for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            items = ds.get(groups) or []
            for element in items[i if len(items) == count else 0] if items else ():
                if element.VR == "SQ" and element.value and element.value[0].get(name) is not None:
                    return element.value[0].get(name)
        return ds.get(name)

    frames = []
    for i in range(count):
        position = value(i, "ImagePositionPatient")
        position = np.array(position, float) if position else None
        direction = np.array(value(i, "ImageOrientationPatient") or (1, 0, 0, 0, 1, 0), float)
        spacing = value(i, "PixelSpacing") or value(i, "ImagerPixelSpacing") or (1, 1)
        thickness = float(value(i, "SpacingBetweenSlices") or value(i, "SliceThickness") or 1)
        slope, inter = value(i, "RescaleSlope"), value(i, "RescaleIntercept")
        slope, inter = float(slope if slope is not None else 1), float(inter or 0)
        number = int(ds.get("InstanceNumber") or 0) if count == 1 else i
        spacing = tuple(float(x) for x in spacing)
        frames.append(
            Frame(pixels[i], position, direction, spacing, thickness, slope, inter, number)
        )
    return frames


def read_dicom(path, files) -> Volume:
    """The volume of a DICOM series, its slices sorted by their position along the slice normal.

    Where every position occurs T times (time points, echoes) the volume is (X, Y, Z, T). X runs
    along a picture's rows, Y down its columns. Raises DataError as `read_volume`.
    """
    pydicom = quiet_pydicom()
    frames = []
    for file in files:
        with reading(file), unpacked(file) as stream:
            ds = pydicom.dcmread(stream, force=True)
            frames += dicom_frames(ds, file)
            about = f"{ds.get('Modality', '')} {ds.get('SeriesDescription', '')}".strip()
    first = frames[0]
    shape = first.pixels.shape
    for frame in frames:
        if frame.pixels.shape != shape or not np.allclose(
            [*frame.direction, *frame.spacing], [*first.direction, *first.spacing], atol=1e-2
        ):
            raise DataError(f"{path}: its pictures differ in size or direction; not one volume")
    along, down = first.direction[:3], first.direction[3:]
    normal = np.cross(along, down)
    if not abs(np.linalg.norm(normal) - 1) < 0.01 or not min(first.spacing) > 0:
        raise DataError(f"{path}: its position or pixel size makes no sense")
    if any(f.position is None for f in frames) or (
        len(frames) > 1
        and len(files) == 1
        and not np.ptp([f.position for f in frames], axis=0).any()
    ):
        if len(frames) > 1:
            say(f"{path}: does not say where its slices lie; they are stacked in order")
        start = first.position if first.position is not None else np.zeros(3)
        for i, frame in enumerate(sorted(frames, key=lambda f: f.number)):
            frame.position = start + i * abs(first.thickness) * normal

    # Positions first, and at each of them the time points.
    depth = np.array([frame.position @ normal for frame in frames])
    order = np.lexsort(([frame.number for frame in frames], depth))
    level = np.cumsum(np.diff(depth[order], prepend=depth[order[0]]) > 0.01)
    times = np.bincount(level)
    if np.ptp(times):
        words = f"{times.min()} to {times.max()} pictures at one position"
        raise DataError(f"{path}: has {words}; files are missing, or it is more than one scan")
    frames = [frames[i] for i in order]
    n, t = len(times), int(times[0])
    corners = np.array([frame.position for frame in frames[::t]])
    step = (corners[-1] - corners[0]) / (n - 1) if n > 1 else normal * abs(first.thickness)
    apart = np.abs(corners - corners[0] - np.arange(n)[:, None] * step).max()
    if apart > 0.1 * np.linalg.norm(step):
        say(f"{path}: its slices are not evenly spaced (up to {apart:.2g} mm off): is one missing?")
    affine = np.eye(4)  # from (column, row, slice) to LPS, then to RAS
    affine[:3] = np.stack([along * first.spacing[1], down * first.spacing[0], step, corners[0]], 1)
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    if not is_usable(affine):
        raise DataError(f"{path}: its position or pixel size makes no sense")

    same = all((f.slope, f.inter) == (first.slope, first.inter) for f in frames)
    dtype = np.result_type(*{f.pixels.dtype for f in frames}) if same else np.float32
    stored = np.empty((shape[1], shape[0], n, t), dtype, order="F")
    for i, f in enumerate(frames):
        stored[..., i // t, i % t] = (f.pixels if same else f.pixels * f.slope + f.inter).T
    header = nifti_header(affine, 1)
    header["descrip"] = about.encode("ascii", "replace")[:79]
    slope, inter = (first.slope, first.inter) if same else (1.0, 0.0)
    return Volume(Path(path), stored if t > 1 else stored[..., 0], slope, inter, affine, header)


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
        say(f"{path}: the first of its {volume.stored.shape[3]} volumes is used")
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


# --- whose slice it is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A file to read slices from. group is the class folder (AD, NC …), split train, test or ''.

    For a DICOM series path is its folder, or its only file; series is its number.
    """

    path: Path
    subject: str
    group: str
    split: str
    files: tuple = ()
    series: str = ""
    about: str = ""


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


# How subjects are called in BIDS, ADNI and OASIS, wherever it stands in a name.
SUBJECT = r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+|\d{3}_S_\d{4,5}|OAS\d_\d{4}|OAS3\d{4})"


def subject_of(path: Path, folders: tuple[str, ...], patient: str = "") -> str:
    """Whose scan a file is: BIDS `sub-XX`, else `<scan id>_<slice>`, else its folder's name.

    folders: the folders between the data folder and the file, without the split. patient: what a
    DICOM file says.
    """
    for part in (path.name, *reversed(folders)):
        known = re.search(SUBJECT, part)
        if known:
            return known.group()
    if patient:
        return patient
    name = stem(path)
    if suffix(path) in VOLUMES:
        return re.split(r"_(?:study|ses|visit|T1|T2|FLAIR|desc)", name, flags=re.I)[0]
    scan, _, number = name.rpartition("_")
    generic = re.fullmatch(r"(slice|img|image|im|axial|scan|frame|t1w?|mri?)?[\W_]*", scan.lower())
    if generic or not re.search(r"\d", number):
        return folders[-1] if folders and generic else name
    return scan


def find_scans(root) -> list[Scan]:
    """All pictures, volumes and DICOM series below a folder, in natural order.

    Raises DataError if there are none, or if a subject is in both `train` and `test`.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; --data takes the folder of a data set")
    scans, seen = [], set()

    def leave_out(error):
        say(f"left out: {error.filename}: {reason(error)}")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=leave_out):
        real = os.path.realpath(folder)
        folders[:] = (
            [] if real in seen else sorted((f for f in folders if f[0] != "."), key=natural)
        )
        if real in seen:  # a link to a folder that was read already
            continue
        seen.add(real)
        parts = Path(folder).relative_to(root).parts
        split = next((p.lower() for p in parts if p.lower() in ("train", "test")), "")
        inner = tuple(p for p in parts if p.lower() not in ("train", "test"))
        group = inner[0] if split and inner and not inner[0].startswith("sub-") else ""
        dicom = []
        for name in sorted((name for name in files if name[0] != "."), key=natural):
            path = Path(folder, name)
            kind = kind_of(path) if suffix(path) not in PICTURES + VOLUMES else ""
            if kind == "dicom":
                dicom.append(path)
            elif suffix(path) in PICTURES + VOLUMES or (
                kind == "volume" and suffix(path) != ".hdr"
            ):
                scans.append(Scan(path, subject_of(path, inner), group, split))
        for number, about, patient, members in dicom_series(dicom) if dicom else ():
            # Without a name in the files, the uppermost folder is the subject's.
            path = Path(folder) if len(members) > 1 else members[0]
            patient = patient or (*inner[bool(group) :], stem(path))[0]
            subject = subject_of(path, inner, patient)
            scans.append(Scan(path, subject, group, split, members, number, about))
    if not scans:
        raise DataError(f"{root}: holds no slices (png, jpeg, tiff) and no volumes (nii, mgz, dcm)")
    return scans


def split_subjects(scans: list[Scan], seed: int, validate: float = 0.1, test: float = 0.15) -> dict:
    """Assign every subject to `train`, `val` or `test`: {subject: split}.

    The data set's own `train` and `test` folders are kept; what is missing is taken out of the
    rest by a seeded shuffle of subjects, the same share of each class, at least one subject.
    Raises DataError if a subject is in both folders or there are too few subjects.
    """
    where = os.path.commonpath([scan.path for scan in scans]) or "."
    given, groups = defaultdict(set), defaultdict(dict)
    for scan in scans:
        given[scan.subject].add(scan.split)
        groups[scan.group][scan.subject] = None  # an ordered set: thousands of subjects are quick
    both = sorted((s for s, splits in given.items() if len(splits) > 1), key=natural)
    if both:
        names = ", ".join(both[:5])
        raise DataError(
            f"{where}: {len(both)} subject(s) are in train and in test too ({names}); keep each in "
            "one of them"
        )
    split = {s: "test" if splits == {"test"} else "train" for s, splits in given.items()}
    wanted = {"val": validate, "test": 0 if "test" in split.values() else test}
    wanted = {name: share for name, share in wanted.items() if share}
    left = list(split.values()).count("train")
    if left <= len(wanted):
        raise DataError(
            f"{where}: {left} subject(s){'' if 'test' in wanted else ' outside test'} are too few: "
            f"{len(wanted) + 1} are needed, for train, {' and '.join(wanted)}"
        )
    rng = np.random.default_rng(seed)
    order = {g: rng.permutation(sorted(s, key=natural)).tolist() for g, s in sorted(groups.items())}
    for name, share in wanted.items():
        # Deal subjects class by class, so that every class gives its share.
        pools = [[s for s in subjects if split[s] == "train"] for subjects in order.values()]
        take = [round(share * len(pool)) for pool in pools]
        if not any(take):
            take[int(np.argmax([len(pool) for pool in pools]))] = 1
        for pool, n in zip(pools, take):
            split |= dict.fromkeys(pool[:n], name)
    return split


# --- all slices in one file -----------------------------------------------------------------------


@dataclass
class Slices:
    """Slices of one split. Pixels lie in one uint8 file; only what is asked for is read."""

    file: Path
    offset: np.ndarray  # (n,) int64, where a slice starts in the file
    shape: np.ndarray  # (n, 2) int32, its height and width
    subject: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str, its class or ''
    name: np.ndarray  # (n,) str, its path, for a slice of a volume with #index

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, i: int) -> np.ndarray:
        """Slice i as uint8 (H, W). Read, not mapped: pages of a mapping would count as memory."""
        h, w = self.shape[i].tolist()
        return np.fromfile(self.file, np.uint8, h * w, offset=int(self.offset[i])).reshape(h, w)

    def take(self, chosen) -> "Slices":
        """The slices with these indices (or this mask)."""
        arrays = (self.offset, self.shape, self.subject, self.group, self.name)
        return Slices(self.file, *(a[chosen] for a in arrays))

    def counts(self) -> str:
        """Subjects and slices in words, by class."""
        words = f"{len(set(self.subject))} subjects, {len(self)} slices"
        parts = [
            f"{g} {len(set(self.subject[self.group == g]))}/{(self.group == g).sum()}"
            for g in sorted(set(self.group) - {""})
        ]
        return words + (f" ({', '.join(parts)})" if parts else "")


def scan_slices(scan: Scan, axis: str, count: int) -> list[tuple[str, np.ndarray]]:
    """Named uint8 slices of one file: one of a picture, many of a volume."""
    if scan.files or kind_of(scan.path) in ("volume", "dicom"):
        slices = volume_slices(scan.path, axis, count, scan.files)
        if not slices:
            raise DataError(f"{scan.path}: no slice with enough foreground")
        return [(f"{scan.path}#{n}", pixels) for n, pixels in slices]
    pixels = read_picture(scan.path).pixels
    if min(pixels.shape) < SCALE:
        raise DataError(
            f"{scan.path}: {pixels.shape[1]}x{pixels.shape[0]} is too small to train on"
        )
    return [(str(scan.path), (pixels * 255 + 0.5).astype(np.uint8))]


def fingerprint(scans: list[Scan], *options) -> str:
    """A digest of the files' names, sizes and times: it changes when the data set does."""
    digest = hashlib.sha256(json.dumps(["cache 2", *options]).encode())
    for path in (path for scan in scans for path in scan.files or (scan.path,)):
        try:
            about = path.stat()
            words = f"{about.st_size}|{about.st_mtime_ns}"
        except OSError:  # such as a broken link; reading it says what is wrong
            words = "gone"
        digest.update(os.fsencode(f"{path}|{words}\n"))
    return digest.hexdigest()[:16]


def load_slices(scans: list[Scan], cache, *, axis="axial", count=0, workers=2, progress=None):
    """All slices of all scans, decoded once: (Slices, fingerprint, number of files left out).

    The pixels are kept in `cache`/<fingerprint>.u8 and found again on the next call. Both files
    appear under their names only when they are whole. progress: wraps the iteration over scans.
    A file that cannot be read is named and left out.
    """
    key = fingerprint(scans, axis, count)
    pixels_file, index_file = (Path(cache, f"{key}.{end}") for end in ("u8", "npz"))
    index = read_index(index_file, pixels_file)
    if index is None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        for left in Path(cache).glob(f".{key}.*.part"):  # of a process that was killed while at it
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        offset, shape, owner, name, bad = [], [], [], [], []

        def read(scan):
            try:
                return scan_slices(scan, axis, count)
            except DataError as error:
                return error

        position = 0
        numbered = iter(progress(scans) if progress else scans)
        with atomic_write(pixels_file) as file, ThreadPoolExecutor(workers) as pool:
            # A few scans at a time: what waits to be written is bounded.
            for start in range(0, len(scans), 4 * workers):
                part = list(islice(numbered, 4 * workers))
                for i, found in enumerate(pool.map(read, part), start):
                    if isinstance(found, DataError):
                        say(f"left out: {found}")
                        bad.append(i)
                        continue
                    for label, array in found:
                        file.write(np.ascontiguousarray(array).data)
                        offset.append(position)
                        shape.append(array.shape)
                        owner.append(i)
                        name.append(label)
                        position += array.size
            if not offset:
                raise DataError(f"{scans[0].path.parent}: no slice could be read from any file")
        index = dict(
            offset=np.array(offset),
            shape=np.array(shape, np.int32),
            owner=np.array(owner),
            name=np.array(name),
            bad=np.array(bad),
        )
        buffer = io.BytesIO()  # writing to a full disk, np.savez would raise anything
        np.savez(buffer, **index)
        with atomic_write(index_file) as file:
            file.write(buffer.getbuffer())
    owner = index["owner"]
    subject = np.array([s.subject for s in scans])[owner]
    group = np.array([s.group for s in scans])[owner]
    slices = Slices(pixels_file, index["offset"], index["shape"], subject, group, index["name"])
    return slices, key, len(index["bad"])


def read_index(index_file: Path, pixels_file: Path) -> dict | None:
    """The arrays of a cache's index; None if there is none, or if either file is not whole."""
    try:
        with np.load(index_file) as file:
            index = dict(file)
        end = index["offset"][-1] + index["shape"][-1].prod()
        return index if pixels_file.stat().st_size == end else None
    except Exception:  # a damaged file can fail anywhere in there, and is made again
        return None


def demo_slices(cache) -> tuple[dict[str, Slices], str]:
    """Train, validation and test slices of the ICBM152 average brain that comes with nilearn.

    Axial slices at 1 mm, in three slabs with gaps of 6 mm, as neighbouring slices are almost the
    same picture: the test slab at the height of the temporal lobes, validation, train above.
    """
    from nilearn.datasets import load_mni152_template

    file = Path(cache, "mni152.u8")
    data = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    low, high = intensity_range(data)
    data = np.clip((data - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)
    data = np.ascontiguousarray(
        data.transpose(2, 1, 0)[:, ::-1]
    )  # RAS: from below, rows from the front
    file.parent.mkdir(parents=True, exist_ok=True)
    if not (file.exists() and file.stat().st_size == data.size):
        with atomic_write(file) as out:
            out.write(data.data)
    n, h, w = data.shape
    every = Slices(
        file,
        np.arange(n) * h * w,
        np.full((n, 2), (h, w), np.int32),
        np.full(n, "ICBM152"),
        np.full(n, ""),
        np.array([f"axial {i}" for i in range(n)]),
    )
    slabs = {"test": range(26, 50), "val": range(56, 64), "train": range(70, 150)}
    return {split: every.take(np.array(slab)) for split, slab in slabs.items()}, "mni152"


# --- batches --------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n slices."""
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def onto(array: np.ndarray, device: str) -> torch.Tensor:
    """The array as a tensor on the device; from pinned memory, a copy to CUDA does not wait."""
    tensor = torch.from_numpy(array)
    tensor = tensor.pin_memory() if device.startswith("cuda") else tensor
    return tensor.to(device, non_blocking=True)


def training_batch(
    slices: Slices,
    iteration: int,
    *,
    seed: int,
    batch_size: int,
    patch: int,
    degradation: str,
    augment: bool = True,
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LR (N, 1, P, P) and HR (N, 1, 4 P, 4 P) of one training step.

    A pure function of (seed, iteration): nothing has to be stored to resume, and `world` processes
    that each make their share (every world-th sample) see together what one process would.
    The whole slice is degraded, and of the result only the patch is computed: patches carry no
    trace of having been cut out. patch: in LR pixels; 0: whole slices.
    augment: flips, quarter turns, the LR grid at any HR pixel, brightness; with `mixed` more of it,
    and noise.
    """
    dice = np.random.default_rng([seed, 2, iteration]).random((batch_size, 10))
    numbers = iteration * batch_size + np.arange(batch_size)
    chosen = [shuffled(len(slices), seed, n // len(slices))[n % len(slices)] for n in numbers]
    if patch:
        height = width = patch
    else:
        height, width = (slices.shape[chosen].max(axis=0) // SCALE).tolist()
    mixture = np.searchsorted(np.cumsum(MIXED[:-1]), dice[:, 5], side="right")
    samples = []
    for b in range(rank, batch_size, world):
        d = dice[b]
        name = DEGRADATIONS[mixture[b]] if degradation == "mixed" else degradation
        hr = slices[chosen[b]]
        if augment:  # all of this only changes how the same pixels are looked at
            hr = hr[:: 1 if d[7] < 0.5 else -1, :: 1 if d[8] < 0.5 else -1]
            hr = hr.T if d[9] < 0.5 and patch else hr
            top, left = (min(int(4 * x), s - SCALE) for x, s in zip(d[:2], hr.shape))
            hr = hr[top:, left:]
        hr = crop_to_scale(hr)
        missing = [max(0, SCALE * p - s) for p, s in zip((height, width), hr.shape)]
        if any(missing):
            hr = np.pad(hr, [(0, m) for m in missing])
        # Along each axis: where the patch starts, and which HR samples its LR samples are made of.
        reach = max(hr.shape) if name == "kspace" else 2 * SCALE
        matrices, window, inside = [], [], []
        for size, p, where in zip(hr.shape, (height, width), d[2:4]):
            first = int(where * (size // SCALE - p + 1))
            begin, end = max(0, SCALE * first - reach), min(size, SCALE * (first + p) + reach)
            matrices.append(axis_matrix(name, size)[:, first : first + p, begin:end].numpy())
            window.append(slice(begin, end))
            inside.append(slice(SCALE * first - begin, SCALE * (first + p) - begin))
        gain = 1 - (0.8 if degradation == "mixed" else 0.3) * d[4] if augment else 1.0
        samples.append((hr[tuple(window)], matrices, inside, gain, b))

    lr = torch.empty(len(samples), height, width, device=device)
    hr = torch.empty(len(samples), SCALE * height, SCALE * width, device=device)
    for parts in (1, 2):  # k-space samples need whole slices and complex matrices, others do not
        group = [i for i, sample in enumerate(samples) if len(sample[1][0]) == parts]
        if not group:
            continue
        # Stacked with zeros around, so that a batch takes two matrix products, not two a sample.
        tall, wide = (max(samples[i][0].shape[axis] for i in group) for axis in (0, 1))
        pixels = np.zeros((len(group), tall, wide), np.uint8)
        down = np.zeros((len(group), parts, height, tall), np.float32)
        across = np.zeros((len(group), parts, width, wide), np.float32)
        for n, i in enumerate(group):
            window, matrices, *_ = samples[i]
            pixels[n, : window.shape[0], : window.shape[1]] = window
            down[n, ..., : window.shape[0]], across[n, ..., : window.shape[1]] = matrices
        gain = np.array([[[samples[i][3] / 255]] for i in group], np.float32)
        pixels, down, across, gain = (onto(a, device) for a in (pixels, down, across, gain))
        pixels = pixels.float().mul_(gain)
        small = apply_axes(pixels, down, across)
        for n, i in enumerate(group):
            lr[i], hr[i] = small[n], pixels[n][tuple(samples[i][2])]
    if degradation == "mixed":  # in half of the slices a little scanner noise, up to 1 % of white
        noise = np.random.default_rng([seed, 3, iteration]).standard_normal(
            (batch_size, height, width), np.float32
        )
        noise *= 0.02 * np.maximum(0, 0.5 - dice[:, 6, None, None]).astype(np.float32)
        lr += onto(noise[rank::world], device)
    return quantise(lr[:, None]), hr[:, None]


# --- from scans to a folder of slices -------------------------------------------------------------


def height_width(text: str) -> tuple[int, int]:
    """An argparse type: `240x256` as (240, 256)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and 4 <= int(height) * int(width) <= 2**26):
        raise ValueError
    return int(height), int(width)


def read_classes(source: Path, spec: str) -> dict[str, str]:
    """{subject without `sub-`: class} from `table.tsv:column`, looked for in the data folder too.

    The subjects are in the column participant_id, Subject or PTID, or else in the first one.
    Raises UsageError for a table or column that is not there.
    """
    name, _, column = spec.rpartition(":")
    path = next((p for p in (Path(name), source / name) if name and p.is_file()), None)
    if path is None:
        raise UsageError(f"--classes {spec}: no such table; give FILE:COLUMN")
    with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="," if suffix(path) == ".csv" else "\t"))
    columns = list(rows[0]) if rows else []
    if column not in columns:
        raise UsageError(f"--classes {spec}: {path} has the columns {', '.join(map(str, columns))}")
    ids = next((c for c in ("participant_id", "Subject", "PTID") if c in columns), columns[0])
    classes = {}
    for row in rows:
        subject, group = ((row[c] or "").strip() for c in (ids, column))
        if group.lower() not in ("", "n/a", "nan"):
            classes.setdefault(subject.removeprefix("sub-"), group)
    return classes


def crop_and_pad(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A slice cut and padded with zeros about its centre to (H, W); never resampled."""
    for axis, (have, want) in enumerate(zip(pixels.shape, size)):
        start = max(0, (have - want) // 2)
        pixels = pixels.take(range(start, min(have, start + want)), axis)
        before = (want - pixels.shape[axis]) // 2
        around = [(0, 0), (0, 0)]
        around[axis] = before, want - pixels.shape[axis] - before
        pixels = np.pad(pixels, around)
    return pixels


def slice_names(scans: list[Scan]) -> list[str]:
    """For each scan the beginning of its slices' names, from which `subject_of` knows the subject.

    The subject, and `_scan-<n>` where there are several of one.
    """
    names, label_of, number = [], {}, Counter()
    total = Counter(scan.subject for scan in scans)
    for scan in scans:
        subject = scan.subject
        number[subject] += 1
        end = f"_scan-{number[subject]}" if total[subject] > 1 else ""
        if subject not in label_of:
            label = re.sub(r"[^A-Za-z0-9.-]", "_", subject).strip(".-_")
            if not label or subject_of(Path(f"{label}{end}_001.png"), ()) != label:
                label = "sub-" + (re.sub(r"[^A-Za-z0-9]", "", subject) or "x")
            taken = {other.casefold() for other in label_of.values()}
            while label.casefold() in taken:
                label += "x"
            label_of[subject] = label
        names.append(label_of[subject] + end)
    return names


def main(argv=None):
    """Turn scans into slices: {train,test}/{class}/<subject>_<slice>.png."""
    from PIL import Image
    from tqdm import tqdm

    parser = Parser("Turn a folder of scans into folders of slices, for train.py --data.")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of volumes (nii, mgz, img) or DICOM series")
    add("out", metavar="OUT", help="new folder for {train,test}/{class}/<subject>_<slice>.png")
    add("--slices", type=whole(0), default=20, help="central slices of a scan; 0: all usable")
    add("--axis", default="axial", choices=PLANES, help="plane of the slices")
    add("--size", type=height_width, metavar="HxW", help="cut and pad the slices, as 240x256")
    add("--classes", metavar="FILE:COLUMN", help="table of the subjects, as participants.tsv:group")
    add("--bits", type=int, default=8, choices=(8, 16), help="of the pictures")
    add("--test", type=float, default=0.15, help="share of the subjects to test on; 0: none")
    add("--seed", type=whole(0), default=0, help="of the split")
    add("--workers", type=whole(1, 64), default=2, help="threads that read and write")
    args = parser.parse_args(argv)
    source, out = Path(args.source), Path(args.out)
    if not 0 <= args.test < 1:
        parser.error("--test must be in [0, 1)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already; name a new folder")

    scans = [s for s in find_scans(source) if s.files or suffix(s.path) not in PICTURES]
    if not scans:
        raise DataError(f"{source}: holds no volumes (nii, mgz, img, dcm)")
    if args.classes:
        classes = read_classes(source, args.classes)
        group_of = {scan: classes.get(scan.subject.removeprefix("sub-"), "") for scan in scans}
        unknown = sorted({scan.subject for scan in scans if not group_of[scan]}, key=natural)
        if unknown:
            say(f"left out, without a class in {args.classes}: {', '.join(unknown)}")
        scans = [replace(scan, group=group_of[scan]) for scan in scans if group_of[scan]]
        if not scans:
            raise DataError(f"{args.classes}: has none of the subjects in {source}")
    split = split_subjects(scans, args.seed, validate=0, test=args.test)

    def convert(job):
        """Write the slices of one scan: their number, and whether they were cut."""
        scan, name = job
        group = re.sub(r"[^\w.-]", "_", scan.group).strip(".")
        folder = out / split[scan.subject] / group
        levels = 2**args.bits - 1
        try:
            slices = volume_slices(scan.path, args.axis, args.slices, scan.files, levels)
            if not slices:
                raise DataError(f"{scan.path}: has no usable {args.axis} slice")
            folder.mkdir(parents=True, exist_ok=True)
            for number, pixels in slices:
                picture = crop_and_pad(pixels, args.size) if args.size else pixels
                with atomic_write(folder / f"{name}_{number:03d}.png") as file:
                    Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")
        except DataError as error:
            return error
        return len(slices), bool(args.size) and any(np.greater(slices[0][1].shape, args.size))

    counts, failed, cut = Counter(), 0, 0
    with ThreadPoolExecutor(args.workers) as pool:
        results = pool.map(convert, zip(scans, slice_names(scans)))
        for scan, result in tqdm(zip(scans, results), total=len(scans), unit="scan"):
            if isinstance(result, DataError):
                failed += 1
                say(f"left out: {result}")
            else:
                counts[split[scan.subject], scan.group] += result[0]
                cut += result[1]
    if cut:
        say(f"{cut} scans are larger than {args.size[0]}x{args.size[1]} and were cut")
    for (part, group), n in sorted(counts.items()):
        subjects = {s.subject for s in scans if (split[s.subject], s.group) == (part, group)}
        print(one_line(f"{part}/{group}: {len(subjects)} subjects, {n} slices"))
    if not counts:
        raise DataError(f"{source}: no scan could be read")
    print("Try next:\n  " + one_line(f"python train.py --data {out}"))
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)

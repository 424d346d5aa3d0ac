"""One file to an array and back: what a file is, volumes with their geometry and units.

NIfTI, FreeSurfer and Analyze through nibabel; pictures and DICOM have files of their own.
A file is recognised by its content. What cannot be read is a DataError that names it.
"""

import gzip
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from scans.pictures import MAX_PIXELS, Picture, fit_type, not_readable, read_picture, write_picture
from utils import DataError, as_data_error, atomic_write, warn

__all__ = ["MAX_PIXELS", "Picture", "fit_type", "read_picture", "write_picture"]  # from pictures

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img")
UNREAD = (".gif", ".webp", ".jp2", ".heic", ".nrrd", ".mha", ".mnc", ".zip", ".bz2")  # but known
DICOM = (".dcm", ".dicom", ".ima")
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of RAS
RESULTS = "results of predict.py"
# How their names end.
OURS = re.compile(
    r".*_((x[2-8]|through-x[2-8])(_figure|_error)?|res-(simulated)?(x|throughx)\d_.*superres\w*)",
    re.IGNORECASE | re.DOTALL,
)
MANY_VOLUMES = 16  # a scan of more volumes is taken for fMRI or diffusion


def natural(text) -> list:
    """Sort key that puts slice 9 before slice 10."""
    return [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", str(text))]


def is_result(path: Path) -> bool:
    """Whether predict.py wrote a file: by its name, and the record that lies beside each result."""
    name = stem(path)
    record = re.sub("_(figure|error)$", "", name) + ".json"
    return bool(OURS.fullmatch(name)) and path.with_name(record).exists()


def suffix(path) -> str:
    """The file's ending in lower case, with both parts of `.nii.gz`."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem(path) -> str:
    """The file's name without its ending, without both parts of `.nii.gz`."""
    return Path(path).name[: -len(suffix(path)) or None]


# --- what a file is -------------------------------------------------------------------------------


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
    named = next((kind for kind, endings in kinds.items() if suffix(path) in endings), "")
    bare = re.match(rb"\x08\0[\0\x05\x08\x16\x18]\0(..\0\0|[A-Z]{2})", head, re.DOTALL)
    return named or ("dicom" if bare else "")  # old DICOM files begin with their first element


def first_bytes(path) -> bytes:
    """The first bytes of a file, unpacked if it is gzipped; none if it cannot be read."""
    try:
        if os.path.isfile(path):
            with unpacked(path) as file:
                return file.read(352)
    except (OSError, EOFError, isal_zlib.error):  # whoever reads all of it says what is wrong
        pass
    return b""


def unpacked(path):
    """Open a file for reading, through gzip if it is gzipped."""
    file = open(path, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return igzip.open(path)
    file.seek(0)
    return file


def open_gzip_for_writing(file):
    """A stream that packs into an open file, ten times as fast as Python's own at equal sizes."""
    return igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0)


# --- volumes --------------------------------------------------------------------------------------


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

    def to_stored(self, values: np.ndarray, dtype) -> np.ndarray:
        """Values in the scan's units as `output_like` holds them: unscaled, rounded, clipped."""
        if (self.slope, self.inter) != (1, 0):
            values = (values - np.float32(self.inter)) / np.float32(self.slope)
        return fit_type(values, dtype)

    def slices(self, array: np.ndarray, plane: str, t: int = 0) -> np.ndarray:
        """The slices (S, H, W) of an array in this volume's axes (its own, or an enlarged one), as
        a view: what is written into it lands in the array."""
        array = array if array.ndim == 3 else array[..., t]
        return slices_of(to_ras(array, self.affine), plane)


def output_like(volume: Volume, factors) -> np.ndarray:
    """An array of zeros for the volume enlarged by a factor along each of its own three axes.

    Integers stay what they are, everything else is float32. Fill it through `volume.slices` with
    what `volume.to_stored` makes, and give it to `write_volume`.
    """
    shape = [round(n * f) for n, f in zip(volume.stored.shape, factors)]
    kind = volume.stored.dtype
    kind = kind if kind.kind in "iu" else np.dtype(np.float32)
    return np.zeros((*shape, *volume.stored.shape[3:]), kind, order="F")


def write_volume(path, volume: Volume, out: np.ndarray, factors) -> Path:
    """Write enlarged voxels as compressed NIfTI, the outer edges of the grid where they were.

    path: ending in .nii.gz. out: as `output_like` makes it. factors: along the volume's own three
    axes. sform and qform keep their codes, the header its units and description.
    """
    import nibabel as nib

    header = volume.header.copy()
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
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(out, None, header)
    image.header.set_slope_inter(volume.slope, volume.inter)  # of voxels as they are stored
    with atomic_write(path) as file, open_gzip_for_writing(file) as packed:
        image.to_stream(packed)
    return Path(path)


def read_volume(path, force: bool = False) -> Volume:
    """Read a NIfTI, FreeSurfer (mgz) or Analyze scan; `dicom.read_scan` reads any scan.

    Raises DataError for what cannot be read, has more than four dimensions, complex numbers or
    colours, and without force for a scan of many volumes.
    """
    import nibabel as nib

    path = Path(path)
    nib.imageglobals.logger.setLevel("CRITICAL")  # what cannot be read is said once, by us
    with as_data_error(path), unpacked(path) as stream:
        size = path.stat().st_size * (1032 if isinstance(stream, gzip.GzipFile) else 1)
        if suffix(path) in (".img", ".hdr"):  # two files, found by their names
            image = nib.load(path)
            size = path.with_suffix(".img").stat().st_size
        else:
            head = stream.read(352)
            stream.seek(0)
            kinds = ((344, b"n+1", nib.Nifti1Image), (4, b"n+2", nib.Nifti2Image))
            kinds += ((0, b"\0\0\0\1", nib.MGHImage),)
            kind = next((k for at, magic, k in kinds if head[at:].startswith(magic)), None)
            if not kind:
                raise not_readable(path, head, "not a volume that can be read (nii, mgz, img, dcm)")
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
        check_not_functional(path, shape[3] if len(shape) == 4 else 1, force)
        stored = np.asarray(proxy.get_unscaled()).reshape(shape + (1,) * (3 - len(shape)))
        affine, header = image.affine, image.header
        if not isinstance(image, nib.Nifti1Pair):
            header = nifti_header(affine, 1 if isinstance(image, nib.MGHImage) else 2)
        if not is_usable(affine):
            warn(f"{path}: has no usable position and voxel size; 1 mm is assumed")
            affine, header = np.eye(4), nifti_header(np.eye(4), 0)
        return Volume(path, stored, float(proxy.slope), float(proxy.inter), affine, header)


def check_not_functional(path, volumes: int, force: bool, most: int = MANY_VOLUMES) -> None:
    """Refuse fMRI and diffusion: the network is made for anatomy, and they would take hours."""
    if volumes > most and not force:
        raise DataError(f"{path}: holds {volumes} volumes, as fMRI or diffusion does; this is made "
                        "for anatomy (--force takes it all the same)")  # fmt: skip


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
    """The values of a scan that become 0 and 1: one range for the whole volume.

    1 is the 99.8th percentile of the foreground. 0 is zero, or the smallest value where a scan has
    negative ones: a network that has seen nothing below 0 would answer with anything.
    """
    sample = volume[tuple(slice(None, None, max(1, s // 128)) for s in volume.shape)]
    low = min(0.0, float(volume.min()))
    foreground = sample[sample > low + 0.05 * (np.percentile(sample, 99.9) - low)]
    high = float(np.percentile(foreground, 99.8)) if foreground.size else low
    return low, high if high > low else low + 1.0

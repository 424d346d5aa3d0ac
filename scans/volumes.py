"""NIfTI, FreeSurfer and Analyze volumes to scans and back, through nibabel."""

import gzip
from pathlib import Path

import numpy as np

from scans.anatomy import is_label_map
from scans.formats import first_bytes, open_gzip_for_writing, partner, suffix, unpacked
from scans.pictures import not_readable
from scans.scan import PLANES, Scan
from utils import DataError, as_data_error, atomic_write, warn

MANY_VOLUMES = 16  # a scan of more volumes is taken for fMRI or diffusion
MM = {1: 1000.0, 3: 0.001}  # of a header's unit of length: metres, micrometres
# The RAS axes along rows, columns and slices, by the orientation byte of an Analyze header.
ANALYZE = {1: (0, 2, 1), 2: (1, 2, 0), 4: (0, 2, 1), 5: (1, 2, 0)}


def write_volume(path, scan: Scan) -> Path:
    """Write a scan as compressed NIfTI, whole or not at all. path: ending in .nii.gz."""
    import nibabel as nib

    header = scan.header
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(scan.stored, None, header)
    image.header.set_slope_inter(scan.slope, scan.inter)  # of voxels as they are stored
    with atomic_write(path) as file, open_gzip_for_writing(file) as packed:
        image.to_stream(packed)
    return Path(path)


def read_volume(path, force: bool = False) -> Scan:
    """Read a NIfTI, FreeSurfer (mgz) or Analyze scan; `scans.read` reads any file.

    Raises DataError for what cannot be read, has more than four dimensions, complex numbers or
    colours, and without force for a scan of many volumes and for a label map.
    """
    import nibabel as nib

    path = Path(path)
    nib.imageglobals.logger.setLevel("CRITICAL")  # what cannot be read is said once, by us
    with as_data_error(path), unpacked(path) as stream:
        size = path.stat().st_size * (1032 if isinstance(stream, gzip.GzipFile) else 1)
        if suffix(path)[:4] in (".img", ".hdr"):  # two files, found by their names
            pixels = partner(path, ".img")
            for part in (pixels, partner(path, ".hdr")):
                if not part.exists():
                    raise DataError(f"{path}: its {part.suffix} file is missing")
            image = nib.load(path)
            size = pixels.stat().st_size * (1032 if pixels.suffix.lower() == ".gz" else 1)
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
        least = image.header.single_vox_offset if getattr(image.header, "is_single", 0) else 0
        if proxy.offset < least:  # 0: behind the header
            about = (shape, dtype, least, proxy.slope, proxy.inter)
            proxy = nib.arrayproxy.ArrayProxy(stream, about)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise DataError(f"{path}: has shape {image.shape}; 3-D and 4-D volumes can be read")
        if dtype.kind not in "iuf":
            raise DataError(f"{path}: holds {dtype} values; only plain grey values can be read")
        if np.prod(shape, dtype=float) * dtype.itemsize > size:  # deflate packs 1032:1 at best
            raise DataError(f"{path}: is cut short, or its header is wrong (it says {shape})")
        check_not_functional(path, shape[3] if len(shape) == 4 else 1, force)
        longest, second, *_ = sorted((*shape[:3], 1), reverse=True)
        if longest > 100 * second and not force:
            raise DataError(f"{path}: is a table or a surface by its shape {shape}, no volume")
        stored = np.asarray(proxy.get_unscaled()).reshape(shape + (1,) * (3 - len(shape)))
        if not force and is_label_map(stored):
            words = "holds labels (whole numbers in patches, without noise), no anatomy"
            raise DataError(f"{path}: {words}; name it after its scan with --labels (--force takes "
                            "it all the same)")  # fmt: skip
        affine, header = place_of(path, image)
        if has_no_size(path, image):
            warn(f"{path}: its header has a voxel size of 0; 1 mm is assumed")
        if not is_usable(affine):
            warn(f"{path}: has no usable position and voxel size; 1 mm is assumed")
            affine, header = np.eye(4), nifti_header(np.eye(4), 0)
        return Scan(path, stored, float(proxy.slope), float(proxy.inter), affine, header)


def place_of(path, image):
    """(affine in mm, NIfTI header) of an image of nibabel."""
    import nibabel as nib

    affine, header = image.affine, image.header
    if isinstance(image, nib.MGHImage):
        return affine, nifti_header(affine, 1) if is_usable(affine) else None
    if not isinstance(image, nib.Nifti1Pair):  # Analyze
        byte = header["orient"].item() if "orient" in header else b""
        axes = ANALYZE.get(ord(byte or b"\0"))
        if axes and np.count_nonzero(affine[:3, :3]) == 3:  # else SPM's .mat file says it
            turned = np.zeros((4, 4))
            turned[axes, range(3)] = np.abs(np.diag(affine)[:3])
            turned[0] *= -1  # as in all Analyze files: from right to left
            turned[:3, 3] = turned[:3, :3] @ (1 - np.array(image.shape[:3])) / 2
            turned[3, 3], affine = 1, turned
            warn(f"{path}: its Analyze header says that the slices are {PLANES[axes[2]]}; which "
                 "side is left is a guess")  # fmt: skip
        return affine, nifti_header(affine, 2)
    if not is_usable(affine) and int(header["sform_code"]) and int(header["qform_code"]):
        header = header.copy()
        header["sform_code"] = 0
        affine = header.get_best_affine()
    unit = MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag((unit, unit, unit, 1.0)) @ affine, header


def has_no_size(path, image) -> bool:
    """Whether a header of 348 bytes gives 0 as a voxel size that counts; nibabel makes 1 of it."""
    hdr = path if getattr(image.header, "is_single", False) else partner(path, ".hdr")
    head = first_bytes(hdr)
    if int(image.header.get("sizeof_hdr", 0)) != 348 or int(image.header.get("sform_code", 0)):
        return False
    sizes = np.frombuffer(head[80:92], image.header.structarr.dtype["pixdim"].base)
    return bool((sizes[: min(3, len(image.shape))] == 0).any())


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

"""Files that tests make: PNGs, blobs, affines and DICOM series whose geometry is known."""

import itertools
import struct
import zlib

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dataset import Slices


def png(width, height, rows=b"", bits=8, channels=1) -> bytes:
    """A PNG whose header says this size, whatever it holds."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    colour = (0, 4, 2, 6)[channels - 1]
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(values) -> bytes:
    """A PNG of 16 bits in 1 to 4 channels."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, rows, 16, channels)


def with_alpha(values, channels):
    """The same grey in several channels, opaque."""
    values = np.repeat(values[..., None], channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = np.iinfo(values.dtype).max
    return values


def save_volume(path, data, affine=(1, 1, 1)):
    """Write a NIfTI volume; of its geometry the voxel sizes will do."""
    affine = np.asarray(affine, float)
    affine = np.diag([*affine, 1]) if affine.ndim == 1 else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def slices_of(file, volumes, planes=(2,), mm=(1.0, 1.0, 1.0)) -> Slices:
    """All slices of these planes of volumes (S, H, W), uint8, each of another person, stored as
    `dataset.load_parts` does it. mm: the distances of slices, rows and columns."""
    file.write_bytes(b"".join(np.ascontiguousarray(volume).tobytes() for volume in volumes))
    rows = [(v, plane, place) for v, volume in enumerate(volumes)
            for plane in planes for place in range(volume.shape[2 - plane])]  # fmt: skip
    volume, plane, place = np.array(rows).T
    start = np.cumsum([0, *(volume.size for volume in volumes)])[:-1]
    size = np.array([volume.shape for volume in volumes])
    who = np.array([f"p{v}" for v in volume])
    name = np.array([f"p{v}.nii#{p}-{n}" for v, p, n in rows])
    spacing = np.tile(mm, (len(volumes), 1))
    empty = np.full(len(rows), "")
    return Slices(file, start, size, spacing, volume, plane, place, who, empty, name)


def blob(shape, top=1000.0) -> np.ndarray:
    """A smooth bright ellipsoid away from the edges and off the centre, float64."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    r = sum(((g - c) / w) ** 2 for g, c, w in zip(grid, (0.1, -0.1, 0.05), (0.35, 0.4, 0.45)))
    return top * np.exp(-2 * r)


def hostile(shape) -> dict[str, np.ndarray]:
    """Volumes that no scanner makes, but files hold."""
    rng = np.random.default_rng(5)
    spike, block = np.zeros(shape), np.full(shape, 100.0)
    spike[4, 5, 2], block[2:7, 3:8, 1] = 1e4, -100
    return {
        "random": rng.normal(size=shape),
        "checkerboard": np.indices(shape).sum(0) % 2 * 2000.0 - 1000,
        "spike": spike,
        "block": block,
        "negative": -rng.random(shape) - 5,
        "huge": rng.normal(size=shape) * 1e30,
        "tiny": rng.random(shape) * 1e-30,
        "nothing": np.zeros(shape),
        "constant": np.full(shape, -3.0),
        "offset": 1e6 + rng.random(shape),
        "steps": rng.integers(-1, 2, shape) * 32767.0,
        "tomography": blob(shape, 2000) - 896,
    }


HOSTILE = hostile((9, 10, 4))


def rotation(*degrees) -> np.ndarray:
    """Turns about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def make_affine(order, signs, sizes, turn=(0, 0, 0)) -> np.ndarray:
    """Voxel axis i runs along `order[i]` of x, y, z, forwards or backwards."""
    affine = np.eye(4)
    for i, (axis, sign, size) in enumerate(zip(order, signs, sizes)):
        affine[:3, i] = rotation(*turn)[:, axis] * sign * size
    affine[:3, 3] = (-91.3, 104.7, -55.21)
    return affine


def corners(image) -> np.ndarray:
    """The world coordinates (8, 3) of the corners of a volume's bounding box."""
    ends = itertools.product(*((-0.5, n - 0.5) for n in image.shape[:3]))
    return nib.affines.apply_affine(image.affine, np.array(list(ends)))


def centre_of_mass(image) -> np.ndarray:
    data = image.get_fdata()
    index = [np.arange(n) @ data.sum(axis=tuple({0, 1, 2} - {i})) for i, n in enumerate(data.shape)]
    return nib.affines.apply_affine(image.affine, np.array(index) / data.sum())


def dicom(pixels, position, direction, *, number=1, series=None, **attributes) -> Dataset:
    """One MR picture (rows, columns) uint16 of a DICOM series."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SeriesInstanceUID = series or "1.2.3"
    ds.Modality, ds.SeriesDescription, ds.PatientID = "MR", "t1 mprage", "P042"
    ds.Manufacturer, ds.PatientPosition = "Philips", "HFS"
    ds.SeriesNumber, ds.InstanceNumber = 3, number
    ds.ImagePositionPatient = [float(x) for x in position]
    ds.ImageOrientationPatient = [float(x) for x in direction]
    ds.PixelSpacing, ds.SliceThickness = [1.5, 0.75], 2.0
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


TURN = rotation(8, -5, 12)
ALONG, DOWN, NORMAL = TURN[:, 0], TURN[:, 1], TURN[:, 2]
ORIGIN = np.array([-60.0, -70.5, 33.25])  # LPS


def save_series(folder, n=6, shape=(10, 8), names=None, **attributes) -> np.ndarray:
    """Write a series whose file names tell nothing of its order; return it as (n, rows, cols)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (blob((n, *shape)) + 50 * np.arange(n)[:, None, None]).astype(np.uint16)
    for i in range(n):
        name = names(i) if names else f"IM{(i * 7 + 3) % n:03d}.dcm"
        ds = dicom(data[i], ORIGIN + 2 * i * NORMAL, [*ALONG, *DOWN], number=99 - i, **attributes)
        ds.save_as(folder / name, enforce_file_format=True)
    return data

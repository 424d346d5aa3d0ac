"""Damaged files by the thousand: the reading functions may refuse them, but nothing else.

python benchmarks/fuzz.py                        2,000 files of each format
python benchmarks/fuzz.py --files 200 png pt

Each file is a small valid one of its format, mutated by a seeded generator. Reading it must succeed
or raise the project's own error within 5 seconds; memory must stay under 1 GB. After anything else
the program ends with a traceback, and the file that did it lies in the folder it names.
"""

import argparse
import contextlib
import faulthandler
import gzip
import io
import os
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import dataset
import modules
import utils
from inference import Upscaler, checkpoints
from scans import dicom, listing
from scans.pictures import read_picture

SECONDS = 5  # for one file
MEMORY = 2**29  # beside the 0.4 GB that the libraries take: under 1 GB in all
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 2**15 - 1, 2**16 - 1, 2**24, 2**31 - 1, -(2**31), 10**9)

# --- valid files of each format -------------------------------------------------------------------


def slice_of_noise() -> np.ndarray:
    return (np.random.default_rng(0).random((40, 33)) ** 3 * 255).astype(np.uint8)


def pictures(*variants) -> list[bytes]:
    """The same picture saved in several ways: (mode, format, options)."""
    found = []
    for mode, kind, options in variants:
        values = slice_of_noise()
        if mode == "I;16":
            image = Image.fromarray(values.astype(np.uint16) * 200)
        else:
            image = Image.fromarray(values).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def deep_pngs() -> list[bytes]:
    """16 bits in several channels, which no library writes."""
    from made_files import png16, with_alpha

    deep = slice_of_noise().astype(np.uint16) * 200
    return [png16(with_alpha(deep, channels)) for channels in (2, 3, 4)]


def rare_tiffs() -> list[bytes]:
    """Types that Pillow does not know."""
    import tifffile

    found = []
    for dtype, options in (("f8", {"compression": "zlib"}), ("f2", {}), ("i2", {"tile": (16, 16)})):
        buffer = io.BytesIO()
        shown = "miniswhite" if dtype == "i2" else "minisblack"
        tifffile.imwrite(buffer, slice_of_noise().astype(dtype), photometric=shown, **options)
        found.append(buffer.getvalue())
    return found


def volume_files() -> list[bytes]:
    import nibabel as nib

    found = []
    for dtype, kind in (("i2", nib.Nifti1Image), (">f4", nib.Nifti1Image), ("u1", nib.Nifti2Image)):
        data = np.random.default_rng(1).integers(0, 99, (9, 10, 8)).astype(dtype)
        image = kind(data, np.diag([-1, 2, 1.5, 1]))
        image.header.set_slope_inter(2, 1)
        found.append(gzip.compress(image.to_bytes(), mtime=0))
    return found


def dataset_of(**attributes):
    from pydicom.dataset import Dataset

    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def dicoms() -> list[bytes]:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        MRImageStorage,
        RLELossless,
    )

    found = []
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless):
        for count in (1, 3):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, "1.2.3"
            meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
            ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
            ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = MRImageStorage, "1.2.3", "1.2"
            ds.PatientID, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "P1", "MR", 4, 1
            ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.NumberOfFrames = 40, 33, 1, count
            ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
            ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope = [1, 0.9], 2, 1.5
            ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 1, 2], [1, 0, 0, 0, 1, 0]
            ds.RescaleIntercept = -10
            ds.PixelData = np.stack([slice_of_noise().astype(np.uint16)] * count).tobytes()
            if syntax == RLELossless:
                ds.compress(syntax, generate_instance_uid=False)
            if count > 1:
                positions = (dataset_of(ImagePositionPatient=[0, 1, 2 * z]) for z in range(count))
                items = [dataset_of(PlanePositionSequence=[position]) for position in positions]
                ds.PerFrameFunctionalGroupsSequence = items
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, ds)
            found.append(buffer.getvalue())
    return found


def checkpoint_files() -> list[bytes]:
    found = []
    for arch in ({"name": "deep", "channels": 4, "blocks": 2}, {"name": "espcn", "channels": 4}):
        model = modules.build(arch, [(4, 4)]).state_dict()
        content = {"model": model, "arch": arch, "scales": [[4, 4]]}
        content |= {"degradation": "bicubic", "trained_on": "noise", "metrics": {"psnr": 30.0}}
        buffer = io.BytesIO()
        torch.save({**content, "version": checkpoints.CHECKPOINT_VERSION}, buffer)
        found.append(buffer.getvalue())
    return found


# --- mutations ------------------------------------------------------------------------------------


def mutate(data: bytes, rng) -> bytes:
    """A few random changes: bits, bytes, numbers, pieces lost, doubled, moved or cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        if not data:
            break
        # Half of the changes hit the first 400 bytes, where headers are.
        at = int(rng.integers(min(len(data), 400) if rng.random() < 0.5 else len(data)))
        length = int(min(rng.integers(1, 200), len(data) - at))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + 4] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 2:
            size = ("b", "<h", ">h", "<i", ">i", "<q")[rng.integers(6)]
            bits = 8 * struct.calcsize(size)
            number = NUMBERS[rng.integers(len(NUMBERS))] % 2**bits
            number -= 2**bits if number >= 2 ** (bits - 1) else 0
            data[at : at + bits // 8] = struct.pack(size, number)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            where = int(rng.integers(len(data)))
            data[where : where + length] = data[at : at + length]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutate_inside_gzip(data: bytes, rng) -> bytes:
    return gzip.compress(mutate(gzip.decompress(data), rng), 1, mtime=0)


def mutate_inside_zip(data: bytes, rng) -> bytes:
    """One part of an archive changed, mostly the pickle, with a check sum that is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    pickled = [name for name in parts if name.endswith(".pkl")]
    name = str(rng.choice(pickled if rng.random() < 0.8 else list(parts)))
    parts[name] = mutate(parts[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, part in parts.items():
            new.writestr(name, part)
    return buffer.getvalue()


def mutate_inside_png(data: bytes, rng) -> bytes:
    """One chunk changed, with a check sum that is right."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += length + 12
    chunk = chunks[rng.integers(len(chunks))]
    chunk[1] = mutate(chunk[1], rng) if chunk[1] else rng.bytes(8)
    parts = [data[:8]]
    for name, content in chunks:
        check = struct.pack(">I", zlib.crc32(name + content))
        parts.append(struct.pack(">I", len(content)) + name + content + check)
    return b"".join(parts)


# --- formats --------------------------------------------------------------------------------------


def read_scan(path):
    dataset.read_scan_file(listing.ScanFile(path, "", "", ""))


def read_dicom(path):
    dicom.dicom_series([path])
    read_scan(path)


def read_checkpoint(path):
    Upscaler(path, "cpu")(np.zeros((1, 4, 4), np.float32))


PNG = [
    ("L", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("P", "PNG", {}),
    ("1", "PNG", {}),
    ("I;16", "PNG", {}),
]
JPEG = [("L", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {})]
TIFF = [
    ("L", "TIFF", {}),
    ("F", "TIFF", {}),
    ("I;16", "TIFF", {}),
    ("1", "TIFF", {"compression": "group4"}),
]
TIFF += [
    ("L", "TIFF", {"compression": f"tiff_{name}"}) for name in ("lzw", "adobe_deflate", "jpeg")
]

# ending: (valid files, the function that reads it, a mutation below the packing)
FORMATS = {
    "png": (lambda: pictures(*PNG) + deep_pngs(), read_picture, mutate_inside_png),
    "jpeg": (lambda: pictures(*JPEG), read_picture, None),
    "tiff": (lambda: pictures(*TIFF) + rare_tiffs(), read_picture, None),
    "nii.gz": (volume_files, read_scan, mutate_inside_gzip),
    "dcm": (dicoms, read_dicom, None),
    "pt": (checkpoint_files, read_checkpoint, mutate_inside_zip),
}


def fuzz(ending: str, files: int, seed: int, folder) -> dict:
    """Read mutated files of a format. Raises whatever a reader lets through but DataError."""
    make, read, inside = FORMATS[ending]
    valid = make()
    path = Path(folder, f"case.{ending}")
    for data in valid:
        path.write_bytes(data)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            read(path)
    refused, slowest, before = 0, 0.0, peak_memory()
    for n in range(files):
        rng = np.random.default_rng([seed, n])
        change = inside if inside and rng.random() < 0.7 else mutate
        path.write_bytes(change(valid[n % len(valid)], rng))
        began = time.perf_counter()
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                read(path)
        except utils.DataError as error:
            assert str(path) in str(error), f"{error} does not name the file"
            refused += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.perf_counter() - began)
        assert peak_memory() - before < MEMORY, f"{path}: {peak_memory() / 2**20:.0f} MB"
    return {"files": files, "refused": refused, "slowest": slowest}


def peak_memory() -> int:
    """The largest resident size of this process so far in bytes; 0 where nobody knows."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=" ".join(FORMATS))
    parser.add_argument("--files", type=int, default=2000, help="of each format (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faulthandler.enable()
    folder = tempfile.mkdtemp(prefix="fuzz-")
    print(f"files in {folder}; seed {args.seed}")
    for ending in args.formats or FORMATS:
        result = fuzz(ending, args.files, args.seed, folder)
        print(
            f"{ending:7s} {result['files']} files, {result['refused']} refused, the others read; "
            f"slowest {result['slowest']:.2f} s, peak memory {peak_memory() / 2**20:.0f} MB",
            flush=True,
        )
        Path(folder, f"case.{ending}").unlink()
    os.rmdir(folder)


if __name__ == "__main__":
    main()

"""The formats: what a file is, by its content and its name. They are read and written in
pictures.py, volumes.py and dicom.py; `scans.read` chooses."""

import os
import re
from contextlib import suppress
from pathlib import Path

from isal import igzip

from utils import read_json

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".img.gz")
DICOM = (".dcm", ".dicom", ".ima")
RESULTS = "results of predict.py or train.py"


def natural(text) -> list:
    """Sort key that puts slice 9 before slice 10."""
    return [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", str(text))]


def suffix(path) -> str:
    """The file's ending in lower case, with both parts of `.nii.gz`."""
    endings = Path(Path(path).name.lower()).suffixes[-2:]
    both = "".join(endings)
    return both if both in (".nii.gz", ".img.gz", ".hdr.gz") else "".join(endings[-1:])


def stem(path) -> str:
    """The file's name without its ending, without both parts of `.nii.gz`."""
    return Path(path).name[: -len(suffix(path)) or None]


def partner(path, ending: str) -> Path:
    """The other file of an Analyze pair: X.HDR of X.IMG, x.hdr of x.img."""
    names = [stem(path) + end for end in (ending, ending.upper(), f"{ending}.gz")]
    there = [other for name in names if (other := Path(path).with_name(name)).exists()]
    return there[0] if there else Path(path).with_name(names[0])


def is_result(path: Path) -> bool:
    """Whether predict.py wrote a file, as the record beside each result says, or train.py."""
    if path.name in ("loss.png", "examples.png") and path.with_name("log.csv").exists():
        return True
    name = own = re.sub("_(figure|error|superresError)$", "", stem(path))
    while "_" in name and not path.with_name(f"{name}.json").exists():
        name = name.rpartition("_")[0]
    record = read_json(path.with_name(f"{name}.json"))
    listed = name == own or path.name in (record.get("Results") or ())  # a label map has no other
    return "SourceSHA256" in record and listed


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
    kinds = {"picture": PICTURES, "volume": (*VOLUMES, ".hdr", ".hdr.gz"), "dicom": DICOM}
    named = next((kind for kind, endings in kinds.items() if suffix(path) in endings), "")
    # Old DICOM files begin with their first element.
    bare = re.match(rb"\x08\0[\0\x05\x08\x16\x18]\0(..\0\0|[A-Z]{2})", head, re.DOTALL)
    return named or ("dicom" if bare else "")


def first_bytes(path) -> bytes:
    """The first bytes of a file, unpacked if it is gzipped; none if it cannot be read."""
    with suppress(Exception):  # damaged in any way: whoever reads all of it says what is wrong
        if os.path.isfile(path):
            with unpacked(path) as file:
                return file.read(540)
    return b""


def unpacked(path):
    """Open a file for reading, through gzip if it is gzipped."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return igzip.open(path) if packed else open(path, "rb")


def open_gzip_for_writing(file):
    """A stream that packs into an open file, ten times as fast as Python's own at equal sizes."""
    return igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0)

"""From files on disk to subject-wise splits of slices.

All slices are decoded once and kept in one uint8 file; train.py and evaluate.py find them there
again, as both call load_parts.
"""

import hashlib
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from scans.dicom import read_scan
from scans.pictures import read_picture
from scans.subjects import Scan, find_scans, split_subjects, training_scans  # noqa: F401
from scans.volumes import PICTURES, PLANES, kind_of, suffix
from utils import DataError, atomic_write, int_between, progress, warn

OWN_DATA = Path(__file__).parent / "data" / "ds002748"  # what is used without --data
CACHE_LIMIT = 20e9  # bytes; beyond it, what was not used for a week goes, oldest first
SMALLEST = 8  # pixels along an edge; smaller ones are no slices
AXES = {plane: (plane,) for plane in PLANES} | {"all": PLANES, "through": ("coronal", "sagittal")}
DATA_OPTIONS = ("data", "subjects", "each_file_a_subject", "axis", "slices", "cache", "seed")

# --- command line ---------------------------------------------------------------------------------


def add_data_arguments(add, slices: int = 0, axes=tuple(AXES), cache: bool = True) -> None:
    """The options of DATA_OPTIONS but --data, the same in every program.

    add: an `add_argument`. slices: the default of --slices. cache: False leaves out --cache.
    """
    add("--subjects", metavar="FILE", help="csv or tsv table of file or scan id and its subject")
    add("--each-file-a-subject", action="store_true",
        help="no two files are of one person, whatever their names say")  # fmt: skip
    add("--axis", default="axial", choices=axes,
        help="plane of a volume's slices; through: coronal and sagittal ones, rows across the "
        "axial slices")  # fmt: skip
    add("--slices", type=int_between(0), default=slices,
        help="slices of a volume, spread evenly; 0: all usable")  # fmt: skip
    if cache:
        add("--cache", default="runs/cache", help="folder for the decoded slices; may be deleted")
    add("--seed", type=int_between(0), default=0, help="of the split, and of all that is random")


def load_parts(
    *,
    data=None,
    subjects=None,
    each_file_a_subject: bool = False,
    axis: str = "axial",
    slices: int = 0,
    cache="runs/cache",
    seed: int = 0,
    workers: int = 2,
    split: bool = True,
    quiet: bool = False,
) -> tuple[dict, str]:
    """({'train', 'val', 'test': Slices}, fingerprint): one call for training and evaluation.

    `load_parts(**{name: getattr(args, name) for name in DATA_OPTIONS})`. data: a folder of
    pictures, volumes or DICOM series; None: the slices of ds002748 in the clone. split: False gives
    {'all': Slices} and asks for no subjects. quiet: no progress bar, for all processes but one.
    The fingerprint stays the same when the folder moves, and changes with any file, with the
    subjects or with the split: a run is resumed if it is the same. Both programs find one cache
    entry, however the folder is written. Raises DataError where subjects are in doubt or too few.
    """
    if axis not in AXES:
        raise DataError(f"axis {axis}: not one of {', '.join(AXES)}")
    root = Path(OWN_DATA if data is None else data)
    say = (lambda message: None) if quiet else warn
    scans, doubt = training_scans(root, subjects, each_file_a_subject, say)
    if split and doubt:
        raise DataError(doubt)
    if axis == "through":
        scans = [scan for scan in scans if scan.files or suffix(scan.path) not in PICTURES]
        if not scans:
            raise DataError(f"{root}: holds pictures only; through-plane training needs volumes")
    part_of = split_subjects(scans, seed) if split else {}
    every, key, bad = load_slices(
        scans, cache, root=root, axis=axis, count=slices, workers=workers, quiet=quiet
    )
    if bad and not quiet:
        print(f"{bad} files could not be read and were left out (named when first read; they are "
              f"read again when {Path(cache, key)}.npz is deleted)")  # fmt: skip
    if not split:
        return {"all": every}, key
    which = np.array([part_of[subject] for subject in every.subject])
    parts = {name: every.take(which == name) for name in ("train", "val", "test")}
    for name, part in parts.items():
        if not len(part):
            raise DataError(f"{root}: no slice of the {name} subjects could be read")
    whose = [[scan.subject, part_of[scan.subject]] for scan in scans]
    return parts, hashlib.sha256(json.dumps([key, whose]).encode()).hexdigest()[:16]


# --- all slices in one file -----------------------------------------------------------------------


@dataclass
class Slices:
    """Slices of one split. Pixels lie in one uint8 file; only what is asked for is read."""

    file: Path
    offset: np.ndarray  # (n,) int64, where a slice starts in the file
    shape: np.ndarray  # (n, 2) int32, its height and width
    subject: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str, its class or ''
    name: np.ndarray  # (n,) str, its path below the data folder, with #index in a volume

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, i: int) -> np.ndarray:
        """Slice i as uint8 (H, W). Read, not memory-mapped: mapped pages would
        count as resident memory."""
        h, w = self.shape[i].tolist()
        with open(self.file, "rb", buffering=0) as file:  # half the time of np.fromfile
            file.seek(int(self.offset[i]))
            return np.frombuffer(file.read(h * w), np.uint8).reshape(h, w)

    def volume_of(self, i: int) -> range:
        """The numbers of the slices here that are of the volume of slice i; of a picture only i."""
        stem, index = self.place_of(i)
        first, last = i, i
        if index is not None:
            while first > 0 and self.place_of(first - 1)[0] == stem:
                first -= 1
            while last + 1 < len(self) and self.place_of(last + 1)[0] == stem:
                last += 1
        return range(first, last + 1)

    def place_of(self, i: int) -> tuple[str, int | None]:
        """The file of slice i, and its number in it; None for a picture."""
        stem, _, index = str(self.name[i]).rpartition("#")
        return (stem, int(index)) if stem and index.isdecimal() else (str(self.name[i]), None)

    def thicker(self, i: int, count: int) -> np.ndarray:
        """The mean of slice i and of those after it in its volume, `count` in all if there are."""
        stem, index = self.place_of(i)
        together = [self[i].astype(np.float32)]
        for j in range(i + 1, i if index is None else min(i + count, len(self))):
            if self.place_of(j) != (stem, index + j - i):
                break
            together.append(self[j])
        return (np.mean(together, axis=0) + 0.5).astype(np.uint8)

    def take(self, chosen) -> "Slices":
        """The slices with these indices (or this mask)."""
        arrays = (self.offset, self.shape, self.subject, self.group, self.name)
        return Slices(self.file, *(a[chosen] for a in arrays))

    def counts(self) -> str:
        """Subjects and slices in words, by class."""
        n = len(set(self.subject))
        words = f"{n} subject{'s' * (n != 1)}, {len(self)} slices"
        parts = [
            f"{g} {len(set(self.subject[self.group == g]))}/{(self.group == g).sum()}"
            for g in sorted(set(self.group) - {""})
        ]
        return words + (f" ({', '.join(parts)})" if parts else "")


def scan_slices(scan: Scan, axis: str, count: int) -> list[tuple[int, np.ndarray]]:
    """Numbered uint8 slices of one file: number -1 of a picture, many of a volume."""
    path = scan.path
    if scan.files or kind_of(path) in ("volume", "dicom"):
        return volume_slices(path, axis, count, scan.files, scan.series)
    pixels = read_picture(path).pixels
    if min(pixels.shape) < SMALLEST:
        raise DataError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} is too small to train on")
    return [(-1, (pixels * 255 + 0.5).astype(np.uint8))]


def volume_slices(path, axis="axial", count=0, files=(), series="", *, size=None, levels=255):
    """The usable slices of a volume as [(index, (H, W))], upright, numbered along its RAS axis.

    Intensities are divided by the 99.8th percentile of the voxels above the mean, and clipped;
    negative ones are moved up first. A slice is usable where more than a tenth of it is above 0.1.
    count: only that many, spread evenly over them; 0: all. size: (H, W) to cut and pad to with
    zeros about the box of all usable voxels above 0.1, never resampled; None: that box and 8 pixels
    around it. files and series: of DICOM, see `Scan`. levels: 255 gives uint8, 65535 uint16.
    """
    volume = read_scan(path, files, series=series)
    if volume.stored.ndim == 4:
        warn(f"{path}: the first of its {volume.stored.shape[3]} volumes is used")
    x, y, z = volume.sizes
    if axis == "through" and (z > 1.5 or z > 1.6 * min(x, y)):
        raise DataError(f"{path}: slices {z:.2g} mm apart are too thick to learn thinner ones from")
    data = volume.intensities()
    if data.min() < 0:
        data = np.maximum(data - min(0, np.percentile(data, 0.1)), 0)
    bright = data[data > data.mean()]
    if not bright.size:
        raise DataError(f"{path}: is the same everywhere")
    data /= np.float32(np.percentile(bright, 99.8))
    foreground, found = data > 0.1, []
    for plane in AXES[axis]:
        slices, filled = (volume.slices(array, plane) for array in (data, foreground))
        box = [np.flatnonzero(filled.any(axis=(0, 2 - k)))[[0, -1]].tolist() for k in (0, 1)]
        window = [(max(0, a - 8), min(n, b + 9)) for (a, b), n in zip(box, filled.shape[1:])]
        if size:
            starts = [(a + b) // 2 - want // 2 for (a, b), want in zip(box, size)]
            window = [(start, start + want) for start, want in zip(starts, size)]
        share = filled.mean(axis=(1, 2))
        if share.max() <= 0.1:  # a small head in a large field of view: its share of the box
            share *= filled[0].size / np.prod([b - a + 1 for a, b in box])
        usable = np.flatnonzero(share > 0.1)
        if count and usable.size > count:
            spread = np.linspace(0, usable.size - 1, count) if count > 1 else [usable.size / 2]
            usable = usable[np.round(spread).astype(int)]
        for i in usable:
            pixels = np.clip(cut(slices[i], window), 0, 1) * levels + 0.5
            found.append((int(i), pixels.astype(np.uint8 if levels == 255 else np.uint16)))
    if not found:
        raise DataError(f"{path}: no slice with enough foreground")
    return found


def cut(pixels: np.ndarray, window) -> np.ndarray:
    """The part of a slice in [(start, stop), (start, stop)], with zeros where that is outside."""
    inside = tuple(slice(max(0, a), b) for a, b in window)
    outside = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(window, pixels.shape)]
    return np.pad(pixels[inside], outside)


def fingerprint(scans: list[Scan], root, *options) -> str:
    """A digest of the files' places below root, sizes and samples of their bytes, and options.

    Neither the folder's own path nor any time is part of it.
    """
    digest = hashlib.sha256(json.dumps(["cache 5", *options]).encode())
    files = [path for scan in scans for path in scan.files or (scan.path,)]
    files += [path.with_suffix(".hdr") for path in files if suffix(path) == ".img"]
    with ThreadPoolExecutor(8) as pool:
        for path, words in zip(files, pool.map(sample, files)):
            digest.update(os.fsencode(Path(os.path.relpath(path, root)).as_posix()) + words)
    return digest.hexdigest()[:16]


def sample(path: Path) -> bytes:
    """A file's size and eight pieces of it, its end included, where gzip and PNG keep checksums."""
    words = b"gone"  # such as a broken link; reading it says what is wrong
    with suppress(OSError):
        if path.is_file():
            size = path.stat().st_size
            with open(path, "rb", buffering=0) as file:
                words = b"%d|" % size
                for i in range(8 if size > 8192 else 1):
                    file.seek((size - 1024) * i // 7 if size > 8192 else 0)
                    words += file.read(1024 if size > 8192 else size)
    return words


def load_slices(
    scans: list[Scan], cache, *, root=None, axis="axial", count=0, workers=2, quiet=True
) -> tuple[Slices, str, int]:
    """All slices of all scans, decoded once: (Slices, fingerprint, number of files left out).

    The pixels are kept in `cache`/<fingerprint>.u8 and found again on the next call. Both files
    appear under their names only when they are whole. A file that cannot be read is named and left
    out.
    """
    root = root or os.path.commonpath([scan.path.parent for scan in scans])
    key = fingerprint(scans, root, axis, count)
    pixels_file, index_file = (Path(cache, f"{key}.{end}") for end in ("u8", "npz"))
    index = read_index(index_file, pixels_file)
    if index is None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        clean(Path(cache))
        with atomic_write(pixels_file) as file:
            index = decode(scans, file, axis, count, workers, quiet)
        buffer = io.BytesIO()  # writing to a full disk, np.savez would raise anything
        np.savez(buffer, **index)
        with atomic_write(index_file) as file:
            file.write(buffer.getbuffer())
    else:
        with suppress(OSError):  # a cache of someone else
            os.utime(index_file)  # used today
    owner = index["owner"]
    places = [Path(os.path.relpath(scan.path, root)).as_posix() for scan in scans]
    names = [places[i] + (f"#{n}" if n >= 0 else "") for i, n in zip(owner, index["number"])]
    who = np.array([(scan.subject, scan.group) for scan in scans])[owner]
    arrays = (index[name] for name in ("offset", "shape"))
    return Slices(pixels_file, *arrays, *who.T, np.array(names)), key, len(index["bad"])


def decode(scans: list[Scan], file, axis: str, count: int, workers: int, quiet: bool) -> dict:
    """Write the pixels of all slices into a file, and return what says where each of them is."""
    offset, shape, owner, numbers, bad = [], [], [], [], []

    def read(scan):
        try:
            return scan_slices(scan, axis, count)
        except DataError as error:
            return error

    position, first = 0, ""
    numbered = iter(progress(scans, desc="reading", unit="file", disable=quiet))
    with ThreadPoolExecutor(workers) as pool:
        # A few scans at a time: what waits to be written is bounded.
        for start in range(0, len(scans), 4 * workers):
            part = list(islice(numbered, 4 * workers))
            for i, found in enumerate(pool.map(read, part), start):
                if isinstance(found, DataError):
                    warn(f"left out: {found}")
                    bad.append(i)
                    first = first or f" ({found})"
                    continue
                for number, pixels in found:
                    file.write(np.ascontiguousarray(pixels).data)
                    offset.append(position)
                    shape.append(pixels.shape)
                    owner.append(i)
                    numbers.append(number)
                    position += pixels.size
    next(numbered, None)  # ends the bar
    if not offset:
        raise DataError(f"{scans[0].path.parent}: no slice could be read from any file{first}")
    return dict(
        offset=np.array(offset),
        shape=np.array(shape, np.int32),
        owner=np.array(owner),
        number=np.array(numbers),
        bad=np.array(bad),
    )


def read_index(index_file: Path, pixels_file: Path) -> dict | None:
    """The arrays of a cache's index; None if there is none, or if either file is not whole."""
    try:
        with np.load(index_file) as file:
            index = dict(file)
        end = index["offset"][-1] + index["shape"][-1].prod()
        return index if pixels_file.stat().st_size == end else None
    except Exception:  # a damaged file can fail anywhere in there, and is made again
        return None


def clean(cache: Path) -> None:
    """Delete what killed processes left behind, and entries not used for a week beyond the limit.

    The longest unused go first. An entry in use is safe: its index is touched at each start.
    """
    now, entries = time.time(), []
    with suppress(OSError):  # another process is at it too
        for left in cache.glob(".*.part"):
            if now - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        for pixels in cache.glob("*.u8"):
            index = pixels.with_suffix(".npz")
            used = (index if index.exists() else pixels).stat().st_mtime
            entries.append((used, pixels.stat().st_size, index, pixels))
        total = sum(size for _, size, _, _ in entries)
        for used, size, index, pixels in sorted(entries):
            if total > CACHE_LIMIT and now - used > 7 * 86400:
                total -= size
                index.unlink(missing_ok=True)
                pixels.unlink(missing_ok=True)

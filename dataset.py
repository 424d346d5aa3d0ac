"""From files on disk to subject-wise splits of slices.

All slices are decoded once and kept in one uint8 file; train.py and evaluate.py find them there
again, as both call load_parts.
"""

import hashlib
import io
import json
import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
from isal import isal_zlib

from scans.copies import ENOUGH, find_copies, thumbnail
from scans.dicom import read_scan
from scans.listing import ScanFile, find_scans, training_scans  # noqa: F401
from scans.pictures import read_picture
from scans.subjects import person_key
from scans.volumes import PICTURES, PLANES, kind_of, natural, partner, suffix
from utils import DataError, atomic_write, int_between, progress, warn

OWN_DATA = Path(__file__).parent / "data" / "ds002748"  # what is used without --data
CACHE_LIMIT = 20e9  # bytes; beyond it, what was not used for a week goes, oldest first
DAY = 86400  # seconds
LOOKED_AT = 20  # slices of a volume, evenly spread, that are looked at for copies
SETTLED = 3  # seconds after which a file that is written again has another time of change
UNKNOWN = "?"  # the subject of slices of which nobody knows whose they are
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
    seen=(),
) -> tuple[dict, str]:
    """({'train', 'val', 'test': Slices}, fingerprint): one call for training and evaluation.

    `load_parts(**{name: getattr(args, name) for name in DATA_OPTIONS})`. data: a folder of
    pictures, volumes or DICOM series; None: the slices of ds002748 in the clone. split: False gives
    {'all': Slices} and asks for no subjects. quiet: no progress bar, for all processes but one.
    seen: people to keep out of val and test, see `split_subjects`.
    The fingerprint stays the same when the folder moves, and changes with any file, with the
    subjects or with the split: a run is resumed if it is the same. Both programs find one cache
    entry, however the folder is written. Raises DataError where subjects are in doubt or too few,
    and where copies of one slice are on two sides of the split.
    """
    if axis not in AXES:
        raise DataError(f"axis {axis}: not one of {', '.join(AXES)}")
    root = Path(OWN_DATA if data is None else data)
    say = (lambda message: None) if quiet else warn
    scans, doubt = training_scans(root, subjects, each_file_a_subject, say)
    if doubt:
        if split:
            raise DataError(doubt)
        say(f"{doubt}; now all count as slices of one unknown subject")
        scans = [replace(scan, subject=UNKNOWN) for scan in scans]
    if axis == "through":
        scans = [scan for scan in scans if scan.files or suffix(scan.path) not in PICTURES]
        if not scans:
            raise DataError(f"{root}: holds pictures only; through-plane training needs volumes")
    part_of = split_subjects(scans, seed, seen=seen) if split else {}
    every, key, bad = load_slices(
        scans, cache, root=root, axis=axis, count=slices, workers=workers, quiet=quiet
    )
    if bad and not quiet:
        print(f"{bad} files could not be read and were left out (named when first read; they are "
              f"read again when {Path(cache, key)}.npz is deleted)")  # fmt: skip
    if not split:
        return {"all": every}, key
    which = np.array([part_of[subject] for subject in every.subject])
    check_no_copies(root, every, which)
    parts = {name: every.take(which == name) for name in ("train", "val", "test")}
    for name, part in parts.items():
        if not len(part):
            raise DataError(f"{root}: no slice of the {name} subjects could be read")
    sides = [[scan.subject, part_of[scan.subject]] for scan in scans]
    return parts, hashlib.sha256(json.dumps([key, sides]).encode()).hexdigest()[:16]


# --- split ----------------------------------------------------------------------------------------


def split_subjects(
    scans: list[ScanFile], seed: int, validate: float = 0.1, test: float = 0.15, seen=()
) -> dict:
    """Assign every subject to `train`, `val` or `test`: {subject: split}.

    The data set's own `train`, `val` and `test` folders are kept; what is missing is taken out of
    the rest by a seeded shuffle of subjects, the same share of each class, at least one subject.
    seen: people who change places with others of train, as far as there are some of their class.
    Raises DataError if a subject is in two of the folders or there are too few subjects.
    """
    where = os.path.commonpath([scan.path for scan in scans]) or "."
    given, groups = defaultdict(set), defaultdict(dict)
    for scan in scans:
        given[scan.subject].add(scan.split)
        groups[scan.group][scan.subject] = None  # an ordered set: thousands of subjects are quick
    both = sorted((s for s, splits in given.items() if len(splits) > 1), key=natural)
    if both:
        places = [p or "neither" for p in ("train", "val", "test", "") if p in given[both[0]]]
        raise DataError(
            f"{where}: {len(both)} subject(s) are in {' and in '.join(places)} too "
            f"({', '.join(both[:5])}); keep each in one of them"
        )
    split = {s: splits.copy().pop() or "train" for s, splits in given.items()}
    wanted = {"val": validate, "test": test}
    wanted = {k: share for k, share in wanted.items() if share and k not in split.values()}
    left = list(split.values()).count("train")
    if left <= len(wanted) and (wanted or validate):
        raise DataError(
            f"{where}: {left} subject(s){'' if 'test' in wanted else ' outside test'} are too few "
            f"for {' and '.join(('train', *wanted))}; if there are more, --subjects FILE says who "
            "is who (evaluate.py --split all needs no split)"
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
    # Who was seen leaves test for train, then val; whoever takes the place was not seen.
    seen = {person_key(person) for person in seen}
    for name in [name for name in ("test", "val") if name in wanted]:
        for subjects in order.values():
            leaving = [s for s in subjects if split[s] == name and person_key(s) in seen]
            free = [s for s in subjects if split[s] in {"train", *wanted} - {"test", name}]
            free = [s for s in free if person_key(s) not in seen]
            for gone, new in zip(leaving, free):
                split[gone], split[new] = split[new], name
    return split


def check_no_copies(root, slices: "Slices", part_of: np.ndarray) -> None:
    """Raise DataError if copies of one slice, or nearly, are on two sides of the split.

    part_of: (n,) the part of each slice, such as `train`.
    """
    numbers, thumbnails = slices.thumbnails
    for parts in combinations(("train", "val", "test"), 2):
        sides = [np.flatnonzero(part_of[numbers] == part) for part in parts]
        pairs = find_copies(*(thumbnails[side] for side in sides))
        if pairs:
            both = [numbers[side[i]] for side, i in zip(sides, pairs[0])]
            words = " and ".join(
                f"{slices.name[i]} (of {slices.subject[i]}, in {part})"
                for i, part in zip(both, parts)
            )
            more = f"{len(pairs)}{' or more' * (len(pairs) >= ENOUGH)} such pairs"
            raise DataError(
                f"{root}: {words} are one picture, or nearly ({more}); delete the copies, or give "
                "both one subject in --subjects FILE"
            )


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
    thumbnails: tuple = ()  # (k,) numbers of some slices and their thumbnails; not of a part

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, i: int) -> np.ndarray:
        """Slice i as uint8 (H, W). Read, not memory-mapped: mapped pages would
        count as resident memory."""
        mark_used(self.file, DAY)
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
        words = f"{subjects_in_words(self.subject)}, {len(self)} slices"
        parts = [
            f"{g} {len(set(self.subject[self.group == g]))}/{(self.group == g).sum()}"
            for g in sorted(set(self.group) - {""})
        ]
        return words + (f" ({', '.join(parts)})" if parts else "")


def subjects_in_words(subjects) -> str:
    """How many subjects there are: `3 subjects`."""
    n = len(set(subjects))
    return "unknown subjects" if UNKNOWN in subjects else f"{n} subject{'s' * (n != 1)}"


def scan_slices(scan: ScanFile, axis: str, count: int) -> list[tuple[int, np.ndarray]]:
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
    around it. files and series: of DICOM, see `ScanFile`. levels: 255 gives uint8, 65535 uint16.
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


def fingerprint(scans: list[ScanFile], root, *options, cache=None, remember=True) -> str:
    """A digest of the files' places below root, of all their bytes, and options.

    Neither the folder's own path nor any time is part of it. In `cache` a small file remembers the
    digest, so that nothing is read again as long as each file has the size and the times of its
    last change that it had. remember: False never writes that file.
    """
    about = json.dumps(["cache 6", *options]).encode()
    files = [path for scan in scans for path in scan.files or (scan.path,)]
    files += [partner(path, ".hdr") for path in files if suffix(path) == ".img"]
    places = [os.fsencode(Path(os.path.relpath(path, root)).as_posix()) for path in files]

    def digest(signatures) -> str:
        lines = (b"%s %s" % pair for pair in zip(places, signatures))
        return hashlib.sha256(b"\n".join((about, *lines))).hexdigest()[:16]

    with ThreadPoolExecutor(8) as pool:
        now = time.time()
        changes = list(pool.map(last_change, files))
        known = Path(cache or ".", f"{digest(b'%d %d %d' % c for c in changes)}.digest")
        with suppress(OSError, ValueError):
            key = known.read_text() if cache else ""
            if len(key) == 16 and int(key, 16) >= 0:
                return key
        key = digest(pool.map(file_signature, files))
    # A file that was just written could be written again within the same tick of the clock.
    settled = max(max(change[1:]) for change in changes) < (now - SETTLED) * 1e9
    if cache and remember and settled:
        with suppress(OSError, DataError):
            known.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(known, "w") as file:
                file.write(key)
    return key


def last_change(path: Path) -> tuple[int, int, int]:
    """A file's size and, in ns, when its content and its entry were changed; zeros: no file."""
    with suppress(OSError):
        about = path.stat()
        return about.st_size, about.st_mtime_ns, about.st_ctime_ns
    return 0, 0, 0


def file_signature(path: Path) -> bytes:
    """A file's size and the CRC-32 of all its bytes: 6 GB/s, as fast as a disk is read."""
    size, check = 0, 0
    with suppress(OSError):  # such as a broken link; reading it says what is wrong
        if not path.is_file():
            return b"gone"
        with open(path, "rb", buffering=0) as file:
            while part := file.read(2**20):
                size, check = size + len(part), isal_zlib.crc32(part, check)
    return b"%d %08x" % (size, check)


def load_slices(
    scans: list[ScanFile], cache, *, root=None, axis="axial", count=0, workers=2, quiet=True
) -> tuple[Slices, str, int]:
    """All slices of all scans, decoded once: (Slices, fingerprint, number of files left out).

    The pixels are kept in `cache`/<fingerprint>.u8 and found again on the next call. Both files
    appear under their names only when they are whole. A file that cannot be read is named and left
    out.
    """
    root = root or os.path.commonpath([scan.path.parent for scan in scans])
    key = fingerprint(scans, root, axis, count, cache=cache, remember=not quiet)
    pixels_file, index_file = (Path(cache, f"{key}.{end}") for end in ("u8", "npz"))
    mark_used(pixels_file)  # before it is looked for, so that nobody deletes it in between
    index = read_index(index_file, pixels_file)
    if index is None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        prune_cache(Path(cache))
        with atomic_write(pixels_file) as file:
            index = decode(scans, file, axis, count, workers, quiet)
        buffer = io.BytesIO()  # writing to a full disk, np.savez would raise anything
        np.savez(buffer, **index)
        with atomic_write(index_file) as file:
            file.write(buffer.getbuffer())
    owner = index["owner"]
    places = [Path(os.path.relpath(scan.path, root)).as_posix() for scan in scans]
    names = [places[i] + (f"#{n}" if n >= 0 else "") for i, n in zip(owner, index["number"])]
    who = np.array([(scan.subject, scan.group) for scan in scans])[owner]
    arrays = (index[name] for name in ("offset", "shape"))
    thumbnails = index["looked_at"], index["thumbnail"]
    slices = Slices(pixels_file, *arrays, *who.T, np.array(names), thumbnails)
    return slices, key, len(index["bad"])


def decode(scans: list[ScanFile], file, axis: str, count: int, workers: int, quiet: bool) -> dict:
    """Write the pixels of all slices into a file, and return what says where each of them is."""
    offset, shape, owner, numbers, bad, looked_at, thumbnails = [], [], [], [], [], [], []

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
                some = np.linspace(0, len(found) - 1, min(len(found), LOOKED_AT))
                some = set(some.round().astype(int).tolist())
                for k, (number, pixels) in enumerate(found):
                    if k in some:
                        looked_at.append(len(offset))
                        thumbnails.append(thumbnail(pixels))
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
        looked_at=np.array(looked_at),
        thumbnail=np.array(thumbnails),
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


OUR_NAME = "[0-9a-f]" * 16  # of files here, as a glob: --cache may be a folder with others, too
LAST_USE = {}  # {pixels file: when mark_used noted it}


def mark_used(pixels_file: Path, every: float = 0) -> None:
    """Note in the index that a cache entry is in use now, if that was not done for some seconds."""
    now = time.time()
    if now - LAST_USE.get(pixels_file, 0) > every:
        LAST_USE[pixels_file] = now
        with suppress(OSError):  # a cache of someone else, or none yet
            os.utime(pixels_file.with_suffix(".npz"), (now, now))


def prune_cache(cache: Path) -> None:
    """Delete what killed processes left behind, and entries not used for a week beyond the limit.

    The longest unused go first. An entry in use is safe: its index is touched at each start, and
    once a day while slices are read.
    """
    now, entries = time.time(), []
    with suppress(OSError):  # another process is at it too
        for pattern, days in ((f".{OUR_NAME}.*.part", 1), (f"{OUR_NAME}.digest", 30)):
            for left in cache.glob(pattern):
                if now - left.stat().st_mtime > days * DAY:
                    left.unlink(missing_ok=True)
        for pixels in cache.glob(f"{OUR_NAME}.u8"):
            index = pixels.with_suffix(".npz")
            used = (index if index.exists() else pixels).stat().st_mtime
            entries.append((used, pixels.stat().st_size, index, pixels))
        total = sum(size for _, size, _, _ in entries)
        for used, size, index, pixels in sorted(entries):
            if total > CACHE_LIMIT and now - used > 7 * DAY:
                total -= size
                index.unlink(missing_ok=True)
                pixels.unlink(missing_ok=True)

"""From files on disk to the slices of train, val and test.

All slices are decoded once and kept in one uint8 file; train.py and evaluate.py find them there
again, as both call load_parts.
"""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from scans import PLANES, read
from scans.cache import DAY, fingerprint, mark_used, prune_cache, read_index
from scans.copies import ENOUGH, SIZE, find_copies, thumbnail
from scans.formats import kind_of
from scans.intensity import normalised
from scans.listing import SPLITS, UNKNOWN, ScanFile, names_below, subjects_of, training_scans
from scans.packed import is_packed, packed_names, read_packed
from scans.scan import to_ras
from scans.splits import split_subjects
from scans.subjects import Name
from utils import DataError, atomic_write, int_between, progress, warn

OWN_DATA = Path(__file__).parent / "data" / "ds002748"  # what is used without --data
LOOKED_AT = 20  # axial slices of a volume, evenly spread, that are looked at for copies
FOREGROUND = 26  # of 255: more than a tenth of white
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
    *, data=None, subjects=None, each_file_a_subject: bool = False, axis: str = "axial",
    slices: int = 0, cache="runs/cache", seed: int = 0, workers: int = 2, split: bool = True,
    quiet: bool = False, seen=(),
) -> tuple[dict, str]:  # fmt: skip
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
    root = Path(OWN_DATA if data is None else data)
    say = (lambda message: None) if quiet else warn
    if is_packed(root):
        scans, doubt = packed_scans(root)
    else:
        scans, doubt = training_scans(root, subjects, each_file_a_subject, say)
    if doubt:
        if split:
            raise DataError(doubt)
        say(f"{doubt}; now all count as slices of one unknown subject")
        scans = [replace(scan, subject=UNKNOWN) for scan in scans]
    if axis == "through":
        scans = [scan for scan in scans if not scan.is_picture]
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
        if not len(part) and name in part_of.values():
            raise DataError(f"{root}: no slice of the {name} subjects could be read")
    sides = [[scan.subject, part_of[scan.subject]] for scan in scans]
    return parts, hashlib.sha256(json.dumps([key, sides]).encode()).hexdigest()[:16]


# --- split ----------------------------------------------------------------------------------------


def check_no_copies(root, slices: "Slices", part_of: np.ndarray) -> None:
    """Raise DataError if copies of one slice, or nearly, are on two sides of the split.

    part_of: (n,) the part of each slice, such as `train`.
    """
    numbers, thumbnails = slices.thumbnails
    slice_of = dict(zip(slices.volume[::-1].tolist(), range(len(slices))[::-1]))  # the first one
    side = np.array([part_of[slice_of[v]] if v in slice_of else "" for v in numbers.tolist()])
    for parts in combinations(("train", "val", "test"), 2):
        sides = [np.flatnonzero(side == part) for part in parts]
        pairs = find_copies(*(thumbnails[chosen] for chosen in sides))
        if pairs:
            both = [slice_of[numbers[chosen[i]]] for chosen, i in zip(sides, pairs[0])]
            words = " and ".join(
                f"{slices.name[i].partition('#')[0]} (of {slices.subject[i]}, in {part})"
                for i, part in zip(both, parts)
            )
            more = f"{len(pairs)}{' or more' * (len(pairs) >= ENOUGH)} such pairs"
            raise DataError(
                f"{root}: slices of {words} are one picture, or nearly ({more}); delete the "
                "copies, or give both one subject in --subjects FILE"
            )


# --- all slices in one file -----------------------------------------------------------------------


@dataclass
class Slices:
    """Slices of one split, as views into volumes that lie one behind the other in one uint8 file.

    A volume is stored from the top down, from the front to the back, from left to right; a picture
    is a volume of one slice. Slices of all planes are views into it.
    """

    file: Path
    start: np.ndarray  # (V,) int64, where a volume starts in the file
    size: np.ndarray  # (V, 3) int64, its slices, rows and columns
    mm: np.ndarray  # (V, 3) float64, their distances; 0 of a picture
    volume: np.ndarray  # (n,) int64, the volume of a slice
    plane: np.ndarray  # (n,) int64, 0 sagittal, 1 coronal, 2 axial
    place: np.ndarray  # (n,) int64, where it lies in the volume as it is stored
    subject: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str, its class or ''
    name: np.ndarray  # (n,) str, its path below the data folder, with #index in a volume
    thumbnails: tuple = ()  # (k,) volumes and (k, 1024) thumbnails of their slices; not of a part

    def __len__(self) -> int:
        return len(self.volume)

    def __getitem__(self, i: int) -> np.ndarray:
        """Slice i as uint8 (H, W), upright."""
        return self.stack(i)[self.place[i]]

    @property
    def shape(self) -> np.ndarray:
        """Height and width of each slice, (n, 2)."""
        size, plane = self.size[self.volume], self.plane
        rows = np.where(plane == 2, size[:, 1], size[:, 0])
        return np.stack((rows, np.where(plane == 0, size[:, 1], size[:, 2])), 1)

    @property
    def pixels(self) -> np.ndarray:
        """All volumes behind one another, uint8; only what is looked at is read."""
        mark_used(self.file, DAY)
        return np.memmap(self.file, np.uint8, "c")

    def stack(self, i: int) -> np.ndarray:
        """All slices of the volume and plane of slice i, uint8 (S, H, W), as they are stored."""
        v = self.volume[i]
        whole = self.pixels[self.start[v] : self.start[v] + self.size[v].prod()]
        return stack_along(whole.reshape(self.size[v]), self.plane[i])

    def spacing(self, i: int) -> tuple[float, float]:
        """How far slice i is from the next, and the width of its pixels, in mm; zeros: unknown."""
        z, y, x = self.mm[self.volume[i]].tolist()
        return ((x, y), (y, x), (z, x))[self.plane[i]]

    def distance(self, i: int, scale) -> float:
        """How far slice i is from the next one, in pixels of an LR slice; 0: unknown."""
        apart, pixel = self.spacing(i)
        return apart / (pixel * scale[1]) if pixel else 0.0

    def take(self, chosen) -> "Slices":
        """The slices with these indices (or this mask)."""
        arrays = (self.volume, self.plane, self.place, self.subject, self.group, self.name)
        return Slices(self.file, self.start, self.size, self.mm, *(a[chosen] for a in arrays))

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


def stack_along(pixels: np.ndarray, plane: int) -> np.ndarray:
    """The slices (S, H, W) of a plane of a volume as `Slices` stores it, as a view."""
    stack = np.moveaxis(pixels, 2 - plane, 0)
    return stack if plane else stack[..., ::-1]


def number_of(place, plane, first):
    """The number of a slice in its file, along the axis that runs right, front or up. first: that
    of the first slice as it is stored; -1 of a picture."""
    return np.where(plane == 0, first + place, first - place)


def read_scan_file(scan: ScanFile) -> dict:
    """The volume of one file as it is kept: its pixels, the number of the first of its slices along
    each axis, and which slices of each plane are usable, as places."""
    if scan.files and is_packed(scan.files[0]):
        pixels, mm = read_packed(scan.files[0], scan.path.relative_to(scan.files[0]).as_posix())
        return about_volume(pixels, mm, (len(pixels) - 1, pixels.shape[1] - 1, 0))
    if scan.files or kind_of(scan.path) in ("volume", "dicom"):
        return read_volume(scan)
    picture = read(scan.path)
    pixels = normalised(picture.intensities(), picture.levels)
    if min(pixels.shape) < SMALLEST:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise DataError(f"{scan.path}: {size} is too small to train on")
    pixels = (pixels * 255 + 0.5).astype(np.uint8)[None]
    return dict(pixels=pixels, mm=(0, 0, 0), first=(-1, -1, -1), usable=((), (), (0,)), thick=True)


def read_volume(scan: ScanFile) -> dict:
    """`read_scan_file` of a volume, cut to the box of its foreground and 8 voxels around."""
    data, sizes = ras_intensities(scan.path, scan.files, scan.series)
    foreground = data > 0.1
    if not foreground.any():
        raise DataError(f"{scan.path}: is the same everywhere")
    ends = [np.flatnonzero(foreground.any((k - 2, k - 1)))[[0, -1]] for k in range(3)]
    box = [slice(max(0, a - 8), min(n, b + 9)) for (a, b), n in zip(ends, data.shape)]
    pixels = (data[tuple(box)] * 255 + 0.5).astype(np.uint8).transpose(2, 1, 0)[::-1, ::-1]
    first = (box[2].stop - 1, box[1].stop - 1, box[0].start)
    whole = np.array(data.shape[::-1]) / pixels.shape
    found = about_volume(pixels, sizes[::-1], first, whole)
    if not any(map(len, found["usable"])):
        raise DataError(f"{scan.path}: no slice with enough foreground")
    return found


def about_volume(pixels: np.ndarray, mm, first, whole=(1, 1, 1)) -> dict:
    """`read_scan_file` of pixels (S, H, W), from the top down and from the front to the back.

    A slice is usable where more than a tenth of it is above a tenth of white. mm: voxel sizes.
    first: the numbers of the first slices along the axes. whole: how many times as long as `pixels`
    the field of view was along them; of a small head in a large one, its share of `pixels` counts.
    """
    foreground, usable = pixels >= FOREGROUND, []
    for axis in range(3):
        sides = [k for k in range(3) if k != axis]
        share = foreground.mean(axis=tuple(sides))
        of_view = share / np.prod([whole[k] for k in sides])
        usable.append(np.flatnonzero((of_view if of_view.max() > 0.1 else share) > 0.1))
    z, y, x = mm
    thick = z > 1.5 or z > 1.6 * min(x, y)  # too thick to learn thinner slices from
    # In the order of PLANES.
    return dict(pixels=pixels, mm=mm, first=first[::-1], usable=usable[::-1], thick=thick)


def packed_scans(root: Path) -> tuple[list[ScanFile], str]:
    """The volumes in a packed file as scans, and '' or why the names do not tell the subjects."""
    scans = []
    for name in packed_names(root):
        *folders, last = name.split("/")
        split = next((SPLITS[f.lower()] for f in folders if f.lower() in SPLITS), "")
        inner = tuple(f for f in folders if f.lower() not in SPLITS)
        told_by = Name(inner, last, False)
        scans.append(ScanFile(root / name, "", "", split, files=(root,), name=told_by))
    return subjects_of(scans)


def ras_intensities(path, files=(), series="") -> tuple[np.ndarray, list[float]]:
    """A scan in [0, 1], float32 (right, front, up), of several volumes the first; its voxel sizes.

    See `intensity.intensity_range` for what is 0 and 1.
    """
    scan = read(path, files, series=series)
    if scan.times > 1:
        warn(f"{path}: the first of its {scan.times} volumes is used")
    return normalised(to_ras(scan.intensities(), scan.affine)), scan.sizes


def spread_evenly(usable: np.ndarray, count: int) -> np.ndarray:
    """So many of these, the first and the last among them; all of them if count is 0."""
    if not count or len(usable) <= count:
        return usable
    places = np.linspace(0, len(usable) - 1, count) if count > 1 else [len(usable) / 2]
    return usable[np.round(places).astype(int)]


def load_slices(
    scans: list[ScanFile], cache, *, root=None, axis="axial", count=0, workers=2, quiet=True
) -> tuple[Slices, str, int]:
    """All slices of all scans, decoded once: (Slices, fingerprint, number of files left out).

    The pixels are kept in `cache`/<fingerprint>.u8 and found again on the next call. Both files
    appear under their names only when they are whole. A file that cannot be read is named and left
    out.
    """
    root = root or os.path.commonpath([scan.path.parent for scan in scans])
    key = fingerprint(scans, root, cache, remember=not quiet)
    pixels_file, index_file = (Path(cache, f"{key}.{end}") for end in ("u8", "npz"))
    mark_used(pixels_file)  # before it is looked for, so that nobody deletes it in between
    index = read_index(index_file, pixels_file)
    if index is None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        prune_cache(Path(cache))
        with atomic_write(pixels_file) as file:
            index = decode(scans, file, workers, quiet)
        buffer = io.BytesIO()  # writing to a full disk, np.savez would raise anything
        np.savez(buffer, **index)
        with atomic_write(index_file) as file:
            file.write(buffer.getbuffer())
    return slices_of_index(index, pixels_file, scans, root, axis, count), key, len(index["bad"])


def slices_of_index(index: dict, pixels_file: Path, scans, root, axis: str, count: int) -> Slices:
    """The slices of a plane, or of several, `count` of each volume and plane or all (0)."""
    chosen, too_thick = [], []
    planes = [PLANES.index(plane) for plane in AXES[axis]]
    bounds = np.searchsorted(index["volume"], np.arange(len(index["start"]) + 1))
    for v, (begin, end) in enumerate(pairwise(bounds)):
        if axis == "through" and index["thick"][v]:
            too_thick.append(scans[index["owner"][v]].path)
            continue
        of_plane = index["plane"][begin:end]
        wanted = planes if index["first"][v, 2] >= 0 else [2]  # a picture has one slice
        for plane in wanted:
            chosen.append(begin + spread_evenly(np.flatnonzero(of_plane == plane), count))
    if too_thick:
        words = "slices too thick to learn thinner ones from"
        warn(f"left out: {len(too_thick)} volumes with {words} ({too_thick[0]})")
    chosen = np.concatenate([*chosen, np.zeros(0, int)]).astype(int)
    if not len(chosen):
        raise DataError(f"{root}: no slice of the wanted plane could be read")
    volume, plane, place = (index[name][chosen] for name in ("volume", "plane", "place"))
    first, owner = index["first"][volume, plane], index["owner"][volume]
    numbers = number_of(place, plane, first)
    files = names_below(root, scans)
    names = [files[i] + (f"#{n}" if n >= 0 else "") for i, n in zip(owner, numbers)]
    who = np.array([(scan.subject, scan.group) for scan in scans])[owner]
    where = (index[name] for name in ("start", "size", "mm"))
    looked_at = index["looked_at"], index["thumbnail"]
    return Slices(pixels_file, *where, volume, plane, place, *who.T, np.array(names), looked_at)


def decode(scans: list[ScanFile], file, workers: int, quiet: bool) -> dict:
    """Write the volumes of all files into a file, and return what says where each of them is."""
    volumes, bad, position, looked_at, thumbnails = [], [], 0, [], []

    def read_one(scan):
        try:
            return read_scan_file(scan)
        except DataError as error:
            return error

    bar = progress(total=len(scans), desc="reading", unit="file", disable=quiet)
    with ThreadPoolExecutor(workers) as pool, bar:
        # A few scans at a time: what waits to be written is bounded.
        for begin in range(0, len(scans), 4 * workers):
            part = scans[begin : begin + 4 * workers]
            for owner, found in enumerate(pool.map(read_one, part), begin):
                bar.update()
                if isinstance(found, DataError):
                    warn(f"left out: {found}")
                    bad.append(owner)
                    continue
                pixels = np.ascontiguousarray(found.pop("pixels"))
                file.write(pixels.data)
                some = spread_evenly(np.array(found["usable"][2], int), LOOKED_AT)
                looked_at += [len(volumes)] * len(some)
                thumbnails += [thumbnail(pixels[place]) for place in some]
                volumes.append(found | dict(start=position, size=pixels.shape, owner=owner))
                position += pixels.size
    if not volumes:
        raise DataError(f"{scans[0].path.parent}: no slice could be read of any file")
    index = {name: np.array([v[name] for v in volumes])
             for name in ("start", "size", "mm", "first", "owner", "thick")}  # fmt: skip
    table = [(v, plane, place) for v, found in enumerate(volumes)
             for plane in range(3) for place in found["usable"][plane]]  # fmt: skip
    index |= dict(zip(("volume", "plane", "place"), np.array(table).T))
    thumbnails = np.array(thumbnails, np.int8).reshape(-1, SIZE**2)
    index |= dict(looked_at=np.array(looked_at, int), thumbnail=thumbnails)
    return index | dict(bad=np.array(bad), bytes=np.array(position))

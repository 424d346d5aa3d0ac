"""Turn a folder of volumes or DICOM series into folders of slices, for train.py --data.

    python data/prepare.py SCANS OUT --size 240x256 --classes participants.tsv:group

Made the slices of data/ds002748: equal orientation, brightness and size, never resampled.
"""

import argparse
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import dataset
from scans import PLANES
from scans.formats import natural
from scans.listing import ScanFile, training_scans
from scans.splits import split_subjects
from scans.subjects import KNOWN, person_key, read_table
from utils import (
    DataError,
    Parser,
    UsageError,
    atomic_write,
    int_between,
    one_line,
    progress,
    run_main,
    warn,
)


def height_width(text: str) -> tuple[int, int]:
    """An argparse type: `240x256` as (240, 256)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and 4 <= int(height) * int(width) <= 2**26):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 240x256 (height x width)")
    return int(height), int(width)


def read_classes(source: Path, spec: str) -> dict[str, str]:
    """{person: class} from `table.tsv:column`, looked for in the data folder too.

    The people are in the column participant_id, Subject or PTID, or else in the first one; their
    ids as `person_key` writes them. Raises UsageError for a table or column that is not there.
    """
    name, _, column = spec.rpartition(":")
    path = next((p for p in (Path(name), source / name) if name and p.is_file()), None)
    if path is None:
        raise UsageError(f"--classes {spec}: no such table; give FILE:COLUMN")
    columns, *rows = read_table(path) or [[]]
    if column not in columns:
        raise UsageError(f"--classes {spec}: {path} has the columns {', '.join(columns)}")
    ids = next((c for c in ("participant_id", "Subject", "PTID") if c in columns), columns[0])
    ids, column = columns.index(ids), columns.index(column)
    classes = {}
    for row in rows:
        group = row[column] if len(row) > max(ids, column) else ""
        if group.lower() not in ("", "n/a", "nan"):
            first = classes.setdefault(person_key(row[ids]), group)
            if first != group:
                warn(f"{path}: {row[ids]} is {first} and {group} there; {first} counts")
    return classes


def slice_names(scans: list[ScanFile]) -> list[str]:
    """For each scan the beginning of its slices' names, from which the subject is known again.

    The subject, as `sub-` and letters if its id is not of a known kind; and `_scan-<n>` where
    there are several of one.
    """
    names, label_of, number = [], {}, Counter()
    total = Counter(scan.subject for scan in scans)
    for scan in scans:
        subject = scan.subject
        number[subject] += 1
        if subject not in label_of:
            label = subject
            if not KNOWN.fullmatch(subject):
                label = "sub-" + (re.sub(r"[^A-Za-z0-9]", "", subject) or "x")
            taken = {other.casefold() for other in label_of.values()}
            while label.casefold() in taken:
                label += "x"
            label_of[subject] = label
        end = f"_scan-{number[subject]}" if total[subject] > 1 else ""
        names.append(label_of[subject] + end)
    return names


def main(argv=None):
    """Turn scans into slices: {train,val,test}/{class}/<subject>_<slice>.png."""
    parser = Parser("Turn a folder of scans into folders of slices, for train.py --data.")
    add = parser.add_argument
    add("source", metavar="SCANS", help="folder of volumes (nii, mgz, img) or DICOM series")
    add("out", metavar="OUT", help="new folder for {train,test}/{class}/<subject>_<slice>.png")
    add("--size", type=height_width, metavar="HxW", help="cut and pad the slices, as 240x256")
    add("--classes", metavar="FILE:COLUMN", help="table of the subjects, as participants.tsv:group")
    add("--test", type=float, default=0.15, help="share of the subjects to test on; 0: none")
    add("--workers", type=int_between(1, 64), default=2, help="threads that read and write")
    dataset.add_data_arguments(add, slices=20, axes=PLANES, cache=False)
    args = parser.parse_args(argv)
    source, out = Path(args.source), Path(args.out)
    if not 0 <= args.test < 1:
        parser.error("--test must be in [0, 1)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already; name a new folder")

    scans, doubt = training_scans(source, args.subjects, args.each_file_a_subject)
    scans = [s for s in scans if not s.is_picture]
    if not scans:
        raise DataError(f"{source}: holds no volumes (nii, mgz, img, dcm)")
    if doubt:
        raise DataError(doubt)
    if args.classes:
        scans = with_classes(scans, read_classes(source, args.classes), args.classes)
    split = split_subjects(scans, args.seed, validate=0, test=args.test)
    counts, bad = write_slices(args, scans, split)
    for (part, group), n in sorted(counts.items()):
        subjects = {s.subject for s in scans if (split[s.subject], s.group) == (part, group)}
        print(one_line(f"{part}/{group}: {len(subjects)} subjects, {n} slices"))
    if not counts:
        raise DataError(f"{source}: no scan could be read")
    print("Try next:\n  " + one_line(f"python train.py --data {out}"))
    return 1 if bad else 0


def with_classes(scans: list[ScanFile], classes: dict, spec: str) -> list[ScanFile]:
    """The scans whose subjects the table knows, with their class; the others are named."""
    group_of = {scan.subject: classes.get(person_key(scan.subject), "") for scan in scans}
    unknown = sorted((s for s, group in group_of.items() if not group), key=natural)
    if unknown:
        warn(f"left out, without a class in {spec}: {', '.join(unknown)}")
    scans = [replace(scan, group=group_of[scan.subject]) for scan in scans]
    scans = [scan for scan in scans if scan.group]
    if not scans:
        raise DataError(f"{spec}: has none of the subjects")
    return scans


def volume_slices(scan: ScanFile, plane: int, count: int, size=None) -> list[tuple]:
    """Usable slices of a volume, `count` evenly spaced or all (0): [(number, uint8 (H, W))].

    plane: of PLANES. size (H, W): they are cut and padded with black about the middle of the box of
    the volume's foreground; None: that box and 8 voxels around it. Raises DataError.
    """
    found = dataset.read_volume(scan)
    stack = dataset.stack_along(found["pixels"], plane)
    places = dataset.spread_evenly(found["usable"][plane], count)
    if not len(places):
        raise DataError(f"{scan.path}: no {PLANES[plane]} slice with enough foreground")
    if size:
        head = (stack >= dataset.FOREGROUND).any(0)
        ends = [np.flatnonzero(head.any(1 - k))[[0, -1]] for k in (0, 1)]
        starts = [int(a + b) // 2 - want // 2 for (a, b), want in zip(ends, size)]
        inside = tuple(slice(max(0, a), max(0, a + want)) for a, want in zip(starts, size))
        outside = [(max(0, -a), max(0, a + want - n))
                   for a, want, n in zip(starts, size, stack.shape[1:])]  # fmt: skip
        stack = np.pad(stack[(slice(None), *inside)], [(0, 0), *outside])
    first = found["first"][plane]
    return [(dataset.number_of(place, plane, first), stack[place]) for place in places]


def write_slices(args, scans: list[ScanFile], split: dict) -> tuple[Counter, int]:
    """Write the slices of all scans: their number by (part, class), and of scans left out."""
    from PIL import Image

    def convert(job):
        """Write the slices of one scan: their number, or what is wrong with it."""
        scan, name = job
        folder = Path(args.out, split[scan.subject], re.sub(r"[^\w.-]", "_", scan.group).strip("."))
        try:
            slices = volume_slices(scan, PLANES.index(args.axis), args.slices, args.size)
            folder.mkdir(parents=True, exist_ok=True)
            for number, pixels in slices:
                with atomic_write(folder / f"{name}_{number:03d}.png") as file:
                    Image.fromarray(pixels).save(file, format="PNG")
        except DataError as error:
            return error
        return len(slices)

    counts, bad = Counter(), 0
    with ThreadPoolExecutor(args.workers) as pool:
        results = pool.map(convert, zip(scans, slice_names(scans)))
        for scan, result in progress(zip(scans, results), total=len(scans), unit="scan"):
            if isinstance(result, DataError):
                bad += 1
                warn(f"left out: {result}")
            else:
                counts[split[scan.subject], scan.group] += result
    return counts, bad


if __name__ == "__main__":
    run_main(main)

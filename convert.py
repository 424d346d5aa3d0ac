"""Turn a folder of scans into folders of slices, for train.py --data.

python convert.py SCANS SLICES
"""

import csv
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset import Scan, find_scans, split_subjects
from dicom import read_scan
from formats import PICTURES, PLANES, natural, suffix, volume_slices
from subjects import subject_of
from utils import (
    DataError,
    Parser,
    UsageError,
    as_data_error,
    atomic_write,
    int_between,
    one_line,
    run_main,
    warn,
)


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
    with as_data_error(path), open(path, encoding="utf-8-sig", newline="") as file:
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
    add("--slices", type=int_between(0), default=20, help="central slices of a scan; 0: all usable")
    add("--axis", default="axial", choices=PLANES, help="plane of the slices")
    add("--size", type=height_width, metavar="HxW", help="cut and pad the slices, as 240x256")
    add("--classes", metavar="FILE:COLUMN", help="table of the subjects, as participants.tsv:group")
    add("--bits", type=int, default=8, choices=(8, 16), help="of the pictures")
    add("--test", type=float, default=0.15, help="share of the subjects to test on; 0: none")
    add("--seed", type=int_between(0), default=0, help="of the split")
    add("--workers", type=int_between(1, 64), default=2, help="threads that read and write")
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
            warn(f"left out, without a class in {args.classes}: {', '.join(unknown)}")
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
            slices = volume_slices(read_scan(scan.path, scan.files), args.axis, args.slices, levels)
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
                warn(f"left out: {result}")
            else:
                counts[split[scan.subject], scan.group] += result[0]
                cut += result[1]
    if cut:
        warn(f"{cut} scans are larger than {args.size[0]}x{args.size[1]} and were cut")
    for (part, group), n in sorted(counts.items()):
        subjects = {s.subject for s in scans if (split[s.subject], s.group) == (part, group)}
        print(one_line(f"{part}/{group}: {len(subjects)} subjects, {n} slices"))
    if not counts:
        raise DataError(f"{source}: no scan could be read")
    print("Try next:\n  " + one_line(f"python train.py --data {out}"))
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)

"""What there is to read below a folder: pictures, volumes, DICOM series; whose, of which class."""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from scans.anatomy import why_not_anatomy
from scans.dicom import dicom_series
from scans.formats import PICTURES, RESULTS, VOLUMES, is_result, kind_of, natural, stem, suffix
from scans.subjects import Name, infer_subjects, is_class, subjects_from_table
from utils import DataError, reason, warn

UNKNOWN = "?"  # the subject of slices of which nobody knows whose they are
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
# Known, but not read.
UNREAD = (".gif", ".webp", ".jp2", ".heic", ".avif", ".nrrd", ".mha", ".mnc", ".zip", ".bz2")


@dataclass(frozen=True)
class ScanFile:
    """A file to read slices from. group is the class folder (AD, NC …), split train, val, test or
    ''. left_out says why it is not for training (`masks or segmentations`, `BOLD series` …), or ''.

    For a DICOM series path is its folder, or its only file; series is its number.
    """

    path: Path
    subject: str
    group: str
    split: str
    files: tuple = ()
    series: str = ""
    about: str = ""
    left_out: str = ""
    name: Name | None = None  # what its subject is told by

    @property
    def is_picture(self) -> bool:
        return not self.files and suffix(self.path) in PICTURES


def names_below(root, scans: list[ScanFile]) -> list[str]:
    """The path of each scan below a folder, with the numbers of series that lie in one folder."""
    paths = [Path(os.path.relpath(scan.path, root)).as_posix() for scan in scans]
    several = Counter(paths)
    return [f"{p}_{s.series}" if several[p] > 1 else p for p, s in zip(paths, scans)]


def find_scans(root) -> list[ScanFile]:
    """All pictures, volumes and DICOM series below a folder, in natural order. DataError: none."""
    return subjects_of(files_below(Path(root)))[0]


def files_below(root: Path) -> list[ScanFile]:
    """The scans below a folder, as yet without subjects."""
    if not root.is_dir():
        words = "is a file; --data takes the folder of a data set"
        raise DataError(f"{root}: {words if root.exists() else 'no such folder'}")
    scans, seen, unread = [], set(), Counter()

    def leave_out(error):
        warn(f"left out: {error.filename}: {reason(error)}")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=leave_out):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder that was read already
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((f for f in folders if f[0] != "."), key=natural)
        parts = Path(folder).relative_to(root).parts
        at = next((i for i, p in enumerate(parts) if p.lower() in SPLITS), len(parts))
        split = SPLITS[parts[at].lower()] if at < len(parts) else ""
        inner = tuple(p for p in parts if p.lower() not in SPLITS)
        group = next((p for p in parts[at:] if p.lower() not in SPLITS), "")
        dicom = []
        for name in sorted((name for name in files if name[0] != "."), key=natural):
            path = Path(folder, name)
            usual = suffix(path) in PICTURES + VOLUMES
            kind = "" if usual else kind_of(path)
            if kind == "dicom":
                dicom.append(path)
            elif usual or (kind == "volume" and suffix(path)[:4] != ".hdr"):
                why = RESULTS if is_result(path) else why_not_anatomy(path, inner)
                told_by = Name(inner, stem(path), suffix(path) in PICTURES)
                scans.append(ScanFile(path, "", group, split, left_out=why, name=told_by))
            elif suffix(path) in UNREAD:
                unread[suffix(path)] += 1
        for series in dicom_series(dicom) if dicom else ():
            first, *others = series.files
            path = Path(folder) if others else first
            why = why_not_anatomy(first, inner, series)
            told_by = Name(inner, "" if others else stem(path), False, series.patient)
            about = (series.files, series.number, series.about, why, told_by)
            scans.append(ScanFile(path, "", group, split, *about))
    for end, n in unread.items():
        warn(f"{root}: left out: {n} {end}: unpack archives, save others as PNG or NIfTI")
    if not scans:
        raise DataError(f"{root}: holds no slices (png, jpeg, tiff) and no volumes (nii, mgz, dcm)")
    return scans


def subjects_of(scans: list[ScanFile]) -> tuple[list[ScanFile], str]:
    """The scans with subject and class, and '' or why the names do not tell the subjects."""
    subjects, doubt = infer_subjects([scan.name for scan in scans])
    groups = (s.group if is_class(s.group, who) else "" for s, who in zip(scans, subjects))
    rows = zip(scans, subjects, groups)
    return [replace(s, subject=who or UNKNOWN, group=group) for s, who, group in rows], doubt


def training_scans(root, subjects=None, each_file=False, say=warn) -> tuple[list[ScanFile], str]:
    """The scans to train on, with their subjects, and '' or why these are in doubt.

    Masks, derivatives, BOLD, diffusion, results and what else is no anatomy are left out, which is
    said. subjects: a table of file or scan id and subject. each_file: every file is a subject.
    say: called with warnings.
    """
    root = Path(root)
    scans = files_below(root)
    left = Counter(scan.left_out for scan in scans if scan.left_out)
    if left:
        example = next(scan.path for scan in scans if scan.left_out)
        words = ", ".join(f"{n} {kind}" for kind, n in left.items())
        say(f"left out by names or headers: {words} (such as {example})")
        scans = [scan for scan in scans if not scan.left_out]
        if not scans:
            raise DataError(f"{root}: holds nothing else than {words}")
    scans, doubt = subjects_of(scans)
    if subjects or each_file:
        places = (s.path.relative_to(root).as_posix() for s in scans)
        chosen = (f"{p.removesuffix(suffix(p))} {s.series}".strip() for p, s in zip(places, scans))
        chosen = subjects_from_table(subjects, root, scans) if subjects else chosen
        return [replace(scan, subject=subject) for scan, subject in zip(scans, chosen)], ""
    ids = (s.subject for s in scans if s.is_picture)
    example = next((s for s in ids if re.fullmatch(r"I?\d{5,7}", s)), "")
    if example and not doubt:
        say(
            f"{root}: each id such as {example} counts as a person; ADNI's are of scans: two "
            "visits of one person may be split: --subjects FILE says who is who"
        )
    if doubt:
        shown = [s for s in scans if s.subject == UNKNOWN] or scans
        shown = shown[:: max(1, len(shown) // 3)][:3]
        examples = ", ".join(f"{s.path.relative_to(root)} of {s.subject!r}" for s in shown)
        doubt = (
            f"{root}: cannot tell whose slices these are: {doubt} ({examples}); give "
            "--subjects FILE, a table of file and subject, or confirm with --each-file-a-subject"
        )
    return scans, doubt

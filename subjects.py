"""Whose scan a file is, decided from the names of all files together."""

import re
from pathlib import Path

from formats import VOLUMES, stem, suffix

# How subjects are called in BIDS, ADNI and OASIS, wherever it stands in a name.
SUBJECT = r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+|\d{3}_S_\d{4,5}|OAS\d_\d{4}|OAS3\d{4})"


def subject_of(path: Path, folders: tuple[str, ...], patient: str = "") -> str:
    """Whose scan a file is: BIDS `sub-XX`, else `<scan id>_<slice>`, else its folder's name.

    folders: the folders between the data folder and the file, without the split. patient: what a
    DICOM file says.
    """
    for part in (path.name, *reversed(folders)):
        known = re.search(SUBJECT, part)
        if known:
            return known.group()
    if patient:
        return patient
    name = stem(path)
    if suffix(path) in VOLUMES:
        return re.split(r"_(?:study|ses|visit|T1|T2|FLAIR|desc)", name, flags=re.I)[0]
    scan, _, number = name.rpartition("_")
    generic = re.fullmatch(r"(slice|img|image|im|axial|scan|frame|t1w?|mri?)?[\W_]*", scan.lower())
    if generic or not re.search(r"\d", number):
        return folders[-1] if folders and generic else name
    return scan

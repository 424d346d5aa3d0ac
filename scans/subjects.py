"""Whose scan a file is, decided from the names of all files together; and the split by subject."""

import csv
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from scans.dicom import dicom_series
from scans.files import (
    PICTURES,
    RESULTS,
    UNREAD,
    VOLUMES,
    is_result,
    kind_of,
    natural,
    stem,
    suffix,
)
from utils import DataError, as_data_error, reason, warn

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")

# --- names ----------------------------------------------------------------------------------------

# Ids of people in BIDS, ADNI, OASIS-1 to -4, IXI, HCP-Aging and -Development, BraTS, TCGA, UK
# Biobank, ABCD, UPenn, UCSF, PPMI and AIBL: certain wherever they stand, also behind the letters
# that SPM puts before the names of what it made (mwp1sub-01).
START = r"(?<![A-Za-z0-9])(?:[smwrcp]{1,4}[1-3]?)?"
KNOWN = re.compile(
    START + r"(sub-[A-Za-z0-9]+|\d{3}_S_\d{4,5}|OAS[12]_\d{4}|OAS[34]\d{4}|IXI\d{3}|HC[AD]\d{7}"
    r"|BraTS-[A-Za-z]+-\d{5}|BraTS2021_\d{5}|BraTS20_(?:Training|Validation)_\d{3}|BRATS_\d{3}"
    r"|BraTS1[789](?:_[A-Za-z0-9]+){2}_\d+|TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4}|UPENN-GBM-\d{5}"
    r"|UCSF-PDGM-\d{4}|\d{7}(?=_\d{5}_[23]_0)|NDAR_?INV[A-Z0-9]{8}|(?:PPMI|AIBL)_\d+)(?![0-9])",
    re.I,
)
PERSON = re.compile(
    START + "((?:sub|subj|subject|patient|pat|pt|participant|person|volunteer|donor|case|p)"
    r"[-_ .#]*\d+[a-z]?)(?![A-Za-z0-9])",
    re.I,
)
# Words that say which picture it is, not whose: with a number of their own, and without.
NUMBERED = (
    "slice|slc|sl|img|im|image|frame|fr|scan|visit|vis|ses|sess|session|run|rep|echo|te|tr|ti|pos"
    "|series|ser|study|stud|acq|acquisition|time|timepoint|tp|month|year|week|day|mr"
    "|mpr|vol|volume|file|pic|picture|photo|page|view|stack|layer|level|index|idx|export|crop|aug"
)
PLAIN = (
    r"t1|t1w|t1ce|t1c|t1n|t1gd|t2|t2w|t2f|t2star|pd|pdw|flair|swi|mra|adc|dwi|dti|bold|mprage|mp2rage"
    r"|spgr|fspgr|irspgr|tse|fse|gre|flash|space|bravo|cube|vibe|mri|ct|brain|brainmask|head|skull"
    r"|stripped|orig|rawavg|raw|nu|norm|anat|anatomical|func|structural|struct|axial|ax|tra|trans"
    r"|coronal|cor|sagittal|sag|[1-9]t|1[.]5t|bias|corrected|corr|reg|registered|mni|mni152|warped"
    r"|native|resampled|iso|\d+mm|pre|post|gd|contrast|baseline|bl|followup|fu|left|right|lh|rh|l|r|mag"
    r"|phase|real|imag|mean|avg|average|dicom|dcm|nifti|nii|png|jpe?g|data|images|slices|scans"
    r"|volumes|pictures|defaced|desc|preproc|acpc|dc|restore|masked|conformed|imagests|imagestr"
    r"|(?:19|20)\d{6}|(?:19|20)\d\d-\d\d-\d\d(?:_\d\d_\d\d_\d\d)?"
)
SLICE = re.compile(r"(?<![A-Za-z0-9])(?:slice|slc|sl|img|im|image|frame|fr|z)[-_ .#]*\d+", re.I)
WORDS = rf"(?:{NUMBERED})(?:[-_ .#]*\d+)?|[zmywdve]\d{{1,3}}|{PLAIN}"
WORDS = rf"(?<![A-Za-z0-9])(?:{WORDS})(?![A-Za-z0-9])"
DESCRIPTION = re.compile(WORDS, re.I)
PLACES = "site|center|centre|batch|group|class|fold|cohort|stage|grade|disc|disk|set|dataset|part"
FOLDER_DESCRIPTION = re.compile(
    rf"{WORDS}|(?<![A-Za-z0-9])(?:{PLACES})[-_ .]*\d*(?![A-Za-z0-9])", re.I
)
# Files that are no scans to learn from, by a word of a folder, of a name or of a DICOM series.
LEFT_OUT = {
    "masks or segmentations": r"[a-z]*masks?|[a-z]*seg[a-z]*|labels?(?:tr|ts)?|wmparc|ribbon",
    "derivatives": r"derivatives",
    "BOLD series": r"bold|sbref|func|fmri|rs-?fmri",
    "field or phase maps": r"fmap|field-?maps?|phase|phasediff",
    "diffusion series": r"dwi|dti|diffusion|diff|adc|tracew?|fa(?!\d)",
}
LEFT_OUT = {
    kind: re.compile(rf"(?<![A-Za-z])(?:{words})\d*(?![A-Za-z])", re.I)
    for kind, words in LEFT_OUT.items()
}
LESION = re.compile(r"(?<![A-Za-z])(?:lesions?|rois?)(?![A-Za-z])", re.I)  # a folder: a class
TABLE_SUBJECT = ("subject", "subject_id", "subject id", "participant_id", "ptid", "patient")


has_digit = re.compile(r"\d").search


@lru_cache(maxsize=2**16)
def own_words(text: str, picture: bool, words=DESCRIPTION) -> str:
    """What is left of a name without sequence, plane, visit, session, run, echo, slice: an id.

    A picture's last number counts as that of its slice. '' where nothing is left.
    """
    if picture and re.search(r"\(\d+\)\s*$", text):  # as Windows numbers files: says nothing
        return ""
    if picture and re.fullmatch(r"[0-9a-f-]{20,}", text, re.I):  # a random name
        return text
    first, *rest = (piece.strip("-_ .#()") for piece in words.sub("|", text).split("|"))
    rest = [piece for piece in rest if piece]
    numbered = picture and bool(SLICE.search(text))
    if first:
        numbered = numbered or bool(rest and re.search(r"\d$", rest[-1]))
        return first if numbered or not picture else unnumbered(first)
    rest = "_".join(rest)
    return rest if not picture or (numbered and not rest.isdigit()) else unnumbered(rest)


def unnumbered(text: str) -> str:
    """The text without the number at its end: `218391_78` as 218391, `mildDem12` as mildDem."""
    return re.sub(r"[-_ .#]*\d+$", "", text)


@dataclass(frozen=True)
class Name:
    """What decides whose a file is: its folders from the top, its name without ending ('' for a
    folder of DICOM files), whether it is one picture, and the patient that a DICOM file names."""

    folders: tuple
    name: str
    picture: bool
    patient: str = ""


def certain(name: Name) -> str:
    """The id of a person that the path or the DICOM file says for certain; '' if there is none."""
    for part in (name.name, *reversed(name.folders)):
        known = KNOWN.search(part)
        if known:
            return known.group(1)
    path = re.search(r"(?<![^/])(PPMI|AIBL)/(\d+)(?=/|$)", "/".join(name.folders), re.I)
    return "_".join(path.groups()) if path else name.patient


def folder_keys(names: list[Name]) -> list[str]:
    """For each file the folder that seems to be a person's; '' where there is none.

    The uppermost one with a number, or else the lowest one whose name is not found again in other
    folders (p1/left, p2/left). Folders that all files share, and those for sequence, visit or site,
    do not count.
    """
    tops = [n.folders for n in names]
    first, last = min(tops), max(tops)  # whatever these two share, all do
    same = [a == b for a, b in zip(first, last)]
    shared = (*same, False).index(False) if first != last else 0
    keys = [
        [key for f in folders[shared:] if (key := own_words(f, False, FOLDER_DESCRIPTION))]
        for folders in tops
    ]
    parents = defaultdict(set)
    for path in keys:
        for i, key in enumerate(path):
            parents[key].add(tuple(path[:i]))
    chosen = []
    for path in keys:
        numbered = [key for key in path if has_digit(key)]
        alone = [key for key in path if len(parents[key]) == 1]
        chosen.append((numbered or alone[::-1] or path or [""])[0])
    return chosen


def whose(names: list[Name]) -> tuple[list[str], str]:
    """The subject of each file, and '' or why the names do not tell.

    In this order: ids that are certain, words such as `patient12` in a folder, then in the name,
    and last what varies between folders and names.
    """
    subjects = [certain(name) for name in names]
    unsure = [i for i, subject in enumerate(subjects) if not subject]
    keys, inside = folder_keys(names), defaultdict(set)
    generic = []
    for i in unsure:
        folder = next((p for f in names[i].folders if (p := PERSON.search(f))), None)
        name = PERSON.search(names[i].name)
        if folder and name:
            inside[folder.group(1)].add(re.sub(r"\D", "", name.group(1)).lstrip("0"))
        if folder or name:
            subjects[i] = (folder or name).group(1)
        else:
            generic.append(i)
    words = {i: own_words(names[i].name, names[i].picture) for i in generic}
    places = defaultdict(set)
    for i in generic:
        places[words[i]].add(keys[i])
    again = [len(folders) > 1 for word, folders in places.items() if word]
    repeated = sum(again) > 0.5 * len(again)  # the same names in every folder say nothing
    for i in generic:
        word, folder = words[i], keys[i]
        by_name = word and not repeated and (has_digit(word) or not has_digit(folder))
        subjects[i] = word if by_name else folder
        if by_name and has_digit(folder):
            inside[folder].add(word)
    subjects = same_spelling(subjects)
    return subjects, doubt_about(subjects, names, unsure, generic, inside)


def doubt_about(subjects, names, unsure, generic, inside) -> str:
    """'' or why the subjects may be wrong.

    unsure: files whose id is not certain; generic: those of them that no word such as `patient12`
    tells; inside: {a person's folder: the subjects of the names in it}.
    """
    vague, numbers = set(), defaultdict(set)
    for i in generic:
        subject = subjects[i]
        if not has_digit(subject) or (names[i].picture and len(subject) == 1):
            vague.add(subject)
        pair = re.fullmatch(r"(.*\d.*?)[-_ .]\d{1,2}", subject)
        if pair:
            numbers[pair.group(1)].add(subject)
    pictures = [subjects[i] for i in unsure if names[i].picture]
    if any(not subjects[i] for i in generic):
        return "the names do not say it"
    if any(len(found) > 1 for found in inside.values()):
        return "files of one folder seem to be of several people"
    if 0 < len(vague) < 10 and 2 * sum(subjects[i] in vague for i in generic) >= len(generic):
        return "the names may say the class"
    if len(numbers) > 1 and max(map(len, numbers.values())) > 1:
        return "the last numbers may be of people or of visits"
    if len(unsure) > 1 and len(set(subjects)) == 1:
        return "all seem to be of one person"
    if len(pictures) > 1 and len(set(pictures)) > 0.8 * len(pictures):
        return "there would be as many people as pictures"
    return ""


def same_spelling(subjects: list[str]) -> list[str]:
    """One spelling for `Sub-01`, `sub-01` and `sub_01`."""
    first = {}
    plain = (re.sub(r"(?<=[A-Za-z])[-_ .#]+(?=\d)", "", s).casefold() for s in subjects)
    return [first.setdefault(key, s) for key, s in zip(plain, subjects)]


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
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


def find_scans(root) -> list[Scan]:
    """All pictures, volumes and DICOM series below a folder, in natural order. DataError: none."""
    return subjects_of(*files_below(Path(root)))[0]


def files_below(root: Path) -> tuple[list[Scan], list[Name]]:
    """The scans below a folder, as yet without subjects, and what their subjects are told by."""
    if not root.is_dir():
        words = "is a file; --data takes the folder of a data set"
        raise DataError(f"{root}: {words if root.exists() else 'no such folder'}")
    scans, names, seen, unread = [], [], set(), Counter()

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
        split = next((SPLITS[p.lower()] for p in parts if p.lower() in SPLITS), "")
        inner = tuple(p for p in parts if p.lower() not in SPLITS)
        dicom = []
        for name in sorted((name for name in files if name[0] != "."), key=natural):
            path = Path(folder, name)
            usual = suffix(path) in PICTURES + VOLUMES
            kind = "" if usual else kind_of(path)
            if kind == "dicom":
                dicom.append(path)
            elif usual or (kind == "volume" and suffix(path) != ".hdr"):
                why = RESULTS if is_result(path) else why_left_out(inner, stem(path))
                scans.append(Scan(path, "", "", split, left_out=why))
                names.append(Name(inner, stem(path), suffix(path) in PICTURES))
            elif suffix(path) in UNREAD:
                unread[suffix(path)] += 1
        for number, about, patient, members in dicom_series(dicom) if dicom else ():
            path = Path(folder) if len(members) > 1 else members[0]
            why = why_left_out(inner, f"{about} {number}")
            scans.append(Scan(path, "", "", split, members, number, about, why))
            names.append(Name(inner, stem(path) if len(members) == 1 else "", False, patient))
    for end, n in unread.items():
        warn(f"{root}: left out: {n} {end}: unpack archives, save others as PNG or NIfTI")
    if not scans:
        raise DataError(f"{root}: holds no slices (png, jpeg, tiff) and no volumes (nii, mgz, dcm)")
    return scans, names


def why_left_out(folders: tuple, name: str) -> str:
    """Why a file is not for training, judged by its names; '' if it is."""
    for kind, words in LEFT_OUT.items():
        if words.search(name) or any(words.fullmatch(folder) for folder in folders):
            return kind
    return "masks or segmentations" if LESION.search(name) else ""


def subjects_of(scans: list[Scan], names: list[Name]) -> tuple[list[Scan], str]:
    """The scans with subject and class, and '' or why the names do not tell the subjects."""
    subjects, doubt = whose(names)
    found = []
    for scan, name, subject in zip(scans, names, subjects):
        # A class is the first folder below train or test, if it is not a person's.
        group = name.folders[0] if scan.split and name.folders else ""
        says_class = own_words(group, False, FOLDER_DESCRIPTION) not in ("", subject)
        if not says_class or KNOWN.search(group) or PERSON.search(group):
            group = ""
        found.append(replace(scan, subject=subject or "?", group=group))
    return found, doubt


def training_scans(root, subjects=None, each_file=False, say=warn) -> tuple[list[Scan], str]:
    """The scans to train on, with their subjects, and '' or why these are in doubt.

    Masks, derivatives, BOLD, diffusion and results are left out, which is said. subjects: a table
    of file or scan id and subject. each_file: every file is a subject. say: called with warnings.
    """
    root = Path(root)
    scans, names = files_below(root)
    left = Counter(scan.left_out for scan in scans if scan.left_out)
    if left:
        example = next(scan.path for scan in scans if scan.left_out)
        words = ", ".join(f"{n} {kind}" for kind, n in left.items())
        say(f"left out by their names: {words} (such as {example})")
        kept = [i for i, scan in enumerate(scans) if not scan.left_out]
        scans, names = [scans[i] for i in kept], [names[i] for i in kept]
        if not scans:
            raise DataError(f"{root}: holds nothing else than {words}")
    scans, doubt = subjects_of(scans, names)
    chosen = []
    if subjects:
        chosen = look_up(subjects, root, scans)
    elif each_file:
        for scan in scans:
            place = scan.path.relative_to(root).as_posix().removesuffix(suffix(scan.path))
            chosen.append(f"{place} {scan.series}".strip())
    if chosen:
        scans, doubt = [replace(s, subject=subject) for s, subject in zip(scans, chosen)], ""
    else:
        ids = (s.subject for s, name in zip(scans, names) if name.picture)
        example = next((s for s in ids if re.fullmatch(r"I?\d{5,7}", s)), "")
        if example and not doubt:
            say(
                f"{root}: each id such as {example} counts as a person; ADNI's are of scans: two "
                "visits of one person may be split: --subjects FILE says who is who"
            )
    if doubt:
        shown = [s for s in scans if s.subject == "?"] or scans
        shown = shown[:: max(1, len(shown) // 3)][:3]
        examples = ", ".join(f"{s.path.relative_to(root)} of {s.subject!r}" for s in shown)
        doubt = (
            f"{root}: cannot tell whose slices these are: {doubt} ({examples}); give "
            "--subjects FILE, a table of file and subject, or confirm with --each-file-a-subject"
        )
    return scans, doubt


def read_table(path) -> list[list[str]]:
    """The rows of a csv or tsv file as stripped words, without empty rows."""
    with as_data_error(path), open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max("\t;,", key=first.count)
        rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter)]
    return [row for row in rows if any(row)]


def look_up(table, root: Path, scans: list[Scan]) -> list[str]:
    """The subject of each scan from a table of file or scan id and subject.

    A column is the subject's by its heading (Subject, PTID, participant_id …), or the second one;
    the files or ids are in the first other column. ADNI's lists of images can be given as they are.
    Raises DataError for scans that the table does not have.
    """
    rows = read_table(table)
    if not rows or min(map(len, rows)) < 2:
        raise DataError(f"{table}: two columns are needed, of file or scan id and of subject")
    heading = [cell.lower() for cell in rows[0]]
    column = next((heading.index(c) for c in TABLE_SUBJECT if c in heading), 1)
    subject_of = {plain_id(row[column == 0]): row[column] for row in rows if row[column]}
    found, missing = [], []
    for scan in scans:
        path = scan.path.relative_to(root)
        place, name = path.as_posix(), stem(path)
        tried = [place, place.removesuffix(suffix(path)), path.name, name, scan.subject]
        tried += [unnumbered(name), *reversed(path.parts[:-1])]
        hit = next((subject_of[k] for t in tried if (k := plain_id(t)) in subject_of), "")
        found.append(hit)
        missing += [] if hit else [str(path)]
    if missing:
        raise DataError(
            f"{table}: lacks {len(missing)} of {len(scans)} files: {', '.join(missing[:3])}"
        )
    return found


def plain_id(text: str) -> str:
    """For comparing ids: without case, and ADNI's image ids with and without their I."""
    return re.sub(r"^i(?=\d+$)", "", text.casefold())


# --- split ----------------------------------------------------------------------------------------


def split_subjects(scans: list[Scan], seed: int, validate: float = 0.1, test: float = 0.15) -> dict:
    """Assign every subject to `train`, `val` or `test`: {subject: split}.

    The data set's own `train`, `val` and `test` folders are kept; what is missing is taken out of
    the rest by a seeded shuffle of subjects, the same share of each class, at least one subject.
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
    if "val" in split.values() and "train" in [scan.split for scan in scans]:
        wanted.pop("test", None)  # a data set with folders of its own for both has no test part
    left = list(split.values()).count("train")
    if left <= len(wanted) and (wanted or validate):
        raise DataError(
            f"{where}: {left} subject(s){'' if 'test' in wanted else ' outside test'} are too few "
            f"for {' and '.join(('train', *wanted))} (evaluate.py --split all needs no split)"
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
    return split

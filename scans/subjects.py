"""Whose scan a file is: by ids of known kinds, folders of persons, person words, or a table.

Where these do not tell, the program asks: a wrong guess puts one person on both sides of a split.
"""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from scans.formats import natural, stem, suffix
from utils import DataError, as_data_error

TABLE_SUBJECT = ("subject", "subject_id", "subject id", "participant_id", "ptid", "patient")

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
SLICE = re.compile(r"(?<![A-Za-z0-9])(?:slice|slc|sl|img|im|image|frame|fr|z)[-_ .#]*\d+", re.I)
# Words that say which picture it is, not whose: with a number of their own, and without.
NUMBERED = (
    "slice|slc|sl|img|im|image|frame|fr|scan|visit|vis|ses|sess|session|run|rep|echo|te|tr|ti|pos"
    "|series|ser|study|stud|acq|acquisition|time|timepoint|tp|month|year|week|day|mr|mpr|vol"
    "|volume|file|pic|picture|photo|page|view|stack|layer|level|index|idx|export|crop|aug|site"
    "|center|centre|batch|group|class|fold|cohort|stage|grade|disc|disk|set|dataset|part"
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
WORDS = rf"(?:{NUMBERED})(?:[-_ .#]*\d+)?|[zmywdve]\d{{1,3}}|{PLAIN}"
SCAN_WORDS = re.compile(rf"(?<![A-Za-z0-9])(?:{WORDS})(?![A-Za-z0-9])", re.I)
# What may follow an id without making it another person's: a word, a letter, a date, a number.
TRAILING = re.compile(r"|[-_ .#].{1,20}|[A-Za-z]+\d?")
# What anonymisers write into PatientID.
NOBODY = re.compile(
    r"\W*(?:anon\w*|unknown|undefined|none|null|n/?a|no[-_ ]?(?:id|name)|patient|subject|test|blank"
    r"|removed|de-?identified|deleted|redacted|hidden|masked|confidential|([a-z])\1+|0*)\W*",
    re.I,
)

has_digit = re.compile(r"\d").search


@dataclass(frozen=True)
class Name:
    """What decides whose a file is: its folders from the top, its name without ending ('' for a
    folder of DICOM files), whether it is one picture, and the patient that a DICOM file names."""

    folders: tuple
    name: str
    picture: bool
    patient: str = ""


@lru_cache(maxsize=2**16)
def strip_scan_words(text: str) -> tuple[str, ...]:
    """The pieces of a name that are left without words for sequence, plane, visit, site, slice."""
    pieces = (piece.strip("-_ .#()") for piece in SCAN_WORDS.sub("|", text).split("|"))
    return tuple(piece for piece in pieces if piece)


def is_class(folder: str, subject: str) -> bool:
    """Whether the first folder below train or test is a class, and not a person's."""
    pieces, person = strip_scan_words(folder), KNOWN.search(folder) or PERSON.search(folder)
    return bool(pieces) and subject not in pieces and not person


def unnumbered(text: str) -> str:
    """The text without the number at its end, if that stands apart: `218391_78` as 218391."""
    return re.sub(r"[-_ .#]+\d+$", "", text)


def known_id(name: Name) -> str:
    """The id of a person that the path or the DICOM file says for certain; '' if there is none."""
    for part in (name.name, *reversed(name.folders)):
        known = KNOWN.search(part)
        if known:
            return known.group(1)
    path = re.search(r"(?<![^/])(PPMI|AIBL)/(\d+)(?=/|$)", "/".join(name.folders), re.I)
    return "_".join(path.groups()) if path else ""


def id_in_name(name: Name) -> str:
    """The id in a file's name: a piece with a digit. A picture needs the number of its slice too.

    '' where that is missing, and for numbers that may be of a run or a series.
    """
    pieces = list(strip_scan_words(name.name))
    if name.picture and not SLICE.search(name.name):
        last = pieces.pop() if pieces else ""
        if not last.isdigit() and unnumbered(last) == last:
            return ""
        pieces += [unnumbered(last)] * (not last.isdigit())
    found = next(filter(has_digit, pieces), "")
    number = len(found) < 3 and found != name.name  # of a run or a series
    if name.picture:
        number = bool(SLICE.match(name.name))  # IM-0001-0023: of series and slice
    return "" if found.isdigit() and number else found


def id_in_folders(folders: tuple) -> str:
    """The id in the uppermost folder's name that may be a person's; '' if there is none."""
    for folder in folders:
        found = next(filter(has_digit, strip_scan_words(folder)), "")
        if found and not re.fullmatch(r"(19|20)\d\d|[A-Za-z]+[-_ ]\d|.*\d[.]\d.*", found):
            return found
    return ""


def infer_subjects(names: list[Name]) -> tuple[list[str], str]:
    """The subject of each file, and '' or why the names do not tell.

    In this order: ids of known kinds, the PatientID of DICOM files, a word such as `patient12` in a
    folder or in the name, the folder of a person, and last an id in the name.
    """
    subjects = [known_id(name) for name in names]
    first, last = (pick(name.folders for name in names) for pick in (min, max))
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
    unsure, found = [], []
    for i, name in enumerate(names):
        if subjects[i]:
            continue
        if name.patient and not NOBODY.fullmatch(name.patient):
            subjects[i] = name.patient
            continue
        own, word = name.folders[shared:], PERSON.search(name.name)
        folder = next((p.group(1) for f in own if (p := PERSON.search(f))), "")
        in_name = word.group(1) if word else "" if folder else id_in_name(name)
        folder = folder or ("" if word else id_in_folders(own))
        if folder and not name.picture and re.fullmatch(r"\d{1,3}", in_name):  # 001.mgz: a run
            in_name = ""
        subjects[i] = folder or in_name
        unsure.append(i)
        found.append((folder, in_name))
    subjects = same_spelling(subjects)
    return subjects, ambiguity(subjects, names, unsure, found)


def names_contradict_folders(found: list[tuple[str, str]], pictures: bool) -> bool:
    """Whether files of one folder seem to be of several people, or one person's in several folders.

    found: of each file the id of a person's folder and the id in its name, or ''. The name of a
    volume that is in half of the folders or more says which scan it is, if there are not more of
    such than folders. pictures: whether there are any.
    """
    places, inside = defaultdict(set), defaultdict(set)
    for folder, in_name in found:
        if in_name:
            places[in_name].add(folder)
    folders = {folder for folder, _ in found if folder}
    several = {in_name: there for in_name, there in places.items() if len(there) > 1}
    for folder, in_name in found:
        if folder and in_name and in_name not in several:
            inside[folder].add(in_name)
    return (
        len(several) > (0 if pictures else len(folders))
        or any("" in there or 2 * len(there) < len(folders) for there in several.values())
        or any(len(ids) > 1 for ids in inside.values())
    )


def ambiguity(subjects: list[str], names: list[Name], unsure: list[int], found: list) -> str:
    """'' or why the subjects may be wrong.

    unsure: files without an id of a known kind and without a PatientID; found: of each of them the
    id of a person's folder and the one in its name.
    """
    mine = [subjects[i] for i in unsure]
    pictures = [subjects[i] for i in unsure if names[i].picture]
    if not all(mine):
        return "the names do not say it"
    if names_contradict_folders(found, bool(pictures)):
        return "names and folders seem to be of different people"
    if mine and max(map(len, mine)) == 1:
        return "the names may say the class"
    if len(mine) > 1 and len(set(subjects)) == 1:
        return "all seem to be of one person"
    if len(pictures) > 1 and len(set(pictures)) > 0.8 * len(pictures):
        return "there would be as many people as pictures"
    alike = defaultdict(list)
    for subject in sorted({s for s in subjects if not KNOWN.fullmatch(s)}, key=natural):
        root = re.match(r"\D*\d+", subject)
        if root and TRAILING.fullmatch(subject[root.end() :]):
            alike[root.group().casefold()].append(subject)
    several = next((ids for ids in alike.values() if len(ids) > 1), None)
    return f"{several[0]!r} and {several[1]!r} may be one person" if several else ""


def same_spelling(subjects: list[str]) -> list[str]:
    """One spelling for `Sub-01`, `sub_01` and `01`; for `sub-OAS30001` and `OAS30001`."""
    first = {}
    plain = (re.sub(r"^sub(?:-|[_ .#]*(?=\d))", "", s.casefold()) for s in subjects)
    plain = (re.sub(r"(?<=[a-z])[-_ .#]+(?=\d)", "", s) for s in plain)
    return [first.setdefault(key, s) for key, s in zip(plain, subjects)]


def person_key(text: str) -> str:
    """An id as it is compared between data sets: OAS1_0001_MR1 is oas1_0001, sub-01 and IXI001 are
    1. IXI's table has plain numbers, OASIS-1's the visit."""
    known = KNOWN.search(text)
    text = (known.group(1) if known else text).casefold().removeprefix("sub-")
    return text.removeprefix("ixi").lstrip("0") if text.removeprefix("ixi").isdigit() else text


# --- a table of who is who ------------------------------------------------------------------------


def read_table(path) -> list[list[str]]:
    """The rows of a csv or tsv file as stripped words, without empty rows."""
    with as_data_error(path), open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max("\t;,", key=first.count)
        rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter)]
    return [row for row in rows if any(row)]


def subjects_from_table(table, root: Path, scans: list) -> list[str]:
    """The subject of each scan from a table of file or scan id and subject.

    A column is the subject's by its heading (Subject, PTID, participant_id …), or the second one;
    the files or ids are in the first other column. ADNI's lists of images can be given as they are.
    Raises DataError for scans that the table does not have, short rows, an id of two subjects.
    """
    rows = read_table(table)
    heading = [cell.lower() for cell in rows[0]] if rows else []
    column = next((heading.index(c) for c in TABLE_SUBJECT if c in heading), 1)
    subject_of = {}
    for row in rows or [[]]:
        if len(row) < max(2, column + 1):
            words = f"; this row has {len(row)}: {', '.join(row)}" if row else ""
            words = f"two columns are needed, of file or scan id and of subject{words}"
            raise DataError(f"{table}: {words}")
        given, subject = row[column == 0], row[column]
        if given and subject and subject_of.setdefault(plain_id(given), subject) != subject:
            both = f"{subject_of[plain_id(given)]} and {subject}"
            raise DataError(f"{table}: gives {given} two subjects, {both}")
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

"""DICOM files to series and volumes: what dcm2niix makes of them, and whether it may be trusted.

Its answer is held against the positions in the files; what it warns of is an error.
"""

import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scans import volumes
from scans.dcm2niix import COMPRESSED, IS_INDEX, Picture, Result, convert, start_of, unreadable
from scans.formats import natural
from scans.scan import Scan
from utils import DataError, as_data_error, warn

PIECES = 6  # more volumes of one series are slices that dcm2niix could not put together
FOLDER = {"prefix": "dicom-", "ignore_cleanup_errors": True}
# The position of each frame in the bytes of a header: a PlanePositionSequence and its first item.
POSITION = re.compile(
    rb"\x20\0\x13\x91.{4,8}\xfe\xff\0\xe0.{4}\x20\0\x32\0(?:DS..|..\0\0)([-+.\deE \\]+)", re.DOTALL
)
# What it warns of without harm, and what the positions tell better.
HARMLESS = re.compile(
    r"Patient Position .* not specified|Unable to determine manufacturer|Empty protocol name"
    r"|2D images are not mirrored|exported as classic|Philips enhanced|slice.?tim|Protocol.*Block"
    r"|dwidenoise|if conversion fails",
    re.IGNORECASE,
)
PLACES = re.compile(r"distance varies|Missing images\?|made _Eq|status 1$|order is not spatial")


class Series(NamedTuple):
    """A series among DICOM files. number: as `read_dicom` takes it; about: what it shows, to be
    read; tags: what dcm2niix says of it, under the names that sidecars have."""

    number: str
    about: str
    patient: str
    files: tuple
    tags: dict


def dicom_series(files) -> list[Series]:
    """The series among the DICOM files of a folder. No pixels are read.

    Pictures of one series that differ in size or direction (a localizer) count as several, and so
    do echoes, magnitude, phase and field maps: their numbers end in `_e2`, `_phase` ... Files
    without a picture (reports, DICOMDIR) are left out; what cannot be read is a series of its own.
    """
    plain, left = [], defaultdict(list)
    for file in files:
        why = unreadable(file)
        if not why:
            plain.append(file)
        elif why != IS_INDEX:
            left[0, why if why in COMPRESSED else file].append(file)
    with tempfile.TemporaryDirectory(**FOLDER) as folder:
        results, pictures, said = convert(Path(folder), plain, "-b", "o")
    found, groups, taken = [], defaultdict(list), set()
    for result in results:
        groups[result.series, result.label].append(result)
    for (series, label), group in groups.items():
        for result in group if len(group) <= PIECES else group[:1]:
            # The first file tells which of the results it is.
            others = members_of(result, results, pictures, said)
            members = dict.fromkeys([result.first, *others])
            taken.update(members)
            about = ", ".join(filter(None, (result.about, label, f"{len(members)} file(s)")))
            found.append((series[0], label, about, [plain[i] for i in members], result.tags))
    for i, file in enumerate(plain):
        picture = pictures.get(i)
        if i not in taken and (not picture or min(picture.like[2]) > 1):
            left[picture.like[:2] if picture else (0, "")].append(file)
    found += [(number, "", "cannot be read", some, {}) for (number, _), some in left.items()]
    named, seen = [], Counter()
    for number, label, about, members, tags in found:
        seen[number, label] += 1
        again = f"-{seen[number, label]}" if seen[number, label] > 1 else ""
        name, patient = f"{number}{again}_{label}".strip("_"), str(tags.get("PatientID") or "")
        named.append(Series(name, about, patient, tuple(members), tags))
    return sorted(named, key=lambda series: natural(series.number))


def members_of(result: Result, results, pictures: dict, said: list) -> dict[int, Picture]:
    """The pictures of a result: those of its series that are not like the first of another.

    Where dcm2niix could use all pictures, those with another UID may belong to it, too.
    """
    like, others = pictures[result.first].like, {pictures[r.first].like for r in results}
    whole = not any("ended with status" in words for words in said)

    def belongs(picture) -> bool:
        same = 1 if whole and picture.valid else 2  # the number, or number and UID
        return picture.like not in others and picture.like[:same] == like[:same]

    return {i: p for i, p in pictures.items() if p.like == like or belongs(p)}


# --- volumes --------------------------------------------------------------------------------------


def read_dicom(path, files, series: str = "", force: bool = False) -> Scan:
    """The scan of a DICOM series: (X, Y, Z), with force (X, Y, Z, T).

    series: its number, where the files hold several. Raises DataError for what cannot be read, or
    only with force.
    """
    import nibabel as nib

    nib.imageglobals.logger.setLevel("CRITICAL")  # what it mends is said by `guesses`
    for file in files:
        if why := unreadable(file):
            raise DataError(f"{file}: {why}")
    with tempfile.TemporaryDirectory(**FOLDER) as folder:
        results, pictures, said = convert(Path(folder), files)
        result = chosen(path, results, series, said, force)
        with as_data_error(files[result.first]):
            image = nib.load(Path(folder, "out", f"{result.name}.nii"), mmap=False)
            if image.get_data_dtype().kind not in "iuf":
                raise DataError(f"{path}: is a colour picture, not a scan")
            stored = np.asarray(image.dataobj.get_unscaled())
            stored = stored.reshape(*stored.shape[:3], -1, order="F")
            members = members_of(result, results, pictures, said)
            places = places_of(result, stored.shape, files, members)
            affine, odd = lay_out(image.affine, stored.shape[2], places)
    times = stored.shape[3]
    volumes.check_not_functional(path, times, force, most=1)
    check(path, result, said, odd, len(places) > 0, force)
    if not volumes.is_usable(affine):
        raise DataError(f"{path}: its position or pixel size makes no sense")
    if left := [Path(files[i]).name for i, picture in members.items() if not picture.valid]:
        warn(f"{path}: {len(left)} file(s) without pixels are left out ({left[0]})")
    header = start_of(files[result.first], pictures[result.first].header)
    for words in guesses(result, pictures[result.first], header, stored.shape, len(places) > 0):
        warn(f"{path}: {words}")
    if b"MONOCHROME1" in header:  # white is small: turned round within its own range
        stored = (float(stored.max()) + float(stored.min()) - stored).astype(stored.dtype)
    header = volumes.nifti_header(affine, 1)
    header["descrip"] = result.about.encode("ascii", "replace")[:79]
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    stored = stored if times > 1 else stored[..., 0]
    return Scan(Path(path), stored, slope, inter, affine, header)


def guesses(result: Result, first: Picture, header: bytes, shape, placed: bool):
    """What is assumed where the files do not say it. placed: where the slices lie is known."""
    if b"\x28\0\x30\0" not in header:  # PixelSpacing
        yield "does not say how large its pixels are; 1 mm is assumed"
    if shape[2] == 1 and not {"SliceThickness", "SpacingBetweenSlices"} & result.tags.keys():
        yield "does not say how thick its slice is; 1 mm is assumed"
    if not np.linalg.norm(first.direction) > 1:
        yield "does not say which way its pictures lie; axial is assumed"
    if not placed and shape[2] > 1:
        yield "its files do not tell where each slice lies; dcm2niix is believed"
    if shape[3] > 1:
        yield f"which slice belongs to which of its {shape[3]} volumes is not checked"


def chosen(path, results, series: str, said: list, force: bool) -> Result:
    """The result that a name of `dicom_series` means; without a name the only one."""
    number, _, label = series.partition("_")
    ours = [r for r in results if not series or f"{r.series[0]}" == number.split("-")[0]]
    if not ours:
        why = "; ".join(words for words in said if not HARMLESS.search(words))[:400]
        raise DataError(f"{path}: cannot be read ({why})")
    if series and len(ours) > 1:
        ours = [r for r in ours if r.label == label] or ours
    if series and len(ours) <= PIECES:  # it was listed with its own first file before all others
        ours = [r for r in ours if r.first == 0] or ours
    if len(ours) > 1:
        names = ", ".join(dict.fromkeys(f"{r.series[0]}_{r.label}".strip("_") for r in ours))
        why = next((f"; {words}" for words in said if "not stacked" in words), "")
        refuse(path, f"holds {len(ours)} volumes ({names}){why}", force)
    return ours[0]


def check(path, result: Result, said: list, odd: str, placed: bool, force: bool) -> None:
    """Refuse what dcm2niix warns of, and say what is harmless. placed: its slices were checked."""
    said = [words for words in said if "not stacked" not in words]
    if placed:
        said = [words for words in said if not PLACES.search(words)]
    if re.search(r"_i\d{5}", result.name):  # one of the planes of a localizer
        said = [words for words in said if "may be missing" not in words]
    harmless = [words for words in said if HARMLESS.search(words)]
    refuse(path, "; ".join(filter(None, [odd, *(x for x in said if x not in harmless)])), force)
    if harmless:
        warn(f"{path}: dcm2niix says: {'; '.join(harmless)[:400]}")


def refuse(path, trouble: str, force: bool) -> None:
    """Raise a DataError if there is trouble; with force only warn."""
    if trouble and not force:
        raise DataError(f"{path}: {trouble[:400]} (--force takes it all the same)")
    if trouble:
        warn(f"{path}: {trouble[:400]}")


def places_of(result: Result, shape: tuple, files, pictures: dict) -> np.ndarray:
    """Where each frame of a result lies: (N, 3) in mm, RAS; (0, 3) if that is not known."""
    first, found = pictures[result.first], []
    for i, picture in pictures.items():
        if not picture.valid or np.abs(picture.direction - first.direction).max() > 0.01:
            continue
        places = [picture.position]
        if picture.frames > 1:
            head = start_of(files[i], picture.header)
            places = [np.array(x.split(b"\\"), float) for x in POSITION.findall(head)]
        if picture.like[2] != shape[:2] or len(places) != picture.frames:  # as in a mosaic
            return np.empty((0, 3))
        found += places
    found = np.array(found).reshape(-1, 3) * (-1, -1, 1)
    return found if np.isfinite(found).all() else np.empty((0, 3))


def lay_out(affine: np.ndarray, n: int, places: np.ndarray) -> tuple[np.ndarray, str]:
    """The affine with its n slices where their places say, and what is wrong with these, or ''.

    dcm2niix takes the distance of the first two slices for that of all, which is rough where
    positions are rounded.
    """
    if not len(places) or not volumes.is_usable(affine):
        return affine, ""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ affine[:3, 2]) / np.linalg.norm(normal)
    order = np.argsort(places @ normal)
    depths = places[order] @ normal
    new = np.diff(depths, prepend=-np.inf) > 0.01
    levels, step = depths[new], np.ptp(depths) / max(1, new.sum() - 1)
    if len(levels) != n:
        return affine, f"its pictures lie at {len(levels)} positions, but become {n} slices"
    if n == 1:
        return affine, ""
    ends = np.array([affine[:3, 3], affine[:3, 3] + (n - 1) * affine[:3, 2]]) @ normal
    if np.abs(ends - levels[[0, -1]]).max() > 0.01:
        affine = affine.copy()
        affine[:3, 2] = step * normal
        affine[:3, 3] += (levels[0] - ends[0]) * normal
    grid = places[order[0]] + np.outer(np.cumsum(new) - 1, step * normal)
    apart = np.linalg.norm(places[order] - grid, axis=1).max()
    if apart > min(0.3 * step, max(0.1 * step, 0.2)):
        gaps = np.diff(levels)
        if np.ptp(gaps) < 0.1 * step:
            words = f"up to {apart:.2g} mm beside one another, as with a tilted gantry"
            return affine, f"its slices lie {words}"
        words = f"{gaps.min():.3g} to {gaps.max():.3g} mm apart"
        return affine, f"its slices are {words}: is one missing?"
    return affine, ""

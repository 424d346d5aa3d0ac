"""DICOM files to series and volumes: what belongs together, and which slice lies where."""

import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from scans import volumes
from scans.dicom_frames import Frame, add_pixels, frames_of, read_dataset
from scans.files import kind_of, natural
from scans.scan import Scan
from utils import DataError, as_data_error, warn

# What words in ImageType and its like mean; M and P stand for magnitude and phase.
KINDS = {
    "fieldmap": r".*FIELD.?MAP.*|B0.*",
    "phase": r"P|P_\w+|PHASE.*",
    "real": r"R|R_\w+|REAL",
    "imaginary": r"I|I_\w+|IMAGINARY",
    "": r"M|M_\w+|MAGNITUDE|ORIGINAL|PRIMARY|NONE",
}


def read_scan(path, files=(), *, series: str = "", kind: str = "", force: bool = False) -> Scan:
    """Read a scan of any format. Raises DataError for what cannot be read, or only with force.

    files: those of a DICOM series; without them `path` is one file. series: as `dicom_series` names
    it, for a file that holds several. kind: as `kind_of` says, if it is known.
    """
    if files or (kind or kind_of(path)) == "dicom":
        return read_dicom(path, files or (path,), series, force)
    return volumes.read_volume(path, force)


def dicom_series(files) -> list[tuple[str, str, str, tuple]]:
    """The series among the DICOM files of a folder: [(number, description, patient, files)].

    Pictures of one series that differ in size or direction (a localizer) count as several, and so
    do echoes, magnitude, phase and field maps: their numbers end in `_e2`, `_phase` ... Where one
    file holds several, it is listed several times; `read_scan` takes the number to choose. Files
    without a picture (reports, DICOMDIR) are left out; one that cannot be read stands for itself.
    """
    groups = {}
    for file in files:
        try:
            ds = read_dataset(file, stop_before_pixels=True)
            if "Rows" not in ds and ("SOPClassUID" in ds or ds.file_meta):
                continue
            frames = frames_of(ds, file)
            direction = [round(x, 2) + 0.0 for x in frames[0].direction]
            key = (str(ds.SeriesInstanceUID), int(ds.Rows), int(ds.Columns), *direction)
            about = " ".join(str(ds.get(tag) or "") for tag in ("Modality", "SeriesDescription"))
            patient = str(ds.get("PatientID") or "")
            if re.fullmatch(r"\W*(anon\w*|unknown|none|patient|0*)\W*", patient, flags=re.I):
                patient = ""
            about = (str(ds.get("SeriesNumber") or ""), about.strip(), patient)
        except Exception:  # reading all of it says what is wrong
            frames, key, about = [Frame(file)], (str(file),), ("", "cannot be read", "")
        groups.setdefault(key, (about, []))[1].extend(frames)
    found, seen = [], Counter()
    for (number, about, patient), frames in groups.values():
        number = re.sub(r"\W", "", number) or "0"
        seen[number] += 1
        number += f"-{seen[number]}" if seen[number] > 1 else ""
        for label, part in parts_of(without_copies(frames)).items():
            members = tuple(dict.fromkeys(frame.file for frame in part))
            words = ", ".join(filter(None, (about, label, f"{len(members)} file(s)")))
            found.append((f"{number}_{label}" if label else number, words, patient, members))
    return sorted(found, key=lambda series: natural(series[0]))


def without_copies(frames: list[Frame]) -> list[Frame]:
    """The frames, each once, as a file may be there twice. What differs in anything is no copy."""
    known, kept = {}, []
    for frame in frames:
        first = known.setdefault(frame.identity or frame.file, frame)
        if first is frame or not np.array_equal(first.pixels, frame.pixels):
            kept.append(frame)
    return kept


def parts_of(frames: list[Frame]) -> dict[str, list[Frame]]:
    """{label: frames} of the echoes, magnitude, phase and maps that share one series.

    They are told apart only where pictures at one position differ in it. '' if there is one part.
    """
    places = defaultdict(list)
    for frame in frames:
        if frame.position is not None:
            places[tuple(np.round(frame.position, 2))].append(frame)
    echoes, kinds = set(), set()
    for place in places.values():
        for values, found in ((echoes, {f.echo for f in place}), (kinds, {f.kind for f in place})):
            values |= found if len(found) > 1 else set()
    common = set.intersection(*map(set, kinds)) if kinds else set()
    parts, echoes = defaultdict(list), sorted(echoes)
    for frame in frames:
        labels = [f"e{echoes.index(frame.echo) + 1}"] if frame.echo in echoes else []
        labels += [kind_name(frame.kind, common)] if kinds else []
        parts["_".join(filter(None, labels))].append(frame)
    return dict(sorted(parts.items()))


def kind_name(kind: tuple, common: set) -> str:
    """A word for what pictures show: '' for magnitude. common: what all of a series share."""
    rest = []
    for word in (word.upper() for word in kind if word not in common):
        known = [name for name, pattern in KINDS.items() if re.fullmatch(pattern, word)]
        if known and known[0]:
            return known[0]
        rest += [] if known else [re.sub(r"\W", "", word.lower())]
    return "-".join(filter(None, dict.fromkeys(rest)))


# --- volumes --------------------------------------------------------------------------------------


def read_dicom(path, files, series: str = "", force: bool = False) -> Scan:
    """The volume of a DICOM series, its slices sorted by their position along the slice normal.

    Where every position occurs T times the volume is (X, Y, Z, T), in the order of time. X runs
    along a picture's rows, Y down its columns. Raises DataError as `read_scan`.
    """
    frames = []
    for file in files:
        with as_data_error(file):
            ds = read_dataset(file)
            members = frames_of(ds, file)
            add_pixels(members, ds, file)
            frames += members
            about = f"{ds.get('Modality', '')} {ds.get('SeriesDescription', '')}".strip()
    parts = parts_of(without_copies(frames))
    label = next((x for x in parts if x and series.endswith(f"_{x}")), next(iter(parts)))
    if len(parts) > 1 and not series:
        others = ", ".join(x or "magnitude" for x in parts if x != label)
        warn(f"{path}: holds several scans; {label or 'magnitude'} is taken, not {others}")
    first, frames = parts[label][0], parts[label]
    for frame in frames:
        if frame.pixels.shape != first.pixels.shape or not np.allclose(
            [*frame.direction, *frame.spacing], [*first.direction, *first.spacing], atol=1e-2
        ):
            raise DataError(f"{path}: its pictures differ in size or direction; not one volume")
    times, corner, step = lay_out(path, frames, force)
    along, down = np.array(first.direction[:3]), np.array(first.direction[3:])
    affine = np.eye(4)  # from (column, row, slice) to LPS, then to RAS
    affine[:3] = np.stack([along * first.spacing[1], down * first.spacing[0], step, corner], 1)
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    if not volumes.is_usable(affine):
        raise DataError(f"{path}: its position or pixel size makes no sense")
    volumes.check_not_functional(path, len(times), force)

    same = all((f.slope, f.inter) == (first.slope, first.inter) for f in frames)
    dtype = np.result_type(*{f.pixels.dtype for f in frames}) if same else np.float32
    shape = (*first.pixels.shape[::-1], *times.shape[::-1])
    stored = np.empty(shape, dtype, order="F")
    for (t, z), i in np.ndenumerate(times):
        f = frames[i]
        stored[..., z, t] = (f.pixels if same else f.pixels * f.slope + f.inter).T
    if first.white_is_zero:  # turned round within its own range
        stored = stored.max() - (stored - stored.min())
    header = volumes.nifti_header(affine, 1)
    header["descrip"] = about.encode("ascii", "replace")[:79]
    slope, inter = (first.slope, first.inter) if same else (1.0, 0.0)
    stored = stored if len(times) > 1 else stored[..., 0]
    return Scan(Path(path), stored, slope, inter, affine, header)


def lay_out(path, frames: list[Frame], force: bool):
    """Sort the frames: (indices (T, Z), corner of the first slice, step to the next one)."""
    first = frames[0]
    normal = np.cross(first.direction[:3], first.direction[3:])
    if not abs(np.linalg.norm(normal) - 1) < 0.01 or not min(first.spacing) > 0:
        raise DataError(f"{path}: its position or pixel size makes no sense")
    if any(frame.position is None for frame in frames):
        if len(frames) > 1:
            warn(f"{path}: does not say where its slices lie; they are stacked in order")
        for i, frame in enumerate(sorted(frames, key=lambda f: f.number)):
            frame.position = i * first.thickness * normal
    positions = np.array([frame.position for frame in frames])
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    level = np.empty(len(frames), int)
    level[order] = np.cumsum(np.diff(depth[order], prepend=depth[order[0]]) > 0.01)
    times = np.bincount(level)
    if np.ptp(times):
        words = f"{times.min()} to {times.max()} pictures at one position"
        raise DataError(f"{path}: has {words}; files are missing, or it is more than one scan")
    n, t = len(times), int(times[0])
    low, high = (positions[level == end].mean(axis=0) for end in (0, n - 1))
    step = (high - low) / (n - 1) if n > 1 else normal * first.thickness
    apart = np.linalg.norm(positions - low - level[:, None] * step, axis=1).max()
    if apart > 0.1 * np.linalg.norm(step):
        gaps = np.diff(np.sort(depth)[::t])
        words = f"its slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart: is one missing?"
        if not force:
            raise DataError(f"{path}: {words} (--force takes them as evenly spaced)")
        warn(f"{path}: {words}")
    for keys in zip(*(frame.times for frame in frames)):
        volumes = None if None in keys else split_by(keys, level, n, t)
        if volumes is not None:
            return volumes, low, step
    if t > 1 and not force:
        words = "and its files do not say which belong together (--force takes them in order)"
        raise DataError(f"{path}: has {t} pictures at each position, {words}")
    return order.reshape(n, t).T, low, step


def split_by(keys, level: np.ndarray, n: int, t: int) -> np.ndarray | None:
    """Indices (t, n) of t volumes of n slices in the order of the keys; None if they do not tell.

    They tell if each position has its own order, and one volume comes after the other or one
    position after the other. Numbers of files and frames must be of one each.
    """
    if isinstance(keys[0], tuple) and len(set(keys)) < len(keys):
        return None
    try:
        order = sorted(range(n * t), key=lambda i: (level[i], keys[i]))
    except TypeError:  # values of several types in a damaged file
        return None
    volumes = np.array(order).reshape(n, t).T
    rows = [[keys[i] for i in row] for row in volumes]
    rising = all(a < b for one, after in pairwise(rows) for a, b in zip(one, after))

    def one_after_the_other(groups):
        groups = sorted(groups, key=min)
        return all(max(a) <= min(b) for a, b in pairwise(groups))

    told = rising and (one_after_the_other(rows) or one_after_the_other(zip(*rows)))
    return volumes if told else None

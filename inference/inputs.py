"""From the command line to a list of inputs, and where the results of each belong."""

import glob
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from inference.sidecar import bids_name, is_of, read_record
from scans import dicom, formats
from scans.anatomy import why_not_anatomy
from scans.formats import RESULTS
from scans.listing import ScanFile, files_below
from utils import DataError, UsageError, no_such, note, warn

ENDINGS = formats.PICTURES + formats.VOLUMES + formats.DICOM


@dataclass(frozen=True)
class Job:
    """One input, and the folder and beginning of the names of its results."""

    source: Path
    folder: Path
    name: str
    output: Path  # nothing is written outside of it
    batch: bool  # one of several: skipped if finished, and an error does not end the program
    files: tuple = ()  # of a DICOM series
    series: str = ""
    kind: str = ""  # picture, volume or dicom
    dataset: Path | None = None  # the BIDS data set that it is in

    def file(self, label: str, ending: str) -> Path:
        """The path of a result, as `<name>_x4.png` for the label `x4`."""
        plain = not self.dataset or label.startswith("simulated")  # which leaves no scan
        name = f"{self.name}_{label}" if plain else bids_name(self.name, label)
        return self.folder / (name + ending)

    @property
    def longer_name(self) -> str:
        """The beginning of the names where another input has this one's."""
        return f"{self.source.absolute().parent.name}_{self.name}"

    def finished(self, made: dict) -> bool:
        """Whether a result of just this is there, as its record says (`sidecar.made_from`)."""
        first = self.name.split("_")[0] if self.dataset else self.name  # of BIDS: whose it is
        for name in (first, self.longer_name):
            for path in self.folder.glob(glob.escape(f"{name}_") + "*.json"):
                found = read_record(path)
                same = found.get("Results") and found == found | made and is_of(found, self)
                if same and all((self.folder / result).exists() for result in found["Results"]):
                    return True
        return False

    def beside_others(self, label: str, overwrite: bool) -> "Job":
        """This job, under a name that takes no other input's results. Raises DataError where a file
        that this program did not write would be overwritten, but for overwrite."""
        for job in (self, replace(self, name=self.longer_name)):
            record = job.file(label, ".json")
            found = read_record(record)
            if found and not is_of(found, self):
                if job is self:
                    words = f"is of another input; results are called {self.longer_name}_…"
                    note(f"{self.source}: {record.name} {words}")
                continue
            results = (job.file(label, end) for end in (".png", ".tif", ".nii.gz"))
            there = [path for path in results if os.path.exists(path)]
            if there and not found and not overwrite:
                raise DataError(f"{there[0]}: is there already, and not a result of this program; "
                                "name another --output, or --overwrite it")  # fmt: skip
            return job
        raise DataError(f"{self.source}: {record} is of another input; name another --output")

    def make_folder(self) -> None:
        """Make the folder of a result. Raises DataError if it cannot be written, or if a link leads
        out of the output."""
        if not Path(os.path.realpath(self.folder)).is_relative_to(os.path.realpath(self.output)):
            raise DataError(
                f"{self.folder}: is a link out of the output folder; name another --output"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            words = f"cannot be made ({error.strerror}); choose another --output DIR"
            raise DataError(f"{self.folder}: {words}") from None
        if not os.access(self.folder, os.W_OK):
            raise DataError(f"{self.folder}: cannot be written; choose another --output DIR")


def find_jobs(paths, output=None, series: str | None = None, force: bool = False):
    """What there is to do, each input once: (list of Jobs, what is said of paths that are missing).

    Raises DataError if all are, and UsageError.

    paths: files, folders, or patterns of these. series: the DICOM series to take. force: what is
    left out otherwise (masks, fMRI ...), too.
    """
    if "" in map(str, (output, *paths)):  # else all that is in this folder would be taken
        raise UsageError("a path is empty; a variable that is not set gives that")
    output = Path(output) if output else None
    if output and output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    if output and not output.exists() and formats.suffix(output) in ENDINGS:
        raise UsageError(f"--output {output}: looks like a file name; name a folder")
    found, missing = {}, []
    given = dict.fromkeys(expanded(paths))
    for text in given:
        image = Path(text)
        if not image.exists():
            missing.append(text)
            continue
        if formats.suffix(image)[:4] == ".hdr":
            pixels = formats.partner(image, ".img")
            image = pixels if pixels.exists() else image
        for root, scan, bids in scans_below(image, series, force, alone=len(given) == 1):
            found.setdefault((os.path.realpath(scan.path), scan.series), (image, root, scan, bids))
    missing = [no_such(text, paths) for text in missing]
    for words in missing:
        if not found:
            raise DataError(words)
        warn(f"skipped: {words}")
    folders = {image for image, *_ in found.values() if image.is_dir()}
    single = len(found) == 1 and all(scan.path in folders for _, _, scan, _ in found.values())
    batch = len(found) + len(missing) != 1 or (bool(folders) and not single)
    return name_jobs(list(found.values()), output, batch, bool(series)), missing


def expanded(paths) -> list[str]:
    """The paths, patterns such as `*.png` replaced by what they stand for, as not every shell does
    it."""
    found = []
    for text in map(str, paths):
        some = sorted(glob.glob(text), key=formats.natural) if set(text) & set("*?[") else []
        found += [text] if os.path.lexists(text) or not some else some
    return found


def scans_below(image: Path, series, force: bool, alone: bool) -> list[tuple]:
    """The inputs that a path stands for: [(folder to mirror, scan, BIDS data set or None)].

    alone: the only path that is given. DataError if it is no anatomy, or holds none.
    """
    if not image.is_dir():
        found = dicom.dicom_series([image]) if formats.kind_of(image) == "dicom" else []
        known = found[0] if len(found) == 1 else None
        why = "" if force or series else why_not_anatomy(image, series=known)
        if formats.is_result(image) and not force:
            why = RESULTS
            if alone:
                words = "is a result of this program already; --force enlarges it once more"
                raise DataError(f"{image}: {words}")
        if why and alone:
            words = "not anatomy, by its name or header (--force takes it all the same)"
            words += "; a label map goes with its scan: --labels" * ("segmentations" in why)
            raise DataError(f"{image}: belongs to {why}, {words}")
        if why:
            note(f"{image}: left out: {why} (--force takes it)")
            return []
        scans = [ScanFile(image, "", "", "")]
        if len(found) > 1:  # echoes, phase ... in one file
            scans = [
                replace(scans[0], files=(image,), series=s.number, about=s.about) for s in found
            ]
            scans = chosen_scans(image, scans, series) if series else scans
        return [(image.parent, scan, None) for scan in scans]
    bids = image if (image / "dataset_description.json").is_file() else None
    scans, left = [], Counter()
    for scan in chosen_scans(image, files_below(image), series):
        why = scan.left_out
        parts = scan.path.relative_to(image).parts
        if bids and not why and not (parts[0].startswith("sub-") and "anat" in parts):
            why = "files outside sub-*/anat"
        if why and not (force or series):  # a series that is named is wanted
            left[why] += 1
        else:
            scans.append(scan)
    if left:
        words = ", ".join(f"{n} {why}" for why, n in left.items())
        if not scans and alone:
            raise DataError(f"{image}: holds nothing but {words} (--force takes them all the same)")
        note(f"{image}: left out: {words} (--force takes them)")
    return [(image, scan, bids) for scan in scans]


def chosen_scans(root: Path, scans: list, series: str | None) -> list:
    """The inputs among the scans of a folder. Raises UsageError if a DICOM series must be named."""
    about = ((s.series, ", ".join(filter(None, (s.about, s.left_out)))) for s in scans if s.files)
    listed = "; ".join(f"{number} ({words})" for number, words in about)
    if series:
        chosen = [scan for scan in scans if scan.series == series]
        if not chosen:
            raise UsageError(f"--series {series}: {root} has {listed or 'no DICOM series'}")
        return chosen
    here = [scan for scan in scans if scan.files and root in (scan.path, scan.path.parent)]
    several = len(here) == len(scans) and sum(not scan.left_out for scan in here) > 1
    if several and any(scan.path == root for scan in here):
        raise UsageError(f"{root}: holds several series, choose one with --series: {listed}")
    own = {scan.path for scan in scans if scan.left_out == RESULTS}
    if own:
        note(f"{len(own)} results of earlier runs are not taken as inputs")
    return [scan for scan in scans if scan.path not in own]


def plain_name(name: str) -> str:
    """A file's name without the ending of a picture or a scan; `1.2.840.5` has none."""
    return formats.stem(name) if formats.suffix(name) in ENDINGS else name


def name_jobs(found: list[tuple], output: Path | None, batch: bool, chosen: bool) -> list[Job]:
    """The jobs, with names that do not collide and folders that mirror those of the inputs.

    chosen: whether a series was, whose number is then part of the name.
    """
    jobs, stems, names, used = [], {}, {}, set()
    series = Counter(scan.path for *_, scan, _ in found)
    own = Counter(image for image, *_ in found)
    for image, root, scan, bids in found:
        path, folder = scan.path, scan.path.parent
        if folder not in stems:
            there = [n.casefold() for n in os.listdir(folder) if formats.suffix(n) in ENDINGS]
            stems[folder], names[folder] = Counter(map(plain_name, there)), set(there)
        if path.is_dir():
            name = os.path.basename(os.path.abspath(path))
            name += f"_{scan.series}" if chosen or series[path] > 1 else ""
        else:
            name = plain_name(path.name)
            part = series[path] > 1 or (chosen and "_" in scan.series)
            name += f"_{scan.series}" if part else ""
            if stems[folder][name.casefold()] > 1 or name.casefold() in names[folder]:
                name = path.name  # two inputs of one stem keep their endings
        # The folder of a DICOM series is an input like a file: results go beside it, not into it.
        beside = path == root and own[image] == series[path]
        home = output or (Path(os.path.abspath(root)).parent if beside else root)
        if bids and not output:
            home = root / "derivatives" / "superres"
        place = home / path.relative_to(root).parent if path != root else home
        if str(place / name).casefold() in used:  # two inputs never share a name
            name = f"{path.absolute().parent.name}_{name}"
            note(f"{path}: its results are called {name}_…, as another input has its name")
        while str(place / name).casefold() in used:
            name += "_"
        used.add(str(place / name).casefold())
        kind = "dicom" if scan.files else formats.kind_of(path)
        jobs.append(Job(path, place, name, home, batch, scan.files, scan.series, kind, bids))
    return jobs

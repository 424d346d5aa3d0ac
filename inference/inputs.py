"""From the command line to a list of inputs, and where the results of each belong."""

import argparse
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from inference.sidecar import ERROR, bids_name
from scans import volumes
from scans.anatomy import why_not_anatomy
from scans.dicom import dicom_series
from scans.listing import ScanFile, files_below
from utils import DataError, UsageError, not_downloaded, note

ENDINGS = volumes.PICTURES + volumes.VOLUMES + volumes.DICOM
RESULTS = (".png", ".tif", ".nii.gz", ".csv")  # written last: where one is, the input is done


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
        name = bids_name(self.name, label) if self.dataset else f"{self.name}_{label}"
        return self.folder / (name + ending)

    def finished(self, labels, errors: bool = False) -> bool:
        """Whether a result with one of these labels is there, which is written last, and whole.

        errors: with its error map.
        """
        ends = [(label, ending) for label in labels for ending in RESULTS]
        return any(
            self.file(label, ending).exists()
            and (not errors or self.file(label + ERROR, ending).exists())
            for label, ending in ends
        )

    def make_folder(self) -> None:
        """Make the folder of a result. Raises DataError if a link leads out of the output."""
        inside = os.path.realpath(self.output)
        if os.path.commonpath([inside, os.path.realpath(self.folder)]) != inside:
            raise DataError(
                f"{self.folder}: is a link out of the output folder; name another --output"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made ({error.strerror})") from None


def shard(text: str) -> tuple[int, int]:
    """An argparse type: `2/8`, counted from 0 or from 1, as (index from 0, number)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) <= int(n) and int(n) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return int(i) % int(n), int(n)


def find_jobs(args) -> list[Job]:
    """What there is to do, each input once. Raises DataError or UsageError."""
    output = Path(args.output) if args.output else None
    if output and output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    if output and not output.exists() and volumes.suffix(output) in ENDINGS:
        raise UsageError(f"--output {output}: looks like a file name; name a folder")
    found = {}
    for text in dict.fromkeys(args.images):
        image = Path(text)
        if not image.exists():
            raise DataError(f"{image}: {not_downloaded(image) or 'no such file or folder'}")
        image = volumes.partner(image, ".img") if volumes.suffix(image) == ".hdr" else image
        for root, scan, bids in scans_below(image, args):
            found.setdefault((os.path.realpath(scan.path), scan.series), (image, root, scan, bids))
    folders = {image for image, *_ in found.values() if image.is_dir()}
    single = len(found) == 1 and all(scan.path in folders for _, _, scan, _ in found.values())
    batch = len(found) != 1 or (bool(folders) and not single)
    return name_jobs(list(found.values()), output, batch, bool(args.series))


def scans_below(image: Path, args) -> list[tuple]:
    """The inputs that a path stands for: [(folder to mirror, scan, BIDS data set or None)]."""
    if not image.is_dir():
        found = dicom_series([image]) if volumes.kind_of(image) == "dicom" else []
        about = f"{found[0][1]} {found[0][0]}" if len(found) == 1 else ""
        why = "" if args.force or args.series else why_not_anatomy(image, about=about)
        if why and len(args.images) == 1:
            words = "not anatomy, by its name or header (--force takes it all the same)"
            raise DataError(f"{image}: belongs to {why}, {words}")
        if why:
            note(f"{image}: left out: {why} (--force takes it)")
            return []
        scans = [ScanFile(image, "", "", "")]
        if len(found) > 1:  # echoes, phase ... in one file
            scans = [replace(scans[0], files=(image,), series=n, about=a) for n, a, *_ in found]
            scans = chosen_scans(image, scans, args.series) if args.series else scans
        return [(image.parent, scan, None) for scan in scans]
    bids = image if (image / "dataset_description.json").is_file() else None
    scans, left = [], Counter()
    for scan in chosen_scans(image, files_below(image)[0], args.series):
        why = scan.left_out
        if bids and not why and not is_anatomical(scan.path, image):
            why = "files outside sub-*/anat"
        if why and not (args.force or args.series):  # a series that is named is wanted
            left[why] += 1
        else:
            scans.append(scan)
    if left:
        words = ", ".join(f"{n} {why}" for why, n in left.items())
        if not scans and len(args.images) == 1:
            raise DataError(f"{image}: holds nothing but {words} (--force takes them all the same)")
        note(f"{image}: left out: {words} (--force takes them)")
    return [(image, scan, bids) for scan in scans]


def is_anatomical(path: Path, root: Path) -> bool:
    """Whether a file of a BIDS data set is an anatomical image."""
    parts = path.relative_to(root).parts
    return parts[0].startswith("sub-") and "anat" in parts


def chosen_scans(root: Path, scans: list, series: str | None) -> list:
    """The inputs among the scans of a folder. Raises UsageError if a DICOM series must be named."""
    listed = "; ".join(f"{scan.series} ({scan.about})" for scan in scans if scan.files)
    if series:
        chosen = [scan for scan in scans if scan.series == series]
        if not chosen:
            raise UsageError(f"--series {series}: {root} has {listed or 'no DICOM series'}")
        return chosen
    here = [scan for scan in scans if scan.files and root in (scan.path, scan.path.parent)]
    if len(here) == len(scans) > 1 and any(scan.path == root for scan in here):
        raise UsageError(f"{root}: holds several series, choose one with --series: {listed}")
    own = {scan.path for scan in scans if scan.left_out == volumes.RESULTS}
    if own:
        note(f"{len(own)} results of earlier runs are not taken as inputs")
    return [scan for scan in scans if scan.path not in own]


def plain_name(name: str) -> str:
    """A file's name without the ending of a picture or a scan; `1.2.840.5` has none."""
    return volumes.stem(name) if volumes.suffix(name) in ENDINGS else name


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
            there = [n.casefold() for n in os.listdir(folder) if volumes.suffix(n) in ENDINGS]
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
        while str(place / name).casefold() in used:
            name = "_" + name
        used.add(str(place / name).casefold())
        kind = "dicom" if scan.files else volumes.kind_of(path)
        jobs.append(Job(path, place, name, home, batch, scan.files, scan.series, kind, bids))
    return jobs


def idle_options(args, jobs: list[Job], network):
    """Options that do nothing for these inputs, as lines. network: None where scans choose it."""
    if args.axis != "auto" and {job.kind for job in jobs} == {"picture"}:
        yield "--axis does nothing for pictures"
    if args.series and not any(job.files for job in jobs):
        yield "--series does nothing: these are no DICOM series"
    if args.overwrite and not any(job.batch for job in jobs):
        yield "--overwrite does nothing: a single input is always done"
    blind = network is not None and not network.told
    if args.degradation and blind and not (args.consistent or args.simulate):
        yield "what is said of the degradation does nothing: these weights cannot be told"

"""Running the program dcm2niix (Li et al. 2016, J Neurosci Methods) on DICOM files.

It finds which slices belong together and writes them as NIfTI, for a while, into a folder.
"""

import filecmp
import json
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import DataError, as_data_error, reason

# No settings of the user, a line for each file, names kept, values of RescaleSlope, axes as
# acquired, no compression, named by series number and first file.
OPTIONS = "-g i -s y -v 1 -ba n -p n -x i -z n -f %s_%b -o out"
SECONDS, BYTES = 60, 2**28  # that it may take and write; more where there is more to read
LABELS = {"ph": "phase", "real": "real", "imaginary": "imaginary", "fieldmaphz": "fieldmap"}
IS_INDEX = "is a DICOMDIR, no picture"
COMPRESSED = ("is gzipped: unpack it with gunzip", "is deflated: unpack it with dcmconv +te")
# SeriesInstanceUID in the bytes of a header.
UID = re.compile(rb"\x20\0\x0e\0(?:UI..|..\0\0)([\d.]+)", re.DOTALL)
# What dcm2niix says of each file: position, direction, series, columns x rows x slices x times ...
PICTURE = re.compile(
    r"^DICOM file: (in/\d{6})\n patient position [^\t]*((?:\t\S+){3})\n(?: patient .*\n)?"
    r" orient [^\t]*((?:\t\S+){6})\n acq .*? ser (-?\d+) dim (\d+)x(\d+)x(\d+)x(\d+) .*?"
    r" offset (\d+) .*? valid (\d) (ph .*) nDTI .* (echo -?\d+) .* (TE \S+)",
    re.MULTILINE,
)
TROUBLE = re.compile(
    r"^\W*(warning|error)|may be missing|only complete|not stacked|unable to|unsupported|failed",
    re.IGNORECASE,
)


class Picture(NamedTuple):
    """A DICOM file as dcm2niix read it; position and direction in mm (LPS), NaN if unknown."""

    like: tuple  # number (0: none) and UID of its series, (columns, rows), phase, echo
    frames: int
    position: np.ndarray  # (3,)
    direction: np.ndarray  # (6,)
    header: int  # bytes before the pixels
    valid: bool


class Result(NamedTuple):
    """A volume that dcm2niix makes: its file, the index of its first picture, what it shows."""

    name: str
    first: int
    series: tuple  # number and UID
    label: str  # as e2_phase
    tags: dict  # what its sidecar says

    @property
    def about(self) -> str:
        """Modality and description."""
        names = ("Modality", "SeriesDescription")
        return " ".join(str(self.tags.get(name) or "") for name in names).strip()


def convert(folder: Path, files, *options) -> tuple[list[Result], dict[int, Picture], list[str]]:
    """Run dcm2niix there: (what it makes, the files as it read them by index, what is amiss)."""
    for name in ("in", "out"):
        (folder / name).mkdir()
    names = {f"in/{i:06d}": file for i, file in enumerate(files)}
    for name, file in names.items():
        try:
            (folder / name).symlink_to(os.path.abspath(file))
        except OSError:  # on Windows not everyone may
            shutil.copyfile(file, folder / name)
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    ended = run(options, folder, sum(map(os.path.getsize, files))) if files else ""
    text = (folder / "log").read_text(errors="replace") if files else ""
    text = text.replace("(ind)", "").replace("in\\", "in/")  # as Windows writes NaN and paths
    pictures = {}
    for name, place, direction, number, x, y, z, t, header, valid, *kind in PICTURE.findall(text):
        with suppress(KeyError, ValueError):  # a text in a file that looks like such lines
            head = start_of(names[name], min(int(header) or 2**16, 2**16))
            uid = [b"", *UID.findall(head)][-1]  # its own comes after those that it refers to
            like = max(0, int(number)), uid, (int(x), int(y)), *kind
            place, direction = (np.array(values.split(), float) for values in (place, direction))
            about = like, int(z) * int(t), place, direction, int(header), valid == "1"
            pictures[int(name[3:])] = Picture(*about)
    said = [line for line in text.splitlines() if TROUBLE.search(line)]
    for pair in re.findall(r"^\t(in/\d{6})\t=\t(in/\d{6})$", text, re.MULTILINE):
        if set(pair) <= set(names) and not filecmp.cmp(
            *(folder / name for name in pair), shallow=False
        ):
            said.append("{} and {} differ, but say that they are the same".format(*pair))
    results = results_in(folder / "out", pictures, said)
    said = (re.sub(r"^\W*(warning|error)\W*", "", line, flags=re.IGNORECASE) for line in said)
    said = (re.sub(r"\bin/\d{6}\b", lambda m: Path(names.get(m[0], m[0])).name, x) for x in said)
    return results, pictures, list(filter(None, dict.fromkeys([*said, ended])))


def run(options, folder: Path, size: int) -> str:
    """Run dcm2niix, its messages to folder/log. Returns how it ended if not well. size: of input.

    Raises DataError if it cannot be started.
    """
    end, most = time.monotonic() + SECONDS + size / 2**20, BYTES + 20 * size
    with open(folder / "log", "wb") as log:
        try:
            import dcm2niix

            command = [dcm2niix.bin, *OPTIONS.split(), *options, "list.txt"]
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        except (ImportError, OSError) as error:
            words = f"DICOM needs the package dcm2niix ({reason(error)}): "
            words += "python -m pip install --force-reinstall dcm2niix"
            raise DataError(words) from None
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                with suppress(FileNotFoundError):
                    if sum(map(os.path.getsize, [folder / "log", *folder.glob("out/*")])) > most:
                        return f"unpacks to more than {most >> 20} MB"
                if process.returncode is not None:
                    status = f"dcm2niix ended with status {process.returncode}"
                    return {0: "", 2: "no picture in it"}.get(process.returncode, status)
                if time.monotonic() > end:
                    return "takes dcm2niix too long"
        finally:
            process.kill()
            process.wait()


def results_in(folder: Path, pictures: dict, said: list) -> list[Result]:
    """The volumes that dcm2niix made, or only their headers. What resampled copies mean is said.

    An echo is part of the label where a series has several.
    """
    found, echoes = [], defaultdict(set)
    for name in sorted({file.stem for file in folder.glob("*.[jn]*")}):
        match = re.fullmatch(r"-?\d+_(\d{6})(.*)", name)
        if not match or int(match[1]) not in pictures or "_ROI" in name:  # an overlay
            continue
        if copy := re.search("_(Eq|Tilt)", name):
            said.append(f"its slices do not fill a box: dcm2niix made {copy[0]}")
            continue
        first, parts, tags = int(match[1]), match[2].split("_"), {}
        with suppress(OSError, ValueError):
            text = (folder / f"{name}.json").read_text("utf-8", "replace")
            with suppress(UnicodeError):  # it takes all text for Latin-1; some is UTF-8
                text = text.encode("latin-1").decode()
            tags = json.loads(text, strict=False)
        kinds = [LABELS[part] for part in parts if part in LABELS]
        if re.search(r"FIELD[\W_]*MAP|\bB0", str(tags.get("ImageType"))):
            kinds = kinds or ["fieldmap"]
        series = pictures[first].like[:2]
        echo = next((part for part in parts if re.fullmatch(r"e\d[\d.]*", part)), "")
        echoes[series].add(echo)
        found.append((Result(name, first, series, "_".join(kinds), tags), echo))
    for i, (result, echo) in enumerate(found):
        echo = echo if len(echoes[result.series]) > 1 else ""
        found[i] = result._replace(label=f"{echo}_{result.label}".strip("_"))
    return found


def start_of(file, size: int) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(size)


def unreadable(file) -> str:
    """Why dcm2niix cannot read a file; '' if it may."""
    try:
        with as_data_error(file):
            head = start_of(file, 1024)
    except DataError as error:
        return str(error).removeprefix(f"{file}: ")
    if head.startswith(b"\x1f\x8b"):
        return COMPRESSED[0]
    if b"1.2.840.10008.1.2.1.99" in head:
        return COMPRESSED[1]
    if b"1.2.840.10008.1.3.10" in head:
        return IS_INDEX
    is_dicom = head[128:132] == b"DICM" or (head[:2] == b"\x08\0" and head[3:4] == b"\0")
    return "" if is_dicom else "is no DICOM file"

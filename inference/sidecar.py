"""Where a result comes from: a JSON file beside each, and the frame of a BIDS derivative."""

import hashlib
import json
import math
import os
import re
import shlex
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from inference.error_map import INTERVAL
from scans.formats import partner, suffix
from utils import as_data_error, atomic_write, name_of_program, read_json, version, write_json

ERROR = "_error"  # what the labels of error maps end in
BIDS_VERSION = "1.10.0"
IGNORED = ("*_figure.png", "*.csv", "*_simulated_*", "report.html")  # by BIDS validators


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's bytes. Raises DataError."""
    digest = hashlib.sha256()
    with as_data_error(path), open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


weights_digest = lru_cache(maxsize=16)(digest_of)  # the same weights for thousands of pictures


def input_digest(source: Path, files=()) -> str:
    """The SHA-256 of an input; of a DICOM series that of its files' digests, in order of names; of
    an Analyze pair of both files'."""
    files = sorted(files)
    if not files and suffix(source)[:4] == ".img":
        files = [source, partner(source, ".hdr")]
    if not files:
        return digest_of(source)
    digests = [digest_of(file) for file in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def made_from(job, upscaler, options: dict) -> dict:
    """What makes a result what it is: another result of the same is the same."""
    return {
        "SourceSHA256": input_digest(job.source, job.files),
        "Series": job.series,
        "WeightsSHA256": weights_digest(upscaler.path),
        "Options": options,
        "GeneratedBy": [{"Name": name_of_program(), "Version": version()}],
    }


def record(job, upscaler, scan, new, errors, made: dict, warnings: list) -> dict:
    """The sidecar of a result: what it was made of, by what, and how.

    Names are those of BIDS where it has one. Sizes are in mm, in the order of the scan's axes.
    scan, new: the input and the result; errors: its error map or None. made: of `made_from`.
    """
    about = {
        "Description": f"Super-resolution of a brain MRI {job.kind}: {new.about.get('Plan', '')}",
        "Sources": [source_of(job)],
        **made,
        "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "Weights": upscaler.path.name,
        "WeightsTrainedOn": upscaler.checkpoint["trained_on"],
        **{k: v for k, v in new.about.items() if v},
        "ProjectedOntoInput": upscaler.consistent,
    }
    if not scan.is_picture:
        before, after = (np.array(x.sizes)[x.axes] for x in (scan, new))
        about["VoxelSizeBefore"] = [round(float(size), 6) for size in before]
        about["VoxelSizeAfter"] = [round(float(size), 6) for size in after]
        sizes = [" x ".join(f"{size:.3g}" for size in x) + " mm" for x in (after, before)]
        about["Resolution"] = "voxels of {} made from {}".format(*sizes)
        stripped = is_stripped(scan)
        about |= {} if stripped is None else {"SkullStripped": stripped}
    if errors is not None:
        about["ExpectedError"] = {
            "Description": "expected absolute error = value in the map x Step, in the input's "
            "units; on T1 like the training's nine pixels in ten lie within Interval times it, of "
            "FLAIR or another scanner fewer",
            "Step": errors.slope,
            "Interval": round(INTERVAL, 3),
        }
    return about | {"Warnings": list(warnings)}


def is_stripped(scan) -> bool | None:
    """Whether all but the brain is zero: most of a scan is, and the rest would fill no head.

    BIDS wants to know. A head has more than 2.5 litres, a brain less than 2. None: of some slices
    nobody can tell.
    """
    extent = np.array(scan.stored.shape[:3]) * np.array(scan.sizes)[scan.axes]
    if extent.min() < 100:
        return None
    empty = float((scan.stored == 0).mean())
    litres = (1 - empty) * math.prod(extent) / 1e6
    return bool(empty > 0.5 and litres < 2)


def source_of(job) -> str:
    """The input: in a BIDS data set as a BIDS URI, else its path from the folder of the result."""
    if job.dataset:
        return f"bids:source:{job.source.relative_to(job.dataset).as_posix()}"
    try:
        return Path(os.path.relpath(job.source, job.folder)).as_posix()
    except ValueError:  # on another drive
        return str(Path(job.source).absolute())


def read_record(path) -> dict:
    """The record of a result that this program wrote; {} if there is none."""
    found = read_json(path)
    with suppress(KeyError, TypeError, IndexError):
        if found["GeneratedBy"][0]["Name"] == name_of_program() and "SourceSHA256" in found:
            return found
    return {}


def is_of(found: dict, job) -> bool:
    """Whether a record is of a result of this input: of this very file, whatever is in it now."""
    sources = found.get("Sources") or [""]
    if job.dataset or str(sources[0]).startswith("bids:"):
        return sources == [source_of(job)]
    same = os.path.realpath(job.folder / str(sources[0])) == os.path.realpath(job.source)
    return same and found.get("Series", "") == job.series


def bids_name(name: str, label: str) -> str:
    """The name of a result: entities kept, `res-` of the label, `desc-superres`, suffix last.

    sub-01_run-1_T1w and x4 give sub-01_run-1_res-x4_desc-superres_T1w. An older desc- label stays
    a part of the new one.
    """
    *entities, suffix = name.split("_")
    what = "superresError" if label.endswith(ERROR) else "superres"
    label = re.sub(r"[^A-Za-z0-9]", "", label.removesuffix(ERROR))
    old = next((e[5:] for e in entities if e.startswith("desc-")), "")
    end = [e for e in entities if e.startswith("label-")]  # comes between res- and desc-
    entities = [e for e in entities if not e.startswith(("desc-", "res-", "label-"))]
    desc = f"desc-{old}S{what[1:]}" if old else f"desc-{what}"
    return "_".join((*entities, f"res-{label}", *end, desc, suffix))


def write_description(output: Path, root: Path) -> None:
    """Make the folder of the results of a BIDS data set a BIDS derivative, if it is none yet."""
    path, ignored = output / "dataset_description.json", output / ".bidsignore"
    known = ignored.read_text(encoding="utf-8").splitlines() if ignored.exists() else []
    if set(IGNORED) - set(known):
        with atomic_write(ignored, "w") as file:
            file.write("\n".join(dict.fromkeys((*known, *IGNORED))) + "\n")
    if path.exists():
        return
    try:
        given = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        given = {}
    given = given if isinstance(given, dict) else {}
    source = {"URL": f"file://{Path(root).resolve()}"}
    if given.get("DatasetDOI"):
        source["DOI"] = given["DatasetDOI"]
    about = {
        "Name": f"Super-resolution of {given.get('Name') or root.name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": name_of_program(), "Version": version()}],
        "SourceDatasets": [source],
        "DatasetLinks": {"source": source["URL"]},
    }
    about |= {key: given[key] for key in ("License", "Authors") if given.get(key)}
    words = "How each file was made stands in the JSON beside it.\n"
    with atomic_write(output / "README", "w") as file:
        file.write(f"Enlarged by {name_of_program()} {version()}. {words}")
    write_json(path, about)

"""Where a result comes from: a JSON file beside each, and the frame of a BIDS derivative."""

import hashlib
import json
import math
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path

from degradation import degradation_name
from inference.error_map import INTERVAL
from utils import atomic_write, version, write_json

NAME = "brain-mri-superres"
ERROR = "_error"  # what the labels of error maps end in
BIDS_VERSION = "1.10.0"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


weights_digest = lru_cache(maxsize=16)(digest_of)  # the same weights for thousands of pictures


def input_digest(source: Path, files=()) -> str:
    """The SHA-256 of an input; of a DICOM series that of its files' digests, in order of names."""
    if not files:
        return digest_of(source)
    digests = [digest_of(file) for file in sorted(files)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def record(job, image, upscaler, ways, description, warnings: list) -> dict:
    """The sidecar of a result: what it was made of, by what, and how.

    Names are those of BIDS where it has one. Sizes are in mm, in the order of the volume's axes.
    """
    scale = upscaler.network.scale
    words = "unknown"
    if upscaler.simulate:
        words = degradation_name(upscaler.degradation)
    elif description is not None:
        words = upscaler.words(description)
    elif upscaler.degradation:
        words = degradation_name(upscaler.degradation)
    about = {
        "Description": f"Super-resolution of a brain MRI {job.kind}: {upscaler.label}",
        "Sources": [source_of(job)],
        "SourceSHA256": input_digest(job.source, job.files),
        "GeneratedBy": [{"Name": NAME, "Version": version()}],
        "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "Weights": upscaler.path.name,
        "WeightsSHA256": weights_digest(upscaler.path),
        "WeightsTrainedOn": upscaler.checkpoint.get("trained_on", "unknown data"),
        "Scale": list(scale),
        "DegradationFrom": degradation_source(upscaler, description),
        "Degradation": words,
        "ProjectedOntoInput": upscaler.consistent,
    }
    if image.sizes:
        factors = image.factors(ways[0], scale)
        before = [image.sizes[axis] for axis in image.volume.axes]
        if upscaler.simulate:  # the input is the truth: what was upscaled is made from it
            before = [size * f for size, f in zip(before, factors)]
        about["Plane"] = " and ".join(way[0] for way in ways)
        about["VoxelSizeBefore"] = [round(size, 6) for size in before]
        about["VoxelSizeAfter"] = [round(size / f, 6) for size, f in zip(before, factors)]
        sizes = [" x ".join(f"{s / f:.3g}" for s, f in zip(before, by)) + " mm"
                 for by in (factors, (1, 1, 1))]  # fmt: skip
        about["Resolution"] = "voxels of {} made from {}".format(*sizes)
        about["SkullStripped"] = is_stripped(image)
    if upscaler.calibration is not None:
        about["ExpectedError"] = {
            "Description": "expected absolute error = value in the map x Step, in the input's "
            "units; on T1 like the training's nine pixels in ten lie within Interval times it, of "
            "FLAIR or another scanner fewer",
            "Step": image.error_step(),
            "Interval": round(INTERVAL, 3),
        }
    return about | {"Warnings": list(warnings)}


def is_stripped(image) -> bool:
    """Whether all but the brain is zero: most of a scan is, and the rest would fill no head.

    BIDS wants to know. A head has more than 2.5 litres, a brain less than 2.
    """
    empty = float((image.volume.stored == 0).mean())
    litres = (1 - empty) * math.prod(image.volume.stored.shape[:3]) * math.prod(image.sizes) / 1e6
    return empty > 0.5 and litres < 2


def degradation_source(upscaler, description) -> str:
    """Who says how the input was made."""
    if upscaler.simulate:
        return "simulated"
    if upscaler.user_said:
        return "told by the user"
    return "estimated by the network" if description is not None else "nobody"


def source_of(job) -> str:
    """The input: in a BIDS data set as a BIDS URI, else its path."""
    if job.dataset:
        return f"bids:source:{job.source.relative_to(job.dataset).as_posix()}"
    return str(job.source)


def bids_name(name: str, label: str) -> str:
    """The name of a result: entities kept, `res-` of the label, `desc-superres`, suffix last.

    sub-01_run-1_T1w and x4 give sub-01_run-1_res-x4_desc-superres_T1w. An older desc- label stays
    a part of the new one.
    """
    *entities, suffix = name.split("_")
    what = "superresError" if label.endswith(ERROR) else "superres"
    label = label.removesuffix(ERROR)
    label = re.sub(r"[^A-Za-z0-9]", "", label)
    old = next((e[5:] for e in entities if e.startswith("desc-")), "")
    entities = [e for e in entities if not e.startswith(("desc-", "res-"))]
    end = [e for e in entities if e.startswith("label-")]  # the one that comes between them
    entities = [e for e in entities if e not in end]
    desc = f"desc-{old}S{what[1:]}" if old else f"desc-{what}"
    return "_".join((*entities, f"res-{label}", *end, desc, suffix))


def write_description(output: Path, root: Path) -> None:
    """Make the folder of the results of a BIDS data set a BIDS derivative, if it is none yet."""
    path = output / "dataset_description.json"
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
        "GeneratedBy": [{"Name": NAME, "Version": version()}],
        "SourceDatasets": [source],
        "DatasetLinks": {"source": source["URL"]},
    }
    about |= {key: given[key] for key in ("License", "Authors") if given.get(key)}
    words = (
        f"Enlarged by {NAME} {version()}. How each file was made stands in the JSON beside it.\n"
    )
    for name, text in (("README", words), (".bidsignore", "*_figure.png\n*.csv\n")):
        with atomic_write(output / name, "w") as file:
            file.write(text)
    write_json(path, about)

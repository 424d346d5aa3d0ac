"""Several networks, each for scales of its own, as one file.

    python -m training.join runs/x4/best.pt runs/through/best.pt --data volumes \\
        --degradation wide --out weights/brain.pt

The expected errors of all are learned anew, and calibrated on the validation people.
"""

import argparse
import os

import dataset
from degradation import scale_name
from inference.checkpoints import load_checkpoint, save_checkpoint
from modules import load_network
from training.batches import Options, Stock
from training.error_head import add_error_head
from utils import Parser, UsageError, int_between, note, pick_device, run_main

SIZES = 4, 48  # slices a step, LR pixels along an edge


def arguments(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("weights", nargs="+", help="checkpoints; no scale is in two of them")
    add("--out", required=True, metavar="FILE", help="file to write")
    add("--data", required=True, help="folder of volumes that they were trained on")
    add("--degradation", default="wide", help="as in their training")
    add("--error-head", type=int_between(0), default=3000, metavar="N",
        help="iterations for the map of expected errors; 0: none")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    dataset.add_data_arguments(add)
    return parser.parse_args(argv)


def joined(checkpoints: list[dict]) -> dict:
    """One checkpoint of several, without error heads."""
    model, parts, scales = {}, [], []
    for i, checkpoint in enumerate(checkpoints):
        arch = {k: v for k, v in checkpoint["arch"].items() if k != "error_head"}
        parts.append([arch, len(checkpoint["scales"])])
        scales += checkpoint["scales"]
        for name, tensor in checkpoint["model"].items():
            if not name.startswith("error_head."):
                model[f"bodies.{i}.{name}"] = tensor
    if len(set(scales)) < len(scales):
        names = ", ".join(scale_name(s) for s in scales)
        raise UsageError(f"a scale is there twice: {names}")
    arch = {"name": "bodies", "bodies": parts, "error_head": False}
    found = {**checkpoints[0], "arch": arch, "scales": [list(s) for s in scales], "model": model}
    found.pop("calibration", None)
    people = [checkpoint.get("people") for checkpoint in checkpoints]
    if all(x is not None for x in people):
        found["people"] = sorted({person for x in people for person in x})
    else:
        found.pop("people", None)
    return found


def main(argv=None) -> int:
    args = arguments(argv)
    device, both = pick_device(args.device), joined([load_checkpoint(p) for p in args.weights])
    scales = [tuple(s) for s in both["scales"]]
    neighbours = load_network(both, args.out).neighbours
    if any(1 in s for s in scales) and args.axis == "axial":
        args.axis = "all"
    options = {name: getattr(args, name) for name in dataset.DATA_OPTIONS}
    parts, _ = dataset.load_parts(**options, workers=min(8, os.cpu_count() or 1))
    save_checkpoint(args.out, both)
    if args.error_head:
        some = Options(args.seed, *SIZES, tuple(scales), args.degradation, neighbours)
        stock = Stock(parts["train"], device)
        add_error_head(args.out, stock, some, parts["val"], args.error_head)
    note(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Several networks, each for scales of its own, as one file.

python -m training.join_weights runs/x4/best.pt runs/through/best.pt weights/brain.pt
"""

from degradation import scale_name
from inference.checkpoints import load_checkpoint, save_checkpoint
from modules import load_network
from utils import Parser, UsageError, note, run_main


def joined(checkpoints: list[dict]) -> dict:
    """One checkpoint of several. Their error heads stay if all have one; people are listed if all
    list them."""
    heads = all(checkpoint["arch"].get("error_head") for checkpoint in checkpoints)
    model, parts, scales, calibration = {}, [], [], {}
    for i, checkpoint in enumerate(checkpoints):
        arch = {k: v for k, v in checkpoint["arch"].items() if k != "error_head"}
        parts.append([arch, len(checkpoint["scales"])])
        scales += checkpoint["scales"]
        calibration |= checkpoint.get("calibration") or {}
        for name, tensor in checkpoint["model"].items():
            if heads or not name.startswith("error_head."):
                model[f"bodies.{i}.{name}"] = tensor
    if len(set(scales)) < len(scales):
        names = ", ".join(scale_name(s) for s in scales)
        raise UsageError(f"a scale is there twice: {names}")
    arch = {"name": "bodies", "bodies": parts, "error_head": heads}
    found = dict(arch=arch, scales=[list(s) for s in scales], model=model)
    found |= {key: checkpoints[0][key] for key in ("degradation", "trained_on")}
    found |= {"calibration": calibration} if heads else {}
    people = [checkpoint.get("people") for checkpoint in checkpoints]
    if all(x is not None for x in people):
        found["people"] = sorted({person for x in people for person in x})
    return found


def one_of(checkpoint: dict, scales) -> dict:
    """The network in a checkpoint of several that is for the most of these scales, as a checkpoint
    of its own; any other checkpoint as it is."""
    if checkpoint["arch"].get("name") != "bodies":
        return checkpoint
    own, parts = list(checkpoint["scales"]), checkpoint["arch"]["bodies"]
    groups = [[own.pop(0) for _ in range(n)] for _, n in parts]
    i = max(range(len(parts)), key=lambda k: len(set(groups[k]) & set(scales)))
    head = {"error_head": checkpoint["arch"].get("error_head", False)}
    start = f"bodies.{i}."
    weights = {k: v for k, v in checkpoint["model"].items() if k.startswith(start)}
    model = {k.removeprefix(start): v for k, v in weights.items()}
    return {**checkpoint, "arch": parts[i][0] | head, "scales": groups[i], "model": model}


def main(argv=None):
    parser = Parser(__doc__.split("\n\n")[0])
    parser.add_argument("weights", nargs="+", help="checkpoints; no scale is in two of them")
    parser.add_argument("out", metavar="OUT", help="file to write")
    args = parser.parse_args(argv)
    both = joined([load_checkpoint(path) for path in args.weights])
    load_network(both, args.out)  # refuses what does not fit
    save_checkpoint(args.out, both)
    note(f"written: {args.out}")


if __name__ == "__main__":
    run_main(main)

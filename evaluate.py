"""Score checkpoints against bicubic upsampling on the same slices: one table.

python evaluate.py weights/default.pt runs/mine/best.pt --data DIR
"""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dataset
import modules
from checkpoints import load_checkpoint
from degradation import DEGRADATIONS, crop_to_scale, degrade, make_consistent
from figures import grid_figure
from metrics import metrics_table, score, summarise
from plots import cost_figure, curves_figure
from utils import (
    DataError,
    Parser,
    atomic_write,
    int_between,
    pick_device,
    run_main,
)

CONSISTENT = ", consistent"  # ends the name of a row that is projected onto the LR slice


def as_tensor(pixels: np.ndarray, device="cpu") -> torch.Tensor:
    """A uint8 slice (H, W) as float32 (1, 1, H', W') in [0, 1], cut to multiples of 4."""
    hr = torch.from_numpy(np.array(pixels)).to(device).float() / 255
    return crop_to_scale(hr)[None, None]


def evaluate(
    networks: dict, slices, degradation: str, device="cpu", *, consistent=False, progress=False
) -> dict:
    """{name: summary} for bicubic upsampling and every network, on the same LR slices.

    consistent: a second row for each network, its slices projected onto the LR they came from.
    Beside the metrics of `utils.score` a summary has `lr_rmse`: how far the SR slice, degraded
    again, is from the LR slice. What a network invents against the scan shows there.
    """
    networks = {"bicubic": modules.Interpolation("bicubic").to(device), **networks}
    rows = {}
    for i in tqdm(range(len(slices)), desc="scoring", unit="slice", disable=not progress):
        hr = as_tensor(slices[i], device)
        lr = degrade(hr, degradation)
        for name, network in networks.items():
            results = {name: modules.upscale(network, lr)}
            if consistent and name != "bicubic":
                results[name + CONSISTENT] = make_consistent(results[name], lr, degradation)
            for label, sr in results.items():
                sr = sr.clamp(0, 1)
                again = degrade(sr, degradation, rounded=False)
                lr_rmse = float(torch.mean((again - lr) ** 2) ** 0.5)
                rows.setdefault(label, []).append(score(sr[0, 0], hr[0, 0]) | {"lr_rmse": lr_rmse})
    table = {name: summarise(scores, slices.subject) for name, scores in rows.items()}
    for label, summary in table.items():
        network = networks[label.removesuffix(CONSISTENT)]
        if label != "bicubic":
            summary |= {"parameters": modules.parameters(network), "mmac": modules.mmac(network)}
    return table


def main(argv=None):
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("checkpoint", nargs="+", help="weights to compare")
    add("--data", help="folder of pictures or volumes; without it, the demonstration brain")
    add("--split", default="test", choices=("train", "val", "test", "all"),
        help="subjects to score; all: every slice of the folder")  # fmt: skip
    add("--degradation", choices=DEGRADATIONS, default="bicubic", help="how LR is made")
    add("--consistent", action="store_true",
        help="a second row each: the result projected onto the measured LR slice")  # fmt: skip
    add("--axis", default="axial", choices=("axial", "coronal", "sagittal", "all"),
        help="planes, for volumes")  # fmt: skip
    add(
        "--slices", type=int_between(0), default=0, help="central slices of a volume; 0: all usable"
    )
    add("--seed", type=int_between(0), default=0, help="of the split, as given to train.py")
    add("--cache", default="runs/cache", help="folder for the decoded slices")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--json", metavar="FILE", help="write the table as JSON too")
    add("--curves", metavar="FILE", help="plot the loss curves of the checkpoints' runs, as PNG")
    add("--cost", metavar="FILE", help="plot PSNR against multiply-accumulates, as PNG")
    add("--examples", metavar="FILE",
        help="draw the slices of best, median and worst gain of the first one")  # fmt: skip
    args = parser.parse_args(argv)
    if args.data == "":
        parser.error("--data: is empty")
    for flag in ("json", "curves", "cost", "examples"):
        flag, path = "--" + flag, getattr(args, flag)
        if path and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            parser.error(f"{flag} {path}: is a folder, or lies in none")
        if path and Path(path).resolve() in {Path(c).resolve() for c in args.checkpoint}:
            parser.error(f"{flag} {path}: is a checkpoint, and would be overwritten")

    device = pick_device(args.device)
    networks = {}
    for path in args.checkpoint:
        networks[str(path)] = modules.load_network(load_checkpoint(path), path).to(device)
    slices = split_slices(args)
    print(f"{args.split}: {slices.counts()}; LR by {args.degradation}, 8 bits")
    table = evaluate(
        networks, slices, args.degradation, device, consistent=args.consistent, progress=True
    )
    print(metrics_table(table))
    print(
        "mean ± sd over subjects; MMAC for a 60x64 LR slice; LR RMSE: the result, degraded again,"
    )
    print("against the LR slice it came from")
    if args.json:
        about = {
            "data": args.data or "ICBM152",
            "split": args.split,
            "degradation": args.degradation,
        }
        with atomic_write(args.json, "w") as file:
            json.dump({**about, "results": table}, file, indent=1)
        print(f"written: {args.json}")
    if args.curves:
        curves_figure(args.curves, {name: loss_curve(name) for name in networks})
        print(f"written: {args.curves}")
    if args.cost:
        cost_figure(args.cost, table)
        print(f"written: {args.cost}")
    if args.examples:
        network = networks[args.checkpoint[0]]
        for line in draw_examples(args.examples, network, slices, args.degradation, device):
            print(line)
        print(f"written: {args.examples}")


def draw_examples(path, network, slices, degradation: str, device="cpu") -> list[str]:
    """Draw the test slices of best, median and worst gain over bicubic; their names in words."""
    bicubic = modules.Interpolation("bicubic").to(device)

    def images_of(i):
        hr = as_tensor(slices[i], device)
        lr = degrade(hr, degradation)
        images = (lr, modules.upscale(bicubic, lr), modules.upscale(network, lr), hr)
        return [image.clamp(0, 1)[0, 0].cpu().numpy() for image in images]

    gains = []
    for i in range(len(slices)):
        _, before, after, hr = images_of(i)
        mse = [np.mean((image - hr) ** 2) + 1e-12 for image in (before, after)]  # black: no gain
        gains.append(10 * np.log10(mse[0] / mse[1]))
    order = np.argsort(gains)
    rows, words = [], []
    for what, i in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        lr, before, after, hr = images_of(i)
        errors = [np.minimum(5 * abs(image - hr), 1) for image in (before, after)]
        rows.append([lr, before, after, hr, *errors])
        words.append(f"{what} gain, {gains[i]:+.2f} dB over bicubic: {slices.name[i]}")
    names = [
        "low resolution",
        "bicubic",
        "network",
        "truth",
        "error of bicubic x5",
        "of network x5",
    ]
    title = "gain over bicubic, from the top: " + ", ".join(
        word.split(" over")[0].replace(" gain,", "") for word in words
    )
    grid_figure(path, rows, names, title=title)
    return words


def loss_curve(checkpoint: str) -> tuple[list[int], list[float]]:
    """Iterations and training losses from the log.csv beside a checkpoint."""
    log = Path(checkpoint).with_name("log.csv")
    try:
        with open(log, newline="") as file:
            rows = [(int(row["iteration"]), float(row["loss"])) for row in csv.DictReader(file)]
        return tuple(zip(*rows))
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{log}: no readable log; --curves needs the checkpoints of runs") from None


def split_slices(args) -> dataset.Slices:
    """The slices to score."""
    if not args.data:
        parts, _ = dataset.demo_slices(args.cache)
        return parts["test" if args.split == "all" else args.split]
    scans = dataset.find_scans(args.data)
    if args.split != "all":
        split = dataset.split_subjects(scans, args.seed)
        scans = [scan for scan in scans if split[scan.subject] == args.split]
    slices, _, _ = dataset.load_slices(scans, args.cache, axis=args.axis, count=args.slices)
    return slices


if __name__ == "__main__":
    run_main(main)

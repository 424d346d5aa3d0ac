"""Speed of this version beside another commit's, from start to end of the programs.

    git worktree add ../old COMMIT
    python benchmarks/benchmark.py ../old            ratios: how many times as fast this one is
    python benchmarks/benchmark.py --only scan       this version alone
    python benchmarks/benchmark.py ../old --threads 1 --clock cpu     where others are at work too

Both take turns, and each figure is the median of its turns: neighbours on the same machine slow
both down. Slices and scans are those of data/. For GPUs there is gpu.py.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import DataError, Parser, int_between, run_main

SLICES = ROOT / "data/ds002748"
SCAN = ROOT / "data/ds002748_volumes/test/sub-55_T1w.nii.gz"
THICK = ROOT / "readme_resources/thick.nii.gz"


def run(tree: Path, *command) -> dict:
    """Seconds by the wall and of all threads, and the peak memory in MB, of a Python process."""
    words = [sys.executable, *map(str, command)]
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        child = subprocess.Popen(words, cwd=tree, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall, child.returncode = time.perf_counter() - begun, os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:]
            raise DataError(f"{tree}: {' '.join(words[1:])} failed: {' '.join(last)}")
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": peak}


def predicting(*what):
    """A side: predict.py of a clone on this input."""

    def side(tree: Path, args, folder: Path) -> dict:
        output = tempfile.mkdtemp(dir=folder)
        options = "--no-figure", "--device", "cpu", "--threads", args.threads, "--output", output
        return run(tree, "predict.py", *what, *options)

    return side


def training(*what):
    """A side: a step of train.py of a clone, as the difference of a longer run and a shorter."""

    def side(tree: Path, args, folder: Path) -> dict:
        found, cache = [], folder / f"cache of {tree.name}"
        for steps in [10] * (not cache.exists()) + [10, 10 + args.steps]:  # first, to fill it
            options = ("--iterations", steps, "--run", tempfile.mkdtemp(dir=folder), "--quiet")
            options += ("--cache", cache, "--threads", args.threads)
            options += ("--data", SLICES, "--batch-size", 8, "--patch-size", 32, "--device", "cpu")
            found.append(run(tree, "train.py", *what, *options))
        short, long = found[-2:]
        step = {clock: (long[clock] - short[clock]) / args.steps for clock in ("wall", "cpu")}
        return step | {"peak": long["peak"]}

    return side


def inputs(folder: Path, args) -> dict:
    """{what is measured: side(tree, args, folder)}; makes the files that they take."""
    import nibabel as nib
    from PIL import Image

    scan = nib.load(SCAN)
    middle = slice(60, 60 + args.depth)
    small = nib.Nifti1Image(np.asarray(scan.dataobj)[..., middle], scan.affine)
    nib.save(small, folder / "scan.nii.gz")
    (folder / "slices").mkdir()
    files = sorted((SLICES / "test").rglob("*.png"))
    for i in range(args.slices):
        with Image.open(files[i % len(files)]) as picture:
            shrunk = picture.resize((64, 60), Image.Resampling.BICUBIC)
        shrunk.save(folder / "slices" / f"{i:03d}.png")
    return {
        "start": lambda tree, *_: run(tree, "predict.py", "--version"),
        "picture": predicting(folder / "slices/000.png"),
        "folder": predicting(folder / "slices"),
        "scan": predicting(folder / "scan.nii.gz", "--scale", 4),
        "thick": predicting(THICK, "--through-plane", 4),
        "training": training("--degradation", "bicubic"),
        "training wide": training("--degradation", "wide"),
    }


def main(argv=None):
    text, examples, _ = __doc__.split("\n\n")
    parser = Parser(text, examples=examples)
    add = parser.add_argument
    add("old", nargs="?", type=Path, metavar="DIR", help="clone of another commit")
    add("--only", nargs="+", metavar="NAME", help="of the first column of the table")
    add("--repeats", type=int_between(1), default=3, help="turns of each side")
    add("--threads", type=int_between(1), default=os.cpu_count(), help="CPU threads")
    add("--clock", choices=("wall", "cpu"), default="wall", help="seconds that are compared")
    add("--depth", type=int_between(4, 80), default=24, help="slices of the scan")
    add("--slices", type=int_between(1), default=64, help="pictures of the folder")
    add("--steps", type=int_between(10), default=60, help="of training, compared with 10")
    args = parser.parse_args(argv)
    if args.old and not (args.old / "predict.py").exists():
        parser.error(f"{args.old}: holds no predict.py")
    trees = [ROOT] + ([args.old.resolve()] if args.old else [])
    print(f"{platform.platform()}, {os.cpu_count()} cores, {args.threads} threads, load "
          f"{os.getloadavg()[0]:.1f}; medians of {args.repeats}, {args.clock} time")  # fmt: skip
    print(f"\n{'':16}{'this':>10}{'MB':>7}{'old':>10}{'MB':>7}  times as fast")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        sides = inputs(folder, args)
        if unknown := set(args.only or ()) - set(sides):
            parser.error(f"--only {' '.join(unknown)}: not one of {', '.join(sides)}")
        for name in args.only or sides:
            found = [[] for _ in trees]
            for _ in range(args.repeats):
                for tree, turns in zip(trees, found):
                    turns.append(sides[name](tree, args, folder))
            line, took = f"{name:16}", []
            for turns in found:
                took.append(statistics.median(turn[args.clock] for turn in turns))
                peak = statistics.median(turn["peak"] for turn in turns)
                line += f"{took[-1]:>8.3f} s{peak:>7.0f}"
            print(line + (f"  {took[1] / took[0]:.2f}" if args.old else ""), flush=True)


if __name__ == "__main__":
    run_main(main)

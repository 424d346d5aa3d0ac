"""Repeat the study of TRUST.md: its scripts, two at a time, one thread each; some 20 minutes.

Numbers go to study/results, figures to readme_resources, both together to TRUST.md. What
needs volumes that are not given, or packages that are not installed, is left out, and said.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path

from common import ROOT, parser

import utils


def steps(args) -> dict[str, list[str]]:
    """{what: the command's words}, the longest first."""
    found = {"rivals": ["rivals.py"]}
    for way in ("kspace", "rician-2"):
        found[f"rivals, {way}"] = ["rivals.py", "--degradation", way, "--without", *args.without]
    if util.find_spec("dipy"):
        found["tissue"] = ["tissue.py"]
        if args.volumes and args.through.exists():
            thick = ["--volumes", str(args.volumes), "--weights", str(args.through)]
            found["tissue of thick slices"] = ["tissue.py", *thick]
    if args.lesions:
        found["lesions"] = ["lesions.py", "--data", str(args.lesions)]
    for name in ("spots", "invented", "fourier", "worst"):
        found[name] = [f"{name}.py"]
    for words in found.values():
        words += ["--out", str(args.out), "--pictures", str(args.pictures)]
        words += ["--seed", str(args.seed)] * (args.seed != 0)
        words += ["--slices", str(args.slices)] * (args.slices is not None)
        if "--weights" not in words:  # thick slices have their own, and their own degradation
            words += ["--weights", args.weights] + ["--told"] * args.told
            if "--degradation" not in words and args.degradation != "bicubic":
                words += ["--degradation", args.degradation]
    return found


def run(words: list[str]) -> tuple[int, str, float]:
    """Exit status, what was printed, seconds."""
    started = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT / "study", env=os.environ | threads,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, time.monotonic() - started


def main(argv=None):
    parse = parser(__doc__, slices=None)
    parse.add_argument("--volumes", type=Path, help="folder of .nii.gz test volumes: thick slices")
    parse.add_argument("--through", type=Path, default=ROOT / "weights/through-x4.pt",
                       help="checkpoint for thick slices")  # fmt: skip
    parse.add_argument("--lesions", type=Path, help="folder of lesion volumes and masks")
    parse.add_argument("--without", nargs="*", default=["DAT-light", "Real-ESRGAN"],
                       help="slow rivals: left out under further degradations")  # fmt: skip
    parse.add_argument("--workers", type=utils.int_between(1, 64), default=2, help="at a time")
    args = parse.parse_args(argv)
    for name in ("weights", "volumes", "through", "lesions", "out", "pictures"):
        if getattr(args, name):
            setattr(args, name, Path(getattr(args, name)).resolve())
    args.weights = str(args.weights)
    wanted = steps(args)
    for name in ("tissue", "tissue of thick slices", "lesions"):
        if name not in wanted:
            print(f"{name}: left out; see --help and study/requirements.txt")
    with ThreadPoolExecutor(args.workers) as pool:
        futures = {name: pool.submit(run, words) for name, words in wanted.items()}
        failed = 0
        for name, future in futures.items():
            status, printed, seconds = future.result()
            failed += status != 0
            print(f"\n{name} ({seconds:.0f} s{', FAILED' * (status != 0)})\n{printed}", flush=True)
    page = [sys.executable, str(ROOT / "study/page.py"), "--results", str(args.out)]
    failed += subprocess.run(page).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    utils.run_main(main)

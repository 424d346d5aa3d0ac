"""Repeat the study of TRUST.md: its scripts, two at a time, one thread each; some 15 minutes.

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

import utils
from study.common import ROOT, parser


def steps(args) -> dict[str, list[str]]:
    """{what: the command's words}, the longest first."""
    found = {"coverage": ["coverage"]}
    if util.find_spec("dipy"):
        found |= {"thick": ["tissue", "--thick"], "tissue": ["tissue"]}
    for way in ("bicubic", "kspace", "rician-2"):
        slow = ["--without", "DAT-light", "Real-ESRGAN"] * (way != "bicubic")
        found[f"rivals, {way}"] = ["rivals", "--degradation", way, *slow]
    for name in ("spots", "invented", "worst", "fourier"):
        found[name] = [name]
    for words in found.values():
        words += changed(args, "pictures", "data")
    if args.lesions:
        found = {"lesions": ["lesions", "--data", str(args.lesions)], **found}
    for words in found.values():
        words += changed(args, "weights", "out", "seed", "slices")
    return {what: words for what, words in found.items() if not args.only or words[0] in args.only}


def changed(args, *names: str) -> list[str]:
    """Those of these options that are not what the scripts have by themselves."""
    usual = vars(parser("").parse_args([])) | {"slices": None}  # of slices each has its own
    given = {name: getattr(args, name) for name in names}
    return [word for name, value in given.items() if value != usual[name]
            for word in (f"--{name}", str(value))]  # fmt: skip


def run(words: list[str]) -> tuple[int, str, float]:
    """Exit status, what was printed, seconds."""
    started = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"study.{words[0]}", *words[1:]], cwd=ROOT, env=os.environ | threads,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, time.monotonic() - started


def main(argv=None):
    parse = parser(__doc__)
    parse.set_defaults(slices=None)  # each script has its own
    add = parse.add_argument
    add("--lesions", type=Path, help="folder of lesion volumes and masks")
    add("--only", nargs="+", metavar="NAME", help="of these scripts: worst spots ...")
    add("--page", type=Path, default=ROOT / "docs/TRUST.md", help="to write")
    add("--workers", type=utils.int_between(1, 64), default=2, help="at a time")
    args = parse.parse_args(argv)
    if args.degradation != "bicubic":
        parse.error("--degradation: give it to a script alone")
    for name in ("weights", "data", "lesions", "out", "pictures", "page"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    wanted, failed = steps(args), 0
    if not util.find_spec("dipy"):
        print("tissue: left out; it needs the packages of study/requirements.txt")
    if not args.lesions:
        print("lesions: left out; they need --lesions FOLDER")
    with ThreadPoolExecutor(args.workers) as pool:
        futures = {name: pool.submit(run, words) for name, words in wanted.items()}
        for name, future in futures.items():
            status, printed, seconds = future.result()
            failed += status != 0
            print(f"\n{name} ({seconds:.0f} s{', FAILED' * (status != 0)})\n{printed}", flush=True)
    page = [
        sys.executable,
        "-m",
        "study.page",
        "--results",
        str(args.out),
        "--page",
        str(args.page),
    ]
    failed += subprocess.run(page, cwd=ROOT).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    utils.run_main(main)

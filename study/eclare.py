"""ECLARE, a network that is trained on the thick scan itself, beside this one: PSNR of volumes.

ECLARE (Remedios et al., 2025; PyPI eclare, GPL) is called as a program. It wants an environment of
its own, as it needs an older NumPy, and a GPU: one core of a CPU trains on 13 patches a second.

    python3 -m venv eclare && eclare/bin/python -m pip install eclare
    python -m study.eclare --program eclare/bin/run-eclare --gpu 0
"""

import os
import subprocess
import tempfile
from pathlib import Path

import scans
import utils
from evaluation import volume_scores
from evaluation.pairs import on_grid_of
from inference import Upscaler
from study.common import OURS, mean_sd, parser, people, save, text
from study.tissue import CUBIC, THICK, made_thick


def run_eclare(args, thick, folder: Path) -> scans.Scan:
    """The scan that ECLARE makes of a thick one. Raises DataError if it fails."""
    source = scans.write(thick, folder / "thick")
    pixels = thick.sizes[2] / thick.sizes[0]  # how many a slice is thick
    words = [str(args.program), "--in-fpath", str(source), "--out-dir", str(folder / "out"),
             "--relative-slice-thickness", f"{pixels:.4f}", "--gpu-id", str(args.gpu)]  # fmt: skip
    words += ["--n-patches", str(args.patches)] * bool(args.patches)
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise utils.DataError(f"{args.program}: {utils.reason(error)}") from None
    found = sorted((folder / "out").rglob("*.nii.gz"))
    if done.returncode or not found:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise utils.DataError(f"{args.program}: failed: {' '.join(last)}")
    return scans.read(found[0])


def main(argv=None):
    parse = parser(__doc__.split("\n\n")[0], slices=1)
    add = parse.add_argument
    add("--program", type=Path, default="run-eclare", help="of ECLARE's own environment")
    add("--gpu", type=int, default=0, help="its number; -1: CPU")
    add("--patches", type=utils.int_between(1), help="that it trains on  (default: its own)")
    add("--people", type=utils.int_between(1), default=8, help="at the most")
    args = parse.parse_args(argv)
    args.degradation, upscaler, rows = "slab-1", Upscaler(args.weights), []
    for person in people(args)[: args.people]:
        hr, thick, sizes = made_thick(person)
        scan = volume_scores.thick_scan(thick, sizes, THICK)
        with tempfile.TemporaryDirectory() as folder:
            before = os.times()
            theirs = run_eclare(args, scan, Path(folder))
            between = os.times()
        theirs = on_grid_of(theirs, volume_scores.thick_scan(hr, sizes, 1), person.name)
        theirs[theirs != theirs] = 0  # beyond what it made
        results = {CUBIC: volume_scores.interpolate(thick, THICK, 3), "ECLARE": theirs}
        begun = os.times()
        results[OURS] = volume_scores.made_thin(upscaler, thick, sizes, THICK)
        scores = {name: volume_scores.volume_score(sr, hr) for name, sr in results.items()}
        scores["ECLARE"]["cpu"] = sum(between[2:4]) - sum(before[2:4])
        scores[OURS]["cpu"] = sum(os.times()[:2]) - sum(begun[:2])
        rows.append(scores)
        words = ", ".join(f"{name} {found['psnr']:.2f} dB" for name, found in scores.items())
        seconds = f"{scores['ECLARE']['cpu']:.0f} and {scores[OURS]['cpu']:.0f} s of CPU time"
        print(f"{person.name}: {words}; ECLARE and {OURS} took {seconds}", flush=True)
    result = {"people": len(rows), "patches": args.patches}
    for name in (CUBIC, "ECLARE", OURS):
        keys = [key for key in ("psnr", "psnr_brain", "cpu") if key in rows[0][name]]
        result[name] = {key: mean_sd([row[name][key] for row in rows]) for key in keys}
        print(f"{name}: {text(result[name]['psnr'])} dB, "
              f"in brain {text(result[name]['psnr_brain'])} dB")  # fmt: skip
    save(args, "eclare", result)


if __name__ == "__main__":
    utils.run_main(main)

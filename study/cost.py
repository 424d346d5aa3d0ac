"""PSNR against work of the networks in STUDY.md, of the numbers in readme_resources/study.json."""

import json
from pathlib import Path

import numpy as np

import utils
from evaluation.plots import SMALL, new_figure, plain_numbers, save_figure
from study.common import BICUBIC, COLOURS, OURS, ROOT

NUMBERS = ROOT / "readme_resources/study.json"
# Runs that have a name in the figure, and on which side of their dot it stands; all others of LR by
# bicubic are small dots.
NAMED = {
    "deep12k_noaug": (f"best: {OURS}, 12,000 steps, no augmentation", "right"),
    "deep12k": (f"{OURS}, 12,000 steps", "left"),
    "base": (f"{OURS}, 2,000 steps", "left"),
    "ch24": ("with 24 channels instead of 48, 2,000 steps", "above"),
    "none": ("without its skip, 2,000 steps", "right"),
    "espcn12k": ("plain ESPCN, 64 channels, 12,000 steps", "right"),
    "espcn64": ("plain ESPCN, 64 channels, 2,000 steps", "right"),
    "espcn256_time": ("plain ESPCN, 256 channels, equal time: 240 steps", "left"),
}


def points(runs: dict) -> dict:
    """{run: (million multiply-accumulates, PSNR by seed)} of the runs with LR by bicubic."""
    found = {}
    for name, run in runs.items():
        rows = list(run["seeds"].values())
        if run["degradation"] == "bicubic":
            found[name] = rows[0]["mmac"], [row["psnr"]["mean"] for row in rows]
    return found


def colour_of(name: str) -> str:
    """Of a named run: that of this network, of changed ones, of the plain ESPCN."""
    if OURS in NAMED[name][0]:
        return COLOURS[OURS]
    return "tab:orange" if name.startswith("espcn") else "black"


def write_beside(axes, words: str, point, side: str = "right", colour: str = "dimgray") -> None:
    """Write words to the left or right of a point or above it, on white, which hides dots below."""
    places = {"right": (7, 0, "left"), "left": (-7, 0, "right"), "above": (0, 11, "left")}
    *away, start = places[side]
    axes.annotate(
        words, point, away, textcoords="offset points", color=colour, fontsize=SMALL,
        ha=start, va="center", bbox=dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5),
    )  # fmt: skip


def main(argv=None):
    parse = utils.Parser(__doc__)
    parse.add_argument("--numbers", type=Path, default=NUMBERS, help="of the runs")
    parse.add_argument("--picture", type=Path, default=ROOT / "readme_resources/cost.png")
    args = parse.parse_args(argv)
    with utils.as_data_error(args.numbers):
        numbers = json.loads(args.numbers.read_text(encoding="utf-8"))
        found, plain = points(numbers["runs"]), numbers["bicubic"]["psnr"]["mean"]
    figure = new_figure(4.6)
    axes = figure.subplots()
    others = [(x, np.mean(y)) for name, (x, y) in found.items() if name not in NAMED]
    axes.plot(*zip(*others), ".", color="silver", ms=5, label="other trials, see the tables")
    for name, (words, side) in NAMED.items():
        work, values = found[name]
        mean, colour = float(np.mean(values)), colour_of(name)
        axes.plot([work] * 2, [min(values), max(values)], "-", color=colour, lw=1)
        axes.plot(work, mean, "o", color=colour, ms=6)
        write_beside(axes, f"{words}: {mean:.2f}", (work, mean), side, colour)
    axes.axhline(plain, color=COLOURS[BICUBIC], ls="--", lw=1)
    write_beside(axes, f"bicubic upsampling, no network: {plain:.2f}", (90, plain + 0.12))
    axes.set_xscale("log")
    axes.set(xlabel="million multiply-accumulates for a 60x64 slice", xlim=(80, 9000))
    axes.set(ylabel="PSNR (dB), mean over people", ylim=(plain - 0.3, 33.3))
    plain_numbers(axes.xaxis)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center right", fontsize=SMALL)
    save_figure(figure, args.picture)
    utils.note(f"written: {args.picture}")


if __name__ == "__main__":
    utils.run_main(main)

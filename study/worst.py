"""The worst slices, shown: least gain over bicubic upsampling, and lowest PSNR inside the brain."""

import numpy as np
import torch

import utils
from evaluation.figures import Example, examples_figure
from evaluation.metrics import score
from inference import Upscaler
from study.common import (
    BICUBIC,
    INPUT,
    OURS,
    TRUTH,
    looked_at,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
)


def rows_of(upscaler, args) -> list[dict]:
    """The scores of each slice that has brain, and the slice as a figure shows it."""
    rows = []
    for person in people(args):
        shown = looked_at(upscaler, person, args)
        for i, number in enumerate(person.numbers):
            images = [shown[name][i] for name in (INPUT, BICUBIC, OURS, TRUTH)]
            truth = torch.from_numpy(images[-1])
            before, after = (score(torch.from_numpy(x), truth) for x in images[1:3])
            if after["psnr_brain"] is None:
                continue
            name = f"{person.name}, slice {number}"
            row = dict(name=name, person=person.name, psnr=after["psnr"])
            row |= dict(brain=after["psnr_brain"], bicubic_brain=before["psnr_brain"])
            row["gain"] = after["psnr"] - before["psnr"]
            rows.append(row | {"example": Example(name, *images, (before, after))})
    return rows


def main(argv=None):
    found = parser(__doc__)
    found.add_argument("--show", type=utils.int_between(1, 8), default=2, help="of each kind")
    args = found.parse_args(argv)
    rows = rows_of(Upscaler(args.weights), args)
    by_gain = sorted(rows, key=lambda row: row["gain"])
    by_brain = sorted(rows, key=lambda row: row["brain"])
    picked = {row["name"]: (row, "least gain") for row in by_gain[: args.show]}
    others = [row for row in by_brain if row["name"] not in picked][: args.show]
    picked |= {row["name"]: (row, "lowest in brain") for row in others}
    for row, why in picked.values():
        row["example"].name = f"{why}\n{row['name']}"
    examples_figure(
        picture(args, "worst"), [row["example"] for row, _ in picked.values()], errors=True
    )
    numbers = ("name", "psnr", "brain", "bicubic_brain", "gain")
    names = sorted({row["person"] for row in rows})
    gains = [np.mean([r["gain"] for r in rows if r["person"] == p]) for p in names]
    result = {
        "people": len(names),
        "slices": len(rows),
        "slices_worse_than_bicubic": sum(row["gain"] < 0 for row in rows),
        "gain": mean_sd(gains),
        "least_gain": [{key: row[key] for key in numbers} for row in by_gain[:8]],
        "lowest_in_brain": [{key: row[key] for key in numbers} for row in by_brain[:8]],
    }
    print(
        f"gain {text(result['gain'])} dB; least {by_gain[0]['gain']:+.2f} ({by_gain[0]['name']}); "
        f"{result['slices_worse_than_bicubic']} of {len(rows)} slices worse than bicubic"
    )
    save(args, "worst", result)


if __name__ == "__main__":
    utils.run_main(main)

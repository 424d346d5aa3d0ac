"""The worst slices, shown: least gain over bicubic upsampling, and lowest PSNR inside the brain."""

import numpy as np
from common import add_test_data, load, mean_sd, parser, people, picture, save, text, versions

import utils
from evaluation import metrics, plots


def draw(path, picked: list[dict]) -> None:
    """One row for each slice: LR's interpolation, SR, HR, and the error of SR."""
    figure = plots.new_figure(2.45 * len(picked))
    axes = figure.subplots(len(picked), 4, squeeze=False)
    for row, slice_ in zip(axes, picked):
        hr = slice_["HR"]
        rows, columns = np.where(hr > 0.05)
        window = (
            slice(max(0, rows.min() - 4), rows.max() + 5),
            slice(max(0, columns.min() - 4), columns.max() + 5),
        )
        panels = {
            f"bicubic\n{slice_['bicubic_brain']:.1f} dB in brain": slice_["bicubic"],
            f"SR, gain {slice_['gain']:+.2f} dB\n{slice_['brain']:.1f} dB in brain": slice_["SR"],
            f"HR, {slice_['name']}\n{slice_['why']}": hr,
        }
        for axis, (title, image) in zip(row, panels.items()):
            axis.imshow(image[window], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=9)
        error = np.abs(slice_["SR"] - hr)[window]
        row[3].imshow(error, cmap="inferno", vmin=0, vmax=0.25)
        row[3].set_title(f"error of SR (0 to 0.25)\nat most {error.max():.2f}", fontsize=9)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    plots.save_figure(figure, path)


def main(argv=None):
    found = parser(__doc__)
    add_test_data(found)
    found.add_argument("--show", type=utils.int_between(1, 8), default=2, help="of each kind")
    args = found.parse_args(argv)
    network, rows = load(args.weights), []
    for person, (names, hr) in people(args.data, args.slices).items():
        shown = versions(network, hr, args)
        for i, name in enumerate(names):
            slice_ = {key: shown[key][i, 0] for key in ("HR", "bicubic", "SR")}
            ours, plain = (metrics.score(slice_[key], slice_["HR"]) for key in ("SR", "bicubic"))
            scores = dict(
                name=name, person=person, psnr=ours["psnr"], brain=ours["psnr_brain"],
                bicubic_brain=plain["psnr_brain"], gain=ours["psnr"] - plain["psnr"],
            )  # fmt: skip
            rows.append(scores | {key: image.numpy() for key, image in slice_.items()})
    rows = [row for row in rows if row["brain"] is not None]
    by_gain = sorted(rows, key=lambda row: row["gain"])
    by_brain = sorted(rows, key=lambda row: row["brain"])
    picked = [row | {"why": "least gain"} for row in by_gain[: args.show]]
    shown = {row["name"] for row in picked}
    others = [row for row in by_brain if row["name"] not in shown]
    picked += [row | {"why": "lowest PSNR"} for row in others[: args.show]]
    draw(picture(args, "worst"), picked)
    numbers = ("name", "psnr", "brain", "bicubic_brain", "gain")
    people_of = sorted({row["person"] for row in rows})
    gains = [np.mean([r["gain"] for r in rows if r["person"] == p]) for p in people_of]
    result = {
        "people": len(people_of),
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

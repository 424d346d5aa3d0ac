"""Where structure is invented or removed: a search for the sharpest disagreements, shown as found.

Fine detail (the frequencies that an LR slice of a quarter of the size does not hold) of SR and HR
is compared in windows of 5 mm. `invented`: SR has more of it than HR; `removed`: HR has more;
`wrong`: both have it, with opposite sign, as a line drawn where there is a gap.
"""

import numpy as np
from common import PIXEL, add_test_data, load, mean_sd, parser, people, picture, save, versions
from scipy.ndimage import gaussian_filter

import utils
from evaluation import plots

LOW, HIGH = 0.12, 0.35  # cycles per pixel: the LR slice ends at 0.125
WINDOW = 5 / PIXEL / 2.355  # pixels: a Gaussian of 5 mm full width at half maximum
KINDS = ("invented", "removed", "wrong")


def band(image: np.ndarray) -> np.ndarray:
    """The fine detail of a slice: the frequencies from LOW to HIGH, with soft edges."""
    frequency = np.hypot(np.fft.fftfreq(len(image))[:, None], np.fft.rfftfreq(image.shape[1]))
    passed = [1 / (1 + np.exp((edge - frequency) / 0.008)) for edge in (LOW, HIGH)]
    return np.fft.irfft2(np.fft.rfft2(image) * (passed[0] - passed[1]), image.shape)


def disagreement(sr: np.ndarray, hr: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """{kind: map of how much}, the detail of HR (local RMS), and its local correlation with SR."""
    a, b = band(sr), band(hr)
    local = [gaussian_filter(x, WINDOW) for x in (a * a, b * b, a * b)]
    ours, truth = (np.sqrt(np.maximum(x, 0)) for x in local[:2])
    maps = {
        "invented": ours - truth,
        "removed": truth - ours,
        "wrong": np.sqrt(np.maximum(-local[2], 0)),
    }
    return maps, truth, local[2] / (ours * truth + 1e-6)


def pick(found: list[dict], count: int) -> list[dict]:
    """The sharpest, at most two of a person and none beside another of the same slice."""
    picked = []
    for case in sorted(found, key=lambda case: -case["amount"]):
        near = any(
            case["name"].split("_")[0] == other["name"].split("_")[0]
            and np.hypot(case["y"] - other["y"], case["x"] - other["x"]) < 24
            for other in picked
        )
        same = sum(case["person"] == other["person"] for other in picked)
        if not near and same < 2 and len(picked) < count:
            picked.append(case)
    return picked


def draw(path, picked: dict[str, list[dict]], size: int = 28) -> None:
    """Rows of windows of 2 size x 2 size pixels: bicubic, SR, HR; three rows for each kind."""
    rows = [(kind, case) for kind in KINDS for case in picked[kind]]
    figure = plots.new_figure(1.65 * -(-len(rows) // 2))
    axes = figure.subplots(-(-len(rows) // 2), 6, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for n, (kind, case) in enumerate(rows):
        h, w = case["HR"].shape
        top = min(max(0, case["y"] - size), h - 2 * size)
        left = min(max(0, case["x"] - size), w - 2 * size)
        for column, name in enumerate(("bicubic", "SR", "HR")):
            axis = axes[n // 2, 3 * (n % 2) + column]
            part = case[name][top : top + 2 * size, left : left + 2 * size]
            axis.imshow(part, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.plot(case["x"] - left, case["y"] - top, "o", ms=22, mfc="none", mec="gold", mew=1)
            words = {"bicubic": f"{case['name']}: bicubic", "SR": f"SR ({kind})", "HR": "HR"}
            axis.set_title(words[name], fontsize=9)
    plots.save_figure(figure, path)


def main(argv=None):
    found = parser(__doc__)
    add_test_data(found)
    found.add_argument("--show", type=utils.int_between(1, 8), default=4, help="of each kind")
    args = found.parse_args(argv)
    network = load(args.weights)
    cases, shares, slices = {kind: [] for kind in KINDS}, {"bicubic": [], "SR": []}, 0
    for person, (names, hr) in people(args.data, args.slices).items():
        shown = {key: v[:, 0].numpy() for key, v in versions(network, hr, args).items()}
        counts = {"bicubic": np.zeros(5), "SR": np.zeros(5)}
        for i, name in enumerate(names):
            brain = gaussian_filter((shown["HR"][i] > 0.1).astype(float), 3) > 0.5
            for version, count in counts.items():
                maps, truth, relation = disagreement(shown[version][i], shown["HR"][i])
                rich = brain & (truth > 0.02)  # where there is detail to lose
                count += (
                    brain.sum(), (brain & (maps["invented"] > 0.02)).sum(), rich.sum(),
                    (rich & (maps["removed"] > 0.5 * truth)).sum(), (rich & (relation < 0)).sum(),
                )  # fmt: skip
                if version == "bicubic":
                    continue
                for kind, amount in maps.items():
                    y, x = np.unravel_index((amount * brain).argmax(), amount.shape)
                    case = {key: shown[key][i] for key in ("bicubic", "SR", "HR")}
                    case |= dict(name=name, person=person, y=int(y), x=int(x))
                    case["amount"] = float(amount[y, x])
                    cases[kind].append(case)
        slices += len(names)
        for version, (whole, more, rich, less, against) in counts.items():
            shares[version].append((more / whole, less / max(1, rich), against / max(1, rich)))
    picked = {kind: pick(found, args.show) for kind, found in cases.items()}
    draw(picture(args, "invented"), picked)
    result = {"people": len(shares["SR"]), "slices": slices}
    for version, found in shares.items():
        more, less, against = (mean_sd(np.array(column) * 100) for column in zip(*found))
        result[version] = {
            "percent_of_brain_with_invented_detail": more,
            "percent_of_detail_that_lost_half": less,
            "percent_of_detail_against_the_truth": against,
        }
        print(
            f"{version}: invented in {more['mean']:.2f} % of the brain; of its detail "
            f"{less['mean']:.1f} % lost half, {against['mean']:.1f} % against the truth"
        )
    numbers = ("name", "y", "x", "amount")
    for kind, found in picked.items():
        result[kind] = [{key: case[key] for key in numbers} for case in found]
    save(args, "invented", result)


if __name__ == "__main__":
    utils.run_main(main)

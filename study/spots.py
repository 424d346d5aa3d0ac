"""Small lesions that we put in ourselves: what comes back of their contrast and size.

Discs of 1 to 5 mm, brighter and darker than what is around them, are put into HR slices at random
places of even tissue. Each slice is degraded and upscaled with and without them; the difference is
what a result makes of the spot.
"""

import numpy as np
import torch
from common import (
    PIXEL,
    add_test_data,
    load,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
    versions,
)
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

import utils
from evaluation import plots

SIZES = (1, 2, 3, 4, 5)  # mm across
CONTRAST = 0.25  # of white
AWAY = 14  # pixels from a spot's middle that are looked at


def disc(shape, y: float, x: float, size: float) -> np.ndarray:
    """A disc of `size` mm: the share of each pixel that it covers."""
    fine, reach = 8, 6  # steps in a pixel; pixels about the middle, in which it lies
    top, left = round(y) - reach, round(x) - reach
    n = 2 * reach + 1
    steps = (np.arange(n * fine) + 0.5) / fine - 0.5
    inside = np.hypot((steps + top - y)[:, None], steps + left - x) * PIXEL <= size / 2
    cover = np.zeros(shape)
    cover[top : top + n, left : left + n] = inside.reshape(n, fine, n, fine).mean((1, 3))
    return cover


def places(image: np.ndarray, rng, count: int) -> list[tuple[int, int]]:
    """Random places in even tissue, neither black nor white, far enough from each other."""
    even = maximum_filter(image, 7) - minimum_filter(image, 7) < 0.2
    middle = gaussian_filter(image, 2)
    good = even & (middle > CONTRAST + 0.05) & (middle < 0.95 - CONTRAST)
    edge = AWAY + 1
    good[:edge] = good[-edge:] = good[:, :edge] = good[:, -edge:] = False
    found = []
    while good.any() and len(found) < count:
        candidates = np.argwhere(good)
        y, x = candidates[rng.integers(len(candidates))]
        good[max(0, y - 2 * AWAY) : y + 2 * AWAY, max(0, x - 2 * AWAY) : x + 2 * AWAY] = False
        found.append((int(y), int(x)))
    return found


def measure(change: np.ndarray, spot: np.ndarray) -> tuple[float, float]:
    """Contrast in the spot as a share of what was put in, and size (mm) at half of the peak.

    change: result with less result without the spot, divided by the contrast put in.
    """
    contrast = float((change * spot).sum() / spot.sum())
    peak = change.max()
    area = (change > peak / 2).sum() if peak > 0.05 else np.nan  # nothing there to measure
    return contrast, 2 * np.sqrt(area / np.pi) * PIXEL


def put_spots(names, hr: torch.Tensor, rng, count: int) -> tuple[torch.Tensor, list[dict]]:
    """The slices of a person with spots in them, and what was put where."""
    changed, spots = hr.clone(), []
    for i in range(len(names)):
        image = hr[i, 0].numpy()
        for y, x in places(image, rng, count):
            sign, size = int(rng.choice((-1, 1))), int(rng.choice(SIZES))
            cover = disc(image.shape, y + rng.uniform(-0.5, 0.5), x + rng.uniform(-0.5, 0.5), size)
            changed[i, 0] += torch.from_numpy(sign * CONTRAST * cover).float()
            spots.append(dict(slice=i, y=y, x=x, sign=sign, size=size, cover=cover))
    return (changed.clamp(0, 1) * 255).round() / 255, spots


def draw(path, rows: dict, example: dict) -> None:
    """Contrast and size against the true size, and one slice's spots with their sizes."""
    figure = plots.new_figure(6.6)
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.25))
    for column, (measured, title) in enumerate(
        (("contrast", "contrast that comes back"), ("size", "size that comes back (mm)"))
    ):
        axis = figure.add_subplot(grid[0, 3 * column : 3 * column + 3])
        for name, colour in (("HR", "k"), ("bicubic", "tab:gray"), ("SR", "tab:blue")):
            for sign, style in ((1, "-o"), (-1, "--s")):
                values = [rows[name][sign][size][measured]["mean"] for size in SIZES]
                values = [np.nan if value is None else value for value in values]
                label = f"{name}, {'bright' if sign > 0 else 'dark'}"
                axis.plot(SIZES, values, style, color=colour, label=label, ms=4)
        axis.set(xlabel="true size (mm)", title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    filled = [np.flatnonzero((example["HR"] > 0.05).any(axis)) for axis in (1, 0)]
    window = tuple(slice(max(0, i.min() - 3), i.max() + 4) for i in filled)
    for column, name in enumerate(("bicubic", "SR", "HR")):
        axis = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
        axis.imshow(example[name][window], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for s in example["spots"]:
            y, x = s["y"] - window[0].start, s["x"] - window[1].start
            axis.plot(x, y, "o", ms=15, mfc="none", mec="gold", mew=0.8)
            axis.text(
                x, y - 12, f"{s['size']} mm", color="gold", fontsize=9, ha="center", va="bottom"
            )
        axis.set(xticks=[], yticks=[], title=f"{name} ({example['name']})")
    plots.save_figure(figure, path)


def main(argv=None):
    found = parser(__doc__)
    add_test_data(found)
    found.add_argument("--spots", type=utils.int_between(1, 20), default=6, help="in a slice")
    args = found.parse_args(argv)
    network, rng = load(args.weights), np.random.default_rng(args.seed)
    measured, example, slices, spots_put = {}, {"spots": []}, 0, 0
    subjects = people(args.data, args.slices)
    for person, (names, hr) in subjects.items():
        changed, spots = put_spots(names, hr, rng, args.spots)
        before, after = versions(network, hr, args), versions(network, changed, args)
        slices, spots_put = slices + len(names), spots_put + len(spots)
        for s in spots:
            window = (
                slice(s["y"] - AWAY, s["y"] + AWAY + 1),
                slice(s["x"] - AWAY, s["x"] + AWAY + 1),
            )
            for name in ("HR", "bicubic", "SR"):
                change = (after[name] - before[name])[s["slice"], 0].numpy()[window]
                values = measure(s["sign"] * change / CONTRAST, s["cover"][window])
                key = name, s["sign"], s["size"]
                measured.setdefault(key, {}).setdefault(person, []).append(values)
        for i in range(len(names)):
            here = [s for s in spots if s["slice"] == i]
            central = len(names) / 4 <= i <= 3 * len(names) / 4 or len(names) < 4
            if len(here) > len(example["spots"]) and central:
                example = {name: after[name][i, 0].numpy() for name in ("bicubic", "SR", "HR")}
                example |= {"name": names[i], "spots": here}
    rows = {name: {1: {}, -1: {}} for name in ("HR", "bicubic", "SR")}
    for name in rows:
        for sign in (1, -1):
            for size in SIZES:
                by_person = measured.get((name, sign, size), {}).values()
                contrast = [np.mean([c for c, _ in values]) for values in by_person]
                across = [
                    np.mean([a for _, a in values if a > 0] or np.nan) for values in by_person
                ]
                number = sum(map(len, by_person))
                rows[name][sign][size] = {
                    "contrast": mean_sd(contrast), "size": mean_sd(across), "spots": number
                }  # fmt: skip
                if name != "HR":
                    print(
                        f"{name}, {'bright' if sign > 0 else 'dark'}, {size} mm ({number} spots): "
                        f"contrast {text(mean_sd(contrast))}, size {text(mean_sd(across))} mm"
                    )
    draw(picture(args, "spots"), rows, example)
    names = {1: "bright", -1: "dark"}
    named = {name: {names[s]: v for s, v in by.items()} for name, by in rows.items()}
    counts = {"people": len(subjects), "slices": slices, "spots": spots_put}
    save(args, "spots", counts | {"contrast_put_in": CONTRAST} | named)


if __name__ == "__main__":
    utils.run_main(main)

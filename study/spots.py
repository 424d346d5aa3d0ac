"""Small lesions that we put in ourselves: what comes back of their contrast and size.

Balls of 1 to 5 mm, brighter and darker than what is around them, are put into the true scans at
random places of even tissue. Each scan is degraded and upscaled with and without them; the
difference in a ball's middle slice is what a result makes of it.
"""

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

import utils
from evaluation.figures import content_window
from evaluation.panels import DPI, Panel, draw_panels, save_sheet
from evaluation.plots import NORMAL, SMALL, new_figure
from inference import Upscaler
from study.common import (
    BICUBIC,
    COLOURS,
    OURS,
    PIXEL,
    TRUTH,
    looked_at,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
    versions,
)

SIZES = (1, 2, 3, 4, 5)  # mm across
SIGNS = {1: "bright", -1: "dark"}
CONTRAST = 0.25  # of white
AWAY = 14  # pixels from a spot's middle that are looked at
REACH = 6  # voxels from its middle, in which it lies


def ball(shape, at, size: float, slice_mm: float = 1.0) -> np.ndarray:
    """A ball of `size` mm about `at` (slice, row, column): the share of each voxel that it covers,
    of a scan of this shape (S, H, W) that reaches REACH voxels beyond it in the plane."""
    fine, corner = 6, [round(x) - REACH for x in at]
    n = 2 * REACH + 1
    steps = (np.arange(n * fine) + 0.5) / fine - 0.5
    z, y, x = ((steps + c - a) * mm for c, a, mm in zip(corner, at, (slice_mm, PIXEL, PIXEL)))
    inside = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= (size / 2) ** 2
    share = inside.reshape(n, fine, n, fine, n, fine).mean((1, 3, 5))
    cover = np.zeros((shape[0] + 2 * n, *shape[1:]), np.float32)  # it may reach beyond the slices
    z, y, x = corner[0] + n, *corner[1:]
    cover[z : z + n, y : y + n, x : x + n] = share
    return cover[n:-n]


def places(volume: np.ndarray, i: int, rng, count: int) -> list[tuple[int, int]]:
    """Random places in even tissue of slice i, neither black nor white, far from each other."""
    near = volume[max(0, i - 2) : i + 3]
    even = (maximum_filter(near, 7) - minimum_filter(near, 7)).max(0) < 0.25
    middle = gaussian_filter(volume[i], 2)
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


def put_spots(person, rng, count: int) -> tuple[torch.Tensor, list[dict]]:
    """A person's slices with spots in them, and what was put where."""
    hr, spots = person.hr[:, 0].numpy(), []
    changed = hr.copy()
    for k, i in enumerate(person.places):
        for y, x in places(hr, i, rng, count):
            sign, size = int(rng.choice((-1, 1))), int(rng.choice(SIZES))
            at = (i, y + rng.uniform(-0.5, 0.5), x + rng.uniform(-0.5, 0.5))
            cover = ball(hr.shape, at, size, person.mm[0])
            changed += sign * CONTRAST * cover
            window = np.s_[y - AWAY : y + AWAY + 1, x - AWAY : x + AWAY + 1]
            spots.append(dict(slice=k, y=y, x=x, sign=sign, size=size, cover=cover[i][window],
                              window=window))  # fmt: skip
    return torch.from_numpy(changed.clip(0, 1) * 255).round()[:, None] / 255, spots


def mean_of(by_person: dict) -> dict:
    """Contrast and size over people, of {person: [(contrast, size) of each spot]}."""
    contrast = [np.mean([c for c, _ in values]) for values in by_person.values()]
    across = [np.mean([a for _, a in v if a > 0] or np.nan) for v in by_person.values()]
    number = sum(map(len, by_person.values()))
    return {"contrast": mean_sd(contrast), "size": mean_sd(across), "spots": number}


def curves(rows: dict):
    """Contrast and size against the true size, as an image."""
    figure = new_figure(3.3)
    titles = {"contrast": "contrast that comes back, as a share",
              "size": "size that comes back (mm)"}  # fmt: skip
    for axis, (measured, title) in zip(figure.subplots(1, 2), titles.items()):
        for name in (TRUTH, BICUBIC, OURS):
            for sign, style in (("bright", "-o"), ("dark", "--s")):
                values = [rows[name][sign][size][measured]["mean"] for size in SIZES]
                values = [np.nan if value is None else value for value in values]
                label = f"{name}, {sign}"
                axis.plot(SIZES, values, style, color=COLOURS[name], label=label, ms=4)
        axis.set(xlabel="true size (mm)", ylim=(0, None), xticks=SIZES)
        axis.set_title(title, fontsize=NORMAL)
        axis.grid(alpha=0.3)
    lines = axis.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, fontsize=SMALL)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())


def draw(path, rows: dict, example: dict) -> None:
    """The curves, and one slice's spots with their sizes."""
    plot, panels = curves(rows), []
    for name, image in example["shown"].items():
        shrunk = example["shown"][TRUTH].shape[0] / image.shape[0]
        rings = [(s["y"] / shrunk, s["x"] / shrunk, 7 / shrunk, f"{s['size']} mm")
                 for s in example["spots"]]  # fmt: skip
        window, tall = content_window(example["shown"][TRUTH]), image.shape[0] / image.shape[1]
        panels.append(Panel(image, name, tall, window, rings=tuple(rings)))
    sheet, _ = draw_panels([panels], example["name"], plot.height / DPI)
    sheet.paste(plot, (0, sheet.height - plot.height))
    save_sheet(sheet, path)


def main(argv=None):
    found = parser(__doc__)
    found.add_argument("--spots", type=utils.int_between(1, 20), default=6, help="in a slice")
    args = found.parse_args(argv)
    upscaler, rng, everybody = (
        Upscaler(args.weights),
        np.random.default_rng(args.seed),
        people(args),
    )
    measured, example, spots_put = {}, {"spots": []}, 0
    for person in everybody:
        changed, spots = put_spots(person, rng, args.spots)
        before = looked_at(upscaler, person, args)
        after = versions(upscaler, changed, person.distance, args)
        after = {name: stack[person.places] for name, stack in after.items()}
        spots_put += len(spots)
        for s in spots:
            for name in (TRUTH, BICUBIC, OURS):
                change = (after[name][s["slice"]] - before[name][s["slice"]])[s["window"]]
                values = measure(s["sign"] * change / CONTRAST, s["cover"])
                key = name, SIGNS[s["sign"]], s["size"]
                measured.setdefault(key, {}).setdefault(person.name, []).append(values)
        n = len(person.places)
        for i in range(n // 4, n - n // 4):
            here = [s for s in spots if s["slice"] == i]
            if len(here) > len(example["spots"]):
                shown = {name: stack[i] for name, stack in after.items()}
                name = f"{person.name}, slice {person.numbers[i]}"
                example = {"shown": shown, "spots": here, "name": name}
    rows = {
        name: {
            sign: {size: mean_of(measured.get((name, sign, size), {})) for size in SIZES}
            for sign in SIGNS.values()
        }
        for name in (TRUTH, BICUBIC, OURS)
    }
    for name in (BICUBIC, OURS):
        for sign, sizes in rows[name].items():
            for size, row in sizes.items():
                print(f"{name}, {sign}, {size} mm ({row['spots']} spots): contrast "
                      f"{text(row['contrast'])}, size {text(row['size'])} mm")  # fmt: skip
    if example["spots"]:
        draw(picture(args, "spots"), rows, example)
    slices = sum(len(person.places) for person in everybody)
    counts = {"people": len(everybody), "slices": slices, "spots": spots_put}
    save(args, "spots", counts | {"contrast_put_in": CONTRAST} | rows)


if __name__ == "__main__":
    utils.run_main(main)

"""Where structure is invented or lost: a search for the sharpest disagreements, shown as found.

Fine detail (the frequencies that a slice of a quarter of the size does not hold) of the result and
of the truth is compared in windows of 5 mm. `invented`: the result has more of it; `lost`: the
truth has more; `opposite`: both have it, with opposite sign, as a line drawn where there is a gap.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

import utils
from evaluation.panels import LINE, NORMAL, Panel, draw_panels, px, save_sheet, write_text
from inference import Upscaler
from study.common import (
    BICUBIC,
    OURS,
    PIXEL,
    TRUTH,
    VERSIONS,
    looked_at,
    mean_sd,
    parser,
    people,
    picture,
    save,
)

LOW, HIGH = 0.12, 0.35  # cycles per pixel: the LR slice ends at 0.125
WINDOW = 5 / PIXEL / 2.355  # pixels: a Gaussian of 5 mm full width at half maximum
KINDS = ("invented", "lost", "opposite")


def band(image: np.ndarray) -> np.ndarray:
    """The fine detail of a slice: the frequencies from LOW to HIGH, with soft edges."""
    frequency = np.hypot(np.fft.fftfreq(len(image))[:, None], np.fft.rfftfreq(image.shape[1]))
    passed = [1 / (1 + np.exp((edge - frequency) / 0.008)) for edge in (LOW, HIGH)]
    return np.fft.irfft2(np.fft.rfft2(image) * (passed[0] - passed[1]), image.shape)


def disagreement(sr: np.ndarray, hr: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """{kind: map of how much}, the true detail (local RMS), its local correlation with SR's."""
    a, b = band(sr), band(hr)
    local = [gaussian_filter(x, WINDOW) for x in (a * a, b * b, a * b)]
    ours, truth = (np.sqrt(np.maximum(x, 0)) for x in local[:2])
    maps = {
        "invented": ours - truth,
        "lost": truth - ours,
        "opposite": np.sqrt(np.maximum(-local[2], 0)),
    }
    return maps, truth, local[2] / (ours * truth + 1e-6)


def pick(found: list[dict], count: int) -> list[dict]:
    """The sharpest, at most two of a person, and these at different places."""
    picked = []
    for case in sorted(found, key=lambda case: -case["amount"]):
        own = [other for other in picked if other["person"] == case["person"]]
        near = any(np.hypot(case["y"] - o["y"], case["x"] - o["x"]) < 24 for o in own)
        if not near and len(own) < 2 and len(picked) < count:
            picked.append(case)
    return picked


def draw(path, picked: dict[str, list[dict]], size: int = 28) -> None:
    """Windows of 2 size x 2 size pixels: bicubic, this network, truth; two cases in a row."""
    panels, titles = [], []
    for kind, found in picked.items():
        for case in found:
            h, w = case[TRUTH].shape
            corner = [min(max(0, case[k] - size), n - 2 * size) for k, n in (("y", h), ("x", w))]
            window = (corner[0] / h, corner[1] / w, min(1, 2 * size / h), min(1, 2 * size / w))
            titles.append(f"{case['person']}, slice {case['number']}: {kind}")
            ring = (case["y"], case["x"], 9, "")
            for name in (BICUBIC, OURS, TRUTH):
                panels.append(Panel(case[name], f"\n{name}", h / w, window, rings=(ring,)))
    rows = [panels[i : i + 6] for i in range(0, len(panels), 6)]
    rows[-1] += [Panel(None)] * (6 - len(rows[-1]))
    sheet, grid = draw_panels(rows)
    for i, title in enumerate(titles):  # one line above the three of a case
        left, top, right, _ = grid[i // 2][i % 2 * 3 + 1]
        write_text(sheet, (left + right) / 2, top - px(0.03 + LINE), title, "md", NORMAL)
    save_sheet(sheet, path)


def shares(sr: np.ndarray, hr: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Counts of pixels of a slice: brain; of it with invented detail; with detail to lose; of these
    with less than half of it; with detail of the opposite sign."""
    maps, truth, relation = disagreement(sr, hr)
    rich = brain & (truth > 0.02)
    chosen = (brain, brain & (maps["invented"] > 0.02), rich, rich & (maps["lost"] > 0.5 * truth),
              rich & (relation < 0))  # fmt: skip
    return np.array([x.sum() for x in chosen])


def cases_of(shown: dict, i: int, brain: np.ndarray) -> dict:
    """{kind: the sharpest disagreement of slice i}."""
    found = {}
    for kind, amount in disagreement(shown[OURS][i], shown[TRUTH][i])[0].items():
        y, x = np.unravel_index((amount * brain).argmax(), amount.shape)
        found[kind] = dict(y=int(y), x=int(x), amount=float(amount[y, x]))
        found[kind] |= {name: shown[name][i] for name in (BICUBIC, OURS, TRUTH)}
    return found


def main(argv=None):
    found = parser(__doc__)
    found.add_argument("--show", type=utils.int_between(1, 8), default=4, help="of each kind")
    args = found.parse_args(argv)
    upscaler, everybody = Upscaler(args.weights), people(args)
    cases, counts = {kind: [] for kind in KINDS}, {name: [] for name in VERSIONS}
    for person in everybody:
        shown = looked_at(upscaler, person, args)
        brains = [gaussian_filter((x > 0.1).astype(float), 3) > 0.5 for x in shown[TRUTH]]
        for name, of_people in counts.items():
            each = [shares(*images) for images in zip(shown[name], shown[TRUTH], brains)]
            brain, more, rich, less, against = np.maximum(1e-9, np.sum(each, 0))
            of_people.append((more / brain, less / rich, against / rich))
        for i, number in enumerate(person.numbers):
            for kind, case in cases_of(shown, i, brains[i]).items():
                cases[kind].append(case | dict(person=person.name, number=number))
    picked = {kind: pick(found, args.show) for kind, found in cases.items()}
    draw(picture(args, "invented"), picked)
    result = {"people": len(everybody), "slices": sum(len(p.places) for p in everybody)}
    for name, of_people in counts.items():
        more, less, against = (mean_sd(np.array(column) * 100) for column in zip(*of_people))
        result[name] = {
            "percent_of_brain_with_invented_detail": more,
            "percent_of_detail_that_lost_half": less,
            "percent_of_detail_against_the_truth": against,
        }
        print(
            f"{name}: invented in {more['mean']:.2f} % of the brain; of its detail "
            f"{less['mean']:.1f} % lost half, {against['mean']:.1f} % against the truth"
        )
    numbers = ("person", "number", "y", "x", "amount")
    for kind, found in picked.items():
        result[kind] = [{key: case[key] for key in numbers} for case in found]
    save(args, "invented", result)


if __name__ == "__main__":
    utils.run_main(main)

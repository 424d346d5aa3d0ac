"""Tissue volumes: cerebrospinal fluid, grey and white matter of truth, interpolation and result.

Each is classified on its own by dipy's hidden Markov random field, inside the brain of the true
slices. Dice with the classes of the truth and the signed error of each volume; `truth, noise of
2 %` shows how much the classifier itself moves. --thick: the same for slices four times as thick.
"""

import numpy as np

import utils
from evaluation import plots, volume_scores
from inference import Upscaler
from study.common import (
    BICUBIC,
    COLOURS,
    INPUT,
    OURS,
    PIXEL,
    TRUTH,
    Person,
    looked_at,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
)

TISSUES = ("CSF", "grey matter", "white matter")
NOISY = "truth, noise of 2 %"
CUBIC = "cubic"  # in the place of bicubic, through the slices
THICK = 4  # times as thick as the slices of the truth


def classify(image: np.ndarray, brain: np.ndarray, beta: float, seed: int) -> np.ndarray:
    """0 outside the brain, 1 to 3 for TISSUES, of slices (N, H, W) side by side in one plane.

    Side by side, since their distance is many times that of their pixels.
    """
    from dipy.segment.tissue import TissueClassifierHMRF

    np.random.seed(seed)  # of the noise that dipy adds to the background
    inside = np.where(brain, np.clip(image, 1 / 255, 1), 0)
    inside = np.pad(inside, ((0, 0), (0, 0), (1, 1)))
    plane = inside.transpose(1, 0, 2).reshape(inside.shape[1], -1, 1).astype(np.float64)
    _, classes, _ = TissueClassifierHMRF(verbose=False).classify(
        plane, 3, beta, tolerance=1e-4, max_iter=40
    )
    classes = classes.reshape(inside.shape[1], inside.shape[0], inside.shape[2])
    return np.where(brain, classes.transpose(1, 0, 2)[..., 1:-1], 0).astype(np.uint8)


def compare(shown: dict, millilitres: float, args) -> dict:
    """{version: {tissue: Dice, volume, error}} of one person's slices (N, H, W)."""
    hr = shown[TRUTH]
    brain = hr > 0.02
    rows, columns = np.where(brain.any(0))
    box = np.s_[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    noise = np.random.default_rng(args.seed).normal(0, 0.02, hr.shape)
    found, truth = {}, None
    for name, image in ({TRUTH: hr, NOISY: hr + noise} | shown).items():
        classes = classify(image[box], brain[box], args.beta, args.seed)
        truth = classes if truth is None else truth
        found[name] = {}
        for k, tissue in enumerate(TISSUES, 1):
            a, b = classes == k, truth == k
            found[name][tissue] = {
                "dice": 2 * (a & b).sum() / (a.sum() + b.sum()),
                "millilitres": a.sum() * millilitres,
                "error_percent": 100 * (a.sum() - b.sum()) / b.sum(),
            }
    return found


def made_thick(person: Person) -> tuple:
    """A person's volume (right, front, up), it with thick slices, and its voxel sizes in mm."""
    count = len(person.hr) // THICK * THICK
    volume = person.hr[:count, 0].numpy()[::-1, ::-1].transpose(2, 1, 0)
    thick = volume_scores.make_thick(volume, "slab-1", THICK)
    return volume, thick, (person.mm[1], person.mm[1], person.mm[0])


def made_thick_and_thin(upscaler, person: Person) -> dict[str, np.ndarray]:
    """Truth, cubic interpolation and result of a person's slices made thick, those looked at."""
    volume, thick, sizes = made_thick(person)
    count = volume.shape[2]
    found = {
        TRUTH: volume,
        CUBIC: volume_scores.interpolate(thick, THICK, 3),
        OURS: volume_scores.made_thin(upscaler, thick, sizes, THICK),
    }
    places = [place for place in person.places if place < count]
    return {name: x.transpose(2, 1, 0)[::-1, ::-1][places].clip(0, 1) for name, x in found.items()}


def draw(path, found: dict[str, dict], names) -> None:
    """Bland-Altman: error of each person's volume against the mean of both volumes."""
    figure = plots.new_figure(3.7)
    for axis, tissue in zip(figure.subplots(1, 3), TISSUES):
        for name, colour in zip(names, (COLOURS[BICUBIC], COLOURS[OURS])):
            pairs = [(f[TRUTH][tissue]["millilitres"], f[name][tissue]) for f in found.values()]
            x = [(truth + v["millilitres"]) / 2 for truth, v in pairs]
            y = np.array([v["error_percent"] for _, v in pairs])
            axis.plot(x, y, "o", color=colour, label=f"{name}, a person each", ms=4)
            spread = 1.96 * y.std(ddof=1) if len(y) > 1 else 0
            axis.axhline(y.mean(), color=colour, lw=1, label="mean")
            for limit, label in ((y.mean() - spread, "mean ± 1.96 sd"), (y.mean() + spread, None)):
                axis.axhline(limit, color=colour, lw=0.8, ls=":", label=label)
        axis.axhline(0, color="black", lw=0.6)
        axis.set(xlabel="mean of both volumes (ml)")
        axis.set_title(tissue, fontsize=plots.NORMAL)
    figure.axes[0].set_ylabel("difference from the truth (%)")
    lines = axis.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2, fontsize=plots.SMALL)
    plots.save_figure(figure, path)


def main(argv=None):
    parse = parser(__doc__)
    add = parse.add_argument
    add("--thick", action="store_true", help="slices made thick (by slab-1) instead of shrunk")
    add("--beta", type=float, default=0.1, help="smoothness of the classes")
    args = parse.parse_args(argv)
    args.degradation = "slab-1" if args.thick else args.degradation
    upscaler, found = Upscaler(args.weights), {}
    for person in people(args):
        if args.thick:
            shown = made_thick_and_thin(upscaler, person)
        else:
            shown = looked_at(upscaler, person, args)
            shown.pop(INPUT)
        apart = np.ptp(person.places) / max(1, len(person.places) - 1) or 1
        found[person.name] = compare(shown, PIXEL**2 * apart * person.mm[0] / 1000, args)
    name = f"tissue-{THICK}x1" if args.thick else "tissue"
    names = (CUBIC if args.thick else BICUBIC, OURS)
    draw(picture(args, name), found, names)
    result = {"people": len(found), "slices_of_each": args.slices}
    for version in (NOISY, *names):
        result[version] = {}
        for tissue in TISSUES:
            values = [f[version][tissue] for f in found.values()]
            dice, error = (mean_sd([v[k] for v in values]) for k in ("dice", "error_percent"))
            result[version][tissue] = {"dice": dice, "error_percent": error}
            print(f"{version}, {tissue}: Dice {text(dice, 3)}, volume {text(error, 1)} %")
    save(args, name, result | {"by_person": found})


if __name__ == "__main__":
    utils.run_main(main)

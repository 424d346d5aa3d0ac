"""Tissue volumes: cerebrospinal fluid, grey and white matter of HR, bicubic upsampling and SR.

Each is classified on its own by dipy's hidden Markov random field, inside the brain of the HR
slices. Dice with the classes of HR and the signed error of each volume; `HR, noise of 2 %` shows
how much the classifier itself moves. --volumes: the same for slices four times as thick, with a
through-plane network.
"""

from pathlib import Path

import numpy as np
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

import utils
from degradation import scale_name
from evaluation import plots
from inference import through_plane

TISSUES = ("CSF", "grey matter", "white matter")
NOISY = "HR, noise of 2 %"


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
    hr = shown["HR"]
    brain = hr > 0.02
    rows, columns = np.where(brain.any(0))
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    brain = brain[:, box[0], box[1]]
    noise = np.random.default_rng(args.seed).normal(0, 0.02, hr.shape)
    found, truth = {}, None
    for name, image in ({"HR": hr, NOISY: hr + noise} | shown).items():
        classes = classify(image[:, box[0], box[1]], brain, args.beta, args.seed)
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


def from_slices(args):
    """For each person: name, versions, millilitres of one pixel."""
    network = load(args.weights)
    for person, (names, hr) in people(args.data, args.slices).items():
        numbers = [int(name.rsplit("_", 1)[1]) for name in names]
        distance = (numbers[-1] - numbers[0]) / max(1, len(numbers) - 1) or 1
        shown = {k: v[:, 0].numpy() for k, v in versions(network, hr, args).items() if k != "LR"}
        yield person, shown, PIXEL**2 * distance / 1000


def thick_slices(volume: np.ndarray, network) -> dict:
    """HR, cubic interpolation and SR of a volume (x, y, z) made thick along z."""
    factor = network.scale[0]
    thick = through_plane.make_thick(volume, "slab-1", factor)
    found = {
        "HR": volume[:, :, : factor * thick.shape[2]],
        "bicubic": through_plane.interpolate(thick, factor, 3),
        "SR": through_plane.through_plane(network, thick),
    }
    return {name: image.clip(0, 1) for name, image in found.items()}


def from_volumes(args):
    """The same for thick slices, of the volumes in a folder."""
    import nibabel

    network = load(args.weights)
    paths = sorted(args.volumes.glob("*.nii.gz"))
    if not paths:
        raise utils.DataError(f"{args.volumes}: no .nii.gz volumes")
    for path in paths:
        scan = nibabel.as_closest_canonical(nibabel.load(path))
        volume = scan.get_fdata(dtype=np.float32)
        volume = (volume / np.percentile(volume[volume > volume.mean()], 99.8)).clip(0, 1)
        box = [np.where((volume > 0.1).any(axis))[0] for axis in ((1, 2), (0, 2), (0, 1))]
        volume = volume[tuple(slice(i.min(), i.max() + 1) for i in box)]
        found = thick_slices(volume, network)
        n = found["HR"].shape[2]
        places = np.linspace(n // 10, n - 1 - n // 10, args.slices).astype(int)
        shown = {k: v[:, :, places].transpose(2, 0, 1) for k, v in found.items()}
        distance = (places[-1] - places[0]) / max(1, len(places) - 1) or 1
        pixel = float(np.prod(scan.header.get_zooms()[:3]))
        yield path.name.split("_")[0], shown, pixel * distance / 1000


def draw(path, found: dict[str, dict]) -> None:
    """Bland-Altman: error of each person's volume against the mean of both volumes."""
    figure = plots.new_figure(3.4)
    for axis, tissue in zip(figure.subplots(1, 3), TISSUES):
        for name, colour in (("bicubic", "tab:gray"), ("SR", "tab:blue")):
            pairs = [(f["HR"][tissue]["millilitres"], f[name][tissue]) for f in found.values()]
            x = [(truth + v["millilitres"]) / 2 for truth, v in pairs]
            y = np.array([v["error_percent"] for _, v in pairs])
            axis.plot(x, y, "o", color=colour, label=name, ms=4)
            spread = 1.96 * y.std(ddof=1) if len(y) > 1 else 0
            axis.axhline(y.mean(), color=colour, lw=1)
            for limit in (y.mean() - spread, y.mean() + spread):
                axis.axhline(limit, color=colour, lw=0.8, ls=":")
        axis.axhline(0, color="k", lw=0.6)
        axis.set(title=tissue, xlabel="mean of both volumes (ml)")
    figure.axes[0].set_ylabel("difference from HR (%)")
    figure.axes[0].legend(framealpha=1)  # over lines
    plots.save_figure(figure, path)


def main(argv=None):
    parse = parser(__doc__)
    add_test_data(parse)
    parse.add_argument(
        "--volumes",
        type=Path,
        help="folder of .nii.gz test volumes, for thick slices (LR by slab-1)",
    )
    parse.add_argument("--beta", type=float, default=0.1, help="smoothness of the classes")
    args = parse.parse_args(argv)
    source = from_volumes(args) if args.volumes else from_slices(args)
    found = {person: compare(shown, volume, args) for person, shown, volume in source}
    scale = scale_name(load(args.weights).scale)
    name = "tissue" + (f"-{scale}" if args.volumes else "")
    draw(picture(args, name), found)
    result = {"people": len(found), "slices_of_each": args.slices}
    result |= {"degradation": "slab-1"} if args.volumes else {}
    for version in (NOISY, "bicubic", "SR"):
        result[version] = {}
        for tissue in TISSUES:
            values = [f[version][tissue] for f in found.values()]
            dice, error = (mean_sd([v[k] for v in values]) for k in ("dice", "error_percent"))
            result[version][tissue] = {"dice": dice, "error_percent": error}
            print(f"{version}, {tissue}: Dice {text(dice, 3)}, volume {text(error, 1)} %")
    save(args, name, result | {"by_person": found})


if __name__ == "__main__":
    utils.run_main(main)

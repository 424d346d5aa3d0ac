"""Real lesions of multiple sclerosis: what is left of their contrast, area and number.

--data holds NAME_FLAIR.nii.gz, NAME_T1.nii.gz and the consensus masks NAME_lesions.nii.gz on one
grid. Axial slices are degraded and upscaled. For each lesion that HR shows: its contrast with what
is around it; its area beyond half of HR's contrast; found, if that area is at least half of HR's.
For FLAIR also one threshold for all of a person's brain, chosen on HR for the best Dice with the
mask: lesions that it touches, and false findings.
"""

from pathlib import Path

import nibabel
import numpy as np
import torch
from common import load, mean_sd, parser, picture, save, text, versions
from scipy.ndimage import binary_dilation, find_objects, label

import utils
from degradation import crop_to_scale
from evaluation import plots

SIGN = {"FLAIR": 1, "T1": -1}  # lesions are brighter, or darker
SIZES = {"up to 20 mm3": (3, 20), "20 to 100 mm3": (20, 100), "over 100 mm3": (100, 1e9)}
SHOWN = ("HR", "bicubic", "SR")


def read(folder: Path, name: str, contrast: str) -> np.ndarray:
    """Axial slices (N, H, W) of a volume, front up."""
    path = folder / f"{name}_{contrast}.nii.gz"
    with utils.as_data_error(path):
        scan = nibabel.as_closest_canonical(nibabel.load(path))
        return scan.get_fdata(dtype=np.float32).transpose(2, 1, 0)[:, ::-1]


def scaled(volume: np.ndarray) -> np.ndarray:
    """Values from 0 to 1; white is high enough that lesions are not cut off."""
    return (volume / np.percentile(volume[volume > volume.mean()], 99.98)).clip(0, 1)


def each_lesion(shown: dict, mask: np.ndarray, sign: int) -> list[dict]:
    """Contrast and area of each lesion that HR shows, in HR and as shares of that."""
    lesions, _ = label(mask, np.ones((3, 3, 3)))
    found = []
    for number, place in enumerate(find_objects(lesions), 1):
        around = tuple(slice(max(0, s.start - 5), s.stop + 5) for s in place)
        own, any_lesion = lesions[around] == number, mask[around]
        near = binary_dilation(own, iterations=2) & ~(any_lesion & ~own)
        ring = binary_dilation(own, iterations=4) & ~binary_dilation(any_lesion, iterations=1)
        ring &= shown["HR"][around] > 0.05
        if own.sum() < 3 or ring.sum() < 10:
            continue
        values = {name: sign * shown[name][around] for name in SHOWN}
        contrast = {n: float(v[own].mean() - np.median(v[ring])) for n, v in values.items()}
        if contrast["HR"] < 0.05:
            continue
        level = np.median(values["HR"][ring]) + contrast["HR"] / 2
        area = {n: int(((v > level) & near).sum()) for n, v in values.items()}
        lesion = {
            name: (contrast[name], area[name], 2 * area[name] >= area["HR"]) for name in SHOWN
        }
        found.append(lesion | {"size": int(own.sum())})
    return found


def one_threshold(shown: dict, mask: np.ndarray) -> dict:
    """Lesions touched by, and false findings of, the threshold that fits the mask best in HR."""

    def dice(image, level):
        return 2 * ((image > level) & mask).sum() / ((image > level).sum() + mask.sum())

    levels = np.linspace(0.4, 1, 61)
    level = levels[np.argmax([dice(shown["HR"], x) for x in levels])]
    lesions, count = label(mask, np.ones((3, 3, 3)))
    away = ~binary_dilation(mask, iterations=2)
    found = {"level": float(level), "lesions": count}
    for name in SHOWN:
        above = shown[name] > level
        false, number = label(above & away, np.ones((3, 3, 3)))
        sizes = np.bincount(false.ravel(), minlength=number + 1)[1:]
        found[name] = {
            "dice": float(dice(shown[name], level)),
            "touched_percent": 100 * (len(np.unique(lesions[above])) - 1) / count,
            "false_findings_of_5_mm3": int((sizes >= 5).sum()),
        }
    return found


def draw(path, examples: list[tuple[str, dict, np.ndarray]]) -> None:
    figure = plots.new_figure(3.1 * len(examples))
    for row, (title, shown, mask) in zip(
        figure.subplots(len(examples), 3, squeeze=False), examples
    ):
        rows, columns = np.where(shown["HR"] > 0.05)
        window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        for axis, name in zip(row, ("bicubic", "SR", "HR")):
            axis.imshow(shown[name][window], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"{title}: {name}")
        row[2].contour(mask[window], [0.5], colors="gold", linewidths=0.7)
    plots.save_figure(figure, path)


def summary(by_person: dict[str, list[dict]]) -> dict:
    """Over persons, for each size of lesion and each version; contrast, area as shares of HR's."""
    found = {}
    for words, (least, most) in (SIZES | {"all": (3, 1e9)}).items():
        chosen = [[x for x in rows if least <= x["size"] < most] for rows in by_person.values()]
        chosen = [rows for rows in chosen if rows]
        found[words] = {"lesions": sum(map(len, chosen)), "people": len(chosen)}
        for name in SHOWN[1:]:
            sums = [[np.sum([x[n] for x in rows], 0) for n in (name, "HR")] for rows in chosen]
            contrast, area, seen = (mean_sd(column) for column in zip(*(a / b for a, b in sums)))
            found[words][name] = {
                "contrast": contrast, "area": area, "found": seen,
                "number_found": sum(x[name][2] for rows in chosen for x in rows),
            }  # fmt: skip
    return found


def main(argv=None):
    parse = parser(__doc__, slices=300)
    parse.add_argument("--data", type=Path, required=True, help="folder of volumes and masks")
    args = parse.parse_args(argv)
    network, result, examples = load(args.weights), {}, []
    names = sorted(path.name.split("_")[0] for path in args.data.glob("*_lesions.nii.gz"))
    if not names:
        raise utils.DataError(f"{args.data}: no NAME_lesions.nii.gz")
    for contrast, sign in SIGN.items():
        lesions, thresholds = {}, {}
        for name in names:
            mask = crop_to_scale(read(args.data, name, "lesions") > 0.5, network.scale)
            inside = np.flatnonzero(mask.any((1, 2)))
            part = slice(inside[0], min(inside[-1] + 1, inside[0] + args.slices))
            hr = scaled(read(args.data, name, contrast))[part]
            hr = crop_to_scale(torch.from_numpy(hr.copy())[:, None], network.scale)
            shown = versions(network, hr, args)
            shown = {key: shown[key][:, 0].numpy() for key in SHOWN}
            mask = mask[part]
            lesions[name] = each_lesion(shown, mask, sign)
            if sign > 0:
                thresholds[name] = one_threshold(shown, mask)
            if name == names[-1]:
                fullest = mask.sum((1, 2)).argmax()
                example = {key: image[fullest] for key, image in shown.items()}
                examples.append((contrast, example, mask[fullest]))
        result[contrast] = summary(lesions) | ({"one_threshold": thresholds} if thresholds else {})
        for size, values in result[contrast].items():
            for version in SHOWN[1:] if "lesions" in values else ():
                v = values[version]
                print(
                    f"{contrast}, {size} ({values['lesions']}), {version}: contrast "
                    f"{text(v['contrast'])}, area {text(v['area'])}, found {text(v['found'])}"
                )
        for name, values in thresholds.items():
            print(f"{name}: one threshold {values}")
    draw(picture(args, "lesions"), examples)
    save(args, "lesions", {"people": len(names)} | result)


if __name__ == "__main__":
    utils.run_main(main)

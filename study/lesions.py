"""Real lesions of multiple sclerosis: what is left of their contrast, area and number.

--data holds NAME_FLAIR.nii.gz, NAME_T1.nii.gz and the consensus masks NAME_lesions.nii.gz on one
grid. Axial slices are degraded and upscaled. For each lesion that the truth shows: its contrast
with what is around it; its area beyond half of the true contrast; found, if that area is at least
half of the true one. For FLAIR also one threshold for all of a person's brain, chosen on the truth
for the best Dice with the mask: lesions that it touches, and false findings.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation, find_objects, label

import scans
import utils
from degradation import crop_to_scale
from evaluation.figures import content_window
from evaluation.panels import Panel, draw_panels, save_sheet
from inference import Upscaler
from study.common import (
    ROOT,
    SCALE,
    TRUTH,
    VERSIONS,
    mean_sd,
    parser,
    picture,
    save,
    text,
    versions,
)

SIGN = {"FLAIR": 1, "T1": -1}  # lesions are brighter, or darker
SIZES = {"up to 20 mm3": (3, 20), "20 to 100 mm3": (20, 100), "over 100 mm3": (100, 1e9)}
SHOWN = (TRUTH, *VERSIONS)


def read(folder: Path, name: str, contrast: str) -> tuple[np.ndarray, float]:
    """Axial slices (S, H, W) of a volume, and how far they are apart in LR pixels."""
    scan = scans.read(folder / f"{name}_{contrast}.nii.gz", force=True)  # masks are labels
    view = ("axial", False)
    slices = np.ascontiguousarray(scan.slices(scan.intensities(), view))
    return crop_to_scale(slices, SCALE), scan.distance(view) / SCALE[1]


def scaled(volume: np.ndarray) -> np.ndarray:
    """Values from 0 to 1; white is high enough that lesions are not cut off."""
    return (volume / np.percentile(volume[volume > volume.mean()], 99.98)).clip(0, 1)


def each_lesion(shown: dict, mask: np.ndarray, sign: int) -> list[dict]:
    """Contrast and area of each lesion that the truth shows, in it and as shares of that."""
    lesions, _ = label(mask, np.ones((3, 3, 3)))
    found = []
    for number, place in enumerate(find_objects(lesions), 1):
        around = tuple(slice(max(0, s.start - 5), s.stop + 5) for s in place)
        own, any_lesion = lesions[around] == number, mask[around]
        near = binary_dilation(own, iterations=2) & ~(any_lesion & ~own)
        ring = binary_dilation(own, iterations=4) & ~binary_dilation(any_lesion, iterations=1)
        ring &= shown[TRUTH][around] > 0.05
        if own.sum() < 3 or ring.sum() < 10:
            continue
        values = {name: sign * shown[name][around] for name in SHOWN}
        contrast = {n: float(v[own].mean() - np.median(v[ring])) for n, v in values.items()}
        if contrast[TRUTH] < 0.05:
            continue
        level = np.median(values[TRUTH][ring]) + contrast[TRUTH] / 2
        area = {n: int(((v > level) & near).sum()) for n, v in values.items()}
        lesion = {
            name: (contrast[name], area[name], 2 * area[name] >= area[TRUTH]) for name in SHOWN
        }
        found.append(lesion | {"size": int(own.sum())})
    return found


def one_threshold(shown: dict, mask: np.ndarray) -> dict:
    """Lesions touched by, and false findings of, the threshold that fits the mask best in truth."""

    def dice(image, level):
        return 2 * ((image > level) & mask).sum() / ((image > level).sum() + mask.sum())

    levels = np.linspace(0.4, 1, 61)
    level = levels[np.argmax([dice(shown[TRUTH], x) for x in levels])]
    lesions, count = label(mask, np.ones((3, 3, 3)))
    away = ~binary_dilation(mask, iterations=2)
    found = {"level": float(level), "lesions": count}
    for name in SHOWN:
        above = shown[name] > level
        false, number = label(above & away, np.ones((3, 3, 3)))
        sizes = np.bincount(false.ravel(), minlength=number + 1)[1:]
        found[name] = {
            "dice": float(dice(shown[name], level)),
            "touched_percent": 100 * np.count_nonzero(np.unique(lesions[above])) / count,
            "false_findings_of_5_mm3": int((sizes >= 5).sum()),
        }
    return found


def draw(path, examples: list[tuple[str, dict, np.ndarray]]) -> None:
    """A slice of each contrast in all versions, the lesions outlined."""
    rows = []
    for contrast, shown, mask in examples:
        tall, window = mask.shape[0] / mask.shape[1], content_window(shown[TRUTH])
        rows.append([Panel(image, f"{contrast}, {name}", tall, window, outline=mask)
                     for name, image in shown.items()])  # fmt: skip
    save_sheet(draw_panels(rows)[0], path)


def summary(by_person: dict[str, list[dict]]) -> dict:
    """Over people, by size of lesion and version; contrast and area as shares of the truth's."""
    found = {}
    for words, (least, most) in (SIZES | {"all": (3, 1e9)}).items():
        chosen = [[x for x in rows if least <= x["size"] < most] for rows in by_person.values()]
        chosen = [rows for rows in chosen if rows]
        found[words] = {"lesions": sum(map(len, chosen)), "people": len(chosen)}
        for name in VERSIONS:
            sums = [[np.sum([x[n] for x in rows], 0) for n in (name, TRUTH)] for rows in chosen]
            shares = np.array([a / b for a, b in sums]).reshape(
                -1, 3
            )  # of nobody, if there are none
            contrast, area, seen = map(mean_sd, shares.T)
            found[words][name] = {
                "contrast": contrast, "area": area, "found": seen,
                "number_found": sum(x[name][2] for rows in chosen for x in rows),
            }  # fmt: skip
    return found


def measure(upscaler, name: str, contrast: str, args) -> tuple:
    """(each lesion, of one threshold or None, an example: versions of a slice and its mask)."""
    mask = read(args.data, name, "lesions")[0] > 0.5
    hr, distance = read(args.data, name, contrast)
    hr = torch.from_numpy(scaled(hr).astype(np.float32))[:, None]
    shown = versions(upscaler, hr, distance, args)
    chosen = np.flatnonzero(mask.any((1, 2)))
    part = slice(chosen[0], min(chosen[-1] + 1, chosen[0] + args.slices))
    shown, mask = {key: stack[part] for key, stack in shown.items()}, mask[part]
    sign, fullest = SIGN[contrast], mask.sum((1, 2)).argmax()
    example = {key: stack[fullest] for key, stack in shown.items()}, mask[fullest]
    one = one_threshold(shown, mask) if sign > 0 else None
    return each_lesion(shown, mask, sign), one, example


def main(argv=None):
    parse = parser(__doc__, slices=300)
    parse.set_defaults(pictures=ROOT / "runs")  # of people whose pictures are not in the clone
    args = parse.parse_args(argv)
    upscaler, result, examples = Upscaler(args.weights), {}, []
    names = sorted(path.name.split("_")[0] for path in args.data.glob("*_lesions.nii.gz"))
    if not names:
        raise utils.DataError(f"{args.data}: no NAME_lesions.nii.gz; give --data")
    for contrast in SIGN:
        found = {name: measure(upscaler, name, contrast, args) for name in names}
        result[contrast] = summary({name: lesions for name, (lesions, *_) in found.items()})
        for size, values in result[contrast].items():
            for version in VERSIONS:
                v = values[version]
                print(
                    f"{contrast}, {size} ({values['lesions']}), {version}: contrast "
                    f"{text(v['contrast'])}, area {text(v['area'])}, found {text(v['found'])}"
                )
        examples.append((contrast, *found[names[-1]][2]))
        if SIGN[contrast] > 0:
            result[contrast]["one_threshold"] = {name: one for name, (_, one, _) in found.items()}
    draw(picture(args, "lesions"), examples)
    save(args, "lesions", {"people": len(names)} | result)


if __name__ == "__main__":
    utils.run_main(main)

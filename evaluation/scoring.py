"""Scores of networks and of bicubic upsampling on the same LR slices, and their tables."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import modules
from degradation import (
    ENTRIES,
    NAMED,
    Scale,
    crop_to_scale,
    degrade,
    describe_degradation,
    make_consistent,
    measured_scale,
    middle_slices,
    parse_degradation,
)
from evaluation.figures import Example
from evaluation.metrics import score, summarise
from inference import tiling
from utils import progress

CONSISTENT = ", consistent"  # ends the name of a row that is projected onto the LR slice
# The degradations that validation slices take in turns in training with `wide`.
WIDE = (*NAMED, *NAMED, "blur-2", "blur-1", "rician-2", "jpeg-75", "zerofill-2")
THROUGH = ("slab-1", "slab-0.8", "blur-1", "slab-1+rician-2")  # the same, through thick slices


def taking_turns(name: str, scale: Scale) -> tuple[str, ...]:
    """The degradations that one of training stands for at validation. Raises UsageError."""
    if name == "wide":
        return THROUGH if 1 in scale else WIDE
    if name == "mixed":
        return NAMED
    parse_degradation(name)
    return (name,)


def as_tensor(pixels: np.ndarray, scale: Scale = (4, 4), device="cpu") -> torch.Tensor:
    """A slice (H, W), uint8 or float32 in [0, 1], as (1, 1, H', W') in [0, 1], cut to the scale."""
    pixels = pixels if pixels.dtype == np.float32 else pixels.astype(np.float32) / 255
    hr = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return crop_to_scale(hr, scale)[None, None]


def batches(shapes, scale: Scale) -> list[list[int]]:
    """The numbers of slices of one size, few enough at a time to fit into memory."""
    by_size, found = defaultdict(list), []
    for i, (h, w) in enumerate(np.asarray(shapes).tolist()):
        by_size[h // scale[0], w // scale[1]].append(i)
    for (h, w), numbers in by_size.items():
        n = max(1, tiling.PART_PIXELS // max(1, h * w))
        found += [numbers[k : k + n] for k in range(0, len(numbers), n)]
    return found


def evenly_spaced(slices, most: int):
    """At most this many slices, evenly chosen."""
    step = np.linspace(0, len(slices) - 1, min(most, len(slices)))
    return slices.take(np.unique(step.round().astype(int)))


def slice_scores(sr: torch.Tensor, hr: torch.Tensor, again, lr: torch.Tensor, measured) -> dict:
    """The scores of one SR slice (H, W). again: it, degraded again; None where that is unknown.

    measured: of `metrics.measured_power`.
    """
    lr_rmse = None if again is None else float(((again - lr) ** 2).mean() ** 0.5)
    return score(sr, hr, measured) | {"lr_rmse": lr_rmse}


@torch.inference_mode()
def scan_descriptions(network, slices, degradation, scale: Scale, device, told=False, chosen=None):
    """What the network finds, or is told, about how each slice was made: (N, ENTRIES) or None.

    One description for all slices of a volume, the mean over those of its middle; the others may
    show little of the brain. A picture is on its own. chosen: only of the scans of these slices.
    """
    if not network.told:
        return None
    truth = describe_degradation(degradation, scale).to(device) if told else None
    scans = defaultdict(list)
    for i in range(len(slices)):
        scans[slices.place_of(i)[0]].append(i)
    if chosen is not None:
        scans = {name: scans[name] for name in {slices.place_of(i)[0] for i in chosen}}
    found = torch.zeros(len(slices), ENTRIES, device=device)
    for numbers in scans.values():
        middle = [numbers[place] for place in middle_slices(len(numbers))]
        lr = [degrade(as_tensor(slices[i], scale, device), degradation, scale, seed=i)
              for i in middle]  # fmt: skip
        found[numbers] = torch.cat([network.describe(one, truth) for one in lr]).mean(0)
    return found


def score_slices(
    networks: dict, slices, degradation, scale: Scale = (4, 4), device="cpu", *,
    consistent=False, told=False, lr_slices=None, word="scoring",
) -> dict[str, list[dict]]:  # fmt: skip
    """{name: scores of each slice} for bicubic upsampling and every network, on the same LR.

    consistent: a second row for each network, its slices projected onto the LR they came from.
    told: networks that take a description are given the true one. lr_slices: ready LR slices
    (uint8) instead of a degradation. A row has name, subject, the metrics of `metrics.score`, the
    gains over bicubic in dB, and `lr_rmse`, how far the SR slice, degraded again, is from the LR
    slice: what a network invents against the scan shows there.
    """
    networks = {"bicubic": modules.Interpolation(scale).to(device), **networks}
    described = {}
    if lr_slices is None:
        for name, network in networks.items():
            described[name] = scan_descriptions(network, slices, degradation, scale, device, told)
    measured = measured_scale(degradation, scale) if lr_slices is None else scale
    waiting = {}
    bar = progress(total=len(slices), desc=word, unit="slice")
    with ThreadPoolExecutor(2) as pool:  # scores the last batch while the next one is upscaled
        for numbers in batches(slices.shape, scale):
            hr = torch.cat([as_tensor(slices[i], scale, device) for i in numbers])
            if lr_slices is None:  # noise is a slice's own, whatever the batch
                pairs = zip(hr.split(1), numbers)
                lr = torch.cat([degrade(one, degradation, scale, seed=i) for one, i in pairs])
            else:
                lr = torch.cat([as_tensor(lr_slices[i], (1, 1), device) for i in numbers])
            for name, network in networks.items():
                found = described.get(name)
                description = None if found is None else found[numbers]
                results = {name: tiling.upscale(network, lr, description)}
                if consistent and name != "bicubic":
                    agrees = make_consistent(results[name], lr, degradation, scale)
                    results[name + CONSISTENT] = agrees
                for label, sr in results.items():
                    sr, again = sr.clamp(0, 1), [None] * len(numbers)
                    if lr_slices is None:  # of ready ones nobody knows how
                        again = degrade(sr, degradation, scale, rounded=False)[:, 0].cpu()
                    parts = zip(numbers, sr[:, 0].cpu(), hr[:, 0].cpu(), again, lr[:, 0].cpu())
                    for i, *images in parts:
                        waiting[label, i] = pool.submit(slice_scores, *images, measured)
            for i in numbers[:-1]:
                waiting["bicubic", i].result()  # not too many in memory at a time
            bar.update(len(numbers))
        bar.close()
        rows = defaultdict(list)
        for label, i in sorted(waiting, key=lambda key: key[1]):
            about = {"name": str(slices.name[i]), "subject": str(slices.subject[i])}
            rows[label].append(about | waiting[label, i].result())
    return with_gains({name: rows[name] for name in dict.fromkeys(key[0] for key in waiting)})


def with_gains(rows: dict) -> dict:
    """Adds to each row what it gains over bicubic upsampling of the same LR slice, in dB."""
    for scores in rows.values():
        for row, before in zip(scores, rows["bicubic"]):
            row["gain"] = row["psnr"] - before["psnr"]
            inside = row["psnr_brain"] is not None
            row["gain_brain"] = row["psnr_brain"] - before["psnr_brain"] if inside else None
    return rows


def table_of(rows: dict, networks: dict) -> dict:
    """{name: summary} of the scores of slices: mean and sd over subjects, the worst slice.

    The first row, an interpolation, is what the others are compared with.
    """
    table, first = {}, next(iter(rows.values()))
    for label, scores in rows.items():
        subjects = [row["subject"] for row in scores]
        table[label] = summary = summarise(scores, subjects, None if scores is first else first)
        if scores is not first:
            summary["worst_name"] = scores[summary["worst_slice"]]["name"]
        network = networks.get(label.removesuffix(CONSISTENT))
        if network is not None:
            summary |= {"parameters": modules.parameters(network), "mmac": modules.mmac(network)}
    return table


def gains_table(tables: dict[str, dict]) -> str:
    """The text table of {degradation: {name: summary}}: gains over its first row, the worst."""
    first = next(iter(next(iter(tables.values()))))
    lines = [["LR by", "", f"over {first} (dB)", "in brain", "worst", f"below {first}", "power"]]
    for degradation, table in tables.items():
        before = table[first]
        for name, summary in table.items():
            if name == first:
                continue
            cells = [degradation, name]
            for metric in ("psnr", "psnr_brain"):
                means = summary[metric]["mean"], before[metric]["mean"]
                cells.append("-" if None in means else f"{means[0] - means[1]:+.2f}")
            power = summary["power_ratio"]["mean"]
            cells += [f"{summary['worst_gain']:+.2f}", f"{summary['below_bicubic']:.1%}"]
            lines.append([*cells, "-" if power is None else f"{power:.3f}"])
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def example_of(network, slices, i, degradation, rows, device="cpu", told=False) -> Example:
    """Slice i as a figure shows it. rows: of `score_slices`, the network's second."""
    scale = network.scale
    hr = as_tensor(slices[i], scale, device)
    lr = degrade(hr, degradation, scale, seed=i)
    found = scan_descriptions(network, slices, degradation, scale, device, told, [i])
    description = None if found is None else found[i : i + 1]
    bicubic = tiling.upscale(modules.Interpolation(scale).to(device), lr)
    images = lr, bicubic, tiling.upscale(network, lr, description), hr
    images = [image.clamp(0, 1)[0, 0].cpu().numpy() for image in images]
    before, after = list(rows.values())[:2]
    name = f"{slices.subject[i]}, {Path(slices.name[i]).name}"
    aspect = scale[0] / scale[1]
    return Example(name, *images, (before[i], after[i]), aspect)

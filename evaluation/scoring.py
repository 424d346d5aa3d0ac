"""Scores of networks and of bicubic upsampling on the same LR slices, and their tables."""

import itertools
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import modules
from dataset import spread_evenly
from degradation import (
    Scale,
    crop_to_scale,
    degrade,
    describe_degradation,
    make_consistent,
    measured_scale,
    middle_slices,
)
from evaluation.figures import Example
from evaluation.metrics import as_table, score, summarise
from inference import tiling
from utils import progress

CONSISTENT = ", consistent"  # ends the name of a row that is projected onto the LR slice
OTHER = 2**20  # seeds of neighbours that are not scored themselves start here


def evenly_spaced(slices, most: int):
    """At most this many slices, evenly chosen."""
    return slices.take(spread_evenly(np.arange(len(slices)), most))


def slice_scores(sr: torch.Tensor, hr: torch.Tensor, again, lr: torch.Tensor, measured) -> dict:
    """The scores of one SR slice (H, W). again: it, degraded again; measured: see `score`."""
    return score(sr, hr, measured) | {"lr_rmse": float(((again - lr) ** 2).mean() ** 0.5)}


# --- LR slices with their neighbours --------------------------------------------------------------


@dataclass
class VolumePart:
    """Some slices of one volume and plane, to be scored: LR (n, 5, h, w), HR (n, 1, H, W), which
    of their four neighbours are there (n, 4), and how far apart slices are in LR pixels; 0:
    unknown, or of no interest."""

    numbers: list[int]
    lr: torch.Tensor
    hr: torch.Tensor
    present: torch.Tensor
    distance: float
    scale: Scale


def parts_of(slices, degradation, scale: Scale, device, alone=False, only=None):
    """Yield the slices of each volume and plane in turn, degraded, as VolumeParts.

    Noise is a slice's own, whatever is scored beside it. alone: without neighbours. only: the
    volume and plane of this slice alone.
    """
    keys = list(zip(slices.volume.tolist(), slices.plane.tolist()))
    for key, numbers in itertools.groupby(range(len(slices)), key=keys.__getitem__):
        numbers = list(numbers)
        if only is not None and only not in numbers:
            continue
        stack, places = slices.stack(numbers[0]), slices.place[numbers].tolist()
        around = [p + k for p in places for k in (-2, -1, 1, 2)] if not alone else []
        seeds = {p: [OTHER + p, *key] for p in around if 0 <= p < len(stack)}
        seeds |= dict(zip(places, numbers))
        hr = {p: np.ascontiguousarray(stack[p], np.float32) / 255 for p in seeds}
        hr = {p: torch.from_numpy(x).to(device)[None, None] for p, x in hr.items()}
        hr = {p: crop_to_scale(x, scale) for p, x in hr.items()}
        lr = {p: degrade(x, degradation, scale, seed=seeds[p])[0, 0] for p, x in hr.items()}
        near, there = with_neighbours_of(lr, places, alone)
        hr = torch.cat([hr[p] for p in places])
        yield VolumePart(
            numbers, near, hr, there.to(device), slices.distance(numbers[0], scale), scale
        )


def with_neighbours_of(lr: dict, places: list[int], alone: bool) -> tuple:
    """Slices with two neighbours on each side (n, 5, h, w), and which of these are there (n, 4).

    lr: {place: slice (h, w)}; a missing one is black. alone: as if all neighbours were missing.
    """
    black, around = torch.zeros_like(next(iter(lr.values()))), {} if alone else lr
    near = [[around.get(p + k, black) if k else lr[p] for k in range(-2, 3)] for p in places]
    near = [torch.stack(slices) for slices in near]
    there = [[p + k in around for k in (-2, -1, 1, 2)] for p in places]
    return torch.stack(near), torch.tensor(there, dtype=torch.float32)


@torch.inference_mode()
def found_in(network, part: VolumePart, truth=None) -> torch.Tensor:
    """How these slices were made, (n, FOUND): one description for all of them, as they are of one
    scan, the mean over its middle. truth (1, FOUND): what the network is told."""
    middle = middle_slices(len(part.lr))
    found = torch.cat([network.describe(part.lr[i : i + 1], truth, part.scale) for i in middle])
    return found.mean(0, keepdim=True).expand(len(part.lr), -1)


def description_of(network, part: VolumePart):
    """What a network is given to know of these slices (n, ENTRIES), nothing being told; or None."""
    if not network.conditioned:
        return None
    return modules.full_description(found_in(network, part), seen_of(network, part), part.distance)


def seen_of(network, part: VolumePart) -> torch.Tensor:
    """Which neighbours a network sees of these slices, (n, 4)."""
    return part.present * part.present.new_tensor(
        [abs(k) <= network.neighbours for k in (-2, -1, 1, 2)]
    )


def seen_by(network, lr: torch.Tensor) -> torch.Tensor:
    """Of slices with two neighbours on each side (n, 5, h, w) those that a network looks at."""
    return lr[:, 2 - network.neighbours : 3 + network.neighbours]


def grouped_by_size(parts, limit: int):
    """Yield lists of parts of slices of one size, with about so many LR pixels together."""
    waiting = defaultdict(list)
    for part in parts:
        size = tuple(part.lr.shape[-2:])
        waiting[size].append(part)
        if sum(len(p.lr) for p in waiting[size]) * size[0] * size[1] >= limit:
            yield waiting.pop(size)
    yield from waiting.values()


# --- scores ---------------------------------------------------------------------------------------


def score_slices(
    upscalers: dict, slices, degradation, scale: Scale = (4, 4), *, consistent=False, alone=False,
    word="scoring",
) -> dict[str, list[dict]]:  # fmt: skip
    """{name: scores of each slice} for bicubic upsampling and every Upscaler, on the same LR.

    An Upscaler that was given a degradation is told it. consistent: a second row for each, its
    slices projected onto the LR they came from. alone: slices without their neighbours. A row has
    name, subject, the metrics of `metrics.score`, the gains over bicubic in dB, and `lr_rmse`, how
    far the SR slice, degraded again, is from the LR slice: what a network invents against the scan
    shows there.
    """
    device = next(iter(upscalers.values())).device
    bicubic, waiting = modules.Interpolation(scale).to(device), {}
    measured = measured_scale(degradation, scale)
    bar = progress(total=len(slices), desc=word, unit="slice")
    with ThreadPoolExecutor(2) as pool:  # scores the last batch while the next one is upscaled
        parts = parts_of(slices, degradation, scale, device, alone)
        for several in grouped_by_size(parts, tiling.PART_PIXELS):
            numbers = [i for part in several for i in part.numbers]
            hr, own = (
                torch.cat(x) for x in zip(*((p.hr, modules.middle_of(p.lr)) for p in several))
            )
            results = {"bicubic": bicubic(own)}
            for name, upscaler in upscalers.items():
                sr = torch.cat([enlarged(upscaler, part, scale) for part in several])
                results[name] = sr
                if consistent:
                    results[name + CONSISTENT] = make_consistent(sr, own, degradation, scale)
            for label, sr in results.items():
                sr = sr.clamp(0, 1)
                again = degrade(sr, degradation, scale, rounded=False)[:, 0].cpu()
                images = zip(numbers, sr[:, 0].cpu(), hr[:, 0].cpu(), again, own[:, 0].cpu())
                for i, *of_slice in images:
                    waiting[label, i] = pool.submit(slice_scores, *of_slice, measured)
            for i in numbers[:-1]:
                waiting["bicubic", i].result()  # not too many in memory at a time
            bar.update(len(numbers))
        bar.close()
        rows = defaultdict(list)
        for label, i in sorted(waiting, key=lambda key: key[1]):
            about = {"name": str(slices.name[i]), "subject": str(slices.subject[i])}
            rows[label].append(about | waiting[label, i].result())
    return with_gains(rows)


def enlarged(upscaler, part: VolumePart, scale: Scale) -> torch.Tensor:
    """SR slices (n, 1, H, W) of a part, a few at a time."""
    network, given = upscaler.network, upscaler.given(scale)
    truth = None if given is None else describe_degradation(given, scale).to(upscaler.device)
    found, present = found_in(network, part, truth), seen_of(network, part)
    most = tiling.slices_at_a_time(*part.lr.shape[-2:], upscaler.device)
    some = zip(*(x.split(most) for x in (seen_by(network, part.lr), found, present)))
    return torch.cat([upscaler.enlarge(lr, scale, *of, part.distance)[0] for lr, *of in some])


def with_gains(rows: dict) -> dict:
    """Adds to each row what it gains over bicubic upsampling of the same LR slice, in dB."""
    for scores in rows.values():
        for row, before in zip(scores, rows["bicubic"]):
            row["gain"] = row["psnr"] - before["psnr"]
            inside = row["psnr_brain"] is not None
            row["gain_brain"] = row["psnr_brain"] - before["psnr_brain"] if inside else None
    return rows


def table_of(rows: dict, upscalers: dict, scale: Scale) -> dict:
    """{name: summary} of the scores of slices: mean and sd over subjects, the worst slice.

    The first row, an interpolation, is what the others are compared with.
    """
    table, first = {}, next(iter(rows.values()))
    for label, scores in rows.items():
        subjects = [row["subject"] for row in scores]
        table[label] = summary = summarise(scores, subjects, None if scores is first else first)
        if scores is not first:
            summary["worst_name"] = scores[summary["worst_slice"]]["name"]
        upscaler = upscalers.get(label.removesuffix(CONSISTENT))
        if upscaler is not None:
            network = upscaler.network
            summary |= {"parameters": modules.parameters(network)}
            summary["mmac"] = modules.mmac(network, scale=scale)
    return table


def gains_table(tables: dict[str, dict]) -> str:
    """The text table of {degradation: {name: summary}}: gains over its first row, the worst."""
    first = next(iter(next(iter(tables.values()))))
    lines = [["LR by", "", f"over {first} (dB)", "in brain", "worst", "below"]]
    for degradation, table in tables.items():
        before = table[first]
        for name, summary in table.items():
            if name == first:
                continue
            cells = [degradation, name]
            for metric in ("psnr", "psnr_brain"):
                means = summary[metric]["mean"], before[metric]["mean"]
                cells.append("-" if None in means else f"{means[0] - means[1]:+.2f}")
            lines.append(
                [*cells, f"{summary['worst_gain']:+.2f}", f"{summary['below_bicubic']:.1%}"]
            )
    return as_table(lines)


def example_of(upscaler, slices, i, degradation, scale, rows) -> Example:
    """Slice i as a figure shows it. rows: of `score_slices`, the network's second."""
    (part,) = parts_of(slices, degradation, scale, upscaler.device, only=i)
    at = part.numbers.index(i)
    own, sr = modules.middle_of(part.lr[at : at + 1]), enlarged(upscaler, part, scale)[at : at + 1]
    bicubic = modules.Interpolation(scale).to(upscaler.device)(own)
    images = own, bicubic, sr, part.hr[at : at + 1]
    images = [image.clamp(0, 1)[0, 0].cpu().numpy() for image in images]
    before, after = list(rows.values())[:2]
    name = f"{slices.subject[i]}, {Path(slices.name[i]).name}"
    return Example(name, *images, (before[i], after[i]), scale[0] / scale[1])

"""A picture or a scan taken as the truth: shrunk, upscaled, scored (predict.py --simulate)."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import modules
from degradation import crop_to_scale, degrade, full_name
from evaluation.figures import simulation_figure
from evaluation.metrics import METRICS, psnr_of, score
from inference.error_map import INTERVAL
from inference.plan import Plan
from inference.upscaler import Upscaler, normalised
from scans import Scan
from utils import DataError, atomic_write, note


@dataclass
class Simulation:
    """What came of it: how it was shrunk, scores of bicubic and network for each slice and all
    together, what the network found, and the slice with most head in it: (LR, bicubic, SR, HR,
    expected error or None), in [0, 1]."""

    degradation: str
    rows: list[tuple[dict, dict]]
    scores: dict
    about: dict
    shown: int
    images: tuple
    plane: str

    def example(self, picture: Scan) -> Scan:
        """The result of a picture, as the picture stores its values."""
        black, white = picture.black_and_white(picture.intensities())
        values = self.images[2].clip(0) * np.float32(white - black) + np.float32(black)
        out = picture.to_stored(values, picture.empty_like(values.shape).dtype)
        return picture.resampled(out, self.about)


def score_stack(upscaler: Upscaler, scan: Scan, plan: Plan, degradation: str, source) -> Simulation:
    """Shrink the slices of a plane, upscale them, score them one by one and all together."""
    scale, view = (plan.scale, plan.scale), (plan.plane, False)
    degradation = full_name(degradation, scale)
    data = scan.intensities()
    inside, _ = normalised(scan.slices(data, view), scan.black_and_white(data))
    hr = torch.from_numpy(crop_to_scale(inside, scale))[:, None]
    if not hr.numel():
        raise DataError(f"{source}: is too small to be shrunk by {plan.scale}")
    lr = torch.cat([degrade(x, degradation, scale, seed=i) for i, x in enumerate(hr.split(1))])
    distance = scan.distance(view)
    distance = distance and distance / plan.scale
    found = upscaler(lr[:, 0].numpy(), scale, distance)
    sr, errors = found if upscaler.calibrations else (found, None)
    bicubic, rows = modules.Interpolation(scale), []
    for i in range(len(hr)):
        images = bicubic(lr[i : i + 1])[0, 0], torch.from_numpy(sr[i])
        rows.append(tuple(score(x, hr[i, 0]) for x in images))
    shown = int((hr > 0.05).float().mean((1, 2, 3)).argmax())
    images = lr[shown, 0], bicubic(lr[shown : shown + 1])[0, 0], sr[shown], hr[shown, 0]
    images = (*map(np.asarray, images), None if errors is None else errors[shown])
    described = upscaler.describe(lr[:, 0].numpy(), scale)
    about = upscaler.about(described, scale, lr[:, 0].numpy(), lr[:, 0].numpy())
    scores = rows[0] if scan.is_picture else scan_scores(source, rows, plan.plane)
    scores = [{k: v for k, v in one.items() if v is not None} for one in scores]
    if errors is not None:
        head = hr[:, 0].numpy() > 0.05
        near = abs(sr.clip(0, 1) - hr[:, 0].numpy()) <= INTERVAL * errors
        about["ShareWithinInterval"] = float(near[head].mean()) if head.any() else None
    return Simulation(degradation, rows, dict(zip(("Bicubic", "Network"), scores)), about, shown,
                      images, "" if scan.is_picture else plan.plane)  # fmt: skip


def scan_scores(source: Path, rows: list, plane: str) -> list[dict]:
    """Scores of bicubic and network: means over the slices with head in them."""
    # The volume as a whole: PSNR of the mean squared error of all voxels.
    whole = [psnr_of(float(np.mean([row[k]["mse"] for row in rows]))) for k in (0, 1)]
    head = [row for row in rows if row[0]["psnr_brain"] is not None] or rows
    means = []
    for k in (0, 1):
        values = {m: [row[k][m] for row in head if row[k].get(m) is not None] for m in METRICS}
        means.append({m: float(np.mean(v)) if v else None for m, v in values.items()})
    plural = "" if len(head) == 1 else "s"
    note(f"{source}: {len(head)} {plane} slice{plural}; PSNR of the whole volume: "
         f"bicubic {whole[0]:.2f} dB, network {whole[1]:.2f} dB")  # fmt: skip
    return means


def draw_simulation(path: Path, scan: Scan, found: Simulation) -> Path:
    """Write the figure of the slice with most head in it."""
    title = scan.path.name + (f" {found.plane} {found.shown}" if found.plane else "")
    *images, expected = found.images
    simulation_figure(
        path, *images, found.rows[found.shown], title=title, expected=expected,
        aspect=scan.aspect((found.plane or "axial", False)),
    )  # fmt: skip
    return path


def write_score_csv(path: Path, rows: list) -> Path:
    """Write the scores of each slice as a table."""
    names = [m for m in METRICS if m in rows[0][0]]
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        heads = [f"{who}_{m}" for who in ("bicubic", "network") for m in names]
        writer.writerow(["slice", *heads])
        for i, row in enumerate(rows):
            writer.writerow([i, *(row[k][m] for k in (0, 1) for m in names)])
    return path

"""A rival without a network: 9x9 filters by ridge regression, one for each of 24 kinds of edges.

An LR pixel's neighbourhood of 9x9 gives its 16 HR pixels by a linear filter, chosen by the edge's
direction (8) and strength (3), as RAISR does (Romano et al., 2017). `rivals.py` trains and runs it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import dataset
from degradation import degrade
from evaluation.scoring import evenly_spaced
from modules import Interpolation
from study.common import ROOT

SIDE, DIRECTIONS, STRENGTHS = 9, 8, 3
RIDGE = 1e-3  # of the neighbourhoods' mean energy


def neighbourhoods(lr: torch.Tensor) -> torch.Tensor:
    """The 9x9 pixels about each pixel, less the middle one's value: (N, H W, 81)."""
    edge = SIDE // 2
    pixels = F.unfold(F.pad(lr, [edge] * 4, mode="replicate"), SIDE).transpose(1, 2)
    return pixels - pixels[..., pixels.shape[-1] // 2, None]


def edges(lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction (0 ... 7) and strength of the edge at each pixel, (N, H W), by structure tensor."""
    padded = F.pad(lr, [1] * 4, mode="replicate")
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    products = torch.cat((across * across, down * down, across * down), 1)
    xx, yy, xy = F.avg_pool2d(F.pad(products, [1] * 4, mode="replicate"), 3, 1).flatten(2).unbind(1)
    angle = torch.atan2(2 * xy, xx - yy) / (2 * torch.pi) + 0.5  # 0 to 1 for half a turn
    return (angle * DIRECTIONS).long().clamp(0, DIRECTIONS - 1), (xx + yy).sqrt()


def kinds(lr: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The number of each pixel's filter, (N, H W)."""
    direction, strength = edges(lr)
    return direction * STRENGTHS + torch.bucketize(strength, limits)


def sub_pixels(hr: torch.Tensor) -> torch.Tensor:
    """(N, 1, 4 H, 4 W) -> (N, H W, 16)."""
    return F.pixel_unshuffle(hr, 4).flatten(2).transpose(1, 2)


def training_slices(folder: Path, most: int) -> torch.Tensor:
    """Slices (N, 1, H, W) in [0, 1] of a folder of pictures of one size, evenly chosen."""
    parts, _ = dataset.load_parts(data=folder, split=False, cache=ROOT / "runs/cache", quiet=True)
    slices = evenly_spaced(parts["all"], most)
    pixels = np.stack([slices[i] for i in range(len(slices))])
    return torch.from_numpy(pixels)[:, None].float() / 255


def train_filters(folder: Path, degradation: str, seed: int, most: int = 320):
    """The function from LR to SR, (H, W) arrays, that these training slices give."""
    hr, interpolate = training_slices(folder, most), Interpolation()
    lr = degrade(hr, degradation, seed=seed)
    strength = edges(lr)[1]
    strength = strength[strength > 0.02]
    limits = torch.quantile(
        strength[:: max(1, len(strength) // 100000)], torch.tensor([1 / 3, 2 / 3])
    )
    filters = torch.zeros(DIRECTIONS * STRENGTHS, SIDE**2, 16)
    energy = [torch.zeros(SIDE**2, SIDE**2) for _ in filters]
    answers = [torch.zeros(SIDE**2, 16) for _ in filters]
    for part, truth in zip(lr.split(16), hr.split(16)):
        seen = neighbourhoods(part).flatten(0, 1)
        missing = sub_pixels(truth - interpolate(part)).flatten(0, 1)
        kind = kinds(part, limits).flatten()
        for k in range(len(filters)):
            x, y = seen[kind == k], missing[kind == k]
            energy[k] += x.T @ x
            answers[k] += x.T @ y
    for k, (a, b) in enumerate(zip(energy, answers)):
        ridge = RIDGE * a.trace() / len(a) + 1e-6
        filters[k] = torch.linalg.solve(a + ridge * torch.eye(len(a)), b)

    def run(lr: np.ndarray) -> np.ndarray:
        part = torch.from_numpy(lr)[None, None]
        seen, kind = neighbourhoods(part)[0], kinds(part, limits)[0]
        added = torch.empty(len(seen), 16)
        for k in kind.unique().tolist():
            here = kind == k
            added[here] = seen[here] @ filters[k]
        added = added.T.reshape(1, 16, *lr.shape)
        return (interpolate(part) + F.pixel_shuffle(added, 4))[0, 0].clamp(0, 1).numpy()

    return run

"""Whole volumes through their thick slices: made thick, interpolated, upscaled, scored."""

import numpy as np
import torch

from degradation import degrade, parse_degradation
from evaluation.metrics import psnr_of
from inference.tiling import PART_PIXELS
from inference.upscaler import Upscaler, describe_stack, upscale_stack
from scans.volumes import slices_of

PLANES = ("sagittal", "coronal")


def batches_of(stack: np.ndarray, pixels: int = PART_PIXELS):
    """A stack as tensors (n, 1, Z, W) of a few slices each."""
    n = max(1, pixels // (stack.shape[1] * stack.shape[2]))
    for start in range(0, len(stack), n):
        yield torch.from_numpy(np.ascontiguousarray(stack[start : start + n]))[:, None]


def normalised(values: np.ndarray) -> np.ndarray:
    """The intensities of a scan in [0, 1], as `dataset.volume_slices` has them."""
    if values.min() < 0:
        values = np.maximum(values - min(0, np.percentile(values, 0.1)), 0)
    bright = values[values > values.mean()]
    high = np.percentile(bright, 99.8) if bright.size else 1
    return np.clip(values / high, 0, 1).astype(np.float32)


def make_thick(volume: np.ndarray, degradation, factor: int, seed: int = 0) -> np.ndarray:
    """A volume (X, Y, Z) in [0, 1] as a scan of slices `factor` times as thick would show it."""
    volume = volume[..., : volume.shape[2] // factor * factor]
    parts = enumerate(batches_of(slices_of(volume, "sagittal")))
    thick = [degrade(p, degradation, (factor, 1), seed=[seed, i])[:, 0] for i, p in parts]
    return torch.cat(thick).numpy()[:, ::-1].swapaxes(1, 2)


def interpolate(thick: np.ndarray, factor: int, order: int) -> np.ndarray:
    """Linear (order 1) or cubic (3) interpolation along z; the outer edges stay where they are."""
    from scipy.ndimage import zoom

    return zoom(thick, (1, 1, factor), order=order, mode="nearest", grid_mode=True)


def through_plane(network, thick: np.ndarray, degradation=None, device="cpu") -> np.ndarray:
    """A thick volume (X, Y, Z) in [0, 1] with `network.scale[0]` times as many slices.

    The mean of two passes, over sagittal and over coronal slices, as predict.py makes it.
    degradation: what the network is told; None: what it finds in each pass.
    """
    way = parse_degradation(degradation) if degradation else None
    upscaler = Upscaler(network, torch.device(device), degradation=way, user_said=bool(way))
    depth = thick.shape[2] * network.scale[0]
    out = np.zeros((*thick.shape[:2], depth), np.float32)
    for plane in PLANES:
        slices, target = slices_of(thick, plane), slices_of(out, plane)

        def add(chosen, rows, lr, hr, sr, _, target=target):
            target[chosen, rows] += np.maximum(sr[:, 0].numpy(), 0) / np.float32(len(PLANES))

        description = describe_stack(upscaler, slices)
        for _ in upscale_stack(upscaler, slices, add, description=description):
            pass
    return out


def volume_score(sr: np.ndarray, hr: np.ndarray) -> dict:
    """MSE, PSNR and PSNR inside the brain (HR > 0.05) of a volume, clamped to [0, 1]."""
    error = (np.clip(sr, 0, 1) - hr).astype(np.float32) ** 2
    mse, brain = float(error.mean(dtype=np.float64)), error[hr > 0.05]
    inside = psnr_of(float(brain.mean(dtype=np.float64))) if brain.size else None
    return dict(mse=mse, psnr=psnr_of(mse), psnr_brain=inside)


def volume_scores(networks: dict, hr: np.ndarray, degradation, scale, told, device, seed) -> dict:
    """{name: scores} of one volume (X, Y, Z) in [0, 1], cubic and linear interpolation first."""
    factor = scale[0]
    hr = hr[..., : hr.shape[2] // factor * factor]
    thick = make_thick(hr, degradation, factor, seed)
    scores = {"cubic": volume_score(interpolate(thick, factor, 3), hr)}
    scores["linear"] = volume_score(interpolate(thick, factor, 1), hr)
    known = degradation if told else None
    for name, network in networks.items():
        scores[name] = volume_score(through_plane(network, thick, known, device), hr)
    return scores

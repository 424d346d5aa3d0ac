"""Whole volumes through their thick slices: made thick, interpolated, upscaled, scored."""

import numpy as np
import torch

from degradation import degrade
from evaluation.metrics import psnr_of
from inference.plan import Plan
from inference.tiling import PART_PIXELS
from scans import Scan
from scans.scan import slices_along


def make_thick(volume: np.ndarray, degradation, factor: int, seed: int = 0) -> np.ndarray:
    """A volume (X, Y, Z) in [0, 1] as a scan of slices `factor` times as thick would show it."""
    stack = slices_along(volume[..., : volume.shape[2] // factor * factor], "sagittal")
    n = max(1, PART_PIXELS // (stack.shape[1] * stack.shape[2]))
    parts = []
    for i, start in enumerate(range(0, len(stack), n)):
        part = torch.from_numpy(np.ascontiguousarray(stack[start : start + n]))[:, None]
        parts.append(degrade(part, degradation, (factor, 1), seed=[seed, i])[:, 0])
    return torch.cat(parts).numpy()[:, ::-1].swapaxes(1, 2)


def interpolate(thick: np.ndarray, factor: int, order: int) -> np.ndarray:
    """Linear (order 1) or cubic (3) interpolation along z; the outer edges stay where they are."""
    from scipy.ndimage import zoom

    return zoom(thick, (1, 1, factor), order=order, mode="nearest", grid_mode=True)


def volume_score(sr: np.ndarray, hr: np.ndarray) -> dict:
    """MSE, PSNR and PSNR inside the brain (HR > 0.05) of a volume, clamped to [0, 1]."""
    error = (np.clip(sr, 0, 1) - hr).astype(np.float32) ** 2
    mse, brain = float(error.mean(dtype=np.float64)), error[hr > 0.05]
    inside = psnr_of(float(brain.mean(dtype=np.float64))) if brain.size else None
    return dict(mse=mse, psnr=psnr_of(mse), psnr_brain=inside)


def volume_scores(upscalers: dict, hr: np.ndarray, sizes, degradation, factor: int, seed: int):
    """{name: scores} of one volume (X, Y, Z) in [0, 1], cubic and linear interpolation first.

    sizes: of its voxels in mm.
    """
    hr = hr[..., : hr.shape[2] // factor * factor]
    thick = make_thick(hr, degradation, factor, seed)
    scores = {"cubic": volume_score(interpolate(thick, factor, 3), hr)}
    scores["linear"] = volume_score(interpolate(thick, factor, 1), hr)
    for name, upscaler in upscalers.items():
        scores[name] = volume_score(made_thin(upscaler, thick, sizes, factor), hr)
    return scores


def made_thin(upscaler, thick: np.ndarray, sizes, factor: int) -> np.ndarray:
    """What an Upscaler makes of a thick volume. sizes: of the voxels of the result, in mm."""
    found = upscaler.follow(Plan("axial", 1, factor), thick_scan(thick, sizes, factor))
    return (found[0] if upscaler.calibrations else found).stored


def thick_scan(thick: np.ndarray, sizes, factor: int) -> Scan:
    """A thick volume (X, Y, Z) in [0, 1] as a scan that lies where the thin one (factor 1) lies.
    sizes: of the voxels of the thin one, in mm."""
    import nibabel as nib

    affine = np.diag([*sizes[:2], sizes[2] * factor, 1.0])
    affine[2, 3] = (factor - 1) / 2 * sizes[2]
    header = nib.Nifti1Image(thick, affine).header
    return Scan("thick", thick, affine=affine, header=header, levels=(0.0, 1.0))

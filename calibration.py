"""Expected errors: what the error head of a network says, made right by its calibration."""

import math

import numpy as np
import torch

from description import NOISE
from utils import DataError

INTERVAL = math.log(10)  # of a Laplace distribution 90 % lie within 2.3 times its mean deviation
STEPS = 4096  # of the table of factors
QUIET, LOUD = (
    0.005,
    0.02,
)  # noise as a share of white: factors of quiet slices up to, noisy ones from


def noise_share(description: torch.Tensor) -> torch.Tensor:
    """How noisy slices are by their descriptions (N, ENTRIES): 0 up to QUIET, 1 from LOUD, (N,)."""
    low, high = (math.log10(1 + noise / 0.001) / 2 for noise in (QUIET, LOUD))
    return ((description[:, NOISE] - low) / (high - low)).clamp(0, 1)


def expected_error(spread: torch.Tensor, calibration: dict, description=None) -> torch.Tensor:
    """The calibrated expected absolute error of what the head says (N, 1, H, W), in units of white.

    90 % of pixels are within INTERVAL times it. calibration: `edges` of the head's spread, as
    logarithms, and `factors` to multiply it by, linear in between; `noisy` those of noisy slices.
    description (N or 1, ENTRIES): tells which are; without it none.
    """
    edges, share = calibration["edges"], 0.0
    first, width = edges[0], max(edges[-1] - edges[0], 1e-6)
    grid = np.linspace(first, first + width, STEPS)
    quiet, noisy = (
        torch.from_numpy(np.interp(grid, edges, factors).astype(np.float32)).to(spread.device)
        for factors in (calibration["factors"], calibration.get("noisy") or calibration["factors"])
    )
    place = spread.log().sub_(first).mul_((STEPS - 1) / width).round_().clamp_(0, STEPS - 1).long()
    if description is not None:
        share = noise_share(description)[:, None, None, None]
    if torch.is_tensor(share) and len(share) > 1:
        return spread * torch.lerp(quiet[place], noisy[place], share)
    return spread * torch.lerp(quiet, noisy, float(share))[place]


def calibration_of(checkpoint: dict, path) -> dict:
    """The calibration of a checkpoint. Raises DataError if its network has no error head."""
    if not checkpoint["arch"].get("spread"):
        raise DataError(
            f"{path}: has no error head for --uncertainty; python uncertainty.py makes one"
        )
    found = checkpoint.get("calibration")
    found = found if isinstance(found, dict) else {}
    edges, factors = found.get("edges"), found.get("factors")
    noisy = found.get("noisy", factors)
    good = all(
        isinstance(values, list)
        and 2 <= len(values) <= 1000
        and all(type(x) is float and math.isfinite(x) and abs(x) < 1e6 for x in values)
        for values in (edges, factors, noisy)
    )
    good = good and len(edges) == len(factors) == len(noisy) and edges == sorted(edges)
    good = good and min(factors) > 0 and min(noisy) > 0
    if not good:
        raise DataError(f"{path}: the calibration of its error head is damaged; make it again with "
                        "python uncertainty.py")  # fmt: skip
    return {"edges": edges, "factors": factors, "noisy": noisy}

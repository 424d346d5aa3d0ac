"""Expected errors: what the error head of a network says, made right by its calibration."""

import math

import numpy as np
import torch

from degradation import NOISE
from utils import DataError

INTERVAL = math.log(10)  # of a Laplace distribution 90 % lie within 2.3 times its mean deviation
STEPS = 4096  # of the table of factors
QUIET, LOUD = 0.005, 0.02  # noise, as a share of white, of quiet and of noisy slices


def noise_share(description: torch.Tensor) -> float:
    """How noisy slices are by their description (1, ENTRIES): 0 up to QUIET, 1 from LOUD."""
    low, high = (math.log10(1 + noise / 0.001) / 2 for noise in (QUIET, LOUD))
    return min(1.0, max(0.0, (float(description[0, NOISE]) - low) / (high - low)))


def expected_error(spread: torch.Tensor, calibration: dict, description=None) -> torch.Tensor:
    """The calibrated expected absolute error of what the head says, in units of white.

    90 % of pixels are within INTERVAL times it. calibration: `edges` of the head's spread, as
    logarithms, and `factors` to multiply it by, linear in between; `noisy`: those of noisy slices.
    description (1, ENTRIES): tells how noisy these are; None counts as quiet.
    """
    edges, factors = calibration["edges"], np.array(calibration["factors"])
    if description is not None:
        noisy = np.array(calibration.get("noisy", factors))
        factors = factors + noise_share(description) * (noisy - factors)
    first, width = edges[0], max(edges[-1] - edges[0], 1e-6)
    grid = np.linspace(first, first + width, STEPS)
    table = np.interp(grid, edges, factors).astype(np.float32)
    place = spread.log().sub_(first).mul_((STEPS - 1) / width).round_().clamp_(0, STEPS - 1)
    return spread * torch.from_numpy(table).to(spread.device)[place.long()]


def calibration_of(checkpoint: dict, path) -> dict:
    """The calibration of a checkpoint. Raises DataError if its network has no error head."""
    if not checkpoint["arch"].get("spread"):
        raise DataError(
            f"{path}: has no error head for --uncertainty; first: python -m training.error_head "
            f"{path} --data DIR --out NEW.pt"
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
                        "python -m training.error_head")  # fmt: skip
    return {"edges": edges, "factors": factors, "noisy": noisy}

"""Expected errors: what the error head of a network says, made right by its calibration."""

import math

import numpy as np
import torch

from utils import DataError

INTERVAL = math.log(10)  # of a Laplace distribution 90 % lie within 2.3 times its mean deviation
STEPS = 4096  # of the table of factors


def expected_error(spread: torch.Tensor, calibration: dict) -> torch.Tensor:
    """The calibrated expected absolute error of what the head says, in units of white.

    90 % of pixels are within INTERVAL times it. calibration: `edges` of the head's spread, as
    logarithms, and `factors` to multiply it by, linear in between.
    """
    edges = calibration["edges"]
    first, width = edges[0], max(edges[-1] - edges[0], 1e-6)
    grid = np.linspace(first, first + width, STEPS)
    table = np.interp(grid, edges, calibration["factors"]).astype(np.float32)
    place = spread.log().sub_(first).mul_((STEPS - 1) / width).round_().clamp_(0, STEPS - 1)
    return spread * torch.from_numpy(table).to(spread.device)[place.long()]


def calibration_of(checkpoint: dict, path) -> dict:
    """The calibration of a checkpoint. Raises DataError if its network has no error head."""
    if not checkpoint["arch"].get("spread"):
        raise DataError(
            f"{path}: has no error head for --uncertainty; python uncertainty.py makes one"
        )
    found = checkpoint.get("calibration")
    found = found if isinstance(found, dict) else {}
    edges, factors = found.get("edges"), found.get("factors")
    good = all(
        isinstance(values, list)
        and 2 <= len(values) <= 1000
        and all(type(x) is float and math.isfinite(x) and abs(x) < 1e6 for x in values)
        for values in (edges, factors)
    )
    good = good and len(edges) == len(factors) and edges == sorted(edges) and min(factors) > 0
    if not good:
        raise DataError(f"{path}: the calibration of its error head is damaged; make it again with "
                        "python uncertainty.py")  # fmt: skip
    return {"edges": edges, "factors": factors}

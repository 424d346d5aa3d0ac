"""Expected errors: what the error head of a network says, made right by its calibration."""

import math

import numpy as np
import torch

from degradation import NOISE, scale_name
from scans import Scan
from utils import DataError, UsageError

INTERVAL = math.log(10)  # of a Laplace distribution 90 % lie within 2.3 times its mean deviation
STEPS = 4096  # of the table of factors
LITTLE_NOISE, MUCH_NOISE = 0.005, 0.02  # noise, as a share of white, of quiet and of noisy slices


def noise_share(description: torch.Tensor) -> float:
    """How noisy slices are by their description (1, ENTRIES): 0 to 1."""
    low, high = (math.log10(1 + noise / 0.001) / 2 for noise in (LITTLE_NOISE, MUCH_NOISE))
    return min(1.0, max(0.0, (float(description[0, NOISE]) - low) / (high - low)))


def expected_error(expected: torch.Tensor, calibration: dict, description=None) -> torch.Tensor:
    """The calibrated expected absolute error of what the head says, in units of white.

    90 % of pixels are within INTERVAL times it. calibration: `edges` of what the head says, as
    logarithms, and `factors` to multiply it by, linear in between; `noisy`: those of noisy slices.
    description (1 or N, ENTRIES): tells how noisy these are; None counts as quiet.
    """
    if description is not None and (description[:, NOISE] != description[0, NOISE]).any():
        each = zip(expected.split(1), description.split(1))
        return torch.cat([expected_error(one, calibration, known) for one, known in each])
    edges, factors = calibration["edges"], np.array(calibration["factors"])
    if description is not None:
        noisy = np.array(calibration["noisy"])
        factors = factors + noise_share(description) * (noisy - factors)
    first, width = edges[0], max(edges[-1] - edges[0], 1e-6)
    grid = np.linspace(first, first + width, STEPS)
    table = np.interp(grid, edges, factors).astype(np.float32)
    place = expected.log().sub_(first).mul_((STEPS - 1) / width).round_().clamp_(0, STEPS - 1)
    return expected * torch.from_numpy(table).to(expected.device)[place.long()]


def calibration_of(checkpoint: dict, path, scale) -> dict:
    """The calibration of a checkpoint at one scale. Raises UsageError if it has no error head."""
    if not checkpoint["arch"].get("error_head"):
        words = "has no error head for --error-map; train.py --error-head N makes one"
        raise UsageError(f"{path}: {words}")
    try:
        found = checkpoint["calibration"][scale_name(scale)]
        rows = [found[name] for name in ("edges", "factors", "noisy")]
        good = all(isinstance(row, list) and 2 <= len(row) <= 1000 for row in rows)
        good = good and len({len(row) for row in rows}) == 1 and np.isfinite(rows).all()
        good = good and rows[0] == sorted(rows[0]) and min(*rows[1], *rows[2]) > 0
    except Exception:  # values of a hostile file can be of any type
        good = False
    if not good:
        raise DataError(f"{path}: the calibration of its error head is missing or damaged")
    return found


def as_error_map(scan: Scan, errors: np.ndarray | None) -> Scan | None:
    """Expected errors of an enlarged scan as one of the same place, float32 in its units."""
    if errors is None:
        return None
    found = scan.resampled(errors)
    found.slope, found.inter = 1.0, 0.0
    if found.header is not None:
        found.header["cal_min"], found.header["cal_max"] = 0, 0  # how bright to show the scan
        found.header["descrip"] = "expected absolute error"
    elif scan.stored.dtype in (np.uint8, np.uint16):  # as 16 bits, so that a PNG can hold it
        found.slope = float(max(errors.max(initial=0), 1e-6)) / 65535
        found.stored = np.rint(errors / np.float32(found.slope)).astype(np.uint16)
    return found

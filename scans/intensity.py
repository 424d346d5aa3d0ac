"""Which values of a scan are black and white: one rule for training, evaluation and prediction."""

import numpy as np

SAMPLE = 2**21  # values that are looked at
RAISED = 0.02  # of the range: a background above this is taken off
FEWEST_VALUES = 16  # different values that are left when padding is taken away, at least


def intensity_range(data: np.ndarray) -> tuple[float, float]:
    """The values (black, white) of a scan or slice that become 0 and 1, float32 of any shape.

    White is the 99.8th percentile of the voxels above the mean. Black is 0, or the background where
    that is raised or negative: the 0.1th percentile of all. Single voxels and padding, far from all
    others, have no say. NaN and infinity count as not there.
    """
    sample = data.ravel(order="K")[:: max(1, data.size // SAMPLE)].astype(np.float64)
    whole = np.sort(sample[np.isfinite(sample)])
    sample = without_padding(whole)
    if not sample.size:
        return 0.0, 1.0
    floor, top = np.percentile(sample, (0.1, 99.95))
    background = np.searchsorted(sample, floor + 0.1 * (top - floor), "right") / sample.size
    raised = floor > RAISED * top and background > 0.1
    black = float(floor) if floor < 0 or raised else 0.0
    # Not of the sample: a scan of one more slice, or turned round, has the same white.
    limits = np.finfo(np.float32)
    low = sample[0] if sample[0] > whole[0] else limits.min
    high = sample[-1] if sample[-1] < whole[-1] else limits.max
    values = data[(data >= low) & (data <= high)]
    bright = values[values > np.clip(values, black, top).mean(dtype=np.float64)]
    white = float(np.percentile(bright, 99.8)) if bright.size else black
    return black, white if white > black else black + 1.0


def without_padding(values: np.ndarray) -> np.ndarray:
    """Sorted values without those at either end that lie far from all the rest.

    Far is a quarter of the range of the rest at the lower end, half of it at the upper one. Zeros
    below positive values are background, and stay.
    """
    while values.size:
        low, high = values[0], values[-1]
        above, below = np.searchsorted(values, low, "right"), np.searchsorted(values, high)
        rest = values[above:below]
        if rest.size < 2 or len(np.unique(rest[:: max(1, rest.size // 4096)])) < FEWEST_VALUES:
            return values
        most = np.percentile(rest, 99.95) - np.percentile(rest, 0.05)
        if low < 0 and rest[0] - low > 0.25 * most:
            values = values[above:]
        elif high - rest[-1] > 0.5 * most:
            values = values[:below]
        else:
            return values
    return values


def normalised(data: np.ndarray, levels=None) -> np.ndarray:
    """A scan with black as 0 and white as 1, and nothing beyond: float32 of the same shape. levels:
    (black, white) where they are known."""
    black, white = levels or intensity_range(data)
    return np.clip((data - np.float32(black)) / np.float32(white - black), 0, 1)

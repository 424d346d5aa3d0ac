"""What training minimises: the mean squared error, and of a network with an estimator more."""

import torch
import torch.nn.functional as F

from degradation import AXIS, JPEG
from evaluation.metrics import measured_power
from modules import blend_measured_noise, with_neighbours

# Weights of the terms of `loss_of`.
WORSE_WEIGHT = 1.5
BLIND_WEIGHT = 1.0
POWER_WEIGHT = 12.0
ESTIMATE_WEIGHT = 6.0
MIN_POWER = 1e-3  # of a patch with something in it, a fiftieth of the usual


def upscale_batch(model, network, batch):
    """(SR, estimated description or None) of a batch.

    Of a network with an estimator, the samples of `batch.told` get the true description as
    `predict.py` would use it, the others the estimate.
    """
    if not network.conditioned:
        return model(batch.lr, batch.scale), None
    found = estimate = None
    if network.estimator is not None:
        estimate, sure = network.estimator.found(batch.view)
        found = network.estimator.careful(estimate, sure)
        truth = blend_measured_noise(found, batch.found)
        found = torch.where(batch.told[:, None], truth, found)
    else:
        found = torch.zeros_like(batch.found)
    description = with_neighbours(found, batch.present, batch.distance)
    return model(batch.lr, batch.scale, description), estimate


def loss_of(sr, upsampled, estimate, batch) -> tuple:
    """(loss, MSE, MSE of bicubic upsampling).

    sr and upsampled (N, 1, H, W): the result and bicubic upsampling. The loss is the MSE. Of a
    network that estimates the degradation, see the terms below.
    """
    errors, bicubic_errors = (((x - batch.hr) ** 2).mean((1, 2, 3)) for x in (sr, upsampled))
    if estimate is None:
        return errors.mean(), errors.mean(), bicubic_errors.mean()
    unit = bicubic_errors + 1e-4
    share = errors / unit  # as degradations differ in difficulty
    cost = share + WORSE_WEIGHT * nearly_worse(share)
    cost = cost + BLIND_WEIGHT * blind_guess(sr, upsampled, batch, unit)
    cost = cost + POWER_WEIGHT * power_mismatch(sr, batch)
    estimate_error = F.mse_loss(estimate.float(), batch.found[:, :-1])
    loss = cost.mean() + ESTIMATE_WEIGHT * estimate_error
    return 1e-3 * loss, errors.mean(), bicubic_errors.mean()


def nearly_worse(share: torch.Tensor) -> torch.Tensor:
    """max(0, e - 0.8), e being the share of bicubic upsampling's error that is left."""
    return (share - 0.8).clamp(min=0)


def blind_guess(sr, upsampled, batch, unit) -> torch.Tensor:
    """What is changed of bicubic upsampling, relative to its error, where little was measured and
    nobody tells: of slices zero-filled by 1.4 or more, an eighth of it for JPEG of 60 or less."""
    changed = ((sr - upsampled) ** 2).mean((1, 2, 3)) / unit
    zero_filled = (cut_off(batch.found) & (batch.found[:, 2 : AXIS + 3 : AXIS] < 0.1)).all(1)
    return ~batch.told * (1.0 * zero_filled + 0.12 * (batch.found[:, JPEG] > 0.79)) * changed


def power_mismatch(sr, batch) -> torch.Tensor:
    """log(P / P_truth)^2, P being the power in the measured frequencies: a result as sharp as the
    truth. Not asked of zero-filled slices, whose upper frequencies were not measured."""
    power, wanted = (measured_power(x, batch.scale) + MIN_POWER for x in (sr, batch.hr))
    counts = (1 - MIN_POWER / wanted) * ~cut_off(batch.found).any(1)
    return counts * (power / wanted).log() ** 2


def cut_off(found: torch.Tensor) -> torch.Tensor:
    """Along which axes zeros were filled in, (N, 2) bool: no blur falls so fast."""
    low, end = (found[:, i : AXIS + i + 1 : AXIS] for i in (0, 3))
    return (low > 0.9) & (end < 0.1)

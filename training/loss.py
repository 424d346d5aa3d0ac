"""What training minimises: the mean squared error, and of a network that is told more than that."""

import torch
import torch.nn.functional as F

from degradation import AXIS, JPEG
from evaluation.metrics import measured_power
from training.processes import rank, world

# Weights of the parts of `loss_of`, relative to bicubic upsampling's error.
BEYOND = 0.8, 1.5  # what is beyond this share of bicubic's error costs so much more
GUESSED = 1.0  # where not told: changes of what was zero-filled by 1.4 or more
BLOCKS = 0.12  # where not told: changes of what was compressed like JPEG 60 or worse
POWER = 12.0  # of the squared logarithm of the power against the truth's; not where zero-filled
LEAST = 1e-3  # power of a patch with something in it, a fiftieth of the usual
FOUND = 6.0  # the estimate's error


def told_samples(iteration: int, batch_size: int) -> torch.Tensor:
    """Which of this process's samples are told the truth, (n,) bool: half of them."""
    dice = torch.Generator().manual_seed(iteration)
    return torch.rand(batch_size, generator=dice)[rank() :: world()] < 0.5


def upscale_batch(model, network, batch, told: torch.Tensor):
    """(SR, estimated description or None) of a batch.

    Of a network that takes descriptions, the samples of `told` get the true one as `predict.py`
    would use it, the others the estimate.
    """
    if not network.told:
        return model(batch.lr), None
    estimate = network.describe(batch.view)
    truth = network.heed(estimate, batch.description)
    return model(batch.lr, torch.where(told[:, None], truth, estimate)), estimate


def loss_of(sr, upsampled, estimate, batch, told: torch.Tensor, scale) -> tuple:
    """(loss, MSE, MSE of bicubic upsampling).

    sr and upsampled (N, 1, H, W): the result and bicubic upsampling. The loss is the MSE. Of a
    network that estimates the degradation it is the share of bicubic upsampling's MSE, as
    degradations differ in difficulty; large shares count more, so do guesses where little was
    measured and nobody tells, and a result that is sharper or smoother than the truth, but for
    zero-filled slices, whose upper frequencies were not measured.
    """
    errors, bicubic_errors = (((x - batch.hr) ** 2).mean((1, 2, 3)) for x in (sr, upsampled))
    if estimate is None:
        return errors.mean(), errors.mean(), bicubic_errors.mean()
    unit = bicubic_errors + 1e-4
    part = errors / unit
    changed = ((sr - upsampled) ** 2).mean((1, 2, 3)) / unit
    known, (limit, more) = batch.description, BEYOND
    low, middle, end = (known[:, [i, AXIS + i]] for i in (0, 2, 3))
    cut = (low > 0.9) & (end < 0.1)  # along which axes zeros were filled in: no blur falls so fast
    guesses = GUESSED * (cut & (middle < 0.1)).all(1) + BLOCKS * (known[:, JPEG] > 0.79)
    cost = part + more * (part - limit).clamp(min=0) + ~told * guesses * changed
    power, wanted = (measured_power(x, scale) + LEAST for x in (sr, batch.hr))
    counts = (1 - LEAST / wanted) * ~cut.any(1)
    cost = cost + POWER * counts * (power / wanted).log() ** 2
    off = F.mse_loss(estimate[:, :-1].float(), known[:, :-1])
    loss = cost.mean() + FOUND * off
    return 1e-3 * loss, errors.mean(), bicubic_errors.mean()

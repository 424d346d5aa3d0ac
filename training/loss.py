"""What training minimises: the mean squared error, and of a network with an estimator more."""

import torch
import torch.nn.functional as F

from modules import blend_measured_noise, with_neighbours

# Weights of the terms of `loss_of`; what each is worth: docs/STUDY.md, "The loss".
WORSE_WEIGHT = 1.0
ESTIMATE_WEIGHT = 6.0


def upscale_batch(model, network, batch):
    """(SR, estimated description or None) of a batch.

    Of a network with an estimator, the samples of `batch.told` get the true description as
    `predict.py` would use it, the others the estimate.
    """
    if not network.conditioned:
        return model(batch.lr, batch.scale), None
    found, estimate = torch.zeros_like(batch.found), None
    if network.estimator is not None:
        estimate, sure = network.estimator.found(batch.view)
        found = network.estimator.careful(estimate, sure)
        truth = blend_measured_noise(found, batch.found)
        found = torch.where(batch.told[:, None], truth, found)
    description = with_neighbours(found, batch.present, batch.distance)
    return model(batch.lr, batch.scale, description), estimate


def loss_of(sr, upsampled, estimate, batch) -> tuple:
    """(loss, MSE, MSE of bicubic upsampling).

    sr and upsampled (N, 1, H, W): the result and bicubic upsampling. The loss is the MSE. Of a
    network that estimates the degradation it is the sum of the terms below.
    """
    errors, bicubic_errors = (((x - batch.hr) ** 2).mean((1, 2, 3)) for x in (sr, upsampled))
    if estimate is None:
        return errors.mean(), errors.mean(), bicubic_errors.mean()
    share = error_left(errors, bicubic_errors)
    cost = (share + WORSE_WEIGHT * nearly_worse(share)).mean()
    cost = cost + ESTIMATE_WEIGHT * estimate_error(estimate, batch)
    return 1e-3 * cost, errors.mean(), bicubic_errors.mean()


def error_left(errors: torch.Tensor, bicubic_errors: torch.Tensor) -> torch.Tensor:
    """e = MSE / (MSE of bicubic upsampling + 1e-4) of each sample (N,): degradations differ in
    difficulty, and all count the same."""
    return errors / (bicubic_errors + 1e-4)


def nearly_worse(share: torch.Tensor) -> torch.Tensor:
    """max(0, e - 0.8): samples that are hardly better than bicubic upsampling, or worse."""
    return (share - 0.8).clamp(min=0)


def estimate_error(estimate: torch.Tensor, batch) -> torch.Tensor:
    """The mean squared error of the estimated description, all entries but TOLD."""
    return F.mse_loss(estimate.float(), batch.found[:, :-1])

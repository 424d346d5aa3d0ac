"""What training minimises: the mean squared error, and of a network with an estimator more."""

import torch
import torch.nn.functional as F

from modules import blend_measured_noise, full_description

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
    found, estimate = torch.zeros_like(batch.truth), None
    if network.estimator is not None:
        estimate, sure = network.estimator.found(batch.view)
        found = network.estimator.towards_safest(estimate, sure)
        truth = blend_measured_noise(found, batch.truth)
        found = torch.where(batch.told[:, None], truth, found)
    description = full_description(found, batch.present, batch.distance)
    return model(batch.lr, batch.scale, description), estimate


def loss_of(sr, upsampled, estimate, batch) -> tuple:
    """(loss, MSE, MSE of bicubic upsampling).

    sr and upsampled (N, 1, H, W): the result and bicubic upsampling. The loss is the MSE. Of a
    network that estimates the degradation it is the sum of the terms below.
    """
    errors, bicubic_errors = (((x - batch.hr) ** 2).mean((1, 2, 3)) for x in (sr, upsampled))
    if estimate is None:
        return errors.mean(), errors.mean(), bicubic_errors.mean()
    # The share of bicubic's error that is left: degradations differ in difficulty, all count alike.
    share = errors / (bicubic_errors + 1e-4)
    nearly_worse = (share - 0.8).clamp(min=0)  # hardly better than bicubic upsampling, or worse
    estimate_error = F.mse_loss(estimate.float(), batch.truth[:, :-1])  # all entries but TOLD
    cost = (share + WORSE_WEIGHT * nearly_worse).mean() + ESTIMATE_WEIGHT * estimate_error
    return 1e-3 * cost, errors.mean(), bicubic_errors.mean()

"""What training minimises, and what the network is given of a batch."""

import numpy as np
import pytest
import torch
from conftest import random_network, slices_of_person

import modules
from degradation import FOUND, degrade, describe_degradation, parse_degradation
from training.batches import Batch
from training.loss import loss_of, upscale_batch


def batch_of(names, told, hr) -> Batch:
    ways = [parse_degradation(name) for name in names]
    lr, found = degrade(hr, ways, (4, 2)), describe_degradation(ways, (4, 2))
    present = torch.tensor([[0.0, 1, 1, 1]]).expand(len(ways), -1)
    distance = torch.full((len(ways), 1), 2.0)
    return Batch(lr, hr, lr, found, torch.tensor(told), present, distance, (4, 2))


def test_the_loss_is_what_its_formula_says():
    """Each sample in units of the error of bicubic upsampling; more where it is hardly better."""
    person = torch.from_numpy(slices_of_person("56")[6:14:2, 40:200, 40:200].copy())
    hr = person[:, None].float() / 255
    hr[3] = 0
    batch = batch_of(["bicubic", "jpeg-50", "zerofill-2", "kspace"], [True] * 4, hr)
    upsampled = modules.Interpolation((4, 2))(batch.lr)
    # One better than the interpolation, one nearly as bad, one worse, and a black one.
    shares = torch.tensor([0.3, 0.95, 1.1, 1.0])[:, None, None, None]
    sr = hr + shares * (upsampled - hr) + 0.001
    estimate = batch.truth[:, :-1] + 0.1 * torch.randn(4, FOUND - 1)
    loss, mse, bicubic = loss_of(sr, upsampled, estimate, batch)
    ours, theirs = (((x - hr)[:, 0].double().numpy() ** 2).mean((1, 2)) for x in (sr, upsampled))
    share = ours / (theirs + 1e-4)
    assert (share > 0.8).tolist() == [False, True, True, False]
    cost = np.mean(share + np.maximum(0, share - 0.8))
    off = ((estimate - batch.truth[:, :-1]) ** 2).mean()
    assert float(loss) == pytest.approx(1e-3 * (cost + 6 * float(off)), rel=1e-4)
    assert float(mse) == pytest.approx(ours.mean(), rel=1e-4)
    assert float(bicubic) == pytest.approx(theirs.mean(), rel=1e-4)
    assert all(x == mse for x in loss_of(sr, upsampled, None, batch)[:2])  # without an estimator


def test_half_of_the_samples_are_told_what_predict_would_be_told():
    hr = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    batch = batch_of(["blur-2+rician-3", "kspace", "bicubic"], [True, False, True], hr)
    batch.lr = torch.nn.functional.pad(batch.lr, (0, 0, 0, 0, 2, 2), value=0.5)
    arch = {"name": "deep", "channels": 8, "blocks": 1, "half": 0, "neighbours": 2}
    for estimator in (True, False):
        network = random_network(arch | {"estimator": estimator}, (4, 2))
        with torch.no_grad():
            sr, estimate = upscale_batch(network, network, batch)
            wanted = network.describe(batch.view)
            if estimator:
                told = modules.blend_measured_noise(wanted, batch.truth)
                wanted = torch.where(batch.told[:, None], told, wanted)
                torch.testing.assert_close(estimate, network.estimator.found(batch.view)[0])
            known = modules.full_description(wanted, batch.present, batch.distance)
            torch.testing.assert_close(sr, network(batch.lr, (4, 2), known))
    assert estimate is None

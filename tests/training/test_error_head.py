"""The error head: its training, its calibration and the maps that it gives."""

import math

import numpy as np
import pytest
import torch

import modules
from degradation import describe_degradation
from inference.error_map import INTERVAL, expected_error
from inference.tiling import upscale
from training import error_head

ARCH = {"name": "deep", "channels": 8, "blocks": 2, "half": 0, "spread": True}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = modules.build(ARCH, (2, 2))
    torch.nn.init.normal_(network.tail.weight, std=0.01)
    return network.eval()


@pytest.fixture
def slices(real_slices) -> list:
    return list((real_slices[:, 0, 40:160, 30:130] * 255).round().to(torch.uint8).numpy())


def test_the_head_changes_no_prediction(network):
    lr = torch.rand(2, 1, 21, 16)
    both = upscale(network, lr, spread=True)
    assert both.shape == (2, 2, 42, 32) and both[:, 1].min() > 0
    torch.testing.assert_close(both[:, :1], upscale(network, lr))
    tiled = upscale(network, lr, spread=True, tile=8)
    torch.testing.assert_close(tiled, both, atol=1e-5, rtol=1e-4)


def test_a_learned_and_calibrated_spread_covers_nine_pixels_in_ten(network, slices):
    before = {k: v.clone() for k, v in network.state_dict().items() if "spread" not in k}
    error_head.learn_spread(network, slices, 60, "cpu")
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    found = error_head.calibrate(network, slices, "abc", "cpu")
    inside = []
    for i, pixels in enumerate(slices):
        hr = torch.from_numpy(pixels.copy())[None, None].float() / 255
        lr = error_head.degrade(hr, error_head.CASES[i], (2, 2), seed=i)
        sr, spread = upscale(network, lr, spread=True).split(1, 1)
        error = expected_error(spread, found)
        covered = (sr.clamp(0, 1) - hr).abs() <= INTERVAL * error
        inside.append(covered[hr > 0.05].float().mean())
    assert np.mean(inside) == pytest.approx(error_head.WANTED, abs=0.02)


def test_calibration_scales_by_size():
    calibration = {"edges": [math.log(0.01), math.log(0.1)], "factors": [1.0, 3.0]}
    spread = torch.tensor([0.001, 0.01, 0.1, 1.0])
    found = expected_error(spread, calibration)
    torch.testing.assert_close(found, spread * torch.tensor([1.0, 1.0, 3.0, 3.0]))


def test_noisy_slices_have_factors_of_their_own():
    calibration = {"edges": [-7.0, 0.0], "factors": [1.0, 1.0], "noisy": [2.0, 2.0]}
    spread = torch.tensor([0.1])
    quiet, between, noisy = (
        float(expected_error(spread, calibration, describe_degradation(way, (4, 4))))
        for way in ("bicubic", "rician-1", "rician-5")
    )
    assert quiet == pytest.approx(0.1) and noisy == pytest.approx(0.2)
    assert 0.11 < between < 0.19

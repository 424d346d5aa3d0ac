"""The error head: its training, its calibration and the maps that it gives."""

import math

import numpy as np
import pytest
import torch
from conftest import random_network
from made_files import slices_of

import modules
from degradation import describe_degradation
from evaluation.scoring import description_of, parts_of, seen_by
from inference.error_map import INTERVAL, expected_error
from inference.tiling import upscale
from training import error_head
from training.batches import Options, Stock

ARCH = {"name": "deep", "channels": 8, "blocks": 2, "half": 0, "error_head": True}


@pytest.fixture
def slices(real_slices, tmp_path):
    """Five slices of each of three people, one behind the other, and of one plane."""
    pixels = (real_slices[:, :, 40:160, 30:130] * 255).round().to(torch.uint8).numpy()
    return slices_of(tmp_path / "pixels.u8", [np.repeat(person, 5, 0) for person in pixels])


@pytest.mark.parametrize("more", [{}, {"neighbours": 1, "estimator": True}], ids=str)
def test_the_head_changes_no_prediction(more):
    network = random_network(ARCH | more, (2, 2), (3, 1))
    lr, description = torch.rand(2, 1 + 2 * network.neighbours, 21, 16), None
    if more:
        known = describe_degradation("rician-2", (3, 1))
        description = modules.full_description(known, torch.ones(2, 4), 1.0)
    both = upscale(network, lr, (3, 1), description, error_map=True)
    assert both.shape == (2, 2, 63, 16) and both[:, 1].min() > 0
    torch.testing.assert_close(both[:, :1], upscale(network, lr, (3, 1), description))
    tiled = upscale(network, lr, (3, 1), description, error_map=True, tile=8)
    torch.testing.assert_close(tiled, both, atol=1e-4 * float(both.abs().max()), rtol=1e-4)


def share_and_likelihood(network, slices) -> tuple:
    """The share of pixels within the calibrated interval, and before calibration the log-likelihood
    of their errors if these are of a Laplace distribution."""
    calibration = error_head.calibrate(network, slices, (2, 2), "cpu")
    inside, likelihood = [], []
    for i in range(len(slices)):
        case = error_head.CASES[i % len(error_head.CASES)]
        (part,) = parts_of(slices.take([i]), case, (2, 2), "cpu")
        known = description_of(network, part)
        with torch.inference_mode():
            both = network(seen_by(network, part.lr), (2, 2), known, error_map=True)
        sr, expected = both.split(1, 1)
        error = (sr.clamp(0, 1) - part.hr).abs()[part.hr > 0.05]
        calibrated = expected_error(expected, calibration, known)[part.hr > 0.05]
        inside.append((error <= INTERVAL * calibrated).float().mean())
        expected = expected[part.hr > 0.05]
        likelihood.append(-(error / expected + expected.log()).mean())
    return float(np.mean(inside)), float(np.mean(likelihood))


def test_learned_and_calibrated_intervals_hold_nine_pixels_in_ten(slices):
    torch.manual_seed(0)
    network = modules.build(ARCH | {"neighbours": 1}, [(2, 2)]).eval()
    torch.nn.init.normal_(network.tails["2"].weight, std=0.01)
    before = {k: v.clone() for k, v in network.state_dict().items() if "error_head" not in k}
    _, unlearned = share_and_likelihood(network, slices)
    options = Options(0, 4, 16, ((2, 2),), "bicubic", neighbours=1)
    error_head.learn_error_head(network, Stock(slices, "cpu"), options, 60)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    inside, learned = share_and_likelihood(network, slices)
    assert inside == pytest.approx(error_head.WANTED, abs=0.02)
    assert learned > unlearned + 0.05


def test_errors_are_those_of_what_is_shown_between_black_and_white(tmp_path):
    """White slices that the network makes three times too bright have no error."""
    white = slices_of(tmp_path / "white.u8", [np.full((8, 40, 40), 255, np.uint8)])
    network = modules.build(ARCH, [(2, 2)]).eval()
    torch.nn.init.constant_(network.tails["2"].weight, 2 / 72)
    lr = torch.ones(1, 1, 16, 16)
    with torch.no_grad():
        network.tails["2"].weight.mul_(2 / (network(lr, (2, 2)) - 1).mean())
        assert network(lr, (2, 2)).min() > 1.5
    stock, options = Stock(white, "cpu"), Options(0, 4, 8, ((2, 2),), "bicubic", augment=False)
    error_head.learn_error_head(network, stock, options, 60)
    with torch.no_grad():
        both = network(lr, (2, 2), error_map=True)
    assert both[:, 0].min() > 1.5 and both[:, 1].max() < 0.3
    found = error_head.calibrate(network, white, (2, 2), "cpu")
    assert max(found["factors"]) * INTERVAL * float(both[:, 1].max()) < 0.5


def test_calibration_scales_by_size_and_noisy_slices_have_factors_of_their_own():
    edges = [math.log(0.01), math.log(0.1)]
    calibration = {"edges": edges, "factors": [1.0, 3.0], "noisy": [2.0, 6.0]}
    expected = torch.tensor([0.001, 0.01, 0.0316, 0.1, 1.0])
    factors = torch.tensor([1.0, 1, 2, 3, 3])
    for name, times in ((None, 1), ("bicubic", 1), ("rician-0.4", 1), ("rician-5", 2)):
        known = name and describe_degradation(name, (4, 4))
        found = expected_error(expected, calibration, known)
        torch.testing.assert_close(found, times * factors * expected, atol=0, rtol=2e-3)
    between = expected_error(expected, calibration, describe_degradation("rician-1", (4, 4)))
    assert (between > 1.1 * factors * expected).all() and (between < 1.9 * factors * expected).all()


def test_each_slice_counts_as_noisy_as_it_is():
    calibration = {"edges": [-7.0, 0.0], "factors": [1.0, 1.0], "noisy": [2.0, 4.0]}
    known = [describe_degradation(name, (4, 4)) for name in ("bicubic", "rician-5")]
    expected = torch.rand(2, 1, 5, 6) + 0.01
    both = expected_error(expected, calibration, torch.cat(known))
    for k in (0, 1):
        alone = expected_error(expected[k : k + 1], calibration, known[k])
        torch.testing.assert_close(both[k : k + 1], alone)
    assert (both[1] > 1.5 * expected[1]).all()

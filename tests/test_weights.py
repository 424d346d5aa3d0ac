"""The shipped weights still gain what they did when they were made, on slices of test people.

After a new training: python tests/test_weights.py prints what RECORDED must hold.
"""

import numpy as np
import pytest
import torch
from conftest import slices_of_person

import modules
from degradation import degrade, scale_name
from evaluation.metrics import psnr_of
from inference import Upscaler
from inference.upscaler import DEFAULT

pytestmark = pytest.mark.skipif(not DEFAULT.exists(), reason="no weights are here")
PEOPLE = ("18", "56", "71")
SCALES = (4, 4), (3, 3), (2, 2), *((n, 1) for n in range(2, 7))
WAYS = "bicubic", "bilinear-plain", "kspace", "blur-2", "rician-5"  # in the plane
# {(scale, degradation): gain in mean PSNR, in dB, over bicubic upsampling of the same slices}
RECORDED = {
    ((4, 4), "bicubic"): 2.59,
    ((4, 4), "bilinear-plain"): 1.65,
    ((4, 4), "kspace"): 1.57,
    ((4, 4), "blur-2"): 0.70,
    ((4, 4), "rician-5"): 0.78,
    ((3, 3), "bicubic"): 3.73,
    ((3, 3), "bilinear-plain"): 1.92,
    ((3, 3), "kspace"): 2.82,
    ((3, 3), "blur-2"): 3.48,
    ((3, 3), "rician-5"): 0.73,
    ((2, 2), "bicubic"): 3.70,
    ((2, 2), "bilinear-plain"): 2.79,
    ((2, 2), "kspace"): 2.67,
    ((2, 2), "blur-2"): 4.15,
    ((2, 2), "rician-5"): 0.57,
    ((2, 1), "box"): 1.75,
    ((3, 1), "box"): 2.93,
    ((4, 1), "box"): 3.33,
    ((5, 1), "box"): 2.99,
    ((6, 1), "box"): 2.52,
}


@pytest.fixture(scope="module")
def up() -> Upscaler:
    return Upscaler(device="cpu", bf16=False)


def gain(up: Upscaler, scale, way: str) -> float:
    """How much better than interpolation it is, slices alone; 120 is a multiple of every scale."""
    pixels = np.stack([slices_of_person(p)[10, 60:180, 68:188] for p in PEOPLE])
    hr = torch.from_numpy(pixels)[:, None] / 255
    lr = degrade(hr, way, scale, seed=1)
    results = modules.Interpolation(scale)(lr), torch.from_numpy(up(lr[:, 0].numpy(), scale))
    errors = [(x.view_as(hr).clamp(0, 1) - hr).square().mean((1, 2, 3)) for x in results]
    before, after = (np.mean([psnr_of(e) for e in error.tolist()]) for error in errors)
    return float(after - before)


def test_shipped_weights_have_every_scale_and_an_error_head(up):
    assert set(up.scales) == set(SCALES)
    assert up.network.estimator is not None and up.network.error_head is not None


@pytest.mark.parametrize(("scale", "way"), RECORDED)
def test_shipped_weights_gain_what_was_recorded(up, scale, way):
    assert gain(up, scale, way) == pytest.approx(RECORDED[scale, way], abs=0.05)


@pytest.mark.parametrize("scale", SCALES, ids=scale_name)
def test_a_flat_slice_stays_flat_up_to_its_corners(up, scale):
    found = up(np.full((1, 25, 30), 0.5, np.float32), scale)
    assert abs(found - 0.5).max() < 0.005


@pytest.mark.parametrize("scale", SCALES, ids=scale_name)
def test_dark_slices_are_treated_like_bright_ones(up, scale):
    pixels = slices_of_person(PEOPLE[0])[10:11, 60:180, 68:188]
    lr = degrade(torch.from_numpy(pixels)[:, None] / 255, "bicubic", scale)[:, 0].numpy()
    bright, dark = up(lr / 2, scale), up(lr / 16, scale)
    assert abs(8 * dark - bright).max() < 1e-5


if __name__ == "__main__":
    shipped = Upscaler(device="cpu", bf16=False)
    for scale in SCALES:
        for way in ("box",) if 1 in scale else WAYS:
            print(f'    ({scale}, "{way}"): {gain(shipped, scale, way):.2f},')

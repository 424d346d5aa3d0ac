"""The shipped weights still gain what they did when they were made, on slices of test people.

After a new training: python tests/test_weights.py prints what RECORDED must hold.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, pixels, slices_of_person

import modules
from degradation import degrade, scale_name
from evaluation.metrics import psnr_of
from inference import Upscaler
from inference.upscaler import DEFAULT

pytestmark = pytest.mark.skipif(not DEFAULT.exists(), reason="no weights are here")
PEOPLE = ("18", "56", "71")
WAYS = "bicubic", "bilinear-plain", "kspace", "blur-2", "rician-5"  # in the plane
# {scale: gains in mean PSNR, in dB, over bicubic upsampling of the same slices} by WAYS, or by box
RECORDED = {
    (4, 4): (2.59, 1.65, 1.57, 0.70, 0.78),
    (3, 3): (3.73, 1.92, 2.82, 3.48, 0.73),
    (2, 2): (3.70, 2.79, 2.67, 4.15, 0.57),
    (2, 1): (1.75,),
    (3, 1): (2.93,),
    (4, 1): (3.33,),
    (5, 1): (2.99,),
    (6, 1): (2.52,),
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


def gains(up: Upscaler, scale) -> tuple:
    return tuple(gain(up, scale, way) for way in (("box",) if 1 in scale else WAYS))


def test_shipped_weights_have_every_scale_and_an_error_head(up):
    assert set(up.scales) == set(RECORDED)
    assert up.network.estimator is not None and up.network.error_head is not None


@pytest.mark.parametrize("scale", RECORDED, ids=scale_name)
def test_shipped_weights_gain_what_was_recorded(up, scale):
    assert gains(up, scale) == pytest.approx(RECORDED[scale], abs=0.05)


@pytest.mark.parametrize("scale", RECORDED, ids=scale_name)
def test_a_flat_slice_stays_flat_up_to_its_corners(up, scale):
    found = up(np.full((1, 25, 30), 0.5, np.float32), scale)
    assert abs(found - 0.5).max() < 0.005


def test_what_the_command_line_gives_by_itself_is_within_two_grey_levels(tmp_path):
    """In a process of its own, where products may be of bf16, as all other tests have none."""
    found = []
    for words in ((), ("--no-bf16",)):
        command = [sys.executable, ROOT / "predict.py", ROOT / "readme_resources/slice.png"]
        folder = tmp_path / str(len(found))
        subprocess.run([*command, "-o", folder, "--no-figure", *words], check=True)
        found.append(pixels(folder / "slice_x4.png").astype(int))
    off = abs(found[0] - found[1])
    assert off.max() <= 2 and (off > 1).mean() < 0.001 and found[0].std() > 30


if __name__ == "__main__":
    shipped = Upscaler(device="cpu", bf16=False)
    for scale in RECORDED:
        print(f"    {scale}: {tuple(round(x, 2) for x in gains(shipped, scale))},")

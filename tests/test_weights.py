"""The shipped weights still gain what they did when they were made, on slices of test people.

After a new training: python tests/test_weights.py prints what RECORDED must hold.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, slices_of_person

import modules
from degradation import NAMED, degrade, describe_degradation, make_consistent
from evaluation.metrics import psnr_of
from inference import tiling
from inference.checkpoints import load_checkpoint

WEIGHTS = sorted((ROOT / "weights").glob("*.pt"))
PEOPLE = ("18", "56", "71")
# Gain in mean PSNR, in dB, over bicubic (through-plane: cubic) upsampling of the same LR slices.
RECORDED = {
    "through-x2.pt": {"box": 1.70},
    "through-x3.pt": {"box": 2.78},
    "through-x4.pt": {"box": 3.34},
    "through-x5.pt": {"box": 2.35},
    "through-x6.pt": {"box": 2.38},
    "x2.pt": {"bicubic": 3.65},
    "x3.pt": {"bicubic": 3.70},
    "x4-bicubic.pt": {"bicubic": 3.69, "bilinear": 3.00, "bilinear-plain": -1.26, "kspace": 0.58},
    "x4.pt": {"bicubic": 3.02, "bilinear": 3.75, "bilinear-plain": 1.54, "kspace": 2.62},
}


def hr_slices() -> torch.Tensor:
    """The middle of the middle slice of each; 120 is a multiple of every scale."""
    pixels = [torch.from_numpy(slices_of_person(p)[10, 60:180, 68:188].copy()) for p in PEOPLE]
    return torch.stack(pixels)[:, None].float() / 255


def ways_for(network) -> tuple[str, ...]:
    return ("box",) if 1 in network.scale else NAMED if network.scale == (4, 4) else ("bicubic",)


def gain(network, way: str) -> float:
    """How much better than interpolation a network is."""
    hr = hr_slices()
    lr = degrade(hr, way, network.scale)
    results = []
    for upscaler in (modules.Interpolation(network.scale, "bicubic"), network):
        sr = tiling.upscale(upscaler, lr).clamp(0, 1)
        results.append(sum(psnr_of(float(e.square().mean())) for e in sr - hr) / len(hr))
    return results[1] - results[0]


def load(path: Path):
    return modules.load_network(load_checkpoint(path), path)


@pytest.mark.parametrize("way", (*NAMED, "blur-1.5", "blur-2", "blur-3", "zerofill-2"))
def test_the_projection_of_a_told_slice_costs_nothing(way):
    """predict.py does it by itself where it is told: rounding must not be blown up."""
    network, hr = load(ROOT / "weights/x4.pt"), hr_slices()
    lr = degrade(hr, way)
    sr = tiling.upscale(network, lr, describe_degradation(way, (4, 4)))
    before, after = (
        float((x.clamp(0, 1) - hr).square().mean()) for x in (sr, make_consistent(sr, lr, way))
    )
    assert after < 1.002 * before


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_shipped_weights_gain_what_was_recorded(path):
    network = load(path)
    found = {way: gain(network, way) for way in ways_for(network)}
    assert found == pytest.approx(RECORDED[path.name], abs=0.05)


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_a_flat_slice_stays_flat_up_to_its_corners(path):
    sr = tiling.upscale(load(path), torch.full((1, 1, 25, 30), 0.5))
    assert (sr - 0.5).abs().max() < 0.005


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_shipped_weights_treat_dark_slices_like_bright_ones(path):
    network = load(path)
    lr = degrade(hr_slices()[:1], "bicubic", network.scale)
    bright, dark = tiling.upscale(network, lr), tiling.upscale(network, lr / 8)
    assert torch.allclose(8 * dark, bright, atol=1e-5)


def test_the_truth_about_a_degradation_helps_also_where_there_is_noise():
    """Told the noise alone, the network did worse than with what it finds."""
    network, hr = load(ROOT / "weights" / "x4.pt"), hr_slices()
    for way in ("bilinear", "blur-2", "rician-5", "rician-10"):
        lr = degrade(hr, way, (4, 4), seed=[1, 2, 3])
        told = describe_degradation(way, (4, 4))
        gains = []
        for truth in (None, told):
            description = network.describe(lr, truth).mean(0, keepdim=True)
            sr = tiling.upscale(network, lr, description).clamp(0, 1)
            gains.append(psnr_of(float(((sr - hr) ** 2).mean())))
        assert gains[1] > gains[0] - 0.02


if __name__ == "__main__":
    for path in WEIGHTS:
        network = load(path)
        print(f'    "{path.name}": {{', end="")
        print(", ".join(f'"{w}": {gain(network, w):.2f}' for w in ways_for(network)) + "},")

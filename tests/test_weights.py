"""The shipped weights still do what was measured when they were made, on the embedded brain."""

from pathlib import Path

import pytest
import torch

import dataset
import modules
from checkpoints import load_checkpoint
from evaluate import as_tensor, evaluate

WEIGHTS = Path(modules.__file__).parent / "weights"
# PSNR in dB on 4 slices of the demonstration: bicubic upsampling, default.pt, bicubic.pt.
RECORDED = {
    "bicubic": (28.18, 31.94, 32.50),
    "bilinear": (27.33, 32.29, 29.42),
    "bilinear-plain": (28.10, 30.12, 24.73),
    "kspace": (27.98, 31.78, 27.67),
}


@pytest.fixture(scope="module")
def slab(tmp_path_factory):
    return dataset.demo_slices(tmp_path_factory.mktemp("slab"))[0]["test"].take(slice(2, 24, 6))


@pytest.fixture(scope="module")
def networks():
    names = ("default.pt", "bicubic.pt")
    return {n: modules.load_network(load_checkpoint(WEIGHTS / n)) for n in names}


@pytest.mark.parametrize("degradation", RECORDED)
def test_shipped_weights_score_as_recorded(slab, networks, degradation):
    table = evaluate(networks, slab, degradation)
    found = [table[name]["psnr"]["mean"] for name in ("bicubic", *networks)]
    assert found == pytest.approx(RECORDED[degradation], abs=0.1)


def test_default_weights_treat_dark_slices_like_bright_ones(slab, networks):
    lr = dataset.degrade(as_tensor(slab[0]), "bicubic")
    with torch.inference_mode():
        bright, dark = networks["default.pt"](lr), networks["default.pt"](lr / 8)
    assert torch.allclose(8 * dark, bright, atol=1e-5)
    assert (bright - modules.Interpolation()(lr)).abs().max() > 0.05  # and it does something

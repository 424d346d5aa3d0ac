"""Scores and their averages."""

import math

import numpy as np
import pytest
import torch
from conftest import scores_by_skimage

from degradation import degrade, make_consistent, measured_scale
from evaluation import metrics


def test_scores_equal_scikit_image(real_slices):
    torch.manual_seed(0)
    noise = [torch.rand(size) for size in ((11, 11), (12, 40), (33, 17), (60, 64))]
    pairs = [(hr + 0.1 * torch.randn(hr.shape), hr) for hr in noise]  # leave [0, 1] as networks do
    pairs += [(torch.roll(hr, 1, dims=1) * 1.1 - 0.02, hr) for hr in real_slices[:, 0]]
    for sr, hr in pairs:
        assert metrics.score(sr, hr) == pytest.approx(scores_by_skimage(sr, hr), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (10, 10), (8, 200)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_scores_are_finite_for_tiny_constant_and_equal_slices(size, value):
    flat = torch.full(size, value)
    for sr in (flat, torch.zeros(size), torch.rand(size)):
        scores = metrics.score(sr, flat)
        assert all(math.isfinite(v) for v in scores.values() if v is not None)
        assert (scores["psnr_brain"] is None) == (value == 0)
    assert metrics.score(flat, flat)["psnr"] == 100
    similar = metrics.score(flat, flat)["ssim"]
    assert similar is None if min(size) < 3 else similar == pytest.approx(1)


def test_summary_averages_slices_of_a_subject_before_subjects():
    def row(psnr, brain):
        return {"mse": 0.1, "psnr": psnr, "psnr_brain": brain, "ssim": 0.5}

    rows = [row(30, 20), row(32, None), row(40, 26), row(50, None)]
    summary = metrics.summarise(rows, ["a", "a", "a", "b"])
    assert summary["subjects"] == 2 and summary["slices"] == 4
    assert summary["psnr"]["mean"] == pytest.approx((34 + 50) / 2)
    assert summary["psnr"]["sd"] == pytest.approx(np.std([34, 50], ddof=1))
    assert summary["psnr_brain"] == {"mean": 23, "sd": None}  # b has no slice with brain
    assert metrics.summarise([row(30, None)], ["a"])["psnr_brain"] == {"mean": None, "sd": None}


def test_table_and_summary_tell_what_is_worse_than_bicubic():
    def row(psnr):
        return {"mse": 0.1, "psnr": psnr, "psnr_brain": psnr, "ssim": None}

    before, after = [row(30)] * 5, [row(33), row(29.5), row(30), row(31), row(29.998)]
    summary = metrics.summarise(after, "aabba", before)
    assert summary["below_bicubic"] == 0.4  # equal is not below
    assert (summary["worst_slice"], summary["worst_gain"]) == (1, -0.5)
    head, _, first, second = metrics.metrics_table(
        {"bicubic": metrics.summarise(before, "aabba"), "mine": summary}
    ).splitlines()
    assert head.split() == ["PSNR", "(dB)", "in", "brain", "(dB)", "below"]  # of what is there
    assert first.startswith("bicubic  30.00 ± 0.00")
    assert second.startswith("mine     30.67 ± 0.24") and second.endswith("40.0%")


@pytest.mark.parametrize("scale", [(4, 4), (2, 3), (4, 1)])
def test_power_ratio_looks_at_what_the_low_resolution_slice_has_measured(scale):
    y, x = torch.meshgrid(torch.arange(48) / 48, torch.arange(48) / 48, indexing="ij")
    low = torch.cos(2 * torch.pi * (2 * y + 3 * x))
    high = torch.cos(2 * torch.pi * (24 // scale[0] + 1) * y)  # a cycle above Nyquist of the rows
    assert metrics.power_ratio(low + high, low, scale) == pytest.approx(1)
    assert metrics.power_ratio(1.1 * low + 7, low, scale) == pytest.approx(1.21)
    assert metrics.power_ratio(low, 0 * low + 0.5, scale) is None
    scores = metrics.score(torch.rand(48, 48), torch.rand(48, 48), scale)
    assert 0.5 < scores["power_ratio"] < 2


def test_the_power_of_a_zero_filled_slice_is_that_of_what_was_measured():
    x = torch.arange(64) / 64
    low, more = (torch.cos(2 * torch.pi * cycles * x).expand(64, 64) for cycles in (3, 6))
    for name, wanted in (("bicubic", 2), ("zerofill-2", 1)):  # below 8, below 4 cycles
        measured = measured_scale(name, (4, 4))
        assert metrics.power_ratio(low + more, low, measured) == pytest.approx(wanted)
    assert measured_scale("zerofill-2", (4, 1)) == (8, 1)  # columns are left alone


def test_scores_are_made_on_devices_without_float64(without_float64):
    sr, hr = torch.rand(16, 16), torch.rand(16, 16)
    wanted = metrics.score(sr, hr, (4, 4))
    assert metrics.score(without_float64(sr), without_float64(hr), (4, 4)) == wanted


@pytest.mark.parametrize("name", ["bicubic", "kspace", "blur-1.5", "zerofill-1.33"])
def test_slices_are_degraded_and_projected_on_devices_without_float64(without_float64, name):
    hr = torch.rand(1, 1, 16, 24)
    lr = degrade(hr, name, (4, 4))
    assert torch.equal(degrade(without_float64(hr), name, (4, 4)).cpu(), lr)
    projected = make_consistent(without_float64(hr), without_float64(lr), name, (4, 4)).cpu()
    assert torch.equal(projected, make_consistent(hr, lr, name, (4, 4)))

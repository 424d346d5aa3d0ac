"""Descriptions of degradations: written down, estimated, put in words."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import degradation
import modules
from degradation import DENOISED, FREQUENCIES, JPEG, NOISE, RICIAN, TOLD, degrade, words_of
from degradation import describe_degradation as describe


@pytest.mark.parametrize("name", ["bicubic", "box", "blur-2", "decimate", "zerofill-2", "kspace"])
def test_a_description_says_what_is_left_of_waves_and_where_the_samples_lie(name):
    """Measured on waves, along rows and columns of different factors."""
    found = describe(name, (4, 2))[0]
    for axis, s in ((0, 4), (1, 2)):
        own = found[axis * degradation.AXIS :]
        size = 48 * s
        for i, f in enumerate(FREQUENCIES[:3]):  # up to Nyquist nothing is folded back
            angles = 2 * np.pi * f * (torch.arange(size) - (s - 1) / 2) / s
            hr = (0.5 + 0.5 * angles.cos()).expand(1, 1, size, size).clone()
            hr = hr.mT.contiguous() if axis == 0 else hr
            lr = degrade(hr, name, (4, 2), rounded=False)[0, 0]
            lr = 2 * (lr[:, 5] if axis == 0 else lr[5])[8:40].double() - 1
            turns = torch.exp(-2j * np.pi * f * torch.arange(8.0, 40.0))
            left = 2 * float((lr * turns).mean().abs())
            assert left == pytest.approx(abs(float(own[i])), abs=0.02)
        shift = {"decimate": -8 * (s - 1) / 2 / s}.get(name, 0)  # eighths of a LR pixel
        assert float(own[len(FREQUENCIES)]) == pytest.approx(shift, abs=0.02)


def test_what_is_not_seen_in_waves_has_entries_of_its_own():
    plain = describe("bicubic", (4, 4))[0]
    for name, entry, value in (
        ("gaussian-2", NOISE, np.log10(21) / 2), ("rician-2", RICIAN, 1), ("jpeg-75", JPEG, 0.5),
        ("median", DENOISED, 1), ("nlm-1.5", DENOISED, 0.5),
    ):  # fmt: skip
        assert describe(name, (4, 4))[0, entry] == pytest.approx(value) and not plain[entry]
    assert plain[TOLD] == 1
    sharp, soft = (describe(name, (4, 4))[0] for name in ("sharpen-150", "enlarged-2"))
    assert sharp[3] > 1.5 * plain[3] and soft[3] < 0.3 * plain[3] and soft[0] > 0.8 * plain[0]
    through = describe("slab-1+sharpen-100", (4, 1))[0]
    assert (through[degradation.AXIS : NOISE - 1] == 1).all()  # nothing is lost along columns


def test_different_degradations_have_different_descriptions():
    names = [*degradation.CELLS, *degradation.PROCESSED[:5]]
    known = describe(list(map(degradation.parse_degradation, names)), (4, 4))
    apart = torch.cdist(known, known) + 9 * torch.eye(len(names))
    assert apart.min() > 0.02 and known.abs().max() < 3.1
    torch.testing.assert_close(known, torch.cat([describe(name, (4, 4)) for name in names]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bicubic", "shrunk like bicubic, hardly any noise, no compression"),
        ("rician-10+median", "shrunk like bicubic, noise 10 %, no compression, denoised"),
        ("kspace+jpeg-60", "shrunk like kspace, hardly any noise, compressed like JPEG 60"),
        ("sharpen-150", "sharpened by 150 %, hardly any noise, no compression"),
    ],
)
def test_words(name, words):
    assert words_of(describe(name, (4, 4)), (4, 4)) == words


def test_words_across_slices():
    words = words_of(describe("slab-0.8", (4, 1)), (4, 1))
    assert words.startswith("slices 0.8 times as thick as they are apart")


# --- estimated ------------------------------------------------------------------------------------


def test_estimates_depend_neither_on_brightness_nor_on_empty_margins(real_slices):
    torch.manual_seed(0)
    estimator = modules.Estimator(8)
    lr = real_slices[:1, :, ::4, ::4]
    with torch.no_grad():
        torch.testing.assert_close(estimator(lr), estimator(0.3 * lr), atol=1e-5, rtol=0)
        padded = F.pad(lr, (30, 12, 6, 40))
        torch.testing.assert_close(estimator(padded), estimator(lr), atol=1e-5, rtol=0)


def test_who_is_not_sure_says_what_is_safest():
    estimator = modules.Estimator(8)
    torch.nn.init.normal_(estimator.safest)
    found = torch.rand(3, degradation.FOUND - 1)
    careful = estimator.towards_safest(found, torch.tensor([[1.0], [0.0], [0.25]]))
    assert torch.equal(careful[0, :-1], found[0])
    torch.testing.assert_close(careful[1, :-1], estimator.safest)
    torch.testing.assert_close(careful[2, :-1], 0.75 * estimator.safest + 0.25 * found[2])
    assert not careful[:, TOLD].any()


def test_a_black_slice_gives_finite_slopes():
    estimator = modules.Estimator(8)
    estimator(torch.zeros(2, 1, 16, 16)).sum().backward()
    assert all(p.grad.isfinite().all() for p in estimator.parameters())


def test_what_is_told_counts_but_for_noise_that_is_measured_nearby():
    told, found = describe("blur-2+rician-2", (4, 4)), describe("bicubic+rician-2.2", (4, 4))
    blended = modules.blend_measured_noise(torch.cat((found, describe("rician-20", (4, 4)))), told)
    rest = [i for i in range(degradation.FOUND) if i not in (NOISE, RICIAN)]
    assert torch.equal(blended[:, rest], told[:, rest].expand(2, -1))
    assert blended[0, NOISE] == pytest.approx(float(found[0, NOISE]), abs=0.002)
    assert blended[1, NOISE] == pytest.approx(float(told[0, NOISE]), abs=0.02)


def test_what_is_known_of_neighbours_stands_behind_the_description():
    found = describe("bicubic", (4, 4))
    present = torch.tensor([[1.0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    full = modules.full_description(found, present, torch.tensor([[2.0], [8.0], [0.3]]))
    assert torch.equal(full[:, : degradation.FOUND], found.expand(3, -1))
    assert torch.equal(full[:, degradation.PRESENT], present)
    torch.testing.assert_close(full[:2, degradation.DISTANCE], torch.tensor([1 / 3, 1]))
    alone = modules.full_description(found)  # a picture, or a slice that lies alone in a scan
    assert not alone[:, degradation.FOUND :].any() and torch.equal(full[2:], alone)
    assert modules.full_description(found, present, 0.0).isfinite().all()  # unknown

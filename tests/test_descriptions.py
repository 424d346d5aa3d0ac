"""Descriptions of degradations: written down, estimated, put in words."""

import pytest
import torch

import degradation
import modules
from degradation import ALL, describe_degradation, words_of


def test_different_degradations_have_different_descriptions():
    known = torch.cat([describe_degradation(name, (4, 4)) for name in ALL])
    apart = torch.cdist(known, known) + 9 * torch.eye(len(ALL))
    assert apart.min() > 0.02
    assert known.shape == (len(ALL), degradation.ENTRIES) and known.abs().max() < 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bicubic", "made like bicubic, no noise to speak of, no compression"),
        ("blur-1.4+gaussian-3", "blurred by 1.4 pixels, noise 3 %, no compression"),
        ("rician-10", "made like bicubic, noise 10 %, no compression"),
        ("kspace+jpeg-60", "made like kspace, no noise to speak of, compressed like JPEG 60"),
        ("zerofill-2", "zero-filled by 2, no noise to speak of, no compression"),
    ],
)
def test_words(name, words):
    assert words_of(describe_degradation(name, (4, 4)), (4, 4)) == words


def test_words_across_slices():
    words = words_of(describe_degradation("slab-0.8", (4, 1)), (4, 1))
    assert words.startswith("slices 0.8 times as thick as they are apart")


def test_estimates_depend_neither_on_brightness_nor_on_empty_margins(real_slices):
    torch.manual_seed(0)
    estimator = modules.Estimator(8)
    lr = real_slices[:1, :, ::4, ::4]
    padded = torch.nn.functional.pad(lr * (lr > 0.05), (30, 30, 30, 30))
    with torch.no_grad():
        torch.testing.assert_close(estimator(lr), estimator(0.3 * lr), atol=1e-5, rtol=0)
        once = estimator(torch.nn.functional.pad(lr * (lr > 0.05), (6, 6, 6, 6)))
        torch.testing.assert_close(estimator(padded), once, atol=1e-5, rtol=0)


def test_what_is_unlike_training_is_told(real_slices):
    lr = real_slices[:1, :, ::4, ::4].contiguous()
    clean = describe_degradation("bicubic", (4, 4))
    assert degradation.unlike_training(lr, clean) == ""
    assert degradation.unlike_training(lr, describe_degradation("rician-20", (4, 4)))
    assert "background" in degradation.unlike_training(1 - lr, clean)
    assert "grey levels" in degradation.unlike_training((lr > 0.2).float(), clean)
    assert "pixels" in degradation.unlike_training(lr[..., :20], None)


def test_a_black_slice_gives_finite_slopes():
    estimator = modules.Estimator(8)
    estimator(torch.zeros(2, 1, 16, 16)).sum().backward()
    assert all(p.grad.isfinite().all() for p in estimator.parameters())

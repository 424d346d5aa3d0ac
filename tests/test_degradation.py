"""Degradations against independent references, and the projection back onto the measured LR."""

import numpy as np
import pytest
import torch
from PIL import Image

import degradation
from degradation import ALL, NAMED, Degradation, degrade, make_consistent, parse_degradation
from utils import UsageError

SCALES = [(4, 4), (2, 2), (3, 3), (4, 1), (5, 1)]


def pillow(method):
    def shrink(hr, scale):
        h, w = hr.shape
        size = (w // scale[1], h // scale[0])
        return np.asarray(Image.fromarray(hr.astype(np.float32)).resize(size, method))

    return shrink


def plain_bilinear(hr, scale):
    """Linear interpolation between the HR samples around s i + (s - 1) / 2."""
    for axis, s in enumerate(scale):
        at = s * np.arange(hr.shape[axis] // s) + (s - 1) / 2
        low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
        hr = (hr.take(low, axis) + hr.take(high, axis)) / 2
    return hr


def fourier_crop(hr, scale):
    """Magnitude of the centre of the spectrum, moved to the sample grid."""
    spectrum, window = np.fft.fftshift(np.fft.fft2(hr)), []
    for axis, (n, s) in enumerate(zip(hr.shape, scale)):
        shift = np.exp(2j * np.pi * (s - 1) / 2 * np.fft.fftshift(np.fft.fftfreq(n)))
        spectrum = spectrum * np.expand_dims(shift, 1 - axis)
        first = n // 2 - n // s // 2
        window.append(slice(first, first + n // s))
    centre = spectrum[tuple(window)]
    return np.abs(np.fft.ifft2(np.fft.ifftshift(centre))) / (scale[0] * scale[1])


REFERENCES = {
    "bicubic": pillow(Image.Resampling.BICUBIC),
    "bilinear": pillow(Image.Resampling.BILINEAR),
    "bilinear-plain": plain_bilinear,
    "kspace": fourier_crop,
    "lanczos": pillow(Image.Resampling.LANCZOS),
    "box": pillow(Image.Resampling.BOX),
    "nearest": pillow(Image.Resampling.NEAREST),
    "slab-1": pillow(Image.Resampling.BOX),
}


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_degradation_equals_an_independent_one(name, scale):
    hr = torch.rand(60, 120, generator=torch.Generator().manual_seed(1))
    lr = degrade(hr[None, None], name, scale)[0, 0].numpy()
    wanted = np.clip(REFERENCES[name](hr.double().numpy(), scale), 0, 1)
    assert np.abs(lr - wanted).max() < 0.51 / 255  # rounding to 8 bits, and no more


@pytest.mark.parametrize("name", [*ALL, "slab-0.7", "blur-1.5+rician-2+jpeg-75"])
def test_lr_is_clamped_has_8_bits_and_comes_again(name):
    hr = torch.zeros(2, 1, 64, 64)
    hr[..., 20:44, 20:44] = 1  # bicubic and kspace overshoot at such edges
    lr = degrade(hr, name, seed=3)
    assert lr.min() >= 0 and lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(lr, degrade(hr, name, seed=3))


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", [*NAMED, "lanczos", "box", "blur-2", "slab-0.7", "zerofill-2"])
def test_all_degradations_share_one_sample_grid(name, scale):
    """A smooth blob stays where it was: LR sample i is at HR coordinate s i + (s - 1) / 2."""
    centre = torch.tensor([60.0, 71.5])
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(120.0), indexing="ij")
    hr = torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * 9.0**2))
    lr = degrade(hr[None, None], name, scale)[0, 0]
    rows, columns = (s * torch.arange(n) + (s - 1) / 2 for s, n in zip(scale, lr.shape))
    found = torch.stack(((lr.sum(1) @ rows), (lr.sum(0) @ columns))) / lr.sum()
    assert (found - centre).abs().max() < 0.1


@pytest.mark.parametrize("name", [*NAMED, "blur-2", "slab-0.8", "zerofill-2", "lanczos"])
def test_constant_slices_stay_constant(name):
    lr = degrade(torch.full((1, 1, 20, 32), 51 / 255), name)
    assert lr.unique().tolist() == [pytest.approx(51 / 255)]


def test_noise_has_the_wanted_size_and_kind():
    hr = torch.full((1, 1, 400, 400), 0.5)
    hr[..., :200] = 0
    gaussian, rician = (degrade(hr, f"{kind}-5", (2, 2)) for kind in ("gaussian", "rician"))
    assert gaussian[..., 110:].std() == pytest.approx(0.05, rel=0.05)
    assert rician[..., :90].mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.05)


def test_a_stronger_jpeg_changes_more():
    hr = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    clean = degrade(hr, "bicubic")
    changes = [(degrade(hr, f"jpeg-{q}") - clean).abs().mean() for q in (95, 75, 50)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_an_axis_of_factor_1_is_left_alone():
    hr = torch.rand(1, 1, 24, 24)
    for name in (*NAMED, "slab-0.8"):
        rows = degrade(hr, name, (4, 1), rounded=False)
        wanted = degrade(hr.mT.contiguous(), name, (1, 4), rounded=False).mT
        assert rows.shape[-2:] == (6, 24)
        torch.testing.assert_close(rows, wanted)


def test_sizes_that_do_not_fit_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="multiples"):
        degrade(torch.rand(1, 1, 22, 20), "bicubic")
    wrong = "cubic", "blur", "blur-0", "jpeg-0", "rician-90", "bicubic+", "zerofill-9", "\n"
    for name in (*wrong, "rician-0", "jpeg-75.5"):
        with pytest.raises(UsageError, match="unknown"):
            parse_degradation(name)
    for twice in ("blur-2+kspace", "rician-2+gaussian-1", "jpeg-75+jpeg-50"):
        with pytest.raises(UsageError, match="names two"):
            parse_degradation(twice)


def test_a_degradation_is_called_as_it_was_named():
    for name in (*degradation.ALL, "slab-0.8", "blur-1.5+rician-2+jpeg-75"):
        way = parse_degradation(name)
        assert parse_degradation(degradation.degradation_name(way)) == way
    assert degradation.full_name("rician-2", (4, 1)) == "slab-1+rician-2"  # thick slices touch
    assert degradation.full_name("blur-1+rician-2", (4, 1)) == "blur-1+rician-2"
    assert degradation.full_name("rician-2", (4, 4)) == "rician-2"


@pytest.mark.parametrize(
    ("text", "scale"), [("4", (4, 4)), ("2", (2, 2)), ("4x1", (4, 1)), ("2x3", (2, 3))]
)
def test_scales_are_pairs(text, scale):
    assert degradation.parse_scale(text) == scale
    assert degradation.scale_name(scale) == text
    for wrong in ("1", "9", "0x4", "1x4", "4x", "x", "four"):
        with pytest.raises(UsageError, match="no scale"):
            degradation.parse_scale(wrong)


@pytest.mark.parametrize("name", ["wide", "mixed"])
@pytest.mark.parametrize("scale", [(4, 4), (5, 1)], ids=str)
def test_random_degradations_are_many_and_can_be_applied(name, scale):
    drawn = [degradation.draw_degradation(name, np.random.default_rng(i), scale) for i in range(99)]
    again = [degradation.draw_degradation(name, np.random.default_rng(i), scale) for i in range(99)]
    assert drawn == again and len(set(drawn)) > 10
    for way in drawn[:20]:
        assert degrade(torch.rand(1, 1, 40, 40), way, scale).isfinite().all()


def test_random_contrast_is_smooth_and_keeps_black():
    for i in range(20):
        curve = degradation.random_contrast(np.random.default_rng(i))
        assert curve.shape == (256,) and curve.dtype == np.float32
        assert curve[0] < 0.05 and curve.min() >= 0 and curve.max() <= 1
        assert np.abs(np.diff(curve)).max() < 0.04


# --- projection -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", ["bicubic", "bilinear", "bilinear-plain", "kspace", "blur-1"])
def test_a_consistent_slice_gives_back_the_lr(name, scale, real_slices):
    hr = degradation.crop_to_scale(real_slices[:1, :, 40:160, 20:140], scale)
    lr = degrade(hr, name, scale)
    off = hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    before, after = (
        (degrade(sr, name, scale, rounded=False) - lr).abs().mean()
        for sr in (off, make_consistent(off, lr, name, scale))
    )
    assert after < (0.5 if name == "blur-1" else 0.25) * before


def test_a_consistent_slice_is_left_alone(real_slices):
    hr = real_slices[:1, :, 40:160, 20:140]
    for name in (*NAMED[:3], "blur-2", "rician-2", "jpeg-75"):
        moved = make_consistent(hr, degrade(hr, name, seed=1), name) - hr
        assert moved.square().mean().sqrt() < 0.01, name


def test_clamped_values_may_have_been_larger():
    sr = torch.full((1, 1, 16, 16), 1.2)
    lr = torch.ones(1, 1, 4, 4)
    assert torch.equal(make_consistent(sr, lr, "bicubic"), sr)
    whole = make_consistent(sr, lr, "bicubic", clamped=None)
    assert (degrade(whole, "bicubic", rounded=False) - 1).abs().max() < 0.01


def test_a_degradation_is_a_value():
    assert parse_degradation("blur-2+rician-3") == Degradation("blur", (2, 2), 0.03, True)

"""Degradations against independent references, and the projection back onto the measured LR."""

import io
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy import ndimage

import degradation
import evaluate
import predict
import train
from degradation import NAMED, Degradation, degrade, make_consistent, parse_degradation
from utils import UsageError

SCALES = [(4, 4), (2, 2), (3, 3), (4, 1), (5, 1)]


def pillow(method):
    def shrink(hr, scale):
        size = (hr.shape[1] // scale[1], hr.shape[0] // scale[0])
        return np.asarray(Image.fromarray(hr.astype(np.float32)).resize(size, method))

    return shrink


def along_axes(hr, scale, matrix_of):
    """The slice after a matrix (size / s, size) along each axis that is enlarged."""
    down, across = (np.eye(n) if s == 1 else matrix_of(n, s) for n, s in zip(hr.shape, scale))
    return down @ hr @ across.T


def distance(n, s):
    """Of each HR sample from the middle of each block."""
    return np.arange(n) - (s * np.arange(n // s) + (s - 1) / 2)[:, None]


def plain_bilinear(n, s):
    return np.maximum(0, 1 - abs(distance(n, s))) if s % 2 else (abs(distance(n, s)) < 1) / 2


def gaussian(n, s, width=1.5):
    """Half as high where it is half as wide."""
    weights = 0.5 ** ((2 * distance(n, s) / (s * width)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def slab(n, s, width=0.7):
    """A box over HR pixels of 20 parts each."""
    parts = (np.arange(20 * n) + 0.5) / 20 - 0.5
    middle = s * np.arange(n // s)[:, None] + (s - 1) / 2
    weights = (abs(parts - middle) < s * width / 2).reshape(n // s, n, 20).sum(2)
    return weights / weights.sum(1, keepdims=True)


def fourier_crop(hr, scale, width=1):
    """Magnitude of the centre of the spectrum, moved to the sample grid; of zero filling a smaller
    centre, with zeros around it."""
    spectrum, window = np.fft.fftshift(np.fft.fft2(hr)), []
    for axis, (n, s) in enumerate(zip(hr.shape, scale)):
        shift = np.exp(2j * np.pi * (s - 1) / 2 * np.fft.fftshift(np.fft.fftfreq(n)))
        cycles, kept = np.arange(n) - n // 2, round(n // s / width) if s > 1 else n
        shift *= (cycles >= -(kept // 2)) & (cycles < kept - kept // 2)
        spectrum = spectrum * np.expand_dims(shift, 1 - axis)
        first = n // 2 - n // s // 2
        window.append(slice(first, first + n // s))
    centre = spectrum[tuple(window)]
    return np.abs(np.fft.ifft2(np.fft.ifftshift(centre))) / (scale[0] * scale[1])


def resized(hr, size, **options):
    return F.interpolate(torch.from_numpy(hr)[None, None], size, mode="bicubic", **options)[0, 0]


def enlarged(hr, scale):
    """Shrunk to the LR grid, to a third of that, and enlarged again by PyTorch."""
    size = [n // s for n, s in zip(hr.shape, scale)]
    small = [n if s == 1 else round(n / 3) for n, s in zip(size, scale)]
    for shape in (size, small):
        hr = resized(hr, shape, antialias=True).numpy()
    return resized(hr, size).numpy()


REFERENCES = {
    "bicubic": pillow(Image.Resampling.BICUBIC),
    "bilinear": pillow(Image.Resampling.BILINEAR),
    "bilinear-plain": lambda hr, scale: along_axes(hr, scale, plain_bilinear),
    "kspace": fourier_crop,
    "zerofill-2": lambda hr, scale: fourier_crop(hr, scale, 2),
    "lanczos": pillow(Image.Resampling.LANCZOS),
    "box": pillow(Image.Resampling.BOX),
    "nearest": pillow(Image.Resampling.NEAREST),
    "decimate": lambda hr, scale: hr[:: scale[0], :: scale[1]],
    "blur-1.5": lambda hr, scale: along_axes(hr, scale, gaussian),
    "slab-0.7": lambda hr, scale: along_axes(hr, scale, slab),
    "enlarged-3": enlarged,
}


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_degradations_equal_independent_ones(name, scale):
    hr = torch.rand(60, 120, generator=torch.Generator().manual_seed(1))
    lr = degrade(hr[None, None], name, scale)[0, 0].numpy()
    wanted = np.clip(REFERENCES[name](hr.double().numpy(), scale), 0, 1)
    assert np.abs(lr - wanted).max() < 0.51 / 255  # rounding to 8 bits, and no more


def test_a_blur_may_have_another_width_along_rows_and_columns():
    hr = torch.rand(1, 1, 60, 120, generator=torch.Generator().manual_seed(1))
    widths = [width * 3 / 2.3548 for width in (2, 1)]  # FWHM: rows, columns
    blurred = ndimage.gaussian_filter(hr[0, 0].double().numpy(), widths, truncate=8)
    inner = degrade(hr, Degradation("blur", (2, 1)), (3, 3))[0, 0, 5:-5, 5:-5]
    assert np.abs(inner.numpy() - blurred[1::3, 1::3][5:-5, 5:-5]).max() < 0.51 / 255


def test_noise_has_the_wanted_size_and_kind_and_comes_again():
    hr = torch.full((1, 1, 400, 400), 0.5)
    hr[..., :200] = 0
    gaussian, rician = (degrade(hr, f"{kind}-5", (2, 2)) for kind in ("gaussian", "rician"))
    for lr, mean in ((gaussian, 0.5), (rician, 0.5025)):  # hypot(0.5, 0.05)
        assert lr[..., 110:].std() == pytest.approx(0.05, rel=0.05)
        assert lr[..., 110:].mean() == pytest.approx(mean, abs=0.001)
    assert (gaussian[..., :90] == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert rician[..., :90].mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.05)
    again, other = (degrade(hr, "rician-5", (2, 2), seed=seed) for seed in (0, 1))
    assert torch.equal(again, rician) and not torch.equal(other, rician)


# --- what programs do afterwards ------------------------------------------------------------------


@pytest.fixture
def lr(real_slices):
    """A real LR slice with noise, as 8 bits (100, 80); `after` makes it without noise."""
    return degrade(real_slices[:1], "rician-3", (2, 2))


def after(lr, name):
    """What the named processing alone makes of an LR slice, uint8."""
    found = degrade(lr.repeat_interleave(2, 2).repeat_interleave(2, 3), f"box+{name}", (2, 2))
    return (found[0, 0] * 255).round().byte().numpy()


def apart(a, b, level=1, share=0.0):
    """Whether more than this share of the pixels differ by more than so many grey levels."""
    return (np.abs(a.astype(int) - b.astype(int)) > level).mean() > share


def non_local_means(image, strength):
    """Buades et al., eq. 2 and 3, pixel by pixel around it: of image and result 3 pixels less."""
    patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
    h, w = patches.shape[0] - 4, patches.shape[1] - 4
    weights, total = 0, 0
    for y, x in np.ndindex(5, 5):
        there = patches[y : y + h, x : x + w]
        weight = np.exp(-((there - patches[2:-2, 2:-2]) ** 2).mean((2, 3)) / strength**2)
        weights, total = weights + weight, total + weight * there[:, :, 1, 1]
    return total / weights


def test_denoised_slices_equal_those_of_scipy_and_of_the_paper(lr):
    image = (lr[0, 0] * 255).round().byte().numpy()
    assert not apart(after(lr, "median"), ndimage.median_filter(image, 3, mode="nearest"), 0)
    found = after(lr, "nlm-3")
    wanted = 255 * non_local_means(image / 255, 0.03)
    assert np.abs(found[3:-3, 3:-3] - wanted).max() < 0.51 and apart(found, image, 2, 0.3)


def test_sharpened_slices_equal_those_of_pillow(lr):
    image = Image.fromarray((lr[0, 0] * 255).round().byte().numpy())
    for percent in (80, 150):  # Pillow's Gaussian is made of boxes
        wanted = np.asarray(image.filter(ImageFilter.UnsharpMask(2, percent, 3)))
        found = after(lr, f"sharpen-{percent}")
        assert not apart(found, wanted, 4, 0.05) and apart(found, np.asarray(image), 8, 0.3)
    faint = lr / 80 + 0.4  # too little to be sharpened
    assert not apart(after(faint, "sharpen-150"), (faint[0, 0] * 255).round().numpy(), 0)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_compressed_slices_equal_those_of_pillow(lr, quality):
    image = Image.fromarray((lr[0, 0] * 255).round().byte().numpy())
    image.save(stream := io.BytesIO(), "JPEG", quality=quality)
    wanted = np.asarray(Image.open(stream))
    assert not apart(after(lr, f"jpeg-{quality}"), wanted)
    ways = [Degradation(jpeg=quality)] * 3
    many = degradation.compress_many(lr.expand(3, 2, -1, -1), ways)
    for found in (many * 255).round().byte().flatten(0, 1).numpy():
        assert not apart(found, wanted, 1, 0.05)


def test_a_list_of_degradations_is_what_each_does_alone(real_slices):
    """Every family at once, of slices with neighbours, and with noise that is given."""
    names = (*REFERENCES, *degradation.CELLS, *degradation.PROCESSED, "zerofill-1.5+jpeg-40")
    ways = [parse_degradation(name) for name in sorted(names)]
    ways += [Degradation("blur", (1.0, 2.5), sharpen=0.7, radius=1.2), Degradation(nlm=0.05)]
    hr = real_slices[:, 0, 40:136, 30:126].expand(len(ways), -1, -1, -1)
    draws = torch.randn(2, len(ways), 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for rounded in (True, False):
        together = degrade(hr, ways, seed=draws, rounded=rounded)
        for i, way in enumerate(ways):
            one = slice(i, i + 1)
            alone = degrade(hr[one], way, seed=draws[:, one], rounded=rounded)
            off = (together[one] - alone).abs() * 255
            if rounded:  # codecs round between their steps
                level, share = (1.01, 0.05) if way.jpeg else (0.01, 0.002)
                assert (off > level).float().mean() <= share, way
            else:
                assert off.max() < 0.01, way


def test_lr_is_clamped_and_has_8_bits():
    hr = torch.zeros(2, 1, 64, 64)
    hr[..., 20:44, 20:44] = 1  # bicubic and kspace overshoot at such edges
    for name in ("bicubic", "kspace", "gaussian-5+sharpen-150", "blur-1.5+rician-2+jpeg-75"):
        lr = degrade(hr, name, seed=3)
        assert lr.min() >= 0 and lr.max() <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


# --- names and draws ------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="multiples"):
        degrade(torch.rand(1, 1, 22, 20), "bicubic")
    wrong = "cubic", "blur", "blur-0", "jpeg-0", "rician-90", "bicubic+", "zerofill-9", "\n"
    for name in (*wrong, "rician-0", "jpeg-75.5", "median-3", "nlm", "sharpen-900", "enlarged-9"):
        with pytest.raises(UsageError, match="unknown"):
            parse_degradation(name)
    for twice in ("blur-2+kspace", "rician-2+gaussian-1", "jpeg-75+jpeg-50", "median+median"):
        with pytest.raises(UsageError, match="names two"):
            parse_degradation(twice)


def test_a_mistyped_name_is_answered_with_the_nearest(cli):
    for name, words in (("blurr-2", "mean blur-1.5?"), ("jpeg75", "mean jpeg-75?"), ("warp", "")):
        with pytest.raises(UsageError, match=f"{re.escape(words)}.*--degradation help lists all"):
            parse_degradation(name)
    for program in (predict, train, evaluate):
        status, said, _ = cli(program.main, "--degradation", "help")
        assert status == 0 and all(f"  {name} " in said for name in degradation.MEANINGS)


def test_a_degradation_is_called_as_it_was_named():
    assert parse_degradation("blur-2+rician-3") == Degradation("blur", (2, 2), 0.03, True)
    for name in (*degradation.MEANINGS, *degradation.CELLS, *degradation.PROCESSED):
        way = parse_degradation(name)
        assert parse_degradation(degradation.degradation_name(way)) == way
    assert degradation.full_name("rician-2", (4, 1)) == "slab-1+rician-2"  # thick slices touch
    assert degradation.full_name("blur-1+rician-2", (4, 1)) == "blur-1+rician-2"
    assert degradation.full_name("rician-2", (4, 4)) == "rician-2"


def test_scales_are_pairs():
    for text, scale in (("4", (4, 4)), ("2", (2, 2)), ("4x1", (4, 1)), ("2X3", (2, 3))):
        assert degradation.parse_scale(text) == scale
        assert degradation.scale_name(scale) == text.lower()
    for wrong in ("1", "9", "0x4", "1x4", "4x", "x", "four"):
        with pytest.raises(UsageError, match="no scale"):
            degradation.parse_scale(wrong)


def test_training_draws_every_family_again_and_again():
    def draws(name, scale, n=600):
        return [degradation.draw_degradation(name, np.random.default_rng(i), scale)
                for i in range(n)]  # fmt: skip

    wide, mixed, through = draws("wide", (4, 4)), draws("mixed", (4, 4)), draws("wide", (5, 1))
    assert wide == draws("wide", (4, 4))
    assert {d.kernel for d in wide} == {*degradation.FIXED, "blur"}
    assert {d.kernel for d in mixed} == set(NAMED) and max(d.noise for d in mixed) <= 0.005
    assert {d.kernel for d in through} == {"slab", "blur", "bicubic"}
    for what in ("rician", "median", "nlm", "sharpen", "jpeg"):
        share = np.mean([bool(getattr(d, what)) for d in wide])
        assert 0.005 < share < 0.4 and not any(getattr(d, what) for d in through if what[0] != "r")
    assert 0.4 < np.mean([d.rician for d in through if d.noise]) < 0.8
    assert any(d.enlarged > 1 for d in wide) and any(d.width[0] != d.width[1] for d in wide)
    for way, scale in ((wide, (4, 4)), (through, (5, 1))):
        assert degrade(torch.rand(200, 1, 40, 40), way[:200], scale).isfinite().all()


def test_random_contrasts_are_smooth_and_keep_black():
    curves = degradation.random_contrasts(np.random.default_rng(0), 20)
    assert curves.shape == (20, 256) and curves.dtype == np.float32
    assert curves[:, 0].max() < 0.05 and curves.min() >= 0 and curves.max() <= 1
    assert np.abs(np.diff(curves)).max() < 0.04
    assert (np.diff(curves).min(1) < 0).any()  # not all of them rise


# --- projection -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("name", ["bicubic", "kspace", "blur-1", "decimate", "enlarged-1.5"])
def test_a_consistent_slice_gives_back_the_lr(name, scale, real_slices):
    hr = degradation.crop_to_scale(real_slices[:1, :, 40:160, 20:140], scale)
    lr = degrade(hr, name, scale)
    off = hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    before, after = (
        (degrade(sr, name, scale, rounded=False) - lr).abs().mean()
        for sr in (off, make_consistent(off, lr, name, scale))
    )
    assert after < (0.5 if name in ("blur-1", "enlarged-1.5") else 0.25) * before


def test_a_consistent_slice_is_left_alone(real_slices):
    hr = real_slices[:1, :, 40:160, 20:140]
    for name in (*NAMED[:3], "blur-2", "rician-2", "jpeg-75"):
        moved = make_consistent(hr, degrade(hr, name, seed=1), name) - hr
        assert moved.square().mean().sqrt() < 0.01, name
    for name in ("sharpen-150", "rician-3+median", "nlm-3"):  # no linear operations
        assert torch.equal(make_consistent(hr, degrade(hr, name), name), hr)


def test_clamped_values_may_have_been_larger():
    sr = torch.full((1, 1, 16, 16), 1.2)
    lr = torch.ones(1, 1, 4, 4)
    assert torch.equal(make_consistent(sr, lr, "bicubic"), sr)
    whole = make_consistent(sr, lr, "bicubic", clamped=None)
    assert (degrade(whole, "bicubic", rounded=False) - 1).abs().max() < 0.01

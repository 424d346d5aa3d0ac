"""HR slices to LR slices in every named way, a degradation as numbers, and the projection back.

The ways differ in the point spread along each axis, in noise and in compression. All share one
sample grid: along an axis enlarged by a factor s, LR pixel i is centred on HR coordinate
s i + (s - 1) / 2, as `align_corners=False` has it.
"""

import io
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from utils import UsageError

Scale = tuple[int, int]  # factors of height and width: (4, 4); (4, 1) only adds rows

NAMED = ("bicubic", "bilinear", "bilinear-plain", "kspace")
ALL = (  # the cells of the table in STUDY.md
    *NAMED, "lanczos", "box", "nearest",
    *(f"blur-{width:g}" for width in (0.5, 1, 1.5, 2, 3)),
    *(f"rician-{percent}" for percent in (1, 2, 5, 10)),
    *(f"jpeg-{quality}" for quality in (95, 75, 50)),
    *(f"zerofill-{factor:g}" for factor in (1.33, 2)),
)  # fmt: skip
KERNELS = ("bicubic", "bilinear", "bilinear-plain", "kspace", "lanczos", "box", "nearest", "blur",
           "slab")  # fmt: skip


@dataclass(frozen=True)
class Degradation:
    """How LR slices are made of HR slices.

    kernel: the point spread, one of KERNELS. width, along rows and columns: of `blur` the full
    width at half maximum of a Gaussian, of `slab` that of a box, both in LR pixels; of `kspace` the
    factor of zero filling: 2 means that half of what the LR grid could hold was measured. noise:
    standard deviation as a share of white, Gaussian, or Rician as in magnitude images. jpeg:
    quality, 0 for no compression.
    """

    kernel: str = "bicubic"
    width: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    rician: bool = False
    jpeg: int = 0


def parse_scale(text: str) -> Scale:
    """`4` as (4, 4), `4x1` as (4, 1): the factors of height and width.

    Raises UsageError.
    """
    rows, x, columns = text.lower().partition("x")
    numbers = (rows, columns if x else rows)
    scale = tuple(int(n) if n.isdecimal() else 0 for n in numbers)
    if not (2 <= scale[0] <= 8 and 1 <= scale[1] <= 8):
        raise UsageError(f"{text} is no scale: 2 to 8, or 4x1 for the height only")
    return scale


def scale_name(scale: Scale) -> str:
    """(4, 4) as `4`, (4, 1) as `4x1`."""
    return f"{scale[0]}" if scale[0] == scale[1] else f"{scale[0]}x{scale[1]}"


def parse_degradation(name: str, kernel: str = "bicubic") -> Degradation:
    """A degradation from its name: a kernel, and with + more of it, as `blur-1.5+rician-2+jpeg-75`.

    `blur-2`: Gaussian of 2 LR pixels; `slab-0.8`: box of 0.8 LR pixels, a slice thinner than the
    distance of slices; `zerofill-2`: k-space of half the width, zero-filled; `rician-2`,
    `gaussian-2`: noise of 2 % of white; `jpeg-75`: quality 75. kernel: where the name has none.
    Raises UsageError.
    """
    found, named = Degradation(kernel), set()
    for part in name.split("+"):
        word, number = re.fullmatch(r"(?s)(.*?)(?:-(\d+(?:\.\d+)?))?", part).groups()
        value = float(number) if number else None
        kind = "point spreads" if word in (*KERNELS, "zerofill") else word
        kind = {"rician": "noises", "gaussian": "noises", "jpeg": "compressions"}.get(word, kind)
        if kind in named:
            raise UsageError(f"degradation {name!r} names two {kind}; one is possible")
        named.add(kind)
        if value is None and word in KERNELS[:-2]:
            found = replace(found, kernel=word)
        elif value and word in ("blur", "slab") and 0.1 <= value <= 5:
            found = replace(found, kernel=word, width=(value, value))
        elif value and word == "zerofill" and 1 <= value <= 4:
            found = replace(found, kernel="kspace", width=(value, value))
        elif value and word in ("rician", "gaussian") and value <= 30:
            found = replace(found, noise=value / 100, rician=word == "rician")
        elif value and word == "jpeg" and value in range(1, 101):
            found = replace(found, jpeg=int(value))
        else:
            raise UsageError(
                f"degradation {part!r} is unknown; known are {', '.join(KERNELS[:-2])}, blur-1.5, "
                "slab-0.8, zerofill-2, rician-2, gaussian-2, jpeg-75, and several with +"
            )
    return found


def degradation_name(degradation: Degradation) -> str:
    """A degradation as the command line names it: `blur-1.5+rician-2`."""
    kernel = degradation.kernel
    if kernel in ("blur", "slab"):
        kernel += f"-{degradation.width[0]:g}"
    elif kernel == "kspace" and degradation.width != (1.0, 1.0):
        kernel = f"zerofill-{degradation.width[0]:g}"
    noise = f"{'rician' if degradation.rician else 'gaussian'}-{100 * degradation.noise:g}"
    names = [
        kernel,
        noise * bool(degradation.noise),
        f"jpeg-{degradation.jpeg}" * bool(degradation.jpeg),
    ]
    return "+".join(name for name in names if name)


def full_name(name: str, scale: Scale) -> str:
    """A name as it is meant at this scale: of thick slices, `rician-2` is `slab-1+rician-2`.

    Raises UsageError.
    """
    way = parse_degradation(name, "slab" if 1 in scale else "bicubic")
    return degradation_name(way) if 1 in scale else name


# --- point spreads --------------------------------------------------------------------------------


def axis_matrix(kernel: str, size: int, factor: int, width: float = 1.0, device: str = "cpu"):
    """The degradation along one axis as a matrix, float32 (k, size / factor, size).

    Every point spread here is linear and separable, so LR = A_h HR A_w^T. k is 1; for `kspace` it
    is 2, the real and the imaginary part of the cropped Fourier transform. Factor 1: the identity.
    """
    if kernel in ("blur", "slab"):  # of any width: not worth keeping
        return point_spread(kernel, size, factor, width).to(device)
    return fixed_matrix(kernel, size, factor, width, device)


def point_spread(kernel: str, size: int, factor: int, width: float) -> torch.Tensor:
    """`axis_matrix` of a point spread given by its shape, its weights normalised to sum 1."""
    if factor == 1:
        return torch.eye(size)[None]
    centre = factor * np.arange(size // factor)[:, None] + (factor - 1) / 2
    distance = (np.arange(size) - centre).astype(np.float32)
    if kernel == "blur":
        weights = np.exp(-4 * np.log(2) * (distance / np.float32(factor * width)) ** 2)
    elif kernel == "slab":  # the part of each HR pixel that the box covers
        weights = np.clip(factor * width / 2 - abs(distance) + 0.5, 0, min(1, factor * width))
    else:  # Lanczos with three lobes
        x = distance / factor
        weights = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0).astype(np.float32)
    weights = weights / weights.sum(1, keepdims=True)
    return torch.from_numpy(weights.astype(np.float32))[None]


@lru_cache(maxsize=256)
def fixed_matrix(kernel: str, size: int, factor: int, width: float, device: str) -> torch.Tensor:
    """`axis_matrix` of the kernels without a free width; kept, as they come again."""
    small = size // factor
    if factor == 1:
        matrix = torch.eye(size)[None]
    elif kernel == "kspace":
        # Centre crop of the spectrum, with the linear phase that moves the samples to their places:
        # the sum of exp(i angle k) over the kept k.
        kept = max(1, round(small / width))
        place = factor * np.arange(small)[:, None] + (factor - 1) / 2 - np.arange(size)
        half = np.pi / size * place + 1e-12  # half of the angle
        kernel = np.sin(kept * half) / np.sin(half) * np.exp(1j * half * (kept - 1 - kept // 2 * 2))
        matrix = torch.from_numpy(np.stack((kernel.real, kernel.imag)) / size)
    elif kernel == "lanczos":
        matrix = point_spread(kernel, size, factor, width)
    else:
        # Interpolating the identity matrix gives the exact weights.
        mode, plain = kernel.removesuffix("-plain"), {"antialias": not kernel.endswith("-plain")}
        if kernel in ("box", "nearest"):
            mode, plain = {"box": "area", "nearest": "nearest-exact"}[kernel], {}
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        matrix = F.interpolate(unit, (small, size), mode=mode, **plain)[0]
    return matrix.float().contiguous().to(device)


def apply_axes(hr: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """LR = |down HR across^T| with `axis_matrix`es; the magnitude matters for `kspace` only."""
    parts = [[d @ hr @ a.mT for a in across] for d in down]
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]
    real, imaginary = parts[0][0], 0
    if len(down) == 2:
        imaginary = imaginary + parts[1][0]
    if len(across) == 2:
        imaginary = imaginary + parts[0][1]
    if len(down) == len(across) == 2:
        real = real - parts[1][1]
    return torch.hypot(real, imaginary)


@lru_cache(maxsize=256)
def transfer_function(kernel: str, factor: int, width: float, frequencies: tuple) -> np.ndarray:
    """What is left of each frequency (in cycles per LR pixel), complex, 1 at frequency 0.

    Beyond half a cycle it tells how much of the frequency comes back as aliasing; its phase tells
    that samples are off their places.
    """
    size = 16 * factor
    row = axis_matrix(kernel, size, factor, width)[0, 8].double().numpy()
    place = (np.arange(size) - (8 * factor + (factor - 1) / 2)) / factor
    return np.exp(-2j * np.pi * np.outer(frequencies, place)) @ row


def measured_scale(degradation, scale: Scale) -> tuple[float, float]:
    """How many HR pixels make one that was measured: where zeros were filled in, beyond scale."""
    way = parse_degradation(degradation) if isinstance(degradation, str) else degradation
    widths = way.width if way.kernel == "kspace" else (1.0, 1.0)
    return tuple(factor * width if factor > 1 else 1 for factor, width in zip(scale, widths))


# --- degrading ------------------------------------------------------------------------------------


def quantise(lr: torch.Tensor) -> torch.Tensor:
    """Clamp to [0, 1] and round to 8 bits: the LR picture as a file would hold it."""
    return lr.clamp(0, 1).mul_(255).round_().div_(255)


def degrade(hr, degradation, scale: Scale = (4, 4), *, seed=0, rounded=True) -> torch.Tensor:
    """The LR slices of HR slices: (N, 1, H, W) in [0, 1] -> (N, 1, H / rows, W / columns).

    degradation: a Degradation or its name. seed: of the noise, a number or a list of them. H and W
    are multiples of the scale (`crop_to_scale`). rounded: False leaves out noise, compression,
    clamping and rounding to 8 bits, so that a linear operation is left.
    """
    way = parse_degradation(degradation) if isinstance(degradation, str) else degradation
    if hr.shape[-2] % scale[0] or hr.shape[-1] % scale[1]:
        raise ValueError(f"{tuple(hr.shape)}: height and width must be multiples of {scale}")
    down, across = (
        axis_matrix(way.kernel, n, s, w, str(hr.device))
        for n, s, w in zip(hr.shape[-2:], scale, way.width)
    )
    lr = apply_axes(hr, down, across)
    if not rounded:
        return lr
    if way.noise:
        lr = add_noise(lr, way.noise, way.rician, np.random.default_rng(seed))
    return compress(quantise(lr), way.jpeg) if way.jpeg else quantise(lr)


def add_noise(slices, size: float, rician: bool, rng: np.random.Generator) -> torch.Tensor:
    """Slices with Gaussian noise of this standard deviation, or with the Rician noise of it."""
    draws = rng.standard_normal((2, *slices.shape), np.float32)
    real, imaginary = torch.from_numpy(draws * np.float32(size)).to(slices.device)
    return torch.hypot(slices + real, imaginary) if rician else slices + real


def compress(lr: torch.Tensor, quality: int) -> torch.Tensor:
    """LR slices after a JPEG of this quality."""
    from PIL import Image

    pixels = (lr * 255).round().to(torch.uint8).cpu().numpy()
    for picture in pixels[:, 0]:
        with io.BytesIO() as file:
            Image.fromarray(picture).save(file, "JPEG", quality=quality)
            picture[:] = np.asarray(Image.open(file))
    return torch.from_numpy(pixels).to(lr.device).float() / 255


def crop_to_scale(hr, scale: Scale = (4, 4)):
    """Cut the last rows and columns so that both sizes are multiples of the scale."""
    h, w = (n // s * s for n, s in zip(hr.shape[-2:], scale))
    return hr[..., :h, :w]


# --- drawing degradations for training ------------------------------------------------------------

MIXED = (0.3, 0.2, 0.15, 0.35)  # shares of the named ones with --degradation mixed


def draw_degradation(name: str, rng: np.random.Generator, scale: Scale) -> Degradation:
    """The degradation of one training slice: the named one; a random one for `mixed`, `wide`."""
    if name == "mixed":  # the named ones, in a quarter of the slices noise up to 0.5 % of white
        noise = 0.02 * max(0.0, 0.25 - rng.random())
        return Degradation(rng.choice(NAMED, p=MIXED), noise=noise)
    if name != "wide":
        return parse_degradation(name)
    through = 1 in scale
    way = draw_slice_profile(rng) if through else draw_point_spread(rng)
    if rng.random() < (0.2 if through or way.kernel in NAMED else 0.4):
        noise = 10 ** rng.uniform(-2.7, -0.95)  # 0.2 to 11 %
        way = replace(way, noise=noise, rician=bool(rng.random() < 0.6))
    if rng.random() < 0.15 and not through:  # scans are not kept as JPEG
        way = replace(way, jpeg=int(rng.integers(30, 99)))
    return way


def draw_point_spread(rng: np.random.Generator) -> Degradation:
    """In the plane: a named one, another of Pillow's, a Gaussian (round or oval), zero filling."""
    kind = rng.choice(4, p=(0.52, 0.07, 0.25, 0.16))
    if kind == 0:
        return Degradation(rng.choice(NAMED, p=MIXED))
    if kind == 1:
        return Degradation(rng.choice(("lanczos", "box", "nearest")))
    if kind == 2:
        width = rng.uniform(0.3, 3.2)
        return Degradation("blur", (width, width * rng.choice((1, rng.uniform(0.7, 1.4)))))
    width = rng.uniform(1, 2.1)
    return Degradation("kspace", (width, width * rng.choice((1, rng.uniform(0.8, 1.25)))))


def draw_slice_profile(rng: np.random.Generator) -> Degradation:
    """Across slices: boxes and Gaussians of 0.6 to 1.3 times the distance of slices.

    Mostly slices that touch, as most scans have them.
    """
    kernel = rng.choice(("slab", "blur", "bicubic"), p=(0.75, 0.2, 0.05))
    width = 1.0 if rng.random() < 0.6 else rng.uniform(0.6, 1.3)
    return Degradation(kernel, (width, 1.0))


def random_contrast(rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve of intensities that keeps black, float32 (256,) in [0, 1].

    Makes other contrasts of the same anatomy, as Billot et al., "SynthSeg", 2023, do by tissue.
    """
    knots = np.append(0.0, rng.uniform(0.05, 1, 5))
    curve = np.interp(np.linspace(0, 5, 256), np.arange(6), knots)
    smooth = np.convolve(np.pad(curve, 24, mode="reflect", reflect_type="odd"), np.ones(49) / 49)
    return smooth[48:-48].clip(0, 1).astype(np.float32)


# --- back onto the measured slice -----------------------------------------------------------------


@lru_cache(maxsize=64)
def inverse_matrix(kernel: str, size: int, factor: int, width: float, device: str) -> torch.Tensor:
    """The pseudo-inverse (size, size / factor) of `axis_matrix`; of its real part for `kspace`.

    Singular values below a fifth are left alone: there the LR holds rounding, not the slice.
    """
    matrix = axis_matrix(kernel, size, factor, width)[0].double()
    return torch.linalg.pinv(matrix, rtol=0.2).float().to(device)


def make_consistent(sr, lr, degradation, scale: Scale = (4, 4), clamped=(0.0, 1.0)):
    """SR slices, moved by what is needed to give back the measured LR when they are degraded again.

    sr (N, 1, H, W), lr (N, 1, H / rows, W / columns). With D the degradation and D+ its
    pseudo-inverse, this is SR + D+ (LR - D SR), the orthogonal projection: what D loses stays the
    network's, what it keeps is the scan's. A difference counts as none that a quarter of a grey
    level (what rounding mostly makes), noise (three standard deviations), compression and clamping
    explain. clamped (low, high): LR values at the low end may have been smaller, at the high end
    larger; None where nothing was clamped. For `kspace` it replaces the centre of k-space by the
    measured one (but for the single Nyquist frequency, of which a magnitude picture holds too
    little). It helps if the degradation really is the named one.
    """
    way = parse_degradation(degradation) if isinstance(degradation, str) else degradation
    device = str(sr.device)
    axes = list(zip(sr.shape[-2:], scale, way.width))
    down, across = (axis_matrix(way.kernel, *axis, device)[0] for axis in axes)
    up, along = (inverse_matrix(way.kernel, *axis, device) for axis in axes)
    again = down @ sr @ across.T
    # A magnitude picture has lost the sign: the network's is the best guess.
    missing = (lr.copysign(again) if way.kernel == "kspace" else lr) - again
    missing = F.softshrink(missing, 0.25 / 255 + 3 * way.noise + (100 - (way.jpeg or 100)) / 500)
    if clamped and way.kernel != "kspace":
        low, high = clamped
        missing = missing.where(lr > low, missing.clamp(max=0))
        missing = missing.where(lr < high, missing.clamp(min=0))
    return sr + up @ missing @ along.T


# --- a degradation as numbers and in words --------------------------------------------------------

FREQUENCIES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)  # cycles per LR pixel
AXIS = len(FREQUENCIES) + 1
ENTRIES = 2 * AXIS + 4
NOISE, RICIAN, JPEG, TOLD = range(2 * AXIS, ENTRIES)
TINY = 1e-16  # keeps the slope of a square root finite, for black slices


def describe_degradation(degradation: Degradation | str, scale: Scale) -> torch.Tensor:
    """The description (1, ENTRIES) of a known degradation."""
    way = parse_degradation(degradation) if isinstance(degradation, str) else degradation
    numbers = []
    for factor, width in zip(scale, way.width):
        left = transfer_function(way.kernel, factor, width, FREQUENCIES)
        numbers += (np.sign(left.real + 1e-9) * abs(left)).tolist()
        numbers.append(-8 * float(np.angle(left[0])) / (2 * math.pi * FREQUENCIES[0]))
    numbers += [math.log10(1 + way.noise / 0.001) / 2, float(way.rician and way.noise > 0)]
    numbers += [(100 - way.jpeg) / 50 if way.jpeg else 0.0, 1.0]
    return torch.tensor([numbers], dtype=torch.float32)


@lru_cache(maxsize=8)
def candidates(scale: Scale) -> tuple[list[str], np.ndarray]:
    """Words for point spreads, and their descriptions, (n, 2 AXIS)."""
    ways = {f"made like {name}": name for name in (*NAMED, "lanczos", "box", "nearest")}
    ways |= {f"blurred by {w / 10:g} pixels": f"blur-{w / 10}" for w in range(5, 33)}
    ways |= {f"zero-filled by {f / 10:g}": f"zerofill-{f / 10}" for f in range(12, 22, 2)}
    if 1 in scale:
        ways = {f"slices {w / 10:g} times as thick as they are apart": f"slab-{w / 10}"
                for w in (*range(6, 10), *range(11, 14))}  # fmt: skip
        ways["slices as thick as they are apart"] = "slab-1"
    described = torch.cat([describe_degradation(way, scale) for way in ways.values()])
    return list(ways), described[:, : 2 * AXIS].numpy()


def words_of(description: torch.Tensor, scale: Scale) -> str:
    """What a description (1, ENTRIES) says: `blurred by 1.4 pixels, noise 2 %, no compression`."""
    numbers = description[0].detach().cpu().double().numpy()
    names, known = candidates(scale)
    words = [names[int(((known - numbers[: 2 * AXIS]) ** 2).sum(1).argmin())]]
    noise = 0.1 * (10 ** (2 * max(0.0, numbers[NOISE])) - 1)  # in per cent
    words.append(f"noise {float(f'{noise:.1g}'):g} %" if noise >= 0.3 else "no noise to speak of")
    quality = 100 - 50 * numbers[JPEG]
    words.append(f"compressed like JPEG {quality:.0f}" if quality < 92 else "no compression")
    return ", ".join(words)


def unlike_training(lr: torch.Tensor, description: torch.Tensor | None) -> str:
    """What sets LR slices (N, 1, H, W) of a scan apart from all training slices; '' for nothing.

    Training slices are dark around the head, have many grey levels and are no smaller than 24
    pixels; noise was up to 11 % of white.
    """
    signs, (h, w) = [], lr.shape[-2:]
    if min(h, w) < 24:
        signs.append(f"only {w}x{h} pixels")
    levels = len(torch.unique((lr * 255).round()))
    if levels < 24:
        signs.append(f"only {levels} grey levels")
    border = torch.cat((lr[..., [0, -1], :].flatten(), lr[..., [0, -1]].flatten()))
    if border.median() > 0.6:
        signs.append("a bright background")
    if description is not None and float(description[0, NOISE]) > math.log10(1 + 140) / 2:
        signs.append("noise beyond 14 %")
    return ", ".join(signs)


def middle_slices(count: int, most: int = 8) -> list[int]:
    """Which of the slices of a scan speak for all of them: some of its middle, evenly spaced."""
    shares = np.linspace(0.3, 0.7, most) * (count - 1)
    return np.unique(shares.round().astype(int)).tolist()

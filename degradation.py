"""How LR slices are made of HR slices: names, random draws, the operation, its description, the way
back.

Ways to degrade differ in the point spread along each axis, in noise, in what a program did to the
picture afterwards, and in compression. All share one sample grid: along an axis that is enlarged by
a factor s, LR pixel i is centred on HR coordinate s i + (s - 1) / 2, as `align_corners=False` has
it; `decimate` alone takes the corner of each block instead.
"""

import difflib
import math
import re
from bisect import bisect
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby

import numpy as np
import torch
import torch.nn.functional as F

from utils import UsageError

Scale = tuple[int, int]  # factors of height and width: (4, 4); (4, 1) only adds rows

# --- names ----------------------------------------------------------------------------------------

# What a part of a name means, for --degradation help.
MEANINGS = {
    "bicubic": "shrunk with Pillow, MATLAB, torchvision's Resize, or antialias=True",
    "bilinear": "the same with the bilinear filter (torchvision's default)",
    "bilinear-plain": "shrunk with OpenCV's resize, or F.interpolate(mode='bilinear')",
    "kspace": "measured by the scanner with fewer lines of k-space",
    "lanczos": "shrunk with Pillow's LANCZOS",
    "box": "blocks of pixels averaged (OpenCV's INTER_AREA)",
    "nearest": "the pixel in the middle of each block (Pillow's NEAREST)",
    "decimate": "the first pixel of each block: image[::4, ::4], or F.interpolate's default",
    "blur-1.5": "a Gaussian of 1.5 LR pixels, full width at half maximum",
    "slab-0.8": "slices 0.8 times as thick as they are apart",
    "zerofill-2": "interpolated by the scanner to twice the matrix that it measured",
    "enlarged-2": "enlarged by 2 by some program before",
    "rician-2": "noise of 2 % of white, as in magnitude images",
    "gaussian-2": "noise of 2 % of white that can be negative",
    "median": "denoised with a median of 3x3 pixels",
    "nlm-3": "denoised by non-local means of strength 3 % of white",
    "sharpen-150": "sharpened by an unsharp mask of 150 % (Pillow's default)",
    "jpeg-75": "saved as JPEG of quality 75",
}
NAMED = ("bicubic", "bilinear", "bilinear-plain", "kspace")
FIXED = (*NAMED, "lanczos", "box", "nearest", "decimate")  # kernels without a free width
CELLS = (  # the cells of the table in docs/STUDY.md
    *NAMED, "lanczos", "box", "nearest",
    *(f"blur-{width:g}" for width in (0.5, 1, 1.5, 2, 3)),
    *(f"rician-{percent}" for percent in (1, 2, 5, 10)),
    *(f"jpeg-{quality}" for quality in (95, 75, 50)),
    *(f"zerofill-{factor:g}" for factor in (1.33, 2)),
)  # fmt: skip
PROCESSED = (  # pictures that a program has had in its hands
    "enlarged-2", "enlarged-1.5", "sharpen-150", "decimate", "rician-3+median", "rician-3+nlm-3",
    "blur-1.5+rician-2+jpeg-75",
)  # fmt: skip
THROUGH = ("box", "slab-0.8", "slab-1.2", "blur-1", "box+rician-2")  # of thick slices


@dataclass(frozen=True)
class Degradation:
    """How LR slices are made of HR slices, in this order.

    kernel: the point spread, one of FIXED, `blur` or `slab`. width, along rows and columns: of
    `blur` the full width at half maximum of a Gaussian, of `slab` that of a box, both in LR pixels;
    of `kspace` the factor of zero filling: 2 means that half of what the LR grid could hold was
    measured. noise: standard deviation as a share of white, Gaussian, or Rician as in magnitude
    images. enlarged: the factor by which the picture was once smaller. median, nlm (strength as a
    share of white): denoised. sharpen: of an unsharp mask, 1.5 for 150 %, and its radius in LR
    pixels. jpeg: quality, 0 for no compression.
    """

    kernel: str = "bicubic"
    width: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    rician: bool = False
    enlarged: float = 1.0
    median: bool = False
    nlm: float = 0.0
    sharpen: float = 0.0
    radius: float = 2.0
    jpeg: int = 0


def parse_scale(text: str) -> Scale:
    """`4` as (4, 4), `4x1` as (4, 1): the factors of height and width. Raises UsageError."""
    rows, x, columns = text.lower().partition("x")
    numbers = (rows, columns if x else rows)
    scale = tuple(int(n) if n.isdecimal() else 0 for n in numbers)
    if not (2 <= scale[0] <= 8 and 1 <= scale[1] <= 8):
        raise UsageError(f"{text} is no scale: 2 to 8, or 4x1 for the height only")
    return scale


def scale_name(scale: Scale) -> str:
    """(4, 4) as `4`, (4, 1) as `4x1`."""
    return f"{scale[0]}" if scale[0] == scale[1] else f"{scale[0]}x{scale[1]}"


def print_degradations() -> int:
    """Print what each part of a name means. Returns the exit status of a program."""
    print("How pictures are made small; numbers are examples, parts are joined by +.\n")
    for name, meaning in MEANINGS.items():
        print(f"  {name:<15} {meaning}")
    print("  wide, mixed     in training: all of these, or the first four at random")
    return 0


def parse_degradation(name: str, kernel: str = "bicubic") -> Degradation:
    """A degradation from its name: parts as in MEANINGS, joined by +: `blur-1.5+rician-2+jpeg-75`.

    kernel: where the name has none. Raises UsageError.
    """
    found, named = Degradation(kernel), set()
    for part in name.split("+"):
        word, number = re.fullmatch(r"(?s)(.*?)(?:-(\d+(?:\.\d+)?))?", part).groups()
        value = float(number) if number else None
        kind = "point spreads" if word in (*FIXED, "blur", "slab", "zerofill") else word
        kind = {"rician": "noises", "gaussian": "noises", "jpeg": "compressions"}.get(word, kind)
        if kind in named:
            raise UsageError(f"degradation {name!r} names two {kind}; one is possible")
        named.add(kind)
        if value is None and word in FIXED:
            found = replace(found, kernel=word)
        elif value is None and word == "median":
            found = replace(found, median=True)
        elif value and word in ("blur", "slab") and 0.1 <= value <= 5:
            found = replace(found, kernel=word, width=(value, value))
        elif value and word == "zerofill" and 1 <= value <= 4:
            found = replace(found, kernel="kspace", width=(value, value))
        elif value and word == "enlarged" and 1 <= value <= 4:
            found = replace(found, enlarged=value)
        elif value and word in ("rician", "gaussian") and value <= 30:
            found = replace(found, noise=value / 100, rician=word == "rician")
        elif value and word == "nlm" and value <= 30:
            found = replace(found, nlm=value / 100)
        elif value and word == "sharpen" and value <= 500:
            found = replace(found, sharpen=value / 100)
        elif value and word == "jpeg" and value in range(1, 101):
            found = replace(found, jpeg=int(value))
        else:
            examples = {re.sub(r"-[\d.]+$", "", known): known for known in MEANINGS}
            near = [examples[k] for k in difflib.get_close_matches(word, examples, 1, 0.7)]
            words = "".join(f" (did you mean {known}?)" for known in near)
            raise UsageError(
                f"degradation {part!r} is unknown{words}; --degradation help lists all"
            )
    return found


def as_degradation(degradation) -> Degradation:
    """A degradation, or the one that has this name."""
    return parse_degradation(degradation) if isinstance(degradation, str) else degradation


def degradation_name(degradation: Degradation) -> str:
    """A degradation as the command line names it: `blur-1.5+rician-2`."""
    d, kernel = degradation, degradation.kernel
    if kernel in ("blur", "slab"):
        kernel += f"-{d.width[0]:g}"
    elif kernel == "kspace" and d.width != (1.0, 1.0):
        kernel = f"zerofill-{d.width[0]:g}"
    parts = {
        kernel: True,
        f"{'rician' if d.rician else 'gaussian'}-{100 * d.noise:g}": d.noise,
        f"enlarged-{d.enlarged:g}": d.enlarged != 1,
        "median": d.median,
        f"nlm-{100 * d.nlm:g}": d.nlm,
        f"sharpen-{100 * d.sharpen:g}": d.sharpen,
        f"jpeg-{d.jpeg}": d.jpeg,
    }
    return "+".join(name for name, there in parts.items() if there)


def full_name(name: str, scale: Scale) -> str:
    """A name as it is meant at this scale: of thick slices, `rician-2` is `slab-1+rician-2`.

    Raises UsageError.
    """
    degradation = parse_degradation(name, "slab" if 1 in scale else "bicubic")
    return degradation_name(degradation) if 1 in scale else name


def validation_degradations(name: str, scale: Scale) -> tuple[str, ...]:
    """The degradations that one of training stands for at validation. Raises UsageError."""
    if name == "wide" and 1 in scale:
        return "slab-1", "slab-0.8", "blur-1", "slab-1+rician-2"
    if name == "wide":
        return (*NAMED, *NAMED, "blur-2", "blur-1", "rician-2", "jpeg-75", "zerofill-2")
    if name == "mixed":
        return NAMED
    return (full_name(name, scale),)


# --- point spreads along an axis ------------------------------------------------------------------


@lru_cache(maxsize=8192)
def axis_matrix(kernel: str, size: int, factor: int, width: float, device) -> torch.Tensor:
    """The degradation along one axis as a matrix, float32 (k, size / factor, size); kept, as it
    comes again.

    Every point spread here is linear and separable, so LR = A_h HR A_w^T. k is 1; for `kspace` it
    is 2, the real and the imaginary part of the cropped Fourier transform.
    """
    unit, small = torch.eye(size, dtype=torch.float64), size // factor
    place = factor * torch.arange(small, dtype=torch.float64)[:, None] + (factor - 1) / 2
    distance = torch.arange(size) - place
    if kernel == "blur":
        matrix = (-4 * math.log(2) * (distance / (factor * width)) ** 2).exp()
    elif kernel == "slab":  # the part of each HR pixel that the box covers
        matrix = (factor * width / 2 - distance.abs() + 0.5).clamp(0, min(1, factor * width))
    elif kernel == "lanczos":  # three lobes
        x = distance / factor
        matrix = torch.where(x.abs() < 3, x.sinc() * (x / 3).sinc(), 0)
    elif kernel == "kspace":
        return to_device(fourier_crop(distance, size, factor, width).float(), device)
    elif kernel == "decimate":
        matrix = unit[: small * factor : factor]
    else:
        # Interpolating the identity matrix gives the exact weights.
        mode, plain = kernel.removesuffix("-plain"), {"antialias": not kernel.endswith("-plain")}
        if kernel in ("box", "nearest"):
            mode, plain = {"box": "area", "nearest": "nearest-exact"}[kernel], {}
        matrix = F.interpolate(unit[None, None], (small, size), mode=mode, **plain)[0, 0]
    matrix = matrix / matrix.sum(1, keepdim=True)
    return to_device(matrix.float()[None], device)


def fourier_crop(distance, size: int, factor: int, width: float) -> torch.Tensor:
    """`axis_matrix` of `kspace`: the centre of the spectrum, with the linear phase that moves the
    samples to their places, is the sum of exp(i angle k) over the kept k."""
    kept = max(1, round(size // factor / width))
    half = -math.pi / size * distance + 1e-12  # half of the angle
    real = (kept * half).sin() / half.sin() / size
    turn = half * (kept - 1 - kept // 2 * 2)
    return torch.stack((real * turn.cos(), real * turn.sin()))


@lru_cache(maxsize=512)
def shrink_and_enlarge(size: int, factor: float, device) -> torch.Tensor:
    """The matrix (size, size) of shrinking by this factor and enlarging again, both bicubic."""
    unit, small = torch.eye(size, dtype=torch.float64)[None, None], max(1, round(size / factor))
    matrix = F.interpolate(unit, (small, size), mode="bicubic", antialias=True)
    matrix = F.interpolate(matrix, (size, size), mode="bicubic")[0, 0]
    return to_device(matrix.float().contiguous(), device)


def stacked(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Matrices (..., h, w) of N slices as (..., N, 1, h, w); one for all if there is but one."""
    whole = matrices[0][..., None, :, :] if len(matrices) == 1 else torch.stack(matrices, -3)
    return whole.unsqueeze(-3)


def shrink(hr: torch.Tensor, degradations: list, scale: Scale) -> torch.Tensor:
    """LR = |A_h HR A_w^T| of slices (N, C, H, W), by N degradations of one sort or by one for all;
    the magnitude matters for `kspace` only. A factor of 1 leaves an axis as it is."""
    down, across = (
        None if s == 1 else
        stacked([axis_matrix(d.kernel, n, s, d.width[k], hr.device) for d in degradations])
        for k, (n, s) in enumerate(zip(hr.shape[-2:], scale))
    )  # fmt: skip
    rows = [hr] if down is None else [d @ hr for d in down]
    parts = [[x] if across is None else [x @ a.mT for a in across] for x in rows]
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]
    real, imaginary = parts[0][0], 0
    if len(parts) == 2:
        imaginary = imaginary + parts[1][0]
    if len(parts[0]) == 2:
        imaginary = imaginary + parts[0][1]
    if len(parts) == len(parts[0]) == 2:
        real = real - parts[1][1]
    return torch.hypot(real, imaginary)


def runs_of(degradations: list[Degradation]):
    """(degradations, slice) of runs of neighbours that are measured alike: in k-space or not."""
    start = 0
    for _, members in groupby(degradations, key=lambda d: d.kernel == "kspace"):
        members = list(members)
        yield members, slice(start, start + len(members))
        start += len(members)


def measured_scale(degradation, scale: Scale) -> tuple[float, float]:
    """How many HR pixels make one that was measured: where zeros were filled in, beyond scale."""
    d = as_degradation(degradation)
    widths = d.width if d.kernel == "kspace" else (1.0, 1.0)
    return tuple(s * max(w, d.enlarged) if s > 1 else 1 for s, w in zip(scale, widths))


# --- degrading ------------------------------------------------------------------------------------


def crop_to_scale(hr, scale: Scale = (4, 4)):
    """Cut the last rows and columns so that both sizes are multiples of the scale."""
    h, w = (n // s * s for n, s in zip(hr.shape[-2:], scale))
    return hr[..., :h, :w]


def degrade(hr, degradation, scale: Scale = (4, 4), *, seed=0, rounded=True) -> torch.Tensor:
    """The LR slices of HR slices: (N, C, H, W) in [0, 1] -> (N, C, H / rows, W / columns).

    degradation: a Degradation or its name for all, or a list of N of them. H and W are multiples of
    the scale (`crop_to_scale`). seed: of the noise: a number or a list of them, for the same noise
    on every device, or draws of a normal distribution, (2, N, C, LR height, LR width). rounded:
    False leaves out noise and all that a program did afterwards, clamping and rounding to 8 bits,
    so that a linear operation is left.
    """
    many = isinstance(degradation, list)
    all_of = degradation if many else [as_degradation(degradation)]
    if hr.shape[-2] % scale[0] or hr.shape[-1] % scale[1]:
        raise ValueError(f"{tuple(hr.shape)}: height and width must be multiples of {scale}")
    parts = [shrink(hr[run] if many else hr, some, scale) for some, run in runs_of(all_of)]
    lr = parts[0] if len(parts) == 1 else torch.cat(parts)
    if rounded and any(d.noise for d in all_of):
        size, rician = numbers_of(all_of, ("noise", "rician"), hr.device).unbind(1)
        lr = add_noise(lr, size, rician > 0, seed)
    if any(d.enlarged != 1 for d in all_of):
        h, w = lr.shape[-2:]
        if scale[0] > 1:
            lr = stacked([shrink_and_enlarge(h, d.enlarged, lr.device) for d in all_of]) @ lr
        if scale[1] > 1:
            across = stacked([shrink_and_enlarge(w, d.enlarged, lr.device) for d in all_of])
            lr = lr @ across.mT
    if not rounded:
        return lr
    for what, change in AFTERWARDS.items():
        which = [i for i, d in enumerate(all_of) if getattr(d, what)]
        if what == "jpeg":
            lr = lr.clamp(0, 1).mul_(255).round_().div_(255)  # as a file of 8 bits would hold it
        if which and not many:
            lr = change(lr, all_of)
        elif which:
            where = to_device(torch.tensor(which), lr.device)
            change = compress_many if what == "jpeg" else change  # even of one: it rounds alike
            changed = change(lr.index_select(0, where), [all_of[i] for i in which])
            lr = lr.index_copy(0, where, changed)
    return lr


def numbers_of(degradations: list, names, device) -> torch.Tensor:
    """These properties of N degradations, float32 (N, number of names, 1, 1, 1)."""
    rows = [[getattr(d, name) for name in names] for d in degradations]
    return to_device(torch.tensor(rows, dtype=torch.float32), device)[..., None, None, None]


def to_device(tensor: torch.Tensor, device) -> torch.Tensor:
    """A tensor on the device; from pinned memory, a copy to CUDA does not wait."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)  # MPS would copy what may have been freed by then


def add_noise(slices: torch.Tensor, size, rician, seed) -> torch.Tensor:
    """Slices with Gaussian noise of this standard deviation, or with the Rician noise of it.

    size, rician: numbers, or tensors that broadcast. seed: as of `degrade`.
    """
    draws = seed
    if not torch.is_tensor(draws):
        draws = np.random.default_rng(seed).standard_normal((2, *slices.shape), np.float32)
        draws = torch.from_numpy(draws).to(slices.device)
    real, imaginary = draws * size
    with_noise = slices + real
    if not torch.is_tensor(rician):
        return torch.hypot(with_noise, imaginary) if rician else with_noise
    return torch.where(rician, torch.hypot(with_noise, imaginary), with_noise)


def median_of_9(lr: torch.Tensor, degradations=()) -> torch.Tensor:
    """The median of each 3x3 neighbourhood."""
    around = F.pad(lr, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return around.flatten(-2).median(-1).values


def non_local_means(lr: torch.Tensor, degradations: list, reach: int = 2) -> torch.Tensor:
    """Each pixel as the mean of those around it that have similar surroundings of 3x3 pixels.

    Buades et al., "A non-local algorithm for image denoising", CVPR 2005, eq. 2 and 3, within
    `reach` pixels; h is the strength.
    """
    n, c, h, w = lr.shape
    strength = numbers_of(degradations, ("nlm",), lr.device)
    width = 2 * reach + 1
    around = F.pad(lr, [reach] * 4, mode="replicate").unfold(2, h, 1).unfold(3, w, 1)
    around = around.reshape(n, c, width * width, h, w)
    differences = (around - lr[:, :, None]) ** 2
    distance = F.avg_pool2d(differences.flatten(0, 1), 3, 1, 1, count_include_pad=False)
    weights = (-distance.view(around.shape) / strength**2).exp()
    return (weights * around).sum(2) / weights.sum(2)


def unsharp_mask(lr: torch.Tensor, degradations: list, threshold: float = 3 / 255) -> torch.Tensor:
    """Slices plus `sharpen` times their difference to a Gaussian mean, of `radius` as standard
    deviation, where it exceeds the threshold, as Pillow's UnsharpMask."""
    (amount,) = numbers_of(degradations, ("sharpen",), lr.device).unbind(1)
    widths = [round(2.3548 * d.radius, 2) for d in degradations]
    down, across = (
        stacked([axis_matrix("blur", n, 1, width, lr.device)[0] for width in widths])
        for n in lr.shape[-2:]
    )
    detail = lr - down @ lr @ across.mT
    return lr + amount * detail * (detail.abs() > threshold)


def compress(lr: torch.Tensor, degradations: list) -> torch.Tensor:
    """LR slices after a JPEG of one quality, by torchvision's codec; on CUDA by `compress_many`."""
    if lr.is_cuda:
        return compress_many(lr, degradations)
    from torchvision.io import decode_jpeg, encode_jpeg

    pixels = (lr * 255).round().to(torch.uint8).cpu().flatten(0, 1)
    pixels = [decode_jpeg(encode_jpeg(x[None], degradations[0].jpeg)) for x in pixels]
    return torch.stack(pixels).view(lr.shape).to(lr.device).float() / 255


# The quantisation of luminance in ISO/IEC 10918-1, table K.1.
LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


@lru_cache(maxsize=4)
def jpeg_tables(device) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosine transform of 8 values (8, 8), and the quantisation of quality 50 (8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    cosines = (math.pi / 8 * k[:, None] * (k + 0.5)).cos() * torch.where(k == 0, 1, 2**0.5)[:, None]
    table = torch.tensor(LUMINANCE, dtype=torch.float32).view(8, 8)
    return (cosines / 8**0.5).float().to(device), table.to(device)


def compress_many(lr: torch.Tensor, degradations: list) -> torch.Tensor:
    """LR slices (N, C, H, W) after N JPEGs, or one for all, at once on any device.

    What a codec does to grey pictures (ISO/IEC 10918-1, annex A and K): equal to `compress` but for
    single grey levels, as codecs round between their steps.
    """
    (quality,) = numbers_of(degradations, ("jpeg",), lr.device).unbind(1)
    (h, w), (cosines, table) = lr.shape[-2:], jpeg_tables(lr.device)
    percent = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality)
    steps = ((table * percent[..., None] + 50) / 100).floor().clamp(1, 255)[:, :, None]
    blocks = F.pad(lr, (0, -w % 8, 0, -h % 8), mode="replicate") * 255 - 128
    blocks = blocks.unfold(2, 8, 8).unfold(3, 8, 8)  # (N, C, rows, columns, 8, 8)
    eighths = (8 * cosines @ blocks @ cosines.T).round()  # as codecs have it, halves away from zero
    kept = (eighths.abs() / (8 * steps) + 0.5).floor() * eighths.sign() * steps
    blocks = (cosines.T @ kept @ cosines + 128).round().clamp(0, 255)
    whole = blocks.transpose(3, 4).flatten(4).flatten(2, 3)
    return whole[..., :h, :w] / 255


# What a program did to a picture, in this order.
AFTERWARDS = {
    "median": median_of_9,
    "nlm": non_local_means,
    "sharpen": unsharp_mask,
    "jpeg": compress,
}

# --- drawing degradations for training ------------------------------------------------------------

MIXED = (0.3, 0.2, 0.15, 0.35)  # shares of the named ones with --degradation mixed


def draw(rng: np.random.Generator, options, shares):
    """One of the options, with these shares of the draws."""
    return options[min(bisect(list(accumulate(shares)), rng.random()), len(options) - 1)]


def draw_degradation(name: str, rng: np.random.Generator, scale: Scale) -> Degradation:
    """The degradation of one training slice: the named one; a random one for `mixed`, `wide`."""
    if name == "mixed":  # the named ones, in a quarter of the slices noise up to 0.5 % of white
        noise = 0.02 * max(0.0, 0.25 - rng.random())
        return Degradation(draw(rng, NAMED, MIXED), noise=noise)
    if name != "wide":
        return parse_degradation(full_name(name, scale))
    through = 1 in scale
    found = draw_slice_profile(rng) if through else draw_point_spread(rng)
    if rng.random() < (0.2 if through or found.kernel in NAMED else 0.4):
        noise = 10 ** rng.uniform(-2.7, -0.95)  # 0.2 to 11 %
        found = replace(found, noise=noise, rician=bool(rng.random() < 0.6))
    if through:  # scans are not kept as JPEG, nor sharpened
        return found
    if rng.random() < 0.12:
        found = draw_processing(found, rng)
    if rng.random() < 0.15:
        found = replace(found, jpeg=int(rng.integers(30, 99)))
    return found


def draw_point_spread(rng: np.random.Generator) -> Degradation:
    """In the plane: a named one, another of Pillow's, a Gaussian (round or oval), zero filling."""
    kind = draw(rng, ("named", "other", "blur", "zerofill"), (0.51, 0.1, 0.24, 0.15))
    if kind == "named":
        return Degradation(draw(rng, NAMED, MIXED))
    if kind == "other":
        return Degradation(draw(rng, ("lanczos", "box", "nearest", "decimate"), (1 / 4,) * 4))
    oval = rng.random() < 0.5
    if kind == "blur":
        width = rng.uniform(0.3, 3.2)
        return Degradation("blur", in_steps(width, rng.uniform(0.7, 1.4) if oval else 1))
    width = rng.uniform(1, 2.1)
    return Degradation("kspace", in_steps(width, rng.uniform(0.8, 1.25) if oval else 1))


def in_steps(width: float, oval: float) -> tuple[float, float]:
    """Widths along rows and columns, in steps so that their matrices can be kept."""
    return round(50 * width) / 50, round(50 * width * oval) / 50


def draw_processing(found: Degradation, rng: np.random.Generator) -> Degradation:
    """What programs do to a picture afterwards: enlarge, sharpen, denoise it."""
    kind = draw(rng, ("enlarged", "sharpened", "denoised"), (0.4, 0.35, 0.25))
    if kind == "enlarged":  # in steps, so that their matrices can be kept
        return replace(found, enlarged=int(rng.integers(13, 26)) / 10)
    if kind == "sharpened":
        return replace(found, sharpen=rng.uniform(0.3, 2.5), radius=int(rng.integers(14, 61)) / 20)
    noise = found.noise or 10 ** rng.uniform(-2.3, -1.2)  # who denoises has noise
    found = replace(found, noise=noise, rician=found.rician or bool(rng.random() < 0.6))
    if rng.random() < 0.5:
        return replace(found, median=True)
    return replace(found, nlm=max(0.005, noise * rng.uniform(0.6, 1.5)))


def draw_slice_profile(rng: np.random.Generator) -> Degradation:
    """Across slices: boxes and Gaussians of 0.6 to 1.3 times the distance of slices.

    Mostly slices that touch, as most scans have them.
    """
    kernel = draw(rng, ("slab", "blur", "bicubic"), (0.75, 0.2, 0.05))
    width = 1.0 if rng.random() < 0.6 else rng.uniform(0.6, 1.3)
    return Degradation(kernel, in_steps(width, 1))


@lru_cache(maxsize=1)
def smooth_curves() -> np.ndarray:
    """The matrix (256, 6) that makes smooth curves of 6 knots, the first of them black."""
    curves = [np.interp(np.linspace(0, 5, 256), np.arange(6), knots) for knots in np.eye(6)]
    curves = np.pad(curves, ((0, 0), (24, 24)), mode="reflect", reflect_type="odd")
    return np.lib.stride_tricks.sliding_window_view(curves, 49, 1).mean(2).T


def random_contrasts(rng: np.random.Generator, count: int) -> np.ndarray:
    """Smooth random curves of intensities that keep black, float32 (count, 256) in [0, 1].

    They make other contrasts of the same anatomy, as Billot et al., "SynthSeg", 2023, do by tissue.
    """
    knots = rng.uniform(0.05, 1, (count, 6)) * (np.arange(6) > 0)
    return (knots @ smooth_curves().T).clip(0, 1).astype(np.float32)


# --- back onto the measured slice -----------------------------------------------------------------


def whole_axis_matrix(degradation: Degradation, axis: int, size: int, factor: int, device: str):
    """The linear part of a degradation along one axis, float32 (size / factor, size); of `kspace`
    its real part."""
    if factor == 1:
        return torch.eye(size, device=device)
    device = torch.device(device)
    matrix = axis_matrix(degradation.kernel, size, factor, degradation.width[axis], device)[0]
    if degradation.enlarged != 1:
        matrix = shrink_and_enlarge(len(matrix), degradation.enlarged, matrix.device) @ matrix
    return matrix


@lru_cache(maxsize=64)
def inverse_matrix(degradation: Degradation, axis: int, size: int, factor: int, device: str):
    """The pseudo-inverse (size, size / factor) of `whole_axis_matrix`.

    Singular values below a fifth are left alone: there the LR holds rounding, not the slice.
    """
    matrix = whole_axis_matrix(degradation, axis, size, factor, "cpu").double()
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
    little). It helps if the degradation really is the named one. Sharpened and denoised slices
    are no linear operation away, and are left as they are.
    """
    d = as_degradation(degradation)
    if d.sharpen or d.median or d.nlm:
        return sr
    plain, device = replace(d, noise=0.0, jpeg=0), str(sr.device)
    axes = [(k, n, s) for k, (n, s) in enumerate(zip(sr.shape[-2:], scale))]
    down, across = (whole_axis_matrix(plain, *axis, device) for axis in axes)
    up, along = (inverse_matrix(plain, *axis, device) for axis in axes)
    again = down @ sr @ across.T
    # A magnitude picture has lost the sign: the network's is the best guess.
    missing = (lr.copysign(again) if d.kernel == "kspace" else lr) - again
    missing = F.softshrink(missing, 0.25 / 255 + 3 * d.noise + (100 - (d.jpeg or 100)) / 500)
    if clamped and d.kernel != "kspace":
        low, high = clamped
        missing = missing.where(lr > low, missing.clamp(max=0))
        missing = missing.where(lr < high, missing.clamp(min=0))
    return sr + up @ missing @ along.T


# --- a degradation as numbers and in words --------------------------------------------------------

# A description is a vector in which all degradations are points. For the rows and then the columns:
# what is left of these frequencies (cycles per LR pixel) and how far the samples are off their
# places; then noise, its kind, compression, denoising, and whether somebody has told all this (1)
# or it was estimated (0): FOUND entries. Behind them what the network is given of the neighbours of
# a slice: which of four are there, and how far apart slices are.
FREQUENCIES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
AXIS = len(FREQUENCIES) + 1
NOISE, RICIAN, JPEG, DENOISED, TOLD = range(2 * AXIS, 2 * AXIS + 5)
FOUND = 2 * AXIS + 5
PRESENT, DISTANCE = slice(FOUND, FOUND + 4), FOUND + 4
ENTRIES = FOUND + 5


def describe_degradation(degradation, scale: Scale) -> torch.Tensor:
    """The description (1, FOUND) of a known degradation or its name; of a list (N, FOUND)."""
    rows = []
    for d in degradation if isinstance(degradation, list) else [as_degradation(degradation)]:
        row = [
            x for k in (0, 1) for x in transfer_along(d.kernel, scale[k], d.width[k], d.enlarged)
        ]
        if d.sharpen:
            for k in (0, 1):
                for i, f in enumerate(FREQUENCIES):
                    blurred = math.exp(-2 * (math.pi * d.radius * f) ** 2) if scale[k] > 1 else 1
                    row[k * AXIS + i] *= 1 + d.sharpen * (1 - blurred)
        row += [math.log10(1 + d.noise / 0.001) / 2, d.rician and d.noise > 0]
        row += [(100 - d.jpeg) / 50 if d.jpeg else 0, 1 if d.median else min(1, d.nlm / 0.03), 1]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32)


@lru_cache(maxsize=8192)
def transfer_along(kernel: str, factor: int, width: float, enlarged: float = 1.0) -> tuple:
    """What is left of FREQUENCIES along one axis, 1 being all, and the shift of the samples in
    eighths of a LR pixel: AXIS numbers.

    Beyond half a cycle it tells how much of the frequency comes back as aliasing.
    """
    if factor == 1:
        return (*[1.0] * (AXIS - 1), 0.0)
    frequencies, size = np.array(FREQUENCIES), 32 * factor
    line = axis_matrix(kernel, size, factor, width, torch.device("cpu"))[0, 16].double().numpy()
    place = (np.arange(size) - 16 * factor - (factor - 1) / 2) / factor
    left = np.exp(-2j * np.pi * np.outer(frequencies, place)) @ line
    if enlarged != 1:  # an operation on the LR pixels, so that its transfer is a factor
        lines = shrink_and_enlarge(32, enlarged, torch.device("cpu"))[12:20].double().numpy()
        waves = np.exp(2j * np.pi * np.outer(np.arange(32), frequencies))
        left = left * (lines @ waves / waves[12:20]).mean(0)
    shift = -8 * float(np.angle(left[0])) / (2 * math.pi * FREQUENCIES[0])
    return (*(np.where(left.real > -1e-6, 1, -1) * abs(left)).tolist(), shift)


@lru_cache(maxsize=8)
def candidates(scale: Scale) -> tuple[list[str], np.ndarray]:
    """Words for point spreads, and their descriptions, (n, 2 AXIS)."""
    names = {f"shrunk like {name}": name for name in FIXED}
    names |= {f"blurred by {w / 10:g} pixel{'s' * (w != 10)}": f"blur-{w / 10}"
              for w in range(5, 33)}  # fmt: skip
    names |= {f"zero-filled by {f / 10:g}": f"zerofill-{f / 10}" for f in range(12, 22, 2)}
    names |= {f"enlarged by {f / 10:g} before": f"enlarged-{f / 10}" for f in range(14, 26, 2)}
    names |= {f"sharpened by {p} %": f"sharpen-{p}" for p in (80, 150)}
    if 1 in scale:
        names = {f"slices {w / 10:g} times as thick as they are apart": f"slab-{w / 10}"
                 for w in (6, 7, 8, 12, 13)}  # fmt: skip
        names["slices without gaps"] = "slab-1"
    described = describe_degradation([parse_degradation(name) for name in names.values()], scale)
    return list(names), described[:, : 2 * AXIS].numpy()


def words_of(description: torch.Tensor, scale: Scale) -> str:
    """What a description (1, FOUND) says: `blurred by 1.4 pixels, noise 2 %, no compression`."""
    numbers = description[0].detach().cpu().double().numpy()
    names, known = candidates(scale)
    words = [names[int(((known - numbers[: 2 * AXIS]) ** 2).sum(1).argmin())]]
    noise = 0.1 * (10 ** (2 * max(0.0, numbers[NOISE])) - 1)  # in per cent
    words.append(f"noise {float(f'{noise:.1g}'):g} %" if noise >= 0.3 else "hardly any noise")
    quality = 100 - 50 * numbers[JPEG]
    words.append(f"compressed like JPEG {quality:.0f}" if quality < 92 else "no compression")
    words += ["denoised"] if numbers[DENOISED] > 0.5 else []
    return ", ".join(words)


def middle_slices(count: int, most: int = 8) -> list[int]:
    """Which of the slices of a scan speak for all of them: some of its middle, evenly spaced."""
    shares = np.linspace(0.3, 0.7, most) * (count - 1)
    return np.unique(shares.round().astype(int)).tolist()

"""HR slices to LR slices in every named way, and the projection back onto a measured LR slice."""

from functools import lru_cache

import torch
import torch.nn.functional as F

SCALE = 4
DEGRADATIONS = ("bicubic", "bilinear", "bilinear-plain", "kspace")


@lru_cache(maxsize=256)
def axis_matrix(name: str, size: int, device: str = "cpu") -> torch.Tensor:
    """The degradation along one axis as a matrix, float32 (k, size / 4, size).

    Every degradation here is linear and separable, so LR = A_h HR A_w^T. k is 1; for `kspace` it is
    2, the real and the imaginary part of the cropped Fourier transform. Row i is centred on HR
    coordinate 4 i + 1.5, the sample grid of `align_corners=False`.
    """
    small = size // SCALE
    if name == "kspace":
        # Centre crop of the spectrum, with the linear phase that moves sample i to 4 i + 1.5.
        k = torch.arange(-(small // 2), small - small // 2, dtype=torch.float64)
        shift = 4 * torch.arange(small)[:, None] + 1.5 - torch.arange(size)
        angle = 2 * torch.pi / size * shift.double()
        matrix = torch.polar(torch.ones(1, dtype=torch.float64), angle[..., None] * k).sum(-1)
        matrix = torch.view_as_real(matrix / size).permute(2, 0, 1)
    else:
        # PyTorch's own resampling of the unit vectors: the definition, not an approximation of it.
        mode, antialias = name.split("-")[0], name != "bilinear-plain"
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        matrix = F.interpolate(unit, (small, size), mode=mode, antialias=antialias)[0]
    return matrix.float().contiguous().to(device)


def apply_axes(hr: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """LR = down HR across^T with `axis_matrix`es or windows of them; not clamped, not rounded."""
    h, w = down.shape[-2], across.shape[-2]
    lr = down.flatten(-3, -2) @ hr @ across.flatten(-3, -2).mT
    if lr.shape[-1] == w:
        return lr
    real = lr[..., :h, :w] - lr[..., h:, w:]
    imaginary = lr[..., :h, w:] + lr[..., h:, :w]
    return torch.hypot(real, imaginary)


def quantise(lr: torch.Tensor) -> torch.Tensor:
    """Clamp to [0, 1] and round to 8 bits: the LR picture as a file would hold it."""
    return lr.clamp(0, 1).mul_(255).round_().div_(255)


def degrade(hr: torch.Tensor, name: str, rounded: bool = True) -> torch.Tensor:
    """The LR slices of HR slices: (N, 1, H, W) in [0, 1] -> (N, 1, H / 4, W / 4), 8-bit levels.

    name: `bicubic` and `bilinear` (antialiased), `bilinear-plain` (not antialiased), `kspace` (the
    magnitude of the central sixteenth of the 2-D Fourier transform). H and W are multiples of 4
    (`crop_to_scale`). rounded: False leaves out clamping and rounding.
    """
    if hr.shape[-2] % SCALE or hr.shape[-1] % SCALE:
        raise ValueError(f"{tuple(hr.shape)}: height and width must be multiples of {SCALE}")
    down, across = (axis_matrix(name, size, str(hr.device)) for size in hr.shape[-2:])
    lr = apply_axes(hr, down, across)
    return quantise(lr) if rounded else lr


@lru_cache(maxsize=64)
def inverse_matrix(name: str, size: int, device: str = "cpu") -> torch.Tensor:
    """The pseudo-inverse (size, size / 4) of `axis_matrix`; of its real part for `kspace`."""
    return torch.linalg.pinv(axis_matrix(name, size)[0].double()).float().to(device)


def make_consistent(sr: torch.Tensor, lr: torch.Tensor, name: str) -> torch.Tensor:
    """SR slices, moved by what is needed to give back the measured LR when they are degraded again.

    sr (N, 1, 4 H, 4 W), lr (N, 1, H, W). With D the degradation and D+ its pseudo-inverse, this is
    SR + D+ (LR - D SR), the orthogonal projection: what D loses stays the network's, what it keeps
    is the scan's. A difference that the LR's rounding to 8 bits and clamping to [0, 1] explain
    counts as none. For `kspace` it replaces the centre of k-space by the measured one (but for the
    single Nyquist frequency, of which a magnitude picture holds too little). It helps if the
    degradation really is the named one.
    """
    (h, w), device = sr.shape[-2:], str(sr.device)
    again = axis_matrix(name, h, device)[0] @ sr @ axis_matrix(name, w, device)[0].T
    # A magnitude picture has lost the sign: the network's is the best guess.
    missing = (lr.copysign(again) if name == "kspace" else lr) - again
    missing = F.softshrink(missing, 0.5 / 255)
    if name != "kspace":
        missing = missing.where(lr > 0, missing.clamp(max=0)).where(lr < 1, missing.clamp(min=0))
    return sr + inverse_matrix(name, h, device) @ missing @ inverse_matrix(name, w, device).T


def crop_to_scale(hr):
    """Cut the last rows and columns so that both sizes are multiples of 4."""
    return hr[..., : hr.shape[-2] // SCALE * SCALE, : hr.shape[-1] // SCALE * SCALE]

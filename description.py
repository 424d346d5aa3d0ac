"""What is known of a degradation, as numbers: written down, estimated from a slice, put in words.

A description is a vector of ENTRIES numbers in which all degradations are points: for the rows and
the columns what is left of some frequencies and how far the samples are off their places, then
noise, its kind, compression, and whether somebody who knows has told it.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from degradation import NAMED, Degradation, Scale, parse_degradation, transfer_function

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


class Estimator(nn.Module):
    """Finds the description of an LR slice: a few convolutions, their mean size over the slice.

    Without biases, and with the means divided by their norm, it does not depend on brightness, nor
    on how much of the slice is empty.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layers = nn.ModuleList(
            (
                nn.Conv2d(1, channels // 2, 5, bias=False),
                nn.Conv2d(channels // 2, channels, 3, bias=False),
                nn.Conv2d(channels, channels, 3, stride=2, bias=False),
                nn.Conv2d(channels, 2 * channels, 3, bias=False),
            )
        )
        self.decide = nn.Sequential(
            nn.Linear(8 * channels, 64), nn.LeakyReLU(0.1), nn.Linear(64, ENTRIES - 1)
        )

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """LR slices (N, 1, H, W) -> (N, ENTRIES)."""
        features, means, roots = lr, [], []
        for i, conv in enumerate(self.layers):
            edge = conv.kernel_size[0] // 2
            features = conv(F.pad(features, [edge] * 4, mode="replicate"))
            if i:
                size = features.float()
                means.append(size.abs().mean((2, 3)))
                roots.append((size.square().mean((2, 3)) + TINY).sqrt())
            features = F.leaky_relu(features, 0.1)
        found = self.decide(torch.cat((of_unit_size(means), of_unit_size(roots)), 1)).float()
        return torch.cat((found, torch.zeros_like(found[:, :1])), 1)  # nobody has told


def of_unit_size(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts joined, divided by their root mean square: an emptier slice has smaller means."""
    joined = torch.cat(parts, 1)
    return joined / (joined.square().mean(1, keepdim=True) + TINY).sqrt()

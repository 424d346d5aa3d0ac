"""The networks: stacks of convolutions at low resolution that end in a sub-pixel layer.

All take LR slices (N, 1, H, W), float32 in [0, 1], of any size, and return SR slices
(N, 1, 4 H, 4 W), not clamped.

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", CVPR 2016 (ESPCN): eq. 1-3 the stack, eq. 4 the pixel shuffle.
"""

import copy
import reprlib

import torch
import torch.nn.functional as F
from torch import nn

from utils import DataError, reason

SCALE = 4
TILE = 384  # LR pixels along an edge; longer slices are computed in tiles


class ESPCN(nn.Module):
    """The plain stack: conv 5x5, two conv 3x3, conv 3x3 to 16 channels, LeakyReLU between.

    With 64 channels 84,752 parameters.
    """

    reach = 5  # LR pixels around a pixel that its result depends on

    def __init__(self, channels: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, SCALE**2, 3, padding=1),
            nn.PixelShuffle(SCALE),
        )

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.layers(lr)


class Interpolation(nn.Module):
    """4x `nearest` or `bicubic` interpolation as a 5x5 convolution at low resolution.

    Interpolation by a whole factor weighs a 5x5 neighbourhood in one of 16 fixed ways, one for each
    sub-pixel. Equal to `F.interpolate(..., align_corners=False)`, at a fraction of its cost.
    """

    def __init__(self, mode: str = "bicubic"):
        super().__init__()
        # The weights are the answer to a single bright pixel at each place of the neighbourhood.
        impulses = torch.eye(25).reshape(25, 1, 5, 5)
        answers = F.interpolate(F.pad(impulses, (2, 2, 2, 2)), scale_factor=SCALE, mode=mode)
        kernel = answers[:, 0, 16:20, 16:20].reshape(25, SCALE**2).T.contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def sub_pixels(self, lr: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W) -> (N, 16, H, W): the interpolated slice before the pixel shuffle."""
        return F.conv2d(F.pad(lr, (2, 2, 2, 2), mode="replicate"), self.kernel.view(-1, 1, 5, 5))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.sub_pixels(lr), SCALE)


class DeepESPCN(nn.Module):
    """The default network: many narrow convolutions that correct an interpolation.

    conv 5x5, `blocks` convolutions with LeakyReLU, conv 3x3 to 16 channels, plus the bicubic
    interpolation of the input as 16 sub-pixels, then the pixel shuffle. The last convolution starts
    at zero, so that the untrained network is the interpolation. Half way, a side path of `half`
    convolutions at half the resolution is added: more weights and a wider view at a quarter of the
    cost.

    kernel: of the convolutions of the middle. `1x3`: in turns along the rows and along the columns
        (Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, sec. 3.2, with an
        activation after each): at a third of the cost of `3x3`, which pays for more channels.
    body: how they are made trainable at this depth.
        `identity`: each starts as the identity plus a little noise (Zagoruyko and Komodakis,
        "DiracNets", 2017): the skip connection of a residual layer is part of its kernel, and costs
        nothing; `residual`: additions around pairs of convolutions (EDSR, Lim et al. 2017, without
        batch normalisation), of which an odd last one is left out; `plain`: PyTorch's start.
    skip: `bicubic`, `nearest` or `none`.
    bias: False leaves the biases out. The network is then homogeneous, f(a x) = a f(x) for a > 0: a
        dark scan is treated like a bright one (Mohan et al., "Robust and interpretable blind image
        denoising via bias-free convolutional neural networks", ICLR 2020).
    """

    def __init__(
        self, channels=48, blocks=13, half=4, kernel="1x3", skip="bicubic", body="identity",
        icnr=False, bias=False,
    ):  # fmt: skip
        super().__init__()
        sizes = [(1, 3), (3, 1)] if kernel == "1x3" else [(3, 3)] * 2

        def convolutions(n):
            return nn.ModuleList(
                nn.Conv2d(channels, channels, (h, w), padding=(h // 2, w // 2), bias=bias)
                for h, w in (sizes[i % 2] for i in range(n))
            )

        self.residual = body == "residual"
        self.head = nn.Conv2d(1, channels, 5, padding=2, bias=bias)
        self.body = convolutions(blocks)
        self.side = convolutions(half)
        if half:
            self.down = nn.Conv2d(channels, channels, 2, stride=2, bias=bias)
            self.up = nn.Conv2d(channels, 4 * channels, 1, bias=bias)
        self.tail = nn.Conv2d(channels, SCALE**2, 3, padding=1, bias=bias)
        self.skip = Interpolation(skip) if skip != "none" else None
        # How far a result sees along the rows, where 1x3 kernels see no less than down the columns.
        self.reach = 3 + sum(conv.padding[1] for conv in self.body)
        self.reach += 2 * sum(conv.padding[1] for conv in self.side) + (half > 0)
        with torch.no_grad():
            if body == "identity":
                for conv in (*self.body, *self.side):
                    conv.weight.mul_(0.1)
                    conv.weight[:, :, conv.padding[0], conv.padding[1]] += torch.eye(channels)
                    if bias:
                        conv.bias.zero_()
            if half:  # the side path starts small, as something that corrects
                self.up.weight.mul_(0.1)
                if bias:
                    self.down.bias.zero_()
                    self.up.bias.zero_()
            if self.skip:
                self.tail.weight.zero_()
                if bias:
                    self.tail.bias.zero_()
            elif icnr:  # Aitken et al. 2017: all 16 sub-pixels start alike, no checkerboard
                self.tail.weight.copy_(self.tail.weight[:1].expand_as(self.tail.weight))
                if bias:
                    self.tail.bias.copy_(self.tail.bias[:1].expand_as(self.tail.bias))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        # In place, as memory traffic is what activations cost.
        features = self.head(lr)
        if not self.residual:
            F.leaky_relu_(features, 0.1)
        body = list(self.body)
        middle = len(body) // 4 * 2  # even, so that no pair of a residual body is torn
        features = self.stack(features, body[:middle])
        if len(self.side):
            h, w = lr.shape[-2:]
            low = F.leaky_relu_(self.down(F.pad(features, (0, w % 2, 0, h % 2))), 0.1)
            low = self.stack(low, list(self.side))
            features = features + F.pixel_shuffle(self.up(low), 2)[..., :h, :w]
        sub_pixels = self.tail(self.stack(features, body[middle:]))
        if self.skip:
            sub_pixels = sub_pixels + self.skip.sub_pixels(lr)
        return F.pixel_shuffle(sub_pixels, SCALE)

    def stack(self, features: torch.Tensor, convolutions: list) -> torch.Tensor:
        """The result of these convolutions (C to C channels) and their activations."""
        if self.residual:
            for first, second in zip(convolutions[::2], convolutions[1::2]):
                features = second(first(features).relu_()).add_(features)
        else:
            for conv in convolutions:
                features = F.leaky_relu_(conv(features), 0.1)
        return features


NETWORKS = {"deep": DeepESPCN, "espcn": ESPCN}
CHOICES = {
    "kernel": ("1x3", "3x3"),
    "skip": ("bicubic", "nearest", "none"),
    "body": ("identity", "residual", "plain"),
}


def build(arch: dict) -> nn.Module:
    """The network that an `arch` dict describes: {'name': ..., keyword arguments}.

    Raises DataError for anything but a known name with sensible values, before memory is taken.
    """
    options = dict(arch)
    name = options.pop("name", None)
    channels = options.get("channels", 48)
    depths = (options.get("blocks", 13), options.get("half", 4)) if name == "deep" else ()
    good = (
        name in tuple(NETWORKS)
        and options.keys()
        <= {"channels", *(("blocks", "half", "icnr", "bias", *CHOICES) if name == "deep" else ())}
        and type(channels) is int
        and all(type(n) is int and n >= 0 for n in depths)
        and sum(depths) <= 1024
        and 1 <= channels <= 1024
        and channels**2 * max(2, sum(depths)) < 2**24  # 0.6 GB of weights
        and all(options[k] in CHOICES[k] for k in CHOICES if k in options)
        and all(isinstance(options.get(k, False), bool) for k in ("icnr", "bias"))
    )
    if not good:
        raise DataError(f"unknown network, or too large: {reprlib.repr(arch)}")
    network = NETWORKS[name](**options)
    return network.to(memory_format=torch.channels_last)  # 1.6-1.9x the speed on a CPU


def load_network(checkpoint: dict, path="checkpoint") -> nn.Module:
    """The network of a checkpoint, ready for inference. Raises DataError if it does not fit."""
    arch, weights = checkpoint["arch"], checkpoint["model"]
    try:
        if checkpoint["scale"] != SCALE:
            raise DataError(f"its scale is not {SCALE}")
        # Names and sizes are compared before memory is taken, without the parts that compute
        # something, as that is slow without memory.
        bare = dict(skip="none", body="plain", icnr=False) if arch.get("name") == "deep" else {}
        with torch.device("meta"):
            wanted = build(arch | bare).state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            raise DataError("weights and arch differ")
        if not all(w.is_floating_point() and w.isfinite().all() for w in weights.values()):
            raise DataError("it holds weights that are not finite numbers")
        network = build(arch)
        network.load_state_dict(weights)
    except Exception as error:  # names and values of a hostile file can be of any type
        raise DataError(f"{path}: does not fit this program ({reason(error)})") from None
    return network.eval()


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def mmac(network: nn.Module, height: int = 60, width: int = 64) -> float:
    """Million multiply-accumulates of all convolutions for one LR slice."""
    from torch.utils.flop_counter import FlopCounterMode  # takes 0.1 s, which upscaling can save

    counted = copy.deepcopy(network).to("meta")  # shapes alone: nothing is computed
    with FlopCounterMode(display=False) as counter:
        counted(torch.empty(1, 1, height, width, device="meta"))
    return counter.get_total_flops() / 2e6


@torch.inference_mode()
def upscale(network: nn.Module, lr: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """SR slices (N, 1, 4 H, 4 W) of LR slices (N, 1, H, W), on the LR slices' device.

    Long edges are cut into tiles that overlap by what a result depends on: tiling changes nothing.
    """
    h, w = lr.shape[-2:]
    if h <= tile and w <= tile:
        return network(lr).float()
    # Even, so that the pixels of half the resolution stay where they are.
    reach = getattr(network, "reach", 2)
    reach, tile = reach + reach % 2, tile + tile % 2
    sr = lr.new_empty(len(lr), 1, SCALE * h, SCALE * w)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            y, x = max(0, top - reach), max(0, left - reach)
            part = network(lr[..., y : top + tile + reach, x : left + tile + reach]).float()
            part = part[..., SCALE * (top - y) :, SCALE * (left - x) :]
            target = sr[
                ..., SCALE * top : SCALE * (top + tile), SCALE * left : SCALE * (left + tile)
            ]
            target.copy_(part[..., : target.shape[-2], : target.shape[-1]])
    return sr

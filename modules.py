"""The networks: stacks of convolutions at low resolution that end in a sub-pixel layer.

All take LR slices (N, 1, H, W), float32 in [0, 1], of any size, and return SR slices
(N, 1, rows H, columns W), not clamped, `scale` being the pair (rows, columns).

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", CVPR 2016 (ESPCN): eq. 1-3 the stack, eq. 4 the sub-pixel layer.
"""

import reprlib

import torch
import torch.nn.functional as F
from torch import nn

from degradation import ENTRIES, NOISE, RICIAN, TINY, Scale
from utils import DataError, reason

# In inference so many first layers stay fp32: rounding their features is nearly all that bf16
# costs.
EXACT = 4
NEAR = 0.2  # of the entry for noise in a description: 0.2 more is 2.5 times the noise


def without_autocast(features: torch.Tensor):
    """A context without autocast: bf16 features stay bf16, fp32 ones fp32."""
    return torch.autocast(features.device.type, enabled=False)


def replicate(features: torch.Tensor, *edges: int) -> torch.Tensor:
    """Continue the borders by their outermost pixels: so many left, right, above and below."""
    with without_autocast(features):  # autocast would do this in fp32
        return F.pad(features, edges, mode="replicate")


class ScaledActivation(torch.autograd.Function):
    """LeakyReLU of features (N, C, H, W) times positive gains (N, C, 1, 1), in place.

    Saves memory, and a quarter of a training step: only the result r is kept. With p = gain x,
    the gain's gradient follows from it, as r dL/dr = p dL/dp.
    """

    @staticmethod
    def forward(ctx, features, gain):
        result = F.leaky_relu_(scale_channels_(features, gain), 0.1)
        ctx.mark_dirty(result)
        ctx.save_for_backward(result, gain)
        return result

    @staticmethod
    def backward(ctx, grad):
        result, gain = ctx.saved_tensors
        gain_grad = (grad * result).sum((2, 3), keepdim=True) / gain
        grad = torch.ops.aten.leaky_relu_backward(grad, result, 0.1, True)
        return scale_channels_(grad, gain), gain_grad


def scale_channels_(features: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Features times gains (N, C, 1, 1), in place; whole rows at a time where channels come last,
    as loops over the channels alone are short and slow."""
    n, c, h, w = features.shape
    gain = gain.to(features.dtype)
    if features.is_contiguous(memory_format=torch.channels_last):
        rows = features.permute(0, 2, 3, 1).view(n, h, w * c)
        rows.mul_(gain.view(-1, 1, 1, c).expand(-1, 1, w, c).reshape(-1, 1, w * c))
        return features
    return features.mul_(gain)


def sub_pixel_layer(features: torch.Tensor, scale: Scale) -> torch.Tensor:
    """(N, rows columns, H, W) -> (N, 1, rows H, columns W): nn.PixelShuffle for any two factors."""
    n, _, h, w = features.shape
    rows, columns = scale
    features = features.reshape(n, rows, columns, h, w).permute(0, 3, 1, 4, 2)
    return features.reshape(n, 1, h * rows, w * columns)


class ESPCN(nn.Module):
    """The plain stack: conv 5x5, two conv 3x3, conv 3x3 to the sub-pixels, LeakyReLU between.

    With 64 channels and scale 4 84,752 parameters.
    """

    receptive_radius = 5  # LR pixels around a pixel that its result depends on
    told = False

    def __init__(self, channels: int = 64, scale: Scale = (4, 4)):
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, scale[0] * scale[1], 3, padding=1),
        )

    @property
    def tail(self) -> nn.Conv2d:
        """The convolution to the sub-pixels."""
        return self.layers[-1]

    def forward(self, lr: torch.Tensor, description=None) -> torch.Tensor:
        return sub_pixel_layer(self.layers(lr), self.scale)


class Interpolation(nn.Module):
    """`bicubic` or `bilinear` interpolation by whole factors as a 5x5 convolution.

    Such an interpolation weighs a 5x5 neighbourhood in a fixed way for each sub-pixel. Equal to
    `F.interpolate(..., align_corners=False)`, at a fraction of its cost.
    """

    receptive_radius = 2
    told = False

    def __init__(self, scale: Scale = (4, 4), mode: str = "bicubic"):
        super().__init__()
        self.scale = scale
        # Interpolating the identity matrix gives the exact weights.
        unit = torch.eye(5, device="cpu")[None, None]  # on "meta" PyTorch would load SymPy
        down, across = (
            F.interpolate(unit, (5 * s, 5), mode=mode)[0, 0, 2 * s : 3 * s] for s in scale
        )
        kernel = torch.einsum("ai,bj->abij", down, across).reshape(-1, 1, 5, 5)
        self.register_buffer("kernel", kernel, persistent=False)

    def sub_pixels(self, lr: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W) -> (N, rows columns, H, W): the result before the sub-pixel layer."""
        with without_autocast(lr):
            return F.conv2d(replicate(lr, 2, 2, 2, 2), self.kernel)

    def forward(self, lr: torch.Tensor, description=None) -> torch.Tensor:
        return sub_pixel_layer(self.sub_pixels(lr), self.scale)


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


class ErrorHead(nn.Module):
    """The expected absolute error of each pixel, from the last features of a network.

    It looks at these features, at how rough the LR slice is around (noise, edges), and at the
    description, if the network takes one. Homogeneous, as the network is.
    """

    window = 15  # LR pixels along an edge of what counts as around

    def __init__(self, channels: int, sub_pixels: int, told: bool):
        super().__init__()
        hidden = max(1, channels // 2)
        self.pixel = nn.Conv2d(channels, hidden, 3, bias=False)
        self.rough = nn.Conv2d(1, 8, 5, bias=False)
        self.around = nn.Conv2d(8, hidden, 1, bias=False)
        self.last = nn.Conv2d(hidden, sub_pixels, 1, bias=False)
        if told:
            self.gain = nn.Linear(ENTRIES, hidden)
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.gain.bias)

    def forward(self, features: torch.Tensor, lr: torch.Tensor, description) -> torch.Tensor:
        """Features with one more pixel on each side, LR slices, a description or None -> (N, rows
        columns, H, W), at least 0.001: the likelihood would reward errors of zero.
        """
        edge = self.window // 2 + 2
        with without_autocast(lr):
            rough = self.rough(replicate(lr, edge, edge, edge, edge)).abs()
            mean = rough.new_full((len(self.rough.weight), 1, self.window, 1), 1 / self.window)
            for kernel in (mean, mean.mT):  # a ninth of the time of F.avg_pool2d
                rough = F.conv2d(rough, kernel, groups=len(kernel))
            hidden = self.around(rough)
            gain = 1.0
            if description is not None:
                gain = 1 + 0.9 * torch.tanh(self.gain(description))[..., None, None]
        hidden = (self.pixel(features) + hidden) * gain
        size = self.last(F.leaky_relu_(hidden, 0.1)).float()
        return (size.square() + 1e-6).sqrt()


class DeepESPCN(nn.Module):
    """The default network: many narrow convolutions that correct a bicubic interpolation.

    conv 5x5, `blocks` convolutions of 1x3 and 3x1 in turns (Szegedy et al., "Rethinking the
    Inception architecture", CVPR 2016, sec. 3.2, with an activation after each), conv 3x3 to the
    sub-pixels, plus the interpolation of the input, then the sub-pixel layer. The last convolution
    starts at zero: the untrained network is the interpolation. The others start as the identity
    plus a little noise (Zagoruyko and Komodakis, "DiracNets", 2017). Half way, a side path of
    `half` convolutions at half the resolution is added: a wider view at a quarter of the cost.

    No biases: the network is homogeneous, f(a x) = a f(x) for a > 0, so that a dark scan is treated
    like a bright one (Mohan et al., ICLR 2020). Borders are continued by their outermost pixels at
    every layer, so that a constant stays constant.

    told: the features are scaled, channel by channel, by functions of a description of the
    degradation (degradation.py), which an estimator finds in the LR slice if nobody tells it.
    spread: a small head on the last features gives the expected absolute error (uncertainty.py).
    """

    def __init__(
        self, channels=48, blocks=13, half=4, told=False, spread=False, scale: Scale = (4, 4)
    ):
        super().__init__()

        def convolutions(n):
            sizes = ((1, 3), (3, 1))
            return nn.ModuleList(
                nn.Conv2d(channels, channels, sizes[i % 2], bias=False) for i in range(n)
            )

        self.scale, self.told, self.channels = scale, told, channels
        self.head = nn.Conv2d(1, channels, 5, bias=False)
        self.body, self.side = convolutions(blocks), convolutions(half)
        if half:
            self.down = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
            self.up = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.tail = nn.Conv2d(channels, scale[0] * scale[1], 3, bias=False)
        self.skip = Interpolation(scale)
        if told:
            self.estimator = Estimator()
            self.modulation = nn.Sequential(
                nn.Linear(ENTRIES, 32), nn.Tanh(), nn.Linear(32, (1 + blocks + half) * channels)
            )
            nn.init.zeros_(self.modulation[2].weight)
            nn.init.zeros_(self.modulation[2].bias)
        if spread:
            self.spread = ErrorHead(channels, scale[0] * scale[1], told)
        # Counted along a row: 1x3 comes first, so that down a column it is never more.
        self.receptive_radius = 3 + (blocks + 1) // 2 + 2 * ((half + 1) // 2) + (half > 0)
        if spread:
            self.receptive_radius = max(self.receptive_radius, ErrorHead.window // 2 + 2)
        with torch.no_grad():
            for conv in (*self.body, *self.side):
                h, w = conv.kernel_size
                conv.weight.mul_(0.1)[:, :, h // 2, w // 2].diagonal().add_(1)
            if half:  # the side path starts small, as something that corrects
                self.up.weight.mul_(0.1)
            self.tail.weight.zero_()

    def forward(self, lr: torch.Tensor, description=None, spread=False) -> torch.Tensor:
        """description (N or 1, ENTRIES): of the degradation; None: estimated, for each slice.

        spread: gives (N, 2, rows H, columns W), SR slices and their expected absolute errors.
        """
        gains = [None] * (1 + len(self.body) + len(self.side))
        middle = len(self.body) // 4 * 2
        convolutions = [self.head, *self.body]
        exact = 0 if self.training else min(EXACT, middle + 1)
        with without_autocast(lr):
            if self.told:
                description = self.describe(lr) if description is None else description
                gains = self.modulation(description).view(-1, len(gains), self.channels, 1, 1)
                gains = (1 + 0.5 * torch.tanh(gains)).unbind(1)
            features = self.stack(lr, convolutions[:exact], gains[:exact])
        rest = slice(exact, middle + 1)
        features = self.stack(features, convolutions[rest], gains[rest])
        if len(self.side):
            h, w = features.shape[-2:]
            # One more row and column than an even number needs changes nothing.
            low = F.leaky_relu_(self.down(replicate(features, 0, 1, 0, 1)), 0.1)
            low = self.stack(low, self.side, gains[1 + len(self.body) :])
            features = features + F.pixel_shuffle(self.up(low), 2)[..., :h, :w]
        rest = slice(middle + 1, 1 + len(self.body))
        features = self.stack(features, convolutions[rest], gains[rest])
        features = replicate(features, 1, 1, 1, 1)
        sr = sub_pixel_layer(self.tail(features) + self.skip.sub_pixels(lr), self.scale)
        if not spread:
            return sr
        errors = self.spread(features, lr, description if self.told else None)
        return torch.cat((sr, sub_pixel_layer(errors, self.scale)), 1)

    def stack(self, features: torch.Tensor, convolutions, gains) -> torch.Tensor:
        """The result of these convolutions and their activations, all of the same size.

        Padded once for two convolutions, as padding costs a copy.
        """
        for i in range(0, len(convolutions), 2):
            pair = convolutions[i : i + 2]
            y, x = (sum(conv.kernel_size[axis] // 2 for conv in pair) for axis in (0, 1))
            features = replicate(features, x, x, y, y)
            for conv, gain in zip(pair, gains[i : i + 2]):
                # In place, as memory traffic is what activations cost.
                if gain is None:
                    features = conv(features)
                elif len(gain) == 1:  # one for all slices: part of the kernel
                    features = F.conv2d(features, conv.weight * gain[0, :, None])
                else:
                    features = ScaledActivation.apply(conv(features), gain)
                    continue
                features = F.leaky_relu_(features, 0.1)
        return features

    def describe(self, lr: torch.Tensor, told: torch.Tensor | None = None) -> torch.Tensor:
        """The estimated description (N, ENTRIES) of the degradation of each LR slice.

        told (1, ENTRIES): what somebody says of it counts instead, see `heed`.
        """
        found = self.estimator(lr)
        return found if told is None else self.heed(found, told)

    def heed(self, found: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """What is told (1 or N, ENTRIES), but the found noise (N, ENTRIES) where it is near to it.

        That is the noise of this very slice.
        """
        noise, known = slice(NOISE, RICIAN + 1), told.expand(len(found), -1).clone()
        near = torch.exp(-(((found - told)[:, NOISE : NOISE + 1] / NEAR) ** 2))
        known[:, noise] += near * (found - told)[:, noise]
        return known


NETWORKS = {"deep": DeepESPCN, "espcn": ESPCN}
# What checkpoints of before say of the default network; others of its kind are no longer read.
FORMER = {"kernel": "1x3", "skip": "bicubic", "body": "identity", "icnr": False, "bias": False}


def build(arch: dict, scale: Scale = (4, 4)) -> nn.Module:
    """The network that an `arch` dict describes: {'name': ..., keyword arguments}.

    Raises DataError for anything but a known name with sensible values, before memory is taken.
    """
    options = dict(arch)
    name = options.pop("name", None)
    if name == "deep" and all(options.get(k, v) == v for k, v in FORMER.items()):
        options = {k: v for k, v in options.items() if k not in FORMER}
    channels, told = options.get("channels", 48), options.get("told", False)
    depths = (options.get("blocks", 13), options.get("half", 4)) if name == "deep" else ()
    good = (
        name in tuple(NETWORKS)
        and options.keys()
        <= {"channels", *(("blocks", "half", "told", "spread") if name == "deep" else ())}
        and type(channels) is int
        and all(type(n) is int and n >= 0 for n in depths)
        and sum(depths) <= 1024
        and 1 <= channels <= 1024
        and channels**2 * max(2, sum(depths)) < 2**24  # 0.6 GB of weights
        and type(told) is bool
        and type(options.get("spread", False)) is bool
    )
    if not good:
        raise DataError(f"unknown network, or too large: {reprlib.repr(arch)}")
    network = NETWORKS[name](**options, scale=tuple(scale))
    return network.to(memory_format=torch.channels_last)  # 1.6-1.9x the speed on a CPU


def load_network(checkpoint: dict, path="checkpoint") -> nn.Module:
    """The network of a checkpoint, ready for inference. Raises DataError if it does not fit."""
    arch, weights, scale = (checkpoint[key] for key in ("arch", "model", "scale"))
    try:
        scale = (scale, scale) if type(scale) is int else tuple(scale)
        if not (len(scale) == 2 and all(type(s) is int and 1 <= s <= 8 for s in scale)):
            raise DataError(f"its scale is {reprlib.repr(scale)}")
        with torch.device("meta"):  # names and sizes are compared before memory is taken
            wanted = build(arch, scale).state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            raise DataError("weights and arch differ")
        if not all(w.is_floating_point() and w.isfinite().all() for w in weights.values()):
            raise DataError("it holds weights that are not finite numbers")
        network = build(arch, scale)
        network.load_state_dict(weights)
    except Exception as error:  # names and values of a hostile file can be of any type
        raise DataError(f"{path}: does not fit this program ({reason(error)})") from None
    return network.eval()


def adopt_weights(network: nn.Module, checkpoint: dict) -> list[str]:
    """Copy the weights that fit, as from another scale. Returns the names of those that start anew.

    The last layer of another scale and a description that the other lacks keep their start.
    """
    mine = network.state_dict()
    fitting = {
        k: v for k, v in checkpoint["model"].items() if k in mine and mine[k].shape == v.shape
    }
    network.load_state_dict({**mine, **fitting})
    return sorted(mine.keys() - fitting.keys())


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def mmac(network: nn.Module, height: int = 60, width: int = 64) -> float:
    """Million multiply-accumulates of all layers for one LR slice."""
    from torch.utils.flop_counter import FlopCounterMode  # takes 0.1 s, which upscaling can save

    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, height, width, device=device))
    return counter.get_total_flops() / 2e6

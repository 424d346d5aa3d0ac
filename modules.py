"""The networks: stacks of convolutions at low resolution that end in a sub-pixel layer.

All take LR slices (N, C, H, W), float32 in [0, 1], of any size, the slice itself in the middle
channel and its neighbours beside it, and return SR slices (N, 1, rows H, columns W), not clamped,
`scale` being the pair (rows, columns).

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", CVPR 2016 (ESPCN): eq. 1-3 the stack, eq. 4 the sub-pixel layer.
"""

import reprlib

import torch
import torch.nn.functional as F
from torch import nn

from degradation import DISTANCE, ENTRIES, FOUND, NOISE, PRESENT, RICIAN, Scale, scale_name
from utils import DataError, reason

TINY = 1e-16  # keeps the slope of a square root finite, for black slices
# In inference so many first layers stay fp32: rounding their features is nearly all that bf16
# costs.
EXACT = 4
NEAR = 0.2  # of the entry for noise in a description: 0.2 more is 2.5 times the noise


def without_autocast(features: torch.Tensor):
    """A context without autocast: bf16 features stay bf16, fp32 ones fp32."""
    return torch.autocast(features.device.type, enabled=False)


def replicate(features: torch.Tensor, *edges: int) -> torch.Tensor:
    """Continue the borders by their outermost pixels: so many left, right, above and below."""
    left, right, above, below = edges
    with without_autocast(features):  # autocast would do this in fp32
        if not features.is_cuda:
            return F.pad(features, edges, mode="replicate")
        # There, F.pad changes the layout, and its backward sums in no fixed order.
        parts = [features[..., :1]] * left + [features] + [features[..., -1:]] * right
        features = torch.cat(parts, 3) if len(parts) > 1 else features
        parts = [features[:, :, :1]] * above + [features] + [features[:, :, -1:]] * below
        return torch.cat(parts, 2) if len(parts) > 1 else features


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
        n, c = gain.shape[:2]
        if grad.is_cuda:  # a product that is nearly all thrown away, and still reads memory once
            rows = (x.permute(0, 2, 3, 1).reshape(n, -1, c) for x in (grad, result))
            gain_grad = torch.bmm(next(rows).mT, next(rows)).diagonal(dim1=1, dim2=2)
        else:
            gain_grad = (grad * result).sum((2, 3))
        gain_grad = gain_grad.view(n, c, 1, 1) / gain
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
    conditioned, estimator, neighbours = False, None, 0

    def __init__(self, channels: int = 64, scales: tuple[Scale, ...] = ((4, 4),)):
        super().__init__()
        self.scales = scales
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(inplace=True),
        )
        self.tails = tails_of(channels, scales, 3, padding=1)

    def forward(self, lr, scale: Scale | None = None, description=None, error_map=False):
        """As of DeepESPCN, but for the description and the error map, which it has none of."""
        scale = scale or self.scales[0]
        return sub_pixel_layer(self.tails[scale_name(scale)](self.layers(lr)), scale)

    def describe(self, lr: torch.Tensor, told=None, scale=None) -> torch.Tensor:
        """Nothing is found: zeros (N, FOUND)."""
        return lr.new_zeros(len(lr), FOUND)


def tails_of(channels: int, scales, kernel: int, **options) -> nn.ModuleDict:
    """{name of a scale: convolution to its sub-pixels}."""
    return nn.ModuleDict(
        {scale_name(s): nn.Conv2d(channels, s[0] * s[1], kernel, **options) for s in scales}
    )


class Interpolation(nn.Module):
    """`bicubic` or `bilinear` interpolation by whole factors as a 5x5 convolution.

    Such an interpolation weighs a 5x5 neighbourhood in a fixed way for each sub-pixel. Equal to
    `F.interpolate(..., align_corners=False)`, at a fraction of its cost.
    """

    conditioned = False

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

    def forward(self, lr: torch.Tensor, scale=None, description=None) -> torch.Tensor:
        return sub_pixel_layer(self.sub_pixels(middle_of(lr)), self.scale)


def middle_of(lr: torch.Tensor) -> torch.Tensor:
    """The slices themselves (N, 1, H, W), without their neighbours."""
    n = lr.shape[1] // 2
    return lr[:, n : n + 1]


class Estimator(nn.Module):
    """Finds the description of an LR slice: a few convolutions, their mean size over the slice.

    Without biases, and with the means divided by their norm, it does not depend on brightness, nor
    on how much of the slice is empty: every slice is seen with black around it. What it finds is
    drawn towards a learned description, the safest, the less sure it is.
    """

    edge = 8  # black pixels around what it looks at

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layers = nn.ModuleList(
            (
                nn.Conv2d(1, channels // 2, 5, padding=2 + self.edge, bias=False),
                nn.Conv2d(channels // 2, channels, 3, padding=1, bias=False),
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
                nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            )
        )
        # All entries but TOLD, and how sure they are.
        self.decide = nn.Sequential(
            nn.Linear(8 * channels, 64), nn.LeakyReLU(0.1), nn.Linear(64, FOUND)
        )
        self.safest = nn.Parameter(torch.zeros(FOUND - 1))
        nn.init.constant_(self.decide[2].bias[-1:], 2)  # 88 % sure at the start

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """LR slices (N, 1, H, W) -> (N, FOUND)."""
        return self.towards_safest(*self.found(lr))

    def found(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What it finds (N, FOUND - 1), and how sure it is of it (N, 1), 0 to 1."""
        features, means, roots = lr, [], []
        for i, conv in enumerate(self.layers):
            features = conv(features)
            if i:
                size = features.float()
                means.append(size.abs().mean((2, 3)))
                roots.append(size.square().mean((2, 3)).clamp(min=TINY).sqrt())
            features = F.leaky_relu(features, 0.1)
        found = self.decide(torch.cat((of_unit_size(means), of_unit_size(roots)), 1)).float()
        return found[:, :-1], found[:, -1:].sigmoid()

    def towards_safest(self, found: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
        """The description (N, FOUND) that is acted on."""
        found = torch.lerp(self.safest.expand_as(found), found, sure)
        return torch.cat((found, torch.zeros_like(found[:, :1])), 1)  # TOLD: no


def of_unit_size(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts joined, divided by their root mean square: an emptier slice has smaller means."""
    joined = torch.cat(parts, 1)
    return joined / joined.square().mean(1, keepdim=True).clamp(min=TINY).sqrt()


class ErrorHead(nn.Module):
    """The expected absolute error of each pixel, from the last features of a network.

    It looks at these features, at how rough the LR slice is around (noise, edges), and at the
    description, if the network takes one. Homogeneous, as the network is.
    """

    window = 15  # LR pixels along an edge of what counts as around

    def __init__(self, channels: int, scales, conditioned: bool):
        super().__init__()
        hidden = max(1, channels // 2)
        self.pixel = nn.Conv2d(channels, hidden, 3, bias=False)
        self.rough = nn.Conv2d(1, 8, 5, bias=False)
        self.around = nn.Conv2d(8, hidden, 1, bias=False)
        self.tails = tails_of(hidden, scales, 1, bias=False)
        if conditioned:
            self.gain = nn.Linear(ENTRIES, hidden)
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.gain.bias)

    def forward(self, features: torch.Tensor, lr: torch.Tensor, scale, description):
        """Features with one more pixel on each side, LR slices (N, 1, H, W), a description or None
        -> (N, rows columns, H, W), at least 0.001: the likelihood would reward errors of zero.
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
        size = self.tails[scale_name(scale)](F.leaky_relu_(hidden, 0.1)).float()
        return (size.square() + 1e-6).sqrt()


class DeepESPCN(nn.Module):
    """The default network: many narrow convolutions that correct a bicubic interpolation.

    conv 5x5, `blocks` convolutions of 1x3 and 3x1 in turns (Szegedy et al., "Rethinking the
    Inception architecture", CVPR 2016, sec. 3.2, with an activation after each), conv 3x3 to the
    sub-pixels, plus the interpolation of the input, then the sub-pixel layer. The last convolution
    starts at zero: the untrained network is the interpolation. The others start as the identity
    plus a little noise (Zagoruyko and Komodakis, "DiracNets", 2017). Half way, a side path of
    `half` convolutions at half the resolution is added: a wider view at a quarter of the cost.

    scales: the last convolution is there once for each; all else is shared.
    neighbours: so many slices on each side are seen by the first convolution; a missing one is
    black, and the description says so.
    estimator: the network finds out how a slice was degraded, and acts on it.
    error_head: it also gives the expected absolute error of each pixel (training/error_head.py).

    A network with neighbours or an estimator is conditioned: its features are scaled, channel by
    channel, by functions of a description (degradation.py).

    No biases: the network is homogeneous, f(a x) = a f(x) for a > 0, so that a dark scan is treated
    like a bright one (Mohan et al., ICLR 2020). Borders are continued by their outermost pixels at
    every layer, so that a constant stays constant.
    """

    def __init__(
        self, channels=48, blocks=13, half=4, neighbours=0, estimator=False, error_head=False,
        scales: tuple[Scale, ...] = ((4, 4),),
    ):  # fmt: skip
        super().__init__()

        def convolutions(n):
            sizes = ((1, 3), (3, 1))
            return nn.ModuleList(
                nn.Conv2d(channels, channels, sizes[i % 2], bias=False) for i in range(n)
            )

        self.scales, self.channels, self.neighbours = tuple(scales), channels, neighbours
        self.conditioned = bool(neighbours or estimator)
        self.head = nn.Conv2d(1 + 2 * neighbours, channels, 5, bias=False)
        self.body, self.side = convolutions(blocks), convolutions(half)
        if half:
            self.down = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
            self.up = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.tails = tails_of(channels, scales, 3, bias=False)
        self.skips = nn.ModuleDict({scale_name(s): Interpolation(s) for s in scales})
        self.estimator = Estimator() if estimator else None
        if self.conditioned:
            self.condition = nn.Linear(ENTRIES, 32)
            self.of_scale = nn.ParameterDict({scale_name(s): torch.zeros(32) for s in scales})
            self.gains = nn.Linear(32, (1 + blocks + half) * channels)
            nn.init.zeros_(self.gains.weight)
            nn.init.zeros_(self.gains.bias)
        self.error_head = ErrorHead(channels, scales, self.conditioned) if error_head else None
        # Counted along a row: 1x3 comes first, so that down a column it is never more.
        self.receptive_radius = 3 + (blocks + 1) // 2 + 2 * ((half + 1) // 2) + (half > 0)
        if error_head:
            self.receptive_radius = max(self.receptive_radius, ErrorHead.window // 2 + 2)
        with torch.no_grad():
            for conv in (*self.body, *self.side):
                h, w = conv.kernel_size
                conv.weight.mul_(0.1)[:, :, h // 2, w // 2].diagonal().add_(1)
            if half:  # the side path starts small, as something that corrects
                self.up.weight.mul_(0.1)
            for tail in self.tails.values():
                tail.weight.zero_()

    def forward(self, lr, scale: Scale | None = None, description=None, error_map=False):
        """lr (N, 1 or 1 + 2 neighbours, H, W). scale: one of `scales`, the first if None.
        description (N or 1, ENTRIES), see `describe` and `full_description`; None: estimated for
        each slice, which then has no neighbours.

        error_map: gives (N, 2, rows H, columns W), SR slices and their expected absolute errors.
        """
        scale, own = scale or self.scales[0], middle_of(lr)
        name = scale_name(scale)
        gains = [None] * (1 + len(self.body) + len(self.side))
        middle = len(self.body) // 4 * 2
        convolutions = [self.head, *self.body]
        exact = 0 if self.training else min(EXACT, middle + 1)
        with without_autocast(lr):
            if self.conditioned:
                if description is None:
                    description, lr = full_description(self.describe(own)), own
                hidden = torch.tanh(self.condition(description) + self.of_scale[name])
                gains = self.gains(hidden).view(-1, len(gains), self.channels, 1, 1)
                gains = (1 + 0.5 * torch.tanh(gains)).unbind(1)
            features = self.stack(lr, convolutions[:exact], gains[:exact])
        rest = slice(exact, middle + 1)
        features = self.stack(features, convolutions[rest], gains[rest])
        if len(self.side):
            h, w = features.shape[-2:]
            # One more row and column, so that odd sizes can be halved; to even ones it is nothing.
            low = F.leaky_relu_(self.down(replicate(features, 0, 1, 0, 1)), 0.1)
            low = self.stack(low, self.side, gains[1 + len(self.body) :])
            features = features + F.pixel_shuffle(self.up(low), 2)[..., :h, :w]
        rest = slice(middle + 1, 1 + len(self.body))
        features = self.stack(features, convolutions[rest], gains[rest])
        features = replicate(features, 1, 1, 1, 1)
        sub_pixels = self.tails[name](features) + self.skips[name].sub_pixels(own)
        sr = sub_pixel_layer(sub_pixels, scale)
        if not error_map:
            return sr
        errors = self.error_head(features, own, scale, description if self.conditioned else None)
        return torch.cat((sr, sub_pixel_layer(errors, scale)), 1)

    def stack(self, features: torch.Tensor, convolutions, gains) -> torch.Tensor:
        """The result of these convolutions and their activations, all of the same size.

        Padded once for two convolutions, as padding costs a copy.
        """
        for i in range(0, len(convolutions), 2):
            pair = convolutions[i : i + 2]
            y, x = (sum(conv.kernel_size[axis] // 2 for conv in pair) for axis in (0, 1))
            features = replicate(features, x, x, y, y)
            for conv, gain in zip(pair, gains[i : i + 2]):
                kernel = conv.weight
                if kernel.shape[1] > features.shape[1]:  # slices without neighbours
                    kernel = middle_of(kernel)
                # In place, as memory traffic is what activations cost.
                if gain is None:
                    features = F.conv2d(features, kernel)
                elif len(gain) == 1:  # one for all slices: part of the kernel
                    features = F.conv2d(features, kernel * gain[0, :, None])
                else:
                    features = ScaledActivation.apply(F.conv2d(features, kernel), gain)
                    continue
                features = F.leaky_relu_(features, 0.1)
        return features

    def describe(self, lr, told: torch.Tensor | None = None, scale=None) -> torch.Tensor:
        """The description (N, FOUND) of the degradation of each LR slice (N, C, H, W): estimated,
        or zeros without an estimator.

        told (1 or N, FOUND): what somebody says of it counts instead, but for the noise, see
        `blend_measured_noise`. scale: what they are enlarged by; the same for all here.
        """
        if self.estimator is None:
            return lr.new_zeros(len(lr), FOUND)
        found = self.estimator(middle_of(lr))
        return found if told is None else blend_measured_noise(found, told)


class Bodies(nn.Module):
    """Several networks in one file, each for scales of its own, with an estimator of its own.

    One body for all scales gained less (docs/STUDY.md, "One body or several"). It takes and gives
    what its bodies do; one without neighbours looks at the slices alone.
    """

    conditioned = True

    def __init__(self, bodies):
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.body_of = {scale: body for body in bodies for scale in body.scales}
        self.scales = tuple(self.body_of)
        self.neighbours = max(body.neighbours for body in bodies)
        self.receptive_radius = max(body.receptive_radius for body in bodies)

    @property
    def estimator(self):
        """That of the first; None if it has none."""
        return self.bodies[0].estimator

    @property
    def error_head(self):
        return nn.ModuleList(body.error_head for body in self.bodies)

    def describe(self, lr, told: torch.Tensor | None = None, scale: Scale | None = None):
        return self.body_of[scale or self.scales[0]].describe(lr, told)

    def forward(self, lr, scale: Scale | None = None, description=None, error_map=False):
        scale = scale or self.scales[0]
        body = self.body_of[scale]
        if not body.neighbours:
            lr = middle_of(lr)
            if description is not None:
                description = full_description(description[:, :FOUND])
        return body(lr, scale, description, error_map)


def blend_measured_noise(found: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """What is told (1 or N, FOUND), but the found noise (N, FOUND) where it is near to it.

    That is the noise of this very slice.
    """
    noise, known = slice(NOISE, RICIAN + 1), told.expand(len(found), -1)
    near = torch.exp(-(((found - told)[:, NOISE : NOISE + 1] / NEAR) ** 2))
    blended = known[:, noise] + near * (found - told)[:, noise]
    return torch.cat((known[:, : noise.start], blended, known[:, noise.stop :]), 1)


def full_description(found: torch.Tensor, present=None, distance=0.0) -> torch.Tensor:
    """Descriptions (N, FOUND) with what is known of the neighbours of each slice: (N, ENTRIES).

    present (N, 4): 1 where the second and the first neighbour before and those after are there;
    None: none is. distance of slices in LR pixels, a number or (N, 1); 0: unknown. Of a slice that
    has no neighbours it says nothing.
    """
    full = found.new_zeros(
        len(found) if present is None else max(len(found), len(present)), ENTRIES
    )
    full[:, :FOUND] = found
    if present is not None:
        full[:, PRESENT] = present
        apart = torch.as_tensor(distance, dtype=full.dtype, device=full.device)
        known = torch.log2(apart.clamp(min=0.05)) / 3
        said = (apart > 0) & present.bool().any(1, keepdim=True)
        full[:, DISTANCE : DISTANCE + 1] = torch.where(said, known, 0)
    return full


NETWORKS = {"deep": DeepESPCN, "espcn": ESPCN}
OPTIONS = {"channels": int, "blocks": int, "half": int, "neighbours": int, "estimator": bool,
           "error_head": bool}  # fmt: skip


def build(arch: dict, scales) -> nn.Module:
    """The network that an `arch` dict describes: {'name': ..., keyword arguments}.

    Raises DataError for anything but a known name with sensible values, before memory is taken.
    """
    options = dict(arch)
    name = options.pop("name", None)
    if name == "bodies":
        return build_bodies(options, scales)
    known = OPTIONS if name == "deep" else {"channels": int}
    good = name in tuple(NETWORKS) and all(type(v) is known.get(k) for k, v in options.items())
    good = good and all(0 <= v <= 1024 for v in options.values())
    if good:
        channels, depth = options.get("channels", 48), options.get("blocks", 13)
        depth += options.get("half", 4)
        # 0.6 GB of weights at the most.
        good = channels >= 1 and options.get("neighbours", 0) in (0, 1, 2)
        good = good and depth <= 1024 and channels**2 * max(2, depth) < 2**24
    if not good:
        raise DataError(f"unknown network, or too large: {reprlib.repr(arch)}")
    network = NETWORKS[name](**options, scales=tuple(map(tuple, scales)))
    return network.to(memory_format=torch.channels_last)  # 1.6-1.9x the speed on a CPU


def build_bodies(options: dict, scales) -> Bodies:
    """Bodies of `options`: {'bodies': [[arch, number of scales], ...], 'error_head': bool}, the
    scales in this order."""
    parts, left, bodies = options["bodies"], list(scales), []
    if min(n for _, n in parts) < 1 or sum(n for _, n in parts) != len(left):
        raise DataError(f"bodies of other scales: {reprlib.repr(options)}")
    common = {"name": "deep", "error_head": options.get("error_head", False)}
    for arch, n in parts:
        bodies.append(build(arch | common, [left.pop(0) for _ in range(n)]))
    return Bodies(bodies)


def load_network(checkpoint: dict, path="checkpoint") -> nn.Module:
    """The network of a checkpoint, ready for inference. Raises DataError if it does not fit."""
    arch, weights, scales = (checkpoint[key] for key in ("arch", "model", "scales"))
    try:
        good = all(len(s) == 2 and all(type(n) is int and 1 <= n <= 8 for n in s) for s in scales)
        if not (good and 1 <= len(scales) <= 64):
            raise DataError(f"its scales are {reprlib.repr(scales)}")
        with torch.device("meta"):  # names and sizes are compared before memory is taken
            wanted = build(arch, scales).state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            raise DataError("weights and arch differ")
        if not all(w.is_floating_point() and w.isfinite().all() for w in weights.values()):
            raise DataError("it holds weights that are not finite numbers")
        network = build(arch, scales)
        network.load_state_dict(weights)
    except Exception as error:  # names and values of a hostile file can be of any type
        raise DataError(f"{path}: does not fit this program ({reason(error)})") from None
    return network.eval()


def adopt_weights(network: nn.Module, checkpoint: dict) -> list[str]:
    """Copy the weights that fit, as from another scale. Returns the names of those that start anew.

    The last layer of another scale and a description that the other lacks keep their start; so do
    the first layer's kernels of neighbours, at zero.
    """
    mine, given = network.state_dict(), dict(checkpoint["model"])
    head = given.get("head.weight")
    if head is not None and "head.weight" in mine and head.shape[1] < mine["head.weight"].shape[1]:
        missing = (mine["head.weight"].shape[1] - head.shape[1]) // 2
        given["head.weight"] = F.pad(head, (0, 0, 0, 0, missing, missing))
    fitting = {k: v for k, v in given.items() if k in mine and mine[k].shape == v.shape}
    network.load_state_dict({**mine, **fitting})
    return sorted(mine.keys() - fitting.keys())


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def mmac(network: nn.Module, height: int = 60, width: int = 64, scale=None) -> float:
    """Million multiply-accumulates of all layers for one LR slice with its neighbours."""
    from torch.utils.flop_counter import FlopCounterMode  # takes 0.1 s, which upscaling can save

    device = next(network.parameters()).device
    lr = torch.zeros(1, 1 + 2 * network.neighbours, height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        description = None
        if network.conditioned:
            found = network.describe(lr, scale=scale)
            description = full_description(found, lr.new_ones(1, 4), 1.0)
        network(lr, scale, description)
    return counter.get_total_flops() / 2e6

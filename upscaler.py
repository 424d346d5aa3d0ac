"""Which network for which image, and what it is told about how the image was made."""

import argparse
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

import images
import modules
from checkpoints import load_checkpoint
from degradation import NAMED, Degradation, make_consistent, parse_degradation, scale_name
from description import describe_degradation
from upscaling import upscale
from utils import UsageError, note

WEIGHTS = Path(__file__).resolve().parent / "weights"


def known_degradation(name: str) -> Degradation:
    """An argparse type: a degradation by its name."""
    try:
        return parse_degradation(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def told_degradation(args) -> Degradation | None:
    """What the user says of the input with --degradation, --blur and --noise; None: nothing."""
    if not (args.degradation or args.blur or args.noise):
        return None
    way = args.degradation or Degradation()
    if args.blur:
        way = replace(way, kernel="blur", width=(args.blur, args.blur))
    return replace(way, noise=args.noise, rician=True) if args.noise else way


@dataclass
class Upscaler:
    """A network with its weights, and what it is told about the input."""

    network: torch.nn.Module
    checkpoint: dict
    path: Path
    device: torch.device
    tile: int
    degradation: Degradation | None  # how the input was made, or is to be made in a simulation
    told: bool  # whether the user said so
    simulate: bool
    consistent: bool
    bf16: bool

    def describe(self, lr: torch.Tensor):
        """The description (1, D) of how some slices of a scan were made; None: not asked for."""
        if not self.network.told:
            return None
        if self.told:
            return describe_degradation(self.degradation, self.network.scale).to(self.device)
        with torch.inference_mode():
            return self.network.describe(lr.to(self.device)).mean(0, keepdim=True)

    def run(self, lr: torch.Tensor, description, clamped) -> torch.Tensor:
        """LR slices (N, 1, H, W) to SR slices on the CPU. clamped: of `make_consistent`."""
        lr = lr.to(self.device)
        sr = upscale(self.network, lr, description, self.tile, self.bf16)
        if self.consistent:
            sr = make_consistent(sr, lr, self.degradation, self.network.scale, clamped)
        return sr.cpu()

    @property
    def label(self) -> str:
        """How names of results end, but for their type."""
        rows, columns = self.network.scale
        name = f"through-x{rows}" if columns == 1 else f"x{scale_name(self.network.scale)}"
        return f"simulated_{name}" if self.simulate else name


def load_upscaler(path: Path, args, device) -> Upscaler:
    """Load weights. Raises DataError or UsageError for none, or those of another scale."""
    checkpoint = load_checkpoint(path)
    network = modules.load_network(checkpoint, path).to(device)
    through = network.scale[1] == 1
    if through != (args.through_plane is not None):
        mend = "through the slices; add" if through else "in the slice; leave out"
        raise UsageError(f"{path}: enlarges {mend} --through-plane")
    if args.scale and network.scale != (args.scale, args.scale):
        raise UsageError(f"--scale {args.scale}: {path} enlarges by {scale_name(network.scale)}")
    way = args.degradation
    if args.simulate and not way:
        name = checkpoint["degradation"]
        way = parse_degradation(name if name in NAMED else "bicubic")
    note(f"weights: {path} (x{scale_name(network.scale)}, trained on "
         f"{checkpoint.get('trained_on', '?')}, LR by {checkpoint['degradation']})")  # fmt: skip
    told = args.degradation is not None
    return Upscaler(
        network, checkpoint, path, device, args.tile, way, told, args.simulate, args.consistent,
        args.bf16,
    )  # fmt: skip


def weights_of(scale: int) -> Path:
    """The shipped weights that enlarge slices by this. Raises UsageError if there are none."""
    path = WEIGHTS / f"x{scale}.pt"
    if not path.exists():
        raise UsageError(f"--scale {scale}: {path} is missing; train it, or name a --checkpoint")
    return path


def through_factors() -> list[int]:
    """The factors that there are through-plane weights for."""
    return [n for n in range(2, 9) if (WEIGHTS / f"through-x{n}.pt").exists()]


class Upscalers:
    """The networks of a call: one for slices, or one for each factor through the slices."""

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.load = lru_cache(lambda path: load_upscaler(path, args, device))
        self.one = None
        if args.checkpoint or args.through_plane is None:
            self.one = self.load(Path(args.checkpoint or weights_of(args.scale or 4)))

    def labels(self) -> list[str]:
        """How the names of results may end, but for their type."""
        return [self.one.label] if self.one else [f"through-x{n}" for n in through_factors()]

    def choose(self, image) -> tuple:
        """(Upscaler, ways to cut the image), and says what is worth knowing about it."""
        args, name = self.args, f"{image.path}: "
        if image.sizes is None and args.through_plane is None:
            return self.one, [None]
        plane, about = image.plane(args.axis) if image.sizes else ("", "")
        if args.through_plane is None:
            if about:
                note(name + about)
            hint(image, plane, self.one.network.scale[0])
            return self.one, [(plane, False)]
        shipped = [self.one.network.scale[0]] if self.one else through_factors()
        wanted = args.through_plane or (shipped[0] if self.one else 0)
        factor, about = images.through_factor(image, plane, wanted, shipped)
        note(name + about)
        one = self.one or self.load(WEIGHTS / f"through-x{factor}.pt")
        return one, image.ways_through(plane)


def hint(image, plane: str, scale: int) -> None:
    """Say so where another factor may be what is wanted."""
    distance, pixel = image.thickness(plane)
    if distance >= images.THICK * pixel:
        note(f"{image.path}: its slices are {distance:.3g} mm apart, their pixels {pixel:.3g} mm; "
             "--through-plane makes more slices instead")  # fmt: skip
    elif pixel / scale < 0.3 and scale > 2:
        note(f"{image.path}: pixels of {pixel:.3g} mm become {pixel / scale:.2g} mm; "
             "--scale 2 may be what you want")  # fmt: skip

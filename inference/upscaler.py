"""Which network for which image, what it is told, and the way of whole stacks through it."""

import argparse
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import modules
from degradation import (
    NAMED,
    Degradation,
    crop_to_scale,
    degradation_name,
    degrade,
    describe_degradation,
    make_consistent,
    middle_slices,
    parse_degradation,
    scale_name,
    unlike_training,
    words_of,
)
from inference import images, tiling
from inference.checkpoints import load_checkpoint, renamed
from inference.error_map import calibration_of, expected_error
from inference.tiling import upscale
from utils import UsageError, note, progress, warn

FINEST = {2: 0.7, 3: 0.7, 4: 0.5}  # mm: about the finest truth that results were compared with
TOGETHER = 4  # a batch of small pictures is filled up with copies to this many
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def known_degradation(name: str) -> str:
    """An argparse type: the name of a degradation."""
    try:
        parse_degradation(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def told_degradation(args) -> Degradation | None:
    """What the user says of the input with --degradation, --blur and --noise; None: nothing.

    Where nothing is said of the point spread, slices are shrunk by `bicubic`, thick ones touch.
    Raises UsageError where options contradict one another.
    """
    kernel = "bicubic" if args.through_plane is None else "slab"
    parts = [args.degradation] if args.degradation else []
    parts += [f"blur-{args.blur:g}"] if args.blur else []
    parts += [f"rician-{100 * args.noise:g}"] if args.noise else []
    try:
        return parse_degradation("+".join(parts), kernel) if parts else None
    except UsageError as error:
        raise UsageError(f"--degradation, --blur and --noise do not agree: {error}") from None


@dataclass
class Upscaler:
    """A network with its weights, and what it is told about the input."""

    network: torch.nn.Module
    device: torch.device
    checkpoint: dict = field(default_factory=dict)
    path: Path = Path()
    tile: int = tiling.TILE
    degradation: Degradation | None = None  # how the input was made, or is to be in a simulation
    user_said: bool = False  # whether `degradation` is what the user says of the input
    simulate: bool = False
    consistent: bool = False
    bf16: bool = False
    calibration: dict | None = None  # of the error head; None: no errors are asked for
    turns: object = field(default_factory=nullcontext)  # held while something is computed
    known: tuple | None = None  # description and SR of its only slice, see computed_together

    def describe(self, lr: torch.Tensor):
        """The description (1, ENTRIES) of how slices of a scan were made, the mean of theirs.

        None: the network takes no description.
        """
        if self.known:
            return self.known[0]
        if not self.network.told:
            return None
        at_a_time = tiling.slices_at_a_time(*lr.shape[-2:], self.device)
        parts = [self.describe_each(part) for part in lr.split(at_a_time)]
        return torch.cat(parts).mean(0, keepdim=True)

    def describe_each(self, lr: torch.Tensor):
        """The description of each slice (N, ENTRIES), or None."""
        if not self.network.told:
            return None
        told = None
        if self.user_said:
            told = describe_degradation(self.degradation, self.network.scale).to(self.device)
        with self.turns, torch.inference_mode():
            return self.network.describe(lr.to(self.device), told)

    def words(self, description: torch.Tensor) -> str:
        """How the slices were made, as the user says or the network finds."""
        if self.user_said:
            return degradation_name(self.degradation)
        return words_of(description, self.network.scale)

    def enlarge(self, lr: torch.Tensor, description) -> torch.Tensor:
        """SR slices (N, 1, rows H, columns W); with a second channel if errors are asked for."""
        if self.known:
            return self.known[1]
        errors = self.calibration is not None
        with self.turns:
            return upscale(self.network, lr, description, self.tile, self.bf16, spread=errors)

    def run(self, lr: torch.Tensor, description, clamped) -> tuple:
        """LR slices (N, 1, H, W) to SR slices and their expected errors (or None), on the CPU.

        clamped: of `make_consistent`.
        """
        lr, errors = lr.to(self.device), self.calibration is not None
        sr = self.enlarge(lr, description)
        sr, expected = sr.split(1, 1) if errors else (sr, None)
        if errors:
            expected = expected_error(expected, self.calibration, description).cpu()
        if self.consistent:
            sr = make_consistent(sr, lr, self.degradation, self.network.scale, clamped)
        return sr.cpu(), expected

    @property
    def label(self) -> str:
        """How names of results end, but for their type."""
        rows, columns = self.network.scale
        name = f"through-x{rows}" if columns == 1 else f"x{scale_name(self.network.scale)}"
        return f"simulated_{name}" if self.simulate else name


# --- whole stacks of slices -----------------------------------------------------------------------


def lr_and_hr(upscaler: Upscaler, part: np.ndarray, span, numbers=()) -> tuple:
    """What the network takes (N, 1, H, W), and in a simulation the truth that it is made of.

    numbers: which slices of their stack these are; a simulation needs them.
    """
    low, high = np.float32(span[0]), np.float32(span[1] - span[0])
    lr, hr = torch.from_numpy((part - low) / high)[:, None], None
    if upscaler.simulate:
        hr = lr.clamp(0, 1)
        numbered = zip(numbers, hr.split(1))  # noise is a slice's own, whatever the batch
        lr = [degrade(x, upscaler.degradation, upscaler.network.scale, seed=i) for i, x in numbered]
        lr = torch.cat(lr)
    return lr, hr


def describe_stack(upscaler: Upscaler, slices: np.ndarray, span=(0.0, 1.0)):
    """How a scan was made: as the user says, else as the network finds in 8 slices of its middle.

    None: the network takes no description.
    """
    y, x = (slice(max(0, n // 2 - 256), n // 2 + 256) for n in slices.shape[1:])
    numbers = middle_slices(len(slices))
    sample = slices[numbers, y, x]
    if upscaler.simulate:
        sample = crop_to_scale(sample, upscaler.network.scale)
    return upscaler.describe(lr_and_hr(upscaler, sample, span, numbers)[0])


def upscale_stack(
    upscaler: Upscaler, slices, finish, *, description, span=(0.0, 1.0), clamped=(0.0, 1.0),
    batch_size=8, name="",
):  # fmt: skip
    """Upscale a stack of slices (S, H, W), values of `span` being 0 to 1.

    finish(slices, rows of the result, LR, HR or None, SR, expected errors or None) takes what was
    done and (N, 1, H, W) of it; several threads call it at a time. Yields what it returns, in the
    order of the slices.
    """
    rows, (_, h, w) = upscaler.network.scale[0], slices.shape
    whole = upscaler.consistent or upscaler.simulate
    most = min(batch_size, tiling.slices_at_a_time(h, w, upscaler.device))
    todo = tiling.parts(slices.shape, most, upscaler.network.receptive_radius, whole)

    def work(part):
        chosen, wanted, needed = part
        lr, hr = lr_and_hr(upscaler, slices[chosen, needed], span, range(len(slices))[chosen])
        sr, expected = upscaler.run(lr, description, clamped)
        begin, end = (rows * (row - needed.start) for row in (wanted.start, wanted.stop))
        place = slice(rows * wanted.start, rows * wanted.stop)
        expected = None if expected is None else expected[..., begin:end, :]
        return finish(chosen, place, lr, hr, sr[..., begin:end, :], expected)

    yield from progress(
        tiling.in_parallel(work, todo, upscaler.device),
        total=len(todo), desc=name, unit="batch", leave=False, disable=len(todo) == 1,
    )  # fmt: skip


def computed_together(upscaler: Upscaler, pictures: list[np.ndarray]) -> list[Upscaler]:
    """For each of some slices (H, W) in [0, 1] an Upscaler that knows its result.

    Small slices of one size go through the network at once, each with its own description: one by
    one, threads would wait for the interpreter longer than for the network. The result of a picture
    does not depend on those beside it: kernels for fewer slices, or for several threads at one
    batch, would round differently. Large pictures get the Upscaler that was given.
    """
    found, same = [upscaler] * len(pictures), {}
    limit = tiling.PART_PIXELS if upscaler.device.type == "cpu" else tiling.DEVICE_PIXELS
    small = min(2 * limit // TOGETHER, tiling.BAND_PIXELS)  # what is larger may go in bands
    for i, pixels in enumerate(pictures):
        if pixels.size <= small:
            same.setdefault(pixels.shape, []).append(i)
    groups = []
    for (h, w), numbers in same.items():
        most = max(TOGETHER, min(8, tiling.slices_at_a_time(h, w, upscaler.device)))
        groups += [numbers[k : k + most] for k in range(0, len(numbers), most)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for chosen in groups:
            filled = [chosen[i % len(chosen)] for i in range(max(TOGETHER, len(chosen)))]
            stack = np.stack([pictures[i] for i in filled])
            lr = lr_and_hr(upscaler, stack, (0.0, 1.0))[0].to(upscaler.device)
            descriptions = upscaler.describe_each(lr)
            sr = upscaler.enlarge(lr, descriptions)
            for place, i in enumerate(chosen):
                known = None if descriptions is None else descriptions[place : place + 1]
                found[i] = replace(upscaler, known=(known, sr[place : place + 1]))
    finally:
        torch.set_num_threads(threads)
    return found


def unlike(upscaler: Upscaler, image, data, span, ways, description) -> str:
    """What sets an image apart from all that the network was trained on, in words; '' for nothing.

    Of a scan upscaled along two ways its own slices count, which lie along neither.
    """
    slices = image.cut(data, image.acquired(ways))
    y, x = (slice(None, None, max(1, n // 512)) for n in slices.shape[1:])
    low, high = np.float32(span[0]), np.float32(span[1] - span[0])
    sample = (slices[middle_slices(len(slices)), y, x] - low) / high
    return unlike_training(torch.from_numpy(sample)[:, None], description)


# --- which network --------------------------------------------------------------------------------


def load_upscaler(path: Path, args, device) -> Upscaler:
    """Load weights. Raises DataError or UsageError for none, or those of another scale."""
    path = renamed(path)
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
        network, device, checkpoint, path, args.tile, way, told, args.simulate, args.consistent,
        args.bf16, calibration_of(checkpoint, path) if args.uncertainty else None,
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

    def choose(self, image, one_of_many: bool = False) -> tuple:
        """(Upscaler, ways to cut the image), and says what is worth knowing about it."""
        args, name = self.args, f"{image.path}: "
        if image.sizes is None and args.through_plane is None:
            return self.one, [None]
        plane, about = image.plane(args.axis) if image.sizes else ("", "")
        if args.through_plane is None:
            if about:
                note(name + about)
            if not args.simulate:
                hint(image, plane, self.one, one_of_many or args.json)
            return self.one, [(plane, False)]
        shipped = [self.one.network.scale[0]] if self.one else through_factors()
        wanted = args.through_plane or (shipped[0] if self.one else 0)
        factor, about = images.through_factor(image, plane, wanted, shipped)
        note(name + about)
        one = self.one or self.load(WEIGHTS / f"through-x{factor}.pt")
        return one, image.ways_through(plane)


def hint(image, plane: str, one: Upscaler, quiet: bool) -> None:
    """Say so where another factor may be what is wanted; quiet: a warning is only recorded."""
    scale = one.network.scale[0]
    distance, pixel = image.thickness(plane)
    if distance >= images.THICK * pixel:
        note(f"{image.path}: its slices are {distance:.3g} mm apart, their pixels {pixel:.3g} mm; "
             "--through-plane makes more slices instead")  # fmt: skip
    if one.path.parent == WEIGHTS and pixel / scale < FINEST[scale]:
        smaller = "; a smaller --scale may be what you want" * (scale > 2)
        warn(f"{image.path}: pixels of {pixel:.3g} mm become {pixel / scale:.2g} mm, finer than "
             f"anything measured: what is added is a guess{smaller}", not quiet)  # fmt: skip

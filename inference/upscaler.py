"""The way in: slices or a scan in, the same at a higher resolution out."""

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

import modules
from degradation import (
    NOISE,
    Degradation,
    Scale,
    degradation_name,
    describe_degradation,
    make_consistent,
    middle_slices,
    parse_degradation,
    parse_scale,
    words_of,
)
from inference import tiling
from inference.checkpoints import load_checkpoint
from inference.error_map import as_error_map, calibration_of, expected_error
from inference.plan import Plan, plan_of
from inference.through_plane import enlarge_through, over_volumes, resample
from scans import Scan
from scans.scan import View
from utils import UsageError, bf16_works, pick_device, progress

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
DEFAULT = WEIGHTS / "brain.pt"
FAR = 0.1  # of white: below black by more, or above white by ten times that, nothing is a scan's


@dataclass
class Part:
    """Some of the rows of some slices of a stack, enlarged: values (n, h, w) belong to the rows
    `rows` of the slices `slices` of the result; errors: their expected absolute errors, or None."""

    slices: slice
    rows: slice
    values: np.ndarray
    errors: np.ndarray | None = None

    @property
    def where(self) -> tuple[slice, slice]:
        return self.slices, self.rows


class Upscaler:
    """Enlarges slices of brain MRI, and whole scans.

        up = Upscaler()                              # weights/brain.pt
        sr = up(slices, scale=4, distance=1.2)       # (S, H, W) in [0, 1] -> (S, 4 H, 4 W)
        new = up.scan(scans.read("scan.nii.gz"))     # a Scan -> a Scan, with its geometry

    weights: a checkpoint of train.py. device: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1,
    mps. degradation: how the input was made, if that is known, as `degradation.MEANINGS` names it;
    None: the network finds out. error_map: the expected absolute errors are returned, too.
    consistent: the result is projected onto the input, by default if its degradation is given.
    bf16: products of this precision, by default where the CPU has them. tile: longer edges are cut
    into tiles of so many pixels. batch_size: slices at a time, at the most.

    Raises DataError for weights that cannot be read, UsageError for what they cannot do.
    """

    def __init__(
        self, weights=None, device="auto", *, degradation: str | Degradation | None = None,
        error_map: bool = False, consistent: bool | None = None, bf16: bool | None = None,
        tile: int = tiling.TILE, batch_size: int = 8,
    ):  # fmt: skip
        self.path = Path(weights or DEFAULT)
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        if bf16 is None:  # asked before there was any product
            bf16 = self.device.type == "cpu" and bf16_works()
        self.checkpoint = load_checkpoint(self.path)
        self.network = modules.load_network(self.checkpoint, self.path).to(self.device)
        self.scales = self.network.scales
        self.degradation = degradation
        self.consistent = degradation is not None if consistent is None else consistent
        self.bf16, self.tile, self.batch_size = bf16, tile, batch_size
        scales = self.scales if error_map else ()
        self.calibrations = {s: calibration_of(self.checkpoint, self.path, s) for s in scales}

    # --- slices ---

    def __call__(self, slices, scale=4, distance: float | None = None):
        """Slices (S, H, W), float32 in [0, 1] -> (S, rows H, columns W), float32 in [0, 1].

        scale: 4, or as "4x1" for rows alone; one of `scales`. distance: how far the slices of a
        scan are apart, in widths of their pixels: neighbours are then looked at, and all are taken
        to be made alike; None: they have nothing to do with one another. With error_map the result
        is a pair: slices, and their expected absolute errors. Raises UsageError for another scale,
        and for NaN and values that are above 1 in the mean.
        """
        slices = np.asarray(slices, np.float32)
        if slices.ndim != 3:
            raise UsageError(f"slices of shape (S, H, W) are wanted, not {slices.shape}")
        if slices.size and not slices.mean() <= 1:  # above white all would only be interpolated
            words = f"{slices.min():g} to {slices.max():g}; Upscaler.scan takes a scan's own units"
            raise UsageError(f"values in [0, 1] are wanted, not {words}")
        scale, (s, h, w) = self.scale_of(scale), slices.shape
        results = np.empty((s, h * scale[0], w * scale[1]), np.float32)
        errors = np.empty_like(results) if self.calibrations else None
        found = (self.describe_each if distance is None else self.describe)(slices, scale)
        with closing(self.parts(slices, scale, found, distance)) as parts:
            for part in parts:
                results[part.where] = part.values
                if errors is not None:
                    errors[part.where] = part.errors
        np.minimum(results, max(1, slices.max(initial=1)), out=results)
        return results if errors is None else (results, errors)

    def scale_of(self, scale) -> Scale:
        """A scale as a pair; UsageError for one that the weights are not made for."""
        scale = parse_scale(str(scale)) if isinstance(scale, (int, str)) else tuple(scale)
        if scale not in self.scales:
            known = ", ".join(f"{r}x{c}" if r != c else str(r) for r, c in self.scales)
            raise UsageError(f"{self.path}: enlarges by {known}, not by {scale[0]}x{scale[1]}")
        return scale

    def given(self, scale: Scale) -> Degradation | None:
        """How the input was made, if that was said: what is not said of slices is `bicubic`, of
        thick ones that they touch (`slab-1`)."""
        if isinstance(self.degradation, str):
            return parse_degradation(self.degradation, "slab" if 1 in scale else "bicubic")
        return self.degradation

    def describe_each(self, slices: np.ndarray, scale: Scale, levels=(0.0, 1.0)) -> torch.Tensor:
        """How each of these slices (N, H, W) was made, as said or as found: (N, FOUND)."""
        known = self.given(scale)
        truth = None if known is None else describe_degradation(known, scale).to(self.device)
        lr = torch.from_numpy(normalised(slices, levels)[0])[:, None]

        @torch.inference_mode()
        def work(some):
            return self.network.describe(some.to(self.device), truth, scale)

        some = lr.split(tiling.slices_at_a_time(*lr.shape[-2:], self.device))
        return torch.cat(list(tiling.in_parallel(work, some, self.device)))

    def describe(self, slices: np.ndarray, scale: Scale, levels=(0.0, 1.0)) -> torch.Tensor:
        """How the slices (S, H, W) of a scan were made: (1, FOUND), the mean over its middle."""
        y, x = (slice(max(0, n // 2 - 256), n // 2 + 256) for n in slices.shape[1:])
        sample = slices[middle_slices(len(slices)), y, x]
        return self.describe_each(sample, scale, levels).mean(0, keepdim=True)

    def parts(
        self, slices: np.ndarray, scale: Scale, found: torch.Tensor, distance=None,
        levels=(0.0, 1.0), name: str = "",
    ) -> Iterator[Part]:  # fmt: skip
        """Enlarge a stack (S, H, W) part by part, each as soon as it is done.

        found (1 or S, FOUND): how the slices were made. distance: as for a call. levels: the values
        that are black and white, of all slices or (S, 1, 1) of each; results are in the same units,
        and nothing is below black. Values beyond them are not shown to the network, and come back
        interpolated. Whoever may stop early closes this (contextlib.closing), which ends its
        threads.
        """
        rows = scale[0]
        most = min(self.batch_size, tiling.slices_at_a_time(*slices.shape[1:], self.device))
        radius = self.network.receptive_radius
        todo = tiling.split_stack(slices.shape, most, radius, self.consistent)

        def work(part):
            chosen, wanted, needed = part
            black, white = span = [x[chosen] if np.ndim(x) else x for x in levels]
            lr, beyond, present = self.slices_with_neighbours(
                slices, chosen, needed, distance, span
            )
            own = found if len(found) == 1 else found[chosen]
            sr, expected = self.enlarge(lr, scale, own, present, distance)
            begin, end = (rows * (row - needed.start) for row in (wanted.start, wanted.stop))
            values = sr[:, 0].clamp(min=0).cpu().numpy()
            if beyond is not None:
                values = values + interpolated(beyond, scale)
            values = values[:, begin:end] * np.float32(white - black) + np.float32(black)
            if expected is not None:
                expected = expected[:, 0, begin:end].cpu().numpy() * np.float32(white - black)
            place = slice(rows * wanted.start, rows * wanted.stop)
            return Part(chosen, place, values, expected)

        with closing(tiling.in_parallel(work, todo, self.device)) as done:
            yield from progress(
                done, total=len(todo), desc=name, unit="batch", leave=False,
                disable=len(todo) == 1,
            )  # fmt: skip

    def slices_with_neighbours(self, slices, chosen: slice, rows: slice, distance, levels) -> tuple:
        """(LR with neighbours (n, C, h, w), what is beyond black and white (n, h, w) or None, which
        of four neighbours are there (n, 4) or None) of these slices of a stack."""
        n, stop = self.network.neighbours if distance is not None else 0, chosen.stop
        first, last = max(0, chosen.start - n), min(len(slices), stop + n)
        inside, beyond = normalised(slices[first:last, rows], levels)
        if beyond is not None:
            beyond = beyond[chosen.start - first : stop - first]
        if not n:
            return torch.from_numpy(inside)[:, None].to(self.device), beyond, None
        missing = (n - (chosen.start - first), n - (last - stop))
        padded = np.pad(inside, (missing, (0, 0), (0, 0)))
        stack = torch.from_numpy(padded).to(self.device)
        lr = torch.stack([stack[k : k + stop - chosen.start] for k in range(2 * n + 1)], 1)
        steps = np.array((-2, -1, 1, 2))
        places = np.arange(chosen.start, stop)[:, None] + steps
        present = (places >= 0) & (places < len(slices)) & (abs(steps) <= n)
        if (present == present[0]).all():  # one description for all takes less time
            present = present[:1]
        return lr, beyond, torch.from_numpy(present.astype(np.float32)).to(self.device)

    def enlarge(self, lr, scale: Scale, found, present, distance) -> tuple:
        """LR slices (n, C, h, w) to SR slices and their expected errors (or None)."""
        description = None
        if self.network.conditioned:
            description = modules.full_description(found, present, distance or 0.0)
        errors = scale in self.calibrations
        sr = tiling.upscale(self.network, lr, scale, description, tile=self.tile, bf16=self.bf16,
                            error_map=errors)  # fmt: skip
        sr, expected = sr.split(1, 1) if errors else (sr, None)
        if errors:
            expected = expected_error(expected, self.calibrations[scale], description)
        if self.consistent:
            sr = make_consistent(sr, modules.middle_of(lr), self.given(scale), scale)
        return sr, expected

    # --- pictures ---

    def pictures(self, pictures: list[Scan], scale=4) -> list[tuple]:
        """[(picture, errors or None)] of pictures at a higher resolution, each described alone.

        Those of one size go through the network together, which takes less time.
        """
        scale, results, sizes = self.scale_of(scale), [None] * len(pictures), {}
        for i, picture in enumerate(pictures):
            sizes.setdefault(picture.stored.shape, []).append(i)
        for numbers in sizes.values():
            some = [pictures[i] for i in numbers]
            stack = np.stack([picture.intensities() for picture in some])
            spans = [picture.black_and_white(data) for picture, data in zip(some, stack)]
            levels = np.array(spans).T[..., None, None]
            found = self.describe_each(stack, scale, levels)
            outs = [self.empty_pair(picture, scale) for picture in some]
            with closing(self.parts(stack, scale, found, levels=levels)) as parts:
                for part in parts:
                    for at, k in enumerate(range(part.slices.start, part.slices.stop)):
                        out, errors = outs[k]
                        out[part.rows] = some[k].to_stored(part.values[at], out.dtype)
                        if errors is not None:
                            errors[part.rows] = part.errors[at]
            for k, (i, (out, errors)) in enumerate(zip(numbers, outs)):
                one = stack[k : k + 1]
                about = self.about(found[k : k + 1], scale, one, one, spans[k])
                results[i] = some[k].resampled(out, about), as_error_map(some[k], errors)
        return results

    def empty_pair(self, scan: Scan, scale: Scale, view: View = ("axial", False)) -> tuple:
        """Zeros for an enlarged picture or scan, and for its expected errors or None."""
        shape = [n * f for n, f in zip(scan.stored.shape, scan.factors(view, scale))]
        errors = scan.empty_like(shape, np.float32) if self.calibrations else None
        return scan.empty_like(shape), errors

    # --- scans ---

    def scan(
        self, scan: Scan, *, voxel_size: float | None = None, scale: int | None = None,
        through_plane: int | None = None, plane: str = "auto",
    ):  # fmt: skip
        """A scan at a higher resolution: a Scan, whose outer edges and units stay what they are.

        By default what the voxels are tells what they become (`inference.plan`): thick slices
        become thin, coarse pixels fine, never finer than was measured. voxel_size: so many mm all
        around; scale: 2, 3 or 4 in the plane alone; through_plane: so many slices of each, 0: until
        voxels are nearly cubes. plane: of its slices. `about` of the result says what was done and
        found. With error_map the result is a pair: scan, and its expected absolute errors. Raises
        DataError where nothing is to be gained.
        """
        plan = plan_of(scan, self.scales, scale=scale, through_plane=through_plane,
                       voxel_size=voxel_size, plane=plane)  # fmt: skip
        return self.follow(plan, scan)

    def follow(self, plan: Plan, scan: Scan, name: str = ""):
        """A scan enlarged as planned, see `scan`. name: for the progress bar."""
        new, errors, about = scan, None, {"Plan": plan.words}
        if plan.scale > 1:
            new, errors = self.in_plane(scan, plan.plane, plan.scale, name)
            about = new.about | about
        if plan.through > 1:
            before = errors
            new, errors = enlarge_through(self, new, plan.plane, plan.through, name)
            about = new.about | about
            if before is not None:
                errors.stored += resample(before, new.stored.shape[:3]).stored
        if plan.voxel_size:
            shape = [
                max(1, round(n * size / plan.voxel_size))
                for n, size in zip(new.stored.shape, np.array(new.sizes)[new.axes])
            ]
            new, errors = (x and resample(x, shape) for x in (new, errors))
        new.about = about
        return (new, errors) if self.calibrations else new

    def in_plane(self, scan: Scan, plane: str, scale: int, name: str = "") -> tuple:
        """(scan, errors or None): the slices of a plane enlarged."""
        view, scale = (plane, False), self.scale_of(scale)
        out, errors = self.empty_pair(scan, scale, view)
        for t in over_volumes(scan, name):
            data = scan.intensities(t)
            levels = scan.black_and_white(data)
            slices = scan.slices(data, view)
            target, error_target = (
                None if x is None else scan.slices(x[..., t] if x.ndim == 4 else x, view)
                for x in (out, errors)
            )
            found = self.describe(slices, scale, levels)
            distance = scan.distance(view)
            with closing(self.parts(slices, scale, found, distance, levels, name)) as parts:
                for part in parts:
                    target[part.where] = scan.to_stored(part.values, out.dtype)
                    if errors is not None:
                        error_target[part.where] = part.errors
        about = self.about(found, scale, slices, slices, levels)
        return scan.resampled(out, about), as_error_map(scan, errors)

    # --- what is worth telling ---

    def about(self, found: torch.Tensor, scale: Scale, slices, acquired, levels=(0.0, 1.0)) -> dict:
        """What was found of the degradation, in words, and what is unusual about the input.

        slices (S, H, W): those that were enlarged; acquired: a scan's own ones.
        """
        known = self.given(scale)
        about = {"Scale": list(scale), "DegradationFrom": "nobody", "Degradation": "unknown"}
        if known is not None:
            about |= {"DegradationFrom": "given", "Degradation": degradation_name(known)}
        elif self.network.estimator is not None:
            about |= {"DegradationFrom": "estimated", "Degradation": words_of(found, scale)}
        sample = acquired[middle_slices(len(acquired))]
        about["Unusual"] = outside_training_range(normalised(sample, levels)[0], found)
        about["FoundInstead"] = self.contradiction(slices, scale, levels)
        return about

    def contradiction(self, slices: np.ndarray, scale: Scale, levels) -> str:
        """What is found of an input, in words, if that is far from what was said of it; else ''."""
        known = self.given(scale)
        if known is None or self.network.estimator is None:
            return ""
        truth, blind = describe_degradation(known, scale)[0], copy.copy(self)
        blind.degradation = None
        found = blind.describe(slices, scale, levels)[0].cpu()
        apart = float((found - truth)[: NOISE - 1].square().mean().sqrt())
        return words_of(found[None], scale) if apart > 0.25 else ""


def normalised(values: np.ndarray, levels) -> tuple[np.ndarray, np.ndarray | None]:
    """Slices (n, h, w) with black as 0 and white as 1, cut off there, float32; and what was cut
    off, or None if nothing was. levels: two numbers, or two arrays (n, 1, 1). Single pixels far
    beyond are shown as their neighbours are: a white dot on black says of noise and blur what is
    not so."""
    black, white = levels
    values = np.ascontiguousarray(values, np.float32)
    values = (values - np.float32(black)) / np.float32(white - black)
    inside = np.clip(values, 0, 1)
    beyond = values - inside
    far = (beyond < -FAR) | (beyond > 10 * FAR)
    if not far.any():
        return inside, beyond if beyond.any() else None
    around, ordinary = (
        sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
        for x in (inside * ~far, ~far)
    )
    alone = np.nonzero(far & (ordinary.sum((3, 4)) > 4))
    inside[alone] = around[alone].sum((1, 2)) / ordinary[alone].sum((1, 2))
    return inside, values - inside


def interpolated(slices: np.ndarray, scale: Scale) -> np.ndarray:
    """Slices (n, h, w) enlarged linearly, (n, rows h, columns w)."""
    network = modules.Interpolation(scale, "bilinear")
    with torch.inference_mode():
        return network(torch.from_numpy(slices)[:, None])[:, 0].numpy()


def outside_training_range(lr: np.ndarray, found: torch.Tensor) -> str:
    """What sets LR slices (N, H, W) of a scan apart from all training slices; '' for nothing.

    Training slices have many grey levels and are no smaller than 24 pixels; noise was up to 11 % of
    white.
    """
    signs, (h, w) = [], lr.shape[-2:]
    if min(h, w) < 24:
        signs.append(f"only {w}x{h} pixels")
    levels = len(np.unique((lr * 255).round()))
    if levels < 24:
        signs.append(f"only {levels} grey levels")
    if float(found[0, NOISE]) > math.log10(1 + 140) / 2:
        signs.append("noise beyond 14 %")
    return ", ".join(signs)

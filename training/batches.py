"""From slices to the LR/HR batches of training, made on the device: which slices, how they are
looked at, how degraded."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from dataset import Slices
from degradation import (
    Scale,
    add_noise,
    degrade,
    describe_degradation,
    draw_degradation,
    random_contrasts,
    to_device,
)

SHARE_THICK = 0.35  # share of the batches of means of 2 to 9 slices, as thick as clinical ones
SHARE_UPPER = 0.2  # share of the axial samples from the upper fifth of a volume: the top of a head
SHARE_ALONE = 0.3  # share of the samples whose neighbours are missing
VIEW = 48  # LR pixels along an edge of what the estimator sees
MARGIN = 8  # LR pixels around a patch that are degraded too: it does not show where it was cut


@dataclass
class Options:
    """What stays the same in all batches of a run.

    patch: edge in LR pixels; 0: whole slices. augment: flips, quarter turns, shifts of the LR grid
    by HR pixels, brightness, with `wide` other contrasts, thicker slices, frames: all of this only
    changes how the same slice is looked at. noisy: share of the samples that are as a noisier
    scanner would have made them, truth and all. rank, world: each of `world` processes makes every
    world-th sample; together they see what one process would.
    """

    seed: int
    batch_size: int
    patch: int
    scales: tuple[Scale, ...]
    degradation: str
    neighbours: int = 0
    augment: bool = True
    noisy: float = 0.0
    rank: int = 0
    world: int = 1


@dataclass
class Batch:
    """One training step: all float32, N samples, on the device.

    lr (N, 1 + 2 neighbours, P, P) and hr (N, 1, rows P, columns P) in [0, 1]; view (N, 1, 48, 48):
    another part of the LR slices, which the estimator sees, black around it; truth (N, FOUND):
    their true degradation; told (N,) bool: whether the network is told it; present (N, 4) and
    distance (N, 1) of the neighbours, see `modules.full_description`. scale: of all of them.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    view: torch.Tensor
    truth: torch.Tensor
    told: torch.Tensor
    present: torch.Tensor
    distance: torch.Tensor
    scale: Scale = (4, 4)


class Stock:
    """All slices that are trained on, on the device; on the CPU if they do not fit there.

    slices: of one or of several planes. Through thick slices (scale 4x1) coronal and sagittal ones
    are used, else three quarters axial ones if there are any.
    """

    def __init__(self, slices: Slices, device):
        self.slices, self.device = slices, torch.device(device)
        self.pixels = torch.from_numpy(slices.pixels)
        if self.device.type == "cuda" and len(self.pixels) < torch.cuda.mem_get_info()[0] / 2:
            self.pixels = self.pixels.to(self.device)
        self.axial = np.flatnonzero(slices.plane == 2)
        self.others = np.flatnonzero(slices.plane != 2)
        # Of the stack of each slice: where it starts, its number of slices, rows and columns, and
        # how far apart these lie.
        d, h, w = slices.size[slices.volume].T
        one = np.ones_like(d)
        kinds = ((w, d, h, one, h * w, w), (h, d, w, w, h * w, one), (d, h, w, h * w, w, one))
        self.stacks = np.choose(slices.plane, np.array(kinds)).T  # (n, 6)
        self.starts = slices.start[slices.volume]

    def largest(self, scale: Scale) -> tuple[int, int]:
        """LR rows and columns that hold each slice of this scale."""
        slices = self.others if 1 in scale else np.arange(len(self.starts))
        sizes = -(-self.stacks[slices, 1:3] // scale)
        both = sizes.max(0) if 1 in scale else np.full(2, sizes.max())  # they may be turned
        return tuple(both.tolist())

    def chosen(self, scale: Scale, numbers: np.ndarray, seed: int) -> np.ndarray:
        """The slices of these samples: each comes once before any comes again."""
        if 1 in scale or not len(self.axial):
            return in_turn(self.others, numbers, seed)
        if not len(self.others):
            return in_turn(self.axial, numbers, seed)
        turn, place = numbers // 4, numbers % 4
        axial = in_turn(self.axial, 3 * turn + np.minimum(place, 2), seed)
        return np.where(place == 3, in_turn(self.others, turn, seed), axial)


def in_turn(slices: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
    """The slices of these numbers, in an order of its own in each epoch."""
    n = len(slices)
    return np.array([slices[shuffled(n, seed, k // n)[k % n]] for k in numbers.tolist()])


@lru_cache(maxsize=4)
def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n slices."""
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def scale_of(iteration: int, options: Options) -> Scale:
    """The scale of a batch: drawn, one that is given twice twice as often."""
    rng = np.random.default_rng([options.seed, 3, iteration])
    return options.scales[int(rng.integers(len(options.scales)))]


def patch_of(options: Options, scale: Scale) -> tuple[int, int]:
    """Rows and columns of a patch in LR pixels; through thick slices there are few rows."""
    return (options.patch // 2, 2 * options.patch) if scale[1] == 1 else (options.patch,) * 2


def training_batch(stock: Stock, iteration: int, options: Options) -> Batch:
    """The samples of one training step: a pure function of (seed, iteration), so that nothing has
    to be stored to resume.

    Few numbers a sample are drawn on the CPU; all else happens on the device, to all samples at
    once, and nothing waits for it.
    """
    rng, count = np.random.default_rng([options.seed, 2, iteration]), options.batch_size
    scale, n = scale_of(iteration, options), options.neighbours
    wide = options.augment and options.degradation == "wide"
    numbers = iteration * count + np.arange(count)
    chosen = stock.chosen(scale, numbers, options.seed)
    looks = draw_looks(stock, chosen, rng, scale, options)
    # In an order that makes degrading quick; slices are in none.
    ways = [draw_degradation(options.degradation, rng, scale) for _ in range(count)]
    ways.sort(key=lambda d: d.kernel == "kspace")
    views = draw_views(rng, looks.window, count)
    curves = draw_brightness(rng, count, wide, options.augment)
    frames = rng.random(count) * wide
    told = rng.random(count) < 0.5
    rough = draw_roughness(rng, options) if options.noisy else None
    dice = torch.Generator(stock.device).manual_seed(int(rng.integers(2**62)))
    lr_size = count, 1 + 2 * n, *looks.window
    noise = torch.randn((2, *lr_size), generator=dice, device=stock.device)

    mine = slice(options.rank, None, options.world)
    gains = curves[mine, 256].tolist()
    ways, noise = ways[mine], noise[:, mine]
    grey = gather_windows(stock, looks, mine, scale, n)
    hr = to(curves[mine], stock.device).gather(1, grey.flatten(1).long()).view(grey.shape)
    if (frames > 0.96).any():
        hr = framed(hr, to(frames[mine, None, None, None], stock.device))
    if rough is not None:
        draws = torch.randn((2, count, *hr.shape[1:]), generator=dice, device=stock.device)
        hr = roughened(hr, to(rough[mine], stock.device), draws[:, mine])
    # Noise is a share of the slice's own white, not of the brightness that was drawn.
    dimmed = [replace(d, noise=d.noise * gain) for d, gain in zip(ways, gains)]
    lr = degrade(hr, dimmed, scale, seed=noise)
    present = to(looks.present[mine].astype(np.float32), stock.device)
    if n:
        lr[:, :n] *= present[:, 2 - n : 2, None, None]
        lr[:, n + 1 :] *= present[:, 2 : 2 + n, None, None]
    view = cut(lr[:, n : n + 1], views[mine, :2], views[mine, 2:], (VIEW, VIEW))
    hr = hr[:, n : n + 1]
    if options.patch:
        patch, corner = np.array(patch_of(options, scale)), looks.inner[mine]
        lr = cut(lr, corner, patch, patch)
        hr = cut(hr, corner * scale, patch * scale, patch * scale)
    return Batch(
        lr, hr, view, to_device(describe_degradation(ways, scale), stock.device),
        to(told[mine], stock.device), present, to(looks.distance[mine], stock.device), scale,
    )  # fmt: skip


def to(array: np.ndarray, device) -> torch.Tensor:
    """An array as a tensor on the device; float64 becomes float32, which every device has."""
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)


# --- drawing --------------------------------------------------------------------------------------


@dataclass
class Looks:
    """Where the samples of a batch are looked at, and how: arrays of N rows.

    window: LR rows and columns of what is degraded, around the patch. slices: of the stock. place:
    of each in its volume. corner: HR row and column of the window; inner: LR row and column of the
    patch in it. turned, mirrored, upside_down: bool. thick: so many slices are averaged; step: from
    one slice to its neighbour; present (N, 4): which neighbours are there; distance (N, 1): how far
    apart they are, in LR pixels.
    """

    window: tuple[int, int]
    slices: np.ndarray
    place: np.ndarray
    corner: np.ndarray
    inner: np.ndarray
    turned: np.ndarray
    mirrored: np.ndarray
    upside_down: np.ndarray
    thick: int
    step: int
    present: np.ndarray
    distance: np.ndarray


def draw_looks(stock: Stock, chosen, rng, scale: Scale, options: Options) -> Looks:
    """Where to look at these slices of the stock, and how."""
    wide, count = options.augment and options.degradation == "wide", len(chosen)
    clinical = wide and 1 not in scale
    depth, rows, columns = stock.stacks[chosen, :3].T
    thick = int(rng.integers(2, 10)) if clinical and rng.random() < SHARE_THICK else 1
    thick = min(thick, int(depth.min()))  # of pictures there is but one
    step = thick if rng.random() < 0.7 or not wide else thick + int(rng.integers(1, 4))
    place = stock.slices.place[chosen].astype(int)
    upper = (rng.random(count) < SHARE_UPPER) & (stock.slices.plane[chosen] == 2) & (depth > 20)
    upper &= clinical
    place = np.where(upper, 4 + (rng.random(count) * (depth // 5)).astype(int), place)
    place = np.clip(place, 0, np.maximum(depth - thick, 0))
    luck = (rng.random((3, count)).T < (0.12, 0.5, 0.12)) & options.augment  # mostly upright
    upside_down, mirrored, turned = luck.T
    turned = turned & (scale[0] == scale[1])
    size = np.where(turned[:, None], np.stack((columns, rows), 1), np.stack((rows, columns), 1))
    room = np.minimum(scale, np.maximum(1, size - scale + 1))
    shift = (rng.random((count, 2)) * room * options.augment).astype(int)  # of the LR grid
    patch = np.array(patch_of(options, scale))
    free = np.maximum(0, (size - shift) // scale - patch) * bool(options.patch)
    inner = (rng.random((count, 2)) * (free + 1)).astype(int)
    begin = np.maximum(0, inner - MARGIN) * bool(options.patch)
    window = tuple((patch + 2 * MARGIN).tolist()) if options.patch else stock.largest(scale)
    before, after = place // step, (depth - place - thick) // step
    present = np.stack((before > 1, before > 0, after > 0, after > 1), 1)
    luck = rng.random(count)
    present[luck < SHARE_ALONE + 0.1, :2] = False  # one in ten at each end of a volume
    present[
        (luck < SHARE_ALONE) | ((luck >= SHARE_ALONE + 0.1) & (luck < SHARE_ALONE + 0.2)), 2:
    ] = False
    present[:, [0, 3]] &= options.neighbours > 1
    present &= options.neighbours > 0
    apart = step * np.array([stock.slices.distance(i, scale) for i in chosen.tolist()])
    return Looks(window, chosen, place, shift + begin * scale, inner - begin, turned, mirrored,
                 upside_down, thick, step, present, apart[:, None])  # fmt: skip


def draw_views(rng, window, count: int) -> np.ndarray:
    """(top, left, height, width) of what the estimator sees of each LR window, (count, 4).

    Half of them as large as can be, the others down to 20 pixels, often without any background.
    """
    most = np.minimum(window, VIEW)
    least = np.where(rng.random((count, 1)) < 0.5, most, np.minimum(20, most))
    size = least + (rng.random((count, 2)) * (most - least + 1)).astype(int)
    corner = (rng.random((count, 2)) * (np.array(window) - size + 1)).astype(int)
    return np.concatenate((corner, size), 1)


def draw_brightness(rng, count: int, wide: bool, augment: bool) -> np.ndarray:
    """What each of 256 grey levels becomes, in [0, 1], and behind it the gain: (count, 257).

    Brightness; with `wide` other contrasts in a third of the samples, and black for white in some.
    """
    curves = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (count, 1))
    if wide:
        curves = np.where(rng.random((count, 1)) < 0.35, random_contrasts(rng, count), curves)
        curves = np.where(rng.random((count, 1)) < 0.04, 1 - curves, curves)
    gains = rng.uniform(0.7, 1, (count, 1)) if augment else np.ones((count, 1))
    return np.concatenate((curves * gains, gains), 1).astype(np.float32)


def draw_roughness(rng, options: Options) -> np.ndarray:
    """For each sample (size of the noise in the truth, whether it spares the background)."""
    count = options.batch_size
    sizes = (rng.random(count) < options.noisy) * 10 ** rng.uniform(-2.3, -1.3, count)
    return np.stack((sizes, rng.random(count) < 0.5), 1)


# --- looking --------------------------------------------------------------------------------------


def gather_windows(stock: Stock, looks: Looks, mine, scale: Scale, neighbours: int):
    """The HR windows of samples and of their neighbours, uint8 (N, 1 + 2 neighbours, H, W).

    What lies beyond a slice is black. Each is the mean of `thick` slices.
    """
    slices, where = looks.slices[mine], stock.pixels.device
    depth, rows, columns, apart, down, across = stock.stacks[slices].T
    turned = looks.turned[mine]
    rows, columns = np.where(turned, (columns, rows), (rows, columns))
    down, across = np.where(turned, (across, down), (down, across))
    start, place = stock.starts[slices] + looks.place[mine] * apart, looks.place[mine]
    parts = start, place, depth, apart, down, across, rows, columns, *looks.corner[mine].T
    parts += looks.upside_down[mine], looks.mirrored[mine]
    numbers = to(np.stack(parts, 1).astype(np.int64), where)[:, :, None].unbind(1)  # (N, 1) each
    start, place, depth, apart, down, across, rows, columns, top, left, flip_y, flip_x = numbers
    y = top + torch.arange(looks.window[0] * scale[0], device=where)
    x = left + torch.arange(looks.window[1] * scale[1], device=where)
    inside = (y < rows)[:, None, :, None] & (x < columns)[:, None, None, :]
    y, x = y.minimum(rows - 1), x.minimum(columns - 1)
    y, x = torch.where(flip_y > 0, rows - 1 - y, y), torch.where(flip_x > 0, columns - 1 - x, x)
    steps = torch.arange(-neighbours, neighbours + 1, device=where) * looks.step
    there = (place + steps >= 0) & (place + steps + looks.thick <= depth)  # (N, C)
    first = start + torch.where(there, steps * apart, 0)
    index = (y * down)[:, None, :, None] + (x * across)[:, None, None, :] + first[..., None, None]
    seen = stock.pixels[index]
    if looks.thick > 1:
        total = seen.to(torch.int16)
        for _ in range(looks.thick - 1):
            index += apart[..., None, None]
            total += stock.pixels[index]
        seen = ((2 * total + looks.thick) // (2 * looks.thick)).to(torch.uint8)
    seen = seen * (inside & there[..., None, None])
    return seen if where.type == stock.device.type else to_device(seen, stock.device)


def framed(hr: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
    """Slices, some with white instead of black around the head, some with bars above and below."""
    white = torch.where(hr < 0.04, torch.ones_like(hr), hr)
    rows = torch.arange(hr.shape[2], device=hr.device)[:, None]
    bars = hr * ((rows >= hr.shape[2] // 5) & (rows < hr.shape[2] - hr.shape[2] // 4))
    return torch.where(luck > 0.98, white, torch.where(luck > 0.96, bars, hr))


def roughened(hr: torch.Tensor, rough: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Slices as a noisier scanner would have made them, truth and all. rough: `draw_roughness`."""
    size, spared = rough[:, :, None, None, None].unbind(1)
    noisy = add_noise(hr, size, True, draws).clamp(0, 1)
    noisy = torch.where((spared > 0) & (hr <= 0), hr, noisy)
    return torch.where(size > 0, noisy, hr)


def cut(slices: torch.Tensor, corners, sizes, canvas) -> torch.Tensor:
    """Parts of slices (N, C, H, W), in the middle of black: (N, C, *canvas).

    corners (N, 2): first row and column. sizes (2,) or (N, 2): rows and columns.
    """
    n, c, h, w = slices.shape
    rows, columns = map(int, canvas)
    numbers = np.concatenate((corners, np.broadcast_to(sizes, (n, 2))), 1).astype(np.int64)
    top, left, high, wide = to(numbers, slices.device)[:, :, None].unbind(1)
    y = torch.arange(rows, device=slices.device) - (rows - high) // 2
    x = torch.arange(columns, device=slices.device) - (columns - wide) // 2
    inside = ((y >= 0) & (y < high))[:, :, None] & ((x >= 0) & (x < wide))[:, None, :]
    y, x = (top + y).clamp(0, h - 1), (left + x).clamp(0, w - 1)
    index = (y[:, :, None] * w + x[:, None, :]).view(n, 1, -1).expand(-1, c, -1)
    return slices.flatten(2).gather(2, index).view(n, c, rows, columns) * inside[:, None]

"""Running a network over slices fast: kept memory, parts for each thread, tiles, bf16."""

import ctypes
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
import torch.nn.functional as F

from modules import full_description, middle_of

TILE = 360  # LR pixels along an edge: features of 48 channels and 4 bytes stay below KEPT
KEPT = 2**25  # bytes: larger pieces of memory cannot be kept, see tune_malloc
PART_PIXELS = 2**15  # LR pixels at a time on a CPU: fewer are slow, more leave the cache
DEVICE_PIXELS = 2**18  # the same on a GPU
BAND_PIXELS = 2**19  # larger slices are upscaled in bands of rows


def tune_malloc() -> None:
    """Keep the memory of layers that are done for those that follow. To be called once, at first.

    glibc gives large pieces back to the system at once, which clears them each time they are asked
    for again: a third of the time of a network on large slices, and of training.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # other C libraries have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, KEPT)  # M_MMAP_THRESHOLD, at the most it can be
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX: those of threads would be given back all the same


def slices_at_a_time(height: int, width: int, device: torch.device) -> int:
    """How many LR slices of this size are best computed together."""
    pixels = PART_PIXELS if device.type == "cpu" else DEVICE_PIXELS
    return max(1, pixels // (height * width))


def split_stack(shape, most: int, margin: int, whole: bool) -> list[tuple]:
    """How a stack (S, H, W) is worked through: [(slices, rows, rows needed for them)].

    most: slices at a time. Very large slices go in bands of rows, unless they are needed whole.
    """
    count, h, w = shape
    if h * w > BAND_PIXELS and not whole:
        margin += margin % 2  # even, so that pixels of half the resolution stay where they are
        band = max(64, BAND_PIXELS // w // 2 * 2)
        return [
            (slice(i, i + 1), slice(top, min(h, top + band)),
             slice(max(0, top - margin), min(h, top + band + margin)))
            for i in range(count) for top in range(0, h, band)
        ]  # fmt: skip
    rows = slice(0, h)
    return [(slice(i, min(i + most, count)), rows, rows) for i in range(0, count, most)]


def set_threads(count: int) -> None:
    """Give a new Python thread this number of CPU threads.

    Asked first, as a thread takes over what another has set last when it is first asked.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def in_parallel(work, parts, device: torch.device):
    """Yield work(part) for each part, in their order. On a CPU each thread does parts of its own:
    threads that share one slice wait for one another at each layer. A few results at a time wait
    to be asked for.
    """
    parts, threads = list(parts), torch.get_num_threads()
    workers = min(threads, len(parts)) if device.type == "cpu" else 1
    if workers < 2:
        yield from map(work, parts)
        return
    share, waiting = (threads // workers,), deque()
    pool = ThreadPoolExecutor(workers, "upscale", set_threads, share)
    try:
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # if interrupted: no further part is begun
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.inference_mode()
def upscale(
    network, lr: torch.Tensor, scale, description=None, *, tile: int = TILE, bf16=False,
    error_map=False,
) -> torch.Tensor:  # fmt: skip
    """SR slices (N, 1, rows H, columns W), float32, of LR slices (N, C, H, W), on their device.

    description (1 or N, ENTRIES); None: estimated, for slices without neighbours. Long edges are
    cut into tiles that overlap by what a result depends on: tiling changes nothing. bf16: products
    of this precision, but for the interpolation that the network corrects. error_map: a second
    channel with the expected absolute errors, of networks that have the head.
    """
    if network.conditioned and description is None:
        lr = middle_of(lr)
        description = full_description(network.describe(lr, scale=scale))
    with torch.autocast(lr.device.type, dtype=torch.bfloat16, enabled=bf16):
        sr = tiled_forward(network, lr, scale, description, tile, error_map)
    clamp_to_neighbourhood(sr[:, :1], middle_of(lr), scale)  # in place
    return sr


def tiled_forward(network, lr, scale, description, tile: int, error_map: bool) -> torch.Tensor:
    """The network's result, float32, computed tile by tile where the slices are large."""
    h, w = lr.shape[-2:]
    if h <= tile and w <= tile:
        return network(lr, scale, description, error_map).float()
    # Even, so that the pixels of half the resolution stay where they are.
    margin, tile = network.receptive_radius, tile + tile % 2
    margin += margin % 2
    rows, columns = scale
    sr = lr.new_empty(len(lr), 1 + error_map, rows * h, columns * w)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            y, x = max(0, top - margin), max(0, left - margin)
            part = lr[..., y : top + tile + margin, x : left + tile + margin]
            part = network(part, scale, description, error_map)
            part = part[..., rows * (top - y) :, columns * (left - x) :]
            target = sr[..., rows * top :, columns * left :][..., : rows * tile, : columns * tile]
            target.copy_(part[..., : target.shape[-2], : target.shape[-1]])
    return sr


def clamp_to_neighbourhood(sr: torch.Tensor, lr: torch.Tensor, scale) -> torch.Tensor:
    """Clamp SR in place to the range of the 5x5 LR pixels around, widened by its size at both ends.

    Of real slices, however degraded, this changes the PSNR by less than 0.001 dB; it keeps a
    network from making up values where it meets what it has never seen, and empty places empty.
    """
    (n, _, h, w), (rows, columns) = lr.shape, scale
    most, least = F.max_pool2d(lr, 5, 1, 2), -F.max_pool2d(-lr, 5, 1, 2)
    room = most - least
    least, most = (
        x.repeat_interleave(columns, -1).view(n, h, 1, w * columns)
        for x in (least - room, most + room)
    )
    blocks = sr.view(n, h, rows, w * columns)
    return blocks.clamp_(least, most).view(n, 1, h * rows, w * columns)

"""From slices to the LR/HR batches of training: which slice, how it is looked at, how degraded."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from dataset import Slices
from degradation import (
    Scale,
    add_noise,
    crop_to_scale,
    degrade,
    describe_degradation,
    draw_degradation,
    random_contrast,
)

THICKER = 0.45  # share of the samples that are means of 2 to 9 slices, as thick as clinical ones
UPPER = 0.2  # share of the samples from the last fifth of a volume: the top of a head, if axial
VIEW = 24, 64  # least and most LR pixels along an edge of what the estimator sees


@dataclass
class Batch:
    """One training step: all float32, N samples.

    lr (N, 1, P, P) and hr (N, 1, rows P, columns P) in [0, 1]; view (N, 1, V, V): another part of
    the LR slices, which the estimator sees, V = 64 in half of the iterations, 24 to 63 in the
    others; description (N, ENTRIES): their true degradation.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    view: torch.Tensor
    description: torch.Tensor


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n slices."""
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def training_batch(
    slices: Slices, iteration: int, *, seed: int, batch_size: int, patch: int, degradation: str,
    scale: Scale = (4, 4), augment: bool = True, noisy: float = 0.0, device: str = "cpu",
    rank: int = 0, world: int = 1,
) -> Batch:  # fmt: skip
    """The samples of one training step.

    A pure function of (seed, iteration): nothing has to be stored to resume, and `world` processes
    that each make their share (every world-th sample) see together what one process would.
    patch: in LR pixels; 0: whole slices, padded with black to the largest of the batch. noisy:
    share of the samples that are as a noisier scanner would have made them, truth and all.
    """
    dice = np.random.default_rng([seed, 3, iteration])
    size = VIEW[1] if dice.random() < 0.5 else int(dice.integers(*VIEW))
    samples = []
    for number in range(iteration * batch_size + rank, (iteration + 1) * batch_size, world):
        rng = np.random.default_rng([seed, 2, number])
        chosen = shuffled(len(slices), seed, number // len(slices))[number % len(slices)]
        clinical = augment and degradation == "wide" and scale[0] == scale[1]
        if clinical and rng.random() < UPPER:
            volume = slices.volume_of(chosen)
            chosen = volume[-1 - int(rng.integers(max(1, len(volume) // 5)))]
        pixels = slices[chosen]
        if clinical and rng.random() < THICKER:
            pixels = slices.thicker(chosen, int(rng.integers(2, 10)))
        samples.append(
            training_sample(pixels, rng, patch, size, degradation, scale, augment, noisy)
        )
    sizes = [tuple(max(x.shape[a] for x in group) for a in (0, 1)) for group in zip(*samples)]
    lr, hr, view, description = (
        to_device(np.stack([fit(x, size) for x in group]), device)
        for group, size in zip(zip(*samples), sizes)
    )
    return Batch(lr[:, None], hr[:, None], view[:, None], description[:, 0])


def batches_ahead(slices: Slices, iterations: range, workers: int, **options):
    """Yield the batch of each of these iterations, `workers` threads making those that follow.

    While a GPU computes one step, the CPU makes the next. workers: 0 makes each when it is asked
    for, which is faster where the CPU computes the steps too. options: of `training_batch`.
    """
    if not workers:
        yield from (training_batch(slices, iteration, **options) for iteration in iterations)
        return
    ahead, pool = deque(), ThreadPoolExecutor(workers, "batch", torch.set_num_threads, (1,))
    try:
        for iteration in iterations:
            ahead.append(pool.submit(training_batch, slices, iteration, **options))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # a run that ends early waits for none
        pool.shutdown(wait=False, cancel_futures=True)


def training_sample(pixels, rng, patch, view, degradation, scale, augment, noisy) -> tuple:
    """LR and HR patch, view and description of one slice, as float32 arrays (H, W).

    The whole slice is degraded, by the same function as in validation and evaluation, and the patch
    is cut out of the result: patches carry no trace of having been cut out. augment: flips, quarter
    turns, shifts of the LR grid by HR pixels, brightness, with `wide` other contrasts: all of this
    only changes how the same slice is looked at. noisy: of `training_batch`.
    """
    rows, columns = scale
    gain = 1.0
    if augment:
        # Mostly upright, as most pictures are.
        upside_down, mirrored, turned = rng.random(3) < (0.12, 0.5, 0.12)
        pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        pixels = pixels.T if turned and rows == columns else pixels
        top, left = (
            int(rng.integers(min(s, max(1, n - s + 1)))) for s, n in zip(scale, pixels.shape)
        )
        pixels = pixels[top:, left:]
        gain = rng.uniform(0.7, 1)
    pixels = crop_to_scale(pixels, scale)
    levels = np.arange(256, dtype=np.float32) / 255
    if augment and degradation == "wide" and rng.random() < 0.35:
        levels = random_contrast(rng)
    hr = torch.from_numpy((levels * np.float32(gain))[pixels])[None, None]
    if noisy and rng.random() < noisy:
        filled = hr > 0 if rng.random() < 0.5 else 1  # as a head without its skull, or with it
        hr = add_noise(hr, gain * 10 ** rng.uniform(-2.3, -1.3), True, rng) * filled  # 0.5 to 5 %
        hr = hr.clamp_(0, 1)
    way = draw_degradation(degradation, rng, scale)
    # Noise as a share of the slice's own white, not of the brightness that was drawn.
    lr = degrade(hr, replace(way, noise=way.noise * gain), scale, seed=rng.integers(2**32))
    lr, hr = lr[0, 0].numpy(), hr[0, 0].numpy()
    y, x = (rng.integers(n // 4, 3 * n // 4 + 1) - view // 2 for n in lr.shape)  # its middle
    y, x = (int(min(max(0, at), max(0, n - view))) for at, n in zip((y, x), lr.shape))
    seen = fit(lr[y:, x:], (view, view))
    if patch:
        y, x = (int(rng.integers(max(1, n - patch + 1))) for n in lr.shape)
        lr = fit(lr[y:, x:], (patch, patch))
        hr = fit(hr[rows * y :, columns * x :], (rows * patch, columns * patch))
    return lr, hr, seen, describe_degradation(way, scale).numpy()


def fit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The upper left corner of this size, with zeros where the array ends."""
    array = array[: size[0], : size[1]]
    missing = [(0, want - have) for want, have in zip(size, array.shape)]
    return np.pad(array, missing) if any(m for _, m in missing) else array


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    """The array as a tensor on the device; from pinned memory, a copy to CUDA does not wait."""
    tensor = torch.from_numpy(array)
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)  # MPS would copy what may have been freed by then

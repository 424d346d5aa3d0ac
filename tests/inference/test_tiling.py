"""Running a network over slices: tiles, threads, bf16, and what may come out."""

import os
import threading

import numpy as np
import pytest
import torch
from conftest import random_network
from scipy import ndimage

import modules
import utils
from inference import tiling

CPU = torch.device("cpu")
ARCHS = [
    {"name": "espcn", "channels": 8},
    {"name": "deep", "channels": 8, "blocks": 4},
    {"name": "deep", "channels": 8, "blocks": 3, "half": 3, "estimator": True},
    {"name": "deep", "channels": 8, "blocks": 0, "half": 0},
]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
@pytest.mark.parametrize("size", [(50, 37), (16, 90)])
@pytest.mark.parametrize("scale", [(4, 4), (3, 1)], ids=str)
def test_tiles_change_nothing(arch, size, scale):
    network, lr = random_network(arch, scale), torch.rand(2, 1, *size)
    whole = tiling.upscale(network, lr, scale)
    assert whole.shape == (2, 1, scale[0] * size[0], scale[1] * size[1]) and whole.std() > 1e-3
    torch.testing.assert_close(
        tiling.upscale(network, lr, scale, tile=16), whole, atol=1e-5, rtol=0
    )


def test_the_limit_changes_no_real_slice(real_slices):
    from degradation import degrade

    lr = degrade(real_slices, "bicubic", (4, 4))
    near = real_slices.clone()
    kept = tiling.clamp_to_neighbourhood(near.clone(), lr, (4, 4))
    assert (kept - near).square().mean() < 1e-4 * (near - near.mean()).square().mean()


def test_results_stay_near_the_range_of_the_pixels_around():
    """Against SciPy's filters."""
    lr, sr = torch.rand(2, 1, 9, 7), 3 * torch.randn(2, 1, 36, 21)
    most, least = (f(lr[:, 0].numpy(), (1, 5, 5), mode="nearest")
                   for f in (ndimage.maximum_filter, ndimage.minimum_filter))  # fmt: skip
    low, high = (np.kron(x, np.ones((1, 4, 3))) for x in (2 * least - most, 2 * most - least))
    found = tiling.clamp_to_neighbourhood(sr.clone(), lr, (4, 3))[:, 0].numpy()
    np.testing.assert_allclose(found, np.clip(sr[:, 0].numpy(), low, high), atol=1e-6)


def test_bf16_is_within_a_grey_level(real_slices):
    """Of a network that looks at differences, as trained ones do: had the first layer rounded the
    slice, it would be twice as much."""
    before = dict(os.environ)
    if not utils.bf16_works() or os.environ != before:  # limits come too late for this process
        pytest.skip("this CPU has no bf16 products, or only without AMX")
    network, lr = random_network({"name": "deep", "channels": 16}), real_slices[:, :, ::4, ::4]
    for conv in (*network.body, *network.side):
        torch.nn.init.dirac_(conv.weight)
    network.head.weight.data -= network.head.weight.data.mean((2, 3), keepdim=True)
    torch.nn.init.normal_(network.tails["4"].weight, std=0.02)
    exact, near = (tiling.upscale(network, lr, (4, 4), bf16=bf16) for bf16 in (False, True))
    assert near.dtype == torch.float32 and (exact - near).abs().max() * 255 < 1
    added = exact - modules.Interpolation()(lr)
    assert 0 < (exact - near).square().mean() < 0.006**2 * added.square().mean()


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_come_in_order_each_from_one_thread(threads):
    before, seen = torch.get_num_threads(), set()

    def work(i):
        seen.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        return 2 * i

    torch.set_num_threads(threads)
    try:
        assert list(tiling.in_parallel(work, range(9), CPU)) == list(range(0, 18, 2))
        assert torch.get_num_threads() == threads and len(seen) <= threads
        alone = list(tiling.in_parallel(lambda _: torch.get_num_threads(), [0], CPU))
        assert alone == [threads]  # one part gets them all
        with pytest.raises(ZeroDivisionError):
            list(tiling.in_parallel(lambda i: 1 / i, range(9), CPU))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

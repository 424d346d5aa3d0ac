"""The networks."""

import pytest
import torch
import torch.nn.functional as F

import dataset
import modules
from utils import DataError

ARCHS = [
    {"name": "espcn", "channels": 8},
    {"name": "deep"},
    {"name": "deep", "channels": 8, "blocks": 4, "skip": "nearest", "body": "residual"},
    {"name": "deep", "channels": 8, "blocks": 2, "half": 1, "kernel": "3x3", "bias": True},
    {
        "name": "deep",
        "channels": 8,
        "blocks": 3,
        "half": 0,
        "skip": "none",
        "body": "plain",
        "icnr": True,
    },
]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 17), (21, 16)])
def test_networks_make_four_times_the_size(arch, size):
    network = modules.build(arch)
    sr = network(torch.rand(2, 1, *size))
    assert sr.shape == (2, 1, 4 * size[0], 4 * size[1])
    assert sr.dtype == torch.float32 and sr.isfinite().all()


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (30, 41)])
def test_interpolation_equals_pytorch(mode, size):
    lr = torch.rand(2, 1, *size)
    wanted = F.interpolate(lr, scale_factor=4, mode=mode)
    torch.testing.assert_close(modules.Interpolation(mode)(lr), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_untrained_deep_network_is_its_interpolation(mode):
    lr = torch.rand(1, 1, 20, 24)
    wanted = F.interpolate(lr, scale_factor=4, mode=mode)
    sr = modules.build({"name": "deep", "skip": mode})(lr)
    torch.testing.assert_close(sr, wanted, atol=2e-6, rtol=0)


def test_plain_network_is_the_published_one():
    network = modules.build({"name": "espcn", "channels": 64})
    assert modules.parameters(network) == 84752
    lr = torch.rand(1, 1, 9, 9)
    p = list(network.parameters())
    x = F.leaky_relu(F.conv2d(lr, p[0], p[1], padding=2), 0.01)
    x = F.leaky_relu(F.conv2d(x, p[2], p[3], padding=1), 0.01)
    x = F.leaky_relu(F.conv2d(x, p[4], p[5], padding=1), 0.01)
    wanted = F.pixel_shuffle(F.conv2d(x, p[6], p[7], padding=1), 4)
    torch.testing.assert_close(network(lr), wanted, atol=1e-6, rtol=0)


def test_mmac_counts_what_a_forward_pass_multiplies():
    """By hand: kernels times pixels; half the resolution has a quarter of the pixels."""
    plain = 25 * 64 + 2 * 9 * 64 * 64 + 9 * 64 * 16
    assert modules.mmac(modules.build({"name": "espcn"})) == plain * 60 * 64 / 1e6
    full = 25 * 48 + 13 * 3 * 48 * 48 + 9 * 48 * 16 + 25 * 16  # the last is the interpolation
    half = (4 + 4 * 3 + 4) * 48 * 48
    wanted = (full + half / 4) * 30 * 32 / 1e6
    network = modules.build({"name": "deep"})
    assert modules.mmac(network, 30, 32) == pytest.approx(wanted)
    assert {p.device.type for p in network.parameters()} == {"cpu"}


def test_default_network_stays_within_its_budget():
    network = modules.build({"name": "deep"})
    assert modules.mmac(network) <= 500 and modules.parameters(network) <= 150_000


@pytest.mark.parametrize("arch", ARCHS, ids=str)
@pytest.mark.parametrize("size", [(50, 37), (16, 90)])
def test_tiles_change_nothing(arch, size):
    torch.manual_seed(0)
    network = modules.build(arch)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    lr = torch.rand(2, 1, *size)
    whole = modules.upscale(network, lr)
    assert whole.std() > 1e-3
    tiled = modules.upscale(network, lr, tile=16)
    scale = float(whole.abs().max())
    torch.testing.assert_close(tiled / scale, whole / scale, atol=2e-6, rtol=0)


def test_overfits_one_batch_far_below_bicubic(real_slices):
    torch.manual_seed(0)
    hr = real_slices[:, :, 64:128, 42:106]
    lr = dataset.degrade(hr, "bicubic")
    bicubic = F.mse_loss(modules.Interpolation()(lr), hr).item()
    network = modules.build({"name": "deep"})
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(200):
        loss = F.mse_loss(network(lr), hr)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3 * bicubic


def test_the_side_path_starts_small():
    torch.manual_seed(0)
    for bias in (False, True):
        network = modules.build({"name": "deep", "bias": bias})
        with torch.no_grad():
            side = network.up(network.down(features := torch.rand(1, 48, 8, 8)))
        assert side.std() < 0.1 * features.std()


@pytest.mark.parametrize(
    "arch",
    [
        {},
        {"name": "vit"},
        {"name": "espcn", "channels": 0},
        {"name": "espcn", "channels": -3},
        {"name": "espcn", "channels": True},
        {"name": "espcn", "channels": "64"},
        {"name": "espcn", "blocks": 3},
        {"name": "deep", "channels": 10**9},
        {"name": "deep", "channels": 1024, "blocks": 1024},  # 38 GB
        {"name": "deep", "channels": 8, "blocks": 1000, "half": 1000},
        {"name": "deep", "blocks": 2.5},
        {"name": "deep", "skip": "lanczos"},
        {"name": "deep", "kernel": "5x5"},
        {"name": "deep", "icnr": "yes"},
        {"name": ["deep"]},
        {"name": "deep", 3: 4},
    ],
    ids=str,
)
def test_unknown_networks_are_refused(arch):
    with pytest.raises(DataError, match="unknown network"):
        modules.build(arch)

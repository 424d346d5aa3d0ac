"""The networks."""

import pytest
import torch
import torch.nn.functional as F
from conftest import random_network

import modules
from degradation import describe_degradation
from utils import DataError

ARCHS = [
    {"name": "espcn", "channels": 8},
    {"name": "deep"},
    {"name": "deep", "channels": 8, "blocks": 3, "half": 1},
    {"name": "deep", "channels": 8, "blocks": 2, "half": 0},
    {"name": "deep", "channels": 8, "blocks": 4, "half": 2, "told": True},
]
SCALES = [(4, 4), (2, 2), (3, 3), (4, 1), (6, 1), (1, 2)]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_networks_enlarge_by_their_scale(arch, scale):
    network = modules.build(arch, scale)
    for h, w in [(1, 1), (3, 5), (1, 17), (21, 16)]:
        sr = network(torch.rand(2, 1, h, w))
        assert sr.shape == (2, 1, scale[0] * h, scale[1] * w)
        assert sr.dtype == torch.float32 and sr.isfinite().all()


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_interpolation_equals_pytorch_and_is_what_an_untrained_network_does(mode, scale):
    for size in [(1, 1), (3, 5), (30, 41)]:
        lr = torch.rand(2, 1, *size)
        wanted = F.interpolate(lr, scale_factor=tuple(map(float, scale)), mode=mode)
        found = modules.Interpolation(scale, mode)(lr)
        torch.testing.assert_close(found, wanted, atol=5e-6, rtol=0)
    if mode == "bicubic":
        sr = modules.build({"name": "deep"}, scale)(lr)
        torch.testing.assert_close(sr, wanted, atol=5e-6, rtol=0)


def test_the_sub_pixel_layer_is_pixel_shuffle():
    features = torch.rand(2, 9, 4, 5)
    assert torch.equal(modules.sub_pixel_layer(features, (3, 3)), F.pixel_shuffle(features, 3))


def test_a_constant_slice_has_the_same_response_everywhere():
    """No darker or brighter edges: borders are continued by their outermost pixels.

    The side path's pixel shuffle leaves a pattern of its own in random networks; trained ones are
    held to 1 % in test_weights.py.
    """
    network = random_network(ARCHS[3], (2, 2))
    with torch.no_grad():
        sr = network(torch.full((1, 1, 40, 31), 0.5))
        inner = sr[..., 40:42, 30:32].repeat(1, 1, 40, 31)
        torch.testing.assert_close(sr, inner)


@pytest.mark.parametrize("arch", ARCHS[1:], ids=str)
def test_brightness_passes_through(arch):
    network, lr = random_network(arch), torch.rand(1, 1, 12, 14)
    with torch.no_grad():
        bright, dark = network(lr), network(0.25 * lr)
        torch.testing.assert_close(dark, 0.25 * bright, atol=1e-5 * float(bright.max()), rtol=1e-4)


def test_one_description_for_all_slices_equals_one_for_each():
    network, lr = random_network(ARCHS[-1]), torch.rand(3, 1, 12, 14)
    told = describe_degradation("blur-2", (4, 4))
    with torch.no_grad():
        one, each = network(lr, told), network(lr, told.expand(3, -1))
        torch.testing.assert_close(one, each, atol=1e-4 * float(each.abs().max()), rtol=0)
        other = network(lr, describe_degradation("kspace", (4, 4)))
        assert (one - other).abs().max() > 1e-3 * one.abs().max()  # it matters what is told


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
    assert modules.mmac(modules.build({"name": "espcn"})) == pytest.approx(plain * 60 * 64 / 1e6)
    # Two convolutions share one padding: the first of a pair computes a margin for the second.
    network = modules.build({"name": "deep", "channels": 8, "blocks": 1, "half": 0})
    full = 25 * 8 * 32 * 34 + 3 * 8 * 8 * 30 * 32 + 9 * 8 * 16 * 30 * 32 + 25 * 16 * 30 * 32
    assert modules.mmac(network, 30, 32) == pytest.approx(full / 1e6, rel=0.08)


def test_default_network_stays_within_its_budget():
    network = modules.build({"name": "deep", "told": True})
    assert modules.mmac(network) <= 500 and modules.parameters(network) <= 230_000


def test_weights_of_another_scale_are_adopted_but_for_the_last_layer():
    first, second = random_network(ARCHS[2]), modules.build(ARCHS[2], (2, 2))
    left = modules.adopt_weights(second, {"model": first.state_dict()})
    assert left == ["tail.weight"]
    torch.testing.assert_close(second.body[0].weight, first.body[0].weight)
    assert not second.tail.weight.any()


def test_weights_of_a_released_checkpoint_still_fit():
    """Checkpoints of before name the study's switches, and their scale as one number."""
    network = random_network(ARCHS[2])
    arch = {**ARCHS[2], **modules.FORMER}
    loaded = modules.load_network({"arch": arch, "scale": 4, "model": network.state_dict()})
    lr = torch.rand(1, 1, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(lr), network(lr))


DEEP = {"name": "deep"}
REFUSED = [
    *({}, {"name": "vit"}, {"name": ["deep"]}, {"name": "espcn", "blocks": 3}),
    *({"name": "espcn", "channels": n} for n in (0, -3, True, "64")),
    *(DEEP | {"channels": 10**9}, DEEP | {"channels": 1024, "blocks": 1024}),  # 38 GB
    *(DEEP | {"channels": 8, "blocks": 1000, "half": 1000}, DEEP | {"blocks": 2.5}),
    *(DEEP | {"skip": "lanczos"}, DEEP | {"kernel": "5x5"}, DEEP | {"icnr": True}),
    *(DEEP | {"told": 1}, DEEP | {3: 4}),
]


@pytest.mark.parametrize("arch", REFUSED, ids=str)
def test_unknown_networks_are_refused(arch):
    with pytest.raises(DataError, match="unknown network"):
        modules.build(arch)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_scaled_activations_have_the_slopes_of_their_parts(order):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 5, dtype=torch.double).to(memory_format=order)
    gain = torch.rand(2, 3, 1, 1, dtype=torch.double) + 0.5
    inputs = features.requires_grad_(), gain.requires_grad_()

    def scaled(x, g):
        return modules.ScaledActivation.apply(x * 1, g)  # works in place

    wanted = torch.nn.functional.leaky_relu(features * gain, 0.1)
    torch.testing.assert_close(scaled(*inputs), wanted)
    assert torch.autograd.gradcheck(scaled, inputs)

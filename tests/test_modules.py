"""The networks."""

import pytest
import torch
import torch.nn.functional as F
from conftest import checkpoint_of, random_network

import modules
from degradation import describe_degradation
from modules import full_description
from utils import DataError

SMALL = {"name": "deep", "channels": 8, "blocks": 3, "half": 1}
FLAT = SMALL | {"blocks": 2, "half": 0}
FULL = SMALL | {"neighbours": 2, "estimator": True}
ARCHS = [{"name": "espcn", "channels": 8}, {"name": "deep"}, SMALL, FLAT, FULL,
         FULL | {"blocks": 4, "half": 2, "neighbours": 1, "error_head": True}]  # fmt: skip
SCALES = ((4, 4), (2, 2), (3, 3), (4, 1), (6, 1), (1, 2))
ALL_AROUND = torch.ones(1, 4)


def inputs_of(network, n=1, size=(12, 14), name="blur-2"):
    """Slices with their neighbours, and a description, or None."""
    lr = torch.rand(n, 1 + 2 * network.neighbours, *size)
    known = describe_degradation(name, (4, 4))
    return lr, full_description(known, ALL_AROUND, 2.0) if network.conditioned else None


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_interpolation_equals_that_of_pytorch(mode, scale):
    for size in [(1, 1), (3, 5), (30, 41)]:
        lr = torch.rand(2, 1, *size)
        factors = tuple(map(float, scale))
        wanted = F.interpolate(lr.double(), scale_factor=factors, mode=mode).float()
        found = modules.Interpolation(scale, mode)(lr)
        torch.testing.assert_close(found, wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("arch", ARCHS[1:], ids=str)
def test_an_untrained_network_is_bicubic_interpolation_at_every_scale(arch):
    network = modules.build(arch, SCALES).eval()
    for scale, size in zip(SCALES, [(3, 5), (1, 1), (1, 17), (21, 16), (3, 5), (1, 1)]):
        lr, description = inputs_of(network, 2, size)
        wanted = modules.Interpolation(scale)(modules.middle_of(lr))
        torch.testing.assert_close(network(lr, scale, description), wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("arch", [FLAT, FLAT | {"neighbours": 2, "estimator": True}], ids=str)
def test_a_constant_slice_has_the_same_response_everywhere(arch):
    """No darker or brighter edges: borders are continued by their outermost pixels.

    The side path's pixel shuffle leaves a pattern of its own in random networks; trained ones are
    held to 1 % in test_weights.py.
    """
    network = random_network(arch, (2, 2))
    lr, description = inputs_of(network, 1, (40, 31))
    with torch.no_grad():
        sr = network(torch.full_like(lr, 0.5), (2, 2), description)
        inner = sr[..., 40:42, 30:32].repeat(1, 1, 40, 31)
        torch.testing.assert_close(sr, inner)


@pytest.mark.parametrize("arch", ARCHS[1:], ids=str)
def test_brightness_passes_through(arch):
    network = random_network(arch)
    lr, description = inputs_of(network)
    with torch.no_grad():
        for words in (description, None):
            bright, dark = (network(x, (4, 4), words) for x in (lr, 0.25 * lr))
            near = dict(atol=1e-5 * float(bright.abs().max()), rtol=1e-4)
            torch.testing.assert_close(dark, 0.25 * bright, **near)


def test_a_slice_without_neighbours_is_one_whose_neighbours_are_black():
    network = random_network(FULL)
    own = torch.rand(2, 1, 12, 14)
    description = full_description(describe_degradation("blur-2", (4, 4)))
    with torch.no_grad():
        black = network(F.pad(own, (0, 0, 0, 0, 2, 2)), (4, 4), description)
        near = dict(atol=1e-5 * float(black.abs().max()), rtol=0)
        torch.testing.assert_close(network(own, (4, 4), description), black, **near)
        known = full_description(network.describe(own))  # and nothing said is: none, estimated
        torch.testing.assert_close(network(own), network(own, (4, 4), known), **near)


def test_descriptions_and_neighbours_change_the_result():
    network = random_network(FULL, (4, 4), (2, 2))
    lr, blur = inputs_of(network, 3)
    other = lr.clone()
    other[:, 4] = 0
    alone = full_description(describe_degradation("blur-2", (4, 4)))
    far = full_description(describe_degradation("blur-2", (4, 4)), ALL_AROUND, 9.0)
    with torch.no_grad():
        one, each = (network(lr, (4, 4), x) for x in (blur, blur.expand(3, -1)))
        torch.testing.assert_close(one, each, atol=1e-4 * float(each.abs().max()), rtol=0)
        least = 1e-3 * one.abs().max()
        for description in (inputs_of(network, name="kspace")[1], alone, far):
            assert (network(lr, (4, 4), description) - one).abs().max() > least
        assert (network(other, (4, 4), blur) - one).abs().max() > least
        torch.testing.assert_close(network(lr), network(lr[:, 2:3]))  # what is not said is not seen
        torch.nn.init.zeros_(network.of_scale["4"])
        assert (network(lr, (4, 4), blur) - one).abs().max() > least


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_a_pixel_depends_on_those_within_the_receptive_radius_and_no_others(arch):
    """What tiling relies on; where it said more, tiles would be slower than they must be."""
    network = random_network(arch)
    options, reach = ({"error_map": True} if "error_head" in arch else {}), []
    for y, x in ((20, 20), (21, 20), (20, 21), (21, 21)):  # half the resolution sees them unlike
        lr, description = inputs_of(network, 1, (42, 42))
        sr = network(lr.requires_grad_(), (4, 4), description, **options)
        sr[..., 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].abs().sum().backward()
        rows, columns = torch.where(lr.grad.abs().sum((0, 1)) > 0)
        reach += [(rows - y).abs().max(), (columns - x).abs().max()]
    assert max(reach) == network.receptive_radius


def test_plain_network_is_the_published_one():
    network = modules.build({"name": "espcn", "channels": 64}, [(4, 4)])
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
    espcn = modules.build({"name": "espcn"}, [(4, 4)])
    assert modules.mmac(espcn) == pytest.approx(plain * 60 * 64 / 1e6)
    # Two convolutions share one padding: the first of a pair computes a margin for the second.
    network = modules.build(FLAT | {"blocks": 1}, [(4, 4), (2, 2)])
    for s in (4, 2):
        full = 25 * 8 * 32 * 34 + 3 * 8 * 8 * 30 * 32 + (9 * 8 + 25) * s * s * 30 * 32
        assert modules.mmac(network, 30, 32, (s, s)) == pytest.approx(full / 1e6, rel=0.08)


def test_default_network_stays_within_its_budget():
    network = modules.build({"name": "deep", "neighbours": 2, "estimator": True}, SCALES)
    assert modules.mmac(network) <= 520 and modules.parameters(network) <= 250_000


# --- weights --------------------------------------------------------------------------------------


def test_weights_are_adopted_but_for_scales_that_are_new():
    first, second = random_network(SMALL), modules.build(SMALL, [(4, 4), (2, 2)])
    assert modules.adopt_weights(second, checkpoint_of(first, SMALL)) == ["tails.2.weight"]
    lr = torch.rand(1, 1, 9, 8)
    torch.testing.assert_close(second.eval()(lr), first(lr))
    wanted = modules.Interpolation((2, 2))(lr)
    torch.testing.assert_close(second(lr, (2, 2)), wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("estimator", [False, True])
def test_a_network_of_one_slice_learns_to_see_neighbours_from_where_it_was(estimator):
    arch = SMALL | {"estimator": estimator}
    first = random_network(arch)
    for n in (1, 2):
        wider = arch | {"neighbours": n}
        second = modules.build(wider, [(4, 4)]).eval()
        modules.adopt_weights(second, checkpoint_of(first, arch))
        lr, description = inputs_of(second)
        with torch.no_grad():
            wanted = first(modules.middle_of(lr), (4, 4), description)
            near = dict(atol=1e-5 * float(wanted.abs().max()), rtol=0)
            torch.testing.assert_close(second(lr, (4, 4), description), wanted, **near)


DEEP = {"name": "deep"}
REFUSED = [
    *({}, {"name": "vit"}, {"name": ["deep"]}, {"name": "espcn", "blocks": 3}),
    *({"name": "espcn", "channels": n} for n in (0, -3, True, "64")),
    *(DEEP | {"channels": 10**9}, DEEP | {"channels": 1024, "blocks": 1024}),  # 38 GB
    *(DEEP | {"channels": 8, "blocks": 1000, "half": 1000}, DEEP | {"blocks": 2.5}),
    *(DEEP | {"neighbours": 3}, DEEP | {"estimator": 1}, DEEP | {"skip": "lanczos"}, DEEP | {3: 4}),
]


def test_unknown_networks_are_refused():
    for arch in REFUSED:
        with pytest.raises(DataError, match="unknown network"):
            modules.build(arch, [(4, 4)])


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

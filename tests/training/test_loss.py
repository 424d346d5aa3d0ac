"""What training minimises."""

import pytest
import torch
from conftest import slices_of_person

import modules
from degradation import degrade, describe_degradation
from training.batches import Batch
from training.loss import loss_of, told_samples, upscale_batch

SCALE = (4, 4)


def sample_of(way: str):
    """One training sample whose degradation was estimated rightly, and its bicubic upsampling."""
    hr = torch.from_numpy(slices_of_person("56")[10, :160, :160].copy())[None, None].float() / 255
    lr, description = degrade(hr, way, SCALE), describe_degradation(way, SCALE)
    return Batch(lr, hr, lr, description), modules.Interpolation(SCALE)(lr)


def cost_of(change, way="bicubic", told=True, off=0.0, hr=None) -> float:
    """What `change` of (HR slice, bicubic upsampling) costs; off: of the estimate."""
    batch, upsampled = sample_of(way)
    if hr is not None:
        batch.hr = hr
    estimate, told = batch.description + off, torch.tensor([told])
    sr = change(batch.hr, upsampled)
    return float(loss_of(sr, upsampled, estimate, batch, told, SCALE)[0])


def smoother(hr, _):
    return hr - 0.1 * (hr - hr.mean())


def sharper(hr, _):
    return hr + 0.1 * (hr - hr.mean())


def brighter(hr, _):  # of the same error, and with the power of the truth
    return hr + 0.1 * (hr - hr.mean()).square().mean().sqrt()


def half_way(hr, upsampled):
    return (hr + upsampled) / 2


def test_a_result_that_is_too_smooth_or_too_sharp_costs_more_than_its_error():
    true = cost_of(lambda hr, _: hr)
    assert true < cost_of(brighter) < min(cost_of(smoother), cost_of(sharper))
    zero_filled = [cost_of(change, "zerofill-1.33") for change in (brighter, smoother, sharper)]
    assert zero_filled == pytest.approx([zero_filled[0]] * 3, rel=1e-3)


def test_nothing_but_noise_on_black_costs_no_more_than_other_errors():
    batch, _ = sample_of("bicubic")
    noise = 0.03 * torch.randn(batch.hr.shape, generator=torch.Generator().manual_seed(0))
    dark = cost_of(lambda hr, _: noise.abs(), hr=0 * batch.hr)
    # All else being equal, the power of the truth is what is missing.
    assert dark < 1.01 * cost_of(lambda hr, _: noise.abs(), "zerofill-1.33", hr=0 * batch.hr)


def test_guesses_cost_more_where_nobody_tells_and_little_was_measured():
    for way in ("zerofill-2", "jpeg-50"):
        assert cost_of(half_way, way, told=False) > 1.01 * cost_of(half_way, way)
    for way in ("bicubic", "blur-2", "kspace", "zerofill-1.2", "jpeg-75"):
        assert cost_of(half_way, way, told=False) == cost_of(half_way, way)


def test_a_wrong_estimate_costs_something_and_so_does_a_result_worse_than_bicubic():
    assert cost_of(half_way, off=0.2) > 1.1 * cost_of(half_way)
    shares = 0.4, 0.8, 1.2  # of bicubic's error; no power counts where zeros were filled in
    costs = [
        cost_of(lambda hr, up, far=share**0.5: hr + far * (up - hr), "zerofill-1.33")
        for share in shares
    ]
    assert costs[2] - costs[1] > 2 * (costs[1] - costs[0])


def test_half_of_the_samples_are_told_what_predict_would_be_told():
    class Network:
        told = True

        def describe(self, lr):
            return lr[:, 0, 0, :1]

        def heed(self, found, told):
            return found + told

        def __call__(self, lr, description):
            return description

    lr = torch.arange(4.0)[:, None, None, None]
    batch = Batch(lr, lr, lr, torch.full((4, 1), 10.0))
    told = torch.tensor([True, False, True, False])
    assert upscale_batch(Network(), Network(), batch, told)[0].flatten().tolist() == [10, 1, 12, 3]
    shares = torch.stack([told_samples(i, 8) for i in range(200)]).float().mean(0)
    assert ((shares - 0.5).abs() < 0.15).all()

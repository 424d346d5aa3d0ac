"""What training minimises."""

import torch
from conftest import slices_of_person

import modules
from batches import Batch
from degradation import degrade
from description import describe_degradation
from objective import loss_of, told_samples

SCALE = (4, 4)


def sample_of(way: str):
    """One training sample whose degradation was estimated rightly, and its bicubic upsampling."""
    hr = torch.from_numpy(slices_of_person("56")[10, :160, :160].copy())[None, None].float() / 255
    lr, description = degrade(hr, way, SCALE), describe_degradation(way, SCALE)
    return Batch(lr, hr, lr, description), modules.Interpolation(SCALE)(lr)


def cost_of(sr, way="bicubic", told=True) -> float:
    batch, upsampled = sample_of(way)
    sr = sr(batch.hr, upsampled)
    return float(loss_of(sr, upsampled, batch.description, batch, torch.tensor([told]), SCALE)[0])


def test_a_result_that_is_too_smooth_or_too_sharp_costs_more_than_its_error():
    def off_by(change):
        return cost_of(lambda hr, _: change(hr, hr - hr.mean()))

    true = off_by(lambda hr, rest: hr)
    brighter = off_by(lambda hr, rest: hr + 0.1 * rest.square().mean().sqrt())  # of the same error
    assert true < brighter < off_by(lambda hr, rest: hr - 0.1 * rest)
    assert brighter < off_by(lambda hr, rest: hr + 0.1 * rest)


def test_guesses_cost_more_where_nobody_tells_and_little_was_measured():
    def half_way(hr, upsampled):
        return (hr + upsampled) / 2

    for way, more in (
        ("zerofill-2", True),
        ("jpeg-50", True),
        ("bicubic", False),
        ("blur-2", False),
    ):
        untold, told = (cost_of(half_way, way, told) for told in (False, True))
        assert (untold > 1.01 * told) == more, way


def test_half_of_the_samples_are_told_the_truth():
    shares = torch.stack([told_samples(i, 8) for i in range(200)]).float().mean(0)
    assert ((shares - 0.5).abs() < 0.15).all()

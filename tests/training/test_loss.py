"""What training minimises, and what the network is given of a batch."""

import numpy as np
import pytest
import torch
from conftest import random_network, slices_of_person

import modules
from degradation import FOUND, degrade, describe_degradation, parse_degradation
from training.batches import Batch
from training.loss import loss_of, upscale_batch

# Of these degradations: how much a change counts that nobody could know of, and whether the upper
# frequencies were measured.
NAMES = {
    "bicubic": (0, 1), "zerofill-2": (1, 0), "zerofill-1.2": (0, 0), "jpeg-50": (0.12, 1),
    "jpeg-75": (0, 1), "kspace": (0, 1), "blur-3": (0, 1), "zerofill-2+jpeg-40": (1.12, 0),
}  # fmt: skip


def batch_of(names, told, hr) -> Batch:
    ways = [parse_degradation(name) for name in names]
    lr, found = degrade(hr, ways, (4, 2)), describe_degradation(ways, (4, 2))
    present = torch.tensor([[0.0, 1, 1, 1]]).expand(len(ways), -1)
    distance = torch.full((len(ways), 1), 2.0)
    return Batch(lr, hr, lr, found, torch.tensor(told), present, distance, (4, 2))


def power(image, scale):
    """In the frequencies that the LR grid can hold, by NumPy's FFT."""
    spectrum = np.abs(np.fft.fft2(image - image.mean()) / image.size) ** 2
    cycles = [np.abs(np.fft.fftfreq(n)) < 0.5 / s for n, s in zip(image.shape, scale)]
    return spectrum[np.ix_(*cycles)].sum()


def cost_by_hand(sr, upsampled, hr, told, blind, sharp):
    unit = ((upsampled - hr) ** 2).mean() + 1e-4
    share = ((sr - hr) ** 2).mean() / unit
    cost = share + 1.5 * max(0, share - 0.8)
    cost += 0 if told else blind * ((sr - upsampled) ** 2).mean() / unit
    mine, truth = (power(image, (4, 2)) + 1e-3 for image in (sr, hr))
    return cost + sharp * 12 * (1 - 1e-3 / truth) * np.log(mine / truth) ** 2


@pytest.mark.parametrize("told", [True, False])
def test_the_loss_is_what_its_formula_says(told):
    person = torch.from_numpy(slices_of_person("56")[6:14, 40:200, 40:200].copy())
    hr = person[:, None].float() / 255
    hr[3] = 0  # of black nothing is asked
    batch, rng = batch_of(NAMES, [told] * 8, hr), torch.Generator().manual_seed(0)
    upsampled = modules.Interpolation((4, 2))(batch.lr)
    # Some better than the interpolation, some nearly as bad, some worse.
    noise = 0.05 * torch.rand(8, 1, 1, 1, generator=rng) * torch.randn(hr.shape, generator=rng)
    sr = hr + torch.linspace(0.3, 1.1, 8)[:, None, None, None] * (upsampled - hr) + noise
    estimate = batch.found[:, :-1] + 0.1 * torch.randn(8, FOUND - 1, generator=rng)
    loss, mse, bicubic = loss_of(sr, upsampled, estimate, batch)
    images = [x[:, 0].double().numpy() for x in (sr, upsampled, hr)]
    costs = [cost_by_hand(*of, told, *words) for *of, words in zip(*images, NAMES.values())]
    off = ((estimate - batch.found[:, :-1]) ** 2).mean()
    assert float(loss) == pytest.approx(1e-3 * (np.mean(costs) + 6 * float(off)), rel=1e-3)
    assert float(mse) == pytest.approx(((images[0] - images[2]) ** 2).mean(), rel=1e-4)
    assert float(bicubic) == pytest.approx(((images[1] - images[2]) ** 2).mean(), rel=1e-4)
    assert all(x == mse for x in loss_of(sr, upsampled, None, batch)[:2])  # without an estimator


def test_half_of_the_samples_are_told_what_predict_would_be_told():
    hr = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    batch = batch_of(["blur-2+rician-3", "kspace", "bicubic"], [True, False, True], hr)
    batch.lr = torch.nn.functional.pad(batch.lr, (0, 0, 0, 0, 2, 2), value=0.5)
    arch = {"name": "deep", "channels": 8, "blocks": 1, "half": 0, "neighbours": 2}
    for estimator in (True, False):
        network = random_network(arch | {"estimator": estimator}, (4, 2))
        with torch.no_grad():
            sr, estimate = upscale_batch(network, network, batch)
            wanted = network.describe(batch.view)
            if estimator:
                told = modules.blend_measured_noise(wanted, batch.found)
                wanted = torch.where(batch.told[:, None], told, wanted)
                torch.testing.assert_close(estimate, network.estimator.found(batch.view)[0])
            known = modules.with_neighbours(wanted, batch.present, batch.distance)
            torch.testing.assert_close(sr, network(batch.lr, (4, 2), known))
    assert estimate is None

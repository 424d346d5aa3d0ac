"""One step of training: gradient, optimiser, learning rate, and how many fit into some minutes."""

import copy
import math

import pytest
import torch
from conftest import random_network

from degradation import FOUND
from training.batches import Batch
from training.optimiser import Muon, learning_rate, optimisers_of
from training.run_folder import State
from training.step import Step, iterations_in

ARCH = {"name": "deep", "channels": 8, "blocks": 2, "half": 1}


def batch_of(n=2) -> Batch:
    lr, hr = torch.rand(n, 1, 8, 8), torch.rand(n, 1, 32, 32)
    told = torch.zeros(n, dtype=torch.bool)
    return Batch(lr, hr, lr, torch.zeros(n, FOUND), told, torch.zeros(n, 4), torch.zeros(n, 1))


def step_of(network, optimisers, clip=0.0) -> Step:
    average = copy.deepcopy(network).requires_grad_(False)
    state = State(network, average, optimisers)
    return Step(state, network, network.scales, torch.device("cpu"), amp=False, clip=clip,
                graphs=False)  # fmt: skip


@pytest.mark.parametrize("clip", [0.01, 0])
def test_steps_go_down_the_gradient_and_no_farther_than_the_clip(clip):
    """By plain gradient descent, whose steps are as long as the gradient."""
    network, batch = random_network(ARCH).train(), batch_of()
    weights = [p.detach().clone() for p in network.parameters()]
    loss = (network(batch.lr) - batch.hr).square().mean()
    gradient = torch.autograd.grad(loss, network.parameters())
    step = step_of(network, [torch.optim.SGD(network.parameters(), 1.0)], clip)
    found = step(batch, 0.5, 0.25)
    assert float(found[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    size = float(torch.cat([g.flatten() for g in gradient]).norm())
    assert size > 5 * 0.01
    share = clip / size if clip else 1
    for before, after, slope in zip(weights, network.parameters(), gradient):
        torch.testing.assert_close(before - 0.5 * share * slope, after, rtol=1e-4, atol=1e-5)
    for before, after, mean in zip(weights, network.parameters(), step.averages):
        torch.testing.assert_close(0.25 * before + 0.75 * after.detach(), mean)


def test_each_step_goes_by_its_own_gradient():
    network, batch = random_network(ARCH).train(), batch_of()
    step = step_of(network, [torch.optim.SGD(network.parameters(), 1.0)])
    step(batch, 0.0, 0.0)
    loss = (network(batch.lr) - batch.hr).square().mean()
    gradient = torch.autograd.grad(loss, network.parameters())
    step(batch, 0.0, 0.0)
    for p, slope in zip(network.parameters(), gradient):
        torch.testing.assert_close(p.grad, slope)


def test_the_learning_rate_rises_then_falls_as_half_a_cosine():
    rates = [learning_rate(i, 1000, 0.01, "cosine") for i in range(1000)]
    assert rates[:20] == pytest.approx([0.01 * (i + 1) / 20 for i in range(20)])
    wanted = [0.005 * (1 + math.cos(math.pi * i / 980)) for i in range(980)]
    assert rates[20:] == pytest.approx(wanted)
    assert learning_rate(7, 1000, 0.01, "constant") == 0.01


@pytest.mark.parametrize("more", [{}, {"neighbours": 1, "estimator": True, "error_head": True}])
def test_muon_takes_the_kernels_between_the_first_and_the_last_layer(more):
    network = random_network(ARCH | more, (4, 4), (2, 1))
    adam, muon = ({id(p) for p in o.param_groups[0]["params"]}
                  for o in optimisers_of(network, "muon", 1e-3))  # fmt: skip
    names = {name for name, p in network.named_parameters() if id(p) in muon}
    wanted = {"body.0", "body.1", "side.0", "down", "up"}
    if more:
        wanted |= {f"estimator.layers.{i}" for i in (1, 2, 3)}
        wanted |= {"error_head.pixel", "error_head.around"}
    assert names == {f"{layer}.weight" for layer in wanted}
    assert not adam & muon and len(adam | muon) == len(list(network.parameters()))
    (only,) = optimisers_of(network, "adam", 1e-3)
    assert len(only.param_groups[0]["params"]) == len(adam | muon)


def test_muon_steps_are_orthogonal_and_downhill():
    """Against the polar factor of the momentum, by SVD, for kernels of several sizes at once."""
    torch.manual_seed(0)
    sizes = [(8, 8, 1, 3), (8, 8, 3, 1), (5, 8, 3, 3), (20, 8, 1, 1)]
    # In each gradient some directions dominate.
    scales = [torch.logspace(0, -1.5, size[0])[:, None, None, None] for size in sizes]
    gradients = [[torch.randn(z) * s for z, s in zip(sizes, scales)] for _ in range(2)]
    kernels = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    muon = Muon(kernels, lr=0.5)
    for gradient in gradients:
        before = [kernel.detach().clone() for kernel in kernels]
        for kernel, grad in zip(kernels, gradient):
            kernel.grad = grad
        muon.step()
    for kernel, old, g1, g2 in zip(kernels, before, *gradients):
        step = (old - kernel.detach()).flatten(1) / 0.5
        mean_square = step.square().sum() / min(step.shape)  # of the singular values
        assert mean_square.sqrt() == pytest.approx(9.6, rel=0.2)
        mean = 0.9 * 0.1 * g1 + 0.1 * g2
        mean = 0.9 * mean + 0.1 * g2  # Nesterov's look ahead
        u, s, v = torch.linalg.svd(mean.flatten(1), full_matrices=False)
        assert s[0] > 6 * s[-1]
        along = (u.T @ step @ v.T) / 9.6
        assert along.diagonal().min() > 0.6 and along.diagonal().max() < 1.3
        assert (along - along.diagonal().diag()).abs().max() < 1e-4


def test_measuring_how_many_steps_fit_leaves_no_trace(capsys):
    network = random_network(ARCH).train()
    before = copy.deepcopy(network.state_dict())
    step = step_of(network, optimisers_of(network, "muon", 1e-3))
    found = iterations_in(0.001, step, lambda i: batch_of())
    assert found >= 1 and f"{found} iterations in 0.001" in capsys.readouterr().out
    for of in (step.state.network, step.state.average):
        assert all(torch.equal(v, before[k]) for k, v in of.state_dict().items())
    state = [x for o in step.state.optimisers for s in o.state.values() for x in s.values()]
    assert state and not any(x.any() for x in state)

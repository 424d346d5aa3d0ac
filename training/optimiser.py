"""The optimiser and the learning rate."""

import math
from collections import defaultdict

import torch


def learning_rate(iteration: int, total: int, peak: float, schedule: str) -> float:
    """Warm-up over 2 % of the run, then half a cosine down to nearly 0; or constant."""
    if schedule == "constant":
        return peak
    warm = max(1, total // 50)
    if iteration < warm:
        return peak * (iteration + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (iteration - warm) / max(1, total - warm)))


class Muon(torch.optim.Optimizer):
    """Momentum of which each step is made orthogonal, for kernels (out, in, h, w) of hidden layers.

    A step, as a matrix (out, in h w), is replaced by the semi-orthogonal matrix next to it, with
    all singular values near 1, so that no direction waits for the few that dominate the gradient:
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, with its five
    Newton-Schulz iterations. The spectral norm of a step is the same for kernels of all sizes, as
    fits layers that give about as many channels as they take (Bernstein, "Deriving Muon", 2025).
    fp32, and kernels of one size at once, as PyTorch's own takes matrices only, one by one and in
    bf16, which not every CPU can do.
    """

    def __init__(self, kernels, lr: float, momentum: float = 0.9):
        super().__init__(kernels, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            sizes, momentum = defaultdict(list), group["momentum"]
            for kernel in group["params"]:
                if kernel.grad is None:  # a layer without a part in the result
                    continue
                if "mean" not in self.state[kernel]:
                    self.state[kernel]["mean"] = torch.zeros_like(kernel)
                mean = self.state[kernel]["mean"]
                mean.lerp_(kernel.grad, 1 - momentum)
                step = kernel.grad.lerp(mean, momentum).flatten(1)  # Nesterov's momentum
                sizes[step.shape].append((kernel, step))
            for found in sizes.values():
                steps = torch.stack([step for _, step in found])
                tall = steps.shape[1] > steps.shape[2]
                steps = steps.mT if tall else steps  # the products below are of the shorter side
                steps /= torch.linalg.matrix_norm(steps, keepdim=True) + 1e-12
                for _ in range(5):
                    square = steps @ steps.mT
                    steps = 3.4445 * steps + (2.0315 * square @ square - 4.775 * square) @ steps
                # 9.6: so that one `lr` serves Adam and Muon.
                steps = 9.6 * group["lr"] * (steps.mT if tall else steps)
                for (kernel, _), step in zip(found, steps):
                    kernel.sub_(step.reshape(kernel.shape))


def optimisers_of(network, name: str, lr: float) -> list:
    """Muon for the hidden convolutions' kernels and Adam for the rest; or Adam for all.

    On CUDA the learning rate is a tensor there, so that a recorded step can be replayed at another.
    """
    kinds = (torch.nn.Conv2d,) if name == "muon" else ()
    heads = [head for head in (network, getattr(network, "error_head", None)) if head is not None]
    outer = {id(tail) for head in heads for tail in head.tails.values()}
    outer.add(id(getattr(network, "head", None)))
    hidden = [m for m in network.modules() if isinstance(m, kinds) and m.in_channels > 1]
    hidden = [m.weight for m in hidden if id(m) not in outer]
    rest = [p for p in network.parameters() if not any(p is kernel for kernel in hidden)]
    device = rest[0].device
    if device.type == "cuda":
        lr = torch.tensor(lr, device=device)
    adam = torch.optim.Adam(rest, lr, fused=device.type in ("cpu", "cuda"),
                            capturable=device.type == "cuda")  # fmt: skip
    return [adam, Muon(hidden, lr)] if hidden else [adam]


def set_rate(optimisers: list, rate: float) -> None:
    """Change the learning rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

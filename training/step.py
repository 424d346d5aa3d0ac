"""One step of training: forward, backward, optimiser, weight average; on CUDA recorded."""

import time
from dataclasses import replace

import torch

from modules import Interpolation
from training.loss import loss_of, upscale_batch
from training.optimiser import set_rate
from utils import bf16_autocast, note

EAGER = 2  # steps of each scale before it is recorded: they choose kernels and make all state


class Step:
    """`step(batch, rate, decay)` trains `state` by one batch and returns its losses, a tensor (2,)
    on the device: MSE and that of bicubic upsampling.

    On CUDA the whole step of each scale is recorded as a graph and replayed: a thousand small
    kernels without the time that starting each of them takes. Nothing waits for the device.
    """

    def __init__(self, state, model, scales, device, *, amp: bool, clip: float, graphs: bool):
        self.state, self.model, self.device = state, model, device
        self.amp, self.clip = amp, clip
        self.bicubic = {s: Interpolation(s).to(device) for s in scales}
        self.weights = list(state.network.parameters())
        self.averages = list(state.average.parameters())
        self.keep = torch.zeros((), device=device)  # of the average, per step
        self.graphs, self.seen = {} if graphs else None, dict.fromkeys(scales, 0)

    def __call__(self, batch, rate: float, decay: float) -> torch.Tensor:
        set_rate(self.state.optimisers, rate)
        self.keep.fill_(decay)
        self.seen[batch.scale] += 1
        if self.graphs is None or self.seen[batch.scale] <= EAGER:
            return self.eager(batch)
        if batch.scale not in self.graphs:
            try:
                self.graphs[batch.scale] = self.record(batch)
            except RuntimeError as error:
                note(f"the step is not recorded, each is made anew: {str(error).splitlines()[0]}")
                self.graphs = None
                return self.eager(batch)
        graph, given, losses = self.graphs[batch.scale]
        for target, tensor in zip(given, tensors_of(batch).values()):
            target.copy_(tensor, non_blocking=True)
        graph.replay()
        return losses.clone()

    def eager(self, batch) -> torch.Tensor:
        """The step, operation by operation."""
        torch.backends.cudnn.benchmark = self.graphs is not None  # sizes stay the same
        with bf16_autocast(self.device, self.amp):
            sr, estimate = upscale_batch(self.model, self.state.network, batch)
        with torch.no_grad():
            upsampled = self.bicubic[batch.scale](batch.lr)  # what is to be beaten
        loss, *losses = loss_of(sr.float(), upsampled, estimate, batch)
        self.state.network.zero_grad()
        loss.backward()
        if self.clip:  # some 5 times the usual norm: one odd batch must not undo a long run
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        for optimiser in self.state.optimisers:
            optimiser.step()
        with torch.no_grad():
            changes = torch._foreach_sub(self.weights, self.averages)
            torch._foreach_mul_(changes, 1 - self.keep)
            torch._foreach_add_(self.averages, changes)
        torch.backends.cudnn.benchmark = False  # validation has slices of all sizes
        return torch.stack([x.detach() for x in losses])

    def record(self, batch) -> tuple:
        """(graph, tensors to put a batch into, losses): recording changes no weights."""
        given = replace(batch, **{k: v.clone() for k, v in tensors_of(batch).items()})
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(graph):
            losses = self.eager(given)
        return graph, tensors_of(given).values(), losses


def iterations_in(minutes: float, step: Step, batch_of) -> int:
    """How many iterations fit into this time on this device, measured by some at a rate of 0.

    step: of a run that has not begun. batch_of(iteration) makes a batch.
    """
    started = time.perf_counter()
    state, iteration = step.state, 0
    while iteration < 3 or min(step.seen.values()) <= EAGER:  # until all is recorded
        step(batch_of(iteration), 0.0, 1.0)
        iteration += 1
    wait_for(step.device)
    first, begin = iteration, time.perf_counter()
    while iteration < first + 8 or time.perf_counter() - begin < 2 * minutes:  # 3 % of the time
        step(batch_of(iteration), 0.0, 1.0)
        iteration += 1
    wait_for(step.device)
    now = time.perf_counter()
    each = (now - begin) / (iteration - first)
    for optimiser in state.optimisers:  # in place, as the recorded steps know these tensors
        for values in optimiser.state.values():
            for value in values.values():
                value.zero_()
    found = max(1, int(0.95 * (60 * minutes - (now - started)) / each))  # the rest: validation
    note(f"a step takes {1000 * each:.1f} ms: {found} iterations in {minutes:g} minutes")
    return found


def wait_for(device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def tensors_of(batch) -> dict[str, torch.Tensor]:
    """{name: tensor} of a batch, without its scale."""
    return {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}

"""The processes of a run: those that torchrun starts, and the signals that end one."""

import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils import UsageError


def rank() -> int:
    """The number of this process; rank 0 alone writes and prints."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_chief() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def job() -> str:
    """The name of this torchrun job, the same after a restart or requeue; '' if it has none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


def restarts() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join_processes(run: str | None, batch_size: int, device: torch.device) -> torch.device:
    """Join the other processes, if there are any. Returns the device of this one."""
    if world() == 1:
        return device
    if not run:
        raise UsageError("several processes need one: torchrun … -- train.py --run FOLDER")
    if batch_size % world():
        raise UsageError(f"--batch-size {batch_size} cannot be shared by {world()} processes")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Gloo for what is on the CPU: validation scores are, also where the network is not.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # After a restart by torchrun on one machine, its store still holds the addresses of the
    # processes before. (Its count of restarts is not the same on all of several machines.)
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    prefix = f"attempt {restarts() if alone else ''}"
    store = dist.PrefixStore(prefix, next(dist.rendezvous("env://"))[0])
    limit = timedelta(hours=4)  # as long as reading a large data set may take rank 0
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=limit)
    return device


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def chief_first(work):
    """work(), by rank 0 before the others: they find in the cache what it has decoded."""
    if not is_chief():
        dist.barrier()
    result = work()
    if is_chief() and world() > 1:
        dist.barrier()
    return result


def shared(network, several_scales: bool):
    """The network as all processes train it together: gradients are averaged."""
    if world() == 1:
        return network
    # Buffers are constants, the same in all; of several scales each batch uses one.
    options = dict(broadcast_buffers=False, find_unused_parameters=several_scales)
    return DistributedDataParallel(network, **options)


def sum_of_all(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


class Stop:
    """Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

    def __init__(self):
        self.signal = 0
        self.before = {n: signal.signal(n, self.asked) for n in (signal.SIGINT, signal.SIGTERM)}

    def asked(self, number, frame):
        if self.signal and number == signal.SIGINT:
            os._exit(130)  # files are written whole or not at all, so nothing is torn
        self.signal = number

    def agreed(self, due: bool, device) -> int:
        """The signal that all processes know of; several ask one another only where it is due."""
        if world() == 1:
            return self.signal
        if not due:
            return 0
        asked = torch.tensor(self.signal, device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return int(asked)

    def end(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def leave(status: int) -> int:
    """End a process that is not the first at once, the first as usual with this status.

    At a regular exit the threads of gloo now and then abort a process whose work is done.
    """
    if not is_chief():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status

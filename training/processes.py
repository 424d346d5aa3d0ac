"""The processes of a run: those that torchrun starts, and the signals that end one."""

import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils import UsageError


def rank() -> int:
    """The number of this process; rank 0 alone writes and prints."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def job() -> str:
    """The name of this torchrun job, the same after a restart or requeue; '' if it has none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name


def restarts() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join_processes(args, device: torch.device) -> torch.device:
    """Join the other processes. Returns the device of this one."""
    if not args.run:
        raise UsageError("several processes need one: torchrun … -- train.py --run FOLDER")
    if args.batch_size % world():
        raise UsageError(f"--batch-size {args.batch_size} cannot be shared by {world()} processes")
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


class Stop:
    """Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

    def __init__(self):
        self.signal = 0
        self.before = {n: signal.signal(n, self.asked) for n in (signal.SIGINT, signal.SIGTERM)}

    def asked(self, number, frame):
        if self.signal and number == signal.SIGINT:
            os._exit(130)  # files are written whole or not at all, so nothing is torn
        self.signal = number

    def end(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def leave(status: int) -> int:
    """End a process that is not the first at once, the first as usual with this status.

    At a regular exit the threads of gloo now and then abort a process whose work is done.
    """
    if rank() > 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status

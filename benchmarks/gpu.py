"""Speed on a GPU, in half a minute: the bare network, a scan, training; needs packed volumes.

python benchmarks/gpu.py volumes.zip
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import modules
from degradation import ENTRIES
from inference import Upscaler
from inference.checkpoints import save_checkpoint
from training import run_folder
from training.batches import Options, Stock, training_batch
from training.optimiser import optimisers_of
from training.step import Step, wait_for
from utils import pick_device, run_main

ARCH = {"name": "deep", "neighbours": 2, "estimator": True}
SCAN = (181, 72, 72)  # slices, rows and columns of a head of 1 mm, shrunk by 4


def seconds(work, device, count: int) -> float:
    """The median time of a call, after two that are not counted."""
    times = []
    for i in range(count + 2):
        begin = time.perf_counter()
        work(i)
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[2:]))


def network_speed(device, path) -> None:
    """Slices of 60x64 a second through the bare network, scans through all of predict.py's work."""
    for bf16 in (False, True):
        upscaler = Upscaler(path, device, bf16=bf16, batch_size=64)
        network = upscaler.network
        lr = torch.rand(64, 5, 60, 64, device=device)
        description = torch.rand(1, ENTRIES, device=device)

        def work(_, lr=lr, description=description, network=network, bf16=bf16):
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                network(lr, (4, 4), description)

        bare = 64 / seconds(work, device, 8)
        scan = np.random.default_rng(0).random(SCAN, np.float32)
        whole = seconds(lambda _, up=upscaler, scan=scan: up(scan, 4, 0.3), device, 3)
        kind = "bf16" if bf16 else "fp32"
        print(f"{kind}: bare network {bare:,.0f} slices of 60x64 a second; a scan of 288x288x181 "
              f"at x4 in {whole:.2f} s", flush=True)  # fmt: skip


def training_speed(device, data, quick: bool) -> None:
    """Patches a second, and the share of a step that is not the network."""
    parts, _ = dataset.load_parts(data=data, axis="all", cache=tempfile.mkdtemp(), workers=8)
    stock = Stock(parts["train"], device)
    for degradation, scale in (("bicubic", (4, 4)), ("wide", (4, 4)), ("wide", (4, 1))):
        options = Options(0, 4 if quick else 64, 48, (scale,), degradation, 2)
        arch = ARCH | {"estimator": degradation == "wide"}
        network = modules.build(arch, (scale,)).to(device)
        state = run_folder.State(network, modules.build(arch, (scale,)).to(device),
                                 optimisers_of(network, "muon", 1e-3))  # fmt: skip
        step = Step(state, network, (scale,), device, amp=device.type == "cuda", clip=0.01,
                    graphs=device.type == "cuda")  # fmt: skip
        batches = [training_batch(stock, i, options) for i in range(4)]
        n = 2 if quick else 40

        def several(work, n=n):
            begin = time.perf_counter()
            for i in range(n):
                work(i)
            wait_for(device)
            return (time.perf_counter() - begin) / n

        several(lambda i, batches=batches, step=step: step(batches[i % 4], 1e-3, 0.9), 4)
        alone = several(lambda i, batches=batches, step=step: step(batches[i % 4], 1e-3, 0.9))
        both = several(
            lambda i, step=step, options=options: step(training_batch(stock, i, options), 1e-3, 0.9)
        )
        pixels = options.batch_size * 48 * 48
        speed, slices = options.batch_size / both, pixels / 3840 / both
        print(f"training {degradation} {scale[0]}x{scale[1]}: {speed:,.0f} patches of 48x48 a "
              f"second ({slices:,.0f} slices of 60x64); a step {1000 * both:.1f} ms, of it not the "
              f"network {1 - alone / both:.0%}", flush=True)  # fmt: skip


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    device = pick_device()
    quick = device.type == "cpu"
    torch.manual_seed(0)
    network = modules.build(ARCH, ((4, 4),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "untrained.pt")
        about = {"arch": ARCH, "scales": [[4, 4]], "degradation": "wide"}
        save_checkpoint(path, {**about, "model": network.state_dict()})
        network_speed(device, path)
    training_speed(device, words[0], quick)


if __name__ == "__main__":
    run_main(main)

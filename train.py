"""Train a 4x super-resolution network on brain MRI slices.

    python train.py                  a demonstration on the brain that comes with nilearn
    python train.py --data DIR       ADNI-like folders, pictures or volumes; split by subject

Leaves a run folder with weights, loss graph, example figure and metrics, and prints where it is.
"""

import copy
import csv
import gc
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import dataset
import modules
from checkpoints import CHECKPOINT_VERSION, load_checkpoint, save_checkpoint
from degradation import DEGRADATIONS, degrade
from evaluate import as_tensor, evaluate
from figures import grid_figure
from metrics import metrics_table, psnr_of
from optim import learning_rate, optimisers_of
from plots import loss_figure
from utils import (
    DataError,
    Parser,
    UsageError,
    as_data_error,
    atomic_write,
    bf16_works,
    int_between,
    pick_device,
    reason,
    run_main,
)

LOG_FIELDS = ("iteration", "loss", "lr", "val_mse", "val_psnr", "bicubic_psnr")
SAVE_EVERY = 200  # iterations between two writings of last.pt
VALIDATION_SLICES = 64
# What --resume may change: how long, where and how fast, never what is computed.
MAY_CHANGE = {"epochs", "iterations", "device", "workers", "threads", "resume", "run", "cache"}


def arguments(argv=None):
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--data", help="folder of pictures or volumes; without it, a demonstration brain")
    add("--degradation", default="bicubic", choices=(*DEGRADATIONS, "mixed"),
        help="how LR slices are made from HR ones")  # fmt: skip
    add("--axis", default="axial", choices=("axial", "coronal", "sagittal", "all"),
        help="planes to train on, for volumes")  # fmt: skip
    add(
        "--slices", type=int_between(0), default=0, help="central slices of a volume; 0: all usable"
    )
    add("--cache", default="runs/cache", help="folder for the decoded slices")
    add("--workers", type=int_between(1, 64), default=min(8, os.cpu_count() or 1),
        help="threads that read and decode")  # fmt: skip
    add = parser.add_argument_group("network").add_argument
    add("--model", default="deep", choices=modules.NETWORKS,
        help="deep: the default network; espcn: the plain one")  # fmt: skip
    add("--channels", type=int_between(1, 1024), help="feature channels  (default: 48, espcn: 64)")
    add(
        "--blocks", type=int_between(0, 1024), default=13, help="convolutions in the middle of deep"
    )
    add("--half", type=int_between(0, 1024), default=4, help="further ones at half the resolution")
    add("--kernel", default="1x3", choices=modules.CHOICES["kernel"],
        help="of all of these; 1x3: in turns with 3x1")  # fmt: skip
    add("--skip", default="bicubic", choices=modules.CHOICES["skip"],
        help="interpolation that deep corrects")  # fmt: skip
    add("--body", default="identity", choices=modules.CHOICES["body"],
        help="how deep is made trainable: see DeepESPCN")  # fmt: skip
    add("--icnr", action="store_true", help="ICNR start of deep's last layer, with --skip none")
    add("--bias", action="store_true", help="give deep's convolutions biases")
    add("--weights", metavar="FILE", help="start from these weights, whose network it then is")
    add = parser.add_argument_group("training").add_argument
    add(
        "--epochs",
        type=int_between(1),
        help="passes over the training slices, instead of --iterations",
    )
    add(
        "--iterations",
        type=int_between(1),
        help="optimiser steps  (default: 2000 demo, 12000 data)",
    )
    add("--batch-size", type=int_between(1), default=8, help="slices a step, over all processes")
    add("--patch-size", type=int_between(0, 1024), default=32,
        help="LR pixels along an edge; 0: whole slices, less empty margins")  # fmt: skip
    add("--optimizer", default="muon", choices=("muon", "adam"),
        help="muon: for the kernels between first and last layer, Adam for the rest")  # fmt: skip
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--clip", type=float, default=0.01, help="largest gradient norm; 0: no limit")
    add("--schedule", default="cosine", choices=("cosine", "constant"), help="of the learning rate")
    add("--ema", type=float, default=0.999, help="decay of the weight average; 0: none")
    add("--no-augment", action="store_true", help="no flips, turns, brightness, grid shifts")
    add("--seed", type=int_between(0), default=0, help="of weights, split, order and augmentation")
    add = parser.add_argument_group("run").add_argument
    add("--run", help="folder for the results  (default: runs/<date>-<time>)")
    add("--resume", metavar="RUN", help="go on with a run that was cut off")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0, 1024), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--amp", action="store_true", help="bf16 matrix products, faster where the chip has them")
    add("--compile", action="store_true", help="torch.compile the network; needs a C++ compiler")
    add("--deterministic", action="store_true", help="same result on CUDA too, slower")
    add("--dry-run", action="store_true", help="one tiny pass of everything, in seconds")
    args = parser.parse_args(argv)
    if args.resume:
        config = Path(args.resume, "config.json")
        try:
            before = dict(json.loads(config.read_text(encoding="utf-8"))["arguments"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"--resume {args.resume}: no run folder (no readable config.json)"
            ) from None
        parser.set_defaults(**before)
        args = parser.parse_args(argv)
        changed = [k for k in before if k not in MAY_CHANGE and getattr(args, k) != before[k]]
        if changed:
            flags = ", ".join("--" + k.replace("_", "-") for k in changed)
            raise UsageError(f"{flags} cannot change when a run is resumed")
        args.run = args.resume
        if args.iterations != before.get("iterations"):  # the newer of the two counts
            args.epochs = None
    elif args.epochs and args.iterations:
        parser.error("--epochs and --iterations: give one of them")
    if args.data == "":
        parser.error("--data: is empty")
    if args.body == "residual" and (args.blocks % 2 or args.half % 2):
        parser.error("--body residual is made of pairs: --blocks and --half must be even")
    if args.run and Path(args.run).exists() and not Path(args.run).is_dir():
        parser.error(f"--run {args.run}: is a file; name a folder")
    if not 0 <= args.ema < 1:
        parser.error("--ema must be in [0, 1)")
    if not 0 < args.lr < 1:
        parser.error("--lr must be in (0, 1)")
    return args


def load_data(args):
    """{'train', 'val', 'test': Slices} and the data set's fingerprint."""
    if not args.data:
        if rank() == 0:
            print("No --data: a demonstration on the ICBM152 average brain, smooth and easy.")
            print("Its slabs of slices are no benchmark; use --data for real scans.")
        return dataset.demo_slices(args.cache)
    scans = dataset.find_scans(args.data)
    split = dataset.split_subjects(scans, args.seed)
    slices, key, bad = dataset.load_slices(
        scans, args.cache, axis=args.axis, count=args.slices, workers=args.workers,
        progress=lambda items: tqdm(items, desc="reading", unit="file", disable=rank() > 0 or None),
    )  # fmt: skip
    which = np.array([split[s] for s in slices.subject])
    parts = {name: slices.take(which == name) for name in ("train", "val", "test")}
    for name, part in parts.items():
        if not len(part):
            raise DataError(f"{args.data}: no slice of the {name} subjects could be read")
    if bad and rank() == 0:
        print(f"{bad} files could not be read and were left out (named above when first read)")
    return parts, key


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def evenly_spaced(slices, most: int):
    """At most this many slices, evenly chosen."""
    step = np.linspace(0, len(slices) - 1, min(most, len(slices)))
    return slices.take(np.unique(step.round().astype(int)))


def validation_pairs(slices, args, device):
    """(index, LR, HR) of this process's share of the validation slices; `mixed` takes turns."""
    names = DEGRADATIONS if args.degradation == "mixed" else (args.degradation,)
    pairs = []
    for i in range(rank(), len(slices), world()):
        hr = as_tensor(slices[i], device)
        pairs.append((i, degrade(hr, names[i % len(names)]), hr))
    return pairs


@torch.inference_mode()
def validate(model, pairs, n: int) -> tuple[float, float]:
    """Mean MSE and mean PSNR over all n validation slices, whichever process holds them."""
    mse = torch.zeros(n, dtype=torch.float64)
    for i, lr, hr in pairs:
        mse[i] = F.mse_loss(model(lr).float().clamp(0, 1), hr).double().cpu()
    if world() > 1:
        dist.all_reduce(mse)
    return float(mse.mean()), float(np.mean([psnr_of(m) for m in mse.tolist()]))


def commit() -> str:
    """The commit of this program, '' outside a clone."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def job_of(run: Path) -> str:
    """The torchrun job that a run folder was last written by, '' if there is none."""
    try:
        return json.loads((run / "config.json").read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_json(path, content) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)


def read_log(path, until: int) -> list[dict]:
    """The rows of log.csv up to an iteration: what came after the last checkpoint is done again."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in rows if int(row["iteration"]) <= until]


def write_log(path, rows) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_log(path, rows) -> None:
    """Add rows; they are on disk before the checkpoint that counts on them is written."""
    try:
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, LOG_FIELDS, lineterminator="\n").writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from None


def quoted(path) -> str:
    """A path as one word on a command line."""
    return shlex.quote(str(path)) if os.name == "posix" else f'"{path}"'


def plot(run: Path, rows, title: str) -> None:
    """Draw loss.png from the rows of the log."""
    loss_figure(run / "loss.png", rows, title)
    gc.collect()  # a figure is a knot of references: a long run would grow by each one


def examples(run: Path, network, slices, degradation: str, device) -> None:
    """Draw examples.png: three test slices as LR, bicubic, SR and truth."""
    bicubic = modules.Interpolation("bicubic").to(device)
    rows = []
    for i in np.linspace(0, len(slices) - 1, 5).round().astype(int)[1:4]:
        hr = as_tensor(slices[i], device)
        lr = degrade(hr, degradation)
        images = [lr, bicubic(lr), modules.upscale(network, lr), hr]
        rows.append([image[0, 0].clamp(0, 1).cpu().numpy() for image in images])
    names = [f"low resolution ({degradation})", "bicubic", "this network", "truth"]
    grid_figure(run / "examples.png", rows, names)


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


def main(argv=None):
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.deterministic:  # what cuBLAS asks for
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = pick_device(args.device)
    if args.amp and device.type == "cpu" and not bf16_works():
        raise UsageError("--amp: this CPU cannot do bf16 products; leave it out")
    if world() > 1:
        if not args.run:
            raise UsageError("several processes need one: torchrun … -- train.py --run FOLDER")
        if args.batch_size % world():
            raise UsageError(
                f"--batch-size {args.batch_size} cannot be shared by {world()} processes"
            )
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # Gloo for what is on the CPU: validation scores are, also where the network is not.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # After a restart by torchrun on one machine, its store still holds the addresses of the
        # processes before. (Its count of restarts is not the same on all of several machines.)
        alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if alone else ""
        store = dist.PrefixStore(f"attempt {attempt}", next(dist.rendezvous("env://"))[0])
        limit = timedelta(hours=4)  # as long as reading a large data set may take rank 0
        dist.init_process_group(
            backend, store=store, rank=rank(), world_size=world(), timeout=limit
        )
    try:
        return train(args, device)
    finally:
        if world() > 1:
            dist.destroy_process_group()


def train(args, device) -> int:
    """One run, from data to metrics. Returns the exit status."""
    chief = rank() == 0
    run = Path(args.run or f"runs/{datetime.now():%Y%m%d-%H%M%S}")
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # the same after a restart or requeue
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    restarted = restarted or (job not in ("none", "") and job == job_of(run))
    resuming = args.resume or (restarted and (run / "last.pt").exists())
    used = any((run / name).exists() for name in ("config.json", "best.pt"))
    if used and not (args.resume or restarted):
        raise UsageError(f"--run {run}: exists already; go on with --resume {run}, or name another")

    # --- data: rank 0 decodes, the others find the result in the cache ---
    if not chief:
        dist.barrier()
    parts, fingerprint = load_data(args)
    if chief and world() > 1:
        dist.barrier()
    if args.dry_run:
        args.iterations, args.epochs, args.batch_size, args.patch_size = 2, None, world(), 8
        parts = {name: evenly_spaced(part, 2) for name, part in parts.items()}
    n = len(parts["train"])
    total = args.iterations or (12000 if args.data else 2000)
    if args.epochs:
        total = math.ceil(args.epochs * n / args.batch_size)
    check_every = max(1, min(1000, total // 20))

    # --- network, optimiser, average ---
    torch.manual_seed(args.seed)
    if args.deterministic:  # otherwise not called, as it takes seconds
        torch.use_deterministic_algorithms(True)
    arch = {"name": args.model, "channels": args.channels or (64 if args.model == "espcn" else 48)}
    if args.model == "deep":
        arch |= {"blocks": args.blocks, "half": args.half, "kernel": args.kernel}
        arch |= {"skip": args.skip, "body": args.body, "icnr": args.icnr, "bias": args.bias}
    if args.weights:
        given = load_checkpoint(args.weights)
        arch = given["arch"]
        network = modules.load_network(given, args.weights).to(device)
    else:
        network = modules.build(arch).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimisers = optimisers_of(network, args.optimizer, args.lr)
    start, best = 0, -math.inf
    config = {
        "arguments": vars(args),
        "fingerprint": fingerprint,
        "subjects": {k: sorted(set(p.subject.tolist())) for k, p in parts.items()},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "processes": world(),
        "job": job,
    }
    rows = []
    if resuming:
        state = load_checkpoint(run / "last.pt")
        if state.get("fingerprint") != fingerprint:
            raise DataError(f"{args.data}: the data set has changed since {run} was started")
        if state["version"] != CHECKPOINT_VERSION:
            raise DataError(
                f"{run}: was begun by an older version of train.py, which computed something else; "
                "begin anew, perhaps with its weights: --weights"
            )
        with as_data_error(run / "last.pt"):
            network.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            start, best = state["iteration"], state["best"]
        with as_data_error(run / "log.csv"):
            rows = read_log(run / "log.csv", start)
        if total < start:
            raise UsageError(f"--resume {run}: has done {start} iterations already, not {total}")
    if chief:
        run.mkdir(parents=True, exist_ok=True)
        for left in run.glob(".*.part"):  # of a write that was cut off
            left.unlink()
        write_log(run / "log.csv", rows)
        for name, part in parts.items():
            print(f"{name + ':':12s}{part.counts()}")
        size = f"{modules.parameters(network):,} parameters, {modules.mmac(network):.0f} MMAC"
        print(f"network:    {arch['name']}, {size} for a 60x64 slice; on {device}")
        print(f"run:        {run}, {total} iterations of {args.batch_size} slices", flush=True)

    pairs = validation_pairs(few := evenly_spaced(parts["val"], VALIDATION_SLICES), args, device)
    bicubic = validate(modules.Interpolation("bicubic").to(device), pairs, len(few))[1]
    model = network
    if args.compile:
        model = torch.compile(model)
    if world() > 1:
        model = DistributedDataParallel(model)
    weights, averages = list(network.parameters()), list(average.parameters())
    trained_on = (
        f"{parts['train'].counts()} of {Path(args.data).resolve().name if args.data else 'ICBM152'}"
    )
    about = dict(
        arch=arch, scale=modules.SCALE, degradation=args.degradation, trained_on=trained_on
    )
    title = f"{arch['name']}, {arch['channels']} channels, {trained_on}, {args.degradation}"

    def save_last(iteration):
        state = dict(average=average.state_dict(), best=best, iteration=iteration)
        state |= dict(optimisers=[optimiser.state_dict() for optimiser in optimisers])
        state |= dict(fingerprint=fingerprint, metrics={})
        save_checkpoint(run / "last.pt", {**about, "model": network.state_dict(), **state})

    if chief and not resuming:
        save_last(0)
    if chief:  # where there is a config.json, there is a run that can be resumed
        write_json(run / "config.json", config)

    # --- the loop ---
    bar = tqdm(total=total * args.batch_size, initial=start * args.batch_size, unit="slice",
               unit_scale=True, disable=not chief, mininterval=0.5 if sys.stderr.isatty() else 15,
               dynamic_ncols=True)  # fmt: skip
    batch_options = dict(
        seed=args.seed, batch_size=args.batch_size, patch=args.patch_size,
        degradation=args.degradation, augment=not args.no_augment, device=str(device),
        rank=rank(), world=world(),
    )  # fmt: skip
    pending, unwritten, stop = [], [], Stop()
    for iteration in range(start, total):
        lr, hr = dataset.training_batch(parts["train"], iteration, **batch_options)
        rate = learning_rate(iteration, total, args.lr, args.schedule)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp):
            sr = model(lr)
        loss = F.mse_loss(sr.float(), hr)
        network.zero_grad()
        loss.backward()
        if args.clip:  # some 5 times the usual norm: one odd batch must not undo a long run
            torch.nn.utils.clip_grad_norm_(weights, args.clip, foreach=True)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(args.ema, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            for a, w in zip(averages, weights):
                a.lerp_(w, 1 - decay)
        pending.append((iteration + 1, rate, loss.detach()))

        done = iteration + 1
        check = done % check_every == 0 or done == total
        save = check or done % SAVE_EVERY == 0
        stopping = stop.signal if world() == 1 else 0
        if not (save or stopping or len(pending) == 20):
            continue
        # Losses are fetched from the device a few at a time: each fetch waits for it.
        losses = torch.stack([x for _, _, x in pending])
        if world() > 1:
            asked = torch.tensor(stop.signal, device=device)
            dist.all_reduce(losses)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            losses, stopping = losses / world(), int(asked)
        sound = not save or all(bool(w.isfinite().all()) for w in weights)
        for (i, r, _), x in zip(pending, losses.tolist()):
            if not math.isfinite(x) or (i == done and not sound):
                raise DataError(
                    f"{'weights are not finite' if math.isfinite(x) else f'loss is {x}'} at "
                    f"iteration {i}, learning rate {r:.3g}: try a lower --lr; the weights before "
                    f"are in {run}"
                )
            unwritten.append(dict.fromkeys(LOG_FIELDS, "") | {"iteration": i, "loss": x, "lr": r})
        pending.clear()
        bar.set_postfix_str(f"loss {x:.5f}, lr {rate:.1e}", refresh=False)
        bar.update(done * args.batch_size - bar.n)
        if check:
            mse, psnr = validate(average, pairs, len(few))
            found = {"val_mse": mse, "val_psnr": psnr, "bicubic_psnr": bicubic}
            unwritten[-1] |= found
            gain = f"{psnr:.2f} dB, bicubic {bicubic:.2f} ({psnr - bicubic:+.2f})"
            if chief:
                bar.write(f"iteration {done:>6}/{total}   validation PSNR {gain}")
            if chief and psnr > best:
                best = psnr
                metrics = dict(iteration=done, val_psnr=psnr, bicubic_psnr=bicubic)
                save_checkpoint(
                    run / "best.pt", {**about, "model": average.state_dict(), "metrics": metrics}
                )
        if chief and (save or stopping):
            append_log(run / "log.csv", unwritten)
            rows += unwritten
            unwritten = []
            save_last(done)
            if check:
                plot(run, rows, title)
        if stopping:
            bar.close()
            if chief:
                print(f"stopped at iteration {done}; go on with:")
                print(f"  python train.py --resume {quoted(run)}")
            return 128 + stopping
    bar.close()
    stop.end()  # what follows can be done again
    if not chief:
        return 0

    # --- the result, on the test subjects ---
    shown = "bicubic" if args.degradation == "mixed" else args.degradation
    final = modules.load_network(load_checkpoint(run / "best.pt"), run / "best.pt").to(device)
    table = evaluate({"this network": final}, parts["test"], shown, device, progress=True)
    write_json(run / "metrics.json", {"degradation": shown, "results": table, "config": config})
    plot(run, rows, title)
    examples(run, final, parts["test"], shown, device)
    print(f"\nTest split, {parts['test'].counts()}; LR by {shown}, 8 bits")
    print(metrics_table(table))
    print(f"\nIn {run}: best.pt last.pt config.json log.csv loss.png examples.png metrics.json")
    middle = parts["test"].name[len(parts["test"]) // 2].split("#")[0]
    if not args.data:
        middle = run / "demo_slice.png"
        with atomic_write(middle) as file:
            Image.fromarray(parts["test"][len(parts["test"]) // 2]).save(file, "PNG")
    print("Try next:\n  python predict.py --simulate --checkpoint "
          f"{quoted(run / 'best.pt')} --image {quoted(middle)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    run_main(main)

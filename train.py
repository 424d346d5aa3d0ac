"""Train a super-resolution network on brain MRI slices.

    python train.py                  on the real slices in data/ds002748, in a few minutes
    python train.py --data DIR       on your own pictures or volumes; split by subject

Leaves a run folder with weights, loss graph, example figure and metrics, and prints where it is.

With the same seed, data, machine, --threads and number of processes a run is repeated to the last
bit, resumed or not. Other --threads or another number of processes see the same samples, but sum in
another order: losses agree to 1e-7 at first; with Muon they differ by some 0.1 % after 60 steps.
"""

import copy
import math
import os
import platform
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import dataset
import modules
from degradation import degrade, full_name, parse_scale, scale_name
from evaluation.figures import examples_figure
from evaluation.metrics import metrics_table, note_legend, psnr_of
from evaluation.scoring import (
    as_tensor,
    evenly_spaced,
    example_of,
    score_slices,
    table_of,
    taking_turns,
)
from inference.checkpoints import load_checkpoint, load_mean, save_checkpoint
from inference.tiling import keep_memory
from scans.subjects import person_key
from training import batches, run_folder
from training.loss import loss_of, told_samples, upscale_batch
from training.optimiser import learning_rate, optimisers_of
from training.processes import Stop, job, join_processes, leave, rank, restarts, world
from utils import (
    DataError,
    Parser,
    UsageError,
    bf16_autocast,
    bf16_works,
    int_between,
    note,
    pick_device,
    progress,
    run_main,
    warn,
    write_json,
)

SAVE_EVERY = 200  # iterations between two writings of last.pt
CHECK_EVERY = 100, 1000  # fewest and most iterations between two validations, about 20 in a run
VALIDATION_SLICES = 64
# What --resume may change: how long, where and how fast, never what is computed.
MAY_CHANGE = {
    "epochs", "iterations", "device", "workers", "threads", "resume", "run", "cache", "data",
    "subjects",
}  # fmt: skip


# --- the command line -----------------------------------------------------------------------------


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--data", help="folder of pictures or volumes  (default: the slices in data/ds002748)")
    add("--scale", type=parse_scale, default="4", help="2 to 8; 4x1: height only, thick slices")
    add("--degradation", help="how LR slices are made of HR ones: bicubic, bilinear, blur-1.5, "
        "rician-2 ..., mixed or wide  (default: bicubic; of 4x1: box)")  # fmt: skip
    dataset.add_data_arguments(add)
    add("--workers", type=int_between(1, 64), default=min(8, os.cpu_count() or 1),
        help="threads that read, decode and make batches ahead")  # fmt: skip
    add = parser.add_argument_group("network").add_argument
    add("--model", choices=modules.NETWORKS,
        help="deep: the default network; espcn: the plain one  (default: deep)")  # fmt: skip
    add("--channels", type=int_between(1, 1024), help="feature channels  (default: 48, espcn: 64)")
    add("--blocks", type=int_between(0, 1024),
        help="convolutions in the middle of deep  (default: 13)")  # fmt: skip
    add("--weights", nargs="+", metavar="FILE", help="weights to start from; several: their mean")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int_between(1),
        help="passes over the training slices, instead of --iterations")  # fmt: skip
    add("--iterations", type=int_between(1),
        help="optimiser steps  (default: 2000; with --data 12000)")  # fmt: skip
    add("--batch-size", type=int_between(1), default=8, help="slices a step, over all processes")
    add("--patch-size", type=int_between(0, 1024), default=32,
        help="LR pixels along an edge; 0: whole slices")  # fmt: skip
    add("--optimizer", default="muon", choices=("muon", "adam"),
        help="muon: for the kernels between first and last layer, Adam for the rest")  # fmt: skip
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--clip", type=float, default=0.01, help="largest gradient norm; 0: no limit")
    add("--schedule", default="cosine", choices=("cosine", "constant"), help="of the learning rate")
    add("--ema", type=float, default=0.999, help="decay of the weight average; 0: none")
    add("--no-augment", action="store_true", help="no flips, turns, brightness, other contrasts")
    add = parser.add_argument_group("run").add_argument
    add("--run", help="folder for the results  (default: runs/<date>-<time>)")
    add("--resume", metavar="RUN", help="go on with a run that was cut off; --data if it has moved")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0, 1024), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--amp", action="store_true", help="bf16 matrix products, faster where the chip has them")
    add("--dry-run", action="store_true", help="one tiny pass of everything, in seconds")
    return parser


def arguments(argv=None):
    """The arguments, those of the resumed run among them."""
    parser = parser_of()
    args = parser.parse_args(argv)
    if args.resume:
        return resumed_arguments(parser, argv, args.resume)
    if args.epochs and args.iterations:
        parser.error("--epochs and --iterations: give one of them")
    if args.data == "":
        parser.error("--data: is empty")
    if args.run and Path(args.run).exists() and not Path(args.run).is_dir():
        parser.error(f"--run {args.run}: is a file; name a folder")
    if not 0 <= args.ema < 1:
        parser.error("--ema must be in [0, 1)")
    if not 0 < args.lr < 1:
        parser.error("--lr must be in (0, 1)")
    through = args.scale[1] == 1
    if through and not args.data:
        parser.error(f"--scale {scale_name(args.scale)} needs whole volumes: --data VOLUMES")
    if through and args.axis == "axial":
        args.axis = "through"
    args.degradation = args.degradation or ("box" if through else "bicubic")
    if args.degradation not in ("wide", "mixed"):
        args.degradation = full_name(args.degradation, args.scale)
    return args


def resumed_arguments(parser, argv, run):
    """The arguments of a run that was cut off, with the few that may change as given now."""
    before = run_folder.read_config(run).get("arguments")
    if before is None:
        raise UsageError(f"--resume {run}: no run folder (no readable config.json)")
    known = vars(parser.parse_args(argv))
    before = {key: value for key, value in before.items() if key in known}
    before["scale"] = parse_scale(before.get("scale") or "4")
    parser.set_defaults(**before)
    args = parser.parse_args(argv)
    changed = [k for k in before if k not in MAY_CHANGE and getattr(args, k) != before[k]]
    if changed:
        flags = ", ".join("--" + k.replace("_", "-") for k in changed)
        raise UsageError(f"{flags} cannot change when a run is resumed")
    if args.threads != before["threads"]:
        warn("other --threads round differently: the run ends a little elsewhere than without")
    args.run = run
    if args.iterations != before["iterations"]:  # the newer of the two counts
        args.epochs = None
    return args


def main(argv=None) -> int:
    args = arguments(argv)
    keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if args.amp and device.type == "cpu" and not bf16_works():
        raise UsageError("--amp: this CPU cannot do bf16 products; leave it out")
    if args.amp and not torch.amp.is_autocast_available(device.type):
        raise UsageError(f"--amp: this PyTorch has no bf16 products on {device}; leave it out")
    if world() > 1:
        device = join_processes(args, device)
    restarted = restarts() > 0
    if job() and args.run:
        restarted |= run_folder.read_config(args.run).get("job") == job()
    run = Path(args.run or "")
    if rank() == 0 and not args.resume:
        run = run_folder.claim_folder(args.run, restarted)
    resuming = bool(args.resume or (restarted and (run / "last.pt").exists()))
    try:
        status = train(args, device, run, resuming)
    finally:
        if rank() == 0 and not args.resume:
            run_folder.give_up_folder(run)
        if world() > 1:
            dist.destroy_process_group()
    return leave(status)


# --- set-up ---------------------------------------------------------------------------------------


def load_data(args, seen=()):
    """({'train', 'val', 'test': Slices}, fingerprint, iterations). Rank 0 alone decodes.

    seen: people whom the weights to start from know; they are kept out of val and test.
    """
    if rank() > 0:
        dist.barrier()  # what rank 0 has decoded is found in the cache
    options = {name: getattr(args, name) for name in dataset.DATA_OPTIONS}
    quiet = rank() > 0
    parts, fingerprint = dataset.load_parts(**options, workers=args.workers, quiet=quiet, seen=seen)
    if rank() == 0 and world() > 1:
        dist.barrier()
    if args.dry_run:
        args.iterations, args.epochs, args.batch_size, args.patch_size = 2, None, world(), 8
        parts = {name: evenly_spaced(part, 2) for name, part in parts.items()}
    if args.epochs:
        return parts, fingerprint, math.ceil(args.epochs * len(parts["train"]) / args.batch_size)
    return parts, fingerprint, args.iterations or (12000 if args.data else 2000)


def people_seen(args, run, resuming) -> tuple[list[str], list[str]]:
    """(people that --weights know, those of the files that do not list theirs)."""
    if resuming:  # the files may be gone
        config = run_folder.read_config(run)
        return config.get("people_of_weights", []), config.get("weights_without_people", [])
    found = {path: load_checkpoint(path) for path in args.weights or ()}
    people = {person for checkpoint in found.values() for person in checkpoint.get("people", ())}
    unlisted = [path for path, c in found.items() if c.get("people") is None]
    for path in unlisted if rank() == 0 else ():
        warn(f"{path}: does not list the people it was trained on ({found[path]['trained_on']}): "
             "some may be in val and test here, and make their scores too good")  # fmt: skip
    return sorted(people), unlisted


def warn_of_seen(parts, seen) -> None:
    """Say which people of val and test the weights to start from know already."""
    keys = {person_key(person) for person in seen}
    for name in ("val", "test"):
        people = sorted(set(parts[name].subject.tolist()))
        known = [person for person in people if person_key(person) in keys]
        if known:
            words = f"{len(known)} of {len(people)} subjects ({', '.join(known[:5])}) are (or are"
            warn(f"{name}: {words} called as) people that --weights know; scores are too good")


def start_network(args, run, resuming):
    """The network and its arch: those of the run, of --weights, or untrained ones.

    What --model, --channels and --blocks were not given as becomes what the network has.
    """
    if resuming:  # the file of --weights may be gone
        arch = load_checkpoint(run / "last.pt")["arch"]
        return modules.build(arch, args.scale), arch
    torch.manual_seed(args.seed)
    given, names = None, ", ".join(args.weights or ())
    if args.weights:
        given = load_mean(args.weights)
        modules.load_network(given, names)  # refuses what is damaged
        for option, key in (("model", "name"), ("channels", "channels"), ("blocks", "blocks")):
            asked, there = getattr(args, option), given["arch"].get(key)
            if asked not in (None, there):
                raise UsageError(f"--{option} {asked}: {names} has {there}; leave it out")
            setattr(args, option, there)
    args.model = args.model or "deep"
    args.channels = args.channels or (64 if args.model == "espcn" else 48)
    if args.model != "deep" and args.blocks is not None:
        warn(f"--blocks does nothing: {args.model} has none")
        args.blocks = None
    arch = {"name": args.model, "channels": args.channels}
    if args.model == "deep":
        args.blocks = 13 if args.blocks is None else args.blocks
        arch |= {"blocks": args.blocks, "half": 4, "told": args.degradation == "wide"}
    if not given:
        return modules.build(arch, args.scale), arch
    told = {"told": True} if arch.get("told") and given["arch"]["name"] == "deep" else {}
    # The error head is left out: it was made for features that training changes.
    arch = {k: v for k, v in given["arch"].items() if k != "spread"} | told
    network = modules.build(arch, args.scale)
    left = modules.adopt_weights(network, given)
    if left and rank() == 0:
        note(f"{names}: not in it, so begun anew: {', '.join(left[:4])}")
    return network, arch


def set_up(args, device, run, resuming):
    """Data, state and what is written about the run; its folder is ready for the loop."""
    seen, unlisted = people_seen(args, run, resuming)
    network, arch = start_network(args, run, resuming)
    parts, fingerprint, total = load_data(args, seen)
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    state = run_folder.State(network, average, optimisers_of(network, args.optimizer, args.lr))
    config = {
        "arguments": vars(args) | {"scale": scale_name(args.scale)},
        "fingerprint": fingerprint,
        "subjects": {k: sorted(set(p.subject.tolist())) for k, p in parts.items()},
        "people_of_weights": seen,
        "weights_without_people": unlisted,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": run_folder.commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "processes": world(),
        "job": job(),
    }
    rows = run_folder.go_on(run, state, config, total) if resuming else []
    name = Path(args.data or dataset.OWN_DATA).resolve().name
    about = dict(arch=arch, scale=list(args.scale), degradation=args.degradation)
    about |= dict(trained_on=f"{parts['train'].counts()} of {name}", fingerprint=fingerprint)
    if not unlisted:  # else nobody knows them all
        own = (config["subjects"][part] for part in ("train", "val"))
        about["people"] = sorted({*seen, *(person for people in own for person in people)})
    if rank() == 0:
        warn_of_seen(parts, seen)
        for left in run.glob(".*.part"):  # of a write that was cut off
            left.unlink()
        run_folder.write_log(run / "log.csv", rows)
        for part, slices in parts.items():
            note(f"{part + ':':12s}{slices.counts()}")
        size = f"{modules.parameters(network):,} parameters, {modules.mmac(network):.0f} MMAC"
        note(f"network:    {arch['name']}, {size} for a 60x64 slice; on {device}")
        note(f"run:        {run}, {total} iterations of {args.batch_size} slices")
        if not resuming:
            run_folder.save_last(run, state, about)
        write_json(run / "config.json", config)  # where one is, a run can be resumed
    return parts, state, rows, config, about, total


# --- steps of the loop ----------------------------------------------------------------------------


def validation_pairs(slices, args, device):
    """(index, LR, HR) of this process's share of the validation slices."""
    pairs, names = [], taking_turns(args.degradation, args.scale)
    for i in range(rank(), len(slices), world()):
        hr = as_tensor(slices[i], args.scale, device)
        pairs.append((i, degrade(hr, names[i % len(names)], args.scale, seed=i), hr))
    return pairs


@torch.inference_mode()
def validate(model, pairs, n: int) -> tuple[float, float]:
    """Mean MSE and mean PSNR over all n validation slices, whichever process holds them."""
    mse = torch.zeros(n, dtype=torch.float64)
    for i, lr, hr in pairs:
        mse[i] = F.mse_loss(model(lr).float().clamp(0, 1), hr).cpu()  # MPS has no float64
    if world() > 1:
        dist.all_reduce(mse)
    return float(mse.mean()), float(np.mean([psnr_of(m) for m in mse.tolist()]))


# --- the loop -------------------------------------------------------------------------------------


def train(args, device, run: Path, resuming: bool) -> int:
    """One run, from data to metrics. Returns the exit status."""
    chief = rank() == 0
    parts, state, rows, config, about, total = set_up(args, device, run, resuming)
    network, average = state.network, state.average
    pairs = validation_pairs(few := evenly_spaced(parts["val"], VALIDATION_SLICES), args, device)
    bicubic = modules.Interpolation(args.scale).to(device)
    bicubic_psnr = validate(bicubic, pairs, len(few))[1]
    check_every = min(CHECK_EVERY[1], max(CHECK_EVERY[0], total // 20))
    several = world() > 1  # their buffers are constants, the same in all
    model = DistributedDataParallel(network, broadcast_buffers=False) if several else network
    weights, averages = list(network.parameters()), list(average.parameters())
    batch_options = dict(
        seed=args.seed, batch_size=args.batch_size, patch=args.patch_size, scale=args.scale,
        degradation=args.degradation, augment=not args.no_augment, device=str(device),
        rank=rank(), world=world(),
    )  # fmt: skip
    at_once = True if device.type in ("cpu", "cuda") else None  # MPS: not every PyTorch can
    bar = progress(total=total * args.batch_size, initial=state.iteration * args.batch_size,
                   unit="slice", unit_scale=True, disable=not chief)  # fmt: skip
    pending, unwritten, stop = [], [], Stop()
    todo, ahead = range(state.iteration, total), 0 if device.type == "cpu" else args.workers
    made = batches.batches_ahead(parts["train"], todo, ahead, **batch_options)
    for iteration, batch in zip(todo, made):
        rate = learning_rate(iteration, total, args.lr, args.schedule)
        for optimiser in state.optimisers:
            optimiser.param_groups[0]["lr"] = rate
        with bf16_autocast(device, args.amp):
            told = told_samples(iteration, args.batch_size).to(device)
            sr, estimate = upscale_batch(model, network, batch, told)
        upsampled = bicubic(batch.lr)  # what is to be beaten; it has nothing to train
        loss, mse, bicubic_mse = loss_of(sr.float(), upsampled, estimate, batch, told, args.scale)
        network.zero_grad()
        loss.backward()
        if args.clip:  # some 5 times the usual norm: one odd batch must not undo a long run
            torch.nn.utils.clip_grad_norm_(weights, args.clip, foreach=at_once)
        for optimiser in state.optimisers:
            optimiser.step()
        with torch.no_grad():
            for a, w in zip(averages, weights):
                a.lerp_(w, 1 - min(args.ema, (1 + iteration) / (10 + iteration)))
        losses = torch.stack((mse.detach(), bicubic_mse))
        pending.append((iteration + 1, rate, losses))
        done = state.iteration = iteration + 1
        check = done % check_every == 0 or done == total
        save = check or done % SAVE_EVERY == 0
        stopping = 0 if several else stop.signal
        if not (save or stopping or len(pending) == 20):
            continue
        # Losses are fetched from the device a few at a time: each fetch waits for it.
        losses = torch.stack([pair for _, _, pair in pending])
        if several:
            asked = torch.tensor(stop.signal, device=device)
            dist.all_reduce(losses)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            losses, stopping = losses / world(), int(asked)
        sound = not save or all(bool(w.isfinite().all()) for w in weights)
        for (i, r, _), (x, b) in zip(pending, losses.tolist()):
            if not math.isfinite(x) or (i == done and not sound):
                raise DataError(
                    f"{'weights are not finite' if math.isfinite(x) else f'loss is {x}'} at "
                    f"iteration {i}, learning rate {r:.3g}: try a lower --lr; the weights before "
                    f"are in {run}"
                )
            row = {"iteration": i, "loss": x, "bicubic_loss": b, "lr": r}
            unwritten.append(dict.fromkeys(run_folder.LOG_FIELDS, "") | row)
        pending.clear()
        bar.set_postfix_str(f"loss {x:.5f}, bicubic {b:.5f}", refresh=False)
        bar.update(done * args.batch_size - bar.n)
        if check:
            mse, psnr = validate(average, pairs, len(few))
            metrics = {"val_psnr": psnr, "bicubic_psnr": bicubic_psnr}
            unwritten[-1] |= {"val_mse": mse, **metrics}
            gain = f"{psnr:.2f} dB, bicubic {bicubic_psnr:.2f} ({psnr - bicubic_psnr:+.2f})"
            if chief:
                note(f"iteration {done:>6}/{total}   validation PSNR {gain}")
            if chief and psnr > state.best:
                state.best, metrics = psnr, {"iteration": done, **metrics}
                best = {**about, "model": average.state_dict(), "metrics": metrics}
                save_checkpoint(run / "best.pt", best)
        if chief and (save or stopping):
            run_folder.append_log(run / "log.csv", unwritten)
            rows += unwritten
            unwritten = []
            run_folder.save_last(run, state, about)
            if check:
                run_folder.plot(run, rows, about)
        if stopping:
            bar.close()
            if chief:
                print(f"stopped at iteration {done}; go on with:")
                print(f"  python train.py --resume {run_folder.quoted(run)}")
            return 128 + stopping
    bar.close()
    stop.end()  # what follows can be done again
    return finish(run, rows, parts["test"], config, about, device) if chief else 0


# --- the end --------------------------------------------------------------------------------------


def finish(run: Path, rows, slices, config, about, device) -> int:
    """The result on the test subjects, of several degradations by the first: table and figures."""
    shown, *others = taking_turns(about["degradation"], tuple(about["scale"]))
    network = modules.load_network(load_checkpoint(run / "best.pt"), run / "best.pt").to(device)
    networks = {"this network": network}
    try:
        scores = score_slices(networks, slices, shown, network.scale, device)
        table = table_of(scores, networks)
        write_json(run / "metrics.json", dict(degradation=shown, results=table, config=config))
        run_folder.plot(run, rows, about)
        chosen = np.unique(np.linspace(0, len(slices) - 1, 5).round().astype(int)[1:4])
        examples = [example_of(network, slices, int(i), shown, scores, device) for i in chosen]
        examples_figure(run / "examples.png", examples, title=f"test subjects, LR by {shown}")
    except KeyboardInterrupt:
        print("the training is done; for its table:")
        print(f"  python train.py --resume {run_folder.quoted(run)}")
        return 130
    text = metrics_table(table)
    print(f"\nTest split, {slices.counts()}; LR by {shown}, 8 bits\n{text}")
    note_legend(text)
    note(f"In {run}: best.pt last.pt config.json log.csv loss.png examples.png metrics.json")
    best, data = run_folder.quoted(run / "best.pt"), config["arguments"]["data"] or dataset.OWN_DATA
    middle = Path(data, slices.place_of(len(slices) // 2)[0])
    note("Try next:")
    if 1 not in network.scale:  # predict.py simulates no thick slices, evaluate.py does
        words = f"{run_folder.quoted(middle)} --output results"
        note(f"  python predict.py --simulate --checkpoint {best} {words}")
    note(f"  python evaluate.py {best}{' --degradation all' if others else ''}")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Train a super-resolution network on brain MRI slices.

    python train.py                  on the real slices in data/ds002748, in a few minutes
    python train.py --data DIR       on your own pictures or volumes; split by subject

Leaves a run folder with weights, loss graph, example figure and metrics, and prints where it is.

With the same seed, data, machine, --threads and number of processes a run on a CPU is repeated to
the last bit, resumed or not. Other --threads or another number of processes see the same samples,
but sum in another order: losses agree to 1e-7 at first; with Muon they differ by some 0.1 % after
60 steps.
"""

import argparse
import copy
import math
import os
import platform
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import dataset
import modules
from degradation import parse_scale, print_degradations, scale_name, validation_degradations
from evaluation.figures import examples_figure
from evaluation.metrics import metrics_table, note_legend, psnr_of
from evaluation.scoring import (
    description_of,
    evenly_spaced,
    example_of,
    parts_of,
    score_slices,
    seen_by,
    table_of,
)
from inference import Upscaler
from inference.checkpoints import load_checkpoint, save_checkpoint
from inference.tiling import tune_malloc
from scans.listing import SPLITS
from scans.subjects import person_key
from training import run_folder
from training.batches import Options, Stock, training_batch
from training.error_head import add_error_head
from training.join_weights import one_of
from training.optimiser import learning_rate, optimisers_of
from training.processes import (
    Stop,
    chief_first,
    is_chief,
    job,
    join_processes,
    leave,
    leave_processes,
    rank,
    restarts,
    shared,
    sum_of_all,
    world,
)
from training.step import Step, iterations_in
from utils import (
    DataError,
    Parser,
    UsageError,
    bf16_works,
    int_between,
    note,
    pick_device,
    progress,
    run_main,
    warn,
    write_json,
)

SAVE_EVERY = 200  # iterations between two writings of last.pt on a CPU; on a GPU 1000
CHECK_EVERY = 100, 1000  # fewest and most iterations between two validations, about 20 in a run
VALIDATION_SLICES = 64
SCORED_SLICES = 400  # of the test people, in the last table
# What --resume may change: how long, where and how fast, never what is computed.
MAY_CHANGE = {
    "epochs", "iterations", "minutes", "device", "workers", "threads", "resume", "run", "cache",
    "data", "subjects", "error_head",
}  # fmt: skip


# --- the command line -----------------------------------------------------------------------------


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    optional = argparse.BooleanOptionalAction
    add = parser.add_argument_group("data").add_argument
    add("--data", help="folder of pictures or volumes  (default: the slices in data/ds002748)")
    add("--scale", type=parse_scale, nargs="+", default=[(4, 4)],
        help="2 to 8; 4x1: height only, thick slices; several: one network for all of them; name "
        "one twice to draw it twice as often  (default: 4)")  # fmt: skip
    add("--degradation", help="how LR slices are made of HR ones: bicubic, bilinear, blur-1.5, "
        "rician-2 ..., mixed or wide  (default: bicubic; of 4x1: box)")  # fmt: skip
    dataset.add_data_arguments(add)
    add("--workers", type=int_between(1, 64), default=min(8, os.cpu_count() or 1),
        help="threads that read files")  # fmt: skip
    add = parser.add_argument_group("network").add_argument
    add("--model", choices=modules.NETWORKS,
        help="deep: the default network; espcn: the plain one  (default: deep)")  # fmt: skip
    add("--channels", type=int_between(1, 1024), help="feature channels  (default: 48, espcn: 64)")
    add("--blocks", type=int_between(0, 1024),
        help="convolutions in the middle of deep  (default: 13)")  # fmt: skip
    add("--neighbours", type=int_between(0, 2),
        help="slices on each side that it sees too  (default: 2, of pictures 0)")  # fmt: skip
    add("--weights", metavar="FILE", help="weights to start from")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int_between(1),
        help="passes over the training slices, instead of --iterations")  # fmt: skip
    add("--iterations", type=int_between(1),
        help="optimiser steps  (default: 2000; with --data 12000)")  # fmt: skip
    add("--minutes", type=float, help="as many iterations as fit into this time, measured first")
    add("--batch-size", type=int_between(1),
        help="slices a step, over all processes  (default: 8; on a GPU 64)")  # fmt: skip
    add("--patch-size", type=int_between(0, 1024),
        help="LR pixels along an edge; 0: whole slices  (default: 32; on a GPU 48)")  # fmt: skip
    add("--optimizer", default="muon", choices=("muon", "adam"),
        help="muon: for the kernels between first and last layer, Adam for the rest")  # fmt: skip
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--clip", type=float, default=0.01, help="largest gradient norm; 0: no limit")
    add("--schedule", default="cosine", choices=("cosine", "constant"), help="of the learning rate")
    add("--ema", type=float, default=0.999, help="decay of the weight average; 0: none")
    add("--no-augment", action="store_true", help="no flips, turns, brightness, other contrasts")
    add("--error-head", type=int_between(0), metavar="N",
        help="iterations, after all others, for the map of expected errors  (default: with wide a "
        "tenth of --iterations, else none)")  # fmt: skip
    add = parser.add_argument_group("run").add_argument
    add("--run", help="folder for the results  (default: runs/<date>-<time>)")
    add("--resume", metavar="RUN", help="go on with a run that was cut off; --data if it has moved")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0, 1024), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--amp", action=optional,
        help="bf16 products, faster where the chip has them  (default: on CUDA)")  # fmt: skip
    add("--dry-run", action="store_true",
        help="one tiny pass of everything, in seconds, of which nothing is kept")  # fmt: skip
    return parser


def arguments(argv=None):
    """The arguments, those of the resumed run among them."""
    parser = parser_of()
    args = parser.parse_args(argv)
    if args.resume:
        return resumed_arguments(parser, argv, args.resume)
    if sum(x is not None for x in (args.epochs, args.iterations, args.minutes)) > 1:
        parser.error("--epochs, --iterations, --minutes: give one of them")
    if args.minutes is not None and not 0.1 <= args.minutes <= 1e5:
        parser.error("--minutes must be 0.1 or more")
    if args.data == "":
        parser.error("--data: is empty")
    if args.run and Path(args.run).exists() and not Path(args.run).is_dir():
        parser.error(f"--run {args.run}: is a file; name a folder")
    if not 0 <= args.ema < 1:
        parser.error("--ema must be in [0, 1)")
    if not 0 < args.lr < 1:
        parser.error("--lr must be in (0, 1)")
    through = [1 in scale for scale in args.scale]
    if any(through) and not args.data:
        name = scale_name(args.scale[through.index(True)])
        parser.error(f"--scale {name} needs whole volumes: --data VOLUMES")
    if any(through) and args.axis == "axial":
        args.axis = "through" if all(through) else "all"
    if args.degradation == "help":
        raise SystemExit(print_degradations())
    args.degradation = args.degradation or ("box" if all(through) else "bicubic")
    for scale in args.scale:
        validation_degradations(args.degradation, scale)  # refuses what is unknown
    return args


def resumed_arguments(parser, argv, run):
    """The arguments of a run that was cut off, with the few that may change as given now."""
    if Path(run).name in ("last.pt", "best.pt"):
        run = str(Path(run).parent)
    before = run_folder.read_config(run).get("arguments")
    if before is None:
        raise UsageError(f"--resume {run}: no run folder (no readable config.json)")
    known = vars(parser.parse_args(argv))
    before = {key: value for key, value in before.items() if key in known}
    before["scale"] = [parse_scale(scale) for scale in before["scale"]]
    parser.set_defaults(**before)
    args = parser.parse_args(argv)
    changed = [k for k in before if k not in MAY_CHANGE and getattr(args, k) != before[k]]
    if changed:
        flags = ", ".join("--" + k.replace("_", "-") for k in changed)
        raise UsageError(f"{flags} cannot change when a run is resumed")
    if args.threads != before["threads"]:
        warn("other --threads round differently: the run ends a little elsewhere than without")
    args.run, args.resume, args.minutes = run, run, None
    if args.iterations != before["iterations"]:  # the newer of the two counts
        args.epochs = None
    return args


def suit_device(args, device) -> None:
    """Fill in what suits the device, and refuse what it cannot do."""
    gpu = device.type == "cuda"
    args.batch_size = args.batch_size or (64 if gpu else 8)
    args.patch_size = (48 if gpu else 32) if args.patch_size is None else args.patch_size
    args.amp = gpu if args.amp is None else args.amp
    if args.amp and device.type == "cpu" and not bf16_works():
        raise UsageError("--amp: this CPU cannot do bf16 products; leave it out")
    if args.amp and not torch.amp.is_autocast_available(device.type):
        raise UsageError(f"--amp: this PyTorch has no bf16 products on {device}; leave it out")


def main(argv=None) -> int:
    args = arguments(argv)
    tune_malloc()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    suit_device(args, device)
    device = join_processes(args.run, args.batch_size, device)
    restarted = restarts() > 0
    if job() and args.run:
        restarted |= run_folder.read_config(args.run).get("job") == job()
    restarted &= not args.dry_run
    scratch = tempfile.TemporaryDirectory() if args.dry_run else nullcontext()
    with scratch as folder:
        run = Path(args.run or "")
        if is_chief() and not args.resume:
            run = run_folder.create_run(Path(folder, "run") if folder else args.run, restarted)
        resuming = bool(args.resume or (restarted and (run / "last.pt").exists()))
        try:
            status = train(args, device, run, resuming)
        finally:
            if is_chief() and not args.resume:
                run_folder.discard_run(run)
            leave_processes()
    return leave(status)


# --- set-up ---------------------------------------------------------------------------------------


def load_data(args, seen=()):
    """({'train', 'val', 'test': Slices}, fingerprint).

    seen: people whom the weights to start from know; they are kept out of val and test.
    """
    options = {name: getattr(args, name) for name in dataset.DATA_OPTIONS}
    quiet = not is_chief()
    parts, fingerprint = chief_first(
        lambda: dataset.load_parts(**options, workers=args.workers, quiet=quiet, seen=seen)
    )
    if is_chief() and args.data:
        warn_of_folders_beside(Path(args.data).absolute())
    if not len(parts["train"]):
        raise DataError(f"{args.data}: all subjects are in its test folder; too few for train")
    if args.dry_run:
        args.iterations, args.epochs, args.batch_size, args.patch_size = 2, None, world(), 8
        parts = {name: evenly_spaced(part, 2) for name, part in parts.items() if len(part)}
    return parts, fingerprint


def warn_of_folders_beside(data: Path) -> None:
    """Say that the test folder of a data set stays out, if only its train folder was given."""
    if data.name.lower() not in SPLITS:
        return
    others = [path.name for path in data.parent.glob("*/") if path.name.lower() in SPLITS]
    others = " and ".join(name for name in others if name != data.name)
    if others:
        warn(f"{data}: {others} beside it stays out; --data {data.parent} takes both")


def people_seen(args, run, resuming) -> tuple[list[str], str]:
    """(people that --weights know, '' or its path if it does not list them)."""
    if resuming:  # the file may be gone
        config = run_folder.read_config(run)
        return config.get("people_of_weights", []), config.get("weights_without_people", "")
    if not args.weights:
        return [], ""
    checkpoint = load_checkpoint(args.weights)
    if "people" in checkpoint:
        return checkpoint["people"], ""
    if is_chief():
        warn(f"{args.weights}: does not list the people it was trained on "
             f"({checkpoint['trained_on']}): some may be in val and test here, and make their "
             "scores too good")  # fmt: skip
    return [], args.weights


def warn_of_seen(parts, seen) -> None:
    """Say which people of val and test the weights to start from know already."""
    keys = {person_key(person) for person in seen}
    for name in ("val", "test"):
        people = sorted(set(parts[name].subject.tolist()))
        known = [person for person in people if person_key(person) in keys]
        if known:
            words = f"{len(known)} of {len(people)} subjects ({', '.join(known[:5])}) are (or are"
            warn(f"{name}: {words} called as) people that --weights know; scores are too good")


def start_network(args, run, resuming, slices):
    """The network and its arch: those of the run, of --weights, or untrained ones.

    What --model, --channels and --blocks were not given as becomes what the network has.
    """
    scales = tuple(dict.fromkeys(args.scale))
    if resuming:  # the file of --weights may be gone
        arch = load_checkpoint(run / "last.pt")["arch"]
        return modules.build(arch, scales), arch
    torch.manual_seed(args.seed)
    given = load_checkpoint(args.weights) if args.weights else None
    if given:
        modules.load_network(given, args.weights)  # refuses what is damaged
        given = one_of(given, scales)
        for option, key in (("model", "name"), ("channels", "channels"), ("blocks", "blocks")):
            asked, there = getattr(args, option), given["arch"].get(key)
            if asked not in (None, there):
                words = f"{args.weights} was made with --{option} {there}; leave out --{option}"
                raise UsageError(f"--{option} {asked}: {words}")
            setattr(args, option, there)
    args.model = args.model or "deep"
    args.channels = args.channels or (64 if args.model == "espcn" else 48)
    arch = {"name": args.model, "channels": args.channels}
    if args.model == "deep":
        several = (slices.size[slices.volume, 0] > 1).mean() > 0.5
        neighbours = (2 if several else 0) if args.neighbours is None else args.neighbours
        args.blocks = 13 if args.blocks is None else args.blocks
        arch |= {"blocks": args.blocks, "half": 4, "neighbours": neighbours}
        arch |= {"estimator": args.degradation == "wide"}
    else:
        for name in [name for name in ("blocks", "neighbours") if getattr(args, name)]:
            warn(f"--{name} does nothing: {args.model} has none")
            setattr(args, name, None)
        if args.degradation == "wide":
            warn(f"{args.model} has no estimator: it cannot know which degradation it looks at")
    if not given:
        return modules.build(arch, scales), arch
    # The error head is left out: it was made for features that training changes.
    mine = {k: v for k, v in given["arch"].items() if k != "error_head"}
    if mine["name"] == "deep":
        wanted = {k: arch[k] for k in ("neighbours", "estimator") if k in arch}
        mine |= {k: value or mine.get(k, value) for k, value in wanted.items()}
    network = modules.build(mine, scales)
    left = modules.adopt_weights(network, given)
    if left and is_chief():
        note(f"{args.weights}: not in it, so begun anew: {', '.join(left[:4])}")
    return network, mine


def set_up(args, device, run, resuming):
    """Data, state and what is written about the run; its folder is ready for the loop."""
    seen, unlisted = people_seen(args, run, resuming)
    parts, fingerprint = load_data(args, seen)
    network, arch = start_network(args, run, resuming, parts["train"])
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    state = run_folder.State(network, average, optimisers_of(network, args.optimizer, args.lr))
    stock = Stock(parts["train"], device)
    options = Options(
        args.seed, args.batch_size, args.patch_size, tuple(args.scale), args.degradation,
        getattr(network, "neighbours", 0), not args.no_augment, rank=rank(), world=world(),
    )  # fmt: skip
    step = Step(
        state, shared(network, len(network.scales) > 1), network.scales, device, amp=args.amp,
        clip=args.clip, graphs=device.type == "cuda" and world() == 1,
    )  # fmt: skip
    if args.minutes is not None:
        args.iterations = iterations_in(
            args.minutes, step, lambda iteration: training_batch(stock, iteration, options)
        )
        args.minutes = None
    elif args.epochs:
        args.iterations = math.ceil(args.epochs * len(parts["train"]) / args.batch_size)
    args.iterations = args.iterations or (12000 if args.data else 2000)
    if args.error_head is None:
        args.error_head = args.iterations // 10 if args.degradation == "wide" else 0
    config = {
        "arguments": vars(args) | {"scale": [scale_name(s) for s in args.scale]},
        "arch": arch,
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
    rows = run_folder.resume(run, state, config, args.iterations) if resuming else []
    name = Path(args.data or dataset.OWN_DATA).resolve().name
    about = dict(arch=arch, scales=[list(s) for s in network.scales], degradation=args.degradation)
    about |= dict(trained_on=f"{parts['train'].counts()} of {name}", fingerprint=fingerprint)
    if not unlisted:  # else nobody knows them all
        own = (config["subjects"][part] for part in ("train", "val"))
        about["people"] = sorted({*seen, *(person for people in own for person in people)})
    if is_chief():
        warn_of_seen(parts, seen)
        run_folder.begin(run, rows)
        for part, slices in parts.items():
            note(f"{part + ':':12s}{slices.counts()}")
        size = f"{modules.parameters(network):,} parameters, {modules.mmac(network):.0f} MMAC"
        note(f"network:    {arch['name']}, {size} for a 60x64 slice; on {device}")
        note(f"run:        {run}, {args.iterations} iterations of {args.batch_size} slices")
        if not resuming:
            run_folder.save_last(run, state, about)
        write_json(run / "config.json", config)  # where one is, a run can be resumed
    return parts, state, stock, options, step, rows, config, about


# --- validation -----------------------------------------------------------------------------------


def validation_pairs(slices, args, network, device):
    """(number, scale, LR, VolumePart, HR) of this process's share of the validation
    slices; scales and degradations take turns. Networks with an estimator find the degradation."""
    pairs, scales = [], network.scales
    for i in range(rank(), len(slices), world()):
        scale = scales[i % len(scales)]
        names = validation_degradations(args.degradation, scale)
        name = names[i // len(scales) % len(names)]
        (part,) = parts_of(slices.take([i]), name, scale, device)
        pairs.append((i, scale, seen_by(network, part.lr), part, part.hr))
    return pairs


@torch.inference_mode()
def validate(networks: dict, pairs, n: int) -> tuple[float, float]:
    """Mean MSE and mean PSNR over all n validation slices, whichever process holds them.

    networks: {scale: network}.
    """
    mse = torch.zeros(n, dtype=torch.float64)
    for i, scale, lr, part, hr in pairs:
        description = description_of(networks[scale], part)
        sr = networks[scale](lr, scale, description).float().clamp(0, 1)
        mse[i] = F.mse_loss(sr, hr).cpu()  # MPS has no float64
    mse = sum_of_all(mse)
    return float(mse.mean()), float(np.mean([psnr_of(m) for m in mse.tolist()]))


# --- the loop -------------------------------------------------------------------------------------


def train(args, device, run: Path, resuming: bool) -> int:
    """One run, from data to metrics. Returns the exit status."""
    parts, state, stock, options, step, rows, config, about = set_up(args, device, run, resuming)
    total, few = args.iterations, evenly_spaced(parts["val"], VALIDATION_SLICES)
    pairs = validation_pairs(few, args, state.network, device)
    bicubic_psnr = validate(step.bicubic, pairs, len(few))[1]
    average = dict.fromkeys(state.network.scales, state.average)
    check_every = min(CHECK_EVERY[1], max(CHECK_EVERY[0], total // 20))
    save_every = SAVE_EVERY if device.type == "cpu" else 5 * SAVE_EVERY
    bar = progress(total=total * args.batch_size, initial=state.iteration * args.batch_size,
                   unit="slice", unit_scale=True, disable=not is_chief())  # fmt: skip
    losses, unwritten, stop, drawn = [], [], Stop(), 0.0

    for iteration in range(state.iteration, total):
        batch = training_batch(stock, iteration, options)
        rate = learning_rate(iteration, total, args.lr, args.schedule)
        decay = min(args.ema, (1 + iteration) / (10 + iteration))
        losses.append((iteration + 1, rate, step(batch, rate, decay)))

        done = state.iteration = iteration + 1
        check = done % check_every == 0 or done == total
        save = check or done % save_every == 0
        stopping = stop.agreed(save or len(losses) == 20, device)
        # Losses are fetched from the device some at a time: each fetch waits for it.
        if not (save or stopping or len(losses) == (20 if device.type == "cpu" else 200)):
            continue
        found = (sum_of_all(torch.stack([pair for _, _, pair in losses])) / world()).tolist()
        unwritten += run_folder.log_rows(losses, found, state, run, checked=save)
        losses.clear()
        bar.set_postfix_str("loss {:.5f}, bicubic {:.5f}".format(*found[-1]), refresh=False)
        bar.update(done * args.batch_size - bar.n)
        if check:
            mse, psnr = validate(average, pairs, len(few))
            unwritten[-1] |= {"val_mse": mse, "val_psnr": psnr, "bicubic_psnr": bicubic_psnr}
            if is_chief():
                gain = f"{psnr:.2f} dB, bicubic {bicubic_psnr:.2f} ({psnr - bicubic_psnr:+.2f})"
                note(f"iteration {done:>6}/{total}   validation PSNR {gain}")
            if is_chief() and psnr > state.best:
                state.best = psnr
                metrics = {"iteration": done, "val_psnr": psnr, "bicubic_psnr": bicubic_psnr}
                best = {**about, "model": state.average.state_dict(), "metrics": metrics}
                save_checkpoint(run / "best.pt", best)
        if is_chief() and (save or stopping):
            rows += unwritten
            run_folder.append_log(run / "log.csv", unwritten)
            run_folder.save_last(run, state, about)
            if check and time.monotonic() - drawn > 60:
                run_folder.plot(run, rows, about)
                drawn = time.monotonic()
            unwritten = []
        if stopping:
            bar.close()
            if is_chief() and not args.dry_run:
                print(f"stopped at iteration {done}; go on with:")
                print(f"  python train.py --resume {run_folder.quoted(run)}")
            return 128 + stopping

    bar.close()
    stop.end()  # what follows can be done again
    if not is_chief():
        return 0
    try:
        if args.error_head:
            add_error_head(run / "best.pt", stock, options, parts["val"], args.error_head)
        shown = "test" if len(parts["test"]) else "val"
        return finish(run, rows, parts[shown], shown, config, about, device)
    except KeyboardInterrupt:
        print("the training is done; for what comes after it:")
        print(f"  python train.py --resume {run_folder.quoted(run)}")
        return 130


# --- the end --------------------------------------------------------------------------------------


def finish(run: Path, rows, slices, part: str, config, about, device) -> int:
    """Table and figures of the test subjects (of a data set without, the validation subjects), of
    several scales and degradations for the first."""
    scale = tuple(about["scales"][0])
    slices = slices.take(np.isin(slices.plane, (0, 1) if 1 in scale else slices.plane.max()))
    slices = evenly_spaced(slices, SCORED_SLICES)
    shown, *others = validation_degradations(about["degradation"], scale)
    upscalers = {"this network": Upscaler(run / "best.pt", device, bf16=False)}
    scores = score_slices(upscalers, slices, shown, scale)
    table = table_of(scores, upscalers, scale)
    write_json(run / "metrics.json", dict(degradation=shown, results=table, config=config))
    run_folder.plot(run, rows, about)
    chosen = np.unique(np.linspace(0, len(slices) - 1, 5).round().astype(int)[1:4])
    examples = [
        example_of(*upscalers.values(), slices, int(i), shown, scale, scores) for i in chosen
    ]
    examples_figure(run / "examples.png", examples, title=f"{part} subjects, LR by {shown}")
    text = metrics_table(table)
    how = f"x{scale_name(scale)}, LR by {shown}, 8 bits"
    print(f"\n{part.capitalize()} split, {slices.counts()}; {how}\n{text}")
    note_legend(text)
    if config["arguments"]["dry_run"]:
        print("A dry run: all of it works. Its numbers mean nothing, and nothing of it is kept.")
        return 0
    note(f"In {run}: best.pt last.pt config.json log.csv loss.png examples.png metrics.json")
    best, data = run_folder.quoted(run / "best.pt"), config["arguments"]["data"] or dataset.OWN_DATA
    middle = Path(data, slices.name[len(slices) // 2].partition("#")[0])
    note("Try next:")
    if 1 not in scale:  # predict.py simulates no thick slices, evaluate.py does
        words = f"{run_folder.quoted(middle)} --output results"
        note(f"  python predict.py --simulate --weights {best} {words}")
    note(f"  python evaluate.py {best}{' --degradation all' if others else ''}")
    return 0


if __name__ == "__main__":
    run_main(main)

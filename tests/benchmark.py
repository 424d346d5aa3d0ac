"""Speed as ratios, in one table: run by hand, on a machine that does nothing else.

python tests/benchmark.py                            all sections but `target`: some minutes
python tests/benchmark.py --sections train predict --repeats 9
python tests/benchmark.py --sections target --data DIR           half an hour on 2 cores
python tests/benchmark.py --sections volume training --old DIR   against another commit's clone

What is compared takes turns, and each figure is the median of its turns: neighbours on the same
machine slow both sides down. Slices are made from the brain that comes with nilearn, or are those
of --data, folders {train,test}/{class}/<scan id>_<slice>.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataset  # noqa: E402
import export  # noqa: E402
import formats  # noqa: E402
import modules  # noqa: E402
import optim  # noqa: E402
import predict  # noqa: E402
import processes  # noqa: E402
import runs  # noqa: E402
import train  # noqa: E402
import upscaling  # noqa: E402
from checkpoints import load_checkpoint  # noqa: E402
from degradation import degrade  # noqa: E402
from scoring import evaluate_slices as evaluate  # noqa: E402
from utils import bf16_works  # noqa: E402

CHECK_EVERY = 600  # iterations between two validations in a default run of 12,000
ESPCN = ["--model", "espcn", "--channels", "64"]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=[s for s in SECTIONS if s != "target"],
        help="what to measure")  # fmt: skip
    add("--repeats", type=int, default=5, help="turns of each side")
    add("--steps", type=int, default=60, help="training steps a turn")
    add("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    add("--data", help="slices to measure with, instead of generated ones")
    add("--slices", type=int, default=480, help="generated slices, 20 a scan")
    add("--degradation", default="bicubic", choices=("bicubic", "bilinear"), help="of `target`")
    add("--epochs", type=int, default=40, help="of the original recipe in `target`")
    add(
        "--old",
        type=lambda path: Path(path).resolve(),
        metavar="DIR",
        help="clone of an older commit, to take turns with",
    )
    add("--depth", type=int, default=181, help="slices of the scan of `volume`")
    add("--json", metavar="FILE", help="write the table as JSON too")
    add("--loop", nargs=argparse.REMAINDER, help="(this program calls itself with it)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


# --- tools ----------------------------------------------------------------------------------------


def take_turns(repeats: int, **sides) -> dict:
    """{name: median of what side() returns}, the sides taking turns. A side returns a number or a
    dict of numbers."""
    found = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            found[name].append(side())
    return {name: median(values) for name, values in found.items()}


def median(values):
    if isinstance(values[0], dict):
        return {key: statistics.median(value[key] for value in values) for key in values[0]}
    return statistics.median(values)


def seconds(function, times: int = 1) -> float:
    """Seconds a call takes, the mean of some."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - start) / times


def run(*command, cwd=None, **environment) -> str:
    """The output of a Python process."""
    environment = {**os.environ, **environment}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def resident() -> float:
    """Resident memory of this process in MB."""
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes, the peak


def adni_like(root: Path, n: int) -> Path:
    """n slices of 240x256 as {train,test}/{AD,NC}/<scan id>_<slice>.jpeg, 20 a scan.

    Axial slices of the average brain, shifted, mirrored and dimmed differently for each scan.
    """
    from nilearn.datasets import load_mni152_template

    brain = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    brain = np.pad(brain.transpose(2, 1, 0)[:, ::-1], [(0, 0), (4, 3), (30, 29)])
    brain *= 255 / brain.max()
    rng = np.random.default_rng(0)
    for scan in range(-(-n // 20)):
        folder = root / ("test" if scan % 6 == 5 else "train") / ("AD" if scan % 4 < 2 else "NC")
        folder.mkdir(parents=True, exist_ok=True)
        shift, mirrored = rng.integers(-9, 10, 3), rng.random() < 0.5
        scaled = np.roll(brain, shift, (0, 1, 2)) * rng.uniform(0.7, 1)
        for slice_ in range(min(20, n - 20 * scan)):
            pixels = scaled[60 + 4 * slice_].astype(np.uint8)
            pixels = pixels[:, ::-1] if mirrored else pixels
            Image.fromarray(pixels).save(folder / f"{100000 + scan}_{slice_ + 70}.jpeg", quality=90)
    return root


@contextlib.contextmanager
def quiet():
    """Without what is printed inside."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


class Enough(Exception):
    """Ends a training run that was watched for long enough."""


def watched_loop(argv, steps: int, warm: int = 5) -> dict:
    """Run train.main() for some steps, with one validation at their end.

    Returns the seconds of a step between validations, of making its batch, of all that comes with a
    validation (best.pt, last.pt, loss.png), of reading the data, and the resident memory in MB.
    """
    make_batch, begun, making = dataset.training_batch, [], []

    def training_batch(*positional, **options):
        begun.append(time.perf_counter())
        if len(begun) > warm + steps:
            raise Enough
        batch = make_batch(*positional, **options)
        making.append(time.perf_counter() - begun[-1])
        return batch

    reading, load_data = [], train.load_data

    def timed_load_data(args):
        start = time.perf_counter()
        found = load_data(args)
        reading.append(time.perf_counter() - start)
        return found

    iterations = 20 * (warm + steps)  # train.py validates 20 times a run
    with (
        mock.patch.object(dataset, "training_batch", training_batch),
        mock.patch.object(train, "load_data", timed_load_data),
        quiet(),
        contextlib.suppress(Enough),
    ):
        train.main([*argv, "--iterations", str(iterations)])
    step = (begun[-2] - begun[warm]) / (steps - 1)
    return {
        "step": step,
        "making": statistics.median(making[warm:]),
        "check": begun[-1] - begun[-2] - step,
        "reading": reading[0],
        "resident": resident(),
    }


def gflop(network, batch: int, patch: int) -> float:
    """Billion floating-point operations of a training step: backward counts twice forward."""
    return 6 * modules.mmac(network, patch, patch) * batch / 1000


# --- sections: each yields (what, figure, ratio or None, what is wanted) --------------------------


def section_train(args, data: Path, temporary: Path):
    """The training loop against the matrix products of this machine, and against its bare step."""
    a, b = torch.randn(2, 2048, 2048)
    sides = {"products": lambda: 2 * 2048**3 / 1e9 / seconds(lambda: a @ b, 3)}
    deep = modules.build({"name": "deep"})
    plain = modules.build({"name": "espcn", "channels": 64})
    common = ["--data", data, "--cache", temporary / "cache", "--threads", args.threads]
    lr, hr = torch.rand(8, 1, 32, 32), torch.rand(8, 1, 128, 128)

    def bare(network):
        optimisers = optim.optimisers_of(network, "muon", 1e-4)

        def step():
            loss = F.mse_loss(network(lr), hr)
            network.zero_grad()
            loss.backward()
            for optimiser in optimisers:
                optimiser.step()

        seconds(step, 3)
        return lambda: seconds(step, args.steps)

    def loop(flags):
        return lambda: watched_loop(
            [*map(str, common), *flags, "--run", tempfile.mkdtemp(dir=temporary)], args.steps
        )

    loop([])()  # fills the cache
    sides |= {"bare deep": bare(deep), "loop deep": loop([])}
    sides |= {"bare espcn": bare(plain), "loop espcn": loop(ESPCN)}
    found = take_turns(args.repeats, **sides)
    products = found["products"]
    yield "fp32 matrix product, 2048x2048", f"{products:.0f} GFLOP/s", None, ""
    for name, network, wanted in (("espcn", plain, 0.7), ("deep", deep, 0.6)):
        label = "ESPCN-64" if name == "espcn" else "default network"
        work, loop_ = gflop(network, 8, 32), found["loop " + name]
        whole = loop_["step"] + loop_["check"] / CHECK_EVERY
        step = found["bare " + name]
        figure = f"{work / whole:.0f} GFLOP/s, {8 / whole:.0f} patches of 32x32/s"
        ratio = work / whole / products
        yield f"{label}: whole training loop / product", figure, ratio, f">= {wanted}"
        yield f"{label}: whole loop / bare step", f"{1e3 * whole:.1f} ms", step / whole, ">= 0.85"
        share = loop_["making"] / whole
        yield f"{label}: making a batch", f"{1e3 * loop_['making']:.2f} ms", share, "<= 0.05"
        share = loop_["check"] / CHECK_EVERY / whole
        figure = f"{loop_['check']:.2f} s each {CHECK_EVERY}"
        yield f"{label}: validation, saving, drawing", figure, share, ""


def original_recipe(data: Path, degradation: str = "bilinear"):
    """The original training as a generator that yields after each batch; its network is `network`.

    Pictures are decoded again in each epoch, in this process; LR is made batch by batch; default
    memory format; Adam 1e-3, batches of 30 whole slices, MSE.
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode

    example = next(p for p in sorted((data / "train").rglob("*")) if p.is_file())
    w, h = (size // 4 * 4 for size in Image.open(example).size)
    prepare = [transforms.Grayscale(), transforms.Resize((h, w)), transforms.ToTensor()]
    folder = ImageFolder(str(data / "train"), transforms.Compose(prepare))
    loader = torch.utils.data.DataLoader(folder, batch_size=30, shuffle=True)
    mode = InterpolationMode(degradation)
    shrink = transforms.Resize((h // 4, w // 4), interpolation=mode, antialias=True)
    network = modules.ESPCN(64)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)

    def batches(epochs: int):
        for _ in range(epochs):
            for hr, _ in loader:
                loss = F.mse_loss(network(shrink(hr)), hr)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                loss.item()
                yield len(hr)

    return network, batches


def section_original(args, data: Path, temporary: Path):
    """Training on slices less their empty margins against the original's way, same network."""
    _, batches = original_recipe(data)
    forever = batches(10**6)

    def original():
        start, slices = time.perf_counter(), 0
        while slices < 90:
            slices += next(forever)
        return slices / (time.perf_counter() - start)

    def ours(flags, batch, steps):
        argv = ["--data", data, "--cache", temporary / "cache", "--threads", args.threads, *ESPCN]
        argv += ["--run", tempfile.mkdtemp(dir=temporary), *flags.split()]
        found = watched_loop([*map(str, argv), "--batch-size", str(batch)], steps, warm=1)
        return batch / (found["step"] + found["check"] / CHECK_EVERY)

    original()
    sides = {
        "original": original,
        "same": lambda: ours("--patch-size 0", 30, 4),
        "small": lambda: ours("--patch-size 0", 8, 12),
        "patches": lambda: ours("", 8, 40),
    }
    if bf16_works():
        sides["bf16"] = lambda: ours("--patch-size 0 --amp", 8, 12)
    found = take_turns(args.repeats, **sides)
    was = found["original"]
    yield "ESPCN-64 training, the original's way", f"{was:.1f} slices/s", None, ""
    for name, label in (
        ("same", "train.py, slices less empty margins, batches of 30 / original"),
        ("small", "the same, batches of 8 / original"),
        ("bf16", "the same with --amp, where the chip has bf16 / original"),
    ):
        if name not in found:
            continue
        yield label, f"{found[name]:.1f} slices/s", found[name] / was, ">= 2.0"
    figure = f"{found['patches']:.1f} slices/s"
    yield "train.py by default, 8 patches of 32x32 / original", figure, found["patches"] / was, ""


def section_predict(args, data: Path, temporary: Path):
    """The default network against the plain ESPCN with 256 channels; predict.py against both its
    start and its network."""
    checkpoint = default_weights(ROOT)
    deep = modules.load_network(load_checkpoint(checkpoint), checkpoint)
    wide = modules.build({"name": "espcn", "channels": 256}).eval()
    plain = modules.build({"name": "espcn", "channels": 64}).eval()
    lr = torch.rand(8, 1, 60, 64)

    def rate(network, times):
        modules.upscale(network, lr)
        return lambda: 8 / seconds(lambda: modules.upscale(network, lr), times)

    folder = temporary / "slices"
    folder.mkdir()
    slices = sorted(p for p in data.rglob("*") if formats.suffix(p) in formats.PICTURES)
    for i in range(256):
        with Image.open(slices[i % len(slices)]) as image:
            image.convert("L").resize((64, 60), Image.Resampling.BICUBIC).save(
                folder / f"{i:03d}.png"
            )
    common = ["--checkpoint", str(checkpoint), "--threads", str(args.threads)]

    def whole_folder():
        argv = ["--image", str(folder), "--output", tempfile.mkdtemp(dir=temporary), *common]
        with quiet():
            return 256 / seconds(lambda: predict.main(argv))

    def single(*flags):
        argv = [ROOT / "predict.py", "--image", folder / "000.png", "--output", temporary, *common]
        return lambda: seconds(lambda: run(*argv, *flags))

    whole_folder()
    found = take_turns(
        args.repeats,
        deep=rate(deep, 20),
        wide=rate(wide, 3),
        plain=rate(plain, 20),
        folder=whole_folder,
        start=lambda: seconds(lambda: run("-c", "import torch")),
        picture=single("--no-figure"),
        figure=single(),
    )
    for name, label in (("wide", "ESPCN-256"), ("plain", "ESPCN-64")):
        figure = f"{found['deep']:.0f} against {found[name]:.0f} slices/s of 60x64"
        wanted = ">= 6" if name == "wide" else ">= 0.5"
        yield f"default network / {label}", figure, found["deep"] / found[name], wanted
    figure = f"{found['folder']:.0f} slices/s"
    ratio = found["folder"] / found["deep"]
    yield "predict.py on 256 slices / bare network", figure, ratio, ">= 0.85"
    least = found["start"] + 1 / found["deep"]
    figure = f"{found['picture']:.2f} s"
    yield "predict.py, a slice / import torch + network", figure, found["picture"] / least, "<= 1.3"
    figure = f"{found['figure']:.2f} s"
    yield "the same with its figure", figure, found["figure"] / least, "<= 1.3"


def section_memory(args, data: Path, temporary: Path):
    """Resident memory and cost of a slice in training, for 1x, 4x and 16x of the slices."""
    sources = sorted(p for p in data.rglob("*") if formats.suffix(p) in formats.PICTURES)
    reading, sides = {}, {}
    for times in (1, 4, 16):
        root = temporary / f"cohort{times}"
        for copy in range(times):
            for source in sources:
                path = root / source.relative_to(data)
                path = path.with_name(f"{copy}{path.name}")  # other subjects
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    path.symlink_to(source.resolve())
                except OSError:  # Windows, without the right to make links
                    path.write_bytes(source.read_bytes())

        def measure(root=root):
            argv = [Path(__file__), "--steps", args.steps, "--loop", "--threads", args.threads]
            argv += ["--data", root, "--cache", temporary / "cohorts"]
            return json.loads(run(*argv, "--run", tempfile.mkdtemp(dir=temporary)))

        reading[times] = measure()["reading"] / times / len(sources)  # builds the cache
        sides[f"{times}x"] = measure
    found = take_turns(args.repeats, **sides)
    for name in ("4x", "16x"):
        one, more, times = found["1x"], found[name], int(name[:-1])
        about = f"{times * len(sources)} / {len(sources)} slices"
        figure = f"{more['resident']:.0f} MB"
        yield f"resident in training, {about}", figure, more["resident"] / one["resident"], "flat"
        figure = f"{1e3 * more['making']:.2f} ms"
        yield f"making a batch, {about}", figure, more["making"] / one["making"], "flat"
        figure = f"{1e3 * reading[times]:.2f} ms a slice"
        yield f"building the cache, {about}", figure, reading[times] / reading[1], "flat"
        figure = f"{more['reading']:.2f} s"
        yield f"finding the cache, {about}", figure, more["reading"] / one["reading"], ""


def section_processes(args, data: Path, temporary: Path):
    """Two processes of one thread against one, the same batches."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

    def side(processes):
        argv = [*torchrun, processes, "--", Path(__file__), "--steps", args.steps, "--loop"]
        argv += ["--data", data, "--cache", temporary / "cache", "--threads", 1]
        argv += ["--run", tempfile.mkdtemp(dir=temporary)]
        return 8 / json.loads(run(*argv, OMP_NUM_THREADS="1"))["step"]

    side(1)
    found = take_turns(args.repeats, one=lambda: side(1), two=lambda: side(2))
    yield "1 process of 1 thread", f"{found['one']:.1f} patches/s", None, ""
    figure = f"{found['two']:.1f} patches/s"
    yield "2 processes of 1 thread / 1 process", figure, found["two"] / found["one"], ""


def section_target(args, data: Path, temporary: Path):
    """Time until the test PSNR that the original recipe has after its epochs is reached."""
    torch.manual_seed(0)
    network, batches = original_recipe(data, args.degradation)
    start = time.perf_counter()
    for _ in batches(args.epochs):
        pass
    was = time.perf_counter() - start
    scans = [scan for scan in dataset.find_scans(data) if scan.split == "test"]
    slices, _, _ = dataset.load_slices(scans, temporary / "cache")
    scores = evaluate({"original": network.eval()}, slices, args.degradation)
    psnr = {name: row["psnr"]["mean"] for name, row in scores.items()}
    label = f"the original's recipe, ESPCN-64, {args.epochs} epochs"
    yield label, f"{was:.0f} s, {psnr['original']:.2f} dB", None, ""
    yield "bicubic", f"{psnr['bicubic']:.2f} dB", None, ""
    # Whole runs of train.py, from starting Python to the final table, ever longer.
    for iterations in (125 * 2**i for i in range(10)):
        folder = temporary / f"target{iterations}"
        argv = ["--data", data, "--cache", folder / "cache", "--run", folder / "run"]
        argv += ["--iterations", iterations, "--degradation", args.degradation]
        took = seconds(lambda: run(ROOT / "train.py", *argv, "--threads", args.threads))  # noqa: B023
        results = json.loads((folder / "run" / "metrics.json").read_text())["results"]
        found = results["this network"]["psnr"]["mean"]
        label = f"train.py --iterations {iterations}, from start to table; sooner by"
        yield label, f"{took:.0f} s, {found:.2f} dB", was / took, ">= 10 when reached"
        if found >= psnr["original"]:
            break


# Run in either commit: seconds from open file to closed file, CPU seconds, and peak memory in MB.
ONE_SCAN = """
import json, os, resource, sys, time
sys.path.insert(0, os.getcwd())
import predict
begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
predict.main(sys.argv[1:])
took, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
cpu = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"seconds": took, "cpu": cpu, "peak": now.ru_maxrss / 1e3}))
"""


def save_scan(path: Path, shape, kind) -> Path:
    """A scan of this shape: slices of one person in the clone, faded into one another."""
    import nibabel as nib

    slices = sorted((dataset.OWN_DATA / "test").rglob("*.png"), key=formats.natural)[:20]
    stack = np.stack([np.asarray(Image.open(file), np.float32) for file in slices])
    stack = torch.from_numpy(stack[None, None])
    scan = F.interpolate(stack, (shape[2], shape[1], shape[0]), mode="trilinear")[0, 0]
    nib.save(nib.Nifti1Image((4 * scan.numpy().T).astype(kind), np.eye(4)), path)
    return path


def default_weights(tree: Path) -> Path:
    """The weights that a clone enlarges by 4 with."""
    found = (tree / "weights" / name for name in ("x4.pt", "default.pt"))
    return next(path for path in found if path.exists())


def rate_of(network, shape, *, bf16=False, turns=5):
    """A side that measures GFLOP/s of the bare network."""
    lr = torch.rand(shape[0], 1, *shape[1:])
    work = 2 * modules.mmac(network, *shape[1:]) * shape[0] / 1000

    def side():
        return work / seconds(lambda: modules.upscale(network, lr, bf16=bf16), turns)

    side()
    return side


def section_volume(args, data: Path, temporary: Path):
    """A float32 scan of 288x288x181 and an int16 one of 256x256x180, from open to closed file."""
    checkpoint = default_weights(ROOT)
    network = modules.load_network(load_checkpoint(checkpoint), checkpoint)
    for (h, w), kind in (((288, 288), "float32"), ((256, 256), "int16")):
        scan = save_scan(temporary / f"{kind}.nii.gz", (w, h, args.depth), kind)
        work = 2 * modules.mmac(network, h, w) * args.depth / 1000

        def side(tree, *flags, scan=scan):
            argv = ["--image", scan, "--output", tempfile.mkdtemp(dir=temporary), "--no-figure"]
            argv += ["--threads", args.threads, "--checkpoint", default_weights(tree), *flags]
            argv = list(map(str, argv))
            return lambda: json.loads(run("-c", ONE_SCAN, *argv, cwd=tree).splitlines()[-1])

        sides = {"bare": rate_of(network, (8, 60, 64))}
        sides |= {"bare bf16": rate_of(network, (8, 60, 64), bf16=True)}
        sides |= {"fp32": side(ROOT, "--no-bf16"), "default": side(ROOT)}
        sides |= {"old": side(args.old)} if args.old else {}
        found = take_turns(args.repeats, **sides)
        size = f"{kind} {h}x{w}x{args.depth}"
        bf16 = upscaling.bf16_is_safe()
        for name, bare in (("fp32", "bare"), ("default", "bare bf16" if bf16 else "bare")):
            it = found[name]
            figure = f"{it['seconds']:.1f} s, {it['cpu']:.1f} s CPU, {it['peak']:.0f} MB"
            ratio = work / it["seconds"] / found[bare]
            yield f"{size}, {name} / bare network", figure, ratio, ">= 0.8"
            if args.old:
                figure = f"{found['old']['seconds']:.1f} s, {found['old']['cpu']:.1f} s CPU before"
                ratio = found["old"]["seconds"] / it["seconds"]
                yield f"{size}, {name}, times as fast as before", figure, ratio, ">= 2.5"


def section_training(args, data: Path, temporary: Path):
    """Whole training loop of this commit and of an older one, the same network and degradation."""
    if not args.old:
        yield "training against an older commit", "needs --old", None, ""
        return

    def side(tree, *flags):
        argv = [tree / "tests" / "benchmark.py", "--steps", args.steps, "--loop", "--data", data]
        argv += ["--cache", temporary / tree.name, "--degradation", "bicubic", *flags]
        argv += ["--threads", args.threads]
        return lambda: json.loads(run(*argv, "--run", tempfile.mkdtemp(dir=temporary)))["step"]

    for flags in ((), ("--amp",)) if bf16_works() else ((),):
        found = take_turns(args.repeats, old=side(args.old, *flags), new=side(ROOT, *flags))
        figure = f"{8 / found['new']:.0f} against {8 / found['old']:.0f} patches/s"
        name = " ".join(("train.py", *flags, "/ before"))
        yield name, figure, found["old"] / found["new"], ">= 1.5"


def section_bf16(args, data: Path, temporary: Path):
    """Products of bf16 against fp32: speed, and what they change in real slices."""
    checkpoint = default_weights(ROOT)
    network = modules.load_network(load_checkpoint(checkpoint), checkpoint)
    for shape in ((8, 60, 64), (1, 288, 288)):
        sides = {name: rate_of(network, shape, bf16=name == "bf16") for name in ("fp32", "bf16")}
        found = take_turns(args.repeats, **sides)
        figure = f"{found['bf16']:.0f} against {found['fp32']:.0f} GFLOP/s"
        size = "x".join(map(str, shape))
        yield f"bf16 / fp32, {size}", figure, found["bf16"] / found["fp32"], ">= 1.6"
    gains, levels = [], []
    for file in sorted((dataset.OWN_DATA / "test").rglob("*.png"))[::4]:
        hr = torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255)[None, None]
        lr = degrade(hr, "bicubic", (4, 4))
        exact, near = (modules.upscale(network, lr, bf16=b).clamp(0, 1) for b in (False, True))
        gains.append(float(10 * torch.log10(F.mse_loss(exact, hr) / F.mse_loss(near, hr))))
        levels.append(float(((exact - near).abs() * 255 < 1).float().mean()))
    yield "bf16: change of PSNR, 40 test slices", f"{np.mean(gains):+.4f} dB", None, "< 0.02"
    share = 100 * np.mean(levels)
    yield "bf16: pixels less than a grey level off", f"{share:.3f} %", None, ">= 99.9"


def section_runtimes(args, data: Path, temporary: Path):
    """The exported network where PyTorch is not: ONNX Runtime, OpenVINO where it is installed."""
    import onnxruntime

    checkpoint = default_weights(ROOT)
    network = modules.load_network(load_checkpoint(checkpoint), checkpoint)
    file, lr = temporary / "x4.onnx", np.random.rand(8, 1, 60, 64).astype(np.float32)
    file.write_bytes(export.onnx_bytes(network, {}))
    threads, work = torch.get_num_threads(), 2 * modules.mmac(network) * 8 / 1000
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options)
    sides = {"PyTorch": rate_of(network, (8, 60, 64))}
    sides["ONNX Runtime"] = lambda: work / seconds(lambda: session.run(None, {"lr": lr}), 5)
    with contextlib.suppress(ImportError):
        import openvino

        wanted = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(file), "CPU", wanted)
        sides["OpenVINO"] = lambda: work / seconds(lambda: compiled([lr]), 5)
    found = take_turns(args.repeats, **sides)
    for name, rate in found.items():
        yield f"{name} / PyTorch, fp32, 8x60x64", f"{rate:.0f} GFLOP/s", rate / found["PyTorch"], ""


SECTIONS = {
    "train": section_train,
    "original": section_original,
    "predict": section_predict,
    "volume": section_volume,
    "training": section_training,
    "bf16": section_bf16,
    "runtimes": section_runtimes,
    "memory": section_memory,
    "processes": section_processes,
    "target": section_target,
}


def machine(args) -> str:
    """What was measured on, in three lines."""
    import torchvision

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    busy = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{busy}\n"
        f"{platform.platform()}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, numpy {np.__version__}; commit {runs.commit() or '?'}; "
        f"medians of {args.repeats}"
    )


def main():
    args = arguments()
    if args.loop:  # this program, called by itself: one watched loop, its figures on stdout
        found = watched_loop(args.loop, args.steps)
        if processes.rank() == 0:
            print(json.dumps(found), flush=True)
        os._exit(0)  # the run was cut off: its process group has no tidy end
    print(machine(args))
    line = "{:62s}  {:38s}  {:>6s}  {}"
    print("\n" + line.format("what", "figure", "ratio", "wanted"))
    table = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        temporary = Path(temporary)
        data = Path(args.data) if args.data else adni_like(temporary / "adni", args.slices)
        for name in args.sections:
            print(f"--- {name}: {' '.join(SECTIONS[name].__doc__.split())}", flush=True)
            for what, figure, ratio, wanted in SECTIONS[name](args, data, temporary):
                shown = "" if ratio is None else f"{ratio:.2f}"
                print(line.format(what, figure, shown, wanted).rstrip(), flush=True)
                table.append(dict(section=name, what=what, figure=figure, ratio=ratio))
    if args.json:
        about = {"machine": machine(args).splitlines(), "table": table}
        Path(args.json).write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

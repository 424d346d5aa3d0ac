"""Speed as ratios, in one table: run by hand, on a machine that does nothing else.

python benchmarks/benchmark.py                                        all sections: some minutes
python benchmarks/benchmark.py --sections volume training --old DIR   against another commit's clone
python benchmarks/benchmark.py --clock cpu --threads 1                where others are at work too

What is compared takes turns, and each figure is the median of its turns: neighbours on the same
machine slow both sides down. Slices are those of data/ds002748.
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
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataset
import export
import modules
from degradation import degrade
from inference import tiling
from inference.checkpoints import load_checkpoint
from scans import volumes
from training import optimiser, run_folder

SMALL = (8, 60, 64)  # slices that the bare network is measured with


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    add("--repeats", type=int, default=3, help="turns of each side")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--old", type=lambda path: Path(path).resolve(), metavar="DIR",
        help="clone of an older commit, to take turns with")  # fmt: skip
    add("--clock", choices=("wall", "cpu"), default="wall", help="seconds that are compared")
    add("--depth", type=int, default=24, help="slices of the scans of `volume`")
    add("--slices", type=int, default=256, help="pictures of `folder`")
    add("--steps", type=int, default=30, help="training steps a turn")
    add("--json", metavar="FILE", help="write the table as JSON too")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for others count as work")
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


def seconds(args, function, times: int = 1) -> float:
    """Seconds a call takes in this process, the mean of some, by the clock that was asked for."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    start = clock()
    for _ in range(times):
        function()
    return (clock() - start) / times


def run(*command, cwd=ROOT, **environment) -> tuple[str, float, float]:
    """The output of a Python process, its seconds by the wall and of all its threads."""
    command = [sys.executable, *map(str, command)]
    begun, before = time.perf_counter(), os.times()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=cwd
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    wall, now = time.perf_counter() - begun, os.times()
    cpu = now.children_user + now.children_system - before.children_user - before.children_system
    return done.stdout, wall, cpu


def process(args, *command, **options) -> float:
    """Seconds of a Python process, by the clock that was asked for."""
    _, wall, cpu = run(*command, **options)
    return cpu if args.clock == "cpu" else wall


# Run in either commit: what comes after the imports, from open file to closed file.
PREDICTION = """
import json, os, resource, sys, time
sys.path.insert(0, os.getcwd())
begun, before = time.perf_counter(), time.process_time()
if sys.argv[1:]:
    import predict
    begun, before = time.perf_counter(), time.process_time()
    predict.main(sys.argv[1:])
else:
    import torch
wall, cpu = time.perf_counter() - begun, time.process_time() - before
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if os.path.exists("/proc/self/status"):  # ru_maxrss begins with what the benchmark had taken
    peak, = [int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line]
print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak / 1e3}))
"""

# Run in either commit: a training that is cut off after so many steps; seconds of one step.
TRAINING = """
import json, os, sys, time
sys.path.insert(0, os.getcwd())
import train
try:
    from training import batches
except ImportError:  # before there was such a room
    import dataset as batches
make, begun, steps = batches.training_batch, [], int(sys.argv[1])

def training_batch(*positional, **options):
    begun.append((time.perf_counter(), time.process_time()))
    if len(begun) == steps + 4:
        wall, cpu = ((b - a) / steps for a, b in zip(begun[3], begun[-1]))
        if os.environ.get("RANK", "0") == "0":
            sys.__stdout__.write(json.dumps({"wall": wall, "cpu": cpu}) + chr(10))
            sys.__stdout__.flush()
        os._exit(0)  # the run is cut off: it has no tidy end
    return make(*positional, **options)

batches.training_batch = training_batch
train.main([*sys.argv[2:], "--iterations", "12000"])
"""


def prediction(args, tree: Path, source: Path, temporary: Path, *flags):
    """A side that measures predict.py of a clone: wall, cpu, and peak memory in MB."""
    argv = ["--image", source, "--no-figure", "--threads", args.threads]
    argv += ["--checkpoint", default_weights(tree), *flags]

    def side():
        output = tempfile.mkdtemp(dir=temporary)
        return last_line(run("-c", PREDICTION, *argv, "--output", output, cwd=tree)[0])

    return side


def training(args, tree: Path, temporary: Path, *flags, prefix=("-c", TRAINING), **environment):
    """A side that measures the seconds of a step of train.py of a clone."""
    argv = [args.steps, "--data", dataset.OWN_DATA, "--cache", temporary / f"cache {tree.name}"]
    argv += ["--threads", args.threads, *flags]

    def side():
        folder = tempfile.mkdtemp(dir=temporary)
        return last_line(run(*prefix, *argv, "--run", folder, cwd=tree, **environment)[0])

    return side


def last_line(output: str) -> dict:
    """The figures that a process ends with."""
    return json.loads(output.strip().splitlines()[-1])


def default_weights(tree: Path) -> Path:
    """The weights that a clone enlarges by 4 with."""
    found = (tree / "weights" / name for name in ("x4.pt", "default.pt"))
    return next(path for path in found if path.exists())


def default_network():
    return modules.load_network(load_checkpoint(default_weights(ROOT)))


def gflop(network, count: int, height: int, width: int) -> float:
    """Billion floating-point operations for slices of a scan whose description is known."""
    lr = torch.zeros(1, 1, height, width)
    known = network.describe(lr) if network.told else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(lr, known)
    return count * counter.get_total_flops() / 1e9


def rate_of(args, network, shape=SMALL, *, bf16=False, times=4):
    """A side that measures GFLOP/s of the bare network."""
    lr = torch.rand(shape[0], 1, *shape[1:])
    known = network.describe(lr).mean(0, keepdim=True).detach() if network.told else None
    work = gflop(network, *shape)

    def side():
        return work / seconds(args, lambda: tiling.upscale(network, lr, known, bf16=bf16), times)

    side()
    return side


def own_slices(count: int) -> list[np.ndarray]:
    """Slices of test subjects, one person after another."""
    files = sorted((dataset.OWN_DATA / "test").rglob("*.png"), key=volumes.natural)
    return [np.asarray(Image.open(files[i % len(files)]).convert("L")) for i in range(count)]


def save_scan(path: Path, shape, kind) -> Path:
    """A scan of this shape: slices of one person, faded into one another."""
    import nibabel as nib

    stack = torch.from_numpy(np.stack(own_slices(20)).astype(np.float32))[None, None]
    scan = F.interpolate(stack, (shape[2], shape[1], shape[0]), mode="trilinear")[0, 0]
    nib.save(nib.Nifti1Image((4 * scan.numpy().T).astype(kind), np.eye(4)), path)
    return path


# --- sections: each yields (what, figure, ratio or None, what is wanted) --------------------------


def section_volume(args, temporary: Path):
    """A float32 scan of 288x288 and an int16 one of 256x256, from open to closed file."""
    network, bf16 = default_network(), tiling.bf16_is_safe()
    torch_alone = last_line(run("-c", PREDICTION)[0])["peak"]
    for (h, w), kind in (((288, 288), "float32"), ((256, 256), "int16")):
        scan = save_scan(temporary / f"{kind}.nii.gz", (w, h, args.depth), kind)
        sides = {"bare": rate_of(args, network)}
        sides["fp32"] = prediction(args, ROOT, scan, temporary, "--no-bf16")
        if bf16:
            sides["bare bf16"] = rate_of(args, network, bf16=True)
            sides["bf16"] = prediction(args, ROOT, scan, temporary, "--bf16")
        if args.old:
            sides["old"] = prediction(args, args.old, scan, temporary)
        found = take_turns(args.repeats, **sides)
        size, work = f"{kind} {h}x{w}x{args.depth}", gflop(network, args.depth, h, w)
        result = args.depth * 16 * h * w * np.dtype(kind).itemsize / 1e6
        for name, bare in (("fp32", "bare"), ("bf16", "bare bf16")):
            if name not in found:
                continue
            it = found[name]
            figure = f"{it['wall']:.1f} s, {it['cpu']:.1f} s CPU"
            ratio = work / it[args.clock] / found[bare]
            yield f"{size}, {name} / bare network", figure, ratio, ">= 0.8"
            if args.old:
                was = found["old"]
                figure = f"{was['wall']:.1f} s, {was['cpu']:.1f} s CPU before"
                ratio = was[args.clock] / it[args.clock]
                yield f"{size}, {name}, times as fast as before", figure, ratio, ">= 2.5"
        over = (found["fp32"]["peak"] - result) / 1e3
        figure = f"{over:.2f} GB over the result, {torch_alone / 1e3:.2f} of it torch"
        yield f"{size}, peak memory", figure, None, "<= 0.6 over"


def section_folder(args, temporary: Path):
    """A folder of slices of 64x60, with the defaults, against the bare network."""
    folder = temporary / "slices"
    folder.mkdir()
    for i, pixels in enumerate(own_slices(args.slices)):
        small = Image.fromarray(pixels).resize((64, 60), Image.Resampling.BICUBIC)
        small.save(folder / f"{i:03d}.png")
    network, bf16 = default_network(), tiling.bf16_is_safe()
    sides = {"bare": rate_of(args, network, bf16=bf16)}
    sides |= {"new": prediction(args, ROOT, folder, temporary)}
    sides |= {"fp32": prediction(args, ROOT, folder, temporary, "--no-bf16")} if bf16 else {}
    sides |= {"old": prediction(args, args.old, folder, temporary)} if args.old else {}
    found = take_turns(args.repeats, **sides)
    rate = {k: args.slices / v[args.clock] for k, v in found.items() if k != "bare"}
    ratio = rate["new"] * gflop(network, 1, 60, 64) / found["bare"]
    figure = f"{rate['new']:.0f} slices/s"
    yield f"predict.py on {args.slices} slices / bare network", figure, ratio, ">= 0.85"
    for name, words in (("fp32", "--no-bf16"), ("old", "before")):
        if name in rate:
            figure = f"{rate[name]:.0f} slices/s {words}"
            yield f"the same / {words}", figure, rate["new"] / rate[name], ""


def section_single(args, temporary: Path):
    """One slice of 64x60, with the start of Python, against `import torch` and the network."""
    picture = temporary / "slice.png"
    Image.fromarray(own_slices(11)[10]).resize((64, 60), Image.Resampling.BICUBIC).save(picture)
    network = default_network()
    argv = ["--image", picture, "--output", temporary, "--threads", args.threads]
    sides = {"start": lambda: process(args, "-c", "import torch"), "bare": rate_of(args, network)}
    sides["plain"] = lambda: process(args, "predict.py", *argv, "--no-figure")
    sides["figure"] = lambda: process(args, "predict.py", *argv)
    if args.old:
        sides["old"] = lambda: process(args, "predict.py", *argv, cwd=args.old)
    found = take_turns(args.repeats, **sides)
    least = found["start"] + gflop(network, 1, 60, 64) / found["bare"]
    yield "import torch + network", f"{least:.2f} s", None, ""
    for name, label in (("plain", "predict.py"), ("figure", "the same with its figure")):
        figure = f"{found[name]:.2f} s"
        yield f"{label}, a slice / import torch + network", figure, found[name] / least, "<= 1.3"
    if args.old:
        figure = f"{found['old']:.2f} s before"
        ratio = found["old"] / found["figure"]
        yield "with its figure, times as fast as before", figure, ratio, ""


def section_training(args, temporary: Path):
    """The loop of train.py against its bare step and matrix products, and an older commit's."""
    network = modules.build({"name": "deep"})
    optimisers = optimiser.optimisers_of(network, "muon", 1e-4)
    lr, hr, (a, b) = (
        torch.rand(8, 1, 32, 32),
        torch.rand(8, 1, 128, 128),
        torch.randn(2, 2048, 2048),
    )

    def step():
        network.zero_grad()
        F.mse_loss(network(lr), hr).backward()
        for one in optimisers:
            one.step()

    seconds(args, step, 3)
    sides = {"bare": lambda: seconds(args, step, args.steps)}
    sides["product"] = lambda: 2 * 2048**3 / 1e9 / seconds(args, lambda: a @ b, 3)
    kinds = {"": ("--degradation", "bicubic"), " --degradation wide": ("--degradation", "wide")}
    if tiling.bf16_is_safe():
        kinds |= {k + " --amp": (*v, "--amp") for k, v in kinds.items()}
    sides |= {f"new{k}": training(args, ROOT, temporary, *v) for k, v in kinds.items()}
    known = {k: v for k, v in kinds.items() if args.old and "wide" not in k}
    sides |= {f"old{k}": training(args, args.old, temporary, *v) for k, v in known.items()}
    found = take_turns(args.repeats, **sides)
    took = {k: v[args.clock] if isinstance(v, dict) else v for k, v in found.items()}
    work = 3 * gflop(network, *lr.shape[::2], 32)  # backward counts twice forward
    figure = f"{work / took['new']:.0f} of {took['product']:.0f} GFLOP/s"
    yield "train.py / matrix product", figure, work / took["new"] / took["product"], ">= 0.6"
    figure = f"{1e3 * took['new']:.1f} ms a step"
    yield "train.py / bare step", figure, took["bare"] / took["new"], ">= 0.85"
    for kind in kinds:
        ratio = took[f"old{kind}"] / took[f"new{kind}"] if kind in known else None
        figure = f"{8 / took[f'new{kind}']:.0f} patches/s"
        figure += f", {8 / took[f'old{kind}']:.0f} before" if kind in known else ""
        yield (
            f"train.py{kind}" + " / before" * (kind in known),
            figure,
            ratio,
            (">= 1.5" if kind in known else ""),
        )


def section_bf16(args, temporary: Path):
    """Products of bf16 against fp32: speed, and what they change in real slices."""
    network = default_network()
    if not tiling.bf16_is_safe():
        yield "bf16", "not on this chip", None, ""
        return
    for shape in (SMALL, (1, 288, 288)):
        sides = {str(b): rate_of(args, network, shape, bf16=b) for b in (False, True)}
        found = take_turns(args.repeats, **sides)
        figure = f"{found['True']:.0f} against {found['False']:.0f} GFLOP/s"
        ratio = found["True"] / found["False"]
        yield f"bf16 / fp32, {'x'.join(map(str, shape))}", figure, ratio, ">= 1.6"
    gains, levels = [], []
    for pixels in own_slices(160)[::4]:
        hr = torch.from_numpy(pixels.astype(np.float32) / 255)[None, None]
        lr = degrade(hr, "bicubic", (4, 4))
        exact, near = (tiling.upscale(network, lr, bf16=b).clamp(0, 1) for b in (False, True))
        gains.append(float(10 * torch.log10(F.mse_loss(exact, hr) / F.mse_loss(near, hr))))
        levels.append(float(((exact - near).abs() * 255 < 1).float().mean()))
    yield "bf16: change of PSNR, 40 test slices", f"{np.mean(gains):+.4f} dB", None, "< 0.02"
    share = 100 * np.mean(levels)
    yield "bf16: pixels less than a grey level off", f"{share:.3f} %", None, ">= 99.9"


def section_runtimes(args, temporary: Path):
    """The exported network where PyTorch is not: ONNX Runtime, OpenVINO where it is installed."""
    import onnxruntime

    network, file = default_network(), temporary / "x4.onnx"
    file.write_bytes(export.onnx_bytes(network, {}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it counts as work
    session = onnxruntime.InferenceSession(str(file), options)
    compiled = None
    with contextlib.suppress(ImportError):
        import openvino

        wanted = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(file), "CPU", wanted)
    for shape in (SMALL, (1, 256, 256)):
        lr = torch.rand(shape[0], 1, *shape[1:])
        calls = {"PyTorch": partial(tiling.upscale, network, lr)}
        calls["ONNX Runtime"] = partial(session.run, None, {"lr": lr.numpy()})
        calls |= {"OpenVINO": partial(compiled, [lr.numpy()])} if compiled else {}
        sides = {name: partial(seconds, args, call, 4) for name, call in calls.items()}
        for call in calls.values():
            call()
        found = take_turns(args.repeats, **sides)
        for name, took in list(found.items())[1:]:
            figure = f"{1e3 * took:.0f} against {1e3 * found['PyTorch']:.0f} ms"
            what = f"{name} / PyTorch, fp32, {'x'.join(map(str, shape))}"
            yield what, figure, found["PyTorch"] / took, ""


def section_processes(args, temporary: Path):
    """Training in two processes of one thread against one, the same batches."""
    script = temporary / "training.py"
    script.write_text(TRAINING)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

    def side(count):
        prefix = (*launch, count, "--", script)
        return training(args, ROOT, temporary, "--threads", 1, prefix=prefix, OMP_NUM_THREADS="1")

    found = take_turns(args.repeats, one=side(1), two=side(2))
    one, two = (8 / found[name]["wall"] for name in ("one", "two"))
    yield "2 processes of 1 thread / 1 process", f"{two:.0f} of {one:.0f} patches/s", two / one, ""


def section_gpu(args, temporary: Path):
    """The bare network on a GPU, slices of 288x288, against this CPU."""
    if not torch.cuda.is_available():
        yield "GPU", "there is none", None, ""
        return
    network, lr = default_network(), torch.rand(8, 1, 288, 288)
    there, images = default_network().cuda(), lr.cuda()

    def on_gpu(bf16):
        def call():
            tiling.upscale(there, images, bf16=bf16)
            torch.cuda.synchronize()

        call()
        return lambda: seconds(args, call, 8) / 8

    sides = {"cpu": lambda: seconds(args, lambda: tiling.upscale(network, lr)) / 8}
    found = take_turns(args.repeats, **sides, fp32=on_gpu(False), bf16=on_gpu(True))
    for name in ("fp32", "bf16"):
        figure = f"{1 / found[name]:.0f} against {1 / found['cpu']:.1f} slices/s"
        what = f"{torch.cuda.get_device_name()}, {name} / CPU, fp32"
        yield what, figure, found["cpu"] / found[name], ""


SECTIONS = {
    "volume": section_volume,
    "folder": section_folder,
    "single": section_single,
    "training": section_training,
    "bf16": section_bf16,
    "runtimes": section_runtimes,
    "processes": section_processes,
    "gpu": section_gpu,
}


def machine(args) -> str:
    """What was measured on, in three lines."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    busy = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {args.threads} threads{busy}\n{platform.platform()}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}; "
        f"commit {run_folder.commit() or '?'}; medians of {args.repeats}, {args.clock} time"
    )


def main():
    args = arguments()
    tiling.keep_memory()
    tiling.bf16_is_safe()  # asked before there was any product
    print(machine(args))
    line = "{:58s}  {:38s}  {:>6s}  {}"
    print("\n" + line.format("what", "figure", "ratio", "wanted"))
    table = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for name in args.sections:
            begun, about = time.perf_counter(), " ".join(SECTIONS[name].__doc__.split())
            print(f"--- {name}: {about}", flush=True)
            folder = Path(temporary) / name
            folder.mkdir()
            for what, figure, ratio, wanted in SECTIONS[name](args, folder):
                shown = "" if ratio is None else f"{ratio:.2f}"
                print(line.format(what, figure, shown, wanted).rstrip(), flush=True)
                table.append(dict(section=name, what=what, figure=figure, ratio=ratio))
            print(f"({time.perf_counter() - begun:.0f} s)", flush=True)
    if args.json:
        about = {"machine": machine(args).splitlines(), "table": table}
        Path(args.json).write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

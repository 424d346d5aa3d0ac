"""Upscale a brain MRI slice, or every slice of a folder, by 4.

python predict.py --image slice.png
python predict.py --image scans --output results
"""

import argparse
import os
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import dataset
import modules
from utils import (
    DataError,
    UsageError,
    atomic_write,
    comparison_figure,
    load_checkpoint,
    metrics_table,
    pick_device,
    run_main,
    say,
    score,
    summarise,
)

DEFAULT = Path(__file__).resolve().parent / "weights" / "default.pt"
BATCH_PIXELS = 2**20  # LR pixels a batch at the most, whatever --batch-size says
OURS = ("_x4", "_x4_figure")  # how the names of this program's results end
drawing = Lock()  # matplotlib's fonts are shared between threads


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument_group("what and where").add_argument
    add("--image", required=True, metavar="PATH", help="a picture, or a folder of them")
    add("--output", metavar="DIR", help="folder for the results  (default: beside the input)")
    add("--checkpoint", default=DEFAULT, metavar="FILE", help="weights to use")
    add("--overwrite", action="store_true", help="in a folder: redo what is finished")
    add("--figure", action=argparse.BooleanOptionalAction,
        help="side-by-side figure  (default: for a single input)")  # fmt: skip
    add = parser.add_argument_group("simulation").add_argument
    add("--simulate", action="store_true",
        help="take the input as truth: shrink it by 4, upscale that, score the result")  # fmt: skip
    add("--degradation", choices=dataset.DEGRADATIONS,
        help="how --simulate shrinks  (default: as in training; bicubic for mixed)")  # fmt: skip
    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=positive, help="CPU threads of the network  (default: PyTorch's choice)")
    add("--workers", type=positive, default=2, help="threads that read and write")
    add("--batch-size", type=positive, default=8, help="slices at a time")
    add("--tile", type=positive, default=modules.TILE,
        help="longer edges are cut into tiles of this many pixels")  # fmt: skip
    add("--shard", type=shard, metavar="I/N",
        help="be worker I of N: do every N-th input  (default: as torchrun says)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.degradation and not args.simulate:
        parser.error("--degradation says how --simulate shrinks; without it nothing is shrunk")
    return args


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def shard(text: str) -> tuple[int, int]:
    """An argparse type: `2/8`, counted from 0 or from 1, as (index from 0, number)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) <= int(n) and int(n) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return int(i) % int(n), int(n)


@dataclass(frozen=True)
class Job:
    """One input and where its results go: `target` is their path without the ending."""

    source: Path
    target: Path

    def finished(self) -> bool:
        """Whether the result is there. It is written last, and appears only when it is whole."""
        return any(self.file(end).exists() for end in (".png", ".tif"))

    def file(self, ending: str) -> Path:
        return self.target.with_name(self.target.name + ending)


def find_jobs(args) -> tuple[list[Job], Path]:
    """What there is to do, and the folder for the results. Raises DataError or UsageError."""
    image = Path(args.image)
    output = Path(args.output) if args.output else image if image.is_dir() else image.parent
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    if not output.exists() and dataset.suffix(output) in dataset.PICTURES + dataset.VOLUMES:
        raise UsageError(f"--output {output}: looks like a file name; name a folder")
    if not image.exists():
        raise DataError(f"{image}: no such file or folder")
    if not image.is_dir():
        paths, root = [image], image.parent
    else:
        paths, root = [scan.path for scan in dataset.find_scans(image)], image
        own = [path for path in paths if dataset.stem(path).endswith(OURS)]
        if own:
            print(f"{len(own)} results of earlier runs are not taken as inputs")
            paths = [path for path in paths if path not in set(own)]
    jobs, stems, names = [], {}, {}
    for path in paths:
        folder = path.parent
        if folder not in stems:  # two inputs of one stem keep their endings: no result is lost
            there = [n.casefold() for n in os.listdir(folder) if dataset.suffix(n) in ENDINGS]
            stems[folder], names[folder] = Counter(map(dataset.stem, there)), set(there)
        name = dataset.stem(path)
        if stems[folder][name.casefold()] > 1 or name.casefold() in names[folder]:
            name = path.name
        name += "_simulated_x4" if args.simulate else "_x4"
        jobs.append(Job(path, output / folder.relative_to(root) / name))
    return jobs, output


ENDINGS = dataset.PICTURES + dataset.VOLUMES


def make_folder(job: Job, output: Path) -> None:
    """Make the folder of a result. Raises DataError if a link leads out of the output folder."""
    folder = job.target.parent
    inside = os.path.realpath(output)
    if os.path.commonpath([inside, os.path.realpath(folder)]) != inside:
        raise DataError(f"{folder}: is a link out of the output folder; name another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from None


def shown(path) -> str:
    """A path in one printable line."""
    return str(path).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()


# --- pictures -------------------------------------------------------------------------------------


def read(job: Job, simulate: bool) -> dataset.Picture:
    """Read a picture; for a simulation, cut it to multiples of 4."""
    picture = dataset.read_picture(job.source)
    if simulate:
        picture.pixels = dataset.crop_to_scale(picture.pixels)
        if not picture.pixels.size:
            raise DataError(f"{job.source}: is too small to be shrunk by {dataset.SCALE}")
    return picture


def in_batches(jobs, read, pool, depth: int, size: int, failed):
    """Lists of (job, picture) with pictures of one size, read at most `depth` ahead by the pool.

    failed(error) is called with the DataError of a picture that cannot be read.
    """
    batch, waiting, jobs = [], deque(), iter(jobs)
    while True:
        while len(waiting) < depth and (job := next(jobs, None)):
            waiting.append((job, pool.submit(read, job)))
        if not waiting:
            break
        job, future = waiting.popleft()
        try:
            picture = future.result()
        except DataError as error:
            failed(error)
            continue
        h, w = picture.pixels.shape
        room = min(size, max(1, BATCH_PIXELS // (h * w)))
        if batch and (batch[0][1].pixels.shape != (h, w) or len(batch) >= room):
            yield batch
            batch = []
        batch.append((job, picture))
    if batch:
        yield batch


def write_picture(job: Job, picture: dataset.Picture, sr: np.ndarray) -> Path:
    """Write SR pixels (4 H, 4 W) with the input's bit depth and in its units."""
    values = sr * np.float32(picture.high - picture.low) + np.float32(picture.low)
    if picture.dtype == "float32":
        values = values.clip(0 if picture.low >= 0 else None)
        path, options = job.file(".tif"), {"format": "TIFF"}
    else:
        limit = np.iinfo(picture.dtype).max
        values = np.rint(values).clip(0, limit).astype(picture.dtype)
        path, options = job.file(".png"), {"format": "PNG", "compress_level": 3}
    with atomic_write(path) as file:
        Image.fromarray(values).save(file, **options)
    return path


def draw_picture(job: Job, lr, bicubic, sr, hr=None, scores=None) -> Path:
    """Draw input, bicubic and prediction; of a simulation also the truth, scores and errors."""

    def size(image):
        return f"{image.shape[0]} x {image.shape[1]}"

    path = job.file("_figure.png")
    with drawing:
        if hr is None:
            panels = [(f"input, {size(lr)}", lr), (f"bicubic, {size(bicubic)}", bicubic)]
            panels.append((f"prediction, {size(sr)}", sr))
            comparison_figure(path, panels)
        else:
            bicubic, sr = bicubic.clip(0, 1), sr.clip(0, 1)
            words = [
                f"PSNR {s['psnr']:.2f} dB, SSIM {s['ssim']:.4f}\nMSE {s['mse']:.5f}" for s in scores
            ]
            panels = [(f"original, {size(hr)}\n\n", hr), (f"low resolution, {size(lr)}\n\n", lr)]
            panels += [(f"bicubic\n{words[0]}", bicubic), (f"prediction\n{words[1]}", sr)]
            comparison_figure(path, panels, [None, None, abs(bicubic - hr), abs(sr - hr)])
    return path


def finish(job: Job, picture, output, figure, lr, bicubic, sr, hr=None) -> tuple[list, list]:
    """Write the results of one picture: (paths, scores of bicubic and prediction)."""
    make_folder(job, output)
    scores = [score(x, hr) for x in (bicubic, sr)] if hr is not None else []
    paths = []
    images = [x if x is None else x.cpu().numpy() for x in (lr, bicubic, sr, hr)]
    if figure:
        paths = [draw_picture(job, *images, scores)]
    return [write_picture(job, picture, images[2]), *paths], scores


def predict_pictures(jobs, output, args, network, device, name, figure, done, failed) -> None:
    """Upscale pictures: reading and writing overlap with the network, in bounded memory.

    done(job, paths, scores) and failed(error) are called for every picture.
    """
    interpolate = modules.Interpolation("bicubic").to(device)
    depth = 2 * args.batch_size
    writing = deque()

    def collect(most: int):
        while len(writing) > most:
            job, future = writing.popleft()
            try:
                done(job, *future.result())
            except DataError as error:
                failed(error)

    with ThreadPoolExecutor(args.workers) as readers, ThreadPoolExecutor(args.workers) as writers:
        for batch in in_batches(
            jobs, lambda job: read(job, args.simulate), readers, depth, args.batch_size, failed
        ):
            lr = torch.from_numpy(np.stack([picture.pixels for _, picture in batch]))[:, None]
            lr = lr.to(device)
            hr = None
            if args.simulate:
                lr, hr = dataset.degrade(lr, name), lr
            sr = modules.upscale(network, lr, args.tile).cpu()
            compare = args.simulate or figure
            bicubic = modules.upscale(interpolate, lr, args.tile) if compare else None
            for i, (job, picture) in enumerate(batch):
                images = [x[i, 0].cpu() if x is not None else None for x in (lr, bicubic, sr, hr)]
                future = writers.submit(finish, job, picture, output, figure, *images)
                writing.append((job, future))
            collect(depth)
        collect(0)


# --- all ------------------------------------------------------------------------------------------


def main(argv=None):
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    jobs, output = find_jobs(args)
    device = pick_device(args.device)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    checkpoint = load_checkpoint(args.checkpoint)
    network = modules.load_network(checkpoint, args.checkpoint).to(device)
    about = f"trained on {checkpoint.get('trained_on', '?')}, LR by {checkpoint['degradation']}"
    print(f"weights: {shown(args.checkpoint)} ({about})", flush=True)
    name = args.degradation or checkpoint["degradation"]
    if name not in dataset.DEGRADATIONS:
        name = "bicubic"

    # A folder: my share of the inputs, without what is finished.
    folder = Path(args.image).is_dir()
    figure = args.figure if args.figure is not None else not folder
    counts, scores = Counter(), []
    if folder:
        share, of = args.shard or (
            int(os.environ.get("RANK", 0)),
            int(os.environ.get("WORLD_SIZE", 1)),
        )
        jobs = jobs[share::of]
        todo = jobs if args.overwrite else [job for job in jobs if not job.finished()]
        counts["finished before (--overwrite does them again)"] = len(jobs) - len(todo)
        jobs = todo
    bar = tqdm(total=len(jobs), unit="picture", disable=not folder or not jobs)

    def done(job, paths, found):
        bar.update()
        counts["upscaled"] += 1
        scores.extend(found)
        if not folder:
            print("\n".join(f"written: {shown(path)}" for path in paths))

    def failed(error):
        if not folder:
            raise error
        bar.update()
        counts["failed"] += 1
        with tqdm.external_write_mode(file=sys.stderr):
            say(f"skipped: {error}")

    with bar:
        predict_pictures(jobs, output, args, network, device, name, figure, done, failed)
    if folder:
        words = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to do"
        print(f"{words}; results in {shown(output)}")
    if scores:
        n = range(len(scores) // 2)
        print(f"LR by {name}, 8 bits; mean ± sd over {len(n)} picture(s):")
        rows = {"bicubic": scores[::2], "prediction": scores[1::2]}
        print(metrics_table({k: summarise(v, n) for k, v in rows.items()}))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    run_main(main)

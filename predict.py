"""Upscale a brain MRI slice, a whole scan or a folder of them by 4.

python predict.py --image slice.png
python predict.py --image scan.nii.gz
python predict.py --image scans --output results
"""

import argparse
import csv
import gzip
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import dataset
import formats
import modules
from checkpoints import load_checkpoint
from degradation import DEGRADATIONS, crop_to_scale, degrade, make_consistent
from dicom import read_scan
from figures import busiest_window, comparison_figure, grid_figure
from metrics import METRICS, metrics_table, psnr_of, score, summarise
from utils import (
    DataError,
    Parser,
    UsageError,
    atomic_write,
    int_between,
    one_line,
    pick_device,
    run_main,
    warn,
)

DEFAULT = Path(__file__).resolve().parent / "weights" / "default.pt"
SCALE = modules.SCALE
BATCH_PIXELS = 2**18  # LR pixels a batch at the most, whatever --batch-size says
OURS = ("_x4", "_x4_figure")  # how the names of this program's results end
ENDINGS = formats.PICTURES + formats.VOLUMES + formats.DICOM
# What holds a value that an integer type does not.
WIDER = {"uint8": "int16", "int8": "int16", "uint16": "int32", "int16": "int32"}
drawing = Lock()  # matplotlib's fonts are shared between threads


def arguments(argv=None):
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument_group("what and where").add_argument
    add("--image", required=True, metavar="PATH",
        help="picture, scan (nii, mgz, img, dcm), DICOM folder, or a folder of these")  # fmt: skip
    add("--output", metavar="DIR", help="folder for the results  (default: beside the input)")
    add("--checkpoint", default=DEFAULT, metavar="FILE", help="weights to use")
    add("--overwrite", action="store_true", help="in a folder: redo what is finished")
    add("--figure", action=argparse.BooleanOptionalAction,
        help="side-by-side figure  (default: for a single input)")  # fmt: skip
    add("--axis", default="auto", choices=("auto", *formats.PLANES),
        help="plane of a scan; auto: axial, or that of the two finest voxel sizes")  # fmt: skip
    add("--series", metavar="N", help="DICOM series to take, by its number")
    add("--degradation", choices=DEGRADATIONS,
        help="how the input was made, if known")  # fmt: skip
    add("--consistent", action=argparse.BooleanOptionalAction,
        help="project the result onto the input  (default: if --degradation is given)")  # fmt: skip
    add("--simulate", action="store_true",
        help="take the input as truth: shrink it by 4 (--degradation; default: as in training, "
        "or bicubic), upscale that, score the result")  # fmt: skip
    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--workers", type=int_between(0, 64), default=0,
        help="batches of pictures at a time; 0: CPU threads and one more")  # fmt: skip
    add("--batch-size", type=int_between(1), default=8, help="slices at a time")
    add("--tile", type=int_between(1), default=modules.TILE,
        help="longer edges are cut into tiles of this many pixels")  # fmt: skip
    add("--shard", type=shard, metavar="I/N",
        help="be worker I of N: do every N-th input  (default: as torchrun says)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.consistent and not (args.degradation or args.simulate):
        parser.error("--consistent needs to know how the input was made: --degradation")
    if args.consistent is None:
        args.consistent = args.degradation is not None
    return args


def shard(text: str) -> tuple[int, int]:
    """An argparse type: `2/8`, counted from 0 or from 1, as (index from 0, number)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) <= int(n) and int(n) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return int(i) % int(n), int(n)


# --- what there is to do --------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One input and where its results go: `target` is their path without the ending."""

    source: Path
    target: Path
    files: tuple = ()  # of a DICOM series

    def finished(self) -> bool:
        """Whether the result is there. It is written last, and appears only when it is whole."""
        return any(self.file(end).exists() for end in (".png", ".tif", ".nii.gz", ".csv"))

    def file(self, ending: str) -> Path:
        return self.target.with_name(self.target.name + ending)


def find_jobs(args) -> tuple[list[Job], Path]:
    """What there is to do, and the folder for the results. Raises DataError or UsageError."""
    image = Path(args.image)
    if not image.exists():
        raise DataError(f"{image}: no such file or folder")
    image = image.with_suffix(".img") if formats.suffix(image) == ".hdr" else image
    root, scans = image.parent, [dataset.Scan(image, "", "", "")]
    if image.is_dir():
        root, scans = image, dataset.find_scans(image)
    series = Counter(scan.path for scan in scans)
    if image.is_dir():
        scans = chosen_scans(root, scans, args.series)
    # The folder of a DICOM series is an input like a file: results go beside it, not into it.
    beside = not image.is_dir() or all(scan.path == root for scan in scans)
    output = Path(args.output or (os.path.dirname(os.path.abspath(image)) if beside else image))
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file; name a folder")
    if not output.exists() and formats.suffix(output) in ENDINGS:
        raise UsageError(f"--output {output}: looks like a file name; name a folder")

    jobs, stems, names, used = [], {}, {}, set()
    for scan in scans:
        path, folder = scan.path, scan.path.parent
        if folder not in stems:
            there = [n.casefold() for n in os.listdir(folder) if formats.suffix(n) in ENDINGS]
            stems[folder], names[folder] = Counter(map(plain_name, there)), set(there)
        if path.is_dir():
            name = os.path.basename(os.path.abspath(path))
            name += f"_{scan.series}" if series[path] > 1 else ""
        else:
            name = plain_name(path.name)
            if stems[folder][name.casefold()] > 1 or name.casefold() in names[folder]:
                name = path.name  # two inputs of one stem keep their endings
        name += "_simulated_x4" if args.simulate else "_x4"
        target = output / path.relative_to(root).parent / name
        while str(target).casefold() in used:
            target = target.with_name("_" + target.name)
        used.add(str(target).casefold())
        jobs.append(Job(path, target, scan.files))
    return jobs, output


def chosen_scans(root: Path, scans: list, series: str | None) -> list:
    """The inputs among the scans of a folder. Raises UsageError if a DICOM series must be named."""
    listed = "; ".join(f"{scan.series} ({scan.about})" for scan in scans if scan.files)
    if series:
        chosen = [scan for scan in scans if scan.series == series]
        if not chosen:
            raise UsageError(f"--series {series}: {root} has {listed or 'no DICOM series'}")
        return chosen
    here = [scan for scan in scans if scan.files and root in (scan.path, scan.path.parent)]
    if len(here) == len(scans) > 1 and any(scan.path == root for scan in here):
        raise UsageError(f"{root}: holds several series, choose one with --series: {listed}")
    own = {scan.path for scan in scans if plain_name(scan.path.name).endswith(OURS)}
    if own:
        print(f"{len(own)} results of earlier runs are not taken as inputs")
    return [scan for scan in scans if scan.path not in own]


def plain_name(name: str) -> str:
    """A file's name without the ending of a picture or a scan; `1.2.840.5` has none."""
    return formats.stem(name) if formats.suffix(name) in ENDINGS else name


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


# --- pictures -------------------------------------------------------------------------------------


def read(job: Job, simulate: bool) -> formats.Picture:
    """Read a picture, for a simulation cut to multiples of 4."""
    picture = formats.read_picture(job.source)
    if simulate:
        picture.pixels = crop_to_scale(picture.pixels)
        if not picture.pixels.size:
            raise DataError(f"{job.source}: is too small to be shrunk by {SCALE}")
    return picture


def write_picture(job: Job, picture: formats.Picture, sr: np.ndarray) -> Path:
    """Write SR pixels (4 H, 4 W) with the input's bit depth and in its units."""
    values = sr * np.float32(picture.high - picture.low) + np.float32(picture.low)
    if picture.dtype == "float32":
        values = values.clip(0 if picture.low >= 0 else None)
        path, options = job.file(".tif"), {"format": "TIFF"}
    else:
        limit = np.iinfo(picture.dtype).max
        values = np.rint(values).clip(0, limit).astype(picture.dtype)
        path, options = job.file(".png"), {"format": "PNG", "compress_level": 1}
    with atomic_write(path) as file:
        Image.fromarray(values).save(file, **options)
    return path


def draw_picture(path: Path, lr, bicubic, sr, hr=None, scores=None, *, title="", aspect=1.0):
    """Draw input, bicubic and prediction; of a simulation also the truth, scores and errors."""

    def size(image):
        return f"{image.shape[0]} x {image.shape[1]}"

    with drawing:
        if hr is None:
            panels = [(f"input, {size(lr)}", lr), (f"bicubic, {size(bicubic)}", bicubic)]
            panels.append((f"prediction, {size(sr)}", sr))
            comparison_figure(path, panels, title=title, aspect=aspect)
        else:
            bicubic, sr = bicubic.clip(0, 1), sr.clip(0, 1)
            words = [
                f"PSNR {s['psnr']:.2f} dB, SSIM {s['ssim']:.4f}\nMSE {s['mse']:.5f}" for s in scores
            ]
            panels = [(f"original, {size(hr)}\n\n", hr), (f"low resolution, {size(lr)}\n\n", lr)]
            panels += [(f"bicubic\n{words[0]}", bicubic), (f"prediction\n{words[1]}", sr)]
            errors = [None, None, abs(bicubic - hr), abs(sr - hr)]
            comparison_figure(path, panels, errors, title=title, aspect=aspect)


def finish(job: Job, picture, output, figure, lr, bicubic, sr, hr=None) -> tuple[list, list]:
    """Write the results of one picture: (paths, scores of bicubic and prediction)."""
    make_folder(job, output)
    scores = [score(x, hr) for x in (bicubic, sr)] if hr is not None else []
    paths = []
    images = [x if x is None else x.numpy() for x in (lr, bicubic, sr, hr)]
    if figure:
        paths = [job.file("_figure.png")]
        draw_picture(paths[0], *images, scores)
    return [write_picture(job, picture, images[2]), *paths], scores


def predict_pictures(jobs, output, args, tools) -> list[tuple]:
    """Read, upscale and write some pictures: [(job, (paths, scores) or the DataError)].

    None instead of a result: it is a scan, and is left alone.
    """
    results, batch = [], []

    def upscale():
        if not batch:
            return
        lr = torch.from_numpy(np.stack([picture.pixels for _, picture in batch]))[:, None]
        lr, bicubic, sr, hr = tools.run(lr, compare=args.simulate or tools.figure)
        for i, (job, picture) in enumerate(batch):
            images = [x[i, 0] if x is not None else None for x in (lr, bicubic, sr, hr)]
            try:
                results.append((job, finish(job, picture, output, tools.figure, *images)))
            except DataError as error:
                results.append((job, error))
        batch.clear()

    for job in jobs:
        try:
            if job.files or formats.kind_of(job.source) in ("volume", "dicom"):
                results.append((job, None))
                continue
            picture = read(job, args.simulate)
        except DataError as error:
            results.append((job, error))
            continue
        shape = picture.pixels.shape
        room = BATCH_PIXELS // (shape[0] * shape[1])
        if batch and (shape != batch[0][1].pixels.shape or len(batch) >= room):
            upscale()
        batch.append((job, picture))
    upscale()
    return results


def predict(jobs, output, args, tools, done, failed) -> None:
    """Upscale all jobs: done(job, paths, scores) or failed(error) is called for every one.

    Pictures are upscaled by one worker more than there are CPU threads, as one of them may wait for
    the disk, each on its own from file to file; then scans, one by one, by all threads together.
    """
    scans, threads = [], torch.get_num_threads()
    batches = [jobs[i : i + args.batch_size] for i in range(0, len(jobs), args.batch_size)]
    workers = max(1, min(args.workers or threads + 1, len(batches)))
    share = max(1, threads // workers)
    work = partial(predict_pictures, output=output, args=args, tools=tools)
    with (
        ThreadPoolExecutor(workers, "", torch.set_num_threads, (share,)) as pool,
        closing(pool.map(work, batches)) as found,  # if interrupted: what was not begun is not
    ):
        for job, result in chain.from_iterable(found):
            if result is None:
                scans.append(job)
            elif isinstance(result, DataError):
                failed(result)
            else:
                done(job, *result)
    torch.set_num_threads(threads)
    for job in scans:
        try:
            done(job, *predict_volume(job, output, args, tools))
        except DataError as error:
            failed(error)


@dataclass
class Tools:
    """The network and how it is used."""

    network: torch.nn.Module
    device: torch.device
    tile: int
    degradation: str  # of the LR slices, '' if unknown
    simulate: bool
    consistent: bool
    figure: bool

    def run(self, lr: torch.Tensor, compare: bool) -> list:
        """LR slices (N, 1, H, W) -> [LR, bicubic or None, SR, HR or None], all on the CPU.

        In a simulation the slices are HR, and LR is made of them.
        """
        lr, hr, bicubic = lr.to(self.device), None, None
        if self.simulate:
            lr, hr = degrade(lr, self.degradation), lr
        sr = modules.upscale(self.network, lr, self.tile)
        if self.consistent:
            sr = make_consistent(sr, lr, self.degradation)
        if compare:
            interpolate = modules.Interpolation("bicubic").to(self.device)
            bicubic = modules.upscale(interpolate, lr, self.tile)
        return [x if x is None else x.cpu() for x in (lr, bicubic, sr, hr)]


# --- volumes --------------------------------------------------------------------------------------


def predict_volume(job: Job, output: Path, args, tools: Tools) -> tuple[list, list]:
    """Upscale a scan slice by slice and write it: (paths, scores of bicubic and prediction)."""
    volume = read_scan(job.source, job.files)
    plane, about = choose_plane(volume, args.axis)
    if about:
        tqdm.write(one_line(f"{job.source}: {about}"))
    make_folder(job, output)
    try:
        if args.simulate:
            return simulate_volume(job, volume, plane, args.batch_size, tools)
        return upscale_volume(job, volume, plane, args.batch_size, tools)
    except MemoryError:
        raise DataError(f"{job.source}: is too large for this machine's memory") from None


def choose_plane(volume: formats.Volume, wanted: str) -> tuple[str, str]:
    """The plane to upscale in, and a remark if it is not the axial one by default."""
    if wanted != "auto":
        return wanted, ""
    sizes, axes = volume.sizes, volume.axes
    single = [axes[i] for i, n in enumerate(volume.stored.shape[:3]) if n == 1]
    if len(single) == 1:
        return formats.PLANES[single[0]], ""
    coarse = int(np.argmax(sizes))
    if coarse != 2 and sizes[coarse] > 1.25 * sorted(sizes)[1]:
        words = " x ".join(f"{size:.3g}" for size in np.array(sizes)[axes])
        plane = formats.PLANES[coarse]
        return plane, f"voxels of {words} mm, upscaled in the finer plane, {plane} (see --axis)"
    return "axial", ""


def slice_batches(slices: np.ndarray, size: int, name: str):
    """Cut (S, H, W) into (start, (n, H, W)), with a progress bar."""
    size = min(size, max(1, BATCH_PIXELS // (slices.shape[1] * slices.shape[2])))
    with tqdm(total=len(slices), desc=one_line(name), unit="slice", leave=False) as bar:
        for start in range(0, len(slices), size):
            part = slices[start : start + size]
            yield start, part
            bar.update(len(part))


def upscale_volume(job: Job, volume, plane: str, size: int, tools: Tools) -> tuple[list, list]:
    """Upscale all slices of a volume and write it as NIfTI, with the figure."""
    inside = [i for i, axis in enumerate(volume.axes) if formats.PLANES[axis] != plane]
    shape = [n * SCALE if i in inside else n for i, n in enumerate(volume.stored.shape)]
    kind = volume.stored.dtype
    out = np.zeros(shape, kind if kind.kind in "iu" else np.float32, order="F")
    times = shape[3] if len(shape) == 4 else 1

    def slices_at(array, t):
        array = array if array.ndim == 3 else array[..., t]
        return formats.slices_of(formats.to_ras(array, volume.affine), plane)

    def to_values(array):
        return array.astype(np.float32) * np.float32(volume.slope) + np.float32(volume.inter)

    for t in range(times):
        data = volume.intensities(t)
        # One range for all slices, so that neighbours match. Nothing is cut off at its ends.
        low, high = formats.intensity_range(data)
        slices = slices_at(data, 0)
        if t == 0 and tools.figure:
            drawn = figure_slices(slices > low + 0.05 * (high - low))
            before = [(slices[i] - low) / (high - low) for i in drawn]
            first = low, high
        name = job.source.name + (f" {t + 1}/{times}" if times > 1 else "")
        for start, part in slice_batches(slices, size, name):
            lr = torch.from_numpy((part - low) / np.float32(high - low))[:, None]
            sr = tools.run(lr, compare=False)[2][:, 0].numpy()
            sr *= high - low
            sr += low
            if (volume.slope, volume.inter) != (1, 0):
                sr = (sr - volume.inter) / np.float32(volume.slope)
            if out.dtype.kind in "iu":
                np.rint(sr, out=sr)
                if out.dtype.kind == "u":  # undershoot beside edges: no reason for another type
                    np.maximum(sr, 0, out=sr)
                out = with_room(out, float(sr.min()), float(sr.max()), job.source)
            slices_at(out, t)[start : start + len(sr)] = sr
    paths = []
    if tools.figure:
        low, high = first
        after = [(to_values(slices_at(out, 0)[i]) - low) / (high - low) for i in drawn]
        paths = [job.file("_figure.png")]
        draw_volume(paths[0], job, volume, plane, drawn, before, after)
    return [write_volume(job, volume, out, inside), *paths], []


def with_room(array: np.ndarray, least: float, most: float, name) -> np.ndarray:
    """The array, or a copy of a wider type if its type does not hold these values."""
    limits = np.iinfo(array.dtype)
    if least >= limits.min and most <= limits.max:
        return array
    wider = np.dtype(WIDER.get(array.dtype.name, "float32"))
    tqdm.write(one_line(f"{name}: values of {least:.6g} to {most:.6g} are stored as {wider}"))
    return array.astype(wider, order="F")


def write_volume(job: Job, volume, out: np.ndarray, inside: list[int]) -> Path:
    """Write the upscaled voxels as compressed NIfTI, the outer edges of the grid where they were.

    inside: the two upscaled axes. sform and qform keep their codes, the header its units and
    description.
    """
    import nibabel as nib

    header = volume.header.copy()
    header.extensions = type(header.extensions)()  # they speak of the old grid
    # Voxel j is centred on old voxel (j + 0.5) / 4 - 0.5, the rule of align_corners=False.
    step = np.eye(4)
    for axis in inside:
        step[axis, [axis, 3]] = 1 / SCALE, (1 / SCALE - 1) / 2
    try:
        qform = header.get_qform(coded=True)[0]
    except nib.spatialimages.HeaderDataError:
        qform, header["qform_code"] = None, 0
    sform, code = header.get_sform(coded=True)
    if max(out.shape) > 2**15 - 1:
        header = nib.Nifti2Header.from_header(header)
    header.set_data_shape(out.shape)
    header.set_data_dtype(out.dtype.newbyteorder(header.endianness))
    for axis in inside:  # the qform's turn stays as it is
        header["pixdim"][1 + axis] /= SCALE
    if qform is not None:
        for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), (qform @ step)[:3, 3]):
            header[name] = value
    if sform is not None:
        header.set_sform(sform @ step, int(code))
    if header.get_dim_info()[2] in inside:  # what it says about slice timing no longer holds
        for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
            header[name] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(out, None, header)
    image.header.set_slope_inter(volume.slope, volume.inter)  # of voxels as they are stored
    path = job.file(".nii.gz")
    with (
        atomic_write(path) as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        image.to_stream(packed)
    return path


def figure_slices(foreground: np.ndarray) -> list[int]:
    """Up to three slices (S, H, W) to show, at a quarter, half and three quarters of the head."""
    filled = np.flatnonzero(foreground.mean(axis=(1, 2)) >= 0.02)
    filled = filled if filled.size else np.arange(len(foreground))
    return sorted({int(filled[int(share * (filled.size - 1))]) for share in (0.25, 0.5, 0.75)})


def draw_volume(path: Path, job: Job, volume, plane: str, drawn, before, after) -> None:
    """Draw slices before and after, whole and their busiest detail."""
    rows = []
    for lr, sr in zip(before, after):
        h, w = lr.shape
        top, left, height, width = busiest_window(sr)
        y, x = (slice(int(a * n), max(int(a * n) + 1, int((a + b) * n)))
                for a, b, n in ((top, height, h), (left, width, w)))  # fmt: skip
        y4, x4 = (slice(SCALE * s.start, SCALE * s.stop) for s in (y, x))
        rows.append([lr, sr, lr[y, x], sr[y4, x4]])
    sizes, axes = volume.sizes, volume.axes
    across = formats.PLANES.index(plane)

    def words(factor):
        values = [sizes[axis] / (factor if axis != across else 1) for axis in axes]
        return " x ".join(f"{value:.3g}" for value in values) + " mm"

    names = [f"input, {words(1)}", f"prediction, {words(SCALE)}", "input, detail"]
    columns, lines = [axis for axis in range(3) if axis != across]
    title = f"{one_line(job.source.name)}, {plane} slices {', '.join(str(i) for i in drawn)}"
    with drawing:
        aspect = sizes[lines] / sizes[columns]
        grid_figure(path, rows, [*names, "prediction, detail"], title=title, aspect=aspect)


def simulate_volume(job: Job, volume, plane: str, size: int, tools: Tools) -> tuple[list, list]:
    """Shrink the slices of a scan, upscale them and score them one by one and all together."""
    if volume.stored.ndim == 4:
        warn(f"{job.source}: the first of its {volume.stored.shape[3]} volumes is used")
    data = volume.intensities()
    low, high = formats.intensity_range(data)
    slices = formats.slices_of(formats.to_ras(data, volume.affine), plane)
    slices = crop_to_scale(slices)
    if not slices.size:
        raise DataError(f"{job.source}: is too small to be shrunk by {SCALE}")
    shown = int((slices > low + 0.05 * (high - low)).mean(axis=(1, 2)).argmax())
    rows = []
    for start, part in slice_batches(slices, size, job.source.name):
        hr = np.clip((part - low) / np.float32(high - low), 0, 1)
        images = tools.run(torch.from_numpy(hr)[:, None], compare=True)
        for i in range(len(part)):
            _, bicubic, sr, hr = (x[i, 0] for x in images)
            rows.append((score(bicubic, hr), score(sr, hr)))
            if start + i == shown:
                kept = [x[i, 0].numpy() for x in images]
    # The volume as a whole: PSNR of the mean squared error of all voxels.
    whole_psnr = [psnr_of(float(np.mean([row[k]["mse"] for row in rows]))) for k in (0, 1)]
    head = [row for row in rows if row[0]["psnr_brain"] is not None] or rows
    means = []
    for k in (0, 1):
        values = {m: [row[k][m] for row in head if row[k].get(m) is not None] for m in METRICS}
        means.append({m: float(np.mean(v)) if v else None for m, v in values.items()})
    tqdm.write(
        one_line(f"{job.source}: {len(head)} {plane} slices; PSNR of the whole volume: ")
        + f"bicubic {whole_psnr[0]:.2f} dB, prediction {whole_psnr[1]:.2f} dB"
    )
    paths = []
    if tools.figure:
        sizes = [size for i, size in enumerate(volume.sizes) if formats.PLANES[i] != plane]
        paths = [job.file("_figure.png")]
        about = f"{plane} slice {shown}, pixels of {sizes[1]:.3g} x {sizes[0]:.3g} mm"
        title = f"{one_line(job.source.name)}, {about}"
        draw_picture(paths[0], *kept, rows[shown], title=title, aspect=sizes[1] / sizes[0])
    with atomic_write(job.file(".csv"), "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [m for m in METRICS if m in rows[0][0]]
        writer.writerow(
            ["slice", *(f"{who}_{m}" for who in ("bicubic", "prediction") for m in names)]
        )
        for i, row in enumerate(rows):
            writer.writerow([i, *(row[k][m] for k in (0, 1) for m in names)])
    return [job.file(".csv"), *paths], means


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
    print(one_line(f"weights: {args.checkpoint} ({about})"), flush=True)
    name = args.degradation
    if args.simulate and not name:
        name = checkpoint["degradation"]
        name = name if name in DEGRADATIONS else "bicubic"

    # A folder: my share of the inputs, without what is finished.
    folder = Path(args.image).is_dir() and [job.source for job in jobs] != [Path(args.image)]
    figure = args.figure if args.figure is not None else not folder
    tools = Tools(network, device, args.tile, name, args.simulate, args.consistent, figure)
    counts, scores = Counter(), []
    torchrun = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if folder:
        share, of = args.shard or torchrun
        jobs = jobs[share::of]
        todo = jobs if args.overwrite else [job for job in jobs if not job.finished()]
        counts["finished before (--overwrite does them again)"] = len(jobs) - len(todo)
        jobs = todo
    quiet = not folder or not jobs or torchrun[0] > 0  # one bar for all processes of torchrun
    bar = tqdm(total=len(jobs), unit="input", disable=quiet)

    def done(job, paths, found):
        bar.update()
        counts["upscaled"] += 1
        scores.extend(found)
        if not folder:
            print("\n".join(one_line(f"written: {path}") for path in paths))

    def failed(error):
        if not folder:
            raise error
        bar.update()
        counts["failed"] += 1
        with tqdm.external_write_mode(file=sys.stderr):
            warn(f"skipped: {error}")

    with bar:
        predict(jobs, output, args, tools, done, failed)
    if folder:
        words = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to do"
        print(one_line(f"{words}; results in {output}"))
    if scores:
        n = range(len(scores) // 2)
        print(f"LR by {name}, 8 bits; mean ± sd over {len(n)} input(s):")
        rows = {"bicubic": scores[::2], "prediction": scores[1::2]}
        print(metrics_table({k: summarise(v, n) for k, v in rows.items()}))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    run_main(main)

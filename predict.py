"""Upscale brain MRI: pictures, whole scans and folders of them, in the slice or through the slices.

python predict.py slice.png
python predict.py scan.nii.gz --scale 2
python predict.py thick.nii.gz --through-plane
python predict.py scans --output results
"""

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore, Lock

import numpy as np
import torch

import modules
import utils
from degradation import NAMED, crop_to_scale, degradation_name, scale_name
from evaluation.figures import simulation_figure
from evaluation.metrics import metrics_table, scan_scores, score, summarise, write_scores
from inference import images, sidecar, tiling
from inference.error_map import INTERVAL
from inference.inputs import Job, find_jobs, idle_options, shard
from inference.upscaler import (
    Upscaler,
    Upscalers,
    computed_together,
    describe_stack,
    known_degradation,
    told_degradation,
    unlike,
    upscale_stack,
)
from scans import volumes
from utils import (
    DataError,
    Parser,
    collected_warnings,
    int_between,
    note,
    pick_device,
    progress,
    run_main,
    warn,
    write_json,
)

LARGE = 2**30  # bytes of a result that are announced
GROUPS = 8  # of pictures, about so many for each worker
drawing = Lock()  # matplotlib's fonts are shared between threads


# --- command line ---------------------------------------------------------------------------------


def arguments(argv=None):
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    optional = argparse.BooleanOptionalAction
    add = parser.add_argument_group("what and where").add_argument
    add("images", nargs="*", metavar="PATH",
        help="pictures, scans (nii, mgz, img, dcm), DICOM folders, folders of these")  # fmt: skip
    add("--image", nargs="+", action="extend", metavar="PATH", help="the same")
    add("--output", metavar="DIR", help="folder for the results  (default: beside the input)")
    add("--overwrite", action="store_true", help="of several inputs: redo what is finished")
    add("--figure", action=optional, help="side-by-side figure  (default: for a single input)")
    add("--uncertainty", action="store_true",
        help="write a map of the expected error of each pixel, too")  # fmt: skip
    add("--json", action="store_true", help="print nothing but a line of JSON for each result")
    add("--series", metavar="N", help="DICOM series to take, by its number")
    add(
        "--force", action="store_true", help="take colour photographs, fMRI, masks and the like too"
    )
    add = parser.add_argument_group("how").add_argument
    add("--scale", type=int, choices=(2, 3, 4), help="enlarge slices by this  (default: 4)")
    add("--through-plane", type=int_between(0, 8), nargs="?", const=0, metavar="N",
        help="slices made of each thick one  (default: until voxels are nearly cubes)")  # fmt: skip
    add("--checkpoint", metavar="FILE", help="weights to use  (default: those of the scale)")
    add("--axis", default="auto", choices=("auto", *volumes.PLANES),
        help="plane of a scan; auto: axial, or that of the two finest voxel sizes")  # fmt: skip
    add("--simulate", action="store_true",
        help="take the input as truth: shrink it (--degradation; default: as in training, or "
        "bicubic), upscale that, score the result")  # fmt: skip
    add = parser.add_argument_group("how the input was made, if you know").add_argument
    add("--degradation", type=known_degradation, metavar="NAME",
        help=f"{', '.join(NAMED)}, blur-1.5, zerofill-2, rician-2, jpeg-75 and others; several: "
        "bilinear+jpeg-75  (where none says how it was shrunk: bicubic; thick slices: "
        "slab-1)")  # fmt: skip
    add("--blur", type=float, metavar="WIDTH", help="blurred by this many pixels (Gaussian, FWHM)")
    add("--noise", type=float, metavar="SHARE", help="noise, 0.02 being 2 %% of white")
    add("--consistent", action=optional,
        help="project the result onto the input  (default: if the above is given)")  # fmt: skip
    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--workers", type=int_between(0, 64), default=0,
        help="groups of pictures at a time; 0: CPU threads and one more")  # fmt: skip
    add("--batch-size", type=int_between(1), default=8, help="slices or small pictures at a time")
    add("--bf16", action=optional,
        help="faster, far less than a grey level off  (default: where the CPU has it)")  # fmt: skip
    add("--tile", type=int_between(1), default=tiling.TILE,
        help="longer edges are cut into tiles of this many pixels")  # fmt: skip
    add("--shard", type=shard, metavar="I/N",
        help="be worker I of N: do every N-th input  (default: as torchrun says)")  # fmt: skip
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    for i, word in enumerate(words[:-1]):  # a path behind it is no N
        if word == "--through-plane" and not words[i + 1].isdecimal():
            words[i] = "--through-plane=0"
    args = parser.parse_args(words)
    check(args, parser)
    return args


def check(args, parser) -> None:
    """Refuse what does not go together, and fill in what follows from the rest."""
    args.images += args.image or []
    if not args.images:
        parser.error("name a picture, a scan or a folder of them")
    if args.blur is not None and not 0.1 <= args.blur <= 5:
        parser.error("--blur takes 0.1 to 5 pixels")
    if args.noise is not None and not 0.0001 <= args.noise <= 0.3:
        parser.error("--noise takes a share of white, 0.0001 to 0.3; 0.02 is 2 %")
    told = args.degradation = told_degradation(args)
    if args.consistent and not (told or args.simulate):
        parser.error("--consistent needs to know how the input was made: --degradation")
    if args.consistent is None:
        args.consistent = bool(told)
    if args.through_plane is not None and args.simulate:
        parser.error("--simulate is for slices; evaluate.py scores weights/through-x4.pt")
    if args.through_plane == 1:
        parser.error("--through-plane 1 changes nothing")
    if args.through_plane is not None and args.scale:
        parser.error("--scale is for the slices, --through-plane for what lies between them")
    utils.QUIET = utils.QUIET or args.json


# --- the loop -------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came of one input: the files, scores of bicubic and prediction, and the sidecar."""

    paths: list[Path]
    record: dict
    scores: list[dict] = field(default_factory=list)
    unlike: str = ""  # what sets the input apart from all training images


def open_one(job: Job, upscalers: Upscalers, args) -> tuple:
    """(image, Upscaler, ways to cut the image, warnings so far). Raises DataError."""
    with collected_warnings([]) as warnings:
        image = images.read_image(job, args.force)
        return image, *upscalers.choose(image, job.batch), warnings


def predict_one(job: Job, image, upscaler, ways, warnings, args, figure: bool) -> Result:
    """Upscale and write one picture or scan. Raises DataError."""
    with collected_warnings(warnings):
        job.make_folder()
        if job.dataset:
            sidecar.write_description(job.output, job.dataset)
        try:
            work = simulate if args.simulate else upscale
            return work(job, image, upscaler, ways, args, figure, warnings)
        except MemoryError:
            raise DataError(f"{job.source}: is too large for this machine's memory") from None


def predict_some(jobs: list[Job], upscalers: Upscalers, args, figure: bool) -> list[tuple]:
    """[(job, Result or DataError)]: a scan, or pictures that are computed together if small."""
    opened, found = {}, {}
    for job in jobs:
        try:
            opened[job] = open_one(job, upscalers, args)
        except DataError as error:
            found[job] = error
    # The network runs here for small pictures; upscale() below takes the results it finds.
    pictures = [job for job in opened if job.kind == "picture" and not args.simulate]
    if pictures:
        pixels = [opened[job][0].intensities() for job in pictures]
        for job, one in zip(pictures, computed_together(upscalers.one, pixels)):
            image, _, ways, warnings = opened[job]
            opened[job] = image, one, ways, warnings
    for job, parts in opened.items():
        try:
            found[job] = predict_one(job, *parts, args, figure)
        except DataError as error:
            found[job] = error
    return [(job, found[job]) for job in jobs]


def upscale(job, image, upscaler: Upscaler, ways, args, figure: bool, warnings: list) -> Result:
    """Upscale all slices of an image along one way; or along two, of which the mean counts."""
    scale, label = upscaler.network.scale, upscaler.label
    out = image.output_like(ways[0], scale)
    if out.nbytes > LARGE or out.nbytes > 20 * image.bytes:
        note(f"{job.source}: the result takes {out.nbytes / 2**30:.1f} GB before compression")
    if image.times > 1:
        note(f"{job.source}: holds {image.times} volumes; each is upscaled")
    errors = image.errors_like(out) if args.uncertainty else None
    for t in reversed(range(image.times)):  # figure and record are of volume 0 and the last way
        data = image.intensities(t)
        low, high = span = image.span(data)
        volume, map_t = (x[..., t] if x is not None and x.ndim == 4 else x for x in (out, errors))
        mean = volume if len(ways) == 1 else np.zeros(volume.shape, np.float32, order="F")
        for way in ways:
            slices, target = image.cut(data, way), image.cut(mean, way)
            map_slices = None if map_t is None else image.cut(map_t, way)
            description = describe_stack(upscaler, slices, span)
            name = job.source.name + (f" {t + 1}/{image.times}" if image.times > 1 else "")
            kind = out.dtype if mean is volume else None
            finish = partial(fill, image, target, map_slices, span, kind, len(ways))
            for _ in upscale_stack(
                upscaler, slices, finish, span=span, description=description, name=name,
                clamped=image.clamped(data, low, high), batch_size=args.batch_size,
            ):  # fmt: skip
                pass  # everything lands in target
        for z in range(volume.shape[2]) if mean is not volume else ():
            volume[..., z] = image.to_stored(mean[..., z], out.dtype)
    about_degradation(job, upscaler, description)
    strange = unlike(upscaler, image, data, span, ways, description)
    if strange:
        words = f"unlike all images that the network learned from ({strange}); check it"
        warn(f"{job.source}: {words}", not (job.batch or args.json))  # of many only in the record
    paths = [job.file(label, "_figure.png")] if figure else []
    if figure:
        with drawing:
            images.draw(paths[0], image, scale, ways, out, data, span, map_t)
    record = sidecar.record(job, image, upscaler, ways, description, warnings)
    paths.append(write_json(job.file(label, ".json"), record))
    if errors is not None:
        paths.insert(0, image.write_errors(job, label + sidecar.ERROR, errors, ways[0], scale))
        if job.dataset:  # where each image needs a sidecar
            about = record | {"Description": "Expected absolute error: " + record["Description"]}
            write_json(job.file(label + sidecar.ERROR, ".json"), about)
    paths.insert(0, image.write(job, label, out, ways[0], scale))
    return Result(paths, record, unlike=strange)


def fill(image, target, map_slices, span, kind, ways, chosen, rows, lr, hr, sr, expected) -> None:
    """Put SR slices and their expected errors where they belong, as values of this type.

    kind: None for a mean of several ways.
    """
    if map_slices is not None:
        values = expected[:, 0].numpy() / np.float32(ways)
        map_slices[chosen, rows] += image.error_to_stored(values, span, map_slices.dtype)
    low, high = np.float32(span[0]), np.float32(span[1])
    values = sr[:, 0].numpy()
    np.maximum(values, 0, out=values)  # nothing comes out below the smallest value, which became 0
    values *= high - low
    values += low
    if kind is not None:
        target[chosen, rows] = image.to_stored(values, kind)
    else:
        values /= ways
        target[chosen, rows] += values


def about_degradation(job: Job, upscaler: Upscaler, description) -> None:
    """Say what the network found about how a single input was made."""
    if description is None or job.batch:
        return
    verb = "told" if upscaler.user_said else "found"
    note(f"{job.source}: {verb} {upscaler.words(description)}")


# --- simulation -----------------------------------------------------------------------------------


def simulate(job, image, upscaler: Upscaler, ways, args, figure: bool, warnings: list) -> Result:
    """Shrink the slices of an image, upscale them, score them one by one and all together."""
    scale, label, (way,) = upscaler.network.scale, upscaler.label, ways
    if image.times > 1:
        warn(f"{job.source}: the first of its {image.times} volumes is used")
    data = image.intensities(0)
    low, high = span = image.span(data)
    slices = crop_to_scale(image.cut(data, way), scale)
    if not slices.size:
        raise DataError(f"{job.source}: is too small to be shrunk by {scale_name(scale)}")
    shown = int((slices > low + 0.05 * (high - low)).mean(axis=(1, 2)).argmax())
    interpolate = modules.Interpolation(scale).to(upscaler.device)
    description, rows, kept = describe_stack(upscaler, slices, span), [], None
    inside = []  # share of the pixels within the interval of their expected error

    def compare(chosen, _, lr, hr, sr, expected):
        bicubic = tiling.upscale(interpolate, lr.to(upscaler.device), None, args.tile).cpu()
        scores = [[score(x[i, 0], hr[i, 0]) for x in (bicubic, sr)] for i in range(len(sr))]
        i = shown - chosen.start
        maps = [lr, bicubic, sr, hr]
        if expected is not None:
            maps.append(expected)
            near = (sr.clamp(0, 1) - hr).abs() <= INTERVAL * expected
            inside.append(float(near[hr > 0.05].float().mean()))
        return scores, [x[i, 0].numpy() for x in maps] if 0 <= i < len(sr) else None

    for scores, found in upscale_stack(
        upscaler, slices, compare, span=span, description=description, batch_size=args.batch_size,
        clamped=(0.0, 1.0), name=job.source.name,
    ):  # fmt: skip
        rows += scores
        kept = found or kept
    about_degradation(job, upscaler, description)
    paths = [job.file(label, "_figure.png")] if figure else []
    if figure:
        title = f"{job.source.name} {way[0]} {shown}" if way else job.source.name
        with drawing:
            simulation_figure(
                paths[0], *kept[:4], rows[shown], title=title, aspect=image.aspect(way),
                expected=kept[4] if inside else None,
            )  # fmt: skip
    means = rows[0] if not image.sizes else scan_scores(job.source, rows, way[0])
    record = sidecar.record(job, image, upscaler, ways, description, warnings)
    known = [{k: v for k, v in one.items() if v is not None} for one in means]
    record["Scores"] = dict(zip(("Bicubic", "Prediction"), known))
    if inside:
        share = record["ExpectedError"]["ShareWithinInterval"] = float(np.nanmean(inside))
        note(f"{job.source}: {share:.1%} of the pixels are within the interval of 90 %")
    paths.append(write_json(job.file(label, ".json"), record))
    if image.sizes:
        return Result([write_scores(job.file(label, ".csv"), rows), *paths], record, means)
    stored = image.to_stored(kept[2].clip(0), image.dtype)
    return Result([image.write(job, label, stored, way, scale), *paths], record, means)


# --- all ------------------------------------------------------------------------------------------


def predict(jobs: list[Job], upscalers: Upscalers, args, figure: bool):
    """Upscale all jobs: yields (job, Result or DataError).

    Pictures are upscaled a few at a time, from files to files, by one worker more than there are
    CPU threads, as one of them may wait for the disk; only as many compute at a time as there are
    threads. Then scans, one by one, by all threads together.
    """
    work = partial(predict_some, upscalers=upscalers, args=args, figure=figure)
    pictures = [job for job in jobs if job.kind == "picture"]
    threads = torch.get_num_threads()
    workers = max(1, min(args.workers or threads + 1, len(pictures)))
    some = min(args.batch_size, 1 + len(pictures) // (GROUPS * workers))
    groups = [pictures[i : i + some] for i in range(0, len(pictures), some)]
    share = max(1, threads // workers)
    if upscalers.one and workers > threads:
        upscalers.one.turns = BoundedSemaphore(threads)
    try:
        with (
            ThreadPoolExecutor(workers, "", tiling.settle_threads, (share,)) as pool,
            closing(pool.map(work, groups)) as found,  # if interrupted: what was not begun is not
        ):
            for several in found:
                yield from several
    finally:
        torch.set_num_threads(threads)
    for job in jobs:
        if job.kind != "picture":
            yield from work([job])


def main(argv=None):
    args = arguments(argv)
    tiling.keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    jobs = find_jobs(args)
    device = pick_device(args.device)
    safe = device.type == "cpu" and tiling.bf16_is_safe()  # asked before there was any product
    args.bf16 = safe if args.bf16 is None else args.bf16
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    upscalers = Upscalers(args, device)
    for line in idle_options(args, jobs, upscalers.one and upscalers.one.network):
        warn(line)

    # Of several inputs: my share, without what is finished.
    batch = any(job.batch for job in jobs)
    torchrun = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    counts = Counter()
    if batch:
        share, of = args.shard or torchrun
        mine = jobs[share::of]
        labels = [] if args.overwrite else upscalers.labels()
        maps = args.uncertainty and not args.simulate
        jobs = [job for job in mine if not job.finished(labels, maps)]
        counts["finished before (--overwrite does them again)"] = len(mine) - len(jobs)
    figure = args.figure if args.figure is not None else not batch
    scores = run_jobs(jobs, upscalers, args, figure, batch and torchrun[0] == 0, counts)
    if batch:
        words = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to do"
        where = {str(job.output) for job in jobs}
        note(words + (f"; results in {', '.join(sorted(where))}" if where else ""))
    if scores and not args.json:
        way, n = degradation_name(upscalers.one.degradation), range(len(scores) // 2)
        print(f"LR by {way}, 8 bits; mean ± sd over {len(n)} input(s)")
        rows = {"bicubic": scores[::2], "prediction": scores[1::2]}
        print(metrics_table({k: summarise(v, n) for k, v in rows.items()}))
    return 1 if counts["failed"] else 0


def run_jobs(jobs, upscalers, args, figure: bool, bar: bool, counts: Counter) -> list[dict]:
    """Do all jobs, print and count what came of them. Returns the scores of simulations."""
    scores, strange = [], 0
    with progress(total=len(jobs), unit="input", disable=not bar or not jobs) as moving:
        try:
            for job, result in predict(jobs, upscalers, args, figure):
                moving.update()
                failed = isinstance(result, DataError)
                counts["failed" if failed else "upscaled"] += 1
                strange += not failed and bool(result.unlike)
                if failed and not job.batch:
                    raise result
                say(job, result, args)
                scores += [] if failed else result.scores
        except KeyboardInterrupt:
            if any(job.batch for job in jobs) and not args.overwrite:
                done = sum(counts[word] for word in ("upscaled", "failed"))
                warn(f"interrupted after {done} of {len(jobs)}; the same command goes on from here")
            raise
    counts["unlike training images (Warnings in their .json)"] = strange
    return scores


def say(job: Job, result, args) -> None:
    """Print what came of one input: for programs a line of JSON, for people the files."""
    failed = isinstance(result, DataError)
    if args.json:
        about = {"error": str(result)} if failed else result.record
        files = [] if failed else [str(path) for path in result.paths]
        print(json.dumps({"input": str(job.source), "files": files, **about}), flush=True)
    elif failed:
        warn(f"skipped: {result}")
    elif not job.batch:
        for path in result.paths:
            note(f"written: {path}")


if __name__ == "__main__":
    run_main(main)

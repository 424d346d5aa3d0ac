"""Upscale brain MRI: pictures, whole scans and folders of them.

    python predict.py slice.png                    four times as large
    python predict.py scan.nii.gz                  thick slices become thin, coarse pixels fine
    python predict.py scan.nii.gz --voxel-size 1   1 mm all around

Leaves results beside the inputs or in --output, each with a record of how it was made.
"""

import argparse
import glob
import json
import os
import re
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import utils
from utils import (
    DataError,
    Parser,
    UsageError,
    WriteError,
    collected_warnings,
    int_between,
    note,
    one_line,
    progress,
    run_main,
    warn,
    write_json,
)

LARGE = 2**30  # bytes of a result that are announced
PIXELS = 2**18  # for each thread: of pictures that are enlarged together
AHEAD = 16  # pictures that are read ahead
MANY = 100  # inputs, from which on it is said how many there are
# What changes a result: another one of these is another result.
OPTIONS = ("scale", "through_plane", "voxel_size", "axis", "degradation", "consistent", "error_map",
           "simulate")  # fmt: skip


# --- command line ---------------------------------------------------------------------------------


def arguments(argv=None):
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0], examples=__doc__.split("\n\n")[1])
    optional = argparse.BooleanOptionalAction
    add = parser.add_argument_group("what and where").add_argument
    add("images", nargs="*", metavar="PATH",
        help="pictures, scans (nii, mgz, img, dcm), DICOM folders, folders of these")  # fmt: skip
    add("-i", "--image", nargs="+", action="extend", metavar="PATH", help="the same")
    add("-o", "--output", metavar="DIR", help="folder for the results  (default: beside the input)")
    add("--overwrite", action="store_true",
        help="redo what is finished, and replace files of other programs")  # fmt: skip
    add("--figure", action=optional, help="side-by-side figure  (default: for a single input)")
    add("--error-map", "--uncertainty", action="store_true",
        help="write a map of the expected error of each pixel, too")  # fmt: skip
    add("--labels", metavar="FILE", help="a label map of the scan, brought onto the result's grid")
    add("--report", action="store_true",
        help="also write report.html, a page of all results, the doubtful ones first")  # fmt: skip
    add("--json", action="store_true", help="print nothing but a line of JSON for each result")
    add("--series", metavar="N", help="DICOM series to take, by its number")
    add("--force", action="store_true",
        help="take colour photographs, fMRI, masks and the like too")  # fmt: skip
    add = parser.add_argument_group("how  (default: what the voxels are tells)").add_argument
    add("--voxel-size", type=float, metavar="MM", help="make voxels of this size, all around")
    add("--scale", type=int_between(2, 4), metavar="N",
        help="enlarge slices by 2, 3 or 4, and nothing else  (of pictures: 4)")  # fmt: skip
    add("--through-plane", type=int_between(0, 6), nargs="?", const=0, metavar="N",
        help="make slices of each thick one, and nothing else: 2 to 6, or until voxels are nearly "
        "cubes")  # fmt: skip
    add("--weights", "--checkpoint", metavar="FILE", help="weights to use  (default: brain.pt)")
    add("--axis", default="auto", choices=("auto", "sagittal", "coronal", "axial"),
        help="plane of a scan; auto: that of the two finest voxel sizes, or axial")  # fmt: skip
    add("--simulate", action="store_true",
        help="take the input as truth: shrink it (--degradation; default: bicubic), upscale that, "
        "score the result")  # fmt: skip
    add = parser.add_argument_group("how the input was made, if you know").add_argument
    add("--degradation", metavar="NAME", help="such as bicubic, kspace, blur-1.5, zerofill-2, "
        "jpeg-75, or several: bilinear+jpeg-75; help: lists all")  # fmt: skip
    add("--blur", type=float, metavar="WIDTH", help="blurred by this many pixels (Gaussian, FWHM)")
    add("--noise", type=float, metavar="SHARE", help="noise, 0.02 being 2 %% of white")
    add("--consistent", action=optional,
        help="project the result onto the input  (default: if the above is given)")  # fmt: skip
    add = parser.add_argument_group("speed").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--threads", type=int_between(0), default=0, help="CPU threads; 0: PyTorch's choice")
    add("--workers", type=int_between(0, 64), default=0,
        help="pictures read and written at a time; 0: CPU threads and one more")  # fmt: skip
    add("--batch-size", type=int_between(1), default=8, help="slices at a time")
    add("--bf16", action=optional,
        help="faster, some pixels 1 or 2 grey levels off  (default: if the CPU can)")  # fmt: skip
    add("--tile", type=int_between(1), default=360,
        help="longer edges are cut into tiles of this many pixels")  # fmt: skip
    add("--shard", type=shard, metavar="I/N",
        help="be worker I of N: do every N-th input  (default: as torchrun says)")  # fmt: skip
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    for i, word in enumerate(words[:-1]):  # a path behind it is no N
        if word == "--through-plane" and not re.fullmatch(r"-?[\d.]+", words[i + 1]):
            words[i] = "--through-plane=0"
    args = parser.parse_args(words)
    check(args, parser)
    return args


def check(args, parser) -> None:
    """Refuse what does not go together, and fill in what follows from the rest."""
    if args.degradation == "help":
        from degradation import print_degradations

        raise SystemExit(print_degradations())
    args.images += args.image or []
    if not args.images:
        parser.error("name a picture, a scan or a folder of them")
    if args.blur is not None and not 0.1 <= args.blur <= 5:
        parser.error("--blur takes 0.1 to 5 pixels")
    if args.noise is not None and not 0.0001 <= args.noise <= 0.3:
        parser.error("--noise takes a share of white, 0.0001 to 0.3; 0.02 is 2 %")
    args.degradation = given_degradation(args.degradation, args.blur, args.noise)
    if args.consistent and not (args.degradation or args.simulate):
        parser.error("--consistent needs to know how the input was made: --degradation")
    ways = ("voxel_size", "scale", "through_plane")
    if sum(getattr(args, way) is not None for way in ways) > 1:
        parser.error("--voxel-size, --scale, --through-plane: give one of them")
    if args.through_plane == 1:
        parser.error("--through-plane 1 changes nothing")
    if args.simulate and (args.through_plane is not None or args.voxel_size):
        parser.error(
            "--simulate is for slices; evaluate.py --scale 4x1 scores what thick ones give"
        )
    if args.voxel_size is not None and not 0.5 <= args.voxel_size <= 10:  # as plan.py has it
        parser.error("--voxel-size takes 0.5 to 10 mm")
    args.images = [str(path) for path in args.images]
    if not any(not p or os.path.lexists(p) or glob.has_magic(p) for p in args.images):
        raise DataError(utils.no_such(args.images[0], args.images))  # before anything is loaded
    if args.labels and args.simulate:
        parser.error("--labels: a simulation leaves no scan that they could lie on")
    utils.QUIET = utils.QUIET or args.json


def given_degradation(name, blur, noise) -> str | None:
    """What the user says of the input with --degradation, --blur and --noise, as one name.

    Raises UsageError where options contradict one another.
    """
    from degradation import parse_degradation

    given = name, blur and f"blur-{blur:g}", noise and f"rician-{100 * noise:g}"
    parts = [part for part in given if part]
    try:
        parse_degradation("+".join(parts or ["bicubic"]))
    except UsageError as error:
        words = "--degradation" + ", --blur and --noise do not agree" * (len(parts) > 1)
        raise UsageError(f"{words}: {error}") from None
    return "+".join(parts) or None


def shard(text: str) -> tuple[int, int]:
    """An argparse type: `2/8`, counted from 0 or from 1, as (index from 0, number)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) <= int(n) and int(n) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return int(i) % int(n), int(n)


# --- one input ------------------------------------------------------------------------------------


@dataclass
class Task:
    """An input on its way: what was read of it, its plan, what its results are called and made
    from, the warnings so far."""

    job: object
    scan: object
    plan: object
    label: str
    labels: object
    made: dict
    warnings: list


def open_input(job, upscaler, args) -> Task:
    """Read an input and decide what it becomes. Raises DataError, also for what would only fail
    when the work is done: where results go, and labels that do not fit."""
    import scans
    from inference.plan import plan_of
    from inference.sidecar import made_from

    made, warnings, scale = made_from(job, upscaler, options_of(args)), [], args.scale
    if args.simulate:
        scale = scale or max((s[0] for s in upscaler.scales if s[0] == s[1]), default=4)
    with collected_warnings(warnings):
        scan = scans.read(job.source, job.files, series=job.series, kind=job.kind, force=args.force)
        plan = plan_of(
            scan, upscaler.scales, scale=scale, through_plane=args.through_plane,
            voxel_size=args.voxel_size, plane=args.axis,
        )  # fmt: skip
    size = scan.stored.nbytes * plan.scale**2 * plan.through
    if size > LARGE and not args.simulate:
        note(f"{job.source}: the result takes about {size / 2**30:.1f} GB before compression")
    label = "simulated_" * args.simulate + plan.label
    job = job.beside_others(label, args.overwrite)
    labels = read_labels(args.labels, scan) if args.labels else None
    job.make_folder()
    return Task(job, scan, plan, label, labels, made, warnings)


def options_of(args) -> dict:
    """The options that change a result, but for those that say nothing."""
    return {name: getattr(args, name) for name in OPTIONS if getattr(args, name)}


def write_result(task: Task, upscaler, new, errors, figure) -> tuple:
    """Write an enlarged scan, its error map, figure, label map and record: (files, record)."""
    import scans
    from evaluation.before_after import draw
    from inference.sidecar import ERROR, record

    job, label, figures = task.job, task.label, []
    with collected_warnings(task.warnings), begun(task):
        tell(task, new.about)
        if figure:
            figures = [job.file(label, "_figure.png")]
            draw(figures[0], task.scan, new, task.plan, errors)
        results = [scans.write(new, job.file(label, ""))]
        if task.labels:
            results.append(write_labels(task, new))
        if errors is not None:
            results.append(scans.write(errors, job.file(label + ERROR, "")))
    about = record(job, upscaler, task.scan, new, errors, task.made, task.warnings)
    about["Results"] = [path.name for path in results]
    paths = [*results, write_json(job.file(label, ".json"), about), *figures]
    if job.dataset and errors is not None:  # where each image needs a sidecar
        words = "Expected absolute error: " + about["Description"]
        write_json(job.file(label + ERROR, ".json"), about | {"Description": words})
    return paths, about


@contextmanager
def begun(task: Task):
    """A record without results lies there while these are written: what a kill leaves is known as
    ours, and as unfinished. It goes again if nothing could be written."""
    from inference.sidecar import source_of, write_description

    job, path = task.job, task.job.file(task.label, ".json")
    write_json(path, {**task.made, "Sources": [source_of(job)]})
    try:
        if job.dataset:
            write_description(job.output, job.dataset)
        yield
    except DataError:
        results = (job.file(task.label, end) for end in (".png", ".tif", ".nii.gz", ".csv"))
        if not any(map(os.path.exists, results)):
            path.unlink(missing_ok=True)
        raise


def read_labels(path, scan):
    """The label map of a scan. Raises DataError if it has another grid than the scan."""
    import numpy as np

    import scans

    labels = scans.read(path, force=True)
    same = not labels.is_picture and labels.stored.shape[:3] == scan.stored.shape[:3]
    if not same or not np.allclose(labels.affine, scan.affine, atol=0.01):
        raise DataError(f"{path}: lies on another grid than {scan.path}")
    return labels


def write_labels(task: Task, new) -> Path:
    """Bring the label map of a scan onto the grid of its result: each voxel gets the label of the
    one it lies in."""
    import numpy as np

    import scans
    from scans.formats import stem

    labels = task.labels
    nearest = [
        np.minimum((np.arange(m) + 0.5) * n // m, n - 1).astype(int)
        for n, m in zip(labels.stored.shape, new.stored.shape[:3])
    ]
    enlarged = labels.resampled(labels.stored[np.ix_(*nearest)])
    own = stem(labels.path).removeprefix(task.job.name).strip("_") or "labels"
    return scans.write(enlarged, task.job.folder / f"{task.job.name}_{task.label}_{own}")


def tell(task: Task, about: dict) -> None:
    """Say what was decided and found; of many inputs warnings are only kept for the record."""
    source, shown = task.job.source, not task.job.batch
    if shown:
        note(f"{source}: {task.plan.words}")
        if about.get("DegradationFrom") == "estimated":
            note(f"{source}: found {about['Degradation']}")
    if "a guess" in task.plan.words and not task.scan.is_picture:  # of these it is only a hint
        warn(f"{source}: finer than anything measured, a guess", False)
    if about.get("Unusual"):
        words = f"unlike all images that the network learned from ({about['Unusual']}); check it"
        warn(f"{source}: {words}", shown)
    if about.get("FoundInstead"):
        words = f"was said to be {about['Degradation']}; found instead: {about['FoundInstead']}"
        warn(f"{source}: {words}; a wrong word is worse than none", shown)


def enlarge_scan(job, upscaler, args, figure: bool) -> tuple[list[Path], dict]:
    """Read, upscale and write one scan."""
    task = open_input(job, upscaler, args)
    if task.scan.times > 1:
        words = f"holds {task.scan.times} volumes; each is upscaled, as if it were anatomy"
        note(f"{job.source}: {words}")
    try:
        with collected_warnings(task.warnings):
            found = upscaler.follow(task.plan, task.scan, job.source.name)
            new, errors = found if upscaler.calibrations else (found, None)
            if args.error_map and errors is None:
                warn(f"{job.source}: no error map: the network had nothing to add")
        return write_result(task, upscaler, new, errors, figure)
    except MemoryError:
        raise too_large(task) from None


def enlarge_pictures(tasks: list[Task], upscaler) -> list:
    """Upscale pictures together: for each (picture, errors or None), or a DataError."""
    if not tasks:
        return []
    try:
        found = upscaler.pictures([task.scan for task in tasks], tasks[0].plan.scale)
    except MemoryError:
        return [too_large(task) for task in tasks]
    for task, (new, _) in zip(tasks, found):
        new.about["Plan"] = task.plan.words
    return found


def too_large(task: Task) -> DataError:
    return DataError(f"{task.job.source}: is too large for this machine's memory")


# --- simulation -----------------------------------------------------------------------------------


def simulate(job, upscaler, args, figure: bool) -> tuple[list[Path], dict]:
    """Shrink the slices of an input, upscale them, score them one by one: (files, record)."""
    import scans
    from evaluation.simulation import draw_simulation, score_stack, write_score_csv
    from inference.sidecar import record

    task = open_input(job, upscaler, args)
    job, scan, label = task.job, task.scan, task.label
    with collected_warnings(task.warnings), begun(task):
        found = score_stack(upscaler, scan, task.plan, args.degradation or "bicubic", job.source)
        task.plan.words = f"shrunk by {task.plan.scale} ({found.degradation}) and upscaled"
        found.about["Plan"] = task.plan.words
        tell(task, found.about)
        image = job.file(label, "_figure.png")
        figures = [draw_simulation(image, scan, found)] if figure else []
        if scan.is_picture:
            result = scans.write(found.example(scan), job.file(label, ""))
        else:
            result = write_score_csv(job.file(label, ".csv"), found.rows)
    new = scan.resampled(scan.stored, found.about)
    about = record(job, upscaler, scan, new, None, task.made, task.warnings)
    about |= {
        "Scores": found.scores,
        "DegradationFrom": "simulated",
        "Degradation": found.degradation,
        "Results": [result.name],
    }
    return [result, *figures, write_json(job.file(label, ".json"), about)], about


# --- all ------------------------------------------------------------------------------------------


def enlarge_all(jobs, upscaler, args, figure: bool):
    """Upscale all inputs: yields (job, (files, record) or DataError), pictures first.

    Pictures go through it in groups: while one is upscaled, the next is read and the last written.
    Scans go one by one.
    """
    pictures = [job for job in jobs if job.kind == "picture" and not args.simulate]
    yield from in_groups(pictures, upscaler, args, figure)
    one_by_one = simulate if args.simulate else enlarge_scan
    for job in jobs:
        if job.kind != "picture" or args.simulate:
            yield job, attempt(one_by_one, job, upscaler, args, figure)


def in_groups(jobs, upscaler, args, figure: bool):
    """Yield (job, (files, record) or DataError) of pictures."""
    import torch

    def read(job):
        return open_input(job, upscaler, args)

    def write(task, result):
        if isinstance(result, DataError):
            raise result
        return write_result(task, upscaler, *result, figure)

    written = deque()

    def finished():
        while written:
            job, future = written[0]
            result = future.result()
            written.popleft()
            yield job, result

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(args.workers or threads + 1) as pool:
        try:
            for group in groups_of(jobs, read, pool, threads * PIXELS):
                good = [task for _, task in group if isinstance(task, Task)]
                enlarged = iter(enlarge_pictures(good, upscaler))
                yield from finished()
                for job, task in group:
                    result = next(enlarged) if isinstance(task, Task) else task
                    written.append((job, pool.submit(attempt, write, task, result)))
            yield from finished()
        except KeyboardInterrupt:  # what is on its way to the disk arrives there, and counts
            yield from finished()
            raise


def groups_of(jobs, read, pool, pixels: int):
    """Lists of (job, Task or DataError) of about so many pixels; some are read ahead of their
    use."""
    ahead, group, size = deque(), [], 0
    for i, job in enumerate(jobs):
        while len(ahead) < AHEAD and i + len(ahead) < len(jobs):
            ahead.append(pool.submit(attempt, read, jobs[i + len(ahead)]))
        task = ahead.popleft().result()
        group.append((job, task))
        size += task.scan.stored.size if isinstance(task, Task) else 0
        if size >= pixels:
            yield group
            group, size = [], 0
    if group:
        yield group


def attempt(work, *given):
    """What work gives, or the DataError that it raises."""
    try:
        return work(*given)
    except DataError as error:
        return error


def is_finished(job, upscaler, args) -> bool:
    """Whether the result of just this is there; not if the input cannot be read."""
    from inference.sidecar import made_from

    made = attempt(made_from, job, upscaler, options_of(args))
    return not isinstance(made, DataError) and job.finished(made)


def main(argv=None):
    args = arguments(argv)
    import torch

    from inference import Upscaler
    from inference.inputs import find_jobs
    from inference.tiling import tune_malloc

    tune_malloc()
    if args.threads:
        torch.set_num_threads(args.threads)
    jobs, missing = find_jobs(args.images, args.output, args.series, args.force)
    if args.labels and (len(jobs) != 1 or jobs[0].kind == "picture"):
        raise UsageError("--labels belong to one scan; name that alone")
    device = utils.pick_device(args.device)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # A simulation shrinks by it; only to project the result onto the LR it is told, too.
    given = args.degradation if not args.simulate or args.consistent else None
    upscaler = Upscaler(
        args.weights, device, degradation=given, error_map=args.error_map,
        consistent=args.consistent, bf16=args.bf16, tile=args.tile, batch_size=args.batch_size,
    )  # fmt: skip
    note(f"weights: {upscaler.path if args.weights else upscaler.path.name}")
    if args.axis != "auto" and {job.kind for job in jobs} == {"picture"}:
        warn("--axis does nothing for pictures")
    if args.series and not any(job.files for job in jobs):
        warn("--series does nothing: these are no DICOM series")
    if args.degradation and upscaler.network.estimator is None:
        warn("what is said of the degradation only projects: these weights cannot be told")

    # Of several inputs: my share, without what is finished.
    every, mine, batch, counts = jobs, jobs, any(job.batch for job in jobs), Counter()
    torchrun = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if batch:
        share, of = args.shard or torchrun
        mine = jobs[share::of]
        jobs = mine
        if not (args.overwrite or args.simulate):
            jobs = [job for job in mine if not is_finished(job, upscaler, args)]
        counts["finished before (--overwrite does them again)"] = len(mine) - len(jobs)
        if len(jobs) >= MANY:
            note(f"{len(jobs)} inputs; stopped with Ctrl-C, the same command goes on from there")
    figure = args.figure if args.figure is not None else args.report or not batch
    # Closed here: threads that the garbage collector must end can wait for one another for ever.
    with closing(enlarge_all(jobs, upscaler, args, figure)) as found:
        scores, left = run_jobs(jobs, found, args, batch and torchrun[0] == 0, counts)
    counts["failed"] += len(missing)
    if batch:
        words = ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to do"
        where = {str(job.output) for job in jobs}
        note(words + (f"; results in {', '.join(sorted(where))}" if where else ""))
    if args.report:  # of several workers each knows its own alone
        write_reports(every, missing, left if len(mine) == len(every) else {})
    if scores and not args.json:
        print_scores(scores, args.degradation or "bicubic")
    return 1 if counts["failed"] else 0


def write_reports(jobs, missing: list, left: dict) -> None:
    """A page of all results for each output folder. left: of `run_jobs`."""
    from evaluation.report import write_report

    for folder in sorted({str(job.output) for job in jobs}):
        note(f"written: {write_report(Path(folder), missing + left.get(folder, []))}")


def run_jobs(jobs, found, args, bar: bool, counts: Counter) -> tuple[list[dict], dict]:
    """Do all jobs, print and count what came of them: (scores of simulations, {output folder: what
    is said of inputs that gave no result})."""
    from inference.plan import FineAlready

    scores, left = [], {}
    with progress(total=len(jobs), unit="input", disable=not bar or not jobs) as moving:
        try:
            for job, result in found:
                moving.update()
                failed = isinstance(result, DataError)
                what = "failed" if failed else "upscaled"
                what = "left as they are" if isinstance(result, FineAlready) else what
                counts[what] += 1
                if isinstance(result, WriteError):
                    result = DataError(f"{result}; choose another --output DIR")
                if what == "failed" and not job.batch:
                    raise result
                say(job, result, args)
                if failed:
                    left.setdefault(str(job.output), []).append(str(result))
                else:
                    warned = bool(result[1]["Warnings"])
                    counts["with warnings (in their .json)"] += warned
                    scores += [result[1]["Scores"]] if "Scores" in result[1] else []
        except KeyboardInterrupt:
            if any(job.batch for job in jobs) and not args.overwrite:
                done = sum(counts[word] for word in ("upscaled", "failed", "left as they are"))
                warn(f"interrupted after {done} of {len(jobs)}; the same command goes on from here")
            raise
    return scores, left


def say(job, result, args) -> None:
    """Print what came of one input: for programs a line of JSON, for people the files."""
    failed = isinstance(result, DataError)
    if args.json:
        about = {"error": str(result)} if failed else result[1]
        files = [] if failed else [str(path) for path in result[0]]
        print(json.dumps({"input": str(job.source), "files": files, **about}), flush=True)
    elif failed and job.batch:
        warn(f"skipped: {result}")
    elif failed:  # there is nothing to gain
        print(one_line(str(result)))
    elif not job.batch:
        for path in result[0]:
            note(f"written: {path}")


def print_scores(scores: list[dict], degradation: str) -> None:
    """The table of simulations: mean ± sd over inputs."""
    from evaluation.metrics import metrics_table, summarise

    print(f"LR by {degradation}, 8 bits; mean ± sd over {len(scores)} input(s)")
    rows = {name.lower(): [score[name] for score in scores] for name in ("Bicubic", "Network")}
    print(metrics_table({k: summarise(v, range(len(v))) for k, v in rows.items()}))


if __name__ == "__main__":
    run_main(main)

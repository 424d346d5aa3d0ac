"""Score weights against bicubic upsampling on the same slices.

    python evaluate.py                               the shipped weights, test people of ds002748
    python evaluate.py runs/mine/best.pt             the test people of the run's own data
    python evaluate.py a.pt b.pt --degradation all   every degradation, and a table of gains
    python evaluate.py --scale 4x1 --data VOLUMES    four slices made of each thick one

Through the slices whole volumes are scored, against cubic and linear interpolation.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

import dataset
from degradation import (
    CELLS,
    THROUGH,
    full_name,
    parse_scale,
    print_degradations,
    scale_name,
)
from evaluation import pairs
from evaluation.figures import examples_figure
from evaluation.metrics import metrics_table, note_legend
from evaluation.scoring import example_of, gains_table, score_slices, table_of
from evaluation.volume_scores import volume_scores
from inference import Upscaler
from inference.checkpoints import load_checkpoint
from inference.upscaler import DEFAULT
from scans.formats import kind_of
from scans.listing import training_scans
from scans.splits import split_subjects
from scans.subjects import person_key
from training.run_folder import read_config
from utils import (
    DataError,
    Parser,
    UsageError,
    atomic_write,
    note,
    pick_device,
    progress,
    run_main,
    warn,
    write_json,
)

FILES = ("json", "csv", "examples")


# --- the command line -----------------------------------------------------------------------------


def parser_of() -> Parser:
    text, examples, *_ = __doc__.split("\n\n")
    parser = Parser(text, examples=examples)
    add = parser.add_argument
    add("weights", nargs="*", help="weights to compare  (default: weights/brain.pt)")
    add("--scale", type=parse_scale,
        help="2, 3, 4; through thick slices 2x1 ... 6x1  (default: 4 if they can)")  # fmt: skip
    add("--data", help="folder of pictures or volumes  (default: that of the weights' run, else "
        "data/ds002748)")  # fmt: skip
    add("--pairs", nargs=2, metavar=("LR", "HR"),
        help="two folders of ready pairs, files of one name (or two files)")  # fmt: skip
    add("--split", choices=("train", "val", "test", "all"),
        help="subjects to score; all: every slice of the folder  (default: test)")  # fmt: skip
    add("--degradation", nargs="+", metavar="NAME",
        help="how LR is made, one table each; all: every one of docs/STUDY.md  "
        "(default: bicubic; through the slices: box)")  # fmt: skip
    add("--told", action="store_true", help="tell networks that take it the true degradation")
    add("--alone", action="store_true", help="each slice without its neighbours")
    add("--consistent", action="store_true",
        help="a second row each: the result projected onto the measured LR slice")  # fmt: skip
    dataset.add_data_arguments(add)
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--json", metavar="FILE", help="write the tables as JSON too")
    add("--csv", metavar="FILE", help="write the scores of each slice")
    add("--examples", metavar="FILE", help="draw slices of best, median and worst gain of the "
        "first weights; of several degradations the worst of each")  # fmt: skip
    return parser


def arguments(argv=None):
    """(arguments, {weights: config of their run}); what is not given is that of the runs."""
    parser = parser_of()
    usual = {name: parser.get_default(name) for name in dataset.DATA_OPTIONS}
    parser.set_defaults(**dict.fromkeys(usual))
    args = parser.parse_args(argv)
    if args.degradation == ["help"]:
        raise SystemExit(print_degradations())
    args.weights = args.weights or [str(DEFAULT)]
    configs = {path: read_config(Path(path).parent) for path in args.weights}
    moved = args.data is not None  # the split of another folder is this one's business
    for name, value in usual.items():
        found = {}
        for config in configs.values():
            if config and name != "cache" and not (moved and name == "subjects"):
                taken = config["arguments"].get(name, value)
                found[repr(taken)] = taken
        if getattr(args, name) is None:
            if len(found) > 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag}: the runs of the weights differ in it; give it")
            setattr(args, name, next(iter(found.values()), value))
    # The runs kept these out of val and test.
    args.seen = sorted({p for c in configs.values() for p in c.get("people_of_weights", ())})
    if args.data == "":
        parser.error("--data: is empty")
    for name in FILES:
        flag, path = "--" + name, getattr(args, name)
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            parser.error(f"{flag} {path}: is a folder, or lies in none")
        if path and Path(path).resolve() in {Path(c).resolve() for c in args.weights}:
            parser.error(f"{flag} {path}: are weights, and would be overwritten")
    if args.pairs and (args.degradation or args.told or args.consistent or moved or args.split):
        parser.error("--pairs are degraded already, and all are scored: no --degradation, --told, "
                     "--consistent, --data, --split")  # fmt: skip
    if args.pairs and args.examples:
        parser.error("--examples draws slices that were degraded here, no --pairs")
    args.split = "pairs" if args.pairs else args.split or "test"
    return args, configs


def load_upscalers(args, device) -> dict[str, Upscaler]:
    """{path: Upscaler}, all of one scale; fills in the scale and the degradations."""
    upscalers = {path: Upscaler(path, device, bf16=False) for path in args.weights}
    shared = [s for s in next(iter(upscalers.values())).scales
              if all(s in upscaler.scales for upscaler in upscalers.values())]  # fmt: skip
    if not shared:
        words = (
            f"{path} by {' and '.join(map(scale_name, up.scales))}"
            for path, up in upscalers.items()
        )
        raise UsageError(f"these weights enlarge by different factors: {', '.join(words)}")
    args.scale = args.scale or ((4, 4) if (4, 4) in shared else shared[0])
    for upscaler in upscalers.values():
        upscaler.scale_of(args.scale)  # refuses what is not there
    if args.told and all(up.network.estimator is None for up in upscalers.values()):
        raise UsageError("--told: none of these networks takes a description of the degradation")
    names = args.degradation or (["box"] if 1 in args.scale else ["bicubic"])
    if "all" in names:  # the big table of docs/STUDY.md
        names = THROUGH if 1 in args.scale else CELLS
    args.degradation = list(dict.fromkeys(full_name(name, args.scale) for name in names))
    return upscalers


def people_known(path, config: dict) -> tuple[list[str] | None, str]:
    """(people in the training of a checkpoint and of those it began with, who of them list nobody).

    config: that of its run, or {}. None instead of people: it does not say.
    """
    people, unlisted = load_checkpoint(path).get("people"), ""
    if people is None and config:  # of one that began with weights that list nobody
        parts = config.get("subjects", {})
        people = [*parts.get("train", ()), *parts.get("val", ())]
        people += config.get("people_of_weights", ())
        unlisted = config.get("weights_without_people", "")
    return people, unlisted


def warn_if_trained_on(args, configs, subjects) -> None:
    """Whether the subjects that are scored were trained on: said where it is not certain."""
    for path, config in configs.items():
        people, unlisted = people_known(path, config)
        keys = {person_key(str(person)) for person in people or ()}
        both = [s for s in sorted(set(subjects)) if person_key(s) in keys]
        if both and args.split != "train":
            words = f"{len(both)} of these {len(set(subjects))} subjects ({', '.join(both[:5])})"
            warn(f"{path}: {words} are (or are called as) subjects that it was trained on or that "
                 "chose it")  # fmt: skip
        if unlisted or people is None:
            words = f" ({unlisted}, which it began with, lists none)" if unlisted else ""
            warn(f"{path}: does not say who was in its training{words}: nobody knows whether these "
                 "subjects were")  # fmt: skip


# --- what is scored -------------------------------------------------------------------------------


def load_slices(args):
    """The slices to score."""
    options = {name: getattr(args, name) for name in dataset.DATA_OPTIONS}
    parts, _ = dataset.load_parts(**options, split=args.split != "all", seen=args.seen)
    if not len(parts[args.split]):
        raise nobody(args, args.split)
    return parts[args.split]


def nobody(args, split: str) -> DataError:
    others = ", ".join(name for name in ("val", "train", "all") if name != split)
    return DataError(
        f"{args.data or dataset.OWN_DATA}: has no subjects in {split}; --split {others}, or --data "
        "another folder"
    )


def score_volumes(args, upscalers):
    """({degradation: {name: rows}}, subjects) of whole volumes, through the slices."""
    root = Path(args.data or dataset.OWN_DATA)
    scans, doubt = training_scans(root, args.subjects, args.each_file_a_subject)
    if doubt and args.split == "all":
        warn(f"{doubt}; now all count as scans of one unknown subject")
        scans = [replace(scan, subject=dataset.UNKNOWN) for scan in scans]
    if args.split != "all":
        if doubt:
            raise DataError(doubt)
        split = split_subjects(scans, args.seed, seen=args.seen)
        scans = [scan for scan in scans if split[scan.subject] == args.split]
        if not scans:
            raise nobody(args, args.split)
    scans = [s for s in scans if s.files or kind_of(s.path) in ("volume", "dicom")]
    if not scans:
        raise DataError(
            f"{root}: holds pictures only; give --data a folder of scans with thin slices"
        )
    rows = {name: {} for name in args.degradation}
    for i, scan in enumerate(progress(scans, desc="scoring", unit="volume")):
        hr, sizes = dataset.ras_intensities(scan.path, scan.files, scan.series)
        if sizes[2] > 1.6 * min(sizes):
            raise DataError(f"{scan.path}: its slices are thick themselves: nothing to score with")
        for name, found in rows.items():
            for upscaler in upscalers.values():
                upscaler.degradation = name if args.told else None
            scores = volume_scores(upscalers, hr, sizes, name, args.scale[0], i)
            for label, row in scores.items():
                about = {"name": str(scan.path), "subject": scan.subject}
                gain = {"gain": row["psnr"] - scores["cubic"]["psnr"]}
                found.setdefault(label, []).append(about | row | gain)
    return rows, [scan.subject for scan in scans]


# --- the end --------------------------------------------------------------------------------------


def write_csv(path, rows: dict) -> None:
    """One line a degradation, method and slice."""
    first = next(iter(next(iter(rows.values())).values()))[0]
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, ["degradation", "method", *first], lineterminator="\n")
        writer.writeheader()
        for degradation, found in rows.items():
            for method, scores in found.items():
                words = {"degradation": degradation, "method": method}
                writer.writerows(words | row for row in scores)


def draw_examples(args, upscaler, slices, rows: dict) -> list[str]:
    """Draw slices of best, median and worst gain, or the worst of each degradation; in words."""
    chosen, words = [], []
    for degradation, found in rows.items():
        gains = [row["gain"] for row in list(found.values())[1]]
        order = np.argsort(gains)
        places = {"worst": order[0]}
        if len(rows) == 1:
            places = {"best": order[-1], "median": order[len(order) // 2]} | places
        for what, i in places.items():
            example = example_of(upscaler, slices, int(i), degradation, args.scale, found)
            example.name = f"{what}{f': {degradation}' * (len(rows) > 1)}\n{example.name}"
            chosen.append(example)
            gain = f"{gains[i]:+.2f} dB over bicubic"
            words.append(f"{degradation}: {what} gain, {gain}: {slices.name[i]}")
    examples_figure(args.examples, chosen[:20], errors=True)
    return words


def main(argv=None):
    args, configs = arguments(argv)
    upscalers = load_upscalers(args, pick_device(args.device))
    through, slices, rows = 1 in args.scale, None, {}
    if through and (args.pairs or args.examples or args.consistent or args.alone):
        raise UsageError("--pairs, --examples, --consistent, --alone: not through the slices")
    if through:
        rows, subjects = score_volumes(args, upscalers)
        n = len(subjects)
        what = f"{dataset.subjects_in_words(subjects)}, {n} whole volume{'s' * (n != 1)}"
        warn_if_trained_on(args, configs, subjects)
    elif args.pairs:
        found = pairs.pairs_of(*map(Path, args.pairs))
        rows["as given"] = pairs.score_pairs(upscalers, found, args.scale[0], args.axis)
        subjects, n = {subject for *_, subject in found}, len(rows["as given"]["bicubic"])
        what = f"{dataset.subjects_in_words(subjects)}, {n} pair{'s' * (n != 1)} of slices"
    else:
        slices = load_slices(args)
        what = slices.counts()
        warn_if_trained_on(args, configs, slices.subject.tolist())
        for name in args.degradation:
            for upscaler in upscalers.values():
                upscaler.degradation = name if args.told else None
            rows[name] = score_slices(
                upscalers, slices, name, args.scale, consistent=args.consistent, alone=args.alone,
                word=name,
            )  # fmt: skip
    tables = {name: table_of(found, upscalers, args.scale) for name, found in rows.items()}
    how, text = ", told" * args.told + ", alone" * args.alone, ""
    for name, table in tables.items():
        print(f"{args.split}: {what}; x{scale_name(args.scale)}, LR by {name}{how}")
        text = metrics_table(table)
        print(text + "\n")
    print(gains_table(tables))
    note_legend(text)
    write_results(args, rows, tables)
    if args.examples and slices is not None:
        for line in draw_examples(args, next(iter(upscalers.values())), slices, rows):
            print(line)
        note(f"written: {args.examples}")


def write_results(args, rows, tables) -> None:
    """The files that were asked for, but for the examples."""
    if args.json:
        about = {"data": args.pairs or args.data or "data/ds002748", "split": args.split}
        about |= {"seed": args.seed, "scale": scale_name(args.scale), "told": args.told}
        note(f"written: {write_json(args.json, about | {'results': tables})}")
    if args.csv:
        write_csv(args.csv, rows)
        note(f"written: {args.csv}")


if __name__ == "__main__":
    run_main(main)

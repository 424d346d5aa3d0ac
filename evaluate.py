"""Score checkpoints against bicubic upsampling on the same slices.

    python evaluate.py weights/x4.pt                  on the test people of data/ds002748
    python evaluate.py runs/mine/best.pt              on the test people of the run's own data
    python evaluate.py a.pt b.pt --degradation all    every degradation, a table of gains

Networks that enlarge through the slices (--scale 4x1 in training) are scored on whole volumes,
against cubic and linear interpolation.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import dataset
import modules
from degradation import ALL, full_name, scale_name
from evaluation.figures import examples_figure, worst_figure
from evaluation.metrics import gains_over, metrics_table, note_legend
from evaluation.plots import cost_figure, curves_figure
from evaluation.scoring import example_of, gains_table, score_slices, table_of
from inference import through_plane
from inference.checkpoints import load_checkpoint
from scans.dicom import read_scan
from scans.listing import files_below, subjects_of
from scans.pictures import read_picture
from scans.subjects import person_key
from scans.volumes import RESULTS, intensity_range, kind_of, slices_of, stem, to_ras
from training.run_folder import loss_curve, read_config
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

SHIPPED = Path(__file__).with_name("weights")
THROUGH = ("box", "slab-0.8", "slab-1.2", "blur-1", "box+rician-2")  # `all`, through the slices
FILES = ("json", "csv", "curves", "cost", "examples")


# --- the command line -----------------------------------------------------------------------------


def parser_of() -> Parser:
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("checkpoint", nargs="+", help="weights to compare, of one scale")
    add("--data", help="folder of pictures or volumes  (default: that of the checkpoints' run, "
        "else data/ds002748)")  # fmt: skip
    add("--pairs", nargs=2, metavar=("LR", "HR"),
        help="two folders of ready pairs, files of one name (or two files)")  # fmt: skip
    add("--split", choices=("train", "val", "test", "all"),
        help="subjects to score; all: every slice of the folder  (default: test)")  # fmt: skip
    add("--degradation", nargs="+", metavar="NAME",
        help="how LR is made, one table each; all: every one of STUDY.md  "
        "(default: bicubic; through the slices: box)")  # fmt: skip
    add("--told", action="store_true", help="tell networks that take it the true degradation")
    add("--consistent", action="store_true",
        help="a second row each: the result projected onto the measured LR slice")  # fmt: skip
    dataset.add_data_arguments(add)
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--json", metavar="FILE", help="write the tables as JSON too")
    add("--csv", metavar="FILE", help="write the scores of each slice")
    add("--curves", metavar="FILE", help="plot the loss curves of the checkpoints' runs, as PNG")
    add("--cost", metavar="FILE", help="plot PSNR against multiply-accumulates, as PNG")
    add("--examples", metavar="FILE", help="draw slices of best, median and worst gain of the "
        "first checkpoint; of several degradations the worst of each")  # fmt: skip
    return parser


def arguments(argv=None):
    """(arguments, {checkpoint: config of its run}); what is not given is that of the runs."""
    parser = parser_of()
    usual = {name: parser.get_default(name) for name in dataset.DATA_OPTIONS}
    parser.set_defaults(**dict.fromkeys(usual))
    args = parser.parse_args(argv)
    configs = {path: read_config(Path(path).parent) for path in args.checkpoint}
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
                raise UsageError(f"{flag}: the runs of the checkpoints differ in it; give it")
            setattr(args, name, next(iter(found.values()), value))
    # The runs kept these out of val and test.
    args.seen = sorted({p for c in configs.values() for p in c.get("people_of_weights", ())})
    if args.data == "":
        parser.error("--data: is empty")
    for name in FILES:
        flag, path = "--" + name, getattr(args, name)
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            parser.error(f"{flag} {path}: is a folder, or lies in none")
        if path and Path(path).resolve() in {Path(c).resolve() for c in args.checkpoint}:
            parser.error(f"{flag} {path}: is a checkpoint, and would be overwritten")
    if args.pairs and (args.degradation or args.told or args.consistent or moved or args.split):
        parser.error("--pairs are degraded already, and all are scored: no --degradation, --told, "
                     "--consistent, --data, --split")  # fmt: skip
    if args.pairs and args.examples:
        parser.error("--examples draws slices that were degraded here, no --pairs")
    return args, configs


def load_networks(args, device) -> dict:
    """{path: network}, all of one scale."""
    networks = {}
    for path in args.checkpoint:
        networks[str(path)] = modules.load_network(load_checkpoint(path), path).to(device)
    scales = {network.scale: path for path, network in networks.items()}
    if len(scales) > 1:
        (a, first), (b, second), *_ = scales.items()
        raise UsageError(
            f"{first} enlarges by {scale_name(a)}, {second} by {scale_name(b)}: evaluate them one "
            "at a time"
        )
    if args.told and not any(network.told for network in networks.values()):
        raise UsageError("--told: none of these networks takes a description of the degradation")
    through = 1 in next(iter(scales))
    names = args.degradation or (["box"] if through else ["bicubic"])
    if "all" in names:
        names = THROUGH if through else ALL
    args.degradation = list(dict.fromkeys(full_name(name, next(iter(scales))) for name in names))
    return networks


def people_known(path, config: dict) -> tuple[list[str] | None, str]:
    """(people in the training of a checkpoint and of those it began with, who of them list nobody).

    config: that of its run, or {}. None instead of people: it does not say.
    """
    people, unlisted = load_checkpoint(path).get("people"), ""
    if people is None and config:  # of an older run, or one that began with older weights
        parts = config.get("subjects", {})
        people = [*parts.get("train", ()), *parts.get("val", ())]
        people += config.get("people_of_weights", ())
        unlisted = ", ".join(config.get("weights_without_people", ()))
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
        shipped = people is None and Path(path).resolve().parent == SHIPPED and not args.data
        if shipped and args.split not in (None, "test"):
            warn(f"{path}: was trained on the train subjects of ds002748, or chosen by them")
        elif unlisted or (people is None and not shipped):
            words = f" ({unlisted}, which it began with, lists none)" if unlisted else ""
            warn(f"{path}: does not say who was in its training{words}: nobody knows whether these "
                 "subjects were")  # fmt: skip


# --- what is scored -------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Ready LR and HR slices, float32 (H, W) in [0, 1]; used like dataset.Slices."""

    lr: list
    hr: list
    subject: list
    name: list

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.hr[i]

    @property
    def shape(self) -> np.ndarray:
        return np.array([pixels.shape for pixels in self.hr])

    def counts(self) -> str:
        people, pairs = dataset.subjects_in_words(self.subject), len(self)
        return f"{people}, {pairs} pair{'s' * (pairs != 1)} of slices"


def stack_of(path: Path, plane: str, limits=None):
    """The slices (S, H, W) of a picture or a volume in [0, 1], and the values that are 0 and 1.

    limits: such values of its pair, as both must have the same; None: its own.
    """
    if kind_of(path) in ("volume", "dicom"):
        volume = read_scan(path)
        values = slices_of(to_ras(volume.intensities(), volume.affine), plane)
        low, high = limits or intensity_range(values)
    else:
        picture = read_picture(path)
        if picture.dtype == "uint8":  # 255 is white in both
            return picture.pixels[None], None
        values = picture.pixels[None] * (picture.high - picture.low) + picture.low
        low, high = limits or (picture.low, picture.high)
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32), (low, high)


def load_pairs(args, scale) -> Pairs:
    """The pairs of two folders, files of one name, or of two files."""
    low, high = (Path(path) for path in args.pairs)
    if high.is_dir() != low.is_dir() or not (low.exists() and high.exists()):
        raise UsageError(f"--pairs {low} {high}: takes two folders, or two files, that exist")
    if high.is_dir():
        found, doubt = subjects_of(*files_below(high))
        if doubt:
            warn(
                f"{high}: cannot tell whose slices these are ({doubt}); all count as of one subject"
            )
            found = [replace(scan, subject=dataset.UNKNOWN) for scan in found]
        scans = {s.path: s.subject for s in found if s.left_out != RESULTS}
        files = {low / path.relative_to(high): path for path in scans}
        alone = [s.path for s in dataset.find_scans(low) if s.left_out != RESULTS]
        alone = [path for path in alone if path not in files]
        if alone:
            warn(f"{len(alone)} of {low} have no file of the same name in {high} ({alone[0].name})")
    else:
        scans, files = {high: stem(high)}, {low: high}
    plane = args.axis if args.axis in ("coronal", "sagittal") else "axial"
    pairs = Pairs([], [], [], [])
    if not files:
        raise DataError(f"{high}: holds nothing but {RESULTS}")
    for small, large in files.items():
        if not small.exists():
            raise DataError(f"{small}: is missing; the LR of {large} must have the same name")
        hr, limits = stack_of(large, plane)
        lr, _ = stack_of(small, plane, limits)
        h, w = (n // s for n, s in zip(hr.shape[1:], scale))
        if lr.shape != (len(hr), h, w):
            sizes = ["x".join(map(str, x.shape)) for x in (lr, hr)]
            raise DataError(
                f"{small}: is {sizes[0]} (slices, rows, columns), {large} {sizes[1]}; at scale "
                f"{scale_name(scale)} LR must be {len(hr)}x{h}x{w} (the LR folder comes first)"
            )
        pairs.lr += list(lr)
        pairs.hr += list(hr)
        pairs.subject += [scans[large]] * len(hr)
        pairs.name += [f"{large}#{i}" for i in range(len(hr))] if len(hr) > 1 else [str(large)]
    return pairs


def load_slices(args):
    """The slices to score."""
    options = {name: getattr(args, name) for name in dataset.DATA_OPTIONS}
    parts, _ = dataset.load_parts(**options, split=args.split != "all", seen=args.seen)
    return parts[args.split or "test"]


def score_volumes(args, networks, scale, device):
    """({degradation: {name: rows}}, subjects) of whole volumes, for networks through the slices."""
    root = Path(args.data or dataset.OWN_DATA)
    scans, doubt = dataset.training_scans(root, args.subjects, args.each_file_a_subject)
    if doubt and args.split == "all":
        warn(f"{doubt}; now all count as scans of one unknown subject")
        scans = [replace(scan, subject=dataset.UNKNOWN) for scan in scans]
    if args.split != "all":
        if doubt:
            raise DataError(doubt)
        split = dataset.split_subjects(scans, args.seed, seen=args.seen)
        scans = [scan for scan in scans if split[scan.subject] == (args.split or "test")]
    for scan in scans:
        if not scan.files and kind_of(scan.path) not in ("volume", "dicom"):
            raise DataError(
                f"{scan.path}: is a picture; give --data a folder of scans with thin slices"
            )
    rows = {name: {} for name in args.degradation}
    for i, scan in enumerate(progress(scans, desc="scoring", unit="volume")):
        volume = read_scan(scan.path, scan.files, series=scan.series)
        if volume.sizes[2] > 1.6 * min(volume.sizes):
            raise DataError(f"{scan.path}: its slices are thick themselves: nothing to score with")
        values = to_ras(volume.intensities(), volume.affine)
        hr = through_plane.normalised(values)
        for name, found in rows.items():
            scores = through_plane.volume_scores(networks, hr, name, scale, args.told, device, i)
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


def draw_examples(args, network, slices, rows: dict, device) -> list[str]:
    """Draw slices of best, median and worst gain, or the worst of each degradation; in words."""
    chosen, gains, words = [], {}, []
    for degradation, found in rows.items():
        before, after = list(found.values())[:2]
        order = np.argsort(gains_over(after, before))
        gains[degradation] = gains_over(after, before)
        places = {"worst": order[0]}
        if len(rows) == 1:
            places = {"best": order[-1], "median": order[len(order) // 2]} | places
        for what, i in places.items():
            example = example_of(network, slices, int(i), degradation, found, device, args.told)
            example.name = f"{what}{f': {degradation}' * (len(rows) > 1)}\n{example.name}"
            chosen.append(example)
            gain = f"{gains[degradation][i]:+.2f} dB over bicubic"
            words.append(f"{degradation}: {what} gain, {gain}: {slices.name[i]}")
    if len(rows) == 1:
        examples_figure(args.examples, chosen, errors=True)
    else:
        worst_figure(args.examples, chosen[:20], gains)
    return words


def main(argv=None):
    args, configs = arguments(argv)
    device = pick_device(args.device)
    networks = load_networks(args, device)
    curves = {path: loss_curve(path) for path in networks} if args.curves else {}
    scale, slices = next(iter(networks.values())).scale, None
    through = 1 in scale
    if through and (args.pairs or args.examples or args.consistent):
        raise UsageError("--pairs, --examples, --consistent: not for networks through the slices")
    rows = {}
    if through:
        rows, subjects = score_volumes(args, networks, scale, device)
        n = len(subjects)
        what = f"{dataset.subjects_in_words(subjects)}, {n} whole volume{'s' * (n != 1)}"
    elif args.pairs:
        slices = load_pairs(args, scale)
        what, args.split = slices.counts(), "pairs"
        rows["as given"] = score_slices(networks, slices, None, scale, device, lr_slices=slices.lr)
    else:
        slices = load_slices(args)
        what = slices.counts()
        warn_if_trained_on(args, configs, slices.subject.tolist())
        for name in args.degradation:
            rows[name] = score_slices(
                networks, slices, name, scale, device, consistent=args.consistent, told=args.told,
                word=name,
            )  # fmt: skip
    if through:
        warn_if_trained_on(args, configs, subjects)
    tables = {name: table_of(found, networks) for name, found in rows.items()}
    told, text = ", told" * args.told, ""
    for name, table in tables.items():
        print(f"{args.split or 'test'}: {what}; x{scale_name(scale)}, LR by {name}{told}")
        text = metrics_table(table)
        print(text + "\n")
    print(gains_table(tables))
    note_legend(text)
    write_results(args, scale, rows, tables, curves)
    if args.examples and slices is not None and not args.pairs:
        for line in draw_examples(args, next(iter(networks.values())), slices, rows, device):
            print(line)
        note(f"written: {args.examples}")


def write_results(args, scale, rows, tables, curves) -> None:
    """The files that were asked for, but for the examples."""
    if args.json:
        about = {"data": args.pairs or args.data or "data/ds002748", "split": args.split or "test"}
        about |= {"seed": args.seed, "scale": scale_name(scale), "told": args.told}
        write_json(args.json, {**about, "results": tables})
    if args.csv:
        write_csv(args.csv, rows)
    if args.curves:
        curves_figure(args.curves, curves)
    if args.cost:
        cost_figure(args.cost, next(iter(tables.values())))
    for name in ("json", "csv", "curves", "cost"):
        if getattr(args, name):
            note(f"written: {getattr(args, name)}")


if __name__ == "__main__":
    run_main(main)

"""What the study's scripts share: test people, the results compared, numbers as JSON."""

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import dataset
import utils
from degradation import crop_to_scale, degrade
from evaluation.figures import NAMES
from inference.upscaler import DEFAULT
from modules import Interpolation

ROOT = Path(__file__).resolve().parent.parent
TEST = ROOT / "data/ds002748_volumes/test"
PIXEL = 0.868  # mm, of the test slices
SCALE = (4, 4)
INPUT, BICUBIC, OURS, TRUTH = NAMES
VERSIONS = (BICUBIC, OURS)
COLOURS = {TRUTH: "black", BICUBIC: "tab:gray", OURS: "tab:blue"}


def parser(description: str, slices: int = 20) -> utils.Parser:
    """The command line that all scripts share."""
    found = utils.Parser(description)
    add = found.add_argument
    add("--weights", type=Path, default=DEFAULT, help="checkpoint")
    add("--data", type=Path, default=TEST, help="folder with a volume of each test person")
    add("--slices", type=utils.int_between(1), default=slices, help="of each person, at the most")
    add("--degradation", default="bicubic", help="how LR slices are made")
    add("--seed", type=int, default=0, help="of noise and of random places")
    add("--out", type=Path, default=ROOT / "study/results", help="folder for the numbers")
    add("--pictures", type=Path, default=ROOT / "readme_resources", help="folder for the figures")
    return found


@dataclass
class Person:
    """The volume of a test person as axial slices, from the top down."""

    name: str
    hr: torch.Tensor  # (S, 1, H, W) in [0, 1], all slices
    places: list[int]  # of those that are looked at, evenly spaced
    numbers: list[int]  # as the file counts these, from below
    mm: tuple[float, float]  # from slice to slice, and the width of a pixel

    @property
    def distance(self) -> float:
        """How far slices are apart, in widths of LR pixels."""
        return self.mm[0] / self.mm[1] / SCALE[1]


def slices_of(args) -> dataset.Slices:
    """The axial slices of --data that are looked at."""
    options = dict(cache=ROOT / "runs/cache", split=False, quiet=True)
    return dataset.load_parts(data=args.data, slices=args.slices, **options)[0]["all"]


def people(args) -> list[Person]:
    """The test people of --data. Raises DataError for two volumes of a person."""
    slices, found = slices_of(args), {}
    for volume in dict.fromkeys(slices.volume.tolist()):
        chosen = np.flatnonzero(slices.volume == volume)
        first = chosen[0]
        file = Path(slices.name[first].rpartition("#")[0]).name
        name = file.partition("_")[0].partition(".")[0]
        if not file or name in found:
            words = "pictures are no scan" if not file else f"{name} has several volumes"
            raise utils.DataError(f"{args.data}: {words}; give a folder with one volume of each")
        hr = torch.from_numpy(slices.stack(first).astype(np.float32) / 255)[:, None]
        numbers = [int(slices.name[i].rpartition("#")[2]) for i in chosen]
        places = slices.place[chosen].tolist()
        mm = slices.spacing(first)
        found[name] = Person(name, crop_to_scale(hr, SCALE), places, numbers, mm)
    return list(found.values())


def versions(upscaler, hr: torch.Tensor, distance: float, args) -> dict[str, np.ndarray]:
    """{input, bicubic, this network, truth}: the slices (S, H, W) of a scan, in [0, 1].

    hr (S, 1, H, W): all of its slices. distance: as of `Upscaler.__call__`.
    """
    lr = degrade(hr, args.degradation, SCALE, seed=args.seed)
    sr = upscaler(lr[:, 0].numpy(), SCALE, distance)
    bicubic = Interpolation(SCALE)(lr).clamp(0, 1)
    return dict(zip(NAMES, (lr[:, 0].numpy(), bicubic[:, 0].numpy(), sr, hr[:, 0].numpy())))


def looked_at(upscaler, person: Person, args) -> dict[str, np.ndarray]:
    """`versions` of the slices of a person that are looked at; the network saw all."""
    shown = versions(upscaler, person.hr, person.distance, args)
    return {name: stack[person.places] for name, stack in shown.items()}


def mean_sd(values) -> dict:
    """Mean and sample standard deviation of one value per person, and their number."""
    values = np.array([v for v in values if v is not None and np.isfinite(v)], float)
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    mean = float(values.mean()) if len(values) else None
    return {"mean": mean, "sd": sd, "n": len(values)}


def text(value: dict, digits: int = 2) -> str:
    """`mean_sd` in words."""
    if value["mean"] is None:
        return "-"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def picture(args, name: str) -> Path:
    """Where the figure of this name is written."""
    args.pictures.mkdir(parents=True, exist_ok=True)
    return args.pictures / f"trust-{name}.png"


def command(name: str) -> str:
    """The command as one would type it: without folders of this machine, and where results go."""
    words = []
    for word in sys.argv[1:]:
        if words and words[-1] in ("--out", "--pictures"):
            words.pop()
        elif Path(word).is_absolute():
            inside = Path(word).is_relative_to(ROOT)
            place = Path(word).relative_to(ROOT) if inside else Path("DIR", *Path(word).parts[-2:])
            words.append(str(place))
        else:
            words.append(word)
    return shlex.join(["python", "-m", f"study.{name.split('-')[0]}", *words])


def save(args, name: str, result: dict) -> None:
    """Write result as study/results/NAME.json, with the command and the weights it came from."""
    about = {
        "command": command(name),
        "weights": args.weights.name,
        "weights_sha256": hashlib.sha256(args.weights.read_bytes()).hexdigest()[:16],
        "degradation": args.degradation,
        "seed": args.seed,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    with utils.atomic_write(args.out / f"{name}.json", "w") as file:
        json.dump(about | rounded(result), file, indent=1)


def rounded(value):
    """Numbers with four digits, so that a file of results can be read."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value

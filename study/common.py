"""What the study's scripts share: test slices by person, the versions compared, results as JSON."""

import hashlib
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataset
import modules
import utils
from degradation import (
    crop_to_scale,
    degrade,
    describe_degradation,
)
from inference import tiling
from inference.checkpoints import load_checkpoint, renamed

CACHE = ROOT / "runs/cache"  # of decoded volumes, wherever the script is started
PIXEL = 0.868  # mm, of the test slices


def parser(description: str, slices: int | None = 20) -> utils.Parser:
    """The command line that all scripts share."""
    weights = next((p for p in ("x4", "default") if (ROOT / f"weights/{p}.pt").exists()), "x4")
    found = utils.Parser(description)
    found.add_argument("--weights", default=f"{ROOT}/weights/{weights}.pt", help="checkpoint")
    found.add_argument(
        "--slices", type=utils.int_between(1), default=slices, help="of each person at the most"
    )
    found.add_argument("--degradation", default="bicubic", help="how LR slices are made")
    found.add_argument(
        "--told", action="store_true", help="tell the network the degradation; else it estimates it"
    )
    found.add_argument("--seed", type=int, default=0, help="of noise and of random places")
    found.add_argument("--out", type=Path, default=ROOT / "study/results", help="for the numbers")
    found.add_argument(
        "--pictures", type=Path, default=ROOT / "readme_resources", help="for the figures"
    )
    return found


def add_test_data(found: utils.Parser) -> None:
    """--data for the scripts that work on slices."""
    found.add_argument(
        "--data", type=Path, default=ROOT / "data/ds002748/test", help="folder of test slices"
    )


def people(folder: Path, most: int) -> dict[str, tuple[list[str], torch.Tensor]]:
    """{person: (names, HR slices (N, 1, H, W))}: evenly spaced ones of `person_slice.png`.

    Of a folder without pictures the axial slices of its volumes, those of a person of one size.
    """
    found = {}
    for path in sorted(folder.rglob("*.png")):
        found.setdefault(path.stem.rsplit("_", 1)[0], []).append(path)
    if not found:
        return people_of_volumes(folder, most)
    for person, paths in found.items():
        n = min(most, len(paths))
        places = (
            np.linspace(0, len(paths) - 1, n).round().astype(int) if n > 1 else [len(paths) // 2]
        )
        pixels = np.stack([np.asarray(Image.open(paths[i]).convert("L")) for i in places])
        hr = torch.from_numpy(pixels).float()[:, None] / 255
        found[person] = [paths[i].stem for i in places], crop_to_scale(hr)
    return found


def people_of_volumes(folder: Path, most: int) -> dict[str, tuple[list[str], torch.Tensor]]:
    """As `people`, of volumes. Raises DataError where there are none."""
    slices, found = (
        dataset.load_parts(data=folder, slices=most, split=False, cache=CACHE)[0]["all"],
        {},
    )
    for person in dict.fromkeys(slices.subject.tolist()):
        mine = np.flatnonzero(slices.subject == person)
        mine = [i for i in mine if (slices.shape[i] == slices.shape[mine[0]]).all()]
        pixels = np.stack([slices[i] for i in mine])
        hr = torch.from_numpy(pixels).float()[:, None] / 255
        found[person] = [str(slices.name[i]) for i in mine], crop_to_scale(hr)
    return found


def load(path) -> torch.nn.Module:
    """The network of a checkpoint."""
    return modules.load_network(load_checkpoint(path), path)


def super_resolve(network, lr: torch.Tensor, degradation="", batch: int = 8) -> torch.Tensor:
    """SR slices in [0, 1] of the LR slices of one person. degradation: told; '' = estimated."""
    description = None
    with torch.inference_mode():
        if network.told and degradation:
            told = describe_degradation(degradation, network.scale)
            description = network.describe(lr, told).mean(0, keepdim=True)
        elif network.told:
            description = network.describe(lr).mean(0, keepdim=True)
        parts = [tiling.upscale(network, part, description) for part in lr.split(batch)]
    return torch.cat(parts).clamp(0, 1)


def interpolate(lr: torch.Tensor, scale=(4, 4)) -> torch.Tensor:
    """Bicubic upsampling, in [0, 1]."""
    return modules.Interpolation(scale)(lr).clamp(0, 1)


def versions(network, hr: torch.Tensor, args) -> dict[str, torch.Tensor]:
    """The slices of one person: LR, and of its size HR, bicubic upsampling and SR."""
    lr = degrade(hr, args.degradation, network.scale, seed=args.seed)
    sr = super_resolve(network, lr, args.degradation if args.told else "")
    return {"LR": lr, "HR": hr, "bicubic": interpolate(lr, network.scale), "SR": sr}


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
            words.append(
                str(Path(word).relative_to(ROOT) if inside else Path("DIR", *Path(word).parts[-2:]))
            )
        else:
            words.append(word)
    return shlex.join(["python", f"study/{name.split('-')[0]}.py", *words])


def save(args, name: str, result: dict) -> None:
    """Write result as study/results/NAME.json, with the command and the weights it came from."""
    weights = renamed(Path(args.weights))
    about = {
        "command": command(name),
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        "degradation": args.degradation,
        "told": args.told,
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

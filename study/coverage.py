"""Is the error map right: how many pixels lie within it, and does it point at the errors.

Coverage: the share of pixels within 2.3 times the expected error, 90 % wanted: in the head, and in
the background where it is not black in truth and result alike, which any interval holds.
Sparsification (Ilg et al., ECCV 2018): pixels are left out from the largest expected error down,
and what error is left is compared with leaving them out by their true error: 1 would be perfect.
Beside it two cheap rivals, the gradient of bicubic upsampling and how far the results of flipped
slices are apart, and what an exact map would have: one that knows the expected error of each pixel,
if errors are spread about it as a Laplace distribution is.
"""

import numpy as np
import torch

import utils
from evaluation.scoring import found_in, parts_of, seen_by, seen_of
from inference import Upscaler
from inference.error_map import INTERVAL
from modules import Interpolation, middle_of
from study.common import SCALE, mean_sd, parser, save, slices_of, text

CASES = ("bicubic", "bilinear", "bilinear-plain", "kspace", "blur-2", "rician-2")
SHARES = np.linspace(0, 0.95, 20)
HALF_LEVEL = 0.5 / 255


def area(error: np.ndarray, order_by: np.ndarray) -> float:
    """Mean error that is left when more and more pixels are left out, the largest first."""
    ordered = error[np.argsort(-order_by, kind="stable")]
    left = np.cumsum(ordered[::-1])[::-1] / np.arange(len(ordered), 0, -1)
    return float(left[(SHARES * len(ordered)).astype(int)].mean())


def best_map(expected: np.ndarray, rng) -> float:
    """The ratio of a map that is exactly right, of errors drawn about it (Laplace)."""
    drawn = (expected * rng.exponential(size=expected.shape)).astype(np.float32)
    return area(drawn, expected) / area(drawn, drawn)


def measure(upscaler, part, seed: int) -> dict:
    """Coverages and sparsification ratios of the slices of one person, an `evaluation` Part."""
    network, lr = upscaler.network, seen_by(upscaler.network, part.lr)
    about = found_in(network, part), seen_of(network, part), part.distance
    sr, expected = upscaler.enlarge(lr, SCALE, *about)
    results = [sr]
    for axis in (2, 3):
        results.append(upscaler.enlarge(lr.flip(axis), SCALE, *about)[0].flip(axis))
    slopes = torch.gradient(Interpolation(SCALE)(middle_of(lr)), dim=(2, 3))
    guesses = {"head": expected, "gradient": torch.hypot(*slopes)}
    guesses["flips"] = torch.stack(results).std(0)
    error, brain = (sr.clamp(0, 1) - part.hr).abs(), part.hr > 0.05
    dark = ~brain & ((part.hr >= HALF_LEVEL) | (sr >= HALF_LEVEL))
    inside, whole = error <= INTERVAL * expected, torch.ones_like(brain)
    masks = {"brain": brain, "background": dark, "all": whole}
    found = {name: float(inside[mask].float().mean()) for name, mask in masks.items()}
    rng = np.random.default_rng(seed)
    for where, mask in (("in brain", brain), ("whole", whole)):
        e = error[mask].numpy()
        least = area(e, e)
        for name, guess in guesses.items():
            found[f"{name}, {where}"] = area(e, guess[mask].numpy()) / least
        found[f"best map, {where}"] = best_map(expected[mask].numpy(), rng)
    return found


@torch.inference_mode()
def main(argv=None):
    parse = parser(__doc__, slices=5)
    parse.add_argument("--name", default="coverage", help="of the file of numbers")
    args = parse.parse_args(argv)
    if args.degradation != "bicubic":
        parse.error("--degradation: it goes through its own ones")
    upscaler, slices, table = Upscaler(args.weights, "cpu", error_map=True), slices_of(args), {}
    for case in CASES:
        parts = parts_of(slices, case, SCALE, upscaler.device)
        rows = [measure(upscaler, part, args.seed) for part in parts]
        table[case] = {key: mean_sd([row[key] for row in rows]) for key in rows[0]}
        print(case, {key: text(value, 3) for key, value in table[case].items()}, flush=True)
    save(args, args.name, {"slices": len(slices), "people": len(rows), "cases": table})


if __name__ == "__main__":
    utils.run_main(main)

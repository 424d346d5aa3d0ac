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
from common import add_test_data, load, mean_sd, parser, people, save, text

import modules
import utils
from degradation import degrade
from inference.checkpoints import load_checkpoint
from inference.error_map import INTERVAL, calibration_of, expected_error
from inference.tiling import upscale

CASES = ("bicubic", "bilinear", "bilinear-plain", "kspace", "blur-2", "rician-2")
SHARES = np.linspace(0, 0.95, 20)
HALF_LEVEL = 0.5 / 255


def area(error: np.ndarray, order_by: np.ndarray) -> float:
    """Mean error that is left when more and more pixels are left out, the largest first."""
    ordered = error[np.argsort(-order_by, kind="stable")]
    left = np.cumsum(ordered[::-1])[::-1] / np.arange(len(ordered), 0, -1)
    return float(left[(SHARES * len(ordered)).astype(int)].mean())


def flip_spread(network, lr, description, sr: torch.Tensor) -> torch.Tensor:
    """How far the results of a slice and of its mirror images are apart."""
    results = [sr] + [upscale(network, lr.flip(axis), description).flip(axis) for axis in (2, 3)]
    return torch.stack(results).std(0)


def best_map(expected: np.ndarray, rng) -> float:
    """The ratio of a map that is exactly right, of errors drawn about it (Laplace)."""
    drawn = (expected * rng.exponential(size=expected.shape)).astype(np.float32)
    return area(drawn, expected) / area(drawn, drawn)


def measure(network, calibration, hr, case, seed) -> dict:
    """Coverages and sparsification ratios of the slices (N, 1, H, W) of one person."""
    lr = degrade(hr, case, network.scale, seed=seed)
    description = network.describe(lr).mean(0, keepdim=True)  # one for all of these slices
    sr, spread = upscale(network, lr, description, spread=True).split(1, 1)
    expected = expected_error(spread, calibration, description)
    bicubic = modules.Interpolation(network.scale)(lr)
    slopes = torch.gradient(bicubic, dim=(2, 3))
    guesses = {
        "head": expected,
        "gradient": torch.hypot(*slopes),
        "flips": flip_spread(network, lr, description, sr),
    }
    error, brain = (sr.clamp(0, 1) - hr).abs(), hr > 0.05
    dark = ~brain & ((hr >= HALF_LEVEL) | (sr >= HALF_LEVEL))
    inside, rng = error <= INTERVAL * expected, np.random.default_rng(seed)
    found = {"brain": float(inside[brain].float().mean())}
    found["background"] = float(inside[dark].float().mean())
    found["all"] = float(inside.float().mean())
    for where, mask in (("in brain", brain), ("whole", torch.ones_like(brain))):
        e = error[mask].numpy()
        least = area(e, e)
        for name, guess in guesses.items():
            found[f"{name}, {where}"] = area(e, guess[mask].numpy()) / least
        found[f"best map, {where}"] = best_map(expected[mask].numpy(), rng)
    return found


def main(argv=None):
    parse = parser(__doc__)
    add_test_data(parse)
    parse.add_argument("--name", default="coverage", help="of the file of numbers")
    args = parse.parse_args(argv)
    if args.told or args.degradation != "bicubic":
        parse.error("it goes through its own degradations, all estimated")
    network = load(args.weights)
    calibration = calibration_of(load_checkpoint(args.weights), args.weights)
    everybody, table = people(args.data, args.slices), {}
    with torch.inference_mode():
        for case in CASES:
            rows = [measure(network, calibration, hr, case, args.seed)
                    for _, hr in everybody.values()]  # fmt: skip
            table[case] = {key: mean_sd([row[key] for row in rows]) for key in rows[0]}
            print(case, {key: text(value, 3) for key, value in table[case].items()}, flush=True)
    slices = sum(len(hr) for _, hr in everybody.values())
    save(args, args.name, {"slices": slices, "people": len(everybody), "cases": table})


if __name__ == "__main__":
    utils.run_main(main)

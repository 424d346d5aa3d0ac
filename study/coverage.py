"""Is the error map right: how many pixels lie within it, and does it point at the errors.

Coverage: the share of pixels within 2.3 times the expected error, 90 % wanted, in brain and in
background. Sparsification (Ilg et al., ECCV 2018): pixels are left out from the largest expected
error down, and what error is left is compared with leaving them out by their true error: 1 would be
perfect. Beside it two cheap rivals: the gradient of bicubic upsampling, and how far the results of
the flipped slices are apart.
"""

import numpy as np
import torch
from common import add_test_data, load, mean_sd, parser, people, save, text

import modules
import utils
from calibration import INTERVAL, calibration_of, expected_error
from checkpoints import load_checkpoint
from degradation import degrade
from upscaling import upscale

CASES = ("bicubic", "bilinear", "bilinear-plain", "kspace", "blur-2", "rician-2")
SHARES = np.linspace(0, 0.95, 20)


def area(error: np.ndarray, order_by: np.ndarray) -> float:
    """Mean error that is left when more and more pixels are left out, the largest first."""
    ordered = error[np.argsort(-order_by, kind="stable")]
    left = np.cumsum(ordered[::-1])[::-1] / np.arange(len(ordered), 0, -1)
    return float(left[(SHARES * len(ordered)).astype(int)].mean())


def flip_spread(network, lr: torch.Tensor, sr: torch.Tensor) -> torch.Tensor:
    """How far the results of a slice and of its mirror images are apart."""
    results = [sr] + [upscale(network, lr.flip(axis)).flip(axis) for axis in (2, 3)]
    return torch.stack(results).std(0)


def measure(network, calibration, hr, case, seed) -> dict:
    """Coverages and sparsification ratios of the slices of one person."""
    lr = degrade(hr, case, network.scale, seed=seed)
    sr, spread = upscale(network, lr, spread=True).split(1, 1)
    expected = expected_error(spread, calibration)
    bicubic = modules.Interpolation(network.scale)(lr)
    slopes = torch.gradient(bicubic, dim=(2, 3))
    rivals = {"gradient": torch.hypot(*slopes), "flips": flip_spread(network, lr, sr)}
    error, brain = (sr.clamp(0, 1) - hr).abs(), hr > 0.05
    inside = error <= INTERVAL * expected
    found = {"brain": float(inside[brain].float().mean())}
    found["background"] = float(inside[~brain].float().mean())
    e = error[brain].numpy()
    best = area(e, e)
    for name, guess in {"head": expected, **rivals}.items():
        found[name] = area(e, guess[brain].numpy()) / best
    return found


def main(argv=None):
    parse = parser(__doc__, slices=5)
    add_test_data(parse)
    args = parse.parse_args(argv)
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
    save(args, "coverage", {"slices": slices, "people": len(everybody), "cases": table})


if __name__ == "__main__":
    utils.run_main(main)

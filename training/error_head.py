"""How far off each pixel may be: train and calibrate the error head of a network.

    python -m training.error_head runs/mine/best.pt --data DIR --out weights/mine.pt

The head learns the expected absolute error of each pixel from the features of the network, which
stays as it is. On the validation subjects it is then scaled so that nine pixels in ten lie within
2.3 times that error.
"""

import argparse

import numpy as np
import torch

import modules
from dataset import DATA_OPTIONS, add_data_arguments, load_parts
from degradation import NAMED, crop_to_scale, degrade
from inference.checkpoints import load_mean, save_checkpoint
from inference.error_map import INTERVAL, noise_share
from training.batches import training_batch
from utils import Parser, UsageError, int_between, pick_device, progress, run_main

EDGES = (np.arange(24) + 0.5) / 24  # the spreads that factors are found for, as quantiles
LEAST = 500  # pixels that make a factor
WANTED = 0.915  # of the pixels of people like these: those of other scanners are less often within
NOISY = 0.4  # share of training samples as of a noisier scanner: noise nobody can foretell is error
HALF_LEVEL = 0.5 / 255
# Validation slices take turns through these; they are the cases that the head is held to.
CASES = (*NAMED, "blur-2", "rician-2")
THROUGH_CASES = "slab-1", "slab-0.8", "slab-1+rician-2"


def learn_spread(network, slices, iterations: int, device, seed: int = 0, batch_size: int = 4):
    """Train the error head by the likelihood of a Laplace distribution, all else unchanged."""
    network.requires_grad_(False)
    network.spread.requires_grad_(True)
    optimiser = torch.optim.Adam(network.spread.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for iteration in (bar := progress(range(iterations), desc="error head", unit="step")):
        batch = training_batch(
            slices, iteration, seed=seed + 1, batch_size=batch_size, patch=48, device=str(device),
            degradation="wide" if network.told else "mixed", scale=network.scale, noisy=NOISY,
        )  # fmt: skip
        found = network.describe(batch.view) if network.told else None
        sr, spread = network(batch.lr, found, spread=True).split(1, 1)
        error = (sr.detach().clamp(0, 1) - batch.hr).abs()
        # Black that stays black is most of a slice, and learned at once.
        counts = 0.1 + 0.9 * ((batch.hr >= HALF_LEVEL) | (sr >= HALF_LEVEL))
        loss = (counts * (error / spread + spread.log())).sum() / counts.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if iteration % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


@torch.inference_mode()
def calibrate(network, slices, subjects, device) -> dict:
    """Factors that make the intervals right on these slices (split conformal, in bins of spread).

    Angelopoulos and Bates, "A gentle introduction to conformal prediction", 2021, sec. 2.3: the
    quantile of the scores of people that were not trained on, for each size of what was predicted.
    subjects: whose each slice is; all count the same.
    """
    cases = CASES if 1 not in network.scale else THROUGH_CASES
    found = [{subject: [] for subject in subjects} for _ in range(2)]  # of quiet, of noisy slices
    for i in progress(range(len(slices)), desc="calibrating", unit="slice"):
        hr = torch.from_numpy(np.array(slices[i])).to(device).float()[None, None] / 255
        hr = crop_to_scale(hr, network.scale)
        case = cases[i % len(cases)]
        lr = degrade(hr, case, network.scale, seed=i)
        description = network.describe(lr) if network.told else None
        sr, spread = network(lr, description, spread=True).split(1, 1)
        error = (sr.clamp(0, 1) - hr).abs()
        # Black that stays black would make intervals look right.
        counts = (hr >= HALF_LEVEL) | (sr >= HALF_LEVEL)
        noisy = description is not None and noise_share(description) > 0.5
        found[noisy][subjects[i]].append(torch.stack((error[counts], spread[counts])).cpu())
    parts = [equal_shares(scores) for scores in found]
    edges = np.quantile(np.log(np.concatenate([p[1] for p in parts if p is not None])), EDGES)
    quiet, noisy = (None if part is None else factors_of(part, edges) for part in parts)
    return {"edges": edges.tolist(), "factors": quiet or noisy, "noisy": noisy or quiet}


def equal_shares(scores: dict) -> np.ndarray | None:
    """Errors and spreads, (2, n), as many of each subject; None if there are none."""
    scores = [torch.cat(parts, 1) for parts in scores.values() if parts]
    if not scores:
        return None
    few, rng = min(part.shape[1] for part in scores), torch.Generator().manual_seed(0)
    chosen = [part[:, torch.randperm(part.shape[1], generator=rng)[:few]] for part in scores]
    return torch.cat(chosen, 1).numpy()


def factors_of(part: np.ndarray, edges: np.ndarray) -> list[float]:
    """For pixels of about each spread the factor that makes WANTED of them lie within."""
    error, spread = part
    nearest = np.digitize(np.log(spread), (edges[1:] + edges[:-1]) / 2)
    factors, scores = [], error / spread
    for i in range(len(edges)):
        mine = scores[nearest == i] if (nearest == i).sum() >= LEAST else scores
        level = min(1.0, WANTED * (1 + 1 / len(mine)))
        factors.append(float(np.quantile(mine, level)) / INTERVAL)
    return factors


def main(argv=None):
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("checkpoint", nargs="+", help="weights of a network; of several files their mean")
    add("--data", help="folder of pictures or volumes, as for train.py; default: data/ds002748")
    add("--out", required=True, metavar="FILE", help="weights with the head, to be written")
    add("--iterations", type=int_between(1), default=3000, help="steps of 4 patches (default 3000)")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--threads", type=int_between(0, 1024), default=0, help="CPU threads; 0: PyTorch's choice")
    add_data_arguments(add)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    checkpoint, names = load_mean(args.checkpoint), ", ".join(args.checkpoint)
    if checkpoint["arch"].get("name") != "deep":
        raise UsageError(f"{names}: only the default network has an error head")
    given = modules.load_network(checkpoint, names)
    if 1 in given.scale:
        args.axis = "through"
    parts, _ = load_parts(**{name: getattr(args, name) for name in DATA_OPTIONS})
    arch = {**checkpoint["arch"], "spread": True}
    network = modules.build(arch, given.scale)
    modules.adopt_weights(network, checkpoint)
    network = network.to(device).eval()
    learn_spread(network, parts["train"], args.iterations, device, args.seed)
    calibration = calibrate(network, parts["val"], parts["val"].subject, device)
    model = {k: v.cpu() for k, v in network.state_dict().items()}
    checkpoint |= {"arch": arch, "model": model, "calibration": calibration}
    save_checkpoint(args.out, checkpoint)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_main(main)

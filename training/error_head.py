"""How far off each pixel may be: train and calibrate the error head of a network.

The head learns the expected absolute error of each pixel from the features of the network, which
stays as it is. On the validation subjects it is then scaled so that nine pixels in ten lie within
2.3 times that error.
"""

from dataclasses import replace

import numpy as np
import torch

import modules
from degradation import NAMED, scale_name
from evaluation.scoring import description_of, evenly_spaced, parts_of, seen_by
from inference.checkpoints import load_checkpoint, save_checkpoint
from inference.error_map import INTERVAL, noise_share
from training.batches import Options, Stock, training_batch
from utils import note, progress

EDGES = (np.arange(24) + 0.5) / 24  # the spreads that factors are found for, as quantiles
LEAST = 500  # pixels that make a factor
WANTED = 0.915  # of the pixels of people like these: those of other scanners are less often within
NOISY = 0.4  # share of training samples as of a noisier scanner: noise nobody can foretell is error
HALF_LEVEL = 0.5 / 255
SLICES = 240  # of the validation people that a scale is calibrated on, at the most
# Validation slices take turns through these; they are the cases that the head is held to.
CASES = (*NAMED, "blur-2", "rician-2")
THROUGH_CASES = "slab-1", "slab-0.8", "slab-1+rician-2"


def add_error_head(path, stock: Stock, options: Options, validation, iterations: int) -> None:
    """Give the network of a checkpoint an error head, trained anew and calibrated; the file is
    written again. validation: slices of people it was not trained on."""
    checkpoint = load_checkpoint(path)
    arch = {**checkpoint["arch"], "error_head": True}
    network = modules.build(arch, checkpoint["scales"])
    modules.adopt_weights(network, checkpoint)
    network = network.to(stock.device).eval()
    learn_error_head(network, stock, options, iterations)
    calibration = {
        scale_name(scale): calibrate(network, validation, scale, stock.device)
        for scale in network.scales
    }
    model = {k: v.cpu() for k, v in network.state_dict().items()}
    save_checkpoint(path, checkpoint | dict(arch=arch, model=model, calibration=calibration))
    note(f"{path}: has an error head now, calibrated on {validation.counts()}")


def learn_error_head(network, stock: Stock, options: Options, iterations: int) -> None:
    """Train the error head by the likelihood of a Laplace distribution, all else unchanged."""
    network.requires_grad_(False)
    network.error_head.requires_grad_(True)
    many = options.degradation if options.degradation == "wide" else "mixed"
    options = replace(
        options, seed=options.seed + 1, noisy=NOISY, degradation=many, rank=0, world=1
    )
    optimiser = torch.optim.Adam(network.error_head.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for iteration in (bar := progress(range(iterations), desc="error head", unit="step")):
        batch = training_batch(stock, iteration, options)
        description = None
        if network.conditioned:
            found = network.describe(batch.view, scale=batch.scale)
            description = modules.full_description(found, batch.present, batch.distance)
        found = network(batch.lr, batch.scale, description, error_map=True)
        sr, expected = found.split(1, 1)
        error = (sr.detach().clamp(0, 1) - batch.hr).abs()
        # Black that stays black is most of a slice, and learned at once.
        counts = 0.1 + 0.9 * ((batch.hr >= HALF_LEVEL) | (sr >= HALF_LEVEL))
        loss = (counts * (error / expected + expected.log())).sum() / counts.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if iteration % 100 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


@torch.inference_mode()
def calibrate(network, slices, scale, device) -> dict:
    """Factors that make the intervals right on these slices (split conformal, in bins of what is
    expected).

    Angelopoulos and Bates, "A gentle introduction to conformal prediction", 2021, sec. 2.3: the
    quantile of the scores of people that were not trained on, for each size of what was predicted.
    All subjects count the same.
    """
    through = 1 in scale
    slices = slices.take(np.isin(slices.plane, (0, 1) if through else slices.plane.max()))
    slices = evenly_spaced(slices, SLICES)
    cases, subjects = (THROUGH_CASES if through else CASES), slices.subject.tolist()
    pools = [{subject: [] for subject in subjects} for _ in range(2)]  # of quiet, of noisy slices
    for i in progress(range(len(slices)), desc="calibrating", unit="slice", leave=False):
        case = cases[i % len(cases)]
        (part,) = parts_of(slices.take([i]), case, scale, device)
        description = description_of(network, part)
        found = network(seen_by(network, part.lr), scale, description, error_map=True)
        sr, expected = found.split(1, 1)
        error = (sr.clamp(0, 1) - part.hr).abs()
        # Black that stays black would make intervals look right.
        counts = (part.hr >= HALF_LEVEL) | (sr >= HALF_LEVEL)
        noisy = description is not None and noise_share(description) > 0.5
        pools[noisy][subjects[i]].append(torch.stack((error[counts], expected[counts])).cpu())
    parts = [equal_shares(scores) for scores in pools]
    edges = np.quantile(np.log(np.concatenate([p[1] for p in parts if p is not None])), EDGES)
    quiet, noisy = (None if part is None else factors_of(part, edges) for part in parts)
    return {"edges": edges.tolist(), "factors": quiet or noisy, "noisy": noisy or quiet}


def equal_shares(scores: dict) -> np.ndarray | None:
    """Errors and what was expected, (2, n), as many of each subject; None if there are none."""
    scores = [torch.cat(parts, 1) for parts in scores.values() if parts]
    if not scores:
        return None
    few, rng = min(part.shape[1] for part in scores), torch.Generator().manual_seed(0)
    chosen = [part[:, torch.randperm(part.shape[1], generator=rng)[:few]] for part in scores]
    return torch.cat(chosen, 1).numpy()


def factors_of(part: np.ndarray, edges: np.ndarray) -> list[float]:
    """For pixels of about each expected error the factor that makes WANTED of them lie within."""
    error, expected = part
    nearest = np.digitize(np.log(expected), (edges[1:] + edges[:-1]) / 2)
    factors, scores = [], error / expected
    for i in range(len(edges)):
        of_bin = scores[nearest == i] if (nearest == i).sum() >= LEAST else scores
        level = min(1.0, WANTED * (1 + 1 / len(of_bin)))
        factors.append(float(np.quantile(of_bin, level)) / INTERVAL)
    return factors

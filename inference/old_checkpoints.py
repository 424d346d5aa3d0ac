"""Weights of version 0.4.0 and before: one scale a file, no neighbours, other names of layers."""

import torch

from degradation import FOUND, scale_name
from utils import DataError

# Old names and new ones, in this order; {} is the scale.
NAMES = (
    ("spread.last.", "error_head.tails.{}."),
    ("spread.", "error_head."),
    ("layers.6.", "tails.{}."),
    ("tail.", "tails.{}."),
    ("modulation.0.", "condition."),
    ("modulation.2.", "gains."),
)
OLD_FOUND = 19  # of a description that were found: no denoising; TOLD came after them
SURE = 30.0  # of what is found, before the sigmoid: always


def from_version_2(checkpoint: dict, path) -> dict:
    """A checkpoint of version 2 as one of version 3 that gives the same. Raises DataError."""
    try:
        return converted(checkpoint)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        raise DataError(f"{path}: not a checkpoint of this project, or damaged") from None


def converted(checkpoint: dict) -> dict:
    scale, old = checkpoint["scale"], checkpoint["arch"]
    scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
    arch = {k: v for k, v in old.items() if k in ("name", "channels", "blocks", "half")}
    arch |= {"estimator": True} if old.get("told") else {}
    arch |= {"error_head": True} if old.get("spread") else {}
    model = {}
    for name, value in checkpoint["model"].items():
        for before, after in NAMES:
            if name.startswith(before):
                name = after.format(scale_name(scale)) + name.removeprefix(before)
                break
        if name in ("condition.weight", "error_head.gain.weight"):  # (n, OLD_FOUND + TOLD)
            none, neighbours = value[:, :1] * 0, value[:, :5] * 0
            value = torch.cat((value[:, :OLD_FOUND], none, value[:, OLD_FOUND:], neighbours), 1)
        if name.startswith("estimator.decide.2."):
            value = torch.cat((value, torch.zeros_like(value[:2])))
            value[-1] = value[-1] + SURE if value.ndim == 1 else value[-1]
        model[name] = value
    if old.get("told"):
        model[f"of_scale.{scale_name(scale)}"] = torch.zeros(32)
        model["estimator.safest"] = torch.zeros(FOUND - 1)
    new = dict(arch=arch, scales=[list(scale)], model=model, version=3)
    if "calibration" in checkpoint:
        new["calibration"] = {scale_name(scale): checkpoint["calibration"]}
    return checkpoint | new

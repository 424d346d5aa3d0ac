"""Checkpoints: a network's weights and what is known of them, written whole and read safely."""

import io
from pathlib import Path

import torch

from utils import DataError, as_data_error, atomic_write, one_line

CHECKPOINT_VERSION = 3


def save_checkpoint(path, checkpoint: dict) -> None:
    """Write a dict of tensors and plain types, whole or not at all."""
    buffer = io.BytesIO()  # writing to a full disk, torch.save would raise anything
    torch.save({**checkpoint, "version": CHECKPOINT_VERSION}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU, without running any code that it may hold.

    It has `arch`, `scales`, `model` (a dict of tensors), `degradation` and `trained_on`; whether
    they fit together is for `modules.load_network` to say. `people`, if there is one, is a list of
    the ids of all that this network, and those it began with, were trained or validated on. Raises
    DataError if the file is missing, damaged, of another version or no checkpoint of this project.
    """
    path = Path(path)
    with as_data_error(path):
        try:
            checkpoint = torch.load(path, "cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception:  # a damaged or hostile file can fail anywhere in there
            words = "not a checkpoint, damaged, or holds more than tensors"
            raise DataError(f"{path}: {words}") from None
        checkpoint = upgraded(checkpoint)
        kinds = {"model": dict, "arch": dict, "scales": list, "degradation": str, "version": int}
        if (
            not isinstance(checkpoint, dict)
            or any(not isinstance(checkpoint.get(key), kind) for key, kind in kinds.items())
            or not all(isinstance(scale, (list, tuple)) for scale in checkpoint["scales"])
        ):
            raise DataError(f"{path}: not a checkpoint of this project")
        if checkpoint["version"] != CHECKPOINT_VERSION:
            raise DataError(
                f"{path}: has another checkpoint version than {CHECKPOINT_VERSION}, which this "
                f"program reads; train it again or use the matching release"
            )
        if not all(type(tensor) is torch.Tensor for tensor in checkpoint["model"].values()):
            raise DataError(f"{path}: holds no plain weights")
    checkpoint["scales"] = [tuple(scale) for scale in checkpoint["scales"]]
    trained_on = checkpoint.get("trained_on")
    known = isinstance(trained_on, str)
    checkpoint["trained_on"] = one_line(trained_on[:200]) if known else "unknown data"
    people = checkpoint.get("people")
    if not isinstance(people, list) or not all(isinstance(person, str) for person in people):
        checkpoint.pop("people", None)
    return checkpoint


def upgraded(checkpoint):
    """A checkpoint of version 2 as one of version 3: of one scale, and of 19 found entries."""
    if not isinstance(checkpoint, dict) or checkpoint.get("version") != 2:
        return checkpoint
    scale = checkpoint["scale"]
    scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
    name = f"{scale[0]}" if scale[0] == scale[1] else f"{scale[0]}x{scale[1]}"
    arch = {
        k: v for k, v in checkpoint["arch"].items() if k in ("name", "channels", "blocks", "half")
    }
    told, spread = checkpoint["arch"].get("told"), checkpoint["arch"].get("spread")
    arch |= {"estimator": True} if told else {}
    arch |= {"error_head": True} if spread else {}
    model = {}
    for key, value in checkpoint["model"].items():
        key = key.replace("tail.", f"tails.{name}.").replace(
            "spread.last.", f"error_head.tails.{name}."
        )
        key = key.replace("spread.", "error_head.").replace("layers.6.", f"tails.{name}.")
        key = key.replace("modulation.0.", "condition.").replace("modulation.2.", "gains.")
        if key in (
            "condition.weight",
            "error_head.gain.weight",
        ):  # (n, 20): no denoising, no neighbours
            value = torch.cat((value[:, :19], value[:, :1] * 0, value[:, 19:], value[:, :5] * 0), 1)
        if key.startswith("estimator.decide.2."):  # 19 entries; one more, and being sure
            value = torch.cat((value, torch.zeros_like(value[:2])))
            if value.ndim == 1:
                value[-1] = 30
        model[key] = value
    if told:
        model[f"of_scale.{name}"] = torch.zeros(32)
        model["estimator.safest"] = torch.zeros(20)
    return checkpoint | {"arch": arch, "scales": [list(scale)], "model": model, "version": 3}

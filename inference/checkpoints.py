"""Checkpoints: a network's weights and what is known of them, written whole and read safely."""

import io
from pathlib import Path

import torch

from inference.old_checkpoints import from_version_2
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
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the weights in it, such as {path / 'best.pt'}")
    with as_data_error(path):
        try:
            checkpoint = torch.load(path, "cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception:  # a damaged or hostile file can fail anywhere in there
            words = "not a checkpoint, damaged, or holds more than tensors"
            raise DataError(f"{path}: {words}") from None
        if isinstance(checkpoint, dict) and checkpoint.get("version") == 2:
            checkpoint = from_version_2(checkpoint, path)
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

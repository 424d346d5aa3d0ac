"""Checkpoints: a network's weights and what is known of them, written whole and read safely."""

import io
import zipfile
from pathlib import Path

import torch

from utils import DataError, as_data_error, atomic_write, note, one_line

CHECKPOINT_VERSION = 2
RENAMED = {"default.pt": "x4.pt", "bicubic.pt": "x4-bicubic.pt"}  # weights of before


def save_checkpoint(path, checkpoint: dict) -> None:
    """Write a dict of tensors and plain types, whole or not at all."""
    buffer = io.BytesIO()  # writing to a full disk, torch.save would raise anything
    torch.save({**checkpoint, "version": CHECKPOINT_VERSION}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU, without running any code that it may hold.

    `model` is certain to be a dict of real tensors, no larger than the file; `scale` is a list of
    two, also where old checkpoints have a single number; `people`, if there is one, is a list of
    the ids of all that this network, and those it began with, were trained or validated on.
    Raises DataError if the file is missing, damaged, of another version or no checkpoint of this
    project.
    """
    path = renamed(Path(path))
    with as_data_error(path):
        try:
            # torch.save packs nothing: packed parts would let a small file fill the memory.
            with zipfile.ZipFile(path) as archive:
                packed = any(part.compress_type for part in archive.infolist())
            checkpoint = None if packed else torch.load(path, "cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception:  # a damaged or hostile file can fail anywhere in there
            raise DataError(
                f"{path}: not a checkpoint, damaged, or holds more than tensors"
            ) from None
        check_checkpoint(checkpoint, path)
    scale = checkpoint["scale"]
    checkpoint["scale"] = [scale, scale] if isinstance(scale, int) else list(scale)
    trained_on = checkpoint.get("trained_on")
    known = isinstance(trained_on, str)
    checkpoint["trained_on"] = one_line(trained_on[:200]) if known else "unknown data"
    people = checkpoint.get("people")
    if not isinstance(people, list) or not all(isinstance(person, str) for person in people):
        checkpoint.pop("people", None)
    return checkpoint


def load_mean(paths) -> dict:
    """One checkpoint: the mean of the weights of these, all else as in the first.

    Runs that began alike often have a mean that is better than each of them: Wortsman et al.,
    "Model soups", ICML 2022. A file that is named twice counts twice. A mean has no error head, as
    each was made for other features. Raises DataError as `load_checkpoint`, and if the networks
    differ.
    """
    found = [load_checkpoint(path) for path in paths]
    first = found[0]
    if len(found) == 1:
        return first
    for checkpoint in found:
        checkpoint["arch"].pop("spread", None)
        model = checkpoint["model"]
        checkpoint["model"] = {k: v for k, v in model.items() if not k.startswith("spread.")}
    for path, other in zip(paths, found):
        same = all(other[key] == first[key] for key in ("arch", "scale"))
        sizes = [{k: v.shape for k, v in c["model"].items()} for c in (first, other)]
        if not same or sizes[0] != sizes[1]:
            raise DataError(f"{path}: is another network than {paths[0]}; they have no mean")
    models = [checkpoint["model"] for checkpoint in found]
    first["model"] = {k: sum(model[k].float() for model in models) / len(models) for k in models[0]}
    first["trained_on"] = "; ".join(dict.fromkeys(c["trained_on"] for c in found))
    first.pop("calibration", None)
    if all("people" in checkpoint for checkpoint in found):
        first["people"] = sorted({person for c in found for person in c["people"]})
    else:
        first.pop("people", None)
    return first


def renamed(path: Path) -> Path:
    """The path of shipped weights that are asked for by their old name, said in a line."""
    new = path.with_name(RENAMED.get(path.name, path.name))
    if new == path or path.exists() or not new.exists():
        return path
    note(f"{path}: is called {new.name} now")
    return new


def check_checkpoint(checkpoint, path: Path) -> None:
    """Raise DataError unless this is a checkpoint of ours with plain tensors."""
    kinds = {"model": dict, "arch": dict, "scale": (int, list, tuple), "degradation": str}
    kinds["version"] = int
    if not isinstance(checkpoint, dict) or any(
        not isinstance(checkpoint.get(key), kind) for key, kind in kinds.items()
    ):
        raise DataError(f"{path}: not a checkpoint of this project")
    if checkpoint["version"] != CHECKPOINT_VERSION:
        raise DataError(
            f"{path}: has another checkpoint version than {CHECKPOINT_VERSION}, which this "
            f"program reads; train it again or use the matching release"
        )
    tensors = checkpoint["model"].values()
    good = all(
        type(t) is torch.Tensor and t.device.type == "cpu" and t.layout == torch.strided
        for t in tensors
    )
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if good}
    held = sum(storage.nbytes() for storage in storages.values())
    if not good or held > path.stat().st_size:
        raise DataError(f"{path}: holds no plain weights")

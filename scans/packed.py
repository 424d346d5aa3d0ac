"""Many volumes in one small zip file: 8 bits, lossless; made by data/pack.py, read by train.py."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from utils import as_data_error, atomic_write

INDEX = "volumes.json"


def is_packed(path) -> bool:
    """Whether a path is a zip file of packed volumes."""
    path = Path(path)
    if path.suffix != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return INDEX in archive.namelist()


def write_packed(path, volumes: dict) -> None:
    """Write {name: (content of `encoded`, shape, voxel sizes in mm along the shape's axes)}."""
    index = {name: {"shape": shape, "mm": mm} for name, (_, shape, mm) in volumes.items()}
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(INDEX, json.dumps(index))
        for name, (content, *_) in volumes.items():
            archive.writestr(f"{name}.webp", content)


def packed_names(path) -> list[str]:
    """The names of the volumes in a packed file, with / between folders."""
    with as_data_error(path), zipfile.ZipFile(path) as archive:
        return list(json.loads(archive.read(INDEX)))


def read_packed(path, name: str) -> tuple[np.ndarray, list[float]]:
    """A volume of a packed file, uint8 (S, H, W), and its voxel sizes in mm. Raises DataError."""
    from PIL import Image

    with as_data_error(path), zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read(INDEX))[name]
        with Image.open(io.BytesIO(archive.read(f"{name}.webp"))) as picture:
            pixels = np.asarray(picture.convert("L"))
        return slices_of_montage(pixels, about["shape"]), about["mm"]


def encoded(volume: np.ndarray) -> bytes:
    """A volume, uint8 (S, H, W), as a lossless WebP, some per cent smaller than PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(montage(volume)).save(buffer, "WEBP", lossless=True, quality=90, method=4)
    return buffer.getvalue()


def montage(volume: np.ndarray) -> np.ndarray:
    """The slices (S, H, W) of a volume side by side in one picture, about square."""
    s, h, w = volume.shape
    columns = min(s, max(1, round((s * h / w) ** 0.5)))
    rows = -(-s // columns)
    padded = np.concatenate((volume, np.zeros((rows * columns - s, h, w), volume.dtype)))
    return padded.reshape(rows, columns, h, w).swapaxes(1, 2).reshape(rows * h, columns * w)


def slices_of_montage(picture: np.ndarray, shape) -> np.ndarray:
    """The volume of this shape (S, H, W) that a montage shows."""
    s, h, w = shape
    rows, columns = picture.shape[0] // h, picture.shape[1] // w
    return picture.reshape(rows, h, columns, w).swapaxes(1, 2).reshape(-1, h, w)[:s]

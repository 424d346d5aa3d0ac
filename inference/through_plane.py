"""Through the slices of a scan: more slices made of thick ones; and onto a grid of any size."""

from contextlib import closing

import numpy as np
import torch
import torch.nn.functional as F

from inference.error_map import as_error_map
from scans import PLANES, Scan
from scans.scan import View
from utils import progress


def views_across(plane: str) -> list[View]:
    """Both ways to see the slices of this plane from the side, their distance down the rows."""
    thick = PLANES.index(plane)
    others = [axis for axis in range(3) if axis != thick]
    return [(PLANES[a], thick < b) for a, b in (others, others[::-1])]


def enlarge_through(upscaler, scan: Scan, plane: str, factor: int, name: str = "") -> tuple:
    """(scan, errors or None): `factor` slices made of each of this plane.

    The network, which here adds rows only, goes over both sets of slices that cut the thick ones at
    right angles; their mean counts.
    """
    views, scale = views_across(plane), (factor, 1)
    out, errors = upscaler.empty_pair(scan, scale, views[0])
    shape = out.shape[:3]
    for t in over_volumes(scan, name):
        data = scan.intensities(t)
        levels = scan.black_and_white(data)
        total, expected = (
            None if x is None else np.zeros(shape, np.float32, order="F") for x in (out, errors)
        )
        for k, view in enumerate(views):
            label = f"{name} {k + 1}/{len(views)}"
            found = add_view(upscaler, scan, data, levels, view, scale, total, expected, label)
        target = out[..., t] if out.ndim == 4 else out
        for z in range(shape[2]):
            target[..., z] = scan.to_stored(total[..., z], out.dtype)
        if errors is not None:
            (errors[..., t] if errors.ndim == 4 else errors)[...] = expected
    slices, acquired = scan.slices(data, views[-1]), scan.slices(data, (plane, False))
    about = upscaler.about(found, scale, slices, acquired, levels)
    return scan.resampled(out, about), as_error_map(scan, errors)


def over_volumes(scan: Scan, name: str):
    """The numbers of a scan's volumes, with a bar if there are several."""
    options = dict(total=scan.times, desc=name, unit="volume", disable=scan.times == 1)
    return progress(range(scan.times), **options)


def add_view(upscaler, scan, data, levels, view, scale, total, expected, name: str) -> torch.Tensor:
    """Add half of what one view gives to the total, and to the expected errors if there are any.
    Returns what was found of the degradation."""
    slices, target = scan.slices(data, view), scan.slices(total, view)
    found = upscaler.describe(slices, scale, levels)
    distance = scan.distance(view)
    with closing(upscaler.parts(slices, scale, found, distance, levels, name)) as parts:
        for part in parts:
            target[part.where] += part.values / np.float32(2)
            if expected is not None:
                scan.slices(expected, view)[part.where] += part.errors / np.float32(2)
    return found


def resample(scan: Scan, shape) -> Scan:
    """A scan on a grid of so many voxels along its own axes, the outer edges where they were:
    cubic, antialiased where voxels become larger, nothing beyond what was there."""
    matrices = [resampling_matrix(n, new) for n, new in zip(scan.stored.shape, shape)]
    out = scan.empty_like(shape)
    for t in range(scan.times):
        values = scan.intensities(t)
        low, high = values.min(), values.max()
        for axis, matrix in enumerate(matrices):
            values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
        target = out[..., t] if out.ndim == 4 else out
        target[...] = scan.to_stored(values.clip(low, high), out.dtype)
    return scan.resampled(out, scan.about)


def resampling_matrix(size: int, new: int, antialias: bool = True) -> np.ndarray:
    """The matrix (new, size) of cubic interpolation along one axis, float32. antialias: also where
    voxels become larger; False: the `bicubic` that results are compared with."""
    unit = torch.eye(size)[None, None]
    matrix = F.interpolate(unit, (new, size), mode="bicubic", antialias=antialias)[0, 0]
    return matrix.numpy()

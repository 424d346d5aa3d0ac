"""Ready pairs of LR and HR, pictures or volumes: upscaled as predict.py does it, scored on HR's
grid."""

from pathlib import Path

import numpy as np
import torch

import scans
from evaluation.metrics import score
from evaluation.scoring import with_gains
from inference.plan import plan_of
from inference.through_plane import resampling_matrix
from inference.upscaler import Upscaler
from scans import Scan
from scans.formats import RESULTS, stem
from scans.listing import UNKNOWN, files_below, find_scans, subjects_of
from utils import DataError, UsageError, note, warn


def pairs_of(low: Path, high: Path) -> list[tuple[Path, Path, str]]:
    """[(LR file, HR file, subject)] of two folders, files of one name, or of two files.

    Raises DataError for an HR without its LR, UsageError where these are no two of a kind.
    """
    if high.is_dir() != low.is_dir() or not (low.exists() and high.exists()):
        raise UsageError(f"--pairs {low} {high}: takes two folders, or two files, that exist")
    if not high.is_dir():
        return [(low, high, stem(high))]
    scans_there, doubt = subjects_of(files_below(high))
    if doubt:
        warn(f"{high}: cannot tell whose slices these are ({doubt}); all count as of one subject")
    wanted = {s.path: UNKNOWN if doubt else s.subject for s in scans_there if s.left_out != RESULTS}
    if not wanted:
        raise DataError(f"{high}: holds nothing but {RESULTS}")
    found = [(low / path.relative_to(high), path, subject) for path, subject in wanted.items()]
    for small, large, _ in found:
        if not small.exists():
            raise DataError(f"{small}: is missing; the LR of {large} must have the same name")
    used = {small for small, *_ in found}
    alone = [s.path for s in find_scans(low) if s.left_out != RESULTS and s.path not in used]
    if alone:
        warn(f"{len(alone)} of {low} have no file of the same name in {high} ({alone[0].name})")
    return found


def score_pairs(upscalers: dict[str, Upscaler], pairs, scale: int, plane: str) -> dict:
    """{name: scores of each slice} for bicubic interpolation and every Upscaler."""
    rows = {"bicubic": [], **{name: [] for name in upscalers}}
    for small, large, subject in pairs:
        lr, hr = scans.read(small), scans.read(large)
        if lr.is_picture != hr.is_picture:
            kinds = ["picture" if scan.is_picture else "volume" for scan in (lr, hr)]
            raise DataError(f"{small}: is a {kinds[0]}, {large} a {kinds[1]}")
        truth, found = hr.intensities(), {}
        for name, upscaler in upscalers.items():
            plan = plan_of(lr, upscaler.scales, scale=scale, plane=plane)
            if lr.is_picture:
                ((new, _),) = upscaler.pictures([lr], scale)
            else:
                new = upscaler.in_plane(lr, plan.plane, scale)[0]
            found["bicubic"] = bicubic_of(lr, new)
            found[name] = new
        found = {name: on_grid_of(new, hr, small) for name, new in found.items()}
        inside = np.isfinite(found["bicubic"])
        unit = factor_between(found["bicubic"][inside], truth[inside], lr, hr, small)
        black, white = hr.black_and_white(truth)
        view = (plan.plane, False)
        covered = hr.slices(inside, view).any((1, 2))
        for name, values in found.items():
            values = np.where(inside, values * unit, black).astype(np.float32)
            both = values, np.where(inside, truth, black).astype(np.float32)
            images = [hr.slices((x - np.float32(black)) / np.float32(white - black), view)
                      for x in both]  # fmt: skip
            for i in np.flatnonzero(covered):
                sr, wanted = (image[i] for image in images)
                about = {"name": f"{large}#{i}" if len(covered) > 1 else str(large)}
                about["subject"] = subject
                one = score(torch.from_numpy(sr.copy()), torch.from_numpy(wanted.copy()))
                rows[name].append(about | one | {"lr_rmse": None})
    return with_gains(rows)


def bicubic_of(lr: Scan, new: Scan) -> Scan:
    """A scan interpolated to the grid of its enlarged one, float32."""
    values = lr.intensities()
    for axis in range(values.ndim):
        matrix = resampling_matrix(values.shape[axis], new.stored.shape[axis], antialias=False)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    found = lr.resampled(np.asfortranarray(values, np.float32))
    found.slope, found.inter = 1.0, 0.0
    return found


def on_grid_of(new: Scan, hr: Scan, path) -> np.ndarray:
    """The intensities of an enlarged scan on the grid of another, NaN where it does not reach.

    Volumes lie where their affines say. Of pictures, which do not say it, the outer edges are the
    same.
    """
    values = new.intensities()
    if new.is_picture:
        ratio = np.array(hr.stored.shape) / values.shape
        sizes = ["x".join(map(str, shape)) for shape in (values.shape, hr.stored.shape)]
        if abs(ratio - 1).max() > 0.05:
            raise DataError(f"{path}: becomes {sizes[0]}, its truth is {sizes[1]}: not a pair of "
                            "this scale (LR comes first)")  # fmt: skip
        if values.shape == hr.stored.shape:
            return values
        words = "its outer edges are taken to be those of its truth"
        note(f"{path}: {' for '.join(sizes)} pixels: {words}")
        down, across = (resampling_matrix(n, m) for n, m in zip(values.shape, hr.stored.shape))
        return down @ values @ across.T
    from scipy.ndimage import map_coordinates

    step = np.linalg.inv(new.affine) @ hr.affine
    offset = step[:3, 3]
    if np.allclose(step[:3, :3], np.eye(3), atol=1e-3) and np.allclose(
        offset, offset.round(), atol=0.02
    ):
        out = np.full(hr.stored.shape[:3], np.nan, np.float32)
        begin = offset.round().astype(int)
        here = [slice(max(0, -b), max(0, min(n, m - b)))
                for b, n, m in zip(begin, out.shape, values.shape)]  # fmt: skip
        there = tuple(slice(s.start + b, s.stop + b) for s, b in zip(here, begin))
        out[tuple(here)] = values[there]
    else:
        grid = np.indices(hr.stored.shape[:3]).reshape(3, -1)
        places = step[:3, :3] @ grid + offset[:, None]
        inside = np.all((places > -0.5) & (places < np.array(values.shape)[:, None] - 0.5), axis=0)
        out = np.full(grid.shape[1], np.nan, np.float32)
        out[inside] = map_coordinates(values, places[:, inside], order=3, mode="nearest")
        out = out.reshape(hr.stored.shape[:3])
    if np.isfinite(out).mean() < 0.5:
        raise DataError(f"{path}: lies elsewhere than its truth, as their headers say")
    return out


def factor_between(interpolated, truth, lr: Scan, hr: Scan, path) -> float:
    """What the values of an LR must be multiplied with to be those of its truth: 1 in one unit."""
    power = float((interpolated.astype(np.float64) ** 2).sum())
    fitted = float((interpolated.astype(np.float64) * truth).sum()) / power if power else 1.0
    if abs(fitted - 1) < 0.02 or not np.isfinite(fitted) or fitted <= 0:
        return 1.0
    note(f"{path}: its values are multiplied by {fitted:.4g} to be in the units of its truth")
    return fitted

"""Which slices a figure of predict.py shows: a picture or a scan before, interpolated and after."""

from pathlib import Path

import numpy as np

from evaluation.figures import MARKS, View, picture_figure, volume_figure
from inference.plan import Plan
from inference.through_plane import resampling_matrix, views_across
from scans import Scan

SHOWN = 384  # pixels of a very large slice that are shown, of its middle


def draw(path: Path, scan: Scan, new: Scan, plan: Plan, errors: Scan | None = None) -> None:
    """Write the figure of a picture or a scan before and after; of a scan of several volumes the
    first. errors: its error map."""
    views = views_of(scan, new, plan, errors)
    first, title = views[0], scan.path.name
    if not scan.is_picture:
        title += f": {voxels(scan)} to {voxels(new)}"
    elif first.before.shape != scan.stored.shape:
        title += ", the middle of it"
    if len(views) == 1 and (scan.is_picture or min(scan.stored.shape[:3]) == 1):
        picture_figure(
            path, first.before, first.cubic, first.after, expected=first.expected, title=title,
            aspect=first.aspect,
        )  # fmt: skip
    else:
        volume_figure(path, views, title=title)


def voxels(scan: Scan) -> str:
    """The voxel sizes in a scan's own order, in words."""
    return " x ".join(f"{size:.3g}" for size in np.array(scan.sizes)[scan.axes]) + " mm"


def views_of(scan: Scan, new: Scan, plan: Plan, errors: Scan | None) -> list[View]:
    """Three slices of the plane, or if there are more slices now one of each plane across them."""
    data, after = scan.intensities(), new.intensities()
    black, white = scan.black_and_white(data)
    across = not scan.is_picture and plan.through > 1
    found = []
    for view in views_across(plan.plane) if across else [(plan.plane, False)]:
        slices, enlarged = scan.slices(data, view), new.slices(after, view)
        maps = None if errors is None else errors.slices(errors.intensities(), view)
        head = slices > np.float32(black + 0.05 * (white - black))
        for i in figure_slices(head, (0.5,) if across else (0.25, 0.5, 0.75)):
            at = min(len(enlarged) - 1, int((i + 0.5) * len(enlarged) / len(slices)))
            window = [
                slice(max(0, n // 2 - SHOWN // 2), n // 2 + SHOWN // 2) for n in slices.shape[1:]
            ]
            factor = np.array(enlarged.shape[1:]) / slices.shape[1:]
            place = tuple(
                slice(round(f * w.start), round(f * w.stop)) for f, w in zip(factor, window)
            )
            before, sr = slices[i][tuple(window)], enlarged[at][place]
            down, along = (
                resampling_matrix(n, m, antialias=m < n) for n, m in zip(before.shape, sr.shape)
            )
            cubic = down @ before @ along.T
            images = [
                (x - np.float32(black)) / np.float32(white - black) for x in (before, cubic, sr)
            ]
            name = "" if scan.is_picture else f"{view[0]} {i}"
            marks = "" if scan.is_picture else MARKS[view[0]]
            marks = marks[2:] + marks[:2] if view[1] else marks
            shown = View(name, *images, scan.aspect(view), marks)
            if maps is not None:
                shown.expected = maps[at][place] / np.float32(white - black)
            found.append(shown)
    return found


def figure_slices(head: np.ndarray, shares: tuple) -> list[int]:
    """The slices (S, H, W) to show, at these shares of the way through the head."""
    filled = np.flatnonzero(head.mean(axis=(1, 2)) >= 0.02)
    filled = filled if filled.size else np.arange(len(head))
    return sorted({int(filled[int(share * (filled.size - 1))]) for share in shares})

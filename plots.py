"""Curves and points to PNG: the plots of train.py and evaluate.py, without a display."""

from pathlib import Path

import numpy as np

from figures import NORMAL, SMALL, new_figure, save_figure, shortened


def run_name(checkpoint: str) -> str:
    """A short name: runs are told apart by their folders, weights by their file names."""
    path, _, extra = str(checkpoint).partition(", ")
    path = Path(path)
    name = (path.parent if path.stem in ("best", "last") else path).stem
    return name + (f", {extra}" if extra else "")


def smoothed(values) -> np.ndarray:
    """A centred mean over 4 % of a curve, shorter at both ends: the curve keeps its length."""
    values = np.asarray(values, dtype=float)
    width = max(1, len(values) // 50)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    i = np.arange(len(values))
    low, high = np.maximum(0, i - width), np.minimum(len(values), i + width + 1)
    return (sums[high] - sums[low]) / (high - low)


def column(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a column of log.csv, where it is filled."""
    pairs = [(int(r["iteration"]), float(r[name])) for r in rows if r.get(name) not in ("", None)]
    return tuple(np.array(pairs).reshape(-1, 2).T)


def finish_curves(figure, axes, title="") -> None:
    """What loss curves share: axes, grid and a legend below them, where it hides nothing."""
    axes.set(xlabel="iteration (optimiser steps)", ylabel="MSE (intensity in [0, 1], squared)")
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3, which="both")
    if title:
        axes.set_title(shortened(title, 100), fontsize=NORMAL)
    if axes.lines:
        longest = max(len(line.get_label()) for line in axes.lines)
        columns = max(1, min(3, 110 // (longest + 8)))
        figure.legend(loc="outside lower center", ncols=columns, fontsize=SMALL)


def plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis as 0.002 rather than as powers, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def loss_figure(path, rows: list[dict], title="") -> None:
    """The losses of a run: rows of its log.csv, as text or numbers.

    Training is drawn beside what bicubic upsampling has on the same patches, validation beside what
    bicubic upsampling has on the validation slices.
    """
    figure = new_figure(5)
    axes = figure.subplots()
    iterations, losses = column(rows, "loss")
    step = len(losses) // 4000 + 1  # the eye sees no more points
    if len(losses):
        style = dict(color="tab:blue", label="training, raw", alpha=0.25, lw=0.6)
        axes.plot(iterations[::step], losses[::step], **style)
        style = dict(color="tab:blue", label="training", lw=2)
        axes.plot(iterations[::step], smoothed(losses)[::step], **style)
    iterations, losses = column(rows, "bicubic_loss")
    if len(losses):
        style = dict(color="tab:blue", ls=":", lw=2, label="bicubic on the same patches")
        axes.plot(iterations[::step], smoothed(losses)[::step], **style)
    iterations, losses = column(rows, "val_mse")
    if len(losses):
        style = dict(color="tab:red", ms=4, lw=1, label="validation slices")
        axes.plot(iterations, losses, "o-", **style)
    bicubic = column(rows, "bicubic_mse")[1]
    if not len(bicubic):
        bicubic = 10 ** (-column(rows, "bicubic_psnr")[1] / 10)
    if len(bicubic):
        style = dict(color="tab:red", ls=":", lw=2, label="bicubic on the validation slices")
        axes.axhline(bicubic[-1], **style)
    finish_curves(figure, axes, title)
    save_figure(figure, path)


def curves_figure(path, curves: dict) -> None:
    """Smoothed training losses: {checkpoint: (iterations, losses)}. Both axes are logarithmic."""
    figure = new_figure(5)
    axes = figure.subplots()
    for name, (iterations, losses, *_) in curves.items():
        step = len(losses) // 4000 + 1
        style = dict(lw=1.6, label=shortened(run_name(name), 60))
        axes.plot(iterations[::step], smoothed(losses)[::step], **style)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    finish_curves(figure, axes)
    save_figure(figure, path)


def cost_figure(path, table: dict) -> None:
    """PSNR against MMAC of the rows of an evaluation, interpolations as lines."""
    figure = new_figure(5)
    axes = figure.subplots()
    labels = []  # (text, place, colour)
    for name, row in table.items():
        mean = row["psnr"]["mean"]
        if "mmac" in row:
            (dot,) = axes.plot(row["mmac"], mean, "o")
            labels.append((shortened(run_name(name), 40), (row["mmac"], mean), dot.get_color()))
        else:
            axes.axhline(mean, color="gray", ls="--", lw=1)
            labels.append((name, (None, mean), "gray"))
    axes.set_xscale("log")
    axes.set_xlabel("million multiply-accumulates for a 60x64 slice")
    axes.set_ylabel("PSNR (dB), mean over subjects")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.25, y=0.15)
    axes.grid(alpha=0.3, which="both")
    place_labels(figure, axes, labels)
    save_figure(figure, path)


def place_labels(figure, axes, labels) -> None:
    """Write each label beside its point, at the first place that is free and inside the axes."""
    figure.draw_without_rendering()  # fixes the layout
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    scale = figure.dpi / 72
    left = axes.get_xlim()[0] * 1.02
    points = [(left if x is None else x, y) for _, (x, y), _ in labels]
    taken = []
    for (x, y), (_, place, _) in zip(axes.transData.transform(points), labels):
        if place[0] is not None:
            taken.append((x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale))
    steps = [(0, 0), *((k, sign) for k in range(1, 12) for sign in (1, -1))]
    for (text, place, color), point in zip(labels, points):
        free = None
        for k, sign in steps:
            for side, ha in ((8, "left"), (-8, "right")):
                offset = (side, 12 * k * sign + (8 if place[0] is None else 0))
                label = axes.annotate(
                    text, point, xytext=offset, textcoords="offset points", va="center", ha=ha,
                    fontsize=SMALL, color=color,
                )  # fmt: skip
                box = label.get_window_extent(renderer).extents
                inside = box[0] >= frame.x0 and box[2] <= frame.x1
                inside = inside and box[1] >= frame.y0 and box[3] <= frame.y1
                free = inside and not any(overlap(box, other) for other in taken)
                if free:
                    break
                label.remove()
            if free:
                taken.append(box)
                break


def overlap(a, b) -> bool:
    """Whether two boxes (left, bottom, right, top) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

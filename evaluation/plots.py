"""Curves and points to PNG: the plots of train.py and evaluate.py, without a display."""

from pathlib import Path

import numpy as np

from evaluation.panels import DPI, NORMAL, SMALL, WIDTH, shortened
from utils import atomic_write


def new_figure(height: float, layout="constrained"):
    """A matplotlib figure of its own: without pyplot there is no display to need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path) -> None:
    """Write a figure as PNG, whole or not at all, and give its memory back."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    figure.clear()


def drawn_plot(figure):
    """A figure as an image of Pillow, to be pasted into another."""
    from PIL import Image

    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    figure.clear()
    return Image.fromarray(pixels)


def run_name(checkpoint: str) -> str:
    """A short name: runs are told apart by their folders, weights by their file names."""
    path, _, extra = str(checkpoint).partition(", ")
    path = Path(path)
    name = (path.parent if path.stem in ("best", "last") else path).stem
    return name + (f", {extra}" if extra else "")


def smoothed(values) -> np.ndarray:
    """A centred mean over 4 % of a curve, of less at both ends, where it would not be centred: the
    curve keeps its length, and starts and ends where the values do."""
    values = np.asarray(values, dtype=float)
    i = np.arange(len(values))
    width = np.minimum(max(1, len(values) // 50), np.minimum(i, i[::-1]))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    low, high = i - width, i + width + 1
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

    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
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
        style = dict(color="tab:blue", label="training, raw", alpha=0.35, lw=0.6)
        axes.plot(iterations[::step], losses[::step], **style)
        style = dict(color="tab:blue", label="training", lw=2)
        axes.plot(iterations[::step], smoothed(losses)[::step], **style)
    iterations, losses = column(rows, "bicubic_loss")
    if len(losses):
        style = dict(color="tab:blue", ls=":", lw=2, label="bicubic on the same patches")
        axes.plot(iterations[::step], smoothed(losses)[::step], **style)
    # Both as what the mean PSNR stands for: the mean MSE is another mean, and would not compare.
    iterations, validation = column(rows, "val_psnr")
    _, bicubic = column(rows, "bicubic_psnr")
    if len(validation):
        style = dict(color="tab:red", ms=4, lw=1, label="validation slices")
        axes.plot(iterations, 10 ** (-validation / 10), "o-", **style)
    if len(bicubic):
        style = dict(color="tab:red", ls=":", lw=2, label="bicubic on the validation slices")
        axes.axhline(10 ** (-bicubic[-1] / 10), **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
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
            labels.append((f"{name}, no network", (None, mean), "gray"))
    axes.set_xscale("log")
    axes.set_xlabel("million multiply-accumulates for a 60x64 slice")
    axes.set_ylabel("PSNR (dB), mean over subjects")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.25, y=0.15)
    axes.grid(alpha=0.3, which="both")
    place_labels(figure, axes, labels)
    save_figure(figure, path)


def place_labels(figure, axes, labels) -> None:
    """Write each label (text, (x or None for the left edge, y), colour) where nothing else is."""
    figure.draw_without_rendering()  # fixes the layout
    reach = 5 * figure.dpi / 72
    dots = [axes.transData.transform(place) for _, place, _ in labels if place[0] is not None]
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in dots]
    for text, (x, y), color in labels:
        style = dict(fontsize=SMALL, color=color, textcoords="offset points", va="center")
        if x is None:
            style["xycoords"] = ("axes fraction", "data")
        taken.append(write_where_free(axes, text, (x or 0, y), taken, style))


def write_where_free(axes, text: str, point, taken: list, style: dict) -> np.ndarray:
    """Write a label beside its point, at the nearest free place, with a line to it if it is far."""
    from matplotlib.text import Text

    frame, renderer = axes.get_window_extent(), axes.figure.canvas.get_renderer()
    first = 0 if "xycoords" not in style else 8  # a label of a line stands above it
    for rise in (first, *(sign * n for n in range(8, 240, 8) for sign in (1, -1))):
        for shift, side in ((8, "left"), (-8, "right")):
            line = dict(arrowstyle="-", lw=0.5, color=style["color"]) if abs(rise) > 16 else None
            options = style | dict(ha=side, arrowprops=line)
            label = axes.annotate(text, point, xytext=(shift, rise), **options)
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer).extents  # without the line
            inside = np.all(box[:2] >= frame.min) and np.all(box[2:] <= frame.max)
            if inside and not any(overlap(box, other) for other in taken):
                return box
            label.remove()
    axes.annotate(text, point, xytext=(8, 0), **style)  # no place is free
    return box


def overlap(a, b) -> bool:
    """Whether two boxes (left, bottom, right, top) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

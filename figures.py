"""Arrays to PNG: every picture that the programs draw, without a display."""

from pathlib import Path

import numpy as np

from utils import atomic_write


def new_figure(width: float, height: float, layout="constrained"):
    """A matplotlib figure of its own, in inches: without pyplot there is no display to need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path) -> None:
    """Write a figure as PNG, whole or not at all, and give its memory back."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    figure.clear()


def busiest_window(image: np.ndarray, share: float = 0.3) -> tuple[float, float, float, float]:
    """The window of an image with the most detail: (top, left, height, width) as shares of it."""
    grid = 16
    h, w = (max(grid, s // grid * grid) for s in image.shape)
    padded = np.pad(image, [(0, max(0, n - s)) for n, s in zip((h, w), image.shape)])[:h, :w]
    detail = padded.reshape(grid, h // grid, grid, w // grid).var(axis=(1, 3))
    n = round(share * grid)
    sums = np.lib.stride_tricks.sliding_window_view(detail, (n, n)).sum(axis=(2, 3))
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return top / grid, left / grid, n / grid, n / grid


def comparison_figure(path, panels, errors=None, *, title="", aspect: float = 1.0) -> None:
    """Write a side-by-side figure: whole slices, below them the busiest detail, then error maps.

    panels: [(title, image (H, W) in [0, 1])], of any sizes that show the same field of view, all
    drawn on one grey range. errors: an absolute error map or None for each panel, on one scale.
    aspect: height of a pixel divided by its width.
    """
    from matplotlib.patches import Rectangle

    rows = 2 + (errors is not None)
    h, w = panels[-1][1].shape
    tall = min(3.0, max(0.33, aspect * h / w))
    # Laid out by hand, in inches: finding the layout would take as long as drawing it.
    side, bar, gap = 3.0, 0.8 * (rows == 3), 0.05
    head = 0.1 + 0.35 * bool(title) + 0.2 * max(1 + name.count("\n") for name, _ in panels)
    wide, high = len(panels) * (side + gap) + gap + bar, rows * (tall * side + gap) + head
    figure = new_figure(wide, high, layout=None)
    grid = dict(left=gap / wide, right=1 - (gap + bar) / wide, bottom=gap / high)
    grid |= dict(top=1 - head / high, wspace=gap / side, hspace=gap / (tall * side))
    axes = figure.subplots(rows, len(panels), squeeze=False, gridspec_kw=grid)
    top, left, height, width = busiest_window(panels[-1][1])
    for column, (name, image) in enumerate(panels):
        style = dict(extent=(0, 1, 1, 0), aspect=tall, interpolation="nearest")
        for row in (0, 1):
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=1, **style)
        axes[0, column].set_title(name, fontsize=10)
        corner, size = (left, top), (width, height)
        axes[0, column].add_patch(Rectangle(corner, *size, fill=False, color="gold", lw=1.2))
        axes[1, column].set(xlim=(left, left + width), ylim=(top + height, top))
    if errors is not None:
        limit = max(0.02, max(float(np.percentile(e, 99.5)) for e in errors if e is not None))
        for column, error in enumerate(errors):
            if error is not None:
                shown = axes[2, column].imshow(error, cmap="inferno", vmin=0, vmax=limit, **style)
        beside = figure.add_axes((1 - bar / wide, 2 * gap / high, 0.12 / wide, tall * side / high))
        figure.colorbar(shown, cax=beside, label="absolute error (white = 1)")
    for a in axes.flat:
        a.set(xticks=[], yticks=[])
        a.set_visible(bool(a.images))
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / high, va="top")
    save_figure(figure, path)


def grid_figure(path, rows, names, *, title="", aspect: float = 1.0) -> None:
    """Write a grid of whole slices on one grey range: one list of images (H, W) a row."""
    tall = [min(3.0, max(0.33, aspect * row[-1].shape[0] / row[-1].shape[1])) for row in rows]
    size = (2.7 * len(names), 2.7 * sum(tall) + 0.6)
    figure = new_figure(*size)
    grid = figure.subplots(len(rows), len(names), squeeze=False, height_ratios=tall)
    for line, images, t in zip(grid, rows, tall):
        for axes, image, name in zip(line, images, names):
            style = dict(extent=(0, 1, 1, 0), aspect=t, interpolation="nearest")
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, **style)
            axes.set(xticks=[], yticks=[])
            if images is rows[0]:
                axes.set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def smoothed(values) -> np.ndarray:
    """A centred mean over 4 % of a curve, shorter at both ends: the curve keeps its length."""
    values = np.asarray(values, dtype=float)
    width = max(1, len(values) // 50)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    i = np.arange(len(values))
    low, high = np.maximum(0, i - width), np.minimum(len(values), i + width + 1)
    return (sums[high] - sums[low]) / (high - low)


def curves_figure(path, curves: dict) -> None:
    """Plot smoothed training losses: {name: (iterations, losses)}. Both axes are logarithmic."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for name, (iterations, losses) in curves.items():
        step = len(losses) // 4000 + 1
        axes.plot(iterations[::step], smoothed(losses)[::step], lw=1.6, label=name)
    axes.set(xlabel="iteration (optimiser steps)", ylabel="MSE (intensity in [0, 1], squared)")
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    save_figure(figure, path)


def cost_figure(path, table: dict) -> None:
    """Plot PSNR against MMAC of the rows of `evaluate.evaluate`, bicubic as a line."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for name, row in table.items():
        mean = row["psnr"]["mean"]
        if "mmac" not in row:
            axes.axhline(mean, color="gray", ls="--", lw=1)
            axes.annotate(name, (0.01, mean), xycoords=("axes fraction", "data"), va="bottom")
            continue
        of = Path(name)  # runs are told apart by their folders, weights by their names
        label = (of.parent if of.stem in ("best", "last") else of).stem
        (dot,) = axes.plot(row["mmac"], mean, "o")
        axes.annotate(
            label, (row["mmac"], mean), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8, color=dot.get_color(),
        )  # fmt: skip
    axes.set_xscale("log", subs=[2, 5])
    axes.set(xlabel="million multiply-accumulates for a 60x64 slice")
    axes.set(ylabel="PSNR (dB), mean over subjects")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.margins(x=0.25)
    axes.grid(alpha=0.3, which="both")
    save_figure(figure, path)


def loss_figure(path, iterations, losses, validations, bicubic_mse=None, title="") -> None:
    """Plot the training loss per iteration: raw and smoothed, with validation and bicubic.

    validations: [(iteration, MSE)]. Logarithmic axis; MSE of intensities in [0, 1].
    """
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    if len(losses):
        smooth, step = smoothed(losses), len(losses) // 4000 + 1  # the eye sees no more points
        style = dict(color="tab:blue", label="training, raw", alpha=0.25, lw=0.6)
        axes.plot(iterations[::step], losses[::step], **style)
        style = dict(color="tab:blue", label="training, smoothed", lw=2)
        axes.plot(iterations[::step], smooth[::step], **style)
    if validations:
        axes.plot(*zip(*validations), "o-", color="tab:red", ms=4, lw=1, label="validation slices")
    if bicubic_mse:
        label = "bicubic upsampling, validation slices"
        axes.axhline(bicubic_mse, color="black", ls="--", lw=1, label=label)
    axes.set(xlabel="iteration (optimiser steps)", ylabel="MSE (intensity in [0, 1], squared)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.set_title(title, fontsize=10)
    if axes.lines:
        axes.legend(fontsize=9, loc="upper right")  # "best" would try every loss
    save_figure(figure, path)

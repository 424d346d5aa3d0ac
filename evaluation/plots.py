"""Curves to PNG: the plot of train.py, without a display."""

import numpy as np

from evaluation.panels import DPI, NORMAL, SMALL, WIDTH, shortened
from utils import atomic_write


def new_figure(height: float):
    """A matplotlib figure of its own: without pyplot there is no display to need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path) -> None:
    """Write a figure as PNG, whole or not at all, and give its memory back."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    figure.clear()


def smoothed(values) -> np.ndarray:
    """A centred mean over 4 % of a curve. It starts where the values do; at the end it is the mean
    of what came before, not of the last value alone."""
    values = np.asarray(values, dtype=float)
    i = np.arange(len(values))
    width = np.minimum(max(1, len(values) // 50), i)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    low, high = i - width, np.minimum(i + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def column(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a column of log.csv, where it is filled."""
    pairs = [(int(r["iteration"]), float(r[name])) for r in rows if r.get(name) not in ("", None)]
    return tuple(np.array(pairs).reshape(-1, 2).T)


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
    _, bicubic = column(rows, "bicubic_loss")
    if len(losses):
        some = slice(None, None, len(losses) // 4000 + 1)  # the eye sees no more points
        blue = dict(color="tab:blue", lw=2)
        raw = dict(color="tab:blue", label="training, raw", alpha=0.35, lw=0.6)
        axes.plot(iterations[some], losses[some], **raw)
        axes.plot(iterations[some], smoothed(losses)[some], label="training", **blue)
        same = dict(ls=":", label="bicubic on the same patches")
        axes.plot(iterations[some], smoothed(bicubic)[some], **same, **blue)
    # Both as what the mean PSNR stands for: the mean MSE is another mean, and would not compare.
    iterations, validation = column(rows, "val_psnr")
    _, bicubic = column(rows, "bicubic_psnr")
    if len(validation):
        style = dict(color="tab:red", ms=4, lw=1, label="validation slices")
        axes.plot(iterations, 10 ** (-validation / 10), "o-", **style)
        style = dict(color="tab:red", ls=":", lw=2, label="bicubic on the validation slices")
        axes.axhline(10 ** (-bicubic[-1] / 10), **style)
    axes.set(xlabel="iteration (optimiser steps)", ylabel="MSE (intensity in [0, 1], squared)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3, which="both")
    axes.set_title(shortened(title, 100), fontsize=NORMAL)
    if axes.lines:  # below the axes a legend hides nothing
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)
    save_figure(figure, path)

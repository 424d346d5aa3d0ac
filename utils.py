"""Small stateless helpers, used by every script: errors, files, metrics, checkpoints, figures."""

import argparse
import io
import math
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

CHECKPOINT_VERSION = 2  # 1: the default network had neither `kernel` nor `half`
METRICS = ("mse", "psnr", "psnr_brain", "ssim", "lr_rmse")

# --- errors and files -----------------------------------------------------------------------------


class DataError(Exception):
    """Something is wrong with a file or with data: one line for the user, exit status 1."""

    status = 1


class UsageError(DataError):
    """Something is wrong with the arguments: one line for the user, exit status 2."""

    status = 2


def run_main(main) -> None:
    """Run a script's main(); errors a user can mend become one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number
        stream.reconfigure(errors="backslashreplace")
    message = ""
    try:
        status = main()
    except DataError as error:
        status, message = error.status, str(error)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        status, message = 1, f"{error.filename or 'writing'}: {reason(error)}"
    except (MemoryError, RuntimeError) as error:  # torch has several types for it, by version
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        status, message = 1, "out of memory: try a smaller --batch-size, --patch-size or --tile"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    # Printed only here, when the exception and with it any progress bar is gone from the line.
    if message:
        print("error: " + one_line(message), file=sys.stderr)
    sys.exit(status)


def say(message: str) -> None:
    """A warning for the person at the prompt, on stderr so that it never mixes with results."""
    print("warning: " + one_line(message), file=sys.stderr)


def one_line(text: str) -> str:
    """The text without line breaks and control codes, whatever a file name brings."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """The words of an exception in one line."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:200] or type(error).__name__


@contextmanager
def reading(path):
    """Read a file inside this: whatever a reader lets through becomes a DataError with its name.

    Damaged files make libraries fail in any way: struct, zlib, numpy, attribute errors ...
    """
    try:
        if not os.path.isfile(path):  # a folder, a broken link, or a pipe that would wait for ever
            kind = "a broken link" if os.path.islink(path) else "not a file"
            raise DataError(f"{path}: {kind if os.path.lexists(path) else 'no such file'}")
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: claims more data than fits into memory") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something: not those of switches, nor None."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        if silent or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line with its defaults in --help, whose mistakes are one line and status 2."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=Defaults, allow_abbrev=False)

    def error(self, message):
        raise UsageError(f"{message}; see --help")


def whole(least: int, most: int = 2**31):
    """An argparse type: a whole number in this range."""

    def parse(text):
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in {least} ... {most}")
        return number

    parse.__name__ = "whole number"
    return parse


@contextmanager
def atomic_write(path, mode: str = "wb"):
    """Open a file that appears under its name only when it is whole and on disk.

    After an error, a full disk or a kill, the file that was there before is untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{os.urandom(4).hex()}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(part, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be written ({reason(error)})") from None
        raise


# --- metrics --------------------------------------------------------------------------------------


def psnr_of(mse: float) -> float:
    """PSNR in dB for data range 1; 100 dB at the most, as for equal slices."""
    return -10 * math.log10(max(mse, 1e-10))


@lru_cache(maxsize=64)
def gaussian_window(size: int) -> torch.Tensor:
    """The 11-tap Gaussian of SSIM (sigma 1.5) as a float64 matrix (size - 10, size).

    For fewer than 11 samples the window shrinks to the largest odd number of taps that fits.
    """
    taps = min(11, size - 1 + size % 2)
    kernel = torch.exp(-0.5 * (torch.arange(taps, dtype=torch.float64) - taps // 2) ** 2 / 1.5**2)
    kernel /= kernel.sum()
    matrix = torch.zeros(size - taps + 1, size, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i : i + taps] = kernel
    return matrix


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of two slices (H, W) in [0, 1].

    Wang et al., IEEE Trans. Image Processing 13(4), 2004, eq. 13: 11x11 Gaussian window of sigma
    1.5, K1 = 0.01, K2 = 0.03, averaged where the window fits. Equal to scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    """
    a, b = a.double(), b.double()
    down, across = gaussian_window(a.shape[-2]), gaussian_window(a.shape[-1]).T
    mu_a, mu_b, aa, bb, ab = down @ torch.stack((a, b, a * a, b * b, a * b)) @ across
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    denominator = (mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2)
    return float((numerator / denominator).mean())


def score(sr: torch.Tensor, hr: torch.Tensor) -> dict:
    """MSE, PSNR, PSNR inside the brain (HR > 0.05) and SSIM of one slice (H, W), clamped to [0, 1].

    No border is cut off. `psnr_brain` is None for a slice without brain.
    """
    sr, hr = sr.detach().cpu().float().clamp(0, 1), hr.detach().cpu().float().clamp(0, 1)
    error = (sr.double() - hr.double()) ** 2
    brain = error[hr > 0.05]
    mse = float(error.mean())
    inside = psnr_of(float(brain.mean())) if brain.numel() else None
    return dict(mse=mse, psnr=psnr_of(mse), psnr_brain=inside, ssim=ssim(sr, hr))


def summarise(rows: list[dict], subjects) -> dict:
    """Per-slice scores -> {metric: {mean, sd}} over subjects, and n.

    A subject's value is the mean of its slices; sd is the sample standard deviation over subjects
    (None for a single one).
    """
    summary = {"subjects": len(set(subjects)), "slices": len(rows)}
    for metric in METRICS:
        by_subject = {}
        for row, subject in zip(rows, subjects):
            if row.get(metric) is not None:
                by_subject.setdefault(str(subject), []).append(row[metric])
        means = [float(np.mean(values)) for values in by_subject.values()]
        summary[metric] = {
            "mean": float(np.mean(means)) if means else None,
            "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        }
    return summary


def metrics_table(rows: dict[str, dict]) -> str:
    """The text table of {name: summary}, with parameters and MMAC where a summary has them."""

    def cell(summary, metric, digits):
        mean, sd = summary[metric]["mean"], summary[metric]["sd"]
        if mean is None:
            return "-"
        return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")

    head = ["", "MSE", "PSNR (dB)", "in brain (dB)", "SSIM", "LR RMSE", "parameters", "MMAC"]
    lines = [head]
    for name, s in rows.items():
        parameters = f"{s['parameters']:,}" if s.get("parameters") else "-"
        macs = f"{s['mmac']:,.0f}" if s.get("mmac") else "-"
        values = [cell(s, m, d) for m, d in zip(METRICS, (5, 2, 2, 4, 4))]
        lines.append([name, *values, parameters, macs])
    used = [i for i in range(len(head)) if any(line[i] != "-" for line in lines[1:])]
    lines = [[line[i] for i in used] for line in lines]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


# --- checkpoints ----------------------------------------------------------------------------------


def save_checkpoint(path, checkpoint: dict) -> None:
    """Write a dict of tensors and plain types, whole or not at all."""
    buffer = io.BytesIO()  # writing to a full disk, torch.save would raise anything
    torch.save({**checkpoint, "version": CHECKPOINT_VERSION}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU, without running any code that it may hold.

    `model` is certain to be a dict of real tensors, no larger than the file. Raises DataError if
    the file is missing, damaged, of another version or no checkpoint of this project.
    """
    path = Path(path)
    wanted = {"model": dict, "arch": dict, "scale": int, "degradation": str, "version": int}
    with reading(path):
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
        if not isinstance(checkpoint, dict) or any(
            not isinstance(checkpoint.get(key), kind) for key, kind in wanted.items()
        ):
            raise DataError(f"{path}: not a checkpoint of this project")
        if checkpoint["version"] not in (1, CHECKPOINT_VERSION):
            raise DataError(
                f"{path}: has another checkpoint version than {CHECKPOINT_VERSION}, which this "
                f"program reads; train it again or use the matching release"
            )
        if checkpoint["version"] == 1 and checkpoint["arch"].get("name") == "deep":
            before = {"channels": 32, "kernel": "3x3", "half": 0}
            checkpoint["arch"] = before | checkpoint["arch"]
        tensors = checkpoint["model"].values()
        good = all(
            type(t) is torch.Tensor and t.device.type == "cpu" and t.layout == torch.strided
            for t in tensors
        )
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if good}
        held = sum(storage.nbytes() for storage in storages.values())
        if not good or held > path.stat().st_size:
            raise DataError(f"{path}: holds no plain weights")
    words = checkpoint.get("trained_on")
    checkpoint["trained_on"] = one_line(words[:200]) if isinstance(words, str) else "unknown data"
    return checkpoint


# --- devices --------------------------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, then MPS, then CPU) or the named device. Raises UsageError if absent."""
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        usable = device.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise UsageError(f"--device {name}: not available on this machine")
    return device


def bf16_works() -> bool:
    """Whether this CPU can do bf16 convolutions. Tried in a process of its own: on some chips that
    advertise them, the attempt ends the process."""
    code = (
        "import torch, torch.nn.functional as F\n"
        "with torch.autocast('cpu', dtype=torch.bfloat16):\n"
        "    x = torch.ones(1, 32, 32, 32, requires_grad=True)\n"
        "    F.conv2d(x, torch.ones(32, 32, 3, 3)).float().sum().backward()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# --- figures --------------------------------------------------------------------------------------


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

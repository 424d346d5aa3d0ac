"""Scores of SR slices against HR slices, and their summary over subjects."""

import math

import numpy as np
import torch

from utils import note

METRICS = ("mse", "psnr", "psnr_brain", "ssim", "power_ratio", "lr_rmse")


def psnr_of(mse: float) -> float:
    """PSNR in dB for data range 1; 100 dB at the most, as for equal slices."""
    return -10 * math.log10(max(mse, 1e-10))


def ssim(sr: np.ndarray, hr: np.ndarray) -> float | None:
    """Mean structural similarity of two slices (H, W) in [0, 1]; None below 3 pixels an edge.

    Wang et al., IEEE Trans. Image Processing 13(4), 2004, eq. 13: Gaussian window of 11x11 and
    sigma 1.5, K1 = 0.01, K2 = 0.03; the mean is over all places where the window fits. Slices of
    less than 11 pixels are mirrored at their edges, and fewer pixels are left out there.
    """
    from skimage.metrics import structural_similarity  # takes 0.3 s, which upscaling can save

    size = min(11, *(n - 1 + n % 2 for n in hr.shape))  # odd
    if size < 3:
        return None
    # scikit-image filters with 11x11 in any case; win_size is what it leaves out at the edges.
    options = dict(data_range=1, win_size=size, gaussian_weights=True, sigma=1.5)
    return float(structural_similarity(hr, sr, use_sample_covariance=False, **options))


def score(sr: torch.Tensor, hr: torch.Tensor, measured: tuple | None = None) -> dict:
    """MSE, PSNR, PSNR inside the brain (HR > 0.05) and SSIM of one slice (H, W), clamped to [0, 1].

    No border is cut off. `psnr_brain` is None for a slice without brain, `ssim` for a tiny one.
    measured: of `power_ratio`, which is then there too.
    """
    sr, hr = (x.detach().cpu().double().clamp(0, 1) for x in (sr, hr))
    error = (sr - hr) ** 2
    brain = error[hr > 0.05]
    mse = float(error.mean())
    inside = psnr_of(float(brain.mean())) if brain.numel() else None
    result = dict(mse=mse, psnr=psnr_of(mse), psnr_brain=inside, ssim=ssim(sr.numpy(), hr.numpy()))
    return result | (dict(power_ratio=power_ratio(sr, hr, measured)) if measured else {})


def power_ratio(sr: torch.Tensor, hr: torch.Tensor, measured: tuple) -> float | None:
    """Power of SR over that of HR, slices (H, W), in the frequencies that the LR has measured.

    measured: how many rows and columns make one of the LR slice, or of what this was zero-filled
    from; frequencies below half a cycle of these count, but for the mean. 1: as sharp as the truth;
    above: sharpened too much. None where HR is flat there.
    """
    low = [abs(np.fft.fftfreq(n)) < 0.5 / m for n, m in zip(hr.shape, measured)]
    spectra = (np.fft.fft2(x.double().numpy(), norm="forward") for x in (sr, hr))
    of_sr, of_hr = (float((abs(x[np.ix_(*low)]) ** 2).sum() - abs(x[0, 0]) ** 2) for x in spectra)
    return of_sr / of_hr if of_hr > 1e-12 else None


def summarise(rows: list[dict], subjects, bicubic: list[dict] | None = None) -> dict:
    """Per-slice scores -> {metric: {mean, sd}} over subjects, and their numbers.

    A subject's value is the mean of its slices; sd is the sample standard deviation over subjects
    (None for a single one). bicubic: the scores of bicubic upsampling of the same slices; with them
    also the share of slices that are worse, the worst gain over it in dB and which slice has it.
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
    if bicubic and len(rows):
        gains = np.array([row["psnr"] - before["psnr"] for row, before in zip(rows, bicubic)])
        summary["below_bicubic"] = float((gains < -0.001).mean())  # more than rounding
        summary |= {"worst_gain": float(gains.min()), "worst_slice": int(gains.argmin())}
    return summary


def metrics_table(rows: dict[str, dict]) -> str:
    """The text table of {name: summary}, no wider than 80 letters but for long names; columns that
    no summary fills are left out. All else is in `--json` and `--csv`."""

    def cell(summary, metric, digits):
        mean, sd = (summary.get(metric, {}).get(key) for key in ("mean", "sd"))
        if mean is None:
            return "-"
        return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")

    lines = [["", "PSNR (dB)", "in brain (dB)", "SSIM", "below"]]
    for name, summary in rows.items():
        values = [cell(summary, m, d) for m, d in (("psnr", 2), ("psnr_brain", 2), ("ssim", 4))]
        below = summary.get("below_bicubic")
        lines.append([name, *values, "-" if below is None else f"{below:.1%}"])
    return as_table(lines)


def as_table(lines: list[list[str]]) -> str:
    """Rows of words as a text table with a line below the first; columns of dashes are left out."""
    used = [i for i in range(len(lines[0])) if any(line[i] != "-" for line in lines[1:])]
    lines = [[line[i] for i in used] for line in lines]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def note_legend(table: str) -> None:
    """Say what the columns of a `metrics_table` are, of those that it has."""
    head, _, first, *_ = table.splitlines()
    note("mean ± sd over subjects")
    if "in brain" in head:
        note("in brain: where the truth is above 5 % of white")
    if "below" in head:
        what = "volumes below cubic" if first.startswith("cubic") else "slices below bicubic"
        note(f"below: share of {what}")

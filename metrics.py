"""Scores of SR slices against HR slices, and their summary over subjects."""

import math

import numpy as np
import torch
from skimage.metrics import structural_similarity

METRICS = ("mse", "psnr", "psnr_brain", "ssim", "lr_rmse")


def psnr_of(mse: float) -> float:
    """PSNR in dB for data range 1; 100 dB at the most, as for equal slices."""
    return -10 * math.log10(max(mse, 1e-10))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two slices (H, W) in [0, 1].

    Wang et al., IEEE Trans. Image Processing 13(4), 2004, eq. 13: Gaussian window of 11x11 and
    sigma 1.5 (the largest odd size that fits into a smaller slice), K1 = 0.01, K2 = 0.03.
    """
    size = min(11, *(n - 1 + n % 2 for n in a.shape))
    return float(
        structural_similarity(
            a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            win_size=size,
        )
    )  # fmt: skip


def score(sr: torch.Tensor, hr: torch.Tensor) -> dict:
    """MSE, PSNR, PSNR inside the brain (HR > 0.05) and SSIM of one slice (H, W), clamped to [0, 1].

    No border is cut off. `psnr_brain` is None for a slice without brain.
    """
    sr, hr = sr.detach().cpu().float().clamp(0, 1), hr.detach().cpu().float().clamp(0, 1)
    error = (sr.double() - hr.double()) ** 2
    brain = error[hr > 0.05]
    mse = float(error.mean())
    inside = psnr_of(float(brain.mean())) if brain.numel() else None
    return dict(mse=mse, psnr=psnr_of(mse), psnr_brain=inside, ssim=ssim(sr.double().numpy(), hr.double().numpy()))


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

"""How far the detail is real: Fourier ring correlation with the truth, frequency by frequency.

Between a result and the true slice, over the rings of equal frequency of their Fourier transforms:
1 where a frequency has the right phase everywhere, 0 where it is unrelated. Beside it, how much of
the truth's amplitude the result has: amplitude without correlation is invented.
"""

import numpy as np

import utils
from evaluation import plots
from inference import Upscaler
from study.common import (
    COLOURS,
    PIXEL,
    SCALE,
    TRUTH,
    VERSIONS,
    looked_at,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
)

RINGS = 60


def ring_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over the rings of (cross, power of a, power of b), (3, RINGS), of slices (N, H, W)."""
    down, across = (np.fft.fftfreq(n) for n in a.shape[-2:])
    ring = (np.hypot(down[:, None], across) * 2 * RINGS).astype(int)
    a, b = np.fft.fft2(a), np.fft.fft2(b)
    parts = (a * b.conj()).real, abs(a) ** 2, abs(b) ** 2
    counted = [np.bincount(ring.ravel(), p.sum(0).ravel())[:RINGS] for p in parts]
    return np.stack(counted)


def crossing(frequencies: np.ndarray, curve: np.ndarray, level: float = 0.5) -> float:
    """The frequency at which the curve first falls below the level."""
    below = np.flatnonzero(curve < level)
    if not len(below):
        return float(frequencies[-1])
    i = max(1, below[0])
    share = (curve[i - 1] - level) / (curve[i - 1] - curve[i])
    return float(frequencies[i - 1] + share * (frequencies[i] - frequencies[i - 1]))


def draw(path, frequencies, curves, amplitudes, nyquist) -> None:
    """Correlation and amplitude by frequency: mean and standard deviation over people."""
    figure = plots.new_figure(3.6)
    axes = figure.subplots(1, 2)
    titles = "Fourier ring correlation with the truth", "amplitude, as a share of the truth's"
    for axis, data, title in zip(axes, (curves, amplitudes), titles):
        for name, by_person in data.items():
            middle, spread = by_person.mean(0), by_person.std(0, ddof=len(by_person) > 1)
            axis.plot(frequencies, middle, color=COLOURS[name], label=f"{name}, mean ± sd")
            axis.fill_between(
                frequencies, middle - spread, middle + spread, color=COLOURS[name], alpha=0.25, lw=0
            )
        axis.axvline(nyquist, color="black", ls=":", lw=1, label="the input ends here")
        axis.set(xlabel="frequency (cycles per mm)", ylim=(-0.15, 1.1), xlim=(0, None))
        axis.set_title(title, fontsize=plots.NORMAL)
        axis.grid(alpha=0.3)
    axes[0].axhline(0.5, color="black", lw=0.6)
    axes[0].legend(fontsize=plots.SMALL)
    plots.save_figure(figure, path)


def summary(curves: np.ndarray, amplitudes: np.ndarray, frequencies, nyquist) -> dict:
    """Up to where the correlation is above one half, and both at multiples of the input's end."""
    real_to = [crossing(frequencies, curve) for curve in curves]
    found = {"correlation_above_half_up_to_cycles_per_mm": mean_sd(real_to)}
    for share in (0.5, 1, 1.25, 1.5, 2, 3):
        i = np.abs(frequencies - share * nyquist).argmin()
        both = {"correlation": mean_sd(curves[:, i]), "amplitude": mean_sd(amplitudes[:, i])}
        found[f"at_{share}_of_lr"] = both
    return found


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    upscaler, everybody = Upscaler(args.weights), people(args)
    frequencies = (np.arange(RINGS) + 0.5) / (2 * RINGS) / PIXEL
    nyquist = 0.5 / SCALE[0] / PIXEL
    sums = {name: [] for name in VERSIONS}
    for person in everybody:
        shown = looked_at(upscaler, person, args)
        for name, found in sums.items():
            found.append(ring_sums(shown[name], shown[TRUTH]))
    curves, amplitudes, result = {}, {}, {}
    for name, found in sums.items():
        cross, power, truth = np.stack(found).transpose(1, 0, 2)
        curves[name] = cross / np.sqrt(power * truth + 1e-12)
        amplitudes[name] = np.sqrt(power / (truth + 1e-12))
        result[name] = summary(curves[name], amplitudes[name], frequencies, nyquist)
        half = result[name]["correlation_above_half_up_to_cycles_per_mm"]
        print(
            f"{name}: half correlation at {text(half, 3)} cycles/mm (input ends at {nyquist:.3f})"
        )
    result |= {"people": len(everybody), "slices": sum(len(p.places) for p in everybody)}
    result["lr_ends_at_cycles_per_mm"] = nyquist
    draw(picture(args, "fourier"), frequencies, curves, amplitudes, nyquist)
    save(args, "fourier", result)


if __name__ == "__main__":
    utils.run_main(main)

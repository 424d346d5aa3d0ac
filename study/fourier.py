"""How far the detail is real: Fourier ring correlation with the truth, frequency by frequency.

Between a result and the HR slice, over the rings of equal frequency of their Fourier transforms:
1 where a frequency has the right phase everywhere, 0 where it is unrelated. Beside it, how much of
the truth's amplitude the result has: amplitude without correlation is invented.
"""

import numpy as np
from common import (
    PIXEL,
    add_test_data,
    load,
    mean_sd,
    parser,
    people,
    picture,
    save,
    text,
    versions,
)

import utils
from evaluation import plots

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
    figure = plots.new_figure(3.6)
    axes = figure.subplots(1, 2)
    for axis, data, title in (
        (axes[0], curves, "Fourier ring correlation with the truth"),
        (axes[1], amplitudes, "amplitude, as a share of the truth's"),
    ):
        for (name, by_person), colour in zip(data.items(), ("tab:gray", "tab:blue")):
            middle, spread = by_person.mean(0), by_person.std(0, ddof=len(by_person) > 1)
            axis.plot(frequencies, middle, color=colour, label=name)
            axis.fill_between(
                frequencies, middle - spread, middle + spread, color=colour, alpha=0.25, lw=0
            )
        axis.axvline(nyquist, color="k", ls=":", lw=1, label="the LR slice ends here")
        axis.set(title=title, xlabel="frequency (cycles per mm)", ylim=(-0.05, 1.1), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].axhline(0.5, color="k", lw=0.6)
    axes[0].legend()
    plots.save_figure(figure, path)


def main(argv=None):
    found = parser(__doc__)
    add_test_data(found)
    args = found.parse_args(argv)
    network, subjects = load(args.weights), people(args.data, args.slices)
    frequencies = (np.arange(RINGS) + 0.5) / (2 * RINGS) / PIXEL
    nyquist = 0.5 / network.scale[0] / PIXEL
    sums = {"bicubic": [], "SR": []}
    for _, hr in subjects.values():
        shown = versions(network, hr, args)
        for name, found in sums.items():
            found.append(ring_sums(shown[name][:, 0].numpy(), hr[:, 0].numpy()))
    curves, amplitudes, result = {}, {}, {}
    for name, found in sums.items():
        cross, power, truth = np.stack(found).transpose(1, 0, 2)
        curves[name] = cross / np.sqrt(power * truth + 1e-12)
        amplitudes[name] = np.sqrt(power / (truth + 1e-12))
        real_to = [crossing(frequencies, curve) for curve in curves[name]]
        result[name] = {
            "correlation_above_half_up_to_cycles_per_mm": mean_sd(real_to),
            "finest_real_detail_mm": mean_sd([0.5 / f for f in real_to]),  # half a period
        }
        for share in (0.5, 1, 1.25, 1.5, 2, 3):  # in units of the LR slice's highest frequency
            i = np.abs(frequencies - share * nyquist).argmin()
            result[name][f"at_{share}_of_lr"] = {
                "correlation": mean_sd(curves[name][:, i]),
                "amplitude": mean_sd(amplitudes[name][:, i]),
            }
        print(
            f"{name}: half correlation at "
            f"{text(result[name]['correlation_above_half_up_to_cycles_per_mm'], 3)} cycles/mm "
            f"(LR ends at {nyquist:.3f})"
        )
    result |= {
        "people": len(subjects),
        "slices": sum(len(names) for names, _ in subjects.values()),
        "lr_ends_at_cycles_per_mm": nyquist,
    }
    draw(picture(args, "fourier"), frequencies, curves, amplitudes, nyquist)
    save(args, "fourier", result)


if __name__ == "__main__":
    utils.run_main(main)

"""Whether thinner slices agree with the thick ones they come from: what predict.py made of scans.

python predict.py a.nii.gz b.nii.gz --through-plane --output thin
python -m study.given_back a.nii.gz thin/a_through-x3.nii.gz b.nii.gz thin/b_through-x5.nii.gz
"""

import numpy as np

import scans
import utils


def agreement(thick: np.ndarray, thin: np.ndarray) -> dict:
    """Differences of the mean of the thin slices from their thick slice, as shares of the range.

    The range is that of the scan without its brightest 0.2 %. seam: the mean step from one thin
    slice to the next across the border of two thick slices, divided by that inside one.
    """
    axis = next(i for i in range(3) if thin.shape[i] != thick.shape[i])
    thick, thin = np.moveaxis(thick, axis, 0), np.moveaxis(thin, axis, 0)
    factor = len(thin) // len(thick)
    again = thin.reshape(len(thick), factor, *thick.shape[1:]).mean(1)
    off = np.abs(again - thick) / (np.percentile(thick, 99.8) - thick.min())
    steps = np.abs(np.diff(thin, axis=0)).mean((1, 2))
    border = np.arange(len(steps)) % factor == factor - 1
    return {
        "factor": factor,
        "rms": float(np.sqrt((off**2).mean())),
        "of 99 % at most": float(np.percentile(off, 99)),
        "seam": float(steps[border].mean() / steps[~border].mean()),
    }


def main(argv=None):
    parse = utils.Parser(__doc__.split("\n\n")[0])
    parse.add_argument("files", nargs="+", metavar="FILE", help="a scan, its result, a scan ...")
    args = parse.parse_args(argv)
    if len(args.files) % 2:
        parse.error("give each scan with its result")
    for scan, result in zip(args.files[::2], args.files[1::2]):
        thick, thin = (scans.read(path).intensities() for path in (scan, result))
        if thick.shape == thin.shape:
            raise utils.DataError(f"{result}: has no more slices than {scan}")
        found = agreement(thick, thin)
        print(f"{scan}: x{found['factor']}, off by {found['rms']:.2%} of the range (rms), "
              f"99 % of voxels by {found['of 99 % at most']:.2%} at most; "
              f"steps across borders / inside {found['seam']:.2f}")  # fmt: skip


if __name__ == "__main__":
    utils.run_main(main)

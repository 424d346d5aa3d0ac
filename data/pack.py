"""Pack a folder of volumes into one small file, to train where there is little room or time.

    python data/pack.py VOLUMES volumes.zip
    python train.py --data volumes.zip

8 bits, lossless, at most 40 MiB. Volumes are cut to the head, and of each as many neighbouring
slices are kept as fit: of one person the upper ones, of the next the lower ones. Folders called
train, val and test are kept; of people in val and test a third as much.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
from scans.formats import suffix
from scans.listing import names_below, training_scans
from scans.packed import encoded, write_packed
from utils import DataError, Parser, UsageError, note, progress, run_main

FEWER = {"val": 1 / 3, "test": 1 / 3}  # of their slices, besides


def slab(volume: np.ndarray, share: float, number: int) -> np.ndarray:
    """This share of the slices of a volume that is stored from the top down: the upper ones, of
    every other volume the lower ones."""
    count = max(8, round(share * len(volume)))
    return volume[:count] if number % 2 else volume[-count:]


def pack(source: Path, target: Path, limit: int, without_test: bool) -> None:
    """Write the volumes of a folder into a zip file of at most `limit` bytes."""
    scans, _ = training_scans(source)
    scans = [s for s in scans if not s.is_picture]
    scans = [s for s in scans if not (without_test and s.split == "test")]
    if not scans:
        raise DataError(f"{source}: holds no volumes")
    with ThreadPoolExecutor(2) as pool:
        found = progress(pool.map(dataset.read_volume, scans), total=len(scans), desc="reading")
        volumes, share = list(found), 1.0
        for _ in range(5):  # until it fits
            parts = [
                slab(volume["pixels"], share * FEWER.get(scan.split, 1), n)
                for n, (scan, volume) in enumerate(zip(scans, volumes))
            ]
            packed = list(progress(pool.map(encoded, parts), total=len(parts), desc="packing"))
            size = sum(map(len, packed)) + 400 * len(packed)
            if size <= limit:
                break
            share *= 0.985 * limit / size
    names = names_below(source, scans)
    names = [name.removesuffix(suffix(scan.path)) for name, scan in zip(names, scans)]
    rows = zip(packed, [part.shape for part in parts], [volume["mm"] for volume in volumes])
    write_packed(target, dict(zip(names, rows)))
    note(f"{target}: {len(scans)} volumes, {share:.0%} of their slices, {size / 2**20:.1f} MiB")


def main(argv=None):
    parser = Parser(__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("source", help="folder of volumes")
    add("target", help="packed file to write, .zip")
    add("--mib", type=float, default=40, help="its largest size")
    add("--without-test", action="store_true", help="leave out what lies in a folder called test")
    args = parser.parse_args(argv)
    source, target = Path(args.source), Path(args.target)
    if not source.is_dir() or target.suffix != ".zip":
        raise UsageError("give a folder of volumes and a .zip file to write")
    pack(source, target, int(args.mib * 2**20), args.without_test)


if __name__ == "__main__":
    run_main(main)

"""From files on disk to slices, subject-wise splits and LR/HR batches.

Reads pictures (png, jpeg, tiff, bmp) and volumes, knows whose slice it is, splits by subject,
keeps all slices in one uint8 file and degrades them: the same functions for training,
evaluation and figures.

    python dataset.py SCANS SLICES     turn volumes or DICOM series into a folder of slices
"""

import hashlib
import io
import json
import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from degradation import Scale, crop_to_scale, degrade, draw_degradation, random_contrast
from description import describe_degradation
from dicom import dicom_series, read_scan
from formats import (
    PICTURES,
    VOLUMES,
    intensity_range,
    kind_of,
    natural,
    read_picture,
    stem,
    suffix,
    volume_slices,
)
from subjects import subject_of
from utils import (
    DataError,
    atomic_write,
    reason,
    warn,
)

# --- whose slice it is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A file to read slices from. group is the class folder (AD, NC …), split train, test or ''.

    For a DICOM series path is its folder, or its only file; series is its number.
    """

    path: Path
    subject: str
    group: str
    split: str
    files: tuple = ()
    series: str = ""
    about: str = ""


def find_scans(root) -> list[Scan]:
    """All pictures, volumes and DICOM series below a folder, in natural order.

    Raises DataError if there are none, or if a subject is in both `train` and `test`.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; --data takes the folder of a data set")
    scans, seen = [], set()

    def leave_out(error):
        warn(f"left out: {error.filename}: {reason(error)}")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=leave_out):
        real = os.path.realpath(folder)
        folders[:] = (
            [] if real in seen else sorted((f for f in folders if f[0] != "."), key=natural)
        )
        if real in seen:  # a link to a folder that was read already
            continue
        seen.add(real)
        parts = Path(folder).relative_to(root).parts
        split = next((p.lower() for p in parts if p.lower() in ("train", "test")), "")
        inner = tuple(p for p in parts if p.lower() not in ("train", "test"))
        group = inner[0] if split and inner and not inner[0].startswith("sub-") else ""
        dicom = []
        for name in sorted((name for name in files if name[0] != "."), key=natural):
            path = Path(folder, name)
            kind = kind_of(path) if suffix(path) not in PICTURES + VOLUMES else ""
            if kind == "dicom":
                dicom.append(path)
            elif suffix(path) in PICTURES + VOLUMES or (
                kind == "volume" and suffix(path) != ".hdr"
            ):
                scans.append(Scan(path, subject_of(path, inner), group, split))
        for number, about, patient, members in dicom_series(dicom) if dicom else ():
            # Without a name in the files, the uppermost folder is the subject's.
            path = Path(folder) if len(members) > 1 else members[0]
            patient = patient or (*inner[bool(group) :], stem(path))[0]
            subject = subject_of(path, inner, patient)
            scans.append(Scan(path, subject, group, split, members, number, about))
    if not scans:
        raise DataError(f"{root}: holds no slices (png, jpeg, tiff) and no volumes (nii, mgz, dcm)")
    return scans


def split_subjects(scans: list[Scan], seed: int, validate: float = 0.1, test: float = 0.15) -> dict:
    """Assign every subject to `train`, `val` or `test`: {subject: split}.

    The data set's own `train` and `test` folders are kept; what is missing is taken out of the
    rest by a seeded shuffle of subjects, the same share of each class, at least one subject.
    Raises DataError if a subject is in both folders or there are too few subjects.
    """
    where = os.path.commonpath([scan.path for scan in scans]) or "."
    given, groups = defaultdict(set), defaultdict(dict)
    for scan in scans:
        given[scan.subject].add(scan.split)
        groups[scan.group][scan.subject] = None  # an ordered set: thousands of subjects are quick
    both = sorted((s for s, splits in given.items() if len(splits) > 1), key=natural)
    if both:
        names = ", ".join(both[:5])
        raise DataError(
            f"{where}: {len(both)} subject(s) are in train and in test too ({names}); keep each in "
            "one of them"
        )
    split = {s: "test" if splits == {"test"} else "train" for s, splits in given.items()}
    wanted = {"val": validate, "test": 0 if "test" in split.values() else test}
    wanted = {name: share for name, share in wanted.items() if share}
    left = list(split.values()).count("train")
    if left <= len(wanted):
        raise DataError(
            f"{where}: {left} subject(s){'' if 'test' in wanted else ' outside test'} are too few: "
            f"{len(wanted) + 1} are needed, for train, {' and '.join(wanted)}"
        )
    rng = np.random.default_rng(seed)
    order = {g: rng.permutation(sorted(s, key=natural)).tolist() for g, s in sorted(groups.items())}
    for name, share in wanted.items():
        # Deal subjects class by class, so that every class gives its share.
        pools = [[s for s in subjects if split[s] == "train"] for subjects in order.values()]
        take = [round(share * len(pool)) for pool in pools]
        if not any(take):
            take[int(np.argmax([len(pool) for pool in pools]))] = 1
        for pool, n in zip(pools, take):
            split |= dict.fromkeys(pool[:n], name)
    return split


# --- all slices in one file -----------------------------------------------------------------------


@dataclass
class Slices:
    """Slices of one split. Pixels lie in one uint8 file; only what is asked for is read."""

    file: Path
    offset: np.ndarray  # (n,) int64, where a slice starts in the file
    shape: np.ndarray  # (n, 2) int32, its height and width
    content: np.ndarray  # (n, 2) int32, LR height and width of what is not empty
    subject: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str, its class or ''
    name: np.ndarray  # (n,) str, its path, for a slice of a volume with #index

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, i: int) -> np.ndarray:
        """Slice i as uint8 (H, W). Read, not mapped: pages of a mapping would count as memory."""
        h, w = self.shape[i].tolist()
        with open(self.file, "rb", buffering=0) as file:  # half the time of np.fromfile
            file.seek(int(self.offset[i]))
            return np.frombuffer(file.read(h * w), np.uint8).reshape(h, w)

    def take(self, chosen) -> "Slices":
        """The slices with these indices (or this mask)."""
        arrays = (self.offset, self.shape, self.content, self.subject, self.group, self.name)
        return Slices(self.file, *(a[chosen] for a in arrays))

    def counts(self) -> str:
        """Subjects and slices in words, by class."""
        n = len(set(self.subject))
        words = f"{n} subject{'s' * (n != 1)}, {len(self)} slices"
        parts = [
            f"{g} {len(set(self.subject[self.group == g]))}/{(self.group == g).sum()}"
            for g in sorted(set(self.group) - {""})
        ]
        return words + (f" ({', '.join(parts)})" if parts else "")


def content_of(pixels: np.ndarray) -> np.ndarray:
    """[[row, column], [height, width]] in LR pixels of what is not empty.

    What is darker than a twentieth of the brightest pixel counts as empty.
    """
    bright, box = pixels > pixels.max() // 20, []
    for axis, size in enumerate(pixels.shape):
        where = np.flatnonzero(bright.any(axis=1 - axis))
        first, last = where[[0, -1]] // 4 if len(where) else (0, size)
        box.append((first, min(size // 4, last + 1) - first))
    return np.array(box, np.int32).T


def scan_slices(scan: Scan, axis: str, count: int) -> list[tuple[str, np.ndarray]]:
    """Named uint8 slices of one file: one of a picture, many of a volume."""
    if scan.files or kind_of(scan.path) in ("volume", "dicom"):
        slices = volume_slices(read_scan(scan.path, scan.files), axis, count)
        if not slices:
            raise DataError(f"{scan.path}: no slice with enough foreground")
        return [(f"{scan.path}#{n}", pixels) for n, pixels in slices]
    pixels = read_picture(scan.path).pixels
    if min(pixels.shape) < 4:
        raise DataError(
            f"{scan.path}: {pixels.shape[1]}x{pixels.shape[0]} is too small to train on"
        )
    return [(str(scan.path), (pixels * 255 + 0.5).astype(np.uint8))]


def fingerprint(scans: list[Scan], *options) -> str:
    """A digest of the files' names, sizes and times: it changes when the data set does."""
    digest = hashlib.sha256(json.dumps(["cache 4", *options]).encode())
    for path in (path for scan in scans for path in scan.files or (scan.path,)):
        try:
            about = path.stat()
            words = f"{about.st_size}|{about.st_mtime_ns}"
        except OSError:  # such as a broken link; reading it says what is wrong
            words = "gone"
        digest.update(os.fsencode(f"{path}|{words}\n"))
    return digest.hexdigest()[:16]


def load_slices(scans: list[Scan], cache, *, axis="axial", count=0, workers=2, progress=None):
    """All slices of all scans, decoded once: (Slices, fingerprint, number of files left out).

    The pixels are kept in `cache`/<fingerprint>.u8 and found again on the next call. Both files
    appear under their names only when they are whole. progress: wraps the iteration over scans.
    A file that cannot be read is named and left out.
    """
    key = fingerprint(scans, axis, count)
    pixels_file, index_file = (Path(cache, f"{key}.{end}") for end in ("u8", "npz"))
    index = read_index(index_file, pixels_file)
    if index is None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        for left in Path(cache).glob(f".{key}.*.part"):  # of a process that was killed while at it
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        offset, shape, content, owner, name, bad = [], [], [], [], [], []

        def read(scan):
            try:
                return scan_slices(scan, axis, count)
            except DataError as error:
                return error

        position = 0
        numbered = iter(progress(scans) if progress else scans)
        with atomic_write(pixels_file) as file, ThreadPoolExecutor(workers) as pool:
            # A few scans at a time: what waits to be written is bounded.
            for start in range(0, len(scans), 4 * workers):
                part = list(islice(numbered, 4 * workers))
                for i, found in enumerate(pool.map(read, part), start):
                    if isinstance(found, DataError):
                        warn(f"left out: {found}")
                        bad.append(i)
                        continue
                    for label, array in found:
                        file.write(np.ascontiguousarray(array).data)
                        offset.append(position)
                        shape.append(array.shape)
                        content.append(content_of(array)[1])
                        owner.append(i)
                        name.append(label)
                        position += array.size
            if not offset:
                raise DataError(f"{scans[0].path.parent}: no slice could be read from any file")
        index = dict(
            offset=np.array(offset),
            shape=np.array(shape, np.int32),
            content=np.array(content),
            owner=np.array(owner),
            name=np.array(name),
            bad=np.array(bad),
        )
        buffer = io.BytesIO()  # writing to a full disk, np.savez would raise anything
        np.savez(buffer, **index)
        with atomic_write(index_file) as file:
            file.write(buffer.getbuffer())
    owner = index["owner"]
    subject = np.array([s.subject for s in scans])[owner]
    group = np.array([s.group for s in scans])[owner]
    arrays = (index[key] for key in ("offset", "shape", "content"))
    slices = Slices(pixels_file, *arrays, subject, group, index["name"])
    return slices, key, len(index["bad"])


def read_index(index_file: Path, pixels_file: Path) -> dict | None:
    """The arrays of a cache's index; None if there is none, or if either file is not whole."""
    try:
        with np.load(index_file) as file:
            index = dict(file)
        end = index["offset"][-1] + index["shape"][-1].prod()
        return index if pixels_file.stat().st_size == end else None
    except Exception:  # a damaged file can fail anywhere in there, and is made again
        return None


def demo_slices(cache) -> tuple[dict[str, Slices], str]:
    """Train, validation and test slices of the ICBM152 average brain that comes with nilearn.

    Axial slices at 1 mm, in three slabs with gaps of 6 mm, as neighbouring slices are almost the
    same picture: the test slab at the height of the temporal lobes, validation, train above.
    """
    from nilearn.datasets import load_mni152_template

    file = Path(cache, "mni152.u8")
    data = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    low, high = intensity_range(data, clipped=True)
    data = np.clip((data - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)
    data = np.ascontiguousarray(
        data.transpose(2, 1, 0)[:, ::-1]
    )  # RAS: from below, rows from the front
    file.parent.mkdir(parents=True, exist_ok=True)
    if not (file.exists() and file.stat().st_size == data.size):
        with atomic_write(file) as out:
            out.write(data.data)
    n, h, w = data.shape
    every = Slices(
        file,
        np.arange(n) * h * w,
        np.full((n, 2), (h, w), np.int32),
        np.array([content_of(pixels)[1] for pixels in data]),
        np.full(n, "ICBM152"),
        np.full(n, ""),
        np.array([f"axial {i}" for i in range(n)]),
    )
    slabs = {"test": range(26, 50), "val": range(56, 64), "train": range(70, 150)}
    return {split: every.take(np.array(slab)) for split, slab in slabs.items()}, "mni152"


# --- batches --------------------------------------------------------------------------------------

VIEW = 64  # LR pixels along an edge of what the estimator of the degradation sees


@dataclass
class Batch:
    """One training step: all float32, N samples.

    lr (N, 1, P, P) and hr (N, 1, rows P, columns P) in [0, 1]; view (N, 1, VIEW, VIEW): a larger
    part of the LR slices; description (N, ENTRIES): their true degradation.
    """

    lr: torch.Tensor
    hr: torch.Tensor
    view: torch.Tensor
    description: torch.Tensor


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits n slices."""
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def training_batch(
    slices: Slices, iteration: int, *, seed: int, batch_size: int, patch: int, degradation: str,
    scale: Scale = (4, 4), augment: bool = True, device: str = "cpu", rank: int = 0, world: int = 1,
) -> Batch:  # fmt: skip
    """The samples of one training step.

    A pure function of (seed, iteration): nothing has to be stored to resume, and `world` processes
    that each make their share (every world-th sample) see together what one process would.
    patch: in LR pixels; 0: whole slices, padded with black to the largest of the batch.
    """
    samples = []
    for number in range(iteration * batch_size + rank, (iteration + 1) * batch_size, world):
        rng = np.random.default_rng([seed, 2, number])
        pixels = slices[shuffled(len(slices), seed, number // len(slices))[number % len(slices)]]
        samples.append(training_sample(pixels, rng, patch, degradation, scale, augment))
    sizes = [tuple(max(x.shape[a] for x in group) for a in (0, 1)) for group in zip(*samples)]
    lr, hr, view, description = (
        to_device(np.stack([fit(x, size) for x in group]), device)
        for group, size in zip(zip(*samples), sizes)
    )
    return Batch(lr[:, None], hr[:, None], view[:, None], description[:, 0])


def training_sample(pixels, rng, patch, degradation, scale, augment) -> tuple[np.ndarray, ...]:
    """LR and HR patch, view and description of one slice, as float32 arrays (H, W).

    The whole slice is degraded, by the same function as in validation and evaluation, and the patch
    is cut out of the result: patches carry no trace of having been cut out. augment: flips, quarter
    turns, the LR grid at any HR pixel, brightness, with `wide` other contrasts: all of this only
    changes how the same slice is looked at.
    """
    rows, columns = scale
    gain = 1.0
    if augment:
        # Mostly upright, as most pictures are.
        upside_down, mirrored, turned = rng.random(3) < (0.25, 0.5, 0.25)
        pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        pixels = pixels.T if turned and rows == columns else pixels
        top, left = (
            int(rng.integers(min(s, max(1, n - s + 1)))) for s, n in zip(scale, pixels.shape)
        )
        pixels = pixels[top:, left:]
        gain = rng.uniform(0.7, 1)
    pixels = crop_to_scale(pixels, scale)
    levels = np.arange(256, dtype=np.float32) / 255
    if augment and degradation == "wide" and rng.random() < 0.35:
        levels = random_contrast(rng)
    hr = torch.from_numpy((levels * np.float32(gain))[pixels])[None, None]
    way = draw_degradation(degradation, rng, scale)
    # Noise as a share of the slice's own white, not of the brightness that was drawn.
    lr = degrade(hr, replace(way, noise=way.noise * gain), scale, seed=rng.integers(2**32))
    lr, hr = lr[0, 0].numpy(), hr[0, 0].numpy()
    view = lr[tuple(slice(int(rng.integers(max(1, n - VIEW + 1))), None) for n in lr.shape)]
    if patch:
        y, x = (int(rng.integers(max(1, n - patch + 1))) for n in lr.shape)
        lr = fit(lr[y:, x:], (patch, patch))
        hr = fit(hr[rows * y :, columns * x :], (rows * patch, columns * patch))
    return lr, hr, fit(view, (VIEW, VIEW)), describe_degradation(way, scale).numpy()


def fit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The upper left corner of this size, with zeros where the array ends."""
    array = array[: size[0], : size[1]]
    missing = [(0, want - have) for want, have in zip(size, array.shape)]
    return np.pad(array, missing) if any(m for _, m in missing) else array


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    """The array as a tensor on the device; from pinned memory, a copy to CUDA does not wait."""
    tensor = torch.from_numpy(array)
    tensor = tensor.pin_memory() if device.startswith("cuda") else tensor
    return tensor.to(device, non_blocking=True)

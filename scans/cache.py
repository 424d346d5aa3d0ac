"""The decoded slices of a data set on disk: under which name they are found again, and what of them
is deleted."""

import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from isal import isal_zlib

from scans.formats import partner, suffix
from scans.listing import ScanFile
from utils import DataError, atomic_write

CACHE_LIMIT = 20e9  # bytes; beyond it, what was not used for a week goes, oldest first
DAY = 86400  # seconds
SETTLED = 3  # seconds after which a file that is written again has another time of change
OUR_NAME = "[0-9a-f]" * 16  # of files here, as a glob: --cache may be a folder with others, too
LAST_USE = {}  # {pixels file: when mark_used noted it}


def fingerprint(scans: list[ScanFile], root, cache=None, remember=True) -> str:
    """A digest of the files' places below root, and of all their bytes.

    Neither the folder's own path nor any time is part of it. In `cache` a small file remembers the
    digest, so that nothing is read again as long as each file has the size and the times of its
    last change that it had. remember: False never writes that file.
    """
    about = b"cache 7"
    files = list(dict.fromkeys(path for scan in scans for path in scan.files or (scan.path,)))
    files += [partner(path, ".hdr") for path in files if suffix(path) in (".img", ".img.gz")]
    places = [os.fsencode(Path(os.path.relpath(path, root)).as_posix()) for path in files]

    def digest(signatures) -> str:
        lines = (b"%s %s" % pair for pair in zip(places, signatures))
        return hashlib.sha256(b"\n".join((about, *lines))).hexdigest()[:16]

    with ThreadPoolExecutor(8) as pool:
        now = time.time()
        changes = list(pool.map(last_change, files))
        known = Path(cache or ".", f"{digest(b'%d %d %d' % c for c in changes)}.digest")
        with suppress(OSError, ValueError):
            key = known.read_text() if cache else ""
            if re.fullmatch("[0-9a-f]{16}", key):
                return key
        key = digest(pool.map(file_signature, files))
    # A file that was just written could be written again within the same tick of the clock.
    settled = max(max(change[1:]) for change in changes) < (now - SETTLED) * 1e9
    if cache and remember and settled:
        with suppress(OSError, DataError):
            known.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(known, "w") as file:
                file.write(key)
    return key


def last_change(path: Path) -> tuple[int, int, int]:
    """A file's size and, in ns, when its content and its entry were changed; zeros: no file."""
    with suppress(OSError):
        about = path.stat()
        return about.st_size, about.st_mtime_ns, about.st_ctime_ns
    return 0, 0, 0


def file_signature(path: Path) -> bytes:
    """A file's size and the CRC-32 of all its bytes: 6 GB/s, as fast as a disk is read."""
    size, check = 0, 0
    with suppress(OSError):  # such as a broken link; reading it says what is wrong
        if not path.is_file():
            return b"gone"
        with open(path, "rb", buffering=0) as file:
            while part := file.read(2**20):
                size, check = size + len(part), isal_zlib.crc32(part, check)
    return b"%d %08x" % (size, check)


def read_index(index_file: Path, pixels_file: Path) -> dict | None:
    """The arrays of a cache's index; None if there is none, or if either file is not whole."""
    try:
        with np.load(index_file) as file:
            index = dict(file)
        return index if pixels_file.stat().st_size == index["bytes"] else None
    except Exception:  # a damaged file can fail anywhere in there, and is made again
        return None


def mark_used(pixels_file: Path, every: float = 0) -> None:
    """Note in the index that a cache entry is in use now, if that was not done for some seconds."""
    now = time.time()
    if now - LAST_USE.get(pixels_file, 0) > every:
        LAST_USE[pixels_file] = now
        with suppress(OSError):  # a cache of someone else, or none yet
            os.utime(pixels_file.with_suffix(".npz"), (now, now))


def prune_cache(cache: Path) -> None:
    """Delete what killed processes left behind, and entries not used for a week beyond the limit.

    The longest unused go first. An entry in use is safe: its index is touched at each start, and
    once a day while slices are read.
    """
    now, entries = time.time(), []
    with suppress(OSError):  # another process is at it too
        for pattern, days in ((f".{OUR_NAME}.*.part", 1), (f"{OUR_NAME}.digest", 30)):
            for left in cache.glob(pattern):
                if now - left.stat().st_mtime > days * DAY:
                    left.unlink(missing_ok=True)
        for pixels in cache.glob(f"{OUR_NAME}.u8"):
            index = pixels.with_suffix(".npz")
            used = (index if index.exists() else pixels).stat().st_mtime
            entries.append((used, pixels.stat().st_size, index, pixels))
        total = sum(size for _, size, _, _ in entries)
        for used, size, index, pixels in sorted(entries):
            if total > CACHE_LIMIT and now - used > 7 * DAY:
                total -= size
                index.unlink(missing_ok=True)
                pixels.unlink(missing_ok=True)

"""Files to scans with their geometry, and back; what lies below a folder, and whose it is."""

from pathlib import Path

from scans.formats import kind_of
from scans.scan import PLANES, Scan

__all__ = ["PLANES", "Scan", "read", "write"]


def read(path, files=(), *, series: str = "", kind: str = "", force: bool = False) -> Scan:
    """Read a picture or a scan of any format. Raises DataError for what cannot be read, or only
    with force.

    files: those of a DICOM series; without them `path` is one file. series: its number, for a file
    that holds several. kind: as `formats.kind_of` says, if it is known.
    """
    from scans import dicom, pictures, volumes  # they load their libraries when they are needed

    kind = "dicom" if files else kind or kind_of(path)
    if kind == "picture":
        return pictures.read_picture(path, force)
    if kind == "dicom":
        return dicom.read_dicom(path, files or (path,), series, force)
    return volumes.read_volume(path, force)


def write(scan: Scan, path) -> Path:
    """Write a scan as `path`.nii.gz, a picture as `path`.png or .tif. Returns the file's path."""
    from scans import pictures, volumes

    if scan.is_picture:
        return pictures.write_picture(path, scan.stored)
    return volumes.write_volume(f"{path}.nii.gz", scan)

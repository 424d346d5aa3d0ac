"""DICOM files to series and volumes: whose slice is where, in which volume."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats import (
    MAX_PIXELS,
    Volume,
    is_usable,
    kind_of,
    natural,
    nifti_header,
    read_volume,
    unpacked,
)
from utils import DataError, as_data_error, warn


def read_scan(path, files=(), *, series: str = "", kind: str = "", force: bool = False) -> Volume:
    """Read a scan of any format. Raises DataError for what cannot be read, or only with force.

    files: those of a DICOM series; without them `path` is one file. series: as `dicom_series` names
    it, if one file holds several. kind: as `kind_of` says, if it is known.
    """
    if files or (kind or kind_of(path)) == "dicom":
        return read_dicom(path, files or (path,))
    return read_volume(path, force)


def quiet_pydicom():
    """pydicom, without its remarks about how well files keep to the standard."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def dicom_series(files) -> list[tuple[str, str, str, tuple]]:
    """The series among the DICOM files of a folder: [(number, description, patient, files)].

    Pictures of one series that differ in size or direction (a localizer) count as several. Files
    without a picture (reports, DICOMDIR) are left out; one that cannot be read stands for itself.
    """
    pydicom = quiet_pydicom()
    tags = "SeriesInstanceUID SeriesNumber SeriesDescription PatientID Modality SOPClassUID Rows "
    tags = (tags + "Columns ImageOrientationPatient").split()
    groups = {}
    for file in files:
        try:
            with unpacked(file) as stream:
                ds = pydicom.dcmread(
                    stream, stop_before_pixels=True, force=True, specific_tags=tags
                )
            if "Rows" not in ds and ("SOPClassUID" in ds or ds.file_meta):
                continue
            direction = [round(float(x), 2) + 0.0 for x in ds.get("ImageOrientationPatient") or ()]
            key = (str(ds.SeriesInstanceUID), int(ds.Rows), int(ds.Columns), *direction)
            about = " ".join(str(ds.get(tag) or "") for tag in ("Modality", "SeriesDescription"))
            patient = str(ds.get("PatientID") or "")
            if re.fullmatch(r"\W*(anon\w*|unknown|none|patient|0*)\W*", patient, flags=re.I):
                patient = ""
            about = (str(ds.get("SeriesNumber") or ""), about.strip(), patient)
        except Exception:  # reading all of it says what is wrong
            key, about = (str(file),), ("", "cannot be read", "")
        groups.setdefault(key, (about, []))[1].append(file)
    found, seen = [], Counter()
    for (number, about, patient), members in groups.values():
        number = re.sub(r"\W", "", number) or "0"
        seen[number] += 1
        number += f"-{seen[number]}" if seen[number] > 1 else ""
        found.append((number, f"{about}, {len(members)} file(s)", patient, tuple(members)))
    return sorted(found, key=lambda series: natural(series[0]))


@dataclass
class Frame:
    """One slice of a DICOM series: position, direction of rows and columns, spacing in mm (LPS)."""

    pixels: np.ndarray
    position: np.ndarray | None
    direction: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    slope: float
    inter: float
    number: int


def dicom_frames(ds, file) -> list[Frame]:
    """The slices of a DICOM file: one, or many in a multi-frame file."""
    from pydicom.pixels import get_decoder

    count = int(ds.get("NumberOfFrames") or 1)
    if "Rows" not in ds or not any(k in ds for k in ("PixelData", "FloatPixelData")):
        raise DataError(f"{file}: holds no picture")
    if int(ds.get("SamplesPerPixel") or 1) != 1 or "MONOCHROME" not in ds.PhotometricInterpretation:
        raise DataError(f"{file}: is a colour picture, not a scan")
    voxels = int(ds.Rows) * int(ds.Columns) * count
    if voxels > max(MAX_PIXELS, 100 * os.path.getsize(file)):  # many frames may be many pixels
        raise DataError(f"{file}: {count} frames of {ds.Rows}x{ds.Columns} pixels is too large")
    if "MOSAIC" in (ds.get("ImageType") or ()):
        raise DataError(f"{file}: is a Siemens mosaic; convert it to NIfTI first (dcm2niix)")
    try:
        pixels = ds.pixel_array.reshape(count, int(ds.Rows), int(ds.Columns))
    except RuntimeError as error:  # no decoder that can do it
        syntax = ds.file_meta.TransferSyntaxUID
        plugins = "; or ".join(
            " ".join(p.split()) for p in get_decoder(syntax).missing_dependencies
        )
        raise DataError(
            f"{file}: cannot be unpacked ({syntax.name}); install a plug-in: {plugins}"
        ) from error

    def value(i, name):
        """An attribute of frame i: its own, one that all frames share, or the file's."""
        for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            items = ds.get(groups) or []
            for element in items[i if len(items) == count else 0] if items else ():
                if element.VR == "SQ" and element.value and element.value[0].get(name) is not None:
                    return element.value[0].get(name)
        return ds.get(name)

    frames = []
    for i in range(count):
        position = value(i, "ImagePositionPatient")
        position = np.array(position, float) if position else None
        direction = np.array(value(i, "ImageOrientationPatient") or (1, 0, 0, 0, 1, 0), float)
        spacing = value(i, "PixelSpacing") or value(i, "ImagerPixelSpacing") or (1, 1)
        thickness = float(value(i, "SpacingBetweenSlices") or value(i, "SliceThickness") or 1)
        slope, inter = value(i, "RescaleSlope"), value(i, "RescaleIntercept")
        slope, inter = float(slope if slope is not None else 1), float(inter or 0)
        number = int(ds.get("InstanceNumber") or 0) if count == 1 else i
        spacing = tuple(float(x) for x in spacing)
        frames.append(
            Frame(pixels[i], position, direction, spacing, thickness, slope, inter, number)
        )
    return frames


def read_dicom(path, files) -> Volume:
    """The volume of a DICOM series, its slices sorted by their position along the slice normal.

    Where every position occurs T times (time points, echoes) the volume is (X, Y, Z, T). X runs
    along a picture's rows, Y down its columns. Raises DataError as `read_scan`.
    """
    pydicom = quiet_pydicom()
    frames = []
    for file in files:
        with as_data_error(file), unpacked(file) as stream:
            ds = pydicom.dcmread(stream, force=True)
            frames += dicom_frames(ds, file)
            about = f"{ds.get('Modality', '')} {ds.get('SeriesDescription', '')}".strip()
    first = frames[0]
    shape = first.pixels.shape
    for frame in frames:
        if frame.pixels.shape != shape or not np.allclose(
            [*frame.direction, *frame.spacing], [*first.direction, *first.spacing], atol=1e-2
        ):
            raise DataError(f"{path}: its pictures differ in size or direction; not one volume")
    along, down = first.direction[:3], first.direction[3:]
    normal = np.cross(along, down)
    if not abs(np.linalg.norm(normal) - 1) < 0.01 or not min(first.spacing) > 0:
        raise DataError(f"{path}: its position or pixel size makes no sense")
    if any(f.position is None for f in frames) or (
        len(frames) > 1
        and len(files) == 1
        and not np.ptp([f.position for f in frames], axis=0).any()
    ):
        if len(frames) > 1:
            warn(f"{path}: does not say where its slices lie; they are stacked in order")
        start = first.position if first.position is not None else np.zeros(3)
        for i, frame in enumerate(sorted(frames, key=lambda f: f.number)):
            frame.position = start + i * abs(first.thickness) * normal

    # Positions first, and at each of them the time points.
    depth = np.array([frame.position @ normal for frame in frames])
    order = np.lexsort(([frame.number for frame in frames], depth))
    level = np.cumsum(np.diff(depth[order], prepend=depth[order[0]]) > 0.01)
    times = np.bincount(level)
    if np.ptp(times):
        words = f"{times.min()} to {times.max()} pictures at one position"
        raise DataError(f"{path}: has {words}; files are missing, or it is more than one scan")
    frames = [frames[i] for i in order]
    n, t = len(times), int(times[0])
    corners = np.array([frame.position for frame in frames[::t]])
    step = (corners[-1] - corners[0]) / (n - 1) if n > 1 else normal * abs(first.thickness)
    apart = np.abs(corners - corners[0] - np.arange(n)[:, None] * step).max()
    if apart > 0.1 * np.linalg.norm(step):
        warn(
            f"{path}: its slices are not evenly spaced (up to {apart:.2g} mm off): is one missing?"
        )
    affine = np.eye(4)  # from (column, row, slice) to LPS, then to RAS
    affine[:3] = np.stack([along * first.spacing[1], down * first.spacing[0], step, corners[0]], 1)
    affine = np.diag([-1.0, -1, 1, 1]) @ affine
    if not is_usable(affine):
        raise DataError(f"{path}: its position or pixel size makes no sense")

    same = all((f.slope, f.inter) == (first.slope, first.inter) for f in frames)
    dtype = np.result_type(*{f.pixels.dtype for f in frames}) if same else np.float32
    stored = np.empty((shape[1], shape[0], n, t), dtype, order="F")
    for i, f in enumerate(frames):
        stored[..., i // t, i % t] = (f.pixels if same else f.pixels * f.slope + f.inter).T
    header = nifti_header(affine, 1)
    header["descrip"] = about.encode("ascii", "replace")[:79]
    slope, inter = (first.slope, first.inter) if same else (1.0, 0.0)
    return Volume(Path(path), stored if t > 1 else stored[..., 0], slope, inter, affine, header)

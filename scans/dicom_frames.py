"""One DICOM file to its frames: where each of them lies, what it shows and when it was taken."""

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scans.files import unpacked
from scans.pictures import MAX_PIXELS
from utils import DataError

UNPACKED = 2**27  # bytes that any packed file may become; more, if it is large itself
DEFLATED, PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes
# Dimensions of an enhanced file that say where a frame lies: stack, number in it, position.
PLACES = (0x00209056, 0x00209057, 0x00200032, 0x00209113, 0x0020930E)
PARTS = ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")  # of complex values, as GE numbers them


@dataclass
class Frame:
    """One slice of a DICOM file: position, direction of rows and columns, spacing in mm (LPS)."""

    file: Path
    position: np.ndarray | None = None
    direction: tuple = (1, 0, 0, 0, 1, 0)
    spacing: tuple = (1, 1)
    thickness: float = 1.0
    slope: float = 1.0
    inter: float = 0.0
    number: tuple = (0, 0)  # of the file in its series, of the frame in its file
    echo: float = 0.0
    kind: tuple = ()  # ImageType and what else tells magnitude from phase
    times: tuple = ()  # what may tell the volumes of a series apart, the surest first
    identity: tuple = ()
    white_is_zero: bool = False
    pixels: np.ndarray | None = None


def read_dataset(file, **options):
    """pydicom's data set of a file, which may be gzipped or deflated, but not to any size."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    limit = max(UNPACKED, 100 * os.path.getsize(file))
    with unpacked(file) as stream:
        head = stream.read(1024)
        stream.seek(0)
        deflated = head[128:136] == b"DICM\2\0\0\0" and DEFLATED in head
        if deflated or isinstance(stream, gzip.GzipFile):
            data = stream.read(limit)
            if deflated:
                start = 144 + int.from_bytes(head[140:144], "little")
                body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], limit)
                data = data[:start].replace(DEFLATED, PLAIN) + body
            if len(data) >= limit:
                raise DataError(f"{file}: unpacks to more than {limit >> 20} MB")
            stream = io.BytesIO(data)
        return pydicom.dcmread(stream, force=True, **options)


def functional_groups(ds, name: str) -> list[dict]:
    """The attributes of an enhanced file for each of its frames, or those that all share."""
    found = []
    for item in ds.get(f"{name}FunctionalGroupsSequence") or ():
        groups = [e.value[0] for e in item if e.VR == "SQ" and e.value and not e.tag.is_private]
        found.append({e.keyword: e.value for group in groups for e in group})
    return found


def part_of(ds) -> str:
    """Which part of complex values GE says that a picture shows; '' where it does not say."""
    raw = ds.get((0x0043, 0x102F))
    values = [] if raw is None else np.atleast_1d(list(raw.value) if raw.VR == "UN" else raw.value)
    return PARTS[int(values[0])] if len(values) and 0 <= int(values[0]) < len(PARTS) else ""


def frames_of(ds, file) -> list[Frame]:
    """The slices that a DICOM file describes, without pixels: one, or many if it is multi-frame."""
    count = int(ds.get("NumberOfFrames") or 1)
    if count > 2**16:
        raise DataError(f"{file}: says that it holds {count} frames")
    shared, own = (functional_groups(ds, name) for name in ("Shared", "PerFrame"))
    pointers = [
        item.get("DimensionIndexPointer") for item in ds.get("DimensionIndexSequence") or ()
    ]
    uid, first = str(ds.get("SOPInstanceUID") or file), ds.get("InstanceNumber")
    frames = []
    for i in range(count):
        group = (shared[0] if shared else {}) | (own[i if len(own) == count else 0] if own else {})

        def value(*names, group=group):
            """The first of these attributes that the frame, all frames or the file have."""
            found = (source.get(name) for name in names for source in (group, ds))
            return next((v for v in found if v is not None and v != ""), None)

        def clock(name, value=value):
            time = value(f"{name}Time")
            return time and f"{value(f'{name}Date') or ''} {time}"

        index = list(np.atleast_1d(value("DimensionIndexValues") or ()))
        if len(pointers) == len(index):
            index = [x for x, tag in zip(index, pointers) if tag not in PLACES]
        times = [value("TemporalPositionIndex"), index or None, value("TemporalPositionIdentifier")]
        times += [(int(first or 0), i), value("AcquisitionNumber")]
        times += [value("FrameAcquisitionDateTime", "AcquisitionDateTime"), clock("Acquisition")]
        times += [value("TriggerTime"), clock("Content")]
        # A multi-frame file without functional groups gives one position for all of its frames.
        position = group.get("ImagePositionPatient")
        position = position or (ds.get("ImagePositionPatient") if count == 1 else None)
        kind = [np.atleast_1d(value(name) or ()) for name in ("FrameType", "ImageType")]
        slope = value("RescaleSlope")
        frame = Frame(file, np.array(position, float).reshape(3) if position else None)
        direction = value("ImageOrientationPatient") or frame.direction
        frame.direction = tuple(np.array(direction, float).reshape(6))
        spacing = value("PixelSpacing", "ImagerPixelSpacing") or frame.spacing
        frame.spacing = tuple(np.array(spacing, float).reshape(2))
        frame.thickness = abs(float(value("SpacingBetweenSlices", "SliceThickness") or 1))
        frame.slope = float(1 if slope is None else slope)
        frame.inter = float(value("RescaleIntercept") or 0)
        frame.number = (int(first or 0), i)
        frame.echo = round(float(value("EffectiveEchoTime", "EchoTime") or 0), 3)
        frame.kind = (
            *map(str, np.concatenate(kind)),
            str(value("ComplexImageComponent")),
            part_of(ds),
        )
        frame.times = tuple(times)
        frame.identity = (uid, *frame.number, str(position), *map(str, times[5:]))
        frame.white_is_zero = ds.get("PhotometricInterpretation") == "MONOCHROME1"
        frames.append(frame)
    return frames


def add_pixels(frames: list[Frame], ds, file) -> None:
    """Decode the pixels of a file's frames. Raises DataError for what is no grey picture."""
    from pydicom.pixels import get_decoder

    shape = len(frames), int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)
    if not all(shape) or not any(k in ds for k in ("PixelData", "FloatPixelData")):
        raise DataError(f"{file}: holds no picture")
    if int(ds.get("SamplesPerPixel") or 1) != 1 or "MONOCHROME" not in ds.PhotometricInterpretation:
        raise DataError(f"{file}: is a colour picture, not a scan")
    if np.prod(shape) > max(MAX_PIXELS, 100 * os.path.getsize(file)):
        raise DataError(f"{file}: {shape[0]} frames of {shape[1]}x{shape[2]} pixels is too large")
    if len(frames) == 1 and "MOSAIC" in (ds.get("ImageType") or ()):
        raise DataError(f"{file}: is a Siemens mosaic; convert it to NIfTI first (dcm2niix)")
    try:
        pixels = ds.pixel_array.reshape(shape)
    except RuntimeError as error:  # no decoder that can do it
        syntax = ds.file_meta.TransferSyntaxUID
        plugins = (" ".join(p.split()) for p in get_decoder(syntax).missing_dependencies)
        words = f"({syntax.name}); install a plug-in: {'; or '.join(plugins)}"
        raise DataError(f"{file}: cannot be unpacked {words}") from error
    for frame, values in zip(frames, pixels):
        frame.pixels = values

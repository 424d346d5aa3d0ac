"""Pictures to grey arrays and back, whatever their depth: Pillow, and tifffile for rare TIFFs."""

import warnings
import zlib
from pathlib import Path

import numpy as np

from scans.scan import Scan
from utils import DataError, as_data_error, atomic_write, warn

MAX_PIXELS = 2**25  # a picture or slice beyond this is refused before its pixels are read
COLOURED = 0.05  # share of coloured pixels beyond which a picture is no MRI slice

# How files begin that people try, and what they can do about it.
ADVICE = {
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"Rar!": "is a rar archive; unpack it first",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"\x1f\x8b": "is packed by gzip, but not a scan; unpack it first",
    b"BZh": "is packed by bzip2; unpack it first (bunzip2), or pack it with gzip",
    b"\xfd7zXZ": "is packed by xz; unpack it first (unxz), or pack it with gzip",
    b"%PDF": "is a PDF document; save the picture in it as PNG first",
    b"GIF8": "is a GIF picture; save it as PNG first",
    b"RIFF": "is a WebP picture or a film; save it as PNG first",
    b"NRRD": "is an NRRD volume; convert it to NIfTI first (3D Slicer)",
    b"ObjectType": "is a MetaImage volume; convert it to NIfTI first (3D Slicer)",
    b"\x89HDF": "is an HDF5 or MINC file; convert it to NIfTI first (mnc2nii)",
    b"CDF": "is a MINC volume; convert it to NIfTI first (mnc2nii)",
}

# A damaged file is refused or read; what the readers have to say besides is of no use.
warnings.filterwarnings("ignore", module="PIL|nibabel|tifffile")


def not_readable(path, head: bytes, otherwise: str) -> DataError:
    """The error for a file of another format, with advice where its first bytes are known."""
    if head[257:262] == b"ustar":
        return DataError(f"{path}: is a tar archive; unpack it first")
    if head[4:8] == b"ftyp":
        return DataError(f"{path}: is a HEIC or AVIF picture, or a film; save it as PNG first")
    words = next((text for start, text in ADVICE.items() if head.startswith(start)), otherwise)
    return DataError(f"{path}: {words}")


def read_picture(path, force: bool = False) -> Scan:
    """Read a png, jpeg, tiff or bmp as a grey picture, upright as its EXIF data says.

    Of 8 bits 0 is black and 255 white; of other types the values say it, as those of a scan do.
    Transparent pixels are black. Colours become their luminance, a picture full of them only with
    force. Raises DataError for what cannot be read.
    """
    path = Path(path)
    with as_data_error(path):
        values = picture_values(path)
        if values.ndim == 3:
            values = grey_values(values, path, force)
        if not np.isfinite(values).all():
            raise DataError(f"{path}: has NaN or infinite pixels; replace them first")
        levels = (0.0, 255.0) if values.dtype == np.uint8 else None
        return Scan(path, np.ascontiguousarray(values), levels=levels)


def picture_values(path: Path) -> np.ndarray:
    """The values of a picture as the file holds them: grey (H, W), or (H, W, 2 to 4) with alpha."""
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as stream:  # of a path, Pillow makes a map, and turns some TIFFs wrongly
        try:
            image = Image.open(stream, formats=("PNG", "JPEG", "TIFF", "BMP"))
        except (UnidentifiedImageError, Image.DecompressionBombError):
            stream.seek(0)
            head = stream.read(352)
            if head[:4] in (b"II*\0", b"MM\0*"):
                return tiff_values(path)
            words = "not a picture that can be read (png, jpeg, tiff), or far too large"
            raise not_readable(path, head, words) from None
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{path}: {image.width}x{image.height} pixels is too large")
        # Phones put a second, smaller picture behind the first of a JPEG.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise DataError(f"{path}: holds {image.n_frames} frames; save one slice a file")
        tags = image.tag_v2 if image.format == "TIFF" else {}
        bits, signed = tags.get(258, [8])[0], tags.get(339, [1])[0] == 2
        if bits > 8 and image.mode[0] not in "IF":  # colours, of which Pillow would keep 8 bits
            return tiff_values(path)
        raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""
        deep = png_values(image, path, raw) if raw[-4:] == ";16B" and len(raw) > 5 else None
        turned = image.getexif().get(274, 1) if image.format != "TIFF" else 1  # Pillow turns TIFF
        if deep is not None:
            return upright(deep, turned)
        if image.mode[0] in "IF":
            values = np.asarray(image)
            if image.mode == "I" and bits == 32 and not signed:
                values = values.view(np.uint32)
            elif image.mode[0] == "I" and bits != 32:
                values = values.astype(np.int16 if signed else np.uint16)
            return upright(inverted(values) if tags.get(262) == 0 else values, turned)
        if image.mode in ("P", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
        elif image.mode not in ("L", "LA", "RGB", "RGBA"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        values = np.asarray(image)
        return upright(values.view(np.int8) if signed else values, turned)


def png_values(image, path: Path, raw: str) -> np.ndarray:
    """A PNG of 16 bits in several channels. Pillow gives 8 bits of them at a time."""
    from PIL import Image

    where = image.tile[0][:3]
    if raw == "LA;16B":  # four bytes a pixel, as if they were four channels
        image._mode, image.tile = "RGBA", [(*where, "RGBA")]
        return np.ascontiguousarray(image).view(">u2").astype(np.uint16)
    with Image.open(path) as again:
        again.tile = [(*where, raw[:-1] + "L")]  # read as little-endian: the lower bytes
        low = np.asarray(again)
    return np.asarray(image).astype(np.uint16) << 8 | low


def tiff_values(path: Path) -> np.ndarray:
    """A TIFF of a type that Pillow lacks: 64-bit and half floats, 16-bit colours and others."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        shape, kind = page.shape, page.dtype
        if len(tiff.pages) > 1:
            raise DataError(f"{path}: holds {len(tiff.pages)} frames; save one slice a file")
        if kind is None or len(shape) not in (2, 3) or kind.kind not in "iuf":
            raise DataError(f"{path}: holds no values that can be read; save it as 16-bit grey")
        if page.compression not in (1, 8, 32946):
            raise DataError(f"{path}: its compression and type cannot be read together; save it "
                            "without compression")  # fmt: skip
        size = page.nbytes + 2**20
        if max(shape[-2:]) > MAX_PIXELS or size > 8 * MAX_PIXELS + 2**20:
            raise DataError(f"{path}: {' x '.join(map(str, shape))} pixels is too large")
        if page.is_tiled and page.tilewidth * page.tilelength > MAX_PIXELS:
            raise DataError(f"{path}: is cut into tiles that are too large")
        if page.compression != 1:
            for start, count in zip(page.dataoffsets, page.databytecounts):
                tiff.filehandle.seek(start)
                part = zlib.decompressobj()
                part.decompress(tiff.filehandle.read(count), size)
                if part.unconsumed_tail:
                    raise DataError(f"{path}: unpacks to more than its header says")
        values = page.asarray()
        if values.ndim == 3 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, 2)
        values = inverted(values) if page.photometric == 0 else values
        return upright(values, page.tags.valueof(274, default=1))


def inverted(values: np.ndarray) -> np.ndarray:
    """The values of a picture whose smallest one means white."""
    if values.dtype.kind == "f":
        return values.min() + values.max() - values
    return ~values  # the largest value of the type minus this one; signed, -1 minus it


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a picture as the orientation in its EXIF data (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::down, ::across]


def grey_values(values: np.ndarray, path: Path, force: bool) -> np.ndarray:
    """Luminance of unsigned (H, W, C): grey or RGB with or without alpha, on black."""
    if values.dtype.kind != "u" or values.itemsize > 4 or not 2 <= values.shape[2] <= 4:
        words = f"{values.shape[2]} channels of {values.dtype.name}"
        raise DataError(f"{path}: holds {words}; save it as grey")
    room = np.uint64 if values.itemsize > 2 else np.uint32  # for the products below
    top = np.iinfo(values.dtype).max
    grey = values[..., 0]
    if values.shape[2] > 2:
        spread = np.ptp(values[..., :3], axis=2) > top // 20  # JPEG makes greys differ by a little
        if spread.mean() > COLOURED and not force:
            raise DataError(f"{path}: is a colour picture, not an MRI slice (--force takes its "
                            "luminance)")  # fmt: skip
        if spread.any():
            warn(f"{path}: is a colour picture; its luminance is used")
        weights = np.array([19595, 38470, 7471], room)  # of 65536, as Pillow has them
        grey = ((values[..., :3] @ weights + 32768) >> 16).astype(values.dtype)
    if values.shape[2] in (2, 4):
        grey = (grey.astype(room) * values[..., -1] // top).astype(values.dtype)
    return grey


def write_picture(path, values: np.ndarray) -> Path:
    """Write a picture (H, W) in the type of its values: 8 and 16 bits as PNG, others as TIFF.

    path: without an ending. Returns the path of the file, which appears only when it is whole.
    """
    from PIL import Image

    small = values.dtype in (np.uint8, np.uint16)
    path = Path(f"{path}{'.png' if small else '.tif'}")
    with atomic_write(path) as file:
        if small:
            Image.fromarray(values).save(file, format="PNG", compress_level=1)
        else:
            import tifffile

            tifffile.imwrite(file, values, photometric="minisblack", metadata=None)
    return path

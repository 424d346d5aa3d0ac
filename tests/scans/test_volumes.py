"""Files to arrays and back: pictures of any depth, volumes of any type, where their voxels lie."""

import bz2
import gzip
import io
import zipfile

import nibabel as nib
import numpy as np
import pytest
import tifffile
from made_files import HOSTILE, blob, corners, make_affine, png16, save_volume, with_alpha
from PIL import Image

import dataset
import predict
from scans import dicom, listing, pictures, volumes
from scans.pictures import read_picture
from utils import DataError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (9, 14), dtype=np.uint16)
GREY = (DEEP >> 8).astype(np.uint8)
AFFINE = make_affine((0, 1, 2), (-1, 1, 1), (1, 2, 3), (5, 6, 7))


def values_of(path, force=False) -> tuple[np.ndarray, str]:
    """A picture's values as the program understands them, and its type."""
    picture = read_picture(path, force)
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.min() >= 0 and picture.pixels.max() <= 1
    return picture.pixels.astype(float) * (picture.high - picture.low) + picture.low, picture.dtype


# --- pictures -------------------------------------------------------------------------------------


def test_grey_pictures_of_every_kind_give_the_same_pixels(tmp_path, capsys):
    image = Image.fromarray(GREY)
    palette = image.copy()
    palette.putpalette([v for v in range(256) for _ in range(3)])
    kinds = {"L.png": image, "L.bmp": image, "L.tif": image, "P.png": palette}
    kinds |= {f"{mode}.png": image.convert(mode) for mode in ("RGB", "RGBA", "LA")}
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        read = read_picture(tmp_path / name)
        np.testing.assert_array_equal(read.pixels, GREY.astype(np.float32) / 255, name)
        assert (read.low, read.high, read.dtype) == (0, 255, "uint8")
    values = np.kron(GREY[:4, :6], np.ones((8, 8), np.uint8))
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg").pixels - values / 255).max() < 0.05
    Image.fromarray(values > 127).save(tmp_path / "1.tif", compression="group4")
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif").pixels, values > 127)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept_in_every_kind_of_png(tmp_path, channels):
    (tmp_path / "a.png").write_bytes(png16(with_alpha(DEEP, channels)))
    values, dtype = values_of(tmp_path / "a.png")
    assert dtype == "uint16"
    np.testing.assert_allclose(values, DEEP, atol=0.01)


TIFFS = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]


@pytest.mark.parametrize("packing", [None, "zlib"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("code", TIFFS)
def test_tiffs_of_every_type_are_read_and_written_back(tmp_path, code, white_is_zero, packing):
    data = RNG.random((9, 14)) - 0.5 * (code[0] != "u")
    data = (data * {"1": 200, "2": 50000, "4": 4e9 * 0.5, "8": 1e9}[code[1]]).astype(code)
    shown = "miniswhite" if white_is_zero else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", data, photometric=shown, compression=packing)
    wanted = data.astype(float)
    if white_is_zero:
        wanted = (data.min() + data.max() - data if code[0] == "f" else ~data).astype(float)
    values, dtype = values_of(tmp_path / "a.tif")
    assert dtype == data.dtype.name
    np.testing.assert_allclose(values, wanted, atol=1e-6 * np.ptp(wanted))

    picture = read_picture(tmp_path / "a.tif")
    stored = pictures.to_stored(picture, picture.pixels)
    written = pictures.write_picture(tmp_path / "b", stored)
    assert written.name == ("b.png" if code in ("u1", "u2") else "b.tif")
    again, dtype = values_of(written)
    assert dtype == (data.dtype.name if code[0] != "f" else "float32")
    np.testing.assert_allclose(again, wanted, atol=1e-6 * np.ptp(wanted) + (code[0] != "f") * 0.6)


def test_other_tiffs(tmp_path):
    colour = with_alpha(DEEP, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(colour, 2, 0), photometric="rgb",
                     planarconfig="separate", compression="zlib")  # fmt: skip
    tifffile.imwrite(tmp_path / "big-endian.tif", DEEP, byteorder=">")
    tifffile.imwrite(tmp_path / "tiles.tif", DEEP, tile=(16, 16))
    Image.fromarray(DEEP).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for path in tmp_path.iterdir():
        values, dtype = values_of(path)
        assert dtype == "uint16", path
        np.testing.assert_allclose(values, DEEP, atol=0.01, err_msg=path.name)
    wide = DEEP.astype(np.uint32) << 16
    tifffile.imwrite(tmp_path / "wide.tif", with_alpha(wide, 3), photometric="rgb")
    np.testing.assert_allclose(values_of(tmp_path / "wide.tif")[0], wide, rtol=1e-6)


def test_a_tiff_unpacks_to_what_its_header_says_or_not_at_all(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((2000, 2000)), compression="zlib", rowsperstrip=2000
    )
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        for name in ("ImageWidth", "ImageLength"):
            at = tiff.pages[0].tags[name].valueoffset
            data[at : at + 2] = (100).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match="unpacks to more"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_as_its_exif_data_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    for name, data in {"a.png": GREY, "b.tif": GREY, "c.png": DEEP, "d.tif": DEEP}.items():
        Image.fromarray(data).save(tmp_path / name, exif=exif)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "e.tif", DEEP.astype(float), extratags=tag)
    for path in tmp_path.iterdir():
        data = GREY if path.name in ("a.png", "b.tif") else DEEP
        wanted = data.T if orientation > 4 else data
        wanted = wanted[:: -1 if orientation in (3, 4, 7, 8) else 1]
        wanted = wanted[:, :: -1 if orientation in (2, 3, 6, 7) else 1]
        np.testing.assert_allclose(values_of(path)[0], wanted, atol=0.01, err_msg=path.name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_are_black(tmp_path, dtype):
    top = np.iinfo(dtype).max
    rgba = np.full((4, 6, 4), top // 2, dtype)
    rgba[:, :3, 3], rgba[:, 3:, 3] = 0, top
    if dtype == np.uint8:
        Image.fromarray(rgba).save(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").write_bytes(png16(rgba))
    values, _ = values_of(tmp_path / "a.png")
    assert (values[:, :3] == 0).all()
    np.testing.assert_allclose(values[:, 3:], top // 2, atol=0.01)


def test_colour_photographs_are_refused_and_a_coloured_mark_is_not(tmp_path, capsys):
    Image.new("RGB", (5, 6), (200, 30, 30)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match=r"red.png: is a colour picture.*--force"):
        read_picture(tmp_path / "red.png")
    pixels = read_picture(tmp_path / "red.png", force=True).pixels
    assert pixels.shape == (6, 5) and pixels[0, 0] == pytest.approx(81 / 255, abs=0.01)
    marked = with_alpha(GREY, 3)
    marked[0, :3] = 255, 0, 0
    Image.fromarray(marked).save(tmp_path / "marked.png")
    capsys.readouterr()
    assert read_picture(tmp_path / "marked.png").pixels.shape == GREY.shape
    assert "luminance" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 7, -7, 1e6])
def test_a_flat_picture_stays_flat(tmp_path, value):
    tifffile.imwrite(tmp_path / "flat.tif", np.full((9, 9), value, np.float32))
    values, _ = values_of(tmp_path / "flat.tif")
    np.testing.assert_allclose(values, value, rtol=1e-6)


def test_values_beyond_a_type_are_cut_off_and_never_wrap():
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
        limits = np.iinfo(code)
        fitted = volumes.fit_type(np.array([-1e30, 1e30, 3.6], np.float32), code)
        assert fitted.dtype == np.dtype(code) and fitted[2] == 4
        assert fitted[0] == limits.min and fitted[1] > 0.99 * limits.max
    picture = volumes.Picture(np.zeros((2, 2), np.float32), 0.0, 255.0, "uint8")
    sr = np.array([[-0.1, 1.2], [0.5, 1]], np.float32)
    np.testing.assert_array_equal(pictures.to_stored(picture, sr), [[0, 255], [128, 255]])


def save(content):
    return lambda path: path.write_bytes(content)


ADVICE = {
    "scan.zip": ("unpack", lambda path: zipfile.ZipFile(path, "w").writestr("a", "b")),
    "scan.nii.bz2": ("bunzip2", save(bz2.compress(b"scan" * 100))),
    "scan.nii.xz": ("unxz", save(b"\xfd7zXZ\0" + bytes(99))),
    "scan.tar.gz": ("unpack", save(gzip.compress(b"a".ljust(257, b"\0") + b"ustar\0" + bytes(99)))),
    "slice.pdf": ("PNG", save(b"%PDF-1.7" + bytes(99))),
    "slice.png": ("PNG", save(b"RIFF\1\2\3\4WEBP" + bytes(99))),
    "scan.nrrd": ("NIfTI", save(b"NRRD0005" + bytes(99))),
    "scan.mha": ("NIfTI", save(b"ObjectType = Image" + bytes(99))),
    "scan.mnc": ("NIfTI", save(b"\x89HDF\r\n" + bytes(99))),
}


@pytest.mark.parametrize("name", ADVICE)
def test_other_formats_get_advice_that_fits(tmp_path, name):
    words, make = ADVICE[name]
    make(tmp_path / name)
    for read in (read_picture, dicom.read_scan):
        with pytest.raises(DataError, match=rf"{name}: is .*{words}"):
            read(tmp_path / name)


# --- volumes --------------------------------------------------------------------------------------

FACTORS = [(4, 4, 1), (1, 1, 5), (2, 3, 4), (1, 1, 1)]


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (4, 0), (1, 3)])
@pytest.mark.parametrize("factors", FACTORS)
def test_the_outer_edges_stay_where_they_were(tmp_path, factors, codes):
    image = nib.Nifti1Image(blob((10, 9, 8)).astype(np.float32), None)
    image.header.set_zooms((1, 2, 3))
    other = AFFINE.copy()
    other[:3, 3] += 10
    image.set_sform(AFFINE, codes[0])
    image.set_qform(other, codes[1])
    image.header.set_xyzt_units("mm", "msec")
    image.header["descrip"] = b"a scan of somebody"
    nib.save(image, tmp_path / "a.nii")
    given, volume = nib.load(tmp_path / "a.nii"), dicom.read_scan(tmp_path / "a.nii")
    out = volumes.output_like(volume, factors)
    result = nib.load(volumes.write_volume(tmp_path / "b.nii.gz", volume, out, factors))
    assert result.shape == tuple(np.multiply(image.shape, factors))
    np.testing.assert_allclose(corners(result), corners(given), atol=1e-4)
    assert tuple(int(result.header[f"{k}form_code"]) for k in "sq") == codes
    assert result.header.get_xyzt_units() == ("mm", "msec")
    assert bytes(result.header["descrip"]).startswith(b"a scan of somebody")
    for form in ("sform", "qform"):
        was, is_ = (getattr(i, f"get_{form}")(coded=True)[0] for i in (given, result))
        if was is not None:
            boxes = [nib.Nifti1Image(i.dataobj, a) for i, a in ((given, was), (result, is_))]
            np.testing.assert_allclose(corners(boxes[0]), corners(boxes[1]), atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
def test_slices_are_upright_and_write_through(tmp_path, order):
    """A spot in each of three directions is found where it should be seen."""
    affine = make_affine(order, (-1, 1, 1), (1, 1, 1))
    data = np.zeros((8, 9, 10), np.int16)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    volume = dicom.read_scan(tmp_path / "a.nii")
    for plane in volumes.PLANES:
        out = volumes.output_like(volume, (2, 2, 2))
        slices = volume.slices(out, plane)
        slices[1, 0, -1] = 7  # the second slice, top row, rightmost column
        (spot,) = np.argwhere(out)
        ras = volumes.to_ras(out, affine)
        (spot,) = np.argwhere(ras)
        wanted = {"sagittal": (1, -1, -1), "coronal": (-1, 1, -1), "axial": (-1, -1, 1)}[plane]
        assert (spot == [(n + w) % n for n, w in zip(ras.shape, wanted)]).all()


TYPES = ["u1", "i1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"]


@pytest.mark.parametrize("code", TYPES)
def test_type_slope_and_units_stay(tmp_path, code):
    data = RNG.integers(0, 100, (6, 5, 4)).astype(code)
    header = nib.Nifti1Header(endianness=">" if code[0] == ">" else "<")
    header.set_data_dtype(data.dtype)
    image = nib.Nifti1Image(data, AFFINE, header)
    image.header.set_slope_inter(0.25, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = dicom.read_scan(tmp_path / "a.nii.gz")
    given = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(volume.intensities(), given, rtol=1e-6)
    out = volumes.output_like(volume, (1, 1, 1))
    out[...] = volume.to_stored(volume.intensities() + np.float32(0.25), out.dtype)
    result = nib.load(volumes.write_volume(tmp_path / "b.nii.gz", volume, out, (1, 1, 1)))
    assert result.get_data_dtype() == (np.dtype(code) if code != "f8" else np.float32)
    assert (result.dataobj.slope, result.dataobj.inter) == (0.25, -100)
    np.testing.assert_allclose(result.get_fdata(), given + 0.25, atol=1e-4)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_below_0_enters_a_network(name):
    data = np.asarray(HOSTILE[name], np.float32)
    low, high = volumes.intensity_range(data)
    assert high > low and ((data - low) / (high - low)).min() >= 0
    assert low == min(0, data.min())


def test_freesurfer_analyze_and_names_that_lie(tmp_path):
    data = blob((12, 10, 9), 200).astype(np.uint8)
    nib.save(nib.MGHImage(data, AFFINE), tmp_path / "orig.mgz")
    nib.save(nib.AnalyzeImage(data, np.diag([1, 1, 1.5, 1])), tmp_path / "old.img")
    nib.save(nib.Nifti1Pair(data, AFFINE), tmp_path / "pair.img")
    nib.save(nib.Nifti2Image(data, AFFINE), tmp_path / "two.nii")
    names = ["orig.mgz", "old.img", "old.hdr", "pair.hdr", "two.nii"]
    given = {name: nib.load(tmp_path / name) for name in names}
    (tmp_path / "packed.nii").write_bytes(gzip.compress((tmp_path / "two.nii").read_bytes()))
    (tmp_path / "none").write_bytes((tmp_path / "two.nii").read_bytes())
    (tmp_path / "free.nii.gz").write_bytes((tmp_path / "orig.mgz").read_bytes())
    given |= {"packed.nii": given["two.nii"], "none": given["two.nii"]}
    given |= {"free.nii.gz": given["orig.mgz"]}
    for name, image in given.items():
        volume = dicom.read_scan(tmp_path / name)
        np.testing.assert_array_equal(volume.stored, data)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
        out = volumes.output_like(volume, (2, 2, 1))
        result = nib.load(volumes.write_volume(tmp_path / "x.nii.gz", volume, out, (2, 2, 1)))
        assert result.get_data_dtype() == np.uint8
        np.testing.assert_allclose(corners(result), corners(image), atol=1e-4)
        big = isinstance(volume.header, nib.Nifti2Header)
        assert isinstance(result, nib.Nifti2Image if big else nib.Nifti1Image)


def test_an_analyze_pair_in_capitals_is_read(tmp_path, cli, bicubic):
    nib.save(nib.Nifti1Pair(blob((9, 8, 7)).astype(np.float32), AFFINE), tmp_path / "x.img")
    for ending in ("img", "hdr"):
        (tmp_path / f"x.{ending}").rename(tmp_path / f"X.{ending.upper()}")
    wanted = blob((9, 8, 7)).astype(np.float32)
    np.testing.assert_array_equal(volumes.read_volume(tmp_path / "X.IMG").stored, wanted)
    for name in ("X.IMG", "X.HDR"):
        words = ("--checkpoint", bicubic, "--no-figure", "--output", tmp_path / name[2:])
        assert cli(predict.main, tmp_path / name, *words)[0] == 0
    before = dataset.fingerprint(listing.find_scans(tmp_path), tmp_path)
    with open(tmp_path / "X.HDR", "r+b") as header:
        header.seek(148)  # its description
        header.write(b"another")
    assert dataset.fingerprint(listing.find_scans(tmp_path), tmp_path) != before


def test_many_volumes_are_refused_unless_forced(tmp_path):
    for times in (3, 40):
        save_volume(tmp_path / f"{times}.nii", np.zeros((4, 4, 3, times), np.int16))
    assert dicom.read_scan(tmp_path / "3.nii").stored.shape == (4, 4, 3, 3)
    with pytest.raises(DataError, match=r"40 volumes.*--force"):
        dicom.read_scan(tmp_path / "40.nii")
    volume = dicom.read_scan(tmp_path / "40.nii", force=True)
    assert volumes.output_like(volume, (4, 4, 1)).shape == (16, 16, 3, 40)


def test_a_useless_affine_and_nan_are_replaced_and_said(tmp_path, capsys):
    data = blob((8, 8, 4)).astype(np.float32)
    data[0, :2, 0] = np.nan, np.inf
    image = nib.Nifti1Image(data, np.eye(4))
    image.header["srow_x"] = np.nan
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    stream = io.BytesIO()
    nib.Nifti1Image(data, None, image.header.copy()).to_stream(stream)
    (tmp_path / "a.nii").write_bytes(stream.getvalue())
    volume = dicom.read_scan(tmp_path / "a.nii")
    assert np.isfinite(volume.intensities()).all() and (volume.affine == np.eye(4)).all()
    said = capsys.readouterr().err
    assert "1 mm is assumed" in said and "2 NaN" in said

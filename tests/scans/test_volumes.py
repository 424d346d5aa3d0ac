"""Files to arrays and back: pictures of any depth, volumes of any type, where their voxels lie."""

import bz2
import gzip
import io
import zipfile

import nibabel as nib
import numpy as np
import pytest
import tifffile
from made_files import blob, corners, make_affine, png16, save_volume, with_alpha
from PIL import Image

import scans
from scans import PLANES, Scan
from scans.intensity import intensity_range
from scans.pictures import read_picture
from scans.scan import fit_type, to_ras
from utils import DataError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (9, 14), dtype=np.uint16)
GREY = (DEEP >> 8).astype(np.uint8)
AFFINE = make_affine((0, 1, 2), (-1, 1, 1), (1, 2, 3), (5, 6, 7))


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
        np.testing.assert_array_equal(read.stored, GREY, name)
        assert read.stored.dtype == np.uint8 and read.levels == (0, 255) and read.is_picture
    values = np.kron(GREY[:4, :6], np.ones((8, 8), np.uint8))
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg").stored - values.astype(int)).max() < 13
    Image.fromarray(values > 127).save(tmp_path / "1.tif", compression="group4")
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif").stored, (values > 127) * 255)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept_in_every_kind_of_png(tmp_path, channels):
    (tmp_path / "a.png").write_bytes(png16(with_alpha(DEEP, channels)))
    stored = read_picture(tmp_path / "a.png").stored
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, DEEP)


TIFFS = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]


@pytest.mark.parametrize(("white_is_zero", "packing"), [(False, None), (True, "zlib")])
@pytest.mark.parametrize("code", TIFFS)
def test_tiffs_of_every_type_are_read_and_written_back(tmp_path, code, white_is_zero, packing):
    data = RNG.random((9, 14)) - 0.5 * (code[0] != "u")
    data = (data * {"1": 200, "2": 50000, "4": 4e9 * 0.5, "8": 1e9}[code[1]]).astype(code)
    shown = "miniswhite" if white_is_zero else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", data, photometric=shown, compression=packing)
    wanted = data
    if white_is_zero:
        wanted = data.min() + data.max() - data if code[0] == "f" else ~data
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.stored, wanted)
    assert picture.stored.dtype == data.dtype
    written = scans.write(picture.resampled(picture.stored), tmp_path / "b")
    assert written.name == ("b.png" if code in ("u1", "u2") else "b.tif")
    np.testing.assert_array_equal(read_picture(written).stored, wanted)


def test_other_tiffs(tmp_path):
    colour = with_alpha(DEEP, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(colour, 2, 0), photometric="rgb",
                     planarconfig="separate", compression="zlib")  # fmt: skip
    tifffile.imwrite(tmp_path / "big-endian.tif", DEEP, byteorder=">")
    tifffile.imwrite(tmp_path / "tiles.tif", DEEP, tile=(16, 16))
    Image.fromarray(DEEP).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for path in tmp_path.iterdir():
        stored = read_picture(path).stored
        assert stored.dtype == np.uint16, path
        np.testing.assert_array_equal(stored, DEEP, path.name)
    wide = DEEP.astype(np.uint32) << 16
    tifffile.imwrite(tmp_path / "wide.tif", with_alpha(wide, 3), photometric="rgb")
    np.testing.assert_array_equal(read_picture(tmp_path / "wide.tif").stored, wide)


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
        np.testing.assert_array_equal(read_picture(path).stored, wanted, path.name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_are_black(tmp_path, dtype):
    top = np.iinfo(dtype).max
    rgba = np.full((4, 6, 4), top // 2, dtype)
    rgba[:, :3, 3], rgba[:, 3:, 3] = 0, top
    if dtype == np.uint8:
        Image.fromarray(rgba).save(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").write_bytes(png16(rgba))
    values = read_picture(tmp_path / "a.png").stored
    assert (values[:, :3] == 0).all() and (values[:, 3:] == top // 2).all()


def test_colour_photographs_are_refused_and_a_coloured_mark_is_not(tmp_path, capsys):
    Image.new("RGB", (5, 6), (200, 30, 30)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match=r"red.png: is a colour picture.*--force"):
        read_picture(tmp_path / "red.png")
    grey = read_picture(tmp_path / "red.png", force=True).stored
    assert grey.shape == (6, 5) and abs(int(grey[0, 0]) - 81) < 3
    marked = with_alpha(GREY, 3)
    marked[0, :3] = 255, 0, 0
    Image.fromarray(marked).save(tmp_path / "marked.png")
    capsys.readouterr()
    assert read_picture(tmp_path / "marked.png").stored.shape == GREY.shape
    assert "luminance" in capsys.readouterr().err


def test_values_beyond_a_type_are_cut_off_and_never_wrap():
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
        limits = np.iinfo(code)
        fitted = fit_type(np.array([-1e30, 1e30, 3.6], np.float32), code)
        assert fitted.dtype == np.dtype(code) and fitted[2] == 4
        assert fitted[0] == limits.min and fitted[1] > 0.99 * limits.max
    scan = Scan("a", np.zeros((2, 2), np.uint8), 0.5, -10.0)
    values = np.array([[-10.1, 117.6], [0, 200]], np.float32)
    np.testing.assert_array_equal(scan.to_stored(values, np.uint8), [[0, 255], [20, 255]])


def save(content):
    return lambda path: path.write_bytes(content)


ADVICE = {
    "scan.zip": ("unpack", lambda path: zipfile.ZipFile(path, "w").writestr("a", "b")),
    "scan.nii.bz2": ("bunzip2", save(bz2.compress(b"scan" * 100))),
    "scan.nii.xz": ("unxz", save(b"\xfd7zXZ\0" + bytes(99))),
    "scan.tar.gz": ("unpack", save(gzip.compress(b"a".ljust(257, b"\0") + b"ustar\0" + bytes(99)))),
    "slice.pdf": ("PNG", save(b"%PDF-1.7" + bytes(99))),
    "slice.gif": ("GIF.*PNG", save(b"GIF89a" + bytes(99))),
    "slice.avif.png": ("AVIF.*PNG", save(b"\0\0\0\x1cftypavif" + bytes(99))),
    "slice.heic.jpg": ("HEIC.*PNG", save(b"\0\0\0\x18ftypheic" + bytes(99))),
    "slice.png": ("PNG", save(b"RIFF\1\2\3\4WEBP" + bytes(99))),
    "scan.nrrd": ("NIfTI", save(b"NRRD0005" + bytes(99))),
    "scan.mha": ("NIfTI", save(b"ObjectType = Image" + bytes(99))),
    "scan.mnc": ("NIfTI", save(b"\x89HDF\r\n" + bytes(99))),
}


@pytest.mark.parametrize("name", ADVICE)
def test_other_formats_get_advice_that_fits(tmp_path, name):
    words, make = ADVICE[name]
    make(tmp_path / name)
    for read in (read_picture, scans.read):
        with pytest.raises(DataError, match=rf"{name}: is .*{words}"):
            read(tmp_path / name)


# --- volumes --------------------------------------------------------------------------------------


def enlarged(scan, factors) -> Scan:
    """The scan with as many times as many voxels along its axes, black ones."""
    return scan.resampled(scan.empty_like(np.multiply(scan.stored.shape[:3], factors)))


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
    given, scan = nib.load(tmp_path / "a.nii"), scans.read(tmp_path / "a.nii")
    result = nib.load(scans.write(enlarged(scan, factors), tmp_path / "b"))
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
    scan = scans.read(tmp_path / "a.nii")
    for plane in PLANES:
        for turned in (False, True):
            out = scan.empty_like((16, 18, 20))
            slices = scan.slices(out, (plane, turned))
            slices[(1, -1, 0) if turned else (1, 0, -1)] = 7  # second slice, top row, last column
            ras = to_ras(out, affine)
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
    scan = scans.read(tmp_path / "a.nii.gz")
    given = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(scan.intensities(), given, rtol=1e-6)
    out = scan.empty_like(scan.stored.shape)
    out[...] = scan.to_stored(scan.intensities() + np.float32(0.25), out.dtype)
    result = nib.load(scans.write(scan.resampled(out), tmp_path / "b"))
    assert result.get_data_dtype() == (np.dtype(code) if code != "f8" else np.float32)
    assert (result.dataobj.slope, result.dataobj.inter) == (0.25, -100)
    np.testing.assert_allclose(result.get_fdata(), given + 0.25, atol=1e-4)


def test_padding_single_voxels_and_what_is_no_number_do_not_change_black_and_white():
    head = blob((40, 40, 40)).astype(np.float32)
    wanted = black, white = intensity_range(head)
    assert black == 0 and 800 < white < 1000
    raised = intensity_range(head + 500)
    assert raised == pytest.approx((500, white + 500), abs=5)
    for odd in (-1e4, 1e6, np.nan, np.inf):
        spoiled = head.copy()
        spoiled[::20, 3, 3] = odd
        assert intensity_range(spoiled) == pytest.approx(wanted, abs=5), odd
    spoiled[:10] = -2000  # a quarter is padding
    assert intensity_range(spoiled) == pytest.approx(wanted, abs=5)


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
        scan = scans.read(tmp_path / name)
        np.testing.assert_array_equal(scan.stored, data)
        np.testing.assert_allclose(scan.affine, image.affine, atol=1e-5)
        result = nib.load(scans.write(enlarged(scan, (2, 2, 1)), tmp_path / "x"))
        assert result.get_data_dtype() == np.uint8
        np.testing.assert_allclose(corners(result), corners(image), atol=1e-4)
        big = isinstance(scan.header, nib.Nifti2Header)
        assert isinstance(result, nib.Nifti2Image if big else nib.Nifti1Image)


def test_many_volumes_are_refused_unless_forced(tmp_path):
    for times in (3, 40):
        save_volume(tmp_path / f"{times}.nii", np.zeros((4, 4, 3, times), np.int16))
    assert scans.read(tmp_path / "3.nii").stored.shape == (4, 4, 3, 3)
    with pytest.raises(DataError, match=r"40 volumes.*--force"):
        scans.read(tmp_path / "40.nii")
    scan = scans.read(tmp_path / "40.nii", force=True)
    assert enlarged(scan, (4, 4, 1)).stored.shape == (16, 16, 3, 40)


def test_a_useless_affine_and_nan_are_replaced_and_said(tmp_path, capsys):
    data = blob((8, 8, 4)).astype(np.float32)
    data[0, :2, 0] = np.nan, np.inf
    image = nib.Nifti1Image(data, np.eye(4))
    image.header["srow_x"] = np.nan
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    stream = io.BytesIO()
    nib.Nifti1Image(data, None, image.header.copy()).to_stream(stream)
    (tmp_path / "a.nii").write_bytes(stream.getvalue())
    scan = scans.read(tmp_path / "a.nii")
    assert np.isfinite(scan.intensities()).all() and (scan.affine == np.eye(4)).all()
    said = capsys.readouterr().err
    assert "1 mm is assumed" in said and "2 NaN" in said

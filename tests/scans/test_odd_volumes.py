"""Headers that say it in an odd way: other units, Analyze pairs, a useless sform, no offset."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import scans
from inference.inputs import find_jobs
from scans.formats import partner
from utils import DataError


def noise(shape=(6, 7, 8)):
    return np.random.default_rng(0).integers(0, 999, shape).astype(np.int16)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), (None, 1)])
def test_voxel_sizes_are_in_mm_whatever_the_unit_of_the_header(tmp_path, unit, mm):
    image = nib.Nifti1Image(noise(), np.diag((2.0, 3.0, 4.0, 1.0)))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    scan = scans.read(tmp_path / "a.nii")
    assert scan.sizes == pytest.approx([2 * mm, 3 * mm, 4 * mm])
    finer = scan.resampled(np.zeros((12, 7, 8), np.int16))
    assert finer.sizes == pytest.approx([mm, 3 * mm, 4 * mm])
    again = nib.load(scans.write(finer, tmp_path / "b"))
    assert again.header.get_xyzt_units()[0] == (unit or "unknown")  # in the unit of the input
    assert again.header.get_zooms() == pytest.approx((1, 3, 4))


def test_an_sform_of_zeros_gives_way_to_the_qform(tmp_path):
    affine = np.array([[0, 0, 2.0, 5], [0, 3, 0, 6], [-4.0, 0, 0, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(noise(), affine)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[252:256], raw[280:328] = b"\1\0\1\0", bytes(48)
    (tmp_path / "a.nii").write_bytes(raw)
    scan = scans.read(tmp_path / "a.nii")
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    again = nib.load(scans.write(scan.resampled(scan.stored), tmp_path / "b"))
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_without_an_offset_begin_behind_the_header(tmp_path, kind):
    kind(noise(), np.eye(4)).to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    at = slice(108, 112) if kind is nib.Nifti1Image else slice(168, 176)
    raw[at] = bytes(at.stop - at.start)
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(scans.read(tmp_path / "a.nii").stored, noise())


PLANES = {0: "axial", 1: "coronal", 2: "sagittal", 4: "coronal", 5: "sagittal"}


@pytest.mark.parametrize("byte", PLANES)
def test_the_orientation_byte_of_analyze_counts(tmp_path, byte, capsys):
    image = nib.AnalyzeImage(noise(), None)
    image.header.set_zooms((1, 2, 5))
    image.to_filename(tmp_path / "a.img")
    raw = bytearray((tmp_path / "a.hdr").read_bytes())
    raw[252] = byte
    (tmp_path / "a.hdr").write_bytes(raw)
    scan = scans.read(tmp_path / "a.img")
    assert scans.PLANES[scan.axes[2]] == PLANES[byte]
    assert scan.sizes[scan.axes[2]] == pytest.approx(5)
    assert ("is left is a guess" in capsys.readouterr().err) == (byte > 0)


@pytest.mark.parametrize(
    "names", [("A.IMG", "A.HDR"), ("a.img", "a.hdr"), ("a.img.gz", "a.hdr.gz")]
)
def test_pairs_are_found_however_they_are_spelt_and_packed(tmp_path, names):
    nib.Nifti1Pair(noise(), np.eye(4)).to_filename(tmp_path / "x.img")
    for old, new in zip(("x.img", "x.hdr"), names):
        if new.endswith(".gz"):
            (tmp_path / new).write_bytes(gzip.compress((tmp_path / old).read_bytes()))
        else:
            shutil.move(tmp_path / old, tmp_path / new)
    np.testing.assert_array_equal(scans.read(tmp_path / names[0]).stored, noise())
    assert partner(tmp_path / names[1], ".img").name == names[0]
    assert partner(tmp_path / names[0], ".hdr").name == names[1]


def test_a_phone_picture_of_two_frames_is_its_first(tmp_path):
    first, second = (Image.new("L", size, 99) for size in ((40, 30), (20, 15)))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert scans.read(tmp_path / "a.jpg").stored.shape == (30, 40)


@pytest.mark.parametrize("name", ["a.nii", "a.img"])
def test_a_voxel_size_of_nothing_is_said(tmp_path, name, capsys):
    image = (nib.Nifti1Image if name == "a.nii" else nib.AnalyzeImage)(noise(), None)
    image.to_filename(tmp_path / name)
    header = tmp_path / name.replace("img", "hdr")
    for axis, said in ((1, True), (3, False)):  # of four dimensions there are three here
        raw = bytearray(header.read_bytes())
        raw[80:96] = np.array([2, 2, 2, 2], "<f4").tobytes()
        raw[80 + 4 * axis : 84 + 4 * axis] = bytes(4)
        header.write_bytes(raw)
        assert scans.read(tmp_path / name).sizes == pytest.approx([2, 1 if said else 2, 2])
        assert ("has a voxel size of 0; 1 mm is assumed" in capsys.readouterr().err) == said


def test_a_volume_of_freesurfer_without_directions_is_read(tmp_path, capsys):
    nib.save(nib.MGHImage(noise(), np.eye(4)), tmp_path / "a.mgh")
    raw = bytearray((tmp_path / "a.mgh").read_bytes())
    raw[42:78] = bytes(36)  # the directions of the axes
    (tmp_path / "a.mgh").write_bytes(raw)
    assert scans.read(tmp_path / "a.mgh").sizes == [1, 1, 1]
    assert "no usable position and voxel size; 1 mm is assumed" in capsys.readouterr().err


def test_half_of_a_pair_and_tables_are_refused_by_name(tmp_path):
    nib.Nifti1Pair(noise(), np.eye(4)).to_filename(tmp_path / "a.img")
    shutil.move(tmp_path / "a.img", tmp_path / "b.img")
    for name, words in (("a.hdr", r"a\.hdr: its .img file"), ("b.img", r"b\.img: its .hdr file")):
        with pytest.raises(DataError, match=f"{words} is missing"):
            find_jobs([tmp_path / name]) and scans.read(tmp_path / name)
    nib.save(nib.Nifti1Image(noise((900, 5, 1)), np.eye(4)), tmp_path / "lh.curv.nii")
    with pytest.raises(DataError, match="a table or a surface"):
        scans.read(tmp_path / "lh.curv.nii")
    assert scans.read(tmp_path / "lh.curv.nii", force=True).stored.size == 4500

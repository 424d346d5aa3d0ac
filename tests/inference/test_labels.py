"""--labels: a label map beside an enlarged scan, without values between labels."""

import nibabel as nib
import numpy as np
import pytest
from made_files import blob, save_volume

from scans.formats import is_result


@pytest.fixture
def scan(tmp_path):
    path = save_volume(tmp_path / "p1_T1w.nii.gz", blob((20, 24, 6)), (1, 1, 3))
    return path, nib.load(path)


def save_labels(path, image, affine=None):
    labels = np.random.default_rng(0).choice([0, 2, 41, 77], image.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, image.affine if affine is None else affine), path)
    return labels


@pytest.mark.parametrize("way", [("--scale", 2), ("--through-plane", 3), ("--voxel-size", 1.5)])
def test_labels_come_to_the_grid_of_the_result_and_stay_labels(tmp_path, scan, upscale, way):
    path, image = scan
    labels = save_labels(tmp_path / "seg.nii.gz", image)
    arguments = ("--labels", tmp_path / "seg.nii.gz", "-o", tmp_path / "out")
    assert upscale(path, *way, *arguments)[0] == 0
    (name,) = (tmp_path / "out").glob("*_seg.nii.gz")
    found = nib.load(name)
    other = nib.load(name.with_name(name.name.replace("_seg", "")))
    assert found.shape == other.shape != image.shape
    np.testing.assert_allclose(found.affine, other.affine)
    values = np.asarray(found.dataobj)
    assert values.dtype == np.int16
    # Where a voxel's middle lies on the old grid decides.
    to_old = np.linalg.inv(image.affine) @ found.affine
    places = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1)
    old = np.floor(places @ to_old[:3, :3].T + to_old[:3, 3] + 0.5 + 1e-6).astype(int)
    old = np.minimum(old, np.array(image.shape) - 1)
    assert (values == labels[tuple(np.moveaxis(old, -1, 0))]).mean() > 0.999


def test_labels_with_the_name_of_their_scan_do_not_take_its_place(tmp_path, scan, upscale):
    """As in data sets with images and labels in folders of their own. Nor are they inputs then."""
    path, image = scan
    (tmp_path / "labels").mkdir()
    save_labels(tmp_path / "labels" / path.name, image)
    words = ("--scale", 2, "--labels", tmp_path / "labels" / path.name, "-o", tmp_path / "out")
    assert upscale(path, *words)[0] == 0
    names = {p.name for p in (tmp_path / "out").glob("*.nii.gz")}
    assert names == {"p1_T1w_x2.nii.gz", "p1_T1w_x2_labels.nii.gz"}
    assert len(np.unique(np.asarray(nib.load(tmp_path / "out/p1_T1w_x2.nii.gz").dataobj))) > 9
    assert all(is_result(tmp_path / "out" / name) for name in names)
    save_labels(tmp_path / "out/p1_T1w_x2_mine.nii.gz", image)
    assert not is_result(tmp_path / "out/p1_T1w_x2_mine.nii.gz")


def test_labels_on_another_grid_are_refused(tmp_path, scan, upscale):
    path, image = scan
    affine = image.affine.copy()
    affine[0, 3] += 1
    save_labels(tmp_path / "seg.nii.gz", image, affine)
    arguments = (path, "--labels", tmp_path / "seg.nii.gz", "--scale", 2)
    status, _, errors = upscale(*arguments)
    assert status == 1 and "seg.nii.gz: lies on another grid than" in errors
    # Before the work: no result without a record is left, which the next call would not touch.
    assert not list(tmp_path.glob("p1_T1w_*"))
    save_labels(tmp_path / "seg.nii.gz", image)
    assert upscale(*arguments)[0] == 0


@pytest.mark.parametrize("name", ["p1_seg.nii.gz", "p1_x.nii.gz"])
def test_a_label_map_alone_is_refused_and_told_of_labels(tmp_path, upscale, name):
    """By its name, or by its values."""
    few = np.random.default_rng(0).choice([0, 2, 41, 77], (8, 8, 5)).astype(np.int16)
    path = save_volume(tmp_path / name, few.repeat(5, 0).repeat(5, 1).repeat(4, 2))
    status, _, errors = upscale(path, "--scale", 2)
    assert status == 1 and "--labels" in errors and "--force" in errors
    assert upscale(path, "--scale", 2, "--force")[0] == 0

"""The cache of slices, one call for training and evaluation, slices of volumes."""

import os
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
from made_files import save_series, save_volume
from PIL import Image

import dataset
from dataset import load_slices
from scans.subjects import find_scans
from utils import DataError


def grey(h=9, w=14):
    return np.random.default_rng(0).integers(0, 256, (h, w), dtype=np.uint8)


# --- all slices in one file -----------------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    """Three pictures of different sizes, and their pixels."""
    folder = tmp_path / "few"
    folder.mkdir()
    sizes = {"a_1": (24, 30), "b_1": (40, 17), "c_1": (33, 33)}
    pixels = {name: grey(*size) for name, size in sizes.items()}
    for name, values in pixels.items():
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder, pixels


def volume_of(shape, sizes=(1, 1, 1), path=None):
    """A RAS volume of random values on black, also saved if there is a path."""
    data = np.zeros(shape, np.float32)
    data[2:-2, 2:-2, 2:-2] = 50 + 100 * np.random.default_rng(0).random([n - 4 for n in shape])
    if path:
        save_volume(path, data, sizes)
    return data


def test_cache_holds_the_pixels_and_is_found_again(few, monkeypatch):
    folder, pixels = few
    slices, key, bad = load_slices(find_scans(folder), "cache")
    assert bad == 0 and slices.subject.tolist() == ["a", "b", "c"]
    assert slices.name.tolist() == ["a_1.png", "b_1.png", "c_1.png"]
    for one, values in zip(slices, pixels.values()):
        np.testing.assert_array_equal(one, values)

    def decoded_again(path):
        raise AssertionError(path)

    monkeypatch.setattr(dataset, "read_picture", decoded_again)
    again, key2, _ = load_slices(find_scans(folder), "cache")
    assert key2 == key
    np.testing.assert_array_equal(again[1], pixels["b_1"])


@pytest.mark.parametrize("damage", ["cut", "gone", "index"])
def test_a_damaged_cache_is_made_again(few, damage):
    folder, pixels = few
    slices, key, _ = load_slices(find_scans(folder), "cache")
    if damage == "cut":
        os.truncate(slices.file, 100)
    elif damage == "gone":
        os.unlink(slices.file)
    else:
        os.truncate(slices.file.with_suffix(".npz"), 100)
    slices, key2, _ = load_slices(find_scans(folder), "cache")
    assert key2 == key
    for one, values in zip(slices, pixels.values()):
        np.testing.assert_array_equal(one, values)


def test_the_same_data_is_known_again_wherever_and_whenever(few, tmp_path, monkeypatch):
    folder, _ = few
    options = dict(each_file_a_subject=True, cache=tmp_path / "cache")
    parts, key = dataset.load_parts(data=folder, **options)
    assert {name: len(part) for name, part in parts.items()} == {"train": 1, "val": 1, "test": 1}
    whole, _ = dataset.load_parts(data=folder, split=False, **options)  # as evaluate --split all
    assert len(whole["all"]) == 3
    monkeypatch.chdir(folder)
    assert dataset.load_parts(data="../few/.", **options)[1] == key
    moved = folder.rename(tmp_path / "moved")
    os.utime(moved / "a_1.png", ns=(1, 1))
    assert dataset.load_parts(data=moved, **options)[1] == key
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 1
    assert dataset.load_parts(data=moved, **options | {"seed": 1})[1] != key
    (tmp_path / "who.csv").write_text("a_1,p\nb_1,q\nc_1,r\n")
    other = dataset.load_parts(data=moved, subjects=tmp_path / "who.csv", cache="cache")[1]
    assert other != key


def test_changed_data_is_noticed(few):
    folder, pixels = few
    keys = {dataset.fingerprint(find_scans(folder), folder)}
    values = pixels["a_1"].copy()
    values[12, 15] ^= 1
    Image.fromarray(values).save(folder / "a_1.png")
    keys.add(dataset.fingerprint(find_scans(folder), folder))
    shutil.copy(folder / "a_1.png", folder / "d_1.png")
    keys.add(dataset.fingerprint(find_scans(folder), folder))
    (folder / "d_1.png").rename(folder / "e_1.png")
    keys.add(dataset.fingerprint(find_scans(folder), folder))
    assert len(keys) == 4


def test_all_files_of_a_scan_count(tmp_path):
    save_series(tmp_path / "dicom")
    key = dataset.fingerprint(find_scans(tmp_path), tmp_path)
    next((tmp_path / "dicom").iterdir()).unlink()
    assert dataset.fingerprint(find_scans(tmp_path), tmp_path) != key
    data = np.arange(12 * 14 * 10, dtype=np.int16).reshape(12, 14, 10)
    nib.save(nib.Nifti1Pair(data, np.eye(4)), tmp_path / "p1.img")
    key = dataset.fingerprint(find_scans(tmp_path), tmp_path)
    nib.save(nib.Nifti1Pair(data, np.diag([2, 1, 1, 1])), tmp_path / "p1.img")
    assert dataset.fingerprint(find_scans(tmp_path), tmp_path) != key


def test_what_is_old_and_unused_goes_beyond_the_limit(few, monkeypatch):
    folder, _ = few
    files = {}
    for count in range(4):  # four entries, used 40, 30, 20 and 0 days ago
        slices, _, _ = load_slices(find_scans(folder), "cache", count=count)
        files[count] = slices.file
        if count < 3:
            when = time.time() - (40 - 10 * count) * 86400
            os.utime(slices.file.with_suffix(".npz"), (when, when))
    load_slices(find_scans(folder), "cache", count=0)  # used again today
    size = files[0].stat().st_size
    monkeypatch.setattr(dataset, "CACHE_LIMIT", 3 * size)
    load_slices(find_scans(folder), "cache", count=9)
    assert [count for count, file in files.items() if file.exists()] == [0, 2, 3]
    assert not files[1].with_suffix(".npz").exists()
    monkeypatch.setattr(dataset, "CACHE_LIMIT", 0)
    load_slices(find_scans(folder), "cache", count=10)
    assert [count for count, file in files.items() if file.exists()] == [0, 3]  # within a week


def test_unreadable_files_are_named_counted_and_left_out(few, capsys):
    folder, _ = few
    (folder / "d_1.png").write_text("no picture")
    Image.new("L", (7, 90)).save(folder / "e_1.png")
    slices, _, bad = load_slices(find_scans(folder), "cache")
    assert bad == 2 and len(slices) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "d_1.png" in told[0] and "e_1.png" in told[1]


def test_without_data_the_slices_of_the_clone_are_loaded(tmp_path):
    parts, _ = dataset.load_parts(cache=tmp_path / "cache")
    people = {name: set(part.subject) for name, part in parts.items()}
    assert len(people["train"] | people["val"]) == 32 and len(people["test"]) == 8
    assert sum(map(len, parts.values())) == 800 and (parts["test"].shape == (240, 256)).all()


# --- slices of volumes ----------------------------------------------------------------------------


def test_slices_of_a_volume_are_upright_bright_and_evenly_spread(tmp_path):
    data = volume_of((30, 34, 40), path=tmp_path / "p1.nii.gz")
    found = dataset.volume_slices(tmp_path / "p1.nii.gz", count=5)
    assert [n for n, _ in found] == [2, 11, 20, 28, 37]
    top = np.percentile(data[data > data.mean()], 99.8)
    wanted = (np.clip(data / top, 0, 1) * 255 + 0.5).astype(np.uint8)
    for n, pixels in found:
        np.testing.assert_array_equal(pixels, wanted[:, ::-1, n].T)
    ((n, one),) = dataset.volume_slices(tmp_path / "p1.nii.gz", "coronal", 1, size=(20, 48))
    np.testing.assert_array_equal(one[:, 10:40], wanted[:, n, ::-1].T[9:29])
    assert n == 17 and not one[:, :10].any() and not one[:, 40:].any()


def test_negative_values_and_a_small_head_in_a_large_field_of_view(tmp_path):
    data = np.full((60, 60, 20), -1000, np.float32)
    data[25:35, 20:40, 5:15] = 200
    save_volume(tmp_path / "ct.nii", data)
    found = dataset.volume_slices(tmp_path / "ct.nii")
    assert [n for n, _ in found] == list(range(5, 15))
    assert found[0][1].shape == (36, 26) and set(np.unique(found[0][1])) == {0, 255}


def test_through_plane_slices_run_across_the_axial_ones(tmp_path):
    for n in range(3):
        data = volume_of((22, 26, 30), path=tmp_path / "in" / f"p{n}.nii.gz")
    parts, _ = dataset.load_parts(data=tmp_path / "in", axis="through", slices=4, cache="cache")
    train = parts["train"]
    assert sorted(map(tuple, train.shape.tolist())) == [(30, 22)] * 4 + [(30, 26)] * 4
    top = np.percentile(data[data > data.mean()], 99.8)
    sagittal = (np.clip(data[2] / top, 0, 1) * 255 + 0.5).astype(np.uint8)
    assert any(np.array_equal(pixels, sagittal[:, ::-1].T) for pixels in train)


@pytest.mark.parametrize(
    ("sizes", "words"), [((0.9, 0.9, 2), "2 mm apart"), ((0.5, 0.5, 1.2), "1.2 mm apart")]
)
def test_thick_volumes_and_pictures_teach_no_thinner_slices(tmp_path, sizes, words, capsys):
    for n in range(3):
        volume_of((20, 20, 20), sizes, tmp_path / f"p{n}.nii")
    with pytest.raises(DataError, match="no slice could be read"):
        dataset.load_parts(data=tmp_path, axis="through")
    told = capsys.readouterr().err
    assert words in told and "p1.nii" in told
    assert len(load_slices(find_scans(tmp_path), "cache")[0]) > 3
    with pytest.raises(DataError, match="needs volumes"):
        dataset.load_parts(axis="through")

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
import scans
from data import pack
from dataset import load_slices
from scans.subjects import find_scans
from utils import DataError

# --- all slices in one file -----------------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    """Three pictures of different sizes, and their pixels."""
    folder, rng = tmp_path / "few", np.random.default_rng(0)
    folder.mkdir()
    sizes = {"a_1": (24, 30), "b_1": (40, 17), "c_1": (33, 33)}
    pixels = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    for name, values in pixels.items():
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder, pixels


def volume_of(shape, sizes=(1, 1, 1), path=None, seed=0):
    """A RAS volume of random values on black, also saved if there is a path."""
    data, rng = np.zeros(shape, np.float32), np.random.default_rng(seed)
    data[10:-10, 10:-10, 10:-10] = 50 + 100 * rng.random([n - 20 for n in shape])
    if path:
        save_volume(path, data, sizes)
    return data


def in_8_bits(data):
    """White is the 99.8th percentile of what is above the mean."""
    top = np.percentile(data[data > data.mean()], 99.8)
    return (np.clip(data / np.float32(top), 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("damage", ["none", "cut", "gone", "index"])
def test_the_cache_is_found_again_or_made_again_if_damaged(few, damage, monkeypatch):
    folder, pixels = few
    slices, key, bad = load_slices(find_scans(folder), "cache")
    if damage == "cut":
        os.truncate(slices.file, 100)
    elif damage == "gone":
        os.unlink(slices.file)
    elif damage == "index":
        os.truncate(slices.file.with_suffix(".npz"), 100)
    else:
        monkeypatch.setattr(dataset, "read", None)  # nothing is decoded again
    again, key2, _ = load_slices(find_scans(folder), "cache")
    assert key2 == key and bad == 0
    for found in (again, slices) if damage == "none" else (again,):
        assert found.subject.tolist() == ["a", "b", "c"]
        assert found.name.tolist() == ["a_1.png", "b_1.png", "c_1.png"]
        for i, values in enumerate(pixels.values()):
            np.testing.assert_array_equal(found[i], values)
            assert found.shape[i].tolist() == list(values.shape)
            assert found.distance(i, (4, 4)) == 0  # of pictures unknown


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

    def entry(of):
        """The cache entry of these of the pictures."""
        chosen = [scan for scan in find_scans(folder) if scan.subject in of]
        return load_slices(chosen, "cache", root=folder)[0].file

    for of, days in {"a": 40, "b": 30, "c": 20, "ab": 0}.items():
        files[of] = entry(of)
        when = time.time() - days * 86400
        os.utime(files[of].with_suffix(".npz"), (when, when))
    assert entry("a") == files["a"]  # used again today
    sizes = {of: file.stat().st_size for of, file in files.items()}
    monkeypatch.setattr(dataset, "CACHE_LIMIT", sum(sizes.values()) - 1)
    entry("bc")
    assert [of for of, file in files.items() if file.exists()] == ["a", "c", "ab"]
    assert not files["b"].with_suffix(".npz").exists()
    monkeypatch.setattr(dataset, "CACHE_LIMIT", 0)
    entry("abc")
    assert [of for of, file in files.items() if file.exists()] == ["a", "ab"]  # within a week


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


# --- volumes --------------------------------------------------------------------------------------


def test_slices_of_every_plane_are_those_of_the_scan_cut_to_the_head(tmp_path):
    """Upright, numbered as in the file, 8 voxels around the head; the file's axes run elsewhere."""
    data = volume_of((30, 36, 42))
    affine = np.diag([-1.5, 2.0, -3.0, 1])[:, [2, 0, 1, 3]]  # z, x, y, two of them backwards
    save_volume(tmp_path / "p1.nii.gz", data[::-1, :, ::-1].transpose(2, 0, 1), affine)
    slices, _, _ = load_slices(find_scans(tmp_path), "cache", axis="all")
    wanted, scan = in_8_bits(data), scans.read(tmp_path / "p1.nii.gz")
    assert scan.sizes == [1.5, 2, 3]
    names = set()
    for axis, plane in enumerate(scans.PLANES):
        of_plane = np.flatnonzero(slices.plane == axis)
        assert len(of_plane) == data.shape[axis] - 20  # those with something in them
        for i in of_plane:
            number = int(slices.name[i].split("#")[1])
            names.add((plane, number))
            whole = np.moveaxis(wanted, axis, 0)[number].T[::-1]
            np.testing.assert_array_equal(slices[i], whole[2:-2, 2:-2])
            assert slices.stack(i).shape == (data.shape[axis] - 4, *slices[i].shape)
            assert slices.shape[i].tolist() == list(slices[i].shape)
        down_and_across = [s for k, s in enumerate((1.5, 2, 3)) if k != axis]
        apart = (1.5, 2, 3)[axis] / (4 * down_and_across[0])
        assert slices.distance(of_plane[0], (4, 4)) == pytest.approx(apart)
    assert len(names) == len(slices)


def test_slices_are_spread_evenly_over_the_usable_ones(tmp_path):
    volume_of((30, 34, 40), path=tmp_path / "p1.nii.gz")
    for count, wanted in ((5, [29, 24, 19, 15, 10]), (1, [19]), (99, [*range(29, 9, -1)])):
        slices, _, _ = load_slices(find_scans(tmp_path), "cache", count=count)
        assert [int(name.split("#")[1]) for name in slices.name] == wanted


def test_negative_values_and_a_small_head_in_a_large_field_of_view(tmp_path):
    data = np.full((60, 60, 20), -1000, np.float32)
    data[25:35, 20:40, 5:15] = 200
    save_volume(tmp_path / "ct.nii", data)
    slices, _, _ = load_slices(find_scans(tmp_path), "cache")
    assert sorted(int(name.split("#")[1]) for name in slices.name) == list(range(5, 15))
    assert slices[0].shape == (36, 26) and set(np.unique(slices[0])) == {0, 255}


@pytest.mark.parametrize("sizes", [(0.9, 0.9, 2), (0.5, 0.5, 1.2)])
def test_thick_volumes_and_pictures_teach_no_thinner_slices(tmp_path, sizes, capsys):
    options = dict(axis="through", cache="cache")
    volume_of((32, 36, 40), (1, 1, 1), tmp_path / "p4.nii")
    for n in range(3):
        volume_of((40, 40, 40), sizes, tmp_path / f"p{n}.nii", seed=n)
    slices = dataset.load_parts(data=tmp_path, split=False, **options)[0]["all"]
    assert set(slices.subject) == {"p4"} and set(slices.plane) == {0, 1}
    assert set(map(tuple, slices.shape.tolist())) == {(36, 28), (36, 32)}  # rows are slices
    told = capsys.readouterr().err
    assert "3 volumes with slices too thick" in told and "p0.nii" in told
    assert len(set(load_slices(find_scans(tmp_path), "cache")[0].subject)) == 4
    with pytest.raises(DataError, match="needs volumes"):
        dataset.load_parts(axis="through")


def test_packed_volumes_are_the_same_and_keep_people_and_splits(tmp_path):
    for name, split in {"p1": "train", "p2": "train", "p3": "val", "p4": "test"}.items():
        folder = tmp_path / "in" / split
        volume_of((32, 36, 40), (1, 1, 2.5), folder / f"{name}.nii.gz", seed=ord(name[1]))
    pack.main([str(tmp_path / "in"), "packed.zip", "--quiet"])
    parts, _ = dataset.load_parts(data=tmp_path / "in")
    packed, _ = dataset.load_parts(data="packed.zip")
    for name, part in parts.items():
        assert set(packed[name].subject) == set(part.subject)
        for n, v in enumerate(dict.fromkeys(packed[name].volume.tolist())):
            one, other = (int(np.flatnonzero(s.volume == v)[0]) for s in (packed[name], part))
            whole = part.stack(other)
            kept = len(whole) if name == "train" else round(len(whole) / 3)
            found = packed[name].stack(one)
            assert any(np.array_equal(found, x) for x in (whole[:kept], whole[-kept:])), n
            assert packed[name].spacing(one) == part.spacing(other) == (2.5, 1)

"""Degradations, subjects, splits, the cache of slices and training batches."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

import dataset
import formats
from dataset import find_scans, load_slices, split_subjects
from utils import DataError

# --- reading pictures -----------------------------------------------------------------------------


def grey(h=9, w=14):
    return np.random.default_rng(0).integers(0, 256, (h, w), dtype=np.uint8)


def test_grey_pictures_of_every_kind_give_the_same_pixels(tmp_path, capsys):
    values = grey()
    image = Image.fromarray(values)
    palette = image.copy()
    palette.putpalette([v for v in range(256) for _ in range(3)])
    opaque = Image.merge("LA", [image, Image.new("L", image.size, 255)])
    kinds = {
        "L.png": image,
        "L.bmp": image,
        "L.tif": image,
        "RGB.png": image.convert("RGB"),
        "RGBA.png": image.convert("RGBA"),
        "LA.png": opaque,
        "P.png": palette,
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        read = formats.read_picture(tmp_path / name)
        np.testing.assert_array_equal(read.pixels, values.astype(np.float32) / 255, name)
        assert (read.low, read.high, read.dtype) == (0, 255, "uint8")
    assert not capsys.readouterr().err


def test_one_bit_and_jpeg_pictures(tmp_path):
    values = np.kron(grey(4, 6), np.ones((8, 8), np.uint8))
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(formats.read_picture(tmp_path / "a.jpg").pixels - values / 255).max() < 0.05
    Image.fromarray(values > 127).save(tmp_path / "b.png")
    np.testing.assert_array_equal(formats.read_picture(tmp_path / "b.png").pixels, values > 127)


def test_transparent_pixels_are_black(tmp_path):
    rgba = np.full((4, 6, 4), 200, np.uint8)
    rgba[:, :3, 3], rgba[:, 3:, 3] = 0, 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = formats.read_picture(tmp_path / "a.png").pixels
    assert (pixels[:, :3] == 0).all() and (pixels[:, 3:] == np.float32(200 / 255)).all()


def test_true_colour_is_read_with_a_warning(tmp_path, capsys):
    Image.new("RGB", (5, 6), (200, 30, 30)).save(tmp_path / "red.png")
    pixels = formats.read_picture(tmp_path / "red.png").pixels
    assert pixels.shape == (6, 5) and pixels[0, 0] == pytest.approx(81 / 255, abs=0.01)
    assert "red.png" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_pictures_keep_their_levels(tmp_path, ending):
    values = np.linspace(0, 3000, 8 * 12).reshape(8, 12).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    read = formats.read_picture(tmp_path / f"a.{ending}")
    assert read.dtype == "uint16" and read.pixels.max() == 1
    back = read.pixels * (read.high - read.low) + read.low
    np.testing.assert_array_equal(back.round(), values)


def test_float_tiff_keeps_negative_values(tmp_path):
    values = np.linspace(-2, 6, 96, dtype=np.float32).reshape(8, 12)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    read = formats.read_picture(tmp_path / "a.tiff")
    assert (read.low, read.high, read.dtype) == (-2, 6, "float32")
    np.testing.assert_allclose(read.pixels * 8 - 2, values, atol=1e-6)


# --- whose slice it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("AD/218391_78.jpeg", "218391"),  # ADNI: <scan id>_<slice>
        ("AD/I45108_093.jpeg", "I45108"),
        ("NC/ADNI_002_S_0295_MR_12.png", "002_S_0295"),
        ("sub-07_T1w.nii.gz", "sub-07"),  # BIDS
        ("sub-07/ses-1/anat/sub-07_ses-1_run-2_T1w.nii", "sub-07"),
        ("sub-control01_100.png", "sub-control01"),
        ("sub-12/anat/scan.nii.gz", "sub-12"),
        ("patient3/slice_001.png", "patient3"),  # only the folder tells
        ("patient3/12.png", "patient3"),
        ("patient26_study1_T1W.nii.gz", "patient26"),
        ("IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211-T1"),
    ],
)
def test_subject_from_the_name(tmp_path, name, subject):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    (scan,) = find_scans(tmp_path)
    assert scan.subject == subject


def test_adni_layout_gives_subjects_classes_and_splits(adni):
    scans = find_scans(adni)
    assert len(scans) == 36 and {len(s.subject) for s in scans} == {6}
    assert {(s.split, s.group) for s in scans} == {
        (split, group) for split in ("train", "test") for group in ("AD", "NC")
    }
    assert [s.path.name for s in scans if s.subject == "218391"] == [
        f"218391_{n}.png" for n in (78, 79, 80)
    ]


def test_names_are_found_in_natural_order_without_hidden_files(tmp_path):
    for name in ("p_10.png", "p_9.png", ".p_1.png", "notes.txt", "p_100.PNG", ".git/p_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [s.path.name for s in find_scans(tmp_path)] == ["p_9.png", "p_10.png", "p_100.PNG"]


# --- splits ---------------------------------------------------------------------------------------


def scans_of(subjects, split="", group=""):
    return [dataset.Scan(f"{s}_{n}.png", s, group, split) for s in subjects for n in range(2)]


def test_split_keeps_subjects_apart_and_classes_balanced():
    names = [f"s{n}" for n in range(60)]
    scans = scans_of(names[:40], group="AD") + scans_of(names[40:], group="NC")
    split = split_subjects(scans, seed=1)
    assert set(split) == set(names)  # one place a subject
    for chosen in (names[:40], names[40:]):
        counts = {k: [split[s] for s in chosen].count(k) for k in ("train", "val", "test")}
        assert counts["val"] == len(chosen) // 10
        assert counts["test"] == pytest.approx(0.15 * len(chosen), abs=1)
    assert split == split_subjects(scans, seed=1)
    assert split == split_subjects(scans[::-1], seed=1)  # whatever order a disk lists files in
    assert split != split_subjects(scans, seed=2)


def test_split_respects_the_folders_of_the_data_set():
    scans = scans_of([f"a{n}" for n in range(20)], "train") + scans_of(["b1", "b2"], "test")
    split = split_subjects(scans, seed=0)
    assert {s for s, k in split.items() if k == "test"} == {"b1", "b2"}
    assert list(split.values()).count("val") == 2


def test_a_small_data_set_still_has_all_splits():
    split = split_subjects(scans_of(["a", "b", "c"]), seed=0)
    assert sorted(split.values()) == ["test", "train", "val"]
    split = split_subjects(scans_of(["a", "b"], "train") + scans_of(["c"], "test"), seed=0)
    assert sorted(split.values()) == ["test", "train", "val"]


@pytest.mark.parametrize(
    "scans",
    [
        scans_of(["a"]),
        scans_of(["a", "b"]),
        scans_of(["a"], "train") + scans_of(["b", "c", "d"], "test"),
        scans_of(["a", "b", "c"], "test"),
    ],
)
def test_too_few_subjects_are_refused(scans):
    with pytest.raises(DataError, match="too few"):
        split_subjects(scans, seed=0)


def test_a_subject_on_both_sides_is_refused_by_name():
    scans = scans_of(["a", "b", "twice"], "train") + scans_of(["c", "twice"], "test")
    with pytest.raises(DataError, match=r"in train and in test too \(twice\)"):
        split_subjects(scans, seed=0)


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


def test_cache_holds_the_pixels_and_is_found_again(few, monkeypatch):
    folder, pixels = few
    slices, key, bad = load_slices(find_scans(folder), "cache")
    assert bad == 0 and slices.subject.tolist() == ["a", "b", "c"]
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


def test_changed_data_is_noticed(few):
    folder, _ = few
    key = dataset.fingerprint(find_scans(folder))
    os.utime(folder / "a_1.png", ns=(1, 1))
    second = dataset.fingerprint(find_scans(folder))
    shutil.copy(folder / "a_1.png", folder / "d_1.png")
    third = dataset.fingerprint(find_scans(folder))
    assert len({key, second, third}) == 3


def test_unreadable_files_are_named_counted_and_left_out(few, capsys):
    folder, _ = few
    (folder / "d_1.png").write_text("no picture")
    Image.new("L", (3, 3)).save(folder / "e_1.png")
    slices, _, bad = load_slices(find_scans(folder), "cache")
    assert bad == 2 and len(slices) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "d_1.png" in told[0] and "e_1.png" in told[1]


def test_many_more_files_than_workers_are_all_read(few):
    folder, _ = few
    for n in range(50):
        Image.fromarray(grey(8, 8) // 2 + n).save(folder / f"z{n}_1.png")
    slices, _, bad = load_slices(find_scans(folder), "cache", workers=2)
    assert bad == 0 and len(slices) == 53
    assert [int(s.min()) for s in slices][-1] >= 49

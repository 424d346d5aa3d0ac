"""Degradations, subjects, splits, the cache of slices and training batches."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dataset
import formats
from dataset import DEGRADATIONS, degrade, find_scans, load_slices, split_subjects, training_batch
from utils import DataError

# --- degradations against independent references --------------------------------------------------


def pillow(hr, method):
    h, w = hr.shape
    return np.asarray(Image.fromarray(hr.astype(np.float32)).resize((w // 4, h // 4), method))


def centre_2x2(hr):
    """Linear interpolation at 4 i + 1.5, half way between samples 4 i + 1 and 4 i + 2."""
    return (hr[1::4, 1::4] + hr[2::4, 1::4] + hr[1::4, 2::4] + hr[2::4, 2::4]) / 4


def fourier_crop(hr):
    """Magnitude of the centre of the spectrum, moved to the sample grid 4 i + 1.5."""
    h, w = hr.shape
    spectrum = np.fft.fftshift(np.fft.fft2(hr))
    rows, columns = (np.fft.fftshift(np.fft.fftfreq(n)) for n in (h, w))
    spectrum = spectrum * np.exp(2j * np.pi * 1.5 * (rows[:, None] + columns))
    top, left = h // 2 - h // 4 // 2, w // 2 - w // 4 // 2
    centre = spectrum[top : top + h // 4, left : left + w // 4]
    return np.abs(np.fft.ifft2(np.fft.ifftshift(centre))) / 16


REFERENCES = {
    "bicubic": lambda hr: pillow(hr, Image.Resampling.BICUBIC),
    "bilinear": lambda hr: pillow(hr, Image.Resampling.BILINEAR),
    "bilinear-plain": centre_2x2,
    "kspace": fourier_crop,
}


@pytest.mark.parametrize("size", [(64, 64), (200, 160), (36, 100)])
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradation_equals_an_independent_one(name, size, real_slices):
    for image in (real_slices[1, 0, : size[0], : size[1]], torch.rand(size)):
        lr = degrade(image[None, None], name)[0, 0].numpy()
        wanted = np.clip(REFERENCES[name](image.double().numpy()), 0, 1)
        assert np.abs(lr - wanted).max() < 0.51 / 255  # rounding to 8 bits, and no more


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_lr_is_clamped_and_has_8_bits(name):
    hr = torch.zeros(1, 1, 64, 64)
    hr[..., 20:44, 20:44] = 1  # bicubic and kspace overshoot at such edges
    lr = degrade(hr, name)
    assert lr.min() >= 0 and lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("centre", [(60.0, 71.0), (66.25, 50.5)])
def test_all_degradations_share_one_sample_grid(name, centre):
    """A smooth blob stays where it was: LR sample i is at HR coordinate 4 i + 1.5."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(120.0), indexing="ij")
    hr = torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * 9.0**2))
    lr = degrade(hr[None, None], name)[0, 0]
    rows, columns = 4 * torch.arange(32) + 1.5, 4 * torch.arange(30) + 1.5
    found = ((lr.sum(1) @ rows) / lr.sum(), (lr.sum(0) @ columns) / lr.sum())
    assert torch.tensor(found).sub(torch.tensor(centre)).abs().max() < 0.1


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "bilinear-plain"])
def test_a_ramp_keeps_its_values(name):
    hr = torch.linspace(0, 1, 128).expand(64, 128)
    lr = degrade(hr[None, None], name)[0, 0, 4:-4, 4:-4]
    wanted = (4 * torch.arange(4, 28) + 1.5) / 127
    assert (lr - wanted).abs().max() < 0.51 / 255


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("value", [0, 51, 255])
def test_constant_slices_stay_constant(name, value):
    lr = degrade(torch.full((1, 1, 20, 32), value / 255), name)
    assert lr.unique().tolist() == [pytest.approx(value / 255)]


def test_degrading_a_batch_is_degrading_its_slices(real_slices):
    for name in DEGRADATIONS:
        single = torch.cat([degrade(s[None], name) for s in real_slices])
        assert (degrade(real_slices, name) - single).abs().max() < 1.01 / 255
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(torch.rand(1, 1, 22, 20), "bicubic")


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


# --- training batches -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices(adni, tmp_path_factory):
    return load_slices(find_scans(adni), tmp_path_factory.mktemp("cache"))[0]


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_patch_is_cut_from_the_degraded_slice(slices, name):
    """The patch must be what degrading the whole slice gives there, edges of the patch included."""
    options = dict(seed=5, batch_size=6, patch=9, degradation=name, augment=False)
    lr, hr = training_batch(slices, 3, **options)
    assert lr.shape == (6, 1, 9, 9) and hr.shape == (6, 1, 36, 36)
    whole = torch.stack([torch.tensor(s) for s in slices])[:, None].float() / 255
    small = degrade(whole, name)
    for x, y in zip(lr, hr):
        windows = whole.unfold(2, 36, 4).unfold(3, 36, 4)[:, 0]  # slice, row, column, 36, 36
        at = (windows - y[0]).abs().amax((3, 4)) < 1e-6
        assert at.any(), "the HR patch is nowhere in the data on the LR grid"
        i, row, column = at.nonzero()[0].tolist()
        error = (small[i, :, row : row + 9, column : column + 9] - x).abs()
        assert error.max() < 1.01 / 255 and (error > 1e-6).float().mean() < 0.1


@pytest.mark.parametrize("name", [*DEGRADATIONS, "mixed"])
def test_augmented_pairs_still_match(slices, name):
    options = dict(seed=0, batch_size=16, patch=16, degradation=name)
    lr, hr = training_batch(slices, 0, **options)
    assert lr.dtype == hr.dtype == torch.float32
    assert lr.min() >= 0 and lr.max() <= 1 and hr.min() >= 0 and hr.max() <= 1
    up = F.interpolate(lr, scale_factor=4, mode="bicubic")
    error = F.mse_loss(up, hr)
    for turned in (up.flip(2), up.flip(3), up.mT, up.roll(2, 2), up.roll(2, 3)):
        assert error < 0.7 * F.mse_loss(turned, hr)


def test_batches_are_a_function_of_seed_and_iteration(slices):
    options = dict(batch_size=4, patch=8, degradation="mixed")
    first = training_batch(slices, 7, seed=1, **options)
    training_batch(slices, 8, seed=1, **options)
    again = training_batch(slices, 7, seed=1, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    for other in (dict(seed=1, iteration=8), dict(seed=2, iteration=7)):
        assert not torch.equal(first[1], training_batch(slices, **other, **options)[1])


def test_an_epoch_visits_every_slice_once(slices):
    seen = [dataset.shuffled(len(slices), 0, epoch).tolist() for epoch in range(2)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(len(slices)))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("degradation", ["bicubic", "mixed"])
def test_shares_of_processes_make_the_batch_of_one(slices, degradation):
    options = dict(seed=2, batch_size=6, patch=8, degradation=degradation)
    whole = training_batch(slices, 4, **options)
    shares = [training_batch(slices, 4, **options, rank=r, world=2) for r in range(2)]
    for part in (0, 1):
        both = torch.empty_like(whole[part])
        both[0::2], both[1::2] = shares[0][part], shares[1][part]
        torch.testing.assert_close(both, whole[part], atol=1.01 / 255, rtol=0)
        assert (both - whole[part]).abs().gt(1e-5).float().mean() < 0.01


@pytest.mark.parametrize("patch", [0, 8, 64])
def test_slices_of_different_sizes_make_a_batch(few, patch):
    slices, _, _ = load_slices(find_scans(few[0]), "cache")
    lr, hr = training_batch(slices, 0, seed=0, batch_size=5, patch=patch, degradation="bicubic")
    assert hr.shape[-2:] == (4 * lr.shape[-2], 4 * lr.shape[-1]) and hr.isfinite().all()
    assert lr.shape[-2:] == ((patch, patch) if patch else (10, 8))


@pytest.mark.parametrize("name", DEGRADATIONS[:3])
def test_whole_slices_lose_only_their_empty_margins(tmp_path, name):
    """A slice of 13x22 bright pixels off the centre, amid faint noise, is cut on the LR grid."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, (60, 75)).astype(np.uint8)
    pixels[21:34, 40:62] = rng.integers(90, 255, (13, 22))
    Image.fromarray(pixels).save(tmp_path / "p1_1.png")
    slices, _, _ = load_slices(find_scans(tmp_path), tmp_path / "cache")
    lr, hr = training_batch(
        slices, 0, seed=0, batch_size=1, patch=0, degradation=name, augment=False
    )
    assert hr[0, 0].mul(255).round().byte().numpy().tolist() == pixels[16:40, 36:68].tolist()
    whole = degrade(torch.tensor(pixels[None, None, :, :72]).float() / 255, name)
    assert (lr - whole[..., 4:10, 9:17]).abs().max() < 1.01 / 255


def test_an_empty_slice_has_no_margins():
    assert dataset.content_of(np.zeros((30, 44), np.uint8)).tolist() == [[0, 0], [7, 11]]


def test_augmentation_leaves_the_content_in_whole_slices(tmp_path):
    """Flips and grid shifts cut off three pixels at an edge, but none of what is farther inside."""
    rng = np.random.default_rng(0)
    for n in range(200):
        pixels = np.zeros(rng.integers(16, 28, 2), np.uint8)
        row, column = (rng.integers(3, size - 6) for size in pixels.shape)
        pixels[row : row + 4, column : column + 4] = 200
        Image.fromarray(pixels).save(tmp_path / f"p{n}_1.png")
    slices, _, _ = load_slices(find_scans(tmp_path), tmp_path / "cache")
    options = dict(seed=0, batch_size=1, patch=0, degradation="bicubic")
    for iteration in range(200):
        _, hr = training_batch(slices, iteration, **options)
        assert (hr > 0).sum() == 16

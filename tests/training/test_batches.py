"""Training batches: pairs that match, pure functions of seed and iteration."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import Slices
from degradation import ENTRIES, NAMED, degrade, describe_degradation
from training.batches import VIEW, batches_ahead, training_batch
from utils import UsageError


@pytest.fixture(scope="module")
def slices(real_slices, tmp_path_factory) -> Slices:
    """Five slices, two of them of other sizes; the first and the second are neighbours."""
    pixels = (real_slices[:, 0] * 255).round().to(torch.uint8).numpy()
    return slices_of(
        tmp_path_factory.mktemp("slices") / "pixels",
        {"a.nii#4": pixels[0], "a.nii#5": pixels[1], "a.nii#7": pixels[2],
         "b.png": pixels[0, :150, :99], "c.png": pixels[1, 20:, 30:]},
    )  # fmt: skip


def slices_of(file, named: dict) -> Slices:
    """A data set of these arrays."""
    file.write_bytes(b"".join(array.tobytes() for array in named.values()))
    sizes = [0, *(array.size for array in named.values())]
    shapes = np.array([array.shape for array in named.values()])
    empty = np.full(len(named), "")
    return Slices(file, np.cumsum(sizes)[:-1], shapes, empty, empty, np.array(list(named)))


def batch_of(slices, iteration=0, **changed):
    options = dict(seed=0, batch_size=6, patch=16, degradation="bicubic")
    return training_batch(slices, iteration, **(options | changed))


@pytest.mark.parametrize("name", [*NAMED, "blur-2"])
@pytest.mark.parametrize("scale", [(4, 4), (4, 1), (3, 3)], ids=str)
def test_a_patch_is_cut_from_the_degraded_slice(slices, name, scale):
    """The patch must be what degrading the whole slice gives there, edges of the patch included."""
    same = [slices[0]]
    batch = batch_of(same, degradation=name, augment=False, patch=9, scale=scale, batch_size=2)
    hr = torch.from_numpy(same[0].copy())[None, None].float() / 255
    hr = hr[..., : 200 // scale[0] * scale[0], : 160 // scale[1] * scale[1]]
    whole = F.unfold(degrade(hr, name, scale), 9)[0].T
    for patch in batch.lr:
        assert (whole - patch.reshape(1, -1)).abs().amax(1).min() < 1e-6
    assert batch.hr.shape == (2, 1, 9 * scale[0], 9 * scale[1])


@pytest.mark.parametrize("name", [*NAMED, "mixed"])
def test_augmented_pairs_still_match(slices, name):
    batch = batch_of(slices, degradation=name, batch_size=12)
    again = degrade(batch.hr, "bilinear")[..., 2:-2, 2:-2]
    assert (again - batch.lr[..., 2:-2, 2:-2]).abs().mean() < 0.03
    assert batch.lr.max() <= 1 and batch.hr.max() <= 1


def test_batches_are_a_function_of_seed_and_iteration(slices):
    for name in ("bicubic", "wide"):
        one, two = (batch_of(slices, 7, degradation=name, scale=(2, 2)) for _ in range(2))
        for key in ("lr", "hr", "view", "description"):
            assert torch.equal(getattr(one, key), getattr(two, key))
        assert not torch.equal(one.lr, batch_of(slices, 8, degradation=name, scale=(2, 2)).lr)
        other = batch_of(slices, 7, degradation=name, scale=(2, 2), seed=1)
        assert not torch.equal(one.lr, other.lr)


def test_batches_made_ahead_are_the_same_in_their_order(slices):
    options = dict(seed=0, batch_size=3, patch=8, degradation="wide")
    for workers in (0, 3, 9):
        found = list(batches_ahead(slices, range(2, 9), workers, **options))
        assert len(found) == 7
        for iteration, batch in enumerate(found, 2):
            assert torch.equal(batch.lr, training_batch(slices, iteration, **options).lr)
    with pytest.raises(UsageError):  # what goes wrong in a thread is raised
        list(batches_ahead(slices, range(4), 2, **(options | {"degradation": "fog"})))


@pytest.mark.parametrize("degradation", ["bicubic", "wide"])
def test_shares_of_processes_make_the_batch_of_one(slices, degradation):
    whole = batch_of(slices, 3, degradation=degradation)
    for rank in range(3):
        share = batch_of(slices, 3, degradation=degradation, rank=rank, world=3)
        for key in ("lr", "hr", "view", "description"):
            assert torch.equal(getattr(share, key), getattr(whole, key)[rank::3])


def test_an_epoch_visits_every_slice_once():
    grey = [np.full((32, 32), 50 + n, np.uint8) for n in range(12)]
    for epoch in (0, 1):
        batch = batch_of(grey, epoch, batch_size=12, patch=4, augment=False)
        assert sorted((batch.hr[:, 0, 0, 0] * 255).round().int().tolist()) == [*range(50, 62)]


@pytest.mark.parametrize("patch", [0, 8, 64])
def test_slices_of_different_sizes_make_a_batch(slices, patch):
    batch = batch_of(slices, patch=patch, batch_size=10)
    h, w = batch.lr.shape[-2:]
    assert batch.hr.shape == (10, 1, 4 * h, 4 * w) and VIEW[0] <= batch.view.shape[-1] <= VIEW[1]
    assert (h, w) == (patch, patch) if patch else h >= 49


def test_views_of_many_sizes_show_the_middle_of_the_slices(slices):
    views = [batch_of(slices, i, patch=8).view for i in range(12)]
    assert {view.shape[-1] for view in views} > {VIEW[1]} and len({v.shape for v in views}) > 3
    assert all(view.amax((1, 2, 3)).min() > 0.2 for view in views)


def test_the_description_is_the_true_one(slices):
    batch = batch_of(slices, degradation="blur-2+rician-3")
    wanted = describe_degradation("blur-2+rician-3", (4, 4)).expand(6, ENTRIES)
    torch.testing.assert_close(batch.description, wanted, atol=1e-6, rtol=0)  # not of the gain


def test_wide_training_shows_other_contrasts(tmp_path):
    """Grey values no longer keep their order in some of the samples."""
    one = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))
    ramp = slices_of(tmp_path / "pixels", {"a.png": one, "b.png": one})
    batch = batch_of(ramp, degradation="wide", batch_size=24, patch=0)
    rises = [(hr[0, 8].diff() > 0).float().mean() for hr in batch.hr]
    assert min(abs(2 * r - 1) for r in rises) < 0.8 and max(rises) > 0.9


def test_a_thicker_slice_is_the_mean_of_neighbours_of_its_own_volume(slices):
    both = np.stack((slices[0], slices[1])).astype(np.float32).mean(0)
    for count in (2, 3, 5):  # number 6 is missing: no neighbours beyond it
        assert np.abs(slices.thicker(0, count) - both).max() <= 0.5
    for alone in (2, 3, 4):  # followed by a gap, by another file, by nothing
        assert (slices.thicker(alone, 4) == slices[alone]).all()


def test_slices_of_a_volume_are_told_from_those_beside_it(slices):
    assert [list(slices.volume_of(i)) for i in range(5)] == [[0, 1, 2]] * 3 + [[3], [4]]


def test_pictures_with_a_number_sign_in_their_names_are_no_volume(tmp_path):
    pictures = {f"a#{i}.png": np.full((32, 32), 40 * i, np.uint8) for i in range(3)}
    pictures = slices_of(tmp_path / "pixels", pictures)
    assert list(pictures.volume_of(1)) == [1] and (pictures.thicker(1, 3) == pictures[1]).all()
    assert pictures.place_of(1) == ("a#1.png", None)


def test_wide_training_sees_the_upper_end_of_heads_more_often(tmp_path):
    """The upper fifth of a volume has its own share beside that of all slices."""
    flat = {f"a.nii#{i}": np.full((32, 32), 10 + 2 * i, np.uint8) for i in range(100)}
    heads = slices_of(tmp_path / "pixels", flat)
    options = dict(batch_size=400, patch=0)
    brightest = [batch_of(heads, degradation=name, **options).hr.amax((1, 2, 3)) for name in
                 ("bicubic", "wide")]  # fmt: skip
    upper = [float((b > 0.64).float().mean()) for b in brightest]
    assert upper[0] < 0.13 < upper[1]


def test_a_noisier_scanner_leaves_noise_in_the_truth_too(slices):
    options = dict(degradation="bicubic", batch_size=8, patch=0)
    plain, noisy = (batch_of(slices, 2, **options, noisy=share) for share in (0.0, 1.0))
    assert noisy.hr.min() >= 0 and noisy.hr.max() <= 1
    rough = [(b.hr[..., 1:] - b.hr[..., :-1])[..., 2:].abs().mean() for b in (plain, noisy)]
    assert rough[1] > 1.1 * rough[0]
    again = degrade(noisy.hr, "bicubic")
    assert (again - noisy.lr)[..., :30, :20].abs().max() < 2 / 255  # the LR is made of that truth

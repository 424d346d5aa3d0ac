"""Training batches: pairs that match, of slices that belong together, whatever is drawn."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import slices_of_person
from made_files import slices_of

from degradation import NAMED, degrade, describe_degradation
from training import batches
from training.batches import Options, Stock, training_batch

SHAPES = [(30, 44, 52), (26, 40, 36)]  # of two volumes: slices, rows and columns


def options_of(**changed) -> Options:
    usual = dict(seed=0, batch_size=8, patch=6, scales=((4, 4),), degradation="bicubic")
    return Options(**usual | changed)


@pytest.fixture
def stock_of(tmp_path):
    """stock_of(volumes, planes): a Stock of volumes (S, H, W), uint8."""
    numbers = iter(range(99))
    return lambda volumes, planes=(2,): Stock(
        slices_of(tmp_path / f"{next(numbers)}.u8", volumes, planes, (1.5, 1.0, 1.0)), "cpu"
    )


@pytest.fixture
def stock(stock_of) -> Stock:
    """Two people of which each has 8 slices of 112x96, one behind the other."""
    people = (slices_of_person(s)[4:12, 64:176, 80:176] for s in ("55", "71"))
    return stock_of(list(people))


def same(a, b, share=slice(None)) -> bool:
    """Whether two batches are equal to the last bit; share: of the samples of b."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(torch.equal(x, y[share]) if torch.is_tensor(x) else x == y for x, y in pairs)


# --- where samples come from ----------------------------------------------------------------------


def coordinates(stocks, iteration, options):
    """(HR, LR, batch): the slice, row and column of the volume that each pixel is of, NaN for
    black. LR is every s-th pixel of HR. stocks: of volumes that hold these numbers, and of white.
    """
    options = replace(options, degradation="decimate")
    *found, batch = (training_batch(stock, iteration, options) for stock in stocks)
    gain = batch.hr.amax((1, 2, 3), keepdim=True)
    places = []
    for images in ([b.hr for b in found], [b.lr for b in found]):
        values = torch.stack([image * 255 / gain for image in images], -1)
        places.append((values / 3 - 1).round().where(values > 0, torch.nan))
    return *places, batch


@pytest.mark.parametrize(
    ("planes", "scale", "neighbours", "patch"),
    [((2,), (4, 4), 2, 6), ((0, 1, 2), (3, 3), 1, 5), ((0, 1), (4, 1), 2, 6), ((2,), (2, 2), 2, 0)],
)
def test_every_pixel_is_from_where_it_should_be(stock_of, planes, scale, neighbours, patch):
    """However slices are flipped, turned and shifted: LR and HR show one place, rows and columns
    run on, and neighbours are those of the same volume, or black and marked as missing."""
    indices = [[3 + 3 * np.indices(shape)[axis] for shape in SHAPES] for axis in range(3)]
    white = [np.full(shape, 255) for shape in SHAPES]
    stocks = [stock_of([v.astype("u1") for v in values], planes) for values in (*indices, white)]
    options = options_of(scales=(scale,), neighbours=neighbours, patch=patch)
    looks, shifts, near = set(), set(), []
    for iteration in range(24):
        hr, lr, batch = coordinates(stocks, iteration, options)
        own, corners = lr[:, neighbours], hr[:, 0, :: scale[0], :: scale[1]]
        torch.testing.assert_close(own, corners, equal_nan=True)
        for i in range(8):
            window = hr[i, 0][:, ~hr[i, 0, 0].isnan().any(-1)]
            window = window[~window[:, 0].isnan().any(-1)]
            assert not window.isnan().any() and (not patch or window.shape == hr[i, 0].shape)
            down, across = (window.diff(dim=k).reshape(-1, 3).unique(dim=0) for k in (0, 1))
            (down,), (across,) = down.tolist(), across.tolist()  # each is the next one
            (plane,) = (k for k in range(3) if down[k] == across[k] == 0)
            assert sorted(map(abs, down)) == sorted(map(abs, across)) == [0, 0, 1]
            turned = down[0 if plane else 1] == 0
            looks.add((2 - plane, turned, sum(down), sum(across)))
            if sum(down) > 0:
                shifts.add(float(window[0, 0] @ torch.tensor(down)) % scale[0])
            apart = (1.5 if plane == 0 else 1) / scale[1]
            assert float(batch.distance[i]) == pytest.approx(apart)
            present = batch.present[i].tolist()
            for k, there in zip((-2, -1, 1, 2), present):
                if abs(k) > neighbours:
                    assert not there
                    continue
                seen, wanted = lr[i, neighbours + k], own[i].clone()
                wanted[..., plane] += k if there else torch.nan
                torch.testing.assert_close(seen.sum(-1), wanted.sum(-1), equal_nan=True)
                torch.testing.assert_close(seen[..., plane], wanted[..., plane], equal_nan=True)
            near += present if 2 <= window[0, 0, plane] < 24 else []
    assert {look[0] for look in looks} == set(planes)
    assert len({look[1:] for look in looks}) == (8 if scale[0] == scale[1] else 4)
    assert len(shifts) == scale[0]  # of the LR grid
    share = neighbours / 2
    assert 0.5 * share < np.mean(near) < 0.75 * share  # missing now and then in the middle, too


def test_thick_slices_are_means_of_so_many_and_so_are_their_neighbours(stock_of):
    volume = np.random.default_rng(0).integers(0, 256, (30, 24, 20), np.uint8)
    stock, options = stock_of([volume]), options_of(patch=0, neighbours=2, augment=False)
    chosen = np.arange(8) + 9
    looks = batches.draw_looks(stock, chosen, np.random.default_rng(0), (4, 4), options)
    for thick, step in ((3, 3), (4, 6), (1, 2)):
        looks = replace(looks, thick=thick, step=step)
        found = batches.gather_windows(stock, looks, slice(None), (4, 4), 2).numpy()
        for i, k in np.ndindex(8, 5):
            place = looks.place[i] + (k - 2) * step
            wanted = np.zeros((24, 20))
            if 0 <= place <= 30 - thick:
                wanted = np.floor(volume[place : place + thick].mean(0) + 0.5)
            np.testing.assert_array_equal(found[i, k], np.pad(wanted, ((0, 0), (0, 4)))[:24, :24])


def test_with_wide_slices_are_thick_now_and_then_and_what_is_marked_is_there(stock_of):
    stock = stock_of([np.full((24, 40, 40), 255, np.uint8)])
    distances = set()
    for iteration in range(40):
        batch = training_batch(stock, iteration, options_of(degradation="wide", neighbours=2))
        middle, *others = (batch.lr[:, k].amax((1, 2)) > 0 for k in (2, 0, 1, 3, 4))
        there = torch.stack(others, 1).float()
        assert torch.equal(there[middle], batch.present[middle])
        distances.add(round(float(batch.distance[0]) / 0.375))  # in slices
    assert 1 in distances and max(distances) <= 12 and len(distances) > 5
    rng, options = np.random.default_rng(0), options_of(degradation="wide", neighbours=2)
    looks = (batches.draw_looks(stock, np.full(4, 12), rng, (4, 4), options) for _ in range(400))
    gaps = [look.step - look.thick for look in looks if look.thick > 1]
    assert set(gaps) == {0, 1, 2, 3} and 0.6 < np.mean(np.equal(gaps, 0)) < 0.8  # most touch
    pictures = stock_of([np.full((1, 40, 40), 255, np.uint8)] * 3)  # of which no mean is made
    for iteration in range(8):
        batch = training_batch(pictures, iteration, options_of(degradation="wide", neighbours=2))
        assert (batch.hr.amax((1, 2, 3)) > 0).float().mean() > 0.7 and not batch.present.any()


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMED, "blur-2"])
@pytest.mark.parametrize("scale", [(4, 4), (3, 3), (4, 1)], ids=str)
def test_a_patch_is_cut_from_the_degraded_slice(stock_of, name, scale):
    """The patch is what degrading the whole slice gives there, edges of the patch included."""
    pixels = slices_of_person("55")[10, 24:216, 24:216]
    through = 1 in scale
    stock = stock_of([np.stack([pixels] * 8, 1 if through else 0)], (1,) if through else (2,))
    options = options_of(degradation=name, augment=False, patch=8, scales=(scale,), batch_size=2)
    batch = training_batch(stock, 0, options)
    hr = torch.from_numpy(pixels.copy())[None, None].float() / 255
    hr = hr[..., : hr.shape[-2] // scale[0] * scale[0], : hr.shape[-1] // scale[1] * scale[1]]
    size = batch.lr.shape[-2:]
    whole = F.unfold(degrade(hr, name, scale), size)[0].T
    off = [(whole - patch.reshape(1, -1)).abs().amax(1).min() for patch in batch.lr]
    assert max(off) < (0.03 if name == "kspace" else 1e-6)  # a sinc reaches farther than patches
    assert batch.hr.shape == (2, 1, size[0] * scale[0], size[1] * scale[1])


def test_each_description_is_of_its_own_sample(stock):
    """Found among the named ones by degrading each slice again; of noise the size is that of the
    slice's own white, whatever brightness was drawn."""
    options = options_of(degradation="mixed", augment=False, patch=0, batch_size=16)
    known = describe_degradation([batches.draw_degradation(n, None, (4, 4)) for n in NAMED], (4, 4))
    for iteration in range(2):
        batch = training_batch(stock, iteration, options)
        off = torch.stack(
            [(degrade(batch.hr, n) - batch.lr).square().mean((1, 2, 3)) for n in NAMED]
        )
        shown = off.argmin(0)
        assert len(shown.unique()) == 4 and not torch.equal(shown, shown.sort()[0])
        torch.testing.assert_close(batch.truth[:, :16], known[shown, :16])
    noisy = options_of(degradation="gaussian-4", patch=0)
    batch = training_batch(stock, 0, noisy)
    wanted = describe_degradation("gaussian-4", (4, 4)).expand(8, -1)
    torch.testing.assert_close(batch.truth, wanted)
    gains = training_batch(stock, 0, replace(noisy, degradation="bicubic"))
    noise = (batch.lr - gains.lr)[gains.lr > 0.1].std()
    assert noise == pytest.approx(0.04 * 0.85, rel=0.1)  # gains are 0.7 to 1


def test_wide_training_shows_other_contrasts(stock_of):
    """Grey values no longer keep their order in some of the samples."""
    ramp = stock_of([np.tile(np.arange(0, 256, 2, dtype=np.uint8), (2, 64, 1))])
    batch = training_batch(ramp, 0, options_of(degradation="wide", batch_size=24, patch=0))
    rises = [(hr[0, 8].diff() > 0).float().mean() for hr in batch.hr]
    assert min(abs(2 * r - 1) for r in rises) < 0.8 and max(rises) > 0.9


def test_wide_training_sees_the_upper_end_of_heads_more_often(stock_of, monkeypatch):
    monkeypatch.setattr(batches, "SHARE_THICK", 0)  # else thick slices reach it, too
    volume = np.zeros((100, 32, 32), np.uint8)
    volume[:20] = 200
    heads, upper = stock_of([volume]), []
    for name in ("bicubic", "wide"):
        options = options_of(degradation=name, batch_size=100, patch=0)
        found = torch.cat([training_batch(heads, i, options).hr for i in range(8)])
        upper.append(float((found.amax((1, 2, 3)) > 0).float().mean()))
    assert upper[0] < 0.25 and upper[1] > 0.34


def test_a_noisier_scanner_leaves_noise_in_the_truth_too(stock):
    plain, noisy = (training_batch(stock, 2, options_of(noisy=x, patch=0)) for x in (0.0, 1.0))
    assert noisy.hr.min() >= 0 and noisy.hr.max() <= 1 and (noisy.hr - plain.hr).min() < -0.01
    rough = [(b.hr[..., 1:] - b.hr[..., :-1])[..., 2:].abs().mean() for b in (plain, noisy)]
    assert rough[1] > 1.1 * rough[0]
    again = degrade(noisy.hr, "bicubic")
    assert (again - noisy.lr).abs().max() < 1e-6  # the LR is made of that truth


def test_views_show_parts_of_the_lr_slices_in_the_middle_of_black(stock_of):
    stock, sizes = stock_of([np.full((9, 300, 300), 255, np.uint8)]), set()
    for iteration in range(4):
        options = options_of(patch=0, augment=False, degradation="nearest")
        view = training_batch(stock, iteration, options).view
        assert view.shape == (8, 1, batches.VIEW, batches.VIEW)
        for image in view[:, 0] > 0:
            rows, columns = (torch.where(image.any(k))[0] for k in (1, 0))
            high, wide = len(rows), len(columns)
            assert image.sum() == high * wide and min(high, wide) >= 20
            middle = (int(rows[0] + rows[-1]), int(columns[0] + columns[-1]))
            assert all(abs(m - 47) <= 1 for m in middle)
            sizes.add((high, wide))
    assert (48, 48) in sizes and len(sizes) > 8


# --- the same again -------------------------------------------------------------------------------


@pytest.mark.parametrize("degradation", ["mixed", "wide"])
def test_batches_are_functions_of_seed_and_iteration_whatever_was_made_before(stock, degradation):
    options = options_of(degradation=degradation, neighbours=2, noisy=0.5, batch_size=6)
    options = replace(options, scales=((4, 4), (2, 2), (3, 3)))
    one = training_batch(stock, 7, options)
    assert not torch.equal(training_batch(stock, 8, options).hr, one.hr)
    assert not torch.equal(training_batch(stock, 7, replace(options, seed=1)).hr, one.hr)
    assert same(training_batch(stock, 7, options), one)
    for rank in range(3):  # processes together see what one sees
        share = training_batch(stock, 7, replace(options, rank=rank, world=3))
        assert same(share, one, slice(rank, None, 3))


def test_all_scales_are_drawn_one_that_is_named_twice_twice_as_often(stock):
    options = options_of(scales=((4, 4), (2, 2), (2, 2)))
    scales = [batches.scale_of(i, options) for i in range(600)]
    assert np.mean([s == (2, 2) for s in scales]) == pytest.approx(2 / 3, abs=0.06)
    for i in range(4):
        batch = training_batch(stock, i, options)
        assert batch.scale == scales[i] and batch.hr.shape[-1] == 6 * scales[i][1]


def test_an_epoch_visits_every_slice_once(stock_of):
    grey = (np.arange(50, 62, dtype=np.uint8)[:, None, None]).repeat(32, 1).repeat(32, 2)
    stock, orders = stock_of([grey]), set()
    for epoch in (0, 1):
        options = options_of(batch_size=12, patch=4, augment=False)
        seen = (training_batch(stock, epoch, options).hr[:, 0, 0, 0] * 255).round().int().tolist()
        assert sorted(seen) == [*range(50, 62)]
        orders.add(tuple(seen))
    assert len(orders) == 2
    three = stock_of([np.zeros((20, 24, 28), np.uint8)], (0, 1, 2))
    times = np.bincount(three.chosen((4, 4), np.arange(4 * 52), 0))  # three of four are axial
    assert (times[:52] == 1).all() and set(times[52:]) == {7, 8}
    assert (np.bincount(three.chosen((4, 1), np.arange(52), 0)) == 1).all()

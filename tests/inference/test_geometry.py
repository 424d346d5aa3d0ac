"""Enlarged scans, in the plane and through it: where voxels lie, and what they hold."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import EVERY_SCALE, checkpoint_of, random_network, save_weights
from made_files import HOSTILE, blob, centre_of_mass, corners, make_affine, save_volume
from scipy.ndimage import maximum_filter, minimum_filter

import predict
import scans
from inference import Upscaler, tiling
from inference.checkpoints import save_checkpoint
from inference.through_plane import resample

ARCH = {"name": "deep", "channels": 4, "blocks": 2, "half": 1, "neighbours": 2, "estimator": True}


@pytest.fixture(scope="module")
def up(bicubic):
    return Upscaler(bicubic, "cpu")


@pytest.fixture
def enlarged(tmp_path, up):
    """enlarged(data, affine, ...): a volume on disk, enlarged and written, as nibabel reads it."""

    def call(data, affine=(1, 1, 1), upscaler=up, **options):
        image = nib.load(save_volume(tmp_path / "a.nii.gz", data, affine))
        image.set_qform(image.affine, 1)  # a place told twice, as most files have it
        nib.save(image, tmp_path / "c.nii.gz")
        new = upscaler.scan(scans.read(tmp_path / "c.nii.gz", force=True), **options)
        result = nib.load(scans.write(new, tmp_path / "b"))
        result.get_fdata()  # is kept, whatever becomes of the file
        return result

    return call


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_nothing_moves_whatever_is_enlarged(enlarged, order):
    data = blob((14, 12, 11)).astype(np.float32)
    affine = make_affine(order, (-1, 1, -1), (0.9, 1.0, 3.1), (11, -7, 19))
    image = nib.Nifti1Image(data, affine)
    still = order.index(0)  # the axis of the file that runs along x: across sagittal slices
    for options, factors in (
        ({"scale": 2, "plane": "sagittal"}, [1 if i == still else 2 for i in range(3)]),
        ({"through_plane": 3}, (1, 1, 3)),
        ({"voxel_size": 0.8}, (16 / 14, 15 / 12, 43 / 11)),  # as near as whole voxels can be
    ):
        result = enlarged(data, affine, **options)
        assert result.shape == tuple(np.multiply(data.shape, factors).round())
        sizes = np.divide((0.9, 1.0, 3.1), factors)
        np.testing.assert_allclose(result.header.get_zooms(), sizes, rtol=1e-5)
        np.testing.assert_allclose(corners(result), corners(image), atol=1e-4)
        np.testing.assert_allclose(result.get_qform(), result.affine, atol=1e-4)
        shift = np.linalg.inv(affine[:3, :3]) @ (centre_of_mass(result) - centre_of_mass(image))
        assert np.abs(shift).max() < 0.05  # of a voxel


def test_slice_timing_goes_with_the_slices(tmp_path, up):
    """A header that gives times to slices that are no more would be wrong."""
    image = nib.Nifti1Image(blob((9, 8, 5)).astype(np.int16), np.diag((1, 1, 3, 1)))
    image.header.set_dim_info(slice=2)
    image.header["slice_end"], image.header["slice_code"] = 4, 1
    image.header["slice_duration"] = 0.1
    nib.save(image, tmp_path / "a.nii")
    for options, kept in (({"scale": 2}, True), ({"through_plane": 3}, False)):
        header = up.scan(scans.read(tmp_path / "a.nii"), **options).header
        for name in ("slice_end", "slice_code", "slice_duration"):
            assert bool(header[name]) == kept, name


def test_4d_is_done_volume_by_volume(enlarged):
    parts = (blob((10, 9, 4)), blob((10, 9, 4), 100), blob((10, 9, 4))[::-1])
    data = np.stack(parts, 3).astype(np.float32)
    for options in ({"scale": 2}, {"through_plane": 2}, {"voxel_size": 1.5}):
        result = enlarged(data, (2, 2, 4), **options)
        assert result.shape[3] == 3
        for t in range(3):
            alone = enlarged(data[..., t], (2, 2, 4), **options).get_fdata()
            np.testing.assert_allclose(result.get_fdata()[..., t], alone, atol=1e-3)


def test_results_stay_near_the_values_around_whatever_comes(enlarged, tmp_path):
    """Within the range of the 5x5 pixels around, widened by itself at both ends, of a network that
    makes up anything."""
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(random_network(ARCH), ARCH))
    wild = Upscaler(tmp_path / "a.pt", "cpu")
    for name, data in HOSTILE.items():
        for dtype in (np.float32, np.int16):
            if dtype == np.int16 and abs(data).max() > 32767:
                continue
            data = data.astype(dtype)
            result = enlarged(data, upscaler=wild, scale=4).get_fdata()
            most = maximum_filter(data.astype(float), (5, 5, 1), mode="nearest")
            least = minimum_filter(data.astype(float), (5, 5, 1), mode="nearest")
            slack = 1e-4 * abs(data).max() + (dtype == np.int16)
            room = most - least + slack
            least, most = ((x.repeat(4, 0).repeat(4, 1)) for x in (least - room, most + room))
            assert ((least <= result) & (result <= most)).all(), (name, dtype)
            assert result.min() >= min(0, data.min()) - slack, (name, dtype)


def test_another_grid_makes_no_values_of_its_own(tmp_path):
    """Cubic interpolation swings beyond the values at an edge."""
    data = np.zeros((9, 8, 7), np.float32)
    data[4:] = 100
    scan = scans.read(save_volume(tmp_path / "a.nii.gz", data, (2, 2, 2)))
    for shape in ((13, 12, 9), (5, 6, 7)):
        new = resample(scan, shape).stored
        assert new.shape == shape and new.min() == 0 and new.max() == 100


# --- through the slices ---------------------------------------------------------------------------


def test_both_views_count_half_in_any_orientation(enlarged, tmp_path):
    """Each view is a stack of slices with neighbours, so many of their pixels apart."""
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(random_network(ARCH, (3, 1)), ARCH))
    wild = Upscaler(tmp_path / "a.pt", "cpu")
    data = blob((18, 20, 7), 1).astype(np.float32)
    data += 0.2 * np.random.default_rng(0).random(data.shape, np.float32)
    data = np.minimum(data, scans.intensity.intensity_range(data)[1])  # nothing beyond white
    black, white = scans.intensity.intensity_range(data)
    result = enlarged(data, (1, 3, 6), wild, through_plane=3).get_fdata()
    views = []
    for across, along, distance in ((0, 1, 1 / 3), (1, 0, 3)):  # rows from the top
        slices = data.transpose(across, 2, along)[:, ::-1]
        sr = wild((slices - black) / (white - black), "3x1", distance)[:, ::-1]
        sr = sr * (white - black) + black
        views.append(sr.transpose(np.argsort((across, 2, along))))
    np.testing.assert_allclose(result, np.mean(views, axis=0), atol=1e-4)
    assert np.abs(views[0] - views[1]).max() > 0.1  # they do differ
    turned = make_affine((2, 0, 1), (1, 1, 1), (6, 1, 3))  # the same scan, other axes first
    other = enlarged(data.transpose(2, 0, 1), turned, wild, through_plane=3).get_fdata()
    np.testing.assert_allclose(other.transpose(1, 2, 0), result, atol=1e-4)


def test_thick_slices_are_given_back_where_their_profile_is_known(enlarged, bicubic):
    data = np.random.default_rng(1).integers(100, 900, (9, 8, 6)).astype(np.int16)

    def error(degradation):
        result = enlarged(data, (1, 1, 3), Upscaler(bicubic, "cpu", degradation=degradation))
        off = np.abs(result.get_fdata().reshape(9, 8, 6, 3).mean(3) - data)
        return off[data < 880].max()  # of what is whiter than white nothing is known

    assert error("slab-1") < 8 < error(None)  # 8 of 900: what 8 bits would round
    assert error("rician-0.1") < 8  # slices that touch, as most do


# --- expected errors ------------------------------------------------------------------------------


def test_expected_errors_are_in_the_units_of_the_scan(tmp_path):
    """Here doubled by the calibration. In the plane and then through it, they add up."""
    weights = save_weights(tmp_path / "n.pt", *EVERY_SCALE, channels=4, blocks=1, error_head=True)
    up = Upscaler(weights, "cpu", error_map=True)
    data = blob((24, 26, 12), 900).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag((2, 2, 3, 1)))
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    scan = scans.read(tmp_path / "a.nii.gz")
    black, white = scans.intensity.intensity_range(scan.intensities())

    def of_network(slices, scale):
        lr = torch.from_numpy(((slices - black) / (white - black)).clip(0, 1).astype(np.float32))
        found = tiling.upscale(up.network, lr[:, None], scale, error_map=True)[:, 1].numpy()
        return 2 * found * (white - black)

    new, errors = up.scan(scan, scale=2)
    first = of_network(scan.intensities().transpose(2, 1, 0)[:, ::-1], (2, 2))
    np.testing.assert_allclose(errors.stored, first[:, ::-1].transpose(2, 1, 0), rtol=3e-3)
    written = nib.load(scans.write(errors, tmp_path / "e"))
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.affine, nib.load(scans.write(new, tmp_path / "n")).affine)
    plane_errors = errors.stored
    new, errors = up.scan(scan)  # x2 in the plane, 3 slices of each
    assert new.stored.shape == errors.stored.shape == (48, 52, 36)
    assert (errors.stored > 0.9 * plane_errors.repeat(3, 2)).mean() > 0.9
    assert errors.stored.mean() > 1.5 * plane_errors.mean()


def test_where_nothing_is_added_it_is_said_that_there_is_no_error_map(tmp_path, cli):
    weights = save_weights(tmp_path / "n.pt", *EVERY_SCALE, error_head=True)
    path = save_volume(tmp_path / "a.nii.gz", blob((8, 8, 8)), (2, 2, 2))
    status, _, errors = cli(
        predict.main, path, "--voxel-size", 4, "--weights", weights, "--error-map", "--no-figure"
    )
    assert status == 0 and "no error map: the network had nothing to add" in errors

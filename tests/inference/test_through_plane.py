"""predict.py through thick slices: which factor, where voxels lie, what they hold."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import pixels, save_weights
from made_files import blob, corners, make_affine
from made_files import save_volume as save

import modules
import predict
from inference import images, through_plane, tiling, upscaler
from inference.checkpoints import load_checkpoint
from utils import DataError, UsageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run predict.py with weights for 2, 3 and 4 slices of each thick one, and for x2 and x4."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for n in (2, 3, 4):
        save_weights(weights / f"through-x{n}.pt", (n, 1))
    for n in (2, 4):
        save_weights(weights / f"x{n}.pt", (n, n))
    monkeypatch.setattr(upscaler, "WEIGHTS", weights)

    def call(*arguments) -> int:
        figure = [] if "--figure" in arguments else ["--no-figure"]
        return predict.main(["--device", "cpu", *figure, *map(str, arguments)])

    return call


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_edges_of_the_grid_stay_whichever_axis_is_thick(tmp_path, run, order):
    affine = make_affine(order, (-1, 1, -1), (0.9, 1.0, 3.1), (8, -13, 21))
    path = save(tmp_path / "a.nii.gz", blob((7, 9, 5)).astype(np.float32), affine)
    run("--through-plane", 3, path)
    result = nib.load(tmp_path / "a_through-x3.nii.gz")
    assert result.shape == (7, 9, 15)
    np.testing.assert_allclose(corners(result), corners(nib.load(path)), atol=1e-4)
    np.testing.assert_allclose(result.header.get_zooms(), (0.9, 1.0, 3.1 / 3), rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "wanted", "factor"),
    [
        ((1, 1, 4), 0, 4),
        ((1, 1, 3.5), 0, 3),  # 4 would make voxels finer than the pixels
        ((0.5, 0.9, 3), 0, 3),  # of pixels that are not square the larger size counts
        ((1, 1, 3.97), 0, 4),  # as good as 4
        ((0.5, 0.5, 6), 0, 4),  # 12 is not shipped
        ((1, 1, 4), 2, 2),
        ((1, 1, 4), 7, 4),
        ((4, 1, 1), 0, 4),
        ((1, 2.1, 1), 0, 2),
    ],
)
def test_the_factor_makes_voxels_nearly_cubes(tmp_path, run, sizes, wanted, factor, capsys):
    path = save(tmp_path / "a.nii.gz", blob((6, 6, 6)).astype(np.float32), sizes)
    run(path, "--through-plane", wanted)
    thick = int(np.argmax(sizes))
    shape = tuple(6 * factor if axis == thick else 6 for axis in range(3))
    assert nib.load(tmp_path / f"a_through-x{factor}.nii.gz").shape == shape
    out = capsys.readouterr().out
    if factor != wanted:
        assert f"by {factor}" in out
    assert ("no weights for 7" in out) == (wanted == 7)


def test_the_result_is_the_mean_of_both_views_in_any_orientation(tmp_path, run):
    weights = save_weights(tmp_path / "n.pt", (3, 1), tail=0.05, channels=4, blocks=2)
    network = modules.load_network(load_checkpoint(weights))
    rng = np.random.default_rng(0)
    data = blob((8, 10, 5), 1).astype(np.float32) + rng.random((8, 10, 5), np.float32)
    path = save(tmp_path / "a.nii.gz", data, (1, 1, 3))
    run("--checkpoint", tmp_path / "n.pt", path, "--through-plane")
    result = nib.load(tmp_path / "a_through-x3.nii.gz").get_fdata()
    low, high = images.volumes.intensity_range(data)
    views = []
    for across, along in ((0, 1), (1, 0)):
        slices = np.ascontiguousarray(data.transpose(across, 2, along)[:, ::-1])
        sr = tiling.upscale(network, torch.from_numpy((slices - low) / (high - low))[:, None])
        sr = sr[:, 0].numpy()[:, ::-1].clip(0) * (high - low) + low
        views.append(sr.transpose(np.argsort((across, 2, along))))
    np.testing.assert_allclose(result, np.mean(views, axis=0), atol=1e-4)
    assert np.abs(views[0] - views[1]).max() > 0.01  # they do differ
    # The same scan, stored with other axes first.
    turned = make_affine((2, 0, 1), (1, 1, 1), (3, 1, 1))
    path = save(tmp_path / "b.nii.gz", data.transpose(2, 0, 1), turned)
    run("--checkpoint", tmp_path / "n.pt", path, "--through-plane")
    other = nib.load(tmp_path / "b_through-x3.nii.gz").get_fdata()
    np.testing.assert_allclose(other.transpose(1, 2, 0), result, atol=1e-4)


def test_thick_slices_are_given_back_where_their_profile_is_known(tmp_path, run):
    data = np.random.default_rng(1).integers(100, 900, (9, 8, 6)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", data, (1, 1, 3))

    def error(*options):
        run(path, "--through-plane", *options)
        result = nib.load(tmp_path / "a_through-x3.nii.gz").get_fdata()
        return np.abs(result.reshape(9, 8, 6, 3).mean(3) - data).max()

    assert error("--degradation", "slab-1") < 8 < error()  # 8 of 900: what 8 bits would round
    error("--noise", "0.02")
    sidecar = json.loads((tmp_path / "a_through-x3.json").read_text())
    assert sidecar["Degradation"] == "slab-1+rician-2"  # slices that touch, as most do


def test_what_it_is_not_for_is_said(tmp_path, run, capsys):
    from PIL import Image

    Image.new("L", (8, 8), 9).save(tmp_path / "p.png")
    fine = save(tmp_path / "fine.nii.gz", blob((6, 6, 6)).astype(np.float32))
    with pytest.raises(DataError, match="picture"):
        run(tmp_path / "p.png", "--through-plane")
    with pytest.raises(DataError, match="1 mm apart"):
        run(fine, "--through-plane")
    assert run(fine, tmp_path / "p.png", "--through-plane", "--output", tmp_path / "o") == 1
    assert "fine.nii.gz: slices 1 mm" in capsys.readouterr().err
    with pytest.raises(UsageError, match="scores"):
        run(fine, "--through-plane", "--simulate")
    with pytest.raises(UsageError, match="leave out --through-plane"):
        run(fine, "--through-plane", "--checkpoint", tmp_path / "weights/x4.pt")
    with pytest.raises(UsageError, match="add --through-plane"):
        run(fine, "--checkpoint", tmp_path / "weights/through-x2.pt")


def test_hints_for_thick_and_for_fine_scans(tmp_path, run, capsys):
    for sizes, hint, finer in (
        ((3, 3, 3), False, False),
        ((3, 3, 8), True, False),
        ((1, 1, 1), False, True),
        ((0.9, 0.9, 4), True, True),
    ):
        run(save(tmp_path / "a.nii.gz", blob((6, 6, 6)).astype(np.int16), sizes))
        printed = capsys.readouterr()
        assert ("--through-plane" in printed.out) == hint
        recorded = json.loads((tmp_path / "a_x4.json").read_text())["Warnings"]
        for words in ("finer than anything measured", "smaller --scale"):
            assert (words in printed.err) == (words in " ".join(recorded)) == finer
    for size, finer in ((1, True), (1.5, False)):  # 0.75 mm was measured with x2, 0.5 mm was not
        run(save(tmp_path / "b.nii.gz", blob((6, 6, 6)).astype(np.int16), [size] * 3), "--scale", 2)
        assert ("finer than anything measured" in capsys.readouterr().err) == finer
    run(save(tmp_path / "a.nii.gz", blob((16, 16, 6)).astype(np.int16), (1, 1, 1)), "--simulate")
    assert "finer" not in capsys.readouterr().err  # of 4 mm it makes the 1 mm that are known
    sidecar = json.loads((tmp_path / "a_simulated_x4.json").read_text())
    assert sidecar["VoxelSizeBefore"] == [4, 4, 1] and sidecar["VoxelSizeAfter"] == [1, 1, 1]


def test_a_folder_of_thick_scans_is_resumed_whatever_their_factors(tmp_path, run, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for n in (2, 4):
        save(data / f"s{n}.nii.gz", blob((6, 6, 5)).astype(np.int16), (1, 1, n))
    assert run("--through-plane", data) == 0  # a path, not the number of slices
    files = {p.name for p in data.iterdir()}
    assert files >= {"s2_through-x2.nii.gz", "s4_through-x4.nii.gz"}
    capsys.readouterr()
    run(data, "--through-plane")
    assert "2 finished before" in capsys.readouterr().out
    assert {p.name for p in data.iterdir()} == files
    sidecar = json.loads((data / "s4_through-x4.json").read_text())
    assert sidecar["VoxelSizeBefore"] == [1, 1, 4] and sidecar["VoxelSizeAfter"] == [1, 1, 1]
    assert sidecar["Plane"] == "sagittal and coronal" and sidecar["Scale"] == [4, 1]


def test_the_figure_shows_both_views(tmp_path, run):
    path = save(tmp_path / "a.nii.gz", blob((20, 24, 6), 200).astype(np.uint8), (1, 1, 4))
    run(path, "--through-plane", "--figure")
    assert pixels(tmp_path / "a_through-x4_figure.png")[..., :3].std() > 30


def load(path):
    return modules.load_network(load_checkpoint(path))


def test_expected_errors_are_in_the_units_of_the_scan(tmp_path, run):
    network = load(save_weights(tmp_path / "n.pt", (3, 1), channels=4, blocks=1, spread=True))
    data = blob((24, 26, 25), 900).astype(np.int16)
    affine = make_affine((1, 0, 2), (1, -1, 1), (1, 1, 3))
    image = nib.Nifti1Image(data, affine)
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    run(
        "--checkpoint", tmp_path / "n.pt", tmp_path / "a.nii.gz", "--through-plane", "--uncertainty"
    )
    result, errors = (nib.load(tmp_path / f"a_through-x3{end}.nii.gz") for end in ("", "_error"))
    assert errors.get_data_dtype() == np.float32 and errors.shape == result.shape
    np.testing.assert_allclose(errors.affine, result.affine)
    values = nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32)
    low, high = images.volumes.intensity_range(values)
    volume = images.volumes.read_volume(tmp_path / "a.nii.gz")
    total = np.zeros(result.shape, np.float32)
    for plane in ("sagittal", "coronal"):
        slices = np.ascontiguousarray(volume.slices((values - low) / (high - low), plane))
        both = tiling.upscale(network, torch.from_numpy(slices)[:, None], spread=True)
        part = volume.slices(total, plane)  # the mean of two, doubled by the calibration
        part += both[:, 1].numpy() * (high - low)
    np.testing.assert_allclose(errors.get_fdata(), total, rtol=2e-3)


def test_evaluation_and_prediction_are_one_pass(tmp_path, run):
    network = load(save_weights(tmp_path / "n.pt", (2, 1), 0.05, channels=4, blocks=1, told=True))
    data = blob((20, 22, 15), 1).astype(np.float32)
    data[4:9, 5:9, 2:6] += np.random.default_rng(0).random((5, 4, 4), np.float32)
    low, high = images.volumes.intensity_range(data)
    path = save(tmp_path / "a.nii.gz", data, (1, 1, 2))
    run("--checkpoint", tmp_path / "n.pt", path, "--through-plane")
    result = nib.load(tmp_path / "a_through-x2.nii.gz").get_fdata()
    scored = through_plane.through_plane(network, (data - low) / (high - low)) * (high - low) + low
    np.testing.assert_allclose(result, scored, atol=1e-4)

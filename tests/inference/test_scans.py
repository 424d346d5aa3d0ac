"""predict.py on scans: where voxels lie, what they hold, DICOM, cohorts."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import pixels, save_weights
from made_files import (
    ALONG,
    DOWN,
    HOSTILE,
    NORMAL,
    ORIGIN,
    blob,
    centre_of_mass,
    corners,
    dicom,
    make_affine,
    save_series,
    save_volume,
)
from scipy.ndimage import maximum_filter, minimum_filter

import modules
import predict
from degradation import degrade
from evaluation import metrics
from inference.checkpoints import load_checkpoint, save_checkpoint
from scans import volumes
from utils import UsageError


@pytest.fixture
def run(bicubic):
    """Run predict.py in this process, without figures unless asked."""

    def call(*arguments) -> int:
        arguments = [str(a) for a in arguments]
        figure = [] if "--figure" in arguments else ["--no-figure"]
        always = ["--checkpoint", str(bicubic), "--device", "cpu", *figure]
        return predict.main([*always, *arguments])

    return call


@pytest.fixture
def enlarged(tmp_path, run):
    """enlarged(data, affine, options ...): the result for a volume."""

    def call(data, affine=(1, 1, 1), *options):
        run(save_volume(tmp_path / "a.nii.gz", data, affine), "--overwrite", *options)
        return nib.load(tmp_path / "a_x4.nii.gz")

    return call


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
def test_nothing_moves_in_any_plane(enlarged, order):
    """That the edges of the grid stay is shown for each writer in test_formats.py."""
    data = blob((14, 12, 11)).astype(np.float32)
    affine = make_affine(order, (-1, 1, -1), (0.9, 0.8, 1.1), (11, -7, 19))
    image = nib.Nifti1Image(data, affine)
    for plane in volumes.PLANES:
        result = enlarged(data, affine, "--axis", plane)
        # The axis along x is not touched in the sagittal plane, the one along y in the coronal.
        still = order.index(volumes.PLANES.index(plane))
        assert result.shape == tuple(n if i == still else 4 * n for i, n in enumerate(data.shape))
        np.testing.assert_allclose(corners(result), corners(image), atol=1e-4)
        shift = np.linalg.inv(affine[:3, :3]) @ (centre_of_mass(result) - centre_of_mass(image))
        assert np.abs(shift).max() < 0.05  # of a voxel


def test_resampled_back_it_is_the_scan_that_was_given(enlarged, brain):
    from nibabel.processing import resample_from_to

    data = brain[70:76, 60:130, 50:110].transpose(2, 1, 0).astype(np.float32)
    affine = make_affine((0, 1, 2), (-1, 1, 1), (1, 1, 1.2), (3, 4, 5))
    given, result = nib.Nifti1Image(data, affine), enlarged(data, affine)

    def error(image):
        back = resample_from_to(image, given, order=1).get_fdata()
        return np.sqrt(np.mean((back - data)[2:-2, 2:-2, 1:-1] ** 2)) / data.max()

    unshifted = result.affine.copy()
    unshifted[:3, 3] = affine[:3, 3]
    wrong = nib.Nifti1Image(result.get_fdata(), unshifted)
    assert error(result) < 0.003  # bicubic's own smoothing
    assert error(wrong) > 4 * error(result)


@pytest.mark.parametrize(
    ("order", "sizes", "shape", "plane"),
    [
        ((0, 1, 2), (1, 1, 1), (8, 9, 10), "axial"),
        ((1, 2, 0), (1, 1, 1.2), (8, 9, 10), "axial"),  # nearly isotropic
        ((1, 2, 0), (0.9, 0.9, 5), (8, 9, 10), "sagittal"),
        ((0, 2, 1), (0.5, 0.5, 4), (8, 9, 10), "coronal"),
        ((0, 1, 2), (1, 3, 3), (8, 9, 10), "axial"),  # no two finest
        ((0, 2, 1), (1, 1, 1), (8, 9, 1), "coronal"),  # a single slice
    ],
)
def test_the_plane_of_the_finest_voxels_is_upscaled(enlarged, order, sizes, shape, plane, capsys):
    result = enlarged(blob(shape).astype(np.float32), make_affine(order, (1, 1, 1), sizes))
    still = order.index(volumes.PLANES.index(plane))
    assert result.shape == tuple(n if i == still else 4 * n for i, n in enumerate(shape))
    remark = plane in capsys.readouterr().out  # it says so
    assert remark == (plane != "axial" and 1 not in shape)


# --- intensities ----------------------------------------------------------------------------------


def test_bright_and_negative_values_are_not_clipped(enlarged):
    data = blob((16, 16, 8), 100).astype(np.float32) - 30
    data[8, 8] = 2500  # a vessel far above the 99.8th percentile
    data[3, 3] = -400
    result = enlarged(data).get_fdata()
    assert result.max() > 2000 and result.min() < -300


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_sharp_edges_leave_neither_the_type_nor_the_range(enlarged, dtype):
    data = np.zeros((16, 16, 4), dtype)
    data[4:12, 4:12] = 255  # bicubic undershoots and overshoots beside such an edge
    result = enlarged(data)
    assert result.get_data_dtype() == dtype and result.get_fdata().min() == 0
    assert (result.get_fdata().max() == 255) == (dtype == np.uint8)


def test_slices_are_scaled_by_the_volume_not_one_by_one(enlarged):
    data = np.ones((12, 12, 5), np.float32) * np.array([10, 20, 40, 80, 160], np.float32)
    result = enlarged(data).get_fdata()
    np.testing.assert_allclose(result, np.broadcast_to(data[0, 0], result.shape), rtol=1e-4)


def test_4d_is_done_volume_by_volume(enlarged, tmp_path, run, capsys):
    data = np.stack([blob((10, 9, 4)), blob((10, 9, 4), 100), blob((10, 9, 4))[::-1]], 3)
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([2, 2, 3, 1]))
    image.header.set_zooms((2, 2, 3, 1.7))
    nib.save(image, tmp_path / "b.nii.gz")
    run(tmp_path / "b.nii.gz")
    assert "b.nii.gz: holds 3 volumes; each is upscaled" in capsys.readouterr().out
    result = nib.load(tmp_path / "b_x4.nii.gz")
    assert result.shape == (40, 36, 4, 3)
    np.testing.assert_allclose(result.header.get_zooms(), (0.5, 0.5, 3, 1.7))
    for t in range(3):
        alone = enlarged(data[..., t].astype(np.float32), image.affine).get_fdata()
        np.testing.assert_allclose(result.get_fdata()[..., t], alone, atol=1e-3)


def test_the_noise_of_a_simulated_slice_is_its_own(tmp_path, run):
    nib.save(nib.Nifti1Image(blob((24, 20, 5)).astype(np.float32), np.eye(4)), tmp_path / "a.nii")
    found = []
    for size in (1, 3):
        options = ("--simulate", "--noise", "0.03", "--batch-size", size, "--no-figure")
        run(tmp_path / "a.nii", *options)
        found.append((tmp_path / "a_simulated_x4.csv").read_text())
    assert found[0] == found[1]


def test_results_stay_near_the_values_around_whatever_comes(enlarged, tiny):
    for name, data in HOSTILE.items():
        for dtype in (np.float32, np.int16):
            if dtype == np.int16 and abs(data).max() > 32767:
                continue
            data = data.astype(dtype)
            result = enlarged(data, (1, 1, 1), "--checkpoint", tiny).get_fdata()
            # Within the range of the 5x5 pixels around, widened by itself at both ends.
            size, mode = (5, 5, 1), "nearest"
            most = maximum_filter(data.astype(float), size, mode=mode)
            least = minimum_filter(data.astype(float), size, mode=mode)
            room = most - least + 1e-4 * abs(data).max() + (dtype == np.int16)
            least, most = ((x.repeat(4, 0).repeat(4, 1)) for x in (least - room, most + room))
            assert ((least <= result) & (result <= most)).all(), (name, dtype)
            slack = 1e-4 * abs(data).max()
            assert result.min() >= min(0, data.min()) - slack, (name, dtype)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
@pytest.mark.parametrize("tail", [1.25, -1.25])  # results too bright, or too dark
def test_consistent_voxels_above_the_white_of_a_scan_count_as_measured(
    tmp_path, enlarged, brain, kind, tail
):
    """Not as cut off there: only 0 and the ends of an integer type can hide a larger value."""
    hr = torch.from_numpy(brain[70:72, 60:140, 40:120].astype(np.float32))[:, None]
    hr[..., 30:46, 30:46] *= 3  # so bright that some lie above the 99.8th percentile
    lr = degrade(hr, "bicubic", rounded=False).clamp(min=0)[:, 0].numpy()
    data = lr.transpose(2, 1, 0).astype(kind)
    path = save_weights(tmp_path / "off.pt", tail=1)
    checkpoint = load_checkpoint(path)
    checkpoint["model"]["tail.weight"] *= tail
    save_checkpoint(path, checkpoint)
    told = ("--checkpoint", path, "--degradation", "bicubic", "--consistent")
    result = enlarged(data, (1, 1, 1), *told).get_fdata(dtype=np.float32)
    slices = torch.from_numpy(result.transpose(2, 1, 0).copy())[:, None]
    again = degrade(slices, "bicubic", rounded=False)[:, 0].numpy().transpose(2, 1, 0)
    low, high = volumes.intensity_range(data.astype(np.float32))
    off, bright = np.abs(again - data) / (high - low), data > high
    assert bright.any()
    assert off[bright].max() < 0.006


# --- DICOM ----------------------------------------------------------------------------------------


def test_a_dicom_folder_comes_back_as_nifti_beside_it(tmp_path, run):
    data = save_series(tmp_path / "study" / "mprage", RescaleSlope=2.0, RescaleIntercept=-30.0)
    assert run("--image", tmp_path / "study" / "mprage", "--figure") == 0
    found = {p.name for p in (tmp_path / "study").iterdir()}
    assert found == {"mprage", "mprage_x4.json", "mprage_x4.nii.gz", "mprage_x4_figure.png"}
    result = nib.load(tmp_path / "study" / "mprage_x4.nii.gz")
    assert result.shape == (32, 40, 6) and result.get_data_dtype() == np.uint16
    assert (result.dataobj.slope, result.dataobj.inter) == (2, -30)
    np.testing.assert_allclose(result.header.get_zooms(), (0.75 / 4, 1.5 / 4, 2), rtol=1e-5)
    canonical = nib.as_closest_canonical(result).get_fdata()  # DICOM runs to the left and back
    small = canonical.reshape(8, 4, 10, 4, 6).mean((1, 3))[::-1, ::-1]
    wanted = data.transpose(2, 1, 0) * 2.0 - 30
    assert np.abs(small - wanted)[1:-1, 1:-1].max() < 0.1 * np.ptp(wanted)
    assert b"t1 mprage" in bytes(result.header["descrip"])


def test_several_series_are_listed_and_chosen(tmp_path, run):
    study = tmp_path / "study"
    save_series(study)
    about = dict(series="1.2.9", SeriesNumber=11, SeriesDescription="t2 tse")
    for i in range(4):
        flat = np.full((12, 12), 40 * i + 40, np.uint16)
        ds = dicom(flat, ORIGIN + 3 * i * NORMAL, [*ALONG, *DOWN], **about)
        ds.save_as(study / f"x{i}", enforce_file_format=True)
    with pytest.raises(UsageError, match=r"--series: 3 \(MR t1 mprage, 6 file.*; 11 \(MR t2 tse"):
        run("--image", study)
    with pytest.raises(UsageError, match="t2 tse"):
        run("--image", study, "--series", "4")
    run("--image", study, "--series", "11", "--output", tmp_path / "o")
    assert nib.load(tmp_path / "o/study_11_x4.nii.gz").shape == (48, 48, 4)
    # In a cohort all of them are done.
    assert run("--image", tmp_path, "--output", tmp_path / "p") == 0
    found = {p.name for p in (tmp_path / "p").iterdir()}
    assert found >= {"study_3_x4.nii.gz", "study_11_x4.nii.gz"}
    for number, about in (("3", b"MR t1 mprage"), ("11", b"MR t2 tse")):
        header = nib.load(tmp_path / f"p/study_{number}_x4.nii.gz").header
        assert bytes(header["descrip"]).rstrip(b"\0") == about


# --- figures, simulation, cohorts -----------------------------------------------------------------


def test_the_figure_has_the_aspect_of_the_voxels(tmp_path, enlarged, brain):
    data = brain[60:90:6, 60:124, 50:114].transpose(2, 1, 0)
    heights = []
    for sizes in ((1, 1, 1), (1, 2, 2)):
        enlarged(data, sizes, "--figure")
        figure = pixels(tmp_path / "a_x4_figure.png")
        heights.append(len(figure))
        assert figure[..., :3].std() > 30
    assert heights[1] > 1.3 * heights[0]


def test_simulation_scores_a_volume(tmp_path, run, brain, capsys):
    data = brain[70:74, 60:121, 50:110].transpose(2, 1, 0)  # 60 x 61 x 4
    save_volume(tmp_path / "a.nii.gz", data)
    run("--image", tmp_path / "a.nii.gz", "--simulate", "--degradation", "kspace", "--figure")
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"a_simulated_x4.csv", "a_simulated_x4_figure.png"}
    lines = (tmp_path / "a_simulated_x4.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("slice,bicubic_mse,bicubic_psnr")
    low, high = volumes.intensity_range(data.astype(np.float32))
    hr = np.clip((data[..., 2].T[::-1] - low) / (high - low), 0, 1).astype(np.float32)
    hr = torch.from_numpy(hr.copy())[None, None, :60, :60]
    lr = degrade(hr, "kspace")
    wanted = metrics.score(modules.Interpolation()(lr)[0, 0], hr[0, 0])
    assert float(lines[3].split(",")[2]) == pytest.approx(wanted["psnr"], abs=1e-3)
    out = capsys.readouterr().out
    assert "whole volume" in out and "kspace" in out


def test_a_cohort_is_mirrored_resumed_and_counted(tmp_path, run, capsys):
    data = tmp_path / "bids"
    for n in (1, 2):
        path = data / f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz"
        save_volume(path, blob((8, 8, 3)).astype(np.float32))
        path.with_name(f"sub-0{n}_T1w.json").write_text("{}")
    (data / "participants.tsv").write_text("participant_id\tgroup\n")
    (data / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"\x1f\x8bnot really")
    save_series(data / "sub-03" / "dicom")
    assert run("--image", data, "--output", tmp_path / "o") == 1
    found = {str(p.relative_to(tmp_path / "o")) for p in (tmp_path / "o").rglob("*.*")}
    names = ("sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w", "sub-03/dicom")
    assert found == {f"{name}_x4{end}" for name in names for end in (".nii.gz", ".json")}
    said = capsys.readouterr()
    assert "sub-02_T2w.nii.gz" in said.err and "3 upscaled" in said.out
    assert "1 failed" in said.out
    before = (tmp_path / "o/sub-03/dicom_x4.nii.gz").stat().st_mtime_ns
    run("--image", data, "--output", tmp_path / "o")
    assert "3 finished before" in capsys.readouterr().out
    assert (tmp_path / "o/sub-03/dicom_x4.nii.gz").stat().st_mtime_ns == before


def test_a_bids_data_set_gives_a_bids_derivative(tmp_path, run, capsys):
    data = tmp_path / "study"
    for name in (
        "sub-01/anat/sub-01_run-1_T1w",
        "sub-01/func/sub-01_task-rest_bold",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-preproc_T2w",
        "sub-02/ses-a/anat/sub-02_ses-a_label-GM_mask",
        "sourcedata/old",
        "derivatives/other/sub-01_T1w",
    ):
        save_volume(data / f"{name}.nii.gz", blob((8, 8, 3)).astype(np.int16))
    about = {"Name": "Study", "BIDSVersion": "1.8.0", "License": "CC0", "DatasetDOI": "doi:1/2"}
    (data / "dataset_description.json").write_text(json.dumps(about))
    assert run(data) == 0
    home = data / "derivatives" / "superres"
    found = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    results = (
        "sub-01/anat/sub-01_run-1_res-x4_desc-superres_T1w",
        "sub-02/ses-a/anat/sub-02_ses-a_res-x4_desc-preprocSuperres_T2w",
    )
    files = {result + end for result in results for end in (".nii.gz", ".json")}
    assert found == files | {"dataset_description.json", ".bidsignore", "README"}
    about = json.loads((home / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["License"] == "CC0"
    assert about["GeneratedBy"][0]["Version"] and about["SourceDatasets"][0]["DOI"] == "doi:1/2"
    sidecar = json.loads((home / f"{results[0]}.json").read_text())
    assert sidecar["Sources"] == ["bids:source:sub-01/anat/sub-01_run-1_T1w.nii.gz"]
    assert "BOLD" in capsys.readouterr().out
    run(data)
    assert "2 finished before" in capsys.readouterr().out

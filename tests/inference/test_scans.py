"""predict.py on scans: DICOM, records, figures, simulation."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import pixels
from made_files import ALONG, DOWN, NORMAL, ORIGIN, blob, dicom, save_series, save_volume

import modules
import predict
from degradation import degrade
from evaluation import metrics
from evaluation.before_after import views_of
from inference import Upscaler
from inference.plan import plan_of
from inference.sidecar import is_stripped
from scans import Scan, read
from scans.intensity import intensity_range
from utils import UsageError


@pytest.fixture
def run(bicubic):
    """Run predict.py in this process, without figures unless asked."""

    def call(*arguments) -> int:
        arguments = [str(a) for a in arguments]
        figure = [] if "--figure" in arguments else ["--no-figure"]
        return predict.main(["--weights", str(bicubic), "--device", "cpu", *figure, *arguments])

    return call


def test_a_dicom_folder_comes_back_as_nifti_beside_it(tmp_path, run):
    study = tmp_path / "study"
    data = save_series(study / "mprage", RescaleSlope=2.0, RescaleIntercept=-30.0)
    assert run(study / "mprage", "--scale", 4, "--figure") == 0
    found = {p.name for p in study.iterdir()}
    assert found == {"mprage", "mprage_x4.json", "mprage_x4.nii.gz", "mprage_x4_figure.png"}
    result = nib.load(study / "mprage_x4.nii.gz")
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
        run(study)
    with pytest.raises(UsageError, match="t2 tse"):
        run(study, "--series", "4")
    run(study, "--scale", 4, "--series", "11", "--output", tmp_path / "o")
    assert nib.load(tmp_path / "o/study_11_x4.nii.gz").shape == (48, 48, 4)
    # In a cohort all of them are done.
    assert run(tmp_path, "--scale", 4, "--output", tmp_path / "p") == 0
    found = {p.name for p in (tmp_path / "p").iterdir()}
    assert found >= {"study_3_x4.nii.gz", "study_11_x4.nii.gz"}
    for number, about in (("3", b"MR t1 mprage"), ("11", b"MR t2 tse")):
        header = nib.load(tmp_path / f"p/study_{number}_x4.nii.gz").header
        assert bytes(header["descrip"]).rstrip(b"\0") == about


# --- what is said and recorded --------------------------------------------------------------------


def test_the_record_of_a_scan_says_what_was_done_and_why(tmp_path, run, capsys):
    save_volume(
        tmp_path / "a.nii.gz", np.stack([blob((26, 25, 6))] * 3, 3).astype(np.int16), (2, 2, 3)
    )
    run(tmp_path / "a.nii.gz")
    said = capsys.readouterr().out
    about = json.loads((tmp_path / "a_x2_through-x3.json").read_text())
    assert about["VoxelSizeBefore"] == [2, 2, 3] and about["VoxelSizeAfter"] == [1, 1, 1]
    plan = "slices 3 mm apart, pixels of 2 mm: pixels become 1 mm; 3 slices of each, 1 mm apart"
    assert about["Plan"] == plan and plan in said and "holds 3 volumes; each is" in said
    assert about["Results"] == ["a_x2_through-x3.nii.gz"] and not about["Warnings"]
    assert about["Sources"] == ["a.nii.gz"] and about["Resolution"].startswith("voxels of 1 x 1")
    fine = save_volume(tmp_path / "b.nii.gz", blob((26, 25, 6)).astype(np.int16), (0.8, 0.8, 3))
    run(fine, "--scale", 2)
    warnings = json.loads((tmp_path / "b_x2.json").read_text())["Warnings"]
    assert warnings == [f"{fine}: finer than anything measured, a guess"]


@pytest.mark.parametrize(
    ("filled", "size", "wanted"),
    [
        (1900, 20, True),  # ml of 8 litres: a brain
        (2200, 20, False),  # a head
        (700, 11, False),  # most of it is not empty
        (100, 9, None),  # 9 cm: of a part nobody can tell
    ],
)
def test_a_scan_is_stripped_where_there_is_no_more_than_a_brain(filled, size, wanted):
    voxels = np.zeros(size**3, np.int16)
    voxels[:filled] = 100
    scan = Scan(Path("a.nii"), voxels.reshape((size,) * 3), affine=np.diag((10, 10, 10, 1)))
    assert is_stripped(scan) is wanted


# --- figures and simulation -----------------------------------------------------------------------


def test_the_figure_has_the_aspect_of_the_voxels(tmp_path, run, brain):
    heights = []
    for sizes in ((2, 2, 2), (2, 4, 4)):
        data = brain[60:90:6, 60:124, 50:114].transpose(2, 1, 0)
        run(save_volume(tmp_path / "a.nii.gz", data, sizes), "--scale", 2, "--figure")
        figure = pixels(tmp_path / "a_x2_figure.png")
        heights.append(len(figure))
        assert figure[..., :3].std() > 30
        wide, _, low = sizes
        scan = read(tmp_path / "a.nii.gz")
        assert scan.aspect(("coronal", False)) == low / wide  # height by width of its pixels
        assert scan.aspect(("coronal", True)) == wide / low
    assert heights[1] > 1.3 * heights[0]


def test_a_figure_shows_one_place_before_and_after_and_says_which(bicubic):
    """Here the value of a voxel tells how far to the right or how high it is."""
    up = Upscaler(bicubic, "cpu")
    for axis, options in ((2, {"scale": 2}), (0, {"through_plane": 3}), (0, {})):
        data = 100 + 10 * np.indices((12, 10, 12))[axis].astype(np.int16)
        header = nib.Nifti1Header()
        header.set_data_shape(data.shape)
        affine = np.diag((2.0, 2, 6, 1))
        header.set_sform(affine, 1)
        scan = Scan(Path("a.nii"), data, affine=affine, header=header)
        black, white = scan.black_and_white(scan.intensities())
        plan = plan_of(scan, up.scales, **options)
        views = views_of(scan, up.follow(plan, scan), plan, None)
        plane = "axial" if axis == 2 else "sagittal"
        views = [view for view in views if view.name.startswith(plane)]
        assert len(views) == (3 if axis == 2 else 1)
        for view in views:
            number = int(view.name.split()[1])
            before, after = (float(x.mean()) * (white - black) + black for x in
                             (view.before, view.after))  # fmt: skip
            assert abs(before - (100 + 10 * number)) < 0.1 and abs(after - before) < 4


def test_simulation_scores_a_volume(tmp_path, run, brain, capsys):
    data = brain[70:74, 60:121, 50:110].transpose(2, 1, 0)  # 60 x 61 x 4
    save_volume(tmp_path / "a.nii.gz", data)
    run(tmp_path / "a.nii.gz", "--simulate", "--degradation", "kspace", "--figure")
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"a_simulated_x4.csv", "a_simulated_x4_figure.png"}
    lines = (tmp_path / "a_simulated_x4.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("slice,bicubic_mse,bicubic_psnr")
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2", "3"]
    low, high = intensity_range(data.astype(np.float32))
    hr = np.clip((data[..., 2].T[::-1] - low) / (high - low), 0, 1).astype(np.float32)
    hr = torch.from_numpy(hr.copy())[None, None, :60, :60]
    wanted = metrics.score(modules.Interpolation()(degrade(hr, "kspace"))[0, 0], hr[0, 0])
    assert float(lines[3].split(",")[2]) == pytest.approx(wanted["psnr"], abs=1e-3)
    out = capsys.readouterr().out
    assert "whole volume" in out and "kspace" in out


def test_a_report_is_one_page_of_all_that_was_given(tmp_path, run):
    for name, n, size in (("fine", 26, 1.0), ("coarse", 26, 2.0), ("odd", 20, 2.0)):  # 20: so small
        data = blob((n, n, 24)).astype(np.int16)
        save_volume(tmp_path / "in" / f"{name}.nii.gz", data, (size,) * 3)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    assert run(tmp_path / "in", "--report", "--figure", "--output", tmp_path / "out") == 1
    page = (tmp_path / "out/report.html").read_text()
    assert "2 results" in page and page.count("<img") == 2 and "Not for clinical use" in page
    assert page.index("odd_x2") < page.index("coarse_x2")  # what needs a look comes first
    assert page.index("Inputs without a result") < page.index("nothing to gain")
    assert "bad.png" in page
    assert run(tmp_path / "in/fine.nii.gz", "--report", "--output", tmp_path / "new") == 0
    page += (tmp_path / "new/report.html").read_text()  # of nothing, but there
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_noise_of_a_simulated_slice_is_its_own(tmp_path, run):
    nib.save(nib.Nifti1Image(blob((24, 20, 5)).astype(np.float32), np.eye(4)), tmp_path / "a.nii")
    found = []
    for size in (1, 3):
        run(tmp_path / "a.nii", "--simulate", "--noise", "0.03", "--batch-size", size)
        found.append((tmp_path / "a_simulated_x4.csv").read_text())
    assert found[0] == found[1]
    psnr = [line.split(",")[2] for line in found[0].splitlines()[1:]]
    assert len(set(psnr)) == 5


def test_a_scan_that_is_fine_already_is_no_failure_among_others(tmp_path, run, capsys):
    for name, size in (("fine", 1.0), ("coarse", 2.0)):
        data = blob((26, 25, 24)).astype(np.int16)
        save_volume(tmp_path / "in" / f"{name}.nii.gz", data, (size,) * 3)
    assert run(tmp_path / "in", "--output", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "1 upscaled, 1 left as they are" in captured.out
    assert "fine.nii.gz: " in captured.err and "nothing to gain" in captured.err
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["coarse_x2_through-x2.nii.gz"]
    assert run(tmp_path / "in/fine.nii.gz") == 0
    captured = capsys.readouterr()
    assert "nothing to gain" in captured.out and not captured.err

"""The study's scripts on two slices of two people: they run, and measure what they say."""

import importlib
import json

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, save_weights
from PIL import Image

from degradation import degrade
from evaluation import panels
from inference import Upscaler
from modules import Interpolation
from study import (
    common,
    cost,
    coverage,
    filters,
    fourier,
    given_back,
    invented,
    lesions,
    page,
    spots,
    tissue,
)

SCRIPTS = sorted(path.stem for path in ROOT.glob("study/*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_finds_what_it_imports(name):
    importlib.import_module(f"study.{name}")


def test_the_figure_of_cost_is_drawn_from_the_stored_numbers(tmp_path):
    cost.main(["--picture", str(tmp_path / "cost.png")])
    with Image.open(tmp_path / "cost.png") as image:
        assert image.width > 1000


@pytest.fixture(scope="session")
def two_people(brain, tmp_path_factory):
    """A small volume of each of two people."""
    folder = tmp_path_factory.mktemp("people")
    for name, first in (("sub-1", 70), ("sub-2", 94)):
        part = brain[first : first + 9, 40:136, 50:146][:, ::-1].transpose(2, 1, 0)
        affine = np.diag([common.PIXEL, common.PIXEL, 1, 1])
        nib.save(nib.Nifti1Image(np.ascontiguousarray(part), affine), folder / f"{name}_T1w.nii.gz")
    return folder


@pytest.mark.parametrize("name", ["fourier", "worst", "invented", "spots"])
def test_scripts_write_numbers_and_a_figure(cli, tiny, two_people, tmp_path, name):
    module = importlib.import_module(f"study.{name}")
    options = ("--out", tmp_path, "--pictures", tmp_path, "--slices", 2)
    status, _, error = cli(module.main, "--weights", tiny, "--data", two_people, *options)
    assert status == 0, error
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert (result["people"], result["slices"]) == (2, 4)
    assert result["command"].startswith(f"python -m study.{name}")
    assert Image.open(tmp_path / f"trust-{name}.png").width > 300


def test_the_error_map_is_measured_and_lesions_are_counted(cli, two_people, tmp_path):
    weights = save_weights(tmp_path / "a.pt", error_head=True, tail=0.002)
    options = ("--weights", weights, "--slices", 2, "--out", tmp_path, "--pictures", tmp_path)
    status, _, error = cli(coverage.main, *options, "--data", two_people)
    assert status == 0, error
    shares = json.loads((tmp_path / "coverage.json").read_text())["cases"]["bicubic"]
    assert 0 < shares["brain"]["mean"] <= 1 and shares["head, whole"]["mean"] >= 1
    scan = nib.load(two_people / "sub-1_T1w.nii.gz")
    values = np.asarray(scan.dataobj)
    mask = np.zeros(values.shape, np.uint8)
    mask[40:44, 40:44, 3:6] = 1
    for name, volume in (("T1", values), ("FLAIR", np.where(mask, 255, values // 2))):
        path = tmp_path / f"p1_{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume.astype(np.uint8), scan.affine), path)
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "p1_lesions.nii.gz")
    status, _, error = cli(lesions.main, *options, "--data", tmp_path)
    assert status == 0, error
    found = json.loads((tmp_path / "lesions.json").read_text())["FLAIR"]["all"]
    assert found["lesions"] == 1 and 0 < found[common.OURS]["contrast"]["mean"] < 1
    status, _, error = cli(page.main, "--results", tmp_path, "--page", tmp_path / "page.md")
    assert status == 0, error
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "FLAIR, all | this network" in text and "(not measured here)" in text


def test_ring_correlation_is_one_for_the_truth_and_falls_where_it_is_another():
    hr, noise = np.random.default_rng(0).random((2, 1, 64, 64))
    cross, power, truth = fourier.ring_sums(hr, hr)
    assert np.allclose(cross / np.sqrt(power * truth), 1)
    cross, power, truth = fourier.ring_sums(noise - noise.mean(), hr - hr.mean())
    assert abs(cross[5:] / np.sqrt(power * truth)[5:]).mean() < 0.4


def test_spots_come_back_whole_from_the_truth():
    cover = spots.ball((21, 41, 41), (10, 20.2, 19.7), 4, slice_mm=1.0)
    contrast, size = spots.measure(cover[10], cover[10])
    assert contrast > 0.8 and abs(size - 4) < 0.4
    assert np.isclose(cover.sum() * spots.PIXEL**2, 4 / 3 * np.pi * 2**3, rtol=0.02)


def test_a_stack_is_the_volume_from_the_top_down_and_its_slices_are_numbered_from_below(two_people):
    args = common.parser("").parse_args(["--data", str(two_people), "--slices", "3"])
    (first, _) = common.people(args)
    volume = nib.load(two_people / "sub-1_T1w.nii.gz").get_fdata()
    assert first.name == "sub-1" and first.mm == pytest.approx((1, common.PIXEL))
    for place, number in zip(first.places, first.numbers):
        shown = first.hr[place, 0].numpy()
        expected = volume[..., number].T[::-1][: len(shown), : shown.shape[1]]
        assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.999


def test_lost_structure_is_found_where_it_is():
    hr = np.zeros((64, 64))
    hr[28:36, 30:32] = 1
    maps, _, _ = invented.disagreement(np.zeros_like(hr), hr)
    y, x = np.unravel_index(maps["lost"].argmax(), hr.shape)
    assert abs(y - 32) < 5 and abs(x - 31) < 5
    assert maps["invented"].max() <= 1e-9


def test_thin_slices_are_compared_with_the_thick_one_they_lie_in():
    thick = np.random.default_rng(0).random((6, 7, 5), np.float32)
    thin = thick.repeat(3, axis=2) + np.arange(15, dtype=np.float32) % 3 - 1  # steps inside, too
    found = given_back.agreement(thick, thin)
    assert found["factor"] == 3 and found["rms"] == pytest.approx(0, abs=1e-6)
    assert given_back.agreement(thick, np.roll(thin, 1, axis=2))["rms"] > 0.1


def test_slices_made_thick_and_thin_lie_where_they_lay(bicubic, two_people):
    args = common.parser("").parse_args(["--data", str(two_people)])
    person = common.people(args)[0]
    shown = tissue.made_thick_and_thin(Upscaler(bicubic, "cpu", bf16=False), person)
    count = len(person.hr) // 4 * 4
    stack = person.hr[:count, 0].numpy()
    thick = stack.reshape(count // 4, 4, *stack.shape[1:]).mean(1)
    expected = torch.from_numpy(thick.transpose(1, 2, 0).copy())[None]
    expected = F.interpolate(expected, scale_factor=(1, 4), mode="bicubic")[0].permute(2, 0, 1)
    places = [place for place in person.places if place < count]
    assert np.allclose(shown[common.TRUTH], stack[places])
    assert np.allclose(shown[common.OURS], expected[places].clip(0, 1), atol=0.01)  # 8 bits


def test_lesions_are_outlined_and_spots_ringed_where_they_are(tmp_path):
    image = np.zeros((40, 40), np.float32)
    lesion = np.zeros((80, 80), bool)
    lesion[20:30, 50:60] = True
    ringed = panels.Panel(image, outline=lesion, rings=((30, 10, 4, ""),))
    sheet, ((place,),) = panels.draw_panels([[ringed]])
    left, top, right, bottom = place
    gold = (np.asarray(sheet) == panels.GOLD).all(-1)[top:bottom, left:right]
    rows, columns = (edge / side for edge, side in zip(np.nonzero(gold), gold.shape))
    upper = rows < 0.5
    assert rows[upper].min() == pytest.approx(0.25, abs=0.01)
    assert rows[upper].max() == pytest.approx(0.375, abs=0.01)
    assert columns[upper].mean() == pytest.approx(0.6875, abs=0.01)
    assert rows[~upper].mean() == pytest.approx(0.75, abs=0.01)
    assert columns[~upper].max() == pytest.approx(0.35, abs=0.01)


def test_filters_learn_more_than_interpolation(real_slices, tmp_path):
    for i, pixels in enumerate((real_slices[:, 0] * 255).byte().numpy()):
        Image.fromarray(pixels).save(tmp_path / f"{i}_100.png")
    run = filters.train_filters(tmp_path, "bicubic", 0)
    lr = degrade(real_slices[:1], "bicubic")
    plain = Interpolation()(lr)[0, 0]
    error, before = ((x - real_slices[0, 0]).square().mean()
                     for x in (torch.from_numpy(run(lr[0, 0].numpy())), plain))  # fmt: skip
    assert error < 0.9 * before


def test_tissue_of_a_slice_with_three_values():
    pytest.importorskip("dipy")
    truth = np.zeros((2, 40, 40), int)
    for k, edge in enumerate((2, 8, 14), 1):
        truth[:, edge:-edge, edge:-edge] = k
    noise = np.random.default_rng(0).normal(0, 0.04, truth.shape)
    image = np.array((0, 0.25, 0.55, 0.85))[truth] + noise
    classes = tissue.classify(image, truth > 0, 0.1, 0)
    assert (classes == truth).mean() > 0.97

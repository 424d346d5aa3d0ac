"""The study's scripts on two slices of two people: they run, and measure what they say."""

import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def study(monkeypatch):
    """study("fourier"): a script of the study as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "study"))
    yield importlib.import_module
    for name in [n for n, m in sys.modules.items() if "study" in str(getattr(m, "__file__", ""))]:
        if str(ROOT / "study") in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture(scope="session")
def two_people(brain, tmp_path_factory):
    """Two slices each of two people, small."""
    folder = tmp_path_factory.mktemp("people")
    for i, name in enumerate(("1_040", "1_050", "2_040", "2_050")):
        Image.fromarray(brain[70 + 8 * i, 40:136, 50:146]).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("name", ["fourier", "worst", "invented", "spots"])
def test_scripts_write_numbers_and_a_figure(study, cli, tiny, two_people, tmp_path, name):
    module = study(name)
    options = ("--out", tmp_path, "--pictures", tmp_path, "--slices", 2)
    status, _, error = cli(module.main, "--weights", tiny, "--data", two_people, *options)
    assert status == 0, error
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert (result["people"], result["slices"]) == (2, 4)
    assert result["command"].startswith(f"python study/{name}.py")
    assert Image.open(tmp_path / f"trust-{name}.png").width > 300


def test_ring_correlation_is_one_for_the_truth_and_falls_where_it_is_another(study):
    fourier = study("fourier")
    hr, noise = np.random.default_rng(0).random((2, 1, 64, 64))
    cross, power, truth = fourier.ring_sums(hr, hr)
    assert np.allclose(cross / np.sqrt(power * truth), 1)
    cross, power, truth = fourier.ring_sums(noise - noise.mean(), hr - hr.mean())
    assert abs(cross[5:] / np.sqrt(power * truth)[5:]).mean() < 0.4


def test_spots_come_back_whole_from_hr(study):
    spots = study("spots")
    cover = spots.disc((41, 41), 20.2, 19.7, 4)
    contrast, size = spots.measure(cover, cover)
    assert contrast > 0.8 and abs(size - 4) < 0.4
    assert np.isclose(cover.sum() * spots.PIXEL**2, np.pi * 4, rtol=0.02)


def test_lost_structure_is_found_where_it_is(study):
    invented = study("invented")
    hr = np.zeros((64, 64))
    hr[28:36, 30:32] = 1
    maps, _, _ = invented.disagreement(np.zeros_like(hr), hr)
    y, x = np.unravel_index(maps["removed"].argmax(), hr.shape)
    assert abs(y - 32) < 5 and abs(x - 31) < 5
    assert maps["invented"].max() <= 1e-9


def test_thin_slices_are_compared_with_the_thick_one_they_lie_in(study):
    given_back = study("given_back")
    thick = np.random.default_rng(0).random((6, 7, 5), np.float32)
    thin = thick.repeat(3, axis=2) + np.arange(15, dtype=np.float32) % 3 - 1  # steps inside, too
    found = given_back.agreement(thick, thin)
    assert found["factor"] == 3 and found["rms"] == pytest.approx(0, abs=1e-6)
    assert given_back.agreement(thick, np.roll(thin, 1, axis=2))["rms"] > 0.1


def test_filters_learn_more_than_interpolation(study, two_people):
    filters, common = study("filters"), study("common")
    run = filters.train_filters(two_people, "bicubic", 0, per_person=2)
    hr = common.people(two_people, 2)["1"][1]
    lr = common.degrade(hr, "bicubic")[0, 0].numpy()
    plain = common.interpolate(common.degrade(hr, "bicubic"))[0, 0].numpy()
    truth = hr[0, 0].numpy()
    assert ((run(lr) - truth) ** 2).mean() < 0.9 * ((plain - truth) ** 2).mean()


def test_tissue_of_a_slice_with_three_values(study):
    pytest.importorskip("dipy")
    tissue = study("tissue")
    truth = np.zeros((2, 40, 40), int)
    for k, edge in enumerate((2, 8, 14), 1):
        truth[:, edge:-edge, edge:-edge] = k
    noise = np.random.default_rng(0).normal(0, 0.04, truth.shape)
    image = np.array((0, 0.25, 0.55, 0.85))[truth] + noise
    classes = tissue.classify(image, truth > 0, 0.1, 0)
    assert (classes == truth).mean() > 0.97

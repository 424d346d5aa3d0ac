"""The table of evaluate.py against the same numbers computed with PyTorch and scikit-image."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, checkpoint_of
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import checkpoints
import dataset
import evaluate
import modules


def by_hand(folder, upscale, degradation="bicubic"):
    """{metric: (mean, sd)} over the subjects of a folder of test slices."""
    scores = {}
    for path in sorted(Path(folder).rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        hr = torch.from_numpy(pixels.copy())[None, None] / 255
        sr = upscale(dataset.degrade(hr, degradation)).clamp(0, 1)
        a, b = hr[0, 0].double().numpy(), sr[0, 0].double().numpy()
        brain = pixels > 0.05 * 255
        row = (
            ((a - b) ** 2).mean(),
            peak_signal_noise_ratio(a, b, data_range=1),
            peak_signal_noise_ratio(a[brain], b[brain], data_range=1),
            structural_similarity(
                a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            ),
        )
        scores.setdefault(path.name.split("_")[0], []).append(row)
    means = np.array([np.mean(rows, axis=0) for rows in scores.values()])
    names = ("mse", "psnr", "psnr_brain", "ssim")
    return dict(zip(names, zip(means.mean(0), means.std(0, ddof=1))))


def assert_equal(summary, wanted):
    for metric, (mean, sd) in wanted.items():
        assert summary[metric]["mean"] == pytest.approx(mean, rel=1e-5), metric
        assert summary[metric]["sd"] == pytest.approx(sd, rel=1e-3), metric


def bicubic(lr):
    return F.interpolate(lr, scale_factor=4, mode="bicubic")


def test_the_script_scores_checkpoints_beside_bicubic(adni, tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), str(tiny), "--data", str(adni), "--json", "a"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a").read_text())
    assert result["split"] == "test" and result["degradation"] == "bicubic"
    table = result["results"]
    assert list(table) == ["bicubic", str(tiny)]
    network = modules.load_network(checkpoints.load_checkpoint(tiny))
    assert_equal(table["bicubic"], by_hand(adni / "test", bicubic))
    with torch.inference_mode():
        assert_equal(table[str(tiny)], by_hand(adni / "test", network))
    assert table[str(tiny)]["parameters"] == sum(p.numel() for p in network.parameters())
    lines = [line for line in done.stdout.splitlines() if " ± " in line]
    assert [line.split()[0] for line in lines[:2]] == ["bicubic", str(tiny)]
    assert (
        f"{table['bicubic']['psnr']['mean']:.2f} ± {table['bicubic']['psnr']['sd']:.2f}" in lines[0]
    )
    assert "4 subjects, 12 slices" in done.stdout


@pytest.mark.parametrize("degradation", dataset.DEGRADATIONS)
def test_all_rows_see_the_same_low_resolution_slices(adni, degradation):
    """An untrained network that is bicubic interpolation scores exactly what bicubic scores."""
    arch = {"name": "deep", "channels": 4, "blocks": 1}
    checkpoints.save_checkpoint("a.pt", checkpoint_of(modules.build(arch), arch))
    words = ["a.pt", "--data", str(adni), "--degradation", degradation, "--json", "a.json"]
    evaluate.main(words)
    table = json.loads(Path("a.json").read_text())["results"]
    for metric in ("mse", "psnr", "psnr_brain", "ssim", "lr_rmse"):
        assert table["a.pt"][metric]["mean"] == pytest.approx(table["bicubic"][metric]["mean"])
    assert_equal(table["bicubic"], by_hand(adni / "test", bicubic, degradation))


@pytest.mark.parametrize(
    ("split", "slices"), [("train", 21), ("val", 3), ("test", 12), ("all", 36)]
)
def test_the_split_is_the_one_of_training(adni, tiny, capsys, split, slices):
    evaluate.main([str(tiny), "--data", str(adni), "--split", split])
    assert f"{split}: " in (line := capsys.readouterr().out.splitlines()[0])
    assert f", {slices} slices" in line


def test_a_row_that_agrees_with_the_measured_slice(adni, tiny):
    evaluate.main([str(tiny), "--data", str(adni), "--consistent", "--json", "a.json"])
    table = json.loads(Path("a.json").read_text())["results"]
    assert list(table) == ["bicubic", str(tiny), f"{tiny}, consistent"]
    _, free, agrees = table.values()
    assert agrees["lr_rmse"]["mean"] < free["lr_rmse"]["mean"] / 3
    assert agrees["psnr"]["mean"] > free["psnr"]["mean"]


def test_without_data_the_demonstration_brain_is_scored(tiny, capsys):
    evaluate.main([str(tiny), "--split", "val"])
    printed = capsys.readouterr().out
    assert "val: 1 subject, 8 slices" in printed and str(tiny) in printed


def test_errors_come_before_the_work(adni, tiny, cli, monkeypatch):
    def work(*args):
        raise AssertionError

    monkeypatch.setattr(dataset, "degrade", work)
    data = ["--data", adni]
    content = tiny.read_bytes()
    for status, words, arguments in (
        (2, "--json nowhere/a.json: ", [tiny, *data, "--json", "nowhere/a.json"]),
        (2, "would be overwritten", [tiny, *data, "--json", tiny]),
        (2, "--slices", [tiny, *data, "--slices", "-1"]),
        (2, "checkpoint", data),
        (2, "--data: is empty", [tiny, "--data", ""]),
        (1, "none.pt: no such file", ["none.pt", *data]),
        (1, "nowhere: no such folder", [tiny, "--data", "nowhere"]),
    ):
        got, _, errors = cli(evaluate.main, *arguments)
        assert got == status, errors
        assert len(errors.splitlines()) == 1 and errors.startswith("error: ") and words in errors
    assert tiny.read_bytes() == content


def test_plots_of_cost_and_of_examples_are_drawn_and_name_the_extreme_slices(adni, tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), str(tiny), "--data", str(adni),
         "--cost", "cost.png", "--examples", "examples.png"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("cost.png", "examples.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 600
    gains = [float(line.split()[2]) for line in done.stdout.splitlines() if " gain, " in line]
    assert len(gains) == 3 and gains == sorted(gains, reverse=True)

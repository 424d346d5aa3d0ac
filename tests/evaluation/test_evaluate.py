"""The tables of evaluate.py against the same numbers computed with PyTorch, SciPy, scikit-image."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_network, save_weights, slices_of_person
from made_files import save_volume
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import dataset
import evaluate
import modules
from degradation import degrade
from evaluation import metrics
from evaluation.scoring import example_of, score_slices
from inference import through_plane
from inference.checkpoints import load_checkpoint, save_checkpoint


def by_hand(folder, upscale, degradation="bicubic"):
    """{metric: (mean, sd)} over the subjects of a folder of test slices."""
    scores = {}
    for path in sorted(Path(folder).rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        hr = torch.from_numpy(pixels.copy())[None, None] / 255
        sr = upscale(degrade(hr, degradation)).clamp(0, 1)
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


def results(*words) -> dict:
    """{degradation: table} of evaluate.py."""
    evaluate.main([*map(str, words), "--json", "a.json"])
    return json.loads(Path("a.json").read_text())["results"]


def test_checkpoints_are_scored_beside_bicubic(adni, tiny, tmp_path, cli):
    files = "--json a.json --csv a.csv --cost cost.png --examples examples.png"
    status, printed, errors = cli(evaluate.main, tiny, "--data", adni, *files.split())
    assert status == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["split"] == "test" and list(result["results"]) == ["bicubic"]
    table = result["results"]["bicubic"]
    assert list(table) == ["bicubic", str(tiny)]
    network = modules.load_network(load_checkpoint(tiny))
    assert_equal(table["bicubic"], by_hand(adni / "test", bicubic))
    with torch.inference_mode():
        assert_equal(table[str(tiny)], by_hand(adni / "test", network))
    assert table[str(tiny)]["parameters"] == sum(p.numel() for p in network.parameters())
    psnr = table["bicubic"]["psnr"]
    assert f"{psnr['mean']:.2f} ± {psnr['sd']:.2f}" in printed
    assert "4 subjects, 12 slices" in printed
    assert "nobody knows whether these subjects" in errors  # no config.json beside it
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and rows[0]["method"] == "bicubic"
    gains = [float(row["gain"]) for row in rows if row["method"] == str(tiny)]
    assert min(gains) == pytest.approx(table[str(tiny)]["worst_gain"])
    for name in ("cost.png", "examples.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 600
    lines = [line for line in printed.splitlines() if " gain, " in line]
    assert [line.split()[1] for line in lines] == ["best", "median", "worst"]
    shown = [float(line.split()[3]) for line in lines]
    assert shown[0] == pytest.approx(max(gains), abs=0.01)
    assert shown[2] == pytest.approx(min(gains), abs=0.01)


def test_all_rows_see_the_same_low_resolution_slices(adni, capsys):
    """An untrained network that is bicubic interpolation scores exactly what bicubic scores."""
    names = ("bilinear", "kspace", "blur-2", "rician-5", "jpeg-50")
    path = save_weights("a.pt", told=True)
    tables = results(path, "--data", adni, "--told", "--degradation", *names)
    assert list(tables) == list(names)
    for name, table in tables.items():
        for metric in ("mse", "psnr", "psnr_brain", "ssim", "lr_rmse", "power_ratio"):
            assert table[path][metric]["mean"] == pytest.approx(table["bicubic"][metric]["mean"])
        if name in ("bilinear", "kspace", "blur-2"):  # noise is another for each slice
            assert_equal(table["bicubic"], by_hand(adni / "test", bicubic, name))
    lines = capsys.readouterr().out.split("over bicubic (dB)")[1].splitlines()
    assert [line.split()[0] for line in lines[2:7]] == list(names)


@pytest.mark.parametrize("scale", [(2, 2), (3, 3)])
def test_other_scales_are_scored(adni, scale):
    path = save_weights("a.pt", scale)
    table = results(path, "--data", adni)["bicubic"]
    assert table[path]["psnr"]["mean"] == pytest.approx(table["bicubic"]["psnr"]["mean"])
    assert table["bicubic"]["psnr"]["mean"] > by_hand(adni / "test", bicubic)["psnr"][0] + 1


@pytest.mark.parametrize(("split", "slices"), [("val", 3), ("all", 36)])
def test_the_split_is_the_one_of_training(adni, tiny, capsys, split, slices):
    evaluate.main([str(tiny), "--data", str(adni), "--split", split])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(f"{split}: "))
    assert f", {slices} slices" in line


@pytest.fixture
def run(tiny, adni):
    """A run folder, as far as evaluate.py looks at it: of a split by seed 5, with all people."""
    folder = Path("runs/a")
    folder.mkdir(parents=True)
    (folder / "best.pt").write_bytes(tiny.read_bytes())
    everybody = Path("everybody")
    for path in adni.rglob("*.png"):
        everybody.mkdir(exist_ok=True)
        (everybody / path.name).write_bytes(path.read_bytes())
    parts, _ = dataset.load_parts(data=everybody, seed=5)
    subjects = {name: sorted(set(part.subject.tolist())) for name, part in parts.items()}
    config = {"arguments": {"data": "everybody", "seed": 5}, "subjects": subjects}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, subjects


def test_data_and_split_are_those_of_the_checkpoints_run(run, capsys):
    folder, subjects = run
    evaluate.main([str(folder / "best.pt"), "--csv", "a.csv"])
    assert "in its training" not in capsys.readouterr().err
    with open("a.csv", newline="") as file:
        assert {row["subject"] for row in csv.DictReader(file)} == set(subjects["test"])
    evaluate.main([str(folder / "best.pt"), "--seed", "0"])  # another split
    warning = capsys.readouterr().err
    assert "subjects that it was trained on" in warning and "best.pt" in warning
    other = Path("runs/b")
    other.mkdir()
    (other / "best.pt").write_bytes((folder / "best.pt").read_bytes())
    (other / "config.json").write_text(json.dumps({"arguments": {"data": "everybody", "seed": 6}}))
    with pytest.raises(evaluate.UsageError, match="--seed: the runs of the checkpoints differ"):
        evaluate.main([str(folder / "best.pt"), str(other / "best.pt")])


def test_people_of_the_weights_a_run_began_with_are_known(run, capsys):
    folder, subjects = run
    content = load_checkpoint(folder / "best.pt")
    save_checkpoint(folder / "best.pt", content | {"people": [*subjects["test"], "x"]})
    evaluate.main([str(folder / "best.pt")])
    n = len(subjects["test"])
    assert f"{n} of these {n} subjects" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    save_checkpoint(folder / "best.pt", content)  # as it began with weights that list nobody
    config |= {"weights_without_people": ["old.pt"], "people_of_weights": ["y"]}
    people, unlisted = evaluate.people_known(folder / "best.pt", config)
    assert set(people) == {*subjects["train"], *subjects["val"], "y"} and unlisted == "old.pt"
    (folder / "config.json").write_text(json.dumps(config))
    evaluate.main([str(folder / "best.pt"), "--split", "val"])
    said = capsys.readouterr().err
    assert "old.pt, which it began with, lists none" in said and "it was trained on" in said


@pytest.mark.parametrize("split", ["val", "all", "test"])
def test_shipped_weights_know_the_val_people_of_the_clone(split, capsys):
    args, configs = evaluate.arguments([str(evaluate.SHIPPED / "x4.pt"), "--split", split])
    evaluate.warn_if_trained_on(args, configs, ["03", "55"])
    said = "was trained on the train subjects of ds002748" in capsys.readouterr().err
    assert said == (split != "test")


def test_nobody_counts_subjects_that_names_do_not_tell(tiny, cli):
    for n, name in enumerate(("K55_091", "K55_flip_091", "K56_091")):
        pixels = slices_of_person(("03", "07", "18")[n])[10, 60:124, 60:124]
        for folder, size in (("hr", 64), ("lr", 16)):
            Path(folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((size, size)).save(f"{folder}/{name}.png")
    for options in (("--data", "hr", "--split", "all"), ("--pairs", "lr", "hr")):
        status, printed, errors = cli(evaluate.main, tiny, *options)
        assert status == 0 and "unknown subjects, 3" in printed and "cannot tell whose" in errors
        assert "±" not in printed.split("mean ± sd")[0]


def test_a_row_that_agrees_with_the_measured_slice(adni, tiny):
    table = results(tiny, "--data", adni, "--consistent")["bicubic"]
    assert list(table) == ["bicubic", str(tiny), f"{tiny}, consistent"]
    _, free, agrees = table.values()
    assert agrees["lr_rmse"]["mean"] < free["lr_rmse"]["mean"] / 3
    assert agrees["psnr"]["mean"] > free["psnr"]["mean"]


def test_ready_pairs_score_what_their_degradation_scores(adni, tiny, capsys):
    for path in (adni / "test").rglob("*.png"):
        hr = torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None] / 255
        lr = (degrade(hr, "bilinear")[0, 0] * 255).round().byte().numpy()
        place = Path("lr") / path.relative_to(adni / "test")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lr).save(place)
    pairs = results(tiny, "--pairs", "lr", adni / "test")["as given"]
    assert "LR RMSE" not in capsys.readouterr().out  # nobody knows how they were degraded
    made = results(tiny, "--data", adni, "--degradation", "bilinear")["bilinear"]
    assert capsys.readouterr().out.count("LR RMSE") == 2  # the column and what it is
    for name in ("bicubic", str(tiny)):
        assert pairs[name]["psnr"] == pytest.approx(made[name]["psnr"], rel=1e-5)
    Image.new("L", (9, 9)).save(place)
    with pytest.raises(evaluate.DataError, match=r"1x9x9 .* LR must be 1x28x24"):
        results(tiny, "--pairs", "lr", adni / "test")


def test_pairs_without_a_partner_are_said_and_the_record_names_both_folders(tiny, capsys):
    for name in ("hr/dwi_1.png", "lr/dwi_1.png", "lr/p2_1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32) if name[0] == "h" else (8, 8), 90).save(name)
    assert evaluate.main([str(tiny), "--pairs", "lr", "hr", "--json", "a.json"]) is None
    assert "1 of lr have no file of the same name in hr (p2_1.png)" in capsys.readouterr().err
    assert json.loads(Path("a.json").read_text())["data"] == ["lr", "hr"]
    with pytest.raises(evaluate.UsageError, match="two folders, or two files"):
        evaluate.main([str(tiny), "--pairs", "lr", "hr/dwi_1.png"])


def test_deep_pairs_share_one_scale(tiny):
    """Pictures of 16 bits have their own white: that of HR counts for LR too."""
    hr = np.zeros((32, 32), np.uint16)
    hr[8:24, 8:24] = 40000
    lr = (degrade(torch.from_numpy(hr / np.float32(2**16))[None, None], "blur-3")).numpy()[0, 0]
    Image.fromarray(hr).save("hr.png")
    Image.fromarray((lr * 2**16).astype(np.uint16)).save("lr.png")
    scores = results(tiny, "--pairs", "lr.png", "hr.png")["as given"]["bicubic"]
    wanted = degrade(torch.from_numpy(hr / np.float32(40000))[None, None], "blur-3")
    wanted = evaluate.modules.Interpolation()(wanted).clamp(0, 1)[0, 0]
    mse = float(((wanted.numpy() - hr / 40000) ** 2).mean())
    assert scores["mse"]["mean"] == pytest.approx(mse, rel=0.02)


# --- through the slices ---------------------------------------------------------------------------


@pytest.fixture
def heads(real_slices):
    """Seven volumes of 32x28x30 voxels of 1 mm, each of another person."""
    folder = Path("heads")
    stack = real_slices[:, 0, 60:124, 40:96].numpy().repeat(10, 0)  # (30, 64, 56)
    for n in range(7):
        volume = np.roll(stack, n, 1)[:, ::2, ::2].transpose(1, 2, 0) * 500
        save_volume(folder / f"sub-0{n}_T1w.nii.gz", volume)
    return folder


def test_through_the_slices_whole_volumes_are_scored(heads, capsys):
    path = save_weights("a.pt", (2, 1))
    table = results(path, "--data", heads, "--degradation", "box", "slab-0.8")["box"]
    assert list(table) == ["cubic", "linear", path]
    assert "1 subject, 1 whole volume; x2x1, LR by box" in capsys.readouterr().out
    # An untrained network is bicubic interpolation along z, in both of its passes.
    scan = next(heads.glob("*.nii.gz"))
    hr = through_plane.normalised(nib.load(scan).get_fdata(dtype=np.float32))[None, None]
    thick = F.avg_pool3d(torch.from_numpy(hr), (1, 1, 2))[0, 0]
    sr = through_plane.through_plane(modules.load_network(load_checkpoint(path)), thick.numpy())
    alone = F.interpolate(thick[None], scale_factor=(1, 2), mode="bicubic")[0]
    assert np.allclose(sr, alone.numpy().clip(0), atol=1e-5)
    assert through_plane.make_thick(hr[0, 0], "box", 2) == pytest.approx(
        thick.numpy(), abs=0.5 / 255
    )


@pytest.mark.parametrize("order", [1, 3])
def test_interpolation_keeps_the_outer_edges(order):
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32), (3, 3, 20)).copy()
    fine = through_plane.interpolate(ramp, 4, order)
    wanted = (np.arange(80) + 0.5) / 4 - 0.5
    assert fine.shape == (3, 3, 80)
    assert fine[1, 1, 16:-16] == pytest.approx(wanted[16:-16], abs=2e-3)


def test_volumes_that_are_thick_themselves_and_pictures_are_refused(heads, adni, cli):
    path = save_weights("a.pt", (2, 1))
    scan = next(heads.glob("*.nii.gz"))
    save_volume(scan, nib.load(scan).get_fdata(), (1, 1, 4))
    for data, words in ((heads, "thick themselves"), (adni, "is a picture")):
        status, _, errors = cli(evaluate.main, path, "--data", data, "--split", "all")
        assert status == 1 and words in errors


# --- errors ---------------------------------------------------------------------------------------


def test_errors_come_before_the_work(adni, tiny, cli, monkeypatch):
    def work(*args, **options):
        raise AssertionError

    monkeypatch.setattr(evaluate, "load_slices", work)
    data = ["--data", adni]
    content = tiny.read_bytes()
    x2 = save_weights("x2.pt", (2, 2))
    for status, words, arguments in (
        (2, "--json nowhere/a.json: ", [tiny, *data, "--json", "nowhere/a.json"]),
        (2, "would be overwritten", [tiny, *data, "--csv", tiny]),
        (2, "--slices", [tiny, *data, "--slices", "-1"]),
        (2, "checkpoint", data),
        (2, "--data: is empty", [tiny, "--data", ""]),
        (1, "none.pt: no such file", ["none.pt", *data]),
        (1, "no readable log", [tiny, *data, "--curves", "a.png"]),
        (2, "enlarges by 4, x2.pt by 2", [tiny, x2, *data]),
        (2, "takes a description", [tiny, *data, "--told"]),
        (2, "'fog' is unknown", [tiny, *data, "--degradation", "bicubic", "fog"]),
        (2, "degraded already", [tiny, "--pairs", "a", "b", "--degradation", "bicubic"]),
    ):
        got, _, errors = cli(evaluate.main, *arguments)
        assert got == status, errors
        assert len(errors.splitlines()) == 1 and errors.startswith("error: ") and words in errors
    assert tiny.read_bytes() == content


def test_an_example_of_a_scan_shows_the_result_that_was_scored(tmp_path, brain):
    save_volume(tmp_path / "data/sub-01_T1w.nii", brain[::2, ::2, 90:102])
    slices = dataset.load_parts(data=tmp_path / "data", split=False, quiet=True)[0]["all"]
    network = random_network({"name": "deep", "channels": 8, "blocks": 2, "half": 1, "told": True})
    torch.nn.init.normal_(network.modulation[2].weight)
    for told in (False, True):
        rows = score_slices({"it": network}, slices, "rician-5", told=told)
        example = example_of(network, slices, len(slices) - 1, "rician-5", rows, told=told)
        shown = metrics.score(torch.from_numpy(example.sr), torch.from_numpy(example.hr))
        assert shown["psnr"] == pytest.approx(rows["it"][-1]["psnr"], abs=1e-3)

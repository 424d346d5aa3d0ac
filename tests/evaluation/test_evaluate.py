"""The tables of evaluate.py against the same numbers computed with PyTorch, SciPy, scikit-image."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import save_weights, scores_by_skimage, slices_of_person, table
from made_files import save_volume, slices_of
from PIL import Image
from scipy.interpolate import CubicSpline
from skimage.metrics import peak_signal_noise_ratio

import dataset
import evaluate
import modules
from degradation import degrade, describe_degradation
from evaluation import metrics, volume_scores
from evaluation.scoring import example_of, score_slices
from inference import Upscaler
from inference.checkpoints import load_checkpoint, save_checkpoint


def by_hand(folder, upscale, degradation="bicubic", scale=(4, 4)):
    """{metric: (mean, sd)} over the subjects of a folder of test slices."""
    scores = {}
    for path in sorted(Path(folder).rglob("*.png")):
        hr = torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None] / 255
        sr = upscale(degrade(hr, degradation, scale))
        row = list(scores_by_skimage(sr[0, 0], hr[0, 0]).values())
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


def attentive(path, *scales, **arch) -> Path:
    """Weights that act on what is known of the degradation and of neighbours."""
    save_weights(path, *scales, tail=0.002, channels=8, blocks=2, **arch)
    content = load_checkpoint(path)
    torch.nn.init.normal_(content["model"]["gains.weight"])
    save_checkpoint(path, content)
    return path


def results(*words) -> dict:
    """{degradation: table} of evaluate.py."""
    evaluate.main([*map(str, words), "--json", "a.json"])
    return json.loads(Path("a.json").read_text())["results"]


def test_checkpoints_are_scored_beside_bicubic(adni, tiny, tmp_path, cli):
    files = "--json a.json --csv a.csv --examples examples.png"
    status, printed, errors = cli(evaluate.main, tiny, "--data", adni, *files.split())
    assert status == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["split"] == "test" and list(result["results"]) == ["bicubic"]
    found = result["results"]["bicubic"]
    assert list(found) == ["bicubic", str(tiny)]
    network = modules.load_network(load_checkpoint(tiny))
    assert_equal(found["bicubic"], by_hand(adni / "test", bicubic))
    with torch.inference_mode():
        assert_equal(found[str(tiny)], by_hand(adni / "test", network))
    assert found[str(tiny)]["parameters"] == sum(p.numel() for p in network.parameters())
    psnr = found["bicubic"]["psnr"]
    assert f"{psnr['mean']:.2f} ± {psnr['sd']:.2f}" in printed
    assert "4 subjects, 12 slices" in printed
    assert "nobody knows whether these subjects" in errors  # no config.json beside it
    rows = table("a.csv")
    assert len(rows) == 24 and rows[0]["method"] == "bicubic"
    gains = [float(row["gain"]) for row in rows if row["method"] == str(tiny)]
    assert min(gains) == pytest.approx(found[str(tiny)]["worst_gain"])
    with Image.open(tmp_path / "examples.png") as image:
        assert image.size[0] > 600
    lines = [line for line in printed.splitlines() if " gain, " in line]
    assert [line.split()[1] for line in lines] == ["best", "median", "worst"]
    shown = [float(line.split()[3]) for line in lines]
    assert shown[0] == pytest.approx(max(gains), abs=0.01)
    assert shown[2] == pytest.approx(min(gains), abs=0.01)


def test_all_rows_see_the_same_low_resolution_slices(adni, capsys):
    """An untrained network that is bicubic interpolation scores exactly what bicubic scores."""
    names = ("bilinear", "kspace", "blur-2", "rician-5", "jpeg-50")
    path = save_weights("a.pt", estimator=True)
    files = ("--csv", "a.csv", "--examples", "a.png")
    tables = results(path, "--data", adni, "--told", "--degradation", *names, *files)
    assert list(tables) == list(names)
    for name, found in tables.items():
        for metric in ("mse", "psnr", "psnr_brain", "ssim", "lr_rmse", "power_ratio"):
            same = pytest.approx(float(found["bicubic"][metric]["mean"]))
            assert found[str(path)][metric]["mean"] == same
        if name in ("bilinear", "kspace", "blur-2"):  # noise is another for each slice
            assert_equal(found["bicubic"], by_hand(adni / "test", bicubic, name))
    printed = capsys.readouterr().out
    lines = printed.split("over bicubic (dB)")[1].splitlines()
    assert [line.split()[0] for line in lines[2:7]] == list(names)
    assert [line.split(":")[0] for line in lines if "worst gain" in line] == list(names)
    with Image.open("a.png") as image:
        assert image.size[0] > 600


@pytest.mark.parametrize("told", [True, False])
def test_networks_are_told_the_true_degradation_or_find_it(adni, told):
    path = attentive("a.pt", estimator=True)
    network = modules.load_network(load_checkpoint(path))
    truth = describe_degradation("blur-2", (4, 4)) if told else None
    words = ["--told"] if told else []
    found = results(path, "--data", adni, "--degradation", "blur-2", *words)["blur-2"]

    def upscale(lr):
        return network(lr, (4, 4), modules.full_description(network.describe(lr, truth)))

    with torch.inference_mode():
        assert_equal(found[str(path)], by_hand(adni / "test", upscale, "blur-2"))


@pytest.mark.parametrize("alone", [True, False])
def test_slices_of_a_volume_are_scored_as_they_are_upscaled(tmp_path, brain, alone):
    """With their neighbours, and with one description for all; or each by itself."""
    volume = brain[80:88, 60:124, 60:124].copy()
    volume[:2] = np.random.default_rng(0).integers(0, 256, (2, 64, 64))  # unlike all others
    slices = slices_of(tmp_path / "a.u8", [volume], mm=(3.0, 1.0, 1.0))
    up = Upscaler(attentive("a.pt", neighbours=2, estimator=not alone), "cpu")
    rows = score_slices({"it": up}, slices, "kspace", alone=alone)["it"]
    hr = torch.from_numpy(volume)[:, None] / 255
    sr = up(degrade(hr, "kspace")[:, 0].numpy(), 4, None if alone else 3 / 4)
    for row, x, wanted in zip(rows, sr, hr[:, 0].numpy(), strict=True):
        psnr = peak_signal_noise_ratio(wanted, x.clip(0, 1), data_range=1)
        assert row["psnr"] == pytest.approx(psnr, abs=1e-4)


def test_another_scale_of_the_same_weights_is_scored(adni):
    path = save_weights("a.pt", (4, 4), (2, 2), tail=0.01)
    network = modules.load_network(load_checkpoint(path))
    found = results(path, "--data", adni, "--scale", 2)["bicubic"]
    with torch.inference_mode():
        wanted = by_hand(adni / "test", lambda lr: network(lr, (2, 2)), scale=(2, 2))
    assert_equal(found[str(path)], wanted)


@pytest.mark.parametrize(("split", "slices"), [("val", 3), ("all", 36)])
def test_the_split_is_the_one_of_training(adni, tiny, capsys, split, slices):
    evaluate.main([str(tiny), "--data", str(adni), "--split", split])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(f"{split}: "))
    assert f", {slices} slices" in line


def test_a_data_set_without_test_people_is_said_to_have_none(adni, tiny, tmp_path, cli):
    adni = Path(shutil.copytree(adni, tmp_path / "data"))
    (adni / "test").rename(adni / "val")
    status, _, error = cli(evaluate.main, tiny, "--data", adni)
    assert status and "has no subjects in test; --split val" in error
    assert cli(evaluate.main, tiny, "--data", adni, "--split", "val")[0] == 0


@pytest.fixture
def run(tiny, everybody):
    """A run folder, as far as evaluate.py looks at it: of a split by seed 5, with all people."""
    folder = Path("runs/a")
    folder.mkdir(parents=True)
    (folder / "best.pt").write_bytes(tiny.read_bytes())
    parts, _ = dataset.load_parts(data=everybody, seed=5)
    subjects = {name: sorted(set(part.subject.tolist())) for name, part in parts.items()}
    config = {"arguments": {"data": str(everybody), "seed": 5}, "subjects": subjects}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, subjects


def test_data_and_split_are_those_of_the_checkpoints_run(run, everybody, capsys):
    folder, subjects = run
    evaluate.main([str(folder / "best.pt"), "--csv", "a.csv"])
    assert "in its training" not in capsys.readouterr().err
    assert {row["subject"] for row in table("a.csv")} == set(subjects["test"])
    evaluate.main([str(folder / "best.pt"), "--seed", "0"])  # another split
    warning = capsys.readouterr().err
    assert "subjects that it was trained on" in warning and "best.pt" in warning
    other = Path("runs/b")
    other.mkdir()
    (other / "best.pt").write_bytes((folder / "best.pt").read_bytes())
    config = {"arguments": {"data": str(everybody), "seed": 6}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(evaluate.UsageError, match="--seed: the runs of the weights differ"):
        evaluate.main([str(folder / "best.pt"), str(other / "best.pt")])
    config["arguments"]["subjects"] = "a table that is of that data.csv"
    (other / "config.json").write_text(json.dumps(config))
    evaluate.main([str(other / "best.pt"), "--data", str(everybody)])


def test_people_of_the_weights_a_run_began_with_are_known(run, capsys):
    folder, subjects = run
    content = load_checkpoint(folder / "best.pt")
    save_checkpoint(folder / "best.pt", content | {"people": [*subjects["test"], "x"]})
    evaluate.main([str(folder / "best.pt")])
    n = len(subjects["test"])
    assert f"{n} of these {n} subjects" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    save_checkpoint(folder / "best.pt", content)  # as it began with weights that list nobody
    config |= {"weights_without_people": "old.pt", "people_of_weights": ["y"]}
    people, unlisted = evaluate.people_known(folder / "best.pt", config)
    assert set(people) == {*subjects["train"], *subjects["val"], "y"} and unlisted == "old.pt"
    (folder / "config.json").write_text(json.dumps(config))
    evaluate.main([str(folder / "best.pt"), "--split", "val"])
    said = capsys.readouterr().err
    assert "old.pt, which it began with, lists none" in said and "it was trained on" in said


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
    found = results(tiny, "--data", adni, "--consistent")["bicubic"]
    assert list(found) == ["bicubic", str(tiny), f"{tiny}, consistent"]
    _, free, agrees = found.values()
    assert agrees["lr_rmse"]["mean"] < free["lr_rmse"]["mean"] / 3
    assert agrees["psnr"]["mean"] > free["psnr"]["mean"]


def test_ready_pairs_score_what_their_degradation_scores(adni, tiny):
    for path in (adni / "test").rglob("*.png"):
        hr = torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None] / 255
        lr = (degrade(hr, "bilinear")[0, 0] * 255).round().byte().numpy()
        place = Path("lr") / path.relative_to(adni / "test")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lr).save(place)
    pairs = results(tiny, "--pairs", "lr", adni / "test")["as given"]
    made = results(tiny, "--data", adni, "--degradation", "bilinear")["bilinear"]
    for name in ("bicubic", str(tiny)):
        assert pairs[name]["psnr"]["mean"] == pytest.approx(made[name]["psnr"]["mean"], abs=0.005)
        assert pairs[name]["lr_rmse"]["mean"] is None  # nobody knows how they were degraded
    Image.new("L", (9, 9)).save(place)
    with pytest.raises(evaluate.DataError, match="becomes 36x36, its truth is 112x96"):
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


def test_pairs_in_other_units_score_the_same(tiny, real_slices):
    """Pictures of 16 bits; white is that of HR."""
    hr, lr = (x[0, 0].numpy() * 40000 for x in (real_slices, degrade(real_slices, "bicubic")))
    Image.fromarray(hr.astype(np.uint16)).save("hr.png")
    white = np.percentile(hr[hr > hr.mean()], 99.8)
    sr = bicubic(torch.from_numpy(lr)[None, None])[0, 0].numpy()
    wanted = peak_signal_noise_ratio(hr.clip(0, white), sr.clip(0, white), data_range=white)
    for units in (1, 0.3):
        Image.fromarray((lr * units).astype(np.uint16)).save("lr.png")
        scores = results(tiny, "--pairs", "lr.png", "hr.png")["as given"]
        assert scores["bicubic"]["psnr"]["mean"] == pytest.approx(wanted, abs=0.01)


def test_volumes_of_a_pair_are_compared_where_their_headers_say(tiny, real_slices):
    """The LR lacks the lowest slice, which has no score."""
    hr, lr = (
        x[:, 0].numpy().transpose(2, 1, 0) for x in (real_slices, degrade(real_slices, "box"))
    )
    place = np.diag([4.0, 4, 1, 1])
    place[:3, 3] = 1.5, 1.5, 1
    save_volume(Path("lr.nii"), lr[..., 1:], place)
    save_volume(Path("hr.nii"), hr)
    evaluate.main([str(tiny), "--pairs", "lr.nii", "hr.nii", "--csv", "a.csv"])
    rows = {row["name"]: row for row in table("a.csv") if row["method"] == "bicubic"}
    assert list(rows) == ["hr.nii#1", "hr.nii#2"]
    white = np.percentile(hr[hr > hr.mean()], 99.8)
    sr = bicubic(torch.from_numpy(lr.transpose(2, 1, 0).copy())[:, None])[:, 0].numpy()
    for i in (1, 2):
        both = (x.clip(0, white) for x in (hr[..., i].T, sr[i]))
        wanted = peak_signal_noise_ratio(*both, data_range=white)
        assert float(rows[f"hr.nii#{i}"]["psnr"]) == pytest.approx(wanted, abs=0.01)


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
    path = attentive("a.pt", (2, 1), estimator=True)
    words = path, "--data", heads, "--degradation", "box", "blur-1"
    blind, told = results(*words), results(*words, "--told")
    assert list(blind["box"]) == ["cubic", "linear", str(path)]
    said = capsys.readouterr().out
    assert "1 subject, 1 whole volume; x2x1, LR by box" in said and "volumes below cubic" in said
    for name in ("box", "blur-1"):
        assert blind[name][str(path)]["mse"] != told[name][str(path)]["mse"]
    assert blind["box"]["cubic"]["mse"] != blind["blur-1"]["cubic"]["mse"]


def test_scores_of_volumes_are_those_of_scipy_and_pytorch(brain):
    """Thick slices made of four, interpolated along z alone; black at both ends."""
    hr = np.zeros((24, 20, 80), np.float32)
    hr[..., 24:56] = brain[70:102, 100:120, 80:104].transpose(2, 1, 0) / np.float32(255)
    thick = (hr.reshape(24, 20, 20, 4).mean(3) * 255).round() / 255
    places, fine = 4 * np.arange(20) + 1.5, np.arange(80)
    tensor = torch.from_numpy(thick)
    wanted = {
        "cubic": CubicSpline(places, thick, axis=2)(fine),
        "linear": np.apply_along_axis(lambda x: np.interp(fine, places, x), 2, thick),
        "it": F.interpolate(tensor[None], scale_factor=(1, 4), mode="bicubic")[0].numpy(),
    }
    up = Upscaler(save_weights("a.pt", (4, 1)), "cpu")
    found = volume_scores.volume_scores({"it": up}, hr, (1, 1, 1), "box", 4, 0)
    assert list(found) == list(wanted)
    for name, volume in wanted.items():
        psnr = peak_signal_noise_ratio(hr, volume.clip(0, 1), data_range=1)
        assert found[name]["psnr"] == pytest.approx(psnr, abs=0.01), name


def test_volumes_are_scored_between_black_and_white_and_inside_the_brain():
    hr = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32) ** 4
    sr, brain = 1.5 * hr - 0.2, hr > 0.05
    clipped, found = sr.clip(0, 1), volume_scores.volume_score(sr, hr)
    wanted = peak_signal_noise_ratio(hr[brain], clipped[brain], data_range=1)
    assert found["mse"] == pytest.approx(((clipped - hr) ** 2).mean(), rel=1e-5)
    assert found["psnr_brain"] == pytest.approx(wanted, rel=1e-5)
    assert volume_scores.volume_score(sr, 0 * hr)["psnr_brain"] is None


def test_volumes_that_are_thick_themselves_and_pictures_are_refused(heads, adni, cli):
    path = save_weights("a.pt", (2, 1), tail=0.01)
    scan = next(heads.glob("*.nii.gz"))
    save_volume(scan, nib.load(scan).get_fdata(), (1, 1, 4))
    for data, words in ((heads, "thick themselves"), (adni, "holds pictures only")):
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
        (2, "--data: is empty", [tiny, "--data", ""]),
        (1, "none.pt: no such file", ["none.pt", *data]),
        (2, "enlarge by different factors", [tiny, x2, *data]),
        (2, "enlarges by 4, not by 2x2", [tiny, *data, "--scale", "2"]),
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
    up = Upscaler(attentive("a.pt", neighbours=1, estimator=True), "cpu")
    rows = score_slices({"it": up}, slices, "rician-5")
    example = example_of(up, slices, len(slices) - 1, "rician-5", (4, 4), rows)
    shown = metrics.score(torch.from_numpy(example.sr), torch.from_numpy(example.hr))
    assert shown["psnr"] == pytest.approx(rows["it"][-1]["psnr"], abs=1e-3)

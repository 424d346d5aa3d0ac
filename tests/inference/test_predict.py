"""predict.py on pictures: sizes, bit depths, names, folders, figures, simulation."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, pixels, save_weights
from PIL import Image

import modules
import predict
from degradation import degrade
from evaluation import metrics
from inference import checkpoints, tiling, upscaler
from utils import DataError, UsageError


@pytest.fixture
def run(tiny):
    """Run predict.py in this process with the tiny network."""

    def call(*arguments) -> int:
        return predict.main(["--checkpoint", str(tiny), "--device", "cpu", *map(str, arguments)])

    return call


def ramp(height: int, width: int, top: float = 255) -> np.ndarray:
    """A smooth picture that uses all of 0..top."""
    y, x = np.mgrid[:height, :width]
    waves = 2 + np.sin(y / 5) + np.cos(x / 7)
    return waves / waves.max() * top


def slice_like(size: int) -> np.ndarray:
    """A bright disk on black, of all grey levels: nothing that a network would be warned of."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    return 255 * np.clip(1 - 4 * (x**2 + y**2), 0, 1)


def save(path, values, dtype=np.uint8) -> Path:
    Image.fromarray(np.asarray(values, dtype)).save(path)
    return path


def names(folder) -> list[str]:
    """What lies below a folder but for folders, hidden files and sidecars."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")
    return sorted(str(p.relative_to(folder)) for p in files if p.suffix != ".json")


def test_a_slice_is_enlarged_not_shrunk(tmp_path, run, capsys):
    picture = save(tmp_path / "slice.png", ramp(24, 36))
    assert run("--image", picture) == 0
    sr = pixels(tmp_path / "slice_x4.png")
    assert sr.shape == (96, 144) and sr.dtype == np.uint8
    # Shrunk again by the mean of 4x4 pixels it is the picture that was given.
    assert np.abs(sr.reshape(24, 4, 36, 4).mean((1, 3)) - pixels(picture)).max() < 6
    figure = pixels(tmp_path / "slice_x4_figure.png")
    assert figure.shape[0] > 300 and figure.shape[1] > 800
    out = capsys.readouterr().out
    assert "slice_x4.png" in out and "slice_x4_figure.png" in out
    assert "tiny.pt" in out and "nothing, made by a test" in out and "bicubic" in out


def test_bit_depth_and_units_are_kept(tmp_path, run):
    for name, dtype, low, high, out in (
        ("eight.png", np.uint8, 0, 200, "eight_x4.png"),
        ("sixteen.png", np.uint16, 0, 51000, "sixteen_x4.png"),
        ("twelve.tif", np.uint16, 0, 3100, "twelve_x4.png"),
        ("real.tif", np.float32, -1000, 1000, "real_x4.tif"),
    ):
        given = save(tmp_path / name, low + ramp(16, 16, high - low), dtype)
        run("--image", given, "--no-figure")
        sr = pixels(tmp_path / out)
        assert sr.dtype == dtype, name
        small = sr.astype(float).reshape(16, 4, 16, 4).mean((1, 3))
        assert np.abs(small - pixels(given)).max() < 0.03 * (high - low), name


def test_a_colour_picture_needs_force_and_its_sidecar_says_so(tmp_path, run, capsys):
    Image.new("RGB", (8, 8), (250, 10, 10)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match="colour"):
        run("--image", tmp_path / "red.png")
    run("--image", tmp_path / "red.png", "--force")
    assert "colour" in capsys.readouterr().err
    sidecar = json.loads((tmp_path / "red_x4.json").read_text())
    assert "is a colour" in sidecar["Warnings"][0]


def test_with_a_known_degradation_the_result_agrees_with_the_picture(tmp_path, run, real_slices):
    for name in ("bilinear", "kspace"):
        lr = degrade(real_slices[1:2], name)
        picture = save(tmp_path / f"{name}.png", (lr[0, 0] * 255).round())

        def error(*options, picture=picture, lr=lr, name=name):
            run("--image", picture, "--no-figure", *options)
            sr = torch.from_numpy(pixels(tmp_path / f"{name}_x4.png").copy())[None, None] / 255
            again = degrade(sr, name, rounded=False)
            return float((again - lr).square().mean().sqrt())

        assert error("--degradation", name) < 0.5 * error()


def test_simulation_scores_against_the_given_picture(tmp_path, run, capsys, real_slices):
    hr = real_slices[:1]
    picture = save(tmp_path / "s.png", hr[0, 0] * 255)
    before = picture.read_bytes()
    run("--image", picture, "--simulate", "--degradation", "bilinear", "--output", tmp_path / "o")
    assert names(tmp_path / "o") == ["s_simulated_x4.png", "s_simulated_x4_figure.png"]
    assert pixels(tmp_path / "o/s_simulated_x4.png").shape == (200, 160)
    assert picture.read_bytes() == before
    lr = degrade(hr, "bilinear")
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")
    wanted = metrics.score(bicubic[0, 0], hr[0, 0])
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("bicubic"))
    assert f"{wanted['psnr']:.2f}" in row and f"{wanted['ssim']:.4f}" in row
    assert f"{wanted['mse']:.5f}" in row


def test_a_folder_keeps_names_and_sub_folders(tmp_path, run, capsys):
    data = tmp_path / "data"
    (data / "sub" / "deep").mkdir(parents=True)
    for name in ("a.png", "sub/b.tif", "sub/deep/c d.jpeg", "sub/.hidden.png"):
        save(data / name, ramp(8, 12))
    save(data / "big.png", ramp(20, 12))
    assert run("--image", data, "--output", tmp_path / "out") == 0
    wanted = ["a_x4.png", "big_x4.png", "sub/b_x4.png", "sub/deep/c d_x4.png"]
    assert names(tmp_path / "out") == wanted
    assert "4 upscaled" in capsys.readouterr().out
    run("--image", data / "a.png", "--output", tmp_path / "one", "--no-figure")
    assert np.array_equal(pixels(tmp_path / "one/a_x4.png"), pixels(tmp_path / "out/a_x4.png"))


def test_a_picture_is_the_same_alone_and_in_a_folder(tmp_path, real_slices, monkeypatch):
    """Also of weights that find the degradation, for each picture its own, and in bf16."""
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(predict, "GROUPS", 1)
    for i in range(6):
        size = (60, 64) if i != 3 else (40, 44)
        grey = (real_slices[i % len(real_slices), 0] * 255).byte().numpy()
        grey = Image.fromarray(grey).resize(size[::-1])
        noisy = np.asarray(grey) + (i % 2) * np.random.default_rng(i).normal(0, 9, size)
        save(tmp_path / "in" / f"{i}.png", noisy.clip(0, 255))
    flags = ["--no-figure", "--device", "cpu", "--threads", "2", "--workers", "1"]
    predict.main([str(tmp_path / "in"), "--output", str(tmp_path / "all"), *flags])
    for i in range(6):
        one = tmp_path / "in" / f"{i}.png"
        predict.main([str(one), "--output", str(tmp_path / "one"), *flags])
        alone, together = (pixels(tmp_path / d / f"{i}_x4.png") for d in ("one", "all"))
        assert np.array_equal(alone, together)
        a, b = (json.loads((tmp_path / d / f"{i}_x4.json").read_text()) for d in ("one", "all"))
        assert a["Degradation"] == b["Degradation"]


def test_a_second_call_skips_what_is_finished_and_its_own_results(tmp_path, run, capsys):
    save(tmp_path / "a.png", ramp(8, 8))
    save(tmp_path / "b.png", ramp(8, 8))
    run("--image", tmp_path, "--figure")
    before = names(tmp_path)
    assert len(before) == 6
    (tmp_path / "b_x4.png").unlink()
    (tmp_path / "a_x4.png").write_bytes(b"mark")
    capsys.readouterr()
    run("--image", tmp_path)
    out = capsys.readouterr().out
    assert "1 upscaled" in out and "1 finished before" in out and "results of earlier" in out
    assert names(tmp_path) == before
    assert (tmp_path / "a_x4.png").read_bytes() == b"mark"
    run("--image", tmp_path, "--overwrite")
    assert pixels(tmp_path / "a_x4.png").shape == (32, 32)
    save(tmp_path / "slice_x5.png", ramp(8, 8))  # a number: results have a record beside them
    run("--image", tmp_path)
    assert pixels(tmp_path / "slice_x5_x4.png").shape == (32, 32)


def test_inputs_of_one_stem_do_not_collide(tmp_path, run):
    data = tmp_path / "data"
    data.mkdir()
    for name, top in (("a.png", 250), ("a.jpg", 100), ("a.jpg.png", 50), ("b.png", 20)):
        save(data / name, ramp(8, 8, top))
    run("--image", data, "--output", tmp_path / "o")
    tops = {name: pixels(tmp_path / "o" / name).max() for name in names(tmp_path / "o")}
    assert set(tops) == {"a.png_x4.png", "a.jpg_x4.png", "a.jpg.png_x4.png", "b_x4.png"}
    assert tops["a.png_x4.png"] > 200 > tops["a.jpg_x4.png"] > 80 > tops["a.jpg.png_x4.png"]
    # One of them alone gets the same name.
    run("--image", data / "a.jpg", "--output", tmp_path / "p", "--no-figure")
    assert names(tmp_path / "p") == ["a.jpg_x4.png"]


def test_shards_share_a_folder_without_overlap(tmp_path, run, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(7):
        save(data / f"{i}.png", ramp(4, 4))
    done = []
    for i in range(3):
        run("--image", data, "--output", tmp_path / f"o{i}", "--shard", f"{i + 1}/3")
        done += names(tmp_path / f"o{i}")
    assert sorted(done) == [f"{i}_x4.png" for i in range(7)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    run("--image", data, "--output", tmp_path / "r")
    assert names(tmp_path / "r") == ["1_x4.png", "5_x4.png"]


def test_nothing_is_written_outside_the_output_folder(tmp_path, run, capsys):
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    save(outside / "x.png", ramp(4, 4))
    save(data / "t..ricky..png", ramp(4, 4))
    save(data / "new\nline.png", ramp(4, 4))
    try:
        (data / "link").symlink_to(outside)
    except OSError:
        pytest.skip("no links here")
    assert run("--image", data) == 1  # beside the input would be beside the link's target
    assert [p.name for p in outside.iterdir()] == ["x.png"]
    assert "link out of the output folder" in capsys.readouterr().err
    # A result that is a link is replaced, not written through.
    (tmp_path / "o").mkdir()
    (tmp_path / "o/x_x4.png").symlink_to(outside / "x.png")
    before = (outside / "x.png").read_bytes()
    run("--image", outside / "x.png", "--output", tmp_path / "o")
    assert (outside / "x.png").read_bytes() == before
    assert pixels(tmp_path / "o/x_x4.png").shape == (16, 16)
    assert run("--image", data, "--output", tmp_path / "p") == 0
    assert names(tmp_path / "p") == ["link/x_x4.png", "new\nline_x4.png", "t..ricky._x4.png"]


def test_as_a_program_without_heavy_imports(tmp_path, tiny):
    picture = save(tmp_path / "a slice.png", ramp(8, 8))
    program = (
        "import sys, runpy; sys.argv[0] = 'predict.py'\n"
        f"try: runpy.run_path({str(ROOT / 'predict.py')!r}, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'matplotlib', 'nibabel', 'pydicom', 'scipy', 'torchvision'}\n"
        # PyTorch 2.6 loads SymPy for its meta device.
        "import torch; heavy |= set() if torch.__version__ < '2.7' else {'sympy'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))\n"
    )
    command = ["--image", str(picture), "--checkpoint", str(tiny), "--no-figure"]
    result = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "heavy:"
    assert pixels(tmp_path / "a slice_x4.png").shape == (32, 32)
    command = ["predict.py", "--image", str(tmp_path / "none.png"), "--checkpoint", str(tiny)]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


# --- at the prompt --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "scale"), [((1, 1), 2), ((3, 5), 3), ((1, 9), 4), ((17, 30), 4)])
def test_every_size_and_scale(tmp_path, monkeypatch, size, scale):
    for n in (2, 3, 4):
        save_weights(tmp_path / f"x{n}.pt", (n, n))
    monkeypatch.setattr(upscaler, "WEIGHTS", tmp_path)
    picture = save(tmp_path / "p.png", ramp(*size))
    predict.main([str(picture), "--scale", str(scale), "--device", "cpu"])
    sr = pixels(tmp_path / f"p_x{scale}.png")
    assert sr.shape == (scale * size[0], scale * size[1])
    lr = torch.from_numpy(pixels(picture).copy())[None, None].float()
    wanted = torch.nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic")[0, 0]
    assert np.abs(sr - wanted.clamp(0, 255).numpy()).max() <= 0.51
    sizes = (3 * size[0] + scale, 3 * size[1] + scale)
    picture = save(tmp_path / "s.png", ramp(*sizes))
    predict.main([str(picture), "--scale", str(scale), "--simulate", "--device", "cpu"])
    cut = tuple(n // scale * scale for n in sizes)
    assert pixels(tmp_path / f"s_simulated_x{scale}.png").shape == cut
    with pytest.raises(DataError, match="small"):
        predict.main([str(save(tmp_path / "t.png", ramp(1, 8))), "--simulate", "--device", "cpu"])
    weights = ["--checkpoint", str(tmp_path / "x2.pt"), "--scale", "3"]
    with pytest.raises(UsageError, match=r"--scale 3: .* enlarges by 2"):
        predict.main([str(picture), *weights])


def test_several_inputs_none_is_lost(tmp_path, run, capsys):
    a, b, c = (save(tmp_path / f"{n}.png", ramp(8, 8)) for n in "abc")
    (tmp_path / "d").mkdir()
    save(tmp_path / "d/e.png", ramp(8, 8))
    (tmp_path / "bad.png").write_text("no picture")
    options = (a, "--image", b, "--image", c, tmp_path / "d", a, tmp_path / "bad.png")
    assert run(*options, "--output", tmp_path / "o") == 1
    assert names(tmp_path / "o") == [f"{n}_x4.png" for n in "abce"]
    said = capsys.readouterr()
    assert "4 upscaled" in said.out and "1 failed" in said.out and "bad.png" in said.err
    run(*options, "--output", tmp_path / "o")
    assert "4 finished before" in capsys.readouterr().out
    with pytest.raises(UsageError, match="name a picture"):
        run()


def test_json_is_all_that_is_printed(tmp_path, run, capsys):
    a, b = save(tmp_path / "a.png", ramp(24, 24)), tmp_path / "b.png"
    b.write_text("no picture")
    run(a, "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert not said.err and found["files"][0] == str(tmp_path / "a_x4.png")
    sidecar = json.loads((tmp_path / "a_x4.json").read_text())
    assert {k: found[k] for k in sidecar} == sidecar
    assert sidecar["SourceSHA256"] == hashlib.sha256(a.read_bytes()).hexdigest()
    weights = Path(sidecar["Weights"])
    assert weights.name == "tiny.pt" and len(sidecar["WeightsSHA256"]) == 64
    assert sidecar["Scale"] == [4, 4] and sidecar["DegradationFrom"] == "nobody"
    assert run(a, b, "--json", "--overwrite") == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["input"] == str(a) and "not a picture" in second["error"]
    run(save(a, slice_like(24)), "--quiet")
    assert capsys.readouterr() == ("", "")


def test_what_is_told_reaches_the_network_and_the_sidecar(tmp_path, capsys):
    weights = save_weights(tmp_path / "told.pt", told=True)
    picture = save(tmp_path / "a.png", ramp(24, 24))
    common = [str(picture), "--checkpoint", str(weights), "--device", "cpu", "--no-figure"]
    seen = []
    for options, source, words in (
        ("", "estimated by the network", ""),
        ("--blur 1.5 --noise 0.02", "told by the user", "blur-1.5+rician-2"),
        ("--blur 4", "told by the user", "blur-4"),  # not the nearest of what is estimated
        ("--degradation kspace", "told by the user", "kspace"),
    ):
        predict.main([*common, *options.split()])
        sidecar = json.loads((tmp_path / "a_x4.json").read_text())
        assert sidecar["DegradationFrom"] == source and words in sidecar["Degradation"]
        assert sidecar["Degradation"] in capsys.readouterr().out  # and is said
        assert sidecar["ProjectedOntoInput"] == bool(options)
        seen.append(sidecar["Degradation"])
    assert len(set(seen)) == 4
    with pytest.raises(UsageError, match=r"do not agree: .* two point spreads"):
        predict.main([*common, "--degradation", "kspace", "--blur", "1.5"])


def test_weights_are_found_by_their_old_names(tmp_path, run):
    picture = save(tmp_path / "a.png", slice_like(24))
    run(picture, "--checkpoint", ROOT / "weights/default.pt", "--no-figure")
    assert json.loads((tmp_path / "a_x4.json").read_text())["Weights"] == "x4.pt"


def test_options_that_do_nothing_are_said(tmp_path, run, capsys):
    picture = save(tmp_path / "a.png", slice_like(24))
    for options, words in (
        (["--axis", "coronal"], "--axis does nothing"),
        (["--series", "3"], "--series does nothing"),
        (["--overwrite"], "--overwrite does nothing"),
        (["--degradation", "kspace", "--no-consistent"], "cannot be told"),
    ):
        run(picture, "--no-figure", *options)
        assert words in capsys.readouterr().err
    run(picture, "--no-figure")
    assert not capsys.readouterr().err


def test_bands_and_tiles_change_nothing_and_are_announced(tmp_path, run, monkeypatch, capsys):
    picture = save(tmp_path / "p.png", ramp(150, 20, 60000), np.uint16)
    run(picture, "--output", tmp_path / "whole")
    monkeypatch.setattr(tiling, "BAND_PIXELS", 1400)
    monkeypatch.setattr(predict, "LARGE", 5000)
    capsys.readouterr()
    run(picture, "--output", tmp_path / "bands", "--tile", "13")
    assert "the result takes" in capsys.readouterr().out
    whole, bands = (pixels(tmp_path / o / "p_x4.png").astype(int) for o in ("whole", "bands"))
    assert np.abs(whole - bands).max() <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_picture_of_16_million_pixels_takes_less_than_1_5_gb(tmp_path, tiny):
    picture = save(tmp_path / "p.png", ramp(4000, 4000))
    program = (
        "import sys, predict; predict.main(sys.argv[1:])\n"
        # Not ru_maxrss, which begins with what the process that started this one had taken.
        "print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line])"
    )
    command = [str(picture), "--checkpoint", str(tiny), "--no-figure", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) < 1.5e6
    assert (tmp_path / "p_x4.png").exists()


def test_an_interrupted_folder_says_how_to_go_on(tmp_path, run, monkeypatch, capsys):
    for i in range(4):
        save(tmp_path / f"{i}.png", ramp(8, 8))
    real, seen = predict.predict_one, []

    def interrupted(job, *rest):
        seen.append(job)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(job, *rest)

    monkeypatch.setattr(predict, "predict_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--workers", "1")
    assert "interrupted after 2 of 4; the same command" in capsys.readouterr().err
    run(tmp_path)
    assert "finished before" in capsys.readouterr().out
    assert len(names(tmp_path)) == 8


# --- expected errors, and inputs unlike all training images ---------------------------------------


@pytest.fixture
def unsure(tmp_path) -> Path:
    """Weights with an error head and a calibration that doubles what it says."""
    return save_weights(tmp_path / "unsure.pt", channels=4, blocks=1, spread=True)


def expected_errors(weights, lr) -> np.ndarray:
    network = modules.load_network(checkpoints.load_checkpoint(weights))
    lr = torch.from_numpy(np.asarray(lr, np.float32))[None, None]
    return 2 * tiling.upscale(network, lr, spread=True)[0, 1].numpy()


def test_a_map_of_expected_errors_beside_pictures(tmp_path, unsure, capsys):
    given = slice_like(24).astype(np.uint8)
    for name, kind, high in (("a.png", np.uint8, 255), ("b.tif", np.float32, 1000)):
        picture = save(tmp_path / name, given * (high / 255), kind)
        common = [str(picture), "--checkpoint", str(unsure), "--device", "cpu", "--uncertainty"]
        predict.main(common)
        stem, ending = name.split(".")
        assert f"{stem}_x4_error.{ending}" in capsys.readouterr().out
        with Image.open(tmp_path / f"{stem}_x4_error.{ending}") as image:
            found, words = np.asarray(image), image.info.get("Description", "")
        about = json.loads((tmp_path / f"{stem}_x4.json").read_text())["ExpectedError"]
        assert about["Interval"] == 2.303 and found.shape == (96, 96)
        assert found.dtype == (np.uint16 if ending == "png" else np.float32)
        assert (f"value x {about['Step']:.9g}" in words) == (ending == "png")
        wanted = high * expected_errors(unsure, given / 255)
        np.testing.assert_allclose(found * about["Step"], wanted, rtol=2e-3, atol=about["Step"])
    predict.main([*common, "--simulate"])
    sidecar = json.loads((tmp_path / "b_simulated_x4.json").read_text())
    assert 0 <= sidecar["ExpectedError"]["ShareWithinInterval"] <= 1
    assert "of the pixels are within" in capsys.readouterr().out
    folder = [str(tmp_path), *common[1:], "--output", str(tmp_path / "o")]
    predict.main([w for w in folder if w != "--uncertainty"])
    predict.main(folder)  # what has no map yet is not finished
    assert {"a_x4_error.png", "b_x4_error.tif"} <= set(names(tmp_path / "o"))
    capsys.readouterr()
    predict.main(folder)
    assert "2 finished before" in capsys.readouterr().out


def test_weights_without_an_error_head_and_damaged_calibrations(tmp_path, run, unsure):
    picture = save(tmp_path / "a.png", ramp(8, 8))
    with pytest.raises(DataError, match=r"no error head.*python -m training.error_head"):
        run(picture, "--uncertainty")
    good = checkpoints.load_checkpoint(unsure)
    ends, nan = [-7.0, 0.0], float("nan")
    for calibration in (
        None, [], {}, {"edges": ends}, {"edges": ends, "factors": [1.0]},
        {"edges": ends, "factors": [1.0, nan]}, {"edges": ends, "factors": [1.0, -1.0]},
        {"edges": ends[::-1], "factors": [1.0, 1.0]}, {"edges": [[], []], "factors": ["a", "b"]},
        {"edges": ends, "factors": torch.ones(2)},
        {"edges": ends, "factors": [1.0, 1.0], "noisy": [1.0]},
        {"edges": ends, "factors": [1.0, 10**400]},
    ):  # fmt: skip
        checkpoints.save_checkpoint(unsure, {**good, "calibration": calibration})
        with pytest.raises(DataError, match="calibration of its error head is damaged"):
            predict.main([str(picture), "--checkpoint", str(unsure), "--uncertainty"])
    predict.main([str(picture), "--checkpoint", str(unsure)])


def test_a_picture_unlike_all_training_images_is_said(tmp_path, run, capsys):
    (tmp_path / "d").mkdir()
    bright = save(tmp_path / "d/bright.png", 255 - slice_like(40))
    save(tmp_path / "d/good.png", slice_like(40))
    run(bright, "--no-figure")
    assert "a bright background" in capsys.readouterr().err
    assert "bright" in json.loads((tmp_path / "d/bright_x4.json").read_text())["Warnings"][0]
    run(tmp_path / "d", "--output", tmp_path / "o")
    said = capsys.readouterr()
    assert not said.err and "1 unlike training images" in said.out
    assert "bright" in json.loads((tmp_path / "o/bright_x4.json").read_text())["Warnings"][0]
    assert not json.loads((tmp_path / "o/good_x4.json").read_text())["Warnings"]

"""predict.py on pictures: what is enlarged, said and recorded; simulation; expected errors."""

import hashlib
import json
import os
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
from inference import Upscaler, checkpoints, tiling
from utils import DataError, UsageError


@pytest.fixture
def run(tiny):
    """Run predict.py in this process with the tiny network."""

    def call(*arguments) -> int:
        return predict.main(["--weights", str(tiny), "--device", "cpu", *map(str, arguments)])

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


def record(path) -> dict:
    """A record that any reader of JSON takes: NaN and infinity are none."""

    def refuse(word):
        raise AssertionError(f"{path}: {word} is no JSON")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


# --- pictures -------------------------------------------------------------------------------------


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
    assert "tiny.pt" in out


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


@pytest.mark.parametrize(("size", "scale"), [((1, 1), 2), ((3, 5), 3), ((1, 9), 4), ((17, 30), 4)])
def test_every_size_and_scale(tmp_path, bicubic, size, scale):
    words = ["--scale", str(scale), "--weights", str(bicubic), "--device", "cpu"]
    picture = save(tmp_path / "p.png", ramp(*size))
    predict.main([str(picture), *words])
    sr = pixels(tmp_path / f"p_x{scale}.png")
    assert sr.shape == (scale * size[0], scale * size[1])
    lr = torch.from_numpy(pixels(picture).copy())[None, None].float()
    wanted = torch.nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic")[0, 0]
    assert np.abs(sr - wanted.clamp(0, 255).numpy()).max() <= 0.51
    sizes = (3 * size[0] + scale, 3 * size[1] + scale)
    predict.main([str(save(tmp_path / "s.png", ramp(*sizes))), "--simulate", *words])
    cut = tuple(n // scale * scale for n in sizes)
    assert pixels(tmp_path / f"s_simulated_x{scale}.png").shape == cut
    with pytest.raises(DataError, match=r"t.png: is too small to be shrunk"):
        predict.main([str(save(tmp_path / "t.png", ramp(1, 8))), "--simulate", *words])


def test_a_colour_picture_needs_force_and_its_record_says_so(tmp_path, run, capsys):
    Image.new("RGB", (8, 8), (250, 10, 10)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match="colour"):
        run(tmp_path / "red.png")
    run(tmp_path / "red.png", "--force")
    assert "colour" in capsys.readouterr().err
    assert "is a colour" in record(tmp_path / "red_x4.json")["Warnings"][0]


def test_with_a_known_degradation_the_result_agrees_with_the_picture(tmp_path, run, real_slices):
    for name in ("bilinear", "kspace"):
        lr = degrade(real_slices[1:2], name)
        picture = save(tmp_path / f"{name}.png", (lr[0, 0] * 255).round())

        def error(*options, picture=picture, lr=lr, name=name):
            run(picture, "--no-figure", *options)
            sr = torch.from_numpy(pixels(tmp_path / f"{name}_x4.png").copy())[None, None] / 255
            again = degrade(sr, name, rounded=False)
            return float((again - lr).square().mean().sqrt())

        assert error("--degradation", name) < 0.5 * error()


def test_simulation_scores_against_the_given_picture(tmp_path, run, capsys, real_slices):
    hr = real_slices[:1]
    picture = save(tmp_path / "s.png", hr[0, 0] * 255)
    before = picture.read_bytes()
    run(picture, "--simulate", "--degradation", "bilinear", "--output", tmp_path / "o")
    found = {path.name for path in (tmp_path / "o").iterdir()}
    assert found == {f"s_simulated_x4{end}" for end in (".png", ".json", "_figure.png")}
    assert pixels(tmp_path / "o/s_simulated_x4.png").shape == (200, 160)
    assert picture.read_bytes() == before
    lr = degrade(hr, "bilinear")
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")
    wanted = metrics.score(bicubic[0, 0], hr[0, 0])
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("bicubic"))
    assert f"{wanted['psnr']:.2f}" in row and f"{wanted['ssim']:.4f}" in row


def test_large_pictures_go_in_bands_and_tiles_which_change_nothing(
    tmp_path, run, monkeypatch, capsys
):
    picture = save(tmp_path / "p.png", ramp(150, 20, 60000), np.uint16)
    run(picture, "--no-figure", "--output", tmp_path / "whole")
    real, sizes = tiling.upscale, []

    def measured(network, lr, *rest, **options):
        sizes.append(lr.numel())
        return real(network, lr, *rest, **options)

    monkeypatch.setattr(tiling, "upscale", measured)
    monkeypatch.setattr(tiling, "BAND_PIXELS", 1400)
    monkeypatch.setattr(predict, "LARGE", 5000)
    capsys.readouterr()
    run(picture, "--no-figure", "--output", tmp_path / "bands", "--tile", "13")
    assert "the result takes" in capsys.readouterr().out
    assert len(sizes) == 3 and max(sizes) < 20 * 100  # as large pictures take much memory
    whole, bands = (pixels(tmp_path / o / "p_x4.png").astype(int) for o in ("whole", "bands"))
    assert np.abs(whole - bands).max() <= 1


# --- at the prompt --------------------------------------------------------------------------------


def program(*words) -> tuple[int, str, str, str]:
    """predict.py as a program: (status, stdout, stderr, heavy modules that were loaded)."""
    script = (
        "import sys, runpy; sys.argv[0] = 'predict.py'\n"
        f"try: runpy.run_path({str(ROOT / 'predict.py')!r}, run_name='__main__')\n"
        "except SystemExit as e: status = e.code or 0\n"
        "heavy = {'matplotlib', 'nibabel', 'pydicom', 'scipy', 'sympy', 'torch', 'torchvision'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", script, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    *out, heavy = result.stdout.splitlines()
    return result.returncode, "\n".join(out), result.stderr, heavy


def test_as_a_program_it_loads_no_more_than_it_needs(tmp_path, tiny):
    status, out, _, heavy = program("--help")
    assert status == 0 and "--through-plane" in out and heavy == ""
    picture = save(tmp_path / "a slice.png", ramp(8, 8))
    status, _, errors, heavy = program(picture, "--weights", tiny, "--no-figure")
    assert status == 0, errors
    # PyTorch 2.6 loads SymPy for its meta device.
    assert heavy == "torch" or (torch.__version__ < "2.7" and heavy == "sympy torch")
    assert pixels(tmp_path / "a slice_x4.png").shape == (32, 32)


def test_degradation_help_lists_them_with_their_meaning(capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["--degradation", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert not ended.value.code
    assert any(x.split()[0] == "zerofill-2" and "twice the matrix" in x for x in lines if x)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--scale 2.5", "2 ... 4"),
        ("--through-plane 9", "0 ... 6"),
        ("--through-plane 2.5", "0 ... 6"),
        ("--through-plane 1", "changes nothing"),
        ("--noise 2", "0.0001 to 0.3; 0.02 is 2 %"),
        ("--scale 2 --voxel-size 1", "give one of them"),
        ("--degradation kspace --blur 1.5", "do not agree: .* two point spreads"),
        ("--consistent", "needs to know how"),
    ],
)
def test_a_wrong_option_is_told_what_is_possible(words, wanted):
    with pytest.raises(UsageError, match=wanted) as error:
        predict.main(["a.png", *words.split()])
    assert "\n" not in str(error.value)


def test_options_that_do_nothing_are_said(tmp_path, run, capsys):
    picture = save(tmp_path / "a.png", slice_like(24))
    for options, words in (
        (["--axis", "coronal"], "--axis does nothing"),
        (["--series", "3"], "--series does nothing"),
        (["--degradation", "kspace", "--no-consistent"], "cannot be told"),
    ):
        run(picture, "--no-figure", *options)
        assert words in capsys.readouterr().err
    run(picture, "--no-figure")
    assert not capsys.readouterr().err


def test_json_is_all_that_is_printed(tmp_path, run, capsys):
    a, b = save(tmp_path / "a.png", ramp(24, 24)), tmp_path / "b.png"
    b.write_text("no picture")
    run(a, "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert not said.err and found["files"][0] == str(tmp_path / "a_x4.png")
    about = record(tmp_path / "a_x4.json")
    assert {k: found[k] for k in about} == about
    assert about["SourceSHA256"] == hashlib.sha256(a.read_bytes()).hexdigest()
    assert about["Weights"] == "tiny.pt" and len(about["WeightsSHA256"]) == 64
    assert about["Scale"] == [4, 4] and about["DegradationFrom"] == "nobody"
    assert run(a, b, "--json", "--overwrite") == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["input"] == str(a) and "not a picture" in second["error"]
    run(save(a, slice_like(24)), "--quiet")
    assert capsys.readouterr() == ("", "")


def test_where_nothing_can_be_written_another_folder_is_advised(tmp_path, run, monkeypatch, cli):
    picture = save(tmp_path / "a.png", ramp(8, 8))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space.*choose another --output"):
        run(picture, "--no-figure")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]  # nothing half
    (tmp_path / "file").touch()

    def too_late(*_):
        raise AssertionError("is said before the work, not after it")

    monkeypatch.setattr(Upscaler, "pictures", too_late)
    with pytest.raises(DataError, match=r"cannot be made .*choose another --output"):
        run(picture, "--output", tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(DataError, match=r"cannot be written; choose another --output"):
        run(picture)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
def test_a_full_disk_leaves_no_half_picture_and_no_record(tmp_path, cli, bicubic):
    import resource

    picture = save(tmp_path / "a.png", ramp(64, 64))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    words = ("--weights", bicubic, "--device", "cpu", "--output", tmp_path / "out", "--no-figure")
    try:
        status, _, errors = cli(predict.main, picture, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "cannot be written" in errors and errors.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_folder_says_how_far_it_came_and_how_to_go_on(
    tmp_path, run, monkeypatch, capsys
):
    for i in range(4):
        save(tmp_path / f"{i}.png", ramp(8, 8))
    real, seen = Upscaler.pictures, []

    def interrupted(self, pictures, scale):
        seen.append(pictures)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, pictures, scale)

    monkeypatch.setattr(Upscaler, "pictures", interrupted)
    monkeypatch.setattr(predict, "PIXELS", 1)  # each picture is a group
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    done = len(list(tmp_path.glob("*_x4.json")))
    assert done == 2
    assert f"interrupted after {done} of 4; the same command" in capsys.readouterr().err
    run(tmp_path)
    said = capsys.readouterr().out
    assert "2 finished before" in said and "2 upscaled" in said
    assert len(list(tmp_path.glob("*_x4.png"))) == 4


# --- what is found, and what is unusual -----------------------------------------------------------


def test_what_is_told_reaches_the_record(tmp_path, capsys):
    weights = save_weights(tmp_path / "told.pt", estimator=True)
    picture = save(tmp_path / "a.png", ramp(24, 24))
    common = [str(picture), "--weights", str(weights), "--device", "cpu", "--no-figure"]
    for options, source, words in (
        ("", "estimated", ""),
        ("--blur 1.5 --noise 0.02", "given", "blur-1.5+rician-2"),
        ("--blur 4", "given", "blur-4"),  # not the nearest of what is estimated
        ("--degradation kspace", "given", "kspace"),
    ):
        predict.main([*common, *options.split()])
        about = record(tmp_path / "a_x4.json")
        assert about["DegradationFrom"] == source and words in about["Degradation"]
        assert bool(options) != (f"found {about['Degradation']}" in capsys.readouterr().out)
        assert about["ProjectedOntoInput"] == bool(options)


def test_a_picture_unlike_all_training_images_is_said(tmp_path, run, capsys):
    (tmp_path / "d").mkdir()
    few = save(tmp_path / "d/few.png", slice_like(40) // 51 * 51)
    save(tmp_path / "d/good.png", slice_like(40))
    run(few, "--no-figure")
    assert "only 5 grey levels" in capsys.readouterr().err
    assert "grey levels" in record(tmp_path / "d/few_x4.json")["Warnings"][0]
    run(tmp_path / "d", "--output", tmp_path / "o")
    said = capsys.readouterr()
    assert not said.err and "1 with warnings" in said.out
    assert "grey levels" in record(tmp_path / "o/few_x4.json")["Warnings"][0]
    assert not record(tmp_path / "o/good_x4.json")["Warnings"]


# --- expected errors ------------------------------------------------------------------------------


@pytest.fixture
def unsure(tmp_path) -> Path:
    """Weights with an error head and a calibration that doubles what it says."""
    arch = {"channels": 4, "blocks": 1, "estimator": True, "error_head": True}
    return save_weights(tmp_path / "unsure.pt", **arch)


def test_a_map_of_expected_errors_beside_pictures(tmp_path, unsure, capsys):
    given = slice_like(24).astype(np.uint8)
    network = modules.load_network(checkpoints.load_checkpoint(unsure))
    lr = torch.from_numpy(given.astype(np.float32) / 255)[None, None]
    expected = 2 * tiling.upscale(network, lr, (4, 4), error_map=True)[0, 1].numpy()
    common = ["--weights", str(unsure), "--device", "cpu"]
    for name, kind, high in (("a.png", np.uint8, 255), ("b.tif", np.float32, 1000)):
        picture = save(tmp_path / name, given * (high / 255), kind)
        predict.main([str(picture), *common, "--error-map"])
        stem, ending = name.split(".")
        assert f"{stem}_x4_error.{ending}" in capsys.readouterr().out
        found = pixels(tmp_path / f"{stem}_x4_error.{ending}")
        about = record(tmp_path / f"{stem}_x4.json")["ExpectedError"]
        assert about["Interval"] == 2.303 and found.shape == (96, 96)
        assert found.dtype == (np.uint16 if ending == "png" else np.float32)
        assert (about["Step"] == 1) == (ending == "tif")
        found = found * about["Step"]
        np.testing.assert_allclose(found, high * expected, rtol=3e-3, atol=about["Step"])
    predict.main([str(picture), *common, "--error-map", "--simulate"])
    assert 0 <= record(tmp_path / "b_simulated_x4.json")["ShareWithinInterval"] <= 1
    folder = [str(tmp_path), *common, "--output", str(tmp_path / "o")]
    predict.main(folder)
    predict.main([*folder, "--error-map"])  # what has no map yet is not finished
    assert (tmp_path / "o/a_x4_error.png").exists() and (tmp_path / "o/b_x4_error.tif").exists()
    capsys.readouterr()
    predict.main([*folder, "--error-map"])
    assert "2 finished before" in capsys.readouterr().out


def test_a_black_picture_has_a_record_of_plain_numbers(tmp_path, unsure):
    for picture in (save(tmp_path / "a.png", np.zeros((32, 32))),
                    save(tmp_path / "b.tif", np.zeros((32, 32)), np.float32)):  # fmt: skip
        common = [str(picture), "--weights", str(unsure), "--device", "cpu", "--error-map"]
        predict.main(common)
        predict.main([*common, "--simulate"])
        assert record(tmp_path / f"{picture.stem}_x4.json")["Results"]
        assert record(tmp_path / f"{picture.stem}_simulated_x4.json")["Scores"]
        with Image.open(next(tmp_path.glob(f"{picture.stem}_x4.[pt]*"))) as image:
            assert not np.asarray(image).any()


def test_weights_without_an_error_head_and_damaged_calibrations(tmp_path, run, unsure):
    picture = save(tmp_path / "a.png", ramp(8, 8))
    with pytest.raises(DataError, match=r"no error head.*train.py --error-head"):
        run(picture, "--error-map")
    good = checkpoints.load_checkpoint(unsure)
    whole, nan = good["calibration"]["4"], float("nan")
    for calibration in (
        None, [], {}, {"4": whole["edges"]}, {"4": {**whole, "factors": [1.0]}},
        {"4": {**whole, "factors": [1.0, nan]}}, {"4": {**whole, "factors": [1.0, -1.0]}},
        {"4": {**whole, "edges": whole["edges"][::-1]}}, {"4": {**whole, "factors": ["a", "b"]}},
        {"4": {**whole, "factors": torch.ones(2)}}, {"4": {**whole, "noisy": [1.0]}},
        {"4": {**whole, "factors": [1.0, 10**400]}},
    ):  # fmt: skip
        checkpoints.save_checkpoint(unsure, {**good, "calibration": calibration})
        with pytest.raises(DataError, match="calibration of its error head is missing or damaged"):
            predict.main([str(picture), "--weights", str(unsure), "--error-map"])
    predict.main([str(picture), "--weights", str(unsure)])

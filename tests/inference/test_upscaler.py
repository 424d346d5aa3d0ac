"""Upscaler: the way in from Python; values beyond black and white; neighbours; what is said."""

import gc
import itertools
import subprocess
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import EVERY_SCALE, ROOT, checkpoint_of, pixels, random_network, slices_of_person
from made_files import blob, corners, save_volume
from PIL import Image

import degradation
import modules
import predict
import scans
from degradation import degrade
from inference import Upscaler, tiling, upscaler
from inference.checkpoints import save_checkpoint
from inference.sidecar import read_record
from utils import DataError, UsageError

ARCH = {"name": "deep", "channels": 4, "blocks": 2, "half": 1, "neighbours": 2, "estimator": True}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network in which all that it is shown has its part in the result."""
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    save_checkpoint(path, checkpoint_of(random_network(ARCH, *EVERY_SCALE), ARCH))
    return path


def test_three_lines_of_python_enlarge_a_scan(tmp_path, bicubic):
    path = save_volume(tmp_path / "a scan.nii.gz", blob((9, 8, 5)).astype(np.int16), (2, 2, 3))
    script = tmp_path / "other folder" / "script.py"
    script.parent.mkdir()
    script.write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import scans; from inference import Upscaler\n"
        f"new = Upscaler({str(bicubic)!r}, device='cpu').scan(scans.read({str(path)!r}), scale=2)\n"
        "scans.write(new, 'new')\n"
    )
    subprocess.run([sys.executable, script], cwd=script.parent, check=True)
    result = nib.load(script.parent / "new.nii.gz")
    assert result.shape == (18, 16, 5)
    np.testing.assert_allclose(corners(result), corners(nib.load(path)), atol=1e-4)


# --- values beyond black and white ----------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A scan of several slices, float32 (X, Y, Z), black 0 and white about 1000."""
    few = slices_of_person("55")[4:10, ::4, ::4].transpose(2, 1, 0)
    return np.ascontiguousarray(few[:, ::-1], np.float32) * 4


def written(folder, data, kind):
    """Voxels (X, Y, Z) as a file of a kind, a picture being the third slice."""
    if kind in ("int16", "float32"):
        limits = (-32768, 32767) if kind == "int16" else (None, None)
        return save_volume(folder / "a.nii.gz", data.clip(*limits).astype(kind), (1, 1, 2))
    picture = data[:, :, 3].T.clip(*((0, 65535) if kind == "png" else (None, None)))
    Image.fromarray(picture.astype(np.uint16 if kind == "png" else np.float32)).save(
        folder / f"a.{kind}"
    )
    return folder / f"a.{kind}"


@pytest.mark.parametrize("kind", ["int16", "float32", "png", "tif"])
def test_what_is_no_part_of_a_scan_changes_nothing_far_from_it(tmp_path, weights, head, kind):
    """Outliers, padding as of DICOM, a raised background: 50 dB is less than 0.1 dB of a result."""
    up = Upscaler(weights, "cpu")
    edge = up.network.receptive_radius + 1  # an outlier's surroundings are shown without it

    def enlarge(data):
        scan = scans.read(written(tmp_path, data, kind))
        new = up.pictures([scan], 2)[0][0] if scan.is_picture else up.scan(scan, scale=2)
        values = new.intensities()
        return values.T[..., None] if scan.is_picture else values

    def apart(values, wanted, where):
        return -10 * np.log10(np.mean(((values - wanted)[where] / white) ** 2) + 1e-12)

    clean, white = enlarge(head), 4 * 255
    for outlier, (x, y, near) in itertools.product(
        (-1000, -32768, 1e6, 10 * white), ((20, 30, edge), (5, 6, 1))
    ):  # on black, where it is shown as black, nothing but the interpolation is left
        data, far = head.copy(), np.ones(clean.shape, bool)
        data[x, y, 3] = outlier
        far[2 * (x - near) : 2 * (x + near + 1), 2 * (y - near) : 2 * (y + near + 1)] = False
        values, change = enlarge(data), abs(written_value(outlier, kind) - head[x, y, 3])
        assert apart(values, clean, far) > (50 if near == edge else 80), outlier
        there = np.abs(values - clean)
        place = np.unravel_index(there.argmax(), there.shape)[:2]
        assert change == 0 or (place[0] // 2, place[1] // 2) == (x, y), outlier
        assert there.max() >= 0.5 * change, outlier
    data, far = head.copy(), np.zeros(clean.shape, bool)
    data[:8], data[-8:] = -2000, -2000
    far[2 * (8 + edge) : -2 * (8 + edge)] = True
    assert apart(enlarge(data), clean, far) > 50
    for raised in (0.1, 0.25):
        values = enlarge(head + raised * white)
        assert apart(values, clean + raised * white, np.ones(clean.shape, bool)) > 50


def written_value(value, kind) -> float:
    """A value as a file of this kind holds it."""
    limits = {"int16": (-32768, 32767), "png": (0, 65535)}
    return float(np.clip(value, *limits.get(kind, (None, None))))


# --- slices ---------------------------------------------------------------------------------------


def test_each_slice_is_shown_with_its_neighbours(weights, real_slices):
    """Also where batches end; missing ones are black, and said to be missing."""
    slices = real_slices[:, 0, 60:84:2, 60:90:3].repeat(3, 1, 1)[:7].numpy()
    slices = slices * np.linspace(1, 0.4, 7, dtype=np.float32)[:, None, None]
    up = Upscaler(weights, "cpu", batch_size=3)
    found = up.network.describe(torch.from_numpy(slices[2:5])[:, None])  # the middle speaks for all
    wanted = []
    for i in range(7):
        there = [0 <= k < 7 for k in range(i - 2, i + 3)]
        lr = [slices[i + k - 2] if good else 0 * slices[0] for k, good in enumerate(there)]
        present = torch.tensor([[float(there[k]) for k in (0, 1, 3, 4)]])
        description = modules.full_description(found.mean(0, keepdim=True), present, 1.5)
        lr = torch.from_numpy(np.stack(lr))[None]
        wanted.append(tiling.upscale(up.network, lr, (4, 4), description)[0, 0].numpy().clip(0, 1))
    np.testing.assert_allclose(up(slices, 4, distance=1.5), wanted, atol=2e-5)
    alone = np.concatenate([up(x[None]) for x in slices])
    np.testing.assert_allclose(up(slices), alone, atol=2e-5)  # without a distance, pictures
    assert np.abs(alone - wanted).max() > 0.01
    up.network.neighbours = 1  # as of weights that see one slice on each side
    present = up.slices_with_neighbours(slices, slice(0, 7), slice(None), 1.5, (0, 1))[2]
    assert present.sum(0).tolist() == [0, 6, 6, 0]
    up.network.neighbours = 2
    with pytest.raises(UsageError, match="enlarges by 4, 3, 2, 2x1, 3x1, 4x1, not by 5x5"):
        up(slices, 5)


def test_a_picture_is_the_same_alone_and_in_a_folder(tmp_path, weights, real_slices):
    """But for a grey level in 0.01 % of pixels; each is described alone."""
    (tmp_path / "in").mkdir()
    for i in range(6):
        h, w = (60, 48) if i != 3 else (44, 40)
        grey = real_slices[i % 3, 0, 100 - h // 2 :, 80 - w // 2 :][:h, :w].numpy() * 255
        noisy = grey + (i % 2) * np.random.default_rng(i).normal(0, 9, grey.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "in" / f"{i}.png")
    flags = ["--weights", str(weights), "--no-figure", "--device", "cpu", "--threads", "2"]
    predict.main([str(tmp_path / "in"), "--output", str(tmp_path / "all"), *flags])
    off, count = 0, 0
    for i in range(6):
        one = str(tmp_path / "in" / f"{i}.png")
        predict.main([one, "--output", str(tmp_path / "one"), *flags])
        alone, all_ = (pixels(tmp_path / d / f"{i}_x4.png").astype(int) for d in ("one", "all"))
        assert np.abs(alone - all_).max() <= 1
        off, count = off + (alone != all_).sum(), count + alone.size
    assert off <= 1e-4 * count


# --- what is said of the input --------------------------------------------------------------------


def test_what_is_said_and_what_is_found_are_both_told_where_they_differ(tmp_path, cli, real_slices):
    """Here a network that takes everything for bicubic."""
    arch = {"name": "deep", "channels": 2, "blocks": 0, "estimator": True}
    network = random_network(arch)
    network.estimator.safest.data = degradation.describe_degradation("bicubic", (4, 4))[0, :-1]
    network.estimator.decide[2].bias.data[-1] = -1000  # not sure at all
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(network, arch))
    lr = degrade(real_slices[1:2], "bicubic")[0, 0]
    Image.fromarray((lr * 255).byte().numpy()).save(tmp_path / "a.png")
    options = (tmp_path / "a.png", "--weights", tmp_path / "a.pt", "--no-figure")
    both = "was said to be zerofill-2; found instead: shrunk like bicubic"
    for name, words in (("zerofill-2", both), ("bicubic", "")):
        status, _, errors = cli(predict.main, *options, "--degradation", name)
        assert status == 0 and words in errors and bool(words) == ("said to be" in errors)
        about = read_record(tmp_path / "a_x4.json")
        assert any("said to be" in line for line in about["Warnings"]) == bool(words)
    assert "found shrunk like bicubic" in cli(predict.main, *options)[1]


@pytest.mark.parametrize("value", [500.0, np.nan])
def test_slices_that_are_not_between_0_and_1_are_refused(bicubic, value):
    with pytest.raises(UsageError, match=r"values in \[0, 1\] are wanted, not (500|nan)"):
        Upscaler(bicubic, "cpu")(np.full((2, 8, 8), value), 4)


def test_what_stops_early_leaves_no_threads(weights, tmp_path, monkeypatch):
    """Threads of a generator that the garbage collector must end can wait for ever."""

    def stopped(*given):
        raise KeyboardInterrupt

    def names():
        return {thread.name for thread in threading.enumerate() if "tqdm" not in thread.name}

    monkeypatch.setattr(tiling, "PART_PIXELS", 64)
    up, slices = Upscaler(weights, "cpu"), np.zeros((9, 8, 8), np.float32)
    scan = scans.read(save_volume(tmp_path / "a.nii.gz", blob((8, 8, 9)), (1, 1, 2)))
    for i in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    pictures = [scans.read(tmp_path / f"{i}.png") for i in range(3)]
    before, threads = names(), torch.get_num_threads()
    gc.disable()
    torch.set_num_threads(2)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(upscaler.Part, "where", property(stopped))
            for work in (
                lambda: up(slices, 4, 1.0),
                lambda: up.scan(scan, scale=2),
                lambda: up.scan(scan, through_plane=2),
            ):
                with pytest.raises(KeyboardInterrupt):
                    work()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(scans.Scan, "to_stored", stopped)
            up.pictures(pictures, 4)
        with pytest.raises(DataError):  # a picture that is none
            (tmp_path / "bad.png").write_bytes(b"not a picture")
            predict.main([str(tmp_path / "bad.png"), "--weights", str(weights), "--device", "cpu"])
        assert names() == before
    finally:
        torch.set_num_threads(threads)
        gc.enable()

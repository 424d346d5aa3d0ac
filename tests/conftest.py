"""Data that the tests share, made from the slices of real people in data/."""

import contextlib
import csv
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "ds002748"
sys.path.insert(0, str(ROOT))  # for `python -m pytest tests` from anywhere

import modules
import utils
from degradation import scale_name
from inference import checkpoints


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, so that the runs they share are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """TEST_ORDER=7 shuffles the files, and the tests of each: no test may depend on another."""
    seed = os.environ.get("TEST_ORDER")
    if not seed:
        return
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    rng = random.Random(seed)
    order = rng.sample(sorted(files), len(files))
    items[:] = [item for file in order for item in rng.sample(files[file], len(files[file]))]


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch):
    """Results are the same on every chip."""
    monkeypatch.setattr("inference.upscaler.bf16_works", lambda: False)


@pytest.fixture(autouse=True)
def _leave_the_chip_alone():
    """bf16_works() may limit the chip's instructions for programs that begin later, and --threads
    stays: what others compute would no longer equal what this process does."""
    before, threads = os.environ.get("ONEDNN_MAX_CPU_ISA"), torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    if before is not None:
        os.environ["ONEDNN_MAX_CPU_ISA"] = before


@contextlib.contextmanager
def signals_left_alone():
    """train.main() takes over Ctrl-C and SIGTERM; the test run gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _leave_signals_alone():
    with signals_left_alone():
        yield


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """Default folders such as runs/ appear in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys):
    """cli(train.main, "--data", folder): (exit status, stdout, stderr) of a script, in-process."""

    def call(main, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            utils.run_main(lambda: main([str(a) for a in arguments]))
        return (ended.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def upscale(cli, bicubic):
    """(exit status, stdout, stderr) of predict.py with weights that are bicubic interpolation."""
    import predict

    always = "--weights", bicubic, "--device", "cpu", "--no-figure"
    return lambda *words: cli(predict.main, *always, *words)


def slices_of_person(subject: str) -> np.ndarray:
    """The 20 axial slices of a person, uint8 (20, 240, 256), from below."""
    files = sorted(DATA.rglob(f"{subject}_*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.fixture(scope="session")
def brain() -> np.ndarray:
    """A brain as uint8 axial slices (189, 233, 197), upright: a person's 20, interpolated."""
    few = slices_of_person("55")[:, 4:237, 30:227].astype(np.float32)
    at = np.linspace(0, len(few) - 1, 189)
    below = np.minimum(at.astype(int), len(few) - 2)
    part = (at - below).astype(np.float32)[:, None, None]
    return ((1 - part) * few[below] + part * few[below + 1] + 0.5).astype(np.uint8)


@pytest.fixture(scope="session")
def real_slices() -> torch.Tensor:
    """Three axial slices (3, 1, 200, 160) in [0, 1], each of another person."""
    chosen = (("18", 5), ("55", 10), ("71", 15))
    pixels = np.stack([slices_of_person(s)[n, 20:220, 48:208] for s, n in chosen])
    return torch.from_numpy(pixels)[:, None].float() / 255


# 12 real people under names as ADNI gives them.
SUBJECTS = {
    ("train", "AD"): {"218391": "03", "I45108": "07", "100021": "09", "100347": "10"},
    ("train", "NC"): {"230801": "52", "I63874": "54", "100522": "58", "100718": "60"},
    ("test", "AD"): {"267894": "18", "I88123": "27"},
    ("test", "NC"): {"388206": "55", "I99150": "56"},
}


@pytest.fixture(scope="session")
def adni(tmp_path_factory) -> Path:
    """{train,test}/{AD,NC}/<scan id>_<slice>.png, 12 people with 3 slices of 112x96 (H x W)."""
    root = tmp_path_factory.mktemp("adni")
    for (split, group), people in SUBJECTS.items():
        folder = root / split / group
        folder.mkdir(parents=True)
        for name, person in people.items():
            for number, pixels in enumerate(slices_of_person(person)[8:14:2], 78):
                Image.fromarray(pixels[64:176, 80:176]).save(folder / f"{name}_{number}.png")
    return root


@pytest.fixture(scope="session")
def everybody(adni, tmp_path_factory) -> Path:
    """The same 12 people in one folder, slices of 32x32: the split is this program's."""
    folder = tmp_path_factory.mktemp("everybody")
    for path in adni.rglob("*.png"):
        Image.open(path).crop((30, 40, 62, 72)).save(folder / path.name)
    return folder


EVERY_SCALE = ((4, 4), (3, 3), (2, 2), (2, 1), (3, 1), (4, 1))


def checkpoint_of(network, arch) -> dict:
    return {
        "model": network.state_dict(),
        "arch": arch,
        "scales": [list(scale) for scale in network.scales],
        "degradation": "bicubic",
        "trained_on": "nothing, made by a test",
        "metrics": {},
    }


def save_weights(path, *scales, tail=0.0, **arch) -> Path:
    """Write a small network for these scales, (4, 4) if there are none; without a tail it is
    bicubic. The calibration of an error head doubles what it says."""
    arch = {"name": "deep", "channels": 2, "blocks": 0, **arch}
    torch.manual_seed(3)
    network = modules.build(arch, scales or ((4, 4),))
    for last in network.tails.values():
        torch.nn.init.normal_(last.weight, std=tail)
    double = {"edges": [-7.0, 0.0], "factors": [2.0, 2.0], "noisy": [2.0, 2.0]}
    about = {"calibration": {scale_name(scale): double for scale in network.scales}}
    about = about if arch.get("error_head") else {}
    checkpoints.save_checkpoint(path, checkpoint_of(network, arch) | about)
    return path


def random_network(arch, *scales) -> torch.nn.Module:
    """A network in which every layer has its part in the result."""
    torch.manual_seed(0)
    network = modules.build(arch, scales or ((4, 4),))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return network.eval()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of a small network that was hardly trained: not bicubic, but near to it."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    return save_weights(path, tail=0.002, channels=8, blocks=2)


@pytest.fixture(scope="session")
def bicubic(tmp_path_factory) -> Path:
    """An untrained network is exactly bicubic interpolation: what is wrong is not its fault."""
    return save_weights(tmp_path_factory.mktemp("bicubic") / "bicubic.pt", *EVERY_SCALE)


def without_figures(patch):
    """Figures take most of the time of a short run, which is validated after every epoch here."""
    patch.setattr("train.run_folder.plot", lambda *a: None)
    patch.setattr("train.examples_figure", lambda *a, **k: None)
    patch.setattr("train.CHECK_EVERY", (1, 1000))


@pytest.fixture
def no_figures(monkeypatch):
    without_figures(monkeypatch)


def train_once(arguments):
    """A run that several tests look at."""
    import train

    with pytest.MonkeyPatch.context() as patch, signals_left_alone():
        without_figures(patch)
        patch.setattr("inference.upscaler.bf16_works", lambda: False)
        assert train.main([str(a) for a in arguments]) == 0


def table(path) -> list[dict]:
    """The rows of a CSV file."""
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def rows_of_run(folder) -> list[dict]:
    return table(Path(folder, "log.csv"))


def scores_by_skimage(sr, hr) -> dict:
    """What scikit-image says of two slices."""
    from skimage import metrics

    a, b = (np.clip(x.double().numpy(), 0, 1) for x in (sr, hr))
    brain = np.clip(hr.numpy(), 0, 1) > np.float32(0.05)
    ssim = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
    return {
        "mse": metrics.mean_squared_error(b, a),
        "psnr": metrics.peak_signal_noise_ratio(b, a, data_range=1),
        "psnr_brain": metrics.peak_signal_noise_ratio(b[brain], a[brain], data_range=1),
        "ssim": metrics.structural_similarity(b, a, **ssim),
    }


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


class NoFloat64(torch.Tensor):
    """A tensor as on Apple's MPS: whatever makes it float64 fails; .cpu() brings it back."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu or (function is torch.Tensor.to and "cpu" in args):
            return result.as_subclass(torch.Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.fixture
def without_float64():
    """Turns a tensor into one of a device that has no float64."""
    return lambda tensor: tensor.as_subclass(NoFloat64)

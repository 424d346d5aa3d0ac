"""Data that the tests share: slabs of the average brain that comes with nilearn, written small."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `python -m pytest tests` from anywhere

import modules  # noqa: E402
import utils  # noqa: E402


@pytest.fixture(autouse=True)
def _leave_signals_alone():
    """train.main() takes over Ctrl-C and SIGTERM; the test run gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.fixture(scope="session")
def brain() -> np.ndarray:
    """The ICBM152 template at 1 mm as uint8 axial slices (189, 233, 197), upright."""
    from nilearn.datasets import load_mni152_template

    volume = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    return (volume.transpose(2, 1, 0)[:, ::-1] / volume.max() * 255 + 0.5).astype(np.uint8)


@pytest.fixture(scope="session")
def real_slices(brain) -> torch.Tensor:
    """Three axial slices (3, 1, 200, 160) in [0, 1]."""
    return torch.from_numpy(brain[[60, 85, 110], 16:216, 18:178].copy())[:, None].float() / 255


# 12 made-up subjects, each another part, side or turn of the average brain.
SUBJECTS = {
    ("train", "AD"): ("218391", "I45108", "100021", "100347"),
    ("train", "NC"): ("230801", "I63874", "100522", "100718"),
    ("test", "AD"): ("267894", "I88123"),
    ("test", "NC"): ("388206", "I99150"),
}


@pytest.fixture(scope="session")
def adni(brain, tmp_path_factory) -> Path:
    """{train,test}/{AD,NC}/<scan id>_<slice>.png, 12 subjects of 3 slices of 112x96 (H x W)."""
    root = tmp_path_factory.mktemp("adni")
    n = 0
    for (split, group), subjects in SUBJECTS.items():
        folder = root / split / group
        folder.mkdir(parents=True)
        for subject in subjects:
            for number in range(3):
                pixels = brain[58 + 6 * n + number, 50:162, 50:146]
                pixels = pixels[:, ::-1] if n % 2 else pixels
                Image.fromarray(pixels).save(folder / f"{subject}_{number + 78}.png")
            n += 1
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint of a small network that was hardly trained: not bicubic, but near to it."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    arch = {"name": "deep", "channels": 8, "blocks": 2}
    torch.manual_seed(3)
    network = modules.build(arch)
    torch.nn.init.normal_(network.tail.weight, std=0.002)
    utils.save_checkpoint(path, checkpoint_of(network, arch))
    return path


def checkpoint_of(network, arch) -> dict:
    return {
        "model": network.state_dict(),
        "arch": arch,
        "scale": 4,
        "degradation": "bicubic",
        "trained_on": "nothing, made by a test",
        "metrics": {},
    }

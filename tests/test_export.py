"""ONNX files: what ONNX Runtime computes with them is what PyTorch computes."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import checkpoint_of, random_network, save_weights

import degradation
import export
import modules
from degradation import ENTRIES, words_of
from inference import tiling
from inference.checkpoints import save_checkpoint

ARCH = {"name": "deep", "channels": 8, "blocks": 2, "half": 1, "neighbours": 2, "estimator": True,
        "error_head": True}  # fmt: skip
CALIBRATION = {"edges": [-7.0, 0.0], "factors": [2.0, 2.0], "noisy": [2.0, 2.0]}
SCALES = ((3, 3), (2, 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, {end of the name: ONNX Runtime session}, what NAME.json says)."""
    if torch.__version__ < export.TRIED:
        pytest.skip("export.py refuses this PyTorch")
    folder = tmp_path_factory.mktemp("export")
    network = random_network(ARCH, *SCALES)
    about = {"degradation": "wide", "calibration": {"3": CALIBRATION, "2x1": CALIBRATION}}
    save_checkpoint(folder / "a.pt", checkpoint_of(network, ARCH) | about)
    export.main([str(folder / "a.pt"), str(folder / "out"), "--scale", "2x1", "--error-map"])
    files = {path.stem: path for path in (folder / "out").glob("*.onnx")}
    assert set(files) == {"a-describe", "a-through-x2"}
    sessions = {name[2:]: onnxruntime.InferenceSession(path) for name, path in files.items()}
    return network, sessions, json.loads((folder / "out" / "a.json").read_text())


def slices(kind) -> torch.Tensor:
    """Slices with neighbours: what a user's scan may hold, at sizes that nothing was tried at."""
    dot = torch.zeros(2, 5, 12, 10)
    dot[:, :, 6, 5] = 1
    return {
        "odd": torch.rand(2, 5, 13, 17),
        "many": torch.rand(3, 5, 8, 5),
        "one pixel": torch.rand(1, 5, 1, 1),
        "a column": torch.rand(1, 5, 9, 1),
        "black": torch.zeros(1, 5, 11, 12),
        "constant": torch.full((1, 5, 9, 16), 0.7),
        "a dot": dot,
    }[kind]


@pytest.mark.parametrize(
    "kind", ["odd", "many", "one pixel", "a column", "black", "constant", "a dot"]
)
def test_results_are_pytorchs_whatever_comes(exported, kind):
    network, sessions, _ = exported
    lr = slices(kind)
    with torch.inference_mode():
        wanted = network.describe(lr)
    found = sessions["describe"].run(None, {"lr": lr[:, 2:3].numpy()})[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    present = torch.tensor([[0.0, 1, 1, 1]])
    description = modules.full_description(wanted.mean(0, keepdim=True), present, 1.2)
    both = tiling.upscale(network, lr, (2, 1), description, error_map=True).numpy()
    given = {"lr": lr.numpy(), "description": description.numpy()}
    sr, errors = sessions["through-x2"].run(None, given)
    assert np.isfinite(sr).all() and np.isfinite(errors).all()
    np.testing.assert_allclose(sr, both[:, :1], atol=1e-4)
    np.testing.assert_allclose(errors, both[:, 1:], atol=1e-4)
    assert kind != "black" or not sr.any()


def test_the_files_say_what_they_are_and_what_else_is_needed(exported):
    network, sessions, known = exported
    about = sessions["through-x2"].get_modelmeta().custom_metadata_map
    assert about["scale"] == "2x1" and about["degradation"] == "wide"
    assert about["licence"] == "MIT" and "not for diagnosis" in about["intended_use"]
    assert known["files"] == {"2x1": "a-through-x2.onnx"}
    assert set(known["describe"].values()) == {"a-describe.onnx"} and known["neighbours"] == 2
    assert known["receptive_radius"] == network.receptive_radius
    assert known["calibration"] == {"2x1": CALIBRATION}
    assert known["entries"]["all"] == ENTRIES
    # The nearest of its candidates is called as words_of calls it.
    described = degradation.describe_degradation("slab-1+rician-2", (2, 1))
    places = known["candidates"]["2x1"]
    table = np.array([row.split() for row in places["described"]], float)
    nearest = ((table - described[0, : table.shape[1]].numpy()) ** 2).sum(1).argmin()
    assert words_of(described, (2, 1)).startswith(places["words"][nearest])


def test_a_network_that_takes_no_description_is_exported_alike(tmp_path):
    weights = save_weights(tmp_path / "p.pt", (2, 2), half=0)
    export.main([str(weights), str(tmp_path)])
    assert not (tmp_path / "p-describe.onnx").exists()
    lr, description = torch.rand(2, 1, 7, 9), torch.zeros(1, ENTRIES)
    session = onnxruntime.InferenceSession(tmp_path / "p-x2.onnx")
    sr = session.run(None, {"lr": lr.numpy(), "description": description.numpy()})[0]
    wanted = F.interpolate(lr, scale_factor=2, mode="bicubic")  # what it is as yet
    np.testing.assert_allclose(sr, wanted, atol=1e-5)


def test_what_cannot_be_exported_is_refused(cli, tiny, tmp_path, monkeypatch):
    for words, wanted in (
        (("--scale", "2"), "was not made for --scale 2"),
        (("--error-map",), "has no error head"),
    ):
        status, _, errors = cli(export.main, tiny, tmp_path / "o", *words)
        assert status == 2 and wanted in errors
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0"))  # fixes the sizes
    status, _, errors = cli(export.main, tiny, tmp_path / "o")
    assert status == 2 and "or newer" in errors and not list((tmp_path).glob("o/*.onnx"))

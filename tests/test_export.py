"""ONNX files: what ONNX Runtime computes with them is what PyTorch computes."""

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import checkpoint_of, random_network

import export
from inference import tiling
from inference.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, ONNX Runtime session) of a small network that is told its degradation."""
    if torch.__version__ < export.TRIED:
        pytest.skip("export.py refuses this PyTorch")
    folder = tmp_path_factory.mktemp("export")
    arch = {"name": "deep", "channels": 8, "blocks": 2, "half": 1, "told": True}
    network = random_network(arch, (3, 2))
    save_checkpoint(
        folder / "a.pt", checkpoint_of(network, arch, (3, 2)) | {"degradation": "mixed"}
    )
    export.main([str(folder / "a.pt"), str(folder / "a.onnx")])
    return network, onnxruntime.InferenceSession(str(folder / "a.onnx"))


@pytest.mark.parametrize("shape", [(1, 1, 13, 17), (3, 1, 8, 5), (2, 1, 31, 64), (1, 1, 1, 1)])
def test_results_are_pytorchs_at_any_size(exported, shape):
    network, session = exported
    lr = torch.rand(*shape)
    description = network.describe(lr).mean(0, keepdim=True)
    wanted = tiling.upscale(network, lr, description).numpy()
    found = session.run(None, {"lr": lr.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_the_file_says_what_it_is(exported):
    about = exported[1].get_modelmeta().custom_metadata_map
    assert about["scale"] == "3x2" and about["degradation"] == "mixed"
    assert about["licence"] == "MIT" and "not for diagnosis" in about["intended_use"]


def test_an_exporter_that_fixes_the_sizes_is_refused(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0"))
    status, _, errors = cli(export.main, tiny, tmp_path / "a.onnx")
    assert status == 2 and "or newer" in errors and not (tmp_path / "a.onnx").exists()


def test_the_name_of_the_file_is_checked(cli):
    status, _, errors = cli(export.main, "x.pt", "x.txt")
    assert status == 2 and "x.txt" in errors

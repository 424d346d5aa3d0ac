"""Several networks as one file: each scale gives what its own network gave."""

import numpy as np
import pytest
import torch
from conftest import save_weights

from inference import Upscaler
from inference.checkpoints import load_checkpoint, save_checkpoint
from training.join_weights import joined, one_of
from utils import DataError, UsageError

SMALL = {"channels": 4, "blocks": 2, "half": 1, "estimator": True, "error_head": True}


@pytest.fixture
def parts(tmp_path):
    """Weights of slices alone, and of thick slices with neighbours, and both in one file."""
    torch.manual_seed(0)
    inside = save_weights(tmp_path / "a.pt", (4, 4), (2, 2), tail=0.1, neighbours=0, **SMALL)
    across = save_weights(tmp_path / "b.pt", (3, 1), tail=0.1, neighbours=2, **SMALL)
    both = joined([load_checkpoint(inside), load_checkpoint(across)])
    save_checkpoint(tmp_path / "both.pt", both)
    return inside, across, tmp_path / "both.pt"


@pytest.mark.parametrize(("scale", "which"), [("4", 0), ("2", 0), ("3x1", 1)])
@pytest.mark.parametrize("distance", [None, 1.5])
def test_each_scale_is_enlarged_as_by_its_own_network(parts, scale, which, distance):
    """Slices and expected errors, to the last bit."""
    slices = np.random.default_rng(0).random((3, 12, 14), np.float32)
    found, wanted = (
        Upscaler(path, "cpu", bf16=False, error_map=True)(slices, scale, distance)
        for path in (parts[2], parts[which])
    )
    assert np.array_equal(found, wanted) and found[1].max() > found[1].min()
    lr, size = torch.from_numpy(slices)[:, None], found[0].shape[1:]
    plain = torch.nn.functional.interpolate(lr, size, mode="bicubic")[:, 0]
    assert np.abs(found[0] - plain.numpy()).max() > 0.01


def test_each_network_comes_out_again_to_be_trained_on(parts):
    both = load_checkpoint(parts[2])
    for path, scales in ((parts[0], [(2, 2)]), (parts[1], [(3, 1), (4, 1)])):
        wanted = load_checkpoint(path)
        found = one_of(both, scales)
        assert (found["arch"], found["scales"]) == (wanted["arch"], wanted["scales"])
        assert found["model"].keys() == wanted["model"].keys()
        assert all(torch.equal(v, wanted["model"][k]) for k, v in found["model"].items())
        assert one_of(wanted, scales) is wanted


def test_a_scale_is_in_one_of_them(parts):
    first = load_checkpoint(parts[0])
    with pytest.raises(UsageError, match="twice"):
        joined([first, first])


def test_a_file_whose_bodies_do_not_fit_its_scales_is_refused(parts, tmp_path):
    both = load_checkpoint(parts[2])
    for change in ({"scales": [[4, 4]]}, {"arch": both["arch"] | {"bodies": [[{}, 3]]}}):
        save_checkpoint(tmp_path / "bad.pt", both | change)
        with pytest.raises(DataError, match="does not fit"):
            Upscaler(tmp_path / "bad.pt", "cpu")

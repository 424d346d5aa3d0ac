"""Checkpoints: the same network comes back; damaged and hostile files do nothing."""

import os
import pickle
import zipfile

import pytest
import torch
from conftest import checkpoint_of, random_network

import modules
from inference import checkpoints, tiling
from inference.checkpoints import load_checkpoint
from inference.error_map import calibration_of
from utils import DataError

ARCH = {"name": "deep", "channels": 8, "blocks": 2}


ARCHS = [ARCH, {"name": "espcn", "channels": 6}, {**ARCH, "estimator": True, "neighbours": 1}]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_a_loaded_network_gives_the_same_bits(tmp_path, arch):
    network = random_network(arch, (3, 3), (2, 1))
    checkpoints.save_checkpoint(tmp_path / "a.pt", checkpoint_of(network, arch))
    read = load_checkpoint(tmp_path / "a.pt")
    assert read["arch"] == arch and read["scales"] == [(3, 3), (2, 1)] and read["version"] == 3
    again, lr = modules.load_network(read), torch.rand(2, 1, 13, 22)
    for scale in network.scales:
        wanted = tiling.upscale(network, lr, scale)
        assert torch.equal(tiling.upscale(again, lr, scale), wanted) and wanted.std() > 1e-3
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def refused(path) -> str:
    """The error that a file gives; it must be ours, short, in one line, and name the file."""
    with pytest.raises(DataError) as error:
        modules.load_network(load_checkpoint(path), path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    return message


def test_what_is_no_checkpoint_is_refused(tiny, tmp_path):
    assert "no such file" in refused(tmp_path / "none.pt")
    assert f"is a folder; give the weights in it, such as {tmp_path / 'best.pt'}" in refused(
        tmp_path
    )
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("notes.txt", "a zip file, but no checkpoint")
    whole = tiny.read_bytes()
    foreign = [b"", b"hello", pickle.dumps({"model": {}}), b"PK\x03\x04" + bytes(100)]
    cut = [whole[:n] for n in (1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1)]
    for content in ((tmp_path / "a.pt").read_bytes(), *foreign, *cut):
        (tmp_path / "a.pt").write_bytes(content)
        assert "not a checkpoint, damaged" in refused(tmp_path / "a.pt")
    for content in (torch.ones(3), [1, 2], {}, {"model": {}}, 5):
        torch.save(content, tmp_path / "a.pt")
        assert "not a checkpoint of this project" in refused(tmp_path / "a.pt")


def nested():
    """A list that would take 2**40 words to print."""
    word = ["x"]
    for _ in range(40):
        word = [word, word]
    return word


WEIGHTS = modules.build(ARCH, [(4, 4)]).state_dict()
GOOD = checkpoint_of(modules.build(ARCH, [(4, 4)]), ARCH) | {"version": 3}
CHANGES = {
    "older version": ({"version": 1}, "another checkpoint version"),
    "endless version": ({"version": 10**6000}, "not a checkpoint"),
    "other scale": ({"scales": [[2, 2]]}, "differ"),
    "scale too large": ({"scales": [[4, 99]]}, "scale"),
    "scale of zero": ({"scales": [[0, 4]]}, "scale"),
    "scale no whole number": ({"scales": [[4.0, 4]]}, "scale"),
    "scale of three": ({"scales": [[4, 4, 4]]}, "scale"),
    "scale no pair": ({"scales": [4]}, "of this project"),
    "scales no list": ({"scales": "4"}, "of this project"),
    "no scales": ({"scales": []}, "scale"),
    "too many scales": ({"scales": [[4, 4]] * 10**5}, "scale"),
    "other network": ({"arch": {"name": "vit"}}, "unknown network"),
    "network with endless name": ({"arch": {"name": nested()}}, "unknown network"),
    "network too large": ({"arch": {"name": "deep", "channels": 1024, "blocks": 999}}, "too large"),
    "more channels than weights": ({"arch": {**ARCH, "channels": 900}}, "differ"),
    "other network's weights": ({"arch": {"name": "espcn", "channels": 8}}, "differ"),
    "missing weight": ({"model": dict(list(WEIGHTS.items())[1:])}, "differ"),
    "weight too many": ({"model": {**WEIGHTS, "x": torch.ones(1)}}, "differ"),
    "keys no names": ({"model": dict(enumerate(WEIGHTS.values()))}, "differ"),
    "no weights": ({"model": {}}, "differ"),
    "numbers for tensors": ({"model": dict.fromkeys(WEIGHTS, 1.0)}, "plain weights"),
    "whole numbers": ({"model": {k: v.long() for k, v in WEIGHTS.items()}}, "finite"),
    "nan": ({"model": {k: v * torch.nan for k, v in WEIGHTS.items()}}, "finite"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change):
    changes, words = CHANGES[change]
    content = GOOD | changes
    torch.save(content, tmp_path / "a.pt")
    assert words in refused(tmp_path / "a.pt")


def test_control_codes_do_not_reach_the_terminal(tmp_path):
    content = {**GOOD, "trained_on": "\x1b[2Jbrains\n" * 99}
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    said = load_checkpoint(tmp_path / "a.pt")["trained_on"]
    assert said.isprintable() and len(said) < 2000 and "brains" in said
    checkpoints.save_checkpoint(tmp_path / "a.pt", {**content, "trained_on": nested()})
    assert load_checkpoint(tmp_path / "a.pt")["trained_on"] == "unknown data"
    for people in ("sub-1", ["sub-1", 2]):
        checkpoints.save_checkpoint(tmp_path / "a.pt", {**content, "people": people})
        assert "people" not in load_checkpoint(tmp_path / "a.pt")  # it does not say who they are


# --- hostile files --------------------------------------------------------------------------------


class Payload:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    mark, path = tmp_path / "code was run", tmp_path / "a.pt"
    payload = Payload(os.mkdir, str(mark))
    for content in (payload, {**GOOD, "metrics": payload}, {**GOOD, payload: 1}):
        torch.save(content, path)
        assert "holds more than tensors" in refused(path)
        torch.save(content, path, _use_new_zipfile_serialization=False)
        refused(path)
    path.write_bytes(pickle.dumps(payload))
    refused(path)
    assert not mark.exists()
    torch.save(payload, path)
    torch.load(path, weights_only=False)  # the payload does work, where it is trusted
    assert mark.exists()


def as_version_2(checkpoint: dict) -> dict:
    """A checkpoint for one scale as versions before 0.5.0 wrote it."""
    old = {}
    for name, value in checkpoint["model"].items():
        if name.startswith(("of_scale.", "estimator.safest")):
            continue
        for before, after in (
            ("error_head.tails.4x1.", "spread.last."),
            ("error_head.", "spread."),
            ("tails.4x1.", "tail."),
            ("condition.", "modulation.0."),
            ("gains.", "modulation.2."),
        ):
            name = name.replace(before, after) if name.startswith(before) else name
        if name in ("modulation.0.weight", "spread.gain.weight"):
            value = torch.cat((value[:, :19], value[:, 20:21]), 1)  # without DENOISED, neighbours
        old[name] = value[:19] if name.startswith("estimator.decide.2.") else value
    arch = checkpoint["arch"].items()
    arch = {k: v for k, v in arch if k in ("name", "channels", "blocks", "half")}
    arch |= {"told": True, "spread": True}
    calibration = {"edges": [-7.0, 0.0], "factors": [2.0, 2.0], "noisy": [2.0, 2.0]}
    old = {"arch": arch, "scale": [4, 1], "model": old, "calibration": calibration, "version": 2}
    return {**checkpoint, **old}


def test_weights_of_version_0_4_0_give_what_they_gave(tmp_path):
    arch = {"name": "deep", "channels": 4, "blocks": 2, "half": 1, "estimator": True}
    arch |= {"error_head": True}
    network = random_network(arch, (4, 1))
    with torch.no_grad():
        network.of_scale["4x1"].zero_()
        network.estimator.safest.zero_()
        network.estimator.decide[2].weight[-2:] = 0
        network.estimator.decide[2].bias[-2:] = torch.tensor((0.0, 30.0))
        for linear in (network.condition, network.error_head.gain):
            linear.weight[:, 19] = 0
            linear.weight[:, 21:] = 0
    torch.save(as_version_2(checkpoint_of(network, arch)), tmp_path / "old.pt")
    found = load_checkpoint(tmp_path / "old.pt")
    assert calibration_of(found, "old.pt", (4, 1))["factors"] == [2.0, 2.0]
    read = modules.load_network(found)
    lr = torch.rand(2, 1, 12, 10)
    with torch.inference_mode():
        assert torch.equal(read(lr, error_map=True), network(lr, error_map=True))
    torch.save({"version": 2, "arch": {}, "model": {}}, tmp_path / "bad.pt")
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "bad.pt")

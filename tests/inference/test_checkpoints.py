"""Checkpoints: the same network comes back; damaged and hostile files do nothing."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from conftest import checkpoint_of, random_network

import modules
from inference import checkpoints, tiling
from inference.checkpoints import load_checkpoint
from utils import DataError

ARCH = {"name": "deep", "channels": 8, "blocks": 2}


ARCHS = [ARCH, {"name": "espcn", "channels": 6}, {**ARCH, "told": True}]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_a_loaded_network_gives_the_same_bits(tmp_path, arch):
    network = random_network(arch)
    checkpoints.save_checkpoint(tmp_path / "a.pt", checkpoint_of(network, arch))
    read = load_checkpoint(tmp_path / "a.pt")
    assert read["arch"] == arch and read["scale"] == [4, 4] and read["version"] == 2
    again = modules.load_network(read)
    lr = torch.rand(2, 1, 13, 22)
    assert torch.equal(tiling.upscale(again, lr), tiling.upscale(network, lr))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_the_mean_of_weights(tmp_path):
    """Of three files, one of them named twice; networks of other sizes have no mean."""
    paths = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    networks = [random_network(arch) for arch in (ARCH, ARCH, ARCHS[2])]
    for n, (path, network, arch) in enumerate(zip(paths, networks, (ARCH, ARCH, ARCHS[2]))):
        network.tail.weight.data += n
        checkpoints.save_checkpoint(path, checkpoint_of(network, arch))
    a, b, mean = (found["model"] for found in (
        *map(load_checkpoint, paths[:2]), checkpoints.load_mean([paths[0], paths[1], paths[1]])
    ))  # fmt: skip
    for name, values in mean.items():
        torch.testing.assert_close(values, (a[name] + 2 * b[name]) / 3)
    with_head = {**ARCH, "spread": True}  # which was made for other features, and is left out
    about = checkpoint_of(random_network(with_head), with_head)
    checkpoints.save_checkpoint(paths[1], about | {"trained_on": "others"})
    mean = checkpoints.load_mean(paths[:2])
    modules.load_network(mean)
    assert mean["arch"] == ARCH and mean["trained_on"].endswith("; others")
    with pytest.raises(DataError, match="is another network"):
        checkpoints.load_mean([paths[0], paths[2]])


def test_the_people_of_a_mean_are_those_of_all_its_files(tmp_path):
    known = [["b", "a"], ["c", "a"], None, ["a", 3]]
    for n, people in enumerate(known):
        about = {} if people is None else {"people": people}
        content = checkpoint_of(random_network(ARCH), ARCH) | about
        checkpoints.save_checkpoint(tmp_path / f"{n}.pt", content)
    paths = [tmp_path / f"{n}.pt" for n in range(4)]
    assert checkpoints.load_mean(paths[:2])["people"] == ["a", "b", "c"]
    assert "people" not in checkpoints.load_mean(paths[:3])  # nobody knows those of the third
    assert "people" not in load_checkpoint(paths[3])  # no list of ids


def refused(path) -> str:
    """The error that a file gives; it must be ours, short, in one line, and name the file."""
    with pytest.raises(DataError) as error:
        modules.load_network(load_checkpoint(path), path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    return message


def test_what_is_no_checkpoint_is_refused(tiny, tmp_path):
    assert "no such file" in refused(tmp_path / "none.pt")
    assert "not a file" in refused(tmp_path)
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


WEIGHTS = modules.build(ARCH).state_dict()
CHANGES = {
    "older version": ({"version": 1}, "another checkpoint version"),
    "endless version": ({"version": 10**6000}, "not a checkpoint"),
    "other scale": ({"scale": [2, 2]}, "differ"),
    "scale too large": ({"scale": [4, 99]}, "scale"),
    "scale of three": ({"scale": [4, 4, 4]}, "scale"),
    "scale no number": ({"scale": "4"}, "of this project"),
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
    "sparse": ({"model": {k: v.to_sparse() for k, v in WEIGHTS.items()}}, "plain weights"),
    "nowhere": ({"model": {k: v.to("meta") for k, v in WEIGHTS.items()}}, "plain weights"),
    "whole numbers": ({"model": {k: v.long() for k, v in WEIGHTS.items()}}, "finite"),
    "nan": ({"model": {k: v * torch.nan for k, v in WEIGHTS.items()}}, "finite"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change):
    changes, words = CHANGES[change]
    content = checkpoint_of(modules.build(ARCH), ARCH) | {"version": 2} | changes
    torch.save(content, tmp_path / "a.pt")
    assert words in refused(tmp_path / "a.pt")


def test_control_codes_do_not_reach_the_terminal(tmp_path):
    content = {**checkpoint_of(modules.build(ARCH), ARCH), "trained_on": "\x1b[2Jbrains\n" * 99}
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    said = load_checkpoint(tmp_path / "a.pt")["trained_on"]
    assert said.isprintable() and len(said) < 2000 and "brains" in said
    checkpoints.save_checkpoint(tmp_path / "a.pt", {**content, "trained_on": nested()})
    assert load_checkpoint(tmp_path / "a.pt")["trained_on"] == "unknown data"


# --- hostile files --------------------------------------------------------------------------------


class Payload:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    mark = tmp_path / "code was run"
    payloads = [
        Payload(os.mkdir, str(mark)),
        Payload(eval, f"__import__('os').mkdir({str(mark)!r})"),
        Payload(exec, f"import os; os.mkdir({str(mark)!r})"),
        Payload(os.system, f"mkdir '{mark}'"),
    ]
    good = checkpoint_of(modules.build(ARCH), ARCH) | {"version": 2}
    path = tmp_path / "a.pt"
    for payload in payloads:
        for content in (payload, {**good, "metrics": payload}, {**good, payload: 1}):
            torch.save(content, path)
            assert "holds more than tensors" in refused(path)
            torch.save(content, path, _use_new_zipfile_serialization=False)
            refused(path)
        path.write_bytes(pickle.dumps(payload))
        refused(path)
        assert not mark.exists()
    torch.save(payloads[0], path)
    torch.load(path, weights_only=False)  # the payload does work, where it is trusted
    assert mark.exists()


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a checkpoint with the parts (name, bytes) that `change` gives."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_a_small_file_cannot_fill_the_memory(tiny, tmp_path):
    path = tmp_path / "bomb.pt"
    rewrite(tiny, path, lambda name, part: part, zipfile.ZIP_DEFLATED)
    assert "not a checkpoint" in refused(path)
    # 1024 blocks of 1024 channels that all look at one number
    arch = {"name": "deep", "channels": 1024, "blocks": 1024}
    one = torch.zeros(1)
    model = {f"body.{n}.weight": one.expand(1024, 1024, 3, 3) for n in range(1024)}
    torch.save({**checkpoint_of(modules.build(ARCH), arch), "version": 2, "model": model}, path)
    assert path.stat().st_size < 2**20
    assert "too large" in refused(path)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save(checkpoint_of(modules.build(ARCH), ARCH) | {"version": 2}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        pickled = archive.read(name)
    size = (200).to_bytes(2, "little")  # the first weight has 8 x 1 x 5 x 5 numbers
    assert b"K\xc8t" in pickled
    for claim in (b"J\x00\x00\x00\x10", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        changed = pickled.replace(b"K" + size[:1] + b"t", claim + b"t", 1)
        rewrite(buffer, tmp_path / "a.pt", lambda n, part, c=changed: c if n == name else part)
        refused(tmp_path / "a.pt")

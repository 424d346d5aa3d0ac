"""Two processes through torchrun: the losses of one, exact restart, and only rank 0 writes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, train_once
from conftest import rows_of_run as log

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not torch.distributed.is_available(), reason="needs torchrun with gloo"
)

# Runs train.py, with a rank 1 that cannot write below the folder of the test, and that dies at the
# fourth iteration, the first time.
RUNNER = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import train, utils

def forbid_writing(event, args):
    writes = event in ("os.mkdir", "os.rename", "os.remove") or (
        event == "open" and isinstance(args[2], int)
        and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    elsewhere = event == "os.remove" and args[1] != -1  # relative to a folder of PyTorch's own
    if writes and not elsewhere and isinstance(args[0], (str, bytes, os.PathLike)):
        if os.path.abspath(os.fsdecode(args[0])).startswith(os.getcwd()):
            print("rank 1 writes", event, args[0], file=sys.stderr)
            os._exit(9)

def learning_rate(iteration, *options):
    if iteration == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        print("rank 1 dies", file=sys.stderr)
        os._exit(8)
    return real(iteration, *options)

if os.environ["RANK"] == "1":
    real, train.learning_rate = train.learning_rate, learning_rate
    sys.addaudithook(forbid_writing)
train.CHECK_EVERY = 1, 1000
train.run_folder.plot = train.examples_figure = lambda *a, **k: None  # longer than the rest
utils.run_main(train.main)
"""


@pytest.fixture(scope="module")
def runs(adni, tmp_path_factory):
    """A folder with the same run twice, `one` process and `two`, and the latter's output."""
    folder = tmp_path_factory.mktemp("distributed")
    words = "--iterations 6 --batch-size 4 --patch-size 6 --channels 8 --blocks 2 --ema 0.9"
    words = ["--data", str(adni), "--degradation", "wide", "--device", "cpu", *words.split()]
    (folder / "runner.py").write_text(RUNNER, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1", "--"]
    command = [*torchrun, "runner.py", str(ROOT), *words, "--run", "two", "--cache", "cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train_once([*words, "--run", folder / "one", "--cache", folder / "cache"])
    return folder, done


def test_losses_and_scores_are_those_of_one_process(runs):
    folder, _ = runs
    one, two = log(folder / "one"), log(folder / "two")
    assert [row["iteration"] for row in two] == [row["iteration"] for row in one]
    assert len(one) == 6
    for name in ("loss", "bicubic_loss", "lr", "val_mse", "val_psnr", "bicubic_psnr"):
        assert [float(r[name]) for r in two] == pytest.approx([float(r[name]) for r in one], 1e-4)
    one, two = (json.loads((folder / run / "metrics.json").read_text()) for run in ("one", "two"))
    assert two["config"]["processes"] == 2 and one["config"]["processes"] == 1
    a, b = one["results"]["this network"], two["results"]["this network"]
    assert b["psnr"]["mean"] == pytest.approx(a["psnr"]["mean"], 1e-4)


def test_goes_on_from_the_last_checkpoint_when_a_process_dies(runs):
    _, done = runs
    assert "rank 1 dies" in done.stderr
    lines = [line for line in done.stdout.splitlines() if "validation PSNR" in line]
    begun = [int(line.split()[1].split("/")[0]) for line in lines]
    assert begun.count(1) == 1 and set(begun) == {1, 2, 3, 4, 5, 6}


def test_rank_0_alone_writes_and_prints(runs):
    folder, done = runs
    files = "best.pt last.pt config.json log.csv metrics.json"
    assert sorted(p.name for p in (folder / "two").iterdir()) == sorted(files.split())
    assert len(list((folder / "cache").glob("*.u8"))) == 1
    assert "rank 1 writes" not in done.stderr
    assert done.stdout.count("Test split") == 1

"""Training: a whole run, exact resume, kills at bad moments, full disks, numbers that go wrong."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, save_weights, slices_of_person, train_once
from conftest import rows_of_run as log
from made_files import save_volume
from PIL import Image

import dataset
import modules
import train
from inference.checkpoints import load_checkpoint
from training import run_folder
from utils import DataError, UsageError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals or limits")


@pytest.fixture(scope="session")
def small(adni, tmp_path_factory) -> Path:
    """The same people, slices of 32x32."""
    root = tmp_path_factory.mktemp("small")
    for path in adni.rglob("*.png"):
        place = root / path.relative_to(adni)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).crop((30, 40, 62, 72)).save(place)
    return root


@pytest.fixture(scope="session")
def command(small, tmp_path_factory):
    """Arguments of a run of half a second: 21 training slices, 6 steps an epoch."""
    cache = tmp_path_factory.mktemp("cache")
    words = "--batch-size 4 --patch-size 6 --channels 8 --blocks 2 --device cpu --ema 0.9"
    return ["--data", str(small), "--cache", str(cache), *words.split()]


@pytest.fixture(scope="session")
def short(command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "run"
    train_once([*command, "--iterations", "4", "--run", folder])
    return folder


@pytest.fixture
def run(short) -> Path:
    """A finished run of 4 steps, to be damaged."""
    return shutil.copytree(short, Path("run"))


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def content(path):
    """A checkpoint as plain torch reads it."""
    return torch.load(path, weights_only=True)


def same(a, b) -> bool:
    """Whether two nests of dicts, lists, tensors and numbers are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a, b):
    for name in ("last.pt", "best.pt"):
        assert same(content(Path(a, name)), content(Path(b, name))), name
    assert Path(a, "log.csv").read_bytes() == Path(b, "log.csv").read_bytes()
    results = [json.loads(Path(run, "metrics.json").read_text())["results"] for run in (a, b)]
    assert results[0] == results[1]


# --- a whole run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(adni, tmp_path_factory):
    """(run folder, what was printed) of `python train.py`, long enough to beat bicubic."""
    folder = tmp_path_factory.mktemp("train")
    words = "--iterations 120 --patch-size 12 --channels 12 --blocks 4 --device cpu --run a/run"
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--data", str(adni), *words.split()],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "a" / "run", done.stdout


def test_a_run_leaves_everything_behind_and_says_what_comes_next(finished):
    run, printed = finished
    files = "best.pt config.json examples.png last.pt log.csv loss.png metrics.json"
    assert sorted(p.name for p in run.iterdir()) == files.split()
    assert (run.parent.parent / "runs" / "cache").is_dir()
    for name in ("loss.png", "examples.png"):
        with Image.open(run / name) as image:
            assert image.width > 400 and np.asarray(image.convert("L")).std() > 10
    image = printed.split("--simulate --weights a/run/best.pt ")[1].split(" --output")[0]
    assert Path(image).is_file()
    checkpoint = content(run / "best.pt")
    assert checkpoint["scales"] == [[4, 4]] and checkpoint["degradation"] == "bicubic"
    assert "7 subjects, 21 slices" in checkpoint["trained_on"]
    network = modules.load_network(load_checkpoint(run / "best.pt"))
    assert network(torch.rand(1, 1, 7, 9)).shape == (1, 1, 28, 36)


def test_a_run_beats_bicubic_on_its_test_subjects(finished):
    run, printed = finished
    results = json.loads((run / "metrics.json").read_text())["results"]
    assert list(results) == ["bicubic", "this network"]
    ours = results["this network"]
    assert ours["subjects"] == 4 and ours["slices"] == 12
    for metric in ("psnr", "psnr_brain", "ssim"):
        assert ours[metric]["mean"] > results["bicubic"][metric]["mean"]
    assert f"{ours['psnr']['mean']:.2f} ±" in printed


def test_the_log_has_a_row_an_iteration(finished):
    rows = log(finished[0])
    assert [int(row["iteration"]) for row in rows] == list(range(1, 121))
    rates = [float(row["lr"]) for row in rows]
    wanted = [0.001 * (1 + np.cos(np.pi * i / 118)) for i in range(118)]
    assert rates == pytest.approx([0.001, 0.002, *wanted])
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    checks = [row for row in rows if row["val_psnr"]]
    assert [int(row["iteration"]) for row in checks] == [100, 120]  # few in a short run
    plain = np.mean([float(row["bicubic_loss"]) for row in rows])
    assert float(rows[0]["bicubic_loss"]) == pytest.approx(losses[0], rel=1e-4)  # as it starts
    assert np.mean(losses[-20:]) < plain
    best = content(finished[0] / "best.pt")["metrics"]
    assert best["val_psnr"] == max(float(row["val_psnr"]) for row in checks)


def test_dry_run_without_data_uses_the_slices_of_the_clone(no_figures, capsys, small, monkeypatch):
    monkeypatch.setattr(dataset, "OWN_DATA", small)
    assert train.main(["--dry-run", "--device", "cpu", "--run", "a"]) == 0
    said = capsys.readouterr().out
    assert "train:      2 subjects, 2 slices" in said and "this network" in said
    assert "mean nothing, and nothing of it is kept" in said and "Try next" not in said
    assert not Path("a").exists()  # the name is free for the real one


def test_a_folder_of_train_alone_is_asked_about(small, command, no_figures, cli):
    """Its test folder would stay out, and a new one be made of what was to be trained on."""
    for data, said in ((small, False), (small / "train", True), (small / "train" / "AD", False)):
        words = ["--data", data, *command[2:], "--iterations", "1", "--dry-run"]
        errors = cli(train.main, *words)[2]
        assert (f"test beside it stays out; --data {small} takes both" in errors) == said


@pytest.mark.parametrize(
    "words",
    [
        "--model espcn --scale 3",
        "--optimizer adam --scale 2",
        "--blocks 0 --degradation blur-2+rician-2+jpeg-75",
        "--degradation wide --scale 2x3",
        "--degradation mixed --patch-size 0 --no-augment --ema 0 --schedule constant",
    ],
)
def test_other_networks_and_schedules_train(command, no_figures, words):
    assert train.main([*command, *words.split(), "--iterations", "3", "--run", "r"]) == 0
    assert len(log("r")) == 3


def test_going_on_from_weights_leaves_out_their_error_head(command, no_figures):
    """The head would be of other features; and a resumed run needs the file no more."""
    save_weights("head.pt", channels=6, blocks=1, half=0, error_head=True)
    options = [*command, "--iterations", "2", "--channels", "6", "--blocks", "1"]
    assert train.main([*options, "--weights", "head.pt", "--run", "r"]) == 0
    made = content("r/best.pt")["arch"]
    assert "error_head" not in made and made["blocks"] == 1
    Path("head.pt").unlink()
    assert train.main(["--resume", "r", "--iterations", "3"]) == 0


def people_of(run) -> dict:
    return json.loads(Path(run, "config.json").read_text())["subjects"]


def test_people_whom_the_first_weights_know_are_no_test_for_the_next(
    command, everybody, no_figures, cli
):
    command = [*command, "--data", str(everybody), "--iterations", "2"]
    assert train.main([*command, "--run", "a"]) == 0
    options = ("--weights", "a/best.pt", "--seed", "1", "--run", "b")
    status, _, errors = cli(train.main, *command, *options)
    assert status == 0, errors
    a, b = people_of("a"), people_of("b")
    assert content("a/best.pt")["people"] == sorted(a["train"] + a["val"])
    assert b["test"] == a["test"] and not set(b["train"]) & {*b["val"], *b["test"]}
    everyone = sorted({*a["train"], *a["val"], *b["train"], *b["val"]})
    assert content("b/best.pt")["people"] == content("b/last.pt")["people"] == everyone
    assert "val: 1 of 1 subjects" in errors and "that --weights know" in errors
    other, _ = dataset.load_parts(data=everybody, seed=1)
    assert set(other["test"].subject) != set(a["test"])  # as it would have been
    shutil.rmtree("a")
    assert train.main(["--resume", "b", "--iterations", "3"]) == 0  # with the same split
    assert people_of("b") == b


def test_weights_that_list_nobody_are_said(command, no_figures, cli, short):
    about = content(short / "best.pt")
    about.pop("people")
    train.save_checkpoint("old.pt", about)
    status, _, errors = cli(
        train.main, *command, "--iterations", "2", "--weights", "old.pt", "--run", "r"
    )
    assert status == 0 and "old.pt: does not list the people it was trained on" in errors
    assert "people" not in content("r/best.pt")  # a part of them would look like all


@pytest.mark.parametrize(("option", "value"), [("channels", 9), ("blocks", 3), ("model", "espcn")])
def test_what_weights_decide_is_refused_and_the_config_tells_it(
    command, no_figures, short, option, value, small
):
    start = ["--data", str(small), *command[2:4], "--weights", str(short / "best.pt")]
    start += ["--iterations", "1", "--batch-size", "2", "--patch-size", "6", "--device", "cpu"]
    with pytest.raises(
        UsageError, match=f"^--{option} {value}: .*best.pt was made with --{option}"
    ):
        train.main([*start, f"--{option}", str(value), "--run", "r"])
    assert not Path("r").exists()
    assert train.main([*start, "--run", "r"]) == 0
    told = json.loads(Path("r/config.json").read_text())["arguments"]
    assert (told["model"], told["channels"], told["blocks"]) == ("deep", 8, 2)


def test_through_the_slices_of_volumes(no_figures, small, cli):
    for person in ("03", "07", "52", "55"):
        volume = slices_of_person(person)[10, 80:144:2, 88:144:2, None] * np.linspace(0.5, 1, 32)
        save_volume(Path(f"heads/sub-{person}.nii.gz"), volume)
    words = "--scale 4x1 --iterations 2 --patch-size 8 --channels 4 --blocks 1 --batch-size 2"
    status, output, _ = cli(train.main, "--data", "heads", *words.split(), "--run", "a")
    assert status == 0 and "evaluate.py a/best.pt" in output and "predict.py" not in output
    checkpoint = content("a/best.pt")
    assert checkpoint["scales"] == [[4, 1]] and checkpoint["degradation"] == "box"
    assert modules.load_network(checkpoint)(torch.rand(1, 1, 7, 9)).shape == (1, 1, 28, 9)


def test_the_weights_that_are_kept_are_a_running_mean_of_the_best_validation(
    command, no_figures, monkeypatch
):
    """With a learning rate at which validation soon gets worse, also after going on."""
    saved, real = [], run_folder.save_last

    def save(run, state, about):
        saved.append([copy.deepcopy(x.state_dict()) for x in (state.network, state.average)])
        real(run, state, about)

    monkeypatch.setattr(run_folder, "save_last", save)
    words = "--optimizer adam --lr 0.1 --schedule constant --ema 0.3 --iterations 4"
    train.main([*command, *words.split(), "--run", "a"])
    mean = saved[0][0]
    for i, (raw, kept) in enumerate(saved[1:]):
        decay = min(0.3, (1 + i) / (10 + i))  # the start, untrained, is soon forgotten
        mean = {k: decay * mean[k] + (1 - decay) * raw[k] for k in mean}
        for k, v in kept.items():
            torch.testing.assert_close(v, mean[k], rtol=1e-5, atol=1e-6)
    psnr = [float(row["val_psnr"]) for row in log("a")]
    best = int(np.argmax(psnr))
    assert best < 3 and psnr[3] < psnr[best] - 1
    found = content("a/best.pt")
    assert same(found["model"], saved[1 + best][1]) and found["metrics"]["iteration"] == best + 1
    train.main(["--resume", "a", "--iterations", "6"])
    assert same(content("a/best.pt"), found)


# --- the same again -------------------------------------------------------------------------------


def test_config_is_enough_to_repeat_a_run(command, no_figures):
    train.main([*command, "--iterations", "5", "--degradation", "mixed", "--run", "a"])
    words = []
    for name, value in json.loads(Path("a", "config.json").read_text())["arguments"].items():
        if value is not None and value is not False and name != "run":
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += ["--" + name.replace("_", "-"), *map(str, values)]
    train.main([*words, "--run", "b"])
    assert_same_run("a", "b")
    train.main([*words, "--run", "c", "--seed", "2"])
    assert Path("a", "log.csv").read_text() != Path("c", "log.csv").read_text()


# --- stop and go on -------------------------------------------------------------------------------


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n, signal): the process gets the signal in the n-th step."""
    real = train.learning_rate

    def at(iteration, number=signal.SIGINT):
        def rate(i, *options):
            if i == iteration:
                os.kill(os.getpid(), number)
            return real(i, *options)

        monkeypatch.setattr(train, "learning_rate", rate)

    return at


@POSIX
def test_a_resumed_run_equals_one_that_was_never_stopped(command, no_figures, interrupt):
    command = [*command, "--degradation", "mixed", "--iterations", "20"]  # 3 epochs and a bit
    assert train.main([*command, "--run", "whole"]) == 0
    for iteration in (0, 9, 15):  # the first step, and in the middle of epochs
        interrupt(iteration)
        first = [*command, "--run", "parts"] if iteration == 0 else ["--resume", "parts"]
        assert train.main(first) == 130
        assert content("parts/last.pt")["iteration"] == iteration + 1
        assert len(log("parts")) == iteration + 1
    assert train.main(["--resume", "parts"]) == 0
    assert_same_run("whole", "parts")


@POSIX
def test_a_stopped_run_says_how_to_go_on(command, no_figures, interrupt, capsys):
    interrupt(3, signal.SIGTERM)
    assert train.main([*command, "--iterations", "44", "--run", "my 'run'"]) == 143
    printed = capsys.readouterr().out.splitlines()
    assert "stopped at iteration 4" in printed[-2]
    assert printed[-1].strip() == """python train.py --resume 'my '"'"'run'"'"''"""
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_epochs_may_grow(command, no_figures):
    command = [*command, "--schedule", "constant"]
    train.main([*command, "--epochs", "4", "--run", "a"])
    train.main([*command, "--epochs", "2", "--run", "b"])
    assert len(log("b")) == 11  # 21 slices, 4 a step
    train.main(["--resume", "b", "--epochs", "4"])
    assert len(log("a")) == len(log("b")) == 21
    assert same(content("a/last.pt")["model"], content("b/last.pt")["model"])
    train.main(["--resume", "b", "--iterations", "23"])
    assert len(log("b")) == 23


def test_resuming_a_finished_run_makes_its_results_again(run, short, no_figures):
    os.remove("run/metrics.json")
    assert train.main(["--resume", "run"]) == 0
    assert_same_run("run", short)


def test_what_makes_resuming_wrong_is_refused_by_name(command, run):
    before = contents(run)
    for words, said in (
        ("--resume run --lr 0.1 --seed 5", r"^--seed, --lr cannot change"),
        ("--resume run --channels 9", "--channels cannot change"),
        ("--resume run --iterations 3", "at iteration 4 already"),
        ("--resume run --scale 2", "--scale cannot change"),
        ("--run run", "--run run: exists already"),
    ):
        start = command if words.startswith("--run") else []
        with pytest.raises(UsageError, match=said):
            train.main([*start, *words.split()])
    assert contents(run) == before


def test_data_may_move_but_not_change(command, no_figures, small):
    shutil.copytree(small, "data")
    train.main([*command, "--data", "data", "--iterations", "4", "--run", "a"])
    os.rename("data", "moved")
    for path in Path("moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert train.main(["--resume", "a", "--iterations", "6", "--data", "moved"]) == 0
    picture = next(Path("moved").rglob("*_79.png"))
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    with pytest.raises(DataError, match="moved: is not the data set, or not as it was"):
        train.main(["--resume", "a", "--iterations", "8"])


def test_runs_that_start_together_get_folders_of_their_own(command, no_figures, cli, monkeypatch):
    class Clock(run_folder.datetime):
        @classmethod
        def now(cls):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    first, second = run_folder.create_run(), run_folder.create_run()
    assert first == Path("runs/20300102-030405") and second.name == f"{first.name}-2"
    assert train.main([*command, "--iterations", "2"]) == 0
    assert len(log(f"{first}-3")) == 2
    run_folder.create_run("named")
    Path("weights").mkdir()
    Path("weights/best.pt").write_text("precious")
    for name in ("named", "weights"):
        with pytest.raises(UsageError, match=f"--run {name}: exists already"):
            run_folder.create_run(name)
    status, _, _ = cli(train.main, "--data", "nowhere", "--run", "failed")
    assert status == 1 and not Path("failed").exists()  # nothing began: the name is free again


def test_interrupted_at_the_table_a_run_says_how_to_go_on(command, no_figures, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "score_slices", interrupted)
    assert train.main([*command, "--iterations", "2", "--run", "a"]) == 130
    assert "python train.py --resume a" in capsys.readouterr().out


def test_validation_needs_no_float64_on_the_device(without_float64):
    hr = without_float64(torch.rand(1, 1, 32, 32))
    pairs = [(0, (4, 4), hr[..., ::4, ::4].contiguous(), None, hr)]
    mse, psnr = train.validate({(4, 4): modules.Interpolation((4, 4))}, pairs, 1)
    assert psnr == pytest.approx(-10 * np.log10(mse))


def test_validation_scores_what_can_be_shown():
    """White that comes out too bright is white."""
    hr = torch.ones(1, 1, 16, 16)
    pairs = [(0, (4, 4), 2 * hr[..., ::4, ::4], None, hr)]
    assert train.validate({(4, 4): modules.Interpolation((4, 4))}, pairs, 1)[0] == 0


@pytest.mark.parametrize("damage", ["no folder", "no config", "config", "no last", "last", "best"])
def test_a_damaged_run_folder_is_one_clear_error(run, damage):
    if damage == "no folder":
        shutil.rmtree(run)
    elif damage == "no config":
        (run / "config.json").unlink()
    elif damage == "config":
        (run / "config.json").write_text('{"arguments": [3]}')
    elif damage == "no last":
        (run / "last.pt").unlink()
    elif damage == "last":
        os.truncate(run / "last.pt", 5000)
    else:
        shutil.copy(run / "best.pt", run / "last.pt")
    with pytest.raises(DataError) as error:
        train.main(["--resume", "run"])
    named = "last.pt" if damage in ("no last", "last", "best") else "config.json"
    assert named in str(error.value) and "\n" not in str(error.value)


# --- killed ---------------------------------------------------------------------------------------

# train.py with a short interval between checkpoints, and something bad that happens on the way.
DRIVER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import train, utils
train.SAVE_EVERY = 3
train.CHECK_EVERY = 1, 1000
train.run_folder.plot = train.examples_figure = lambda *a, **k: None
{bad}
utils.run_main(lambda: train.main(sys.argv[1:]))
"""
KILLED_WHILE_WRITING = """
calls, real = 0, os.fsync
def fsync(number):
    global calls
    calls += os.fstat(number).st_size > 5000  # a checkpoint
    if calls == 9:
        os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(number)
os.fsync = fsync
"""
ENDLESS_STEP = """
real = train.learning_rate
def rate(i, *options):
    if i == 4:
        print("in the step", flush=True)
        end = time.time() + 60
        while time.time() < end:
            time.sleep(0.01)
    return real(i, *options)
train.learning_rate = rate
"""


def start(arguments, bad=""):
    code = DRIVER.format(root=str(ROOT), bad=bad)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=pipe, stderr=pipe, text=True
    )


@POSIX
def test_killed_while_writing_files_nothing_is_torn(command, no_figures):
    """A run is killed with half a file written; it goes on from what was whole."""
    command = [*command, "--iterations", "30"]
    assert train.main([*command, "--run", "whole"]) == 0
    process = start([*command, "--run", "run"], KILLED_WHILE_WRITING)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert 0 < load_checkpoint("run/last.pt")["iteration"] < 30
    modules.load_network(load_checkpoint("run/best.pt"))
    assert train.main(["--resume", "run"]) == 0
    assert_same_run("whole", "run")
    assert not list(Path("run").glob(".*"))  # what the kills left half written is gone


@POSIX
def test_a_second_ctrl_c_stops_at_once(command):
    process = start([*command, "--iterations", "30", "--run", "run"], ENDLESS_STEP)
    assert any("in the step" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it wants to finish its step
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert load_checkpoint("run/last.pt")["iteration"] in (3, 4)


# --- disks and numbers ----------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("limit", [3000, 20000])
def test_a_full_disk_is_one_line_and_earlier_files_stay(run, no_figures, cli, limit):
    import resource

    before = contents(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        status, _, errors = cli(train.main, "--resume", "run", "--iterations", "9")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    words = r"error: run/(best|last)\.pt: cannot be written \(File too large\)"
    assert re.fullmatch(words, errors.splitlines()[-1])
    after = contents(run)
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in ("last.pt", "metrics.json"))
    modules.load_network(load_checkpoint("run/best.pt"))
    assert train.main(["--resume", "run", "--iterations", "9"]) == 0
    assert [int(row["iteration"]) for row in log("run")] == list(range(1, 10))


def test_a_loss_that_is_no_number_stops_the_run(command, no_figures, monkeypatch):
    real = train.training_batch

    def batch(stock, iteration, options):
        batch = real(stock, iteration, options)
        batch.hr *= np.nan if iteration == 13 else 1
        return batch

    monkeypatch.setattr(train, "training_batch", batch)
    with pytest.raises(DataError, match=r"loss is nan at iteration 14, learning rate 0\.00"):
        train.main([*command, "--iterations", "44", "--run", "run"])
    for name in ("best.pt", "last.pt"):
        network = modules.load_network(load_checkpoint(Path("run", name)))
        assert network(torch.rand(1, 1, 8, 8)).isfinite().all()
    assert content("run/last.pt")["iteration"] == len(log("run")) == 12


def test_weights_that_are_no_numbers_are_never_saved(command, no_figures, monkeypatch):
    """The last step before a checkpoint may break the weights while its loss was still fine."""
    real = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if self.param_groups[0]["params"][0].grad is not None:
            step.calls += 1
            if step.calls == 12:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(float("inf"))

    step.calls = 0
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(DataError, match="weights are not finite at iteration 12"):
        train.main([*command, "--iterations", "44", "--run", "run"])
    assert content("run/last.pt")["iteration"] == 10
    modules.load_network(load_checkpoint("run/last.pt"))


@pytest.mark.parametrize("value", [0, 77])
def test_constant_slices_make_no_nan(value, request):
    """A data set of flat slices trains, scores and plots without a number going wrong."""
    if value:
        request.getfixturevalue("no_figures")
    Path("data").mkdir()
    for n in range(5):
        Image.new("L", (40, 36), value).save(f"data/p{n}_1.png")
    words = "--data data --each-file-a-subject --iterations 3 --batch-size 2 --patch-size 4"
    assert train.main([*words.split(), "--channels", "4", "--blocks", "1", "--run", "run"]) == 0
    text = Path("run/metrics.json").read_text() + Path("run/log.csv").read_text()
    assert "nan" not in text.lower() and "inf" not in text.lower()
    results = json.loads(Path("run/metrics.json").read_text())["results"]
    assert results["bicubic"]["psnr"]["mean"] == pytest.approx(100)
    assert (results["bicubic"]["psnr_brain"]["mean"] is None) == (value == 0)

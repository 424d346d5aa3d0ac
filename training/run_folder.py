"""The run folder: claimed by one run alone, its log, the state that a run goes on from."""

import csv
import gc
import json
import math
import os
import shlex
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

import torch

from evaluation.plots import loss_figure
from inference.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError, UsageError, as_data_error, atomic_write, reason

LOG_FIELDS = ("iteration", "loss", "bicubic_loss", "lr", "val_mse", "val_psnr", "bicubic_psnr")


def create_run(named=None, may_go_on=False) -> Path:
    """The folder that is named, or runs/<date>-<time>, taken for one run alone.

    may_go_on: after a restart the folder may have been used before.
    """
    run = wanted = Path(named or f"runs/{datetime.now():%Y%m%d-%H%M%S}")
    for n in count(2):
        run.mkdir(parents=True, exist_ok=True)
        used = any((run / name).exists() for name in ("config.json", "best.pt"))
        try:
            if used and not may_go_on:
                raise FileExistsError
            # Of runs that begin at the same moment, one alone can make this file.
            open(run / "log.csv", "a" if may_go_on else "x").close()
            return run
        except FileExistsError:
            if named:
                mend = f"go on with --resume {run}" if used else "delete it if no run is beginning"
                raise UsageError(f"--run {run}: exists already; {mend}, or name another") from None
            run = wanted.with_name(f"{wanted.name}-{n}")


def discard_run(run: Path) -> None:
    """Take back the claim on a folder in which no run began."""
    if not (run / "config.json").exists():
        with suppress(OSError):
            (run / "log.csv").unlink()
            (run / "last.pt").unlink(missing_ok=True)
            run.rmdir()


def read_config(run) -> dict:
    """The content of config.json in a run folder, {} if there is none that can be read."""
    try:
        content = json.loads(Path(run, "config.json").read_text(encoding="utf-8"))
        return content if isinstance(content["arguments"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def begin(run: Path, rows) -> None:
    """Make the folder as it was when the rows of its log were written."""
    for left in run.glob(".*.part"):  # of a write that was cut off
        left.unlink()
    with atomic_write(run / "log.csv", "w") as file:
        writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def log_rows(losses, found, state, run: Path, checked: bool) -> list[dict]:
    """The rows of log.csv of these (iteration, learning rate, …), found: their losses and those of
    bicubic upsampling. Raises DataError if a loss, or if checked a weight, is no number."""
    sound = not checked or all(bool(w.isfinite().all()) for w in state.network.parameters())
    rows = []
    for (iteration, rate, _), (loss, bicubic) in zip(losses, found):
        if not math.isfinite(loss) or (iteration == losses[-1][0] and not sound):
            what = "weights are not finite" if math.isfinite(loss) else f"loss is {loss}"
            raise DataError(
                f"{what} at iteration {iteration}, learning rate {rate:.3g}: try a lower --lr; the "
                f"weights before are in {run}"
            )
        rows.append({"iteration": iteration, "loss": loss, "bicubic_loss": bicubic, "lr": rate})
    return rows


def append_log(path, rows) -> None:
    """Add rows; they are on disk before the checkpoint that counts on them is written."""
    try:
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, LOG_FIELDS, lineterminator="\n").writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from None


def plot(run: Path, rows, about: dict) -> None:
    """Draw loss.png from the rows of the log."""
    arch = about["arch"]
    words = f"{arch['name']}, {arch['channels']} channels, {about['trained_on']}"
    loss_figure(run / "loss.png", rows, f"{words}, {about['degradation']}")
    gc.collect()  # figures hold reference cycles: a long run would grow by each one


def commit() -> str:
    """The commit of this program, '' outside a clone."""
    here = Path(__file__).parent.parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def quoted(path) -> str:
    """A path as one word on a command line."""
    return shlex.quote(str(path)) if os.name == "posix" else f'"{path}"'


@dataclass
class State:
    """What training changes: last.pt holds all of it."""

    network: torch.nn.Module
    average: torch.nn.Module
    optimisers: list
    iteration: int = 0
    best: float = -math.inf


def save_last(run: Path, state: State, about: dict) -> None:
    """Write last.pt, from which a run goes on."""
    parts = dict(average=state.average.state_dict(), best=state.best, iteration=state.iteration)
    parts |= dict(optimisers=[o.state_dict() for o in state.optimisers], metrics={})
    save_checkpoint(run / "last.pt", {**about, "model": state.network.state_dict(), **parts})


def resume(run: Path, state: State, config: dict, total: int) -> list[dict]:
    """Restore the state of last.pt. Returns the rows of the log so far."""
    saved = load_checkpoint(run / "last.pt")
    before = read_config(run)
    if saved.get("fingerprint") != config["fingerprint"]:
        raise DataError(
            f"{config['arguments']['data'] or 'data'}: is not the data set, or not as it was, that "
            f"{run} was started with"
        )
    if before.get("subjects") != config["subjects"]:
        raise DataError(f"{run}: was started with another split of the subjects")
    with as_data_error(run / "last.pt"):
        state.network.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        for optimiser, values in zip(state.optimisers, saved["optimisers"], strict=True):
            rates = [group["lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(values)
            for group, rate in zip(optimiser.param_groups, rates):
                group["lr"] = rate  # on the device where it was
        state.iteration, state.best = saved["iteration"], saved["best"]
    if total < state.iteration:
        raise UsageError(f"--resume {run}: is at iteration {state.iteration} already, not {total}")
    with as_data_error(run / "log.csv"), open(run / "log.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a torn line
        # What came after the last checkpoint is done again.
        return [row for row in rows if int(row["iteration"]) <= state.iteration]

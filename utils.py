"""Small helpers below all other files: errors, command line, files, checkpoints, devices."""

import argparse
import io
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

CHECKPOINT_VERSION = 2  # 1: the default network had neither `kernel` nor `half`

# --- errors and files -----------------------------------------------------------------------------


class DataError(Exception):
    """Something is wrong with a file or with data: one line for the user, exit status 1."""

    status = 1


class UsageError(DataError):
    """Something is wrong with the arguments: one line for the user, exit status 2."""

    status = 2


def run_main(main) -> None:
    """Run a script's main(); errors a user can mend become one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number
        stream.reconfigure(errors="backslashreplace")
    message = ""
    try:
        status = main()
    except DataError as error:
        status, message = error.status, str(error)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        status, message = 1, f"{error.filename or 'writing'}: {reason(error)}"
    except (MemoryError, RuntimeError) as error:  # torch has several types for it, by version
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        status, message = 1, "out of memory: try a smaller --batch-size, --patch-size or --tile"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    # Printed only here, when the exception and with it any progress bar is gone from the line.
    if message:
        print("error: " + one_line(message), file=sys.stderr)
    sys.exit(status)


def warn(message: str) -> None:
    """A warning for the person at the prompt, on stderr so that it never mixes with results."""
    print("warning: " + one_line(message), file=sys.stderr)


def one_line(text: str) -> str:
    """The text without line breaks and control codes, whatever a file name brings."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """The words of an exception in one line."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:200] or type(error).__name__


@contextmanager
def as_data_error(path):
    """Read a file inside this: whatever a reader lets through becomes a DataError with its name.

    Damaged files make libraries fail in any way: struct, zlib, numpy, attribute errors ...
    """
    try:
        if not os.path.isfile(path):  # a folder, a broken link, or a pipe that would wait for ever
            kind = "a broken link" if os.path.islink(path) else "not a file"
            raise DataError(f"{path}: {kind if os.path.lexists(path) else 'no such file'}")
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: claims more data than fits into memory") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something: not those of switches, nor None."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        if silent or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line with its defaults in --help, whose mistakes are one line and status 2."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=Defaults, allow_abbrev=False)

    def error(self, message):
        raise UsageError(f"{message}; see --help")


def int_between(least: int, most: int = 2**31):
    """An argparse type: a whole number in this range."""

    def parse(text):
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in {least} ... {most}")
        return number

    parse.__name__ = "whole number"
    return parse


@contextmanager
def atomic_write(path, mode: str = "wb"):
    """Open a file that appears under its name only when it is whole and on disk.

    After an error, a full disk or a kill, the file that was there before is untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{os.urandom(4).hex()}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(part, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be written ({reason(error)})") from None
        raise


# --- checkpoints ----------------------------------------------------------------------------------


def save_checkpoint(path, checkpoint: dict) -> None:
    """Write a dict of tensors and plain types, whole or not at all."""
    buffer = io.BytesIO()  # writing to a full disk, torch.save would raise anything
    torch.save({**checkpoint, "version": CHECKPOINT_VERSION}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path) -> dict:
    """Read a checkpoint on the CPU, without running any code that it may hold.

    `model` is certain to be a dict of real tensors, no larger than the file. Raises DataError if
    the file is missing, damaged, of another version or no checkpoint of this project.
    """
    path = Path(path)
    wanted = {"model": dict, "arch": dict, "scale": (int, list), "degradation": str, "version": int}
    with as_data_error(path):
        try:
            # torch.save packs nothing: packed parts would let a small file fill the memory.
            with zipfile.ZipFile(path) as archive:
                packed = any(part.compress_type for part in archive.infolist())
            checkpoint = None if packed else torch.load(path, "cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception:  # a damaged or hostile file can fail anywhere in there
            raise DataError(
                f"{path}: not a checkpoint, damaged, or holds more than tensors"
            ) from None
        if not isinstance(checkpoint, dict) or any(
            not isinstance(checkpoint.get(key), kind) for key, kind in wanted.items()
        ):
            raise DataError(f"{path}: not a checkpoint of this project")
        if checkpoint["version"] not in (1, CHECKPOINT_VERSION):
            raise DataError(
                f"{path}: has another checkpoint version than {CHECKPOINT_VERSION}, which this "
                f"program reads; train it again or use the matching release"
            )
        if checkpoint["version"] == 1 and checkpoint["arch"].get("name") == "deep":
            before = {"channels": 32, "kernel": "3x3", "half": 0}
            checkpoint["arch"] = before | checkpoint["arch"]
        tensors = checkpoint["model"].values()
        good = all(
            type(t) is torch.Tensor and t.device.type == "cpu" and t.layout == torch.strided
            for t in tensors
        )
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if good}
        held = sum(storage.nbytes() for storage in storages.values())
        if not good or held > path.stat().st_size:
            raise DataError(f"{path}: holds no plain weights")
    words = checkpoint.get("trained_on")
    checkpoint["trained_on"] = one_line(words[:200]) if isinstance(words, str) else "unknown data"
    return checkpoint


# --- devices --------------------------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, then MPS, then CPU) or the named device. Raises UsageError if absent."""
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        usable = device.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise UsageError(f"--device {name}: not available on this machine")
    return device


def bf16_works() -> bool:
    """Whether this CPU can do bf16 convolutions. Tried in a process of its own: on some chips that
    advertise them, the attempt ends the process."""
    code = (
        "import torch, torch.nn.functional as F\n"
        "with torch.autocast('cpu', dtype=torch.bfloat16):\n"
        "    x = torch.ones(1, 32, 32, 32, requires_grad=True)\n"
        "    F.conv2d(x, torch.ones(32, 32, 3, 3)).float().sum().backward()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

"""Small helpers below all other files: errors, files, command line, messages, devices."""

import argparse
import difflib
import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

QUIET = False  # set from --quiet each time a command line is read

# --- errors and files -----------------------------------------------------------------------------


class DataError(Exception):
    """Something is wrong with a file or with data: one line for the user, exit status 1."""

    status = 1


class WriteError(DataError):
    """A file cannot be written: another folder, or room on the disk, may help."""


class UsageError(DataError):
    """Something is wrong with the arguments: one line for the user, exit status 2."""

    status = 2


def run_main(main) -> None:
    """Run a script's main(); errors a user can mend become one line and an exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by some schedulers and by pythonw
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        # A terminal that lacks a letter shows its number.
        getattr(sys, name).reconfigure(errors="backslashreplace")
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
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        status, message = 1, "out of memory: try a smaller --batch-size, --patch-size or --tile"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    # Printed only here, when the exception and with it any progress bar is gone from the line.
    if message:
        print("error: " + one_line(message), file=sys.stderr)
    sys.exit(status)


def one_line(text: str) -> str:
    """The text without line breaks and control codes, whatever a file name brings."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """The message of an exception in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


@contextmanager
def as_data_error(path):
    """Read a file inside this: whatever a reader lets through becomes a DataError with its name.

    Damaged files make libraries fail in any way: struct, zlib, numpy, attribute errors ...
    """
    try:
        if advice := not_downloaded(path):
            raise DataError(f"{path}: {advice}")
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


def not_downloaded(path) -> str:
    """What to do about a pointer that git-annex (DataLad) or Git LFS left in place of a file's
    data; '' if it is none."""
    head = b""
    with suppress(OSError):
        if os.path.islink(path) and not os.path.exists(path):
            head = os.fsencode(os.readlink(path)).replace(b"\\", b"/")
        elif os.path.isfile(path) and os.path.getsize(path) < 2048:
            with open(path, "rb") as file:
                head = file.read(200)
    if b"/annex/objects/" in head:
        return "data not downloaded: git annex get (or datalad get) fetches it"
    lfs = head.startswith(b"version https://git-lfs.github.com/")
    return "data not downloaded: git lfs pull fetches it" if lfs else ""


def no_such(path, paths) -> str:
    """That a path, one of these, is missing, and why."""
    words = not_downloaded(path) or "no such file or folder"
    cut = os.path.exists(" ".join(map(str, paths))) and len(paths) > 1
    return f"{path}: {words}" + " (put quotes around a path with spaces)" * cut


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
            raise WriteError(f"{path}: cannot be written ({reason(error)})") from None
        raise


def write_json(path, content) -> Path:
    """Write an object as JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        file.write(text.encode("utf-8", "backslashreplace").decode())  # names that are no UTF-8
    return Path(path)


def read_json(path) -> dict:
    """What a JSON file says; {} if there is none, or none that can be read."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# --- command line and messages --------------------------------------------------------------------


WARNINGS = ContextVar("warnings", default=None)  # of a thread: where they are kept, too


def warn(message: str, shown: bool = True) -> None:
    """A warning for the person at the prompt, on stderr so that it never mixes with results.

    shown: False only keeps it for the record of a result.
    """
    if WARNINGS.get() is not None:
        WARNINGS.get().append(one_line(message))
    if shown:
        tqdm.write("warning: " + one_line(message), file=sys.stderr)


@contextmanager
def collected_warnings(found: list):
    """A list to which the warnings are added that this thread gives inside."""
    token = WARNINGS.set(found)
    try:
        yield WARNINGS.get()
    finally:
        WARNINGS.reset(token)


def note(message: str) -> None:
    """A line about what is being done; --quiet leaves it out."""
    if not QUIET:
        tqdm.write(one_line(message), file=sys.stdout)


class LogLines:
    """A file for tqdm that writes each state of a bar as a line, for logs."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)


def progress(items=None, total=None, desc="", unit="it", *, disable=False, **options) -> tqdm:
    """A progress bar around items, or moved by its update(); none with --quiet.

    Where stderr is no terminal: a line a minute, and nothing at all for shorter work.
    """
    if not sys.stderr.isatty():
        rare = dict(file=LogLines(), mininterval=60, maxinterval=60, delay=60, ncols=80)
        options = rare | options
    disable = disable or QUIET
    return tqdm(items, one_line(desc), total, unit=unit, disable=disable, **options)


@lru_cache(maxsize=2)
def of_project(key: str) -> str:
    """A value of pyproject.toml, where name and version stand alone; `unknown` outside a clone."""
    with suppress(OSError, TypeError):
        text = Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8")
        return re.search(rf'^{key} *= *"([^"]+)"', text, re.MULTILINE)[1]
    return "unknown"


def version() -> str:
    """The version of this program."""
    return of_project("version")


def name_of_program() -> str:
    """The name of this program."""
    return of_project("name")


class Defaults(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that tell something: not those of switches, nor None; keeps lines."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line with its defaults in --help, whose mistakes are one line and status 2."""

    def __init__(self, description, examples: str = ""):
        super().__init__(
            description=description, formatter_class=Defaults, allow_abbrev=False,
            epilog=f"examples:\n{examples}" if examples else None,
        )  # fmt: skip
        self.add_argument("--version", action="version", version=f"{name_of_program()} {version()}")
        self.add_argument("--quiet", action="store_true", help="only results, warnings, errors")

    def parse_args(self, args=None, namespace=None):
        global QUIET
        self.given = [str(word) for word in (sys.argv[1:] if args is None else args)]
        result = super().parse_args(args, namespace)
        QUIET = vars(result).pop("quiet")
        return result

    def error(self, message):
        raise UsageError(f"{message}{self.suggestion(message)}; see --help")

    def suggestion(self, message: str) -> str:
        """What a mistyped value or flag may have meant, `` if nothing is near."""
        bad = re.search(r"argument (\S+?)(?:/\S+)?: invalid choice: '([^']*)'", message)
        if bad:
            action = self._option_string_actions.get(bad[1])
            typed, known = [bad[2]], [str(c) for c in getattr(action, "choices", None) or ()]
        else:  # a mistyped flag may also show as a missing one
            known = list(self._option_string_actions)
            typed = [word.split("=")[0] for word in self.given if word.startswith("--")]
            typed = [word for word in typed if word not in (*known, "--")]
        near = [[k for k in known if word[2:] and k.startswith(word)][:1]
                or difflib.get_close_matches(word, known, 1, 0.7) for word in typed]  # fmt: skip
        return "".join(f" (did you mean {match[0]}?)" for match in near[:1] if match)


def int_between(least: int, most: int = 2**31):
    """An argparse type: a whole number in this range."""

    def parse(text):
        with suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not in {least} ... {most}, whole numbers")

    return parse


# --- devices --------------------------------------------------------------------------------------


def pick_device(name: str = "auto"):
    """`auto` (CUDA, then MPS, then CPU) or the named device. Raises UsageError if absent."""
    import torch  # takes a second, which --help can save

    if name == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else mps
    with suppress(RuntimeError, AssertionError):
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type in ("cpu", "cuda", "mps"):
            return device
    raise UsageError(f"--device {name}: not on this machine (known are auto, cpu, cuda, mps)")


@lru_cache(maxsize=1)
def bf16_works() -> bool:
    """Whether this CPU has fast bf16 products that can be relied on. Ask before any product.

    Some processors advertise AMX and end the program that uses it, so that it is left alone.
    """
    import torch

    flags = ""
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
    if " avx512_bf16" not in flags or not torch.backends.mkldnn.is_available():
        return False
    if " amx" in flags:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    return True


def bf16_autocast(device, enabled: bool):
    """The context for bf16 products on a device, or one that does nothing.

    Autocast is not even made where it is off: not every device has one.
    """
    import torch

    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16) if enabled else nullcontext()

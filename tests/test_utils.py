"""Command line, messages, bars, files and devices."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

import utils


def parser():
    made = utils.Parser("A program.")
    made.add_argument("--iterations", type=utils.int_between(1, 9))
    made.add_argument("--axis", choices=("axial", "coronal", "sagittal"))
    made.add_argument("--image", required=True)
    return made


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (["--image", "a", "--iteration", "5"], "did you mean --iterations?"),
        (["--image", "a", "--iteratoins=5"], "did you mean --iterations?"),
        (["--imgae", "a"], "did you mean --image?"),
        (["--image", "a", "--iter", "5"], "did you mean --iterations?"),
        (["--image", "a", "--axis", "axail"], "did you mean axial?"),
        (["--image", "a", "--axis", "up"], "choose from"),
        (["--image", "a", "--colour"], "--colour; see --help"),
        (["--image", "a", "--iterations", "10"], "10 is not in 1 ... 9"),
    ],
)
def test_mistakes_are_one_line_with_a_suggestion(line, wanted):
    with pytest.raises(utils.UsageError, match=re.escape(wanted)) as error:
        parser().parse_args(line)
    assert "\n" not in str(error.value)


def test_the_version_is_that_of_the_project_file(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--version"])
    said = capsys.readouterr().out.strip()
    name, version = said.split()
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", version)
    project = Path(utils.__file__).with_name("pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "{name}"' in project and f'version = "{version}"' in project


class Terminal:
    """A stream that is a terminal or a file."""

    def __init__(self, terminal):
        self.text, self.terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


def test_quiet_leaves_warnings_alone(capsys):
    for words in (["--quiet"], []):
        args = parser().parse_args(["--image", "a", *words])
        assert not hasattr(args, "quiet")
        utils.note("reading")
        utils.warn("odd\nfile")
        out, err = capsys.readouterr()
        assert out == ("" if words else "reading\n") and err == "warning: odd\\nfile\n"


def test_bars_show_on_terminals_and_do_not_litter_log_files(monkeypatch):
    for terminal, quiet in ((True, False), (False, False), (True, True)):
        monkeypatch.setattr(sys, "stderr", stream := Terminal(terminal))
        monkeypatch.setattr(utils, "QUIET", quiet)
        assert list(utils.progress(range(50), desc="reading", unit="file")) == list(range(50))
        assert ("reading" in stream.text) == (terminal and not quiet)
    monkeypatch.setattr(utils, "QUIET", False)
    monkeypatch.setattr(sys, "stderr", stream := Terminal(False))
    with utils.progress(None, 3, "long work", delay=0, mininterval=0) as bar:
        bar.update()
        bar.update()
    assert "\r" not in stream.text and all(map(str.strip, stream.text.splitlines()))
    assert "2/3" in stream.text.splitlines()[-1]


def test_a_device_that_is_not_there_is_refused():
    for name in ("cuda:99", "meta", "abacus"):
        with pytest.raises(utils.UsageError, match=f"--device {name}: not on this machine"):
            utils.pick_device(name)
    assert utils.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("flags", "works", "isa"),
    [("avx512_bf16 fma", True, None), ("avx512_bf16 amx_tile", True, "AVX512_CORE_BF16"),
     ("avx512f amx_tile", False, None)],
)  # fmt: skip
def test_bf16_is_used_where_the_cpu_has_it_but_amx_is_left_alone(monkeypatch, flags, works, isa):
    monkeypatch.setattr(
        Path, "read_text", lambda _: f"vendor : x\nflags\t\t: fpu {flags}\nbugs : y\n"
    )
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "x")  # is put back after the test
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    utils.bf16_works.cache_clear()
    assert utils.bf16_works() is works and os.environ.get("ONEDNN_MAX_CPU_ISA") == isa
    utils.bf16_works.cache_clear()


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), utils.atomic_write(path, "w") as file:
        file.write("half")
        file.flush()
        assert path.read_text() == "before"
        print(1 / 0)
    assert path.read_text() == "before"
    with utils.atomic_write(path, "w") as file:
        file.write("after")
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("name", ["no such folder/x.json", "a file/x.json", "a folder"])
def test_atomic_write_to_nowhere_is_one_clear_error(tmp_path, name):
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    with (
        pytest.raises(utils.DataError, match=re.escape(f"{name}: cannot be written")),
        utils.atomic_write(tmp_path / name) as file,
    ):
        file.write(b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "a folder"]


def test_a_program_whose_output_is_closed_does_its_work(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        utils.run_main(lambda: utils.note("done") or utils.warn("careful"))
    assert not ended.value.code

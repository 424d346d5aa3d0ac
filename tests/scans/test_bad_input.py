"""What people and disks really give: each bad input is one line that names it, and no traceback.

`BAD_FILES` cannot be read, `ODD_FILES` are unusual and can, `BAD_FOLDERS` are data sets that cannot
be trained on, `USAGE` wrong command lines.
"""

import gzip
import os
import struct
import sys
from pathlib import Path

import made_files
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import scans
import train
import utils
from benchmarks import fuzz
from scans.formats import kind_of
from scans.listing import find_scans

POSIX = os.name == "posix"


def grey(h=12, w=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w), dtype=np.uint8)


# --- writers of files: each takes the path -------------------------------------------------------


def write(content):
    return lambda path: path.write_bytes(content)


def picture(values, **options):
    return lambda path: Image.fromarray(values).save(path, **options)


def frames(ending):
    def make(path):
        images = [Image.fromarray(grey(seed=n)) for n in range(3)]
        images[0].save(path, ending, save_all=True, append_images=images[1:])

    return make


def cut(make, share):
    """The first part of the file that `make` writes."""

    def half(path):
        make(path)
        os.truncate(path, int(path.stat().st_size * share))

    return half


def damaged(make, at, content):
    """The file that `make` writes with some bytes replaced."""

    def change(path):
        make(path)
        packed = path.name.endswith(".gz")
        data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        data[at : at + len(content)] = content
        path.write_bytes(gzip.compress(data) if packed else data)

    return change


def volume(shape=(8, 9, 7), dtype=np.int16, value=None):
    def make(path):
        data = np.zeros(shape, dtype)
        if value is not None:
            data[...] = value
        elif data.dtype.names is None:
            data[...] = np.arange(data.size).reshape(shape) % 100
        kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
        nib.save(kind(data, np.eye(4)), path)

    return make


def dicom(**changes):
    def make(path):
        series = made_files.generate_uid()
        deep, along = grey().astype(np.uint16), (1, 0, 0, 0, 1, 0)
        ds = made_files.dicom(deep, (0, 0, 0), along, series=series, **changes)
        for name in [name for name, value in changes.items() if value is None]:
            delattr(ds, name)
        ds.save_as(path, enforce_file_format=True)

    return make


def link(target):
    return lambda path: path.symlink_to(target)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
COLOUR = dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8,
              HighBit=7)  # fmt: skip

BAD_FILES = {
    **{f"empty.{e}": write(b"") for e in ("png", "jpg", "nii", "nii.gz", "dcm")},
    "text.png": write(b"I am not a picture"),
    "text.nii.gz": write(b"I am not a volume"),
    "text.dcm": write(b"I am not a scan" * 40),
    "program.png": write(b"\x7fELF" + bytes(200)),
    **{f"cut.{e}": cut(picture(grey(99, 99)), 0.6) for e in ("png", "jpg", "tif", "bmp")},
    **{f"cut.{e}": cut(volume(dtype=np.float32), 0.6) for e in ("nii", "nii.gz", "mgz")},
    "cut.dcm": cut(dicom(), 0.8),
    "head only.jpg": write(b"\xff\xd8\xff\xe0"),
    "flipped bits.png": damaged(picture(grey(99, 99)), 300, bytes(40)),
    "no size.png": write(made_files.png(0, 0)),
    "absurd size.png": write(made_files.png(100_000, 100_000)),
    "bomb.png": lambda path: write(made_files.png(16_000, 16_000, bytes(16_001 * 16_000)))(path),
    "animated.gif.png": frames("GIF"),
    "animated.png": frames("PNG"),
    "pages.tif": frames("TIFF"),
    "nan.tif": picture(np.full((8, 8), np.nan, np.float32)),
    "infinite.tiff": picture(np.full((8, 8), np.inf, np.float32)),
    "5-D.nii.gz": volume((4, 4, 4, 2, 3)),
    "complex.nii": volume(dtype=np.complex64),
    "colour.nii.gz": volume(dtype=RGB),
    "promises more.nii": damaged(volume(), 42, struct.pack("<3h", 99, 99, 99)),
    "promises more.nii.gz": damaged(volume(), 42, struct.pack("<3h", 999, 99, 99)),
    "absurd size.nii.gz": damaged(volume(), 42, struct.pack("<3h", 32767, 32767, 32767)),
    "negative size.nii": damaged(volume(), 42, struct.pack("<3h", -8, 9, 7)),
    "no type.nii": damaged(volume(), 70, struct.pack("<h", 12345)),
    "no partner.img": write(bytes(1000)),
    "no pixels.dcm": dicom(PixelData=None),
    "colour.dcm": dicom(**COLOUR, PixelData=bytes(grey().size * 3)),
    "promises more.dcm": dicom(Rows=999),
    "absurd size.dcm": dicom(Rows=65535, Columns=65535),
    "no size.dcm": dicom(PixelSpacing=[0, 0]),
    "odd bits.dcm": dicom(BitsAllocated=7),
    "long name " + 240 * "x" + ".png": picture(grey()),
}
if POSIX:
    BAD_FILES |= {f"broken link.{e}": link(f"nowhere.{e}") for e in ("png", "nii.gz")}
    BAD_FILES |= {"link loop.png": link("link loop.png"), "pipe.png": os.mkfifo}
    BAD_FILES |= {"new\nline \x1b[31m.png": write(b"")}
    if os.geteuid() != 0:  # root may read everything
        BAD_FILES["forbidden.png"] = lambda path: (picture(grey())(path), path.chmod(0))

ODD_NAMES = ["脳 мозг دماغ 🧠.png", "-x --output y.png", "%s{0}$HOME`x`.png", "CAPITALS.PNG"]
ODD_NAMES += ["two  spaces, 'quotes' and \"double\".png", "new\nline.png"] if POSIX else []
ODD_NAMES += [os.fsdecode(b"latin\xe9.png")] if sys.platform == "linux" else []
ODD_FILES = {name: picture(grey()) for name in ODD_NAMES} | {
    "zeros.png": picture(np.zeros((9, 9), np.uint8)),
    "negative.tif": picture(-grey().astype(np.float32)),
    "one pixel.png": picture(grey(1, 1)),
    "3x5.png": picture(grey(3, 5)),
    "one row.png": picture(grey(1, 40)),
    "one column.png": picture(grey(40, 1)),
    "cmyk.jpg": lambda path: Image.fromarray(grey()).convert("CMYK").save(path),
    "1-bit.png": picture(grey() > 99),
    "a jpeg.png": picture(grey(), format="JPEG"),
    "16 bit.png": picture(grey().astype(np.uint16) * 200),
    "nothing.nii.gz": volume(value=0),
    "nan.nii.gz": volume(dtype=np.float32, value=np.nan),
    "flat.nii": volume((5, 6), value=3),
    "tiny.mgz": volume((1, 2, 1), np.float32),
}


@pytest.fixture
def upscale(cli, tiny):
    def call(*arguments):
        return cli(predict.main, "--weights", tiny, "--scale", 4, *arguments)

    return call


def everything(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def assert_one_line(errors, *words):
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    assert lines[0].isprintable() and len(lines[0]) < 700
    for word in words:
        assert word in lines[0], errors


def shown(name):
    """A file name as messages show it."""
    return name.encode("unicode_escape").decode() if not name.isprintable() else name


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in BAD_FILES if "long" not in n], ids=ascii)
def test_a_bad_file_is_one_error_that_names_it(name, tmp_path):
    path = tmp_path / name
    BAD_FILES[name](path)
    with pytest.raises(utils.DataError) as caught:
        scans.read(path)
    words = utils.one_line(str(caught.value))
    assert shown(name) in words and len(words) < 700


ANNEX = ".git/annex/objects/Kx/7q/MD5E-s9--a.png/MD5E-s9--a.png"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
POINTERS = {
    "linked": (link(ANNEX), "git annex get"),
    "unlocked": (write(b"/annex/objects/MD5E-s9--a.png\n"), "git annex get"),
    "lfs": (write(LFS), "git lfs pull"),
}


@pytest.mark.parametrize("ending", [".png", ".nii.gz", ".dcm", ".img"])
@pytest.mark.parametrize("name", POINTERS if POSIX else ["unlocked", "lfs"])
def test_data_that_was_not_downloaded_is_said_to_be(name, ending, upscale, tmp_path, cli):
    make, advice = POINTERS[name]
    path = tmp_path / f"sub-1_1{ending}"
    make(path)
    status, _, errors = upscale(path)
    assert status == 1
    assert_one_line(errors, path.name, f"data not downloaded: {advice}")
    (tmp_path / "data").mkdir()
    for n in range(3):
        make(tmp_path / f"data/sub-{n}_1{ending}")
    status, _, errors = cli(train.main, *TRAIN)
    assert status == 1 and errors.count(advice) >= 3


def test_in_a_folder_the_good_files_are_done(upscale, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a folder.png").mkdir()
    for table in (BAD_FILES, ODD_FILES):
        for name, make in table.items():
            if not name.endswith(".dcm"):  # DICOM files of a folder are one series
                make(source / name)
    bad = {name for name in BAD_FILES if not name.endswith(".dcm")} - {"no partner.img"}
    odd = list(ODD_FILES)
    status, printed, errors = upscale("--image", source, "--output", tmp_path / "out")
    assert status == 1
    assert f"{len(odd)} upscaled" in printed, errors
    skipped = [line for line in errors.splitlines() if "skipped: " in line]
    for name in bad:
        words = "/long name" if len(name) > 200 else f"/{shown(name)}: "
        assert sum(words in line for line in skipped) == 1, name
    done = {p.name: p for p in (tmp_path / "out").iterdir() if p.suffix != ".json"}
    assert len(done) == len(odd) and not [name for name in done if name.startswith(".")]
    for name in odd:
        if kind_of(Path(name)) == "picture":
            stem = name.rpartition(".")[0]
            found = [p for n, p in done.items() if n.startswith(stem) and ".nii" not in n]
            with Image.open(source / name) as before:
                sizes = [Image.open(path).size for path in found]
                assert (4 * before.width, 4 * before.height) in sizes, name
    for path in done.values():
        values = nib.load(path).get_fdata() if ".nii" in path.name else Image.open(path)
        assert np.isfinite(np.asarray(values)).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", fuzz.FORMATS)
def test_mutated_files_are_read_or_refused(ending, tmp_path):
    """The short version of `python benchmarks/fuzz.py`."""
    result = fuzz.fuzz(ending, 40, seed=1, folder=tmp_path)
    assert 10 < result["refused"] < 40


@pytest.mark.skipif(not POSIX, reason="needs links")
def test_links_in_circles_end(tmp_path, upscale):
    source = tmp_path / "in"
    (source / "a" / "b").mkdir(parents=True)
    Image.fromarray(grey()).save(source / "a" / "x.png")
    (source / "a" / "b" / "up").symlink_to(source)
    (source / "self").symlink_to(source / "self")
    (source / "ping").symlink_to(source / "pong")
    (source / "pong").symlink_to(source / "ping")
    assert [scan.path for scan in find_scans(source)] == [source / "a" / "x.png"]
    status, printed, _ = upscale("--image", source, "--output", tmp_path / "out")
    assert status == 0 and "1 upscaled" in printed


def test_a_closed_folder_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "closed").mkdir()
    Image.fromarray(grey()).save(tmp_path / "a_1.png")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(find_scans(tmp_path)) == 1
    assert "closed" in capsys.readouterr().err


# --- data sets ------------------------------------------------------------------------------------


def slices(*names):
    def make(folder):
        for n, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey(20 + n, 24, n)).save(path)

    return make


def each(make, *names):
    """The same in files of several names."""
    return lambda folder: [make(folder / name) for name in names]


def unreadable_test(folder):
    slices("train/sub-a_1.png", "train/sub-b_1.png", "test/sub-c_1.png")(folder)
    (folder / "test/sub-c_1.png").write_bytes(b"")


SUBJECTS = ("sub-a_1.png", "sub-b_1.png", "sub-c_1.png")
BAD_FOLDERS = {
    "not there": (None, "data: no such folder"),
    "a file": (lambda folder: (folder.rmdir(), folder.touch()), "data: is a file"),
    "empty": (lambda folder: None, "data: holds no slices"),
    "only text": (each(write(b""), "notes.txt", "b.csv"), "data: holds no slices"),
    "one subject": (slices("sub-1_1.png", "sub-1_2.png", "sub-1_3.png"), "too few"),
    "nobody knows whose": (slices("IMG_1.png", "IMG_2.png"), "IMG_1.png of '?'"),
    "two subjects": (slices("sub-1_1.png", "sub-2_1.png"), "too few"),
    "train of one subject": (slices("train/AD/sub-a_1.png", "test/AD/sub-b_1.png"), "too few"),
    "only a test folder": (slices("test/AD/sub-a_1.png", "test/AD/sub-b_1.png"), "too few"),
    "nothing readable": (each(write(b""), *SUBJECTS, "sub-d_1.nii.gz"), "no slice"),
    "no readable test": (unreadable_test, "no slice of the test subjects"),
    "too small": (each(picture(grey(3, 3)), *SUBJECTS), "no slice"),
    "empty volumes": (each(volume(value=0), "sub-a.nii", "sub-b.nii", "sub-c.nii"), "no slice"),
}
WORDS = "--iterations 2 --batch-size 2 --patch-size 4 --channels 4 --blocks 1 --device cpu"
TRAIN = ["--data", "data", "--run", "run", *WORDS.split()]


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_data_set_is_one_line(name, cli, tmp_path):
    make, words = BAD_FOLDERS[name]
    if make:
        Path("data").mkdir()
        make(Path("data"))
    status, _, errors = cli(train.main, *TRAIN)
    assert status == 1
    assert_one_line(errors, words, "data")
    assert not Path("run").exists()


def test_good_files_of_every_kind_train_beside_bad_ones(cli, no_figures):
    data = Path("data")
    data.mkdir()
    slices("a_1.png", "b_1.jpg", "c_1.tif", *(f"p{n}_1.png" for n in range(40)))(data)
    volume((20, 24, 9))(data / "sub-1_T1w.nii.gz")
    picture(grey(7, 90))(data / "too small.png")
    bad = [name for name in BAD_FILES if "long" not in name]  # which can be read
    for name in bad:
        BAD_FILES[name](data / name)
    status, _, errors = cli(train.main, *TRAIN, "--each-file-a-subject")
    assert status == 0, errors
    assert Path("run/metrics.json").is_file()
    told = [line for line in errors.splitlines() if "left out: " in line]
    assert len(told) == len(bad) + 1
    for name in ("too small.png", *bad):
        assert sum(f"/{shown(name)}: " in line for line in told) == 1, name


# --- command lines --------------------------------------------------------------------------------

# Each is refused with a line that names the last option or its value.
# picture.png, file, folder and tiny.pt exist.
USAGE = {
    train: """--nonsense; --chan 4; stray; --channels 0; --channels -4; --channels many;
        --channels 1000000000; --blocks -1; --batch-size 0; --patch-size -1; --iterations 1.5;
        --iterations 0; --epochs -3; --iterations 9 --epochs 2; --lr 0; --lr nan; --lr fast;
        --ema 1; --seed -1; --seed 99999999999999999999; --model vit; --degradation blur;
        --device nonsense; --device meta; --workers 0; --data=; --run file; --resume nowhere;
        --resume folder; --resume file""",
    evaluate: """tiny.pt --split both; tiny.pt --slices -2""",
    predict: """--image picture.png --nonsense; --image picture.png --output file;
        --image picture.png --output picture.png; --image picture.png --output result.png;
        --image picture.png --tile 0; --image picture.png --batch-size -1; picture.png --imag;
        --image picture.png --device nonsense; --image picture.png --shard 5/4;
        --image picture.png --simulate --degradation blur; picture.png --degradation mixed;
        picture.png --voxel-size 0.2""",
}
if not torch.cuda.is_available():
    USAGE = {s: words + "; --device cuda" * (s is train) for s, words in USAGE.items()}
    USAGE[predict] += "; --image picture.png --checkpoint tiny.pt --device cuda"
USAGE = [(s, line.strip()) for s, lines in USAGE.items() for line in lines.split(";")]
USAGE += [(predict, "")]


@pytest.mark.parametrize(("script", "line"), USAGE, ids=lambda x: getattr(x, "__name__", x))
def test_a_wrong_command_line_is_one_line_and_status_2(script, line, cli, tiny):
    Image.fromarray(grey()).save("picture.png")
    Path("file").write_text("precious")
    Path("folder").mkdir()
    Path("tiny.pt").write_bytes(tiny.read_bytes())
    before = everything(".")
    words = line.split()
    status, printed, errors = cli(script.main, *words)
    assert status == 2 and not printed
    assert_one_line(errors)
    assert not words or any(word.rstrip("=") in errors for word in words[-2:])
    assert everything(".") == before and Path("file").read_text() == "precious"


@pytest.mark.parametrize("name", ["none.pt", "picture.png"])
def test_a_bad_checkpoint_is_one_line(name, cli):
    Image.fromarray(grey()).save("picture.png")
    status, _, errors = cli(predict.main, "--image", "picture.png", "--checkpoint", name)
    assert status == 1
    assert_one_line(errors, name)
    assert not Path("picture_x4.png").exists()

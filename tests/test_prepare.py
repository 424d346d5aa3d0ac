"""`python data/prepare.py SCANS OUT`: from scans to slices that train.py reads."""

import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, pixels
from made_files import save_series, save_volume
from PIL import Image

from data import prepare
from scans.listing import find_scans
from scans.splits import split_subjects
from utils import DataError, UsageError


@pytest.fixture(scope="session")
def study(brain, tmp_path_factory):
    """A BIDS study of 7 subjects, one of them with two sessions, with participants.tsv."""
    root = tmp_path_factory.mktemp("study")
    part = brain[60:84, 40:150, 50:140].transpose(2, 1, 0)[:, ::-1]  # RAS, 90 x 110 x 24
    rows = ["participant_id\tage\tgroup"]
    for n in range(1, 8):
        sessions = ("ses-1", "ses-2") if n == 3 else ("",)
        for session in sessions:
            name = "_".join(filter(None, (f"sub-{n:02d}", session, "T1w.nii.gz")))
            save_volume(root / f"sub-{n:02d}" / session / "anat" / name, part)
        rows.append(f"sub-{n:02d}\t{60 + n}\t{'patient' if n % 2 else 'control'}")
    rows[-1] = "sub-07\t67\tn/a"
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_a_study_becomes_the_layout_of_adni(study, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--slices", "5", "--size", "120x100", "--classes", "participants.tsv:group"]
    assert prepare.main([str(study), str(out), *options, "--test", "0.4"]) == 0
    files = sorted(out.rglob("*.png"))
    assert len(files) == 7 * 5  # sub-07 has no class, sub-03 two scans
    assert {p.relative_to(out).parts[0] for p in files} == {"train", "test"}
    assert {p.relative_to(out).parts[1] for p in files} == {"patient", "control"}
    said = capsys.readouterr()
    assert "sub-07" in said.err and f"train.py --data {out}" in said.out
    scans = find_scans(out)
    group_of = {f"sub-{n:02d}": "patient" if n % 2 else "control" for n in range(1, 7)}
    assert {s.subject: s.group for s in scans} == group_of
    split = split_subjects(scans, seed=0)  # no subject on both sides, or this raises
    assert {s: "test" if v == "test" else "train" for s, v in split.items()} == {
        s.subject: s.split for s in scans
    }
    assert {pixels(path).shape for path in files} == {(120, 100)}


@pytest.mark.parametrize(
    ("plane", "ends", "middle"),
    [
        ("axial", (14, 23), (17, 17)),
        ("coronal", (20, 39), (16, 17)),
        ("sagittal", (6, 29), (16, 29)),
    ],
)
def test_slices_are_cut_and_padded_about_the_middle_of_the_head(tmp_path, plane, ends, middle):
    """Upright, never resampled, the first and the last slice with a head in it among them."""
    data = np.zeros((40, 48, 36), np.float32)
    head = data[6:30, 20:40, 14:24]
    head[...] = 100 * (0.2 + 0.8 * np.random.default_rng(0).random(head.shape))
    save_volume(tmp_path / "in" / "sub-01.nii", data)
    options = ["--axis", plane, "--slices", "3", "--size", "20x32", "--test", "0"]
    prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), *options])
    made = {int(p.stem.split("_")[1]): pixels(p) for p in tmp_path.rglob("out/**/*.png")}
    assert len(made) == 3 and set(ends) < made.keys()
    white = np.percentile(data[data > data.mean()], 99.8)
    wanted = (np.clip(data / np.float32(white), 0, 1) * 255 + 0.5).astype(np.uint8)
    stack = np.moveaxis(wanted, ("sagittal", "coronal", "axial").index(plane), 0)
    top, left = middle[0] + 30 - 10, middle[1] + 30 - 16
    for number, found in made.items():
        padded = np.pad(stack[number].T[::-1], 30)
        np.testing.assert_array_equal(found, padded[top : top + 20, left : left + 32])


def test_dicom_series_keep_their_subjects(tmp_path):
    for patient in ("P1", "p1", "P2", "P/3"):
        for n in range(2 if patient == "P1" else 1):
            series = f"1.2.{n}.{ord(patient[0])}{patient[-1]}"
            folder = tmp_path / "in" / patient.replace("/", "") / patient / str(n)
            save_series(folder, shape=(24, 20), series=series, PatientID=patient)
    prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--test", "0.3"])
    files = list((tmp_path / "out").rglob("*.png"))
    scans = find_scans(tmp_path / "in")
    assert len(scans) == 5 and len(files) == 5 * 4  # the usable ones of 6 slices
    found = find_scans(tmp_path / "out")
    assert {s.subject for s in found} == {"sub-P1", "sub-P2", "sub-P3"}
    split_subjects(found, seed=1)  # no subject on both sides, or this raises


TABLES = {  # id column, ids, class column and classes as these sets have them
    "oasis.csv": "ID,M/F,CDR\nOAS1_0001_MR1,F,0\nOAS1_0002_MR1,F,0.5\nOAS1_0003_MR1,M,\n",
    "ixi.csv": 'IXI_ID,"SEX_ID (1=m, 2=f)",CDR\n2,2,0\n12,1,0.5\n13,1,\n',
    "adni.csv": "Image Data ID,Subject,CDR\nI1,002_S_0295,0\nI2,002_S_0413,0.5\nI3,1,0\n",
}
FILES = {
    "oasis.csv": "OAS1_000{}_MR1_mpr_n4_anon_sbj_111.nii.gz",
    "ixi.csv": "IXI0{}-Guys-0828-T1.nii.gz",
    "adni.csv": "ADNI_002_S_0{}_MR_MPR_Br_S1_I2.nii",
}
NUMBERS = {"oasis.csv": (1, 2, 3), "ixi.csv": ("02", 12, 13), "adni.csv": (295, 413, 999)}


def test_two_classes_of_one_person_are_said(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("ID,CDR\nOAS1_0001_MR1,0\nOAS1_0001_MR2,0.5\nOAS1_2_MR1,1\n")
    assert prepare.read_classes(tmp_path, "a.csv:CDR")["oas1_0001"] == "0"
    assert "OAS1_0001_MR2 is 0 and 0.5 there; 0 counts" in capsys.readouterr().err


@pytest.mark.parametrize("table", TABLES)
def test_classes_from_the_tables_of_oasis_ixi_and_adni(tmp_path, table, study, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / table).write_text(TABLES[table])
    image = nib.load(study / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    for number in NUMBERS[table]:
        nib.save(image, tmp_path / "in" / FILES[table].format(number))
    options = ["--classes", f"{table}:CDR", "--slices", "1", "--test", "0"]
    prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), *options])
    made = [p.relative_to(tmp_path / "out" / "train") for p in sorted(tmp_path.rglob("*.png"))]
    assert [path.parts[0] for path in made] == ["0", "0.5"]
    assert "left out, without a class" in capsys.readouterr().err


def test_files_of_nobody_knows_whom_need_a_word(tmp_path, study):
    scan = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    (tmp_path / "in").mkdir()
    for n in range(3):
        shutil.copy(scan, tmp_path / "in" / f"scan_{n}.nii.gz")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--slices", "1"]
    with pytest.raises(DataError, match="--each-file-a-subject"):
        prepare.main(arguments)
    assert prepare.main([*arguments, "--each-file-a-subject"]) == 0
    assert len({s.subject for s in find_scans(tmp_path / "out")}) == 3


def test_a_bad_scan_is_named_and_the_others_are_done(study, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for n in (1, 2):
        scan = (study / f"sub-0{n}" / "anat" / f"sub-0{n}_T1w.nii.gz").read_bytes()
        (tmp_path / "in" / f"sub-0{n}_T1w.nii.gz").write_bytes(scan)
    (tmp_path / "in" / "sub-03_T1w.nii.gz").write_bytes(scan[:900])
    assert prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--slices", "1"]) == 1
    assert "sub-03_T1w.nii.gz" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_wrong_arguments_are_refused(study, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "a_1.png")
    for arguments, error in (
        ([study, tmp_path / "full"], UsageError),
        ([tmp_path / "none", out], DataError),
        ([tmp_path / "pictures", out], DataError),
        ([study, out, "--size", "240"], UsageError),
        ([study, out, "--test", "1.5"], UsageError),
        ([study, out, "--classes", "none.tsv:group"], UsageError),
        ([study, out, "--classes", "participants.tsv:diagnosis"], UsageError),
        ([study, out, "--classes", "participants.tsv"], UsageError),
    ):
        with pytest.raises(error):
            prepare.main([str(a) for a in arguments])
    assert not out.exists()


def test_as_a_program(study, tmp_path):
    command = [sys.executable, str(ROOT / "data" / "prepare.py"), str(study), ".", "--slices", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=study)
    assert result.returncode == 2
    assert result.stderr == "error: .: exists already; name a new folder\n"

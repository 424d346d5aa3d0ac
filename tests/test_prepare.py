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

import dataset
from data import prepare
from dataset import split_subjects
from scans.listing import find_scans
from utils import DataError, UsageError

SHARED = ROOT.parent / "shared" / "data"


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
    slices, _, bad = dataset.load_slices(scans, tmp_path / "cache")
    assert len(slices) == 35 and not bad and (slices.shape == (120, 100)).all()


@pytest.mark.skipif(not SHARED.exists(), reason="the volumes are not at hand")
def test_the_shipped_slices_come_from_their_volumes(tmp_path):
    (tmp_path / "in").mkdir()
    volume = SHARED / "volumes" / "ds002748" / "test" / "sub-55_T1w.nii.gz"
    (tmp_path / "in" / volume.name).symlink_to(volume)
    prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--size", "240x256", "--test", "0"])
    made = {path.stem.removeprefix("sub-"): pixels(path) for path in tmp_path.rglob("out/**/*.png")}
    wanted = {path.stem: pixels(path) for path in dataset.OWN_DATA.rglob("55_*.png")}
    assert made.keys() == wanted.keys() and len(made) == 20
    for name, picture in wanted.items():
        np.testing.assert_array_equal(made[name], picture)


def test_sixteen_bits_and_other_planes(study, tmp_path):
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        out = tmp_path / str(bits)
        options = ["--slices", "2", "--bits", str(bits), "--axis", "coronal"]
        prepare.main([str(study), str(out), *options])
        made = [pixels(p) for p in sorted(out.rglob("*.png"))]
        assert len(made) == 16 and all(p.dtype == dtype for p in made)
        assert max(p.max() for p in made) > 0.9 * np.iinfo(dtype).max
        assert made[0].shape[0] == 24  # all of the slab: a coronal slice


def test_dicom_series_keep_their_subjects(tmp_path):
    for patient in ("P1", "p1", "P2", "P/3"):
        for n in range(2 if patient == "P1" else 1):
            series = f"1.2.{n}.{ord(patient[0])}{patient[-1]}"
            folder = tmp_path / "in" / patient.replace("/", "") / patient / str(n)
            save_series(folder, shape=(24, 20), series=series, PatientID=patient)
    prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--test", "0.3"])
    files = list((tmp_path / "out").rglob("*.png"))
    scans = find_scans(tmp_path / "in")
    assert len(files) == sum(len(dataset.volume_slices(s.path, files=s.files)) for s in scans)
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
        ([study, out, "--bits", "12"], UsageError),
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

"""`python dataset.py SOURCE OUT`: from scans to slices that train.py reads."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_volumes import save_series

import dataset
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
            folder = root / f"sub-{n:02d}" / session / "anat"
            folder.mkdir(parents=True)
            name = "_".join(filter(None, (f"sub-{n:02d}", session, "T1w.nii.gz")))
            nib.save(nib.Nifti1Image(part, np.eye(4)), folder / name)
        rows.append(f"sub-{n:02d}\t{60 + n}\t{'patient' if n % 2 else 'control'}")
    rows[-1] = "sub-07\t67\tn/a"
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_study_becomes_the_layout_of_adni(study, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--slices", "5", "--size", "120x100", "--classes", "participants.tsv:group"]
    assert dataset.main([str(study), str(out), *options, "--test", "0.4"]) == 0
    files = sorted(out.rglob("*.png"))
    assert len(files) == 7 * 5  # sub-07 has no class, sub-03 two scans
    assert {p.relative_to(out).parts[0] for p in files} == {"train", "test"}
    assert {p.relative_to(out).parts[1] for p in files} == {"patient", "control"}
    said = capsys.readouterr()
    assert "sub-07" in said.err and f"train.py --data {out}" in said.out
    scans = dataset.find_scans(out)
    group_of = {f"sub-{n:02d}": "patient" if n % 2 else "control" for n in range(1, 7)}
    assert {s.subject: s.group for s in scans} == group_of
    split = dataset.split_subjects(scans, seed=0)  # no subject on both sides, or this raises
    assert {s: "test" if v == "test" else "train" for s, v in split.items()} == {
        s.subject: s.split for s in scans
    }
    slices, _, bad = dataset.load_slices(scans, tmp_path / "cache")
    assert len(slices) == 35 and not bad and (slices.shape == (120, 100)).all()


def test_slices_are_cut_and_padded_but_never_resampled(study, tmp_path):
    (tmp_path / "in").mkdir()
    scan = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    (tmp_path / "in" / "sub-01_T1w.nii.gz").write_bytes(scan.read_bytes())
    wanted = dict(dataset.volume_slices(scan, count=3))
    for name, size in (("a", "150x140"), ("b", "60x50"), ("c", None)):
        options = ["--slices", "3", "--test", "0"] + (["--size", size] if size else [])
        dataset.main([str(tmp_path / "in"), str(tmp_path / name), *options])
        files = sorted((tmp_path / name / "train").glob("*.png"))
        assert [p.name for p in files] == [f"sub-01_{n:03d}.png" for n in sorted(wanted)]
        for path, number in zip(files, sorted(wanted)):
            made, given = pixels(path), wanted[number]
            if size == "150x140":
                assert made.shape == (150, 140) and (made > 0).sum() == (given > 0).sum()
                top, left = (150 - given.shape[0]) // 2, (140 - given.shape[1]) // 2
                made = made[top : top + given.shape[0], left : left + given.shape[1]]
            elif size:
                assert made.shape == (60, 50)
                top, left = (given.shape[0] - 60) // 2, (given.shape[1] - 50) // 2
                given = given[top : top + 60, left : left + 50]
            np.testing.assert_array_equal(made, given)


def test_sixteen_bits_and_other_planes(study, tmp_path):
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        out = tmp_path / str(bits)
        options = ["--slices", "2", "--bits", str(bits), "--axis", "coronal"]
        dataset.main([str(study), str(out), *options])
        made = [pixels(p) for p in sorted(out.rglob("*.png"))]
        assert len(made) == 16 and all(p.dtype == dtype for p in made)
        assert max(p.max() for p in made) > 0.9 * np.iinfo(dtype).max
        assert made[0].shape[0] == 24  # all of the slab: a coronal slice


def test_dicom_series_keep_their_subjects(tmp_path):
    for patient in ("P1", "P-1", "P2"):
        for n in range(2 if patient == "P1" else 1):
            series = f"1.2.{n}.{len(patient)}{patient[-1]}"
            folder = tmp_path / "in" / patient / str(n)
            save_series(folder, shape=(24, 20), series=series, PatientID=patient)
    dataset.main([str(tmp_path / "in"), str(tmp_path / "out"), "--test", "0.3"])
    files = list((tmp_path / "out").rglob("*.png"))
    scans = dataset.find_scans(tmp_path / "in")
    assert len(files) == sum(len(dataset.volume_slices(s.path, files=s.files)) for s in scans)
    found = dataset.find_scans(tmp_path / "out")
    assert {s.subject for s in found} == {"sub-P1", "P-1", "P2"}  # P1 has two scans
    dataset.split_subjects(found, seed=1)


def test_a_bad_scan_is_named_and_the_others_are_done(study, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for n in (1, 2):
        scan = (study / f"sub-0{n}" / "anat" / f"sub-0{n}_T1w.nii.gz").read_bytes()
        (tmp_path / "in" / f"sub-0{n}_T1w.nii.gz").write_bytes(scan)
    (tmp_path / "in" / "sub-03_T1w.nii.gz").write_bytes(scan[:900])
    assert dataset.main([str(tmp_path / "in"), str(tmp_path / "out"), "--slices", "1"]) == 1
    assert "sub-03_T1w.nii.gz" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("*.png"))) in (1, 2)


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
            dataset.main([str(a) for a in arguments])
    assert not out.exists()


def test_as_a_program(study, tmp_path):
    command = [sys.executable, str(ROOT / "dataset.py"), str(study), "out", "--slices", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train.py --data out" in result.stdout
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: out: exists already; name a new folder\n"

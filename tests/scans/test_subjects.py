"""Whose slice a file is: naming schemes of real data sets, left-out kinds, tables."""

from pathlib import Path

import pytest
from made_files import save_series
from pydicom.uid import generate_uid

import dataset
from scans import formats, listing
from scans.listing import find_scans, training_scans
from scans.subjects import Name, infer_subjects
from utils import DataError

CANNOT_TELL = "?"

SCHEMES = (Path(__file__).parent / "naming_schemes.txt").read_text().splitlines()[1:]
SCHEMES = [line.split(" = ") for line in SCHEMES]


def name_of(path: str) -> Name:
    folders = [p for p in Path(path).parent.parts if p.lower() not in listing.SPLITS]
    picture = formats.suffix(path) in formats.PICTURES
    return Name(tuple(folders), formats.stem(path), picture)


@pytest.mark.parametrize(("files", "wanted"), SCHEMES)
def test_whose_the_files_are(files, wanted):
    names = [name_of(path) for path in files.split("; ")]
    found, doubt = infer_subjects(names)
    if wanted == CANNOT_TELL:
        assert doubt
    else:
        wanted = wanted.split("; ")
        assert found == (wanted if len(wanted) > 1 else wanted * len(names))
        assert not doubt


# --- files on disk --------------------------------------------------------------------------------


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_names_are_found_in_natural_order_without_hidden_files(tmp_path):
    make(tmp_path, "p_10.png", "p_9.png", ".p_1.png", "notes.txt", "p_100.PNG", ".git/p_2.png")
    assert [s.path.name for s in find_scans(tmp_path)] == ["p_9.png", "p_10.png", "p_100.PNG"]


def test_classes_and_splits_are_folders_but_a_person_is_no_class(adni, tmp_path):
    scans = find_scans(adni)
    assert len(scans) == 36 and len({s.subject for s in scans}) == 12
    assert {(s.split, s.group) for s in scans} == {
        (split, group) for split in ("train", "test") for group in ("AD", "NC")
    }
    make(tmp_path, "Training/p1/slice_1.png", "Validation/p2/slice_1.png", "test/12/7.png")
    found = [(s.split, s.group, s.subject) for s in find_scans(tmp_path)]
    assert found == [("test", "", "12"), ("train", "", "p1"), ("val", "", "p2")]
    files = [f"Combined/{part}/{n}/sub-{n}_1.png" for part, n in (("train", "AD"), ("test", "NC"))]
    found = [(s.split, s.group) for s in find_scans(make(tmp_path / "more", *files))]
    assert found == [("test", "NC"), ("train", "AD")]


def test_masks_derivatives_bold_and_diffusion_are_left_out_by_name(tmp_path, capsys):
    kept = [
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-2/anat/sub-2_desc-masked_T1w.nii",
        "3/lesion/T1.mgz",
        "sub-3_x5.png",  # a slice number, without the record that results have
    ]
    left = [
        *("sub-1/anat/sub-1_T1w_mask.nii.gz", "sub-1/anat/sub-1_dseg.nii.gz", "sub-1/mri/aseg.mgz"),
        *("sub-1/mri/aparc+aseg.mgz", "sub-1/x_LesionSeg.nii", "sub-1/p1_lesions.nii.gz"),
        *("labelsTr/BRATS_001.nii", "masks/sub-1_2.png", "TCGA_CS_4941_19960909_1_mask.tif"),
        *("sub-1/brain_mask.mgz", "derivatives/sub-1/sub-1_T1w.nii.gz", "sub-1/func/a.nii"),
        *("sub-1/func/sub-1_task-rest_bold.nii.gz", "sub-1/dwi/sub-1_dwi.nii.gz"),
        *("sub-1/sub-1_ADC.nii.gz", "sub-1/DTI_FA.nii"),
        # What predict.py writes beside its inputs would be seen as people of their own.
        *(f"27_059_{end}.png" for end in ("x4", "simulated_x4", "x4_figure", "x4_error")),
        *("sub-1/anat/sub-1_through-x6.nii.gz", "sub-1_res-x4_desc-superres_T1w.nii.gz"),
    ]
    records = ["27_059_x4.json", "27_059_simulated_x4.json", "sub-1/anat/sub-1_through-x6.json"]
    records += ["sub-1_res-x4_desc-superres_T1w.json"]
    make(tmp_path, *kept, *left)
    for name in records:
        (tmp_path / name).write_text('{"SourceSHA256": ""}')
    scans, _ = training_scans(tmp_path)
    assert {s.path.relative_to(tmp_path).as_posix() for s in scans} == set(kept)
    (told,) = capsys.readouterr().err.splitlines()
    kinds = "10 masks or segmentations; 1 derivatives; 2 BOLD; 3 diffusion; 6 results of predict.py"
    assert all(words in told for words in kinds.split("; "))
    assert len(find_scans(tmp_path)) == len(kept) + len(left)  # predict.py takes them all
    with pytest.raises(DataError, match="nothing else than 1 masks"):
        training_scans(make(tmp_path / "only", "a_mask.png"))


def test_dicom_series_of_nobody_belong_to_their_folder(tmp_path):
    nobody = ("ANON", "REMOVED", "DEIDENTIFIED", "De-Identified", "XXXXXX", "000")
    for n, patient in enumerate(("P1", "P2", *nobody)):
        for visit in "ab":
            folder = tmp_path / f"top{n}" / visit
            save_series(folder, n=2, series=generate_uid(), PatientID=patient)
    found = [scan.subject for scan in find_scans(tmp_path)]
    people = ["P1", "P2", *(f"top{n}" for n in range(2, 8))]
    assert found == [person for person in people for _ in "ab"]
    for visit in "ab":
        save_series(tmp_path / "x" / visit, n=2, series=generate_uid(), PatientID="REMOVED")
    with pytest.raises(DataError, match="--subjects FILE"):
        dataset.load_parts(data=tmp_path / "x")


def test_patient_ids_with_a_visit_are_asked_about(tmp_path):
    for patient in ("0012_V1", "0012_V2", "0013_V1"):
        save_series(tmp_path / patient, n=2, series=generate_uid(), PatientID=patient)
    doubt = training_scans(tmp_path)[1]
    assert "'0012_V1' and '0012_V2' may be one person" in doubt and "--subjects FILE" in doubt


# --- whoever knows better -------------------------------------------------------------------------


def test_doubt_is_said_with_examples_and_ends_by_confirmation(tmp_path):
    root = make(tmp_path / "in", *(f"{c}/27 ({n}).jpg" for c in ("Mild", "Non") for n in range(9)))
    scans, doubt = training_scans(root)
    assert doubt.count("27 (") == 3 and "the names do not say it" in doubt
    assert "--subjects FILE" in doubt and "--each-file-a-subject" in doubt and "\n" not in doubt
    with pytest.raises(DataError, match="cannot tell whose"):
        dataset.load_parts(data=root)
    scans, doubt = training_scans(root, each_file=True)
    assert not doubt and len({s.subject for s in scans}) == 18


TABLES = {
    "list.csv": "file,subject\na_1.png,x\nb/a_2.png,x\nb/c,y\n",
    "list.tsv": "subject\tfile\nx\ta_1\nx\ta_2.PNG\ny\tc.png\n",
    "bare.csv": "A,x\nc,y\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_who_is_who(tmp_path, name):
    root = make(tmp_path / "in", "a_1.png", "b/a_2.png", "b/c.png")
    (tmp_path / name).write_text(TABLES[name])
    scans, doubt = training_scans(root, tmp_path / name)
    assert [s.subject for s in scans] == ["x", "x", "y"] and not doubt


def test_two_visits_of_one_person_by_adnis_own_list(tmp_path, capsys):
    root = make(tmp_path / "in", "AD/218391_78.jpeg", "AD/218391_79.jpeg", "AD/I300_78.jpeg")
    training_scans(root)
    assert "218391" in capsys.readouterr().err  # a scan's id, of which it cannot know the person
    (tmp_path / "adni.csv").write_text(
        '"Image Data ID","Subject","Group"\n"I218391","002_S_0295","AD"\n"I300","002_S_0295","AD"\n'
    )
    scans, _ = training_scans(root, tmp_path / "adni.csv")
    assert {s.subject for s in scans} == {"002_S_0295"} and not capsys.readouterr().err


def test_a_table_without_a_file_or_a_column_is_refused(tmp_path):
    root = make(tmp_path / "in", "a_1.png", "b_1.png")
    for text, words in (
        ("a_1.png,x\n", "lacks 1 of 2 files: b_1.png"),
        ("a\nb\n", "two columns"),
        ("file,age,subject\na_1,61,x\nb_1,62\n", "this row has 2: b_1, 62"),
        ("a_1,x\nb_1,y\nA_1,z\n", "gives A_1 two subjects, x and z"),
        ("Image,Subject\nI218,x\na_1,x\nb_1,x\n218,y\n", "gives 218 two subjects, x and y"),
    ):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            training_scans(root, tmp_path / "list.csv")
    with pytest.raises(DataError, match="no such file"):
        training_scans(root, tmp_path / "none.csv")

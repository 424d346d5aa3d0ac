"""What is finished and whose a result is: its record decides, never a name alone."""

import json

import numpy as np
import pytest
from conftest import pixels, save_weights
from made_files import blob, save_series, save_volume
from PIL import Image

import predict
from inference.inputs import Job, find_jobs
from inference.sidecar import bids_name
from utils import DataError


@pytest.fixture
def run(upscale):
    return upscale


def picture(path, top=200):
    """A small picture, as bright as that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype(np.uint8)).save(path)
    return path


def names(folder) -> set[str]:
    """The files below a folder but for records."""
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name for name in files if not name.endswith(".json")}


def test_two_inputs_of_one_name_give_two_results_in_one_folder(tmp_path, run):
    one, two = picture(tmp_path / "one/T1.png", 100), picture(tmp_path / "two/T1.png", 200)
    out = tmp_path / "r"
    run(one, "--output", out)
    status, said, _ = run(two, "--output", out)
    assert status == 0 and "T1_x4.json is of another input; results are called two_T1" in said
    assert names(out) == {"T1_x4.png", "two_T1_x4.png"}
    assert pixels(out / "T1_x4.png").max() < 110 < pixels(out / "two_T1_x4.png").max()
    for folder in (one.parent, two.parent):  # the same with folders, later
        assert run(folder, "--output", out)[0] == 0
    assert names(out) == {"T1_x4.png", "two_T1_x4.png"}
    assert "1 finished before" in run(two.parent, "--output", out)[1]
    third = picture(tmp_path / "other/two/T1.png")  # is refused, and takes nobody's place
    for options in ((), ("--overwrite",)):
        status, _, errors = run(third, "--output", out, *options)
        assert status == 1 and "two_T1_x4.json is of another input" in errors
    assert pixels(out / "T1_x4.png").max() < 110 < pixels(out / "two_T1_x4.png").max()
    # At once, too.
    status, said, _ = run(one, two, "--output", tmp_path / "s")
    assert names(tmp_path / "s") == {"T1_x4.png", "two_T1_x4.png"} and "two_T1_" in said


def test_finished_is_what_was_made_of_the_same_input_in_the_same_way(tmp_path, run):
    """Seen in folders, where what is finished is left out."""
    path = save_volume(tmp_path / "d/a.nii.gz", blob((12, 12, 6)).astype(np.int16), (2, 2, 4))
    other = save_weights(tmp_path / "other.pt", (2, 2), (2, 1), (3, 1), (4, 1), tail=0.01)

    def finished(*options) -> bool:
        status, said, _ = run(tmp_path / "d", *options)
        assert status == 0
        return "1 finished before" in said

    assert not finished() and finished()
    for options in (
        ("--weights", other), ("--scale", 2), ("--degradation", "kspace"), ("--through-plane", 2),
        ("--voxel-size", 1.5), ("--axis", "coronal"),
    ):  # fmt: skip
        assert not finished("--overwrite") and not finished(*options), options
        assert finished(*options), options
    save_volume(path, blob((12, 12, 6), 900).astype(np.int16), (2, 2, 4))
    assert not finished("--scale", 2) and finished("--scale", 2)
    (tmp_path / "d/a_x2.nii.gz").unlink()
    assert not finished("--scale", 2)


def test_a_folder_of_results_is_neither_done_again_nor_taken_as_input(tmp_path, run):
    for name in ("a.png", "sub/b.png", "run/loss.png", "run/examples.png", "other/loss.png"):
        picture(tmp_path / "d" / name)
    (tmp_path / "d/run/log.csv").write_text("iteration,loss\n")  # as train.py leaves it
    assert run(tmp_path / "d")[0] == 0
    before = names(tmp_path / "d")
    made = {"a_x4.png", "sub/b_x4.png", "other/loss_x4.png"}
    assert before - made == {"a.png", "sub/b.png", "run/loss.png", "run/examples.png",
                             "run/log.csv", "other/loss.png"} and made < before  # fmt: skip
    (tmp_path / "d/a_x4.png").write_bytes(b"mark")
    said = run(tmp_path / "d")[1]
    assert "3 finished before" in said and "results of earlier runs are not taken" in said
    assert names(tmp_path / "d") == before
    assert (tmp_path / "d/a_x4.png").read_bytes() == b"mark"


def test_what_a_kill_left_is_done_again_and_is_no_input(tmp_path, run, monkeypatch):
    """Killed between a result and its record, as by a job's time limit."""
    save_volume(tmp_path / "d/a.nii.gz", blob((8, 8, 3)), (4, 4, 4))
    real = predict.write_json

    def killed(path, about):
        if about.get("Results"):
            raise KeyboardInterrupt
        return real(path, about)

    monkeypatch.setattr(predict, "write_json", killed)
    assert run(tmp_path / "d", "--scale", 2)[0] == 130
    monkeypatch.undo()
    assert names(tmp_path / "d") == {"a.nii.gz", "a_x2.nii.gz"}
    status, said, _ = run(tmp_path / "d", "--scale", 2)
    assert status == 0 and "1 upscaled" in said and "finished before" not in said
    assert names(tmp_path / "d") == {"a.nii.gz", "a_x2.nii.gz"}


def test_files_of_others_are_no_results_and_stay(tmp_path, run):
    """A picture that is only called like a result, a scan beside the record of another program."""
    mine = picture(tmp_path / "d/slice.png")
    theirs = picture(tmp_path / "d/slice_x4.png", 50)
    before = theirs.read_bytes()
    for _ in range(2):
        status, _, errors = run(mine)
        assert status == 1 and "slice_x4.png: is there already, and not a result" in errors
        assert "--overwrite" in errors and theirs.read_bytes() == before
    status, said, errors = run(tmp_path / "d")  # slice_x4.png is an input as any other
    assert status == 1 and "1 upscaled" in said and "1 failed" in said
    assert theirs.read_bytes() == before and (tmp_path / "d/slice_x4_x4.png").exists()
    assert run(mine, "--overwrite")[0] == 0
    assert pixels(theirs).shape == (32, 32)

    scan = save_volume(tmp_path / "a.nii.gz", blob((8, 8, 3)), (4, 4, 4))
    result = save_volume(tmp_path / "a_x2.nii.gz", blob((8, 8, 3)))
    (tmp_path / "a_x2.json").write_text('{"GeneratedBy": [{"Name": "another program"}]}')
    status, _, errors = run(scan, "--scale", 2)
    assert status == 1 and "a_x2.nii.gz: is there already" in errors
    assert run(result, "--scale", 2)[0] == 0  # nor is it refused as one of ours


def test_a_result_of_ours_is_not_enlarged_once_more_unless_forced(tmp_path, run):
    picture(tmp_path / "a.png")
    run(tmp_path / "a.png")
    status, _, errors = run(tmp_path / "a_x4.png")
    assert status == 1 and "a_x4.png: is a result of this program already; --force" in errors
    status, said, _ = run(tmp_path / "a.png", tmp_path / "a_x4.png", "--overwrite")
    assert status == 0 and "a_x4.png: left out: results of predict.py" in said
    assert run(tmp_path / "a_x4.png", "--force")[0] == 0
    assert pixels(tmp_path / "a_x4_x4.png").shape == (128, 128)


def test_inputs_of_one_stem_do_not_collide(tmp_path, run):
    data = tmp_path / "data"
    for name, top in (("a.png", 250), ("a.jpg", 100), ("a.jpg.png", 50), ("b.png", 20)):
        picture(data / name, top)
    run(data, "--output", tmp_path / "o")
    tops = {name: pixels(tmp_path / "o" / name).max() for name in names(tmp_path / "o")}
    assert set(tops) == {"a.png_x4.png", "a.jpg_x4.png", "a.jpg.png_x4.png", "b_x4.png"}
    assert tops["a.png_x4.png"] > 200 > tops["a.jpg_x4.png"] > 80 > tops["a.jpg.png_x4.png"]
    run(data / "a.jpg", "--output", tmp_path / "p")  # one of them alone gets the same name
    assert names(tmp_path / "p") == {"a.jpg_x4.png"}


def test_shards_share_a_folder_without_overlap(tmp_path, run, monkeypatch):
    for i in range(7):
        picture(tmp_path / f"d/{i}.png")
    for i in range(3):
        run(tmp_path / "d", "--output", tmp_path / f"o{i}", "--shard", f"{i + 1}/3")
    done = [name for i in range(3) for name in names(tmp_path / f"o{i}")]
    assert sorted(done) == [f"{i}_x4.png" for i in range(7)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    run(tmp_path / "d", "--output", tmp_path / "r")
    assert names(tmp_path / "r") == {"1_x4.png", "5_x4.png"}


def test_nothing_is_written_outside_the_output_folder(tmp_path, run):
    data, outside = tmp_path / "data", tmp_path / "outside"
    picture(outside / "x.png")
    picture(data / "t..ricky..png")
    picture(data / "new\nline.png")
    try:
        (data / "link").symlink_to(outside)
    except OSError:
        pytest.skip("no links here")
    status, _, errors = run(data)  # beside the input would be beside the link's target
    assert status == 1 and "link out of the output folder" in errors
    assert names(outside) == {"x.png"}
    assert run(data, "--output", tmp_path / "p")[0] == 0
    assert names(tmp_path / "p") == {"link/x_x4.png", "new\nline_x4.png", "t..ricky._x4.png"}
    # A result that is a link is replaced, not written through.
    (tmp_path / "p/link/x_x4.png").unlink()
    (tmp_path / "p/link/x_x4.png").symlink_to(outside / "x.png")
    before = (outside / "x.png").read_bytes()
    run(outside / "x.png", "--output", tmp_path / "p/link", "--overwrite")
    assert (outside / "x.png").read_bytes() == before
    assert pixels(tmp_path / "p/link/x_x4.png").shape == (32, 32)


# --- cohorts --------------------------------------------------------------------------------------


def test_a_cohort_is_mirrored_resumed_and_counted(tmp_path, run):
    data, out = tmp_path / "cohort", tmp_path / "o"
    for n in (1, 2):
        path = data / f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz"
        save_volume(path, blob((8, 8, 3)).astype(np.float32), (1, 1, 2))
        path.with_name(f"sub-0{n}_T1w.json").write_text("{}")
    (data / "participants.tsv").write_text("participant_id\tgroup\n")
    (data / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"\x1f\x8bnot really")
    save_series(data / "sub-03" / "dicom", PixelSpacing=[0.9, 0.9])
    status, said, errors = run(data, "--output", out)
    found = {p.relative_to(out).as_posix() for p in out.rglob("*.*")}
    results = ("sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w", "sub-03/dicom")
    assert found == {f"{name}_through-x2{end}" for name in results for end in (".nii.gz", ".json")}
    assert status == 1 and "sub-02_T2w.nii.gz" in errors
    assert "3 upscaled" in said and "1 failed" in said
    before = (out / "sub-03/dicom_through-x2.nii.gz").stat().st_mtime_ns
    assert "3 finished before" in run(data, "--output", out)[1]
    assert (out / "sub-03/dicom_through-x2.nii.gz").stat().st_mtime_ns == before


@pytest.fixture
def bids(tmp_path):
    data = tmp_path / "study"
    for name in (
        "sub-01/anat/sub-01_run-1_T1w",
        "sub-01/func/sub-01_task-rest_bold",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-preproc_T2w",
        "sub-02/ses-a/anat/sub-02_ses-a_label-GM_mask",
        "sourcedata/old",
        "derivatives/other/sub-01_T1w",
    ):
        save_volume(data / f"{name}.nii.gz", blob((8, 8, 3)).astype(np.int16), (4, 4, 4))
    about = {"Name": "Study", "BIDSVersion": "1.8.0", "License": "CC0", "DatasetDOI": "doi:1/2"}
    (data / "dataset_description.json").write_text(json.dumps(about))
    return data


def test_a_bids_data_set_gives_a_bids_derivative(bids, run):
    status, said, _ = run(bids, "--scale", 4)
    assert status == 0 and "BOLD" in said
    home = bids / "derivatives" / "superres"
    found = {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}
    results = (
        "sub-01/anat/sub-01_run-1_res-x4_desc-superres_T1w",
        "sub-02/ses-a/anat/sub-02_ses-a_res-x4_desc-preprocSuperres_T2w",
    )
    files = {result + end for result in results for end in (".nii.gz", ".json")}
    assert found == files | {"dataset_description.json", ".bidsignore", "README"}
    about = json.loads((home / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["License"] == "CC0"
    assert about["GeneratedBy"][0]["Version"] and about["SourceDatasets"][0]["DOI"] == "doi:1/2"
    name = bids_name("sub-1_label-a_T1w", "x4")  # entities have an order
    assert name == "sub-1_res-x4_label-a_desc-superres_T1w"
    sidecar = json.loads((home / f"{results[0]}.json").read_text())
    assert sidecar["Sources"] == ["bids:source:sub-01/anat/sub-01_run-1_T1w.nii.gz"]
    assert "2 finished before" in run(bids, "--scale", 4)[1]


def test_a_simulation_leaves_no_sidecar_without_data_in_bids(bids, run):
    """Its names are none of BIDS, and validators are told to ignore them."""
    home = bids / "derivatives" / "superres"
    home.mkdir(parents=True)
    (home / ".bidsignore").write_text("notes/")
    assert run(bids, "--simulate")[0] == 0
    found = {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}
    results = {"sub-01/anat/sub-01_run-1_T1w", "sub-02/ses-a/anat/sub-02_ses-a_desc-preproc_T2w"}
    files = {f"{name}_simulated_x4{end}" for name in results for end in (".csv", ".json")}
    assert found == files | {"dataset_description.json", ".bidsignore", "README"}
    assert {"notes/", "*_simulated_*"} <= set((home / ".bidsignore").read_text().splitlines())


# --- which inputs there are -----------------------------------------------------------------------


def test_patterns_are_expanded_as_not_every_shell_does_it(tmp_path, monkeypatch):
    for name in ("s10.png", "s9.png", "t.png", "odd[1].png"):
        picture(tmp_path / name)

    def found(*patterns) -> list[str]:
        return [job.source.name for job in find_jobs(patterns)[0]]

    monkeypatch.chdir(tmp_path)
    assert found("s*.png") == ["s9.png", "s10.png"]
    assert found("s?.png", "s9.png") == ["s9.png"]
    assert found("odd[1].png") == ["odd[1].png"]  # a file of just this name comes first
    with pytest.raises(DataError, match=r"u\*.png: no such file"):
        find_jobs(["u*.png"])
    job: Job = find_jobs(["t.png"])[0][0]
    assert not job.batch and find_jobs(["."])[0][0].batch


def test_an_empty_path_is_no_folder(tmp_path, run, monkeypatch):
    """What a variable that is not set gives: not all that is here, nor results beside the input."""
    monkeypatch.chdir(tmp_path)
    mine = picture(tmp_path / "a.png")
    for words in (("",), (mine, "--output", "")):
        status, _, errors = run(*words)
        assert status == 2 and "a path is empty" in errors
    assert names(tmp_path) == {"a.png"}


def test_a_missing_or_bad_input_does_not_stop_the_others(tmp_path, run):
    a, b, c = (picture(tmp_path / f"{n}.png") for n in "abc")
    picture(tmp_path / "d/e.png")
    (tmp_path / "bad.png").write_text("no picture")
    words = (a, tmp_path / "none.png", "--image", b, "-i", c, tmp_path / "d", a,
             tmp_path / "bad.png", "--output", tmp_path / "o")  # fmt: skip
    status, said, errors = run(*words)
    assert status == 1 and "4 upscaled" in said and "2 failed" in said
    assert "none.png: no such file" in errors and "bad.png: not a picture" in errors
    assert names(tmp_path / "o") == {f"{n}_x4.png" for n in "abce"}
    assert "4 finished before" in run(*words)[1]

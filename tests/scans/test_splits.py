"""The split: subjects apart, classes in balance, people who were seen out of test."""

from pathlib import Path

import pytest

from scans.listing import ScanFile
from scans.splits import split_subjects
from utils import DataError


def scans_of(subjects, split="", group=""):
    return [ScanFile(Path(f"{s}_{n}.png"), s, group, split) for s in subjects for n in range(2)]


def test_split_keeps_subjects_apart_and_classes_balanced():
    names = [f"s{n}" for n in range(60)]
    scans = scans_of(names[:40], group="AD") + scans_of(names[40:], group="NC")
    split = split_subjects(scans, seed=1)
    assert set(split) == set(names)  # one place a subject
    for chosen in (names[:40], names[40:]):
        counts = {k: [split[s] for s in chosen].count(k) for k in ("train", "val", "test")}
        assert counts["val"] == len(chosen) // 10
        assert counts["test"] == pytest.approx(0.15 * len(chosen), abs=1)
    assert split == split_subjects(scans, seed=1)
    assert split == split_subjects(scans[::-1], seed=1)  # whatever order a disk lists files in
    assert split != split_subjects(scans, seed=2)


def test_split_respects_the_folders_of_the_data_set():
    scans = scans_of([f"a{n}" for n in range(20)], "train") + scans_of(["b1", "b2"], "test")
    split = split_subjects(scans, seed=0)
    assert {s for s, k in split.items() if k == "test"} == {"b1", "b2"}
    assert list(split.values()).count("val") == 2
    split = split_subjects(scans + scans_of(["v"], "val"), seed=0)
    assert {s for s, k in split.items() if k == "val"} == {"v"}
    split = split_subjects(scans[:40] + scans_of(["v"], "val"), seed=0)
    assert "test" not in split.values() and split["v"] == "val"  # it has parts of its own
    assert set(split_subjects(scans_of(["a"], "test"), seed=0).values()) == {"test"}


def test_a_small_data_set_still_has_all_splits():
    split = split_subjects(scans_of(["a", "b", "c"]), seed=0)
    assert sorted(split.values()) == ["test", "train", "val"]
    split = split_subjects(scans_of(["a", "b"], "train") + scans_of(["c"], "test"), seed=0)
    assert sorted(split.values()) == ["test", "train", "val"]


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_subject_on_both_sides_is_refused_by_name(other):
    scans = scans_of(["a", "b", "twice"], "train") + scans_of(["c", "twice"], other)
    with pytest.raises(DataError, match=rf"in train and in {other} too \(twice\)"):
        split_subjects(scans, seed=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_people_whom_weights_know_are_kept_out_of_val_and_test(groups):
    names = [f"s{n}" for n in range(40)]
    scans = [scan for n in range(groups) for scan in scans_of(names[n::groups], group=str(n))]
    first = split_subjects(scans, seed=0)
    known = [s for s in names if first[s] != "test"]
    assert split_subjects(scans, seed=0, seen=known) == first  # the same data again: nothing moves
    again = split_subjects(scans, seed=1, seen=[f"sub-{s}" for s in known])
    counts = [list(split.values()).count("test") for split in (first, again)]
    assert counts[0] == counts[1]
    assert {s for s in names if again[s] == "test"} == set(names) - set(known)
    few = split_subjects(scans, seed=1, seen=names[:20])
    assert not {few[s] for s in names[:20]} & {"val", "test"}
    fixed = [*scans_of(names[:20], "train"), *scans_of(names[20:], "test")]
    assert split_subjects(fixed, 0, seen=names[20:])["s20"] == "test"  # as the folders say

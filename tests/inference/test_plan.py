"""What a scan becomes: by its voxels, or as asked."""

from pathlib import Path

import numpy as np
import pytest
from conftest import EVERY_SCALE
from made_files import make_affine

from inference.plan import plan_of
from scans import Scan
from utils import DataError, UsageError


def scan_of(sizes, shape=(6, 6, 6), order=(0, 1, 2)) -> Scan:
    return Scan(Path("a.nii"), np.zeros(shape), affine=make_affine(order, (1, -1, 1), sizes))


def picture_of(*shape) -> Scan:
    return Scan(Path("a.png"), np.zeros(shape))


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((1, 1, 4), ("axial", 1, 4)),
        ((1, 1, 3.5), ("axial", 1, 3)),  # 4 would make voxels finer than the pixels
        ((1, 1, 3.97), ("axial", 1, 4)),  # as good as 4
        ((0.5, 0.9, 3), ("axial", 1, 3)),  # of pixels that are not square the larger size counts
        ((0.9, 1.6, 5), ("axial", 1, 3)),  # x2 would make 0.45 mm of 0.9
        ((0.5, 0.5, 6), ("axial", 1, 4)),  # these weights make no more
        ((3, 3, 3), ("axial", 4, 4)),
        ((1.5, 1.5, 1.5), ("axial", 2, 2)),
        ((4, 4, 1), ("axial", 4, 1)),  # no direction is much thicker than both others
        ((4, 1, 1), ("sagittal", 1, 4)),
        ((1, 2.1, 1), ("coronal", 1, 2)),
    ],
)
def test_voxels_become_nearly_cubes_and_never_finer_than_was_measured(sizes, wanted):
    plan = plan_of(scan_of(sizes), EVERY_SCALE)
    assert (plan.plane, plan.scale, plan.through) == wanted
    assert plan.words.startswith("slices ") and "a guess" not in plan.words


def test_where_nothing_is_to_be_gained_it_is_said():
    for sizes in ((1, 1, 1), (0.5, 0.5, 0.5), (1.4, 1.4, 1.4), (1, 1, 1.9)):
        with pytest.raises(DataError, match=r"a.nii: slices .* nothing to gain"):
            plan_of(scan_of(sizes), EVERY_SCALE)
    with pytest.raises(DataError, match="hardly thicker"):
        plan_of(scan_of((1, 1, 1)), EVERY_SCALE, through_plane=0)
    for weights, words in (
        (((4, 4),), r"pixels 4 times as fine, .* too much for it \(--scale 4"),
        (((6, 1),), "6 slices of each, which is too much for it$"),
    ):
        with pytest.raises(DataError, match=words):  # a lack of these weights, not of the scan
            plan_of(scan_of((2, 2, 5)), weights)
    with pytest.raises(DataError, match=r"nothing to gain.*\(--scale 4 would make 0.25 mm"):
        plan_of(scan_of((1, 1, 1)), ((4, 4),))


@pytest.mark.parametrize(
    ("order", "sizes", "shape", "plane"),
    [
        ((1, 2, 0), (1, 1, 1.2), (8, 9, 10), "axial"),  # nearly isotropic
        ((1, 2, 0), (0.9, 0.9, 5), (8, 9, 10), "sagittal"),
        ((0, 2, 1), (0.5, 0.5, 4), (8, 9, 10), "coronal"),
        ((0, 1, 2), (1, 3, 3), (8, 9, 10), "axial"),  # no two finest
        ((0, 2, 1), (1, 1, 1), (8, 9, 1), "coronal"),  # a single slice
    ],
)
def test_the_plane_is_that_of_the_finest_voxels(order, sizes, shape, plane):
    assert plan_of(scan_of(sizes, shape, order), EVERY_SCALE, scale=2).plane == plane


def test_of_a_single_slice_nobody_knows_what_lies_between():
    plan = plan_of(scan_of((2, 2, 5), (6, 6, 1)), EVERY_SCALE)
    assert (plan.scale, plan.through) == (2, 1)
    assert plan_of(scan_of((2, 5, 2), (6, 1, 6), (0, 2, 1)), EVERY_SCALE).label == "x2"


def test_what_is_asked_for_is_done_and_doubts_are_said():
    fine, thick = scan_of((1, 1, 1)), scan_of((1, 1, 4))
    for size, guess in ((1, True), (2.5, False)):
        plan = plan_of(scan_of((size,) * 3), EVERY_SCALE, scale=4)
        assert plan.label == "x4" and ("a guess" in plan.words) == guess
    assert plan_of(thick, EVERY_SCALE, through_plane=2).label == "through-x2"
    plan = plan_of(thick, EVERY_SCALE, through_plane=6)
    assert plan.through == 4 and "no weights for 6" in plan.words
    plan = plan_of(thick, EVERY_SCALE, voxel_size=1)
    assert (plan.scale, plan.through, plan.label) == (1, 4, "1mm")
    plan = plan_of(scan_of((2, 2, 6)), EVERY_SCALE, voxel_size=0.6)
    assert (plan.scale, plan.through, plan.label) == (4, 4, "0.6mm")
    assert "finer than the network can make" in plan.words
    for words, weights, options in (
        ("0.5 to 10 mm", EVERY_SCALE, {"voxel_size": 0.3}),
        ("enlarge by 2 or 4", ((4, 4), (2, 2)), {"scale": 3}),
        ("not made for it", ((4, 4),), {"through_plane": 0}),
        ("pixels need others", ((4, 1),), {"scale": 2}),
    ):
        with pytest.raises(UsageError, match=words):
            plan_of(fine, weights, **options)


def test_voxels_that_cannot_have_the_wanted_size_are_said():
    for shape, said in (((60, 60, 40), ""), ((60, 60, 5), "voxels become 2 x 2 x 1.875 mm")):
        words = plan_of(scan_of((1, 1, 3), shape), EVERY_SCALE, voxel_size=2).words
        assert (said in words) and ("edges stay" in words) == bool(said)


def test_a_picture_becomes_four_times_as_large_and_large_ones_get_a_hint():
    for shape, hint in (((240, 256), True), ((120, 256), False)):
        plan = plan_of(picture_of(*shape), EVERY_SCALE)
        assert plan.label == "x4"
        words = "if its pixels are about 1 mm already, x4 is a guess"
        assert (words in plan.words) == hint
    assert "guess" not in plan_of(picture_of(240, 256), EVERY_SCALE, scale=2).words
    assert plan_of(picture_of(9, 9), ((2, 2), (3, 3))).scale == 3
    with pytest.raises(DataError, match="is a picture; --through-plane is for scans"):
        plan_of(picture_of(9, 9), EVERY_SCALE, through_plane=0)
    with pytest.raises(UsageError, match="pictures need others"):
        plan_of(picture_of(9, 9), ((2, 1),))

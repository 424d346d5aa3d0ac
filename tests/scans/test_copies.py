"""Copies of slices are found among thumbnails, as by comparing each view of each with each."""

import numpy as np
from conftest import slices_of_person

from scans import copies


def test_the_quick_search_finds_what_comparing_all_finds():
    stack = np.concatenate([slices_of_person(p)[5:15:3] for p in ("03", "18", "55")])
    stack[0] = 80  # a flat one
    first = np.stack([copies.thumbnail(x) for x in stack])
    views = stack[7][::-1], np.rot90(stack[2], 3), stack[1] // 2, np.full((9, 7), 80)
    second = np.stack([copies.thumbnail(x) for x in views])
    second = np.concatenate([second, first[4:6], np.zeros_like(first[:1])])
    # Two that differ in nothing but what all of their views share, and are just alike.
    noise = np.random.default_rng(0).normal(size=(2, copies.SIZE, copies.SIZE))
    a, b = np.mean(copies.views(noise), axis=0).reshape(2, -1)
    just = np.rint(np.stack([a, a + 0.35 * b]) * 100).astype(np.int8)
    first, second = np.concatenate([first, just[:1]]), np.concatenate([second, just[1:]])
    found = set(copies.find_copies(first, second))
    a, b = (copies.unit_length(x) for x in (first, second))
    best = np.max([np.einsum("iyx,jyx->ij", view, b) for view in copies.views(a)], axis=0)
    assert found == set(zip(*(x.tolist() for x in np.nonzero(best > copies.ALIKE))))
    assert found == {(7, 0), (2, 1), (1, 2), (4, 4), (5, 5), (12, 7)}
    assert 0.95 < best[12, 7] < 0.96
    assert not copies.find_copies(first, second[3:4]) and not copies.find_copies(first[:0], second)


def test_a_slice_that_is_brighter_darker_or_noisy_is_a_copy():
    pixels = slices_of_person("55")[10, 20:220, 48:208].astype(float)
    noise = np.random.default_rng(1).normal(0, 8, pixels.shape)
    for changed in (1.3 * pixels, 0.6 * pixels, pixels + noise):
        pair = (copies.thumbnail(x.clip(0, 255).astype(np.uint8))[None] for x in (pixels, changed))
        assert copies.find_copies(*pair)


def test_people_of_one_scanner_at_one_height_are_not_copies():
    """Measured over 3.7e8 pairs of slices of 59 people: 0.88 at the most."""
    stack = [slices_of_person(p)[n] for p in ("03", "07", "18", "55") for n in (6, 12)]
    views = copies.unit_length(np.stack([copies.thumbnail(x) for x in stack]))
    alike = views.reshape(8, -1) @ views.reshape(8, -1).T
    assert (alike - np.eye(8)).max() < 0.8

"""What the votes of pixels say of points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projection.votes import Opinions, Poll, Votes, fuse

SEEDS = st.integers(0, 2**32 - 1)
CLASSES = 5


def random_votes(random, m, grids=2):
    cell = random.integers(0, 12, (m, grids)).astype(np.uint64)
    cell[:, -1] = cell[:, 0] // np.uint64(4)  # coarse cells hold fine ones
    return Votes(
        cell,
        random.integers(0, CLASSES, m).astype(np.uint8),
        random.uniform(0.1, 1, m).astype(np.float32),
        random.random(m, np.float32),
    )


def pick(votes, rows):
    return Votes(votes.cell[rows], votes.label[rows], votes.weight[rows], votes.score[rows])


def everywhere(grids=2):
    cell = np.arange(14, dtype=np.uint64)
    return np.stack([cell, cell // np.uint64(4)], axis=1)[:, :grids]


def assert_same(a: Opinions, b: Opinions):
    for name in Opinions.__slots__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(0, 80), grids=st.sampled_from([1, 2]))
def test_order_does_not_matter(seed, m, grids):
    random = np.random.default_rng(seed)
    votes = random_votes(random, m, grids)
    order, cut = random.permutation(m), random.integers(0, m + 1)
    asked = everywhere(grids) if grids == 2 else everywhere(1)
    together = fuse([votes], asked, CLASSES, fine_share=0.3)
    shuffled = [pick(votes, order[:cut]), pick(votes, order[cut:])]
    assert_same(together, fuse(shuffled, asked, CLASSES, fine_share=0.3))


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(0, 80), grids=st.sampled_from([1, 2]))
def test_hearing_everyone_twice_doubles_support_and_nothing_else(seed, m, grids):
    votes = random_votes(np.random.default_rng(seed), m, grids)
    once = fuse([votes], everywhere(grids), CLASSES, fine_share=0.3)
    twice = fuse([votes, votes], everywhere(grids), CLASSES, fine_share=0.3)
    np.testing.assert_array_equal(twice.support, 2 * once.support)
    np.testing.assert_array_equal(twice.label, once.label)
    np.testing.assert_allclose(twice.score, once.score, atol=1e-6)
    np.testing.assert_allclose(twice.agreement, once.agreement, atol=1e-6)


@given(
    label=st.integers(0, CLASSES - 1), weight=st.floats(0.01, 1), score=st.floats(0, 1), grids=st.sampled_from([1, 2])
)
def test_one_vote_returns_itself(label, weight, score, grids):
    cell = np.full((1, grids), 3, np.uint64)
    vote = Votes(cell, np.uint8([label]), np.float32([weight]), np.float32([score]))
    said = fuse([vote], cell, CLASSES, fine_share=0.3)
    assert (said.label[0], said.support[0]) == (label, 1)
    assert said.agreement[0] == pytest.approx(1)
    assert said.score[0] == pytest.approx(score, abs=1e-4)


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(1, 60))
def test_frames_can_leave_again(seed, m):
    random = np.random.default_rng(seed)
    frames = [random_votes(random, m) for _ in range(3)]
    poll = Poll(frames, CLASSES, 0.3)
    for i in (0, 1, 2):
        poll.add(i)
    poll.drop(0)
    assert_same(poll.opinions(everywhere()), fuse(frames[1:], everywhere(), CLASSES, fine_share=0.3))


def vote(cell, label, weight=1.0, score=1.0):
    cell = np.array(cell, np.uint64).reshape(len(label), -1)
    m = len(label)
    return Votes(cell, np.uint8(label), np.full(m, weight, np.float32), np.full(m, score, np.float32))


def test_the_coarse_cell_decides_where_the_fine_one_is_thin():
    votes = vote([[0, 0]] + [[1, 0]] * 9, [2] + [4] * 9)
    asked = np.array([[0, 0], [1, 0], [2, 0], [9, 9]], np.uint64)
    said = fuse([votes], asked, CLASSES, fine_share=0.3)
    np.testing.assert_array_equal(said.label, [4, 4, 4, 255])  # .3 + .07 for 2 against .63 for 4
    np.testing.assert_array_equal(said.support, [9, 9, 9, 0])
    fine_first = fuse([votes], asked, CLASSES, fine_share=0.9)
    np.testing.assert_array_equal(fine_first.label, [2, 4, 4, 255])
    np.testing.assert_allclose(fine_first.agreement, [0.91, 0.99, 0.9, 0], atol=1e-6)


def test_a_fine_cell_without_its_coarse_one_is_no_opinion():
    """Rounding at a border, or cells that do not nest, lead there; the counts of some other cell are none of its."""
    votes = Votes(np.array([[3, 1]], np.uint64), np.uint8([2]), np.float32([1]), np.float32([0.9]))
    said = fuse([votes], np.array([[3, 1], [3, 9]], np.uint64), CLASSES, fine_share=0.3)
    assert said.label.tolist() == [2, 255]
    assert said.support.tolist() == [1, 0]


def test_weight_decides_and_a_tie_goes_to_the_lower_class():
    heavy, light = vote([0], [3], 0.9), vote([0, 0], [1, 1], 0.4)
    cell = np.zeros((1, 1), np.uint64)
    assert fuse([heavy, light], cell, CLASSES).label[0] == 3
    assert fuse([vote([0], [3]), vote([0], [1])], cell, CLASSES).label[0] == 1


def test_opinions_need_support_and_agreement():
    votes, cell = vote([0, 0, 0, 1], [2, 2, 1, 3]), np.array([[0], [1]], np.uint64)
    np.testing.assert_array_equal(fuse([votes], cell, CLASSES, min_support=2).label, [2, 255])
    np.testing.assert_array_equal(fuse([votes], cell, CLASSES, min_agreement=0.7).label, [255, 3])
    unsure = fuse([votes], cell, CLASSES, min_support=2)
    assert unsure.score[1] == unsure.agreement[1] == 0


def test_forbidden_classes_are_passed_over():
    poll = Poll([vote([0, 0, 0], [2, 2, 1])], CLASSES)
    poll.add(0)
    allowed = np.ones((3, CLASSES), bool)
    allowed[1, 2], allowed[2] = False, False
    said = poll.opinions(np.zeros((3, 1), np.uint64), allowed)
    np.testing.assert_array_equal(said.label, [2, 1, 255])


def test_nobody_votes():
    said = fuse([], np.zeros((2, 1), np.uint64), CLASSES)
    np.testing.assert_array_equal(said.label, [255, 255])
    assert len(fuse([], np.zeros((0, 1), np.uint64), CLASSES).label) == 0

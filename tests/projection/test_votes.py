"""Votes of pixels, and the labels of points that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsweep.projection import votes_kernels
from clipsweep.projection.ground import Heights
from clipsweep.projection.votes import (
    NO_CLUSTER,
    ClassLimits,
    FusedLabels,
    Places,
    VoteGrid,
    Votes,
    vote_in_cells,
)
from tests.projection import twins

SEEDS = st.integers(0, 2**32 - 1)
CLASSES = 5
ROAD = 0
CAR = 1
TRUCK = 2
FINE_M = 0.4
COARSE_M = 1.2
CLUSTER_M = 5.0
FINE = 0.15
CLUSTER = 0.5
LIMITS = ClassLimits(
    np.arange(CLASSES) == ROAD,
    np.array([np.inf, 3, 4, np.inf, 2], np.float32),
    np.array([ROAD, TRUCK, TRUCK, 3, 4], np.uint8),
    np.zeros(CLASSES, np.bool_),
)
FREE = ClassLimits.none(CLASSES)


def places(xyz, kind=0, cluster=NO_CLUSTER, height=1.0, top=1.0, known=True):
    xyz = np.asarray(xyz, np.float32).reshape(-1, 3)
    fill = lambda value, dtype: np.full(len(xyz), value, dtype)  # noqa: E731
    heights = Heights(fill(height, np.float32), fill(top, np.float32), fill(known, np.bool_))
    return Places(xyz, fill(kind, np.uint8), fill(cluster, np.int32), heights)


def random_places(random, n):
    heights = Heights(
        random.uniform(-0.1, 2, n).astype(np.float32),
        random.uniform(0, 5, n).astype(np.float32),
        random.random(n) < 0.7,
    )
    xyz = random.normal(size=(n, 3)).astype(np.float32)
    kind = random.integers(0, 2, n).astype(np.uint8)
    return Places(xyz, kind, random.integers(-1, 3, n).astype(np.int32), heights)


def random_votes(random, m):
    return Votes(
        random_places(random, m),
        random.permutation(m).astype(np.int32),
        random.integers(0, CLASSES, m).astype(np.uint8),
        random.uniform(0.1, 1, m).astype(np.float32),
        random.random(m, np.float32),
    )


def pick(votes, rows):
    return Votes(
        votes.places, votes.point[rows], votes.label[rows], votes.weight[rows], votes.score[rows]
    )


def grid_of(votes):
    grid = VoteGrid(votes, CLASSES, FINE_M, COARSE_M, CLUSTER_M, FINE, CLUSTER)
    for frame in range(len(votes)):
        grid.add(frame)
    return grid


def fuse(votes, asked, limits=FREE, **least):
    return grid_of(votes).labels(asked, limits, **least)


def vote(where, label, weight=1.0, score=1.0):
    point = np.arange(len(where), dtype=np.int32)
    fill = lambda value: np.full(len(where), value, np.float32)  # noqa: E731
    return Votes(where, point, np.full(len(where), label, np.uint8), fill(weight), fill(score))


def assert_same(a: FusedLabels, b: FusedLabels):
    for name in FusedLabels.__slots__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@pytest.mark.parametrize("limits", [FREE, LIMITS])
@pytest.mark.parametrize("m", [0, 1, 150])
def test_labels_are_those_of_the_readable_twin(m, limits):
    random = np.random.default_rng(m)
    cast = random_votes(random, m).limited(limits)
    asked = random_places(random, 200)
    found = fuse([cast], asked, limits)

    def around(xyz, group, size, flat):
        where = cast.places
        groups = where.cluster if flat else where.kind
        rows = [
            twins.Vote(where.xyz[p], groups[p], label, weight, score)
            for p, label, weight, score in zip(
                cast.point, cast.label, cast.weight, cast.score, strict=True
            )
            if not flat or groups[p] != NO_CLUSTER
        ]
        return twins.shares(rows, xyz, group, size, CLASSES, flat)

    clear = 0
    for i in range(len(asked)):
        xyz = asked.xyz[i]
        kind = asked.kind[i]
        cluster = asked.cluster[i]
        levels = [
            (FINE, around(xyz, kind, FINE_M, False)),
            (1 - FINE - CLUSTER, around(xyz, kind, COARSE_M, False)),
            (CLUSTER, around(xyz, cluster, CLUSTER_M, True)),
        ]
        heights = asked.heights
        expected = twins.decide(levels, limits, heights.height[i], heights.top[i], heights.known[i])
        best = np.sort(expected.weights)
        if len(best) == 1 or best[-1] - best[-2] > 1e-3:
            assert found.label[i] == expected.label
            assert found.agreement[i] == pytest.approx(expected.agreement, abs=1e-3)
            clear += expected.label != 255
    assert m < 100 or clear > 100


def test_limits_of_votes_are_those_of_the_readable_twin():
    random = np.random.default_rng(3)
    cast = random_votes(random, 300)
    limited = cast.limited(LIMITS)
    kept = 0
    for p, label, weight in zip(cast.point, cast.label, cast.weight, strict=True):
        heights = cast.places.heights
        place = heights.height[p], heights.top[p], heights.known[p]
        if heights.known[p] and heights.top[p] > LIMITS.max_height_m[label]:
            label = LIMITS.taller[label]
        expected = weight * twins.class_weight(LIMITS, label, *place)
        if expected > 0:
            assert (limited.point[kept], limited.label[kept]) == (p, label)
            assert limited.weight[kept] == pytest.approx(expected)
            kept += 1
    assert kept == len(limited) < 300


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(0, 80))
def test_order_does_not_matter(seed, m):
    random = np.random.default_rng(seed)
    votes = random_votes(random, m)
    asked = random_places(random, 30)
    order = random.permutation(m)
    middle = random.integers(0, m + 1)
    shuffled = [pick(votes, order[:middle]), pick(votes, order[middle:])]
    assert_same(fuse([votes], asked), fuse(shuffled, asked))


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(0, 80))
def test_counting_everything_twice_doubles_support_and_nothing_else(seed, m):
    random = np.random.default_rng(seed)
    votes = random_votes(random, m)
    asked = random_places(random, 30)
    once = fuse([votes], asked)
    twice = fuse([votes, votes], asked)
    np.testing.assert_array_equal(twice.support, 2 * once.support)
    np.testing.assert_array_equal(twice.label, once.label)
    np.testing.assert_allclose(twice.score, once.score, atol=1e-6)
    np.testing.assert_allclose(twice.agreement, once.agreement, atol=1e-6)


@given(label=st.integers(0, CLASSES - 1), weight=st.floats(0.01, 1), score=st.floats(0, 1))
def test_one_vote_returns_itself(label, weight, score):
    where = places([[3.3, -1.2, 0.7]])
    found = fuse([vote(where, label, weight, score)], where)
    assert (found.label[0], found.support[0]) == (label, 1)
    assert found.agreement[0] == pytest.approx(1)
    assert found.score[0] == pytest.approx(score, abs=1e-3)


@settings(deadline=None)
@given(seed=SEEDS, m=st.integers(1, 60))
def test_frames_can_leave_again(seed, m):
    random = np.random.default_rng(seed)
    frames = [random_votes(random, m) for _ in range(3)]
    asked = random_places(random, 30)
    grid = grid_of(frames)
    grid.drop(0)
    assert_same(grid.labels(asked, FREE), fuse(frames[1:], asked))


def test_labels_do_not_jump_at_the_walls_of_cells():
    """Between two votes the label changes halfway, wherever the grid lies."""
    along = np.linspace(0, 0.8, 81)
    for offset in np.linspace(0, 1.2, 13):
        ends = vote(places([[offset, 0, 0]]), CAR), vote(places([[offset + 0.8, 0, 0]]), TRUCK)
        asked = places(np.column_stack([offset + along, np.zeros((81, 2))]))
        change = along[np.flatnonzero(fuse(ends, asked).label == TRUCK)[0]]
        assert 0.15 < change < 0.65


def test_few_votes_of_an_object_win_over_many_beside_it():
    """A person's cluster 0.5 m from a wall: the coarse cell is the wall's, the cluster is not."""
    wall = places(np.column_stack([np.zeros(40), np.linspace(-1, 1, 40), np.ones(40)]), cluster=0)
    person = places([[0.5, 0, 1.0], [0.5, 0.1, 1.2]], cluster=1)
    found = fuse([vote(wall, 3), vote(person, 4)], places([[0.55, 0.05, 0.6]], cluster=1))
    assert found.label.tolist() == [4]
    alone = fuse([vote(wall, 3), vote(person, 4)], places([[0.55, 0.05, 0.6]]))
    assert alone.label.tolist() == [3]


def test_a_cluster_decides_between_labels_nearby_and_labels_nothing_far_away():
    """Of the far side of a car, 3 m from all votes for it, nothing is known: it may be a hedge."""
    car = places(np.column_stack([np.linspace(0, 0.4, 9), np.zeros(9), np.ones(9)]), cluster=7)
    wrong = places([[3, 0, 1]], cluster=7)
    asked = places([[3, 0, 1], [6, 0, 1]], cluster=7)
    found = fuse([vote(car, CAR, score=0.6), vote(wrong, TRUCK, score=0.4)], asked)
    assert found.label.tolist() == [TRUCK, 255]
    mixed = places([[3.2, 0, 1]], cluster=7)
    found = fuse([vote(car, CAR, score=0.6), vote(wrong, TRUCK), vote(mixed, CAR)], asked)
    assert found.label.tolist() == [CAR, 255]


def test_a_point_is_labelled_as_if_it_were_alone():
    """A point without a cluster gets nothing from the cluster of the point before it.

    Its winner has no votes in coarse cells.
    """
    clustered = places([[20, 0.2, 0.2]], cluster=7)
    loose = places([[0.22, 0.2, 0.2]])
    votes = [vote(clustered, CAR, score=0.9), vote(places([[0.79, 0.2, 0.2]]), CAR, score=0.3)]
    grid = VoteGrid(votes, CLASSES, 0.4, 0.5, CLUSTER_M, FINE, CLUSTER)
    for frame in range(2):
        grid.add(frame)
    both = Places(
        np.concatenate([clustered.xyz, loose.xyz]),
        np.concatenate([clustered.kind, loose.kind]),
        np.concatenate([clustered.cluster, loose.cluster]),
        places(np.zeros((2, 3))).heights,
    )
    together, alone = (grid.labels(asked, FREE, min_support=0) for asked in (both, loose))
    assert together.label.tolist() == [CAR, CAR]
    assert (together.support[1], together.score[1]) == (alone.support[0], alone.score[0]) == (0, 0)


def test_kinds_of_places_never_share_votes():
    low = places([[0, 0, 1]], kind=2)
    tall = places([[0, 0, 1]], kind=0)
    assert fuse([vote(low, CAR)], tall).label.tolist() == [255]


def test_weight_decides_and_a_tie_goes_to_the_lower_class():
    here = places([[0.2, 0.2, 0.2]])
    both = places([[0.2, 0.2, 0.2], [0.3, 0.2, 0.2]])
    assert fuse([vote(here, 3, 0.9), vote(both, 1, 0.4)], here).label[0] == 3
    assert fuse([vote(here, 3), vote(here, 1)], here).label[0] == 1


def test_labels_need_support_and_agreement():
    here = places([[0.2, 0.2, 0.2]])
    there = places([[9.2, 0.2, 0.2]])
    asked = places([[0.2, 0.2, 0.2], [9.2, 0.2, 0.2]])
    cast = [vote(here, 2), vote(here, 2), vote(here, 1), vote(there, 3)]
    assert fuse(cast, asked, min_support=2).label.tolist() == [2, 255]
    assert fuse(cast, asked, min_agreement=0.7).label.tolist() == [255, 3]
    unsure = fuse(cast, asked, min_support=2)
    assert unsure.score[1] == unsure.agreement[1] == 0


def test_limits_hold_only_where_the_ground_is_known():
    xyz = [[0, 0, 0]]
    high = places(xyz, height=1.0)
    unknown = places(xyz, height=1.0, known=False)
    assert fuse([vote(high, ROAD)], high, LIMITS).label.tolist() == [255]
    assert fuse([vote(unknown, ROAD)], unknown, LIMITS).label.tolist() == [ROAD]
    low = places(xyz, height=0.01)
    assert fuse([vote(low, CAR), vote(low, ROAD, 0.2)], low, LIMITS).label.tolist() == [ROAD]
    assert fuse([vote(low, CAR)], low, LIMITS).label.tolist() == [CAR]


def test_a_car_that_is_too_tall_is_a_truck():
    tall = places([[0, 0, 0]], top=3.5)
    assert vote(tall, CAR).limited(LIMITS).label.tolist() == [TRUCK]
    assert len(vote(places([[0, 0, 0]], top=4.5), CAR).limited(LIMITS)) == 0


def test_nobody_votes():
    found = fuse([], places([[0, 0, 0], [1, 1, 1]]))
    np.testing.assert_array_equal(found.label, [255, 255])
    assert len(fuse([], places(np.empty((0, 3)))).label) == 0


def test_plain_votes_in_cells():
    cell = np.array([7, 7, 7, 9], np.uint64)
    label = np.array([2, 2, 1, 3], np.uint8)
    weight = np.array([0.2, 0.2, 0.9, 0.1], np.float32)
    wanted = np.array([9, 7, 8], np.uint64)
    assert vote_in_cells(cell, label, weight, CLASSES, wanted).tolist() == [3, 1, 255]
    none = np.empty(0, np.uint64), np.empty(0, np.uint8), np.empty(0, np.float32)
    assert vote_in_cells(*none, CLASSES, wanted).tolist() == [255, 255, 255]


def test_the_compiled_code_is_its_python():
    """What coverage cannot see inside compiled code, run as Python."""
    random = np.random.default_rng(5)
    votes = random_votes(random, 40).limited(LIMITS)
    asked = random_places(random, 20)
    grid = grid_of([votes])
    compiled = grid.labels(asked, LIMITS)
    fine, coarse, whole = grid._levels
    label = np.full(20, 255, np.uint8)
    support = np.zeros(20, np.int32)
    score = np.zeros(20, np.float32)
    agreement = np.zeros(20, np.float32)
    h = asked.heights
    votes_kernels.decide.py_func(
        asked.xyz, asked.kind, asked.cluster, h.height, h.top, h.known, LIMITS.packed(),
        fine, coarse, whole, label, score, agreement, support,
    )  # fmt: skip
    np.testing.assert_array_equal(label, compiled.label)
    np.testing.assert_allclose(agreement, compiled.agreement, atol=1e-6)
    np.testing.assert_array_equal(support, compiled.support)

"""Laws of rigid transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsweep.projection.pose import Pose
from tests.projection.scenes import pose

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
def test_inverse_undoes(seed):
    random = np.random.default_rng(seed)
    a_from_b = pose(random)
    xyz = random.normal(size=(5, 3)) * 100
    np.testing.assert_allclose(a_from_b.inverse().apply(a_from_b.apply(xyz)), xyz, atol=1e-10)
    both = a_from_b @ a_from_b.inverse()
    np.testing.assert_allclose(both.matrix(), Pose.identity().matrix(), atol=1e-12)


@given(SEEDS)
def test_composition_applies_one_after_the_other(seed):
    random = np.random.default_rng(seed)
    a_from_b = pose(random)
    b_from_c = pose(random)
    c_from_d = pose(random)
    xyz = random.normal(size=(5, 3))
    np.testing.assert_allclose(
        (a_from_b @ b_from_c).apply(xyz), a_from_b.apply(b_from_c.apply(xyz)), atol=1e-10
    )
    left = (a_from_b @ b_from_c) @ c_from_d
    right = a_from_b @ (b_from_c @ c_from_d)
    np.testing.assert_allclose(left.matrix(), right.matrix(), atol=1e-12)


def test_quaternion_turns_as_nuscenes_writes_it():
    # 90 degrees about z
    quarter = Pose.from_quaternion([np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(quarter.apply(np.array([[1.0, 0, 0]])), [[1, 3, 3]], atol=1e-12)
    np.testing.assert_allclose(
        Pose.from_matrix(quarter.matrix().ravel().tolist()).matrix(), quarter.matrix()
    )


@given(SEEDS)
def test_axis_and_angle_make_the_rotation(seed):
    random = np.random.default_rng(seed)
    axis = random.normal(size=3)
    vector = axis / np.linalg.norm(axis) * random.uniform(0, 3.1)
    half = np.linalg.norm(vector) / 2
    unit = vector / np.linalg.norm(vector) if half else vector
    turned = Pose.from_quaternion([np.cos(half), *(np.sin(half) * unit)], [0.0, 0.0, 0.0])
    np.testing.assert_allclose(turned.axis_angle(), vector, atol=1e-7)
    np.testing.assert_array_equal(Pose.identity().axis_angle(), np.zeros(3))


@pytest.mark.parametrize(
    "wxyz", [[1.0, 1.0, 0.0, 0.0], [0.0] * 4, [np.nan, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
)
def test_a_quaternion_that_is_none_is_refused(wxyz):
    with pytest.raises(ValueError, match="unit length"):
        Pose.from_quaternion(wxyz, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("rotation", [np.eye(3) * 1.1, np.diag([1.0, 1.0, -1.0]), np.zeros((3, 3))])
def test_a_matrix_that_is_no_rotation_is_refused(rotation):
    with pytest.raises(ValueError, match="not a rotation"):
        Pose(rotation, np.zeros(3))


def test_entries_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        Pose(np.eye(3), np.array([0, np.nan, 0]))

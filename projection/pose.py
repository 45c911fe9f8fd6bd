"""Rigid transforms (SE(3) poses, extrinsics) between named frames, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike

_ORTHONORMAL_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False, slots=True)
class Pose:
    """Rigid transform (pose, extrinsics): ``a_from_b.apply(xyz_in_b)`` gives ``xyz_in_a``.

    Attributes:
        rotation: proper rotation matrix.
        translation: origin of ``b`` seen from ``a`` [m].

    Raises:
        ValueError: entries are not finite, or ``rotation`` is not a rotation.
    """

    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rotation).all() and np.isfinite(self.translation).all()):
            raise ValueError("pose has entries that are not finite")
        error = float(np.abs(self.rotation @ self.rotation.T - np.eye(3)).max())
        if error > _ORTHONORMAL_TOLERANCE or np.linalg.det(self.rotation) < 0:
            raise ValueError(f"matrix is not a rotation (R R^T differs from 1 by {error:.2g})")

    @staticmethod
    def identity() -> Pose:
        """Identity transform."""
        return _unchecked(np.eye(3), np.zeros(3))

    @staticmethod
    def from_quaternion(wxyz: Sequence[float], translation: Sequence[float]) -> Pose:
        """Pose from a unit quaternion (w, x, y, z) and a translation, as nuScenes writes it.

        Raises:
            ValueError: the quaternion's length differs from 1 by more than 1e-3, or is not finite.
        """
        quaternion = np.asarray(wxyz, np.float64)
        length = float(np.linalg.norm(quaternion)) if quaternion.shape == (4,) else float("nan")
        if not abs(length - 1.0) <= 1e-3:
            raise ValueError(f"quaternion {list(wxyz)} is not of unit length")
        w, x, y, z = quaternion / length
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        return Pose(rotation, np.array(translation, np.float64))

    @staticmethod
    def from_matrix(rows: ArrayLike) -> Pose:
        """Pose of a 3x4 or 4x4 matrix, or of its rows one after the other, as KITTI writes them.

        Raises:
            ValueError: there are neither 12 nor 16 numbers.
        """
        matrix = np.asarray(rows, np.float64).reshape(-1, 4)
        if len(matrix) not in (3, 4):
            raise ValueError(f"a pose has 12 or 16 numbers, not {matrix.size}")
        matrix = matrix[:3]
        return Pose(np.ascontiguousarray(matrix[:, :3]), matrix[:, 3].copy())

    @staticmethod
    def from_axis_angle(axis_angle: Float64[np.ndarray, "3"]) -> Pose:
        """Rotation from an axis times the angle [rad], by Rodrigues' formula.

        See ``axis_angle``.
        """
        angle = float(np.linalg.norm(axis_angle))
        x, y, z = axis_angle / max(angle, 1e-300)
        generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turned = np.sin(angle) * generator + (1 - np.cos(angle)) * generator @ generator
        return _unchecked(np.eye(3) + turned, np.zeros(3))

    def matrix(self) -> Float64[np.ndarray, "3 4"]:
        """Row-major 3x4 matrix ``[R | t]`` of the pose."""
        return np.concatenate([self.rotation, self.translation[:, None]], axis=1)

    def __matmul__(self, other: Pose) -> Pose:
        """Composes poses: ``a_from_b @ b_from_c`` is ``a_from_c``."""
        return _unchecked(
            self.rotation @ other.rotation, self.rotation @ other.translation + self.translation
        )

    def inverse(self) -> Pose:
        """Inverse pose: ``b_from_a`` of an ``a_from_b``."""
        return _unchecked(self.rotation.T.copy(), -self.rotation.T @ self.translation)

    def axis_angle(self) -> Float64[np.ndarray, "3"]:
        """Axis-angle of the rotation [rad], below half a turn.

        The logarithm of the matrix.
        """
        r = self.rotation
        # times the sine
        axis = 0.5 * np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
        sine = float(np.linalg.norm(axis))
        angle = np.arctan2(sine, 0.5 * (np.trace(r) - 1))
        return axis * (angle / sine if sine > 1e-12 else 1.0)

    def apply(self, xyz: Float[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Transforms points [m] by the pose, in float64."""
        return xyz.astype(np.float64, copy=False) @ self.rotation.T + self.translation


def _unchecked(rotation: Float64[np.ndarray, "3 3"], translation: Float64[np.ndarray, "3"]) -> Pose:
    """Pose without validation, where it is right by its making.

    The check takes ten times as long as a product.
    """
    pose = object.__new__(Pose)
    object.__setattr__(pose, "rotation", rotation)
    object.__setattr__(pose, "translation", translation)
    return pose

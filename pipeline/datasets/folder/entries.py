"""Entries of rig.yaml: extrinsics, matrices, numbers and names, each validated.

All raise BadInput, which names the entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

_RIG_MAX_M = 20.0
_NUMBER_MAX = 1e9


def extrinsics(entry: Any, where: str) -> Pose:
    """Extrinsics: a 4x4 matrix, or ``translation`` [m] and ``quaternion_xyzw``."""
    try:
        pose = _pose(entry, where)
    except ValueError as error:
        raise error if isinstance(error, BadInput) else BadInput(where, str(error)) from None
    away_m = float(np.linalg.norm(pose.translation))
    if away_m > _RIG_MAX_M:
        raise BadInput(
            where,
            f"the sensor is {away_m:g} m away (at most {_RIG_MAX_M:g})",
            "offsets are in metres",
        )
    return pose


def _pose(entry: Any, where: str) -> Pose:
    if isinstance(entry, dict):
        check_keys(entry, ("translation", "quaternion_xyzw"), (), where)
        x, y, z, w = numbers(entry["quaternion_xyzw"], (4,), f"{where}.quaternion_xyzw")
        translation = numbers(entry["translation"], (3,), f"{where}.translation")
        return Pose.from_quaternion((w, x, y, z), translation.tolist())
    matrix = numbers(entry, (4, 4), where)
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise BadInput(where, f"has the last row {matrix[3].tolist()}", "it must be 0 0 0 1")
    return Pose.from_matrix(matrix)


def rotation(entry: Any, where: str) -> Pose:
    """Rotation matrix of 3x3 numbers."""
    try:
        return Pose(numbers(entry, (3, 3), where), np.zeros(3))
    except ValueError as error:
        raise error if isinstance(error, BadInput) else BadInput(where, str(error)) from None


def numbers(entry: Any, shape: tuple[int, ...], where: str) -> Float64[np.ndarray, "..."]:
    """Array of numbers of a given shape, finite and at most 1e9."""
    size = " x ".join(map(str, shape))
    try:
        array = np.array(entry, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(where, f"is {shown(entry)}", f"it must be {size} numbers") from None
    if array.shape != shape or not (np.abs(array) <= _NUMBER_MAX).all():  # nan too
        raise BadInput(where, f"is {shown(entry)}", f"it must be {size} finite numbers")
    return array


def number(entry: Any, most: float, where: str) -> float:
    """Number from 0 to ``most``."""
    if type(entry) not in (int, float) or not 0 <= entry <= most:  # refuses nan too
        raise BadInput(where, f"is {shown(entry)}", f"it must be a number from 0 to {most:g}")
    return float(entry)


def text(entry: Any, where: str) -> str:
    """Name of a column; may be empty."""
    if not isinstance(entry, str):
        raise BadInput(where, f"is {shown(entry)}", "it must be the name of a column")
    return entry


def column_names(entry: Any, where: str) -> tuple[str, ...]:
    """Names of the columns of a point cloud file, each once."""
    names = tuple(entry) if isinstance(entry, list | tuple) else ()
    distinct = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    if not distinct or not {"x", "y", "z"} <= set(names):
        raise BadInput(where, f"is {shown(entry)}", "distinct names, among them x, y and z")
    return names


def choice(entry: Any, choices: Iterable[str], where: str) -> str:
    """One of some words."""
    allowed = list(choices)
    if entry not in allowed:
        raise BadInput(where, f"is {shown(entry)}", f"it must be one of {', '.join(allowed)}")
    return str(entry)


def mapping(entry: Any, where: str) -> dict[str, Any]:
    """Mapping of names to values."""
    if not isinstance(entry, dict):
        raise BadInput(where, f"is {shown(entry)}", "it must be a mapping of names to values")
    return entry


def check_keys(
    tree: Mapping[str, Any], needed: tuple[str, ...], optional: tuple[str, ...], where: str
) -> None:
    """Refuses a mapping that lacks a name, or has one that is unknown."""
    known = ", ".join((*needed, *optional))
    for name in needed:
        if name not in tree:
            raise BadInput(where, f"has no {name}", f"it takes {known}")
    for name in tree:
        if name not in (*needed, *optional):
            raise BadInput(where, f"has {shown(name)}, which is unknown", f"it takes {known}")


def shown(entry: Any) -> str:
    """Entry as messages show it, cut off if it is long."""
    written = repr(entry)
    return written if len(written) <= 80 else f"{written[:77]}..."

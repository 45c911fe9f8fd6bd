"""Trajectory of a folder data set (``poses.csv``): vehicle poses, interpolated to sensor times."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial.transform import Rotation, Slerp

from clipsweep.pipeline.datasets.checks import checked_time
from clipsweep.pipeline.datasets.folder.rig import UNITS_PER_S
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

HEADER = ("time", "x", "y", "z", "qx", "qy", "qz", "qw")
_POSITION_MAX_M = 1e8
_TEXT_MAX = 40


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """Vehicle poses over time: ``world_from_vehicle`` at each row of poses.csv.

    Attributes:
        path: the file, for messages.
        time_us: times, rising [us].
        position: origin of the vehicle in the world [m].
        quaternion: its rotation as unit quaternions x, y, z, w.
        gap_s: longest time between two poses that is interpolated over [s].
    """

    path: Path
    time_us: Int64[np.ndarray, " n"]
    position: Float64[np.ndarray, "n 3"]
    quaternion: Float64[np.ndarray, "n 4"]
    gap_s: float

    def at(self, time_us: int) -> Pose:
        """Pose at a time, between the two poses around it: linear position, slerp rotation.

        Raises:
            BadInput: the time lies before the first pose or after the last one (nothing is
                extrapolated), or in a gap.
        """
        after = int(np.searchsorted(self.time_us, time_us))
        if after < len(self.time_us) and self.time_us[after] == time_us:
            return self._row(after)
        if after in (0, len(self.time_us)):
            edge = self.time_us[min(after, len(self.time_us) - 1)]
            side = "before the first pose" if after == 0 else "after the last pose"
            gap = f"{abs(int(edge) - time_us) * 1e-6:.3f} s {side}"
            raise BadInput(
                self.path, f"{time_us} us is {gap}", "poses are not extrapolated: on_bad=skip"
            )
        return self._between(after - 1, time_us)

    def _row(self, row: int) -> Pose:
        rotation = Rotation.from_quat(self.quaternion[row]).as_matrix()
        return Pose(rotation, self.position[row].copy())

    def _between(self, row: int, time_us: int) -> Pose:
        start = int(self.time_us[row])
        step_us = int(self.time_us[row + 1]) - start
        if step_us > self.gap_s * 1e6:
            problem = f"has no pose for {step_us * 1e-6:.3f} s around {time_us} us"
            cure = f"data.folder.max_pose_gap_s={self.gap_s:g} is the most; or on_bad=skip"
            raise BadInput(self.path, problem, cure)
        share = (time_us - start) / step_us
        ends = Rotation.from_quat(self.quaternion[row : row + 2])
        position = (1 - share) * self.position[row] + share * self.position[row + 1]
        return Pose(Slerp([0.0, 1.0], ends)(share).as_matrix(), position)


def parse_time_us(text: str, unit: str, where: object) -> int:
    """Time as a whole number of microseconds, of decimal text in a unit; exact but for rounding.

    Raises:
        BadInput: it is no number, or none that a clock has.
    """
    try:
        if len(text) > _TEXT_MAX:
            raise InvalidOperation
        value = Decimal(text.strip()) * 10**6 / UNITS_PER_S[unit]
        whole = int(value.to_integral_value()) if value.is_finite() else -1
    except (InvalidOperation, OverflowError):
        problem = f"{text[:_TEXT_MAX]!r} is no time"
        raise BadInput(where, problem, f"times are numbers, in {unit} (time_unit)") from None
    return checked_time(whole, str(where))


def read_poses(path: Path, unit: str, gap_s: float, up_from_world: Pose) -> Trajectory:
    """Reads ``poses.csv``: the columns time, x, y, z [m], qx, qy, qz, qw, by their header.

    Each row is the vehicle's pose in the world (``world_from_vehicle``).

    Args:
        path: the file.
        unit: of its times.
        gap_s: longest time between two poses that is interpolated over [s].
        up_from_world: rotation that brings the world's z axis up.

    Raises:
        BadInput: the file cannot be read, a column or number is missing, times do not rise, or
            a quaternion is not of unit length; names the line.
    """
    rows = _read_rows(path)
    columns = [_column(path, rows[0], name) for name in HEADER]
    body = rows[1:]
    if not body:
        raise BadInput(path, "holds no pose")
    times = [parse_time_us(row[columns[0]], unit, f"{path}:{i}") for i, row in enumerate(body, 2)]
    time_us = np.array(times, np.int64)
    numbers = _numbers(path, body, columns[1:])
    _check_rising(path, time_us)
    _check_numbers(path, numbers)
    turned = Rotation.from_matrix(up_from_world.rotation) * Rotation.from_quat(numbers[:, 3:])
    position = up_from_world.apply(numbers[:, :3])
    return Trajectory(path, time_us, position, turned.as_quat(), gap_s)


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    except OSError as error:
        raise BadInput(path, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(path, f"is no UTF-8 text ({error.reason})", "save it as UTF-8") from None
    except csv.Error as error:
        raise BadInput(path, f"is no CSV ({error})") from None
    if not rows:
        raise BadInput(path, "is empty", f"its first line must be {','.join(HEADER)}")
    for i, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise BadInput(f"{path}:{i}", f"has {len(row)} columns, the header {len(rows[0])}")
    return rows


def _column(path: Path, header: Sequence[str], name: str) -> int:
    names = [each.strip() for each in header]
    if names.count(name) != 1:
        problem = f"has {names.count(name)} columns named {name}"
        raise BadInput(path, problem, f"its first line must be {','.join(HEADER)}")
    return names.index(name)


def _numbers(
    path: Path, rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> Float64[np.ndarray, "n 7"]:
    chosen = [[row[column] for column in columns] for row in rows]
    try:
        return np.array(chosen, np.float64)
    except ValueError:
        pass
    for i, row in enumerate(chosen, 2):
        for text in row:
            _check_number(text, f"{path}:{i}")
    raise BadInput(path, "contains text that is not a number")


def _check_number(text: str, where: str) -> None:
    try:
        float(text)
    except ValueError:
        raise BadInput(where, f"{text[:_TEXT_MAX]!r} is not a number") from None


def _check_rising(path: Path, time_us: Int64[np.ndarray, " n"]) -> None:
    steps = np.diff(time_us)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        problem = f"{time_us[row + 1]} us comes after {time_us[row]} us"
        raise BadInput(f"{path}:{row + 3}", problem, "times must rise, each given once: sort them")


def _check_numbers(path: Path, numbers: Float64[np.ndarray, "n 7"]) -> None:
    far = ~(np.abs(numbers[:, :3]) <= _POSITION_MAX_M).all(axis=1)  # nan too
    if far.any():
        row = int(np.argmax(far))
        problem = f"position {numbers[row, :3].tolist()} m is nowhere on Earth"
        raise BadInput(f"{path}:{row + 2}", problem, f"at most {_POSITION_MAX_M:.0e} m")
    with np.errstate(over="ignore"):
        length = np.linalg.norm(numbers[:, 3:], axis=1)
    odd = ~(np.abs(length - 1) <= 1e-3)
    if odd.any():
        row = int(np.argmax(odd))
        problem = f"quaternion {numbers[row, 3:].tolist()} is not of unit length"
        raise BadInput(f"{path}:{row + 2}", problem, "the order is qx, qy, qz, qw")

"""Coordinate frames of a bag: static transforms between them, and moving ones over time."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import matmul

from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

Series = dict[tuple[str, str], tuple[list[int], list[Pose]]]
"""Times [us] and poses of moving frames, by parent and child."""


@dataclass(frozen=True, eq=False, slots=True)
class Transforms:
    """Transforms of /tf_static, and those of /tf with their times.

    Attributes:
        static: for each frame its neighbours, each with ``frame_from_neighbour``.
        moving: poses over time [us] of each child frame in its parent, in order of arrival.
    """

    static: dict[str, dict[str, Pose]] = field(default_factory=dict)
    moving: dict[tuple[str, str], list[tuple[int, Pose]]] = field(default_factory=dict)

    def add_static(self, parent: str, child: str, parent_from_child: Pose) -> None:
        """Adds a transform that does not change; a later one of the same frames replaces it."""
        self.static.setdefault(parent, {})[child] = parent_from_child
        self.static.setdefault(child, {})[parent] = parent_from_child.inverse()

    def add_moving(self, parent: str, child: str, time_us: int, pose: Pose) -> None:
        """Adds a pose of a moving frame."""
        self.moving.setdefault((parent, child), []).append((time_us, pose))

    def between(self, target: str, source: str) -> Pose:
        """Static transform ``target_from_source``.

        Raises:
            BadInput: no chain of static transforms connects the frames.
        """
        found = {target: Pose.identity()}
        waiting = deque([target])
        while waiting and source not in found:
            frame = waiting.popleft()
            for neighbour, frame_from_neighbour in self.static.get(frame, {}).items():
                if neighbour not in found:
                    found[neighbour] = found[frame] @ frame_from_neighbour
                    waiting.append(neighbour)
        if source not in found:
            known = ", ".join(sorted(self.static)) or "none"
            raise BadInput(
                f"frame {source!r}",
                f"has no static transform to {target!r} (frames with some: {known})",
                "give vehicle_from_sensor in the topics file",
            )
        return found[source]

    def connected(self, target: str, source: str) -> bool:
        """Whether static transforms connect two frames."""
        try:
            self.between(target, source)
        except BadInput:
            return False
        return True


def poses_of_vehicle(transforms: Transforms, world: str, vehicle: str) -> list[tuple[int, Pose]]:
    """Poses ``world_from_vehicle`` of a chain of transforms, at the times of its fastest one.

    Slower transforms of the chain are interpolated; times before their first or after their last
    are left out.

    Raises:
        BadInput: no chain leads from the world to the vehicle.
    """
    chain = _chain(transforms, world, vehicle)
    moving = [edge for edge in chain if edge in transforms.moving]
    if not moving:
        raise BadInput(
            f"frame {vehicle!r}", f"does not move in {world!r}", "name the world's frame"
        )
    series = {edge: _in_order(transforms.moving[edge]) for edge in moving}
    fastest = max(moving, key=lambda edge: len(series[edge][0]))
    poses = []
    for time_us in series[fastest][0]:
        steps = [_at(transforms, series, edge, time_us) for edge in chain]
        known = [step for step in steps if step is not None]
        if len(known) == len(chain):
            poses.append((time_us, reduce(matmul, known)))
    return poses


def _in_order(moved: Iterable[tuple[int, Pose]]) -> tuple[list[int], list[Pose]]:
    """Times and poses in order of time; of one time the last that arrived."""
    by_time = dict(moved)
    times = sorted(by_time)
    return times, [by_time[time_us] for time_us in times]


def _chain(transforms: Transforms, world: str, vehicle: str) -> list[tuple[str, str]]:
    """Edges from the world to the vehicle, shortest first."""
    edges: dict[str, set[str]] = {}
    for parent, child in transforms.moving:
        edges.setdefault(parent, set()).add(child)
    for frame, neighbours in transforms.static.items():
        edges.setdefault(frame, set()).update(neighbours)
    before: dict[str, str] = {world: world}
    waiting = deque([world])
    while waiting and vehicle not in before:
        frame = waiting.popleft()
        for neighbour in sorted(edges.get(frame, ())):
            if neighbour not in before:
                before[neighbour] = frame
                waiting.append(neighbour)
    if vehicle not in before:
        moved = ", ".join(f"{parent} -> {child}" for parent, child in transforms.moving) or "none"
        raise BadInput(
            f"frame {vehicle!r}",
            f"is reached by no transforms from {world!r} (moving ones: {moved})",
            "correct vehicle and poses.tf in the topics file",
        )
    chain = []
    while vehicle != world:
        chain.append((before[vehicle], vehicle))
        vehicle = before[vehicle]
    return chain[::-1]


def _at(transforms: Transforms, series: Series, edge: tuple[str, str], time_us: int) -> Pose | None:
    """Transform of an edge at a time; None where it is not known yet or any more."""
    if edge not in series:
        return transforms.static[edge[0]][edge[1]]
    times, poses = series[edge]
    after = bisect_left(times, time_us)
    if after < len(times) and times[after] == time_us:
        return poses[after]
    if after in (0, len(times)):
        return None
    share = (time_us - times[after - 1]) / (times[after] - times[after - 1])
    return _interpolated(poses[after - 1], poses[after], share)


def _interpolated(first: Pose, second: Pose, share: float) -> Pose:
    """Pose between two: linear position, constant rate of rotation."""
    turn = Pose.from_axis_angle((first.inverse() @ second).axis_angle() * share)
    position = (1 - share) * first.translation + share * second.translation
    return Pose(first.rotation @ turn.rotation, position)

"""People of the embedded world: beside walls, close together, under trees, and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.pipeline.demo.parts import BOX, CYLINDER, ELLIPSOID, PEOPLE, SceneObject, rotation
from clipsweep.pipeline.demo.world import World, build_world

SCENES = 10
DURATION_S = 3.0


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [build_world(0, scene, DURATION_S) for scene in range(SCENES)]


def people_of(world: World) -> list[SceneObject]:
    return [obj for obj in world.objects if obj.label in PEOPLE]


def place_m(obj: SceneObject, time_s: float = 0.0) -> np.ndarray:
    return np.array([obj.x_m, obj.y_m, obj.z_m]) + obj.velocity_mps * time_s


@pytest.mark.parametrize("time_s", [0.0, 1.5, DURATION_S])
def test_no_one_is_inside_another_object(worlds: list[World], time_s: float) -> None:
    """Tracked objects by their boxes.

    Others by their parts, for one may stand below a crown or lamp.
    """
    for world in worlds:
        for person in people_of(world):
            centre = place_m(person, time_s)
            centre[2] += person.size_m[2] / 2
            for other in world.objects:
                offset = centre - place_m(other, time_s)
                if other is person or np.abs(offset[:2]).max() > max(other.size_m):
                    continue
                local = offset @ rotation(other.yaw_rad)
                if other.tracked:
                    half = np.array(other.size_m) / 2
                    assert not (np.abs(local - [0, 0, half[2]]) < half).all(), (person, other)
                for part in () if other.tracked else other.parts:
                    inner = (local - part.at_m) @ rotation(*map(float, part.turn_rad))
                    assert not (np.abs(inner) < np.array(part.size_m) / 2).all(), (person, part)


def test_a_quarter_is_beside_walls_and_others_stand_in_groups_and_below_trees(
    worlds: list[World],
) -> None:
    total = walled = grouped = below = 0
    for world in worlds:
        people = people_of(world)
        total += len(people)
        still = [person for person in people if person.speed_mps == 0]
        for person in people:
            gaps = [_gap_m(person, obj) for obj in world.objects if not obj.tracked]
            walled += any(0.3 <= gap <= 0.81 for gap in gaps)
        for person in still:
            apart = [np.hypot(*(place_m(person) - place_m(other))[:2]) for other in still]
            grouped += sum(distance < 0.65 for distance in apart) >= 3  # with the person
            below += any(_is_below(person, obj) for obj in world.objects)
    assert 0.15 < walled / total < 0.35
    assert 0.08 < grouped / total < 0.35
    assert 0.02 < below / total < 0.2
    assert 22 < total / SCENES < 38  # as many as ever


def _gap_m(person: SceneObject, obj: SceneObject) -> float:
    """From a person to the near face of a wall, hedge, shelter or house beside; inf else."""
    if obj.parts[0].kind != BOX or obj.y_m * person.y_m < 0:
        return np.inf
    beside = abs(person.x_m - obj.x_m) < obj.size_m[0] / 2
    wide_m = max(
        2 * abs(part.at_m[1]) + part.size_m[1]
        for part in obj.parts
        if part.at_m[2] - part.size_m[2] / 2 < 1.8
    )
    return abs(obj.y_m) - wide_m / 2 - abs(person.y_m) if beside else np.inf


def _is_below(person: SceneObject, obj: SceneObject) -> bool:
    crown = any(part.kind == ELLIPSOID for part in obj.parts[1:])
    if obj.tracked or obj.parts[0].kind != CYLINDER or not crown:
        return False
    return bool(np.hypot(*(place_m(person) - place_m(obj))[:2]) < 1.25)

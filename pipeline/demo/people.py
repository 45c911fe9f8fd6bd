"""Synthetic pedestrians: along the sidewalk, beside walls, in groups, under trees."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.demo import scenery, shapes
from clipsweep.pipeline.demo.ground import KERB_M
from clipsweep.pipeline.demo.parts import BOX, CYLINDER, ELLIPSOID, PEOPLE, SceneObject

Rng = np.random.Generator
Party = list[SceneObject]
"""People who belong together."""
_Way = Callable[[Party], Party]

_SHARES = (0.47, 0.31, 0.11, 0.11)
"""Of parties: that stay where they are, go beside a wall, stand close together, stand under a
tree.
"""
_TRIES = 12
_GAP_M = (0.4, 0.8)
"""From a wall's face to the middle of a person beside it."""
_HEAD_M = 1.8
"""What begins higher above the ground is in no one's way."""
_STEP_S = 0.2


def draw_parties(
    rng: Rng, sign: int, y0_m: float, y1_m: float, near_m: tuple[float, float]
) -> list[Party]:
    """Draws random pedestrians, walking or standing, one to three together on the sidewalk.

    About one group per six metres of sidewalk.

    The sidewalk lies between `y0_m` and `y1_m` from the street's axis, on the side `sign` of y.
    """
    out = []
    x = near_m[0] + float(rng.uniform(0, 6))
    while x < near_m[1] + 15:
        walks = rng.random() < 0.6
        together = int(rng.integers(1, 4))
        yaw = np.pi * float(rng.integers(2)) + float(rng.normal(0, 0.03))
        speed = float(rng.uniform(0.8, 1.6)) if walks else 0.0
        party = []
        for i in range(together):
            kind = _kind(rng)
            turn = yaw if walks else float(rng.uniform(0, 2 * np.pi))
            y = y0_m + (y1_m - y0_m) * (i + rng.random()) / together
            person = shapes.pedestrian(rng, kind)
            party.append(
                replace(
                    person,
                    x_m=x + float(rng.uniform(-0.4, 0.4)),
                    y_m=sign * y,
                    z_m=KERB_M,
                    yaw_rad=turn,
                    speed_mps=speed,
                )
            )
        out.append(party)
        x += float(rng.uniform(5.0, 20.0))
    return out


def _kind(rng: Rng) -> int:
    return int(rng.choice([shapes.ADULT, shapes.CHILD, shapes.WORKER], p=[0.78, 0.16, 0.06]))


def spread(
    rng: Rng, parties: Sequence[Party], objects: Sequence[SceneObject], duration_s: float
) -> list[SceneObject]:
    """Relocates some pedestrians to walls, trees and into groups, free of collisions.

    `objects` are those of the parties' side of the street. Who finds no free place where they
    should go stays on the sidewalk; who is in something's way even there is left out.
    """
    ways: tuple[_Way | None, ...] = (
        None,
        lambda party: _beside_wall(rng, party, objects),
        lambda party: _close_together(rng, party),
        lambda party: _under_tree(rng, party, objects),
    )
    taken = _footprints(objects)
    times_s = np.arange(0.0, duration_s + _STEP_S, _STEP_S)
    out: list[SceneObject] = []
    for party in parties:
        way = ways[int(rng.choice(len(ways), p=_SHARES))]
        placed = _first_free(_candidates(rng, way, party), party, taken, times_s)
        taken = _joined(taken, _footprints(placed))
        out += placed
    return out


def _first_free(
    candidates: Iterator[Party],
    party: Party,
    taken: "_Footprints",
    times_s: Float[np.ndarray, "t"],
) -> Party:
    """Chooses the first placement of a group of pedestrians without collisions.

    If there is none, those who have room where they are.
    """
    for moved in candidates:
        free = _with_room(moved, taken, times_s)
        if free and len(free) == len(moved):
            return free
    return _with_room(party, taken, times_s)


def _candidates(rng: Rng, way: _Way | None, party: Party) -> Iterator[Party]:
    """Candidate placements of a group: where it should go, where it is, elsewhere."""
    if way:
        for _ in range(_TRIES):
            yield way(party)
    yield party
    for _ in range(_TRIES):
        yield _shifted(rng, party)


def _shifted(rng: Rng, party: Party) -> Party:
    """Placement elsewhere along the sidewalk; distances from the axis stay."""
    along_m = float(rng.uniform(-3.0, 3.0))
    return [replace(person, x_m=person.x_m + along_m) for person in party]


def _beside_wall(rng: Rng, party: Party, objects: Sequence[SceneObject]) -> Party:
    """Placement of pedestrians beside a wall, hedge, shelter or house.

    Along the street's face of the first one that they meet there.
    """
    x = party[0].x_m + float(rng.uniform(-5.0, 5.0))
    walls = [t for t in objects if _is_wall(t) and abs(t.x_m - x) < t.size_m[0] / 2]
    if not walls:
        return []
    wall = min(walls, key=lambda t: abs(t.y_m))
    face_m = abs(wall.y_m) - _foot_m(wall)[1] / 2
    out = []
    for i, person in enumerate(party):
        y = np.sign(wall.y_m) * (face_m - float(rng.uniform(*_GAP_M)))
        out.append(replace(person, x_m=x + 0.9 * i + float(rng.uniform(-0.2, 0.2)), y_m=float(y)))
    return out


def _is_wall(obj: SceneObject) -> bool:
    return not obj.tracked and obj.parts[0].kind == BOX


def _close_together(rng: Rng, party: Party) -> Party:
    """Placement of three to five pedestrians about half a metre apart, most facing each other."""
    count = int(rng.integers(3, 6))
    more = [shapes.pedestrian(rng, _kind(rng)) for _ in range(count - len(party))]
    radius_m = float(rng.uniform(0.52, 0.6)) / (2 * np.sin(np.pi / count))
    first = float(rng.uniform(0, 2 * np.pi))
    out = []
    for i, person in enumerate([*party, *more]):
        angle = first + 2 * np.pi * i / count
        out.append(
            replace(
                person,
                x_m=party[0].x_m + radius_m * float(np.cos(angle)),
                y_m=party[0].y_m + radius_m * float(np.sin(angle)),
                z_m=KERB_M,
                yaw_rad=angle + np.pi + float(rng.normal(0, 0.5)),
                speed_mps=0.0,
            )
        )
    return out


def _under_tree(rng: Rng, party: Party, objects: Sequence[SceneObject]) -> Party:
    """Placement of pedestrians beside the trunk of a tree near by, below its crown."""
    tallest_m = max(person.size_m[2] for person in party)
    trees = [
        t
        for t in objects
        if abs(t.x_m - party[0].x_m) < 12 and _crown_m(t) > min(tallest_m, _HEAD_M)
    ]
    if not trees:
        return []
    tree = shapes.pick(rng, trees)
    out = []
    for person in party:
        angle = float(rng.uniform(0, 2 * np.pi))
        away_m = float(rng.uniform(0.6, 1.2))
        out.append(
            replace(
                person,
                x_m=tree.x_m + away_m * float(np.cos(angle)),
                y_m=tree.y_m + away_m * float(np.sin(angle)),
                yaw_rad=float(rng.uniform(0, 2 * np.pi)),
                speed_mps=0.0,
            )
        )
    return out


def _crown_m(obj: SceneObject) -> float:
    """Crown height: a broad-leaved tree's lowest leaves above the ground, of all else 0 [m]."""
    if obj.label != scenery.VEGETATION or obj.parts[0].kind != CYLINDER:
        return 0.0
    crowns = [part for part in obj.parts if part.kind == ELLIPSOID]
    return min((part.at_m[2] - part.size_m[2] / 2 for part in crowns), default=0.0)


# --- room to stand --------------------------------------------------------------------------------


class _Footprints(NamedTuple):
    """Footprints for collision tests: rectangles on the ground at t = 0, and how they move."""

    at_m: Float[np.ndarray, "k 2"]
    velocity_mps: Float[np.ndarray, "k 2"]
    yaw_rad: Float[np.ndarray, "k"]
    half_m: Float[np.ndarray, "k 2"]


def _footprints(objects: Sequence[SceneObject]) -> _Footprints:
    margin_m = [0.02 if obj.label in PEOPLE else 0.2 for obj in objects]
    half_m = np.array([_foot_m(obj) for obj in objects]).reshape(-1, 2) / 2
    return _Footprints(
        at_m=np.array([(obj.x_m, obj.y_m) for obj in objects]).reshape(-1, 2),
        velocity_mps=np.array([obj.velocity_mps[:2] for obj in objects]).reshape(-1, 2),
        yaw_rad=np.array([obj.yaw_rad for obj in objects]),
        half_m=half_m + np.array(margin_m)[:, None],
    )


def _foot_m(obj: SceneObject) -> tuple[float, float]:
    """Footprint of an object below a person's head, length and width [m]."""
    if obj.tracked:
        return float(obj.size_m[0]), float(obj.size_m[1])
    low = [part for part in obj.parts if part.at_m[2] - part.size_m[2] / 2 < _HEAD_M]
    length_m = max(2 * abs(part.at_m[0]) + part.size_m[0] for part in low)
    width_m = max(2 * abs(part.at_m[1]) + part.size_m[1] for part in low)
    return float(length_m), float(width_m)


def _joined(first: _Footprints, second: _Footprints) -> _Footprints:
    return _Footprints(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def _with_room(party: Party, taken: _Footprints, times_s: Float[np.ndarray, "t"]) -> Party:
    """Pedestrians of a group who collide with nothing at any of the times."""
    out: Party = []
    for person in party:
        if not _meets(person, taken, times_s):
            out.append(person)
            taken = _joined(taken, _footprints([person]))
    return out


def _meets(person: SceneObject, marks: _Footprints, times_s: Float[np.ndarray, "t"]) -> bool:
    apart_m = np.array([person.x_m, person.y_m]) - marks.at_m
    speed_mps = person.velocity_mps[:2] - marks.velocity_mps
    apart_m = apart_m[:, None] + speed_mps[:, None] * times_s[:, None]
    cos = np.cos(marks.yaw_rad)[:, None]
    sin = np.sin(marks.yaw_rad)[:, None]
    along_m = np.abs(cos * apart_m[..., 0] + sin * apart_m[..., 1])
    across_m = np.abs(cos * apart_m[..., 1] - sin * apart_m[..., 0])
    half_m = marks.half_m[:, None]
    return bool(((along_m <= half_m[..., 0]) & (across_m <= half_m[..., 1])).any())

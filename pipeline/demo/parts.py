"""Geometric primitives of synthetic objects (box, ellipsoid, cylinder), alone or as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

Triple = tuple[float | int, float | int, float | int]
Colour = Triple
Angles = float | Float[np.ndarray, "*n"]

BOX, ELLIPSOID, CYLINDER = range(3)
PEOPLE = (2, 3, 4)
"""Raw labels of adults, children and workers."""

# Looks: how a kernel paints a surface from `colour`, `accent` and three `pattern` numbers (see
# paint_kernels).
(
    PLAIN,
    WINDOWS,
    BANDS,
    DIAGONAL,
    BUS,
    FOLIAGE,
    RIBS,
    CABIN,
    WHEEL,
    PLATE,
    CAR,
    BRICK,
    SIGNAL,
    BLOCKS,
    CAB,
) = range(15)

BLACK: Colour = (0.05, 0.05, 0.055)
GLASS: Colour = (0.12, 0.16, 0.20)


@dataclass(frozen=True, slots=True)
class Part:
    """Primitive of a synthetic object, in the object's frame [m, rad].

    That frame is x forward, y left, z up, its origin on the ground. `taper` shrinks a box's top
    along x and y (0 none, 1 to an edge); for a cylinder (axis z) its first number does so for both
    radii (1: a cone) and its second is the hole's share of the radius (a ring).
    """

    kind: int
    at_m: Triple
    size_m: Triple
    colour: Colour
    accent: Colour = BLACK
    look: int = PLAIN
    pattern: Triple = (1.0, 1.0, 0.0)
    turn_rad: Triple = (0.0, 0.0, 0.0)
    taper: tuple[float | int, float | int] = (0.0, 0.0)
    reflect: float = 0.3


@dataclass(frozen=True, slots=True)
class SceneObject:
    """Synthetic object in the street frame: parts, raw nuScenes label, pose at t = 0, velocity.

    `size_m` is length, width, height of its box, whose bottom is at `z_m`; it moves where it faces.
    `tracked` objects get an instance and annotation boxes.
    """

    parts: tuple[Part, ...]
    label: int
    size_m: Triple
    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    yaw_rad: float = 0.0
    speed_mps: float = 0.0
    tracked: bool = True

    @property
    def leans(self) -> bool:
        """Whether the object tilts with a sloping road.

        Vehicles, cones, barriers; no people.
        """
        return self.tracked and self.label not in PEOPLE

    @property
    def velocity_mps(self) -> Float[np.ndarray, "3"]:
        """Velocity in the street frame [m/s]."""
        return self.speed_mps * np.array([np.cos(self.yaw_rad), np.sin(self.yaw_rad), 0.0])


class Primitives(NamedTuple):
    """Primitives of a whole scene as flat arrays in the street frame, n parts.

    A NamedTuple, because Numba takes one as it is.
    """

    kind: UInt8[np.ndarray, "n"]
    centre_m: Float[np.ndarray, "n 3"]
    velocity_mps: Float[np.ndarray, "n 3"]
    axes: Float[np.ndarray, "n 3 3"]
    half_m: Float[np.ndarray, "n 3"]
    taper: Float[np.ndarray, "n 2"]
    colour: Float[np.ndarray, "n 3"]
    accent: Float[np.ndarray, "n 3"]
    look: UInt8[np.ndarray, "n"]
    pattern: Float[np.ndarray, "n 3"]
    reflect: Float[np.ndarray, "n"]
    label: UInt8[np.ndarray, "n"]
    instance: Int32[np.ndarray, "n"]


class Places(NamedTuple):
    """Poses at t = 0 and velocities of k objects in a street without hills, as arrays.

    `base_m` is the middle of a box's bottom; what `leans` stands at right angles to the road.
    """

    base_m: Float[np.ndarray, "k 3"]
    velocity_mps: Float[np.ndarray, "k 3"]
    yaw_rad: Float[np.ndarray, "k"]
    size_m: Float[np.ndarray, "k 3"]
    leans: Bool[np.ndarray, "k"]
    owner: Int32[np.ndarray, "n"]
    """The object that each part belongs to."""


def rotation(
    yaw_rad: Angles, pitch_rad: Angles = 0.0, roll_rad: Angles = 0.0
) -> Float[np.ndarray, "*n 3 3"]:
    """Rotation matrix Rz(yaw) Ry(pitch) Rx(roll); positive pitch lowers the nose.

    For scalars or equal shapes.
    """
    yaw, pitch, roll = np.broadcast_arrays(
        *(np.asarray(a, dtype=float) for a in (yaw_rad, pitch_rad, roll_rad))
    )
    cy = np.cos(yaw)
    sy = np.sin(yaw)
    cp = np.cos(pitch)
    sp = np.sin(pitch)
    cr = np.cos(roll)
    sr = np.sin(roll)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def pack(objects: Sequence[SceneObject]) -> Primitives:
    """Packs objects into flat arrays of primitives.

    `instance` is the index in `objects` where tracked, else -1.
    """
    owner = np.array([i for i, obj in enumerate(objects) for _ in obj.parts])
    parts = [part for obj in objects for part in obj.parts]
    base = _rows((t.x_m, t.y_m, t.z_m) for t in objects)[owner]
    turned = rotation(_rows(t.yaw_rad for t in objects)[owner])
    instance = np.array([i if t.tracked else -1 for i, t in enumerate(objects)], dtype=np.int32)
    return Primitives(
        kind=np.array([p.kind for p in parts], dtype=np.uint8),
        centre_m=base + np.einsum("nij,nj->ni", turned, _rows(p.at_m for p in parts)),
        velocity_mps=_rows(t.velocity_mps for t in objects)[owner],
        axes=turned @ rotation(*_rows(p.turn_rad for p in parts).T),
        half_m=_rows(p.size_m for p in parts) / 2,
        taper=_rows(p.taper for p in parts),
        colour=_rows(p.colour for p in parts),
        accent=_rows(p.accent for p in parts),
        look=np.array([p.look for p in parts], dtype=np.uint8),
        pattern=_rows(p.pattern for p in parts),
        reflect=_rows(p.reflect for p in parts),
        label=np.array([t.label for t in objects], dtype=np.uint8)[owner],
        instance=instance[owner],
    )


def place(objects: Sequence[SceneObject]) -> Places:
    """Poses and velocities of objects as arrays."""
    owner = np.repeat(np.arange(len(objects), dtype=np.int32), [len(t.parts) for t in objects])
    return Places(
        base_m=_rows((t.x_m, t.y_m, t.z_m) for t in objects),
        velocity_mps=_rows(t.velocity_mps for t in objects),
        yaw_rad=_rows(t.yaw_rad for t in objects),
        size_m=_rows(t.size_m for t in objects),
        leans=np.array([t.leans for t in objects], dtype=np.bool_),
        owner=owner,
    )


def _rows(values: Iterable[object]) -> Float[np.ndarray, "n *d"]:
    return np.array(list(values), dtype=np.float64)


def box(at_m: Triple, size_m: Triple, colour: Colour, **more: Any) -> Part:
    """Box primitive centred at `at_m` with full sides `size_m` [m]."""
    return Part(BOX, at_m, size_m, colour, **more)


def ball(at_m: Triple, size_m: Triple, colour: Colour, **more: Any) -> Part:
    """Ellipsoid primitive centred at `at_m` with full axes `size_m` [m]."""
    return Part(ELLIPSOID, at_m, size_m, colour, **more)


def tube(at_m: Triple, radius_m: float, length_m: float, colour: Colour, **more: Any) -> Part:
    """Cylinder primitive along its own z, centred at `at_m` [m]."""
    return Part(CYLINDER, at_m, (2 * radius_m, 2 * radius_m, length_m), colour, **more)


def rod(start_m: Triple, end_m: Triple, thick_m: float, colour: Colour, **more: Any) -> Part:
    """Square bar primitive from `start_m` to `end_m` [m]."""
    start = np.asarray(start_m, dtype=float)
    end = np.asarray(end_m, dtype=float)
    dx, dy, dz = end - start
    turn = (float(np.arctan2(dy, dx)), -float(np.arctan2(dz, np.hypot(dx, dy))), 0.0)
    length = float(np.linalg.norm(end - start)) + thick_m
    return Part(
        BOX, tuple((start + end) / 2), (length, thick_m, thick_m), colour, turn_rad=turn, **more
    )


def wheels(
    xs_m: Iterable[float], y_m: float, radius_m: float, width_m: float, hub: Colour
) -> list[Part]:
    """Wheel primitives: tyres with hubs at the given x, left and right at +-`y_m` [m]."""
    side = (0.0, 0.0, np.pi / 2)
    return [
        tube(
            (x, y, radius_m),
            radius_m,
            width_m,
            BLACK,
            accent=hub,
            look=WHEEL,
            turn_rad=side,
            reflect=0.06,
        )
        for x in xs_m
        for y in (y_m, -y_m)
    ]

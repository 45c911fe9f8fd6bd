"""Procedural street scenes for synthetic data: layout, traffic, light.

A seed becomes a street scene of primitives over time, its ground, light and ego-motion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.demo import people, scenery, shapes
from clipsweep.pipeline.demo.ground import (
    FLAT,
    KERB_M,
    Ground,
    Hills,
    Side,
    Street,
    draw_hills,
    draw_street,
    lay_ground,
)
from clipsweep.pipeline.demo.parts import (
    BOX,
    BRICK,
    FOLIAGE,
    PLAIN,
    Places,
    Primitives,
    SceneObject,
    box,
    pack,
    place,
    rotation,
)
from clipsweep.pipeline.demo.rig import Drive, draw_drive, pose

Rng = np.random.Generator
SET_M = 85.0
"""Each stretch of street of this length holds one set of everything rare."""


class Light(NamedTuple):
    """Scene lighting: direction towards the sun, strengths, colours, clouds and haze [1/m].

    `tint` is that of the whole image.
    """

    sun: Float[np.ndarray, "3"]
    direct: float
    ambient: float
    tint: Float[np.ndarray, "3"]
    zenith: Float[np.ndarray, "3"]
    horizon: Float[np.ndarray, "3"]
    clouds: float
    haze_per_m: float


@dataclass(frozen=True, eq=False, slots=True)
class World:
    """Synthetic street scene from t = 0 to `duration_s`, in the street frame.

    That frame is x along the street, y left, z up [m]. `prims` and `places` leave the hills out;
    `at` and `boxes` put everything on them.
    """

    key: tuple[int, int]
    duration_s: float
    objects: tuple[SceneObject, ...]
    prims: Primitives
    places: Places
    ground: Ground
    light: Light
    drive: Drive

    def noise(self, *stream: int) -> Rng:
        """Random generator of one sensor reading: same world and `stream`, same numbers."""
        return np.random.default_rng([*self.key, 1, *(number % 2**32 for number in stream)])

    def at(self, time_s: float) -> Primitives:
        """Object primitives at a time, moved and tilted; valid some tenths of a second about it.

        They are given by their places at t = 0 and velocities, as if these had always been the
        same.
        """
        if not self.ground.hills.crest_m:
            return self.prims
        places = self.places
        owner = self.places.owner
        placed = self._street_from_objects(time_s)
        tilt = placed[:, :3, :3] @ rotation(places.yaw_rad).swapaxes(-1, -2)
        offset_m = self.prims.centre_m - places.base_m[owner]
        centre_m = placed[owner, :3, 3] + np.einsum("nij,nj->ni", tilt[owner], offset_m)
        velocity_mps = places.velocity_mps.copy()
        velocity_mps[:, 2] = self.ground.hills.slope(placed[:, 0, 3]) * velocity_mps[:, 0]
        velocity_mps = velocity_mps[owner]
        return self.prims._replace(
            centre_m=centre_m - velocity_mps * time_s,
            velocity_mps=velocity_mps,
            axes=tilt[owner] @ self.prims.axes,
        )

    def boxes(self, time_s: float) -> Float[np.ndarray, "objects 4 4"]:
        """Poses street_from_box of the objects' 3D bounding boxes at a time.

        Their origins are the centres [m].
        """
        placed = self._street_from_objects(time_s)
        placed[:, :3, 3] += placed[:, :3, 2] * self.places.size_m[:, 2:] / 2
        return placed

    def _street_from_objects(self, time_s: float) -> Float[np.ndarray, "objects 4 4"]:
        """Object poses in the street frame; origins are at the middle of the boxes' bottoms [m]."""
        places = self.places
        hills = self.ground.hills
        at_m = places.base_m + places.velocity_mps * time_s
        pitch_rad, roll_rad = hills.tilt_rad(at_m[:, 0], places.yaw_rad)
        leans = places.leans
        turned = rotation(places.yaw_rad, pitch_rad * leans, roll_rad * leans)
        at_m[:, 2] += hills.height_m(at_m[:, 0])
        return pose(turned, at_m)


@dataclass(frozen=True, slots=True)
class _Group:
    """Group of objects around (0, 0), and the length of street that they need [m]."""

    length_m: float
    objects: tuple[SceneObject, ...]


def build_world(seed: int, scene: int, duration_s: float, hills_m: float = 0.0) -> World:
    """Generates a synthetic street scene: another one for each `seed` and number `scene`.

    The same street rises by `hills_m` from its valleys to its crests.
    """
    rng = np.random.default_rng([seed, scene, 0])
    own_rng = np.random.default_rng([seed, scene, 2])
    crowd_rng = np.random.default_rng([seed, scene, 3])
    hills = draw_hills(own_rng, hills_m) if hills_m else FLAT
    drive = draw_drive(rng, 0.0)
    travel_m = drive.speed_mps * duration_s
    street = draw_street(rng, travel_m)
    drive = replace(drive, lane_y_m=-street.lane_y_m(street.lanes - 1), hills=hills)
    near_m = (-14.0, max(travel_m + 30.0, 50.0))
    objects = [
        *_kerbs(rng, street, near_m),
        *_traffic(rng, street, drive),
        *_median(rng, street, near_m),
    ]
    for sign, side in ((-1, street.right), (1, street.left)):
        fixed = _roadside(rng, street, sign, side, near_m)
        parties = people.draw_parties(rng, sign, *_sidewalk_m(street, side), near_m)
        objects += [*fixed, *people.spread(crowd_rng, parties, fixed, duration_s)]
    if hills_m:
        objects = [_with_foot(obj, hills) for obj in objects]
    return World(
        key=(seed, scene),
        duration_s=duration_s,
        objects=tuple(objects),
        prims=pack(objects),
        places=place(objects),
        ground=lay_ground(rng, street, hills),
        light=_draw_light(rng),
        drive=drive,
    )


def _with_foot(obj: SceneObject, hills: Hills) -> SceneObject:
    """Extends a building, wall, hedge or shelter below the ground, so that slopes show no gaps."""
    body = obj.parts[0]
    if obj.tracked or body.kind != BOX:
        return obj
    deep_m = hills.steepest * body.size_m[0] / 2 + 0.1
    size_m = (body.size_m[0], body.size_m[1], deep_m)
    look = body.look if body.look in (BRICK, FOLIAGE) else PLAIN
    foot = box(
        (body.at_m[0], body.at_m[1], -deep_m / 2),
        size_m,
        body.colour,
        look=look,
        pattern=body.pattern,
        reflect=body.reflect,
    )
    return replace(obj, parts=(*obj.parts, foot))


def _draw_light(rng: Rng) -> Light:
    """Draws random lighting: clear noon, overcast, low evening sun or haze, varied."""
    kind = int(rng.integers(4))
    sun_deg = (rng.uniform(45, 65), 60.0, rng.uniform(14, 25), rng.uniform(35, 55))[kind]
    around = rng.uniform(0, 2 * np.pi)
    up = np.deg2rad(sun_deg)
    tints = ((1.0, 1.0, 1.0), (0.95, 0.98, 1.04), (1.10, 0.97, 0.82), (1.02, 1.0, 0.95))
    zeniths = ((0.22, 0.42, 0.78), (0.66, 0.69, 0.73), (0.35, 0.45, 0.68), (0.62, 0.70, 0.78))
    horizons = ((0.70, 0.80, 0.92), (0.78, 0.80, 0.82), (0.95, 0.75, 0.55), (0.82, 0.83, 0.82))
    return Light(
        sun=np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)]),
        direct=float((0.75, 0.12, 0.70, 0.35)[kind]),
        ambient=float((0.52, 0.82, 0.45, 0.66)[kind] * rng.uniform(0.92, 1.08)),
        tint=np.array(tints[kind]) * rng.uniform(0.95, 1.05, 3),
        zenith=np.array(zeniths[kind]),
        horizon=np.array(horizons[kind]),
        clouds=float((rng.uniform(0, 0.7), 0.25, rng.uniform(0, 0.5), 0.1)[kind]),
        haze_per_m=float((0.0012, 0.003, 0.002, 0.008)[kind]),
    )


def _at(
    obj: SceneObject,
    x_m: float,
    y_m: float,
    z_m: float = 0.0,
    yaw_rad: float = 0.0,
    speed_mps: float = 0.0,
) -> SceneObject:
    return replace(obj, x_m=x_m, y_m=y_m, z_m=z_m, yaw_rad=yaw_rad, speed_mps=speed_mps)


def _moved(group: _Group, x_m: float, y_m: float, z_m: float, flip: bool) -> list[SceneObject]:
    """Group of objects moved to a position, turned about if `flip`."""
    sign, turn = (-1, np.pi) if flip else (1, 0.0)
    return [
        replace(
            t, x_m=x_m + sign * t.x_m, y_m=y_m + sign * t.y_m, z_m=z_m, yaw_rad=t.yaw_rad + turn
        )
        for t in group.objects
    ]


def _single(obj: SceneObject) -> _Group:
    return _Group(obj.size_m[0], (obj,))


# --- kerb lanes: parked vehicles, two-wheelers in bays, road works --------------------------------


def _bicycles(rng: Rng) -> _Group:
    bikes = [
        _at(shapes.bicycle(rng), 1.1 * i, rng.uniform(-0.2, 0.2), 0.0, rng.uniform(0.5, 1.2))
        for i in range(3)
    ]
    return _Group(4.0, tuple(replace(b, x_m=b.x_m - 1.1) for b in bikes))


def _motorcycles(rng: Rng) -> _Group:
    bikes = [
        _at(
            shapes.motorcycle(rng),
            1.7 * i - 1.7,
            rng.uniform(-0.2, 0.2),
            0.0,
            rng.uniform(0.4, 1.1),
        )
        for i in range(3)
    ]
    return _Group(6.0, tuple(bikes))


def _road_works(rng: Rng) -> _Group:
    """Road works: a digger behind striped boards, with cones towards the traffic (y > 0)."""
    boards = [
        _at(shapes.barrier(rng, 2), s * 4.6, 0.0, 0.0, np.pi / 2 + rng.uniform(-0.2, 0.2))
        for s in (-1, 1)
    ]
    cones = [
        _at(shapes.cone(rng), x + rng.uniform(-0.2, 0.2), 1.35) for x in np.linspace(-5.0, 5.0, 6)
    ]
    worker = _at(
        shapes.pedestrian(rng, shapes.WORKER),
        rng.uniform(-4.0, -3.6),
        rng.uniform(-0.8, 0.8),
        0.0,
        rng.uniform(0, 6),
    )
    digger = _at(
        shapes.excavator(rng),
        0.3,
        -0.1,
        0.0,
        float(rng.choice([0.0, np.pi])) + rng.uniform(-0.1, 0.1),
    )
    return _Group(11.0, (digger, worker, *boards, *cones))


def _barriers(rng: Rng) -> _Group:
    kind = int(rng.integers(2))
    count = int(rng.integers(3, 6))
    run = [
        _at(shapes.barrier(rng, kind), 2.0 * (i - (count - 1) / 2), rng.uniform(0.3, 0.8))
        for i in range(count)
    ]
    return _Group(2.0 * count, tuple(run))


def _cones(rng: Rng) -> _Group:
    count = int(rng.integers(4, 7))
    row = [_at(shapes.cone(rng), 1.5 * (i - (count - 1) / 2), 1.2 - 0.35 * i) for i in range(count)]
    return _Group(1.5 * count, tuple(row))


def _rare_sets(rng: Rng) -> tuple[list[_Group], list[_Group]]:
    """Rare objects of both kerbs, so that every class occurs on every stretch of road."""
    makers: tuple[Callable[[Rng], _Group], ...] = (
        _bicycles,
        _bicycles,
        _motorcycles,
        _motorcycles,
        _barriers,
        _cones,
        lambda r: _single(shapes.bus(r)),
        lambda r: _single(shapes.truck(r)),
    )
    order = rng.permutation(len(makers))
    right, left = ([makers[i](rng) for i in half] for half in (order[::2], order[1::2]))
    near = (_road_works(rng), _single(shapes.trailer(rng)))
    for i, side in enumerate((right, left) if rng.random() < 0.5 else (left, right)):
        side.insert(int(rng.integers(1, 4)), near[i])
    return right, left


def _kerbs(rng: Rng, street: Street, near_m: tuple[float, float]) -> list[SceneObject]:
    """Fills both parking lanes: rare objects along the drive, cars between and beyond."""
    count = max(1, round((near_m[1] - near_m[0]) / SET_M))
    sets = [_rare_sets(rng) for _ in range(count)]
    out = []
    for side, sign in enumerate((-1, 1)):
        queue = [group for pair in sets for group in pair[side]]
        y = sign * (street.kerb_lane_m + street.parking_m / 2)
        for x, group in _fill(
            rng, _with_cars(rng, queue, near_m), street, (-60.0, near_m[1] + 40.0)
        ):
            out += _moved(group, x, y, 0.0, flip=sign > 0)
    return out


def _with_cars(
    rng: Rng, queue: Sequence[_Group], near_m: tuple[float, float]
) -> Callable[[float], tuple[_Group, float]]:
    """Next group of objects at x and the gap after it, for a parking lane.

    The queue's groups along the drive, cars elsewhere and between.
    """
    waiting = list(queue)

    def following(x_m: float) -> tuple[_Group, float]:
        if waiting and x_m > near_m[0] and rng.random() < 0.8:
            return waiting.pop(0), float(rng.uniform(1.0, 4.0))
        return _single(shapes.car(rng)), float(
            rng.uniform(1.0, 4.0) if near_m[0] < x_m < near_m[1] else rng.uniform(2.0, 24.0)
        )

    return following


def _fill(
    rng: Rng,
    following: Callable[[float], tuple[_Group, float]],
    street: Street,
    span_m: tuple[float, float],
    clear_m: float = 4.6,
) -> Iterator[tuple[float, _Group]]:
    """Places groups one after another along x, keeping `clear_m` away from side streets.

    Yields centres [m].
    """
    x = span_m[0] + float(rng.uniform(0, 2))
    while x < span_m[1]:
        group, gap = following(x)
        start = x + gap
        for crossing in street.crossings:
            if start < crossing[1] + clear_m and start + group.length_m > crossing[0] - clear_m:
                start = crossing[1] + clear_m
        yield start + group.length_m / 2, group
        x = start + group.length_m


# --- moving traffic -------------------------------------------------------------------------------


def _traffic(rng: Rng, street: Street, drive: Drive) -> list[SceneObject]:
    """Draws traffic: a column of vehicles in every lane, one speed to a lane against collisions."""
    out: list[SceneObject] = []
    for direction in (-1, 1):
        for lane in range(street.lanes):
            own = direction < 0 and lane == street.lanes - 1
            speed = drive.speed_mps if own else float(rng.uniform(3.0, 9.0))
            yaw = 0.0 if direction < 0 else np.pi
            starts = (
                (rng.uniform(12, 18), -rng.uniform(12, 18))
                if own
                else (rng.uniform(-6, 12), rng.uniform(-16, -10))
            )
            for start, step in zip(starts, (1, -1), strict=True):
                x = float(start)
                while abs(x) < 75:
                    obj = _vehicle(rng)
                    x += step * obj.size_m[0] / 2
                    out.append(_at(obj, x, direction * street.lane_y_m(lane), 0.0, yaw, speed))
                    x += step * (obj.size_m[0] / 2 + float(rng.uniform(9.0, 34.0)))
    return out


def _vehicle(rng: Rng) -> SceneObject:
    kind = int(rng.choice(5, p=[0.58, 0.06, 0.04, 0.16, 0.16]))
    if kind < 3:
        return (shapes.car, shapes.truck, shapes.bus)[kind](rng)
    return (shapes.motorcycle if kind == 3 else shapes.bicycle)(rng, ridden=True)


# --- median and roadside --------------------------------------------------------------------------


def _median(rng: Rng, street: Street, near_m: tuple[float, float]) -> list[SceneObject]:
    """Objects on the median, if there is one: lamps, bushes, a few barriers and cones."""
    if not street.median_m:
        return []

    def following(_: float) -> tuple[_Group, float]:
        kind = int(rng.integers(4))
        obj = (scenery.street_lamp, scenery.bush, lambda r: shapes.barrier(r, 1), shapes.cone)[
            kind
        ](rng)
        return _single(obj), float(rng.uniform(4.0, 12.0))

    span = (near_m[0] - 30, near_m[1] + 30)
    return [
        t
        for x, g in _fill(rng, following, street, span)
        for t in _moved(g, x, 0.0, KERB_M, flip=False)
    ]


def _roadside(
    rng: Rng, street: Street, sign: int, side: Side, near_m: tuple[float, float]
) -> list[SceneObject]:
    """Objects beyond one kerb (`sign` of y): street furniture, the strip's trees, the lots."""
    kerb = street.edge_m
    inner = street.edge_m + side.sidewalk_m
    outer = inner + side.strip_m
    far = (near_m[0] - 50, near_m[1] + 50)
    rows = (
        (kerb + 0.4, near_m, lambda x: (_single(_furniture(rng)), rng.uniform(5, 13))),
        (inner - 0.5, near_m, lambda x: (_single(_parked_bike(rng)), rng.uniform(7, 20))),
        (inner + 0.5 * side.strip_m, far, lambda x: _green(rng, side)),
        (outer + 0.6, far, lambda x: _boundary(rng, side)),
        (outer + 9.0, far, lambda x: _lot(rng, side)),
    )
    out = []
    for y, span, following in rows:
        for x, group in _fill(rng, following, street, span):
            out += _moved(group, x, sign * y, KERB_M, flip=sign < 0)
    return out


def _sidewalk_m(street: Street, side: Side) -> tuple[float, float]:
    """Sidewalk of a street side: from and to which distance from the street's axis."""
    start_m = street.edge_m + 0.9
    return start_m, max(street.edge_m + side.sidewalk_m - 1.0, start_m + 0.5)


def _furniture(rng: Rng) -> SceneObject:
    kind = int(rng.choice(4, p=[0.35, 0.2, 0.2, 0.25]))
    obj = (scenery.street_lamp, scenery.road_sign, scenery.traffic_light, shapes.cone)[kind](rng)
    return replace(obj, yaw_rad=np.pi * float(rng.integers(2)) if kind else 0.0)


def _parked_bike(rng: Rng) -> SceneObject:
    obj = (shapes.bicycle if rng.random() < 0.65 else shapes.motorcycle)(rng)
    return replace(obj, yaw_rad=float(rng.normal(0, 0.2)))


def _green(rng: Rng, side: Side) -> tuple[_Group, float]:
    obj = (scenery.tree if rng.random() < 0.6 else scenery.bush)(rng)
    return _Group(2.0, (obj,)), float(
        rng.uniform(2.0, 9.0) if side.strip == 27 else rng.uniform(8.0, 20.0)
    )


def _boundary(rng: Rng, side: Side) -> tuple[_Group, float]:
    length = float(rng.uniform(4.0, 10.0))
    if side.lots == "park" or rng.random() < 0.5:
        kind = rng.random()
        if kind < 0.12:
            return _single(scenery.shelter(rng)), float(rng.uniform(2.0, 8.0))
        return _single(scenery.hedge(rng, length)), float(rng.uniform(3.0, 12.0))
    return _single(scenery.wall(rng, length)), float(rng.uniform(0.0, 8.0))


def _lot(rng: Rng, side: Side) -> tuple[_Group, float]:
    if side.lots == "park" or (side.lots == "walls" and rng.random() < 0.5):
        tree = scenery.tree(rng)
        return _Group(4.0, (replace(tree, y_m=float(rng.uniform(-6, 9))),)), float(
            rng.uniform(0.0, 5.0)
        )
    length = float(rng.uniform(10.0, 22.0))
    return _single(scenery.building(rng, length, 13.0)), float(rng.uniform(0.2, 5.0))

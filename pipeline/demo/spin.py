"""LiDAR simulation of a spinning sensor: firing times, range noise, dropouts, intensity."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

from clipsweep.pipeline.demo.ground import TERRAIN
from clipsweep.pipeline.demo.lidar_kernels import EGO, RANGE_M, Turn, cast_car, cast_turn, fill_bins
from clipsweep.pipeline.demo.parts import BLACK, SceneObject, box, pack
from clipsweep.pipeline.demo.ray_kernels import Lists
from clipsweep.pipeline.demo.rig import SPIN_S, RigLidar, inverse
from clipsweep.pipeline.demo.scenery import VEGETATION
from clipsweep.pipeline.demo.world import World

NOISE_M = 0.02
"""Standard deviation of the range on hard surfaces [m]."""
_TOP_SPEED_MPS = 20.0
_STEEPEST_RAY = 0.6
"""Tangent of the greatest elevation of a ray.

By so much of a slope its azimuth leaves its column's.
"""
_CAR = pack(
    [
        SceneObject(
            (
                box((0.75, 0.0, 1.05), (2.6, 1.62, 0.85), BLACK, taper=(0.12, 0.12)),
                box((1.35, 0.0, 0.62), (4.5, 1.8, 0.7), BLACK),
            ),
            label=EGO,
            size_m=(4.5, 1.8, 1.5),
        )
    ]
)
"""The car's own body in its own frame: the lowest rings look at its roof and bonnet."""


@dataclass(frozen=True, eq=False, slots=True)
class Scan:
    """Simulated LiDAR sweep: returns of one turn in firing order, motion compensated.

    Points lie in the LiDAR frame at the sweep's stamp. `intensity` is 0..255, `label` raw nuScenes,
    `instance` an index into the world's objects (-1: untracked).
    """

    xyz_m: Float32[np.ndarray, "n 3"]
    intensity: Float32[np.ndarray, "n"]
    ring: UInt8[np.ndarray, "n"]
    label: UInt8[np.ndarray, "n"]
    instance: Int32[np.ndarray, "n"]


@dataclass(frozen=True, eq=False, slots=True)
class Hits:
    """First hits of all LiDAR rays of a turn, without noise: columns, rings.

    `range_m` is inf where there is none, `part` -1 for ground and the car itself; `cosine` is that
    of the incidence.
    """

    range_m: Float[np.ndarray, "c r"]
    part: Int32[np.ndarray, "c r"]
    label: UInt8[np.ndarray, "c r"]
    cosine: Float[np.ndarray, "c r"]
    reflect: Float[np.ndarray, "c r"]


def scan(world: World, lidar: RigLidar, time_s: float) -> Scan:
    """Simulates the LiDAR sweep stamped `time_s`, whose columns fired during the turn before."""
    fired_s = time_s + lidar.delay_s
    street_from_lidar = world.drive.street_from_ego(fired_s) @ lidar.ego_from_lidar
    hits = _cast(world, lidar, street_from_lidar, fired_s)
    rng = world.noise(1, round(time_s * 1e6))
    seen = _detected(rng, hits)
    measured_m = (hits.range_m + _error_m(rng, hits))[seen]
    column, ring = np.nonzero(seen)
    stamp_from_fired = (
        inverse(world.drive.street_from_ego(time_s) @ lidar.ego_from_lidar) @ street_from_lidar
    )
    turned = stamp_from_fired[column, :3, :3]
    moved = stamp_from_fired[column, :3, 3]
    xyz_m = np.einsum("nij,nj->ni", turned, lidar.ray[column, ring] * measured_m[:, None]) + moved
    part = hits.part[seen]
    return Scan(
        xyz_m=xyz_m.astype(np.float32),
        intensity=_intensity(rng, hits)[seen],
        ring=ring.astype(np.uint8),
        label=hits.label[seen],
        instance=np.where(part >= 0, world.prims.instance[part], -1).astype(np.int32),
    )


def _cast(
    world: World,
    lidar: RigLidar,
    street_from_lidar: Float[np.ndarray, "c 4 4"],
    fired_s: Float[np.ndarray, "c"],
) -> Hits:
    shape = lidar.ray.shape[:2]
    ego_m = np.empty(shape)
    rays_in_ego = np.ascontiguousarray(lidar.ray @ lidar.ego_from_lidar[:3, :3].T)
    cast_car(_CAR, lidar.ego_from_lidar[:3, 3].copy(), rays_in_ego, ego_m)
    origins = street_from_lidar[:, :3, 3].copy()
    turned = street_from_lidar[:, :3, :3].copy()
    turn = Turn(origins, turned, fired_s, lidar.ray, ego_m)
    prims = world.at(float(fired_s.mean()))
    slack_rad = 0.02 + _STEEPEST_RAY * world.ground.hills.steepest
    reach_m = SPIN_S * _TOP_SPEED_MPS
    lists = Lists(*fill_bins(prims, origins[-1].copy(), float(fired_s[-1]), reach_m, slack_rad))
    part = np.empty(shape, np.int32)
    label = np.empty(shape, np.uint8)
    scratch = np.empty((len(prims.kind), 3))
    hits = Hits(np.empty(shape), part, label, np.empty(shape), np.empty(shape))
    out = (hits.range_m, hits.part, hits.label, hits.cosine, hits.reflect)
    cast_turn(prims, world.ground, turn, lists, scratch, *out)
    return hits


def _detected(rng: np.random.Generator, hits: Hits) -> Bool[np.ndarray, "c r"]:
    """LiDAR dropouts: rays that return, fewer where the surface is dark, slanting and far.

    1.5 % fail anywhere.
    """
    lost = rng.random(hits.range_m.shape)
    strength = hits.reflect * (0.2 + 0.8 * hits.cosine)
    miss = 0.015 + 0.9 * np.clip(hits.range_m / RANGE_M, 0, 1) ** 2 * np.exp(-strength / 0.06)
    return np.isfinite(hits.range_m) & (lost > miss)


def _error_m(rng: np.random.Generator, hits: Hits) -> Float[np.ndarray, "c r"]:
    """LiDAR range noise: Gaussian, wider on grass [m].

    Rays also enter foliage a little before they return.
    """
    soft = rng.exponential(0.10, hits.range_m.shape).clip(0, 0.5) * (hits.label == VEGETATION)
    rough = 1.0 + 0.8 * (hits.label == TERRAIN)
    return rng.normal(0.0, NOISE_M, hits.range_m.shape) * rough + soft


def _intensity(rng: np.random.Generator, hits: Hits) -> Float32[np.ndarray, "c r"]:
    """LiDAR intensity of the returns, 0..255, whole numbers as the sensor gives them.

    Only plates and stripes saturate.
    """
    shine = (
        hits.reflect * (0.35 + 0.65 * hits.cosine) * rng.lognormal(0.0, 0.25, hits.range_m.shape)
    )
    return (
        np.clip(np.where(hits.reflect > 0.84, 255.0, 110.0) * shine, 0, 255)
        .round()
        .astype(np.float32)
    )

"""Renders the demo's camera images: colour, label, instance and depth of every pixel."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from clipsweep.pipeline.demo.camera_kernels import (
    SHADE_STEP_M,
    Eye,
    Stage,
    cast_pixels,
    cast_shadows,
    fill_tiles,
    near_to_far,
)
from clipsweep.pipeline.demo.ray_kernels import Lists
from clipsweep.pipeline.demo.rig import RigCamera
from clipsweep.pipeline.demo.world import World

SKY = 0
GRAIN = 0.012
"""Standard deviation of the pixel noise, as a share of white."""
_SHADE_REACH_M = 45.0


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """Rendered camera image: colour, label, instance and depth of each pixel.

    `label` holds raw nuScenes labels (0: sky), `instance` indices into the world's objects (-1:
    untracked), `depth_m` the depth along the optical axis at the pixel's centre (inf: sky).
    """

    colour: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    instance: Int32[np.ndarray, "h w"]
    depth_m: Float32[np.ndarray, "h w"]


def render(world: World, camera: RigCamera, time_s: float) -> View:
    """Renders a camera's image at `time_s`, from where the car is then."""
    h, w = camera.size_hw
    street_from_cam = world.drive.street_from_ego(time_s) @ camera.ego_from_cam
    eye = Eye(street_from_cam[:3, 3].copy(), street_from_cam[:3, :3].copy(), camera.K)
    stage = _stage(world, time_s, eye)
    order, near = near_to_far(stage.prims, stage.centre, eye.origin)
    starts, items = fill_tiles(stage.prims, stage.centre, order, eye, h, w)
    lists = Lists(starts, items, near)
    rng = world.noise(2, round(time_s * 1e6))
    grain = rng.standard_normal((h, w), dtype=np.float32) * np.float32(GRAIN)
    colour = np.empty((h, w, 3), np.uint8)
    label = np.empty((h, w), np.uint8)
    instance = np.empty((h, w), np.int32)
    depth_m = np.empty((h, w), np.float32)
    cast_pixels(stage, world.light, eye, lists, grain, colour, label, instance, depth_m)
    return View(colour, label, instance, depth_m)


def _stage(world: World, time_s: float, eye: Eye) -> Stage:
    """Scene at `time_s` for rendering, with a shadow map about the camera if the sun is strong."""
    n = round(2 * _SHADE_REACH_M / SHADE_STEP_M)
    prims = world.at(time_s)
    corner = eye.origin[:2] - _SHADE_REACH_M
    centre = prims.centre_m + prims.velocity_mps * time_s
    high_m = np.asarray(
        world.ground.hills.height_m(corner[0] + SHADE_STEP_M * (np.arange(n) + 0.5))
    )
    stage = Stage(prims, centre, world.ground, np.zeros((n, n), np.bool_), corner, high_m)
    if world.light.direct > 0.2:
        cast_shadows(stage, world.light.sun)
    return stage

"""Writes the synthetic data set as a nuScenes data root: tables, images, sweeps, labels."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image

from clipsweep.pipeline.artifacts.store import write_folder
from clipsweep.pipeline.config import DemoConfig
from clipsweep.pipeline.demo.lidar_kernels import count_in_boxes
from clipsweep.pipeline.demo.render import render
from clipsweep.pipeline.demo.rig import (
    SPIN_S,
    FlatPoses,
    RigCamera,
    RigLidar,
    cameras,
    draw_flat_poses,
    inverse,
    lidar,
)
from clipsweep.pipeline.demo.spin import scan
from clipsweep.pipeline.demo.tables import (
    Seen,
    Shot,
    Tables,
    add_fixed,
    add_instance,
    add_sample_data,
    add_scene,
    log_name,
    token,
)
from clipsweep.pipeline.demo.world import World, build_world
from clipsweep.pipeline.settings import validated
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

MINI_TRAIN = (
    "scene-0061",
    "scene-0553",
    "scene-0655",
    "scene-0757",
    "scene-0796",
    "scene-1077",
    "scene-1094",
    "scene-1100",
)
MINI_VAL = ("scene-0103", "scene-0916")
SWEEPS_PER_KEY = 10
JPEG_QUALITY = 90
FIRST_US = 1_533_100_000_000_000
VAL_SEED = 10_000
"""Worlds of validation scenes are numbered from here, so that they do not change with the number
of training scenes.
"""


@dataclass(frozen=True, eq=False, slots=True)
class _Plan:
    """Scene to be written: its world, sensors, and the times of its key frames [us]."""

    name: str
    world: World
    cameras: Sequence[RigCamera]
    lidar: RigLidar
    start_us: int
    sweeps_us: Sequence[int]
    root: Path
    version: str
    flat_poses: FlatPoses | None

    @property
    def samples_us(self) -> Sequence[int]:
        return self.sweeps_us[::SWEEPS_PER_KEY]

    def global_from_ego(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        """True ego pose of the car."""
        return self.world.drive.global_from_street @ self.world.drive.street_from_ego(
            self.seconds(time_us)
        )

    def written_pose(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        """Ego pose as written to the tables, with errors."""
        true = self.global_from_ego(time_us)
        return self.flat_poses.written(true, self.seconds(time_us)) if self.flat_poses else true

    def written_from_street(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        """Transform from the street frame to where the written ego pose puts it.

        Moves what the car sees at a time to where the written pose makes it lie.
        """
        if not self.flat_poses:
            return self.world.drive.global_from_street
        ego_from_street = inverse(self.world.drive.street_from_ego(self.seconds(time_us)))
        return self.written_pose(time_us) @ ego_from_street

    def fired_us(self, camera: RigCamera, sample_us: int) -> int:
        return sample_us + round(camera.delay_s * 1e6)

    def seconds(self, time_us: int) -> float:
        return (time_us - self.start_us) * 1e-6


def write_demo(config: DemoConfig, out: Path) -> None:
    """Writes the demo data set as a nuScenes data root; `out` appears whole or not at all.

    Raises:
        BadInput: a setting is out of its bounds, or `out` is already there.
    """
    write_root(config, out, lambda root: _write_nuscenes(config, root))


def write_root(config: DemoConfig, out: Path, write: Callable[[Path], None]) -> None:
    """Writes a data root atomically: checks the settings, lets `write` fill a folder, renames it.

    Raises:
        BadInput: a setting is out of its bounds, or `out` is already there.
    """
    _check(config)
    write_folder(out, write)


def split_names(train_scenes: int, val_scenes: int) -> tuple[str, Sequence[str], Sequence[str]]:
    """Official nuScenes version and scene names for so many train and val scenes.

    The smallest version that has them.
    """
    if train_scenes <= len(MINI_TRAIN) and val_scenes <= len(MINI_VAL):
        return "v1.0-mini", MINI_TRAIN[:train_scenes], MINI_VAL[:val_scenes]
    from nuscenes.utils import splits  # slow to import, and mini needs no more than ten names

    if train_scenes > len(splits.train) or val_scenes > len(splits.val):
        most = f"{len(splits.train)} and {len(splits.val)}"
        raise BadInput(
            "train_scenes, val_scenes",
            f"{train_scenes}, {val_scenes}: nuScenes has names for {most}",
        )
    return "v1.0-trainval", splits.train[:train_scenes], splits.val[:val_scenes]


def _check(config: DemoConfig) -> None:
    validated(DemoConfig, asdict(config), "demo.")
    if not config.train_scenes + config.val_scenes:
        raise BadInput("train_scenes, val_scenes", "are both 0", "there must be a scene")


def true_pixels(config: DemoConfig, scene: str) -> dict[tuple[str, int], UInt8[np.ndarray, "h w"]]:
    """Ground-truth segmentation of a scene's images: raw nuScenes label of each pixel.

    0 is sky.

    By camera and time [us], rendered again.

    Raises:
        BadInput: the demo has no such scene.
    """
    plan = next(_plans(config, Path(), scene), None)
    if plan is None:
        raise BadInput(
            scene, "is no scene of the demo", "see demo.train_scenes and demo.val_scenes"
        )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        shots = [
            (camera, plan.fired_us(camera, sample))
            for camera in plan.cameras
            for sample in plan.samples_us
        ]
        views = pool.map(lambda shot: render(plan.world, shot[0], plan.seconds(shot[1])), shots)
        return {
            (camera.channel, time_us): view.label
            for (camera, time_us), view in zip(shots, views, strict=True)
        }


def _write_nuscenes(config: DemoConfig, root: Path) -> None:
    rig = cameras(config.width_px, config.height_px)
    spinner = lidar(config.beams, config.azimuths)
    tables = Tables()
    version = split_names(config.train_scenes, config.val_scenes)[0]
    for folder in (version, "maps", f"lidarseg/{version}", *(f"samples/{c.channel}" for c in rig)):
        (root / folder).mkdir(parents=True)
    for kind in ("samples", "sweeps"):
        (root / kind / "LIDAR_TOP").mkdir(parents=True)
    # the devkit wants a file; the demo has no map layer
    Image.new("L", (8, 8)).save(root / "maps/demo.png")
    add_fixed(tables, rig, spinner)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for plan in _plans(config, root):
            _write_scene(plan, tables, pool)
    tables.save(root / version)


def _plans(config: DemoConfig, root: Path, only: str = "") -> Iterator[_Plan]:
    """Plans of all scenes to be written, or of one alone."""
    rig = cameras(config.width_px, config.height_px)
    spinner = lidar(config.beams, config.azimuths)
    version, train, val = split_names(config.train_scenes, config.val_scenes)
    for number, (index, name) in enumerate([*enumerate(train), *enumerate(val, VAL_SEED)]):
        if only in ("", name):
            duration_s = (config.key_frames - 1) * SWEEPS_PER_KEY * SPIN_S
            world = build_world(config.seed, index, duration_s, config.hills_m)
            start_us = FIRST_US + number * 100_000_000
            stamps_us = _stamps(world, start_us, config.key_frames)
            flat = draw_flat_poses(world.noise(3)) if config.flat_poses else None
            yield _Plan(name, world, rig, spinner, start_us, stamps_us, root, version, flat)


def _stamps(world: World, start_us: int, key_frames: int) -> list[int]:
    """Timestamps of all sweeps [us]: 20 Hz with a jitter of up to 0.3 ms."""
    count = (key_frames - 1) * SWEEPS_PER_KEY + 1
    jitter = world.noise(0).integers(-300, 301, count)
    return [start_us + round(i * SPIN_S * 1e6) + int(j) for i, j in enumerate(jitter)]


def _write_scene(plan: _Plan, tables: Tables, pool: ThreadPoolExecutor) -> None:
    add_scene(tables, plan.name, plan.samples_us, "2018-08-01")
    for camera in plan.cameras:
        shots = list(
            pool.map(lambda i, c=camera: _take_picture(plan, c, i), range(len(plan.samples_us)))
        )
        add_sample_data(tables, plan.name, camera.channel, shots, camera.size_hw, plan.samples_us)
    swept = list(pool.map(lambda i: _take_sweep(plan, i), range(len(plan.sweeps_us))))
    keys = add_sample_data(
        tables, plan.name, "LIDAR_TOP", [s.shot for s in swept], (0, 0), plan.samples_us
    )
    for key, sweep in zip(keys, swept, strict=True):
        if sweep.shot.key:
            tables.add("lidarseg", key, sample_data_token=key, filename=_labels_file(plan, key))
    counts = np.array([s.counts for s in swept if s.shot.key])
    boxes = np.array([_boxes(plan, time_us) for time_us in plan.samples_us])
    for index, obj in enumerate(plan.world.objects):
        held = counts[:, index] * obj.tracked
        seen = [Seen(int(i), boxes[i, index], int(held[i])) for i in np.flatnonzero(held)]
        if seen:
            add_instance(tables, plan.name, index, obj, seen, plan.samples_us)


def _take_picture(plan: _Plan, camera: RigCamera, sample: int) -> Shot:
    time_us = plan.fired_us(camera, plan.samples_us[sample])
    file = f"samples/{camera.channel}/{log_name(plan.name)}__{camera.channel}__{time_us}.jpg"
    view = render(plan.world, camera, plan.seconds(time_us))
    Image.fromarray(view.colour).save(plan.root / file, quality=JPEG_QUALITY)
    return Shot(time_us, plan.written_pose(time_us), file, sample, key=True)


@dataclass(frozen=True, eq=False, slots=True)
class _Swept:
    """Written sweep, and the number of points in each object's 3D box (key frames only)."""

    shot: Shot
    counts: Int64[np.ndarray, "objects"] | None


def _take_sweep(plan: _Plan, i: int) -> _Swept:
    time_us = plan.sweeps_us[i]
    key = i % SWEEPS_PER_KEY == 0
    kind = "samples" if key else "sweeps"
    time_s = plan.seconds(time_us)
    file = f"{kind}/LIDAR_TOP/{log_name(plan.name)}__LIDAR_TOP__{time_us}.pcd.bin"
    result = scan(plan.world, plan.lidar, time_s)
    rows = np.column_stack([result.xyz_m, result.intensity, result.ring.astype(np.float32)])
    rows.astype("<f4").tofile(plan.root / file)
    counts = None
    if key:
        result.label.tofile(
            plan.root / _labels_file(plan, token("sample_data", plan.name, "LIDAR_TOP", time_us))
        )
        counts = _count(plan, result.xyz_m, time_s)
    return _Swept(
        Shot(time_us, plan.written_pose(time_us), file, -(-i // SWEEPS_PER_KEY), key), counts
    )


def _labels_file(plan: _Plan, key: str) -> str:
    return f"lidarseg/{plan.version}/{key}_lidarseg.bin"


def _boxes(plan: _Plan, time_us: int) -> Float[np.ndarray, "objects 4 4"]:
    """Poses of the objects' 3D boxes at a key frame, in the frame of the written ego pose."""
    return plan.written_from_street(time_us) @ plan.world.boxes(plan.seconds(time_us))


def _count(
    plan: _Plan, xyz_m: Float32[np.ndarray, "n 3"], time_s: float
) -> Int64[np.ndarray, "objects"]:
    """Points of a sweep in each object's 3D box at the sweep's time."""
    street_from_lidar = plan.world.drive.street_from_ego(time_s) @ plan.lidar.ego_from_lidar
    xyz = Pose(street_from_lidar[:3, :3], street_from_lidar[:3, 3]).apply(xyz_m)
    return count_in_boxes(xyz, plan.world.boxes(time_s), plan.world.places.size_m / 2)

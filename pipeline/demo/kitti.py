"""Writes the synthetic data set in SemanticKITTI's layout: 64 beams and one camera ahead."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt32
from PIL import Image

from clipsweep.pipeline.config import DemoConfig
from clipsweep.pipeline.datasets.semantickitti import SPLITS
from clipsweep.pipeline.demo.lidar_kernels import EGO
from clipsweep.pipeline.demo.parts import rotation
from clipsweep.pipeline.demo.render import render
from clipsweep.pipeline.demo.rig import LEVEL, SPIN_S, RigCamera, RigLidar, inverse, pose
from clipsweep.pipeline.demo.spin import Scan, scan
from clipsweep.pipeline.demo.world import World, build_world
from clipsweep.pipeline.demo.write import VAL_SEED, write_root
from clipsweep.projection.errors import BadInput

SCAN_S = 0.1
"""From scan to scan; a turn itself takes no longer than on the other rig."""
CAMERA = "image_2"
_RIGHT_M = (0.0, 0.54, -0.06, 0.48)  # places of cameras 0 to 3, along camera 0's x axis
_IDS = {
    17: (10, 252), 14: (11, 253), 21: (15, 255), 23: (18, 258), 15: (13, 257), 16: (13, 257),
    18: (20, 259),
    22: (20, 259), **dict.fromkeys((2, 3, 4, 6), (30, 254)),
}  # fmt: skip
_STUFF_IDS = {24: 40, 25: 49, 26: 48, 27: 72, 28: 50, 30: 70, 9: 51, 12: 99}


def _table(column: int) -> UInt32[np.ndarray, "32"]:
    ids = {**_STUFF_IDS, **{raw: pair[column] for raw, pair in _IDS.items()}}
    return np.array([ids.get(raw, 0) for raw in range(32)], np.uint32)


_STANDING_ID = _table(0)
_MOVING_ID = _table(1)


@dataclass(frozen=True, eq=False, slots=True)
class _Rig:
    """SemanticKITTI sensor rig; all times are those of the images, when the LiDAR faces ahead."""

    camera: RigCamera
    ego_from_first: Float[np.ndarray, "4 4"]
    lidar: RigLidar


def write_kitti_demo(config: DemoConfig, out: Path) -> None:
    """Writes the demo data set in SemanticKITTI's layout; `out` appears whole or not at all.

    The streets are those of the nuScenes demo's kind, other ones by length of the drive. Manmade
    objects are buildings (50), barriers fences (51), cones other objects (99); what moves has the
    ids of moving objects, ridden bicycles and motorcycles those of their riders. Instances of
    objects stand in the upper 16 bits. Returns of the car are left out.

    Raises:
        BadInput: a setting is out of its bounds, there are more scenes than official sequences, or
            `out` is there; or poses shall be flat.
    """
    if config.flat_poses:
        raise BadInput(
            "flat_poses", "is true", "poses of SemanticKITTI follow the hills; set it to false"
        )
    train = SPLITS["train"][: config.train_scenes]
    val = SPLITS["val"][: config.val_scenes]
    if (len(train), len(val)) != (config.train_scenes, config.val_scenes):
        most = f"SemanticKITTI has {len(SPLITS['train'])} and {len(SPLITS['val'])} sequences"
        raise BadInput(
            "train_scenes, val_scenes", f"are {config.train_scenes}, {config.val_scenes}", most
        )
    scenes = [*enumerate(train), *enumerate(val, VAL_SEED)]

    def write(root: Path) -> None:
        rig = _rig(config)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for number, name in scenes:
                duration_s = (config.key_frames - 1) * SCAN_S
                world = build_world(config.seed, number, duration_s, config.hills_m)
                _write_sequence(world, rig, root / "sequences" / name, config.key_frames, pool)

    write_root(config, out, write)


def _rig(config: DemoConfig) -> _Rig:
    """SemanticKITTI's sensor extrinsics: camera 2 looks ahead, the LiDAR is behind it on the roof.

    The LiDAR's frame is x ahead, y left, z up.
    """
    ego_from_first = pose(rotation(-0.003, 0.012, 0.004) @ LEVEL, np.array([1.03, 0.0, 1.65]))
    right_m = np.array([_RIGHT_M[int(CAMERA[-1])], 0.0, 0.0])
    f_px = 0.58 * config.width_px
    size_hw = (config.height_px, config.width_px)
    K = np.array([[f_px, 0.0, 0.49 * size_hw[1]], [0.0, f_px, 0.49 * size_hw[0]], [0.0, 0.0, 1.0]])
    camera = RigCamera(CAMERA, ego_from_first @ pose(np.eye(3), right_m), K, size_hw, 0.0)
    share = (np.arange(config.azimuths) + 0.5) / config.azimuths
    around, up = np.meshgrid(
        np.pi * (1 - 2 * share), np.deg2rad(np.linspace(-24.8, 2.0, config.beams)), indexing="ij"
    )
    ray = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1)
    ego_from_lidar = pose(rotation(0.004, 0.006, -0.003), np.array([0.76, 0.0, 1.73]))
    return _Rig(camera, ego_from_first, RigLidar(ego_from_lidar, ray, SPIN_S * (share - 0.5)))


def _write_sequence(
    world: World, rig: _Rig, folder: Path, scans: int, pool: ThreadPoolExecutor
) -> None:
    for part in ("velodyne", "labels", rig.camera.channel):
        (folder / part).mkdir(parents=True)
    times_s = SCAN_S * np.arange(scans)
    list(pool.map(lambda i: _take(world, rig, folder, i, float(times_s[i])), range(scans)))
    global_from_first = [world.drive.street_from_ego(t) @ rig.ego_from_first for t in times_s]
    start = inverse(global_from_first[0])
    (folder / "poses.txt").write_text(_lines([start @ placed for placed in global_from_first]))
    (folder / "times.txt").write_text("".join(f"{t:e}\n" for t in times_s))
    matrices = [
        rig.camera.K @ np.column_stack([np.eye(3), [-right_m, 0.0, 0.0]]) for right_m in _RIGHT_M
    ]
    first_from_lidar = inverse(rig.ego_from_first) @ rig.lidar.ego_from_lidar
    rows = zip(("P0", "P1", "P2", "P3", "Tr"), [*matrices, first_from_lidar], strict=True)
    (folder / "calib.txt").write_text(
        "".join(f"{name}: {_lines([matrix])}" for name, matrix in rows)
    )


def _lines(matrices: Sequence[Float[np.ndarray, "rows 4"]]) -> str:
    """Formats 3x4 matrices as calibration and pose files do: twelve numbers a line."""
    return "".join(
        " ".join(f"{number:.12e}" for number in matrix[:3].ravel()) + "\n" for matrix in matrices
    )


def _take(world: World, rig: _Rig, folder: Path, i: int, time_s: float) -> None:
    """Simulates and writes one camera image and one labelled LiDAR scan."""
    Image.fromarray(render(world, rig.camera, time_s).colour).save(
        folder / rig.camera.channel / f"{i:06d}.png"
    )
    taken = scan(world, rig.lidar, time_s)
    rows = np.column_stack([taken.xyz_m, taken.intensity / np.float32(255)])
    seen = taken.label != EGO
    rows[seen].astype("<f4").tofile(folder / "velodyne" / f"{i:06d}.bin")
    _ids(world, taken)[seen].astype("<u4").tofile(folder / "labels" / f"{i:06d}.label")


def _ids(world: World, taken: Scan) -> UInt32[np.ndarray, "n"]:
    """SemanticKITTI's raw label ids of the returns, instance ids in the upper bits."""
    # the last is of all that is untracked
    speed_mps = np.array([*(obj.speed_mps for obj in world.objects), 0.0])
    ids = np.where(
        speed_mps[taken.instance] > 0, _MOVING_ID[taken.label], _STANDING_ID[taken.label]
    )
    return ids | ((taken.instance + 1).astype(np.uint32) << np.uint32(16))

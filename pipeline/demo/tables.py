"""Writes nuScenes tables of the synthetic data set: records with tokens hashed by md5."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.demo.parts import SceneObject
from clipsweep.pipeline.demo.rig import RigCamera, RigLidar

CATEGORIES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
"""nuScenes-lidarseg's raw classes; the position is the raw label."""

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
NAMES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "lidarseg",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
VEHICLE = "demo"

Record = dict[str, Any]


def token(*parts: object) -> str:
    """Deterministic nuScenes token: depends on the words given and nothing else."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class Tables:
    """nuScenes tables in memory: all records by table name.

    `add` fills them scene by scene, `save` writes one JSON file each.
    """

    records: dict[str, list[Record]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def add(self, table: str, key: str, **fields: Any) -> str:
        """Appends a record with token `key` to a table; returns the token."""
        self.records[table].append({"token": key, **fields})
        return key

    def save(self, folder: Path) -> None:
        """Writes `<table>.json` of every table into `folder`."""
        for name, rows in self.records.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n")


def quaternion(turned: Float[np.ndarray, "3 3"]) -> list[float]:
    """Quaternion (w, x, y, z) with w >= 0 from a rotation matrix, by Shepperd's method.

    Computed from the largest of the four.
    """
    t = np.trace(turned)
    squares = np.array([t, *(2 * np.diag(turned) - t)])  # 4 w^2 - 1, 4 x^2 - 1, ...
    k = int(np.argmax(squares))
    big = np.sqrt(1 + squares[k]) / 2
    skew = np.array(
        [turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]]
    ) / (4 * big)
    if k == 0:
        q = np.array([big, *skew])
    else:
        q = np.array([skew[k - 1], *((turned[k - 1] + turned[:, k - 1]) / (4 * big))])
        q[k] = big
    return [float(v) for v in (q if q[0] >= 0 else -q)]


def placed(transform: Float[np.ndarray, "4 4"]) -> Record:
    """Rigid transform in nuScenes' format: translation [m] and rotation w, x, y, z."""
    return {
        "translation": [float(v) for v in transform[:3, 3]],
        "rotation": quaternion(transform[:3, :3]),
    }


def add_fixed(tables: Tables, cameras: Sequence[RigCamera], lidar: RigLidar) -> None:
    """Adds records that all scenes share: categories, attributes, visibility, calibration."""
    for index, name in enumerate(CATEGORIES):
        tables.add("category", token("category", name), name=name, description="", index=index)
    for name in ATTRIBUTES:
        tables.add("attribute", token("attribute", name), name=name, description="")
    for level, span in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), 1):
        tables.add(
            "visibility",
            str(level),
            level=span,
            description=f"visibility of the whole object is {span[1:]} %",
        )
    mounts: list[tuple[str, str, Float[np.ndarray, "4 4"], list[list[float]]]] = [
        ("LIDAR_TOP", "lidar", lidar.ego_from_lidar, [])
    ]
    mounts += [(c.channel, "camera", c.ego_from_cam, c.K.tolist()) for c in cameras]
    for channel, modality, ego_from_sensor, K in mounts:
        sensor = tables.add("sensor", token("sensor", channel), channel=channel, modality=modality)
        key = token("calibrated_sensor", channel)
        tables.add(
            "calibrated_sensor",
            key,
            sensor_token=sensor,
            **placed(ego_from_sensor),
            camera_intrinsic=K,
        )


def add_scene(tables: Tables, name: str, samples: Sequence[int], date: str) -> None:
    """Adds a scene with its log and its samples (key frames) at the given times [us]."""
    log = tables.add(
        "log",
        token("log", name),
        logfile=log_name(name),
        vehicle=VEHICLE,
        date_captured=date,
        location="demo-town",
    )
    tables.add(
        "map",
        token("map", name),
        log_tokens=[log],
        category="semantic_prior",
        filename="maps/demo.png",
    )
    keys = [token("sample", name, us) for us in samples]
    scene = tables.add(
        "scene",
        token("scene", name),
        log_token=log,
        nbr_samples=len(keys),
        first_sample_token=keys[0],
        last_sample_token=keys[-1],
        name=name,
        description="a street of the embedded demo",
    )
    for i, (key, us) in enumerate(zip(keys, samples, strict=True)):
        tables.add("sample", key, timestamp=us, scene_token=scene, **_links(keys, i))


def add_sample_data(
    tables: Tables,
    name: str,
    channel: str,
    shots: Sequence["Shot"],
    size_hw: tuple[int, int],
    samples: Sequence[int],
) -> list[str]:
    """Adds the sample_data of one sensor in time order, each reading linked to the next.

    Each belongs to the sample at or next after it.
    """
    keys = [token("sample_data", name, channel, shot.time_us) for shot in shots]
    for i, (key, shot) in enumerate(zip(keys, shots, strict=True)):
        tables.add("ego_pose", key, timestamp=shot.time_us, **placed(shot.global_from_ego))
        tables.add(
            "sample_data",
            key,
            sample_token=token("sample", name, samples[shot.sample]),
            ego_pose_token=key,
            calibrated_sensor_token=token("calibrated_sensor", channel),
            timestamp=shot.time_us,
            fileformat="pcd" if channel == "LIDAR_TOP" else "jpg",
            is_key_frame=shot.key,
            height=size_hw[0],
            width=size_hw[1],
            filename=shot.file,
            **_links(keys, i),
        )
    return keys


@dataclass(frozen=True, eq=False, slots=True)
class Shot:
    """Sensor reading: time, ego pose, file below the root, index of its sample."""

    time_us: int
    global_from_ego: Float[np.ndarray, "4 4"]
    file: str
    sample: int
    key: bool


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """Annotated box at a key frame: pose, index of its sample, number of LiDAR points inside."""

    sample: int
    global_from_box: Float[np.ndarray, "4 4"]
    points: int


def add_instance(
    tables: Tables,
    name: str,
    index: int,
    obj: SceneObject,
    seen: Sequence[Seen],
    samples: Sequence[int],
) -> None:
    """Adds the annotations of one object over the key frames in which the LiDAR hit it.

    `visibility` is a bin of the number of points in the box (1: below 5, 2: below 20, 3: below 60,
    4: more).
    """
    keys = [token("annotation", name, index, box.sample) for box in seen]
    instance = tables.add(
        "instance",
        token("instance", name, index),
        category_token=token("category", CATEGORIES[obj.label]),
        nbr_annotations=len(keys),
        first_annotation_token=keys[0],
        last_annotation_token=keys[-1],
    )
    length, width, height = (float(v) for v in obj.size_m)
    attribute = _attribute(obj)
    for i, (key, box) in enumerate(zip(keys, seen, strict=True)):
        tables.add(
            "sample_annotation",
            key,
            sample_token=token("sample", name, samples[box.sample]),
            instance_token=instance,
            visibility_token=str(1 + sum(box.points >= n for n in (5, 20, 60))),
            attribute_tokens=[token("attribute", attribute)] if attribute else [],
            **placed(box.global_from_box),
            size=[width, length, height],
            num_lidar_pts=box.points,
            num_radar_pts=0,
            **_links(keys, i),
        )


def log_name(scene: str) -> str:
    """Name of the log that a scene belongs to, one for each scene."""
    return f"demo-{scene}"


def _links(keys: Sequence[str], i: int) -> Record:
    return {"prev": keys[i - 1] if i else "", "next": keys[i + 1] if i + 1 < len(keys) else ""}


def _attribute(obj: SceneObject) -> str | None:
    category = CATEGORIES[obj.label]
    moves = obj.speed_mps > 0
    if category.startswith("human"):
        return "pedestrian.moving" if moves else "pedestrian.standing"
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.with_rider" if moves else "cycle.without_rider"
    if category.startswith("vehicle"):
        return "vehicle.moving" if moves else "vehicle.parked"
    return None

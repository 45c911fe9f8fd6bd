"""Reader of nuScenes: key frames, sweeps, cameras, poses and boxes through the official devkit.

The tables are read once, into rows of the index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from clipsweep.pipeline.artifacts.index import MAX_SWEEPS, Row, Skip, within
from clipsweep.pipeline.datasets.boxes import Box, FrameBoxes, checked_box
from clipsweep.pipeline.datasets.checks import (
    check_image,
    check_intrinsics,
    check_points,
    check_times,
    checked_time,
    chosen_scenes,
    no_scene,
    pin,
)
from clipsweep.pipeline.datasets.export import Format
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Frame, Sweep
from clipsweep.projection.pose import Pose

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes

    from clipsweep.pipeline.datasets import DataConfig

LIDAR = "LIDAR_TOP"
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
_TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
_SENSOR_OFFSET_MAX_M = 20.0
_BOX_AWAY_M = 300.0
_UNPACK = "unpack the metadata archive again"


@dataclass(frozen=True)
class NuscenesConfig:
    """Settings of the nuScenes reader: which tables to read."""

    version: Annotated[
        str,
        Field(description="table folder, such as v1.0-mini, v1.0-trainval or v1.0-test"),
    ] = "v1.0-trainval"


def tables(config: DataConfig[NuscenesConfig]) -> list[Path]:
    """Table files of nuScenes that the index is made from.

    Raises:
        BadInput: the folder or a table is missing.
    """
    folder = Path(config.root) / config.own.version
    if not folder.is_dir():
        raise BadInput(folder, "no such folder", "set data.root and data.nuscenes.version")
    for name in _TABLES:
        if not (folder / f"{name}.json").is_file():
            raise BadInput(folder / f"{name}.json", "this table is missing", _UNPACK)
    return sorted(folder.glob("*.json"))


def index(config: DataConfig[NuscenesConfig]) -> Iterator[Row]:
    """Yields one index row for each key frame of the scenes in ``data.train`` and ``data.eval``.

    Rows come scene by scene.

    Splits are the official ones of the devkit, in their order (label fractions count in it); a
    split's scenes that the tables do not hold are passed over.

    Raises:
        BadInput: the tables cannot be loaded, no scene is there, or a scene's chain of samples is
            broken. What is wrong with a single frame comes as a row with a ``Skip``.
    """
    tables(config)
    nusc = _load(config)
    records = {scene["name"]: scene for scene in nusc.scene}
    folder = Path(config.root) / config.own.version
    official = splits()
    train = chosen_scenes(folder, config.train, official, records)
    held = chosen_scenes(folder, config.eval, official, records)
    if not train and not held:
        raise no_scene(folder, next(iter((*config.train, *config.eval)), ""), records)
    for name in dict.fromkeys([*train, *held]):
        for sample in _samples(nusc, records[name]):
            yield _row(nusc, config, name, sample, name in train, name in held)


def labels(data: bytes) -> UInt8[np.ndarray, " n"]:
    """Raw class ids of the points in the bytes of a nuScenes lidarseg file."""
    return np.frombuffer(data, np.uint8)


def boxes(
    config: DataConfig[NuscenesConfig], frames: Iterable[Frame]
) -> Iterator[FrameBoxes | Skip]:
    """Yields the annotated 3D boxes of each key frame, from the table ``sample_annotation``.

    Raises:
        BadInput: the tables cannot be loaded. What is wrong with a frame's comes as a ``Skip``.
    """
    tables(config)
    nusc = _load(config)
    for frame in frames:
        try:
            sample = nusc.get("sample", nusc.get("sample_data", frame.id)["sample_token"])
            found = tuple(
                _near(_box(nusc.get("sample_annotation", token)), token, frame)
                for token in sample["anns"]
            )
            yield FrameBoxes(frame.id, frame.scene, found)
        except BadInput as error:
            yield Skip(frame.id, frame.scene, str(error))
        except KeyError as error:
            reason = f"its sample, or a row of sample_annotation, has no {error}"
            yield Skip(frame.id, frame.scene, reason)


def _near(box: Box, token: str, frame: Frame) -> Box:
    """Range filter: the box, unless no point of the frame could lie in it."""
    lidar = frame.sweeps[0].global_from_lidar.translation
    away_m = float(np.linalg.norm(box.global_from_box.translation - lidar))
    if away_m > _BOX_AWAY_M:
        cure = f"{_BOX_AWAY_M:.0f} m at the most"
        raise BadInput(f"sample_annotation {token}", f"is {away_m:.3g} m from the sensor", cure)
    return box


def splits() -> dict[str, list[str]]:
    """Scenes of each official nuScenes split."""
    from nuscenes.utils.splits import create_splits_scenes

    return create_splits_scenes()


def _load(config: DataConfig[NuscenesConfig]) -> NuScenes:
    from nuscenes.nuscenes import NuScenes

    folder = Path(config.root) / config.own.version
    try:
        nusc = NuScenes(config.own.version, config.root, verbose=False)
    except (AssertionError, OSError, KeyError, ValueError, TypeError) as error:
        raise BadInput(folder, f"the nuScenes devkit cannot load it: {error}") from None
    for scene in nusc.scene:
        if not isinstance(scene.get("name"), str):
            problem = f"scene {scene['token']} has the name {str(scene.get('name'))[:80]}"
            raise BadInput(folder / "scene.json", f"{problem}, which is no text", _UNPACK)
    return nusc


def _samples(nusc: NuScenes, scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples (key frames) of a scene in order of time.

    Raises:
        BadInput: their chain breaks off, or has another length than the scene's.
    """
    chain: list[dict[str, Any]] = []
    try:
        token = scene["first_sample_token"]
        count = scene["nbr_samples"]
        while token and len(chain) <= count:
            chain.append(nusc.get("sample", token))
            token = chain[-1]["next"]
    except (KeyError, TypeError) as error:
        broken = f"after {len(chain)} samples a row is missing or malformed ({error!r})"
        raise BadInput(f"scene {scene['name']}", broken, _UNPACK) from None
    if len(chain) != count:
        held = f"over {count}" if len(chain) > count else f"{len(chain)}"
        raise BadInput(
            f"scene {scene['name']}",
            f"its chain holds {held} samples, nbr_samples is {count}",
            _UNPACK,
        )
    return chain


def _row(
    nusc: NuScenes,
    config: DataConfig[NuscenesConfig],
    scene: str,
    sample: dict[str, Any],
    train: bool,
    held: bool,
) -> Row:
    key = sample["data"].get(LIDAR, sample["token"])
    try:
        frame, missing = _frame(nusc, config, scene, sample)
    except BadInput as error:
        return Row(Skip(key, scene, str(error)), train, held)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"sample {sample['token']}: a row of a table is missing or malformed ({error!r})"
        return Row(Skip(key, scene, reason), train, held)
    return Row(frame, train, held, missing)


def _frame(
    nusc: NuScenes, config: DataConfig[NuscenesConfig], scene: str, sample: dict[str, Any]
) -> tuple[Frame, int]:
    root = Path(config.root)
    if LIDAR not in sample["data"]:
        raise BadInput(f"sample {sample['token']}", f"has no {LIDAR}")
    key = nusc.get("sample_data", sample["data"][LIDAR])
    if not re.fullmatch(r"[\w-]+", key["token"]):
        raise BadInput(f"sample_data {key['token']!r}", "this token cannot name a file")
    sweeps, missing = _sweeps(nusc, config, key)
    points = check_points(sweeps[0].points, config.columns, config.min_points)
    cameras = tuple(
        _camera(nusc, config, sample["data"][name]) for name in CAMERAS if name in sample["data"]
    )
    labels = _labels(nusc, root, key["token"], points, config.hash)
    check_times(sweeps, cameras, f"sample {sample['token']}")
    return Frame(key["token"], scene, _time_us(key), tuple(sweeps), cameras, labels), missing


def _sweeps(
    nusc: NuScenes, config: DataConfig[NuscenesConfig], key: dict[str, Any]
) -> tuple[list[Sweep], int]:
    root = Path(config.root)
    record = key
    missing = 0
    sweeps: list[Sweep] = []
    for _ in range(MAX_SWEEPS):
        if record is key or within(root, record["filename"]).exists():
            file = pin(root, record["filename"], config.hash)
            check_points(file, config.columns, 1)
            sweeps.append(Sweep(_time_us(record), _global_from_sensor(nusc, record), file))
        else:
            missing += 1
        if not record["prev"]:
            break
        record = nusc.get("sample_data", record["prev"])
    return sweeps, missing


def _camera(nusc: NuScenes, config: DataConfig[NuscenesConfig], token: str) -> Camera:
    record = nusc.get("sample_data", token)
    calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    intrinsics = np.array(calibration["camera_intrinsic"], np.float64)
    check_intrinsics(intrinsics, f"calibrated_sensor {calibration['token']}")
    file = pin(Path(config.root), record["filename"], config.hash)
    size_hw = (record["height"], record["width"])
    check_image(file, size_hw)
    name = nusc.get("sensor", calibration["sensor_token"])["channel"]
    pose = _global_from_sensor(nusc, record)
    return Camera(name, _time_us(record), pose, intrinsics, size_hw, file)


def _time_us(record: dict[str, Any]) -> int:
    return checked_time(record["timestamp"], f"sample_data {record['token']}")


def _global_from_sensor(nusc: NuScenes, record: dict[str, Any]) -> Pose:
    """Sensor pose: ``global_from_ego(t) @ ego_from_sensor``, both at the sensor's own time."""
    ego = nusc.get("ego_pose", record["ego_pose_token"])
    sensor = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    if not np.linalg.norm(sensor["translation"]) <= _SENSOR_OFFSET_MAX_M:
        raise BadInput(
            f"calibrated_sensor {sensor['token']}",
            f"translation {sensor['translation']} m is not on a car",
        )
    return _pose("ego_pose", ego) @ _pose("calibrated_sensor", sensor)


def _pose(table: str, record: dict[str, Any]) -> Pose:
    try:
        rotation = [float(value) for value in record["rotation"]]
        translation = [float(value) for value in record["translation"]]
        return Pose.from_quaternion(rotation, translation)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{table} {record['token']}", f"rotation or translation: {error}") from None


def _box(record: dict[str, Any]) -> Box:
    """Converts a row of sample_annotation to a 3D box; its size there is width, length, height."""
    where = f"sample_annotation {record['token']}"
    try:
        width, length, height = map(float, record["size"])
    except (TypeError, ValueError):
        raise BadInput(where, f"size {record['size']!r} is not width, length, height") from None
    pose = _pose("sample_annotation", record)
    return checked_box(pose, (length, width, height), record["category_name"], where)


def _labels(nusc: NuScenes, root: Path, token: str, points: int, hash_bytes: bool) -> File | None:
    if not getattr(nusc, "lidarseg", None) or token not in nusc._token2ind["lidarseg"]:
        return None
    file = pin(root, nusc.get("lidarseg", token)["filename"], hash_bytes)
    if file.bytes != points:
        raise BadInput(file.path, f"labels {file.bytes} points, the sweep has {points}")
    return file


# --- submission to the lidarseg challenge ---------------------------------------------------------

_META = {
    "use_camera": True,  # the student takes LiDAR alone, but cameras taught it
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": True,  # the teacher was trained elsewhere
}


def _lidarseg_file(split: str, frame: Frame) -> str:
    return f"lidarseg/{split}/{frame.id}_lidarseg.bin"


def _seal(folder: Path, split: str) -> None:
    """Adds the submission metadata that the nuScenes evaluation server asks for."""
    (folder / split).mkdir()
    (folder / split / "submission.json").write_text(json.dumps({"meta": _META}, indent=1))


LIDARSEG = Format(_lidarseg_file, "u1", range(1, 17), _seal)
"""``lidarseg/{split}/{token}_lidarseg.bin`` and ``{split}/submission.json``."""

"""The doctor: each check catches its damage in three data sets, and lets sound ones pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.doctor import CHECKS, findings
from clipsweep.pipeline.doctor.survey import Look, Survey, survey
from clipsweep.projection.frames import Camera, Frame, Sweep
from clipsweep.projection.pose import Pose
from tests.helpers import ROOT, Run, settings

SETS = ("demo", "pandaset", "nuscenes")


def read_survey(arguments: list[str]) -> Survey:
    data = load_config(arguments).data
    rows = list(DATASETS[data.kind].index(data))
    return survey([row.frame for row in rows if isinstance(row.frame, Frame)], data)


@pytest.fixture(scope="session")
def surveys(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Survey]:
    given = settings(small_world, tmp_path_factory.mktemp("store"))
    return {"demo": read_survey([*given, "data.ego_box_m=2.8"])}


def sound(name: str, surveys: dict[str, Survey], request: pytest.FixtureRequest) -> Survey:
    if name not in surveys:
        request.getfixturevalue("samples")
        surveys[name] = read_survey([f"{ROOT}/tests/configs/{name}.yaml"])
    return surveys[name]


# --- damage ---------------------------------------------------------------------------------------

Change = Callable[[Survey], Survey]


def each_look(change: Callable[[Look], Look]) -> Change:
    return lambda whole: replace(whole, looks=[change(look) for look in whole.looks])


def each_row(change: Callable[[np.ndarray], None]) -> Change:
    """Changes the points of every sweep, as they lie in the files."""

    def on_look(look: Look) -> Look:
        rows = look.rows.copy()
        change(rows)
        before = None
        if look.before is not None:
            padded = np.column_stack([look.before, np.ones(len(look.before), np.float32)])
            change(padded)
            before = padded[:, :3].copy()
        return replace(look, rows=rows, before=before)

    return each_look(on_look)


def each_camera(change: Callable[[Camera, Frame], Camera]) -> Change:
    def on_look(look: Look) -> Look:
        cameras = tuple(change(camera, look.frame) for camera in look.frame.cameras)
        return replace(look, frame=replace(look.frame, cameras=cameras))

    return each_look(on_look)


def turned(axis_angle_deg: list[float]) -> Change:
    """Points in a LiDAR frame that is turned, with extrinsics that do not know."""
    rotation = Pose.from_axis_angle(np.radians(axis_angle_deg)).rotation.astype(np.float32)

    def change(rows: np.ndarray) -> None:
        rows[:, :3] = rows[:, :3] @ rotation.T

    return each_row(change)


def moved_sweeps(change: Callable[[Sweep, int], Pose]) -> Change:
    def on_look(look: Look) -> Look:
        sweeps = tuple(
            replace(sweep, global_from_lidar=change(sweep, i))
            for i, sweep in enumerate(look.frame.sweeps)
        )
        return replace(look, frame=replace(look.frame, sweeps=sweeps))

    return each_look(on_look)


def jump(whole: Survey) -> Survey:
    """One sweep in the middle of a scene lies three metres aside."""
    scene = whole.looks[0].frame.scene
    times = sorted(
        {s.time_us for k in whole.looks if k.frame.scene == scene for s in k.frame.sweeps}
    )
    when = times[len(times) // 2]

    def change(sweep: Sweep, _: int) -> Pose:
        pose = sweep.global_from_lidar
        aside = 8.0 * (sweep.time_us == when)
        return Pose(pose.rotation, pose.translation + np.array([0.0, aside, 0.0]))

    return moved_sweeps(change)(whole)


def stand_still(whole: Survey) -> Survey:
    return moved_sweeps(lambda sweep, i: Pose.identity())(whole)


def backwards(whole: Survey) -> Survey:
    """Poses inverted: vehicle_from_world in the place of world_from_vehicle."""
    first = whole.looks[0].frame.sweeps[-1].global_from_lidar
    return moved_sweeps(
        lambda sweep, i: first @ (first.inverse() @ sweep.global_from_lidar).inverse()
    )(whole)


def only(name: str, change: Callable[[Camera, Frame], Camera]) -> Change:
    return each_camera(lambda camera, f: change(camera, f) if camera.name == name else camera)


def of_lidar(camera: Camera, frame: Frame) -> Pose:
    return frame.sweeps[0].global_from_lidar.inverse() @ camera.global_from_cam


def inverted(camera: Camera, frame: Frame) -> Camera:
    pose = frame.sweeps[0].global_from_lidar @ of_lidar(camera, frame).inverse()
    return replace(camera, global_from_cam=pose)


def vehicle_axes(camera: Camera, frame: Frame) -> Camera:
    """Extrinsics of a camera frame x ahead, y left, z up."""
    optical = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    pose = camera.global_from_cam @ Pose(optical, np.zeros(3))
    return replace(camera, global_from_cam=pose)


def to_the_sky(camera: Camera, _: Frame) -> Camera:
    up = Pose.from_axis_angle(np.array([np.radians(55.0), 0.0, 0.0]))
    return replace(camera, global_from_cam=camera.global_from_cam @ up)


def mixed_up(whole: Survey) -> Survey:
    def on_look(look: Look) -> Look:
        by = {camera.name: camera for camera in look.frame.cameras}
        swapped = {"CAM_FRONT_LEFT": "CAM_FRONT_RIGHT", "CAM_FRONT_RIGHT": "CAM_FRONT_LEFT"}
        cameras = tuple(
            replace(c, global_from_cam=by[swapped.get(c.name, c.name)].global_from_cam)
            for c in look.frame.cameras
        )
        return replace(look, frame=replace(look.frame, cameras=cameras))

    return each_look(on_look)(whole)


def late(camera: Camera, _: Frame) -> Camera:
    return replace(camera, time_us=camera.time_us + 18_000_000)


def half_size(camera: Camera, _: Frame) -> Camera:
    return replace(camera, K=camera.K * [[0.5], [0.5], [1.0]])


def black_corners(look: Look) -> Look:
    thumbs = []
    for thumb in look.thumbs:
        dark = thumb.copy()
        dark[:6] = dark[-6:] = 0
        thumbs.append(dark)
    return replace(look, thumbs=thumbs)


def frozen(whole: Survey) -> Survey:
    digests = whole.looks[0].digests
    return each_look(lambda look: replace(look, digests=[*look.digests[:2], *digests[2:]]))(whole)


def empty(rows: np.ndarray) -> None:
    rows[::10, :3] = 0


def own_returns(whole: Survey) -> Survey:
    """A rack three metres ahead of the sensor, at its height."""

    def on_look(look: Look) -> Look:
        count = len(look.rows) // 15
        rack = np.random.default_rng(0).uniform((3.1, -0.5, 0.1), (3.3, 0.5, 0.3), (count, 3))
        rows = np.column_stack([rack, np.ones(count)]).astype(np.float32)
        return replace(look, rows=np.concatenate([look.rows, rows]))

    return each_look(on_look)(whole)


def set_rows(column: int, factor: float, offset: float = 0.0) -> Change:
    def change(rows: np.ndarray) -> None:
        rows[:, column] = rows[:, column] * factor + offset

    return each_row(change)


DAMAGE: dict[str, tuple[Change, str]] = {
    "upside down": (turned([180.0, 0.0, 0.0]), "LiDAR frame upside down"),
    "tilted": (turned([0.0, 90.0, 0.0]), "LiDAR frame rotated"),
    "pitched": (turned([0.0, 25.0, 0.0]), "LiDAR frame rotated: the ground is tilted by 2"),
    "height": (lambda whole: replace(whole, sensor_height_m=3.0), "sensor height"),
    "16 bits": (set_rows(3, 257.0), "above data.intensity_scale"),
    "0 to 1": (set_rows(3, 1 / 255), "intensities reach no more than"),
    "signed": (set_rows(3, 1.0, -20.0), "intensities are negative"),
    "no returns": (each_row(empty), "empty returns: 10% of a sweep's points"),
    "roof rack": (own_returns, "ego returns: "),
    "axes": (only("CAM_FRONT", vehicle_axes), "camera axes: y of CAM_FRONT"),
    "inverted": (only("CAM_FRONT", inverted), "extrinsics inverted: CAM_FRONT"),
    "sky": (only("CAM_BACK", to_the_sky), "few points in view: "),
    "mixed up": (mixed_up, "cameras mixed up: CAM_FRONT_"),
    "half size": (only("CAM_FRONT", half_size), "intrinsics of another size: CAM_FRONT"),
    "corners": (each_look(black_corners), "images not undistorted: the corners of CAM_"),
    "frozen": (frozen, "frozen sensor: CAM_"),
    "clock": (only("CAM_BACK", late), "clocks apart: CAM_BACK is +1"),
    "jump": (jump, "poses jump: by "),
    "no motion": (stand_still, "poses never change"),
    "backwards": (backwards, "sweeps do not lie on each other"),
}


@pytest.mark.parametrize("name", SETS)
def test_sound_data_raise_no_alarm(
    name: str, surveys: dict[str, Survey], request: pytest.FixtureRequest
) -> None:
    assert findings(sound(name, surveys, request)) == []


def test_returns_of_the_demos_car_are_found(small_world: Path, tmp_path: Path) -> None:
    """Its bonnet lies outside of nuScenes' box: label 31, up to 2.53 m ahead of the sensor."""
    found = findings(read_survey(settings(small_world, tmp_path)))
    assert found == [
        "ego returns: 4% of the points move with the car; data.ego_box_m=2.8 leaves them out"
    ]


def test_no_alarm_on_semantickitti(samples: Path) -> None:
    assert findings(read_survey([f"{ROOT}/tests/configs/semantickitti.yaml"])) == []


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(
    name: str, damage: str, surveys: dict[str, Survey], request: pytest.FixtureRequest
) -> None:
    change, line = DAMAGE[damage]
    found = findings(change(sound(name, surveys, request)))
    assert any(line in each for each in found), found


def test_every_check_is_exercised() -> None:
    assert len(CHECKS) <= len(DAMAGE)


def test_nothing_to_look_at_is_no_finding() -> None:
    assert findings(Survey((), 255.0, 1.84, 1.0)) == []


def test_the_tool_says_what_is_wrong_and_draws(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    made = tool(
        "doctor",
        *settings_of_data(small_world, tmp_path),
        "data.sensor_height_m=3",
        "data.ego_box_m=2.8",
    )
    assert made.path.is_file()
    assert re.search(
        r"sensor height: the ground lies 1\.[78] m below the LiDAR, data.sensor_height_m is 3",
        made.err,
    )
    assert "1 finding(s) by " in made.err


def settings_of_data(root: Path, tmp_path: Path) -> list[str]:
    given = settings(root, tmp_path / "store")
    return [each for each in given if each.startswith(("data.", "store="))]

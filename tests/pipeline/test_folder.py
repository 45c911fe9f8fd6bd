"""The folder reader: a nuScenes world written as a folder comes back as the same frames."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from clipsweep.pipeline.artifacts.index import Row, Skip
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.datasets import DataConfig, folder
from clipsweep.pipeline.datasets.folder import FolderConfig
from clipsweep.pipeline.datasets.folder.poses import parse_time_us, read_poses
from clipsweep.pipeline.datasets.folder.rig import read_rig
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, SweepLayout
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import merge
from tests.folders import (
    Save,
    folder_from_nuscenes,
    save_bin,
    save_fields,
    save_las,
    save_npy,
    save_pcd,
)
from tests.helpers import ROOT, Run, settings

LAYOUT = SweepLayout(5, 255.0)


@pytest.fixture(scope="session")
def small_folder(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "log"
    folder_from_nuscenes(small_world, "v1.0-mini", out)
    return out


@pytest.fixture
def log(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small world's folder, to be damaged."""
    return Path(shutil.copytree(small_folder, tmp_path / "log"))


def given(root: Path, store: Path, *more: str) -> list[str]:
    return [
        *(each for each in settings(root, store) if not each.startswith("data.nuscenes")),
        *("data.kind=folder", "data.train=scene-0061", "data.eval=scene-0103", *more),
    ]


def frames_of(config: Config) -> list[Frame]:
    index = make_index(config)
    return [f for scene in scenes_of(index) for f in scene_frames(index, config, scene)]


def reason(root: Path, store: Path) -> str:
    """What is wrong with a folder, in one line."""
    data = DataConfig(
        kind="folder", root=str(root), own=FolderConfig(), train=("scene-0061",), eval=()
    )
    with pytest.raises(BadInput) as caught:
        make_index(Config(data=data, store=str(store)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def close(ours: Pose, theirs: Pose) -> None:
    np.testing.assert_allclose(ours.matrix(), theirs.matrix(), atol=1e-9)


def compare(ours: Frame, theirs: Frame, atol_m: float) -> None:
    assert (ours.scene, ours.time_us) == (theirs.scene, theirs.time_us)
    assert [s.time_us for s in ours.sweeps] == [s.time_us for s in theirs.sweeps]
    for our_sweep, their_sweep in zip(ours.sweeps, theirs.sweeps, strict=True):
        close(our_sweep.global_from_lidar, their_sweep.global_from_lidar)
    our_cloud = merge(ours, 11, LAYOUT)
    their_cloud = merge(theirs, 11, LAYOUT)
    np.testing.assert_allclose(our_cloud.xyz, their_cloud.xyz, atol=atol_m)
    np.testing.assert_allclose(our_cloud.intensity, their_cloud.intensity, atol=1 / 255)
    for name in ("sweep", "source"):
        np.testing.assert_array_equal(getattr(our_cloud, name), getattr(their_cloud, name))
    for our_camera, their_camera in zip(ours.cameras, theirs.cameras, strict=True):
        for name in ("name", "time_us", "size_hw"):
            assert getattr(our_camera, name) == getattr(their_camera, name)
        np.testing.assert_array_equal(our_camera.K, their_camera.K)
        close(our_camera.global_from_cam, their_camera.global_from_cam)
        assert our_camera.image.read() == their_camera.image.read()
    assert ours.labels is not None
    assert theirs.labels is not None
    ids = np.frombuffer(theirs.labels.read(), np.uint8)
    np.testing.assert_array_equal(folder.labels(ours.labels.read()), ids)


@pytest.mark.parametrize(
    ("save", "atol_m"),
    [(save_bin, 1e-6), (save_npy, 1e-6), (save_fields, 1e-6), (save_pcd, 1e-6), (save_las, 2e-3)],
)
def test_every_frame_equals_the_nuscenes_readers(
    small_world: Path, tmp_path: Path, save: Save, atol_m: float
) -> None:
    folder_from_nuscenes(small_world, "v1.0-mini", tmp_path / "log", save)
    expected = frames_of(load_config(settings(small_world, tmp_path / "store")))
    found = frames_of(load_config(given(tmp_path / "log", tmp_path / "store")))
    assert len(found) == len(expected) == 6
    for ours, theirs in zip(found, expected, strict=True):
        compare(ours, theirs, atol_m)


def test_float_files_at_one_moment_are_used_as_they_are(small_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = frames_of(load_config(given(small_folder, store)))
    assert all(f.sweeps[0].points.path.is_relative_to(small_folder) for f in found)
    assert not list(store.glob("converted-*"))
    narrow = frames_of(load_config(given(small_folder, store, "data.columns=4")))
    assert all(f.sweeps[0].points.path.is_relative_to(store) for f in narrow)
    a = merge(found[2], 3, LAYOUT)
    b = merge(narrow[2], 3, SweepLayout(4, 255.0))
    np.testing.assert_array_equal(a.xyz, b.xyz)
    np.testing.assert_array_equal(a.intensity, b.intensity)


def test_one_scene_is_the_root_itself(log: Path, tmp_path: Path) -> None:
    (log / "scene-0061/rig.yaml").rename(log / "rig.yaml")
    shared = frames_of(load_config(given(log, tmp_path / "store", "data.eval=")))
    (log / "rig.yaml").rename(log / "scene-0061/rig.yaml")
    arguments = given(log / "scene-0061", tmp_path / "store", "data.train=all", "data.eval=")
    found = frames_of(load_config(arguments))
    assert {frame.scene for frame in found} == {"drive"}
    assert [frame.time_us for frame in found] == [frame.time_us for frame in shared]


def test_key_frames_by_rate_and_by_labels(log: Path, tmp_path: Path) -> None:
    def count(*more: str) -> int:
        return len(frames_of(load_config(given(log, tmp_path / "store", "data.eval=", *more))))

    assert count("data.folder.rate_hz=0", "on_bad=skip") == 9  # those within 0.1 s of images
    shutil.rmtree(log / "scene-0061/labels")
    assert count("data.folder.rate_hz=2") == 3
    assert count("data.folder.rate_hz=1") == 2


@pytest.mark.slow
def test_a_whole_run_gives_the_labels_of_the_nuscenes_run(
    small_world: Path, log: Path, tmp_path: Path, tool: Run
) -> None:
    """With label images of another model, at the paths of the images."""
    for scene in ("scene-0061", "scene-0103"):
        for image in (log / scene / "images").glob("*/*.jpg"):
            (source,) = (small_world / "labels2d").rglob(f"*__{image.stem}.png")
            path = log / "labels2d" / image.relative_to(log).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
    store = tmp_path / "store"
    official = tool("label", *settings(small_world, store), "data.ego_box_m=1")
    own = tool("label", *given(log, store))
    shards = [sorted(made.path.glob("*.safetensors")) for made in (official, own)]
    assert [path.stem[:10] for path in shards[0]] == [path.stem[:10] for path in shards[1]]
    scores = [
        tool("evaluate", *arguments, f"pseudo_labels={made.path}")
        for arguments, made in ((settings(small_world, store), official), (given(log, store), own))
    ]
    texts = [(made.path / "scores.json").read_text() for made in scores]
    found = [re.search(r'"confusion": \[.*?\]\s*\]', text, re.DOTALL) for text in texts]
    assert found[0]
    assert found[1]
    assert found[0].group() == found[1].group()


# --- motion compensation --------------------------------------------------------------------------

TURN = 0.1
SPEED = np.array([12.0, 1.0, 0.0])
YAW_RATE = 0.4
START_US = 1_700_000_000_000_000


def moving(time_s: float) -> Pose:
    """A car in a bend, at constant rates in its own frame."""
    angle = YAW_RATE * time_s
    turned = Pose.from_axis_angle(np.array([0.0, 0.0, angle]))
    s = np.sin(angle) / YAW_RATE
    c = (1 - np.cos(angle)) / YAW_RATE
    return Pose(
        turned.rotation,
        np.array([s * SPEED[0] - c * SPEED[1], c * SPEED[0] + s * SPEED[1], 0.0]),
    )


MOUNTED = Pose.from_quaternion([0.6, 0.0, 0.0, 0.8], [0.5, 0.1, 1.9])


def write_turns(root: Path, stamp: str, time_from: str, dtype: str) -> np.ndarray:
    """Three turns past points that stand still, each measured at its own time."""
    (root / "lidar").mkdir(parents=True)
    lines = ["time,x,y,z,qx,qy,qz,qw"]
    for i in range(-20, 60):
        pose = moving(0.01 * i)
        half = YAW_RATE * 0.01 * i / 2
        numbers = [*pose.translation, 0, 0, np.sin(half), np.cos(half)]
        lines.append(",".join(map(repr, [START_US + 10_000 * i, *map(float, numbers)])))
    (root / "poses.csv").write_text("\n".join(lines))
    rig = {
        "time_unit": "us",
        "lidar": {
            "vehicle_from_lidar": [*MOUNTED.matrix().tolist(), [0, 0, 0, 1]],
            "stamp": stamp,
            "time": "t",
            "time_from": time_from,
            "time_unit": "ns" if dtype == "<i8" else "s",
            "intensity": "",
        },
    }
    (root / "rig.yaml").write_text(yaml.safe_dump(rig))
    still = np.random.default_rng(0).uniform(-40, 40, (200, 3))
    for turn in range(3):
        begin_s = TURN * turn
        seen_s = np.linspace(begin_s, begin_s + TURN, len(still))
        stamp_s = begin_s if stamp == "start" else begin_s + TURN
        since = {"stamp": stamp_s, "first": begin_s, "epoch": -START_US * 1e-6}[time_from]
        rows = np.empty(len(still), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("t", dtype)])
        local = [
            (moving(s) @ MOUNTED).inverse().apply(p[None])[0]
            for s, p in zip(seen_s, still, strict=True)
        ]
        for i, axis in enumerate("xyz"):
            rows[axis] = np.array(local)[:, i]
        rows["t"] = np.rint((seen_s - since) * 1e9) if dtype == "<i8" else seen_s - since
        if dtype == "<i8" and time_from == "epoch":
            rows["t"] = np.rint(seen_s * 1e9).astype(np.int64) + START_US * 1000
        np.save(root / f"lidar/{START_US + round(stamp_s * 1e6)}.npy", rows)
    return still


@pytest.mark.parametrize("stamp", ["start", "end"])
@pytest.mark.parametrize(
    ("time_from", "dtype"),
    [("stamp", "<f4"), ("first", "<i8"), ("epoch", "<f8"), ("epoch", "<i8")],
)
def test_points_are_compensated_to_the_stamp(
    tmp_path: Path, stamp: str, time_from: str, dtype: str
) -> None:
    still = write_turns(tmp_path / "log", stamp, time_from, dtype)
    arguments = ["data.kind=folder", f"data.root={tmp_path / 'log'}", f"store={tmp_path / 's'}"]
    arguments += ["data.train=all", "data.eval=", "data.columns=4", "data.folder.rate_hz=0"]
    for frame in frames_of(load_config(arguments)):
        cloud = merge(frame, 1, SweepLayout(4))
        found = frame.sweeps[0].global_from_lidar.apply(cloud.xyz)
        np.testing.assert_allclose(found, still, atol=1e-2)  # 1.2 m and 2.3 degrees a turn


@pytest.mark.parametrize(("stamp", "shift_us"), [("start", 50_000), ("end", -50_000)])
def test_without_point_times_the_middle_of_the_turn_counts(
    log: Path, tmp_path: Path, stamp: str, shift_us: int, caplog: pytest.LogCaptureFixture
) -> None:
    change_rig(log, lambda rig: rig["lidar"].update(stamp=stamp, turn_s=0.1))
    plain = sorted(int(path.stem) for path in (log / "scene-0061/lidar").iterdir())
    found = frames_of(load_config(given(log, tmp_path / "s", "data.eval=", "on_bad=skip")))
    assert {f.time_us for f in found} <= {stamp_us + shift_us for stamp_us in plain}
    assert "not compensated for the motion during a turn of 0.1 s" in caplog.text


# --- poses ----------------------------------------------------------------------------------------


def test_poses_are_interpolated_and_never_extrapolated(tmp_path: Path) -> None:
    rows = ["time,x,y,z,qx,qy,qz,qw", "10,0,0,0,0,0,0,1"]
    rows += ["10.2,2,4,0,0,0,0.7071067811865476,0.7071067811865476", "11,3,4,0,0,0,0,1"]
    (tmp_path / "poses.csv").write_text("\n".join(rows))
    poses = read_poses(tmp_path / "poses.csv", "s", 0.25, Pose.identity())
    middle = poses.at(10_100_000)
    np.testing.assert_allclose(middle.translation, [1, 2, 0])
    np.testing.assert_allclose(middle.axis_angle(), [0, 0, np.pi / 4])
    np.testing.assert_allclose(poses.at(10_200_000).translation, [2, 4, 0])
    with pytest.raises(BadInput, match=r"9900000 us is 0\.100 s before the first pose; poses are"):
        poses.at(9_900_000)
    with pytest.raises(BadInput, match=r"is 1\.000 s after the last pose"):
        poses.at(12_000_000)
    with pytest.raises(BadInput, match=r"no pose for 0\.800 s .*max_pose_gap_s=0\.25"):
        poses.at(10_500_000)


def test_a_north_east_down_world_is_turned(log: Path, tmp_path: Path) -> None:
    """Poses in NED with the rotation that the page names are those in ENU."""
    before = frames_of(load_config(given(log, tmp_path / "s", "data.eval=")))
    ned_from_enu = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
    lines = (log / "scene-0061/poses.csv").read_text().splitlines()
    turned = [lines[0]]
    for line in lines[1:]:
        time, *numbers = line.split(",")
        x, y, z, qx, qy, qz, qw = map(float, numbers)
        pose = Pose.from_quaternion([qw, qx, qy, qz], [x, y, z])
        quaternion = Rotation.from_matrix(ned_from_enu @ pose.rotation).as_quat()
        values = [*(ned_from_enu @ pose.translation), *quaternion]
        turned.append(",".join([time, *(repr(float(value)) for value in values)]))
    (log / "scene-0061/poses.csv").write_text("\n".join(turned))
    assert "z axis points down in the world; give up_from_world" in reason(log, tmp_path / "s")
    change_rig(log, lambda rig: rig.update(up_from_world=ned_from_enu.T.tolist()))
    after = frames_of(load_config(given(log, tmp_path / "s", "data.eval=")))
    for ours, theirs in zip(after, before, strict=True):
        close(ours.sweeps[0].global_from_lidar, theirs.sweeps[0].global_from_lidar)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("1700000000.123456", "s", 1_700_000_000_123_456),
        ("1700000000123456789", "ns", 1_700_000_000_123_457),
        ("1700000000123.5", "ms", 1_700_000_000_123_500),
        ("12", "us", 12),
    ],
)
def test_times_are_exact(text: str, unit: str, expected: int) -> None:
    assert parse_time_us(text, unit, "here") == expected


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "-1", "1e400", "1" * 50, "1 2"])
def test_times_that_no_clock_has_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="here: "):
        parse_time_us(text, "us", "here")


# --- the page -------------------------------------------------------------------------------------


def test_the_example_of_the_page_is_true(tmp_path: Path) -> None:
    page = (ROOT / "configs/data/folder.md").read_text()
    blocks = re.findall(r"```(?:yaml|csv)\n(.*?)```", page, re.DOTALL)
    for name, begin in (("rig.yaml", "time_unit:"), ("poses.csv", "time,")):
        (block,) = (block for block in blocks if block.startswith(begin))
        (tmp_path / name).write_text(block)
    rig = read_rig(tmp_path / "rig.yaml", 1.8)
    assert rig.lidar.time == "t"
    (camera,) = rig.cameras
    assert (camera.name, camera.size_hw, camera.distorted) == ("front", (1080, 1920), True)
    ahead = np.array([[10.0, 0.0, 1.5]])
    np.testing.assert_allclose(
        camera.vehicle_from_camera.inverse().apply(ahead), [[0, 0, 8.3]], atol=1e-9
    )
    poses = read_poses(tmp_path / "poses.csv", rig.time_unit, 0.25, rig.up_from_world)
    np.testing.assert_allclose(poses.at(1_700_000_000_050_000).translation, [0.6, 0.005, 0])
    assert load_config(["data/folder"]).data.kind == "folder"


# --- bad input ------------------------------------------------------------------------------------


def change_rig(log: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = log / "scene-0061/rig.yaml"
    rig = yaml.safe_load(path.read_text())
    change(rig)
    plain = json.loads(json.dumps(rig))  # no two names of one object, which YAML writes as aliases
    path.write_text(yaml.safe_dump(plain, sort_keys=False))


def front(rig: dict[str, Any]) -> dict[str, Any]:
    return rig["cameras"]["CAM_FRONT"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rig: rig.pop("lidar"), r"rig.yaml: has no lidar; it takes"),
        (lambda rig: rig.update(lidars=[]), r"has several LiDARs; points of several"),
        (lambda rig: rig.update(lidar=[rig["lidar"]]), r"has several LiDARs"),
        (lambda rig: rig.update(time_unit="hours"), r"time_unit: is 'hours'; it must be one of s"),
        (lambda rig: rig.update(camera={}), r"rig.yaml: has 'camera', which is unknown"),
        (lambda rig: rig.update(up_from_world=[[1, 0], [0, 1]]), r"up_from_world: is .*3 x 3"),
        (lambda rig: rig.update(up_from_world=np.diag([1, 1, 2]).tolist()), r"not a rotation"),
        (lambda rig: rig["lidar"].update(stamp="now"), r"lidar.stamp: is 'now'"),
        (lambda rig: rig["lidar"].update(stamp="end"), r"neither time \(a column\) nor turn_s"),
        (lambda rig: rig["lidar"].update(time="t"), r"is 't', but stamp is compensated"),
        (lambda rig: rig["lidar"].update(height_m=3.0), r"set data.sensor_height_m=3"),
        (lambda rig: rig["lidar"].update(columns=["x", "y"]), r"among them x, y and z"),
        (lambda rig: front(rig).update(K=[[1, 0], [0, 1]]), r"CAM_FRONT.K: is .* 3 x 3"),
        (lambda rig: front(rig).update(K=[["a"] * 3] * 3), r"CAM_FRONT.K: is .* 3 x 3"),
        (lambda rig: front(rig).update(K=[[1e300, 0, 1], [0, 1, 1], [0, 0, 1]]), r"FRONT.K: is"),
        (lambda rig: front(rig).update(K=np.zeros((3, 3)).tolist()), r"is not a camera matrix"),
        (
            lambda rig: front(rig).update(size=[160]),
            r"is \[160\]; it must be \[width, height",
        ),
        (lambda rig: front(rig).update(size=[161, 90]), r"is 160x90 pixels, the table has 161x90"),
        (
            lambda rig: front(rig)["vehicle_from_camera"].update(quaternion_xyzw=[0, 0, 0, 0]),
            r"vehicle_from_camera: quaternion .* is not of unit length",
        ),
        (
            lambda rig: front(rig)["vehicle_from_camera"].update(translation=[1700, 0, 1500]),
            r"the sensor is 2267.\d+ m away \(at most 20\); offsets are in metres",
        ),
        (
            lambda rig: front(rig).update(distortion={"model": "fisheye", "coefficients": [0.1]}),
            r"coefficients: is \[0.1\]; fisheye has 4",
        ),
        (
            lambda rig: front(rig).update(
                distortion={"model": "plumb_bob", "coefficients": [float("nan")] * 4}
            ),
            r"coefficients: is .* 4 finite numbers",
        ),
        (
            lambda rig: front(rig).update(
                distortion={"model": "plumb_bob", "coefficients": [-0.9, -0.9, 0, 0]}
            ),
            r"camera CAM_FRONT: its distortion folds the image over",
        ),
        (
            lambda rig: rig["cameras"].update({"../up": front(rig)}),
            r"\.\./up: cannot name a fold",
        ),
        (lambda rig: rig["cameras"].update({"side": front(rig)}), r"images/side: holds no image"),
    ],
)
def test_a_wrong_rig_is_refused(
    log: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change_rig(log, change)
    assert re.search(message, reason(log, tmp_path / "store"))


def change_line(log: Path, number: int, text: str) -> None:
    path = log / "scene-0061/poses.csv"
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (1, "time,x,y,z,qw,qx,qy", r"poses.csv:2: has 8 columns, the header 7"),
        (1, "t,x,y,z,qx,qy,qz,qw", r"poses.csv: has 0 columns named time; its first line must"),
        (3, "5,0,0,0,0,0,0,1", r"poses.csv:3: 5 us comes after \d+ us; times must rise"),
        (3, "noon,0,0,0,0,0,0,1", r"poses.csv:3: 'noon' is no time"),
        (2, "5,0,0,0,0,0,0,0", r"poses.csv:2: quaternion .* is not of unit length; the order is"),
        (2, "5,0,0,0,0,0,0,1e300", r"poses.csv:2: quaternion .* is not of unit length"),
        (2, "5,nan,0,0,0,0,0,1", r"poses.csv:2: position .* is nowhere on Earth"),
        (2, "5,1e300,0,0,0,0,0,1", r"poses.csv:2: position .* is nowhere on Earth"),
        (2, "5,x,0,0,0,0,0,1", r"poses.csv:2: 'x' is not a number"),
    ],
)
def test_wrong_poses_are_refused(
    log: Path, tmp_path: Path, number: int, text: str, message: str
) -> None:
    change_line(log, number, text)
    assert re.search(message, reason(log, tmp_path / "store"))


def damage_bin(log: Path) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    path.write_bytes(path.read_bytes()[:-3])


def damage_points(log: Path) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    rows = np.fromfile(path, "<f4").reshape(-1, 5)
    rows[0, 0] = np.nan
    rows.tofile(path)


def link_out(log: Path) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    path.rename(log.parent / path.name)
    path.symlink_to(log.parent / path.name)


def twice(log: Path) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    shutil.copy(path, path.with_name(f"{path.stem}.0.bin"))


def late_images(log: Path) -> None:
    for path in (log / "scene-0061/images/CAM_BACK").iterdir():
        path.rename(path.with_stem(str(int(path.stem) + 200_000)))


def early_sweep(log: Path) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    path.rename(path.with_stem(str(int(path.stem) - 500_000)))
    shutil.rmtree(log / "scene-0061/labels")


def few_labels(log: Path) -> None:
    path = min((log / "scene-0061/labels").iterdir())
    np.save(path, np.zeros(3, np.uint8))


def stray_label(log: Path) -> None:
    np.save(log / "scene-0061/labels/5.npy", np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bin, r"bytes are no whole number of 5-float points"),
        (link_out, r"leaves the data root"),
        (twice, r"has the time of .*; keep one of them"),
        (late_images, r"CAM_BACK/.*: the image nearest to the sweep of \d+ us is 0.1\d\d s away"),
        (early_sweep, r"poses.csv: \d+ us is 0.\d+ s before the first pose"),
        (few_labels, r"labels 3 points, the sweep has \d+"),
        (stray_label, r"labels/5.npy: has no sweep of its time"),
        (lambda log: (log / "scene-0061/rig.yaml").unlink(), r"rig.yaml: is missing; describe the"),
        (lambda log: (log / "scene-0061/poses.csv").unlink(), r"has no scene of 'scene-0061'"),
        (lambda log: (log / "scene-0061/rig.yaml").write_bytes(b"\xff\xfe\x81"), r"is not valid Y"),
        (lambda log: (log / "scene-0061/poses.csv").write_bytes(b"\xff\x81"), r"is no UTF-8 text"),
        (lambda log: (log / "scene-0061/poses.csv").write_bytes(b""), r"poses.csv: is empty"),
        (lambda log: shutil.rmtree(log / "scene-0061/lidar"), r"lidar: no such folder"),
        (lambda log: (log / "scene-0061/lidar/a.txt").touch(), r"does not belong into this folder"),
        (lambda log: (log / "scene-0061/lidar/a.bin").touch(), r"'a' is no time"),
    ],
)
def test_damaged_folders_are_refused(
    log: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(log)
    found = reason(log, tmp_path / "store")
    assert re.search(message, found), found


@pytest.mark.parametrize("suffix", [".npy", ".pcd", ".las"])
def test_files_that_are_no_clouds_are_refused(log: Path, tmp_path: Path, suffix: str) -> None:
    path = min((log / "scene-0061/lidar").iterdir())
    path.rename(path.with_suffix(suffix))
    assert re.search(r"is no (NumPy array|PCD|LAS) \(", reason(log, tmp_path / "store"))


def test_points_that_are_not_finite_are_refused_where_they_are_read(
    log: Path, tmp_path: Path
) -> None:
    damage_points(log)
    frame = frames_of(load_config(given(log, tmp_path / "store")))[0]
    with pytest.raises(BadInput, match=r"1 of \d+ points are not finite or beyond 300 m"):
        merge(frame, 1, LAYOUT)


def test_older_sweeps_without_a_pose_are_counted(
    log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = log / "scene-0061/poses.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[8:]]))
    rows = list(folder.index(load_config(given(log, tmp_path / "store")).data))
    assert isinstance(rows[0].frame, Skip)
    assert isinstance(rows[1], Row)
    assert rows[1].missing_sweeps > 0


def test_no_demo_is_written_as_a_folder(tmp_path: Path, tool: Run) -> None:
    outcome = tool("index", "data.kind=folder", "make_demo=true", f"data.root={tmp_path / 'd'}")
    assert outcome.status == 1
    assert "data.kind: is folder, in which no demo is written" in outcome.err

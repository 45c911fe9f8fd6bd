"""Import of bags: a folder scene written as a bag is the same scene again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clipsweep.pipeline.bags.importer import Imported, import_bag
from clipsweep.pipeline.bags.messages import image_file, point_fields
from clipsweep.pipeline.bags.topics import read_topics
from clipsweep.pipeline.datasets.folder.poses import Trajectory, read_poses
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose
from tests.bags import KINDS, Message, Ros, messages, topics, write_bag
from tests.folders import folder_from_nuscenes
from tests.helpers import ROOT, Run, settings


@pytest.fixture(scope="session")
def scenes(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world as a folder data set."""
    out = tmp_path_factory.mktemp("folder")
    folder_from_nuscenes(small_world, "v1.0-mini", out)
    return out


@pytest.fixture(scope="session")
def scene(scenes: Path) -> Path:
    return min(path for path in scenes.iterdir() if path.is_dir())


def imported(
    tmp_path: Path, scene: Path, kind: str = "ros2", edit: Any = None, **changed: Any
) -> tuple[Path, Imported]:
    """A scene written as a bag, its messages perhaps edited, and imported again."""

    def written(ros: Ros) -> Iterator[Message]:
        found = messages(ros, scene)
        return found if edit is None else edit(ros, found)

    bag = write_bag(tmp_path / f"bag-{kind}", kind, written)
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(topics(scene, **changed)))
    return tmp_path / "out", import_bag(bag, read_topics(file), tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def trajectory(scene: Path) -> Trajectory:
    return read_poses(scene / "poses.csv", "us", 1.0, Pose.identity())


@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_images_poses_and_rig_come_back(tmp_path: Path, scene: Path, kind: str) -> None:
    out, done = imported(tmp_path, scene, kind)
    before = files(scene)
    after = files(out)
    for path in (path for path in after if path.startswith("images/")):
        assert after[path] == before[path]
    sweeps = [path for path in before if path.startswith("lidar/")]
    for path in sweeps:
        rows = np.frombuffer(before[path], "<f4").reshape(-1, 5)[:, :4]
        assert after[path] == np.ascontiguousarray(rows).tobytes()
    same = {path for path in before if not path.startswith("labels/")}
    assert set(after) == same
    assert done.counts["sweeps"] == len(sweeps)
    assert not done.left_out
    ours = trajectory(out)
    theirs = trajectory(scene)
    assert ours.time_us.tolist() == theirs.time_us.tolist()
    np.testing.assert_allclose(ours.position, theirs.position, atol=1e-6)
    turned = np.abs((ours.quaternion * theirs.quaternion).sum(1))
    np.testing.assert_allclose(turned, 1, atol=1e-9)
    rigs = [yaml.safe_load((folder / "rig.yaml").read_text()) for folder in (out, scene)]
    for name, camera in rigs[1]["cameras"].items():
        assert rigs[0]["cameras"][name]["K"] == camera["K"]
        assert rigs[0]["cameras"][name]["size"] == camera["size"]
        place = np.array(rigs[0]["cameras"][name]["vehicle_from_camera"])
        wanted = camera["vehicle_from_camera"]["translation"]
        np.testing.assert_allclose(place[:3, 3], wanted, atol=1e-9)


def test_poses_come_from_transforms_too(tmp_path: Path, scene: Path) -> None:
    out, _ = imported(tmp_path, scene, poses={"tf": "map"})
    ours = trajectory(out)
    theirs = trajectory(scene)
    np.testing.assert_allclose(ours.position, theirs.position, atol=1e-6)


def test_a_slow_correction_of_the_odometry_is_interpolated(tmp_path: Path, scene: Path) -> None:
    """map -> odom comes a few times, odom -> base_link often."""

    def edit(ros: Ros, found: Iterator[Message]) -> Iterator[Message]:
        times = []
        for topic, time_us, message in found:
            if topic == "/tf":
                times.append(time_us)
                message.transforms[0].header.frame_id = "odom"
            yield topic, time_us, message
        span = times[-1] - times[0]
        for share in (0, 0.5, 1):
            time_us = round(times[0] + share * span)
            drift = ros.transform(time_us, "map", "odom", [10 * share, 0, 0], [0, 0, 0, 1])
            yield "/tf", time_us, ros.transforms(drift)

    out, _ = imported(tmp_path, scene, edit=edit, poses={"tf": "map"})
    ours = trajectory(out)
    theirs = trajectory(scene)
    share = (ours.time_us - ours.time_us[0]) / np.ptp(ours.time_us)
    moved = ours.position - theirs.position
    np.testing.assert_allclose(moved[:, 0], 10 * share, atol=1e-4)
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-6)


def test_the_clock_of_reception_may_be_taken(tmp_path: Path, scene: Path) -> None:
    out, _ = imported(tmp_path, scene, clock="receive")
    ours = sorted(int(path.stem) for path in (out / "lidar").iterdir())
    theirs = sorted(int(path.stem) for path in (scene / "lidar").iterdir())
    assert ours == [time_us + 1000 for time_us in theirs]


def test_odometry_of_another_frame_is_moved_to_the_vehicle(tmp_path: Path, scene: Path) -> None:
    def edit(ros: Ros, found: Iterator[Message]) -> Iterator[Message]:
        for topic, time_us, message in found:
            if topic == "/odom":
                message = ros.odometry(time_us, [1, 2, 3], [0, 0, 0, 1], "imu")
            yield topic, time_us, message
        imu = ros.transform(0, "base_link", "imu", [0, 0, 0.5], [0, 0, 0, 1])
        yield "/tf_static", time_us, ros.transforms(imu)

    out, _ = imported(tmp_path, scene, edit=edit)
    np.testing.assert_allclose(
        trajectory(out).position, [[1, 2, 2.5]] * len(trajectory(out).time_us)
    )


@pytest.mark.parametrize(
    ("field", "unit", "origin", "kind"),
    [
        ("t", "ns", "stamp", "<u4"),
        ("time", "s", "stamp", "<f4"),
        ("timestamp", "s", "epoch", "<f8"),
        ("offset_time", "ns", "first", "<u4"),
    ],
    ids=["ouster", "velodyne", "hesai", "livox"],
)
def test_times_of_points_become_seconds_from_the_stamp(
    tmp_path: Path, scene: Path, field: str, unit: str, origin: str, kind: str
) -> None:
    factor = {"s": 1.0, "ns": 1e9}[unit]
    wanted = np.linspace(0, 0.0999, 50)
    kinds = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("ring", "<u2"), ("intensity", "<f4")]

    def edit(ros: Ros, found: Iterator[Message]) -> Iterator[Message]:
        for topic, time_us, message in found:
            if topic == "/points":
                rows = np.zeros(50, [*kinds, (field, kind)])
                rows["x"] = np.arange(50)
                begin = time_us * 1e-6 if origin == "epoch" else 0.0
                rows[field] = (wanted + begin) * factor
                message = ros.cloud(time_us, "lidar", rows, height=2)
            yield topic, time_us, message

    given = {"topic": "/points", "stamp": "start"}
    lidar = {**given, "time": field, "time_unit": unit, "time_from": origin}
    out, _ = imported(tmp_path, scene, edit=edit, lidar=lidar)
    rows = np.fromfile(next((out / "lidar").iterdir()), "<f4").reshape(-1, 5)
    assert rows[:, 0].tolist() == list(range(50))
    np.testing.assert_allclose(rows[:, 4], wanted, atol=1e-6)
    rig = yaml.safe_load((out / "rig.yaml").read_text())["lidar"]
    assert (rig["time"], rig["time_unit"], rig["time_from"]) == ("t", "s", "stamp")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8", "bgra8"])
def test_raw_images_become_jpegs_with_their_colours(encoding: str) -> None:
    ros = Ros(2)
    color = np.array([200, 100, 30], np.uint8)
    order = {"r": color, "b": color[::-1], "m": np.array([90], np.uint8)}[encoding[0]]
    pixel = np.append(order, 255).astype(np.uint8) if encoding.endswith("a8") else order
    pixels = np.broadcast_to(pixel, (16, 24, len(pixel))).copy()
    message = ros.image(1, "camera", pixels, encoding)
    data, ending = image_file(message, "sensor_msgs/msg/Image", "here")
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).mean(0)
    expected = [90, 90, 90] if encoding == "mono8" else color
    np.testing.assert_allclose(seen, expected, atol=3)
    assert ending == ".jpg"


def test_points_without_a_position_are_left_out(tmp_path: Path, scene: Path) -> None:
    def edit(ros: Ros, found: Iterator[Message]) -> Iterator[Message]:
        for topic, time_us, message in found:
            if topic == "/points":
                rows = np.zeros(4, [(name, "<f4") for name in ("x", "y", "z", "intensity")])
                rows["x"] = [1, np.nan, 3, np.inf]
                message = ros.cloud(time_us, "lidar", rows)
            yield topic, time_us, message

    out, _ = imported(tmp_path, scene, edit=edit)
    rows = np.fromfile(next((out / "lidar").iterdir()), "<f4").reshape(-1, 4)
    assert rows[:, 0].tolist() == [1, 3]


def test_it_goes_on_where_it_was_stopped(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipsweep.pipeline.bags import importer

    write = importer.write_whole
    left = [12]

    def failing(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(importer, "write_whole", failing)
    with pytest.raises(OSError, match="No space"):
        imported(tmp_path, scene)
    assert not (tmp_path / "out/poses.csv").exists()  # half a scene is none
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert len(there) == 12
    monkeypatch.setattr(importer, "write_whole", write)
    file = tmp_path / "topics.yaml"
    import_bag(tmp_path / "bag-ros2", read_topics(file), tmp_path / "out")
    assert all(path.stat().st_mtime_ns == when for path, when in there.items())
    assert set(files(tmp_path / "out")) == {p for p in files(scene) if not p.startswith("labels/")}


def test_two_messages_of_one_time_are_told_of(tmp_path: Path, scene: Path) -> None:
    def edit(_: Ros, found: Iterator[Message]) -> Iterator[Message]:
        for each in found:
            yield each
            if each[0] == "/points":
                yield each

    _, done = imported(tmp_path, scene, edit=edit)
    sweeps = len(list((scene / "lidar").iterdir()))
    assert done.left_out == {"sweeps: another has the same time": sweeps}


def test_the_example_of_the_page_is_a_topics_file(tmp_path: Path) -> None:
    page = (ROOT / "configs/data/folder.md").read_text()
    example = next(part for part in page.split("```yaml")[1:] if part.startswith("\nvehicle:"))
    (tmp_path / "topics.yaml").write_text(example.split("```")[0])
    read = read_topics(tmp_path / "topics.yaml")
    assert (read.poses, read.lidar.time, list(read.cameras)) == ("/odom", "t", ["front"])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"lidar": {"topic": "/nope", "stamp": "end", "turn_s": 0.1}},
            "topics of its type: /points",
        ),
        ({"lidar": {"topic": "/odom", "stamp": "compensated"}}, "it must be sensor_msgs/msg/Point"),
        ({"poses": {"topic": "/points"}}, "it must be nav_msgs/msg/Odometry"),
        ({"poses": {"tf": "earth"}}, "is reached by no transforms from 'earth'"),
        ({"vehicle": "car"}, "frame 'car'"),
        (
            {"lidar": {"topic": "/points", "stamp": "start", "time": "t"}},
            "has no field 't'; fields: x, y, z, intensity, ring",
        ),
        (
            {"lidar": {"topic": "/points", "stamp": "start", "time": "ring"}},
            "from the time in its name",
        ),
    ],
)
def test_what_a_bag_lacks_is_named(
    tmp_path: Path, scene: Path, changed: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput) as error:
        imported(tmp_path, scene, **changed)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"lidar": 3}, "must be a mapping"),
        ({"poses": {}}, "give topic, or tf"),
        ({"poses": {"topic": "/a", "tf": "map"}}, "give topic, or tf"),
        ({"clock": "ntp"}, "one of header, receive"),
        ({"vehicle": ""}, "must be a name"),
        ({"more": 1}, "unknown"),
        ({"cameras": {"front": {"topic": "/a"}}}, "has no info"),
        ({"cameras": {"front": {"topic": "/a", "info": "/b", "rectified": 1}}}, "true or false"),
    ],
)
def test_a_wrong_topics_file_is_refused(
    tmp_path: Path, scene: Path, tree: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump({**topics(scene), **tree}))
    with pytest.raises(BadInput) as error:
        read_topics(file)
    assert problem in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_bag_is_refused_by_name(
    tmp_path: Path, scene: Path, kind: str, share: float
) -> None:
    bag = write_bag(tmp_path / "bag", kind, lambda ros: messages(ros, scene))
    file = next(bag.glob("*.db3")) if kind == "ros2" else bag
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(topics(scene)))
    with pytest.raises(BadInput, match=r"bag.*cannot be read"):
        import_bag(bag, read_topics(tmp_path / "topics.yaml"), tmp_path / "out")
    assert not (tmp_path / "out/poses.csv").exists()


def test_a_calibration_that_changes_is_refused(tmp_path: Path, scene: Path) -> None:
    def edit(_: Ros, found: Iterator[Message]) -> Iterator[Message]:
        seen = 0
        for topic, time_us, message in found:
            if topic == "/CAM_FRONT/info":
                message.k[0] += seen
                seen += 1
            yield topic, time_us, message

    with pytest.raises(BadInput, match="/CAM_FRONT/info changes during the drive"):
        imported(tmp_path, scene, edit=edit)


Damage = Callable[[Any], None]


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: setattr(m, "point_step", 3),
        lambda m: setattr(m, "row_step", 2**31),
        lambda m: setattr(m, "data", m.data[:-5]),
        lambda m: setattr(m.fields[0], "datatype", 99),
        lambda m: setattr(m.fields[0], "offset", 4000),
        lambda m: setattr(m.fields[1], "name", "x"),
        lambda m: setattr(m, "width", 2**31),
    ],
)
def test_a_cloud_that_does_not_fit_its_sizes_is_refused(damage: Damage) -> None:
    rows = np.zeros(6, [(name, "<f4") for name in ("x", "y", "z", "intensity")])
    message = Ros(2).cloud(1, "lidar", rows)
    damage(message)
    with pytest.raises(BadInput, match="does not fit its sizes"):
        point_fields(message, "/points")


def test_the_tool_imports_and_the_scene_can_be_indexed(
    tmp_path: Path, scene: Path, tool: Run
) -> None:
    bag = write_bag(tmp_path / "bag", "mcap", lambda ros: messages(ros, scene))
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(topics(scene)))
    out = tmp_path / "data"
    made = tool("import_bag", f"bag={bag}", f"topics={tmp_path / 'topics.yaml'}", f"out={out}")
    assert made.path == out
    assert "sweeps" in made.err
    data = ["data.kind=folder", f"data.root={out}", "data.train=all", "data.eval=all"]
    own = [each for each in settings(out, tmp_path / "store") if each.startswith("store=")]
    index = tool("index", *data, *own, "data.sensor_height_m=1.84")
    assert index.path.name.startswith("index-")
    assert tool("import_bag", f"bag={bag}").status == 1

"""The demo in KITTI's layout.

Its files against the world they show, and every stage from logs to a submission.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clipsweep.pipeline.config import DemoConfig, load_config
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.datasets.semantickitti import SemanticKittiConfig
from clipsweep.pipeline.demo.kitti import SCAN_S, write_kitti_demo
from clipsweep.pipeline.demo.parts import rotation
from clipsweep.pipeline.demo.render import render
from clipsweep.pipeline.demo.rig import RigCamera, inverse, pose
from clipsweep.pipeline.demo.world import World, build_world
from clipsweep.pipeline.demo.write import VAL_SEED
from clipsweep.pipeline.labels import LabelsConfig, load_space
from clipsweep.projection.cameras import project
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, SweepLayout
from clipsweep.projection.sweeps import read_sweep
from tests.helpers import Run, settings

SMALL = DemoConfig(
    seed=1,
    train_scenes=1,
    val_scenes=1,
    key_frames=3,
    width_px=310,
    height_px=94,
    beams=64,
    azimuths=300,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kitti") / "root"
    write_kitti_demo(SMALL, out)
    return out


@pytest.fixture(scope="module")
def frames(root: Path) -> list[Frame]:
    own = SemanticKittiConfig()
    config = DataConfig("semantickitti", str(root), own=own, columns=4)
    found = [row.frame for row in DATASETS["semantickitti"].index(config)]
    return [frame for frame in found if isinstance(frame, Frame)]


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SMALL.seed, 0, (SMALL.key_frames - 1) * SCAN_S)


def raw(frame: Frame) -> np.ndarray:
    assert frame.labels is not None
    return np.frombuffer(frame.labels.read(), "<u4")


def street_from_global(world: World) -> np.ndarray:
    """The global frame is that of the first scan's LiDAR, on the roof of the car."""
    return world.drive.street_from_ego(0.0) @ pose(
        rotation(0.004, 0.006, -0.003), np.array([0.76, 0.0, 1.73])
    )


def test_the_reader_finds_all_of_it(frames: list[Frame]) -> None:
    assert [frame.id for frame in frames] == [
        f"{name}/{i:06d}" for name in ("00", "08") for i in range(3)
    ]
    for frame in frames:
        points = read_sweep(frame.sweeps[0], SweepLayout(4))
        pairs = project(points[:, :3].copy(), frame.sweeps[0].global_from_lidar, frame.cameras, 1.0)
        assert 0.14 < len(pairs) / len(points) < 0.20
        assert (points[pairs.point, 0] > 0).all()  # a teacher of this rig speaks of what lies ahead
        assert 0 <= points[:, 3].min() <= points[:, 3].max() <= 1
        assert len(points) == len(raw(frame))
        for name in ("semantickitti19", "demo_kitti13"):
            space = load_space(LabelsConfig(space=name))
            assert (space.from_raw(raw(frame) & 0xFFFF, Path("x")) < len(space)).mean() > 0.97


def test_points_lie_in_the_boxes_of_their_instances(frames: list[Frame], world: World) -> None:
    """Poses, calibration and instances together.

    Back in the street, points fill the boxes of their objects.
    """
    street = street_from_global(world)
    for i, frame in enumerate(frames[:3]):
        ids = raw(frame) & 0xFFFF
        instance = raw(frame) >> 16
        xyz = frame.sweeps[0].global_from_lidar.apply(
            read_sweep(frame.sweeps[0], SweepLayout(4))[:, :3]
        )
        xyz = xyz @ street[:3, :3].T + street[:3, 3]
        assert len(np.unique(instance)) > 20
        boxes = world.boxes(i * SCAN_S)
        for number in np.unique(instance[instance > 0]):
            obj = world.objects[number - 1]
            mine = instance == number
            box = boxes[number - 1]
            local = (xyz[mine] - box[:3, 3]) @ box[:3, :3]
            assert (np.abs(local) < np.array(obj.size_m) / 2 + 0.4).all()
            predicted = set(ids[mine].tolist())
            assert len(predicted) == 1
            assert (predicted <= {252, 253, 254, 255, 257, 258, 259}) == (obj.speed_mps > 0)
    assert {252, 254} & set(
        np.unique([*raw(frames[0]) & 0xFFFF, *raw(frames[2]) & 0xFFFF]).tolist()
    )


def test_scans_and_pictures_agree(frames: list[Frame], world: World) -> None:
    """The picture is that of the camera which the reader found; points lie as deep as it shows."""
    for i, frame in enumerate(frames[:3]):
        camera = frame.cameras[0]
        placed = street_from_global(world) @ np.vstack(
            [camera.global_from_cam.matrix(), [0, 0, 0, 1]]
        )
        ego_from_cam = inverse(world.drive.street_from_ego(i * SCAN_S)) @ placed
        view = render(
            world, RigCamera(camera.name, ego_from_cam, camera.K, camera.size_hw, 0.0), i * SCAN_S
        )
        stored = np.asarray(Image.open(camera.image.path), np.float64)
        assert np.abs(stored - view.colour).mean() < 0.05
        points = read_sweep(frame.sweeps[0], SweepLayout(4))[:, :3].copy()
        pairs = project(points, frame.sweeps[0].global_from_lidar, frame.cameras, 1.0)
        depth_m = view.depth_m[pairs.uv[:, 1].astype(int), pairs.uv[:, 0].astype(int)]
        assert (np.abs(depth_m / pairs.depth - 1) < 0.05).mean() > 0.9


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_kitti_demo(SMALL, tmp_path / "again")
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 2 * (3 * 3 + 3)
    assert all(
        (root / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files
    )


@pytest.mark.parametrize("wrong", [{"train_scenes": 11}, {"val_scenes": 2}])
def test_more_scenes_than_sequences_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="10 and 1 sequences"):
        write_kitti_demo(DemoConfig(**wrong), tmp_path / "root")


def test_flat_poses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="flat_poses: is true"):
        write_kitti_demo(DemoConfig(flat_poses=True), tmp_path / "root")


def test_poses_follow_the_hills(tmp_path: Path) -> None:
    config = replace(SMALL, train_scenes=0, key_frames=2, azimuths=100, hills_m=8.0)
    write_kitti_demo(config, tmp_path / "root")
    rows = np.loadtxt(tmp_path / "root/sequences/08/poses.txt").reshape(2, 3, 4)
    driven = build_world(config.seed, VAL_SEED, SCAN_S, 8.0).drive.street_from_ego(
        np.array([0.0, SCAN_S])
    )
    assert np.linalg.norm(rows[1, :, 3]) == pytest.approx(
        np.linalg.norm(driven[1, :3, 3] - driven[0, :3, 3]), rel=0.02
    )
    in_first = rows[1, :, :3]
    turned = driven[0, :3, :3].T @ driven[1, :3, :3]
    assert np.trace(in_first) == pytest.approx(np.trace(turned), abs=1e-9)


@pytest.mark.slow
def test_from_the_world_to_a_submission(tmp_path: Path, tool: Run) -> None:
    given = [
        *(
            "demo_kitti",
            f"data.root={tmp_path / 'data'}",
            f"store={tmp_path / 'store'}",
        ),
        *(
            "demo.train_scenes=2",
            "demo.key_frames=3",
            "demo.azimuths=400",
            "demo.width_px=310",
            "demo.height_px=94",
        ),
        *(
            "train.epochs=2",
            "model.voxel_m=0.4",
            "run.progress=false",
            "run.loaders=0",
            "evaluate=false",
        ),
    ]
    index = tool("index", *given).path
    assert json.loads((index / "manifest.json").read_text())["counts"]["frames"] == 9
    points = tool("label", *given).path
    covered = json.loads(
        (tool("evaluate", *given, f"pseudo_labels={points}").path / "scores.json").read_text()
    )["covered"]
    assert covered["accuracy"] > 0.5
    pretrained = tool("pretrain", *given).path
    tuned = tool("finetune", *given, f"student={pretrained}", "protocol=frame@1%").path
    assert json.loads((tuned / "manifest.json").read_text())["labelled_frames"] == ["00/000000"]
    scores = json.loads(
        (tool("evaluate", *given, f"student={tuned}").path / "scores.json").read_text()
    )
    assert scores["protocol"] == "frame@1%+unlabelled"
    assert (scores["frames"], scores["absent_class"]) == (3, "zero")
    out = tool("export_labels", *given, f"student={tuned}", f"out={tmp_path / 'entry'}").path
    space = load_space(load_config(given).labels)
    truths = [
        np.fromfile(path, "<u4") & 0xFFFF
        for path in (tmp_path / "data/sequences/08/labels").iterdir()
    ]
    # all around
    assert scores["points"] == (space.class_of_raw[np.concatenate(truths)] != 255).sum()
    for i in range(3):
        predicted = np.fromfile(out / f"sequences/08/predictions/{i:06d}.label", "<u4")
        truth = np.fromfile(tmp_path / f"data/sequences/08/labels/{i:06d}.label", "<u4")
        assert len(predicted) == len(truth)
        assert set(predicted.tolist()) <= set(space.export.tolist())
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert "sequences/08/predictions/" in archive.namelist()
        assert archive.testzip() is None
    other = tool("demo", f"out={tmp_path / 'data'}")
    assert other.status == 1
    assert "something else than this demo world" in other.err


def test_a_student_of_one_rig_is_scored_on_the_other(
    small_world: Path, root: Path, tmp_path: Path, tool: Run
) -> None:
    """Names carry the classes over: counted again here from raw predictions and raw ids."""
    student = tool("pretrain", *settings(small_world, tmp_path), "train.epochs=0").path
    given = [
        "data/semantickitti",
        f"data.root={root}",
        f"store={tmp_path}",
        f"student={student}",
    ]
    given += ["labels.space=nuscenes16", "labels.eval=shared12", "run.progress=false"]
    scores = json.loads(
        (tool("evaluate", *given, "labels.truth=demo_kitti13").path / "scores.json").read_text()
    )
    (shard,) = tmp_path.glob("predictions-*/08+*.safetensors")
    predictions = load_file(shard)
    names = load_space(LabelsConfig()).names
    called = {
        "pedestrian": "person",
        "driveable surface": "road",
        "other flat": "other ground",
        "barrier": "manmade",
    }
    called |= dict.fromkeys(("bus", "construction vehicle", "trailer"), "other vehicle")
    columns = [*scores["classes"], "traffic cone"]
    # of true road and vegetation, by its prediction; of "none" there is none
    counts = np.zeros((2, 14), np.int64)
    for i in range(3):
        ids = np.fromfile(root / f"sequences/08/labels/{i:06d}.label", "<u4") & 0xFFFF
        for row, id in enumerate((40, 70)):
            for predicted in predictions[f"08/{i:06d}"][ids == id]:
                counts[row, columns.index(called.get(names[predicted], names[predicted]))] += 1
    np.testing.assert_array_equal(
        np.array(scores["confusion"])[[columns.index("road"), 10]], counts
    )
    assert columns[10] == "vegetation"
    assert (counts.sum(1) > 1000).all()
    refused = tool("evaluate", *given)
    assert refused.status == 1
    assert "label ids unknown to nuscenes16" in refused.err
    assert tool("finetune", *given, "labels.truth=demo_kitti13").status == 1

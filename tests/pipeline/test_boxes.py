"""Annotated boxes as truth: which points lie in them, what they score, and who may not see them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsweep.distill.metrics import OTHER
from clipsweep.pipeline.artifacts.read import key_cloud, read_points
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.datasets.boxes import (
    OBJECT_POINTS,
    Box,
    box_truth,
    points_in_box,
    read_scene_boxes,
)
from clipsweep.pipeline.labels import LabelsConfig, load_scoring, load_space, load_truth
from clipsweep.pipeline.stages.boxes import BoxTruth, boxes_artifact, make_boxes
from clipsweep.pipeline.stages.guard import LabelLeak, closed_files, label_folders, no_labels
from clipsweep.pipeline.stages.index import find_parts, make_index, scene_frames
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame, SweepLayout
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import read_sweep
from tests.helpers import ROOT, Run, settings

SCENES = ("scene-0061", "scene-0103")
MERGED = f"{ROOT}/tests/configs/vehicle_pedestrian.yaml"
REAL = (f"{ROOT}/tests/configs/nuscenes.yaml", "run.progress=false")


def box(
    x_m: float,
    y_m: float,
    yaw_deg: float,
    category: str = "car",
    length_m: float = 4.0,
) -> Box:
    turn = np.deg2rad(yaw_deg) / 2
    pose = Pose.from_quaternion([np.cos(turn), 0.0, 0.0, np.sin(turn)], [x_m, y_m, 1.0])
    return Box(pose, np.array([length_m, 2.0, 1.5]), category)


def inside_by_corners(one: Box, xyz: np.ndarray) -> np.ndarray:
    """By the distances along the box's three edges from one of its corners."""
    half = 0.5 * one.size_m
    corner = one.global_from_box.apply(-half[None])[0]
    found = np.ones(len(xyz), bool)
    for axis, side in zip(one.global_from_box.rotation.T, one.size_m, strict=True):
        along = (xyz - corner) @ axis
        found &= (along >= -1e-9) & (along <= side + 1e-9)
    return found


def test_points_of_a_turned_box_are_those_between_its_faces() -> None:
    """
    y ^      the car is 4 m long and 2 m wide, its nose at 30 degrees
      |  .-'
      | '  /
      |.-'---> x
    """
    random = np.random.default_rng(0)
    xyz = random.uniform(-6, 6, (5000, 3)).astype(np.float32)
    for one in (box(0.0, 0.0, 30.0), box(2.0, -1.0, 200.0), box(-3.0, 3.0, 90.0, length_m=12.0)):
        expected = np.flatnonzero(inside_by_corners(one, xyz.astype(np.float64)))
        assert len(expected) > 20
        np.testing.assert_array_equal(points_in_box(one, xyz, Pose.identity()), expected)


def test_boxes_are_found_from_wherever_the_lidar_stands() -> None:
    random = np.random.default_rng(1)
    xyz = random.uniform(-5, 5, (2000, 3))
    global_from_lidar = Pose.from_quaternion([0.5, 0.5, 0.5, 0.5], [1e3, -2e3, 30.0])
    here = box(1.0, 1.0, 10.0)
    there = Box(global_from_lidar @ here.global_from_box, here.size_m, here.category)
    expected = points_in_box(here, xyz, Pose.identity())
    np.testing.assert_array_equal(points_in_box(there, xyz, global_from_lidar), expected)


def test_a_point_has_the_class_of_its_boxes_if_they_agree() -> None:
    class_of = {"car": 3, "van": 3, "bus": 2, "debris": NONE}
    boxes = [
        *(box(0.0, 0.0, 0.0), box(3.0, 0.0, 0.0, "van")),
        *(box(0.0, 10.0, 0.0, "bus"), box(3.0, 10.0, 0.0)),
        *(box(0.0, 20.0, 0.0, "debris"), box(3.0, 20.0, 0.0)),
        *(box(0.0, 30.0, 0.0, "bus"), box(0.0, 30.0, 0.0), box(0.0, 30.0, 0.0, "bus")),
    ]
    xs = np.array([-1, 1.5, 4, 9])
    ys = np.array([0, 10, 20, 30])
    xyz = np.stack([np.tile(xs, 4), np.repeat(ys, 4), np.ones(16)], axis=1)
    truth = box_truth(boxes, class_of, xyz, Pose.identity()).reshape(4, 4)
    assert truth.tolist() == [
        [3, 3, 3, OTHER],
        [2, NONE, 3, OTHER],
        [NONE, NONE, 3, OTHER],
        [NONE, NONE, OTHER, OTHER],
    ]
    with pytest.raises(BadInput, match=r"category 'tank': .*unknown to the label space"):
        box_truth([box(0.0, 0.0, 0.0, "tank")], class_of, xyz, Pose.identity())


# --- real boxes -----------------------------------------------------------------------------------


def test_every_real_box_holds_as_many_points_as_counted(samples: Path, tmp_path: Path) -> None:
    config = load_config([*REAL, f"store={tmp_path}"])
    index = make_index(config)
    path = make_boxes(config, index).shard("boxes")
    tables = samples / "nuscenes-0523/v1.0-trainval"
    annotated = counts_by_frame(tables)
    counts = {}
    stored = read_scene_boxes(path, "scene-0523")
    for frame in scene_frames(index, config, "scene-0523"):
        xyz = read_sweep(frame.sweeps[0], SweepLayout())[:, :3]
        pose = frame.sweeps[0].global_from_lidar
        counts[frame.id] = [len(points_in_box(one, xyz, pose)) for one in stored[frame.id]]
    assert sum(map(len, counts.values())) == 697
    assert {name: sorted(found) for name, found in counts.items()} == annotated


def counts_by_frame(tables: Path) -> dict[str, list[int]]:
    """``num_lidar_pts`` of the boxes of each frame, in rising order."""
    names = ("sample_data", "sample_annotation")
    read = {name: json.loads((tables / f"{name}.json").read_text()) for name in names}
    frame_of = {
        row["sample_token"]: row["token"]
        for row in read["sample_data"]
        if "LIDAR_TOP" in row["filename"] and row["is_key_frame"]
    }
    counts: dict[str, list[int]] = {frame: [] for frame in frame_of.values()}
    for row in read["sample_annotation"]:
        counts[frame_of[row["sample_token"]]].append(row["num_lidar_pts"])
    return {frame: sorted(found) for frame, found in counts.items()}


# --- scores ---------------------------------------------------------------------------------------


@pytest.fixture
def given(world: Path, tmp_path: Path) -> list[str]:
    return [*settings(world, tmp_path / "store"), "data.eval=mini_train,mini_val"]


def by_hand(
    config: Config,
    index: Artifact,
    points: Artifact,
    names: dict[str, set[str]],
) -> dict[str, float | None]:
    """IoU of each name of the table, as sets of points; a frame's boxes are taken one by one."""
    space = load_space(config.labels)
    both = dict.fromkeys(names, 0)
    either = dict.fromkeys(names, 0)
    for scene in SCENES:
        stored = read_scene_boxes(boxes_artifact(index).shard("boxes"), scene)
        for frame in scene_frames(index, config, scene):
            xyz = read_sweep(frame.sweeps[0], SweepLayout())[:, :3].astype(np.float64)
            inside = {name: np.zeros(len(xyz), bool) for name in (*names, "ignored")}
            for one in stored[frame.id]:
                local = one.global_from_box.inverse() @ frame.sweeps[0].global_from_lidar
                own = space.boxes[one.category]
                title = space.names[own] if own != NONE else ""
                table = next((name for name, parts in names.items() if title in parts), "ignored")
                inside[table] |= (np.abs(local.apply(xyz)) <= one.size_m / 2).all(axis=1)
            own_car = (np.abs(xyz[:, :2]) < config.data.ego_box_m).all(axis=1)
            twice = sum(mask.astype(int) for mask in inside.values()) > 1
            counted = ~(own_car | twice | inside["ignored"])
            label = read_points(points, frame).label
            for name, parts in names.items():
                called = np.isin(label, [space.names.index(part) for part in parts])
                both[name] += int((called & inside[name] & counted).sum())
                either[name] += int(((called | inside[name]) & counted).sum())
    return {name: both[name] / either[name] if either[name] else None for name in names}


def test_scores_are_those_counted_by_hand(given: list[str], world: Path, tool: Run) -> None:
    """With noise for labels, so that every kind of error occurs."""
    points = tool("label", *given).path
    config = load_config(given)
    index = make_index(config)
    noise = relabelled(find_parts(Artifact(points), index, SCENES), index, config)
    single = {name: {name} for name in load_space(config.labels).names[:10]}
    parts = {"car", "bus", "truck", "trailer", "construction vehicle"}
    merged = {"vehicle": parts, "pedestrian": {"pedestrian"}}
    for names, more in ((single, ()), (merged, (f"labels.eval={MERGED}",))):
        scored = tool(
            "evaluate", *given, f"pseudo_labels={noise.path}", "labels.truth=boxes", *more
        )
        tree = json.loads((scored.path / "scores.json").read_text())
        assert tree["classes"] == list(names)
        assert tree["iou"] == pytest.approx(by_hand(config, index, noise, names))
        present = [value for value in tree["iou"].values() if value is not None]
        assert tree["miou"] == pytest.approx(np.mean(present))
        assert 0 < tree["miou"] < 0.5
        assert np.trace(tree["confusion"]) / np.sum(tree["confusion"]) == tree["accuracy"]
        assert (np.sum(tree["confusion"]), tree["frames"]) == (tree["points"], 6)
        assert min(tree["in_no_box"].values()) > 0
        assert "points in annotated boxes" in scored.err
        assert "driveable surface" not in scored.err


def test_an_object_is_right_if_most_of_its_points_are(
    given: list[str], world: Path, tool: Run
) -> None:
    points = tool("label", *given).path
    config = load_config(given)
    index = make_index(config)
    noise = relabelled(find_parts(Artifact(points), index, SCENES), index, config)
    scored = tool("evaluate", *given, f"pseudo_labels={noise.path}", "labels.truth=boxes")
    found = json.loads((scored.path / "scores.json").read_text())["objects"]
    space = load_space(config.labels)
    counts = {name: {"objects": 0, "right": 0} for name in found}
    for scene in SCENES:
        boxes = read_scene_boxes(make_boxes(config, index).payload("boxes"), scene)
        for frame in scene_frames(index, config, scene):
            cloud = key_cloud(frame, config)
            label = read_points(noise, frame).label[cloud.source]
            pose = frame.sweeps[0].global_from_lidar
            for one in boxes[frame.id]:
                own = space.boxes[one.category]
                votes = Counter(label[points_in_box(one, cloud.xyz, pose)].tolist())
                if own == NONE or sum(votes.values()) < OBJECT_POINTS:
                    continue
                counts[space.names[own]]["objects"] += 1
                most = max(sorted(votes), key=votes.__getitem__)
                counts[space.names[own]]["right"] += most == own
    assert found == counts
    right = sum(each["right"] for each in found.values())
    assert 0 < right < sum(each["objects"] for each in found.values())
    assert "objects: annotated ones" in scored.err


def relabelled(points: Artifact, index: Artifact, config: Config) -> Artifact:
    """Other labels: half of the points in boxes are right, all others of any class or none."""
    random = np.random.default_rng(0)
    space = load_space(config.labels)
    truth_of = BoxTruth(config, make_boxes(config, index), space.boxes)
    other = Artifact.of(config.store, "points", dict(points.manifest()["key"], noise=1), [index])
    for scene in SCENES:
        arrays: dict[str, np.ndarray] = {}
        for frame in scene_frames(index, config, scene):
            truth = truth_of(frame)
            label = random.integers(0, 17, len(truth), np.uint8)
            label[label == 16] = NONE
            right = (truth < OTHER) & (random.random(len(truth)) < 0.5)
            label[right] = truth[right]
            arrays[f"{frame.id}/label"] = label
            for name in ("score", "agreement"):
                arrays[f"{frame.id}/{name}"] = np.ones(len(truth), np.float16)
        (part,) = (part for part in points.parts if part.scene == scene)
        other.commit_arrays(part.shard, arrays, **part.facts())
    other.finish([part.shard for part in points.parts], config, 0.0)
    return other.holding(points.parts)


def test_a_student_is_scored_on_boxes(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given).path
    scored = tool("evaluate", *given, f"student={student}", "labels.truth=boxes")
    tree = json.loads((scored.path / "scores.json").read_text())
    assert len(tree["classes"]) == 10
    assert tree["points"] > 0
    assert "covered" not in tree
    again = tool("evaluate", *given, f"student={student}", "labels.truth=boxes")
    assert again.path == scored.path
    assert tool("evaluate", *given, f"student={student}").path != scored.path


def test_the_cars_own_returns_are_left_out(small_world: Path, tmp_path: Path) -> None:
    config = load_config([*settings(small_world, tmp_path), "data.ego_box_m=6"])
    index = make_index(config)
    truth_of = BoxTruth(config, make_boxes(config, index), load_space(config.labels).boxes)
    for frame in scene_frames(index, config, "scene-0103"):
        xyz = read_sweep(frame.sweeps[0], SweepLayout())[:, :3]
        truth = truth_of(frame)
        near = (np.abs(xyz[:, :2]) < 6).all(axis=1)
        assert near.any()
        assert (truth[near] == NONE).all()
        assert (truth[~near] != NONE).any()


# --- label spaces ---------------------------------------------------------------------------------


def test_the_table_has_the_classes_that_boxes_define() -> None:
    """Manmade is barriers, which have boxes, and buildings, which have none."""
    config = LabelsConfig(truth="boxes", eval="shared12")
    scoring = load_scoring(config, load_space(config), load_truth(config))
    vehicles = ("car", "bicycle", "motorcycle", "truck", "other vehicle")
    assert scoring.names == (*vehicles, "person")
    space = load_space(config)
    mapped = dict(zip(space.names, scoring.of_truth.tolist(), strict=True))
    assert (mapped["trailer"], mapped["pedestrian"], mapped["barrier"]) == (4, 5, NONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "semantickitti19"}, "has no class for annotated boxes"),
        ({"names": "a red bus"}, r"labels\.names: has no class"),
        ({"eval": "ground.yaml"}, "no class of ground is annotated with boxes alone"),
    ],
)
def test_classes_without_boxes_are_refused(
    tmp_path: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    path = tmp_path / "ground.yaml"
    path.write_text("names: [ground]\nfrom: {sidewalk: ground, terrain: ground}\n")
    changes = {key: str(path) if key == "eval" else value for key, value in changes.items()}
    config = LabelsConfig(truth="boxes", **changes)
    with pytest.raises(BadInput, match=message):
        load_scoring(config, load_space(config), load_truth(config))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("[car]", "boxes must map categories to classes"),
        ("{vehicle.car: cra}", "'vehicle.car' is 'cra', which is no class"),
        ("{vehicle.car: [car]}", "which is no class"),
    ],
)
def test_a_malformed_map_of_boxes_is_refused(tmp_path: Path, boxes: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    car = "{name: car, raw: [1], export: 1, color: [0, 0, 0]}"
    path.write_text(f"classes: [{car}]\nboxes: {boxes}\n")
    with pytest.raises(BadInput, match=message):
        load_space(LabelsConfig(space=str(path)))


# --- bad input ------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, Any]] = {
    "rotation of length 2": ("rotation", [2.0, 0.0, 0.0, 0.0]),
    "three numbers": ("rotation", [1.0, 0.0, 0.0]),
    "no rotation": ("rotation", None),
    "far away": ("translation", [1e300, 0.0, 0.0]),
    "nowhere": ("translation", [float("nan"), 0.0, 0.0]),
    "flat": ("size", [0, 4, 1.5]),
    "huge": ("size", [2, 60, 1.5]),
    "nan": ("size", [2, float("nan"), 1.5]),
    "two sides": ("size", [2, 4]),
    "words": ("size", "large"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_malformed_box_costs_its_frame(given: list[str], world: Path, damage: str) -> None:
    column, value = DAMAGES[damage]
    token = edited(world, lambda row: row.update({column: value}))
    failing = load_config(given)
    skipping = load_config([*given, "on_bad=skip"])
    with pytest.raises(BadInput, match=f"scene-0061: sample_annotation {token}.*on_bad=skip"):
        make_boxes(failing, make_index(failing))
    index = make_index(skipping)  # has no use for boxes, and lacks no frame
    boxes = make_boxes(skipping, index)
    (skip,) = boxes.skipped()
    assert f"sample_annotation {token}" in skip.reason
    truth_of = BoxTruth(skipping, boxes, load_space(skipping.labels).boxes)
    bad, *good = scene_frames(index, skipping, "scene-0061")
    assert (bad.id, bad.scene, len(good)) == (skip.frame, skip.scene, 2)
    assert all((truth_of(frame) < OTHER).any() for frame in good)
    with pytest.raises(BadInput, match=token):
        truth_of(bad)


def test_a_malformed_box_costs_its_frame_in_the_scores(
    given: list[str],
    world: Path,
    tool: Run,
) -> None:
    edited(world, lambda row: row.pop("size"))
    points = tool("label", *given).path
    refused = tool("evaluate", *given, f"pseudo_labels={points}", "labels.truth=boxes")
    assert (refused.status, refused.out) == (1, "")
    assert len(refused.err.strip().splitlines()) == 1
    assert "a row of sample_annotation, has no 'size'" in refused.err
    skipping = [*given, "on_bad=skip"]
    points = tool("label", *skipping).path
    scored = tool("evaluate", *skipping, f"pseudo_labels={points}", "labels.truth=boxes")
    assert json.loads((scored.path / "scores.json").read_text())["frames"] == 5
    assert "has no 'size'" in scored.err.strip().splitlines()[-1]
    assert [skip.scene for skip in Artifact(scored.path).skipped()] == ["scene-0061"]


def edited(root: Path, change: Callable[[dict], object]) -> str:
    """Changes the first box of the training scene; answers its token."""
    path = root / "v1.0-mini/sample_annotation.json"
    scenes = json.loads((root / "v1.0-mini/scene.json").read_text())
    samples = json.loads((root / "v1.0-mini/sample.json").read_text())
    scene = next(row["token"] for row in scenes if row["name"] == "scene-0061")
    own = {row["token"] for row in samples if row["scene_token"] == scene}
    rows = json.loads(path.read_text())
    row = next(row for row in rows if row["sample_token"] in own)
    change(row)
    path.write_text(json.dumps(rows))
    return str(row["token"])


def test_an_unknown_category_is_named(given: list[str], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    known = (CONFIGS / "labels/nuscenes16.yaml").read_text()
    space.write_text(known.replace("vehicle.car: car", "vehicle.hovercraft: car"))
    given = [*given, f"labels.space={space}"]
    with pytest.raises(BadInput, match=r"category 'vehicle\.car'.*add it to the space's `boxes`"):
        truth_of_all(load_config(given))


def truth_of_all(config: Config) -> list[np.ndarray]:
    index = make_index(config)
    truth_of = BoxTruth(config, make_boxes(config, index), load_space(config.labels).boxes)
    return [truth_of(frame) for scene in SCENES for frame in scene_frames(index, config, scene)]


def test_scenes_without_annotations_have_no_score(given: list[str], world: Path, tool: Run) -> None:
    for name in ("sample_annotation", "instance"):
        (world / f"v1.0-mini/{name}.json").write_text("[]")
    points = tool("label", *given).path
    refused = tool("evaluate", *given, f"pseudo_labels={points}", "labels.truth=boxes")
    assert "no point lies in an annotated box" in refused.err


def test_damaged_boxes_are_named_and_mended(given: list[str], world: Path) -> None:
    config = load_config(given)
    index = make_index(config)
    path = make_boxes(config, index).shard("boxes")
    kept = path.read_bytes()
    path.write_bytes(b"\0" * len(kept))
    with pytest.raises(BadInput, match=r"boxes\.parquet: is damaged .*verify=true"):
        read_scene_boxes(path, "scene-0061")
    make_boxes(load_config([*given, "verify=true"]), index)
    assert path.read_bytes() == kept


def test_kitti_has_no_boxes() -> None:
    config = load_config(["data.kind=semantickitti", "labels.truth=boxes"])
    with pytest.raises(BadInput, match="semantickitti has no annotated boxes"):
        make_boxes(config, Artifact(Path("index-0")))


# --- the guard ------------------------------------------------------------------------------------


def test_no_box_is_in_the_index(small_world: Path, tmp_path: Path, tool: Run) -> None:
    tool("pretrain", *settings(small_world, tmp_path / "store"))
    assert not list((tmp_path / "store").glob("boxes-*"))
    for path in (tmp_path / "store").rglob("*.parquet"):
        assert b"vehicle.car" not in path.read_bytes()


@pytest.mark.parametrize("through", ["store", "table"])
def test_boxes_read_in_a_training_without_labels_end_it(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    from clipsweep.projection import fusion

    given = settings(small_world, tmp_path / "store")
    config = load_config(given)
    stored = make_boxes(config, make_index(config)).shard("boxes")
    table = small_world / "v1.0-mini/sample_annotation.json"
    honest = fusion.merge

    def peeking(frame: Frame, *arguments: object) -> object:
        if list((tmp_path / "store").glob("student-*")):  # the labelling stages come first
            read_scene_boxes(stored, frame.scene) if through == "store" else table.read_bytes()
        return honest(frame, *arguments)

    monkeypatch.setattr(fusion, "merge", peeking)
    name = stored.name if through == "store" else table.name
    ended = tool("pretrain", *given)
    assert (ended.status, ended.out) == (1, "")
    assert f"{name} was opened in an annotation-free run" in ended.err.splitlines()[-1]
    assert not list((tmp_path / "store").glob("student-*/manifest.json"))


def test_boxes_of_any_index_are_guarded(small_world: Path, tmp_path: Path) -> None:
    given = settings(small_world, tmp_path)
    one, two = (load_config([*given, f"data.eval={scene}"]) for scene in SCENES)
    other = make_boxes(one, make_index(one))
    index = make_index(two)
    guarded = label_folders(two.data, index)
    assert {other.path, boxes_artifact(index).path} <= set(guarded)
    assert not boxes_artifact(index).path.exists()  # it may be made while the student is trained
    with no_labels(closed_files(guarded)):
        (small_world / "v1.0-mini/sample.json").read_bytes()
        with pytest.raises(LabelLeak):
            make_boxes(two, index)
        with pytest.raises(LabelLeak):
            read_scene_boxes(other.shard("boxes"), "scene-0061")

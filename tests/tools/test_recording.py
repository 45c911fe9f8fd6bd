"""Recordings for the Rerun viewer, read back by rerun itself."""

from __future__ import annotations

import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.read import key_cloud
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports.recording import record_drive
from clipsweep.pipeline.reports.views import true_classes
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import labelled_frames, open_points
from tests.helpers import Run, settings

rerun = pytest.importorskip("rerun", reason="rerun-sdk is not installed")
dataframe = pytest.importorskip("rerun.dataframe")

CLOUDS = {f"/scene/lidar/{name}" for name in ("labels", "truth", "errors", "score")}


def entities(recording: Any) -> set[str]:
    return {column.entity_path for column in recording.schema().component_columns()}


def column(recording: Any, entity: str, component: str) -> list[np.ndarray]:
    """Values of a component at each key frame that has some."""
    view = recording.view(index="frame", contents=entity)
    table = view.select(f"{entity}:{component}").read_all()
    return [np.array(value.as_py()) for value in table.column(0) if value.as_py() is not None]


@pytest.fixture
def labelled(small_world: Path, small_store: Path) -> tuple[list[str], Path]:
    """Settings of a run on the small world, and its pseudo-labels."""
    return settings(small_world, small_store), next(small_store.glob("points-*"))


def test_a_recording_holds_points_cameras_and_labels_of_all_frames(
    labelled: tuple[list[str], Path], tool: Run
) -> None:
    given, points = labelled
    path = tool("view", *given, f"pseudo_labels={points}", "format=rerun").path
    assert path.suffix == ".rrd"
    recording = dataframe.load_recording(path)
    found = entities(recording)
    assert found >= CLOUDS
    assert "/scene/path" in found
    for camera in ("CAM_FRONT", "CAM_BACK_LEFT"):
        inside = (f"/scene/cameras/{camera}{part}" for part in ("", "/image", "/points"))
        assert {*inside, f"/pixels/{camera}"} <= found
    assert {"time", "frame"} <= {index.name for index in recording.schema().index_columns()}

    config = load_config(given)
    index = make_index(config)
    space = load_space(config.labels)
    expected = list(labelled_frames(config, index, open_points(config, index, str(points))))
    labels = column(recording, "/scene/lidar/labels", "ClassId")
    truth = column(recording, "/scene/lidar/truth", "ClassId")
    positions = column(recording, "/scene/lidar/labels", "Position3D")
    images = column(recording, "/scene/cameras/CAM_FRONT/image", "Blob")
    assert len(labels) == len(truth) == len(positions) == len(images) == len(expected) == 3
    for number, (frame, label) in enumerate(expected):
        cloud = key_cloud(frame, config)
        assert labels[number].tolist() == label[cloud.source].tolist()
        true = true_classes(config, frame, space)
        assert true is not None
        assert truth[number].tolist() == true[cloud.source].tolist()
        np.testing.assert_array_equal(positions[number].astype(np.float32), cloud.xyz)
        front = next(camera for camera in frame.cameras if camera.name == "CAM_FRONT")
        assert bytes(images[number].astype(np.uint8).ravel()) == front.image.path.read_bytes()


def test_classes_have_their_names_and_colours(labelled: tuple[list[str], Path], tool: Run) -> None:
    given, points = labelled
    path = tool("view", *given, f"pseudo_labels={points}", "format=rerun").path
    recording = dataframe.load_recording(path)
    view = recording.view(index="frame", contents="/")
    legend = view.select_static("/:AnnotationContext").read_all().column(0)[0].as_py()
    space = load_space(load_config(given).labels)
    named = {row["class_id"]: row["class_description"]["info"]["label"] for row in legend[0]}
    assert named == {**dict(enumerate(space.names)), 255: "no label"}


def test_points_project_where_the_picture_draws_them(
    labelled: tuple[list[str], Path], tool: Run
) -> None:
    """The recorded extrinsics and intrinsics put the recorded points on the recorded pixels."""
    given, points = labelled
    path = tool("view", *given, f"pseudo_labels={points}", "format=rerun").path
    recording = dataframe.load_recording(path)
    lidar = "/scene/lidar"
    camera = "/scene/cameras/CAM_FRONT"

    def pose(entity: str) -> tuple[np.ndarray, np.ndarray]:
        matrix = column(recording, entity, "TransformMat3x3")[1].reshape(3, 3).T
        return matrix, column(recording, entity, "Translation3D")[1].reshape(3)

    xyz = column(recording, f"{lidar}/labels", "Position3D")[1]
    rotation, place = pose(lidar)
    turn, centre = pose(camera)
    seen = ((xyz @ rotation.T + place) - centre) @ turn
    K = column(recording, camera, "PinholeProjection")[1].reshape(3, 3).T
    front = seen[seen[:, 2] > 0.5]
    projected = front @ K.T
    projected = projected[:, :2] / projected[:, 2:]
    recorded = column(recording, f"{camera}/points", "Position2D")[1]
    assert len(recorded) > 50
    distance = np.abs(recorded[:, None] - projected[None]).max(2).min(1)
    assert distance.max() < 0.1


def test_data_without_truth_are_recorded_without(world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(world, tmp_path / "store")
    shutil.rmtree(world / "lidarseg")
    (world / "v1.0-mini/lidarseg.json").unlink()
    points = tool("label", *given).path
    path = tool("view", *given, f"pseudo_labels={points}", "format=rerun").path
    found = entities(dataframe.load_recording(path))
    assert "/scene/lidar/labels" in found
    assert not found & {"/scene/lidar/truth", "/scene/lidar/errors"}


def test_missing_pixel_labels_are_told_of(labelled: tuple[list[str], Path], tool: Run) -> None:
    given, points = labelled
    shutil.rmtree(next(points.parent.glob("pixels-*")))
    made = tool("view", *given, f"pseudo_labels={points}", "format=rerun")
    assert "recorded without pixel labels" in made.err
    assert not any(
        name.startswith("/pixels") for name in entities(dataframe.load_recording(made.path))
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["format=rerun", "out=drive.png"], "is no name of a recording"),
        (["format=rerun", "frame=0"], "records all"),
        (["out=drive.rrd"], "is no name of a picture"),
        (["format=gif"], "format"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    labelled: tuple[list[str], Path], tool: Run, arguments: list[str], problem: str
) -> None:
    given, points = labelled
    refused = tool("view", *given, f"pseudo_labels={points}", *arguments)
    assert refused.status == 1
    assert problem in refused.err


def test_without_rerun_it_says_what_to_install(
    labelled: tuple[list[str], Path], tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, points = labelled
    monkeypatch.setitem(sys.modules, "rerun", None)
    refused = tool("view", *given, f"pseudo_labels={points}", "format=rerun")
    assert refused.status == 1
    assert "rerun-sdk is not installed" in refused.err


def test_a_broken_drive_leaves_no_recording(
    labelled: tuple[list[str], Path], tool: Run, tmp_path: Path
) -> None:
    given, points = labelled
    out = tmp_path / "drive.rrd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipsweep.pipeline.reports.recording.visible_pairs", None)
        with pytest.raises(TypeError):
            tool("view", *given, f"pseudo_labels={points}", "format=rerun", f"out={out}")
    assert [path.name for path in tmp_path.iterdir() if "drive" in path.name] == []


def test_a_full_disk_is_an_error_and_keeps_the_recording_before(
    labelled: tuple[list[str], Path], tool: Run, tmp_path: Path
) -> None:
    given, points = labelled
    out = tmp_path / "drive.rrd"
    out.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        full = tool("view", *given, f"pseudo_labels={points}", "format=rerun", f"out={out}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.status == 1
    assert "drive.rrd" in full.err
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if "drive" in path.name] == ["drive.rrd"]


def test_a_frame_does_not_show_truth_and_images_of_the_one_before(
    labelled: tuple[list[str], Path], tmp_path: Path
) -> None:
    given, points = labelled
    config = load_config(given)
    index = make_index(config)
    labels = open_points(config, index, str(points))
    first, second, third = labelled_frames(config, index, labels)
    poorer = replace(second[0], labels=None, cameras=second[0].cameras[:1])
    out = tmp_path / "drive.rrd"
    drive = iter([first, (poorer, second[1]), third])
    record_drive(config, labels, drive, None, out)
    recording = dataframe.load_recording(out)
    gone = second[0].cameras[1].name
    for entity, component, shown in (
        ("/scene/lidar/truth", "ClassId", [True, False, True]),
        ("/scene/lidar/errors", "Color", [True, False, True]),
        ("/scene/lidar/labels", "ClassId", [True, True, True]),
        (f"/scene/cameras/{gone}/image", "Blob", [True, False, True]),
    ):
        view = recording.view(index="frame", contents="/scene/**").fill_latest_at()
        rows = view.select("frame", f"{entity}:{component}").read_all().to_pydict()
        last = dict(zip(*rows.values(), strict=True))
        assert [bool(last[number]) for number in range(3)] == shown, entity


def test_a_folder_is_no_recording(
    labelled: tuple[list[str], Path], tool: Run, tmp_path: Path
) -> None:
    given, points = labelled
    out = tmp_path / "drive.rrd"
    out.mkdir()
    refused = tool("view", *given, f"pseudo_labels={points}", "format=rerun", f"out={out}")
    assert refused.status == 1
    assert "is no name of a recording" in refused.err

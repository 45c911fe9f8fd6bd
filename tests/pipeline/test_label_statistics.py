"""The report on labels: its counts against plain loops, its table and its picture."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.artifacts.read import key_cloud, read_pixels, read_points, read_truth
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports import label_statistics as statistics
from clipsweep.pipeline.reports.label_statistics import label_statistics
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.projection.frames import NONE, Frame
from clipsweep.projection.fusion import visible_pairs
from tests.helpers import Run, settings


@pytest.fixture
def made(world: Path, tmp_path: Path) -> tuple[Config, Artifact, Artifact, Artifact]:
    """Labels of random blocks, so that cameras and frames disagree."""
    random = np.random.default_rng(0)
    for path in sorted((world / "labels2d").rglob("*.png")):
        blocks = random.choice(np.array([0, 2, 8, 13, 255], np.uint8), (8, 16))
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path)
    config = load_config(settings(world, tmp_path / "store"))
    index = make_index(config)
    pixels = make_pixels(config, index)
    return config, index, pixels, make_points(config, index, pixels)


def test_counts_are_those_of_plain_loops(made: tuple[Config, Artifact, Artifact, Artifact]) -> None:
    config, index, pixels, points = made
    space = load_space(config.labels)
    found = label_statistics(*made)
    classes = len(space)
    cameras, frames, truth, fused = (np.zeros((classes, classes + 2), np.int64) for _ in range(4))
    labels = np.zeros(classes + 1, np.int64)
    for scene in scenes_of(index):
        before: dict[tuple[int, ...], int] = {}
        first = scene_frames(index, config, scene)[0].sweeps[0].global_from_lidar
        for frame in scene_frames(index, config, scene):
            cloud = key_cloud(frame, config)
            images = read_pixels(pixels, frame)
            for image in images:
                labels += np.bincount(
                    np.where(image.label == NONE, classes, image.label).ravel(),
                    minlength=classes + 1,
                )
            true = read_truth(frame, space, config)
            of_points = read_points(points, frame).label
            assert true is not None
            xyz = (first.inverse() @ frame.sweeps[0].global_from_lidar).apply(
                cloud.xyz.astype(np.float64)
            )
            cells = defaultdict(Counter)
            seen = defaultdict(list)
            pairs = visible_pairs(frame, cloud.xyz, config.fusion)
            for point, camera, (u, v) in zip(pairs.point, pairs.camera, pairs.uv, strict=True):
                grid = images[camera].label
                (height, width) = frame.cameras[camera].size_hw
                label = grid[
                    int(v * np.float32(grid.shape[0] / height)),
                    int(u * np.float32(grid.shape[1] / width)),
                ]
                if label == NONE:
                    continue
                seen[point].append(label)
                cell = tuple(np.floor(xyz[point] / config.fusion.cell_m).astype(int))
                cells[cell][label] += 1
                if cell in before:
                    frames[label, before[cell]] += 1
                    frames[before[cell], label] += 1
                if scene in scenes_of(index, "eval") and true[cloud.source[point]] != NONE:
                    truth[true[cloud.source[point]], label] += 1
            for of_point in seen.values():
                for one, two in pairwise(of_point):
                    cameras[one, two] += 1
                    cameras[two, one] += 1
            before = {
                cell: max(sorted(votes), key=votes.__getitem__) for cell, votes in cells.items()
            }
            if scene in scenes_of(index, "eval"):
                fused += Confusion.of(true, of_points, classes).counts
    np.testing.assert_array_equal(found.pixels, labels)
    assert found.confidence.tolist() == [0] * 19 + [labels[:-1].sum()]
    for counted, expected in (
        (found.cameras, cameras),
        (found.frames, frames),
        (found.pixels_truth, truth),
        (found.points_truth, fused),
    ):
        assert 0 < np.trace(expected) < expected.sum()
        np.testing.assert_array_equal(counted.counts, expected)
    for sure, counts in ((found.pixels_sure, truth), (found.points_sure, fused[:, :classes])):
        assert [sure.count.sum(), sure.right.sum()] == [counts.sum(), np.trace(counts)]


def test_no_truth_of_training_scenes_is_opened(
    made: tuple[Config, Artifact, Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def watched(frame: Frame, *rest: object) -> None:
        opened.append(frame.scene)

    monkeypatch.setattr(statistics, "read_truth", watched)
    found = label_statistics(*made)
    assert set(opened) == set(scenes_of(made[1], "eval")) < set(scenes_of(made[1]))
    assert found.points_truth.points == found.points_sure.count.sum() == 0


def test_the_report_is_printed_and_drawn(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = [*settings(small_world, tmp_path / "store"), f"report={tmp_path / 'report.png'}"]
    made = tool("label", *given)
    assert made.path.name.startswith("points-")
    table, mistakes = made.err.split("most frequent mistakes", 1)
    rows = {line.split("  ")[0]: line.split()[-6:] for line in table.splitlines()}
    assert rows["labelled"][2:] == ["-"] * 4
    assert float(rows["labelled"][0]) == 100  # every pixel of these label images has a label
    assert rows["car"] == ["0.0", "0.0", *rows["car"][2:]]
    assert "point IoU" in made.err
    assert float(rows["calibration error"][-1]) > 0
    assert "% no label" in mistakes
    assert (tmp_path / "report.png").stat().st_size > 50_000
    assert "point IoU" not in tool("label", *given, "data.eval=[]").err


def without_lidarseg(world: Path) -> None:
    (world / "v1.0-mini/lidarseg.json").unlink()
    shutil.rmtree(world / "lidarseg")


def test_boxes_are_the_truth_where_there_are_no_label_files(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    given = [*settings(world, tmp_path / "store"), f"report={tmp_path / 'report.png'}"]
    assert ", truth from label files" in tool("label", *given).err
    without_lidarseg(world)
    report, mistakes = tool("label", *given).err.split("most frequent mistakes", 1)
    assert ", truth from annotated boxes" in report
    assert "driveable surface  " not in mistakes
    rows = {line.split("  ")[0]: line.split() for line in report.splitlines()}
    assert rows["driveable surface"][-2:] == ["-", "-"]  # boxes tell nothing of it
    assert 0 <= float(rows["car"][-1]) <= 100


def test_bad_boxes_that_nobody_asked_for_cost_the_report_its_truth_alone(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    without_lidarseg(world)
    path = world / "v1.0-mini/sample_annotation.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "size": [0, 0, 0]} for row in rows]))
    given = [*settings(world, tmp_path / "store"), f"report={tmp_path / 'report.png'}"]
    made = tool("label", *given)
    assert made.path.name.startswith("points-")
    assert "the report goes without truth: frame " in made.err
    assert "point IoU" not in made.err
    refused = tool("label", *given, "labels.truth=boxes")
    assert refused.status == 1
    assert "length, width, height" in refused.err


def test_boxes_that_a_data_set_does_not_have_are_refused_before_labelling(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = [*settings(small_world, tmp_path / "store"), f"report={tmp_path / 'report.png'}"]
    refused = tool("label", *given, "labels.truth=boxes", "labels.names=a bus, a tree")
    assert refused.status == 1
    assert "has no class for annotated boxes" in refused.err
    assert not list((tmp_path / "store").glob("pixels-*"))


def moved(counts: dict[tuple[str, str], int]) -> statistics.LabelStatistics:
    space = load_space(Config().labels)
    table = np.zeros((len(space), len(space) + 2), np.int64)
    for (pixel, fused), count in counts.items():
        column = space.names.index(fused) if fused in space.names else len(space) + 1
        table[space.names.index(pixel), column] = count
    none = statistics._nothing(len(space))
    return replace(none, moved=replace(none.moved, counts=table))


def test_road_that_becomes_cars_is_warned_of() -> None:
    road = "driveable surface"
    car = "car"
    found = moved({(road, road): 540, (road, car): 100, (road, "pedestrian"): 20, (road, ""): 340})
    (warning,) = statistics.statistics_warnings(found, load_space(Config().labels))
    assert warning == (
        "driveable surface: 46 % of the points of such pixels are not ground after fusion"
        " (34 % no label, 10 % car, 2 % pedestrian)"
    )


def test_people_that_get_lost_are_warned_of() -> None:
    person = "pedestrian"
    wall = "manmade"
    found = moved({(person, wall): 374, (person, person): 3, (wall, wall): 1000})
    (warning,) = statistics.statistics_warnings(found, load_space(Config().labels))
    assert (
        warning
        == "pedestrian: fusion leaves 1 % as many of the points that cameras see (99 % manmade)"
    )


def test_no_warning_for_labels_that_stay_or_are_few() -> None:
    road = "driveable surface"
    stay = moved({(road, road): 990, (road, "car"): 10, ("pedestrian", "manmade"): 60})
    assert statistics.statistics_warnings(stay, load_space(Config().labels)) == []

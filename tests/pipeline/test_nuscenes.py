"""The nuScenes reader against known facts of real and made logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.index import (
    Row,
    Skip,
    read_images,
    read_index,
    read_scenes,
    to_parquet,
)
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.datasets.checks import check_intrinsics, checked_time
from clipsweep.pipeline.datasets.nuscenes import NuscenesConfig
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, SweepLayout
from clipsweep.projection.sweeps import read_sweep


def rows(config: DataConfig) -> list[Row]:
    return list(DATASETS[config.kind].index(config))


def frames(config: DataConfig) -> list[Frame]:
    found = [row.frame for row in rows(config)]
    return [frame for frame in found if isinstance(frame, Frame)]


def small(root: Path, **changes: Any) -> DataConfig[NuscenesConfig]:
    mini = NuscenesConfig(version=changes.pop("version", "v1.0-mini"))
    values = {"train": ("mini_train",), "eval": ("mini_val",), **changes}
    return DataConfig(root=str(root), own=mini, **values)


def full(samples: Path, scene: str) -> DataConfig[NuscenesConfig]:
    root = str(samples / "nuscenes-0523")
    return DataConfig(root=root, own=NuscenesConfig(), train=("val",), eval=(scene,))


def pandaset(samples: Path) -> DataConfig:
    return small(samples / "pandaset-002")


def test_real_scene_without_lidarseg(samples: Path) -> None:
    found = frames(full(samples, "scene-0523"))
    assert len(found) == 12
    assert len(read_sweep(found[0].sweeps[0], SweepLayout())) == 34_400
    assert [len(frame.sweeps) for frame in found] == [*range(1, 12), 11]
    assert all(len(frame.cameras) == 6 and frame.labels is None for frame in found)


def test_points_in_boxes_equal_the_tables_counts(samples: Path) -> None:
    root = samples / "nuscenes-0523"
    frame = frames(full(samples, "val"))[0]
    tables = {
        name: json.loads((root / f"v1.0-trainval/{name}.json").read_text())
        for name in ("sample_data", "sample_annotation")
    }
    sample = next(row["sample_token"] for row in tables["sample_data"] if row["token"] == frame.id)
    xyz = frame.sweeps[0].global_from_lidar.apply(read_sweep(frame.sweeps[0], SweepLayout())[:, :3])
    from clipsweep.projection.pose import Pose

    boxes = [row for row in tables["sample_annotation"] if row["sample_token"] == sample]
    assert boxes
    for box in boxes:
        local = Pose.from_quaternion(box["rotation"], box["translation"]).inverse().apply(xyz)
        width, length, height = box["size"]
        inside = (np.abs(local) <= np.array([length, width, height]) / 2).all(axis=1)
        assert inside.sum() == box["num_lidar_pts"]


def test_real_sweeps_and_labels(samples: Path) -> None:
    found = rows(pandaset(samples))
    assert [(row.train, row.eval) for row in found] == [(True, False)] * 5 + [(False, True)] * 3
    for row in found:
        assert isinstance(row.frame, Frame)
        assert row.frame.labels is not None
        assert len(read_sweep(row.frame.sweeps[0], SweepLayout())) == row.frame.labels.bytes
        times = [sweep.time_us for sweep in row.frame.sweeps]
        assert times == sorted(times, reverse=True)


def test_index_comes_back_as_it_went_in(small_world: Path, tmp_path: Path) -> None:
    found = rows(small(small_world))
    path = tmp_path / "index.parquet"
    path.write_bytes(to_parquet(found, small_world)[0])
    assert list(read_scenes(path, ["train"])) == ["scene-0061"]
    assert list(read_scenes(path, ["eval"])) == ["scene-0103"]
    assert [len(images) for images in read_images(path).values()] == [18, 18]
    for row, back in zip(found[:3], read_index(path, small_world, "scene-0061"), strict=True):
        frame = row.frame
        assert isinstance(frame, Frame)
        assert (frame.id, frame.time_us, frame.labels) == (back.id, back.time_us, back.labels)
        assert [s.points for s in frame.sweeps] == [s.points for s in back.sweeps]
        for ours, theirs in zip(frame.cameras, back.cameras, strict=True):
            np.testing.assert_array_equal(ours.K, theirs.K)
            np.testing.assert_array_equal(
                ours.global_from_cam.matrix(), theirs.global_from_cam.matrix()
            )
            assert (ours.name, ours.size_hw, ours.image) == (
                theirs.name,
                theirs.size_hw,
                theirs.image,
            )


def test_scenes_by_name_and_by_split(small_world: Path) -> None:
    both = rows(small(small_world, train=("scene-0103",), eval=("scene-0103", "mini_train")))
    assert {row.frame.scene: (row.train, row.eval) for row in both} == {
        "scene-0061": (False, True),
        "scene-0103": (True, True),
    }
    assert not any(row.eval for row in rows(small(small_world, eval=("test",))))
    with pytest.raises(BadInput, match="no scene of 'scene-9999'; it holds scene-0061, scene-0103"):
        rows(small(small_world, eval=("scene-9999",)))


def test_a_test_set_has_no_labels(world: Path) -> None:
    (world / "v1.0-mini/lidarseg.json").unlink()
    assert all(isinstance(f, Frame) and f.labels is None for f in frames(small(world)))


@pytest.mark.parametrize("focal_px", [1e-300, 0.5, 1e7, 1e300, np.inf, np.nan, -500.0])
@pytest.mark.parametrize("row", [0, 1])
def test_intrinsics_that_no_camera_has_are_refused(focal_px: float, row: int) -> None:
    intrinsics = np.array([[500.0, 0, 160], [0, 500, 90], [0, 0, 1]])
    check_intrinsics(intrinsics, "here")
    intrinsics[row, row] = focal_px
    with pytest.raises(BadInput, match=r"here: camera_intrinsic .* is not a camera matrix; focal"):
        check_intrinsics(intrinsics, "here")
    intrinsics[row, row] = 500
    intrinsics[row, 2] = 1e300
    with pytest.raises(BadInput, match="is not a camera matrix"):
        check_intrinsics(intrinsics, "here")


@pytest.mark.parametrize("time_us", [np.nan, np.inf, -1, 0.5, 1e300, 10**30, "1", None, [1], True])
def test_times_that_no_clock_has_are_refused(time_us: Any) -> None:
    with pytest.raises(BadInput, match=r"here: timestamp .* is none; it must be a whole number"):
        checked_time(time_us, "here")
    assert checked_time(1532402927647951.0, "here") == 1532402927647951


def test_a_cycle_of_sweeps_ends(world: Path) -> None:
    path = world / "v1.0-mini/sample_data.json"
    table = json.loads(path.read_text())
    lidar = [row for row in table if "LIDAR_TOP" in row["filename"]]
    lidar[0]["prev"] = lidar[0]["token"]
    path.write_text(json.dumps(table))
    found = rows(small(world))
    assert any(isinstance(row.frame, Skip) and "do not rise" in row.frame.reason for row in found)


@pytest.mark.parametrize(
    ("following", "message"),
    [
        ("", "its chain holds 1 samples, nbr_samples is 3"),
        ("nowhere", "after 1 samples a row is missing or malformed"),
        (None, "its chain holds over 3 samples, nbr_samples is 3"),
    ],
)
def test_a_broken_chain_of_samples_is_named(
    world: Path, following: str | None, message: str
) -> None:
    """That ends early, leads nowhere, or back to where it began."""
    scenes = json.loads((world / "v1.0-mini/scene.json").read_text())
    first = next(scene["first_sample_token"] for scene in scenes if scene["name"] == "scene-0061")
    path = world / "v1.0-mini/sample.json"
    table = json.loads(path.read_text())
    next(row for row in table if row["token"] == first)["next"] = (
        first if following is None else following
    )
    path.write_text(json.dumps(table))
    with pytest.raises(BadInput, match=f"scene scene-0061: {message}"):
        rows(small(world))

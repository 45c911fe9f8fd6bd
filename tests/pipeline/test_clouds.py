"""Tests of LAS, PLY and PCD export: what other libraries read is what was labelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import laspy
import numpy as np
import plyfile
import pytest
from pypcd4.pypcd4 import PointCloud
from scipy.spatial import cKDTree

from clipsweep.pipeline.artifacts.read import key_cloud, read_points
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.reports.clouds import POINT, _Taken, export_frames, file_name
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.labelled import open_points
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame
from tests.helpers import Run, settings


def read_las(path: Path, space: LabelSpace) -> np.ndarray:
    file = laspy.read(path)
    assert file.header.scales.tolist() == [0.001] * 3
    lookup = file.header.vlrs.get("ClassificationLookupVlr")[0].lookups
    assert [lookup[64 + number] for number in range(len(space))] == [
        name[:15].replace("-", " ") for name in space.names
    ]
    points = np.empty(len(file.points), POINT)
    for name in ("x", "y", "z"):
        points[name] = file[name]
    for name in ("red", "green", "blue"):
        points[name] = file[name] // 257
    points["intensity"] = file["intensity"] / 65535
    code = np.asarray(file["classification"])
    points["label"] = np.where(code == 1, 255, code - 64)
    return points


def read_ply(path: Path, space: LabelSpace) -> np.ndarray:
    file = plyfile.PlyData.read(str(path))
    assert file.comments == [f"{number} {name}" for number, name in enumerate(space.names)]
    return np.array(file["vertex"].data)


def read_pcd(path: Path, space: LabelSpace) -> np.ndarray:
    data = PointCloud.from_path(path).pc_data
    packed = data["rgb"].view(np.uint32)
    points = np.empty(len(data), POINT)
    for name in ("x", "y", "z", "intensity", "label"):
        points[name] = data[name]
    for shift, name in ((16, "red"), (8, "green"), (0, "blue")):
        points[name] = packed >> shift & 255
    return points


READERS: dict[str, Callable[[Path, LabelSpace], np.ndarray]] = {
    "las": read_las,
    "ply": read_ply,
    "pcd": read_pcd,
}


@pytest.fixture
def labelled(
    small_world: Path, tmp_path: Path, tool: Run
) -> tuple[list[str], dict[str, list[tuple[Frame, Cloud, np.ndarray]]]]:
    """Arguments that export pseudo-labels, and the labels of each frame by scene."""
    given = settings(small_world, tmp_path / "store")
    points = tool("label", *given).path
    config = load_config(given)
    index = make_index(config)
    opened = open_points(config, index, str(points))
    frames = {
        scene: [
            (frame, cloud, read_points(opened, frame).label[cloud.source])
            for frame in scene_frames(index, config, scene)
            for cloud in [key_cloud(frame, config)]
        ]
        for scene in scenes_of(index, "eval")
    }
    return [*given, f"pseudo_labels={points}"], frames


@pytest.mark.parametrize("suffix", READERS)
def test_frames_are_read_back(labelled: tuple, tmp_path: Path, tool: Run, suffix: str) -> None:
    given, scenes = labelled
    out = tool("export_labels", *given, f"format={suffix}", f"out={tmp_path / 'out'}").path
    space = load_space(load_config(given[:-1]).labels)
    files = list(out.rglob(f"*.{suffix}"))
    assert len(files) == sum(map(len, scenes.values())) > 1
    for scene, frames in scenes.items():
        for frame, cloud, label in frames:
            points = READERS[suffix](out / scene / f"{frame.id}.{suffix}", space)
            xyz = np.stack([points[name] for name in ("x", "y", "z")], 1)
            error_m = 0.000_501 if suffix == "las" else 0
            np.testing.assert_allclose(xyz, cloud.xyz, rtol=0, atol=error_m)
            np.testing.assert_allclose(points["intensity"], cloud.intensity, atol=1e-5)
            np.testing.assert_array_equal(points["label"], label)
            assert {255} < set(label.tolist())
            colors = np.stack([points[name] for name in ("red", "green", "blue")], 1)
            known = label != 255
            np.testing.assert_array_equal(colors[known], space.colors[label[known]])
            assert (colors[~known] == 160).all()
    names = (out / "labels.txt").read_text().splitlines()
    assert names == [f"{number} {name}" for number, name in enumerate(space.names)]


@pytest.mark.parametrize("suffix", READERS)
def test_a_map_has_the_first_point_of_each_voxel(
    labelled: tuple, tmp_path: Path, tool: Run, suffix: str
) -> None:
    given, scenes = labelled
    wanted = [f"format={suffix}", "merge=true", "voxel_m=0.5", f"out={tmp_path / 'out'}"]
    out = tool("export_labels", *given, *wanted).path
    space = load_space(load_config(given[:-1]).labels)
    assert {path.name for path in out.iterdir()} == {
        "labels.txt",
        *(f"{scene}.{suffix}" for scene in scenes),
    }
    for scene, frames in scenes.items():
        start = frames[0][0].sweeps[0].global_from_lidar.inverse()
        taken: dict[tuple, tuple] = {}
        for frame, cloud, label in frames:
            world = frame.sweeps[0].global_from_lidar
            local = (start @ world).apply(cloud.xyz)
            for cell, xyz, own in zip(
                np.floor(local / 0.5).astype(int).tolist(),
                world.apply(cloud.xyz).tolist(),
                label.tolist(),
                strict=True,
            ):
                taken.setdefault(tuple(cell), (*xyz, own))
        points = READERS[suffix](out / f"{scene}.{suffix}", space)
        found = np.stack([points[name].astype(float) for name in ("x", "y", "z", "label")], 1)
        expected = np.array(list(taken.values()))
        # points on a voxel's face may fall to either side in float32
        assert abs(len(found) - len(expected)) <= 2
        apart_m, which = cKDTree(expected[:, :3]).query(found[:, :3])
        same = (apart_m < 0.001) & (expected[which, 3] == found[:, 3])
        assert same.mean() > 0.99
        assert len(expected) < 0.8 * sum(len(cloud.xyz) for _, cloud, _ in frames)


def test_a_key_is_new_once() -> None:
    rng = np.random.default_rng(0)
    taken = _Taken()
    seen = set[int]()
    for _ in range(50):
        keys = rng.integers(0, 3000, 200).astype(np.uint64)
        expected = []
        for key in keys.tolist():
            expected.append(key not in seen)
            seen.add(key)
        assert taken.add(keys).tolist() == expected


def test_names_cannot_leave_the_folder(labelled: tuple, tmp_path: Path) -> None:
    given, scenes = labelled
    space = load_space(load_config(given[:-1]).labels)
    frame, cloud, label = next(iter(scenes.values()))[0]
    outside = replace(frame, id="../../x/y", scene="..")
    export_frames(tmp_path / "out", "ply", space, [(outside, cloud, label)])
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ply")] == [
        "out/-/-..-x-y.ply"
    ]
    twice = [(outside, cloud, label), (replace(outside, id="..-..-x-y"), cloud, label)]
    with pytest.raises(BadInput, match="file name"):
        export_frames(tmp_path / "second", "ply", space, twice)
    assert not (tmp_path / "second").exists()
    assert file_name("\n") == "-"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["format=laz"], "las or ply or pcd"),
        (["merge=true"], "give format=las, ply, pcd"),
        (["format=las", "merge=true", "voxel_m=0"], "voxel_m"),
    ],
)
def test_wrong_formats_are_refused(
    labelled: tuple, tmp_path: Path, tool: Run, given: list[str], problem: str
) -> None:
    refused = tool("export_labels", *labelled[0], *given, f"out={tmp_path / 'out'}")
    assert refused.status == 1
    assert problem in refused.err
    assert not (tmp_path / "out").exists()

"""Scenes in parts.

Shards of bounded size, shared between runs, resumed inside a scene, named by what they hold.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.stages import pixels as pixels_stage
from clipsweep.pipeline.stages import points as points_stage
from clipsweep.pipeline.stages import poses as poses_stage
from clipsweep.pipeline.stages.index import make_index, split_scenes
from clipsweep.pipeline.stages.labelled import open_points
from clipsweep.pipeline.stages.pixels import PixelWorker, make_pixels
from clipsweep.pipeline.stages.points import FuseWorker, make_points
from clipsweep.pipeline.stages.poses import PoseWorker, make_poses
from clipsweep.projection.errors import BadInput
from tests.helpers import LABELS_HW, Run, settings

ONE = ("data.train=scene-0061", "data.eval=scene-0061")


def label(config: Config) -> tuple[Artifact, Artifact]:
    index = make_index(config)
    pixels = make_pixels(config, index)
    return pixels, make_points(config, index, pixels)


def tensors(artifact: Artifact) -> dict[str, np.ndarray]:
    """All arrays of all parts, whichever shard they lie in."""
    return {k: v for name in artifact.shards() for k, v in load_file(artifact.shard(name)).items()}


def committed(artifact: Artifact) -> dict[str, int]:
    done = artifact.path / "done"
    return {path.stem: path.stat().st_mtime_ns for path in done.glob("*.json")}


@pytest.fixture
def given(small_world: Path, tmp_path: Path) -> list[str]:
    return settings(small_world, tmp_path / "store")


def test_scenes_of_other_roles_make_nothing_twice(given: list[str]) -> None:
    both = label(load_config(given))
    before = [committed(artifact) for artifact in both]
    one = label(load_config([*given, *ONE]))
    assert [artifact.id for artifact in one] == [artifact.id for artifact in both]
    assert [committed(artifact) for artifact in one] == before
    assert [len(artifact.parts) for artifact in (*both, *one)] == [2, 2, 1, 1]
    assert one[1].content() == both[1].content("scene-0061")
    assert list(one[1].manifest()["shards"]) == one[1].shards()


def test_more_scenes_keep_those_that_are_there(given: list[str]) -> None:
    one = label(load_config([*given, *ONE]))
    before = [committed(artifact) for artifact in one]
    both = label(load_config(given))
    for artifact, kept in zip(both, before, strict=True):
        now = committed(artifact)
        assert kept.items() <= now.items()
        assert len(now) == len(kept) + 1


def test_a_student_is_named_by_its_training_data(given: list[str], tool: Run) -> None:
    student = tool("pretrain", *given).path
    assert tool("pretrain", *given, "data.eval=scene-0061").path == student
    assert tool("pretrain", *given, "data.train=scene-0103").path != student
    assert tool("pretrain", *given, "fusion.cell_m=0.5").path != student  # by other points
    assert tool("pretrain", *given, "teacher.maskclip.batch=3", "fusion.cell_m=0.4").path == student


@pytest.mark.parametrize("each", [1, 2])
def test_parts_hold_what_whole_scenes_do(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    whole_pixels, whole_points = label(load_config(given))
    monkeypatch.setattr(pixels_stage, "FRAMES", each)
    pixels, points = label(load_config([*given, f"store={tmp_path / 'parts'}"]))
    assert len(pixels.parts) == {1: 6, 2: 4}[each]
    assert len(points.parts) == 2
    for one, two in (
        (tensors(whole_pixels), tensors(pixels)),
        (tensors(whole_points), tensors(points)),
    ):
        assert one.keys() == two.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(two[name], array)


def test_points_in_parts_cover_every_frame(
    given: list[str], monkeypatch: pytest.MonkeyPatch, tool: Run
) -> None:
    """Each part maps the ground from frames of its own, so that labels may differ a little from
    a whole scene's.
    """
    monkeypatch.setattr(points_stage, "FRAMES", 2)
    config = load_config(given)
    _, points = label(config)
    assert [len(part.frames) for part in points.parts] == [2, 1, 2, 1]
    assert {name.split("/")[0] for name in tensors(points)} == {
        f for p in points.parts for f in p.frames
    }
    index = make_index(config)
    named = open_points(config, index, str(points.path))
    assert [part.shard for part in named.parts] == [
        p.shard for p in points.parts if p.scene == "scene-0103"
    ]
    assert tool("evaluate", *given, f"pseudo_labels={points.path}").status == 0


def test_a_labelling_stopped_inside_a_scene_goes_on_there(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels_stage, "FRAMES", 1)
    config = load_config(given)
    index = make_index(config)
    real = PixelWorker.__call__
    asked: list[str] = []

    def two_only(worker: PixelWorker, name: str) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(name)
        return real(worker, name)

    monkeypatch.setattr(PixelWorker, "__call__", two_only)
    with pytest.raises(KeyboardInterrupt):
        make_pixels(config, index)
    first = asked.copy()

    def counted(worker: PixelWorker, name: str) -> object:
        asked.append(name)
        return real(worker, name)

    monkeypatch.setattr(PixelWorker, "__call__", counted)
    pixels = make_pixels(config, index)
    assert first == pixels.shards()[:2]
    assert asked == pixels.shards()


def test_a_shard_is_compared_with_its_digest_once_a_process(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = label(load_config(given))
    name = pixels.shards()[0]
    path = pixels.payload(name)
    opened: list[Path] = []
    real = Path.open

    def counting(self: Path, *arguments: object, **more: object) -> object:
        opened.append(self)
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", counting)
    pixels.payload(name)
    assert path not in opened
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"is damaged \(it has another sha256.*verify=true"):
        pixels.arrays(name)
    path.unlink()
    with pytest.raises(BadInput, match="is damaged"):
        pixels.arrays(name)


def test_a_frame_that_no_part_holds_is_named(given: list[str]) -> None:
    pixels, _ = label(load_config([*given, *ONE]))
    with pytest.raises(BadInput, match="has nothing of frame abc"):
        pixels.shard_of("abc")


def test_points_of_a_scene_labelled_twice_are_those_of_the_manifest(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    """Label images that change and come back.

    The folder holds both versions, that of the last run counts.
    """
    given = settings(world, tmp_path / "store")
    kept = shutil.copytree(world / "labels2d", tmp_path / "labels2d")
    points = tool("label", *given).path
    first = list(Artifact(points).manifest()["shards"])
    for image in (world / "labels2d").rglob("*.png"):
        Image.fromarray(np.zeros(LABELS_HW, np.uint8)).save(image)
    assert tool("label", *given).path == points
    second = list(Artifact(points).manifest()["shards"])
    assert not set(first) & set(second)
    config = load_config(given)
    index = make_index(config)
    assert open_points(config, index, str(points)).shards() == second[1:]
    shutil.copytree(kept, world / "labels2d", dirs_exist_ok=True)
    assert tool("label", *given).path == points
    assert open_points(config, index, str(points)).shards() == first[1:]


def recorded(value: object, prefix: str, read: set[str]) -> object:
    """A configuration that writes down which of its settings are read."""
    kind = type(value)
    hidden = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]

    def watch(self: object, name: str) -> object:
        found = object.__getattribute__(self, name)
        if name in hidden and not dataclasses.is_dataclass(found):
            read.add(f"{prefix}{name}")
        return found

    double = object.__new__(type(kind.__name__, (kind,), {"__getattribute__": watch}))
    for name in hidden:
        found = getattr(value, name)
        inner = (
            recorded(found, f"{prefix}{name}.", read) if dataclasses.is_dataclass(found) else found
        )
        object.__setattr__(double, name, inner)
    read.clear()
    return double


BESIDE = ("data.root", "data.kind", "store", "verify", "run.", "labels.")
"""What every stage may read.

Places, how the work is carried out, and the label space, which the key spells out.
"""


@pytest.fixture
def reading(given: list[str]) -> tuple[Config, set[str]]:
    read: set[str] = set()
    double = recorded(load_config(given), "", read)
    assert isinstance(double, Config)
    return double, read


def undeclared(read: set[str], declared: tuple[str, ...]) -> set[str]:
    return {key for key in read if not key.startswith((*declared, *BESIDE))}


def test_workers_read_no_setting_that_does_not_name_their_artifact(
    given: list[str], reading: tuple[Config, set[str]]
) -> None:
    config, read = reading
    plain = load_config(given)
    index = make_index(plain)
    pixels, points = label(plain)
    poses = make_poses(plain, index)
    read.clear()
    for name in poses.shards():
        PoseWorker(config, index, poses.parts)(name)
    assert not undeclared(read, poses_stage.NAMED_BY)
    assert "data.columns" in read
    read.clear()
    for name in points.shards():
        FuseWorker(config, index, pixels, poses, points.parts)(name)
    assert not undeclared(read, points_stage.NAMED_BY)
    assert "fusion.cell_m" in read
    read.clear()
    PixelWorker(config, index, pixels.parts, None)(pixels.shards()[0])
    assert not undeclared(read, ("teacher", "on_bad"))


def test_cutting_covers_each_scene_in_order(given: list[str]) -> None:
    index = make_index(load_config(given))
    whole = split_scenes(index)
    assert [len(part.frames) for part in whole] == [3, 3]
    parts = split_scenes(index, "eval", frames=2)
    assert [part.scene for part in parts] == ["scene-0103", "scene-0103"]
    assert sum((part.frames for part in parts), ()) == whole[1].frames
    assert len({part.shard for part in parts}) == 2
    other = split_scenes(index, "eval", frames=2, inputs_of=lambda scene: "other")
    assert not {part.shard for part in parts} & {part.shard for part in other}

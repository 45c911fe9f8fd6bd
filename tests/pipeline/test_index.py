"""The index: its warnings about missing files, and how it is made anew when files change beside the
same tables.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from clipsweep.pipeline.artifacts.index import (
    read_images,
    read_index,
    read_label_files,
    read_scenes,
)
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.stages.index import make_index
from clipsweep.projection.errors import BadInput
from tests.helpers import Run, settings


@pytest.fixture
def given(world: Path, tmp_path: Path) -> list[str]:
    return settings(world, tmp_path / "store")


def sweeps_of(index: Path, root: Path) -> int:
    frames = read_index(index / "index.parquet", root, "scene-0061")
    return sum(len(frame.sweeps) for frame in frames)


def test_changed_files_are_found_when_verified(
    given: list[str], world: Path, tmp_path: Path, tool: Run
) -> None:
    folder = world / "sweeps/LIDAR_TOP"
    away = tmp_path / "away"
    whole = tool("index", *given).path
    folder.rename(away)
    assert tool("index", *given).path == whole
    before = sweeps_of(whole, world)
    less = tool("index", *given, "verify=true")
    assert less.path == whole
    missing = Artifact(less.path).manifest()["counts"]["missing_sweeps"]
    assert 0 < before - sweeps_of(whole, world) <= missing
    assert less.err.splitlines() == [
        f"{world}: {missing} earlier sweeps are missing, and frames go without them; once they "
        "are there, "
        "run with verify=true",
        f"{world}: other files than when {whole.name} was made, in 2 scene(s), first scene-0061; "
        "what was "
        "made from them is made again",
    ]
    away.rename(folder)
    assert tool("index", *given).err.splitlines() == less.err.splitlines()[:1]
    assert sweeps_of(whole, world) < before
    assert "other files" in tool("index", *given, "verify=true").err
    assert sweeps_of(whole, world) == before
    assert tool("index", *given).err == ""


def test_labels_of_changed_images_are_not_taken_for_new(
    given: list[str], world: Path, tool: Run
) -> None:
    """The shards of the scene get another name, those of the other scene stay."""
    points = tool("label", *given).path
    before = list(Artifact(points).manifest()["shards"])
    image = next((world / "samples").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\xff\xd9")
    assert tool("label", *given, "verify=true").path == points
    after = list(Artifact(points).manifest()["shards"])
    assert len(set(before) & set(after)) == len(before) - 1 == 1
    tool("label", *given, "verify=true")
    assert list(Artifact(points).manifest()["shards"]) == after


def test_a_damaged_index_is_named_and_mended(given: list[str], world: Path, tool: Run) -> None:
    index = tool("index", *given).path / "index.parquet"
    kept = index.read_bytes()
    index.write_bytes(b"\0" * len(kept))
    for read in (
        lambda: read_index(index, world, "scene-0061"),
        lambda: list(read_images(index)),
        lambda: read_label_files(index),
        lambda: read_scenes(index),
    ):
        with pytest.raises(BadInput, match=r"index\.parquet: is damaged .*verify=true"):
            read()
    refused = tool("label", *given)
    assert refused.status == 1
    assert "index.parquet: is damaged" in refused.err
    assert tool("index", *given, "verify=true").path == index.parent
    assert index.read_bytes() == kept


@pytest.mark.parametrize("start", range(4, 2000, 97))
def test_any_damage_to_an_index_reads_as_bad_input_or_as_rows(
    world_index: bytes, tmp_path: Path, start: int
) -> None:
    path = tmp_path / "index.parquet"
    path.write_bytes(
        world_index[:-start]
        + b"\xff" * min(start, 40)
        + world_index[len(world_index) - start + 40 :]
    )
    with suppress(BadInput):  # nothing else is raised
        read_index(path, tmp_path, "scene-0061")


@pytest.fixture(scope="module")
def world_index(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = tmp_path_factory.mktemp("store")
    return make_index(load_config(settings(small_world, store))).shard("index").read_bytes()


def test_scenes_that_a_split_lacks_are_counted_and_reported(
    given: list[str], world: Path, tool: Run
) -> None:
    assert tool("index", *given).err == ""  # a demo world has as many as it was configured with
    (world / "demo.json").unlink()
    index = tool("index", *given, "on_bad=skip")
    assert index.err.splitlines() == [
        "data.train: 1 of 8 scenes of 'mini_train' are there",
        "data.eval: 1 of 2 scenes of 'mini_val' are there",
    ]
    counts = Artifact(index.path).manifest()["counts"]
    assert (counts["absent_train"], counts["absent_eval"]) == (7, 1)
    named = tool("index", *given, "data.train=scene-0061", "data.eval=scene-0103")
    assert named.err == ""

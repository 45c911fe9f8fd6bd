"""The same commands on Ray give the same artifacts, byte for byte, and the same message for bad
input.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from clipsweep.pipeline.artifacts.store import Artifact
from tests.helpers import Run, settings

pytestmark = pytest.mark.slow

RAY = ("run.executor=ray", "run.workers=2")


def payloads(store: Path) -> dict[str, bytes]:
    """Every shard of a store but the scores, which contain the path of their store, by artifact and
    name.
    """
    found = {}
    for path in sorted(store.glob("[!s]*-*/manifest.json")):
        for shard in Artifact(path.parent).manifest()["shards"]:
            (payload,) = path.parent.glob(f"{shard}.*")
            found[f"{path.parent.name}/{payload.name}"] = payload.read_bytes()
    return found


def test_index_pixels_points_and_predictions_have_the_same_names_and_bytes(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    clip = (
        "teacher.kind=maskclip",
        "teacher.maskclip.model=local-dir:pipeline/demo/teacher",
        "teacher.maskclip.size_hw=[160,320]",
    )
    local = tmp_path / "local"
    ray = tmp_path / "ray"
    student = tool("pretrain", *settings(small_world, tmp_path / "student")).path
    for store, more in ((local, ()), (ray, RAY)):
        given = (*settings(small_world, store), *more)
        tool("label", *given, *clip, "labels.prompts=demo").path  # noqa: B018 - asserts the status
        tool("evaluate", *given, f"student={student}").path  # noqa: B018
    expected = payloads(local)
    found = payloads(ray)
    assert {name.split("-")[0] for name in expected} == {
        "index",
        "pixels",
        "points",
        "poses",
        "predictions",
    }
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert {path.parent.name.split("-")[0] for path in ray.glob("*/report.json")} == {
        *("pixels", "points", "poses", "predictions"),
    }


def test_a_damaged_image_ends_with_status_1_and_is_named(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    image = sorted((world / "labels2d").rglob("*.png"))[0]
    image.write_bytes(image.read_bytes()[:100])
    outcome = tool("label", *settings(world, tmp_path / "store"), *RAY)
    assert (outcome.status, outcome.out) == (1, "")
    assert "1 of 2 shards could not be made" in outcome.err
    assert image.name in outcome.err

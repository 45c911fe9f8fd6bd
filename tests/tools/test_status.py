"""Tests of the inventory of a store, and of deleting what nothing needs."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from clipsweep.pipeline.artifacts.inventory import age_text, inventory, size_text, unneeded
from clipsweep.pipeline.artifacts.lock import store_in_use
from tests.helpers import Run, settings


@pytest.fixture
def store(small_world: Path, tmp_path: Path, tool: Run) -> Path:
    """A store with scores of pseudo-labels, and with pseudo-labels that nothing needs."""
    given = settings(small_world, tmp_path / "store")
    points = tool("label", *given).path
    assert tool("evaluate", *given, f"pseudo_labels={points}").status == 0
    assert tool("label", *given, "fusion.cell_m=0.5").status == 0
    (tmp_path / "store/picture.png").write_bytes(b"a picture")
    return tmp_path / "store"


def test_every_artifact_is_listed_with_what_it_was_made_from(store: Path, tool: Run) -> None:
    listed = tool("status", f"store={store}")
    assert listed.path == store
    rows = {line.split()[0]: line for line in listed.err.splitlines()[1:-1]}
    assert set(rows) == {path.name for path in store.iterdir() if path.name.count("-") == 1}
    scores = next(row for name, row in rows.items() if name.startswith("scores"))
    assert "mIoU" in scores
    assert any(f"of {name}" in scores for name in rows if name.startswith("points"))
    size = sum(path.stat().st_size for path in store.rglob("*-*/**/*") if path.is_file())
    assert sum(entry.bytes for entry in inventory(str(store))) == size
    assert listed.err.splitlines()[-1].endswith(size_text(size))


def test_what_no_result_needs_is_deleted_and_nothing_else(store: Path, tool: Run) -> None:
    before = {path.name for path in store.iterdir()}
    listed = tool("status", f"store={store}", "clean=true")
    assert {path.name for path in store.iterdir()} == before
    unused = listed.err.splitlines()[1:-1]
    assert len(unused) == 2  # its poses are of other cells too
    names = {line.split()[0] for line in unused}
    assert {name.split("-")[0] for name in names} == {"points", "poses"}
    points = next(name for name in names if name.startswith("points"))
    kept = tool("status", f"store={store}", "clean=true", f"keep={store / points}")
    assert "0 artifact(s)" in kept.err  # the poses that it was made from are needed then
    assert "deleted 2" in tool("status", f"store={store}", "clean=true", "yes=true").err
    assert {path.name for path in store.iterdir()} == before - names


def test_nothing_is_deleted_while_a_tool_runs(store: Path, tool: Run) -> None:
    before = {path.name for path in store.iterdir()}
    with store_in_use(str(store)):
        refused = tool("status", f"store={store}", "clean=true", "yes=true")
        assert tool("status", f"store={store}", "clean=true").status == 0
    assert refused.status == 1
    assert "is in use" in refused.err
    assert {path.name for path in store.iterdir()} == before


def test_links_to_other_stores_are_left_alone(store: Path, tool: Run) -> None:
    points = next(store.glob("points-*"))
    elsewhere = points.rename(store.parent / points.name)
    points.symlink_to(elsewhere)
    assert points.name not in {entry.id for entry in inventory(str(store))}
    assert tool("status", f"store={store}", "clean=true", "yes=true").status == 0
    assert (elsewhere / "manifest.json").is_file()


def test_what_an_unfinished_training_needs_is_warned_of(store: Path, tool: Run) -> None:
    (store / "student-0123456789ab").mkdir()
    listed = tool("status", f"store={store}", "clean=true")
    assert "warning: student-0123456789ab is unfinished" in listed.err


def test_a_file_system_without_locks_serves_tools_but_nothing_is_deleted(
    store: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with store_in_use(str(store)):
        pass
    before = {path.name for path in store.iterdir()}
    refused = tool("status", f"store={store}", "clean=true", "yes=true")
    assert refused.status == 1
    assert "cannot be locked (No locks available)" in refused.err
    assert {path.name for path in store.iterdir()} == before


def test_a_store_that_got_nothing_is_not_left_behind(tmp_path: Path) -> None:
    with store_in_use(str(tmp_path / "new/store")):
        assert (tmp_path / "new/store").is_dir()
    assert not (tmp_path / "new").exists()
    with store_in_use(str(tmp_path / "new")):
        (tmp_path / "new/artifact").touch()
    assert (tmp_path / "new/artifact").is_file()
    (tmp_path / "file").touch()
    with store_in_use(str(tmp_path / "file/store")):
        pass


@pytest.mark.parametrize(
    ("manifest", "state"),
    [("{", "cannot be read"), ("{}", "is no manifest"), (None, "unfinished, 1 shard(s)")],
)
def test_what_is_not_whole_is_named_and_never_deleted(
    store: Path, tool: Run, manifest: str | None, state: str
) -> None:
    pixels = next(store.glob("pixels-*"))
    points = next(store.glob("points-*"))
    if manifest is None:
        (pixels / "manifest.json").unlink()
        for marker in sorted((pixels / "done").iterdir())[1:]:
            marker.unlink()
    else:
        (pixels / "manifest.json").write_text(manifest)
    entries = inventory(str(store))
    entry = next(entry for entry in entries if entry.id == pixels.name)
    assert state in entry.state
    assert not entry.whole
    assert entry not in unneeded(entries)
    assert points.name in {each.id for each in entries}
    assert tool("status", f"store={store}").status == 0


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["store=nowhere"], "is no folder of artifacts"),
        (["store=nowhere", "clean=true", "yes=true"], "is no folder of artifacts"),
        (["store=.", "yes=true"], "clean: is false"),
        (["store=.", "clean=true", "keep=points-0123456789ab"], "is no artifact of the store"),
    ],
)
def test_wrong_requests_are_refused(given: list[str], problem: str, tool: Run) -> None:
    refused = tool("status", *given)
    assert refused.status == 1
    assert problem in refused.err
    assert not Path("nowhere").exists()


def test_sizes_and_ages_are_rounded_to_what_one_reads() -> None:
    assert [size_text(count) for count in (0, 1_500, 2_000_000, 3_400_000_000)] == [
        "0.0 kB",
        "1.5 kB",
        "2.0 MB",
        "3.4 GB",
    ]
    assert [age_text(seconds) for seconds in (-5.0, 90.0, 7e3, 3e5)] == [
        "0 min",
        "2 min",
        "2 h",
        "3 d",
    ]

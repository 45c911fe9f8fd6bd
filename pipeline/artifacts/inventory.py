"""Inventory of an artifact store: what each artifact is, what it was made from, what needs it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.projection.errors import BadInput

_KINDS = {
    "converted": "undistorted images, compensated sweeps",
    "index": "index of key frames",
    "boxes": "annotated boxes",
    "poses": "aligned poses",
    "pixels": "pixel labels",
    "points": "pseudo-labels",
    "student": "student",
    "predictions": "predictions",
    "scores": "scores",
}
_ARTIFACT = re.compile(rf"({'|'.join(_KINDS)})-[0-9a-f]{{12}}")
_KEPT = ("converted", "index", "student", "scores")
"""Stages whose artifacts are always needed: results, and what every run starts from."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Artifact of a store, as an inventory lists it.

    Attributes:
        path: its folder.
        stage: that made it.
        what: what it is, in words.
        inputs: ids of the artifacts it was made from.
        bytes: of all its files.
        changed: when its manifest was written, or its newest shard if it has none; seconds since
            the epoch.
        state: whole, unfinished, or what is wrong with its manifest.
        whole: finished, and its manifest can be read.
        wall_s: time of the run that finished it; None if it is not whole [s].
    """

    path: Path
    stage: str
    what: str
    inputs: tuple[str, ...]
    bytes: int
    changed: float
    state: str
    whole: bool
    wall_s: float | None = None

    @property
    def id(self) -> str:
        """Id of the artifact, the name of its folder."""
        return self.path.name


def inventory(store: str) -> list[Entry]:
    """Artifacts of a store, the oldest first; links to those of other stores are left out.

    Raises:
        BadInput: there is no such folder.
    """
    try:
        entries = list(os.scandir(store))
    except OSError as error:
        cure = "give store=FOLDER, where the tools put their artifacts"
        raise BadInput(store, f"is no folder of artifacts ({error.strerror})", cure) from None
    folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    found = [_entry(path) for path in folders if _ARTIFACT.fullmatch(path.name)]
    return sorted(found, key=lambda entry: (entry.changed, entry.id))


def _entry(path: Path) -> Entry:
    artifact = Artifact(path)
    size, changed = _size(path)
    stage = artifact.stage
    what = _KINDS[stage]
    if not artifact.whole:
        done = len(list((path / "done").glob("*.json")))
        state = f"unfinished, {done} shard(s)" if done else "unfinished"
        return Entry(path, stage, what, (), size, changed, state, whole=False)
    try:
        manifest = artifact.manifest()
        what = _describe(stage, manifest)
        wall_s = float(manifest["wall_s"])
    except (BadInput, KeyError, TypeError, ValueError) as error:
        state = error.problem if isinstance(error, BadInput) else "is no manifest of this version"
        return Entry(path, stage, what, (), size, changed, state, whole=False)
    inputs = tuple(map(str, manifest["inputs"].values()))
    skipped = len(manifest["skipped"])
    state = f"whole, {skipped} left out" if skipped else "whole"
    changed = (path / "manifest.json").stat().st_mtime
    return Entry(path, stage, what, inputs, size, changed, state, True, wall_s)


def _size(folder: Path) -> tuple[int, float]:
    """Bytes of all files below a folder, and when the newest changed."""
    size = 0
    changed = folder.stat().st_mtime
    for root, _, names in os.walk(folder):
        for name in names:
            status = (Path(root) / name).lstat()
            size += status.st_size
            changed = max(changed, status.st_mtime)
    return size, changed


def _describe(stage: str, manifest: dict[str, Any]) -> str:
    """What an artifact is, with what tells it from others of its stage."""
    key = manifest["key"]
    counts = manifest["counts"]
    if stage == "points" and "student" in key:
        return "pseudo-labels, consolidated predictions of a student"
    if stage == "pixels":
        return f"pixel labels by {key['teacher.kind']}, {counts['images']} images"
    if stage == "student":
        protocol = manifest["protocol"] if manifest["used_labels"] else "annotation-free"
        return f"student, {protocol}, seed {manifest['config']['seed']}"
    if stage == "index":
        return f"index of {counts['frames']} key frames of {manifest['config']['data']['root']}"
    if stage == "scores":
        split = ", ".join(manifest["config"]["data"]["eval"])
        of = manifest["student"] or ", ".join(map(str, manifest["inputs"].values()))
        return f"scores on {split}: mIoU {100 * manifest['miou']:.1f} % of {of}"
    return _KINDS[stage]


def unneeded(entries: Sequence[Entry], keep: Iterable[str] = ()) -> list[Entry]:
    """Finished artifacts that no student, no scores and no named one was made from.

    Unfinished ones may be the work of hours that somebody goes on with, and are never among them.

    Args:
        entries: inventory of a store.
        keep: folders or ids of more artifacts to keep.

    Raises:
        BadInput: a name to keep is not in the inventory.
    """
    named = [Path(name).name for name in keep]
    for name in named:
        if all(name != entry.id for entry in entries):
            raise BadInput("keep", f"{name!r} is no artifact of the store", "see the list")
    roots = [entry.id for entry in entries if entry.stage in _KEPT or not entry.whole]
    needed = {entry.id for entry in lineage(entries, [*roots, *named])}
    return [entry for entry in entries if entry.id not in needed]


def lineage(entries: Sequence[Entry], ids: Iterable[str]) -> list[Entry]:
    """Artifacts of an inventory with some ids, and all that they were made from."""
    by_id = {entry.id: entry for entry in entries}
    found: set[str] = set()
    open_ids = list(ids)
    while open_ids:
        current = open_ids.pop()
        if current in by_id and current not in found:
            found.add(current)
            open_ids += by_id[current].inputs
    return [entry for entry in entries if entry.id in found]


def inventory_table(entries: Sequence[Entry], now: float | None = None) -> str:
    """Table of an inventory: id, age, size, state, what it is and what it was made from."""
    moment = time.time() if now is None else now
    head = ("artifact", "age", "size", "state", "what", "made from")
    rows = [
        (
            entry.id,
            age_text(moment - entry.changed),
            size_text(entry.bytes),
            entry.state,
            entry.what,
            ", ".join(entry.inputs),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def size_text(count: int) -> str:
    """Number of bytes in kB, MB or GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def age_text(seconds: float) -> str:
    """Age in minutes, hours or days."""
    if seconds < 3600:
        return f"{max(0.0, seconds) / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"

"""Index stage: reads a data set's tables once, and gives the key frames of its scenes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clipsweep.pipeline.artifacts.index import (
    Row,
    Skip,
    read_frame_ids,
    read_index,
    read_scenes,
    to_parquet,
)
from clipsweep.pipeline.artifacts.store import Artifact, Part, digest_files, digest_of
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS, Reader
from clipsweep.pipeline.datasets.checks import no_scene
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame

_log = logging.getLogger(__name__)

NAMED_BY = (
    *("data.kind", "data.own", "data.train", "data.eval"),
    *("data.columns", "data.min_points", "data.hash", "on_bad"),
)
"""Settings that decide what is in the index."""

DEMO_MARK = "demo.json"
"""File in the root of a demo world with its settings."""
_POLL_S = 0.5


def make_index(config: Config) -> Artifact:
    """Indexes a data set: reads its tables once into ``index.parquet``.

    Of several training workers the first makes it, the others wait for it.

    The tables name the index, and files beside them may change. With ``verify`` all is read again;
    what was made from rows that have changed since is no longer found then, and made again.

    Raises:
        BadInput: the tables or, with ``on_bad=fail``, any frame cannot be used.
    """
    started = time.time()
    root = Path(config.data.root)
    tables = DATASETS[config.data.kind].tables(config.data)
    key = {**config.values(*NAMED_BY), "tables": digest_files(tables)}
    index = Artifact.of(config.store, "index", key, suffix=".parquet")
    if os.environ.get("RANK", "0") != "0":
        while not (index.whole and index.done("index")):
            time.sleep(_POLL_S)
        return index
    if index.whole and index.done("index") and not config.verify:
        _report_missing(root, index.facts("index")["counts"])
        return index
    before = index.facts("index")["scenes"] if index.done("index") else {}
    rows = _read_rows(config, root)
    changed = [scene for scene in before if rows.scenes.get(scene) != before[scene]]
    if changed:
        _log.warning(
            f"{root}: other files than when {index.id} was made, in {len(changed)} scene(s),"
            f" first {changed[0]}; what was made from them is made again"
        )
    index.sweep_orphans()
    facts = {"skipped": rows.skipped, "counts": rows.counts, "scenes": rows.scenes}
    index.commit("index", rows.parquet, **facts)
    index.finish(["index"], config, started)
    return index


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Index rows that a reader found in a data root.

    Attributes:
        parquet: the bytes of ``index.parquet``.
        scenes: digest of each scene's rows.
        skipped: frames left out.
        counts: of frames and files.
    """

    parquet: bytes
    scenes: dict[str, str]
    skipped: list[Skip]
    counts: dict[str, int]


def _read_rows(config: Config, root: Path) -> _Rows:
    """Reads all index rows; reports what is missing, if the run can do without."""
    reader = DATASETS[config.data.kind]
    skipped: list[Skip] = []
    counts = {"frames": 0, "labelled": 0, "missing_sweeps": 0}
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}

    def usable() -> Iterator[Row]:
        for row in _converted(config, reader):
            counts["missing_sweeps"] += row.missing_sweeps
            for role, scenes in seen.items():
                if getattr(row, role):
                    scenes.add(row.frame.scene)
            if isinstance(row.frame, Skip):
                skipped.append(row.frame)
            else:
                counts["frames"] += 1
                counts["labelled"] += row.frame.labels is not None
                yield row

    parquet, digests = to_parquet(usable(), root, Path(config.store))
    if skipped and config.on_bad == "fail":
        cure = f"{len(skipped)} frame(s) in all; on_bad=skip leaves them out"
        where = f"frame {skipped[0].frame} of {skipped[0].scene}"
        raise BadInput(where, skipped[0].reason, cure)
    if not counts["frames"]:
        raise BadInput(root, "no frame can be used", skipped[0].reason if skipped else "")
    if 0 < counts["labelled"] < counts["frames"]:
        _log.info(f"{root}: {counts['labelled']} of {counts['frames']} frames have labels")
    _report_missing(root, counts)
    # whose splits have as many scenes as it was configured with
    demo = (root / DEMO_MARK).is_file()
    for role, scenes in seen.items():
        counts[f"absent_{role}"] = 0 if demo and scenes else _absent(config, role, scenes)
    return _Rows(parquet, digests, skipped, counts)


def _converted(config: Config, reader: Reader) -> Iterator[Row]:
    """Index rows with files that the pipeline can read, converted first where need be."""
    rows = reader.index(config.data)
    return reader.convert(config.data, rows, Path(config.store)) if reader.convert else rows


def _report_missing(root: Path, counts: Mapping[str, int]) -> None:
    """Warns of older sweeps that the tables name and the disk lacks, in every run that goes on."""
    missing = counts.get("missing_sweeps", 0)
    if missing:
        what = f"{missing} earlier sweeps are missing, and frames go without them"
        _log.warning(f"{root}: {what}; once they are there, run with verify=true")


def _absent(config: Config, role: str, present: set[str]) -> int:
    """Number of scenes of an official split that the data root lacks; logs it.

    The splits are those that ``data.train`` or ``data.eval`` names.
    """
    official = DATASETS[config.data.kind].splits()
    absent = 0
    for name in getattr(config.data, role):
        scenes = official.get(name, ())
        here = sum(scene in present for scene in scenes)
        if here < len(scenes):
            _log.warning(f"data.{role}: {here} of {len(scenes)} scenes of {name!r} are there")
        absent += len(scenes) - here
    return absent


def scene_frames(index: Artifact, config: Config, scene: str) -> list[Frame]:
    """Key frames of a scene in order of time."""
    path = index.payload("index")
    changed_ns = path.stat().st_mtime_ns
    return list(_frames(path, changed_ns, Path(config.data.root), scene))


@lru_cache(maxsize=1)  # the parts of a scene follow each other
def _frames(index: Path, changed_ns: int, root: Path, scene: str) -> tuple[Frame, ...]:
    return tuple(read_index(index, root, scene))


def scenes_of(index: Artifact, *roles: str) -> list[str]:
    """Scenes of the index that have one of the roles ``train`` and ``eval``.

    Without any role, all scenes.
    """
    return list(read_scenes(index.payload("index"), roles or ("train", "eval")))


def require_scenes(config: Config, index: Artifact, role: str) -> None:
    """Refuses an index without any scene of a split that a command needs.

    Raises:
        BadInput: names ``data.<role>`` and the scenes that the index has.
    """
    names = getattr(config.data, role)
    if names and not scenes_of(index, role):
        key = f"data.{role}={{0}}"
        root = Path(config.data.root)
        raise no_scene(root, ", ".join(names), scenes_of(index), keys=key)


def scene_digests(index: Artifact, *roles: str) -> dict[str, str]:
    """Digest of the index rows of each scene that has one of the roles."""
    digests = index.facts("index")["scenes"]
    return {scene: digests[scene] for scene in scenes_of(index, *roles)}


def split_scenes(
    index: Artifact,
    *roles: str,
    frames: int | None = None,
    inputs_of: Callable[[str], str] = lambda scene: "",
) -> tuple[Part, ...]:
    """Splits scenes into shards of successive key frames.

    A shard is named by its scene, by what it is made from and by its number in the scene.

    Args:
        index: of the scenes.
        roles: ``train`` and ``eval``; none is both.
        frames: most key frames of a part; None takes whole scenes.
        inputs_of: digest of what a scene's shards are made from beside its rows in the index.
    """
    ids = read_frame_ids(index.payload("index"))
    parts: list[Part] = []
    for scene, rows in scene_digests(index, *roles).items():
        size = frames or len(ids[scene])
        made_from = digest_of([rows, inputs_of(scene)])[:8]
        for number, start in enumerate(range(0, len(ids[scene]), size)):
            name = f"{scene}+{made_from}+{number:04}"
            parts.append(Part(scene, rows, name, tuple(ids[scene][start : start + size])))
    return tuple(parts)


def find_parts(artifact: Artifact, index: Artifact, scenes: Sequence[str]) -> Artifact:
    """Finds the shards of a finished artifact for some scenes of the index.

    Where a scene is there more than once, what the manifest lists is taken, else the latest.

    Raises:
        BadInput: a frame of these scenes has no shard.
    """
    ids = read_frame_ids(index.payload("index"))
    digests = scene_digests(index)
    listed = artifact.manifest()["shards"]
    made: dict[str, dict[str, list[Part]]] = {scene: {} for scene in scenes}
    for name, facts in sorted(artifact.committed().items(), key=lambda each: each[0] in listed):
        scene = facts.get("scene")
        if scene in made and facts["rows"] == digests[scene]:
            part = Part(scene, facts["rows"], name, tuple(facts["frames"]))
            versions = made[scene]
            version = name.rpartition("+")[0]
            versions[version] = [*versions.pop(version, []), part]  # the latest stands last
    parts: list[Part] = []
    for scene, versions in made.items():
        latest = next(reversed(versions.values()), [])
        if {frame for part in latest for frame in part.frames} != set(ids[scene]):
            cure = "label with the same data.train and data.eval"
            raise BadInput(artifact.path, f"does not cover {scene}", cure)
        parts += sorted(latest, key=lambda part: part.shard)
    return artifact.holding(parts, [skip for skip in index.skipped() if skip.scene in made])

"""Artifact store: resumable, content-addressed results of the stages, in atomic shards.

A shard is whole or absent. An artifact ``<store>/<stage>-<12 hex>/`` holds one payload file a
shard, ``done/<shard>.json`` markers and, when whole, ``manifest.json``. A payload is written to a
temporary name, fsynced and renamed, then its marker likewise: the marker is the commit. A process
may be killed at any point; the next one sees only what was committed.

The stages that work on scenes split them into parts of successive key frames, one shard each. Their
directory is named by settings alone, each shard also by what its scene is made from, so that runs
on other scenes share what is there. The manifest lists the shards of the run that ended last.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.settings import plain
from clipsweep.projection.errors import BadInput

_PACKAGES = (
    "clipsweep",
    "numpy",
    "numba",
    "torch",
    "spconv-cu120",
    "spconv-cu126",
    "open_clip_torch",
    "ray",
)
_ORPHANED_S = 3600.0
_NAME = re.compile(r"[\w.+-]+")
_MANIFEST = {
    "digest": str,
    "key": dict,
    "inputs": dict,
    "counts": dict,
    "skipped": list,
    "shards": dict,
}
_NO_MARKER = (OSError, ValueError, KeyError, TypeError, AttributeError)
_checked: set[tuple[str, int, int]] = set()
"""Payloads whose sha256 this process has compared: path, size and time of change."""


def forget_checked() -> None:
    """Forgets which payloads were verified: each is compared with its sha256 at the next read."""
    _checked.clear()


def digest_of(value: Any) -> str:
    """Digest (sha256) of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_files(paths: Sequence[Path]) -> str:
    """Digest (sha256) over names and contents of files.

    Of a folder, over the names and sizes of what lies in it.
    """
    total = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            sizes = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path))
            total.update(path.name.encode() + b"\0" + digest_of(sizes).encode())
            continue
        with path.open("rb") as stream:
            total.update(
                path.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest()
            )
    return total.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Atomic file write: after a crash there is the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # nodes share folders, and numbers of processes
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:  # a full disk is reported without a name
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Atomic folder write: what ``fill`` writes gets its name when it is whole.

    Raises:
        BadInput: there is something of that name.
    """
    check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        fill(temporary)
        check_absent(path)  # another run may have been faster
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_absent(path: Path) -> None:
    """Refuses to overwrite an existing file or folder.

    Raises:
        BadInput: there is something of that name.
    """
    if os.path.lexists(path):
        raise BadInput(path, "exists already", "delete it or choose another folder")


@dataclass(frozen=True)
class Part:
    """Shard of a scene: successive key frames whose results share a payload file.

    Attributes:
        scene: its name.
        rows: digest of the scene's rows in the index.
        shard: name of the shard.
        frames: ids of the key frames.
    """

    scene: str
    rows: str
    shard: str
    frames: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Marker entries of the shard."""
        return {"scene": self.scene, "rows": self.rows, "frames": list(self.frames)}


@dataclass(frozen=True)
class Artifact:
    """Artifact: result of a stage, addressed by its configuration and inputs.

    Attributes:
        path: its directory.
        key: what its name is the hash of.
        inputs: ids of the artifacts it was made from.
        suffix: ending of payload files.
        parts: the shards that this run uses, of a stage that works on scenes.
        lost: frames that the index lacks, of such a stage.
    """

    path: Path
    key: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ".safetensors"
    parts: tuple[Part, ...] = ()
    lost: tuple[Skip, ...] = ()

    @staticmethod
    def of(
        store: str,
        stage: str,
        key: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        suffix: str = ".safetensors",
    ) -> Artifact:
        """Artifact of a stage with given settings and inputs, whether it exists or not.

        Names the directory after key and inputs.
        """
        ids = {artifact.stage: artifact.id for artifact in inputs}
        name = f"{stage}-{digest_of([stage, dict(key), ids])[:12]}"
        return Artifact(Path(store) / name, key, ids, suffix)

    @staticmethod
    def at(path: str, stage: str) -> Artifact:
        """Opens a finished artifact of a stage from a folder that a user named.

        Raises:
            BadInput: there is none of that stage at the path, or it is not whole.
        """
        artifact = Artifact(Path(path))
        if not artifact.whole or artifact.stage != stage:
            raise BadInput(
                path or "''",
                f"is no finished {stage} artifact",
                "give the folder that the tool printed",
            )
        return artifact

    @property
    def id(self) -> str:
        """Id of the artifact, the name of its directory: stage and 12 hex digits."""
        return self.path.name

    @property
    def stage(self) -> str:
        """Name of the stage that makes the artifact."""
        return self.id.rpartition("-")[0]

    @property
    def whole(self) -> bool:
        """Whether the artifact is finished."""
        return (self.path / "manifest.json").is_file()

    def manifest(self) -> dict[str, Any]:
        """Manifest of a finished artifact: digest, key, inputs, counts, skipped frames, config."""
        try:
            tree = json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise BadInput(
                self.path / "manifest.json", f"cannot be read ({error})", "delete it and run again"
            ) from None
        try:
            entries = _readable(tree)
        except (KeyError, TypeError, AttributeError):
            entries = {}
        if not all(isinstance(entries.get(name), kind) for name, kind in _MANIFEST.items()):
            raise BadInput(self.path / "manifest.json", "is no manifest", "delete it and run again")
        return entries

    def skipped(self) -> list[Skip]:
        """Skipped frames that this artifact lacks, those lost in its inputs included."""
        if not self.parts:
            return [Skip.of_row(row) for row in self.manifest()["skipped"]]
        rows = (row for part in self.parts for row in self.facts(part.shard)["skipped"])
        return [*self.lost, *(Skip.of_row(row) for row in rows)]

    def holding(self, parts: Sequence[Part], lost: Sequence[Skip] = ()) -> Artifact:
        """Artifact with the shards that a run uses.

        The index lacks the frames ``lost``.
        """
        return replace(self, parts=tuple(parts), lost=tuple(lost))

    def shards(self) -> list[str]:
        """Names of the artifact's shards."""
        return [part.shard for part in self.parts]

    def shard_of(self, frame: str) -> str:
        """Name of the shard that a key frame belongs to.

        Raises:
            BadInput: it belongs to none.
        """
        try:
            return self._shard_of[frame]
        except KeyError:
            cure = "label again with verify=true: the data changed since"
            raise BadInput(self.path, f"has nothing of frame {frame}", cure) from None

    @cached_property
    def _shard_of(self) -> dict[str, str]:
        return {frame: part.shard for part in self.parts for frame in part.frames}

    def content(self, *scenes: str) -> str:
        """Digest (sha256) of the payloads of all shards, or of those of some scenes.

        The shards must be done.
        """
        chosen = [part for part in self.parts if not scenes or part.scene in scenes]
        return digest_of([[part.scene, self.facts(part.shard)["sha256"]] for part in chosen])

    def facts(self, name: str) -> dict[str, Any]:
        """Marker entries of a committed shard."""
        try:
            return self._read_marker(name)
        except _NO_MARKER:
            raise BadInput(
                self.shard(name), "is not whole", "run the tool that makes it again"
            ) from None

    def committed(self) -> dict[str, dict[str, Any]]:
        """Marker entries of every committed shard in the directory, the latest last."""
        markers = sorted((self.path / "done").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return {path.stem: self.facts(path.stem) for path in markers}

    def shard(self, name: str) -> Path:
        """Path of a shard's payload file."""
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise BadInput(
                name,
                "cannot be used as a file name",
                "names are letters, digits, '.', '_', '+' and '-'",
            )
        return self.path / f"{name}{self.suffix}"

    def _marker(self, name: str) -> Path:
        return self.path / "done" / f"{name}.json"

    def _read_marker(self, name: str) -> dict[str, Any]:
        facts = _readable(json.loads(self._marker(name).read_bytes()))
        return {**facts, "sha256": str(facts["sha256"])}

    def done(self, name: str, verify: bool = False) -> bool:
        """Whether a shard is committed and undamaged.

        Its payload must have the committed size and, with ``verify``, the committed digest.
        """
        try:
            marker = self._read_marker(name)
            payload = self.shard(name)
            if payload.stat().st_size != marker["bytes"]:
                return False
        except _NO_MARKER:
            return False
        return not verify or hashlib.sha256(payload.read_bytes()).hexdigest() == marker["sha256"]

    def commit(self, name: str, payload: bytes, **facts: Any) -> None:
        """Commits a shard: its payload, then its marker (atomic, idempotent).

        Committing it again, even from two processes at once, leaves one whole copy.

        Args:
            name: the shard.
            payload: its bytes.
            facts: entries of the marker beside size and digest, such as ``skipped`` and
                ``counts``.
        """
        write_whole(self.shard(name), payload)
        marker = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest(), **facts}
        write_whole(self._marker(name), json.dumps(marker, default=Skip.row).encode())

    def commit_arrays(self, name: str, arrays: Mapping[str, np.ndarray], **facts: Any) -> None:
        """Commits a shard of named arrays as safetensors."""
        self.commit(
            name, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}), **facts
        )

    def payload(self, name: str) -> Path:
        """Verified path of a shard's payload: compared with its sha256 once in each process.

        Raises:
            BadInput: the shard is not committed, or is another one than was committed.
        """
        path = self.shard(name)
        try:
            status = path.stat()
            version = (str(path), status.st_size, status.st_mtime_ns)
            if version not in _checked:
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if digest != self.facts(name)["sha256"]:
                    raise _damaged(path, "it has another sha256 than when it was made")
                _checked.add(version)
        except OSError as error:
            raise _damaged(path, error) from None
        return path

    def arrays(self, name: str) -> Any:
        """Opens a shard as a safetensors file.

        ``keys()``, ``get_tensor(key)``; arrays are read when asked for.

        Raises:
            BadInput: as ``payload``.
        """
        try:
            return safe_open(self.payload(name), framework="numpy")
        except (OSError, SafetensorError) as error:
            raise _damaged(self.shard(name), error) from None

    def sweep_orphans(self) -> None:
        """Removes temporary files that killed processes left behind.

        Young ones may be another run's, at work.
        """
        for path in self.path.glob("**/.*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ORPHANED_S:
                    path.unlink()

    def finish(
        self,
        shards: Sequence[str],
        config: Any,
        started: float,
        inherited: Sequence[Skip] = (),
        **facts: Any,
    ) -> None:
        """Writes the manifest, which marks the artifact as finished.

        Args:
            shards: all of them, committed, in order.
            config: resolved configuration, a dataclass.
            started: ``time.time()`` when this run took the stage up.
            inherited: frames that the inputs lack.
            facts: more entries of the manifest.
        """
        markers = {name: json.loads(self._marker(name).read_bytes()) for name in shards}
        skipped = [skip.row() for skip in inherited]
        counts: dict[str, int] = {}
        for marker in markers.values():
            skipped += marker.pop("skipped", [])
            for name, count in marker.pop("counts", {}).items():
                counts[name] = counts.get(name, 0) + count
        manifest = {
            "id": self.id,
            "digest": hashlib.sha256(
                "".join(m["sha256"] for m in markers.values()).encode()
            ).hexdigest(),
            "inputs": dict(self.inputs),
            "key": dict(self.key),
            "counts": counts,
            "skipped": skipped,
            "config": plain(config),
            "versions": _versions(),
            "wall_s": round(time.time() - started, 3),
            "shards": markers,
            **facts,
        }
        write_whole(
            self.path / "manifest.json", json.dumps(manifest, indent=1, default=str).encode()
        )


def _readable(facts: Any) -> dict[str, Any]:
    """Entries of a marker or manifest, whose skipped frames and counts can be read.

    Raises:
        KeyError, TypeError, AttributeError: they cannot.
    """
    found = {"skipped": [], "counts": {}, **facts}
    for row in found["skipped"]:
        Skip.of_row(row)
    sum(found["counts"].values())
    return found


def _damaged(path: Path, reason: object) -> BadInput:
    return BadInput(
        path, f"is damaged ({reason})", "run the tool that made it again with verify=true"
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

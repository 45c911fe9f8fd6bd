"""The labelling stages: index, pixels, points. Configuration and artifacts in, an artifact out, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from clipsweep.distill.teacher import MaskClip, MaskClipConfig, PrecomputedConfig, Teacher
from clipsweep.pipeline.command import say
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.datasets.rows import Row, Skip, read_images, read_index, read_scenes, to_parquet
from clipsweep.pipeline.demo.kitti import write_kitti_demo
from clipsweep.pipeline.demo.write import write_demo
from clipsweep.pipeline.executor import run_stage
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.loaders import key_cloud, note_older, read_pixels, readable, skip_or_raise
from clipsweep.pipeline.store import Artifact, digest_files, digest_of, write_whole
from clipsweep.pipeline.teachers import TeacherInputs, make_teacher
from clipsweep.pipeline.work import Shard
from clipsweep.projection.alignment import Alignment
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, PixelLabels
from clipsweep.projection.fusion import label_scene

_DEMOS = {"nuscenes": write_demo, "semantickitti": write_kitti_demo}
_DEMO_SAID = "demo.json"


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- index -----------------------------------------------------------------------------------------------------------


def make_index(config: Config) -> Artifact:
    """Reads the data set's tables once into ``index.parquet``; with ``make_demo``, writes the demo world first.

    The tables name the index, and files beside them may change. With ``verify`` all is read again; where that gives
    another index it gets a name of its own, so that nothing made from the old one is taken for new, and is the one from
    then on.

    Raises:
        BadInput: the tables or, with ``on_bad=fail``, any frame cannot be used.
    """
    started, root = time.time(), Path(config.data.root)
    if config.make_demo:
        make_demo(config, root)
    data = config.groups("data")["data"]
    del data["root"]
    tables = DATASETS[config.data.kind].tables(config.data)
    key = {"data": data, "on_bad": config.on_bad, "tables": digest_files(tables)}
    first = Artifact.of(config.store, "index", key, suffix=".parquet")
    successor = first.path / "successor"
    index = _succeeding(first, successor.read_text(errors="replace")) if successor.is_file() else first
    if index.whole and index.done("index") and not config.verify:
        return index
    rows = _read_rows(config, root)
    digest = hashlib.sha256(rows.parquet).hexdigest()
    if first.whole and first.manifest()["shards"]["index"]["sha256"] != digest:
        index = _succeeding(first, digest)
        say(f"{root}: other files than when {first.id} was made; {index.id} takes its place")
        write_whole(successor, digest.encode())
    else:
        index = first
        successor.unlink(missing_ok=True)
    index.sweep_orphans()
    index.commit("index", rows.parquet, skipped=rows.skipped, counts=rows.counts)
    index.finish(["index"], config, started)
    return index


def _succeeding(first: Artifact, digest: str) -> Artifact:
    """The index, of that sha256, that stands for changed files beside the same tables."""
    return Artifact.of(str(first.path.parent), "index", {**first.key, "index": digest}, suffix=first.suffix)


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """What a reader made of a data root: the bytes of ``index.parquet``, frames left out, and counts."""

    parquet: bytes
    skipped: list[Skip]
    counts: dict[str, int]


def _read_rows(config: Config, root: Path) -> _Rows:
    """Reads all rows; says what is not there, if it can be done without."""
    reader, skipped = DATASETS[config.data.kind], list[Skip]()
    counts = {"frames": 0, "labelled": 0, "missing_sweeps": 0}
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}

    def usable() -> Iterator[Row]:
        for row in reader.index(config.data):
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

    parquet = to_parquet(usable(), root)
    if skipped and config.on_bad == "fail":
        raise BadInput(f"frame {skipped[0].frame} of {skipped[0].scene}", skipped[0].reason, _skip_hint(len(skipped)))
    if not counts["frames"]:
        raise BadInput(root, "no frame can be used", skipped[0].reason if skipped else "")
    if 0 < counts["labelled"] < counts["frames"]:
        say(f"{root}: {counts['labelled']} of {counts['frames']} frames have labels")
    if counts["missing_sweeps"]:
        missing = f"{counts['missing_sweeps']} earlier sweeps are missing, and frames go without them"
        say(f"{root}: {missing}; once they are there, run with verify=true")
    demo = (root / _DEMO_SAID).is_file()  # whose splits have as many scenes as it was told
    for role, scenes in seen.items():
        counts[f"absent_{role}"] = 0 if demo else _absent(config, role, scenes)
    return _Rows(parquet, skipped, counts)


def _absent(config: Config, role: str, present: set[str]) -> int:
    """Number of scenes of the official splits in ``data.train`` or ``data.eval`` that are not there; says so."""
    official, absent = DATASETS[config.data.kind].splits(), 0
    for name in getattr(config.data, role):
        scenes = official.get(name, ())
        here = sum(scene in present for scene in scenes)
        if here < len(scenes):
            say(f"data.{role}: {here} of {len(scenes)} scenes of {name!r} are there")
        absent += len(scenes) - here
    return absent


def make_demo(config: Config, root: Path) -> None:
    """Writes the embedded world to a data root, in the layout of ``data.kind``, unless it is there already.

    Raises:
        BadInput: something else is there, or a setting is out of its bounds.
    """
    said, wanted = root / _DEMO_SAID, {"kind": config.data.kind, **asdict(config.demo)}
    if said.is_file() and {"kind": "nuscenes", **json.loads(said.read_text())} == wanted:  # older ones name no kind
        return
    if root.exists():
        raise BadInput(root, "holds something else than this demo world", "delete it, or give another data.root")
    say(f"writing the demo world to {root}, which takes a minute or two")
    try:
        _DEMOS[config.data.kind](config.demo, root)
    except ValueError as error:
        raise BadInput("demo", str(error)) from None
    write_whole(said, json.dumps(wanted).encode())


def _skip_hint(count: int) -> str:
    return f"{count} frame(s) in all; on_bad=skip leaves them out"


def scene_frames(index: Artifact, config: Config, scene: str) -> list[Frame]:
    """The frames of a scene."""
    return read_index(index.shard("index"), Path(config.data.root), scene)


def scenes_of(index: Artifact, *roles: str) -> list[str]:
    """The scenes that have one of the roles ``train`` and ``eval``."""
    return list(read_scenes(index.shard("index"), roles or ("train", "eval")))


# --- pixels ----------------------------------------------------------------------------------------------------------


def _teacher(config: Config, space: LabelSpace) -> Teacher:
    inputs = TeacherInputs(space, Path(config.data.root), Path(config.store), device().type)
    return make_teacher(config.teacher, inputs)


class PixelWorker:
    """Labels the images of a scene with the teacher that it owns, or reads kept features under other names."""

    def __init__(self, config: Config, index: Artifact, kept: Artifact | None) -> None:
        self.config, self.index, self.kept = config, index, kept
        self.teacher = _teacher(config, load_space(config.labels))

    def __call__(self, scene: str) -> Shard:
        """The labels of a scene's images."""
        arrays: dict[str, np.ndarray] = {}
        skipped: list[Skip] = []
        frames = scene_frames(self.index, self.config, scene)
        stream = iter(self._images(frames))
        for frame in frames:
            images = [next(stream) for _ in frame.cameras]
            errors = [image for image in images if isinstance(image, BadInput)]
            if errors:
                skipped.append(skip_or_raise(errors[0], frame, self.config))
                continue
            for camera, image in zip(frame.cameras, images, strict=True):
                assert isinstance(image, PixelLabels)
                prefix = f"{frame.id}/{camera.name}"
                arrays[f"{prefix}/label"], arrays[f"{prefix}/score"] = image.label, image.score
                if image.feature is not None:
                    arrays[f"{prefix}/feature"] = image.feature
        images_done = sum(name.endswith("/label") for name in arrays)
        return Shard(arrays, skipped, {"images": images_done})

    def _images(self, frames: list[Frame]) -> Iterator[PixelLabels | BadInput]:
        if self.kept is None:
            yield from self.teacher.stream(camera for frame in frames for camera in frame.cameras)
            return
        assert isinstance(self.teacher, MaskClip)
        for frame in frames:
            for image in read_pixels(self.kept, frame):
                assert image.feature is not None
                yield self.teacher.relabel(image.feature)


def make_pixels(config: Config, index: Artifact) -> Artifact:
    """Labels every image of the index; the shard ``_text`` holds the classes' embeddings.

    Where features of the same model were kept before and only the names differ, the images are not read again.
    """
    space, own = load_space(config.labels), config.teacher.own
    teacher = _teacher(config, space)
    features = teacher.feature_digest() if isinstance(teacher, MaskClip) else ""
    key = {
        **config.groups("on_bad"),
        "kind": config.teacher.kind,
        "keep_features": isinstance(own, MaskClipConfig) and own.keep_features,
        "classes": [space.names, space.prompts, space.negatives],
        "teacher": teacher.digest(),
        "feature_digest": features,
        "files": _label_files(config, index, own) if isinstance(own, PrecomputedConfig) else "",
    }
    pixels, kept = Artifact.of(config.store, "pixels", key, [index]), None
    shards = ["_text", *scenes_of(index)]
    if _all_done(pixels, shards, config):
        return pixels
    if isinstance(own, MaskClipConfig) and not own.key_smoothing:
        kept = _kept_features(config, index, features)
    if kept:  # its features are rounded to 16 bits, so that a score may differ in its last digit
        pixels = Artifact.of(config.store, "pixels", {**key, "relabelled": True}, [index])
        if _all_done(pixels, shards, config):
            return pixels
    if not pixels.done("_text", config.verify):
        pixels.commit_arrays("_text", {"text": teacher.text})
    return run_stage(pixels, shards, partial(PixelWorker, config, index, kept), config, index.skipped(), gpu=True)


def _all_done(artifact: Artifact, shards: Sequence[str], config: Config) -> bool:
    return all(artifact.done(shard, config.verify) for shard in shards) and artifact.whole


def _kept_features(config: Config, index: Artifact, features: str) -> Artifact | None:
    """A finished artifact of the same images with the same model's dense features in it, and no frame left out."""
    for manifest in sorted(Path(config.store).glob("pixels-*/manifest.json")):
        other = Artifact(manifest.parent)
        said = other.manifest()
        same = said["inputs"] == {"index": index.id} and said["key"]["feature_digest"] == features
        if same and said["key"]["keep_features"] and said["skipped"] == [asdict(skip) for skip in index.skipped()]:
            return other
    return None


def _label_files(config: Config, index: Artifact, own: PrecomputedConfig) -> str:
    """Digest of the label images' names and sizes: new ones in an old folder are new input."""
    root = Path(config.data.root) / own.root
    images = read_images(index.shard("index"))
    return digest_of([_size(f"{root}/{os.path.splitext(image)[0]}.png") for image in images])


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


# --- points ----------------------------------------------------------------------------------------------------------


class FuseWorker:
    """Fuses the pixel labels of a scene into labels of its key sweeps' points."""

    def __init__(self, config: Config, index: Artifact, pixels: Artifact) -> None:
        self.config, self.index, self.pixels = config, index, pixels
        self.space = load_space(config.labels)
        self.lost = {skip.frame for skip in pixels.skipped()}

    def __call__(self, scene: str) -> Shard:
        """The fused labels of a scene's key sweeps."""
        data, classes = self.config.data, len(self.space)
        frames = [frame for frame in scene_frames(self.index, self.config, scene) if frame.id not in self.lost]
        frames, skipped = readable(frames, self.config, partial(key_cloud, config=self.config, ego_box_m=0.0))
        arrays: dict[str, np.ndarray] = {}
        labelled = 0
        alignments: list[Alignment] = []
        for frame, said in label_scene(
            frames,
            lambda frame: read_pixels(self.pixels, frame),
            self.config.fusion,
            classes,
            data.columns,
            data.ego_box_m,
            data.bad_share,
            self.space.limits,
            partial(note_older, skipped, scene) if self.config.on_bad == "skip" else None,
            alignments.append,
        ):
            for name in ("label", "score", "agreement"):
                arrays[f"{frame.id}/{name}"] = getattr(said, name)
            labelled += int((said.label < classes).sum())
        points = sum(len(array) for name, array in arrays.items() if name.endswith("/label"))
        aligned = _tell_alignment(scene, alignments)
        return Shard(arrays, skipped, {"points": points, "labelled": labelled, **aligned})


def _tell_alignment(scene: str, alignments: Sequence[Alignment]) -> dict[str, int]:
    """Tells how the poses of a scene were corrected; counts scenes corrected and frames left alone."""
    counts = {"scenes_aligned": 0, "frames_apart": 0}
    for alignment in alignments:
        before, after = 100 * alignment.before_m, 100 * alignment.after_m
        if alignment.corrected:
            counts["scenes_aligned"] += 1
            say(
                f"{scene}: key frames differed in the height of the ground by {before:.1f} cm;"
                f" aligned to {after:.1f} cm, neighbours by up to {alignment.largest_m:.2f} m"
            )
        apart = alignment.fits.count(False)
        if apart:
            counts["frames_apart"] += apart
            whole = f"{apart} of {len(alignment.fits)} key frames do not fit the others' ground"
            say(f"{scene}: {whole} and are labelled by their own images alone")
    return counts


def make_points(config: Config, index: Artifact, pixels: Artifact) -> Artifact:
    """Fuses pixel labels into point labels, scene by scene."""
    space = load_space(config.labels)
    limits = space.limits
    key = {
        **config.groups("fusion", "on_bad"),
        "classes": space.names,
        "ground": limits.ground.tolist(),
        "max_height_m": limits.max_height_m.tolist(),
        "taller": limits.taller.tolist(),
    }
    points = Artifact.of(config.store, "points", key, [index, pixels])
    worker = partial(FuseWorker, config, index, pixels)
    return run_stage(points, scenes_of(index), worker, config, pixels.skipped())

"""Recording of a labelled drive for the Rerun viewer: points, cameras, truth and errors in time."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from clipsweep.distill.teacher.images import decode
from clipsweep.pipeline.artifacts.read import key_cloud, read_pixels, read_points
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.reports.clouds import INSTALL
from clipsweep.pipeline.reports.views import error_colors, true_classes
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Camera, Cloud, Frame, Pairs
from clipsweep.projection.fusion import visible_pairs
from clipsweep.projection.pose import Pose

_RADIUS_M = 0.04
_GREY = (160, 160, 160)
_LIDAR = "scene/lidar"


def record_drive(
    config: Config,
    labels: Artifact,
    labelled: Iterable[tuple[Frame, UInt8[np.ndarray, " n"]]],
    pixels: Artifact | None,
    out: Path,
) -> None:
    """Records labelled key frames on the timelines ``time`` and ``frame``, as a ``.rrd`` file.

    Written frame by frame: memory does not grow with the drive.

    Args:
        config: data, label space, occlusion test.
        labels: predictions or pseudo-labels; those of points are recorded with their scores.
        labelled: key frames in order, each with the class of every raw point of its key sweep.
        pixels: pixel labels of the cameras; None without.
        out: file to write; one that is there is replaced when the recording is whole.

    Raises:
        BadInput: there is no frame, rerun is not installed, or a sweep or image cannot be used.
    """
    rerun = _rerun()
    stream = rerun.new_recording("clipsweep", recording_id=labels.id)
    # rerun's own file sink tells of a full disk in its log alone, and leaves a broken file
    encoded = rerun.binary_stream(stream)
    temporary = out.with_name(f".{out.name}.tmp")
    recorder: _Recorder | None = None
    try:
        with temporary.open("wb") as file:
            for number, (frame, label) in enumerate(labelled):
                if recorder is None:
                    blueprint = _blueprint(rerun, frame, pixels)
                    rerun.send_blueprint(blueprint, make_active=False, recording=stream)
                    recorder = _Recorder(rerun, stream, config, labels, pixels)
                recorder.record(number, frame, label)
                file.write(encoded.read())
            stream.disconnect()
            file.write(encoded.read())
        if recorder is None:
            raise BadInput("data.eval", "has no frame to record")
        temporary.replace(out)
    except OSError as error:  # a full disk is reported without a name
        raise OSError(error.errno, error.strerror, error.filename or str(out)) from error
    finally:
        stream.disconnect()
        temporary.unlink(missing_ok=True)


def check_recording(path: Path) -> None:
    """Validates the file name of a recording to be written, and makes its folder.

    Raises:
        BadInput: it is a folder or has another suffix.
    """
    if path.suffix.lower() != ".rrd" or path.is_dir():
        raise BadInput(path, "is no name of a recording", "end it in .rrd")
    path.parent.mkdir(parents=True, exist_ok=True)


def _rerun() -> Any:
    try:
        rerun = importlib.import_module("rerun")
    except ModuleNotFoundError:
        raise BadInput("format", "is rerun, and rerun-sdk is not installed", INSTALL) from None
    rerun.set_strict_mode(True)  # what it cannot record is an error, not left out
    return rerun


def _blueprint(rerun: Any, frame: Frame, pixels: Artifact | None) -> Any:
    """Layout of the viewer: points in 3D on the left, cameras on the right."""
    views = importlib.import_module("rerun.blueprint")
    around = ["/scene/path", "/scene/cameras/**"]
    clouds = [
        views.Spatial3DView(origin="/scene", name=name, contents=[*around, f"/{_LIDAR}/{name}"])
        for name in ("labels", "truth", "errors", "score")
    ]
    images = [
        views.Spatial2DView(origin=f"/scene/cameras/{camera.name}", name=camera.name)
        for camera in frame.cameras
    ]
    grids = [
        views.Spatial2DView(origin=f"/pixels/{camera.name}", name=camera.name)
        for camera in frame.cameras
        if pixels is not None
    ]
    tabs = [views.Grid(*images, name="points on images")] if images else []
    tabs += [views.Grid(*grids, name="pixel labels")] if grids else []
    right = [views.Tabs(*tabs)] if tabs else []
    return views.Blueprint(views.Horizontal(views.Tabs(*clouds), *right))


class _Recorder:
    """Writes key frames into a recording; positions are relative to each scene's first."""

    def __init__(
        self, rerun: Any, stream: Any, config: Config, labels: Artifact, pixels: Artifact | None
    ) -> None:
        self._rerun = rerun
        self._stream = stream
        self._config = config
        self._labels = labels
        self._pixels = pixels
        self._space = load_space(config.labels)
        self._scene = ""
        self._scene_from_global = Pose.identity()
        self._path: list[np.ndarray] = []
        self._shown: set[str] = set()
        self._now: set[str] = set()
        self._log("/", _classes(rerun, self._space), static=True)

    def record(self, number: int, frame: Frame, label: UInt8[np.ndarray, " n"]) -> None:
        """Records a key frame with the class of each raw point of its key sweep."""
        self._stream.set_time_seconds("time", frame.time_us * 1e-6)
        self._stream.set_time_sequence("frame", number)
        global_from_lidar = frame.sweeps[0].global_from_lidar
        if frame.scene != self._scene:
            self._scene = frame.scene
            self._scene_from_global = global_from_lidar.inverse()
            self._path = []
        scene_from_lidar = self._scene_from_global @ global_from_lidar
        self._path.append(scene_from_lidar.translation)
        self._log("scene/name", self._rerun.TextLog(f"scene {frame.scene}, frame {frame.id}"))
        self._log("scene/path", self._rerun.LineStrips3D([np.array(self._path)]))
        self._log(_LIDAR, self._placed(scene_from_lidar))
        cloud = key_cloud(frame, self._config)
        shown = label[cloud.source]
        self._log_points(frame, cloud, shown)
        pairs = visible_pairs(frame, cloud.xyz, self._config.fusion)
        for index, camera in enumerate(frame.cameras):
            self._log_camera(camera, pairs[pairs.camera == index], shown)
        if self._pixels is not None:
            self._log_pixels(frame, self._pixels)
        self._clear_absent()

    def _clear_absent(self) -> None:
        """Clears what this key frame lacks: the viewer would show that of an earlier one."""
        for entity in self._shown - self._now:
            self._stream.log(entity, self._rerun.Clear(recursive=False))
        self._shown = self._now
        self._now = set()

    def _log(self, entity: str, values: Any, static: bool = False) -> None:
        self._stream.log(entity, values, static=static)
        if not static:
            self._now.add(entity)

    def _placed(self, pose: Pose) -> Any:
        return self._rerun.Transform3D(translation=pose.translation, mat3x3=pose.rotation)

    def _log_points(self, frame: Frame, cloud: Cloud, label: UInt8[np.ndarray, " n"]) -> None:
        self._log_cloud("labels", cloud, class_ids=label)
        truth = true_classes(self._config, frame, self._space)
        if truth is not None:
            true = truth[cloud.source]
            self._log_cloud("truth", cloud, class_ids=true)
            self._log_cloud("errors", cloud, colors=error_colors(label, true))
        if self._labels.stage == "points":
            score = read_points(self._labels, frame).score[cloud.source]
            self._log_cloud("score", cloud, colors=_heat(score.astype(np.float32)))

    def _log_cloud(self, name: str, cloud: Cloud, **colored: np.ndarray) -> None:
        points = self._rerun.Points3D(cloud.xyz, radii=_RADIUS_M, **colored)
        self._log(f"{_LIDAR}/{name}", points)

    def _log_camera(self, camera: Camera, pairs: Pairs, label: UInt8[np.ndarray, " n"]) -> None:
        entity = f"scene/cameras/{camera.name}"
        height, width = camera.size_hw
        self._log(entity, self._placed(self._scene_from_global @ camera.global_from_cam))
        self._log(
            entity, self._rerun.Pinhole(image_from_camera=camera.K, width=width, height=height)
        )
        self._log(f"{entity}/image", self._image(camera))
        points = self._rerun.Points2D(pairs.uv, class_ids=label[pairs.point], radii=1.5)
        self._log(f"{entity}/points", points)

    def _image(self, camera: Camera) -> Any:
        """The image as it is in its file, if that is a JPEG; else decoded."""
        contents = camera.image.read()
        if contents.startswith(b"\xff\xd8"):
            return self._rerun.EncodedImage(contents=contents, media_type="image/jpeg")
        return self._rerun.Image(decode(camera, camera.size_hw)).compress(jpeg_quality=90)

    def _log_pixels(self, frame: Frame, pixels: Artifact) -> None:
        for camera, labels in zip(frame.cameras, read_pixels(pixels, frame), strict=True):
            self._log(f"pixels/{camera.name}", self._rerun.SegmentationImage(labels.label))


def _classes(rerun: Any, space: LabelSpace) -> Any:
    """Legend: name and colour of each class."""
    named = [
        (number, name, tuple(int(value) for value in color))
        for number, (name, color) in enumerate(zip(space.names, space.colors, strict=True))
    ]
    return rerun.AnnotationContext([*named, (NONE, "no label", _GREY)])


def _heat(score: Float32[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Colours of scores of 0 to 1, from blue to yellow."""
    value = np.clip(score, 0, 1)[:, None]
    low = np.array([40, 60, 200], np.float32)
    high = np.array([250, 220, 40], np.float32)
    return (low + value * (high - low)).astype(np.uint8)

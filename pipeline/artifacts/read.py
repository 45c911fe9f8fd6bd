"""Readers of a key frame: pixel labels, point labels, ground truth, point cloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.datasets.boxes import Box, box_truth
from clipsweep.pipeline.labels import LabelSpace
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import (
    NONE,
    Cloud,
    Frame,
    PixelLabels,
    PointLabels,
    SweepLayout,
)
from clipsweep.projection.fusion import SweepReader
from clipsweep.projection.sweeps import merge


def read_pixels(pixels: Artifact, frame: Frame) -> list[PixelLabels]:
    """Reads the pixel labels of a frame's images, in the order of its cameras."""
    file = pixels.arrays(pixels.shard_of(frame.id))
    names = set(file.keys())

    def of(camera: str) -> PixelLabels:
        prefix = f"{frame.id}/{camera}"
        feature = file.get_tensor(f"{prefix}/feature") if f"{prefix}/feature" in names else None
        return PixelLabels(
            file.get_tensor(f"{prefix}/label"), file.get_tensor(f"{prefix}/score"), feature
        )

    return [of(camera.name) for camera in frame.cameras]


def read_points(points: Artifact, frame: Frame) -> PointLabels:
    """Reads the fused pseudo-labels of a frame's key sweep."""
    file = points.arrays(points.shard_of(frame.id))
    if f"{frame.id}/label" not in file.keys():  # noqa: SIM118 - not a mapping
        raise BadInput(
            points.path,
            f"has no labels of frame {frame.id}",
            "label again with verify=true: the data changed since",
        )
    return PointLabels(
        *(file.get_tensor(f"{frame.id}/{name}") for name in ("label", "score", "agreement"))
    )


def read_truth(frame: Frame, space: LabelSpace, config: Config) -> UInt8[np.ndarray, " n"] | None:
    """Ground-truth class of every raw point of a key sweep, 255 = ignored.

    None where the frame has no labels.

    Raises:
        BadInput: the label file is not the indexed one, or has an id that is not in the label
            space.
    """
    if frame.labels is None:
        return None
    raw = DATASETS[config.data.kind].labels(frame.labels.read())
    return space.from_raw(raw, frame.labels.path)


def read_box_truth(
    frame: Frame, boxes: Sequence[Box], class_of: Mapping[str, int], config: Config
) -> UInt8[np.ndarray, " n"]:
    """Ground-truth class of every raw point of a key sweep, from annotated 3D boxes.

    The car's own returns (``data.ego_box_m``), and rows that are no points, are ignored (255).

    Raises:
        BadInput: the key sweep is bad, or a box has a category that is not in ``class_of``.
    """
    cloud = key_cloud(frame, config)
    truth = np.full(raw_rows(frame, config), NONE, np.uint8)
    pose = frame.sweeps[0].global_from_lidar
    truth[cloud.source] = box_truth(boxes, class_of, cloud.xyz, pose)
    return truth


def raw_rows(frame: Frame, config: Config) -> int:
    """Number of raw points in the file of a key sweep."""
    return frame.sweeps[0].points.bytes // (4 * config.data.columns)


def readable(
    frames: Sequence[Frame], config: Config, read: Callable[[Frame], object]
) -> tuple[list[Frame], list[Skip]]:
    """Key frames that can be read; with ``on_bad=skip`` also a record of the others.

    Raises:
        BadInput: a frame cannot be read and ``on_bad=fail``.
    """
    good: list[Frame] = []
    skipped: list[Skip] = []
    for frame in frames:
        try:
            read(frame)
            good.append(frame)
        except BadInput as error:
            skipped.append(skip_or_raise(error, frame, config))
    return good, skipped


def skip_or_raise(error: BadInput, frame: Frame, config: Config) -> Skip:
    """Bad frame handling as ``on_bad`` asks: returns a record of the frame, or raises its error."""
    if config.on_bad == "fail":
        raise error
    return Skip(frame.id, frame.scene, str(error))


def all_left_out(where: str, skipped: Sequence[Skip], kind: str = "frames") -> BadInput:
    """Error of a stage that has no frame left to work on."""
    return BadInput(where, f"all {kind} were left out, first: {skipped[0].reason}")


def record_older_sweep(skipped: list[Skip], scene: str, error: BadInput | str) -> None:
    """Records an older sweep that was skipped, once, as several key frames share it."""
    if all(str(error) != skip.reason for skip in skipped):
        skipped.append(Skip(None, scene, str(error)))


def sweep_layout(config: Config) -> SweepLayout:
    """Layout of the data set's LiDAR sweep files."""
    return replace(geometry_layout(config.data), intensity_scale=config.data.intensity_scale)


def geometry_layout(data: DataConfig) -> SweepLayout:
    """Layout of LiDAR sweep files without the intensity scale, for stages that use geometry only.

    A change of the scale then does not rename their artifacts.
    """
    return SweepLayout(data.columns, ego_box_m=data.ego_box_m, bad_share=data.bad_share)


def key_cloud(frame: Frame, config: Config) -> Cloud:
    """Point cloud of a key sweep, without the car's own returns and bad points."""
    return merge(frame, 1, sweep_layout(config))


def usable_cloud(
    frame: Frame,
    config: Config,
    layout: SweepLayout,
    sweeps: int,
    left_out: Callable[[BadInput], None],
) -> Cloud:
    """Multi-sweep point cloud of a frame without older sweeps that are bad.

    With ``on_bad=skip`` these are passed to ``left_out``.

    Raises:
        BadInput: the key sweep is bad, or an older one is and ``on_bad=fail``.
    """
    return SweepReader(layout, left_out if config.on_bad == "skip" else None).merged(frame, sweeps)

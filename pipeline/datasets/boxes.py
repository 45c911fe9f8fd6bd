"""Annotated 3D bounding boxes: data structures, Parquet storage, points in boxes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float64, Int64, UInt8

from clipsweep.distill.metrics import OTHER
from clipsweep.pipeline.artifacts.index import undamaged
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE
from clipsweep.projection.pose import Pose

_SIZE_MAX_M = 60.0
_SLACK_M = 1e-3


@dataclass(frozen=True, eq=False, slots=True)
class Box:
    """Annotated 3D bounding box of an object at the time of the key sweep.

    The box's own frame lies at its centre, x forward along its length, y to the left, z up.

    Attributes:
        global_from_box: its pose.
        size_m: length, width and height [m].
        category: the data set's name for what it is, such as ``vehicle.car``.
    """

    global_from_box: Pose
    size_m: Float64[np.ndarray, "3"]
    category: str


@dataclass(frozen=True, eq=False, slots=True)
class FrameBoxes:
    """Annotated 3D boxes of a key frame; a frame may have none.

    Attributes:
        frame: id of the frame.
        scene: name of its scene.
        boxes: the boxes, in the data set's order.
    """

    frame: str
    scene: str
    boxes: tuple[Box, ...]


def checked_box(global_from_box: Pose, size_m: Sequence[float], category: str, where: str) -> Box:
    """Validates a 3D box of a table's row.

    Raises:
        BadInput: its centre, size or category is none that an object has; ``where`` names the row.
    """
    size = np.array(size_m, np.float64)
    if size.shape != (3,) or not ((size > 0) & (size < _SIZE_MAX_M)).all():  # False for nan too
        bounds = f"each side must be above 0 and below {_SIZE_MAX_M:.0f} m"
        raise BadInput(where, f"length, width, height {size.tolist()} m", bounds)
    if not isinstance(category, str) or not category:
        raise BadInput(where, f"category {category!r} is no name")
    return Box(global_from_box, size, category)


def points_in_box(
    box: Box,
    xyz: Float[np.ndarray, "n 3"],
    global_from_lidar: Pose,
) -> Int64[np.ndarray, " m"]:
    """Points in a 3D box or on its faces, counted as nuScenes' ``num_lidar_pts``.

    Args:
        box: the box.
        xyz: points in the LiDAR's frame [m].
        global_from_lidar: the LiDAR's pose.
    """
    box_from_lidar = box.global_from_box.inverse() @ global_from_lidar
    centre = box_from_lidar.inverse().translation
    radius = 0.5 * float(np.linalg.norm(box.size_m)) + _SLACK_M
    near_x = np.abs(xyz[:, 0] - centre[0]) <= radius
    near = np.flatnonzero(near_x & (np.abs(xyz[:, 1] - centre[1]) <= radius))
    inside = (np.abs(box_from_lidar.apply(xyz[near])) <= 0.5 * box.size_m).all(axis=1)
    return near[inside]


def box_truth(
    boxes: Sequence[Box],
    class_of: Mapping[str, int],
    xyz: Float[np.ndarray, "n 3"],
    global_from_lidar: Pose,
) -> UInt8[np.ndarray, " n"]:
    """Ground-truth class of each point from the 3D boxes of its key frame, in float64.

    A point in boxes of two classes is ignored: which one it hit cannot be known from them.

    Args:
        boxes: all annotated boxes of the frame.
        class_of: class of each category of boxes, 255 = ignored (``LabelSpace.boxes``).
        xyz: points of the key sweep in the LiDAR's frame, without the car's own returns [m].
        global_from_lidar: pose of the key sweep.

    Returns:
        For each point its class, 254 (``distill.metrics.OTHER``) = in no box, so of none of the
        annotated classes, 255 (``NONE``) = ignored.

    Raises:
        BadInput: a box has a category that is not in ``class_of``.
    """
    label = np.full(len(xyz), OTHER, np.uint8)
    for box in boxes:
        if box.category not in class_of:
            problem = "is annotated with boxes, but unknown to the label space"
            raise BadInput(f"category {box.category!r}", problem, "add it to the space's `boxes`")
        own = class_of[box.category]
        inside = points_in_box(box, xyz, global_from_lidar)
        before = label[inside]
        free = (before == OTHER) | (before == own)
        label[inside] = np.where(free, own, NONE)
    return label


OBJECT_POINTS = 5
"""Points that an annotated object has at least, to count as one that could be found."""


def found_objects(
    boxes: Sequence[Box],
    class_of: Mapping[str, int],
    xyz: Float[np.ndarray, "n 3"],
    label: UInt8[np.ndarray, " n"],
    global_from_lidar: Pose,
    table_class: UInt8[np.ndarray, "256"],
    classes: int,
) -> Int64[np.ndarray, "classes 2"]:
    """Object accuracy: annotated objects whose most frequent predicted label is right.

    Args:
        boxes: all annotated boxes of a key frame.
        class_of: class of each category of boxes, 255 = ignored.
        xyz: points of the key sweep in the LiDAR's frame [m].
        label: predicted label of each point.
        global_from_lidar: pose of the key sweep.
        table_class: class of each label, 254 and 255 none of the table's.
        classes: number of classes.

    Returns:
        For each class the number of its objects with ``OBJECT_POINTS`` points or more, and of those
        that are right.
    """
    counts = np.zeros((classes, 2), np.int64)
    for box in boxes:
        own = class_of[box.category]
        inside = points_in_box(box, xyz, global_from_lidar)
        if own < classes and len(inside) >= OBJECT_POINTS:
            most = np.bincount(label[inside]).argmax()
            counts[own] += (1, table_class[most] == own)
    return counts


# --- storage --------------------------------------------------------------------------------------

_BOX = pa.struct(
    [
        ("global_from_box", pa.list_(pa.float64(), 12)),
        ("size_m", pa.list_(pa.float64(), 3)),
        ("category", pa.string()),
    ]
)
_SCHEMA = pa.schema([("frame", pa.string()), ("scene", pa.string()), ("boxes", pa.list_(_BOX))])


def boxes_to_parquet(frames: Iterable[FrameBoxes]) -> bytes:
    """Writes 3D boxes as Parquet bytes, one row a frame, one row group a scene."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _SCHEMA) as writer:
        for _, group in groupby(frames, lambda frame: frame.scene):
            writer.write_table(pa.Table.from_pylist([_columns(frame) for frame in group], _SCHEMA))
    return sink.getvalue()


def _columns(frame: FrameBoxes) -> dict[str, Any]:
    boxes = [
        {
            "global_from_box": box.global_from_box.matrix().ravel().tolist(),
            "size_m": box.size_m.tolist(),
            "category": box.category,
        }
        for box in frame.boxes
    ]
    return {"frame": frame.frame, "scene": frame.scene, "boxes": boxes}


def read_scene_boxes(path: Path, scene: str) -> dict[str, tuple[Box, ...]]:
    """Reads the 3D boxes of a scene, by frame id.

    The file is opened by Python itself, not by Arrow, so that ``pipeline.stages.guard`` notices.

    Raises:
        BadInput: the file is damaged.
    """
    with undamaged(path):
        source = pa.BufferReader(path.read_bytes())
        table = pq.read_table(source, schema=_SCHEMA, filters=[("scene", "=", scene)])
        return {row["frame"]: tuple(map(_to_box, row["boxes"])) for row in table.to_pylist()}


def _to_box(row: dict[str, Any]) -> Box:
    size_m = np.array(row["size_m"], np.float64)
    return Box(Pose.from_matrix(row["global_from_box"]), size_m, row["category"])

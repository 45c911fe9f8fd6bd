"""Readers of data sets: each is a module that yields the rows of index.parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clipsweep.pipeline.datasets import nuscenes, semantickitti
from clipsweep.pipeline.datasets.boxes import FrameBoxes
from clipsweep.pipeline.datasets.rows import Row, Skip
from clipsweep.projection.frames import Frame


@dataclass(frozen=True)
class DataConfig:
    """Where the logs are and how to read them.

    Attributes:
        kind: layout of the data set
        root: folder of the data set
        version: nuScenes table folder, such as v1.0-mini, v1.0-trainval or v1.0-test
        camera: KITTI camera, image_0 to image_3 (projected by P0 to P3); empty: none, as a trained student needs none
        train: splits or scene names to learn from
        eval: splits or scene names to score on
        columns: float32 values a point in the sweep files
        intensity_scale: intensity of a full return in the sweep files
        sensor_height_m: height of the LiDAR above the ground [m]
        ego_box_m: returns with |x| and |y| below this hit the car itself [m]
        bad_share: share of a sweep's points that may be non-finite or beyond 300 m (they are left out)
        min_points: fewest points that a key sweep may have
        hash: pin the sha256 of every file in the index, and verify it while reading
    """

    kind: Literal["nuscenes", "semantickitti"] = "nuscenes"
    root: str = "data/nuscenes"
    version: str = "v1.0-trainval"
    camera: str = "image_2"
    train: tuple[str, ...] = ("train",)
    eval: tuple[str, ...] = ("val",)
    columns: int = 5
    intensity_scale: float = 255.0
    sensor_height_m: float = 1.84
    ego_box_m: float = 1.0
    bad_share: float = 0.0
    min_points: int = 100
    hash: bool = False


@dataclass(frozen=True)
class Reader:
    """What a data set module offers.

    Attributes:
        tables: the files and folders that its index is made from (``pipeline.store.digest_files``).
        index: the rows of the index.
        labels: official ids of the points in the bytes of a label file.
        splits: the scenes of each official split.
        label_folders: patterns of the folders below the data root that hold human labels, of every split.
        label_files: patterns of single files there that do, in folders that hold other things too.
        boxes: the annotated 3D boxes of frames; None where the data set has none.
    """

    tables: Callable[[DataConfig], list[Path]]
    index: Callable[[DataConfig], Iterator[Row]]
    labels: Callable[[bytes], np.ndarray]
    splits: Callable[[], Mapping[str, Sequence[str]]]
    label_folders: tuple[str, ...]
    label_files: tuple[str, ...] = ()
    boxes: Callable[[DataConfig, Iterable[Frame]], Iterator[FrameBoxes | Skip]] | None = None


DATASETS: dict[str, Reader] = {
    "nuscenes": Reader(
        tables=nuscenes.tables,
        index=nuscenes.index,
        labels=nuscenes.labels,
        splits=nuscenes.splits,
        label_folders=("lidarseg/*", "panoptic/*"),
        label_files=("*/sample_annotation.json",),
        boxes=nuscenes.boxes,
    ),
    "semantickitti": Reader(
        tables=semantickitti.tables,
        index=semantickitti.index,
        labels=semantickitti.labels,
        splits=semantickitti.splits,
        label_folders=("sequences/*/labels",),
    ),
}

"""Data set readers (nuScenes, SemanticKITTI, own logs): each yields rows of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
from pydantic import Field

from clipsweep.pipeline.artifacts.index import Row, Skip
from clipsweep.pipeline.datasets import folder, nuscenes, semantickitti
from clipsweep.pipeline.datasets.boxes import FrameBoxes
from clipsweep.pipeline.datasets.export import Format
from clipsweep.projection.frames import Frame

Own = TypeVar("Own")


@dataclass(frozen=True)
class DataConfig(Generic[Own]):
    """Settings of the data set: where the logs are and how to read them.

    ``own`` has the settings of the chosen kind: ``data.nuscenes.version`` is ``own.version``.
    """

    kind: Annotated[str, Field(description="layout of the data set")] = "nuscenes"
    root: Annotated[str, Field(description="folder of the data set")] = "data/nuscenes"
    train: Annotated[
        tuple[str, ...],
        Field(description="splits or scene names to train on"),
    ] = ("train",)
    eval: Annotated[
        tuple[str, ...],
        Field(description="splits or scene names to score on"),
    ] = ("val",)
    columns: Annotated[
        int,
        Field(ge=4, le=64, description="float32 values per point in the sweep files"),
    ] = 5
    intensity_scale: Annotated[
        float,
        Field(ge=0.001, le=1e9, description="largest intensity in the sweep files (255 or 1)"),
    ] = 255.0
    sensor_height_m: Annotated[
        float,
        Field(ge=0, le=100, description="height of the LiDAR above the ground [m]"),
    ] = 1.84
    ego_box_m: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="returns with |x| and |y| below this hit the ego vehicle and are "
            "left out, as nuscenes-devkit does [m]",
        ),
    ] = 1.0
    bad_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="largest fraction of invalid points per sweep (not finite, beyond "
            "300 m), which are dropped; above it the sweep is refused",
        ),
    ] = 0.0
    min_points: Annotated[
        int,
        Field(ge=1, le=1_000_000_000, description="fewest points of a key sweep"),
    ] = 100
    hash: Annotated[
        bool,
        Field(description="pin the sha256 of every file in the index, and verify it while reading"),
    ] = False
    own: Own = field(kw_only=True)


@dataclass(frozen=True)
class Reader(Generic[Own]):
    """Interface of a data set reader.

    Attributes:
        config: the class of its own settings, which are the keys ``data.<kind>.*``.
        tables: the files and folders that its index is made from
            (``pipeline.artifacts.store.digest_files``).
        index: the rows of the index.
        labels: official ids of the points in the bytes of a label file.
        splits: the scenes of each official split.
        label_folders: patterns of the folders below the data root that hold human labels, of every
            split.
        label_files: patterns of single files there that do, in folders that hold other files too.
        boxes: the annotated 3D boxes of frames; None where the data set has none.
        export: its official label format; None where it has none.
        convert: gives the rows of ``index`` with files that the pipeline can read, where those of
            the logs are others: it writes them into the store; None: they are used as they are.
    """

    config: type[Own]
    tables: Callable[[DataConfig[Own]], list[Path]]
    index: Callable[[DataConfig[Own]], Iterator[Row]]
    labels: Callable[[bytes], np.ndarray]
    splits: Callable[[], Mapping[str, Sequence[str]]]
    label_folders: tuple[str, ...]
    label_files: tuple[str, ...] = ()
    boxes: Callable[[DataConfig[Own], Iterable[Frame]], Iterator[FrameBoxes | Skip]] | None = None
    export: Format | None = None
    convert: Callable[[DataConfig[Own], Iterable[Row], Path], Iterator[Row]] | None = None


DATASETS: dict[str, Reader[Any]] = {
    "nuscenes": Reader[nuscenes.NuscenesConfig](
        config=nuscenes.NuscenesConfig,
        tables=nuscenes.tables,
        index=nuscenes.index,
        labels=nuscenes.labels,
        splits=nuscenes.splits,
        label_folders=("lidarseg/*", "panoptic/*"),
        label_files=("*/sample_annotation.json",),
        boxes=nuscenes.boxes,
        export=nuscenes.LIDARSEG,
    ),
    "semantickitti": Reader[semantickitti.SemanticKittiConfig](
        config=semantickitti.SemanticKittiConfig,
        tables=semantickitti.tables,
        index=semantickitti.index,
        labels=semantickitti.labels,
        splits=semantickitti.splits,
        label_folders=("sequences/*/labels",),
        export=semantickitti.PREDICTIONS,
    ),
    "folder": Reader[folder.FolderConfig](
        config=folder.FolderConfig,
        tables=folder.tables,
        index=folder.index,
        labels=folder.labels,
        splits=folder.splits,
        label_folders=("labels", "*/labels"),
        convert=folder.convert,
    ),
}
"""Every kind of data set: ``data.kind`` names one, and a new one is one entry more."""

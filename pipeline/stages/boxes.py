"""Boxes stage: annotated 3D boxes as ground truth, out of reach of annotation-free training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int64, UInt8

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import key_cloud, read_box_truth
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.datasets.boxes import (
    Box,
    FrameBoxes,
    boxes_to_parquet,
    found_objects,
    read_scene_boxes,
)
from clipsweep.pipeline.stages.index import scene_frames, scenes_of
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame


def boxes_artifact(index: Artifact) -> Artifact:
    """Artifact of the 3D boxes of an index, beside it in the store, whether it exists or not."""
    key = {"index": index.facts("index")["sha256"]}
    return Artifact.of(str(index.path.parent), "boxes", key, [index], suffix=".parquet")


def make_boxes(config: Config, index: Artifact) -> Artifact:
    """Reads the annotated 3D boxes of ``data.eval`` into ``boxes-<id>/boxes.parquet``.

    They are human labels. The index does not hold them, so that whatever reads the index never
    sees one; they are made when something is scored, and ``pipeline.stages.guard`` keeps this file
    and the data set's own table closed while a student is trained without labels.

    Raises:
        BadInput: the data set has no boxes, or, with ``on_bad=fail``, those of a frame are bad.
    """
    reader = DATASETS[config.data.kind].boxes
    if reader is None:
        cure = "score against label files"
        raise BadInput("labels.truth", f"{config.data.kind} has no annotated boxes", cure)
    started = time.time()
    boxes = boxes_artifact(index)
    if boxes.whole and boxes.done("boxes", config.verify):
        return boxes
    scenes = scenes_of(index, "eval")
    frames = [frame for scene in scenes for frame in scene_frames(index, config, scene)]
    skipped: list[Skip] = []
    count = 0

    def usable() -> Iterator[FrameBoxes]:
        nonlocal count
        for found in reader(config.data, frames):
            if isinstance(found, Skip):
                skipped.append(found)
            else:
                count += len(found.boxes)
                yield found

    parquet = boxes_to_parquet(usable())
    if skipped and config.on_bad == "fail":
        where = f"frame {skipped[0].frame} of {skipped[0].scene}"
        cure = f"{len(skipped)} frame(s) in all; on_bad=skip leaves them out of the scores"
        raise BadInput(where, skipped[0].reason, cure)
    boxes.sweep_orphans()
    boxes.commit("boxes", parquet, skipped=skipped, counts={"boxes": count})
    boxes.finish(["boxes"], config, started)
    return boxes


class BoxTruth:
    """Ground-truth reader: class of each point of a key sweep, from annotated 3D boxes."""

    def __init__(self, config: Config, boxes: Artifact, class_of: Mapping[str, int]) -> None:
        """Opens the 3D boxes.

        Args:
            config: the resolved configuration.
            boxes: what ``make_boxes`` made.
            class_of: class of each category of boxes, 255 = ignored (``LabelSpace.boxes``).
        """
        self.config = config
        self.boxes = boxes
        self.class_of = class_of
        self._lost = {skip.frame: skip.reason for skip in boxes.skipped()}
        self._scene = ""
        self._of_scene: dict[str, tuple[Box, ...]] = {}

    def __call__(self, frame: Frame) -> UInt8[np.ndarray, " n"]:
        """Ground-truth class of every raw point of a key sweep, as ``box_truth`` gives it.

        Raises:
            BadInput: the frame's boxes or its key sweep cannot be used.
        """
        return read_box_truth(frame, self._boxes_of(frame), self.class_of, self.config)

    def objects(
        self,
        frame: Frame,
        label: UInt8[np.ndarray, " n"],
        table_class: UInt8[np.ndarray, "256"],
        classes: int,
    ) -> Int64[np.ndarray, "classes 2"]:
        """Object accuracy of the labels of a key sweep's raw points, as ``found_objects`` gives it.

        Raises:
            BadInput: as for the classes of the points.
        """
        cloud = key_cloud(frame, self.config)
        pose = frame.sweeps[0].global_from_lidar
        own = label[cloud.source]
        boxes = self._boxes_of(frame)
        return found_objects(boxes, self.class_of, cloud.xyz, own, pose, table_class, classes)

    def _boxes_of(self, frame: Frame) -> tuple[Box, ...]:
        if frame.id in self._lost:
            raise BadInput(f"boxes of frame {frame.id}", self._lost[frame.id])
        if frame.scene != self._scene:
            self._of_scene = read_scene_boxes(self.boxes.payload("boxes"), frame.scene)
            self._scene = frame.scene
        if frame.id not in self._of_scene:
            problem = f"has no boxes of frame {frame.id}"
            raise BadInput(self.boxes.path, problem, "its scene must be one of data.eval")
        return self._of_scene[frame.id]

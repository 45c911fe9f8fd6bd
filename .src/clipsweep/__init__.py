"""LiDAR semantic segmentation without human labels: CLIP pseudo-labels, fusion, sparse 3D U-Net.

The names below are loaded when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipsweep.distill.student.checkpoint import load_student
    from clipsweep.distill.teacher.maskclip import MaskClip
    from clipsweep.pipeline.config import load_config
    from clipsweep.pipeline.artifacts.index import read_index
    from clipsweep.projection.cameras import project
    from clipsweep.projection.frames import Camera, Frame, Sweep, SweepLayout
    from clipsweep.projection.fusion import label_scene
    from clipsweep.projection.pose import Pose
    from clipsweep.projection.sweeps import deskew, merge

__all__ = [
    "Camera",
    "Frame",
    "MaskClip",
    "Pose",
    "Sweep",
    "SweepLayout",
    "deskew",
    "label_scene",
    "load_config",
    "load_student",
    "merge",
    "project",
    "read_index",
]

_HOMES = {
    "Camera": "projection.frames",
    "Frame": "projection.frames",
    "MaskClip": "distill.teacher.maskclip",
    "Pose": "projection.pose",
    "Sweep": "projection.frames",
    "SweepLayout": "projection.frames",
    "deskew": "projection.sweeps",
    "label_scene": "projection.fusion",
    "load_config": "pipeline.config",
    "load_student": "distill.student.checkpoint",
    "merge": "projection.sweeps",
    "project": "projection.cameras",
    "read_index": "pipeline.artifacts.index",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

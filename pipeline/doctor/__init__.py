"""Diagnoses a data set: what looks wrong with its frames, calibration, poses and clocks.

Each check is a function of a ``Survey`` that gives a finding in plain words, or None.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from clipsweep.pipeline.doctor.cameras import CAMERA_CHECKS
from clipsweep.pipeline.doctor.lidar import LIDAR_CHECKS
from clipsweep.pipeline.doctor.poses import POSE_CHECKS
from clipsweep.pipeline.doctor.survey import Check, Look, Survey
from clipsweep.projection.cameras import project

CHECKS: tuple[Check, ...] = (*LIDAR_CHECKS, *CAMERA_CHECKS, *POSE_CHECKS)
_REACH_M = 40.0


def findings(survey: Survey) -> list[str]:
    """What looks wrong, a line each; none where all is well."""
    return [finding for check in CHECKS if (finding := check(survey))]


def draw(look: Look) -> Figure:
    """Plots a key frame for the eye: its points over each image by depth, and from above."""
    cameras = look.frame.cameras
    columns = 3
    rows = -(-(len(cameras) + 1) // columns)
    figure = Figure(figsize=(18, 4 * rows), layout="constrained", dpi=90)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for each in axes:
        each.axis("off")
    xyz = look.rows[:, :3].copy()
    pairs = project(xyz, look.global_from_lidar, cameras)
    for i, camera in enumerate(cameras):
        height, width = camera.size_hw
        with Image.open(camera.image.path) as image:
            axes[i].imshow(np.asarray(image.convert("RGB")), extent=(0, width, height, 0))
        seen = pairs.camera == i
        depth = np.log(pairs.depth[seen])
        axes[i].scatter(*pairs.uv[seen].T, c=depth, s=0.6, cmap="turbo")
        axes[i].set_title(camera.name)
    axes[len(cameras)].scatter(*xyz[:, :2].T, c=xyz[:, 2], s=0.3, cmap="viridis")
    axes[len(cameras)].set(xlim=(-_REACH_M, _REACH_M), ylim=(-_REACH_M, _REACH_M), aspect="equal")
    axes[len(cameras)].set_title("from above, LiDAR frame: x right, y up")
    return figure

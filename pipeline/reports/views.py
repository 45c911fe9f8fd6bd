"""Visualization of labelled points: on the camera images, and in bird's-eye view.

The view from above stands beside the truth and the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clipsweep.distill.teacher.images import decode
from clipsweep.pipeline.artifacts.read import key_cloud, read_truth
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Cloud, Frame
from clipsweep.projection.fusion import FusionConfig, visible_pairs

mpl.use("Agg")
_ORDER = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")
_WRONG = (0.85, 0.1, 0.1)
_RIGHT = (0.6, 0.75, 0.6)
_SILENT = (0.85, 0.85, 0.85)
_REACH_M = 50.0


def draw_key_frame(
    config: Config, frame: Frame, label: UInt8[np.ndarray, " n"], kind: str
) -> Figure:
    """Plots a labelled key frame of a data set, beside its truth where it has some.

    Args:
        config: data, label space, occlusion test.
        frame: the frame.
        label: class of each raw point of its key sweep, 255 = none.
        kind: of labels: predictions or pseudo-labels.

    Raises:
        BadInput: the key sweep, an image or the label file cannot be used.
    """
    space = load_space(config.labels)
    cloud = key_cloud(frame, config)
    truth = true_classes(config, frame, space)
    rows = cloud.source
    true = None if truth is None else truth[rows]
    return draw_frame(frame, cloud, label[rows], true, space, config.fusion, kind)


def true_classes(config: Config, frame: Frame, space: LabelSpace) -> UInt8[np.ndarray, " n"] | None:
    """True class of each raw point of a key sweep, in the classes that are predicted.

    None without label files, and where the true classes are others.
    """
    others = config.labels.truth or config.labels.names
    return None if others else read_truth(frame, space, config)


def draw_frame(
    frame: Frame,
    cloud: Cloud,
    label: UInt8[np.ndarray, " n"],
    truth: UInt8[np.ndarray, " n"] | None,
    space: LabelSpace,
    fusion: FusionConfig,
    kind: str,
) -> Figure:
    """Plots a labelled key frame: points on its camera images, and bird's-eye views.

    Points that a camera sees are coloured by label.

    Args:
        frame: the frame.
        cloud: its key sweep.
        label: class of each point of the cloud, 255 = none.
        truth: true class of each, 255 = ignored; None where there is no truth.
        space: names and colours.
        fusion: occlusion test, the same as in labelling.
        kind: of labels: predictions or pseudo-labels.
    """
    columns = min(max(len(frame.cameras), 1), 3)
    rows = -(-max(len(frame.cameras), 1) // columns)
    figure = Figure(figsize=(18, 3.5 * rows + 6.5), layout="constrained", dpi=110)
    figure.suptitle(f"{kind}, scene {frame.scene}, key frame {frame.id}")
    halves: Any = figure.subfigures(2, 1, height_ratios=(3.5 * rows, 6.5))
    upper, lower = halves
    axes = upper.subplots(rows, columns, squeeze=False).ravel()
    pairs = visible_pairs(frame, cloud.xyz, fusion)
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, _camera_order(frame), strict=False):
        camera = frame.cameras[index]
        here = pairs[pairs.camera == index]
        labelled = here[label[here.point] != NONE]
        axis.imshow(decode(camera, camera.size_hw))
        axis.scatter(
            labelled.uv[:, 0],
            labelled.uv[:, 1],
            s=2,
            c=space.colors[label[labelled.point]] / 255.0,
            linewidths=0,
        )
        axis.set_title(camera.name, fontsize=8)
    panels = {kind: _class_colors(label, space)}
    if truth is not None:
        panels |= {
            "truth": _class_colors(truth, space),
            "red: wrong, green: right, grey: no truth or no label": error_colors(label, truth),
        }
    for axis, (name, colors) in zip(
        lower.subplots(1, len(panels), squeeze=False).ravel(), panels.items(), strict=True
    ):
        _from_above(axis, cloud.xyz, colors)
        axis.set_title(name, fontsize=9)
    seen = np.union1d(label, truth if truth is not None else label)
    marks = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=tuple(space.colors[c] / 255.0),
            label=space.names[c],
        )
        for c in seen[seen < len(space)]
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=8, fontsize=8)
    return figure


def _camera_order(frame: Frame) -> list[int]:
    """Camera order around the car, left to right, front above back; others after them."""

    def place(index: int) -> int:
        side = frame.cameras[index].name.removeprefix("CAM_")
        return _ORDER.index(side) if side in _ORDER else len(_ORDER)

    return sorted(range(len(frame.cameras)), key=place)


def _class_colors(label: UInt8[np.ndarray, " n"], space: LabelSpace) -> Float32[np.ndarray, "n 3"]:
    colors = np.full((256, 3), _SILENT, np.float32)
    colors[: len(space)] = space.colors / 255.0
    return colors[label]


def error_colors(
    label: UInt8[np.ndarray, " n"], truth: UInt8[np.ndarray, " n"]
) -> Float32[np.ndarray, "n 3"]:
    """Colours of points that are right, wrong or not scored, 0..1."""
    colors = np.where((label == truth)[:, None], _RIGHT, _WRONG).astype(np.float32)
    colors[(truth == NONE) | (label == NONE)] = _SILENT
    return colors


def _from_above(
    axis: Axes, xyz: Float32[np.ndarray, "n 3"], colors: Float32[np.ndarray, "n 3"]
) -> None:
    order = np.argsort(xyz[:, 2])  # what is higher is drawn later
    axis.scatter(xyz[order, 0], xyz[order, 1], s=0.6, c=colors[order], linewidths=0)
    axis.set_xlim(-_REACH_M, _REACH_M)
    axis.set_ylim(-_REACH_M, _REACH_M)
    axis.set_aspect("equal")
    axis.set_xlabel("x of the LiDAR frame [m]", fontsize=7)
    axis.set_ylabel("y [m]", fontsize=7)
    axis.tick_params(labelsize=7)


def save_figure(figure: Figure, path: Path) -> None:
    """Saves a figure as PNG or in another format, by its suffix."""
    check_picture(path)
    figure.savefig(path)


def check_picture(path: Path) -> None:
    """Validates the file name of a picture to be written, and makes its folder.

    Raises:
        BadInput: it cannot be written there, or is no picture.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg") or path.is_dir():
        raise BadInput(path, "is no name of a picture", "end it in .png, .jpg, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)

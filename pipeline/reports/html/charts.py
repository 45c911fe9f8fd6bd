"""Interactive charts of the report: scores, confusion, range, training curves, point clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Float32, Integer, UInt8

from clipsweep.distill.metrics import Confusion
from clipsweep.projection.frames import NONE

_POINTS = 12_000
"""Points of a cloud that a page can carry, with a few clouds on it."""
_REACH_M = 50.0
_CURVE = 400
"""Points of a training curve."""
_SERIES = ("#2f6fde", "#e08a1e", "#2e9e6b")
_ERRORS = {"right": "#7fae7f", "wrong": "#e02020", "no truth or no label": "#9a9a9a"}
_SHARES = [[0, "rgba(128,128,128,0.08)"], [1, "#2f6fde"]]
_QUALITY = "RdYlGn"
_ROW_PX = 26


def class_bars(
    series: Mapping[str, Float[np.ndarray, " c"]],
    names: Sequence[str],
    intervals: Mapping[str, Float[np.ndarray, "c 2"]] | None = None,
    unit: str = "IoU %",
) -> go.Figure:
    """Bar chart of values of each class, in the order of the first series, the lowest on top.

    Args:
        series: for each name its values, 0..1; nan where a class has none.
        names: of the classes.
        intervals: lower and upper bounds of a series.
        unit: title of the axis.
    """
    first = next(iter(series.values()))
    order = np.argsort(np.nan_to_num(first, nan=np.inf), kind="stable")
    figure = go.Figure()
    for color, (name, values) in zip(_SERIES, series.items(), strict=False):
        bars = go.Bar(
            name=name,
            orientation="h",
            x=100 * values[order],
            y=[names[row] for row in order],
            marker_color=color,
            hovertemplate="%{y}: %{x:.1f}",
        )
        if intervals and name in intervals:
            low, high = 100 * intervals[name][order].T
            bars.error_x = {
                "symmetric": False,
                "array": high - bars.x,
                "arrayminus": bars.x - low,
                "thickness": 1,
                "color": "#888888",
            }
        figure.add_trace(bars)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=unit)
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    return _sized(figure, _ROW_PX * len(names) * (1 + len(series)) // 2 + 110)


def confusion_map(confusion: Confusion, names: Sequence[str]) -> go.Figure:
    """Heat map of a confusion matrix: share of the points of each true class by prediction."""
    columns = [*names, "other", "no label"]
    used = [*range(len(names)), *(np.flatnonzero(confusion.counts[:, -2:].any(0)) + len(names))]
    counts = confusion.counts[:, used]
    shares = 100 * counts / np.maximum(1, confusion.counts.sum(1, keepdims=True))
    text = [[f"{share:.0f}" if share >= 1 else "" for share in row] for row in shares]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=[columns[column] for column in used],
            y=list(names),
            text=text,
            texttemplate="%{text}",
            customdata=counts,
            colorscale=_SHARES,
            showscale=False,
            hovertemplate="%{y} predicted as %{x}: %{z:.1f} %, %{customdata} points<extra></extra>",
        )
    )
    figure.update_xaxes(title="predicted", tickangle=-45, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return _sized(figure, _ROW_PX * len(names) + 190)


def bin_map(bins: Sequence[Confusion], labels: Sequence[str], names: Sequence[str]) -> go.Figure:
    """Heat map of IoU by class and by bin of the points, with the mean of each bin."""
    iou = 100 * np.array([[*each.iou(), each.miou()] for each in bins]).T
    points = np.array([[*each.counts.sum(1), each.points] for each in bins]).T
    figure = _bin_heatmap(iou, points, labels, names, "IoU %{z:.1f} %, %{customdata} points")
    figure.update_traces(colorscale=_QUALITY, zmin=0, zmax=100)
    return figure


def bin_gain_map(
    ours: Sequence[Confusion],
    others: Sequence[Confusion],
    labels: Sequence[str],
    names: Sequence[str],
) -> go.Figure:
    """Heat map of the difference in IoU between two runs, by class and by bin of the points."""
    iou = [np.array([[*each.iou(), each.miou()] for each in bins]).T for bins in (ours, others)]
    points = np.array([[*each.counts.sum(1), each.points] for each in ours]).T
    gain = 100 * (iou[0] - iou[1])
    figure = _bin_heatmap(gain, points, labels, names, "%{z:+.1f} IoU points, %{customdata} points")
    figure.update_traces(colorscale=_QUALITY, zmid=0)
    return figure


def _bin_heatmap(
    values: Float[np.ndarray, "c1 bins"],
    points: np.ndarray,
    labels: Sequence[str],
    names: Sequence[str],
    hover: str,
) -> go.Figure:
    text = [["" if np.isnan(value) else f"{value:.0f}" for value in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(labels),
            y=[*names, "mIoU"],
            text=text,
            texttemplate="%{text}",
            customdata=points,
            showscale=False,
            hovertemplate=f"%{{y}}, %{{x}}: {hover}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return _sized(figure, _ROW_PX * len(names) + 110)


def training_curves(steps: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Line chart of the loss and its terms against optimiser steps, means of equal windows.

    Args:
        steps: lines of ``metrics.jsonl``.
    """
    windows = np.array_split(np.arange(len(steps)), min(_CURVE, len(steps)))
    terms = {name: [step["terms"].get(name) for step in steps] for name in steps[0]["terms"]}
    curves = {"loss": [step["loss"] for step in steps]}
    curves |= terms if len(terms) > 1 else {}
    x = [steps[window[-1]]["step"] for window in windows]
    figure = go.Figure()
    for name, values in curves.items():
        known = np.array([np.nan if value is None else value for value in values], np.float64)
        y = [_mean(known[window]) for window in windows]
        figure.add_trace(go.Scatter(name=name, x=x, y=y, mode="lines"))
    figure.update_xaxes(title="optimiser step")
    figure.update_yaxes(title="loss")
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    return _sized(figure, 340)


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


@dataclass(frozen=True, eq=False, slots=True)
class Coloring:
    """Way to colour the points of a cloud by groups.

    Attributes:
        group: of each point, 255 = the last one.
        colors: CSS colour of each group, by name.
    """

    group: UInt8[np.ndarray, " n"]
    colors: Mapping[str, str]

    def take(self, rows: Integer[np.ndarray, " m"]) -> Coloring:
        """Colouring of some of the points."""
        return Coloring(self.group[rows], self.colors)


def cloud_view(xyz: Float32[np.ndarray, "n 3"], views: Mapping[str, Coloring]) -> go.Figure:
    """3D view of a labelled point cloud, with a button for each way to colour it.

    Points within 50 m are thinned by chance to what a page can carry.

    Args:
        xyz: positions in the LiDAR frame [m].
        views: colours of the points for each button.
    """
    near = np.flatnonzero(np.hypot(xyz[:, 0], xyz[:, 1]) <= _REACH_M)
    chosen = np.random.default_rng(0).permutation(near)[:_POINTS]
    figure = go.Figure()
    owner: list[str] = []
    for button, view in views.items():
        here = np.minimum(view.group[chosen], len(view.colors) - 1)
        for number, (name, color) in enumerate(view.colors.items()):
            rows = chosen[here == number]
            if not len(rows):
                continue
            owner.append(button)
            figure.add_trace(
                go.Scatter3d(
                    name=name,
                    x=xyz[rows, 0],
                    y=xyz[rows, 1],
                    z=xyz[rows, 2],
                    mode="markers",
                    marker={"size": 1.6, "color": color},
                    visible=button == next(iter(views)),
                    hovertemplate="%{x:.1f}, %{y:.1f}, %{z:.1f} m",
                )
            )
    buttons = [
        {
            "label": button,
            "method": "restyle",
            "args": [{"visible": [each == button for each in owner]}],
        }
        for button in views
    ]
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 1.1,
                "font": {"color": "#1d2330"},
                "bgcolor": "#c8d0dc",
                "buttons": buttons,
            }
        ],
        scene={
            "aspectmode": "data",
            "camera": {"eye": {"x": -0.6, "y": -0.6, "z": 0.5}},
            **{f"{axis}axis": {"showbackground": False, "title": ""} for axis in "xyz"},
        },
        legend={
            "itemsizing": "constant",
            "y": -0.02,
            "entrywidthmode": "fraction",
            "entrywidth": 0.32,
        },
    )
    return _sized(figure, 520)


def class_coloring(
    label: UInt8[np.ndarray, " n"], names: Sequence[str], colors: UInt8[np.ndarray, "c 3"]
) -> Coloring:
    """Points coloured by class, 255 = no label."""
    shown = {name: f"rgb({r},{g},{b})" for name, (r, g, b) in zip(names, colors, strict=True)}
    return Coloring(label, {**shown, "no label": "#9a9a9a"})


def error_coloring(label: UInt8[np.ndarray, " n"], truth: UInt8[np.ndarray, " n"]) -> Coloring:
    """Points coloured as right, wrong, or not scored."""
    group = (label != truth).astype(np.uint8)
    group[(truth == NONE) | (label == NONE)] = NONE
    return Coloring(group, _ERRORS)


def _sized(figure: go.Figure, height_px: int) -> go.Figure:
    """Layout that all charts share: transparent, as wide as the page."""
    return figure.update_layout(
        template="none",
        height=height_px,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12},
        legend={"orientation": "h"},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        xaxis={"automargin": True},
        yaxis={"automargin": True},
    )

"""Parts of the HTML report: breakdown by range and density, charts, escaping of texts."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.reports.html.breakdown import Breakdown, points_a_voxel
from clipsweep.pipeline.reports.html.charts import (
    bin_gain_map,
    bin_map,
    class_bars,
    class_coloring,
    cloud_view,
    confusion_map,
    error_coloring,
    training_curves,
)
from clipsweep.pipeline.reports.html.page import Block, Link, Page, Section, Table, Tile, chart
from clipsweep.projection.frames import Cloud

NAMES = ("car", "road", "tree")


def confusion(counts: list[list[int]], background: tuple[int, ...] = (0, 0, 0)) -> Confusion:
    """Confusion matrix of points that all have a class of the table."""
    padded = np.pad(np.array(counts, np.int64), ((0, 0), (0, 2)))
    return Confusion(padded, np.array(background, np.int64))


def cloud(xyz: np.ndarray) -> Cloud:
    rest = np.zeros(len(xyz), np.float32)
    rows = np.arange(len(xyz), dtype=np.int32)
    kind = np.zeros(len(xyz), np.uint8)
    return Cloud(xyz.astype(np.float32), rest, rest, kind, rows, np.zeros((1, 3), np.float32))


def test_points_are_counted_in_their_voxels() -> None:
    random = np.random.default_rng(0)
    xyz = random.uniform(-2, 2, (300, 3)).astype(np.float32)
    cell = np.floor(xyz / np.float32(0.4)).astype(int)
    expected = [(cell == row).all(1).sum() for row in cell]
    assert points_a_voxel(cloud(xyz)).tolist() == expected


def test_the_worst_frame_of_a_class_has_most_missed_and_false_points() -> None:
    frames = {
        "good": confusion([[9, 1, 0], [0, 5, 0], [0, 0, 5]]),
        "missed": confusion([[1, 9, 0], [0, 5, 0], [0, 0, 5]]),
        "false": confusion([[9, 0, 0], [6, 0, 0], [0, 0, 5]], (5, 0, 0)),
    }
    scene = dict.fromkeys(frames, "one") | {"good": "other"}
    parts = Breakdown(NAMES, scene, frames, [], [])
    assert parts.worst_frame(0) == "false"  # 6 + 5 false against 9 missed
    assert parts.worst_frame(1) == "missed"
    assert {name: each.points for name, each in parts.scenes().items()} == {"one": 40, "other": 20}
    assert parts.total.points == 60


def test_bars_are_sorted_and_carry_their_intervals() -> None:
    values = np.array([0.5, np.nan, 0.2])
    bounds = np.array([[0.4, 0.6], [np.nan, np.nan], [0.1, 0.4]])
    (bars,) = class_bars({"ours": values}, NAMES, {"ours": bounds}).data
    assert list(bars.y) == ["tree", "car", "road"]
    np.testing.assert_allclose(bars.x, [20, 50, np.nan])
    np.testing.assert_allclose(bars.error_x.array[:2], [20, 10])
    np.testing.assert_allclose(bars.error_x.arrayminus[:2], [10, 10])


def test_a_confusion_map_shows_shares_of_the_true_class() -> None:
    counts = confusion([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    counts.counts[0, 4] = 2  # without label
    (drawn,) = confusion_map(counts, NAMES).data
    assert list(drawn.x) == [*NAMES, "no label"]
    np.testing.assert_allclose(drawn.z, [[60, 20, 0, 20], [0, 0, 0, 0], [25, 0, 75, 0]])
    assert drawn.customdata[0][3] == 2


def test_bins_show_iou_and_its_gain() -> None:
    near = confusion([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    far = confusion([[2, 8, 0], [0, 5, 0], [0, 0, 0]])
    (drawn,) = bin_map([near, far], ["near", "far"], NAMES).data
    np.testing.assert_allclose(drawn.z[0], [80, 20])
    assert np.isnan(drawn.z[2]).all()
    assert list(drawn.y) == [*NAMES, "mIoU"]
    (gained,) = bin_gain_map([near], [far], ["all"], NAMES).data
    np.testing.assert_allclose(gained.z[0], [60])


def test_training_curves_are_means_of_windows() -> None:
    steps = [
        {"step": step, "loss": float(step % 2), "terms": {"a": 1.0, "b": None if step < 600 else 3}}
        for step in range(1000)
    ]
    loss, first, second = training_curves(steps).data
    assert (loss.name, first.name, second.name) == ("loss", "a", "b")
    assert len(loss.x) == 400
    assert loss.x[-1] == 999
    assert np.mean(loss.y) == pytest.approx(0.5, abs=0.05)
    assert second.y[0] is None
    assert second.y[-1] == 3


def test_a_cloud_view_has_a_group_of_points_for_each_colour() -> None:
    xyz = np.array([[1, 0, 0], [2, 0, 0], [3, 0, 0], [80, 0, 0]], np.float32)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    label = np.array([0, 2, 255, 0], np.uint8)
    views = {
        "labels": class_coloring(label, NAMES, colors),
        "errors": error_coloring(label, np.array([0, 1, 1, 0], np.uint8)),
    }
    figure = cloud_view(xyz, views)
    drawn = [(trace.name, trace.marker.color, list(trace.x)) for trace in figure.data]
    assert drawn == [
        ("car", "rgb(255,0,0)", [1]),
        ("tree", "rgb(0,0,255)", [2]),
        ("no label", "#9a9a9a", [3]),
        ("right", "#7fae7f", [1]),
        ("wrong", "#e02020", [2]),
        ("no truth or no label", "#9a9a9a", [3]),
    ]
    shown = [button.args[0]["visible"] for button in figure.layout.updatemenus[0].buttons]
    assert shown == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]
    assert [trace.visible for trace in figure.data] == shown[0]


def test_a_large_cloud_is_thinned() -> None:
    xyz = np.random.default_rng(0).uniform(-20, 20, (50_000, 3)).astype(np.float32)
    label = np.zeros(50_000, np.uint8)
    colors = np.zeros((3, 3), np.uint8)
    (drawn,) = cloud_view(xyz, {"labels": class_coloring(label, NAMES, colors)}).data
    assert len(drawn.x) == 12_000
    assert len(chart(cloud_view(xyz, {"a": class_coloring(label, NAMES, colors)}))) < 700_000


HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=alert(1)>&\u2028\"'"


def test_texts_of_a_data_set_are_no_code_of_the_page() -> None:
    """Names of classes, frames and files come from files that a user was given."""
    bars = class_bars({HOSTILE: np.array([0.1])}, [HOSTILE])
    block = Block(
        heading=HOSTILE,
        anchor=HOSTILE,
        text=HOSTILE,
        links=[Link(HOSTILE, HOSTILE)],
        table=Table((HOSTILE,), [(HOSTILE,)]),
        lines=HOSTILE,
        chart=chart(bars),
    )
    tile = Tile(HOSTILE, HOSTILE, HOSTILE)
    page = Page(HOSTILE, HOSTILE, [tile], [Section(HOSTILE, HOSTILE, [block])]).html()
    assert "<script>window" not in page
    assert "<img src=x" not in page
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    drawn = next(
        script for script in scripts if "Plotly.newPlot(" in script and HOSTILE[-1] in script
    )
    assert "hacked" in drawn  # as text of a chart
    assert json.dumps("</script>") not in drawn


def test_sections_without_blocks_are_left_out() -> None:
    page = Page("t", "s", [], [Section("full", "Full", [Block(text="x")]), Section("no", "No", [])])
    html = page.html()
    assert 'id="full"' in html
    assert 'id="no"' not in html
    assert "#no" not in html

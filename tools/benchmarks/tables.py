"""Markdown tables of tools/RESULTS.md, made from the published benchmark rows.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; the text around it is written
by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipsweep.projection.errors import BadInput
from clipsweep.tools.benchmarks.results import read_rows

PAGE = Path(__file__).parents[1] / "RESULTS.md"
PUBLISHED = Path(__file__).with_name("results")

_TABLE = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end -->", re.DOTALL)
Row = dict[str, Any]


def filled(text: str, published: Path = PUBLISHED) -> str:
    """Fills the tables of a Markdown page.

    Raises:
        BadInput: it asks for a table that is not known, or for one without rows.
    """

    def table(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise BadInput(PAGE, f"has no table {name}", f"choose from {', '.join(TABLES)}")
        bench, lines = TABLES[name]
        rows = read_rows(published / f"{bench}.jsonl")
        if not rows:
            cure = f"run bench.py {bench} out=tools/benchmarks/results"
            raise BadInput(published / f"{bench}.jsonl", "holds no rows", cure)
        head, *body = lines(rows)
        rule = ["---"] * len(head)
        drawn = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
        return "\n".join([f"<!-- table: {name} -->", _made(rows), "", *drawn, "<!-- end -->"])

    return _TABLE.sub(table, text)


def score(row: Row) -> str:
    """Formats a row of scores for the terminal."""
    classes = [f"{name} {_percent(value, 0)}" for name, value in row["iou"].items()]
    return (
        f"{row['name']}: mIoU {_mean(row['miou'])}, accuracy {_mean(row['accuracy'])}; "
        + ", ".join([*classes, row["note"]])
    )


def ratio(row: Row) -> str:
    """Formats a row of a ratio for the terminal."""
    bar = "" if row["bar"] is None else f", bar {row['bar']:g}"
    peer = f"{row['peer_name']} {row['peer']:.4g}"
    return f"{row['name']}: {row['ours']:.4g} {row['unit']}, {peer}: ratio {row['ratio']:.3g}{bar}"


def _made(rows: Sequence[Row]) -> str:
    """Provenance of rows: when, by which code and on which machine they were made."""
    code = sorted({row["code"] for row in rows})
    dates = sorted({row["date"] for row in rows})
    machines = sorted({row["machine"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"*{when}; code {', '.join(code)}; {'; '.join(machines)}.*"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _mean(values: Sequence[float]) -> str:
    """Formats the mean in percent, with the least and the most where there are several seeds."""
    mean = _percent(float(np.mean(values)))
    if len(values) == 1:
        return mean
    return f"{mean} ({_percent(min(values))}-{_percent(max(values))})"


def _scores(rows: Sequence[Row]) -> list[list[str]]:
    body = [[row["name"], _mean(row["miou"]), _mean(row["accuracy"]), row["note"]] for row in rows]
    return [["", "mIoU", "accuracy", ""], *body]


def _gained(rows: Sequence[Row]) -> list[list[str]]:
    """Table of scores with what each row gains over others, and its interval over scenes."""
    body = [
        [row["name"], _mean(row["miou"]), "; ".join(map(_gain, row.get("gains", [])))]
        for row in rows
    ]
    return [["", "mIoU", "gain (95 % interval over scenes)"], *body]


def _gain(gain: Row) -> str:
    low, middle, high = (100 * gain[name] for name in ("low", "miou", "high"))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f}) over {gain['over']}"


def _classes(rows: Sequence[Row]) -> list[list[str]]:
    """Table of IoU by class, a column for each row that covers all points."""
    shown = [row for row in rows if "common" not in row["name"] and "random" not in row["name"]]
    names = [row["name"].replace("student, ", "").replace(", all points", "") for row in shown]
    body = [[c, *(_percent(row["iou"][c], 0) for row in shown)] for c in shown[0]["iou"]]
    return [["", *names], *body]


def _fusion(rows: Sequence[Row]) -> list[list[str]]:
    """Table of label fusion: a line a setting, columns for the demo, PandaSet and nuScenes."""
    of_data = {data: {r["name"]: r for r in rows if r["data"] == data} for data in _FUSION_DATA}
    body = []
    for name, row in of_data["demo-data"].items():
        pandaset = of_data["pandaset-002"].get(name)
        boxes = of_data["nuscenes-0523"].get(name)
        body.append(
            [
                name,
                *[_mean(row["miou"]), _mean(row["accuracy"]), row["note"].split(" of ")[0]],
                *_some(pandaset, ("miou", "pedestrian")),
                pandaset["note"].split(" of ")[0] if pandaset else "",
                *_some(boxes, ("vehicle", "pedestrian")),
            ]
        )
    head = ["", "demo mIoU", "accuracy", "points", "PandaSet mIoU", "pedestrian", "points"]
    return [[*head, "nuScenes vehicle", "pedestrian"], *body]


_FUSION_DATA = ("demo-data", "pandaset-002", "nuscenes-0523")


def _some(row: Row | None, names: Sequence[str]) -> list[str]:
    """Table cells of mIoU or the IoU of classes; empty where there is no such row."""
    if row is None:
        return [""] * len(names)
    return [_mean(row["miou"]) if n == "miou" else _percent(row["iou"][n], 0) for n in names]


def _ratios(rows: Sequence[Row]) -> list[list[str]]:
    body = [
        [
            row["name"],
            f"{row['ours']:.4g} {row['unit']}",
            f"{row['peer']:.4g} ({row['peer_name']})",
            f"{row['ratio']:.3g} x",
            "" if row["bar"] is None else f"{row['bar']:g} x",
        ]
        for row in rows
    ]
    return [["", "ours", "peer", "ratio", "bar"], *body]


TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], list[list[str]]]]] = {
    "demo": ("demo", _scores),
    "demo by class": ("demo", _classes),
    "fusion": ("fusion", _fusion),
    "rounds": ("rounds", _gained),
    "few labels": ("few_labels", _gained),
    "transfer": ("transfer", _scores),
    "teacher settings": ("pixels", _scores),
    "projection": ("projection", _ratios),
    "sparse": ("sparse", _ratios),
    "input": ("input", _ratios),
    "teacher": ("teacher", _ratios),
    "ray": ("ray", _ratios),
}
"""Benchmark of each table, and how its rows become lines of cells, the head first."""

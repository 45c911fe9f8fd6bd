"""Text tables of IoU per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def score_table(
    title: str, columns: Mapping[str, Mapping[str, float | None]], rows: Sequence[str]
) -> str:
    """Table of IoU and other percentages, with one line a class.

    Args:
        title: its head line.
        columns: for each column its value by row name, in 0..1; None and nan print as a dash.
        rows: names of the lines, in order.
    """
    width = max(len(name) for name in rows)
    head = " " * width + "".join(f"  {name:>10}" for name in columns)
    lines = [
        f"{row:{width}}"
        + "".join(f"  {_percent(values.get(row)):>10}" for values in columns.values())
        for row in rows
    ]
    return "\n".join([title, head, *lines])


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"

"""Text tables of IoU and of the most frequent mistakes of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipsweep.distill.metrics import Confusion


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


def mistakes_table(stages: Mapping[str, Confusion], names: Sequence[str]) -> str:
    """Confusion table in words: most frequent wrong classes of the points of each true class.

    Classes that are never mistaken, or have no points, are left out.

    Args:
        stages: confusion matrix of each stage, by its name.
        names: of the classes.
    """
    columns = [*names, "other", "no label"]
    cells = {
        stage: [
            ", ".join(f"{100 * share:.0f} % {columns[column]}" for column, share in of_class)
            for of_class in counts.mistakes()
        ]
        for stage, counts in stages.items()
    }
    first = max(len(name) for name in names)
    widths = {stage: max(len(stage), *map(len, texts)) for stage, texts in cells.items()}
    head = " " * first + "".join(f"  {stage:{width}}" for stage, width in widths.items())
    lines = [
        f"{name:{first}}" + "".join(f"  {cells[stage][row]:{widths[stage]}}" for stage in widths)
        for row, name in enumerate(names)
        if any(cells[stage][row] for stage in widths)
    ]
    title = "most frequent mistakes, in % of the points of each true class:"
    return "\n".join([title, *(line.rstrip() for line in [head, *lines])])


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"

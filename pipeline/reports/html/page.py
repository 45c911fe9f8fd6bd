"""Self-contained HTML page of a report: headings, tables, pictures and charts, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """Table of a page.

    Attributes:
        head: titles of the columns.
        rows: their cells.
        numbers: columns that are set to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """Link to a heading of the same page."""

    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a section: each attribute that is set is shown, in this order.

    Attributes:
        heading: over the block.
        anchor: name of the heading in links.
        text: a paragraph.
        soft: the paragraph is a remark.
        links: behind the paragraph.
        table: a table.
        lines: text in lines of its own.
        picture: JPEG in base 64.
        chart: HTML of a chart.
    """

    heading: str = ""
    anchor: str = ""
    text: str = ""
    soft: bool = False
    links: Sequence[Link] = ()
    table: Table | None = None
    lines: str = ""
    picture: str = ""
    chart: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Section of a page."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Tile:
    """Number at the head of a page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """HTML page of a report.

    Attributes:
        title: of the page.
        subtitle: what was scored on what.
        tiles: its most important numbers.
        sections: in order; those without blocks are left out.
    """

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section] = field(default_factory=tuple)

    def html(self) -> str:
        """Renders the page; texts are escaped."""
        template = files("clipsweep.pipeline.reports.html").joinpath("page.html").read_text("utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.from_string(template).render(
            title=self.title,
            subtitle=self.subtitle,
            tiles=self.tiles,
            sections=[section for section in self.sections if section.blocks],
            plotly_js=plotly.offline.get_plotlyjs(),
        )


def chart(figure: go.Figure) -> str:
    """HTML of a chart, without the library that draws it."""
    config = {"responsive": True, "displaylogo": False}
    return plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=config)


def picture(figure: Figure, dpi: int = 75) -> str:
    """Encodes a figure as JPEG in base 64."""
    stream = io.BytesIO()
    figure.savefig(stream, format="jpeg", dpi=dpi, pil_kwargs={"quality": 80})
    return base64.b64encode(stream.getvalue()).decode()

"""Figures as SVG text: readable on light and dark pages, without outside references.

Ink (text, axes, whiskers) takes the colour of the surrounding text, so that an inline figure
follows the page; a figure opened alone chooses by the reader's colour scheme. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0a0b0c"  # stands for currentColor, which matplotlib does not know
_STYLE = (
    "<style>.raggd-figure{color:#1d2126}@media(prefers-color-scheme:dark)"
    "{.raggd-figure{color:#e8e6e1}}</style>"
)


@contextmanager
def drawing(salt: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Make an empty figure in the house's style.

    Args:
        salt: equal for equal content; ids of two figures do not meet.
        size: width and height in inches.

    Yields:
        The figure; turn it into text inside the block.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_style_of(salt)):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Return so many panels of a figure, row by row; what is left of the last row stays blank.

    Options are those of matplotlib's ``subplots``.
    """
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **options)
    places: list[Axes] = list(grid.flat)
    for place in places[count:]:
        place.set_axis_off()
    return places[:count]


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as one inline ``<svg>`` that follows the page's text colour.

    The description holds its numbers, for readers who cannot see it.
    """
    stream = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=empty)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()  # no XML header and no document type with an address
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("*{stroke", ".raggd-figure *{stroke").replace(INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    opening = (
        f'<svg class="raggd-figure" role="img" aria-label="{escape(f"{title}. {description}")}"'
    )
    head, body = svg.removeprefix("<svg").split(">", 1)
    return f"{opening}{head}><title>{escape(title)}</title>{_STYLE}{body}\n"


def _style_of(salt: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # equal rows give equal text, and ids of two figures do not meet
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,  # a dollar in a method's name is a dollar
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
    }

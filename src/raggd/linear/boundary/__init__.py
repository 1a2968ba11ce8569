"""The boundary of the exact regime: one specification per figure, one file per family."""

from __future__ import annotations

from raggd.linear.boundary.depth import FIG6, FIG8
from raggd.linear.boundary.figure import FigureSpec
from raggd.linear.boundary.one_layer import DEPARTURES, FIG1, FIG5
from raggd.linear.boundary.table_figures import FIG2, FIG7, STATISTIC

FIGURES: dict[str, FigureSpec] = {
    spec.name: spec for spec in (FIG1, FIG2, FIG5, FIG6, FIG7, FIG8, STATISTIC, DEPARTURES)
}

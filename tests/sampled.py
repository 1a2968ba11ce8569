"""Intervals of plain lists of scores, for what is held against them."""

from typing import Any

import numpy as np

from raggd.evaluation.statistics import Difference, Interval, Sample


def bootstrap_interval(values: Any, **design: Any) -> Interval:
    """The interval of one method's scores."""
    return Sample("a", np.asarray(values, dtype=float)[:, None], **design).intervals()["a"]


def paired_bootstrap(a: Any, b: Any, **design: Any) -> Difference:
    """The scores ``a`` minus ``b`` of the same questions."""
    values = np.stack([np.asarray(x, dtype=float) for x in (a, b)], axis=1)
    return Sample("ab", values, **design).differences([("a", "b")])["a", "b"]

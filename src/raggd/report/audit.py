"""The table of an audit: what reading is worth, per task, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def audit_table(result: Mapping[str, Any]) -> Table:
    """Make the table of a result of `audit_result`.

    Args:
        result: ``worth`` by task and control.

    Returns:
        One row per task and control: the right state minus the control.
    """
    table = Table(title=f"What reading is worth: {result['audited']}, right minus control (95 %)")
    for heading in ("task", "control", "EM", "F1", "answer loss"):
        table.add_column(heading)
    for task, controls in result["worth"].items():
        for control, parts in controls.items():
            cells = [
                f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
                for digits, (mean, low, high) in (
                    (1, parts["em"]),
                    (1, parts["f1"]),
                    (3, parts["loss"]),
                )
            ]
            table.add_row(task, control, *cells)
    return table

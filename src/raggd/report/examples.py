"""Tables of whether answers follow the examples, and of what reading the examples is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from raggd.methods.spec import method_label


def audit_table(result: Mapping[str, Any]) -> Table:
    """Return a row per task and control of `audit_result`: the right state minus the control."""
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


_PARTS = ("form", "content", "exact")


def _limits(interval: list[float]) -> str:
    mean, low, high = interval
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def contract_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the methods' means over contracts, and the first method's contracts one by one."""
    macro = Table(title="Mean over contracts, percent (95 % interval)")
    for heading in ("method", *_PARTS, "refusal F1", "refused wrongly"):
        macro.add_column(heading)
    for method, scores in result["macro"].items():
        refusal = result["refusal"].get(method, {})
        macro.add_row(
            method_label(method),
            *(_limits(scores[part]) for part in _PARTS),
            *(f"{refusal[n]:.0f}" if refusal else "" for n in ("f1", "wrongly")),
        )
    for name, methods in result.get("by_set", {}).items():
        macro.add_section()
        for method, scores in methods.items():
            label = f"{name}: {method_label(method)}"
            macro.add_row(label, *(_limits(scores[part]) for part in _PARTS), "", "")
    first = next(iter(result["macro"]))
    single = Table(title=f"{method_label(first)}, contract by contract")
    for heading in ("contract", *_PARTS, "n"):
        single.add_column(heading)
    for name, methods in result["contracts"].items():
        scores = methods[first]
        single.add_row(name, *(f"{scores[part]:.0f}" for part in _PARTS), str(scores["n"]))
    return [macro, single]

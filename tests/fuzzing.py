"""How many cases a fuzzer tries: a few in `make test`, thousands in `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

USUAL = 100
"""Hypothesis's own number, which the profile of `make fuzz` replaces."""


def cases(usual: int, long: int = 10_000) -> settings:
    """Try `usual` cases, or `long` under ``--hypothesis-profile=long``."""
    return settings(
        max_examples=usual if settings().max_examples == USUAL else long,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )

"""The running server fuzzed against its own schema: no 5xx, every answer as the schema says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from serving_fixtures import Running, questions


@pytest.fixture(scope="module")
def described(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


OPERATIONS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/v1/supports", "POST"),
    ("/v1/supports", "GET"),
    ("/v1/supports/{support}", "GET"),
    ("/v1/supports/{support}", "DELETE"),
    ("/v1/index", "GET"),
    ("/v1/index", "POST"),
    ("/health", "GET"),
    ("/metrics", "GET"),
)


def fuzz(described: Any, path: str, method: str, mode: str, **fixed: Any) -> list[int]:
    """Send made-up requests, check every answer against the schema, return the statuses."""
    generation = schemathesis.GenerationMode(mode)
    cases = described[path][method].as_strategy(generation_mode=generation)
    seen = []

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def send(case: Any) -> None:
        if fixed and isinstance(case.body, dict):
            case.body.update(fixed)
        # what a schema cannot say (which models there are, that a question is not blank) is
        # refused with 4xx, so that check is left out
        excluded = [schemathesis.checks.positive_data_acceptance]
        seen.append(case.call_and_validate(excluded_checks=excluded).status_code)

    send()
    return seen


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_the_schema_says(described: Any, path: str, method: str) -> None:
    assert fuzz(described, path, method, "positive")


ASKED = questions(1)[0]
FITTING = {"model": "base", "raggd": None, "max_tokens": 3}


def test_chats_that_reach_the_model(described: Any) -> None:
    turns = {"messages": [{"role": "user", "content": ASKED}]}
    more = {"max_completion_tokens": None, "logprobs": True}
    assert 200 in fuzz(
        described, "/v1/chat/completions", "POST", "positive", **FITTING, **turns, **more
    )


def test_completions_that_reach_the_model(described: Any) -> None:
    assert 200 in fuzz(described, "/v1/completions", "POST", "positive", **FITTING, prompt=ASKED)


@pytest.mark.parametrize(
    "path", [path for path, method in OPERATIONS if method == "POST" and path != "/v1/index"]
)
def test_bodies_against_the_schema_are_refused(described: Any, path: str) -> None:
    assert {status // 100 for status in fuzz(described, path, "POST", "negative")} == {4}


def test_every_route_is_fuzzed(described: Any) -> None:
    found = {(o.ok().path, o.ok().method.upper()) for o in described.get_all_operations()}
    assert found == set(OPERATIONS)


def test_the_server_is_as_before(server: Running) -> None:
    server.wait_idle()
    assert server.service._open == 0
    health = httpx.get(f"{server.url}/health")
    assert health.json()["status"] == "ok"
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert "/v1/chat/completions" in described["paths"]
    assert "422" not in str(described["paths"])

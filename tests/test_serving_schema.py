"""The running server fuzzed against its own schema: no 5xx, every answer as the schema says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzing import cases
from raggd.serving.bodies import Extension
from raggd.serving.openai import ChatRequest
from serving_fixtures import Running, questions

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def described(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


CLIENT = httpx.Client(timeout=60)
OPERATIONS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/v1/supports", "POST"),
    ("/v1/supports", "GET"),
    ("/v1/supports/{support}", "GET"),
    ("/v1/supports/{support}", "DELETE"),
    ("/v1/evaluations", "POST"),
    ("/v1/evaluations/{evaluation}", "GET"),
    ("/v1/evaluations/{evaluation}", "DELETE"),
    ("/v1/index", "GET"),
    ("/v1/index", "POST"),
    ("/health", "GET"),
    ("/metrics", "GET"),
)


def fuzz(described: Any, path: str, method: str, mode: str, **fixed: Any) -> list[int]:
    """Send made-up requests, check every answer against the schema, return the statuses."""
    generation = schemathesis.GenerationMode(mode)
    requests = described[path][method].as_strategy(generation_mode=generation)
    seen = []

    @settings(
        cases(25, 400),  # of each of two dozen: 10,000 together
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests)
    def send(case: Any) -> None:
        if fixed and isinstance(case.body, dict):
            case.body.update(fixed)
        # what a schema cannot say (which models there are, that a question is not blank) is
        # refused with 4xx, so that check is left out
        excluded = [schemathesis.checks.positive_data_acceptance]
        response = case.call()
        if response.status_code == 413:  # a body too large is refused too, whatever is in it
            excluded.append(schemathesis.checks.negative_data_rejection)
        case.validate_response(response, excluded_checks=excluded)
        seen.append(response.status_code)

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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = [*ChatRequest.model_fields, *Extension.model_fields, "role", "content", "refusal", "text"]
TURN = {"role": "user", "content": ASKED}
SHOWN = {"question": ASKED, "answer": "Lima", "passages": [{"text": "The bee ."}]}
WHOLE: dict[str, Any] = {
    "model": "raggd",
    "messages": [TURN, {"role": "assistant", "content": None, "refusal": "no"}, TURN],
    "max_tokens": 2,
    "raggd": {"demonstrations": [SHOWN]},
    "response_format": {"type": "text"},
}


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A good chat request with one or two places replaced, dropped or added."""
    body = json.loads(json.dumps(WHOLE))
    for _ in range(draw(st.integers(1, 2))):
        place: Any = body
        while draw(st.booleans()) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            inner = place[draw(st.sampled_from(keys))]
            if not isinstance(inner, dict | list):
                break
            place = inner
        if isinstance(place, list):
            place.append(draw(JSON))
        else:
            name = draw(st.sampled_from([*place, *NAMES]))
            if draw(st.booleans()):
                place[name] = draw(JSON)
            else:
                place.pop(name, None)
    return body


@settings(cases(150), derandomize=True, database=None)
@given(body=spoilt())
def test_a_spoilt_request_is_answered_or_refused(server: Running, body: Any) -> None:
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    header = {"content-type": "application/json"}
    answer = CLIENT.post(f"{server.url}/v1/chat/completions", content=text, headers=header)
    assert answer.status_code in {200, 400, 404, 429}, answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


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

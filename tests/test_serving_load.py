"""The measurements themselves: a sound server passes, and what is wrong is found."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load.client import LoadClient, Said, load_client
from benchmarks.load.soak import (
    expected_answers,
    memory_slope,
    run_soak,
    stop_under_load,
    told_apart,
)
from benchmarks.load.throughput import measure_throughput
from benchmarks.load.visitors import Tally, Visitor, summary
from benchmarks.load.work import SETS, Workload, make_workload, own_server
from raggd.backbone.load import Backbone
from serving_fixtures import Running, demonstrations, questions, tiny_parts
from workflow_fixtures import save_backbone

TOLERANCE = 1e-3


def workload(size: int = 8) -> Workload:
    supports = tuple(tuple(demonstrations(number)) for number in range(SETS + 2))
    return Workload("tiny", tuple(questions(size)), supports)


def quiet(*_: object) -> None:
    """Progress of no interest."""


def test_a_sound_server_passes_a_soak(server: Running) -> None:
    found = run_soak(
        server.url, workload(4), minutes=0.08, visitors=6, tolerance=TOLERANCE, progress=quiet
    )
    server.wait_idle()
    counts = found["counts"]
    assert counts["right"] > 10
    assert not {"wrong", "another's", "lost", "garbage not refused"} & set(counts), found
    assert found["told_apart"] > 0.9


def visitor(server: Running, mixed_up: bool) -> Iterator[Visitor]:
    with load_client(server.url) as client:
        expected = expected_answers(client, workload(2), quiet)
        if mixed_up:  # as if the server had answered with the next set's update
            models = list(dict.fromkeys(model for _, model in expected))
            following = dict(zip(models, models[1:] + models[:1], strict=True))
            expected = {(q, m): expected[q, following[m]] for q, m in expected}
        yield Visitor(client, expected, {}, [], TOLERANCE, Tally(), random.Random(0))


def test_an_answer_with_anothers_update_is_found(server: Running) -> None:
    for mixed_up, what in ((False, "right"), (True, "another's")):
        for one in visitor(server, mixed_up):
            for _ in range(5):
                one._ask()
                one._stream()
            assert dict(one.tally.counts) == {what: 10}


def test_what_goes_wrong_is_counted(server: Running) -> None:
    for one in visitor(server, mixed_up=False):
        one._expect_refusal(200, "x")
        one._expect_refusal(500, "y")
        one.client = LoadClient("http://127.0.0.1:9")
        one._hang_up = one._lose_patience = one._garbage = one._ask  # type: ignore[method-assign]
        one.visit()
        counts = one.tally.counts
        assert (counts["garbage not refused"], counts["lost"]) == (2, 1)
        assert len(summary(one.tally)["examples"]) == 3


def test_distance_of_answers() -> None:
    said = Said("a", (-1.0, -2.0))
    assert said.distance(Said("a", (-1.0, -2.5))) == 0.5
    assert said.distance(Said("b", (-1.0, -2.0))) == math.inf
    assert said.distance(Said("a", (-1.0,))) == math.inf
    expected = {("q", "m"): said, ("q", "n"): replace(said, text="b"), ("r", "m"): said}
    assert told_apart(expected, TOLERANCE) == 1
    assert told_apart(expected | {("q", "o"): said}, TOLERANCE) == pytest.approx(2 / 3)


def test_memory_slope() -> None:
    growing = [(5.0 * i, 100 + 2 * 5.0 * i / 60) for i in range(60)]
    found = memory_slope(growing)
    assert found["mib_per_minute"] == pytest.approx(2)
    assert found["last"] > found["first"]
    assert memory_slope([(5.0 * i, 300.0) for i in range(60)])["mib_per_minute"] == 0
    assert memory_slope([]) == {}


def test_throughput_is_measured_in_batches(server: Running) -> None:
    found = measure_throughput(server.url, workload(), 1, quiet)
    assert found["batches"]["in_a_row"] == 1
    assert found["batches"]["mixed"] > 1
    for kind in ("natural", "long"):
        assert found[kind]["mixed_vs_in_a_row"]["ratio"] > 0


def test_a_server_of_its_own_is_started_and_stopped_under_load(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    parts = tiny_parts(tmp_path, frozen_backbone)
    folder = save_backbone(frozen_backbone, tmp_path / "backbone")
    made = make_workload(parts, 4)
    assert len(made.supports) == SETS
    assert all(len(shown) == 2 for shown in made.supports)
    changes = [f"backbone.name='{folder}'"]
    with own_server(tmp_path / "settings.toml", changes, tmp_path / "log") as started:
        end = stop_under_load(started, made)
    assert end == {"requests": 8, "finished": 8, "exit_code": 0}
    assert "POST /v1/chat/completions 200" in (tmp_path / "log").read_text()

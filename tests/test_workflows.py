"""The workflows end to end on a tiny backbone: train, targets, predictor, evaluate, ask, demo."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raggd.adaptation import optimizer
from raggd.adaptation import targets as target_store
from raggd.adaptation.base_adapter import load_base
from raggd.adaptation.predictors.base import load_predictor
from raggd.adaptation.targets import load_targets, split_held_out
from raggd.api import Rag
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.cli.ask import ask_result
from raggd.cli.data import fetched, listed
from raggd.data.benchmarks import training_questions
from raggd.files import load_tensors, read_json
from raggd.methods import answering
from raggd.methods.spec import BASE_FILE, MEAN_FILE, PREDICTOR_FILE
from raggd.records import (
    RaggdError,
)
from raggd.settings import Settings, changed, load_settings
from raggd.training import fits
from workflow_fixtures import (
    TRAIN,
    files_under,
    parts_with,
    settings_text,
    stage,
    write_data,
    write_lines,
)

METHODS = ("query-only", "vanilla-rag", "base", "mean-update", "tt-sgd", "rag-gd")
"""The other methods have a test file of their own, with the weights that they need."""


@dataclass(frozen=True)
class Trained:
    """What the three training commands left, and what they reported."""

    settings: Settings
    weights: Path
    store: Path
    base: dict[str, Any]
    targets: dict[str, Any]
    predictor: dict[str, Any]


@pytest.fixture(scope="module")
def trained(
    frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("trained")
    weights, store = root / "weights", root / "targets"
    path = root / "settings.toml"
    text = settings_text(write_data(root / "data"), weights=str(weights))
    path.write_text(text, encoding="utf-8")
    settings = load_settings(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        patch.setattr(fits, "compile_layers", lambda _: nullcontext())
        parts = parts_with(settings, frozen_backbone)
        base = stage("base", parts, weights)
        targets = stage("targets", parts, store)
        predictor = stage("predictor", parts, weights, store)
        yield Trained(settings, weights, store, base, targets, predictor)


@pytest.fixture
def parts(trained: Trained, tiny_backbone: Backbone) -> Assembly:
    return parts_with(trained.settings, tiny_backbone)


def interrupt_at(step: int) -> Callable[..., None]:
    """A progress that presses Ctrl-C when it is told a step."""

    def progress(_: str, done: int, *__: object) -> None:
        if done >= step:
            raise KeyboardInterrupt

    return progress


def content(path: Path) -> tuple[Any, bytes]:
    """Header and bytes of a safetensors file; the library orders the header's metadata anew."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:]


# --- training


def test_base_training_leaves_weights_and_a_record(trained: Trained, parts: Assembly) -> None:
    base = load_base(trained.weights / BASE_FILE)
    record = read_json(trained.weights / "base.json", what="record")
    assert record == trained.base
    assert record["fingerprint"] == base.fingerprint
    assert record["backbone"] == base.backbone == parts.backbone.fingerprint
    assert record["examples"] == TRAIN
    assert len(record["loss"]) == trained.settings.base_training.steps
    assert all(math.isfinite(loss) for loss in record["loss"])
    assert record["settings"] == trained.settings.model_dump()
    assert any(f.b.abs().max() > 0 for f in base.factors.values()), "B starts at zero"


def test_targets_are_balanced_and_belong_to_the_base(trained: Trained) -> None:
    found = load_targets(trained.store)
    base = load_base(trained.weights / BASE_FILE)
    assert found.tasks == ("nq", "triviaqa") * 4
    assert found.base == base.fingerprint == trained.targets["base"]
    assert found.identity == trained.targets["identity"]
    assert trained.targets["sets"] == len(found) == 8
    assert found.vectors.shape == (8, base.spec.size)
    assert found.states.shape[:2] == (8, trained.settings.target.demonstrations)
    pools = {n: training_questions(trained.settings.data.folder, n) for n in ("nq", "triviaqa")}
    for task, names in zip(found.tasks, found.demonstration_ids, strict=True):
        assert set(names) <= {question.id for question in pools[task]}


def test_the_predictor_comes_with_its_control_and_its_alignment(trained: Trained) -> None:
    record = trained.predictor
    kept, held = split_held_out(load_targets(trained.store), 0.25)
    assert record["sets"] == {"training": len(kept), "held_out": len(held)}
    base = load_base(trained.weights / BASE_FILE)
    mean, predictor = (
        load_predictor(trained.weights / name) for name in (MEAN_FILE, PREDICTOR_FILE)
    )
    assert mean.base == predictor.base == base.fingerprint
    average = kept.vectors.float().mean(0).bfloat16().float()  # as it is stored
    assert torch.equal(mean.predict(held.states).vector()[0], average)
    rows = predictor.predict(kept.states).vector()
    assert not torch.equal(rows[0], rows[1]), "the predictor reads its support set"
    for found in (record["held_out"], record["held_out_denoised"]):
        assert set(found) == {"rag-gd", "mean-update"}
        assert all(-1 <= value["cosine"] <= 1 for value in found.values())
    assert set(record["hashes"]) == {PREDICTOR_FILE, MEAN_FILE}
    assert read_json(trained.weights / "predictor.json", what="record") == record


@pytest.mark.parametrize("at", [3, 6, 8])
def test_interrupted_targets_continue_to_the_same_bytes(
    at: int, trained: Trained, parts: Assembly, tmp_path: Path
) -> None:
    store = tmp_path / "targets"
    with pytest.raises(KeyboardInterrupt):
        stage("targets", parts, store, progress=interrupt_at(at))
    shards = sorted(store.glob("shard-*"))
    assert len(shards) == -(-at // target_store.SHARD), "what was finished is kept"
    assert not list(store.glob(".*"))
    kept = {path.name: path.stat().st_mtime_ns for path in shards}
    record = stage("targets", parts, store)
    assert record["identity"] == trained.targets["identity"]
    whole = sorted(trained.store.glob("shard-*"))
    again = sorted(store.glob("shard-*"))
    assert [path.name for path in again] == [path.name for path in whole]
    for one, other in zip(again, whole, strict=True):
        assert content(one) == content(other), one.name
        assert kept.get(one.name, one.stat().st_mtime_ns) == one.stat().st_mtime_ns


def test_targets_interrupted_inside_a_shard(
    trained: Trained, parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    original = target_store.targets_of
    monkeypatch.setattr(target_store, "targets_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        stage("targets", parts, tmp_path)
    assert files_under(tmp_path) == ["shard-00000.safetensors", "store.json"]
    stage("targets", parts, tmp_path)
    assert len(calls) == 4, "one done, one stopped, two to go"
    for path in trained.store.glob("shard-*"):
        assert content(tmp_path / path.name) == content(path)


def test_a_store_of_other_targets_is_not_continued(trained: Trained, parts: Assembly) -> None:
    other = parts_with(changed(trained.settings, "target", steps=3), parts.backbone)
    before = files_under(trained.store)
    with pytest.raises(RaggdError, match=f"identity {trained.targets['identity']}"):
        stage("targets", other, trained.store)
    assert files_under(trained.store) == before


@pytest.mark.parametrize("which", ["base", "predictor"])
def test_interrupted_training_continues_to_the_same_weights(
    which: str, trained: Trained, parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "CHECKPOINT_SECONDS", -1.0)  # after every step
    steps: list[int] = []

    def run(progress: Callable[..., None]) -> dict[str, Any]:
        return stage(which, parts, tmp_path, trained.store, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt_at(3))
    assert files_under(tmp_path) == [f"{which}.checkpoint.safetensors"]
    record = run(lambda _, step, *__: steps.append(step))
    assert steps[0] == 3, "two steps were in the checkpoint, the third was lost"
    assert record["loss"] == (trained.base if which == "base" else trained.predictor)["loss"]
    for name in [BASE_FILE] if which == "base" else [PREDICTOR_FILE, MEAN_FILE]:
        found, header = load_tensors(tmp_path / name)
        wanted, expected = load_tensors(trained.weights / name)
        assert header == expected
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_targets_of_another_base_are_refused_with_both_fingerprints(
    trained: Trained, parts: Assembly, tmp_path: Path
) -> None:
    settings = changed(trained.settings, "training", seed=1)
    other = stage("base", parts_with(settings, parts.backbone), tmp_path / "other")
    assert other["fingerprint"] != trained.base["fingerprint"]
    settings = changed(trained.settings, "adapter", weights=str(tmp_path / "other"))
    strange = parts_with(settings, parts.backbone)
    with pytest.raises(RaggdError) as refused:
        stage("predictor", strange, tmp_path / "out", trained.store)
    assert other["fingerprint"] in str(refused.value)
    assert trained.base["fingerprint"] in str(refused.value)
    assert files_under(tmp_path / "out") == []


def test_a_predictor_of_another_base_is_refused_with_both_fingerprints(
    trained: Trained, parts: Assembly, tmp_path: Path
) -> None:
    settings = changed(trained.settings, "training", seed=1)
    other = stage("base", parts_with(settings, parts.backbone), tmp_path)
    for name in (PREDICTOR_FILE, MEAN_FILE):
        (tmp_path / name).write_bytes((trained.weights / name).read_bytes())
    settings = changed(trained.settings, "adapter", weights=str(tmp_path))
    mixed = parts_with(settings, parts.backbone)
    for method in ("rag-gd", "mean-update"):
        with pytest.raises(RaggdError) as refused:
            mixed.method(method)
        assert other["fingerprint"] in str(refused.value)
        assert trained.base["fingerprint"] in str(refused.value)


def test_nothing_is_trained_on_held_out_benchmarks(
    trained: Trained, parts: Assembly, tmp_path: Path
) -> None:
    for section, name in (("base_training", "base"), ("target", "targets")):
        settings = changed(trained.settings, section, benchmarks=["nq", "popqa"])
        with pytest.raises(RaggdError, match="'popqa' is held out"):
            stage(name, parts_with(settings, parts.backbone), tmp_path)
        settings = changed(trained.settings, section, benchmarks=["nq", "trivaqa"])
        with pytest.raises(RaggdError, match="did you mean 'triviaqa'"):
            stage(name, parts_with(settings, parts.backbone), tmp_path)
    assert files_under(tmp_path) == []


def test_data_commands_count_what_is_there(trained: Trained, parts: Assembly) -> None:
    entries = {entry["name"]: entry for entry in listed(parts)["benchmarks"]}
    assert len(entries) == 7
    assert entries["nq"]["splits"] == ["train", "test"]
    assert entries["popqa"] == entries["popqa"] | {"splits": ["test"], "held_out": True}
    assert entries["musique"]["splits"] == []
    assert fetched(parts)["benchmarks"] == {
        name: {"pool": 18, "scored": 10} for name in ("nq", "triviaqa")
    }
    nowhere = Assembly(changed(trained.settings, "data", folder="no/such/folder"))
    with pytest.raises(RaggdError, match="no data folder at no/such/folder"):
        listed(nowhere)


# --- ask


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s "mine"'
    folder.mkdir()
    guide = "# Guide\n\nThe red city lies near Lima.\n\n## Water\n\nThe big fish eats honey.\n"
    (folder / "guide.md").write_text(guide, encoding="utf-8")
    (folder / "more.md").write_text("The old tree is west of the sea.\n", encoding="utf-8")
    return folder


@pytest.fixture
def own(trained: Trained, tiny_backbone: Backbone, documents: Path) -> Assembly:
    settings = changed(trained.settings, "data", corpus=str(documents))
    return parts_with(settings, tiny_backbone)


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    lines = [
        {"question": "what lies near the red city ?", "answer": "Lima"},
        {"question": "what eats the big fish ?", "golden_answers": ["honey", "salt"]},
        {"question": "what is west of the sea ?", "answer": ["tree", "old tree"], "id": 7},
    ]
    return write_lines(tmp_path / "examples.jsonl", lines)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was given to the answering function: rows and prompts."""
    seen: list[Any] = []
    original = answering.answer_batch

    def spy(backbone: Any, rows: Any, prompts: Any, tokens: int) -> list[str]:
        seen.append((rows, prompts))
        return original(backbone, rows, prompts, tokens)

    monkeypatch.setattr(answering, "answer_batch", spy)
    return seen


def test_ask_without_demonstrations_is_the_base_adapter(own: Assembly, answered: list[Any]) -> None:
    result = ask_result(Rag(own), "what lies near the red city ?")
    assert (result["method"], result["adapted"], result["demonstrations"]) == ("base", False, 0)
    assert result["passages"][0] == {
        "id": "guide.md#1",
        "title": "Guide",
        "text": "The red city lies near Lima.",
        "source": "guide.md",
    }
    assert isinstance(result["answer"], str)
    assert result["passages_cut"] == 0
    (((row,), (prompt,)),) = answered
    assert row.base is own.base
    assert row.update is None
    text = own.backbone.tokenizer.decode(prompt.tokens)
    assert "red city lies near Lima" in text
    assert "what lies near the red city" in text
    stages = {"start", "index", "load", "retrieve", "adapt", "answer"}
    assert set(result["timings"]) | {"start"} == stages | {"total"}
    split = sum(v for k, v in result["timings"].items() if k in stages)
    assert split <= result["timings"]["total"] + 1


def test_where_nothing_is_found_the_model_is_not_asked_to_guess(
    own: Assembly, answered: list[Any]
) -> None:
    rag, foreign = Rag(own), "Quando apre il museo ?"
    result = ask_result(rag, foreign)
    assert (result["answer"], result["hits"], result["passages"]) == ("", 0, [])
    assert not answered
    assert ask_result(rag, foreign, guess=True)["hits"] == 0
    assert len(answered) == 1
    ask_result(rag, foreign, method="query-only")  # it reads no passages anyway
    assert len(answered) == 2
    several = rag.answer_many([foreign, "what eats the big fish ?", foreign])
    assert [bool(answer.hits) for answer in several] == [False, True, False]
    ((rows, prompts),) = answered[2:]
    assert len(rows) == len(prompts) == 1
    assert several[0].text == several[2].text == ""


@pytest.mark.parametrize("method", [None, "rag-gd", "mean-update", "tt-sgd"])
def test_ask_adapts_to_demonstrations(
    method: str | None, own: Assembly, demonstrations: Path, answered: list[Any]
) -> None:
    result = ask_result(Rag(own), "what eats the big fish ?", (demonstrations, None, None), method)
    assert result["method"] == (method or "rag-gd")
    assert result["adapted"] is True
    assert result["demonstrations"] == 3
    (((row,), _),) = answered
    assert float(row.update.vector().abs().max()) > 0


def test_ask_names_demonstrations_without_evidence(own: Assembly, tmp_path: Path) -> None:
    asked = ["what lies near the red city ?", "what eats the big fish ?", "is the city red ?"]
    lines = [
        {"question": question, "answer": answer}
        for question, answer in zip(asked, ("Lima", "a big submarine", "yes"), strict=True)
    ]
    file = write_lines(tmp_path / "shown.jsonl", lines)
    assert ask_result(Rag(own), asked[0], (file, None, None), "rag-gd")["without_evidence"] == [
        asked[1]
    ]
    assert ask_result(Rag(own), asked[0])["without_evidence"] == []


@pytest.mark.parametrize("method", ["base", "vanilla-rag", "query-only"])
def test_ask_says_when_it_did_not_adapt(
    method: str, own: Assembly, demonstrations: Path, answered: list[Any]
) -> None:
    result = ask_result(Rag(own), "what eats the big fish ?", (demonstrations, None, None), method)
    assert (result["method"], result["adapted"]) == (method, False)
    (((row,), (prompt,)),) = answered
    assert (row.base is None) == (method != "base")
    shown = "honey" in own.backbone.tokenizer.decode(prompt.tokens)
    assert shown == (method != "query-only")


def test_ask_reports_passages_that_were_cut(trained: Trained, own: Assembly) -> None:
    settings = changed(own.settings, "backbone", context_tokens=64)
    result = ask_result(
        Rag(parts_with(settings, own.backbone)), "the red city fish ?", method="vanilla-rag"
    )
    assert result["passages_cut"] > 0


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str, own: Assembly) -> None:
    with pytest.raises(RaggdError, match="question is empty"):
        ask_result(Rag(own), question)


def test_the_mean_update_reads_no_demonstrations(own: Assembly) -> None:
    result = ask_result(Rag(own), "what eats the fish ?", method="mean-update")
    assert result["adapted"]
    assert result["demonstrations"] == 0


@pytest.mark.parametrize("method", ["rag-gd", "tt-sgd"])
def test_a_method_that_adapts_needs_demonstrations(method: str, own: Assembly) -> None:
    with pytest.raises(RaggdError, match=f"'{method}' adapts from demonstrations"):
        ask_result(Rag(own), "what eats the fish ?", method=method)


def test_an_unknown_method_is_refused_before_any_work(trained: Trained, documents: Path) -> None:
    parts = Assembly(changed(trained.settings, "data", corpus=str(documents)))
    with pytest.raises(RaggdError, match="unknown method 'raggd': did you mean 'rag-gd'"):
        ask_result(Rag(parts), "what eats the fish ?", method="raggd")
    assert not {"index", "retriever", "backbone"} & set(vars(parts))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "who ?"}, 'line 2: no "golden_answers" and no "answer"'),
        ({"question": "who ?", "answer": None}, 'line 2: no "golden_answers" and no "answer"'),
        ({"question": "who ?", "answer": " "}, "line 2: question 'line-2' has no answer"),
        ({"question": "who ?", "answer": []}, "line 2: question 'line-2' has no answer"),
        ({"question": " ", "answer": "x"}, "line 2: question 'line-2' is empty"),
        ({"answer": "x"}, 'line 2: no "question"'),
    ],
)
def test_demonstrations_that_cannot_be_used(
    line: dict[str, Any], message: str, own: Assembly, tmp_path: Path
) -> None:
    good = {"question": "what eats the big fish ?", "answer": "honey"}
    path = write_lines(tmp_path / "examples.jsonl", [good, line])
    with pytest.raises(RaggdError, match=message) as refused:
        ask_result(Rag(own), "what lies near the city ?", (path, None, None), None)
    assert str(path) in str(refused.value)


def test_an_empty_file_of_demonstrations(own: Assembly, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(RaggdError, match="holds no demonstrations"):
        ask_result(Rag(own), "what lies near the city ?", (path, None, None), None)


def test_index_is_built_once(own: Assembly, documents: Path) -> None:
    (documents / "second.md").write_text("The short bee eats water.\n", encoding="utf-8")
    first, again = own.index_of(documents), own.index_of(documents)
    assert (first.built, again.built) == (True, False)
    assert len(first.retriever) == len(again.retriever) == 4
    assert first.retriever.fingerprint == again.retriever.fingerprint
    (documents / "third.md").write_text("The new bee eats salt.\n", encoding="utf-8")
    third = own.index_of(documents)
    assert (third.built, len(third.retriever)) == (True, 5)


def test_ask_names_what_is_skipped_and_strict_refuses_it(own: Assembly, tmp_path: Path) -> None:
    (Path(own.corpus) / "empty.txt").write_text("")
    result = ask_result(Rag(own), "what eats the big fish ?")
    assert result["skipped"] == [
        {"file": "empty.txt", "reason": "holds no text: fill or remove it."}
    ]
    with pytest.raises(RaggdError, match=r"1 file is skipped \(empty\.txt: holds no text"):
        ask_result(Rag(own), "what eats the big fish ?", strict=True)

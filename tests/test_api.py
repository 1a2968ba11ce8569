"""The Python interface: load, adapt, answer, save, export, in the words of the documentation."""

from __future__ import annotations

import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import raggd
from raggd.adaptation.base_adapter import load_base
from raggd.api import Answer, Rag
from raggd.assembly import Assembly
from raggd.backbone.batch import known_tokens
from raggd.backbone.load import Backbone
from raggd.cli.ask import ask_result
from raggd.core.low_rank import tensors_of
from raggd.data.closed import Closed
from raggd.data.remarks import DemonstrationWarning
from raggd.data.template import AnswerTemplate
from raggd.methods import answering
from raggd.methods.answering import bounded_prompt
from raggd.methods.base import Adapted
from raggd.methods.spec import BASE_FILE, EXAMPLES_FILE
from raggd.records import Question, RaggdError, SupportSet
from raggd.settings import Settings, changed, load_settings
from tiny import random_base, random_update
from workflow_fixtures import (
    StubRetriever,
    files_under,
    parts_with,
    settings_text,
    write_data,
    write_lines,
    write_weights,
)

PAIRS = [("what lies near the red city ?", "Lima"), ("what eats the big fish ?", "honey")]
QUESTION = "what lies near the old tree ?"
METHODS_WITHOUT_OWN_FILES = [
    *("query-only", "vanilla-rag", "vanilla-few-shot", "base", "base-few-shot", "mean-update"),
    *("tt-sgd-k1", "tt-sgd", "rag-gd", "rag-gd-step", "rag-gd-x2"),
]
GUIDE = (
    "# Guide\n\nThe red city lies near Lima.\n\n## Water\n\nThe big fish eats honey.\n\n"
    "## Trees\n\nThe old tree lies near Cairo.\n"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def settings(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("api")
    weights = write_weights(root / "weights", frozen_backbone)
    text = settings_text(write_data(root / "data"), "tiny", str(weights))
    (root / "settings.toml").write_text(text, encoding="utf-8")
    return load_settings(root / "settings.toml")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE, encoding="utf-8")
    return folder


@pytest.fixture
def rag(settings: Settings, tiny_backbone: Backbone, documents: Path) -> Rag:
    loaded = raggd.load(corpus=documents, settings=settings)
    loaded.parts.__dict__["backbone"] = tiny_backbone
    return loaded


def test_a_backbone_without_weights_is_used_as_it_is(
    settings: Settings, tiny_backbone: Backbone, documents: Path, tmp_path: Path
) -> None:
    rag = raggd.load(corpus=documents, settings=changed(settings, "adapter", weights="shipped"))
    rag.parts.__dict__["backbone"] = tiny_backbone
    assert rag.answer(QUESTION).text == rag.answer(QUESTION, method="vanilla-rag").text
    state, frozen = rag.adapt(PAIRS), rag.adapt(PAIRS, method="vanilla-examples")
    assert (state.base, frozen.base) == (rag.parts.base, None)
    assert state.prefix is not None
    assert frozen.prefix is not None
    for ours, theirs in zip(state.prefix.layers, frozen.prefix.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    answer = rag.answer(QUESTION, state)
    assert answer.text == rag.answer(QUESTION, frozen).text
    rag.save(state, tmp_path / "state.safetensors")
    assert rag.answer(QUESTION, tmp_path / "state.safetensors") == answer
    moved = rag.adapt(PAIRS, method="tt-sgd-k1").update  # gradients reach B from an untrained W0
    assert moved is not None
    assert all(bool(factors.b.any()) for factors in moved.factors.values())
    with pytest.raises(RaggdError, match="ships no predictor"):
        rag.adapt(PAIRS, method="rag-gd")


def test_odd_demonstrations_are_told(
    rag: Rag, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    rag.adapt(PAIRS, method="rag-gd")
    assert [w for w in recwarn if issubclass(w.category, DemonstrationWarning)] == []
    odd = [(question, "cannot be told") for question, _ in PAIRS]
    with pytest.warns(DemonstrationWarning, match="all 2 demonstrations refuse"):
        rag.adapt(odd, method="rag-gd")
    file = write_lines(tmp_path / "odd.jsonl", [{"question": q, "answer": a} for q, a in odd])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the command tells it in its result alone
        result = ask_result(rag, QUESTION, (file, None, None), "rag-gd")
    assert result["remarks"] == rag.remarks(odd)


def same(left: Adapted, right: Adapted) -> bool:
    assert left.update is not None
    assert right.update is not None
    return torch.equal(left.update.vector(), right.update.vector())


def test_load_loads_nothing(settings: Settings) -> None:
    loaded = raggd.load(corpus="no/such/folder", settings=settings)
    assert not {"backbone", "index", "retriever"} & set(vars(loaded.parts))
    assert raggd.load().parts.settings == Settings()
    with pytest.raises(RaggdError, match="no/such/folder"):
        loaded.answer(QUESTION)


def test_the_lines_of_the_documentation(rag: Rag, tmp_path: Path) -> None:
    adapted = rag.adapt(PAIRS)
    before, after = rag.answer(QUESTION), rag.answer(QUESTION, adapted)
    assert "Cairo" in before.passages[0].text
    assert before.passages == after.passages
    assert before.text != after.text
    file = tmp_path / "update.safetensors"
    rag.save(adapted, file)
    again = raggd.load_update(file)
    assert same(rag.state(again), adapted)
    assert again.base == rag.parts.base.fingerprint
    for form in (again, file, str(file), adapted.update, adapted):
        assert rag.answer(QUESTION, form) == after


def test_python_and_the_command_line_answer_alike(rag: Rag, documents: Path) -> None:
    lines = [{"question": question, "answer": answer} for question, answer in PAIRS]
    shown = write_lines(documents.parent / "examples.jsonl", lines)
    asked = ask_result(rag, QUESTION, (shown, None, None))
    assert rag.answer(QUESTION, rag.adapt(shown)).text == asked["answer"]
    assert rag.answer(QUESTION).text == ask_result(rag, QUESTION)["answer"]


def test_demonstrations_of_every_form_give_one_update(rag: Rag, tmp_path: Path) -> None:
    lines = [{"question": question, "answer": answer} for question, answer in PAIRS]
    path = write_lines(tmp_path / "examples.jsonl", lines)
    questions = [Question(f"q{i}", text, (answer,)) for i, (text, answer) in enumerate(PAIRS)]
    wanted = rag.adapt(PAIRS)
    for form in (lines, path, str(path), questions, iter(PAIRS), rag.support(PAIRS)):
        assert same(rag.adapt(form), wanted)
    assert not same(rag.adapt(PAIRS[:1]), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no demonstrations were given"),
        ([("who ?", " ")], "demonstration 1: question 'line-1' has no answer"),
        ([PAIRS[0], {"question": "who ?"}], 'demonstration 2: no "golden_answers" and no "answer"'),
        (["who ?"], "demonstration 1 is a str: expected"),
        (Path("no/such.jsonl"), "no/such.jsonl"),
    ],
)
def test_demonstrations_that_cannot_be_used(given: object, message: str, rag: Rag) -> None:
    with pytest.raises(RaggdError, match=message):
        rag.adapt(given)  # type: ignore[arg-type]


def test_every_question_of_a_batch_has_its_own_update(rag: Rag) -> None:
    first, second = rag.adapt(PAIRS[:1]), rag.adapt(PAIRS[1:])
    questions = [QUESTION, "what eats the big fish ?"] * 3  # more than one batch of four
    updates = [first, None, second, first, None, second]
    together = rag.answer_many(questions, updates)
    apart = [rag.answer(q, u) for q, u in zip(questions, updates, strict=True)]
    assert together == apart
    assert len({answer.text for answer in together}) > 2


def test_composed_and_decomposed_questions_are_one(rag: Rag) -> None:
    composed, decomposed = "who is the caf\u00e9 king ?", "who is the cafe\u0301 king\u200b ?"
    one, other = rag.answer_many([composed, decomposed], guess=True, instruction="d\u00e9j\u00e0")
    assert (one.text, one.question) == (other.text, other.question)


def test_where_nothing_is_found_the_answer_is_the_refusal_that_was_shown(rag: Rag) -> None:
    foreign, adapted = "quando apre il museo ?", rag.adapt(PAIRS)
    shown = replace(adapted, refusals=("not there", "unknown"))
    answers = rag.answer_many([foreign, foreign, QUESTION], [adapted, shown, shown])
    assert [(a.text, a.refused, a.hits) for a in answers[:2]] == [
        ("", False, 0),
        ("not there", True, 0),
    ]
    assert not answers[2].refused
    assert not rag.answer(foreign, shown, guess=True).refused


def test_where_nothing_is_found_a_question_is_still_sorted_into_the_classes_shown(rag: Rag) -> None:
    foreign, adapted = "quando apre il museo ?", rag.adapt(PAIRS)
    for labels in (("north", "south"), ("yes", "no")):
        sorting = AnswerTemplate(closed=Closed(labels=labels))
        answer = rag.answer(foreign, replace(adapted, template=sorting))
        assert (answer.text in labels, answer.hits) == ("yes" not in labels, 0)


def test_other_methods(rag: Rag) -> None:
    assert rag.answer(QUESTION, method="vanilla-rag").passages
    assert rag.answer(QUESTION, method="query-only").text != ""
    mean = rag.answer(QUESTION, method="mean-update")
    assert mean == rag.answer(QUESTION, rag.adapt(PAIRS, method="mean-update"))
    assert mean == rag.answer(QUESTION, rag.adapt(method="mean-update"))
    assert not same(rag.adapt(PAIRS, method="tt-sgd"), rag.adapt(PAIRS))
    for method in ("tt-sgd", "rag-gd", "base-few-shot"):
        with pytest.raises(RaggdError, match="adapts from demonstrations: give some"):
            rag.answer(QUESTION, method=method)
        with pytest.raises(RaggdError, match="adapts from demonstrations: give some"):
            rag.adapt(method=method)
    with pytest.raises(RaggdError, match="brings its own: leave one of them out"):
        rag.answer(QUESTION, rag.adapt(PAIRS), method="vanilla-rag")
    with pytest.raises(RaggdError, match="control of `raggd evaluate`"):
        rag.adapt(PAIRS, method="shuffled-support")


@pytest.mark.parametrize("method", METHODS_WITHOUT_OWN_FILES)
def test_what_adapt_gives_answers_whatever_the_method(rag: Rag, method: str) -> None:
    adapted = rag.adapt(PAIRS, method=method)
    answer = rag.answer(QUESTION, adapted)
    assert answer == rag.answer_many([QUESTION], [adapted])[0]
    if adapted.update is None:
        with pytest.raises(RaggdError, match="neither an update nor a prefix that could be saved"):
            rag.save(adapted, "nowhere.safetensors")


def test_few_shot_shows_the_demonstrations(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = answering.answer_batch

    def spy(backbone: Backbone, rows: Any, prompts: Any, most: int) -> list[str]:
        read.extend(backbone.tokenizer.decode(prompt.tokens) for prompt in prompts)
        return original(backbone, rows, prompts, most)

    monkeypatch.setattr(answering, "answer_batch", spy)
    rag.answer(QUESTION, rag.adapt(PAIRS, method="base-few-shot"))
    rag.answer(QUESTION, rag.adapt(PAIRS, method="base"))
    assert ["honey" in text for text in read] == [True, False]


def test_states_of_different_bases_are_answered_apart(rag: Rag) -> None:
    states = [rag.adapt(PAIRS), rag.adapt(method="vanilla-rag"), None, rag.adapt(PAIRS)]
    together = rag.answer_many([QUESTION] * 4, states)
    assert together == [rag.answer(QUESTION, state) for state in states]
    assert rag.answer_many([QUESTION] * 2, states[0]) == together[:1] * 2


def test_threads_wait_for_each_other(rag: Rag) -> None:
    alone = rag.answer(QUESTION, rag.adapt(PAIRS))
    found: list[Answer] = []
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(3):
                found.append(rag.answer(QUESTION, rag.adapt(PAIRS, method="tt-sgd")))
                found.append(rag.answer(QUESTION, rag.adapt(PAIRS)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert found.count(alone) == 9
    assert len(found) == 18
    assert len(set(found)) == 2


def test_bad_questions_and_updates(rag: Rag, tiny_backbone: Backbone) -> None:
    with pytest.raises(RaggdError, match="question is empty"):
        rag.answer("  ")
    with pytest.raises(RaggdError, match="2 questions, but 1 adapted states"):
        rag.answer_many([QUESTION, QUESTION], [None])
    foreign = random_update(random_base(tiny_backbone, seed=9))
    with pytest.raises(RaggdError, match="the update starts from base adapter"):
        rag.answer(QUESTION, foreign)
    with pytest.raises(RaggdError, match="a float is no adapted state"):
        rag.answer(QUESTION, 1.0)  # type: ignore[arg-type]
    with pytest.raises(RaggdError, match=r"a tuple is no adapted state: give what rag\.adapt"):
        rag.answer(QUESTION, [("where is Lima ?", "Peru"), ("who is king ?", "Lima")])  # type: ignore[list-item]
    with pytest.raises(RaggdError, match=r"no weight file at none\.safetensors"):
        rag.answer(QUESTION, "none.safetensors")
    assert rag.answer_many([]) == []


@pytest.mark.parametrize("value", [None, 5, b"x", ["x"], {"question": "x"}])
def test_what_is_no_text_is_named(rag: Rag, value: Any) -> None:
    with pytest.raises(RaggdError, match=f"the question is a {type(value).__name__}: expected"):
        rag.answer(value)
    if value:
        with pytest.raises(RaggdError, match=f"the instruction is a {type(value).__name__}"):
            rag.answer("where is Lima ?", instruction=value)
    if not isinstance(value, str | None):
        with pytest.raises(RaggdError, match="the corpus is a"):
            raggd.load(value)
    with pytest.raises(RaggdError, match="the corpus is a"):
        rag.index(value)
    for odd in (5, [5]):
        with pytest.raises(RaggdError, match=r"unknown method '.?5.?'"):
            rag.adapt(method=odd)  # type: ignore[arg-type]
    with pytest.raises(RaggdError, match="'5' is not the id of a support set"):
        rag.store.stored(5)  # type: ignore[arg-type]


def test_one_text_is_no_list_of_questions_and_nothing_is_no_corpus(rag: Rag) -> None:
    with pytest.raises(RaggdError, match="the questions are one text"):
        rag.answer_many("where is Lima ?")
    for odd in (None, b"where ?", {"where ?": 1}, 3):
        with pytest.raises(RaggdError, match=f"the questions are a {type(odd).__name__}: "):
            rag.answer_many(odd)  # type: ignore[arg-type]
    with pytest.raises(RaggdError, match=r"a list is no support set: make one by rag\.support"):
        rag.store.add(PAIRS)  # type: ignore[arg-type]
    for make in (raggd.load, rag.index):
        with pytest.raises(RaggdError, match="the path of the corpus is empty"):
            make("")
    same = [rag.answer("where is Lima ?", instruction=i).text for i in ("", None)]  # type: ignore[arg-type]
    assert same[0] == same[1]


def test_settings_of_every_form(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[retrieval]\ntop_k = 5\n", encoding="utf-8")
    path = tmp_path / "s.toml"
    for form in (path, str(path), {"retrieval": {"top_k": 5}}, load_settings(path)):
        assert raggd.load(settings=form).parts.settings.retrieval.top_k == 5
    kept = raggd.load(settings={"serving": {"supports": "~/sets"}}).store.folder
    assert kept == Path.home() / "sets", "no shell has seen the name"
    with pytest.raises(RaggdError, match="did you mean 'top_k'"):
        raggd.load(settings={"retrieval": {"topk": 5}})
    with pytest.raises(RaggdError, match="settings are a int: expected a TOML file or a diction"):
        raggd.load(settings=5)  # type: ignore[arg-type]


def test_index_switches_the_corpus(rag: Rag, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("The old tree lies near Quito.\n", encoding="utf-8")
    assert "Cairo" in rag.answer(QUESTION).passages[0].text
    assert rag.index(other).built
    assert [p.text for p in rag.answer(QUESTION).passages] == ["The old tree lies near Quito."]
    assert not rag.index(other).built


def test_a_retriever_of_ones_own(settings: Settings, tiny_backbone: Backbone) -> None:
    own = Rag(parts_with(settings, tiny_backbone), StubRetriever())
    assert own.answer(QUESTION).passages[0].text.startswith("passage")
    with pytest.raises(RaggdError, match="a corpus or a retriever, not both"):
        raggd.load(corpus="x", retriever=StubRetriever())
    with pytest.raises(RaggdError, match="a list is no retriever that raggd knows"):
        raggd.load(retriever=[])


@pytest.mark.parametrize("where", [("what ends a </s> turn ?", "Lima"), ("who ?", "<user>Lima")])
def test_examples_with_control_words_are_not_exported(
    rag: Rag, tmp_path: Path, where: tuple[str, str]
) -> None:
    state = rag.adapt([*PAIRS, where], method="base-few-shot")
    for export in (rag.export_peft, rag.export_gguf):
        with pytest.raises(RaggdError, match=r"cannot export examples that hold '</?(s|user)>'"):
            export(tmp_path / "out" / "one.gguf", state)
    assert files_under(tmp_path / "out") == []


def test_exports(rag: Rag, tmp_path: Path) -> None:
    update = rag.adapt(PAIRS)
    with pytest.raises(RaggdError, match="stands on no base adapter"):
        rag.export_peft(tmp_path / "none", rag.adapt(PAIRS, method="vanilla-few-shot"))
    shown = rag.export_peft(tmp_path / "shown", rag.adapt(PAIRS, method="base-few-shot"))
    assert shown.rank == 2
    template = (shown.folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert PAIRS[0][0] in template
    assert rag.export_peft(tmp_path / "peft", update).rank == 6
    assert rag.export_gguf(tmp_path / "update.gguf", update).stat().st_size > 1000
    assert files_under(tmp_path / "peft") == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "prompt.txt",
    ]  # fmt: skip
    assert (tmp_path / "update.chat_template.jinja").is_file()
    assert (tmp_path / "update.prompt.txt").is_file()


def test_an_instruction_takes_the_place_of_the_built_in_one(
    rag: Rag, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = answering.answer_batch

    def spy(backbone: Backbone, rows: Any, prompts: Any, most: int) -> list[str]:
        read.extend(backbone.tokenizer.decode(prompt.tokens) for prompt in prompts)
        return original(backbone, rows, prompts, most)

    monkeypatch.setattr(answering, "answer_batch", spy)
    rag.answer(QUESTION, rag.adapt(PAIRS), instruction="the big fish eats honey")
    rag.answer(QUESTION, rag.adapt(PAIRS))
    assert ["eats honey" in text for text in read] == [True, False]


SAID = "the big fish eats honey"


@pytest.fixture
def following(settings: Settings, tiny_backbone: Backbone, documents: Path, tmp_path: Path) -> Rag:
    weights = shutil.copytree(settings.adapter.weights, tmp_path / "weights")
    random_update(load_base(weights / BASE_FILE)).save(weights / EXAMPLES_FILE)
    changed = settings.adapter.model_copy(update={"weights": str(weights)})
    loaded = raggd.load(corpus=documents, settings=settings.model_copy(update={"adapter": changed}))
    loaded.parts.__dict__["backbone"] = tiny_backbone
    return loaded


def instructed(rag: Rag, instruction: str) -> Rag:
    settings = rag.parts.settings
    serving = settings.serving.model_copy(update={"instruction": instruction})
    return Rag(rag.parts.derived(settings.model_copy(update={"serving": serving})))


def test_examples_are_read_once_under_each_instruction(following: Rag) -> None:
    ours, told = following.adapt(PAIRS), following.adapt(PAIRS, instruction=f" {SAID} ")
    again, other = (following.adapt(PAIRS, instruction=x) for x in (SAID, "in few words"))
    assert following.store.computed == 3
    assert again == told
    assert other != told != ours
    kept = raggd.load(following.parts.corpus, settings=following.parts.settings)
    kept.parts.__dict__["backbone"] = following.parts.backbone
    assert kept.adapt(PAIRS, instruction=SAID).instruction == SAID
    assert kept.store.computed == 0, "the disk has it"
    whole = following.answer(QUESTION, ours, instruction=SAID)
    for state in (told, replace(told, prefix=None)):
        assert following.answer(QUESTION, state).text == whole.text
    passages = whole.passages
    prompts = [
        bounded_prompt(following.parts.settings, following.parts.backbone, s, QUESTION, passages)
        for s in (told, replace(ours, instruction=SAID))
    ]
    assert prompts[0] == prompts[1]
    assert known_tokens(prompts[0], told.prefix) > known_tokens(prompts[0], ours.prefix) == 0


def test_the_settings_may_say_how_to_answer(following: Rag, rag: Rag) -> None:
    told = instructed(following, SAID)
    assert told.adapt(PAIRS).prefix is not None
    assert told.key(told.support(PAIRS)) == following.key(told.support(PAIRS), instruction=SAID)
    assert told.adapt(PAIRS).instruction == SAID
    assert told.adapt(PAIRS, instruction="few words").instruction == "few words"
    for plain in (following, rag):
        wanted = plain.answer(QUESTION, plain.adapt(PAIRS, instruction=SAID))
        assert plain.answer(QUESTION, instruction=SAID) == instructed(plain, SAID).answer(QUESTION)
        one = instructed(plain, SAID)
        assert one.answer(QUESTION, one.adapt(PAIRS)) == wanted


def test_a_file_that_is_no_update(rag: Rag, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="is not a raggd update"):
        raggd.load_update(Path(settings.adapter.weights) / "base.safetensors")
    with pytest.raises(RaggdError, match="no weight file at"):
        raggd.load_update(tmp_path / "none.safetensors")
    batch = raggd.core.low_rank.stack_updates([rag.adapt(PAIRS).update] * 2)
    batch.save(tmp_path / "batch.safetensors")
    kept = raggd.load_update(tmp_path / "batch.safetensors")
    assert kept.rows == 2
    assert tensors_of(kept.factors).keys() == tensors_of(batch.factors).keys()


def test_a_support_set_is_passed_through(rag: Rag) -> None:
    support = rag.support(PAIRS)
    assert isinstance(support, SupportSet)
    assert rag.support(support) is support
    assert isinstance(rag.parts, Assembly)

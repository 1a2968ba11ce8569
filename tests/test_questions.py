"""Question files and demonstrations: what counts as text, and what is refused by its line."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data.questions import parse_demonstrations, read_demonstrations, read_questions
from raggd.records import Question, RaggdError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


def test_own_questions_need_no_id_and_no_list(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"question": "How many?", "answer": 7},
        {"question": "Where?", "golden_answers": ["Rome", 3.5]},
        {"id": 0, "question": "Wer?", "answer": " Zoe\u0308 "},
        {"id": "", "question": "Which?", "answer": "[sic]"},
    )
    assert read_questions(path, task="shop floor") == [
        Question("shop floor:line-1", "How many?", ("7",), "shop floor"),
        Question("shop floor:line-2", "Where?", ("Rome", "3.5"), "shop floor"),
        Question("shop floor:0", "Wer?", ("Zoë",), "shop floor"),
        Question("shop floor:line-4", "Which?", ("[sic]",), "shop floor"),
    ]
    assert [q.answers for q in read_demonstrations(path)] == [
        ("7",),
        ("Rome", "3.5"),
        ("Zoë",),
        ("[sic]",),
    ]


@pytest.mark.parametrize("answer", ['["Rome"]', "[1, 3]", "[]"])
def test_a_list_of_json_may_be_the_form_of_an_answer(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Q?", "answer": answer})
    (question,) = parse_demonstrations([("Q?", answer)])
    assert read_demonstrations(path)[0].answers == question.answers == (answer,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": "Q?", "golden_answers": ["a", ["b"]]}, "an answer is a list"),
        ({"question": "Q?", "golden_answers": {"a": 1}}, "an answer is an object"),
        ({"question": "Q?", "answer": True}, "an answer is true or false"),
        ({"question": "Q?", "golden_answers": ["a", None]}, "an answer is null"),
        ({"question": ["Q?"], "answer": "a"}, "the question is a list"),
        ({"question": {"text": "Q?"}, "answer": "a"}, "the question is an object"),
        ({"id": [1], "question": "Q?", "answer": "a"}, "the id is a list"),
        ({"question": "Q?", "answer": float("inf")}, "Infinity"),
        ({"question": "Q?", "answer": "['a', 'b']"}, "a list written as text"),
        ({"question": "Q?", "golden_answers": ['["a"]']}, "a list written as text"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Good?", "answer": "yes"}, value)
    for read in (read_demonstrations, lambda file: read_questions(file, task="own")):
        with pytest.raises(RaggdError, match=rf"q\.jsonl, line 2: .*{message}"):
            read(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": "Q?", "completion": "a"}, "found the keys prompt, completion"),
        ({}, r"found the keys \(none\)"),
        ({"question": "Q?", "answer": "a", "golden_answers": ["b"]}, "differ"),
        ({"question": "Q?", "answer": 6, "golden_answers": [7]}, "differ"),
        ({"question": "Q?", "answer": "a", "passages": [{"text": "a"}]}, "leave them out"),
    ],
)
def test_what_a_demonstration_holds_besides_is_not_passed_over(
    tmp_path: Path, value: Any, message: str
) -> None:
    with pytest.raises(RaggdError, match=rf"demonstration 1.*{message}"):
        parse_demonstrations([value])
    with pytest.raises(RaggdError, match=rf"line 1.*{message}"):
        read_demonstrations(write(tmp_path / "q.jsonl", value))


@pytest.mark.parametrize(
    "more",
    [{"note": 1}, {"golden_answers": ["b", "a"]}, {"golden_answers": None}, {"passages": []}],
)
def test_what_changes_nothing_is_taken(more: dict[str, Any]) -> None:
    (question,) = parse_demonstrations([{"question": "Q?", "answer": "a", **more}])
    assert "a" in question.answers


@pytest.mark.parametrize("shown", [None, 3, b"x", {"question": "Q?", "answer": "a"}, "Q?"])
def test_what_is_no_list_of_demonstrations_is_named(shown: Any) -> None:
    with pytest.raises(RaggdError, match=f"the demonstrations are a {type(shown).__name__}: "):
        parse_demonstrations(shown)


@pytest.mark.parametrize(
    "value", [("Q?", ["a", ["b"]]), {"question": 1j, "answer": "a"}, ("Q?", 10**6000)]
)
def test_demonstrations_in_python_are_checked_too(value: Any) -> None:
    with pytest.raises(RaggdError, match="demonstration 1"):
        parse_demonstrations([value])


@pytest.mark.fuzz
@given(st.lists(st.fixed_dictionaries({}, optional={
    "id": JSON, "question": JSON, "answer": JSON, "golden_answers": JSON,
}), max_size=4))  # fmt: skip
def test_any_file_is_questions_or_one_error(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "q.jsonl"), *values)
        for read in (read_demonstrations, lambda file: read_questions(file, task="t")):
            with contextlib.suppress(RaggdError):
                for question in read(path):
                    assert question.text.strip()
                    assert all(question.answers)
                    question.text.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"question": "Who?", "question": "Where?", "answer": "x"}',
            'key "question" occurs twice',
        ),
        ('{"question": "Who?", "answer": "x", "more": {"a": 1, "b": 2, "a": 3}}', 'key "a" occurs'),
        (
            '{\n "question": "Who?",\n "answer": "x"\n}',
            "line 1: not JSON .it goes on in the next line",
        ),
        ('[{"question": "Who?", "answer": "x"},\n{"question": "Where?"}]', "goes on in the next"),
    ],
)
def test_what_is_nearly_json_lines_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(RaggdError, match=message):
        read_demonstrations(path)


@pytest.mark.parametrize("mark", ["\ufeff", "\x1e", "\ufeff \ufeff"])
def test_marks_before_any_line_are_no_part_of_it(tmp_path: Path, mark: str) -> None:
    line = '{"question": "\ufeffWhere\ufeff?", "answer": "Bern"}\n'
    path = tmp_path / "joined.jsonl"
    path.write_text(line + mark + line + mark + "\n" + mark + line)
    found = read_demonstrations(path)
    assert [(q.text, q.answers) for q in found] == [("Where?", ("Bern",))] * 3


@pytest.mark.parametrize("coding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("start", ["", "\n", "  "])
def test_json_lines_in_every_unicode(tmp_path: Path, coding: str, mark: str, start: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = start + '{"question": "Où?", "golden_answers": null, "answer": "图书馆"}\n' * 3
    path.write_bytes((mark + lines).encode(coding))
    found = [(q.text, q.answers) for q in read_demonstrations(path)]
    assert found == [("Où?", ("图书馆",))] * 3

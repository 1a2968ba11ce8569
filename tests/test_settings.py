"""Settings: unknown keys, wrong types, the forms of ``--set``."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from raggd.records import RaggdError
from raggd.settings import Settings, load_settings, read_settings
from raggd.study.plan import StudySettings


def _file(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings() == Settings()
    assert load_settings(None, []) == Settings()


def test_a_file_changes_what_it_names_and_set_comes_last(tmp_path: Path) -> None:
    path = _file(tmp_path, '[retrieval]\ntop_k = 7\nretriever = "dense"\n')
    read = load_settings(path)
    assert (read.retrieval.top_k, read.retrieval.retriever) == (7, "dense")
    assert read.target == Settings().target
    changed = load_settings(path, ["retrieval.top_k=2", "retrieval.top_k = 4"])
    assert (changed.retrieval.top_k, changed.retrieval.retriever) == (4, "dense")


@pytest.mark.parametrize(
    ("assignment", "section", "name", "value"),
    [
        ("backbone.name=some/model", "backbone", "name", "some/model"),
        ('backbone.name="3"', "backbone", "name", "3"),
        ("predictor.denoise=true", "predictor", "denoise", True),
        ("target.learning_rate=1e-3", "target", "learning_rate", 1e-3),
        ('target.benchmarks=["nq", "musique"]', "target", "benchmarks", ["nq", "musique"]),
        (" evaluation.support = query ", "evaluation", "support", "query"),
        ("data.folder=a=b", "data", "folder", "a=b"),
        ("data.folder=~/a", "data", "folder", str(Path.home() / "a")),
        ("adapter.weights='~/a b'", "adapter", "weights", str(Path.home() / "a b")),
        ("backbone.name=~else", "backbone", "name", "~else"),
        ('evaluation.benchmarks=["nq", "nq"]', "evaluation", "benchmarks", ["nq"]),
        ('target.benchmarks=["nq", "nq"]', "target", "benchmarks", ["nq"]),
        ('base_training.benchmarks=["a", "a"]', "base_training", "benchmarks", ["a"]),
    ],
)
def test_forms_of_set(assignment: str, section: str, name: str, value: object) -> None:
    assert getattr(getattr(Settings(), section), name) != value
    assert getattr(getattr(load_settings(assignments=[assignment]), section), name) == value


@pytest.mark.parametrize("assignment", ["top_k=3", "retrieval.top_k", "a.b.c=1", "=", ""])
def test_other_forms_of_set_are_explained(assignment: str) -> None:
    with pytest.raises(RaggdError, match=r"expected SECTION\.NAME=VALUE"):
        load_settings(assignments=[assignment])


@pytest.mark.parametrize("text", ["retrieval = 3\n", 'retrieval = "bm25"\n', "retrieval = [1]\n"])
def test_set_into_a_section_that_is_no_table(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(RaggdError, match="retrieval"):
        load_settings(path)
    with pytest.raises(RaggdError, match="retrieval"):
        load_settings(path, ["retrieval.top_k=3"])


def test_an_unknown_key_offers_the_nearest(tmp_path: Path) -> None:
    path = _file(tmp_path, "[retrieval]\ntop_kk = 3\n")
    with pytest.raises(RaggdError, match=r"\[retrieval\].*'top_kk'.*did you mean 'top_k'") as info:
        load_settings(path)
    assert str(path) in str(info.value)
    with pytest.raises(RaggdError, match=r"'top_kk'.*did you mean 'top_k'"):
        load_settings(assignments=["retrieval.top_kk=3"])
    with pytest.raises(RaggdError, match=r"'answerable_only' stands in \[training\]"):
        load_settings(assignments=["hyper_tuning.answerable_only=true"])
    with pytest.raises(RaggdError, match=r"\[backbones\..*'noise' stands in \[retrieval\]"):
        read_settings(StudySettings, {"backbones": [{"name": "a", "methods": [], "noise": 1}]})


def test_an_unknown_section_offers_the_nearest(tmp_path: Path) -> None:
    path = _file(tmp_path, "[retreival]\ntop_k = 3\n")
    with pytest.raises(RaggdError, match=r"section.*'retreival'.*did you mean 'retrieval'"):
        load_settings(path)
    with pytest.raises(RaggdError, match=r"'retreival'.*did you mean 'retrieval'"):
        load_settings(assignments=["retreival.top_k=3"])


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("retrieval.top_k=three", r"retrieval\.top_k.*'three'"),
        ("retrieval.top_k=-1", r"retrieval\.top_k.*-1"),
        ("retrieval.top_k=1.5", r"retrieval\.top_k.*1\.5"),
        ("retrieval.retriever=bm26", r"retrieval\.retriever.*'bm26'"),
        ("target.benchmarks=nq", r"target\.benchmarks.*'nq'"),
        ("target.learning_rate=0", r"target\.learning_rate.*0"),
        ("target.learning_rate=nan", r"target\.learning_rate.*nan"),
        ("target.learning_rate=inf", r"target\.learning_rate.*inf"),
        ("serving.timeout_s=1e999", r"serving\.timeout_s.*inf"),
        (f"retrieval.top_k={'9' * 5000}", r"retrieval\.top_k.*'999.{80,90}\.\.\.\."),
        ("evaluation.seed=99999999999999999999", "more than 64 bits"),
        (f"retrieval.top_k={'[' * 3000}", r"retrieval\.top_k.*'\[\[\[.{80,90}\.\.\.\."),
        ("retrieval.noise=1.5", r"retrieval\.noise.*1\.5"),
        ("backbone.dtype=int8", r"backbone\.dtype.*'int8'"),
        ("adapter.rank={}", r"adapter\.rank"),
        ("retrieval.top_k=true", r"retrieval\.top_k.*True"),
        ('retrieval.top_k="5"', r"retrieval\.top_k.*'5'"),
        ("backbone.context_tokens=512.0", r"backbone\.context_tokens.*512\.0"),
        ("predictor.denoise=1", r"predictor\.denoise.*1"),
        ('predictor.denoise="no"', r"predictor\.denoise.*'no'"),
        ("serving.watch_s=false", r"serving\.watch_s.*False"),
        ("evaluation.benchmarks=nq,popqa", r"valid list \(\["),
        ("training.answerable_only=True", r"valid boolean \(true or false\)"),
    ],
)
def test_values_that_do_not_fit_are_named(assignment: str, named: str) -> None:
    with pytest.raises(RaggdError, match=named):
        load_settings(assignments=[assignment])


def test_what_does_not_fit_is_told_where_it_stands(tmp_path: Path) -> None:
    path = _file(tmp_path, "[retrieval]\ntop_k = -1\n")
    with pytest.raises(RaggdError, match=rf"'retrieval\.top_k' in {path}"):
        load_settings(path, ["evaluation.draws=2"])
    path = _file(tmp_path, "[retrieval]\ntop_k = 1\n")
    with pytest.raises(RaggdError, match=r"'evaluation\.draws' in --set"):
        load_settings(path, ["evaluation.draws=0"])


def test_files_that_are_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match=r"cannot read settings file .*absent\.toml"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(RaggdError, match="cannot read settings file"):
        load_settings(tmp_path)
    with pytest.raises(RaggdError, match="not valid TOML"):
        load_settings(_file(tmp_path, "[retrieval\n"))
    (tmp_path / "settings.toml").write_bytes(b"\xff\xfe[retrieval]")
    with pytest.raises(RaggdError, match="not valid TOML"):
        load_settings(tmp_path / "settings.toml")


def test_a_settings_file_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[retrieval]\ntop_k = 7\n", encoding="utf-8-sig")
    assert load_settings(path).retrieval.top_k == 7
    path.write_text("[retrieval]\ntop_k = 7\n", encoding="utf-16")
    with pytest.raises(RaggdError, match="not valid TOML"):
        load_settings(path)


def test_settings_are_frozen_and_survive_json() -> None:
    settings = load_settings(assignments=["retrieval.top_k=9"])
    assert Settings.model_validate_json(settings.model_dump_json()) == settings != Settings()
    with pytest.raises(ValidationError):
        settings.retrieval.top_k = 1  # type: ignore[misc]


def test_the_example_files_of_the_repository_are_valid() -> None:
    files = sorted((Path(__file__).resolve().parents[1] / "settings").glob("**/*.toml"))
    for path in files:
        load_settings(path)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("HTTPS://Wiki.Example/", "https://wiki.example"),
        ("https://wiki.example:443", "https://wiki.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://wiki.example:443", "http://wiki.example:443"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_send_them(given: str, kept: str) -> None:
    assert load_settings({"serving": {"origins": [given]}}).serving.origins == [kept]


@pytest.mark.parametrize(
    "given", ["localhost:3000", "wiki.example", "https://*.example", "http://a/b", "", "http://"]
)
def test_what_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(RaggdError, match="http://localhost:3000"):
        load_settings({"serving": {"origins": [given]}})

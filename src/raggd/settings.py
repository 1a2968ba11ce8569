"""Typed settings: one TOML file, unknown keys refused, single values changed by ``--set``."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from raggd.records import RaggdError, unknown_name

RETRIEVERS = ("bm25", "dense", "hybrid")


def known_retriever(name: str) -> str:
    """Return a name of ours or an import path ``module:function``; else a `ValueError`."""
    if name not in RETRIEVERS and not all(name.partition(":")):
        raise ValueError(f"expected {', '.join(RETRIEVERS)}, or module:function that makes one")
    return name


def _origin(text: str) -> str:
    # as browsers send it: in small letters, without the usual port
    plain = re.sub("^(http:.*):80$|^(https:.*):443$", r"\1\2", text.strip().lower().rstrip("/"))
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@*]+", plain):
        raise ValueError("expected pages' origins, like 'http://localhost:3000', or '*' for all")
    return plain


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Names = Annotated[list[str], AfterValidator(lambda names: list(dict.fromkeys(names)))]  # each once
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # no shell looks at a file's ``~/``


class _Section(BaseModel):
    # a number without bound has no form in JSON, and so none in a record
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneSettings(_Section):
    """The frozen language model."""

    name: Place = "smollm2-135m-instruct"
    """An embedded name, a Hugging Face hub name, a local folder, or a GGUF file."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    """`auto`: bfloat16 where the processor multiplies it natively, else float32."""
    context_tokens: int = Field(default=2048, ge=64)
    """Longest prompt with its answer; passages beyond it are cut, from the last."""


class DataSettings(_Section):
    """Where benchmarks and passages come from."""

    folder: Place = "pocket"  # or `hub` (FlashRAG's data sets), or a folder in FlashRAG's layout
    corpus: Place = ""  # file or folder of passages; empty: the one that belongs to `folder`
    prepared: Place = ""
    """For training: file of questions with their passages (`raggd data prepare`); no index then."""


class RetrievalSettings(_Section):
    """How evidence is found. The same for every method."""

    retriever: Annotated[str, AfterValidator(known_retriever)] = "bm25"
    """`bm25`, `dense`, `hybrid`, or ``module:function`` that makes one (docs/retrieval.md)."""
    encoder: Place = "all-minilm-l6-v2"
    """For `dense` and `hybrid`: an embedded name, a hub name, or a local folder."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the passages' vectors; `auto`: bfloat16 where the processor multiplies it natively."""
    index_factory: str = ""
    """How faiss indexes vectors (``HNSW32``, ``IVF4096,PQ48``); empty: by size, from 200,000 on."""
    memory: str = "3GB"  # most memory that the process may hold while it builds an index
    top_k: int = Field(default=3, ge=0)  # passages given to the model (paper: 5)
    noise: Share = 0.0  # of the passages, replaced by random ones, for tests of robustness


class AdapterSettings(_Section):
    """Shape of the evidence-use interface: LoRA on q, k, v of every layer (paper section 5)."""

    rank: Count = 16
    alpha: Positive = 32.0
    weights: Place = "shipped"
    """`shipped`, or a folder with base.safetensors, predictor.safetensors, mean.safetensors."""


class TrainingSettings(_Section):
    """What all trainings share."""

    seed: int = 0
    accumulate: Count = 1  # batches whose gradients make one step
    max_tokens: int = Field(default=480, ge=16)
    """Tokens per question or lesson learned from; passages are cut to fit, from the last."""
    answerable_only: bool = False
    """Base adapter, soft prefix, HyperTuning: leave out questions whose passages hold no answer."""


class ScheduleSettings(_Section):
    """What each has: AdamW with a cosine, after a short warm-up (paper section 5)."""

    steps: Count = 3000
    batch: Count = 8
    learning_rate: Positive = 5e-4


class BaseTrainingSettings(ScheduleSettings):
    """Training of the base adapter W0."""

    steps: int = Field(default=3000, ge=0)
    """0: W0 stays untrained and changes nothing: what is trained on it starts from the model."""
    benchmarks: Names = ["nq"]
    learning_rate: Positive = 1e-4


class PromptTuningSettings(ScheduleSettings):
    """Training of a soft prefix on the base adapter's examples (`[base_training]` names them)."""

    learning_rate: Positive = 1e-2


class TargetSettings(_Section):
    """The K-step SGD update that a predictor learns to emit (paper equation 8)."""

    benchmarks: Names = ["nq", "triviaqa"]
    """Training tasks (paper: also hotpotqa, 2wikimultihopqa, musique)."""
    demonstrations: Count = 3
    steps: Count = 5
    keep: list[int] = []  # other K whose updates are kept from the same run of SGD
    learning_rate: Positive = 1e-2
    per_benchmark: Count = 60  # support sets per benchmark
    max_tokens: int = Field(default=480, ge=16)
    seed: int = 0


class PredictorSettings(ScheduleSettings):
    """The network that emits an update from a support set, and its training."""

    latent: Count = 64  # width of the MLP's output, from which every head is linear (paper: 64)
    space: Literal["product", "factor"] = "product"
    """Where update and target are compared (equation 9)."""
    denoise: bool = False
    """Train on the average target of the task's other support sets instead of the set's own."""
    batch: Count = 16


class HyperTuningSettings(ScheduleSettings):
    """Training of the predictor through the answer loss; sizes and split are `[predictor]`'s.

    A batch is support sets, each with one other question of its task. The rate is that of a start
    from no update: from the trained predictor it is a tenth, of the mean update ten times as high.
    """


class ExamplesSettings(ScheduleSettings):
    """Training of the step that follows examples, from a prepared file of questions."""

    tasks: int = Field(default=0, ge=0)
    """Contracts in the mixture; 0 draws a new one for every lesson."""
    natural: Share = 0.5  # of lessons, that are the benchmarks as they are
    kept: Share = 0.3  # of lessons, that keep their template: some forms no template describes
    steps: Count = 1000
    learning_rate: Positive = 3e-3


class EvaluationSettings(_Section):
    """What is scored."""

    benchmarks: Names = ["nq", "triviaqa"]
    """Those of the embedded data; the paper's seven in other sources."""
    questions: int = Field(default=0, ge=0)  # questions per benchmark, chosen by hash; 0: all
    whole: list[str] = []  # benchmarks of which all questions are scored, whatever `questions` says
    draws: Count = 1  # support sets per benchmark; each answers its share of the questions
    support: Literal["query", "task"] = "task"
    """A support set per draw (`task`) or a fresh one for every question (`query`)."""
    batch: Count = 8
    max_answer_tokens: Count = 24
    answer_loss: bool = False  # also record the teacher-forced loss of the gold answer
    seed: int = 0


class ServingSettings(_Section):
    """`raggd serve`: where it listens, and what a request may ask for."""

    host: str = Field(default="127.0.0.1", min_length=1)  # empty would be every address
    port: int = Field(default=8000, ge=0, le=65535)  # 0 takes a free port
    supports: Place = ""  # folder of the stored support sets; empty: one in the cache folder
    rows: Count = 8  # most answers written together, in one batch
    queue: Count = 64  # most answers waiting or being written; beyond it, turned away (429)
    updates_mb: Count = 256  # memory for predicted updates; the least recently used are dropped
    instruction: str = ""
    """How to answer, in your words, where a request (`ask`, `Rag`) says nothing; empty: raggd's."""
    origins: list[Annotated[str, AfterValidator(_origin)]] = []
    """Other sites whose pages may ask from a browser (``http://localhost:3000``; ``*``: any).
    None may by default: whoever opened a page would let it read the documents."""
    watch_s: float = Field(default=2.0, ge=0)  # between looks for changed documents; 0 never looks
    timeout_s: Positive = 120.0


class Settings(_Section):
    """Everything a run depends on; stored whole in its record."""

    backbone: BackboneSettings = BackboneSettings()
    data: DataSettings = DataSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    base_training: BaseTrainingSettings = BaseTrainingSettings()
    target: TargetSettings = TargetSettings()
    predictor: PredictorSettings = PredictorSettings()
    prompt_tuning: PromptTuningSettings = PromptTuningSettings()
    hyper_tuning: HyperTuningSettings = HyperTuningSettings()
    examples: ExamplesSettings = ExamplesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    serving: ServingSettings = ServingSettings()


_Settings = TypeVar("_Settings", bound=Settings)


def _section_of(model: type[BaseModel], part: str) -> type[BaseModel]:
    kind = model.model_fields[part].annotation
    inner = get_args(kind)  # a list of sections
    return inner[0] if inner else kind  # type: ignore[return-value]


def _unknown_key(root: type[BaseModel], location: list[str], source: str) -> str:
    model = root
    for part in location[:-1]:
        model = model if part.isdigit() else _section_of(model, part)
    section = f"setting in [{'.'.join(location[:-1])}]" if location[1:] else "section"
    name, sections = location[-1], root.model_fields
    having = [s for s in sections if name in getattr(_section_of(root, s), "model_fields", ())]
    others = ", ".join(f"[{s}]" for s in having if location[1:])
    said = str(unknown_name(f"{section} of {source}", name, list(model.model_fields)))
    return f"{said} '{name}' stands in {others}." if others else said


_WRITTEN = {"list_type": ' (["nq", "popqa"])', "bool_type": " (true or false)"}  # in TOML


def _explained(
    root: type[BaseModel], error: ValidationError, source: str, assigned: Sequence[str]
) -> str:
    # a mistyped key that is required is also missing: the wrong name tells the user more
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    source = "--set" if ".".join(location[:2]) in assigned else source
    if first["type"] == "extra_forbidden":
        return _unknown_key(root, location, source)
    if first["type"] == "missing":
        return f"{source} has no '{'.'.join(location)}', which a study file needs."
    got = repr(first["input"])
    got, shape = got if len(got) <= 100 else f"{got[:90]}...", _WRITTEN.get(first["type"], "")
    return f"setting '{'.'.join(location)}' in {source}: {first['msg']}{shape}, got {got}."


_NO_TOML = (ValueError, RecursionError)
"""Of text that is no TOML or no UTF-8, has a number of thousands of digits, or as many brackets."""


def _refuse_vast(value: Any, source: str) -> None:
    if isinstance(value, int) and value.bit_length() > 63:
        raise RaggdError(f"a number in {source} has more than 64 bits: no setting takes one.")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_vast(inner, source)


def _assign(raw: dict[str, Any], assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) != 2:
        raise RaggdError(f"--set '{assignment}': expected SECTION.NAME=VALUE (retrieval.top_k=5).")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except _NO_TOML:
        value = text.strip()  # a bare word is a string
    section = raw.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise RaggdError(f"'{parts[0]}' must be a section ([{parts[0]}]) to set '{name}' in it.")
    section[parts[1]] = value


Source = Path | str | Mapping[str, Any] | None
"""A TOML file of settings, a dictionary like one, or None for the defaults."""


def read_settings(
    model: type[_Settings], path: Source, assignments: list[str] | None = None
) -> _Settings:
    """Read settings of one kind from a TOML file, or a dictionary like one; None is the defaults.

    `assignments` are ``section.name=value`` strings (the ``--set`` option), applied last.

    Raises:
        RaggdError: the file is missing or not TOML, a key is unknown (the nearest is offered),
            or a value does not fit.
    """
    raw: dict[str, Any] = {}
    source = "--set" if path is None else str(path)
    if isinstance(path, Mapping):
        raw, source = copy.deepcopy(dict(path)), "the settings"
    elif isinstance(path, str | Path):
        try:
            text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin with a mark
            raw = tomllib.loads(text)
        except OSError as error:
            raise RaggdError(f"cannot read settings file {path}: {error.strerror}.") from error
        except _NO_TOML as error:
            raise RaggdError(f"settings file {path} is not valid TOML: {error}.") from error
    elif path is not None:
        raise RaggdError(
            f"settings are a {type(path).__name__}: expected a TOML file or a dictionary of "
            'sections, e.g. {"retrieval": {"top_k": 5}}.'
        )
    for assignment in assignments or []:
        _assign(raw, assignment)
    _refuse_vast(raw, source)
    try:
        return model.model_validate(raw, strict=True)  # neither "5" nor true is a number
    except ValidationError as error:
        assigned = [assignment.partition("=")[0].strip() for assignment in assignments or []]
        raise RaggdError(_explained(model, error, source, assigned)) from error


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    """Return settings with some values of one section replaced."""
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def load_settings(path: Source = None, assignments: list[str] | None = None) -> Settings:
    """Read the settings of a run; arguments as of `read_settings`."""
    return read_settings(Settings, path, assignments)

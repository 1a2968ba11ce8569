"""`raggd ask`, `raggd index`, `raggd serve`: one's own documents and demonstrations."""

from __future__ import annotations

import json
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Source,
    Strict,
    Support,
    Update,
    complain,
    counted,
    opened,
    refuse_skipped,
    show,
    support_from,
)
from raggd.records import RaggdError, require_known

if TYPE_CHECKING:
    from raggd.api import Rag


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    corpus: Corpus = None,
    demonstrations: Demonstrations = None,
    support: Support = None,
    update: Update = None,
    method: Annotated[
        str | None, typer.Option(help="Default: adapted with demonstrations, base without.")
    ] = None,
    guess: Annotated[
        bool, typer.Option("--guess", help="Ask the model even where no passage is found.")
    ] = False,
    strict: Strict = False,
    instruction: Annotated[
        str, typer.Option(help="How to answer, in your words, instead of the built-in ones.")
    ] = "",
    config: Config = None,
    assignments: Assignments = None,
    timings: Annotated[bool, typer.Option("--timings", help="Show where the time went.")] = False,
    as_json: Json = False,
) -> None:
    """Answer one question from your documents, adapted to your demonstrations."""
    with opened(config, assignments, corpus) as rag:
        source = (demonstrations, support, update)
        result = ask_result(rag, question, source, method, guess, strict, instruction)
    if not result["hits"] and rag.parts.settings.retrieval.top_k:
        told = ", so the model was not asked to guess (--guess asks it all the same)"
        if result["answer"] and (guess or not result["refused"]):
            told = ": the answer is the model's own"
        complain(f"raggd: no passage shares a word with the question{told}.")
    lines = [result["answer"], "", f"method: {_how(result, update)}"]
    lines += [f"[{i}] {_name(p)}: {p['text']}" for i, p in enumerate(result["passages"], start=1)]
    lines += [f"{text[0].upper()}{text[1:]}" for text in result["remarks"]]
    if result["passages_cut"]:
        lines.append(f"{counted(result['passages_cut'], 'passage')} cut to fit the context window.")
    if timings:
        lines.append("  ".join(f"{stage} {ms:.0f} ms" for stage, ms in result["timings"].items()))
    show(result, as_json, *lines)


def ask_result(
    rag: Rag,
    question: str,
    source: Source = (None, None, None),
    method: str | None = None,
    guess: bool = False,
    strict: bool = False,
    instruction: str = "",
) -> dict[str, Any]:
    """Answer one question, adapted to what is named; the arguments are those of `ask`."""
    from raggd.data.remarks import DemonstrationWarning
    from raggd.data.shown import unsupported
    from raggd.evaluation.timing import Stopwatch
    from raggd.methods.spec import METHODS
    from raggd.provenance import seconds_since_start

    started, before, watch = time.perf_counter(), seconds_since_start(), Stopwatch()
    if before is not None:
        watch.times["start"] = [before * 1000]
    if not question.strip():
        raise RaggdError("the question is empty: expected at least one word.")
    if method:
        require_known("method", method, METHODS)
    with watch.timed("index"):
        rag.retriever  # noqa: B018
        index = vars(rag.parts).get("index")  # there is none where a retriever was brought
        skipped = index.skipped if index else ()
        if strict:
            refuse_skipped(rag.parts.corpus, skipped)
    with watch.timed("load"):
        rag.parts.backbone  # noqa: B018
    with watch.timed("retrieve"):
        support = support_from(rag, source, method)
    with watch.timed("adapt"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DemonstrationWarning)  # told below, for people and programs
        if source[2]:
            adapted = rag.state(source[2])
        else:
            adapted = rag.adapt(support, method=method, instruction=instruction)
    with watch.timed("answer"):
        answer = rag.answer(question, adapted, guess=guess, instruction=instruction)
    spent = {stage: round(ms, 1) for stage, ms in watch.medians().items()}
    spent["total"] = round((time.perf_counter() - started) * 1000 + spent.get("start", 0.0), 1)
    shown = support.demonstrations if support else ()
    return {
        "question": answer.question,
        "answer": answer.text,
        "hits": answer.hits,  # passages found
        "method": method or (rag.parts.adapting if any(source) else "base"),
        "adapted": adapted.update is not None or adapted.prefix is not None,
        "demonstrations": len(shown),
        "without_evidence": [d.question for d in unsupported(shown)],
        "remarks": rag.remarks(support) if support else [],
        "template": str(adapted.template or ""),  # what the demonstrations settle, in words
        "refused": answer.refused,  # as they refuse
        "named": list(answer.named),  # numbers of the passages that the answer names
        "passages": [asdict(passage) for passage in answer.passages],
        "passages_cut": answer.passages_cut,
        "skipped": [each.told for each in skipped],  # files that are not in the index, and why
        "timings": spent,  # milliseconds; "start": Python and imports, where the system tells it
    }


def _name(passage: dict[str, str]) -> str:
    title, file = passage["title"], passage["source"]
    return f"{title} ({file})" if title and file else title or file or passage["id"]


def _how(result: dict[str, Any], update: Path | None) -> str:
    name, shown = result["method"], counted(result["demonstrations"], "demonstration")
    if update is not None:
        return f"base with the update of {update}"
    if not result["demonstrations"]:
        return f"{name} (as is)"
    return f"{name} (adapted to {shown})" if result["adapted"] else f"{name} ({shown} given)"


def index(
    path: Annotated[str, typer.Argument(metavar="<path>", help="A file or folder of documents.")],
    memory: Annotated[
        str | None, typer.Option(help="Most memory to hold while building. Default: 3GB.")
    ] = None,
    strict: Strict = False,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Index a corpus, or bring its index up to date: only what changed is read."""
    from raggd.retrieval.base import peak_memory

    bound = [] if memory is None else [f"retrieval.memory='{memory}'"]
    started = time.perf_counter()
    with opened(config, [*(assignments or []), *bound]) as rag:
        made = rag.index(path)
    if strict:
        refuse_skipped(Path(path), made.skipped)
    result = {
        "passages": len(made.retriever),
        "fingerprint": made.retriever.fingerprint,
        "folder": str(made.folder),
        "built": made.built,
        "changes": asdict(made.changes),
        "changed": str(made.changes),
        "skipped": [each.told for each in made.skipped],
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory": peak_memory(),
    }
    state = "indexed" if made.built else "already indexed"
    count = counted(len(made.retriever), "passage")
    line = f"{count} {state} in {result['seconds']} s: {made.folder}"
    show(result, as_json, line, *([str(made.changes)] if made.built else []))


def serve(
    corpus: Corpus = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [8000].")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="RAGGD_API_KEY", help="Ask for this key.", show_envvar=True)
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            envvar="RAGGD_API_KEYS",
            help="Ask for one of the keys in this file: a name and a key on each line.",
            show_envvar=True,
        ),
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The address as one JSON object on standard output.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API and a page; every row of a batch may carry its own update."""
    _require_extra()
    from raggd.serving.app import serve as run
    from raggd.serving.gate import is_local, read_keys

    keys = dict(read_keys(api_keys)) if api_keys else {}
    if api_key is not None:
        if not api_key.strip():  # of a variable that is not set: whoever gives one wants one
            raise RaggdError("the API key is empty: give one, or leave --api-key out.")
        keys["key"] = api_key.strip()
    changes = list(assignments or [])
    changes += [] if host is None else [f"serving.host={json.dumps(host)}"]
    changes += [] if port is None else [f"serving.port={port}"]
    with ExitStack() as loading:
        rag = loading.enter_context(opened(config, changes, corpus))
        where = rag.parts.settings.serving.host
        if not keys and not is_local(where):
            complain(
                f"raggd: serving on {where} without a key: everyone who can reach this machine "
                "can use it. Set RAGGD_API_KEY or --api-keys."
            )

        def ready(address: str) -> None:
            loading.close()
            told = f"raggd serves on {address} (the page is there; the API is {address}/v1)"
            show({"url": address}, as_json, told)
            sys.stdout.flush()

        run(rag, keys=keys, ready=ready)


def _require_extra() -> None:
    wanted = ("fastapi", "uvicorn", "prometheus_client")
    if missing := [name for name in wanted if find_spec(name) is None]:
        raise RaggdError(
            f"the server needs {' and '.join(missing)}: install raggd with its extra, `pip install "
            '"raggd[serve]"`.'
        )

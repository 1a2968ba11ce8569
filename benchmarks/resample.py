"""`python -m benchmarks.resample`: a corpus of any size from real passages, to measure growth.

Each generated passage keeps the length of a real one but takes its sentences, and its title, from
anywhere in the corpus. So words, their frequencies and the lengths of passages are real, texts
differ, and a billion words need no download. What it does not have is new words: a real corpus
of that size holds more distinct ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_app
from raggd.cli.shared import Json, progress_bar, show
from raggd.data.documents import read_passages, split_sentences
from raggd.files import replacing
from raggd.records import Passage, RaggdError


def resample(passages: Iterable[Passage], count: int, seed: int = 0) -> Iterator[Passage]:
    """Stream generated passages; the same ones for the same arguments on every machine.

    The real ones are held in memory as sentences.

    Raises:
        RaggdError: `count` is below 1, or there is no sentence to draw from.
    """
    if count < 1:
        raise RaggdError(f"cannot generate {count} passages: give at least 1.")
    sentences: list[str] = []
    sizes: list[int] = []
    titles: list[str] = []
    for passage in passages:
        own = split_sentences(passage.text)
        sentences += own
        sizes.append(len(own))
        titles.append(passage.title)
    if not sentences:
        raise RaggdError("cannot generate passages: the corpus holds no sentence to draw from.")
    draw = random.Random(seed).random
    for number in range(count):
        size = sizes[int(draw() * len(sizes))]
        text = " ".join(sentences[int(draw() * len(sentences))] for _ in range(max(1, size)))
        yield Passage(f"resampled-{number}", text, titles[int(draw() * len(titles))])


def write_resampled(passages: Iterable[Passage], count: int, path: Path, seed: int = 0) -> int:
    """Write generated passages as JSON Lines in FlashRAG's form; return the file's bytes."""
    with replacing(path) as temporary:
        with temporary.open("w", encoding="utf-8") as stream:
            for passage in resample(passages, count, seed):
                entry = {"id": passage.id, "contents": f"{passage.title}\n{passage.text}"}
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return temporary.stat().st_size


app = typer.Typer(add_completion=False)


@app.command()
def main(
    corpus: Annotated[Path, typer.Option(help="A file or folder of documents.")],
    passages: Annotated[int, typer.Option(min=1, help="Passages to generate.")],
    out: Annotated[Path, typer.Option(help="JSON Lines file to write.")],
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a large corpus of real sentences put together anew."""
    with progress_bar() as bar:
        bar(f"putting sentences together to {passages} passages", 0, None)
        size = write_resampled(read_passages(corpus), passages, out, seed)
    result = {"passages": passages, "bytes": size, "seed": seed, "file": str(out)}
    show(result, as_json, f"{passages} passages, {size / 1e6:.1f} MB: {out}")


if __name__ == "__main__":
    run_app(app)

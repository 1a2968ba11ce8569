"""llama.cpp itself, for tests: a tiny transformers model as GGUF, and its logits with a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

Scores = NDArray[np.float32]


def _reorder(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    # what llama.cpp's converter does to q and k of Llama models, written as it stands there
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def write_model(path: Path, model: Any, architecture: str, vocabulary: int) -> Path:
    """Write a small decoder as GGUF in float32, without a tokenizer."""
    config = model.config
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{i}>" for i in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.detach().float().numpy()
        kind = next((k for k in heads if f".{k}." in name), None)
        if architecture == "llama" and kind:
            values = _reorder(values, heads[kind])
        stem, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Llama:
    """A GGUF model in llama.cpp, with adapters that each request may switch on."""

    def __init__(self, path: Path, vocabulary: int, *adapters: Path) -> None:
        engine = pytest.importorskip("xllamacpp")
        params = engine.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.cache_prompt = 256, 1, False, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.lora_adapters = [engine.CommonAdapterLoraInfo(str(p), 0.0) for p in adapters]
        params.lora_init_without_apply, params.verbosity = True, 0
        self.size, self.vocabulary = len(adapters), vocabulary
        self.server = engine.Server(params)

    def log_probabilities(self, tokens: Sequence[int], adapter: int = -1) -> Scores:
        """Log-probabilities of the next token, (vocabulary,)."""
        lora = [{"id": i, "scale": float(i == adapter)} for i in range(self.size)]
        request = {
            "prompt": list(tokens),
            "n_predict": 1,
            "logprobs": self.vocabulary,
            "temperature": 0.0,
            "cache_prompt": False,
            "lora": lora,
        }
        found = self.server.handle_completions(request)
        first = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = np.full(self.vocabulary, -np.inf, dtype=np.float32)
        for entry in first:
            values[entry["id"]] = entry["logprob"]
        return values

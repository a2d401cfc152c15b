"""Tiny language models of several families, with random weights, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY, LENGTH = 64, 12
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
_GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _LLAMA,
    "Qwen2": _LLAMA | {"tie_word_embeddings": True},
    "Mistral": _LLAMA | {"sliding_window": 4},
    # Its layers attend to windows and to everything in turn, each kind with a mask and rotations of its own.
    "Gemma3Text": _LLAMA
    | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"num_hidden_layers": 4},
    "GPT2": _GPT2,
    "GPTNeo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32}
    | {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "OPT": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    | {"max_position_embeddings": 32, "word_embed_proj_dim": 8},
    "Bloom": {"hidden_size": 16, "n_layer": 3, "n_head": 2},
    "GPTNeoX": _LLAMA,
    "Falcon": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
}


def make_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A causal language model in evaluation mode; all its tensors are random, also norms and biases."""
    import transformers

    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**tokens | FAMILIES[family] | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model and return its folder."""
    model.save_pretrained(folder, **options)
    return folder


def load(folder: Path, **options: Any) -> Any:
    """Load a causal language model."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


def random_ids(samples: int) -> Tensor:
    """Token ids ``[samples, LENGTH]``."""
    return torch.randint(3, VOCABULARY, (samples, LENGTH))

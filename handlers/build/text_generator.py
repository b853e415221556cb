"""Build text_generator.mar: ``python handlers/build/text_generator.py [--model FOLDER]``.

FOLDER is what transformers' ``save_pretrained`` wrote for a causal language model and its tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from archive import Preset, main


def tiny(folder: Path, **changes: float | None) -> None:
    """A Qwen2 with 2 layers of 64 and a tokenizer of single bytes; the changes go into its config."""
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    _qwen2(folder, **{**size, **changes})


def _qwen25(hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Preset:
    """A shape of Qwen2.5 with random weights, to measure with; the numbers are those of its published config.json."""
    size = {
        "vocab_size": 151_936,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        **more,
    }
    return lambda folder: _qwen2(folder, **size)


def _qwen2(folder: Path, *, dtype: torch.dtype = torch.float32, **size: Any) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = _tokenizer(folder)
    torch.manual_seed(0)
    end = words - 1
    known = {"vocab_size": words, "tie_word_embeddings": True, "eos_token_id": end, "pad_token_id": end}
    before = torch.get_default_dtype()
    # Made in the dtype in which it is saved: 7 billion weights in fp32 would take 30 GB of memory and of disk.
    torch.set_default_dtype(dtype)
    try:
        Qwen2ForCausalLM(Qwen2Config(**{**known, **size})).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)


def _tokenizer(folder: Path) -> int:
    """Write the tokenizer; how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    return len(tokens)


#: The largest saves its output layer as well, as its config says; the others share it with the embedding.
PRESETS: dict[str, Preset] = {
    "tiny": tiny,
    "qwen2.5-0.5b": _qwen25(896, 4_864, 24, 14, 2),
    "qwen2.5-1.5b": _qwen25(1_536, 8_960, 28, 12, 2, dtype=torch.float16),
    "qwen2.5-3b": _qwen25(2_048, 11_008, 36, 16, 2, dtype=torch.float16),
    "qwen2.5-7b": _qwen25(3_584, 18_944, 28, 28, 4, vocab_size=152_064, tie_word_embeddings=False, dtype=torch.float16),
}


if __name__ == "__main__":
    main("text_generator", PRESETS)

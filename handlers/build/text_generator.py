"""Build text_generator.mar: ``python handlers/build/text_generator.py [--model FOLDER]``.

FOLDER is what transformers' ``save_pretrained`` wrote for a causal language model and its tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from archive import main


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


def qwen25_05b(folder: Path) -> None:
    """The architecture of Qwen2.5-0.5B with random weights, to measure with."""
    _qwen2(
        folder,
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
    )


def _qwen2(folder: Path, **size: float | None) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = _tokenizer(folder)
    torch.manual_seed(0)
    end = words - 1
    config = Qwen2Config(**{"vocab_size": words, **size}, tie_word_embeddings=True, eos_token_id=end, pad_token_id=end)
    Qwen2ForCausalLM(config).save_pretrained(folder)


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


if __name__ == "__main__":
    main("text_generator", {"tiny": tiny, "qwen2.5-0.5b": qwen25_05b})

"""Attention for encoders from transformers that pays for a mask only where something is padded.

transformers builds a 4-D mask whenever it is captured into a CUDA graph, even where none is given, and with one
``scaled_dot_product_attention`` leaves its flash kernel: measured on an H200, BERT-base at batch 8 x 128 in fp16 ran
4,485 sequences/s with that mask and 9,293 without. An attention that is registered without a mask function gets none
(https://huggingface.co/docs/transformers/attention_interface), so this one takes it from :func:`padding`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: The name to pass as ``attn_implementation``.
PADDING_ATTENTION = "ts_mps_padding"

_mask: torch.Tensor | None = None


def register() -> str:
    """Make the attention known to transformers.

    Returns:
        Its name, for ``from_pretrained(..., attn_implementation=...)``.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PADDING_ATTENTION, _attention)
    return PADDING_ATTENTION


@contextmanager
def padding(mask: torch.Tensor | None) -> Iterator[None]:
    """Use a mask in every attention inside; a worker runs one model at a time.

    Args:
        mask: bool [rows, length], true for tokens; None where nothing is padded.
    """
    global _mask
    _mask = None if mask is None else mask[:, None, None, :]
    try:
        yield
    finally:
        _mask = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: [rows, heads, length, size] each, to [rows, length, heads, size]."""
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    grouped = key.shape[1] != query.shape[1]
    # Padding is on the right, where no token of a causal model looks.
    mask = None if causal else _mask
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, is_causal=causal, **({"enable_gqa": True} if grouped else {})
    )
    return out.transpose(1, 2).contiguous(), None

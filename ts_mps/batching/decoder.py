"""A causal language model from transformers over key-value buffers of our own.

transformers' cache classes differ between its versions, and grow or wrap in ways that a CUDA graph cannot follow. Here
the attention itself writes keys and values into buffers that never move: an attention function that is registered
without a mask function gets no mask (https://huggingface.co/docs/transformers/attention_interface), and is handed its
buffers, slots and mask by :func:`_attending`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ts_mps.batching.errors import ConfigError
from ts_mps.batching.fusing import fuse

#: The name under which transformers knows the attention.
STATIC_ATTENTION = "ts_mps_static"

#: cuDNN's attention makes a plan for each shape and is picky about strides and masks; these three are not.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

#: What some models add to attention, by the name under which transformers passes it on, and which is not computed here.
_UNKNOWN = ("softcap", "s_aux", "head_mask")

#: Rotary frequencies that follow the longest text of a batch: rows would influence one another, and no graph can do it.
_MOVING_ROPE = ("dynamic", "longrope")

#: By what share of the largest logit two ways to compute them in float32 may differ.
_SAME = 1e-4

#: Tokens that a model is tried with when it is loaded: enough for its positions to matter.
_TRIAL = 24


@dataclass(frozen=True)
class Attention:
    """What the attention of every layer works on in one call of the model.

    Args:
        layers: For each layer its buffers of keys and values, [rows, kv_heads, slots, head_size].
        mask: What is added to the scores: [rows, 1, queries, keys], 0 or -inf; None: causal, nothing is padded.
        slot: None for a prefill, which writes the first slots and attends over its own keys. Else int64 [1]: the
            slot of the only token, which attends over the buffer's first slots, as many as the mask has keys.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None
    slot: torch.Tensor | None = None


_current: Attention | None = None


@contextmanager
def _attending(attention: Attention) -> Iterator[None]:
    """Use buffers and mask in every attention inside; a worker runs one model at a time."""
    global _current
    _current = attention
    try:
        with sdpa_kernel(_KERNELS):
            yield
    finally:
        _current = None


def _static_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query [rows, heads, queries, size], to [rows, queries, heads, size].

    Raises:
        ConfigError: The model's attention is of a kind that is not computed here.
    """
    if _current is None:
        raise RuntimeError("the model was called outside of its Decoder")
    keys, values = _current.layers[module.layer_idx]
    _refuse(more, sliding_window, keys.shape[2])
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    attend = torch.nn.functional.scaled_dot_product_attention
    if _current.slot is None:
        keys[:, :, :length].copy_(key)
        values[:, :, :length].copy_(value)
        if groups > 1:  # the kernels that take a mask want as many heads of each
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mask = _current.mask
        out = attend(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)
    else:
        assert _current.mask is not None
        keys.index_copy_(2, _current.slot, key)
        values.index_copy_(2, _current.slot, value)
        span = _current.mask.shape[-1]
        # The query heads of one key head become its queries: the buffer is read once and never copied.
        folded = query.reshape(rows, key.shape[1], groups, size)
        out = attend(folded, keys[:, :, :span], values[:, :, :span], attn_mask=_current.mask, scale=scaling)
        out = out.reshape(rows, heads, 1, size)
    return out.transpose(1, 2).contiguous(), None


def _refuse(more: dict[str, Any], sliding_window: int | None, slots: int) -> None:
    found = next((name for name in _UNKNOWN if more.get(name) is not None), None)
    if found is not None:
        raise ConfigError(f"The model's attention uses {found}, which is not served here.")
    if sliding_window is not None and sliding_window < slots:
        raise ConfigError(
            f"The model attends over {sliding_window} tokens at most, and prompt and answer may have {slots} here."
        )


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """A causal language model that continues rows of tokens.

    Args:
        model: From ``AutoModelForCausalLM``, loaded with STATIC_ATTENTION.

    Attributes:
        layers: How many layers there are.
        kv_heads: Heads of keys and values in each.
        head_size: Numbers in each head.
        vocabulary: Tokens that the model knows.
        outputs: Logits that it gives; some models pad them.
        positions: The longest prompt and answer together; None if the model does not say.

    Raises:
        ConfigError: Its position embedding is of a kind that is not served here.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        # One embedding for all layers, or one for each kind of layer.
        for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            if one.get("rope_type") in _MOVING_ROPE:
                raise ConfigError(f"The model's rotary embedding is {one['rope_type']}, which is not served here.")
        self.layers: int = config.num_hidden_layers
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        self.outputs: int = model.get_output_embeddings().weight.shape[0]
        self.positions: int | None = getattr(config, "max_position_embeddings", None)
        known = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Decoder:
        """Move or convert, but leave float32 buffers float32: rotary frequencies in bfloat16 lose the position."""
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype is torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if name in exact and buffer.dtype is not torch.float32:
                owner, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(owner), attribute, exact[name].to(buffer.device))
        return self

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """The logits after the last token.

        Args:
            token_ids: int64 [rows, tokens].
            positions: int64 [rows, tokens], each token's place in its text.
            attention: Buffers and mask.

        Returns:
            [rows, outputs].
        """
        with _attending(attention):
            found = self.model(input_ids=token_ids, position_ids=positions, use_cache=False, **self._last_only)
        logits: torch.Tensor = found.logits[:, -1]
        return logits


def load_decoder(folder: Path) -> Decoder:
    """Load a transformers folder on the CPU, in float32; nothing is looked up on the network.

    Raises:
        ConfigError: It cannot be loaded, or its attention cannot be replaced.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.AttentionInterface.register(STATIC_ATTENTION, _static_attention)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=STATIC_ATTENTION, local_files_only=True, dtype=torch.float32
        )
        decoder = Decoder(model.eval())
        wanted, in_turn = _trial(decoder)
        if not _close(wanted, in_turn):
            raise ConfigError(
                f"{type(model).__name__} keeps more than keys and values between steps; it is not served here."
            )
        fuse(model)
        if not all(_close(wanted, found) for found in _trial(decoder)):
            raise ConfigError(f"{type(model).__name__} computes in a way that its layers do not show; not served here.")
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"The archive's transformers model cannot be loaded as a text generator: {error}") from error
    return decoder


def _trial(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits after some tokens at once, and after the same ones one by one.

    They differ where a model's layers keep other state, as recurrent ones do, or do not ask for this attention.
    """
    count = min(_TRIAL, decoder.positions or _TRIAL)
    cache = Cache(decoder, count, torch.device("cpu"), torch.float32)
    layers = pairs(cache.view(1, count))
    token_ids = (torch.arange(count) * 7919 % decoder.vocabulary)[None]
    positions = torch.arange(count)[None]
    with torch.inference_mode():
        at_once = decoder(token_ids, positions, Attention(layers, None))
        cache.view(1, count).zero_()
        decoder(token_ids[:, :1], positions[:, :1], Attention(layers, None))
        for place in range(1, count):
            seen = torch.full((1, 1, 1, count), float("-inf"))
            seen[..., : place + 1] = 0
            step = Attention(layers, seen, torch.tensor([place]))
            in_turn = decoder(token_ids[:, place : place + 1], positions[:, place : place + 1], step)
        return at_once, in_turn


def _close(logits: torch.Tensor, others: torch.Tensor) -> bool:
    return bool((logits - others).abs().max() <= _SAME * logits.abs().max())


class Cache:
    """Keys and values of all layers: one block for the largest shape, viewed for the smaller ones.

    Args:
        decoder: Whose.
        tokens: Slots of all rows together, in the largest shape.
        device: Where.
        dtype: What the model computes in.
    """

    def __init__(self, decoder: Decoder, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self._heads, self._size = decoder.kv_heads, decoder.head_size
        width = tokens * self._heads * self._size
        self._block = torch.zeros(decoder.layers, 2, width, device=device, dtype=dtype)

    def view(self, rows: int, slots: int) -> torch.Tensor:
        """[layers, 2, rows, kv_heads, slots, head_size], sharing the block's memory."""
        width = rows * self._heads * slots * self._size
        return self._block[:, :, :width].unflatten(2, (rows, self._heads, slots, self._size))


def pairs(view: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A cache's view by layers, for :class:`Attention`."""
    return [(layer[0], layer[1]) for layer in view.unbind(0)]

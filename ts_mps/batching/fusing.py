"""Fewer and larger kernels for the decoders of transformers, with the same results.

One decode step of a small model is hundreds of kernels of a few microseconds each, and what takes the time is their
number. Here projections of the same input become one product, norms one kernel, and rotary embeddings four kernels in
place of ten. Every layer of Llama's family (Qwen2, Mistral, ...) has this form; what has another one is left as it is,
and whoever calls :func:`fuse` compares the results.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

#: Linear layers that are called one after the other with the same input, by their names in transformers.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

#: Marks what was made here, among what transformers made.
_MARK = "ts_mps_fused"


class _Joined:
    """The results of one product, until all of its parts have been taken."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.given: torch.Tensor | None = None
        self.results: Sequence[torch.Tensor] = ()


class _First(nn.Module):  # type: ignore[misc]
    """Computes the product of all parts and returns its own."""

    def __init__(self, layers: Sequence[nn.Linear], joined: _Joined) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else nn.Parameter(torch.cat(biases), requires_grad=False)
        self._joined = joined

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        joined = self._joined
        joined.given = given
        joined.results = nn.functional.linear(given, self.weight, self.bias).split(joined.sizes, -1)
        return joined.results[0]


class _Next(nn.Module):  # type: ignore[misc]
    """Returns a later part of the product."""

    def __init__(self, part: int, last: bool, joined: _Joined) -> None:
        super().__init__()
        self._part, self._last, self._joined = part, last, joined

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        joined = self._joined
        if given is not joined.given:
            raise RuntimeError("projections that were joined were called with different inputs")
        result = joined.results[self._part]
        if self._last:
            joined.given, joined.results = None, ()
        return result


class _Rotary(nn.Module):  # type: ignore[misc]
    """A model's rotary embedding, with the sign of the rotated half already in its sine."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.rotary(*arguments, **named)
        return cos, _signed(sin)


def _signed(sin: torch.Tensor) -> torch.Tensor:
    first, second = sin.chunk(2, -1)
    signed = torch.cat([-first, second], -1)
    setattr(signed, _MARK, True)
    return signed


def _rotating(original: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' ``apply_rotary_pos_emb``, which leaves the sines of :class:`_Rotary` to :func:`_rotate`."""

    @functools.wraps(original)
    def apply(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any
    ) -> Any:
        rotate = _rotate if hasattr(sin, _MARK) else original
        return rotate(query, key, cos, sin, *more, **named)

    setattr(apply, _MARK, True)
    return apply


def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query and key together: cut, sign and product of the halves are one roll and one product here."""
    both = torch.cat([query, key], 1)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turned = torch.addcmul(both * cos, both.roll(both.shape[-1] // 2, -1), sin)
    return turned[:, : query.shape[1]], turned[:, query.shape[1] :]


def fuse(model: nn.Module) -> None:
    """Fuse a model from ``AutoModelForCausalLM``, in place, on the CPU.

    It also wraps the function ``apply_rotary_pos_emb`` of the model's module in transformers; for other models in this
    process it does what it did.
    """
    for owner in list(model.modules()):
        for names in _TOGETHER:
            layers = [getattr(owner, name, None) for name in names]
            if all(type(layer) is nn.Linear for layer in layers):
                _join(owner, names, layers)
    _fuse_norms(model)
    _fuse_rotary(model)


def _join(owner: nn.Module, names: Sequence[str], layers: Sequence[nn.Linear]) -> None:
    first = layers[0]
    if any(one.in_features != first.in_features or (one.bias is None) != (first.bias is None) for one in layers):
        return
    joined = _Joined(layers)
    setattr(owner, names[0], _First(layers, joined))
    for part, name in enumerate(names[1:], 1):
        setattr(owner, name, _Next(part, part == len(names) - 1, joined))


def _fuse_norms(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or weight is None or not isinstance(epsilon, float):
            continue
        fused = nn.RMSNorm(weight.shape, eps=epsilon)
        fused.weight = weight
        sample = torch.linspace(-2, 2, weight.numel()).view(weight.shape)
        with torch.inference_mode():
            same = torch.allclose(module(sample), fused(sample), rtol=1e-5, atol=1e-6)
        if same:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, fused)


def _rotates_alike(model: nn.Module, rotary: nn.Module, apply: Callable[..., Any]) -> bool:
    """Whether a model turns halves of the whole head: some interleave instead, and some turn a part of it."""
    config: Any = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    made = torch.Generator().manual_seed(0)
    query = torch.randn(1, heads, 64, size, generator=made)
    key = torch.randn(1, getattr(config, "num_key_value_heads", None) or heads, 64, size, generator=made)
    try:
        with torch.inference_mode():
            cos, sin = rotary(query, torch.arange(64)[None])
            pairs = zip(apply(query, key, cos, sin), _rotate(query, key, cos, _signed(sin)), strict=True)
            return all(torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5) for theirs, ours in pairs)
    except (RuntimeError, TypeError, ValueError):
        return False


def _fuse_rotary(model: nn.Module) -> None:
    inner: Any = getattr(model, "model", None)
    rotary = getattr(inner, "rotary_emb", None)
    source: Any = sys.modules[type(model).__module__]
    apply = getattr(source, "apply_rotary_pos_emb", None)
    if isinstance(rotary, nn.Module) and apply is not None and _rotates_alike(model, rotary, apply):
        inner.rotary_emb = _Rotary(rotary)
        if not hasattr(apply, _MARK):
            source.apply_rotary_pos_emb = _rotating(apply)

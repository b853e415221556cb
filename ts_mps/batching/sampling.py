"""How a text generator chooses tokens: what a request may ask for, and the choice itself on the device."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, ValidationError

from ts_mps.batching.errors import RequestError
from ts_mps.batching.instances import Array
from ts_mps.batching.options import Strict

#: Below this a temperature only makes numbers overflow; 0 asks for the most probable token outright.
_COOLEST = 0.01

#: Seeds that a client did not give: every JSON reader holds them exactly.
_SEED_BITS = 53


def _greedy_or_warm(value: float) -> float:
    if 0 < value < _COOLEST:
        raise ValueError(f"must be 0, or at least {_COOLEST}")
    return value


_StopText = Annotated[StrictStr, Field(min_length=1, max_length=256)]


@dataclass(frozen=True)
class Wish:
    """How one instance is to be continued.

    Args:
        max_tokens: Most tokens.
        temperature: What logits are divided by; 0 takes the most probable token.
        top_k: Only that many of the most probable tokens are drawn from; 0: all.
        top_p: Only the fewest tokens that together have this probability are drawn from.
        seed: What the draws are made of.
        stop: Texts that end the answer, which is cut before them.
        stop_ids: Tokens that end the answer and are no part of it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0

    def uniforms(self, count: int) -> Array:
        """The random numbers of the first ``count`` steps: float32 in [0, 1), always the same for a seed."""
        return np.random.Generator(np.random.Philox(self.seed)).random(count, dtype=np.float32)


class Sampling(Strict):
    """What a request may ask for; see :class:`Wish`. What it leaves out is the server's default."""

    max_tokens: Annotated[StrictInt, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, strict=True), AfterValidator(_greedy_or_warm)] = 0.0
    top_k: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    stop: _StopText | Annotated[list[_StopText], Field(max_length=16)] = []  # noqa: RUF012  # pydantic copies it
    stop_token_ids: Annotated[list[StrictInt], Field(max_length=64)] = []  # noqa: RUF012
    ignore_eos: StrictBool = False

    @staticmethod
    def read(given: Mapping[str, Any]) -> Sampling:
        """Validate what a request gave.

        Raises:
            RequestError: Something is unknown or has a wrong value; everything that is wrong is named.
        """
        try:
            return Sampling.model_validate(given)
        except ValidationError as error:
            raise RequestError("; ".join(dict.fromkeys(map(_sentence, error.errors()))) + ".") from error

    def wish(self, default_tokens: int, most_tokens: int, end_ids: frozenset[int]) -> Wish:
        """Complete it with the server's defaults.

        Args:
            default_tokens: ``max_tokens`` where none was given.
            most_tokens: The most that may be asked for.
            end_ids: The model's own tokens that end a text.

        Raises:
            RequestError: More tokens are asked for than are served.
        """
        tokens = default_tokens if self.max_tokens is None else self.max_tokens
        if tokens > most_tokens:
            raise RequestError(f"max_tokens: at most {most_tokens} tokens are generated here, got {tokens}.")
        seed = self.seed
        if seed is None:
            seed = secrets.randbits(_SEED_BITS) if self.temperature > 0 else 0
        return Wish(
            tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            seed,
            (self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else end_ids),
        )


def _sentence(error: Mapping[str, Any]) -> str:
    # A place in a union also names the member that was tried, which tells a client nothing.
    place = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such parameter; there are {', '.join(Sampling.model_fields)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}"


def write_controls(wishes: Sequence[Wish], arrays: Mapping[str, Array], *, sampled: bool) -> None:
    """Write what :func:`draw` reads for each row; rows beyond the wishes take the most probable token.

    Args:
        wishes: One for each row that has an instance.
        arrays: ``temperature`` float32, ``top_k`` int64, ``top_p`` float32, each [rows], and ``uniforms`` float32
            [rows, steps].
        sampled: Whether any of them is drawn at random; else nothing is read.
    """
    if not sampled:
        return
    count = len(wishes)
    arrays["temperature"][:count] = [wish.temperature for wish in wishes]
    arrays["temperature"][count:] = 0
    arrays["top_k"][:count] = [wish.top_k for wish in wishes]
    arrays["top_p"][:count] = [wish.top_p for wish in wishes]
    for row, wish in enumerate(wishes):
        if wish.sampled:
            arrays["uniforms"][row] = wish.uniforms(arrays["uniforms"].shape[1])


def most_probable(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token of each row.

    Args:
        logits: [rows, vocabulary].

    Returns:
        int64 [rows]; bool [rows], whether the row's logits are finite at their top, without which no token means
        anything.
    """
    best, token = logits.max(dim=-1)
    return token, torch.isfinite(best)


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """One token for each row, drawn by the inverse of the cumulative distribution: no random numbers are made here.

    First top_k, then top_p of what is left, as transformers does. Rows do not influence one another.

    Args:
        logits: [rows, vocabulary].
        temperature: float32 [rows]; rows of temperature 0 get a token that means nothing.
        top_k: int64 [rows]; 0 for all tokens.
        top_p: float32 [rows].
        uniform: float32 [rows], in [0, 1).

    Returns:
        int64 [rows].
    """
    count = logits.shape[-1]
    # Stable, so that equal logits keep their order in a batch of any size.
    ordered, tokens = torch.sort(logits.float(), dim=-1, descending=True, stable=True)
    scaled = (ordered - ordered[:, :1]) / temperature.clamp_min(_COOLEST)[:, None]
    rank = torch.arange(count, device=logits.device)
    limit = top_k.masked_fill(top_k <= 0, count).clamp_max(count)
    share = torch.softmax(scaled.masked_fill(rank >= limit[:, None], float("-inf")), dim=-1)
    # In float64 the order in which a device adds up, which may depend on the batch, does not move a draw.
    reached = share.double().cumsum(-1)
    # A token is kept if those before it have not reached top_p; the first one always is.
    kept = ((reached - share < top_p[:, None].double()).sum(-1).clamp_min(1)).minimum(limit)[:, None]
    total = reached.gather(1, kept - 1)
    index = torch.searchsorted(reached, uniform[:, None].double() * total, right=True).minimum(kept - 1)
    return tokens.gather(1, index).squeeze(1)

"""Whether two handlers answer the same: a ratio of speeds means nothing otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Scores of fp16 models whose kernels sum in another order differ by less, ...
_CLOSE = 0.005
#: ... and by less than this share of what the inputs make of them, or the answer to another input would do as well.
_SHARE = 0.1
#: Greedy decoding of random weights goes apart for good at the first near-tie, so equal tokens are only half the story.
_FIRST_TOKENS = 0.9
#: A decode step that is wrong leaves nothing but the first tokens and what is equal by chance.
_TOKENS = 0.5
_LABELS = 0.9


@dataclass(frozen=True)
class Agreement:
    """How alike the answers to the same bodies are.

    Args:
        fine: Whether they are alike enough.
        text: What was compared, in a sentence.
    """

    fine: bool
    text: str


def compare(ours: Sequence[bytes], naive: Sequence[bytes], labels: Mapping[int, str]) -> Agreement:
    """Compare answers to the same bodies.

    Args:
        ours: Bodies of our handler's answers.
        naive: Bodies of the naive handler's.
        labels: The model's names of labels, which our handlers answer instead of numbers.
    """
    pairs = [(_one(left), _one(right)) for left, right in zip(ours, naive, strict=True)]
    if "token_ids" in pairs[0][1]:
        return _tokens(pairs)
    if "scores" in pairs[0][1]:
        return _scores(pairs)
    same = [_named(left["label"], labels) == _named(right["label"], labels) for left, right in pairs]
    worst = _worst((left["score"], right["score"]) for left, right in pairs)
    share = sum(same) / len(same)
    spread = _spread([right["score"] for _, right in pairs])
    if not math.isfinite(worst + spread):
        return Agreement(False, "there are scores that are no numbers")
    text = f"{share:.0%} of {len(pairs)} labels are equal, "
    text += f"scores differ by at most {worst:.5f} and spread over {spread:.5f}"
    return Agreement(share >= _LABELS and worst <= min(_CLOSE, _SHARE * spread), text)


def _tokens(pairs: Sequence[tuple[Any, Any]]) -> Agreement:
    rows = [(left["token_ids"], right["token_ids"]) for left, right in pairs]
    if any(len(left) != len(right) for left, right in rows):
        return Agreement(False, f"numbers of tokens differ: {sorted({(len(a), len(b)) for a, b in rows})}")
    first = sum(left[0] == right[0] for left, right in rows) / len(rows)
    equal = sum(a == b for left, right in rows for a, b in zip(left, right, strict=True))
    share = equal / sum(len(left) for left, _ in rows)
    different = len({tuple(right) for _, right in rows})
    text = f"{share:.1%} of tokens are equal, {first:.1%} of first tokens, "
    text += f"{different} of {len(rows)} answers are different"
    return Agreement(first >= _FIRST_TOKENS and share >= _TOKENS and different > 1, text)


def _scores(pairs: Sequence[tuple[Any, Any]]) -> Agreement:
    rows = [(left["scores"], right["scores"]) for left, right in pairs]
    if any(len(left) != len(right) for left, right in rows):
        return Agreement(False, "numbers of scores differ")
    worst = _worst(both for left, right in rows for both in zip(left, right, strict=True))
    scores = [score for _, right in rows for score in right]
    spread = _spread(scores)
    if not math.isfinite(worst + spread):
        return Agreement(False, "there are scores that are no numbers")
    text = f"{len(scores)} scores differ by at most {worst:.6f} and spread over {spread:.5f}"
    return Agreement(worst <= min(_CLOSE, _SHARE * spread), text)


def _worst(pairs: Iterable[tuple[float, float]]) -> float:
    """The largest difference; NaN if there is any, which max() would lose."""
    differences = [abs(left - right) for left, right in pairs]
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


def _spread(scores: Sequence[float]) -> float:
    """How much the inputs matter at all, beside which a difference has to be seen."""
    return max(scores) - min(scores)


def _one(body: bytes) -> Any:
    """The answer; the only one of a list, as tensors are answered by lists."""
    answer = json.loads(body)
    return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer


def _named(label: int | str, labels: Mapping[int, str]) -> str:
    return labels.get(label, str(label)) if isinstance(label, int) else label

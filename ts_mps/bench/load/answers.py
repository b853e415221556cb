"""Whether two answers say the same: the same model gives other last digits in a batch of another size."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

#: Scores of fp16 models whose kernels sum in another order differ by less, ...
CLOSE = 0.005
#: ... and by less than this part of what the inputs make of them, or the answer to another input would do as well.
SHARE = 0.1
_NPY = b"\x93NUMPY"


class Opaque(Exception):
    """An answer that is neither JSON nor .npy: only its bytes can be compared."""


def read(answer: bytes) -> Any:
    """JSON as Python's values, a .npy file as an array.

    Raises:
        Opaque: It is neither.
    """
    try:
        return np.load(io.BytesIO(answer), allow_pickle=False) if answer.startswith(_NPY) else orjson.loads(answer)
    except (ValueError, EOFError) as error:
        raise Opaque(str(error)) from error


def tolerance(values: list[Any]) -> float:
    """How far apart numbers may be that say the same, given the answers to all payloads.

    Args:
        values: Answers as :func:`read` gives them.
    """
    numbers = [number for value in values for number in _fractions(value) if math.isfinite(number)]
    spread = max(numbers) - min(numbers) if numbers else 0.0
    # No spread: every payload is answered alike, and no tolerance could tell them apart.
    return min(CLOSE, SHARE * spread) if spread else CLOSE


def _fractions(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            yield from (float(number) for number in value.ravel())
    elif isinstance(value, list):
        for one in value:
            yield from _fractions(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _fractions(one)


def difference(answer: Any, reference: Any, close: float) -> str:
    """What an answer says otherwise than its reference; empty if they say the same.

    Numbers with a fraction may differ by ``close``, or by that part of themselves where they are large. Two things
    hang on near-ties that another order of summing decides otherwise, and are judged by what is left: of ``token_ids``
    their number and the first one must be equal (after a near-tie greedy decoding goes another way), and a ``label``
    may be another one if its ``score`` is as close as scores have to be. Everything else must be equal.

    Args:
        answer: As :func:`read` gives it.
        reference: Likewise.
        close: Of :func:`tolerance`.
    """
    if isinstance(reference, np.ndarray) or isinstance(answer, np.ndarray):
        return _arrays(answer, reference, close)
    if isinstance(reference, dict) and isinstance(answer, dict):
        return _objects(answer, reference, close)
    if isinstance(reference, list) and isinstance(answer, list):
        return _lists(answer, reference, close)
    if isinstance(reference, float) and isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return "" if _near(answer, reference, close) else f"{answer} instead of {reference}"
    if type(answer) is type(reference) and answer == reference:
        return ""
    return f"{str(answer)[:80]!r} instead of {str(reference)[:80]!r}"


def _near(number: float, other: float, close: float) -> bool:
    # Not finite is never near: NaN would pass a comparison that is written the other way round.
    return abs(number - other) <= close * max(1.0, abs(other))


def _arrays(answer: Any, reference: Any, close: float) -> str:
    if not (isinstance(answer, np.ndarray) and isinstance(reference, np.ndarray)):
        return f"{type(answer).__name__} instead of {type(reference).__name__}"
    if answer.shape != reference.shape or answer.dtype != reference.dtype:
        return f"an array {answer.dtype}{answer.shape} instead of {reference.dtype}{reference.shape}"
    if reference.dtype.kind != "f":
        return "" if np.array_equal(answer, reference) else "other values in the array"
    wide = reference.astype(np.float64)
    apart = np.abs(answer.astype(np.float64) - wide)
    return "" if bool((apart <= close * np.maximum(1.0, np.abs(wide))).all()) else f"an array that is {apart.max()} off"


def _objects(answer: dict[str, Any], reference: dict[str, Any], close: float) -> str:
    if answer.keys() != reference.keys():
        return f"the keys {sorted(answer)} instead of {sorted(reference)}"
    keys = set(reference)
    if "token_ids" in keys and answer["token_ids"] != reference["token_ids"]:
        ours, theirs = answer["token_ids"], reference["token_ids"]
        alike = isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) and bool(ours)
        if not alike or ours[0] != theirs[0]:
            return f"the tokens {str(ours)[:80]} instead of {str(theirs)[:80]}"
        keys -= {"token_ids", "text"}
    elif keys >= {"label", "score"}:
        keys -= {"label"}
    for key in sorted(keys):
        found = difference(answer[key], reference[key], close)
        if found:
            return f"{key}: {found}"
    return ""


def _lists(answer: list[Any], reference: list[Any], close: float) -> str:
    if len(answer) != len(reference):
        return f"{len(answer)} values instead of {len(reference)}"
    if reference and type(reference[0]) is float and type(answer[0]) is float:
        # Thousands of scores in one answer: too many for a loop in Python. Anything else in them falls through.
        try:
            ours, theirs = np.array(answer, dtype=np.float64), np.array(reference, dtype=np.float64)
        except (TypeError, ValueError):
            pass
        else:
            return _arrays(ours, theirs, close)
    for place, (one, other) in enumerate(zip(answer, reference, strict=True)):
        found = difference(one, other, close)
        if found:
            return f"value {place}: {found}"
    return ""

"""Limits for texts, before they are tokenised: a tokenizer takes a microsecond and 200 bytes for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ts_mps.batching.errors import RequestError

#: A token stands for a few characters; what lies beyond this many for each token of the longest text is never read.
_CHARACTERS = 64


def limit_texts(instances: Sequence[Any], most: int) -> None:
    """Refuse a request with more text than is tokenised in reasonable time.

    Args:
        instances: Of one request; texts, or tuples of texts, or anything else, which does not count.
        most: Characters of all of them together.

    Raises:
        RequestError: There are more (413).
    """
    count = 0
    for one in instances:
        count += sum(map(len, one)) if isinstance(one, tuple) else len(one) if isinstance(one, str) else 0
    if count > most:
        raise RequestError(f"The texts of the request have {count} characters; at most {most} are read.", 413)


def cut_text(text: str, longest: int, *, end: bool = False) -> str:
    """The part of a text that can matter if it is cut to ``longest`` tokens afterwards.

    Args:
        text: The text.
        longest: Tokens.
        end: Keep its end, not its start.
    """
    most = longest * _CHARACTERS
    return text[-most:] if end else text[:most]

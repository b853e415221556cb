"""Following the rows of generated text on the host: when each one ends, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ts_mps.batching.batch import Results
from ts_mps.batching.instances import Array
from ts_mps.batching.sampling import Wish

#: Why a row ended, as numbered in the result ``finish``.
STOPPED, FULL, BROKEN = 0, 1, 2

#: Tokens may give no text of their own (half a character, a special token): how many more of the last ones to look at.
_SLACK = 8

#: From token ids to their text.
TextOf = Callable[[Sequence[int]], str]


class Follower:
    """Follows one row on the host until it ends.

    Args:
        wish: What was asked for.
        text_of: The tokenizer.

    Attributes:
        wish: What was asked for.
        tokens: The answer so far.
        finish: STOPPED, FULL or BROKEN (the logits were not finite).
        characters: Length of the answer's text before a stop text; -1 if none was met.
    """

    def __init__(self, wish: Wish, text_of: TextOf) -> None:
        self.wish = wish
        self._text_of = text_of
        # A token has at least one byte of text.
        self._tail = max((len(text.encode()) for text in wish.stop), default=0) + _SLACK
        self.tokens: list[int] = []
        self.finish = FULL
        self.characters = -1

    def goes_on(self, token: int) -> bool:
        """Take the next token, -1 if the model gave none; whether more are wanted."""
        if token < 0:
            self.finish = BROKEN
            return False
        ended = token in self.wish.stop_ids
        if not ended:
            self.tokens.append(token)
        full = len(self.tokens) >= self.wish.max_tokens
        if self.wish.stop and (ended or full or self._stops_in(self.tokens[-self._tail :])):
            whole = self._text_of(self.tokens)
            self.characters = min((place for text in self.wish.stop if (place := whole.find(text)) >= 0), default=-1)
        if ended or self.characters >= 0:
            self.finish = STOPPED
            return False
        return not full

    def _stops_in(self, tokens: Sequence[int]) -> bool:
        text = self._text_of(tokens)
        return any(stop in text for stop in self.wish.stop)


def results(followers: Sequence[Follower], prompt_tokens: Array, most: int) -> Results:
    """What a run gives, one row for each instance.

    Args:
        followers: Of its rows, each at its end.
        prompt_tokens: int64 [rows].
        most: Most tokens that any run generates.

    Returns:
        ``token_ids`` int64 [rows, most], padded with -1; and int64 [rows] each: ``count``, how many of them;
        ``finish``, STOPPED, FULL or BROKEN; ``characters``, the length of the text before a stop text, -1 if none was
        met; ``prompt_tokens``; ``seed``, -1 where nothing was drawn.
    """
    token_ids = np.full((len(followers), most), -1, np.int64)
    for row, follower in enumerate(followers):
        token_ids[row, : len(follower.tokens)] = follower.tokens
    return {
        "token_ids": token_ids,
        "count": np.array([len(follower.tokens) for follower in followers], np.int64),
        "finish": np.array([follower.finish for follower in followers], np.int64),
        "characters": np.array([follower.characters for follower in followers], np.int64),
        "prompt_tokens": prompt_tokens,
        "seed": np.array([one.wish.seed if one.wish.sampled else -1 for one in followers], np.int64),
    }

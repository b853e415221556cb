"""best_labels: the answer of a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ts_mps.batching import best_labels

SCORES = np.asarray([0.1, 0.4, 0.1, 0.4], np.float32)
NAMES = {0: "a", 1: "b", 3: "d"}


@pytest.mark.parametrize(
    ("top_k", "names"),
    [(2, ["b", "d"]), (3, ["b", "d", "a"]), (0, ["b", "d", "a", "2"]), (9, ["b", "d", "a", "2"])],
)
def test_the_best_come_first_and_equal_ones_in_order(top_k: int, names: list[str]) -> None:
    found: Any = best_labels(SCORES, NAMES, top_k)
    assert [one["label"] for one in found] == names
    assert [one["score"] for one in found] == sorted(SCORES, reverse=True)[: top_k or None]


def test_one_label_comes_without_a_list() -> None:
    assert best_labels(SCORES, NAMES) == {"label": "b", "score": SCORES[1]}

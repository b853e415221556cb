"""The answer of a classifier: its best labels with their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ts_mps.batching.instances import Array


def best_labels(scores: Array, labels: Mapping[int, str], top_k: int = 1) -> dict[str, Any] | list[dict[str, Any]]:
    """The best labels of one instance, for the ``encode`` of a classifier.

    Args:
        scores: [labels], a number for each label.
        labels: Names by number, as in a transformers config's ``id2label``; a label that has none is called by its
            number.
        top_k: How many, the best first; 0 for all.

    Returns:
        ``{"label": name, "score": number}``, or for another ``top_k`` than 1 a list of them. Equal scores keep the
        order of the labels.
    """
    if top_k == 1:
        return _labelled(int(scores.argmax()), scores, labels)
    best = np.argsort(-scores, kind="stable")[: top_k or None]
    return [_labelled(int(index), scores, labels) for index in best]


def _labelled(index: int, scores: Array, labels: Mapping[int, str]) -> dict[str, Any]:
    return {"label": labels.get(index, str(index)), "score": scores[index]}

"""A deep learning recommendation model (https://arxiv.org/abs/1906.00091): archived as ``model.py``.

Its sizes are in ``dlrm.json`` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn


class DLRM(nn.Module):
    """Dense features through an MLP, sparse ones through embeddings, all pairs' dot products through another MLP.

    Attributes:
        table_sizes: Rows of each embedding table.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = json.loads(Path(__file__).with_name("dlrm.json").read_text())
        self.table_sizes: list[int] = sizes["table_sizes"]
        width: int = sizes["embedding"]
        features = len(self.table_sizes) + 1
        # All tables in one: one gather in place of 26.
        self.tables = nn.Embedding(sum(self.table_sizes), width)
        begins = torch.tensor([0, *self.table_sizes[:-1]]).cumsum(0)
        self.register_buffer("begins", begins, persistent=False)
        self.register_buffer("pairs", torch.tril_indices(features, features, -1), persistent=False)
        self.bottom = _mlp([sizes["dense"], *sizes["bottom"], width], last=True)
        self.top = _mlp([width + features * (features - 1) // 2, *sizes["top"], 1], last=False)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Logits [n] of candidates with dense [n, 13] and sparse [n, 26] features."""
        bottom = self.bottom(dense)
        embedded = self.tables(sparse + self.begins)
        vectors = torch.cat([bottom[:, None], embedded], 1)
        products = vectors @ vectors.transpose(1, 2)
        interactions = products[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([bottom, interactions], 1)).squeeze(1)


def _mlp(sizes: list[int], *, last: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (inner, outer) in enumerate(zip(sizes, sizes[1:])):  # noqa: B905, RUF007
        layers.append(nn.Linear(inner, outer))
        if last or index < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)

"""Recommendation ranking: 13 dense and 26 sparse features for each candidate, the layout of Criteo and DLRM.

Serves JSON, .npy, safetensors and KServe v2. See docs/reference/handlers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ts_mps.batching import (
    Batch,
    BatchHandler,
    ConfigError,
    Input,
    Instances,
    Request,
    RequestError,
    Results,
    Strict,
    Style,
)
from ts_mps.batching import numbers as to_numbers
from ts_mps.batching.options import NotNegative

_DENSE = 13
_SPARSE = 26


class Ranker(BatchHandler):
    """Scores the candidates of all requests of a batch together."""

    inputs: Mapping[str, Input] = {"dense": Input("float32", (_DENSE,)), "sparse": Input("int32", (_SPARSE,))}

    class Options(Strict):
        """The section ``handler`` of model-config.yaml.

        Args:
            top_k: Answer the best k candidates instead of every score; 0 for every score. A request's parameter
                ``top_k`` goes before it.
            function: What makes scores of the model's output.
            table_sizes: Rows of each of the 26 embedding tables, or of all if it is one number. Not needed if the model
                has an attribute ``table_sizes``.
            out_of_range: What to do with an id that its table lacks: refuse the request, or take it modulo the table's
                size, as trainers do that hash their features.
        """

        top_k: NotNegative = 0
        function: Literal["sigmoid", "none"] = "sigmoid"
        table_sizes: tuple[int, ...] | int | None = None
        out_of_range: Literal["refuse", "modulo"] = "refuse"

    def load(self, folder: Path) -> torch.nn.Module:
        """Load the model, called as ``model(dense [n, 13], sparse [n, 26])``, which gives [n] or [n, 1]."""
        model = super().load(folder)
        sizes = self.options.table_sizes
        if sizes is None:
            sizes = getattr(model, "table_sizes", None)
        if sizes is None:
            raise ConfigError("handler.table_sizes: needed, as the model has no attribute table_sizes.")
        tables = (sizes,) * _SPARSE if isinstance(sizes, int) else tuple(int(size) for size in sizes)
        if len(tables) != _SPARSE or min(tables) < 1 or max(tables) >= 2**31:
            raise ConfigError(f"handler.table_sizes: {_SPARSE} sizes of at least 1 are needed.")
        self._tables = np.asarray(tables, dtype=np.int64)
        return model

    def decode(self, request: Request) -> Instances:
        """The candidates of one request: one array [n, 39], or ``dense`` [n, 13] and ``sparse`` [n, 26]."""
        tensors = request.tensors()
        value = tensors if tensors is not None else self._json(request)
        if {"dense", "sparse"} <= value.keys():
            dense, sparse = to_numbers(value["dense"], "float32", "dense"), value["sparse"]
            sparse = sparse if isinstance(sparse, np.ndarray) else to_numbers(sparse, "int64", "sparse")
        else:
            rows = next(iter(value.values()))
            rows = rows if isinstance(rows, np.ndarray) else to_numbers(rows, "float64", "The candidates")
            if len(value) != 1 or rows.ndim != 2 or rows.shape[1] != _DENSE + _SPARSE:
                given = f"{', '.join(sorted(value)) or 'one array'} {list(rows.shape)}"
                raise RequestError(
                    f"The candidates must be [n, {_DENSE + _SPARSE}], or dense [n, {_DENSE}] and "
                    f"sparse [n, {_SPARSE}]; got {given}."
                )
            dense, sparse = to_numbers(rows[:, :_DENSE], "float32", "dense"), rows[:, _DENSE:]
        if dense.ndim != 2 or sparse.ndim != 2 or len(dense) != len(sparse) or sparse.shape[1] != _SPARSE:
            raise RequestError(f"dense {list(dense.shape)} and sparse {list(sparse.shape)} must have one row each.")
        request.state = self._top_k(request)
        return Instances({"dense": dense, "sparse": self._ids(sparse)})

    def _json(self, request: Request) -> dict[str, Any]:
        document = request.document()
        if isinstance(document, dict) and {"dense", "sparse"} <= document.keys():
            request.add_parameters(document, {"dense", "sparse"})
            return {name: document[name] for name in ("dense", "sparse")}
        rows = request.instances()
        if rows and all(isinstance(row, dict) for row in rows):
            try:
                return {name: [row[name] for row in rows] for name in ("dense", "sparse")}
            except KeyError as error:
                raise RequestError(f"A candidate has no {error}.") from error
        return {"": rows}

    def _top_k(self, request: Request) -> int:
        unknown = sorted(set(request.parameters) - {"top_k"})
        if unknown:
            raise RequestError(f"{unknown[0]}: there is no such parameter; there is top_k.")
        top_k = request.parameters.get("top_k", self.options.top_k)
        if type(top_k) is not int or top_k < 0:
            raise RequestError("top_k: must be a number of candidates.")
        return top_k

    def _ids(self, given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Ids [n, 26] as int64 that their tables have. An id on the GPU that a table lacks would end the worker."""
        if given.dtype.kind not in "iuf":
            raise RequestError(f"sparse: {given.dtype} is not a number type.")
        with np.errstate(invalid="ignore"):
            ids = given.astype(np.int64)
        if given.dtype.kind == "f" and not np.array_equal(ids, given):
            raise RequestError("sparse: must be whole numbers, and none NaN or missing.")
        if self.options.out_of_range == "modulo":
            return ids % self._tables
        # As unsigned numbers negative ids are larger than any table.
        within = ids.view(np.uint64) < self._tables.view(np.uint64)
        if not within.all():
            column = int(np.argmin(within.all(0)))
            raise RequestError(f"sparse: column {column} must be from 0 to {self._tables[column] - 1}.")
        return ids

    def run(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Scores [rows]."""
        out = self.model(batch["dense"], batch["sparse"]).float().reshape(batch.shape.rows)
        return {"scores": torch.sigmoid(out) if self.options.function == "sigmoid" else out}

    def encode_request(self, results: Results, request: Request) -> Any:
        """Every score in the order of the candidates, or the best ones with their places."""
        found = self.outputs(results, request)
        if not request.state:
            listed = found["scores"]
            return {"predictions": listed} if request.style is Style.V1 else {"scores": listed}
        pairs = zip(found["index"], found["score"], strict=True)
        best = [{"index": index, "score": score} for index, score in pairs]
        return {"predictions": best} if request.style is Style.V1 else {"top": best}

    def outputs(self, results: Results, request: Request) -> Mapping[str, Any]:
        """``scores`` float32 [n]; or of the best k ``index`` int64 [k], their places, and ``score`` float32 [k]."""
        scores = results["scores"]
        if not request.state:
            return results
        best = np.argsort(-scores, kind="stable")[: request.state]
        return {"index": best, "score": scores[best]}

"""Answers: shaped as the request was, in the format that it asks for, errors as TorchServe shapes its own."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from ts_mps.batching.batch import OUTPUT, Results
from ts_mps.batching.errors import RequestError
from ts_mps.batching.formats import JSON, NPY, SAFETENSORS, V2_NAMES, write_npy, write_safetensors
from ts_mps.batching.request import Request, Style

#: An error may quote what was sent; an answer must not repeat megabytes of it.
_LONGEST_MESSAGE = 1000


def wants_tensors(request: Request) -> str | None:
    """NPY or SAFETENSORS if the request's Accept header names one of them, else None."""
    accept = (request.header("accept") or "").lower()
    return next((kind for kind in (NPY, SAFETENSORS) if kind in accept), None)


def tensors(results: Results, kind: str) -> bytes:
    """Results as .npy (the only one, or the one named ``output``) or safetensors.

    Raises:
        RequestError: .npy cannot hold several results (406).
    """
    if kind == SAFETENSORS:
        return write_safetensors(results)
    if len(results) > 1 and OUTPUT not in results:
        raise RequestError(f"There are {len(results)} results, and .npy holds one; accept {SAFETENSORS}.", 406)
    return write_npy(results[OUTPUT] if OUTPUT in results else next(iter(results.values())))


def check_finite(results: Results, dtype: str) -> None:
    """Refuse results that JSON cannot hold and that nobody can use.

    Args:
        results: Of one request.
        dtype: What the model computed in, for the sentence: half precision is the usual reason.

    Raises:
        RequestError: One of them is NaN or infinite somewhere (500).
    """
    for name, array in results.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RequestError(f"The model's result {name} is not finite (it computes in {dtype}).", 500)


def shaped(answers: list[Any], request: Request) -> Any:
    """The instances' answers in the shape of the request: one, a list, or ``predictions``."""
    if request.style is Style.ONE and len(answers) == 1:
        return answers[0]
    return {"predictions": answers} if request.style is Style.V1 else answers


def v2(results: Mapping[str, Any], request: Request, model: str, version: str) -> dict[str, Any]:
    """Results as an Open Inference Protocol (KServe v2) answer.

    Args:
        results: Arrays by name; lists of texts become datatype BYTES.
        request: For its id.
        model: The model's name.
        version: Its version.
    """
    outputs: list[dict[str, Any]] = []
    for name, value in results.items():
        if isinstance(value, np.ndarray):
            datatype, shape, data = V2_NAMES[value.dtype.name], list(value.shape), np.ascontiguousarray(value).ravel()
            outputs.append({"name": name, "shape": shape, "datatype": datatype, "data": data})
        else:
            outputs.append({"name": name, "shape": [len(value)], "datatype": "BYTES", "data": list(value)})
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    return {"id": request.v2_id, **answer} if request.v2_id is not None else answer


def to_json(answer: Any) -> bytes:
    """An answer as JSON; numpy's arrays and numbers may be in it.

    Raises:
        TypeError: It holds something that JSON has not.
    """
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def error(problem: RequestError) -> tuple[int, str, bytes]:
    """Status, reason phrase and body for a request that failed, in the shape of TorchServe's own errors."""
    try:
        status = HTTPStatus(problem.status)
    except ValueError:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    if status < HTTPStatus.BAD_REQUEST:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    # The sentence may quote the client, whose text may hold half a surrogate pair: TorchServe's JSON parser allows it.
    message = str(problem)[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode()
    body = {"code": int(status), "type": status.phrase.replace(" ", ""), "message": message}
    return int(status), status.phrase, orjson.dumps(body)


__all__ = ["JSON", "check_finite", "error", "shaped", "tensors", "to_json", "v2", "wants_tensors"]

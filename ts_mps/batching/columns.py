"""Whether the columns of a request's instances are what its handler declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ts_mps.batching.errors import RequestError
from ts_mps.batching.formats import numbers
from ts_mps.batching.instances import Array, Input


def as_declared(name: str, one: Input, column: Array | Sequence[Any] | None) -> Array | list[Array]:
    """A declared input's column, once it is known to be what :meth:`BatchHandler.collate` can copy.

    Args:
        name: The input's name, for the sentence.
        one: The input.
        column: Of one request, n instances; None if there is none.

    Returns:
        In the input's dtype: [n, *shape], or for an input with a length a list of n arrays [tokens, *rest].

    Raises:
        RequestError: It is not.
    """
    if column is None:
        raise RequestError(f"This server's handler gave no column {name}.", 500)
    if one.has_length and not isinstance(column, np.ndarray):
        return [_array(name, one, value, one.shape[1:], skip=1) for value in column]
    return _array(name, one, column, one.shape[1:] if one.has_length else one.shape, skip=2 if one.has_length else 1)


def _array(name: str, one: Input, value: Any, shape: tuple[int | str, ...], skip: int) -> Array:
    exact = isinstance(value, np.ndarray) and value.dtype == one.dtype
    array: Array = value if exact else numbers(value, one.dtype, name)
    if array.ndim < skip or array.shape[skip:] != shape:
        wanted = ", ".join(["n"] * skip + [str(size) for size in shape])
        raise RequestError(f"{name}: shape [{wanted}] is needed, got {list(array.shape)}.")
    return array

"""Arrays out of request bodies, without ever allocating more than the body's size calls for."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ts_mps.batching.errors import RequestError
from ts_mps.batching.instances import Array

NPY = "application/x-npy"
SAFETENSORS = "application/x-safetensors"
JSON = "application/json"

_NPY_MAGIC = b"\x93NUMPY"
_MAX_NPY_HEADER = 1024
_NUMBERS = "iufb"
_MOST_AXES = 32
_EXACT = 2.0**53  # below it float64 has every whole number

#: The numeric datatypes of the Open Inference Protocol (KServe v2) that numpy has.
V2_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
V2_NAMES: Mapping[str, str] = {dtype: name for name, dtype in V2_DTYPES.items()}


def is_npy(body: bytes | bytearray) -> bool:
    """Whether a body begins as an .npy file does."""
    return bytes(body[:6]) == _NPY_MAGIC


def read_npy(body: bytes | bytearray) -> Array:
    """An .npy file (format 1.0 or 2.0) as an array that shares the body's memory.

    Raises:
        RequestError: It is no such file, holds anything but numbers, or its header does not fit its size.
    """
    wide = body[6:7] == b"\x02"
    start = 12 if wide else 10
    length = int.from_bytes(body[8:start], "little")
    if not is_npy(body) or body[6:8] not in (b"\x01\x00", b"\x02\x00") or len(body) < start + length:
        raise RequestError("The body is not a complete .npy file of format 1.0 or 2.0.", 400)
    if length > _MAX_NPY_HEADER:
        raise RequestError(f"The header of the .npy body has {length} bytes; at most {_MAX_NPY_HEADER} are read.", 400)
    shape, fortran, dtype = _npy_header(bytes(body[: start + length]))
    if dtype.kind not in _NUMBERS:
        raise RequestError(f"The .npy body holds {dtype}, not numbers.")
    count = math.prod(shape)
    given = len(body) - start - length
    if count * dtype.itemsize != given:
        raise RequestError(f"The .npy body announces shape {shape} of {dtype} and then has {given} bytes of data.")
    flat = np.frombuffer(body, dtype, count, start + length)
    return _reshaped(flat, shape, "The .npy body", order="F" if fortran else "C")


@functools.lru_cache(maxsize=256)  # the same clients send the same shapes
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    reader = io.BytesIO(header[8:])
    read = np.lib.format.read_array_header_2_0 if header[6:7] == b"\x02" else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(reader, max_header_size=_MAX_NPY_HEADER)
    except Exception as error:  # the tokenizer's and an index error are among those that a bad header raises
        raise RequestError("The header of the .npy body cannot be read.", 400) from error
    if dtype.hasobject or any(type(size) is not int or size < 0 for size in shape):
        raise RequestError("The .npy body holds Python objects or a shape that is none.")
    return shape, fortran, dtype


def write_npy(array: Array) -> bytes:
    """An array as an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_safetensors(body: bytes | bytearray) -> dict[str, Array]:
    """A safetensors file as arrays by name.

    Raises:
        RequestError: It is no such file, holds a dtype that numpy lacks, or safetensors is not installed here (415).
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise RequestError("This server cannot read safetensors: the package is not installed.", 415) from error
    try:
        return dict(safetensors.numpy.load(bytes(body)))
    except Exception as error:  # its own error class is one of several that it raises
        raise RequestError(f"The body is not a safetensors file that can be read: {error}.", 400) from error


def write_safetensors(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as a safetensors file."""
    import safetensors.numpy

    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_v2(document: Mapping[str, Any]) -> dict[str, Array | list[str]]:
    """The inputs of an Open Inference Protocol (KServe v2) request, JSON data only.

    Returns:
        Arrays in their given shape; a list of texts for datatype BYTES.

    Raises:
        RequestError: A tensor is malformed; it is named.
    """
    found: dict[str, Array | list[str]] = {}
    tensors = document["inputs"]
    for tensor in tensors if isinstance(tensors, list) else ():
        if not isinstance(tensor, Mapping) or not isinstance(tensor.get("name"), str):
            raise RequestError("Each of inputs must be an object with name, shape, datatype and data.")
        name, datatype = str(tensor["name"]), str(tensor.get("datatype"))
        shape, data = tensor.get("shape"), tensor.get("data")
        if not isinstance(data, list):
            raise RequestError(f"Input {name}: data must be a list; binary data is not read here.")
        # Bounded before anything multiplies them: the product of a million sizes takes minutes.
        if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_size, shape)):
            raise RequestError(f"Input {name}: shape must be a list of at most {_MOST_AXES} sizes.")
        if datatype == "BYTES":
            if not all(isinstance(text, str) for text in data):
                raise RequestError(f"Input {name}: data of datatype BYTES must be a flat list of texts.")
            if len(data) != math.prod(shape):
                raise RequestError(f"Input {name}: data has {len(data)} texts, and shape {shape} has another number.")
            found[name] = list(data)
            continue
        if datatype not in V2_DTYPES:
            raise RequestError(f"Input {name}: datatype {datatype!r} is not one of BYTES, {', '.join(V2_DTYPES)}.")
        array = numbers(data, V2_DTYPES[datatype], f"Input {name}")
        if array.size != math.prod(shape):
            raise RequestError(f"Input {name}: data has {array.size} numbers, and shape {shape} has another number.")
        found[name] = _reshaped(array, tuple(shape), f"Input {name}")
    if not found:
        raise RequestError("inputs must be a list of at least one tensor.")
    return found


def numbers(value: Any, dtype: str, what: str) -> Array:
    """Nested lists of numbers, or an array, as an array of ``dtype``.

    Args:
        value: What was sent.
        dtype: numpy's name.
        what: The subject of an error's sentence.

    Raises:
        RequestError: The lists are ragged, hold anything but numbers, or numbers that ``dtype`` cannot hold.
    """
    wanted = np.dtype(dtype)
    if isinstance(value, np.ndarray):
        given: Array = value
    else:
        try:
            # Always to a number type: numpy's own choice for mixed texts would allocate rows of the longest one.
            given = np.asarray(value, dtype=np.float64)
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise RequestError(f"{what}: not a rectangular list of numbers.") from error
    if given.dtype.kind not in _NUMBERS:
        raise RequestError(f"{what}: {given.dtype} is not a number type.")
    if isinstance(value, np.ndarray) and value.dtype == wanted and wanted.kind != "f":
        return value
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise RequestError(f"{what}: holds a value that is NaN, infinite or missing.")
    if given is not value and not _only_numbers(value):  # numpy reads "12" as a number, and bytes as many of them
        raise RequestError(f"{what}: holds something that is not a number.")
    if wanted.kind in "iu":
        if given.dtype.kind == "f" and (given != np.floor(given)).any():
            raise RequestError(f"{what}: must be whole numbers.")
        if given is not value and given.size and np.abs(given).max() >= _EXACT:
            given = np.vectorize(int, otypes=[object])(np.asarray(value, dtype=object))
        # As Python's integers: in float64 the limits of 64 bits are not exact.
        if given.size and (int(given.min()) < np.iinfo(wanted).min or int(given.max()) > np.iinfo(wanted).max):
            raise RequestError(f"{what}: holds a number outside {wanted}.")
    elif wanted.kind == "b" and ((given != 0) & (given != 1)).any():
        raise RequestError(f"{what}: holds a number outside {wanted}.")
    with np.errstate(over="ignore"):
        converted = given.astype(wanted, copy=False)
    if wanted.kind == "f" and not np.isfinite(converted).all():
        raise RequestError(f"{what}: holds a number outside {wanted}.")
    return converted


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _only_numbers(value: Any) -> bool:
    """Whether nested lists, not more deeply nested than an array can be, hold nothing but numbers and arrays."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, (int, float, np.generic, np.ndarray)) and not isinstance(value, np.flexible)
    return set(map(type, value)) <= {int, float, bool} or all(map(_only_numbers, value))


def _reshaped(flat: Array, shape: tuple[int, ...], what: str, order: Literal["C", "F"] = "C") -> Array:
    try:
        return flat.reshape(shape, order=order)
    except ValueError as error:  # too many axes, or one beyond any memory beside one of 0
        raise RequestError(f"{what}: shape {list(shape)} is more than an array can have.") from error

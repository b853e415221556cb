"""Arrays out of bodies: what was written is read back, and whatever is hostile is a RequestError and cheap."""

from __future__ import annotations

import io
import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_mps.batching.errors import RequestError
from ts_mps.batching.formats import (
    V2_DTYPES,
    numbers,
    read_npy,
    read_safetensors,
    read_v2,
    write_npy,
    write_safetensors,
)

DTYPES = list(V2_DTYPES.values())


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[str] = DTYPES) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = math.prod(shape)
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if dtype.kind == "b":
        return (np.frombuffer(raw, np.uint8) % 2).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def refused(call: Callable[..., object], *args: Any, says: str | None = None) -> RequestError:
    with pytest.raises(RequestError, match=says) as caught:
        call(*args)
    assert 400 <= caught.value.status < 500
    str(caught.value).encode("utf-8", "surrogatepass")
    return caught.value


def npy(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    header = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + header + data


def header(descr: object, shape: object, fortran: object = False) -> str:
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape}) + "\n"


# -- npy -------------------------------------------------------------------------------------------------------------


@given(arrays(), st.booleans(), st.sampled_from([(1, 0), (2, 0)]), st.sampled_from([bytes, bytearray]))
def test_npy_comes_back(array: np.ndarray, fortran: bool, version: tuple[int, int], kind: type) -> None:
    file = io.BytesIO()
    array = np.asfortranarray(array) if fortran else array
    np.lib.format.write_array(file, array, version=version)
    assert same(read_npy(kind(file.getvalue())), array)
    assert same(read_npy(kind(write_npy(array))), array if array.ndim else array[None])


def test_npy_of_another_byte_order_is_converted() -> None:
    read = read_npy(write_npy(np.arange(3, dtype=">i4")))
    assert numbers(read, "int64", "x").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff",
        b"\x93NUMPX\x01\x00\x00\x00",
        npy(header("<f4", (1,)), b"\0" * 4, (3, 0)),
        npy(header("<f4", (1,)), b"\0" * 4, (1, 1)),
        npy(header("<f4", (1,)), b"\0" * 4, (0, 0)),
        npy(header("<f4", (1,)), b"\0" * 4, length=60_000),
        npy(header("<f4", (1,)), b"\0" * 4, (2, 0), length=2**32 - 1),
        npy(header("<f4", (1,)), b"\0" * 4, length=3),
        npy(header("<f4", (1,)), b"\0" * 4, length=0),
        npy(header("<f4", (1,)) + " " * 2000, b"\0" * 4),
        npy(header("<f4", (2,)), b"\0" * 4),
        npy(header("<f4", (1,)), b"\0" * 5),
        npy(header("<f4", (1,)), b""),
        npy(header("<f4", (10**18,)), b"\0" * 4),
        npy(header("<f8", (2**61, 8)), b""),  # 2^64 elements: 0 in 64 bits
        npy(header("<f4", (10**30, 0)), b""),
        npy(header("<f4", (2**63, 0)), b""),
        npy(header("<f4", (1,) * 100), b"\0" * 4),
        npy(header("<f4", (0,) * 200), b""),
        npy(header("<f4", (-1,)), b"\0" * 4),
        npy(header("<f4", (-1, -1)), b"\0" * 4),
        npy(header("<f4", (True,)), b"\0" * 4),
        npy(header("<f4", 1), b"\0" * 4),
        npy(header("<f4", (1.0,)), b"\0" * 4),
        npy(header("<f4", ("1",)), b"\0" * 4),
        npy(header("<f4", (1,), 1), b"\0" * 4),
        npy(header("|O", (1,)), b"\x80\x04N."),
        npy(header([("a", "|O")], (1,)), b"\x80\x04N."),
        npy(header([("a", "<f4")], (1,)), b"\0" * 4),
        npy(header(("<f4", (2,)), (1,)), b"\0" * 8),
        npy(header("<U4", (1,)), b"\0" * 16),
        npy(header("<U0", (5,)), b""),
        npy(header("|V0", (10**18,)), b""),
        npy(header("<c8", (1,)), b"\0" * 8),
        npy(header("<M8[s]", (1,)), b"\0" * 8),
        npy(header("<m8[s]", (1,)), b"\0" * 8),
        npy(header("nonsense", (1,)), b"\0" * 4),
        npy(header((), ()), b""),
        npy(header([()], ()), b""),
        npy(header({}, ()), b""),
        npy(header(None, ()), b"\0" * 8),  # numpy reads None as float64
        npy("{'descr': '<f4'}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'more': 1}", b"\0" * 4),
        npy("(("),
        npy("'"),
        npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}"),
        npy("(" * 500),
        npy("-" * 1000 + "1"),
        npy("\0\0"),
        npy(b"\xff\xfe"),
        npy("  1\n 2\n"),
        npy("9" * 1000),
    ],
)
def test_hostile_npy_is_refused(body: bytes) -> None:
    if b"'descr': None" in body:
        read = None
        try:
            read = read_npy(body)
        except RequestError as error:
            assert 400 <= error.status < 500
        assert read is None or read.dtype == np.float64
        return
    for kind in (bytes, bytearray):
        refused(read_npy, kind(body))


@settings(max_examples=300)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_mutated_npy_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(write_npy(np.arange(6, dtype=np.float32).reshape(2, 3)))
    for place in data.draw(st.lists(st.integers(6, len(body) - 1), min_size=1, max_size=5)):
        body[place] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        array = read_npy(body)
    except RequestError as error:
        assert 400 <= error.status < 500
    else:
        assert array.nbytes <= len(body) and array.dtype.kind in "iufb"


# -- safetensors -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1, max_size=4).filter(lambda name: name != "__metadata__"), arrays()))
def test_safetensors_come_back(tensors: dict[str, np.ndarray]) -> None:
    tensors = {name: array if array.ndim else array[None] for name, array in tensors.items()}
    read = read_safetensors(bytearray(write_safetensors(tensors)))
    assert read.keys() == tensors.keys()
    assert all(same(read[name], array) for name, array in tensors.items())


def safetensors(document: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 7,
        safetensors(b"", length=0),
        safetensors(b"{", b""),
        safetensors({}, length=2**63),
        safetensors({}, length=2**64 - 1),
        safetensors({}, length=100),
        safetensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 3),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]}}),
        safetensors([]),
        safetensors(b"[" * 10_000),
    ],
)
def test_hostile_safetensors_are_refused(body: bytes) -> None:
    refused(read_safetensors, body)


@settings(max_examples=200)
@given(st.data())
def test_mutated_safetensors_are_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(write_safetensors({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, bool)}))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=5)):
        body[place] = data.draw(st.integers(0, 255))
    try:
        assert sum(array.nbytes for array in read_safetensors(body).values()) <= len(body)
    except RequestError as error:
        assert 400 <= error.status < 500


# -- v2 --------------------------------------------------------------------------------------------------------------


@given(arrays(), st.booleans())
def test_v2_comes_back(array: np.ndarray, flat: bool) -> None:
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=1, neginf=-1)
    name = next(name for name, dtype in V2_DTYPES.items() if dtype == array.dtype.name)
    data = (array.ravel() if flat or not array.ndim else array).tolist()
    read = read_v2({"inputs": [{"name": "x", "shape": list(array.shape), "datatype": name, "data": data}]})
    assert same(np.asarray(read["x"]), array)


@given(st.lists(st.text()))
def test_v2_texts_come_back(texts: list[str]) -> None:
    tensor = {"name": "x", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    assert read_v2({"inputs": [tensor]}) == {"x": texts}


GOOD = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        "x",
        None,
        [1],
        [None],
        [{}],
        [{**GOOD, "name": 1}],
        [GOOD, {**GOOD, "name": None}],
        [{**GOOD, "datatype": None}],
        [{**GOOD, "datatype": "FP8"}],
        [{**GOOD, "datatype": ["FP32"]}],
        [{**GOOD, "shape": None}],
        [{**GOOD, "shape": [3]}],
        [{**GOOD, "shape": [-2]}],
        [{**GOOD, "shape": [2.0]}],
        [{**GOOD, "shape": [True, 2]}],
        [{**GOOD, "shape": ["2"]}],
        [{**GOOD, "shape": [2**62, 4]}],
        [{**GOOD, "shape": [10**4000, 10**4000]}],
        [{**GOOD, "shape": [1] * 100, "data": [1]}],
        [{**GOOD, "shape": [0, 10**30], "data": []}],
        [{**GOOD, "data": None}],
        [{**GOOD, "data": "12"}],
        [{**GOOD, "data": {"a": 1}}],
        [{**GOOD, "data": [1, "2"]}],
        [{**GOOD, "data": [[1], [2, 3]]}],
        [{**GOOD, "datatype": "BYTES"}],
        [{**GOOD, "datatype": "BYTES", "data": ["a", None]}],
        [{**GOOD, "datatype": "BYTES", "data": ["a"]}],
        [{**GOOD, "datatype": "UINT8", "data": [1, 256]}],
        [{**GOOD, "datatype": "BOOL", "data": [1, 2]}],
    ],
)
def test_malformed_v2_is_refused(inputs: object) -> None:
    refused(read_v2, {"inputs": inputs})


# -- numbers ---------------------------------------------------------------------------------------------------------


def deep(levels: int, inner: object) -> object:
    for _ in range(levels):
        inner = [inner]
    return inner


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "uint8"])
@pytest.mark.parametrize(
    "value",
    [
        [[1, 0], [1]],
        [1, [1]],
        "1",
        ["1"],
        [1, "1"],
        [["1", 1]],
        b"1",
        bytearray(b"11"),
        [b"1"],
        [bytearray(b"1")],
        [memoryview(b"1")],
        None,
        [None],
        [1, None],
        [math.nan],
        [math.inf],
        [-math.inf],
        {},
        {"a": 1},
        [{}],
        [1, {"a": 1}],
        [10**400],
        [-(10**400)],
        deep(100, 1),
        deep(900, 1),
        deep(900, []),
        [deep(900, 1), 1],
        object(),
        {1, 2},
        np.array(["1"]),
        np.array([None]),
        np.array([1j]),
        np.array(["2020-01-01"], "M8[D]"),
        [np.str_("1")],
        [1j],
    ],
)
def test_what_are_no_numbers_is_refused(value: object, dtype: str) -> None:
    refused(numbers, value, dtype, "x", says=r"^x: ")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([0.5], "int64"),
        ([1e300], "int64"),
        ([256], "uint8"),
        ([-1], "uint8"),
        ([-1], "uint64"),
        ([2**63], "int64"),
        ([float(2**63)], "int64"),
        ([-(2**63) - 1], "int64"),
        ([2**64], "uint64"),
        ([2**100], "uint64"),
        (np.array([2.0**63]), "int64"),
        (np.array([2.0**64]), "uint64"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([-1], np.int8), "uint64"),
        (np.array([math.nan], np.float16), "float32"),
        ([1e39], "float32"),
        ([-1e39], "float32"),
        ([65520], "float16"),
        (np.array([1e300]), "float32"),
        ([2], "bool"),
        ([0.5], "bool"),
    ],
)
def test_what_the_dtype_cannot_hold_is_refused(value: object, dtype: str) -> None:
    refused(numbers, value, dtype, "x", says=r"^x: ")
    if isinstance(value, list):
        refused(numbers, value[0], dtype, "x")
        refused(numbers, [[value[0], 0]], dtype, "x")


@given(st.sampled_from([one for one in DTYPES if "int" in one]), st.data())
def test_whole_numbers_are_exact(dtype: str, data: st.DataObject) -> None:
    limits = np.iinfo(dtype)
    whole = st.integers(limits.min, limits.max)
    values = data.draw(st.lists(st.lists(whole, min_size=2, max_size=2), max_size=4))
    read = numbers(values, dtype, "x")
    assert read.dtype == dtype and read.tolist() == values
    assert numbers(np.array(values, dtype), dtype, "x").tolist() == values
    alone = data.draw(whole)
    assert numbers(alone, dtype, "x") == alone and numbers(alone, dtype, "x").shape == ()


@given(st.integers(-(2**70), 2**70), st.sampled_from([one for one in DTYPES if "int" in one]))
def test_a_whole_number_is_exact_or_refused(value: int, dtype: str) -> None:
    if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        assert int(numbers([value], dtype, "x")[0]) == value
    else:
        refused(numbers, [value], dtype, "x", says="outside")


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from([10**400, 2**63])
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)


def all_numbers(value: object) -> bool:
    if isinstance(value, list):
        return all(map(all_numbers, value))
    return isinstance(value, (int, float))


@settings(max_examples=300)
@given(DOCUMENTS, st.sampled_from(DTYPES))
def test_any_document_is_numbers_or_refused(value: object, dtype: str) -> None:
    try:
        read = numbers(value, dtype, "x")
    except RequestError as error:
        assert 400 <= error.status < 500
        return
    assert read.dtype == dtype and all_numbers(value)
    if read.dtype.kind in "iu":
        assert read.tolist() == value
    else:
        assert np.isfinite(read).all()
        np.testing.assert_allclose(np.asarray(value, float), read.astype(float), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 100_000] + [1] * 50_000,
        [1] * 50_000 + ["x" * 100_000],
        [["x" * 100_000, 1]] * 20_000,
        ["1" * 100_000] + [1] * 50_000,
        [[1] * 100] * 1000 + [[1] * 99],
        [10**4000] + [1] * 50_000,
    ],
)
def test_mixed_lists_cost_no_memory(value: object) -> None:
    tracemalloc.start()
    try:
        refused(numbers, value, "float32", "x")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * 2**20  # numpy's own choice would be 20 GB of text


@pytest.mark.parametrize(
    "body",
    [
        npy(header("<f8", (2**40,)), b"\0" * 8),
        npy(header("<f8", (2**40,)), b"\0" * 8, (2, 0), length=2**31),
        npy(header("|V0", (2**40,)), b""),
    ],
)
def test_a_lying_header_costs_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        refused(read_npy, body)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()

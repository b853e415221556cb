"""One request, however its client and TorchServe's frontend packed it."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_mps.batching import JSON, NPY, SAFETENSORS, Request, RequestError, Style
from ts_mps.batching.formats import read_npy, write_npy, write_safetensors
from ts_mps.batching.respond import error, shaped, tensors, to_json, v2, wants_tensors


def request(*parts: tuple[str, Any, str], **headers: str) -> Request:
    """As ``ts.service.Service.retrieve_data_for_inference`` makes it: request headers go over parts of their name."""
    about: dict[str, Any] = {name: {"content-type": kind} for name, _, kind in parts}
    about.update({name.replace("_", "-"): value for name, value in headers.items()})
    return Request({name: value for name, value, _ in parts}, about)


def body(value: Any, kind: str = "", **headers: str) -> Request:
    return request(("body", value, kind), **headers)


def refused(call: Any, status: int, says: str = "") -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.status == status and says in str(caught.value)


TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
V2 = {"inputs": [TENSOR], "id": "7", "parameters": {"k": 3}}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("document", "style", "instances", "parameters"),
    [
        ({"a": 1}, Style.ONE, [{"a": 1}], {}),
        (5, Style.ONE, [5], {}),
        (0, Style.ONE, [0], {}),
        (False, Style.ONE, [False], {}),
        ({}, Style.ONE, [{}], {}),
        ([], Style.MANY, [], {}),
        ([1, "b", None], Style.MANY, [1, "b", None], {}),
        ({"instances": [1, 2]}, Style.V1, [1, 2], {}),
        ({"instances": []}, Style.V1, [], {}),
        ({"instances": [1], "top_k": 3}, Style.V1, [1], {"top_k": 3}),
        ({"instances": [1], "a": 1, "parameters": {"a": 2, "b": 3}}, Style.V1, [1], {"a": 2, "b": 3}),
        ({"instances": [1], "parameters": 5}, Style.V1, [1], {}),
        ({"inputs": "text"}, Style.ONE, [{"inputs": "text"}], {}),
        ({"inputs": ["text"]}, Style.ONE, [{"inputs": ["text"]}], {}),
    ],
)
def test_styles_of_json(document: Any, style: Style, instances: list, parameters: dict, raw: bool) -> None:
    one = body(json.dumps(document).encode() if raw else document, JSON)
    assert one.tensors() is None and one.instances() == instances
    assert one.style is style and one.parameters == parameters


def test_a_text_parsed_from_json_is_one_instance() -> None:
    one = body("a text", JSON)
    assert one.document() == "a text" and one.instances() == ["a text"] and one.style is Style.ONE


@pytest.mark.parametrize("instances", [None, "x", 5, {"a": 1}])
def test_instances_that_are_no_list(instances: Any) -> None:
    refused(body({"instances": instances}, JSON).instances, 422, "must be a list")


@pytest.mark.parametrize("raw", [False, True])
def test_v2(raw: bool) -> None:
    one = body(json.dumps(V2).encode() if raw else V2, JSON)
    found = one.tensors()
    assert found is not None and found["x"].tolist() == [[1, 2]]
    assert (one.style, one.v2_id, one.parameters) == (Style.V2, "7", {"k": 3})


@pytest.mark.parametrize(("given_id", "kept"), [(None, None), (5, None), ("", ""), ("a\ud800b", "a?b")])
def test_the_id_of_v2_can_be_sent_back(given_id: Any, kept: str | None) -> None:
    one = body({**V2, "id": given_id}, JSON)
    one.tensors()
    assert one.v2_id == kept
    answer = json.loads(to_json(v2({"y": np.ones((1, 1), np.float32), "t": ["a"]}, one, "m", "1")))
    assert answer.get("id") == kept
    assert answer["outputs"] == [
        {"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [1.0]},
        {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]},
    ]


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        ("", True),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/problem+json", True),
        ("application/vnd.kserve+json;v=2", True),
        ("application/octet-stream", True),
        ("application/xml", False),
        ("image/png", False),
    ],
)
def test_content_types(kind: str, served: bool) -> None:
    one = body(b' \n {"instances": [1]}', kind)
    if served:
        assert one.instances() == [1] and one.style is Style.V1
    else:
        assert one.instances() == [b' \n {"instances": [1]}'] and one.style is Style.ONE
        refused(body(b"{}", kind).document, 415, kind)


def test_text_is_json_only_if_it_says_so() -> None:
    assert body('{"a": 1}', "text/plain").instances() == ['{"a": 1}']
    assert body('{"a": 1}', "text/plain").document() == {"a": 1}
    refused(body("a", "text/html").document, 415)


@pytest.mark.parametrize("raw", [b"{", b"[1,", b'{"a": nan}', b"[1] 2", b"\xff[", b'"\xff"', b"[" * 100_000, b"nul"])
@pytest.mark.parametrize("kind", [JSON, "", "application/octet-stream"])
def test_raw_bytes_that_torchserve_could_not_parse(raw: bytes, kind: str) -> None:
    one = body(bytearray(raw), kind)
    refused(one.document, 400, "not JSON")
    if kind == JSON:
        refused(one.instances, 400, "not JSON")
        refused(one.tensors, 400, "not JSON")


@pytest.mark.parametrize("fields", [{}, {"body": None}, {"body": b""}, {"body": ""}, {"body": bytearray(), "a": None}])
def test_an_empty_request(fields: dict) -> None:
    for call in ("parts", "part", "document", "instances", "tensors"):
        refused(getattr(Request(fields), call), 400, "empty")


def test_headers_of_any_case() -> None:
    one = body(b"1", Accept="text/a", X_Thing="y")
    assert one.header("ACCEPT") == one.header("accept") == "text/a" and one.header("x-thing") == "y"
    assert one.header("body") is None and one.header("none") is None
    assert Request({"body": b"1"}).header("accept") is None


@pytest.mark.parametrize("name", ["body", "data", "file"])
def test_a_header_that_hides_a_part_of_its_name(name: str) -> None:
    """TorchServe keeps both in one dict, and the client names both."""
    for value in ({"a": 1}, bytearray(b'{"a": 1}')):
        one = request((name, value, JSON), **{name: "application/x-npy"})
        assert one.parts()[0].content_type == ""
        assert one.instances() == [{"a": 1}] and one.tensors() is None
    one = request((name, "a text", JSON), **{name: "x"})
    assert one.instances() == ["a text"]
    odd = Request({name: b"x"}, {name: {"content-type": None}})
    assert odd.parts()[0].content_type == ""


def test_files_are_one_instance_each() -> None:
    one = request(("a.png", b"A", "image/png"), ("b.png", b"B", "image/png"), ("empty", b"", "image/png"))
    assert one.instances() == [b"A", b"B"] and one.style is Style.MANY
    refused(one.part, 400, "2 parts")
    assert request(("a", b"A", ""), ("data", b"D", "")).part().name == "data"
    assert request(("a", b"A", "")).part().name == "a"


def test_tensors_of_a_form_have_the_other_parts_as_parameters() -> None:
    array = np.arange(4, dtype=np.float32)
    one = request(("k", bytearray(b"5"), ""), ("data", bytearray(write_npy(array)), NPY), ("t", "x", "text/plain"))
    found = one.tensors()
    assert found is not None and found[""].tolist() == array.tolist()
    assert one.parameters == {"k": 5, "t": "x"} and one.style is Style.MANY


def test_binary_tensors() -> None:
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    for kind in (NPY, "", "application/octet-stream", "Application/X-NPY; v=1"):
        found = body(bytearray(write_npy(array)), kind).tensors()
        assert found is not None and (found[""] == array).all()
    found = body(bytearray(write_safetensors({"a": array})), SAFETENSORS).tensors()
    assert found is not None and (found["a"] == array).all()
    for kind in (NPY, SAFETENSORS):
        refused(body(b"nonsense", kind).tensors, 400)
        refused(body(b"nonsense", kind).instances, 415)
    assert body(b"\x89PNG", "image/png").tensors() is None
    assert body("text", NPY).tensors() is None


POINTS = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.mark.parametrize(
    ("one", "rows", "style"),
    [
        (lambda: body(POINTS.tolist(), JSON), 2, Style.MANY),
        (lambda: body(json.dumps(POINTS.tolist()).encode(), ""), 2, Style.MANY),
        (lambda: body({"instances": POINTS.tolist()}, JSON), 2, Style.V1),
        (lambda: body({"x": POINTS[0].tolist()}, JSON), 1, Style.ONE),
        (lambda: body({"x": POINTS.tolist()}, JSON), 2, Style.MANY),
        (lambda: body(bytearray(write_npy(POINTS)), NPY), 2, Style.MANY),
        (lambda: body(bytearray(write_npy(POINTS[0])), NPY), 1, Style.MANY),
        (lambda: body(bytearray(write_safetensors({"x": POINTS})), SAFETENSORS), 2, Style.MANY),
        (lambda: body(bytearray(write_safetensors({"other": POINTS})), SAFETENSORS), 2, Style.MANY),
        (lambda: body(bytearray(write_safetensors({"x": POINTS, "y": POINTS})), SAFETENSORS), 2, Style.MANY),
        (
            lambda: body(
                {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "INT8", "data": [1, 2, 3, 4, 5, 6]}]}, JSON
            ),
            2,
            Style.V2,
        ),
    ],
)
def test_array_from_any_format(one: Any, rows: int, style: Style) -> None:
    made = one()
    array = made.array("float32", (3,), "x")
    assert array.dtype == np.float32 and (array == POINTS[:rows]).all() and made.style is style


def test_every_instance_of_an_array_is_answered() -> None:
    """{"x": [several]} is one JSON object and several instances."""
    one = body({"x": POINTS.tolist()}, JSON)
    count = len(one.array("float32", (3,), "x"))
    assert shaped(list(range(count)), one) == [0, 1]
    assert shaped([7], body({"x": 1}, JSON)) == 7
    assert shaped([7, 8], body({"x": 1}, JSON)) == [7, 8]


@pytest.mark.parametrize(
    "value",
    [
        [],
        [[1, 2]],
        [[1, 2, "3"]],
        ["1", "2", "3"],
        [[1, 2, None]],
        {"x": "123"},
        {"y": [1, 2, 3]},
        {"x": None},
        5,
        True,
        "123",
        bytearray(b"abc"),
        {"inputs": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": ["1", "2", "3"]}]},
        {"inputs": [TENSOR]},
        {"inputs": [{**TENSOR, "name": "a"}, {**TENSOR, "name": "b"}]},
        {"instances": [{"x": [1, 2, 3]}]},
    ],
)
def test_what_holds_no_such_array(value: Any) -> None:
    kind = "application/octet-stream" if isinstance(value, bytearray) else JSON
    refused(lambda: body(value, kind).array("float32", (3,), "x"), 422)


def test_files_are_no_numbers() -> None:
    one = request(("a", bytearray(b"123"), "image/png"), ("b", bytearray(b"456"), "image/png"))
    refused(lambda: one.array("float32", (3,)), 422)
    one = request(("a", bytearray(b"1"), ""), ("b", bytearray(b"2"), ""))
    refused(lambda: one.array("float32", ()), 422)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, None),
        ("*/*", None),
        ("application/json", None),
        (NPY, NPY),
        ("Application/X-NPY", NPY),
        (f"text/html, {SAFETENSORS};q=0.5", SAFETENSORS),
    ],
)
def test_accept(accept: str | None, kind: str | None) -> None:
    assert wants_tensors(body(b"1", **({"Accept": accept} if accept else {}))) == kind


def test_results_as_tensors() -> None:
    two = {"a": POINTS, "b": POINTS}
    refused(lambda: tensors(two, NPY), 406, SAFETENSORS)
    assert (read_npy(tensors({"a": POINTS * 0, "output": POINTS}, NPY)) == POINTS).all()
    assert (read_npy(tensors({"a": POINTS}, NPY)) == POINTS).all()
    assert body(tensors(two, SAFETENSORS), SAFETENSORS).tensors().keys() == two.keys()  # type: ignore[union-attr]


@given(st.text(st.characters(exclude_categories=[])), st.integers(-1000, 1000))
def test_an_error_can_always_be_sent(message: str, status: int) -> None:
    code, phrase, answer = error(RequestError(message, status))
    assert 400 <= code <= 599 and phrase.isascii()
    document = json.loads(answer)
    assert document["code"] == code and set(document) == {"code", "type", "message"}
    assert document["message"] == message.encode("utf-8", "replace").decode()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("\ud800")
KEYS = st.sampled_from(["instances", "inputs", "parameters", "id", "name", "shape", "datatype", "data", "x"])
DOCUMENTS = st.recursive(
    LEAVES | st.sampled_from(["FP32", "BYTES", "INT64"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["body", "data", "a", "b"]),
            DOCUMENTS | st.binary(max_size=40).map(bytearray) | st.just(bytearray(write_npy(POINTS))),
            st.sampled_from([JSON, NPY, SAFETENSORS, "", "text/plain", "image/png", "a/b+json", ";", "\x00"]),
        ),
        max_size=3,
    ),
    st.sampled_from(["parts", "part", "document", "instances", "tensors", "array"]),
)
def test_any_request_is_read_or_refused(parts: list, call: str) -> None:
    one = request(*parts)
    try:
        made = one.array("float32", (3,), "x") if call == "array" else getattr(one, call)()
    except RequestError as problem:
        assert 400 <= problem.status < 500
        error(problem)
    else:
        if call == "array":
            assert made.shape[1:] == (3,)
        if call == "instances":
            assert isinstance(made, list)
        assert one.style is not Style.ONE or call not in ("array", "instances") or len(made) == 1


# -- what stands beside a body ---------------------------------------------------------------------------------------


def test_the_address_has_parameters_whatever_the_body_is() -> None:
    one = request(("top_k", bytearray(b"5"), ""), ("body", {"instances": ["a", "b"], "x": 1}, JSON))
    assert (one.instances(), one.style, one.parameters) == (["a", "b"], Style.V1, {"top_k": 5, "x": 1})
    two = request(("x", bytearray(b"y"), ""), ("body", "text", "text/plain"))
    assert (two.instances(), two.style, two.parameters) == (["text"], Style.ONE, {"x": "y"})
    tensor = {"name": "a", "shape": [1], "datatype": "FP32", "data": [1.5]}
    three = request(("body", {"inputs": [tensor]}, JSON), ("k", bytearray(b"2"), ""))
    assert (three.tensors() is not None, three.style, three.parameters) == (True, Style.V2, {"k": 2})


def test_json_as_part_data_of_a_form() -> None:
    one = request(("data", bytearray(b'{"prompt": "a"}'), JSON), ("max_tokens", bytearray(b"3"), ""))
    assert (one.instances(), one.parameters) == ([{"prompt": "a"}], {"max_tokens": 3})


def test_an_instance_beside_data_is_not_taken_for_a_parameter() -> None:
    with pytest.raises(RequestError, match="too large for a parameter") as error:
        request(("data", bytearray(b"a"), ""), ("b", bytearray(b"x" * 5000), "")).instances()
    assert error.value.status == 413


# -- limits before work ----------------------------------------------------------------------------------------------


def test_rows_without_data_are_counted() -> None:
    file = write_npy(np.zeros((5, 0), np.float32)).replace(b"(5, 0)", b"(9999999999, 0)".ljust(6))
    header = bytearray(file)
    header[8:10] = (len(header) - 10).to_bytes(2, "little")
    one = Request({"body": header}, {"body": {"content-type": NPY}}, most=100)
    with pytest.raises(RequestError, match="at most 100") as error:
        one.tensors()
    assert error.value.status == 413
    tensor = {"name": "a", "shape": [10**9, 0], "datatype": "FP32", "data": []}
    with pytest.raises(RequestError, match="at most 100"):
        Request({"body": {"inputs": [tensor]}}, {"body": {"content-type": JSON}}, most=100).tensors()


def test_a_shape_of_a_million_sizes_is_refused_at_once() -> None:
    tensor = {"name": "a", "shape": [9] * 1_000_000, "datatype": "FP32", "data": [1]}
    began = time.monotonic()
    with pytest.raises(RequestError, match="at most 32 sizes"):
        request(("body", {"inputs": [tensor]}, JSON)).tensors()
    assert time.monotonic() - began < 2

"""A handler end to end on the CPU, between TorchServe's own decoder and encoder of messages."""

from __future__ import annotations

import json
import logging
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ts.context import Context
from ts.protocol.otf_message_handler import _retrieve_inference_msg
from ts.service import Service

from ts_mps.batching import (
    JSON,
    LENGTH,
    NPY,
    SAFETENSORS,
    Batch,
    BatchHandler,
    ConfigError,
    Input,
    Instances,
    Request,
    RequestError,
    numbers,
)
from ts_mps.batching import (
    handler as handler_module,
)
from ts_mps.batching.formats import read_npy, read_safetensors, write_npy, write_safetensors

LONGEST = 24
MOST = 45
FAILS_IN_RUN, GIVES_NAN, FAILS_IN_ENCODE, FAILS_IN_PREPARE, FAILS_IN_DECODE, NOT_DECODED, FAILS_IN_COLLATE = range(
    -7, 0
)


class Tokens(BatchHandler):
    """Answers each list of tokens with its first token, its sum and its length; negative tokens make it fail."""

    inputs = {"ids": Input("int64", (LENGTH,)), "first": Input("int64")}  # noqa: RUF012
    most_rows = 10**9

    def load(self, folder: Path) -> torch.nn.Module:
        self.runs: list[tuple[int, int]] = []
        self.failed_runs = 0
        return torch.nn.Identity()

    def decode(self, request: Request) -> Instances:
        found = request.instances()
        ids = [numbers(one.get("ids") if isinstance(one, dict) else one, "int64", "ids") for one in found]
        if any(one.ndim != 1 for one in ids):
            raise RequestError("Each instance must be a list of tokens.")
        if any((one == FAILS_IN_DECODE).any() for one in ids):
            raise KeyError("decode")
        if any((one == NOT_DECODED).any() for one in ids):
            return "nothing"  # type: ignore[return-value]
        return Instances({"ids": ids, "first": np.asarray([one[0] if len(one) else 0 for one in ids], np.int64)})

    def prepare(self, requests: list[Instances]) -> list[Instances]:
        if any((one == FAILS_IN_PREPARE).any() for request in requests for one in request.columns["ids"]):
            raise RequestError("It cannot be prepared.", 409)
        return requests

    def collate(self, parts: Any, arrays: Any) -> None:
        if any((one == FAILS_IN_COLLATE).any() for part in parts for one in part.columns["ids"]):
            raise ValueError("collate")
        super().collate(parts, arrays)

    def run(self, batch: Batch) -> Any:
        return self.compute(batch)  # the runner keeps the bound method, and tests replace what it calls

    def compute(self, batch: Batch) -> dict[str, torch.Tensor]:
        ids = batch["ids"]
        self.runs.append((batch.shape.rows, batch.shape.length))
        assert ids.shape == (batch.shape.rows, batch.shape.length)
        if len(ids) > self.most_rows:
            self.failed_runs += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if (ids == FAILS_IN_RUN).any():
            self.failed_runs += 1
            raise RuntimeError("CUDA error: device-side assert")
        mask = batch.mask
        ones = torch.ones_like(ids) if mask is None else mask.long()
        score = torch.where((ids == GIVES_NAN).any(1), float("nan"), 0.5)
        failing = (ids == FAILS_IN_ENCODE).any(1)
        return {"first": batch["first"], "sum": (ids * ones).sum(1), "n": ones.sum(1), "score": score, "bad": failing}

    def encode(self, result: Any, request: Request) -> Any:
        if result["bad"]:
            raise ZeroDivisionError("encode")
        return [result["first"], result["sum"], result["n"]]


def start(kind: type[BatchHandler] = Tokens, handler: Any = None, folder: str = ".", **batching: Any) -> Any:
    config = {"batching": {"lengths": [4, 8, LONGEST], "max_request_instances": MOST, **batching}}
    if handler is not None:
        config["handler"] = handler
    made = kind()
    manifest = {"model": {"modelVersion": "1.5", "serializedFile": "weights.pt"}}
    made.initialize(Context("m", folder, manifest, 8, None, "0.12.0", model_yaml_config=config))
    if isinstance(made, Tokens):
        made.runs.clear()
    return made


# -- TorchServe's side -----------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """One request as bytes, and what must come back."""

    parts: list[tuple[str, str, bytes]]
    status: int = 200
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Answer:
    status: int
    kind: str | None
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class _Connection:
    def __init__(self, message: bytes) -> None:
        self._file = BytesIO(message)

    def recv(self, count: int) -> bytes:
        return self._file.read(count)


def _framed(text: bytes) -> bytes:
    return struct.pack("!i", len(text)) + text


def _message(batch: list[Sent]) -> bytes:
    end = struct.pack("!i", -1)
    message = b""
    for number, one in enumerate(batch):
        message += _framed(str(number).encode())
        for name, value in one.headers.items():
            message += _framed(name.encode()) + _framed(value.encode())
        message += end
        for name, kind, body in one.parts:
            message += _framed(name.encode()) + _framed(kind.encode()) + _framed(body)
        message += end
    return message + end


def serve(handler: BatchHandler, batch: list[Sent]) -> list[Answer]:
    """A batch as TorchServe 0.12.0 decodes it, hands it over and takes its answers."""
    processors, fields, _ = Service.retrieve_data_for_inference(_retrieve_inference_msg(_Connection(_message(batch))))
    context = Context("m", ".", {}, len(batch), None, "0.12.0")
    context.request_processor = processors
    bodies = handler.handle(fields, context)
    assert len(bodies) == len(batch) and all(isinstance(body, bytes) for body in bodies)
    statuses = [context.get_response_status(index) for index in range(len(batch))]
    assert all(phrase is None or phrase.isascii() for _, phrase in statuses)
    return [
        Answer(statuses[index][0], context.get_response_content_type(index), body) for index, body in enumerate(bodies)
    ]


def send(document: Any, status: int = 200, answer: Any = None, **headers: str) -> Sent:
    return Sent([("body", JSON, json.dumps(document).encode())], status, answer, headers)


def told(ids: list[int]) -> list[int]:
    return [ids[0], sum(ids), len(ids)]


def check(batch: list[Sent], answers: list[Answer]) -> None:
    for one, got in zip(batch, answers, strict=True):
        assert got.status == one.status, (one, got)
        assert got.kind == JSON
        if one.status == 200:
            assert got.document == one.answer, one
        else:
            assert set(got.document) == {"code", "type", "message"} and got.document["code"] == one.status


# -- mixes -----------------------------------------------------------------------------------------------------------

_WRONG: dict[str, tuple[list[Any], int]] = {
    "run": ([FAILS_IN_RUN], 500),
    "nan": ([GIVES_NAN], 500),
    "encode": ([FAILS_IN_ENCODE], 500),
    "prepare": ([FAILS_IN_PREPARE], 409),
    "decode": ([FAILS_IN_DECODE], 400),
    "not decoded": ([NOT_DECODED], 500),
    "collate": ([FAILS_IN_COLLATE], 500),
    "text": (["5"], 422),
    "null": ([None], 422),
    "fraction": ([1.5], 422),
    "huge": ([2**63], 422),
    "nested": ([[1]], 422),
    "too long": ([1] * LONGEST, 413),
}
_BODIES = [
    Sent([("body", JSON, b'{"instances": [[1]')], 400),
    Sent([("body", JSON, b"\xff\xfe")], 400),
    Sent([("body", JSON, b"[" * 5000)], 400),
    Sent([("body", JSON, b"")], 400),
    Sent([("body", JSON, b"null")], 400),
    Sent([], 400),
    Sent([("body", JSON, b'{"instances": 5}')], 422),
    Sent([("body", JSON, b"[]")], 422),
    Sent([("body", JSON, b"[[]]")], 422),
    Sent([("body", JSON, b'{"ids": "\\ud800"}')], 422),
    Sent([("body", JSON, b"7")], 422),
    Sent([("body", "text/plain", b"1 2 3")], 422),
    Sent([("body", "image/png", b"\x89PNG")], 422),
    Sent([("a", "image/png", b"\x89PNG"), ("b", "image/png", b"\x89PNG")], 422),
    Sent([("body", NPY, write_npy(np.ones((2, 3))))], 415),
    Sent([("body", JSON, json.dumps([[1]] * (MOST + 1)).encode())], 413),
]


@st.composite
def batches(draw: st.DrawFn) -> list[Sent]:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    serial = iter(range(1000, 10**6))
    found = []
    for _ in range(draw(st.integers(1, 14))):
        wrong = draw(st.sampled_from(["", "", "", "body", *_WRONG]))
        if wrong == "body":
            found.append(draw(st.sampled_from(_BODIES)))
            continue
        count = draw(st.integers(0, 40))
        instances: list[list[Any]] = [
            [next(serial), *random.integers(0, 500, random.integers(0, LONGEST)).tolist()] for _ in range(count)
        ]
        if wrong and instances:
            place = draw(st.integers(0, count - 1))
            tokens, status = _WRONG[wrong]
            instances[place] = [next(serial), *tokens]
            found.append(send(instances if draw(st.booleans()) else {"instances": instances}, status))
            continue
        answers = [told(one) for one in instances]
        style = draw(st.sampled_from(["one", "many", "v1", "raw"]))
        if not instances:
            found.append(send({"instances": []} if style == "v1" else [], 422))
        elif style == "one":
            found.append(send({"ids": instances[0]}, 200, answers[0]))
        elif style == "v1":
            found.append(send({"instances": instances}, 200, {"predictions": answers}))
        else:
            found.append(
                Sent([("data", JSON if style == "many" else "", json.dumps(instances).encode())], 200, answers)
            )
    return found


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_everyone_gets_their_own_answer_or_their_own_error(data: st.DataObject) -> None:
    served = start(
        max_instances=data.draw(st.sampled_from([1, 2, 7, 32, 1000])),
        max_tokens=data.draw(st.sampled_from([None, LONGEST, 100])),
        launch_cost=data.draw(st.sampled_from([0, 20, 10**6])),
        decode_threads=data.draw(st.sampled_from([1, 3])),
    )
    for _ in range(2):
        batch = data.draw(batches())
        check(batch, serve(served, batch))


@pytest.mark.parametrize("wrong", list(_WRONG))
def test_no_neighbour_is_harmed(wrong: str) -> None:
    tokens, status = _WRONG[wrong]
    good = [[[1000 * i + j, *range(j)] for j in range(9)] for i in range(1, 9)]
    batch = [send(one, 200, [told(ids) for ids in one]) for one in good]
    batch.insert(3, send([[1], [2, *tokens], [3]], status))
    served = start()
    check(batch, serve(served, batch))
    assert len(served.runs) < 30  # halved, not one by one: 75 instances


def test_a_request_is_not_run_on_once_it_has_failed() -> None:
    served = start(max_instances=4, launch_cost=0)
    check([one := send([[FAILS_IN_RUN]] * 40, 500)], serve(served, [one]))
    assert len(served.runs) <= 5


def test_rows_are_padded_where_they_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "_pads_rows", lambda self: True)
    good = [[[1000 * i + j, *range(j)] for j in range(9)] for i in range(1, 9)]
    batch = [send(one, 200, [told(ids) for ids in one]) for one in good]
    batch.insert(3, send([[1], [2, FAILS_IN_RUN], [3]], 500))
    served = start(rows=[2, 8, 32])
    check(batch, serve(served, batch))
    assert {rows for rows, _ in served.runs} <= {2, 8, 32}
    served.most_rows = 7  # a chunk of 32 waits, the limit shrinks, and then a neighbour makes it fail
    check(batch, serve(served, batch))


# -- what a handler itself can do wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made", [None, [], "x", lambda requests: requests[:-1], lambda requests: [None for _ in requests]]
)
def test_prepare_that_returns_the_wrong_thing(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "prepare", lambda self, requests: made(requests) if callable(made) else made)
    answers = serve(start(), [send([[1]]), send([[2]])])
    assert all(400 <= answer.status < 600 for answer in answers)


def _raises(error: BaseException) -> Callable[..., Any]:
    def method(*args: Any) -> Any:
        raise error

    return method


def test_requests_are_prepared_once_even_if_not_all_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What prepare made of some requests is not prepared again when it lost the others."""
    seen: list[int] = []

    def prepare(self: Tokens, requests: list[Instances]) -> list[Instances]:
        seen.extend("made" in one.columns for one in requests)
        made = [Instances({**one.columns, "made": [1] * len(one)}) for one in requests]
        return made[:1]

    monkeypatch.setattr(Tokens, "prepare", prepare)
    batch = [send([[1]], 200, [[1, 1, 1]]), send([[2]], 200, [[2, 2, 1]])]
    check(batch, serve(start(), batch))
    assert seen == [False] * 4  # together, and then each alone


def test_what_prepare_did_not_make_is_the_handlers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "prepare", lambda self, requests: [None for _ in requests])
    assert [answer.status for answer in serve(start(), [send([[1]]), send([[2]])])] == [500, 500]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["decode", "prepare", "collate", "compute", "encode"])
def test_what_ends_the_process_is_no_requests_fault(
    method: str, ends: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start()
    with monkeypatch.context() as patched:
        patched.setattr(Tokens, method, _raises(ends()))
        with pytest.raises(ends):
            serve(served, [send([[1]]), send([[2]])])
    check([one := send([[5]], 200, [[5, 5, 1]])], serve(served, [one]))


class Panic(BaseException):
    """As pyo3's, which is no Exception."""


@pytest.mark.parametrize("method", ["decode", "prepare", "collate", "compute", "encode"])
def test_a_panic_in_rust_is_a_requests_fault(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    monkeypatch.setattr(Tokens, method, _raises(Panic("x")))
    assert [answer.status for answer in serve(served, [send([[1]]), send([[2]])])] == [500, 500]


@pytest.mark.parametrize("method", ["decode", "prepare", "collate", "compute", "encode", "encode_request", "outputs"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), None),
        (RequestError("x", 451), 451),
        (RequestError("x", 204), 500),
        (RequestError("x", 999), 500),
        (StopIteration(), None),
        (KeyError("\ud800"), None),
        (RecursionError(), None),
        (AssertionError(), None),
    ],
)
def test_a_method_that_raises(
    method: str, error: Exception, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start()
    monkeypatch.setattr(Tokens, method, _raises(error))
    clients = isinstance(error, (ValueError, LookupError, RecursionError))
    expected = status or (400 if method in ("decode", "prepare") and clients else 500)
    headers = {"Accept": SAFETENSORS} if method == "outputs" else {}
    batch = [send([[1], [2]], expected, None, **headers), send([[3, 4]], expected, None, **headers)]
    check(batch, serve(served, batch))
    monkeypatch.undo()
    check([one := send([[5]], 200, [[5, 5, 1]])], serve(served, [one]))


@pytest.mark.parametrize(
    "results",
    [
        None,
        5,
        torch.zeros(()),
        torch.zeros(4),
        {"a": np.zeros(1)},
        {"a": torch.zeros(4)},
        {},
        torch.zeros(1, dtype=torch.complex64),
        [torch.zeros(1)],
    ],
)
def test_run_that_returns_the_wrong_thing(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    monkeypatch.setattr(Tokens, "compute", lambda self, batch: results)
    monkeypatch.setattr(Tokens, "encode", lambda self, result, request: dict(result))
    batch = [send([[1], [2]], 500), send([[3, 4]], 500)]
    check(batch, serve(served, batch))


@pytest.mark.parametrize("answer", [object(), {1, 2}, 2**70, "\ud800", b"x", {"a": object()}])
def test_encode_that_returns_what_json_has_not(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start()
    usual = Tokens.encode
    monkeypatch.setattr(
        Tokens, "encode", lambda self, result, request: answer if result["n"] == 2 else usual(self, result, request)
    )
    batch = [send([[1]], 200, [[1, 1, 1]]), send([[2, 3]], 500)]
    check(batch, serve(served, batch))


@pytest.mark.parametrize(
    "instances",
    [
        lambda: Instances({"ids": [[1]]}),
        lambda: Instances({"first": np.ones(1, np.int64)}),
        lambda: Instances({"ids": [1], "first": np.ones(1, np.int64)}),
        lambda: Instances({"ids": [[1]], "first": np.ones((1, 2), np.int64)}),
        lambda: Instances({"ids": [[1]], "first": ["x"]}),
        lambda: Instances({"ids": [[1], [2]], "first": np.ones(1, np.int64)}),
        lambda: Instances({}),
        lambda: Instances({"ids": [[1]], "first": np.ones(1, np.int64)}, np.asarray([LONGEST + 1])),
        lambda: Instances({"ids": [[1] * 9], "first": np.ones(1, np.int64)}, np.asarray([2])),
        lambda: Instances({"ids": [[1]], "first": np.ones(1, np.int64)}, np.asarray([0])),
    ],
)
def test_decode_that_returns_odd_columns(instances: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = start(launch_cost=0)
    usual = Tokens.decode
    monkeypatch.setattr(Tokens, "prepare", BatchHandler.prepare)
    monkeypatch.setattr(
        Tokens,
        "decode",
        lambda self, request: instances() if request.header("odd") else usual(self, request),
    )
    answers = serve(served, [send([[1]]), send([[2]], odd="1"), send([[3, 4]])])
    assert [answer.status == 200 for answer in answers] == [True, False, True], answers
    assert (answers[0].document, answers[2].document) == ([[1, 1, 1]], [[3, 7, 2]])


# -- memory and the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("most", [1, 3, 8, 31])
def test_out_of_memory_is_halved_and_remembered(most: int, pads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "_pads_rows", lambda self: pads)
    served = start(max_instances=64, lengths=[LONGEST])
    served.most_rows = most
    requests = [[[100 * i + j, *range(j % 11)] for j in range(40)] for i in range(1, 6)]
    batch = [send(one, 200, [told(ids) for ids in one]) for one in requests]
    check(batch, serve(served, batch))
    assert served.failed_runs > 0
    served.failed_runs = 0
    check(batch, serve(served, batch))
    assert served.failed_runs == 0
    assert all(shape.rows <= most for shape in served.grid.shapes())


def test_not_enough_memory_for_one_instance() -> None:
    served = start()
    served.most_rows = 0
    batch = [send([[1]] * 5, 503), send([[1, 2, 3]], 503), send({"instances": 1}, 422)]
    check(batch, serve(served, batch))
    served.most_rows = 1
    check([one := send([[1], [2]], 200, [[1, 1, 1], [2, 2, 1]])], serve(served, [one]))


def test_a_lost_device_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(handler_module, "survives", lambda device: False)
    monkeypatch.setattr(handler_module, "leave_after_answering", lambda: left.append(1))
    served = start(max_instances=4, launch_cost=0)
    bad = send([[FAILS_IN_RUN, *[1] * 20]] * 3, 503)  # the longest instances run first
    batch = [send([[1], [2]] * 10, 503), bad, send([[3]], 503), send({"instances": 5}, 422), send([], 422)]
    check(batch, serve(served, batch))
    assert left == [1] and len(served.runs) == 1
    monkeypatch.setattr(handler_module, "leave", _raises(SystemExit(70)))
    with pytest.raises(SystemExit):  # with the next batch in its hands, before anything touches the device
        serve(served, [bad])
    assert len(served.runs) == 1


def test_a_worker_that_leaves_by_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of ts-mps does, which puts this into TorchServe's context."""
    told: list[str] = []
    monkeypatch.setattr(Context, "device_lost", lambda self, error: told.append(str(error)), raising=False)
    monkeypatch.setattr(handler_module, "survives", lambda device: False)
    monkeypatch.setattr(handler_module, "leave_after_answering", _raises(AssertionError()))
    served = start()
    check(batch := [send([[FAILS_IN_RUN]], 503), send({"instances": 5}, 422)], serve(served, batch))
    assert len(told) == 1


def test_a_device_that_survives_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_module, "leave_after_answering", _raises(AssertionError()))
    check([one := send([[FAILS_IN_RUN]], 500)], serve(start(), [one]))


# -- formats of answers ----------------------------------------------------------------------------------------------


class Points(BatchHandler):
    """Twice the point, and its sum."""

    inputs = {"x": Input("float32", (3,))}  # noqa: RUF012

    def load(self, folder: Path) -> torch.nn.Module:
        return torch.nn.Identity()

    def decode(self, request: Request) -> Instances:
        return Instances({"x": request.array("float32", (3,), "x")})

    def run(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"output": 2 * batch["x"], "sum": batch["x"].sum(1)}

    def encode(self, result: Any, request: Request) -> Any:
        return result["sum"]


def test_every_format_in_one_batch() -> None:
    points = np.arange(6, dtype=np.float32).reshape(2, 3)
    v2 = {"id": "a", "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": points.ravel().tolist()}]}
    batch = [
        send(points.tolist()),
        send({"instances": points.tolist()}),
        send(v2),
        Sent([("body", NPY, write_npy(points))]),
        Sent([("body", NPY, write_npy(points))], headers={"accept": NPY}),
        Sent([("body", SAFETENSORS, write_safetensors({"x": points}))], headers={"ACCEPT": f"{SAFETENSORS}, */*"}),
        send({"x": [0, 1, 2]}),
        send({"x": points.tolist()}),
        send(v2, body="application/x-npy"),
        Sent([("data", "application/octet-stream", b"abc")]),
    ]
    answers = serve(start(Points), batch)
    assert [answer.status for answer in answers] == [200] * 9 + [422]
    assert [answers[i].document for i in (0, 1, 3, 6, 7)] == [
        [3, 12],
        {"predictions": [3, 12]},
        [3, 12],
        3,
        [3, 12],
    ]
    for i in (2, 8):
        assert answers[i].document["model_name"] == "m" and answers[i].document["model_version"] == "1.5"
        outputs = {one["name"]: one for one in answers[i].document["outputs"]}
        assert outputs["output"]["shape"] == [2, 3] and outputs["sum"]["data"] == [3, 12]
    assert answers[4].kind == NPY and (read_npy(answers[4].body) == 2 * points).all()
    read = read_safetensors(answers[5].body)
    assert answers[5].kind == SAFETENSORS and (read["output"] == 2 * points).all() and read["sum"].tolist() == [3, 12]


# -- metrics ---------------------------------------------------------------------------------------------------------

#: org.pytorch.serve.metrics.Metric of TorchServe 0.12.0.
_METRIC = re.compile(
    r"\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)


def metrics(caplog: pytest.LogCaptureFixture) -> list[dict[str, float]]:
    """The reports in the log, each by metric."""
    reports = []
    for record in caplog.records:
        if "[METRICS]" not in record.getMessage():
            continue
        report: dict[str, float] = {}
        for line in record.getMessage().splitlines():
            assert line.startswith("[METRICS]")
            match = _METRIC.fullmatch(line.removeprefix("[METRICS]"))
            assert match is not None, line
            assert match[1] not in report and match[4] == "ModelName:m,Level:Model"
            assert match[6] in ("COUNTER", "GAUGE") and int(match[8]) <= time.time()
            report[match[1]] = float(match[3])
        reports.append(report)
    return reports


def test_each_batch_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served = start(lengths=[4, 8], max_instances=8, launch_cost=0)
    caplog.clear()
    batch = [send([[1], [2, 3]]), send({"ids": [1, 2, 3, 4, 5]}), send({"instances": 1}, 422), send([[GIVES_NAN]], 500)]
    for _ in range(2):
        serve(served, batch)
    reports = metrics(caplog)
    assert len(reports) == 2
    for report in reports:
        assert all(value >= 0 for value in report.values())
        counts = {name: value for name, value in report.items() if not name.endswith("Time")}
        assert counts == {
            "BatchRequests": 4,
            "BatchInstances": 4,
            "BatchRuns": 2,
            "BatchTokens": 9,
            "BatchPaddedTokens": 3 * 4 + 8,
            "BatchGraphHits": 0,
            "BatchGraphMisses": 2,
            "BatchIsolatedErrors": 2,
            "BatchSize": 4,
            "BatchPadding": 55.0,
        }
        assert {name for name in report if name.endswith("Time")} == {
            "BatchIdleTime",
            "BatchDecodeTime",
            "BatchRunTime",
            "BatchEncodeTime",
        }


def test_a_batch_of_errors_is_reported_too(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(handler_module, "survives", lambda device: False)
    monkeypatch.setattr(handler_module, "leave_after_answering", lambda: None)
    served = start()
    caplog.clear()
    serve(served, [send(5)] * 3)
    serve(served, [send([[FAILS_IN_RUN]])] * 2)
    assert [(one["BatchRequests"], one["BatchIsolatedErrors"], one["BatchRuns"]) for one in metrics(caplog)] == [
        (3, 3, 0),
        (2, 2, 0),
    ]


def test_the_log_has_no_words_of_a_client(caplog: pytest.LogCaptureFixture) -> None:
    """TorchServe's frontend reads metrics and commands from the worker's output."""
    caplog.set_level(logging.INFO, "ts_mps")
    words = "\n[METRICS]Fake.Count:1|#Level:Host|#hostname:a,1"
    served = start()
    caplog.clear()
    serve(served, [send({"ids": [words]}), send([[1], words]), send({words: words}), send([[FAILS_IN_DECODE]])])
    assert "Fake" not in "".join(record.getMessage() for record in caplog.records)


# -- fuzz ------------------------------------------------------------------------------------------------------------

_POINTS = np.arange(6, dtype=np.float32).reshape(2, 3)
_VALID = [
    (JSON, b"[[1, 2, 3], [4, 5, 6]]"),
    (JSON, b'{"instances": [[1, 2, 3]], "parameters": {"a": 1}}'),
    (JSON, b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'),
    (JSON, b'{"x": [1, 2, 3]}'),
    (NPY, write_npy(_POINTS)),
    (SAFETENSORS, write_safetensors({"x": _POINTS})),
]
_KINDS = st.sampled_from([JSON, NPY, SAFETENSORS, "", "text/plain", "a/b+json", "application/octet-stream", "image/x"])
_SPLICES = st.sampled_from(
    [
        b"",
        b"[",
        b"]",
        b"{",
        b'"',
        b",",
        b"-",
        b"1e999",
        b"NaN",
        b"null",
        b"9" * 400,
        b"\x00",
        b"\xff",
        b'"\\ud800"',
        b"e",
    ]
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    if draw(st.integers(0, 3)) == 0:
        return draw(_KINDS), draw(st.binary(max_size=60))
    kind, body = draw(st.sampled_from(_VALID))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(body)))
        body = body[:place] + draw(_SPLICES | st.binary(max_size=2)) + body[place + draw(st.integers(0, 8)) :]
    return (kind if draw(st.integers(0, 4)) else draw(_KINDS)), body


_FUZZED: dict[type[BatchHandler], Any] = {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Tokens, Points])
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(bodies(), st.sampled_from(["body", "data", "x", "\u00e9"])), min_size=1, max_size=8), _KINDS)
def test_no_body_harms_the_worker(kind: type[BatchHandler], found: list, accept: str) -> None:
    if kind not in _FUZZED:  # one worker for all of them
        _FUZZED[kind] = start(kind)
    served = _FUZZED[kind]
    batch = [Sent([(name, *one)], headers={"accept": accept, name: "x"} if accept else {}) for one, name in found]
    batch.append(send([[1, 2, 3]]))
    began = time.monotonic()
    answers = serve(served, batch)
    assert time.monotonic() - began < 2
    assert answers[-1].document == ([[1, 6, 3]] if kind is Tokens else [6])
    for one, answer in zip(batch, answers, strict=True):
        # A result may overflow: the sum of floats that are each finite.
        overflow = kind is Points and b"not finite" in answer.body
        negative = kind is Tokens and b"-" in one.parts[0][2]
        assert answer.status == 200 or 400 <= answer.status < 500 or overflow or negative, (one, answer)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b"[" * 2_000_000),
        (JSON, b"[" + b"[]," * 300_000 + b"[]]"),
        (JSON, b'{"instances": [' + b"1," * 500_000 + b"1]}"),
        (JSON, b'["' + b"x" * 1_000_000 + b'",' + b"1," * 100_000 + b"1]"),
        (JSON, b"9" * 1_000_000),
        (JSON, b"[" + b"9" * 1_000_000 + b"]"),
        (NPY, b"\x93NUMPY\x01\x00" + b"\xff" * 1_000_000),
        (SAFETENSORS, b"\xff" * 1_000_000),
    ],
)
def test_large_bodies_cost_no_more_than_their_size(kind: str, body: bytes) -> None:
    served = start(Points)
    batch = [Sent([("body", kind, body)]), send([[1, 2, 3]])]
    began = time.monotonic()
    tracemalloc.start()
    try:
        answers = serve(served, batch)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 400 <= answers[0].status < 500 and answers[1].document == [6]
    assert len(answers[0].body) < 2000
    assert most < 100 * len(body) and time.monotonic() - began < 10


# -- starting --------------------------------------------------------------------------------------------------------


def test_a_config_that_cannot_be_used_stops_the_load() -> None:
    with pytest.raises(ConfigError, match=r"batching\.max_instance: no such key, did you mean max_instances"):
        start(max_instance=5)
    with pytest.raises(ConfigError, match=r"handler\.a: no such key"):
        start(handler={"a": 1})
    with pytest.raises(ConfigError, match="max_bytes"):
        start(max_bytes=1)

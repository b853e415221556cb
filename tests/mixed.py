"""Mixed traffic for the four handlers of handlers/: good requests whose answers are known, and bad ones of many kinds.

Everything is made from a seed. The right answers come from the same handlers in this process, on the CPU.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import random
import socket
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from handling import Served, build_module, npy
from PIL import Image

JSON, TEXT, BYTES = "application/json", "text/plain", "application/octet-stream"
NPY, SAFETENSORS, PNG = "application/x-npy", "application/x-safetensors", "image/png"
MODELS = ("text_classifier", "ranker", "image_classifier", "text_generator")

#: Small shapes, so that a start on two cores is short.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "text_classifier": {"batching.lengths": [16, 32, 64], "handler.top_k": 0},
    "ranker": {},
    "image_classifier": {"batching.decode_threads": 2, "handler.top_k": 0, "handler.max_pixels": 1_000_000},
    "text_generator": {"batching.lengths": [16, 32], "handler.max_new_tokens": 16, "handler.default_max_tokens": 8},
}


# -- building ------------------------------------------------------------------------------------------------------


def build(model: str, store: Path, folder: Path, **config: Any) -> None:
    """The archive of a handler in ``store``, as its script builds it, and its model's folder.

    Args:
        model: The handler's name.
        store: Gets the .mar.
        folder: Gets the model; must not exist.
        config: Keys of model-config.yaml, with __ for a dot.
    """
    script = build_module(model)
    values = {**SMALL[model], **{key.replace("__", "."): value for key, value in config.items()}}
    changes = [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    where = ["--preset", "tiny", "--store", str(store), "--keep-model", str(folder)]
    tiny = functools.partial(_decided, script.tiny) if model == "text_classifier" else script.tiny
    script.main(model, {"tiny": tiny}, [*where, *changes])


def _decided(make: Callable[[Path], None], folder: Path) -> None:
    """A text classifier whose random weights do not give every text 0.50: else swapped answers would look right."""
    make(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 100
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def serve(model: str, folder: Path, **config: Any) -> Served:
    """The same handler in this process, on the CPU."""
    return Served(model, folder, **{key.replace(".", "__"): value for key, value in SMALL[model].items()}, **config)


# -- requests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request.

    Args:
        path: Of the URL.
        body: Its body.
        kind: Its content type; none is sent if empty.
        headers: Further headers, as the bytes of whole lines.
    """

    path: str
    body: bytes
    kind: str = JSON
    headers: tuple[bytes, ...] = ()

    def raw(self, host: str) -> bytes:
        """The bytes on the wire."""
        lines = [f"POST {self.path} HTTP/1.1".encode(), f"Host: {host}".encode()]
        lines += [f"Content-Type: {self.kind}".encode()] * bool(self.kind)
        lines += [*self.headers, f"Content-Length: {len(self.body)}".encode()]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


@dataclass(frozen=True)
class Case:
    """A request and what must come back.

    Args:
        model: The model asked.
        ask: The request.
        status: What it must be answered with.
        answer: The answer, comparable; None for a bad request.
        begins: What the answer's bytes begin with.
    """

    model: str
    ask: Ask
    status: int
    answer: Any = None
    begins: bytes = b""


def received(body: bytes, kind: str) -> Any:
    """What TorchServe's worker makes of a body before the handler gets it."""
    try:
        if kind == JSON:
            return json.loads(body.decode())
        if kind.startswith("text"):
            return body.decode()
    except Exception:
        pass
    return bytearray(body)


def comparable(answer: Any) -> Any:
    """An answer in which the order of labels, which near ties may swap, plays no part."""
    if isinstance(answer, list):
        if answer and all(isinstance(one, dict) and "label" in one for one in answer):
            return {one["label"]: one["score"] for one in answer}
        return [comparable(one) for one in answer]
    if isinstance(answer, dict):
        return {key: comparable(value) for key, value in answer.items()}
    return answer


def differ(one: Any, other: Any, tolerance: float = 1e-4) -> bool:
    """Whether two comparable answers differ in more than the last digits of their numbers."""
    if type(one) is not type(other):
        return True
    if isinstance(one, float):
        return not math.isclose(one, other, rel_tol=0, abs_tol=tolerance)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differ(value, other[key], tolerance) for key, value in one.items())
    if isinstance(one, list):
        return len(one) != len(other) or any(map(differ, one, other, [tolerance] * len(one)))
    return one != other


def twins(cases: Sequence[Case], tolerance: float) -> list[tuple[Any, Any]]:
    """Answers of one model that could be swapped unnoticed."""
    answers = [case.answer for case in cases if case.answer is not None]
    return [
        (one, two) for index, one in enumerate(answers) for two in answers[:index] if not differ(one, two, tolerance)
    ]


class Traffic:
    """Good and bad requests.

    Args:
        served: The handlers in this process, for the right answers.
        seed: What the requests are made from.
    """

    def __init__(self, served: Mapping[str, Served], seed: int) -> None:
        self._served = served
        self.dice = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._serial = 0

    def good(self, model: str) -> Case:
        """A request and its answer, which hardly any other one has; :func:`twins` tells."""
        self._serial += 1
        ask = _GOOD[model](self, self._serial)
        answer = self._served[model].ask((received(ask.body, ask.kind), ask.kind))[0]
        assert answer.status == 200, answer.body
        found = answer.json
        if "model_name" in found:
            found["model_name"] = model
        return Case(model, ask, 200, comparable(found), answer.body[:2])

    def bad(self, model: str) -> Case:
        """A request that is answered with the 4xx that the handler gives in this process."""
        ask = self.dice.choice(_BAD)(self, model)
        status = self._served[model].ask((received(ask.body, ask.kind), ask.kind))[0].status
        assert 400 <= status < 500, (status, ask)
        return Case(model, ask, status)

    # -- pieces ----------------------------------------------------------------------------------------------------

    def ids(self, most: int) -> list[int]:
        return self._numbers.integers(5, 100, self.dice.randint(3, most)).tolist()

    def candidates(self, count: int) -> np.ndarray:
        ids = self._numbers.integers(0, 100, (count, 26))
        return np.hstack([self._numbers.random((count, 13)), ids]).astype("float32")

    def image(self, kind: str = "PNG") -> bytes:
        pixels = self._numbers.integers(0, 255, (self.dice.randint(33, 60), self.dice.randint(33, 60), 3), np.uint8)
        # Noise alone would look the same to a small model: a colour makes the answers differ.
        pixels = (pixels // 4 + self._numbers.integers(0, 190, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()

    def document(self, model: str) -> dict[str, Any]:
        """A good JSON object."""
        rows = self.candidates(2)
        return {
            "text_classifier": lambda: {"instances": [{"input_ids": self.ids(40)}]},
            "ranker": lambda: {"dense": rows[:, :13].tolist(), "sparse": rows[:, 13:].astype(int).tolist()},
            "image_classifier": lambda: {"instances": [{"b64": base64.b64encode(self.image()).decode()}]},
            "text_generator": lambda: {"input_ids": self.ids(30), "max_tokens": 4},
        }[model]()


def ask(model: str, document: Any, **more: Any) -> Ask:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Ask(f"/predictions/{model}", body, **more)


def v2(model: str, name: str, datatype: str, shape: list[int], data: list[Any], **more: Any) -> Ask:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return Ask(f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor], **more}).encode())


def _good_text(traffic: Traffic, serial: int) -> Ask:
    # Six pairs of scores: one alone is too often near another request's.
    rows = [traffic.ids(60) for _ in range(6)]
    if serial % 3 == 0:
        width = min(map(len, rows))
        ids = [row[:width] for row in rows]
        return v2(
            "text_classifier",
            "input_ids",
            "INT64",
            [6, width],
            [one for row in ids for one in row],
            id=f"request-{serial}",
        )
    if serial % 3 == 1:
        return ask("text_classifier", npy(np.array([row[:3] for row in rows]))[0], kind=NPY)
    return ask("text_classifier", {"instances": [{"input_ids": row} for row in rows]})


def _good_candidates(traffic: Traffic, serial: int) -> Ask:
    rows = traffic.candidates(traffic.dice.randint(3, 40))
    if serial % 3 == 0:
        dense, sparse = np.ascontiguousarray(rows[:, :13]), rows[:, 13:].astype("int64")
        return ask("ranker", safetensors.numpy.save({"dense": dense, "sparse": sparse}), kind=SAFETENSORS)
    if serial % 3 == 1:
        return ask("ranker", npy(rows)[0], kind=NPY)
    return ask("ranker", rows.tolist())


def _good_image(traffic: Traffic, serial: int) -> Ask:
    if serial % 3 == 0:
        texts = [base64.b64encode(traffic.image()).decode() for _ in range(2)]
        return ask("image_classifier", {"instances": [{"b64": text} for text in texts]})
    if serial % 3 == 1:
        return ask("image_classifier", traffic.image("JPEG"), kind="image/jpeg")
    return ask("image_classifier", traffic.image(), kind=PNG)


def _good_prompt(traffic: Traffic, serial: int) -> Ask:
    ids, wish = traffic.ids(30), {"max_tokens": traffic.dice.randint(4, 10)}
    if serial % 4:
        return ask("text_generator", {"input_ids": ids, **wish, "temperature": 1.0, "seed": serial})
    # Two greedy answers may be the same but for their ids.
    return v2("text_generator", "input_ids", "INT64", [1, len(ids)], ids, parameters=wish, id=f"request-{serial}")


_GOOD: Mapping[str, Callable[[Traffic, int], Ask]] = {
    "text_classifier": _good_text,
    "ranker": _good_candidates,
    "image_classifier": _good_image,
    "text_generator": _good_prompt,
}


# -- bad requests: every one is wrong for every model --------------------------------------------------------------


def truncated(traffic: Traffic, model: str) -> Ask:
    whole = json.dumps(traffic.document(model)).encode()
    return ask(model, whole[: traffic.dice.randint(1, len(whole) - 1)])


def wrong_dtype(traffic: Traffic, model: str) -> Ask:
    values = traffic.dice.choice([["a"], [None], [1.5], [{}], [[1], [2, 3]], {"a": 1}, True, ["1", "2"]])
    return ask(
        model,
        {
            "text_classifier": {"input_ids": values},
            "ranker": {"dense": [values] * 13, "sparse": [values] * 26},
            "image_classifier": {"b64": values},
            "text_generator": {"input_ids": values},
        }[model],
    )


def wrong_array(traffic: Traffic, model: str) -> Ask:
    array = traffic.dice.choice(
        [
            np.array(["a", "b"]),
            np.array([["2020-01-01"]], "datetime64[D]"),
            np.array([1 + 2j]),
            np.full((1, 39), np.nan),
            np.full((2, 39), np.inf, "float32"),
            np.full((2, 39), -5),
            np.zeros((2, 0)),
            np.zeros((0, 39)),
            np.zeros((2, 2, 2)),
            np.full((1, 39), 2**63, "uint64"),
            np.zeros(3, [("a", "i4"), ("b", "f4")]),
        ]
    )
    return ask(model, npy(array)[0], kind=NPY)


def not_finite(traffic: Traffic, model: str) -> Ask:
    value = traffic.dice.choice(["NaN", "Infinity", "-Infinity", "1e400"])
    body = {
        "text_classifier": f'{{"input_ids": [5, {value}]}}',
        "ranker": f"[[{', '.join([value] * 39)}]]",
        "image_classifier": f'{{"b64": {value}}}',
        "text_generator": f'{{"input_ids": [5, 6], "temperature": {value}}}',
    }[model]
    return ask(model, body.encode())


def huge_header(traffic: Traffic, model: str) -> Ask:
    shape = traffic.dice.choice(
        [(10**12, 39), (2**62, 4), (2**63, 39), (10**30,), (-1, 39), (0, 2**62), (1,) * 70, (True, 39), (1.5,), ("a",)]
    )
    descr = traffic.dice.choice(["<f4", "<i8", "|O", "<U9", "V1000000000", "nonsense", "<f4, <f4"])
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    size = traffic.dice.choice([len(header)] * 3 + [2**16 - 1, 3])
    return ask(model, b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + header + bytes(64), kind=NPY)


def huge_shape(traffic: Traffic, model: str) -> Ask:
    shape = traffic.dice.choice([[10**15, 39], [2**63, 2], [10**40], [-1, 39], [0, 10**18], [1] * 70, [1.5], "a", None])
    datatype = traffic.dice.choice(["FP32", "INT64", "BYTES", "FP128", "BOOL"])
    data = ["a", "b"] if datatype == "BYTES" else [1.5]
    return v2(model, traffic.dice.choice(["input_ids", "dense", "text"]), datatype, shape, data, id="x" * 100)


def huge_safetensors(traffic: Traffic, model: str) -> Ask:
    size = traffic.dice.choice([10**12, 2**62, 4])
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [size], "data_offsets": [0, 8 * size]}}).encode()
    length = traffic.dice.choice([len(header), 2**40, 2**63])
    return ask(model, struct.pack("<Q", length) + header + bytes(16), kind=SAFETENSORS)


def bomb(traffic: Traffic, model: str) -> Ask:
    """30,000 x 30,000 black pixels are 900 MB once decoded, and 10 kB as a file."""
    side = traffic.dice.choice([30_000, 20_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", _ZEROS) + _chunk(b"IEND", b"")
    return ask(model, file, kind=traffic.dice.choice([PNG, BYTES]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_ZEROS = zlib.compress(bytes(10**7))


def text_bomb(traffic: Traffic, model: str) -> Ask:
    """A PNG whose compressed text is 100 MB."""
    header = struct.pack(">IIBBBBB", 40, 40, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"zTXt", b"a\0\0" + _LONG_TEXT)
    return ask(model, file + _chunk(b"IEND", b""), kind=PNG)


_LONG_TEXT = zlib.compress(bytes(10**8))


def wrong_type(traffic: Traffic, model: str) -> Ask:
    kinds = [NPY, SAFETENSORS, f"{NPY}; charset=utf-8"]
    if model in ("ranker", "image_classifier"):  # any other bytes that are UTF-8 are a text
        kinds += ["application/xml", "image/gif", "application/x-www-form-urlencoded;", "nonsense", "video/mp4"]
    return ask(model, traffic.document(model), kind=traffic.dice.choice(kinds))


def empty(traffic: Traffic, model: str) -> Ask:
    return ask(model, b"", kind=traffic.dice.choice([JSON, TEXT, NPY, SAFETENSORS, PNG, BYTES, ""]))


def noise(traffic: Traffic, model: str) -> Ask:
    body = b"\xff" + traffic.dice.randbytes(traffic.dice.choice([1, 10, 100, 5000, 200_000]))
    return ask(model, body, kind=traffic.dice.choice([JSON, TEXT, NPY, SAFETENSORS, PNG, BYTES, "", "image/jpeg"]))


def damaged(traffic: Traffic, model: str) -> Ask:
    """An image or array with its end cut off."""
    whole, kind = (traffic.image(), PNG) if model == "image_classifier" else (npy(traffic.candidates(3))[0], NPY)
    return ask(model, whole[: traffic.dice.randint(1, len(whole) - 20)], kind=kind)


def deep(traffic: Traffic, model: str) -> Ask:
    depth = traffic.dice.choice([100, 900, 1100, 5000, 100_000])
    opening, closing = traffic.dice.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"input_ids":[', b"]}")])
    return ask(model, opening * depth + b"1" + closing * depth, kind=traffic.dice.choice([JSON, BYTES]))


def huge_number(traffic: Traffic, model: str) -> Ask:
    number = traffic.dice.choice([2**31, 2**63, 2**64, 10**30, -(10**30), "9" * 5000])
    body = {
        "text_classifier": f'{{"input_ids": [5, {number}]}}',
        "ranker": f'{{"dense": [[{"0," * 12}0]], "sparse": [[{"0," * 25}{number}]]}}',
        "image_classifier": f'{{"b64": {number}}}',
        "text_generator": traffic.dice.choice(
            [f'{{"input_ids": [5, {number}]}}', f'{{"input_ids": [5], "max_tokens": {number}}}']
        ),
    }[model]
    return ask(model, body.encode())


def surrogate(traffic: Traffic, model: str) -> Ask:
    text = traffic.dice.choice(["\ud800", "good \udfff", "\udc80" * 300])
    document = {
        "text_classifier": [{"text": text}, {text: 1}, [text], {"text": "a", "text_pair": text}],
        "ranker": [{"dense": text, "sparse": text}, [[text] * 39], {text: [[1]]}],
        "image_classifier": [{"b64": text}, [text], text],
        "text_generator": [{"prompt": text}, {"prompt": "a", "stop": 5, text: text}, {"prompt": "a", text: 1}],
    }[model]
    return ask(model, traffic.dice.choice(document))


def surrogate_v2(traffic: Traffic, model: str) -> Ask:
    return v2(model, "\ud800", "\udfff", [1], [1], id="\ud800")


def too_many(traffic: Traffic, model: str) -> Ask:
    return {
        "text_classifier": lambda: ask(model, ["a"] * 10_001),
        "ranker": lambda: ask(model, npy(np.zeros((10_001, 39), "float32"))[0], kind=NPY),
        "image_classifier": lambda: ask(model, ["bm8="] * 10_001),
        "text_generator": lambda: ask(model, [{"input_ids": [5], "max_tokens": 1}] * 257),
    }[model]()


def null(traffic: Traffic, model: str) -> Ask:
    return ask(
        model,
        traffic.dice.choice(
            ["null", "{}", "[]", '{"instances": null}', '{"inputs": [{"datatype": 1}]}', "[null]", "[[]]"]
        ).encode(),
    )


_BAD: tuple[Callable[[Traffic, str], Ask], ...] = (
    truncated, wrong_dtype, wrong_array, not_finite, huge_header, huge_shape, huge_safetensors, bomb, text_bomb,
    wrong_type, empty, noise, damaged, deep, huge_number, surrogate, surrogate_v2, too_many, null,
)  # fmt: skip


# -- what only a frontend can get wrong ----------------------------------------------------------------------------


def for_the_frontend(traffic: Traffic, model: str) -> Ask:
    """Requests that TorchServe itself takes apart, with a body that is bad in any case."""
    bad = json.dumps({"wrong": 1}).encode()
    form = "multipart/form-data; boundary=xx"
    part = b'--xx\r\nContent-Disposition: form-data; name="data"\r\nContent-Type: application/json\r\n\r\n'
    return traffic.dice.choice(
        [
            Ask(f"/predictions/{model}/9.9", bad),
            Ask(f"/predictions/{model}-", bad),
            Ask(f"/v2/models/{model}/nonsense", bad),
            Ask(f"/v1/models/{model}:predict", bad),
            ask(model, bad, headers=(b"Accept: \xff\xfe\xe2\x82",)),
            ask(model, bad, headers=(b"body: 1", b"data: 2")),
            ask(model, bad, headers=(b"Accept: application/x-npy",)),
            ask(model, part + bad + b"\r\n--xx--\r\n", kind=form),
            ask(model, part + b"\r\n--xx--\r\n", kind=form),
            ask(model, part.replace(b'"data"', b'"\xff\xfe"') + b"\xff\r\n--xx--\r\n", kind=form),
        ]
    )


# -- a client that costs little ------------------------------------------------------------------------------------


@dataclass
class Client:
    """One keep-alive connection, used by one thread.

    Args:
        address: Host and port.
        timeout_s: For each answer.
    """

    address: tuple[str, int]
    timeout_s: float = 60.0
    _socket: socket.socket | None = field(default=None, repr=False)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body.

        Raises:
            OSError: There was no whole answer.
        """
        if self._socket is None:
            self._socket = socket.create_connection(self.address, self.timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(request)
            status, body = self._answer(self._socket)
        except BaseException:
            self.close()
            raise
        if status != 200:  # TorchServe closes the connection after an error
            self.close()
        return status, body

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _answer(connection: socket.socket) -> tuple[int, bytes]:
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _some(connection)
        head, body = received[:end].lower(), received[end + 4 :]
        place = head.index(b"content-length:") + 15
        length = int(head[place:].split(b"\r\n", 1)[0])
        while len(body) < length:
            body += _some(connection)
        return int(head[9:12]), body


def _some(connection: socket.socket) -> bytes:
    found = connection.recv(1 << 18)
    if not found:
        raise ConnectionError("closed before the answer's end")
    return found

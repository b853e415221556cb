"""Workers that lose their GPU, on the real TorchServe: who is answered what, and who comes after.

The errors are torch's own, made by hand; tests/gpu/test_faults_on_gpu.py has the same with a GPU that really faults.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
import requests
from serving import Serving
from support import eventually

from ts_mps.events import recorded

ILLEGAL = "CUDA error: an illegal memory access was encountered"

#: Raises what the body names; "swallow" answers with the error's text, as some handlers do.
FAULTY = f"""
import os, time, torch

class Faulty:
    def initialize(self, context):
        once = os.environ.get("FAILS_ONCE_AT_LOAD")
        if once and os.path.exists(once):
            os.remove(once)
            raise torch.AcceleratorError("{ILLEGAL}")

    def handle(self, data, context):
        time.sleep(0.005)
        bodies = {{bytes(row.get("body") or row.get("data") or b"") for row in data}}
        if b"raise" in bodies:
            raise torch.AcceleratorError("{ILLEGAL}")
        if b"swallow" in bodies:
            try:
                raise torch.AcceleratorError("{ILLEGAL}")
            except RuntimeError as error:
                return [str(error)] * len(data)
        if b"memory" in bodies:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 200.00 GiB.")
        return [str(os.getpid())] * len(data)
"""


#: Which requests of the first client fault, under load: fewer than the guardian takes for a crash loop.
FAULTS = range(20, 160, 20)


def start(serving: Serving, **config: object) -> str:
    """Start it; returns the address of its predictions."""
    serving.archive("faulty", FAULTY, **config)
    started = serving.start("--models", "faulty.mar", "--disable-token-auth")
    assert started.returncode == 0, started.stderr
    where = serving.state().endpoints.inference
    return f"http://{where.host}:{where.port}/predictions/faulty"


def faults(serving: Serving) -> list[tuple[str, str, int]]:
    return [
        (event.model, event.cause, event.pid) for event in recorded(serving.paths()) if event.kind == "worker-fault"
    ]


def whole_answer(url: str, body: bytes, timeout: float = 30.0) -> bytes:
    """All that comes back on a connection until TorchServe closes it."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=timeout) as connection:
        connection.sendall(
            f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        received = b""
        with suppress(ConnectionResetError):  # TorchServe ends connections so after every status from 400 on
            while part := connection.recv(65536):
                received += part
        return received


@pytest.mark.parametrize("body", [b"raise", b"swallow"])
def test_one_batch_one_true_answer_a_successor_and_an_event(serving: Serving, body: bytes) -> None:
    url = start(serving)
    pid = int(requests.post(url, b"x", timeout=30).text)
    received = whole_answer(url, body)
    assert received.count(b"HTTP/1.1 ") == 1, received
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"an illegal memory access was encountered" in received
    assert b"this worker is being replaced" in received and b"may be sent again" in received
    assert b"out of memory" not in received.lower()
    successor = requests.post(url, b"x", timeout=60)
    assert successor.status_code == 200 and int(successor.text) != pid
    assert faults(serving) == [("faulty", "cuda-error-700", pid)]
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []


def test_out_of_memory_stays_507_and_the_worker_lives(serving: Serving) -> None:
    url = start(serving)
    pid = int(requests.post(url, b"x", timeout=30).text)
    answer = requests.post(url, b"memory", timeout=30)
    assert (answer.status_code, answer.json()["message"]) == (507, "Out of resources")
    assert int(requests.post(url, b"x", timeout=30).text) == pid
    assert faults(serving) == []
    assert serving.ts_mps("stop").returncode == 0


def test_a_load_that_loses_the_gpu_is_told_and_tried_again(serving: Serving) -> None:
    once = serving.folder / "once"
    serving.environ["FAILS_ONCE_AT_LOAD"] = str(once)
    url = start(serving)
    once.touch()
    assert requests.post(url, b"raise", timeout=30).status_code == 503
    assert requests.post(url, b"x", timeout=90).status_code == 200
    first, second = faults(serving)
    assert first[:2] == second[:2] == ("faulty", "cuda-error-700") and first[2] != second[2]
    assert serving.ts_mps("stop").returncode == 0


@pytest.mark.parametrize("path", ["predictions", "invocations"])
def test_under_load_no_client_is_left_without_an_answer(serving: Serving, path: str) -> None:
    """Batches that wait to be full are what a dying worker takes along; only its own may fail.

    By /invocations TorchServe marks no request as coming from REST, so the worker leaves as for gRPC.
    """
    url = start(serving, workers=2, batchSize=4, maxBatchDelay=100)
    if path == "invocations":
        url = url.replace("/predictions/faulty", "/invocations?model_name=faulty")
    answers: Counter[str] = Counter()
    told, deadline = threading.Event(), time.monotonic() + 90

    def client(number: int) -> None:
        sent = 0
        while not told.is_set() and time.monotonic() < deadline:
            sent += 1
            if number == 0 and sent == FAULTS.stop:
                told.set()
            body = b"raise" if number == 0 and sent in FAULTS else b"x"
            try:
                answer = requests.post(url, body, headers={"Content-Type": "application/octet-stream"}, timeout=60)
            except requests.RequestException as error:
                answers[type(error).__name__] += 1
                continue
            text = answer.json()["message"] if answer.status_code >= 500 else ""
            answers[f"{answer.status_code} {'replaced' if 'being replaced' in text else text}".strip()] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    count = len(faults(serving))
    assert count == len(FAULTS), answers
    assert count <= answers.pop("503 replaced") <= 4 * count, answers
    if path == "invocations":
        assert answers.pop("500 Worker died.", 0) <= 4 * count, answers
    assert set(answers) == {"200"}, answers
    assert eventually(lambda: serving.status().as_planned, 60)
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []

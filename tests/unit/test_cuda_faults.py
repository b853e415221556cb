"""Which CUDA errors end a worker, how it learns of them, and in which order it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ts.context import Context, RequestProcessor
from ts.protocol.otf_message_handler import create_predict_response
from ts.service import Service
from ts.utils.util import PredictionException

from ts_mps.torchserve import faults, leaving
from ts_mps.torchserve.faults import FATAL, Fault, Watch, ask_context, read_error, read_text

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later.\n"
MEMORY = "CUDA out of memory. Tried to allocate 200.00 GiB. GPU 0 has a total capacity of 139.80 GiB"


class CudaError(RuntimeError):
    """As torch.cuda.CudaError, which cannot be made without a CUDA runtime."""


@pytest.fixture
def watch():
    """A watch that takes note; afterwards the classes are as they were."""
    made = Watch()
    made.begin()
    yield made
    RequestProcessor.report_status = faults._report_status
    if hasattr(torch, "AcceleratorError"):
        del torch.AcceleratorError.__init__


def accelerator_error(text: str, code: int | None = None) -> RuntimeError:
    error = torch.AcceleratorError(text)
    if code is not None:
        error.error_code = code
    return error


class TestReading:
    @pytest.mark.parametrize("code", FATAL)
    def test_every_fatal_error_is_known_by_its_words_and_by_its_number(self, code):
        text = f"CUDA error: {FATAL[code]}\nSearch for it in the manual."
        assert read_text(text) == Fault(code, FATAL[code])
        error = RuntimeError("in words of a driver to come")
        error.error_code = code
        assert read_error(error) == Fault(code, FATAL[code])

    @pytest.mark.parametrize(
        "text",
        [
            MEMORY,
            "CUDA error: out of memory",
            "CUDA error: invalid configuration argument",
            "CUDA error: operation not permitted when stream is capturing",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        ],
    )
    def test_what_can_be_survived_is_none(self, text):
        assert read_text(text) is None
        assert read_error(RuntimeError(text)) is None

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("Triton Error [CUDA]: an illegal memory access was encountered", 700),
            ("an illegal memory access was encountered (700)", 700),
            ("Unexpected error from cudaGetDeviceCount(). Error 807: MPS server is not ready to accept new MPS client "
             "requests", 807),
            ("CUDA error: the MPS client has been terminated by the server", 810),
        ],
    )  # fmt: skip
    def test_words_of_libraries_over_cuda(self, text, code):
        assert read_text(text).code == code

    def test_numbers_and_words_are_those_of_cuda(self):
        header = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include" / "driver_types.h"
        if not header.is_file():
            pytest.skip(f"there is no {header}")
        told = {}
        for comment, number in re.findall(
            r"/\*\*((?:(?!\*/).)*?)\*/\s*cudaError\w+\s*=\s*(\d+)", header.read_text(), re.S
        ):
            told[int(number)] = " ".join(comment.replace("*", " ").split())
        relaunched = {code for code, text in told.items() if "process must be terminated and relaunched" in text}
        assert relaunched and relaunched <= set(FATAL)
        assert set(FATAL) <= set(told)

    def test_the_cause_of_an_event(self):
        assert Fault(700, "x").cause == "cuda-error-700"
        assert Fault(None, "x").cause == "cuda-error"
        assert str(Fault(700, "x")) == "CUDA error 700: x" and str(Fault(None, "x")) == "x"


class TestVerdict:
    def test_an_accelerator_error_is_believed(self, watch):
        error = accelerator_error(ILLEGAL)
        assert watch.alarmed
        assert watch.verdict(error) == Fault(700, FATAL[700])
        assert not watch.alarmed

    def test_torchs_number_goes_before_words(self, watch):
        assert watch.verdict(accelerator_error("CUDA error: never heard of", 719)).code == 719

    def test_one_that_was_caught_is_seen(self, watch):
        try:
            raise torch.AcceleratorError(ILLEGAL)
        except RuntimeError as error:
            assert str(error) == ILLEGAL, "it is still torch's own error"
        assert watch.alarmed
        assert watch.verdict(None).code == 700

    def test_one_that_was_wrapped_is_seen(self, watch):
        try:
            try:
                raise CudaError(f"{FATAL[719]} (719)")
            except CudaError as error:
                raise ValueError("inference failed") from error
        except ValueError as error:
            assert watch.verdict(error).code == 719

    def test_a_chain_that_bites_its_tail_ends(self, watch):
        first, second = ValueError("1"), ValueError("2")
        first.__cause__, second.__cause__ = second, first
        assert watch.verdict(first) is None

    def test_a_clients_words_end_no_worker(self, watch):
        assert watch.verdict(ValueError(f"bad input: {FATAL[700]}")) is None
        assert watch.verdict(RuntimeError(ILLEGAL)) is None, "this process has no context that could be lost"

    def test_out_of_memory_is_survived(self, watch):
        assert watch.verdict(torch.cuda.OutOfMemoryError(MEMORY)) is None
        assert watch.verdict(accelerator_error("CUDA error: out of memory", 2)) is None
        assert watch.verdict(MemoryError()) is None

    def test_where_words_are_no_evidence_cuda_is_asked(self, watch, monkeypatch):
        monkeypatch.setattr(faults, "ask_context", lambda: Fault(700, FATAL[700]))
        assert watch.verdict(RuntimeError("cuBLAS error")).code == 700

    def test_a_status_of_500_alarms_and_one_of_422_does_not(self, watch, monkeypatch):
        processor = RequestProcessor({})
        processor.report_status(422, "no")
        assert not watch.alarmed
        processor.report_status(500, reason_phrase="broken")
        assert watch.alarmed
        assert (processor.get_response_status_code(), processor.get_response_status_phrase()) == (500, "broken")
        monkeypatch.setattr(faults, "ask_context", lambda: Fault(None, "gone"))
        assert watch.verdict(None) == Fault(None, "gone")

    def test_what_is_forgotten_is_no_fault_of_the_next_batch(self, watch):
        accelerator_error(ILLEGAL)
        watch.forget()
        assert not watch.alarmed and watch.verdict(None) is None

    def test_a_handler_that_found_out_is_believed(self, watch):
        try:
            raise RuntimeError("DeviceLost") from RuntimeError("CUDA error: device-side assert triggered")
        except RuntimeError as error:
            watch.device_lost(error)
        assert watch.alarmed and watch.verdict(None).code == 710
        watch.device_lost(RuntimeError("CUDA error: of tomorrow\nmore"))
        assert watch.verdict(None) == Fault(None, "of tomorrow")

    def test_an_error_that_was_noted_keeps_nothing_alive(self, watch):
        class Big:
            pass

        gone = []

        def handler():
            import weakref

            tensor = Big()
            gone.append(weakref.ref(tensor))
            try:
                raise torch.AcceleratorError(ILLEGAL)
            except RuntimeError:
                pass

        handler()
        assert gone[0]() is None


class TestAsking:
    @pytest.fixture
    def cuda(self, monkeypatch):
        """CUDA in use; the test says what a synchronisation does."""

        def make(error: Exception | None = None) -> None:
            def synchronize() -> None:
                if error is not None:
                    raise error

            monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
            monkeypatch.setattr(torch.cuda, "synchronize", synchronize)

        return make

    def test_a_context_that_works(self, cuda):
        cuda()
        assert ask_context() is None

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            (ILLEGAL, Fault(700, FATAL[700])),
            ("CUDA error: unknown error", Fault(None, "unknown error")),
            ("CUDA error: out of memory", None),
            ("CUDA error: operation not permitted when stream is capturing", None),
        ],
    )
    def test_a_context_that_answers_with_an_error(self, cuda, text, fault):
        cuda(RuntimeError(text))
        assert ask_context() == fault

    def test_one_that_hangs_with_the_interpreters_lock_ends_the_process(self):
        program = """
            import ctypes, torch
            from ts_mps.torchserve import faults
            faults._ASK_SECONDS = 0.5
            torch.cuda.is_initialized = lambda: True
            torch.cuda.synchronize = lambda: ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the lock
            faults.ask_context()
            """
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 1 and "Timeout" in done.stderr
        assert time.monotonic() - began < 40


class Batch:
    """A service of TorchServe's around a handler, with TorchServe's end of the connection."""

    def __init__(self, handle, *, asynchronous: bool = False, stream: bool = False) -> None:
        metrics = SimpleNamespace(add_time=lambda *words: None)
        self.service = Service("m", "/", {}, handle, None, 4, metrics_cache=metrics)
        self.frontend, worker = socket.socketpair()
        self.frontend.settimeout(10)
        self.service.set_cl_socket(worker)
        self.told: list[Fault] = []
        self.watch = Watch()
        self.watch.begin()
        if stream:
            self.service.context.stopping_criteria = {0: lambda answer: False}
        leaving.guard(self.service, self.watch, self._tell, asynchronous=asynchronous)

    def _tell(self, fault: Fault) -> str:
        self.told.append(fault)
        return "The GPU is lost."

    def predict(self, bodies: list[bytes], **headers: str):
        """What TorchServe's worker does with a batch."""
        pairs = [{"name": name.encode(), "value": value.encode()} for name, value in headers.items()]
        return self.service.predict(
            [
                {
                    "requestId": f"id-{index}".encode(),
                    "headers": pairs,
                    "parameters": [{"name": "body", "contentType": "", "value": body}],
                }
                for index, body in enumerate(bodies)
            ]
        )


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def left(monkeypatch):
    def leave():
        raise Left

    monkeypatch.setattr(leaving, "leave", leave)


def parse(message: bytes) -> tuple[int, str, list[tuple[str, int, bytes]]]:
    """Code, text, and (request id, status, body) of each answer, as ModelResponseDecoder.java reads them."""
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int.from_bytes(message[at - 4 : at], "big", signed=True)

    def words() -> bytes:
        nonlocal at
        length = number()
        at += length
        return message[at - length : at]

    code, text, answers = number(), words().decode(), []
    while (length := number()) != -1:
        at += length
        name = message[at - length : at].decode()
        words()
        status = number()
        words()
        for _ in range(number()):
            words(), words()
        answers.append((name, status, words()))
    assert at == len(message)
    return code, text, answers


def fails(data, context):
    raise torch.AcceleratorError(ILLEGAL)


def swallows(data, context):
    try:
        fails(data, context)
    except RuntimeError as error:
        return [str(error)] * len(data)


class TestLeaving:
    @pytest.fixture(autouse=True)
    def _as_before(self, watch):
        """The classes are put back after each test."""

    @pytest.mark.parametrize("handle", [fails, swallows])
    def test_over_http_every_request_has_its_503_and_a_stranger_comes_last(self, left, handle):
        batch = Batch(handle)
        batch.frontend.shutdown(socket.SHUT_WR)  # as TorchServe does once it has met the stranger
        began = time.monotonic()
        with pytest.raises(Left):
            batch.predict([b"a", b"b"], explain="False")
        assert time.monotonic() - began < 1, "it leaves when TorchServe has closed the connection"
        code, _, answers = parse(batch.frontend.recv(65536))
        assert code == 200
        assert [(name, status) for name, status, _ in answers] == [
            ("id-0", 503),
            ("id-1", 503),
            (leaving._STRANGER.decode(), 503),
        ]
        for _, _, body in answers[:2]:
            assert json.loads(body) == {"code": 503, "type": "ServiceUnavailable", "message": "The GPU is lost."}
        assert batch.told == [Fault(700, FATAL[700])]

    def test_a_request_that_the_handler_refused_keeps_its_answer(self, left):
        def handle(data, context):
            context.set_response_status(422, "Unprocessable", 1)
            context.device_lost(RuntimeError("CUDA error: device-side assert triggered"))
            return ["answered", "refused", "answered"]

        batch = Batch(handle)
        batch.frontend.shutdown(socket.SHUT_WR)
        with pytest.raises(Left):
            batch.predict([b"a", b"b", b"c"], explain="False")
        _, _, answers = parse(batch.frontend.recv(65536))
        assert [status for _, status, _ in answers] == [503, 422, 503, 503]
        assert answers[1][2] == b"refused"

    @pytest.mark.parametrize("headers", [{}, {"Host": "workflow"}])
    def test_otherwise_the_batch_gets_a_plain_503_and_the_worker_leaves_with_the_next(self, left, headers):
        batch = Batch(fails)
        received: list[tuple[float, bytes]] = []

        def frontend() -> None:
            received.append((time.monotonic(), batch.frontend.recv(65536)))
            time.sleep(0.1)
            batch.frontend.sendall(b"I")

        thread = threading.Thread(target=frontend)
        thread.start()
        with pytest.raises(Left):
            batch.predict([b"a", b"b"], **headers)
        ended = time.monotonic()
        thread.join()
        assert parse(received[0][1])[:2] == (503, "The GPU is lost.")
        assert 0.1 <= ended - received[0][0] < leaving._LINGERING_S

    def test_without_a_next_batch_it_leaves_by_itself(self, left):
        batch = Batch(fails)
        began = time.monotonic()
        with pytest.raises(Left):
            batch.predict([b"a"])
        assert leaving._LINGERING_S <= time.monotonic() - began < 5

    def test_a_stream_is_never_answered_twice(self, left):
        batch = Batch(fails, stream=True)
        with pytest.raises(Left):
            batch.predict([b"a"], explain="False")
        assert parse(batch.frontend.recv(65536))[0] == 503

    def test_it_leaves_although_nobody_takes_the_answer(self, left, caplog):
        batch = Batch(fails)
        batch.frontend.close()
        with pytest.raises(Left):
            batch.predict([b"a"], explain="False")
        assert "could not be answered" in caplog.text

    def test_an_answer_that_was_sent_and_not_taken_is_told_as_that(self, left, caplog, monkeypatch):
        monkeypatch.setattr(leaving, "_TAKING_S", 0.1)
        batch = Batch(fails)
        with pytest.raises(Left):
            batch.predict([b"a"], explain="False")
        assert [record.getMessage() for record in caplog.records] == [
            "TorchServe has not taken the last answer within 0.1 s; it may be lost."
        ]

    def test_good_batches_and_errors_of_the_request_are_torchserves(self):
        answers = {b"good": lambda: ["fine"], b"memory": lambda: self._raise(torch.cuda.OutOfMemoryError(MEMORY))}
        answers[b"bad"] = lambda: self._raise(ValueError("bad"))
        batch = Batch(lambda data, context: answers[data[0]["body"]]())
        context = batch.service.context
        assert parse(batch.predict([b"good"]))[::2] == (200, [("id-0", 200, b"fine")])
        assert parse(batch.predict([b"memory"]))[:2] == (507, "Out of resources")
        assert parse(batch.predict([b"bad"]))[:2] == (503, "Prediction failed")
        assert isinstance(context, Context) and batch.told == []
        assert create_predict_response(None, {0: "id-0"}, "Prediction failed", 503) == batch.predict([b"bad"])

    def _raise(self, error: Exception):
        raise error

    def test_an_awaited_handler_is_answered_by_torchserve_and_left(self, monkeypatch):
        ended = threading.Event()
        monkeypatch.setattr(leaving, "leave", ended.set)
        monkeypatch.setattr(leaving, "_LINGERING_S", 0.05)

        async def handle(data, context):
            return (
                swallows(data, context) if data == ["swallow"] else data if data == ["good"] else fails(data, context)
            )

        batch = Batch(handle, asynchronous=True)
        entry = batch.service._entry_point
        assert asyncio.run(entry(["good"], batch.service.context)) == ["good"]
        assert not ended.wait(0.2)
        for data in (["swallow"], ["fail"]):
            with pytest.raises(PredictionException) as raised:
                asyncio.run(entry(data, batch.service.context))
            assert (raised.value.message, raised.value.error_code) == ("The GPU is lost.", 503)
            assert ended.wait(5)
            ended.clear()

    def test_the_process_ends_without_cleaning_up(self):
        program = """
            import atexit
            from ts_mps.torchserve import leaving
            atexit.register(print, "cleaned up")
            print("a last line")
            leaving.leave()
            """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (leaving.EXIT_DEVICE_LOST, "a last line\n")


def test_the_library_and_the_worker_agree_on_the_exit_status():
    from ts_mps.batching import device

    assert device.EXIT_DEVICE_LOST == leaving.EXIT_DEVICE_LOST


def test_a_good_batch_pays_less_than_a_microsecond(watch):
    """The median of many, as this machine is shared; what stands in the docstring is measured in the same way."""
    service = SimpleNamespace(_entry_point=lambda data, context: data, context=SimpleNamespace())
    plain = service._entry_point
    leaving.guard(service, watch, lambda fault: "")

    def seconds(call) -> float:
        began = time.perf_counter()
        for _ in range(1000):
            call(None, None)
        return (time.perf_counter() - began) / 1000

    extra = sorted(seconds(service._entry_point) - seconds(plain) for _ in range(51))[25]
    logging.getLogger(__name__).info("A good batch pays %.3f us.", extra * 1e6)
    assert extra < 1e-6

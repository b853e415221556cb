"""Leaving when the GPU is lost, so that no client's request is lost with the worker.

When a worker's connection closes, TorchServe 0.12.0 interrupts the thread that serves it (``WorkerThread.java``). What
becomes of requests depends on where that thread is:

- waiting for this worker's answer: they get 500 "Worker died.";
- gathering the next batch (``Model.pollBatch``, up to maxBatchDelay): those that it has taken from the queue are
  dropped without an answer, and **their clients wait for ever**;
- waiting for a first request: there is none to lose.

So "answer and exit" loses requests under load: the thread is gathering again at once. Two ways lose none:

**Over HTTP** the answer names, after the batch's own requests, one that TorchServe did not send. ``BatchAggregator.
sendResponse`` gives each client its answer, comes to the stranger, and throws; the thread ends without gathering again,
closes the connection, and starts a successor. Clients see one answer each: the thread also sends a 500 for the whole
batch, to connections that TorchServe has closed, as it does after every status from 400 on.

**Otherwise** (gRPC, workflows, streams) a second answer would do harm: gRPC throws on it, past the line that starts the
successor. There the batch is answered in the plain way, and the process ends with its next batch in its hands, which
gets TorchServe's 500; or after half a second without one.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from ts.protocol.otf_message_handler import create_predict_response
from ts.utils.util import PredictionException

from ts_mps.torchserve.faults import Fault, Watch

_log = logging.getLogger(__name__)

#: What a worker exits with after it lost its GPU; the same as ``ts_mps.batching`` where it is on its own.
EXIT_DEVICE_LOST = 70

#: How long a worker waits for another batch to end with. A dead context keeps an MPS server in FAULT while it exists.
_LINGERING_S = 0.5

#: How long TorchServe has to take the answer over HTTP; it took at most 40 ms with two busy cores.
_TAKING_S = 2.0

#: A request id that TorchServe, whose ids are UUIDs, does not give.
_STRANGER = b"ts-mps: this worker leaves"

#: A header that TorchServe's REST handlers for predictions add, and neither gRPC nor a workflow.
_ADDED_BY_REST = "explain"

_END = struct.pack("!i", -1)


def guard(service: Any, watch: Watch, tell: Callable[[Fault], str], *, asynchronous: bool = False) -> None:
    """Let a service's batches be looked at before TorchServe makes anything of their exceptions.

    A good batch pays for one more Python call and one attribute: 0.03 microseconds with Python 3.11.

    Args:
        service: What TorchServe loaded, a ``ts.service.Service``.
        watch: Begun before the handler was imported.
        tell: Takes note of a fault; returns the sentence for the clients.
        asynchronous: Whether TorchServe awaits the handler (asyncCommunication).
    """
    entry = service._entry_point
    service.context.device_lost = lambda error: watch.device_lost(error)  # a function: the context gets copied deeply

    def guarded(data: Any, context: Any) -> Any:
        try:
            answers = entry(data, context)
        except Exception as error:
            if (fault := watch.verdict(error)) is None:
                raise
            answer_and_leave(context, tell(fault), None)
        if watch.alarmed and (fault := watch.verdict(None)) is not None:
            answer_and_leave(context, tell(fault), answers)
        return answers

    async def awaited(data: Any, context: Any) -> Any:
        try:
            answers = await entry(data, context)
        except Exception as error:
            if (fault := watch.verdict(error)) is None:
                raise
        else:
            if not watch.alarmed or (fault := watch.verdict(None)) is None:
                return answers
        # Other batches are under way, so TorchServe's own loop has to send this one's answer.
        threading.Timer(_LINGERING_S, leave).start()
        raise PredictionException(tell(fault), 503)

    service._entry_point = awaited if asynchronous else guarded


def leave() -> NoReturn:
    """End this process at once. A normal exit runs CUDA's own clean-up, which can hang on a dead context."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(EXIT_DEVICE_LOST)


def answer_and_leave(context: Any, sentence: str, answers: list[Any] | None) -> NoReturn:
    """Answer the batch in hand and end this process in the order that loses no request.

    Args:
        context: TorchServe's, with the batch's requests.
        sentence: What the clients are told with 503.
        answers: What the handler returned; a request that it refused with a 4xx keeps its answer.
    """
    try:
        connection: socket.socket = context.cl_socket
        connection.settimeout(_TAKING_S)
        if _over_http(context):
            connection.sendall(_last_answer(context, sentence, answers))
            _await_taken(connection)
        else:
            connection.sendall(create_predict_response(None, context.request_ids, sentence, 503))
            select.select([connection], [], [], _LINGERING_S)
    except Exception:
        # Whatever it is, a dead context must not stay; TorchServe answers for a worker that dies.
        _log.exception("The last batch could not be answered.")
    finally:
        leave()


def _await_taken(connection: socket.socket) -> None:
    """Wait until TorchServe, which has the answer, closes the connection."""
    try:
        connection.recv(1)
    except TimeoutError:
        _log.warning("TorchServe has not taken the last answer within %g s; it may be lost.", _TAKING_S)


def _over_http(context: Any) -> bool:
    """Whether every request of the batch came by TorchServe's REST API and has had no part of its answer yet."""
    processors = context.request_processor
    return not context.stopping_criteria and all(
        one.get_request_property(_ADDED_BY_REST) is not None and "ts_stream_next" not in one.get_response_headers()
        for one in processors
    )


def _last_answer(context: Any, sentence: str, answers: list[Any] | None) -> bytes:
    """A message that answers each request and then one that TorchServe did not send."""
    error = json.dumps({"code": 503, "type": "ServiceUnavailable", "message": sentence}).encode()
    bodies: list[Any] = []
    for index, processor in enumerate(context.request_processor):
        kept = isinstance(answers, list) and index < len(answers)
        if kept and 400 <= processor.get_response_status_code() < 500:
            bodies.append(answers[index])  # type: ignore[index]
            continue
        bodies.append(error)
        context.set_response_status(503, "Service Unavailable", index)
        context.set_response_content_type(index, "application/json")
    message = bytes(create_predict_response(bodies, context.request_ids, "", 200, context=context))
    stranger = struct.pack("!i", len(_STRANGER)) + _STRANGER + struct.pack("!iiiii", 0, 503, 0, 0, 0)
    return message.removesuffix(_END) + stranger + _END

"""Buffered reading of TorchServe's messages, against TorchServe's own reading of the same bytes."""

from __future__ import annotations

import importlib.util
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.protocol import otf_message_handler

from ts_mps.torchserve.reading import read_buffered


def own_copy():
    """TorchServe's module again, so that the patch stays here."""
    spec = importlib.util.find_spec("ts.protocol.otf_message_handler")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def message(requests) -> bytes:
    parts = [b"I"]
    for number, (headers, inputs) in enumerate(requests):
        parts.append(text(b"id-%d" % number))
        parts += [text(name) + text(value) for name, value in headers]
        parts.append(struct.pack("!i", -1))
        parts += [text(name) + text(kind) + text(value) for name, kind, value in inputs]
        parts.append(struct.pack("!i", -1))
    return b"".join([*parts, struct.pack("!i", -1)])


def read_all(module, data: bytes, sizes, count: int) -> list:
    """What a module reads when the bytes arrive in pieces of these sizes."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        start = 0
        for size in sizes:
            theirs.sendall(data[start : start + size])
            start += size
        theirs.sendall(data[start:])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return [module.retrieve_msg(ours) for _ in range(count)]
    finally:
        sender.join()
        ours.close()
        theirs.close()


_NAMES = st.binary(max_size=12)
_REQUESTS = st.lists(
    st.tuples(
        st.lists(st.tuples(_NAMES, _NAMES), max_size=4),
        st.lists(
            st.tuples(
                st.sampled_from([b"body", b"data"]),
                st.sampled_from([b"", b"application/json", b"text/plain", b"image/png"]),
                st.sampled_from([b"", b"[1, 2]", b"{", b"word", b"x" * 300_000, b"y" * 10**6]) | st.binary(max_size=60),
            ),
            max_size=2,
        ),
    ),
    max_size=5,
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(_REQUESTS, min_size=1, max_size=3), st.lists(st.integers(1, 400_000), max_size=8))
def test_messages_are_what_torchserve_reads(messages, sizes) -> None:
    data = b"".join(message(requests) for requests in messages)
    buffered = own_copy()
    read_buffered(buffered)
    assert read_all(buffered, data, sizes, len(messages)) == read_all(otf_message_handler, data, sizes, len(messages))


def test_a_closed_connection_ends_the_worker_quietly() -> None:
    buffered = own_copy()
    read_buffered(buffered)
    ours, theirs = socket.socketpair()
    theirs.sendall(b"I" + struct.pack("!i", 100) + b"half")
    theirs.close()
    with pytest.raises(SystemExit) as left:
        buffered.retrieve_msg(ours)
    assert left.value.code == 0


def test_a_batch_takes_few_system_calls(monkeypatch) -> None:
    calls = []

    class Counting(socket.socket):
        def recv_into(self, *arguments):
            calls.append(1)
            return super().recv_into(*arguments)

    ours, theirs = socket.socketpair()
    counting = Counting(fileno=ours.detach())
    headers = [(b"name-%d" % number, b"value") for number in range(8)]
    theirs.sendall(message([(headers, [(b"body", b"", b"x" * 1000)])] * 8))
    buffered = own_copy()
    read_buffered(buffered)
    assert len(buffered.retrieve_msg(counting)[1]) == 8
    assert len(calls) <= 2
    counting.close()
    theirs.close()

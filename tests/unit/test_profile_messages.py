"""TorchServe's protocol: what is written is read back by TorchServe's own worker, and its answers by ours."""

from __future__ import annotations

import io
import socket
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.protocol import otf_message_handler as stock

from ts_mps.errors import PreflightError
from ts_mps.profile.channel import Channel
from ts_mps.profile.frontend import BadAnswer, Frontend, NoMemory, check
from ts_mps.profile.messages import (
    Answer,
    Disconnected,
    Reply,
    Request,
    batch_message,
    load_message,
    read_reply,
    request_id,
)
from ts_mps.profile.payload import batch_messages, read_payloads


class Received:
    """A connection that holds what was sent."""

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)

    def recv(self, length: int) -> bytes:
        return self.stream.read(length)


@pytest.mark.parametrize(("gpu", "found"), [(None, None), (0, 0), (3, 3)])
def test_load_is_read_by_torchserve(gpu, found):
    connection = Received(load_message("münze", "/models/m", 8, "handler.py:handle", gpu))
    command, message = stock.retrieve_msg(connection)
    assert command == b"L"
    assert message["modelName"].decode() == "münze"
    assert message["modelPath"] == b"/models/m"
    assert (message["batchSize"], message["handler"], message["envelope"]) == (8, b"handler.py:handle", b"")
    assert message.get("gpu") == found
    assert message["limitMaxImagePixels"] is True
    assert connection.recv(1) == b""


@given(st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(["", "application/octet-stream", "image/png"]))))
def test_batches_are_read_by_torchserve(bodies):
    connection = Received(batch_message([Request(*body) for body in bodies]))
    command, message = stock.retrieve_msg(connection)
    assert command == b"I"
    assert [request["requestId"].decode() for request in message] == [request_id(i) for i in range(len(bodies))]
    assert [request["parameters"][0]["value"] for request in message] == [body for body, _ in bodies]
    assert [request["parameters"][0]["contentType"] for request in message] == [kind for _, kind in bodies]
    assert {request["parameters"][0]["name"] for request in message} <= {"body"}
    assert connection.recv(1) == b""


def test_json_reaches_the_handler_parsed_as_from_a_client():
    _, message = stock.retrieve_msg(Received(batch_message([Request(b'{"a": 1}', "application/json")])))
    assert message[0]["parameters"][0]["value"] == {"a": 1}
    assert message[0]["headers"] == [{"name": b"Content-Type", "value": b"application/json"}]


def context(statuses: list[int], headers: dict[str, str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        stopping_criteria=None,
        get_response_headers=lambda i: headers if headers is not None else {},
        get_response_content_type=lambda i: "text/plain",
        get_response_status=lambda i: (statuses[i], "phrase"),
    )


@given(st.lists(st.tuples(st.binary(max_size=200), st.sampled_from([200, 400, 507])), min_size=1, max_size=8))
def test_torchserves_answers_are_read(rows):
    ids = {index: request_id(index) for index in range(len(rows))}
    data = stock.create_predict_response(
        [body for body, _ in rows], ids, "Prediction success", 200, context([s for _, s in rows])
    )
    reply = read_reply(io.BytesIO(bytes(data)))
    assert (reply.code, reply.message) == (200, "Prediction success")
    assert [(a.request_id, a.body, a.status) for a in reply.answers] == [(ids[i], *row) for i, row in enumerate(rows)]


def streamed(*, last: bool) -> bytes:
    """A part of a streamed answer, as TorchServe writes it."""
    headers: dict[str, str] = {}
    part = context([200], headers)
    part.set_response_header = lambda index, key, value: headers.update({key: value})
    return bytes(stock.create_predict_response([b"x"], {0: "a"}, "", 200, part, not last))


def test_a_streamed_part_says_that_more_comes():
    assert read_reply(io.BytesIO(streamed(last=False))).answers[0].more is True
    assert read_reply(io.BytesIO(streamed(last=True))).answers[0].more is False


def test_the_answer_to_a_load_is_read():
    assert read_reply(io.BytesIO(bytes(stock.create_load_model_response(507, "no")))) == Reply(507, "no", ())


def test_a_worker_that_ends_amid_an_answer_is_noticed():
    whole = bytes(stock.create_predict_response([b"abc"], {0: "a"}, "", 200, context([200])))
    for cut in range(len(whole)):
        with pytest.raises(Disconnected):
            read_reply(io.BytesIO(whole[:cut]))


def test_what_is_no_answer_is_refused():
    with pytest.raises(ValueError, match="length"):
        read_reply(io.BytesIO(b"\x00\x00\x00\xc8\xff\xff\xff\xf0"))


class TestCheck:
    def test_all_200_is_good(self):
        check(Reply(200, "", (Answer("a", 200, b"", False),)))

    def test_the_first_bad_body_is_shown(self):
        answers = (Answer("a", 200, b"fine", False), Answer("b", 415, b"not an image", False))
        with pytest.raises(BadAnswer, match="415") as caught:
            check(Reply(200, "", answers))
        assert caught.value.details == "not an image"

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(507, "Out of resources", (Answer("a", 507, b"error", False),)),
            Reply(200, "", (Answer("a", 503, b"This server is out of memory.", False),)),
            Reply(200, "", (Answer("a", 503, b"There is not enough memory for even one instance.", False),)),
        ],
    )
    def test_want_of_memory_is_told_apart(self, reply):
        with pytest.raises(NoMemory):
            check(reply)


def test_a_frontend_notices_that_its_worker_ended():
    ours, theirs = socket.socketpair()
    frontend = Frontend(ours)
    theirs.close()
    with pytest.raises(Disconnected):
        frontend.ask(b"I" + b"x" * 1_000_000)


def test_a_frontend_reads_a_streamed_answer_to_its_end():
    ours, theirs = socket.socketpair()
    theirs.sendall(streamed(last=False) + streamed(last=False) + streamed(last=True))
    frontend = Frontend(ours)
    frontend.ask(b"I")
    theirs.setblocking(False)
    assert theirs.recv(10) == b"I"
    frontend.connection.setblocking(False)
    with pytest.raises(BlockingIOError):
        frontend.connection.recv(1)


def test_a_channel_carries_objects_both_ways_and_ends():
    ours, theirs = Channel.pair()
    child = Channel(theirs)
    ours.send({"a": [1, 2.5, None]})
    assert child.receive() == {"a": [1, 2.5, None]}
    with pytest.raises(TimeoutError):
        ours.receive(0.05)
    thread = threading.Timer(0.05, child.close)
    thread.start()
    with pytest.raises(Disconnected):
        ours.receive(10)
    thread.join()
    with pytest.raises(Disconnected):
        for _ in range(2):
            ours.send({})


class TestPayload:
    def test_json_is_known_by_its_name(self, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        (tmp_path / "b.png").write_bytes(b"png")
        files = [tmp_path / "a.json", tmp_path / "b.png"]
        assert read_payloads(files, None) == (Request(b"{}", "application/json"), Request(b"png", ""))
        assert {request.content_type for request in read_payloads(files, "text/plain")} == {"text/plain"}

    def test_what_is_missing_or_empty_is_refused(self, tmp_path):
        (tmp_path / "empty").touch()
        with pytest.raises(PreflightError, match=r"--payload"):
            read_payloads([], None)
        with pytest.raises(PreflightError, match=r"missing cannot be read: No such file"):
            read_payloads([tmp_path / "missing"], None)
        with pytest.raises(PreflightError, match=r"empty is empty"):
            read_payloads([tmp_path / "empty"], None)

    @given(st.integers(1, 12), st.integers(1, 16), st.integers(0, 20))
    def test_payloads_come_in_turn(self, count, batch_size, offset):
        requests = [Request(bytes([number])) for number in range(count)]
        sent = []
        for message in batch_messages(requests, batch_size, offset):
            _, batch = stock.retrieve_msg(Received(message))
            assert len(batch) == batch_size
            sent += [request["parameters"][0]["value"][0] for request in batch]
        assert sent == [(offset + number) % count for number in range(len(sent))]
        # Sent again from the start they go on in turn.
        assert len(sent) % count == 0 or len(sent) == 16 * batch_size

"""The parts of benchmarks/ that need no server: what counts as agreement, as an error and as a figure."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from agreement import compare
from closed_loop import Burst, burst
from connection import Target
from figures import middle, middle_stages, ratios, stages


def bodies(*answers: object) -> list[bytes]:
    return [json.dumps(answer).encode() for answer in answers]


def test_scores_that_are_no_numbers_never_agree() -> None:
    naive = bodies({"scores": [0.1, 0.9, 0.5]})
    assert compare(naive, naive, {}).fine
    assert not compare(bodies({"scores": [0.1, float("nan"), 0.5]}), naive, {}).fine
    labels = bodies({"label": 1, "score": 0.1}, {"label": 1, "score": 0.9})
    assert compare(labels, labels, {}).fine
    assert not compare(bodies({"label": 1, "score": 0.1}, {"label": 1, "score": float("nan")}), labels, {}).fine


def test_swapped_scores_do_not_agree() -> None:
    naive = bodies({"scores": [0.1, 0.9]}, {"scores": [0.2, 0.8]})
    assert not compare(naive[::-1], naive, {}).fine


def test_tokens_agree_beyond_the_first_one() -> None:
    naive = bodies(*({"token_ids": [first, 1, 2, 3]} for first in range(10)))
    assert compare(naive, naive, {}).fine
    assert not compare(bodies(*({"token_ids": [first, 9, 9, 9]} for first in range(10))), naive, {}).fine
    same = bodies(*({"token_ids": [1, 1]} for _ in range(10)))
    assert not compare(same, same, {}).fine, "answers to other inputs would do as well"


@pytest.fixture
def resetting() -> Iterator[int]:
    """The port of a server that resets every connection in the middle of a request."""
    server = socket.create_server(("127.0.0.1", 0))

    def reset() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    threading.Thread(target=reset, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_a_reset_in_the_middle_of_a_request_is_an_error_like_any_other(resetting: int) -> None:
    target = Target("127.0.0.1", resetting, "/", [b"x" * 20_000_000])
    seen = burst(target, processes=1, connections=2, seconds=0.3)
    assert not seen.answered and seen.errors["connection"] and seen.first_error


def one(requests_per_s: float, errors: int = 0) -> Burst:
    return Burst(requests_per_s, int(requests_per_s), {"503": errors} if errors else {}, "", 1.0, 2.0, 3.0, 1.0)


def test_a_ratio_comes_with_the_least_and_the_most() -> None:
    naive, ours = middle([one(100), one(80), one(200, errors=2)]), middle([one(300), one(400), one(200)])
    assert naive["requests_per_s"] == 100 and naive["errors"] == 2
    assert ratios(naive, ours) == {"ratio": 3.0, "ratio_least": 1.0, "ratio_most": 5.0}


def test_stages_are_those_of_one_run() -> None:
    before = dict.fromkeys(("BatchRuns", "BatchRequests", "BatchDecodeTime", "BatchRunTime", "BatchEncodeTime"), 0.0)
    after = {"BatchRuns": 10.0, "BatchRequests": 80.0, "BatchDecodeTime": 5.0, "BatchRunTime": 20.0,
             "BatchEncodeTime": 1.0}  # fmt: skip
    found = stages(before, after, workers=2, requests_per_s=4000.0)
    assert found == pytest.approx({"decode": 0.5, "run": 2.0, "encode": 0.1, "torchserve": 1.4, "requests": 8.0})
    assert middle_stages([found, found]) == found

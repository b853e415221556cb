"""The demo's load: several clients send the held-out images as PNG files over REST."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ts_mps.demo.train import Progress
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.client import ApiError


@dataclass(frozen=True)
class DemoLoad:
    """What the clients saw.

    Args:
        requests: Requests sent.
        correct: Answers with the right digit.
        accuracy: correct / requests; a failed request counts as wrong.
        seconds: From the first request to the last answer.
        requests_per_second: Answered requests per second.
        p50_ms: Half of the answers took at most so many milliseconds.
        p99_ms: 99 % of the answers took at most so many milliseconds.
        errors: Requests that failed.
        first_error: The sentence of the first of them; empty if there was none.
    """

    requests: int
    correct: int
    accuracy: float
    seconds: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    first_error: str = ""


@dataclass(frozen=True)
class _Answer:
    correct: bool
    seconds: float
    error: str = ""


def load(
    api: Api,
    images: Sequence[bytes],
    labels: Sequence[int],
    clients: int = 8,
    *,
    rounds: int = 5,
    model: str = "digits",
    progress: Progress = lambda what, done: None,
) -> DemoLoad:
    """Send every image ``rounds`` times from ``clients`` threads, each with its own kept-alive connection.

    Args:
        api: The running TorchServe.
        images: Image files.
        labels: The digit of each.
        clients: Requests in flight at any time.
        rounds: How often each image is sent.
        model: Name under which the demo's model is served.
        progress: Called with the part of the requests that is done.

    Returns:
        Accuracy, throughput and latencies; failed requests are counted, not raised.
    """
    work = list(zip(images, labels, strict=True)) * rounds

    def send(item: tuple[bytes, int]) -> _Answer:
        image, label = item
        start = time.perf_counter()
        try:
            body = api.predict(model, image, "image/png")
            correct = json.loads(body)["digit"] == label
        except ApiError as error:
            return _Answer(False, time.perf_counter() - start, str(error))
        except (ValueError, TypeError, KeyError):
            return _Answer(False, time.perf_counter() - start, f"The model {model} answered with no digit.")
        return _Answer(correct, time.perf_counter() - start)

    answers: list[_Answer] = []
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for answer in pool.map(send, work):
            answers.append(answer)
            progress("requests", len(answers) / len(work))
    seconds = time.perf_counter() - start
    return _summary(answers, seconds)


def _summary(answers: Sequence[_Answer], seconds: float) -> DemoLoad:
    errors = [answer.error for answer in answers if answer.error]
    times = [answer.seconds * 1000 for answer in answers if not answer.error]
    correct = sum(answer.correct for answer in answers)
    return DemoLoad(
        requests=len(answers),
        correct=correct,
        accuracy=correct / len(answers),
        seconds=seconds,
        requests_per_second=len(times) / seconds,
        p50_ms=float(np.percentile(times, 50)) if times else 0.0,
        p99_ms=float(np.percentile(times, 99)) if times else 0.0,
        errors=len(errors),
        first_error=errors[0] if errors else "",
    )

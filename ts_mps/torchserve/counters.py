"""TorchServe's own counters of requests, read from its metrics address."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from ts_mps.errors import TsMpsError
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.transport import call_url, session

REQUESTS = "ts_inference_requests_total"
LATENCY = "ts_inference_latency_microseconds"
QUEUE = "ts_queue_latency_microseconds"
#: A line of Prometheus's text format as TorchServe 0.12.0 writes it (simpleclient 0.9.0), and one label of it.
_LINE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Counters:
    """Sums since TorchServe's start, by model, all versions together.

    Attributes:
        at: Seconds of a clock that only goes forwards.
        requests: Requests answered.
        latency_us: Microseconds from their arrival to their answers, as TorchServe counts.
        queue_us: Microseconds of these in the queue.
    """

    at: float
    requests: Mapping[str, float] = field(default_factory=dict)
    latency_us: Mapping[str, float] = field(default_factory=dict)
    queue_us: Mapping[str, float] = field(default_factory=dict)


def parse(text: str, at: float) -> Counters:
    """The counters out of Prometheus's text format; a model that has had no request is not in it.

    Args:
        text: What the metrics address answered.
        at: When, by a clock that only goes forwards.
    """
    sums: dict[str, dict[str, float]] = {REQUESTS: {}, LATENCY: {}, QUEUE: {}}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match["name"] not in sums:
            continue
        model = dict(_LABEL.findall(match["labels"])).get("model_name", "")
        of = sums[match["name"]]
        of[model] = of.get(model, 0.0) + float(match["value"])
    return Counters(at, sums[REQUESTS], sums[LATENCY], sums[QUEUE])


class CounterReader:
    """Reads the counters over one connection that is kept.

    Args:
        address: TorchServe's metrics address.
        certificate: PEM file to trust for https; None where it is not.
        timeout: Seconds for an answer.
    """

    def __init__(self, address: Address, certificate: str | None, timeout: float = 2.0) -> None:
        self._url = f"{call_url(address)}/metrics"
        self._session = session(address, Path(certificate) if certificate else None)
        self._timeout = timeout

    def read(self) -> Counters:
        """The counters now.

        Raises:
            TsMpsError: TorchServe does not answer there, or with something else.
        """
        try:
            answer = self._session.get(
                self._url, params=[("name[]", name) for name in (REQUESTS, LATENCY, QUEUE)], timeout=self._timeout
            )
            answer.raise_for_status()
        except requests.RequestException as error:
            said = "does not answer" if error.response is None else f"answers {error.response.status_code}"
            raise TsMpsError(f"No throughput: TorchServe's metrics address {self._url} {said}.") from error
        return parse(answer.text, time.monotonic())

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

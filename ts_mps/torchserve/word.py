"""A word of the guardian to one worker, sent through the queue that the model's requests go through.

TorchServe 0.12.0 has no way to take one worker out of service without loss: when a worker's connection closes, the
thread behind it drops the requests that it is gathering (``WorkerThread.java``, ``Model.pollBatch``), and scaling down
ends threads whatever they are doing. But there is one kind of job that TorchServe always hands out alone: a description
with ``customized=true`` (``Model.pollBatch``: "batch size always is 1 for describe request job"). While a worker holds
one, its thread holds nothing else, and gathers nothing: the worker can leave, or be ended, and no request is lost. The
guardian asks for such a description and says in a header what it is for. Which worker takes it is TorchServe's choice,
so a word names all workers that it is meant for, and any other one gives it back.

Since the queue is served in order, the answer to a word also says that all requests before it have been handed out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: The header; TorchServe hands every header of the request on to the worker.
HEADER = "ts-mps-word"

#: Status of the answer of a worker that a word was not meant for. It becomes TorchServe's error to the guardian, which
#: costs nothing; a description that succeeds makes TorchServe start one nvidia-smi for each worker.
GIVEN_BACK = 409

#: Seconds for a worker that leaves to clean up: threads of its handler, functions for the exit, CUDA.
LEAVING_SECONDS = 15

#: Kinds of batching under which TorchServe 0.12.0 keeps jobs of a worker beside the one that it hands out: a
#: description is then not alone (AsyncWorkerThread), put back and handed out again and again (``Model.pollInferJob``),
#: or the requests that belong together are lost with the worker (SequenceBatching).
NOT_ALONE = ("continuousBatching", "sequenceBatching", "asyncCommunication")


@dataclass(frozen=True)
class Word:
    """What workers are asked for.

    Attributes:
        do: "leave": end, so that TorchServe starts a successor. "park": wait, until TorchServe ends it, the guardian
            asks for no attention any more or dies, or time is up. "pass": nothing; the answer alone counts.
        pids: The workers that it is meant for.
        until: Seconds of time.monotonic() after which it means nothing: whoever sent it may be gone.
        secret: What stands in the page that the guardian shares with each worker. A client of the inference API can
            send any header.
    """

    do: str
    pids: tuple[int, ...]
    until: float
    secret: int

    def header(self) -> dict[str, str]:
        """The header that carries it."""
        return {HEADER: json.dumps(asdict(self))}

    def meant_for(self, pid: int) -> bool:
        """Whether the worker with this pid shall do it now."""
        return pid in self.pids and time.monotonic() < self.until


def word_in(batch: Sequence[Mapping[str, Any]]) -> Word | None:
    """The word that a batch is, as TorchServe's worker has read it from its connection; None for any other batch."""
    if len(batch) != 1:
        return None
    for header in batch[0].get("headers") or ():
        if header["name"] == HEADER.encode():
            try:
                value = json.loads(bytes(header["value"]))
                pids = tuple(int(pid) for pid in value["pids"])
                return Word(str(value["do"]), pids, float(value["until"]), int(value["secret"]))
            except (ValueError, TypeError, KeyError):
                return None
    return None

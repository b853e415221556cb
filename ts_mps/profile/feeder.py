"""A process that drives one worker, so that sixteen workers have sixteen frontends and not one Python in their way.

Called as ``python -m ts_mps.profile.feeder CHANNEL CONNECTION`` with two inherited descriptors. Over the channel it is
told the payloads once, then for each window when to start, and it answers how many batches the window held.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from pathlib import Path
from typing import Any

from ts_mps.errors import TsMpsError
from ts_mps.profile.arithmetic import answered_within
from ts_mps.profile.channel import Channel
from ts_mps.profile.frontend import Frontend, NoMemory, feed
from ts_mps.profile.messages import Disconnected
from ts_mps.profile.payload import batch_messages, read_payloads


def main(arguments: list[str]) -> int:
    """Serve windows until the parent closes the channel.

    Returns:
        0.
    """
    channel = Channel.inherited(int(arguments[0]))
    connection = int(arguments[1])
    os.set_inheritable(connection, False)
    frontend = Frontend(socket.socket(fileno=connection))
    try:
        job = channel.receive()
        requests = read_payloads([Path(file) for file in job["files"]], job["content_type"])
        messages = itertools.cycle(batch_messages(requests, job["batch_size"], job["offset"]))
        channel.send({"ready": True})
        while True:
            window = channel.receive()
            channel.send(_window(frontend, messages, job["gap"], window))
    except Disconnected:
        return 0


def _window(frontend: Frontend, messages: itertools.cycle[bytes], gap: float, window: dict[str, Any]) -> dict[str, Any]:
    try:
        times = feed(frontend, messages, gap, window["start"], window["end"])
    except (TsMpsError, TimeoutError, Disconnected) as error:
        what = error.what if isinstance(error, TsMpsError) else "The worker ended or did not answer in time."
        details = error.details if isinstance(error, TsMpsError) else ""
        return {"error": what, "details": details, "memory": isinstance(error, NoMemory)}
    return {"batches": answered_within(times, window["begin"], window["end"])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

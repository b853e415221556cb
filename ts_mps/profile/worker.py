"""A worker that is measured: the one of ``ts-mps start``, which says when it is attached and keeps the time of batches.

Called as ``python -m ts_mps.profile.worker CHANNEL HOME INSTANCE -- <arguments of ts/model_service_worker.py>``, where
CHANNEL is an inherited descriptor.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ts import model_service_worker as stock
from ts.arg_parser import ArgParser
from ts.protocol import otf_message_handler

from ts_mps.paths import Home, InstancePaths
from ts_mps.profile.arithmetic import gpu_milliseconds
from ts_mps.profile.channel import Channel
from ts_mps.profile.messages import Disconnected
from ts_mps.torchserve.reading import read_buffered
from ts_mps.torchserve.worker import Worker


class MeasuredWorker(Worker):
    """Opens its CUDA context alone and waits, so that the parent can see what the context costs."""

    def __init__(self, home: Home, instance: InstancePaths, arguments: Any, channel: Channel) -> None:
        super().__init__(home, instance, arguments)
        self._channel = channel

    def attached(self) -> None:
        """Report the GPU that CUDA shows, and wait for the parent to have read its memory."""
        super().attached()
        import torch

        seen: dict[str, Any] = {"sms": 0, "torch": torch.__version__, "cuda": torch.version.cuda}
        if self._claim is not None and self._claim.record.slot.gpu is not None:
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
            seen["sms"] = torch.cuda.get_device_properties(0).multi_processor_count
        self._channel.send(seen)
        self._channel.receive()


class Timekeeper:
    """Stands where TorchServe's worker reads its next message: a batch lasts from its first byte to its sent answer.

    At the same place it answers the parent's questions, as the worker is idle there: TorchServe's loop has one thread,
    and the parent asks between batches only.

    Args:
        channel: To the parent.
        retrieve: TorchServe's own function.
    """

    def __init__(self, channel: Channel, retrieve: Any = otf_message_handler.retrieve_msg) -> None:
        self._channel = channel
        self._retrieve = retrieve
        self._taken: float | None = None
        self._milliseconds: list[float] = []
        self._cpu = 0.0
        self._profiler: Any = None

    def retrieve_msg(self, connection: socket.socket) -> tuple[Any, Any]:
        """The next message, as ``otf_message_handler.retrieve_msg``.

        Raises:
            SystemExit: The parent is gone; status 0.
        """
        if self._taken is not None:
            self._milliseconds.append((time.perf_counter() - self._taken) * 1000)
            self._taken = None
        while True:
            ready, _, _ = select.select([connection.fileno(), self._channel.fileno()], [], [])
            if self._channel.fileno() in ready:
                try:
                    self._channel.send(self._answer(self._channel.receive()))
                except Disconnected:
                    raise SystemExit(0) from None
                continue
            began = time.perf_counter()
            command, message = self._retrieve(connection)
            if command == otf_message_handler.PREDICT_MSG:
                self._taken = began
            return command, message

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        what = question["do"]
        if what == "clear":
            self._milliseconds.clear()
            self._cpu = time.process_time()
            return {}
        if what == "report":
            return {"milliseconds": self._milliseconds, "cpu_seconds": time.process_time() - self._cpu}
        # A tracer that fails must not end a worker whose times have been measured.
        try:
            return self._start_trace() if what == "trace" else self._end_trace(int(question["batches"]))
        except Exception as error:
            logging.exception("The GPU cannot be traced")
            return {"gpu_milliseconds": None, "why": f"{type(error).__name__}: {error}"}

    def _start_trace(self) -> dict[str, Any]:
        from torch.profiler import ProfilerActivity, profile

        self._profiler = profile(activities=[ProfilerActivity.CUDA])
        self._profiler.start()
        return {}

    def _end_trace(self, batches: int) -> dict[str, Any]:
        import torch

        if self._profiler is None:
            return {"gpu_milliseconds": None}
        torch.cuda.synchronize()
        self._profiler.stop()
        with tempfile.TemporaryDirectory(prefix="ts-mps-trace-") as folder:
            file = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(file))
            trace = json.loads(file.read_text())
        return {"gpu_milliseconds": gpu_milliseconds(trace, batches)}


def main(arguments: list[str]) -> int:
    """Do what the ``__main__`` block of ts/model_service_worker.py does, with :class:`MeasuredWorker`.

    Returns:
        1, as TorchServe's own worker; a disconnect ends the process with 0.
    """
    descriptor, home, name, _, *rest = arguments
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    # One line per batch would fill the disk; the real worker drops it too.
    logging.getLogger().handlers[0].addFilter(lambda record: not str(record.msg).startswith("Backend received"))
    channel = Channel.inherited(int(descriptor))
    parsed = ArgParser.model_service_worker_args().parse_args(rest)
    read_buffered()
    stock.retrieve_msg = Timekeeper(channel).retrieve_msg
    root = Home(Path(home))
    try:
        MeasuredWorker(root, root.instance(name), parsed, channel).run_server()
    except Exception:
        logging.exception("Backend worker process died.")
    finally:
        Path(parsed.sock_name).unlink(missing_ok=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

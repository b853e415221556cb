"""Whether a worker is inside a batch, told to other processes at the price of two stores into a shared page."""

from __future__ import annotations

from typing import Any

from ts_mps.activity import Activity


def count_batches(service: Any, activity: Activity) -> None:
    """Note each batch of a service, and each part of a streamed answer, in a page that a stop and the guardian read.

    Args:
        service: What TorchServe loaded, a ``ts.service.Service``, before it is given its connection.
        activity: The page.
    """
    predict = service.predict
    connect = service.set_cl_socket

    def counted(batch: Any) -> Any:
        activity.begin()
        try:
            return predict(batch)
        finally:
            activity.end()

    def connected(connection: Any) -> None:
        connect(_Streaming(connection, activity))

    service.predict = counted
    service.set_cl_socket = connected


class _Streaming:
    """The connection that a handler streams over; TorchServe's own loop sends whole answers past it.

    TorchServe's response timeout runs from one part of an answer to the next (``WorkerThread.run`` polls for each). So
    each part counts as a new batch: a stream may last as long as it likes and does not hang.
    """

    def __init__(self, connection: Any, activity: Activity) -> None:
        self._connection = connection
        self._activity = activity

    def sendall(self, data: bytes) -> None:
        """Send a part."""
        self._connection.sendall(data)
        self._activity.begin()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

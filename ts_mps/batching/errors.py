"""What can go wrong in a handler, by whose fault it is."""

from __future__ import annotations


class RequestError(Exception):
    """One request cannot be answered, through its own fault or its own data; its neighbours are served on.

    Args:
        message: A sentence for the one who sent it.
        status: HTTP status, 400 to 599.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(ValueError):
    """The archive's model-config.yaml or its model cannot be used; the load stops with this sentence."""


class DeviceLost(RuntimeError):
    """A CUDA error after which this process cannot use its GPU any more; nothing may be retried in it."""


#: What may go wrong for one request: anything, as a panic in a library that is written in Rust is no Exception.
REQUESTS_FAULT = BaseException


def check_fault(error: BaseException) -> None:
    """Raise an error again that is not about a request but ends the process."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error

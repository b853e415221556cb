"""What can go wrong in a handler, by whose fault it is."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

#: What ends the process, or a generator, and is nobody's fault.
_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


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


def requests_fault() -> tuple[type[BaseException], ...]:
    """What may go wrong for one request, for ``except requests_fault() as error``; what ends the process passes by.

    That is anything else, as a panic in a library that is written in Rust is no Exception. No class stands for it, so
    this looks at the error itself: Python calls what follows ``except`` once there is an error to be matched.
    """
    return () if isinstance(sys.exc_info()[1], _ENDS) else (BaseException,)


def where(error: BaseException) -> str:
    """An error's class and the line that raised it, for the log: without its text, which may be a client's."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"

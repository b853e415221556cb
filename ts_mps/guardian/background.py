"""A guardian in a process of its own, and the pipe through which its parent hears how the start goes."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ts_mps import errors
from ts_mps.errors import NotReadyError, TsMpsError
from ts_mps.files import last_lines
from ts_mps.guardian.launch import unwritable
from ts_mps.guardian.log import Log, redirect
from ts_mps.guardian.loop import Guardian
from ts_mps.guardian.prepare import Prepared


def start(prepared: Prepared, report: Callable[[str], None]) -> int:
    """Leave a guardian behind and return once all is ready.

    The guardian is a fork in a session of its own: everything it needs is already loaded and looked up. SIGINT and
    SIGTERM that reach this process in the meantime are handed to it, and it undoes the start.

    Returns:
        0, or 128 + N if signal N ended the start.

    Raises:
        TsMpsError: What the guardian raised.
    """
    reader, writer = os.pipe()
    handed_on = {signal.SIGINT, signal.SIGTERM}
    # One that comes between the fork and the handlers would end one of the two and leave the other.
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _guard(prepared, writer)
    os.close(writer)
    before = {number: signal.signal(number, _hand_to(child)) for number in handed_on}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
    try:
        return _listen(reader, report, prepared)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_to(child: int) -> Callable[[int, Any], None]:
    def hand(signum: int, frame: Any) -> None:
        os.kill(child, signum)

    return hand


def _listen(reader: int, report: Callable[[str], None], prepared: Prepared) -> int:
    with os.fdopen(reader) as stream:
        for line in stream:
            message: dict[str, Any] = json.loads(line)
            if "report" in message:
                report(message["report"])
            elif "error" in message:
                kind: type[TsMpsError] = getattr(errors, message["kind"])
                raise kind(message["error"], message["remedy"], message["details"])
            else:
                return int(message["exit"])
    raise NotReadyError(
        "The guardian died during the start.",
        f"Clean up with: ts-mps stop --name {prepared.paths.name}",
        last_lines(prepared.paths.guardian_log),
    )


def _guard(prepared: Prepared, writer: int) -> NoReturn:
    """The child's life; ends the process."""
    code = 1
    pipe: int | None = writer
    log = Log(prepared.paths.guardian_log)

    def tell(**message: Any) -> None:
        nonlocal pipe
        if pipe is None:
            if "report" in message:
                log.text(message["report"])
            return
        try:
            os.write(pipe, (json.dumps(message) + "\n").encode())
        except BrokenPipeError:
            # Whoever asked for the start is gone; the start goes on, as TorchServe's does.
            pipe = None

    def ready() -> None:
        nonlocal pipe
        tell(exit=0)
        if pipe is not None:
            os.close(pipe)
            pipe = None

    try:
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        _redirect(prepared)
        code = Guardian(prepared, lambda text: tell(report=text), log.event).run(ready)
        tell(exit=code)
    except TsMpsError as error:
        code = error.exit_code
        # The nearest class that the parent can look up: parts of ts-mps have errors of their own below these.
        kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
        tell(error=error.what, remedy=error.remedy, details=error.details, kind=kind)
    except BaseException as error:
        traceback.print_exc()
        tell(error=f"The guardian failed: {error!r}", remedy="", details=traceback.format_exc(), kind="TsMpsError")
    finally:
        os._exit(code)


def _redirect(prepared: Prepared) -> None:
    """Let go of the terminal: a pipeline such as `ts-mps start | tee log` must end when the start is done."""
    try:
        redirect(prepared.paths.guardian_log)
    except OSError as error:
        raise unwritable(prepared, error) from error
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

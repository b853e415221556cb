"""A load made by Locust in processes of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ts_mps.bench.claims import Ports
from ts_mps.bench.load.spec import Spec
from ts_mps.bench.records import Load, LoadResult
from ts_mps.errors import PreflightError, TsMpsError, UsageError
from ts_mps.files import last_lines, read_json, write_json
from ts_mps.profile.interrupts import uninterrupted

#: Seconds for Locust to import, fork, connect and read the payloads; on a busy machine that takes some.
_STARTING_S = 60.0
#: Seconds from the last answer to its end: counts are merged, processes end.
_ENDING_S = 20.0
#: Seconds that Locust gets to end by itself once its result is there.
_LEAVING_S = 5.0
_POLL_S = 0.05
_LOG_LINES = 25
_HERE = Path(__file__).resolve().parent

#: Says whether the load is to be broken off.
Interrupted = Callable[[], bool]


class LoadError(TsMpsError):
    """The load could not be made: Locust died, was stopped, or did not end."""


def generate(spec: Spec, cores: Sequence[int], *, interrupted: Interrupted = lambda: False) -> LoadResult:
    """Make a load and wait until it is over; :func:`standby` and :meth:`Standby.send` in one.

    Raises:
        TsMpsError: As these two do.
        KeyboardInterrupt: As :meth:`Standby.send`. Whatever is raised, no process is left.
    """
    with standby(spec.load, spec.processes, cores) as waiting:
        return waiting.send(spec, interrupted=interrupted)


@contextlib.contextmanager
def standby(load: Load, processes: int, cores: Sequence[int]) -> Iterator[Standby]:
    """Start the processes that will make a load; inside they wait to be told where to, and afterwards none is left.

    Locust takes some seconds to start, in which a server can do the same.

    Args:
        load: What they will send; its seconds are finite.
        processes: That make the load.
        cores: Numbers of the cores that the generator may use; empty for all of this process's.

    Raises:
        UsageError: The load has no end, or the cores are not there.
        PreflightError: Locust is not installed.
        OSError: Locust cannot be started.
    """
    if math.isinf(load.seconds):
        raise UsageError("A load of ts-mps bench needs an end.")
    if importlib.util.find_spec("locust") is None:
        raise PreflightError("Locust is not installed.", "Install it: pip install 'ts-mps[bench]'.")
    allowed = os.sched_getaffinity(0)
    if not set(cores) <= allowed:
        raise UsageError(f"The generator cannot use the cores {sorted(set(cores) - allowed)}: they are not ours.")
    with tempfile.TemporaryDirectory(prefix="ts-mps-load-") as scratch:
        files = _Files(*(Path(scratch, name) for name in ("spec.json", "result.json", "locust.log")))
        process: subprocess.Popen[bytes] | None = None
        ports = Ports(1)
        try:
            with files.log.open("wb") as output, uninterrupted():
                process = subprocess.Popen(
                    _command(load, processes, sorted(set(cores) or allowed), files, ports.numbers[0]),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=scratch,
                    env=_environ(),
                    # A session of its own: Ctrl-C in the terminal is ours to handle, and they end as one group.
                    start_new_session=True,
                )
            yield Standby(process, files)
        finally:
            if process is not None:
                with uninterrupted():
                    _end(process)
            ports.release()


@dataclass(frozen=True)
class _Files:
    """What goes to Locust and what comes back, in its working folder."""

    told: Path
    result: Path
    log: Path


class Standby:
    """Locust's processes, which wait. Made by :func:`standby`."""

    def __init__(self, process: subprocess.Popen[bytes], files: _Files) -> None:
        self._process, self._files = process, files

    def send(self, spec: Spec, *, interrupted: Interrupted = lambda: False) -> LoadResult:
        """Send the load, once, and wait until it is over.

        That takes at most its own times, ``spec.timeout``, and 80 s for start and end.

        Args:
            spec: What is sent: the load and the processes that were started for it.
            interrupted: Looked at 20 times a second; when it is true, the load is broken off.

        Raises:
            PreflightError: There are no payloads.
            LoadError: Locust died, was stopped by others, or did not end; the end of its log is in ``details``.
            KeyboardInterrupt: ``interrupted`` said so.
        """
        if not spec.bodies.is_dir():
            raise PreflightError(f"There is no folder {spec.bodies} with payloads.")
        process, files = self._process, self._files
        absolute = replace(spec, bodies=spec.bodies.resolve(), references=spec.references.resolve())
        # Whole or not at all: Locust looks for it all the time.
        write_json(files.told, absolute.as_json())
        longest = _STARTING_S + spec.load.warm_up + spec.load.seconds + spec.timeout + _ENDING_S
        deadline = time.monotonic() + longest
        while process.poll() is None and not files.result.exists():
            if interrupted():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                details = last_lines(files.log, _LOG_LINES)
                raise LoadError(f"Locust did not end within {longest:.0f} s.", details=details)
            time.sleep(_POLL_S)
        found = read_json(files.result)
        if found is None:
            details = last_lines(files.log, _LOG_LINES)
            raise LoadError(f"Locust ended without a result: exit status {process.wait()}.", details=details)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the result is whole; what is left is ended later
            process.wait(_LEAVING_S)
        return LoadResult.from_json(found)


def _command(load: Load, processes: int, cores: Sequence[int], files: _Files, port: int) -> list[str]:
    users = load.connections or processes
    command = [sys.executable, str(_HERE / "process.py"), str(os.getpid()), ",".join(map(str, cores))]
    command += ["-f", str(_HERE / "locustfile.py"), "--headless", "--only-summary", "--loglevel", "INFO"]
    command += ["--users", str(users), "--spawn-rate", str(users)]
    command += ["--stop-timeout", "0", "--spec", str(files.told), "--result", str(files.result)]
    if processes > 1:
        command += ["--processes", str(processes), "--expect-workers-max-wait", str(int(_STARTING_S))]
        command += ["--master-host", "127.0.0.1", "--master-port", str(port)]
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
    return command


def _environ() -> dict[str, str]:
    """This process's environment without what would change Locust's options, and with this very package in it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    path = os.pathsep.join(filter(None, (str(_HERE.parents[2]), environ.get("PYTHONPATH"))))
    # Arrays are small here, and a pool of threads for each process would only take cores from the others.
    return {**environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
